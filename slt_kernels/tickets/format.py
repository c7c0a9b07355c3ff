"""Converts a ticket's index and tensors to bytes and back, with all checks that do not need a network."""

import hashlib
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from .._text import shown
from ..files import open_regular
from ..nn.state import SCALES
from ..ops.checks import SOURCE_RANGES
from ..source import CONTRACT_VERSION, WEIGHTS, Source

FORMAT = "slt_kernels.ticket"
PLAIN, COMPRESSED = 1, 2  # versions

# A ticket's safetensors header has two entries and one per dtype: less than 4 KB.
_MAX_HEADER = 1 << 16

# A parsed index takes up to 20 times the memory of its text, so a small file must not expand to a large text.
# Compression makes an index of many layers 10 times smaller; `_pack_index` stores one beyond _MAX_RATIO uncompressed.
_SMALL_INDEX, _MAX_INDEX, _MAX_RATIO = 1 << 20, 1 << 26, 100


class TicketError(ValueError):
    """A file that is not a ticket, is damaged or too new, or does not fit the network that loads it."""


@dataclass(frozen=True)
class TicketLayer:
    """One layer of a ticket: name, shape and source of the weight, counts of the mask, and scale.

    ``arguments`` change the layer's outputs, not its weight: the geometry of a convolution, ``padding_idx`` of an
    embedding. None for a layer without such arguments, and in files of older versions.
    """

    name: str
    shape: tuple[int, ...]
    source: Source
    free: int
    kept: int
    scale: str | None
    sparsity: float | None
    weight_scale: float
    arguments: dict[str, Any] | None = None
    ones: int | None = None  # kept free weights, in a compressed ticket

    @property
    def weight(self) -> str:
        return WEIGHTS[self.source.weight]

    @property
    def mask_bytes(self) -> int:
        return (self.free + 7) // 8


@dataclass(frozen=True)
class TicketTensor:
    """A parameter or buffer that a ticket stores unchanged."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class TicketInfo:
    """Content of a ticket. ``metadata`` are those given to `save_ticket`.

    ``size`` is the file's size and ``mask_bytes`` that of its learned bits, entropy-coded if ``compressed``.
    """

    contract: int
    layers: tuple[TicketLayer, ...]
    tensors: tuple[TicketTensor, ...]
    metadata: dict[str, Any]
    size: int
    mask_bytes: int
    compressed: bool

    @property
    def weights(self) -> int:
        return sum(layer.source.total for layer in self.layers)

    @property
    def free_bits(self) -> int:
        return sum(layer.free for layer in self.layers)

    @property
    def kept(self) -> int:
        return sum(layer.kept for layer in self.layers)


# Writing


def to_bytes(index: Mapping[str, Any], tensors: Mapping[str, Tensor], compressed: bool) -> bytes:
    """The bytes of a ticket.

    Args:
        index: the index, as JSON values.
        tensors: all tensors except the index, by their names in the file; one-dimensional, on the CPU.
        compressed: whether the learned bits are entropy-coded.

    Raises:
        ValueError: metadata beyond the size limit of an index.
    """
    text = json.dumps(index, allow_nan=False, separators=(",", ":")).encode()
    if len(text) > _MAX_INDEX:
        raise ValueError(f"metadata: expected at most {_MAX_INDEX:,} bytes of JSON, including the entries of layers")
    tensors = {"index": torch.frombuffer(bytearray(_pack_index(text)), dtype=torch.uint8), **tensors}
    version = COMPRESSED if compressed else PLAIN
    return to_safetensors(tensors, {FORMAT: f"{version} {checksum(tensors)}"})


def _pack_index(text: bytes) -> bytes:
    packed = zlib.compress(text, 9)
    return packed if len(text) <= _index_limit(packed) else zlib.compress(text, 0)


def _index_limit(packed: bytes) -> int:
    """Maximum size of the text of a compressed index."""
    return min(max(_SMALL_INDEX, _MAX_RATIO * len(packed)), _MAX_INDEX)


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of a ticket's tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {dtype_name(t)} {t.numel()}\n".encode())
        digest.update(t.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def dtype_name(t: Tensor) -> str:
    """Name of the dtype in a ticket, without ``torch.``."""
    return str(t.dtype).removeprefix("torch.")


# Reading


def read(path: str | os.PathLike) -> tuple[TicketInfo, dict[str, Tensor]]:
    """`parse` of a file, which is opened and read once. Only the start is read of a file that is not a ticket.

    Raises:
        TicketError: as `parse`, or the path is a folder, a device or a pipe.
        OSError: the file cannot be opened; ``filename`` is the path.
    """
    if os.path.isdir(path):
        raise TicketError(f"{path}: not a ticket, but a folder")
    try:
        file = open_regular(path)
    except ValueError as error:
        raise TicketError(str(error)) from None
    with file:
        start = file.read(8 + _MAX_HEADER)
        _entry(start, path)
        return parse(start + file.read(), path)


def parse(content: bytes, path: str | os.PathLike) -> tuple[TicketInfo, dict[str, Tensor]]:
    """The content of a ticket, and its one-dimensional tensors by their names in the file.

    Args:
        content: the file's bytes.
        path: the file, for errors.

    Raises:
        TicketError: a file that is not a ticket, is cut short, altered or of a newer version, or has a contradictory
            index.
    """
    version, _, expected = _entry(content, path).partition(" ")
    if version not in (str(PLAIN), str(COMPRESSED)):
        raise TicketError(
            f"{path}: version={shown(version)}: expected {PLAIN} or {COMPRESSED}; a newer package may read others"
        )
    compressed = version == str(COMPRESSED)
    try:
        tensors = from_safetensors(content)
    except Exception as error:  # damaged bytes raise many types
        raise TicketError(f"{path}: not a ticket, or cut short ({error})") from None
    for name, t in tensors.items():
        kind = "uint8" if name in ("index", "masks", "coded") else name
        if t.dim() != 1 or dtype_name(t) != kind:
            raise TicketError(f"{path}: damaged: {shown(name)} is {dtype_name(t)} {list(t.shape)}")
        if t.dtype == torch.bool and (t.view(torch.uint8) > 1).any():
            raise TicketError(f"{path}: damaged: bools other than 0 and 1")
    if expected != checksum(tensors):
        raise TicketError(f"{path}: altered: its content does not match its checksum")
    try:
        index = _unpack_index(tensors)
        contract = _field(index, "contract", int)
        if contract != CONTRACT_VERSION:
            raise TicketError(f"{path}: contract={shown(contract)}: this package implements version {CONTRACT_VERSION}")
        _check_keys(index, "index", ("contract", "layers", "tensors", "metadata"))
        layers = tuple(_layer(entry, compressed) for entry in _field(index, "layers", list))
        others = tuple(_tensor(entry) for entry in _field(index, "tensors", list))
        metadata = _field(index, "metadata", dict)
        if not layers:
            raise _Damaged("no layer")
        for entries in (layers, others):
            _check_unique([entry.name for entry in entries])
        learned = "coded" if compressed else "masks"
        if learned not in tensors:
            raise _Damaged(f"expected a tensor {learned}")
    except (_Damaged, zlib.error) as error:
        raise TicketError(f"{path}: damaged index ({error})") from None
    mask_bytes = tensors["coded"].numel() if compressed else sum(layer.mask_bytes for layer in layers)
    lengths = {"index": tensors["index"].numel(), learned: mask_bytes}
    for other in others:
        lengths[other.dtype] = lengths.get(other.dtype, 0) + other.numel
    if {name: t.numel() for name, t in tensors.items()} != lengths:
        raise TicketError(f"{path}: damaged: the lengths of its tensors contradict its index")
    return TicketInfo(contract, layers, others, metadata, len(content), mask_bytes, compressed), tensors


def _entry(content: bytes, path: str | os.PathLike) -> str:
    """The ticket's entry in the metadata of safetensors."""
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    if len(content) < 8 or len(header) < length or length > _MAX_HEADER:
        raise TicketError(f"{path}: not a ticket, or cut short")
    try:
        metadata = json.loads(header).get("__metadata__", {})
        entry = metadata.get(FORMAT)
    except (ValueError, AttributeError, RecursionError):
        raise TicketError(f"{path}: not a ticket, or cut short") from None
    if entry is None:
        raise TicketError(f"{path}: not a ticket: expected {FORMAT!r} in its metadata, got {shown(sorted(metadata))}")
    if not isinstance(entry, str):
        raise TicketError(f"{path}: not a ticket: {FORMAT}={shown(entry)}")
    return entry


class _Damaged(Exception):  # noqa: N818 (it becomes a TicketError)
    """An invalid index."""


def _unpack_index(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    if "index" not in tensors:
        raise _Damaged("missing")
    packed = tensors["index"].numpy().tobytes()
    limit = _index_limit(packed)
    unpacking = zlib.decompressobj()
    text = unpacking.decompress(packed, limit)
    if unpacking.unconsumed_tail:
        raise _Damaged(f"expected at most {limit:,} bytes of text")
    if not unpacking.eof or unpacking.unused_data:
        raise _Damaged("cut short, or followed by other bytes")
    try:
        index = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"not JSON: {error}") from None
    if type(index) is not dict:
        raise _Damaged("expected keys and values")
    return index


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]}: expected a finite number")
    return number


def _layer(entry: Any, compressed: bool) -> TicketLayer:
    required = ("name", "shape", "source", "free", "kept", "scale", "sparsity", "weight_scale")
    _check_keys(entry, "layer", (*required, "ones") if compressed else required, ("arguments",))
    name = _field(entry, "name", str)
    source = _source(_field(entry, "source", list))
    shape = _shape(_field(entry, "shape", list))
    if not shape or (shape[0], math.prod(shape[1:])) != (source.rows, source.fan):
        raise _Damaged(f"{shown(name)}: shape={shown(list(shape))}: expected {source.rows} x {source.fan} weights")
    free = _integer(entry["free"], "free", 0, source.total)
    if source.prune_below == 0 and source.lock_from == 256 and free != source.total:
        raise _Damaged(f"free={free}: expected {source.total}, because no weight is frozen")
    ones = _integer(entry["ones"], "ones", 0, free) if compressed else None
    frozen = source.total - free
    kept = _integer(entry["kept"], "kept", ones or 0, frozen + (ones if compressed else free))
    scale, sparsity, arguments = entry["scale"], entry["sparsity"], entry.get("arguments")
    if type(scale) not in (str, type(None)) or scale not in SCALES:
        raise _Damaged(f"scale={shown(scale)}: expected one of {SCALES}")
    if sparsity is not None and (type(sparsity) not in (int, float) or not 0 <= sparsity <= 1):
        raise _Damaged(f"sparsity={shown(sparsity)}: expected a fraction in [0, 1]")
    weight_scale = _field(entry, "weight_scale", float)
    if torch.tensor(weight_scale, dtype=torch.float32, device="cpu").item() != weight_scale:
        raise _Damaged(f"weight_scale={weight_scale}: expected a float32 number")
    if arguments is not None:
        _check_arguments(arguments)
    return TicketLayer(name, shape, source, free, kept, scale, sparsity, weight_scale, arguments, ones)


# Range of each field, for a complete layer: its first row and word are 0.
_SOURCE = dict(zip(Source._fields, SOURCE_RANGES, strict=True)) | {"first_row": (0, 0), "first_word": (0, 0)}


def _source(values: Sequence[Any]) -> Source:
    if len(values) != len(_SOURCE):
        raise _Damaged(f"source: expected {len(_SOURCE)} integers")
    ranges = zip(values, _SOURCE.items(), strict=True)
    source = Source(*(_integer(value, name, low, high) for value, (name, (low, high)) in ranges))
    if source.lock_from < source.prune_below or source.row_calls != (source.fan + 127) // 128:
        raise _Damaged(f"source={shown(list(values))}: a pruned weight is locked, or row_calls does not fit fan")
    return source


def _tensor(entry: Any) -> TicketTensor:
    _check_keys(entry, "tensor", ("name", "dtype", "shape"))
    dtype = _field(entry, "dtype", str)
    if str(getattr(torch, dtype, None)) != f"torch.{dtype}" or not isinstance(getattr(torch, dtype), torch.dtype):
        raise _Damaged(f"dtype={shown(dtype)}: expected the name of a dtype")
    return TicketTensor(_field(entry, "name", str), dtype, _shape(_field(entry, "shape", list)))


def _check_arguments(arguments: Any) -> None:
    """Checks that values are of the types of a layer's arguments: text, integers, None and lists of these."""
    if type(arguments) is not dict:
        raise _Damaged(f"arguments={shown(arguments)}: expected keys and values")
    for key, value in arguments.items():
        for item in value if type(value) is list else [value]:
            if type(item) not in (int, str, type(None)):
                raise _Damaged(f"{shown(key)}={shown(value)}: expected text, integers or none")


def _check_keys(entry: Any, what: str, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    if type(entry) is not dict or not set(required) <= entry.keys() <= {*required, *optional}:
        found = sorted(entry) if type(entry) is dict else entry
        raise _Damaged(f"{what}: expected {', '.join(required)}; got {shown(found)}")


def _field(entry: Mapping[str, Any], name: str, kind: type) -> Any:
    if type(entry.get(name)) is not kind:
        raise _Damaged(f"{name}={shown(entry.get(name))}: expected a value of type {kind.__name__}")
    return entry[name]


def _integer(value: Any, name: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _Damaged(f"{name}={shown(value)}: expected an integer from {low} to {high}")
    return value


def _shape(values: Sequence[Any]) -> tuple[int, ...]:
    if len(values) > 64:
        raise _Damaged(f"shape: {len(values)} dimensions, expected at most 64")
    return tuple(_integer(value, "shape", 0, 2**63 - 1) for value in values)


def _check_unique(names: Sequence[str]) -> None:
    for name, times in Counter(names).most_common(1):
        if times > 1:
            raise _Damaged(f"name={shown(name)}: expected once")
