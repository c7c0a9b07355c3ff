"""Tickets: a network as a file of its seed, the learned bits, and what else it holds.

A ticket is a safetensors file. Its tensors:

=============  =====================================================================================================
``index``      uint8: zlib-compressed JSON: the contract's version, the layers, the other tensors' names, metadata
``masks``      uint8: each layer's compact mask, ``ceil(free / 8)`` bytes, first bit lowest, in the index's order
``coded``      uint8, in place of ``masks`` in a compressed ticket: the same bits, entropy-coded
``float32`` …  one for each dtype: all other parameters and buffers of that dtype, flattened, in the index's order
=============  =====================================================================================================

and one entry of safetensors metadata, ``slt_kernels.ticket``: the version and the sha256 of the tensors. (Of several
entries safetensors would write the order at random; so the same network is the same bytes.) Grouping the other tensors
keeps a file at its information content: a header entry each would cost more than a BatchNorm's counter holds.

A layer's entry has the fields of `TicketLayer`. ``arguments`` may be missing, as in the first files: then nothing is
known of them, and nothing is compared.

A plain ticket is of version 1, a compressed one of version 2. There the index has ``ones``, how many bits of a layer's
mask are set, and the bits are symbols of a Bernoulli variable of probability ``ones / free`` to an ANS coder
(``constriction.stream.stack.AnsCoder``), one stream for all layers, little-endian words.
"""

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from . import bits
from .nn import SupermaskConv2d, SupermaskEmbedding, SupermaskLayer, spread
from .numbering import warn_of_equal_layers
from .source import CONTRACT_VERSION, WEIGHTS, Source

FORMAT = "slt_kernels.ticket"
PLAIN, COMPRESSED = 1, 2  # versions


class TicketError(ValueError):
    """A file that is no ticket, is damaged or too new, or is the ticket of another network."""


@dataclass(frozen=True)
class TicketLayer:
    """One layer of a ticket: its name, the weight's shape, what generates it, and its mask's counts and scale.

    ``arguments`` are those that change a layer's answers and not its weight: a convolution's geometry, the row of an
    embedding that reads as zeros. None where there are none, or where the file is older.
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
    ones: int | None = None  # free weights kept; of a compressed ticket

    @property
    def weight(self) -> str:
        return WEIGHTS[self.source.weight]

    @property
    def mask_bytes(self) -> int:
        return (self.free + 7) // 8


@dataclass(frozen=True)
class TicketTensor:
    """A parameter or buffer that a ticket holds as it is."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class TicketInfo:
    """What a ticket holds. ``metadata`` is what its writer passed.

    ``size`` is of the file, and ``mask_bytes`` of the learned bits in it, entropy-coded if ``compressed``.
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


def save_ticket(
    model: nn.Module, path: str | os.PathLike, metadata: dict[str, Any] | None = None, compress: bool = False
) -> TicketInfo:
    """Writes a model with supermask layers as a ticket.

    The file holds every layer's learned bits, seed, freezing, distribution and scale, and all other parameters and
    buffers of the model's ``state_dict`` (BatchNorm statistics, biases) as they are: at most
    ``free_bits / 8 + their bytes + 4096 + 200 * layers``. No weights, no scores. It is written beside ``path`` and
    renamed, so a failure leaves an old file as it was.

    Args:
        model: the module, or one wrapped by DistributedDataParallel or ``torch.compile``. Of one that is sharded
            (``fully_shard``, `nn.parallel`) every process has to write a ticket, each the same whole one.
        path: the file.
        metadata: a dict of what JSON holds, for `ticket_info` to give back.
        compress: entropy-code the learned bits (the extra ``compress``): a layer of ``n`` free weights, the fraction
            ``p`` of them kept, takes ``n (-p log2 p - (1 - p) log2 (1 - p))`` bits in place of ``n``. It is smaller
            where much more or less than half is kept. Default False.

    Raises:
        ModuleNotFoundError: to compress, without the package for it.
        ValueError: no supermask layer in it; one that ``to_empty`` left open, with a mask that keeps pruned weights or
            drops locked ones, or with a ``weight_scale`` that is not finite; extra state that is no tensor; or metadata
            that is no dict or that JSON does not hold.
        FileNotFoundError, IsADirectoryError, FileExistsError: the path's folder is not there, or the path is a folder,
            a device or a pipe.
    """
    if not isinstance(metadata, dict | None):
        raise ValueError(f"metadata={metadata!r}: expected a dict")
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata={metadata!r}: expected what JSON holds ({error})") from None
    model = _unwrap(model)
    layers = list(_layers(model))
    if not layers:
        raise ValueError("model: expected at least one supermask layer in it")
    warn_of_equal_layers(model)
    others = list(_other_tensors(model))
    for name, m in layers:
        _check_initialized(name, m)
    masks = [m.compact_mask().cpu() for _, m in layers]
    for name, m in layers:
        _check_frozen(name, m)
        if not m.weight_scale.isfinite():
            raise ValueError(f"{name}.weight_scale={m.weight_scale.item()}: expected a finite number")
    ones = [int(bits.popcount(mask)) for mask in masks]
    index = {
        "contract": CONTRACT_VERSION,
        "layers": [
            {
                "name": name,
                "shape": m.weight_shape,
                "source": m.whole,
                "free": m.free,
                "kept": count + m.locked,
                "scale": m.scale,
                "sparsity": m.sparsity,
                "weight_scale": m.weight_scale.item(),
                **({"arguments": arguments} if (arguments := _arguments(m)) else {}),
                **({"ones": count} if compress else {}),
            }
            for (name, m), count in zip(layers, ones, strict=True)
        ],
        "tensors": [{"name": t.name, "dtype": t.dtype, "shape": t.shape} for t in others],
        "metadata": metadata or {},
    }
    text = json.dumps(index, allow_nan=False, separators=(",", ":")).encode()
    octets = [mask.view(torch.uint8)[: (m.free + 7) // 8] for (_, m), mask in zip(layers, masks, strict=True)]
    tensors = {
        "index": torch.frombuffer(bytearray(zlib.compress(text, 9)), dtype=torch.uint8),
        **({"coded": _encode(octets, [m.free for _, m in layers], ones)} if compress else {"masks": torch.cat(octets)}),
    }
    for dtype in dict.fromkeys(t.dtype for t in others):
        tensors[dtype] = torch.cat([t.gather().cpu().flatten() for t in others if t.dtype == dtype])

    version = COMPRESSED if compress else PLAIN
    write_atomically(Path(path), to_safetensors(tensors, {FORMAT: f"{version} {_checksum(tensors)}"}))
    return ticket_info(path)


def load_ticket(path: str | os.PathLike, model: nn.Module) -> TicketInfo:
    """Loads a ticket into a network of its architecture, which then gives the same answers, bit for bit.

    Everything is checked before anything is changed. The scores are left alone, and the layers' `auto_mask` is off:
    the masks stay until an `EdgePopup` makes others from scores of its own. Continue a search from a checkpoint.

    Args:
        path: the file.
        model: built as the saved one was: the same layers, names, seed, freezing, distribution and scale. It may be
            sharded: each process takes its part.

    Raises:
        ModuleNotFoundError: it is compressed, and the package for that (the extra ``compress``) is missing.
        TicketError: cut short, altered, of a newer version, or of another network. The model is unchanged.
        ValueError: a model on the meta device.
        FileNotFoundError: no such file.
    """
    info, tensors = _read(path)
    model = _unwrap(model)
    layers = dict(_layers(model))
    others = {t.name: t for t in _other_tensors(model)}
    for name, t in (*((n, m.mask_words) for n, m in layers.items()), *((n, t.tensor) for n, t in others.items())):
        if t.is_meta:
            raise ValueError(f"{name}: on the meta device, which holds nothing; expected model.to_empty(device=...)")
    _check_names("supermask layers", [x.name for x in info.layers], list(layers))
    _check_names("other tensors", [x.name for x in info.tensors], list(others))
    for saved in info.layers:
        _check_layer(saved, layers[saved.name])
    for saved in info.tensors:
        here = others[saved.name]
        _check_equal(saved.name, "dtype", saved.dtype, here.dtype)
        _check_equal(saved.name, "shape", list(saved.shape), list(here.shape))
    masks = _decode(tensors["coded"], info.layers, path) if info.compressed else tensors["masks"]

    # All fits: nothing below fails.
    masks = masks.split([layer.mask_bytes for layer in info.layers])
    for saved, octets in zip(info.layers, masks, strict=True):
        padded = torch.zeros(bits.words_for(saved.free) * 4, dtype=torch.uint8, device="cpu")
        padded[: len(octets)] = octets
        layers[saved.name].load_mask(padded.view(torch.int32), saved.weight_scale)
    taken = dict.fromkeys(tensors, 0)
    for saved in info.tensors:
        start, taken[saved.dtype] = taken[saved.dtype], taken[saved.dtype] + saved.numel
        others[saved.name].load(tensors[saved.dtype][start : start + saved.numel].view(saved.shape))
    return info


def ticket_info(path: str | os.PathLike) -> TicketInfo:
    """What a ticket holds, its checksum verified.

    Raises:
        TicketError: cut short, altered, or of a newer version.
        FileNotFoundError: no such file.
    """
    return _read(path)[0]


# Reading and writing


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that at every moment either the old one or the new one is there, whole.

    What a link points to is written, and keeps its permissions.

    Raises:
        FileNotFoundError, IsADirectoryError, FileExistsError: the path's folder is not there, or the path is a folder,
            a device or a pipe.
    """
    target = path.resolve()
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file, not a folder")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a file in a folder that exists")
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{path}: expected a file, not a device or a pipe")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if target.exists():
                shutil.copymode(target, temporary)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: str | os.PathLike) -> tuple[TicketInfo, dict[str, Tensor]]:
    path = Path(path)
    size = path.stat().st_size
    if path.is_dir():
        raise TicketError(f"{path}: not a ticket, but a folder")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise TicketError(f"{path}: not a ticket, or cut short ({error})") from None
    if FORMAT not in header:
        raise TicketError(f"{path}: not a ticket: expected {FORMAT!r} in its metadata, got {sorted(header)}")
    version, _, checksum = header[FORMAT].partition(" ")
    if not version.isdecimal() or int(version) not in (PLAIN, COMPRESSED):
        raise TicketError(f"{path}: version={version!r}: this package reads up to {COMPRESSED}; a newer one wrote it")
    if checksum != _checksum(tensors):
        raise TicketError(f"{path}: altered: its content does not match its checksum")
    try:
        index = json.loads(zlib.decompress(tensors["index"].numpy().tobytes()))
        contract = index["contract"]
        if contract != CONTRACT_VERSION:
            raise TicketError(f"{path}: contract={contract}: this package knows version {CONTRACT_VERSION}")
        layers = tuple(
            TicketLayer(**{**x, "shape": tuple(x["shape"]), "source": Source(*x["source"])}) for x in index["layers"]
        )
        for layer in layers:
            if layer.source.weight not in range(len(WEIGHTS)) or not isinstance(layer.arguments, dict | None):
                raise ValueError(layer.name)
            if not math.isfinite(layer.weight_scale):  # TypeError, where it is no number
                raise ValueError(f"{layer.name}: weight_scale={layer.weight_scale}")
        others = tuple(TicketTensor(**{**x, "shape": tuple(x["shape"])}) for x in index["tensors"])
        compressed = int(version) == COMPRESSED
        learned = "coded" if compressed else "masks"
        lengths = {learned: sum(layer.mask_bytes for layer in layers), "index": len(tensors["index"])}
        if compressed:
            if not all(0 <= layer.ones <= layer.free for layer in layers):
                raise ValueError("ones")
            lengths[learned] = len(tensors[learned])
        info = TicketInfo(contract, layers, others, index["metadata"], size, lengths[learned], compressed)
        for other in others:
            lengths[other.dtype] = lengths.get(other.dtype, 0) + other.numel
    except TicketError:
        raise
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise TicketError(f"{path}: damaged index ({error!r})") from None
    if {name: t.numel() for name, t in tensors.items()} != lengths:
        raise TicketError(f"{path}: its tensors do not have the lengths that its index gives")
    return info, tensors


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {_dtype_name(t)} {t.numel()}\n".encode())
        digest.update(t.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _encode(octets: list[Tensor], free: list[int], ones: list[int]) -> Tensor:
    """The learned bits of all layers, ``ceil(free / 8)`` bytes each, entropy-coded: uint8."""
    coder = entropy_coder().stack.AnsCoder()
    for mask, n, kept in reversed(list(zip(octets, free, ones, strict=True))):  # a stack: the first layer comes last
        symbols = np.unpackbits(mask.numpy(), count=n, bitorder="little").astype(np.int32)
        coder.encode_reverse(symbols, _bernoulli(n, kept))
    return torch.from_numpy(coder.get_compressed().astype("<u4").view(np.uint8))


def _decode(coded: Tensor, layers: tuple[TicketLayer, ...], path: str | os.PathLike) -> Tensor:
    """The inverse of `_encode`: all layers' bytes in a row."""
    constriction = entropy_coder()
    try:
        coder = constriction.stack.AnsCoder(coded.numpy().view("<u4").astype(np.uint32))
        octets = []
        for layer in layers:
            symbols = coder.decode(_bernoulli(layer.free, layer.ones), layer.free).astype(np.uint8)
            if symbols.sum(dtype=np.int64) != layer.ones:
                raise ValueError(f"{layer.name}: {symbols.sum()} bits set, expected {layer.ones}")
            octets.append(torch.from_numpy(np.packbits(symbols, bitorder="little")))
        if not coder.is_empty():
            raise ValueError("more bits than its layers have")
    except ValueError as error:
        raise TicketError(f"{path}: damaged: its entropy-coded bits do not decode ({error})") from None
    return torch.cat(octets)


def _bernoulli(n: int, ones: int):
    return entropy_coder().model.Bernoulli(ones / max(n, 1), perfect=False)


def entropy_coder():
    """The package's coder; ModuleNotFoundError names the extra that it comes with."""
    try:
        import constriction
    except ModuleNotFoundError:
        raise ModuleNotFoundError('compressed tickets need constriction: pip install "slt_kernels[compress]"') from None
    return constriction.stream


# What of a model is in a ticket


@dataclass(frozen=True)
class _Other:
    """A parameter or buffer that no mask stands for; it may be sharded, as a DTensor or the bias of a sharded layer."""

    name: str
    tensor: Tensor
    layer: SupermaskLayer | None  # whose bias it is, if that layer is sharded

    @property
    def dtype(self) -> str:
        return _dtype_name(self.tensor)

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape if self.layer is None else torch.Size([self.layer.whole.rows])

    def gather(self) -> Tensor:
        """All of it; where it is sharded, every process has to ask."""
        return spread.whole(self.tensor.detach()) if self.layer is None else self.layer.whole_bias()

    @torch.no_grad()
    def load(self, values: Tensor) -> None:
        spread.copy_(self.tensor, values if self.layer is None else self.layer.part_of_bias(values))


def _unwrap(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
            model = model._orig_mod
        else:
            return model


def _layers(model: nn.Module) -> Iterator[tuple[str, SupermaskLayer]]:
    return ((name, m) for name, m in model.named_modules() if isinstance(m, SupermaskLayer))


def _other_tensors(model: nn.Module) -> Iterator[_Other]:
    """Parameters and persistent buffers that no mask stands for, each once."""
    state = model.state_dict(keep_vars=True)  # first: with FSDP2 it brings the sharded parameters back
    replaced = {id(t) for _, m in _layers(model) for t in m.buffers(recurse=False)}
    replaced |= {id(m.scores) for _, m in _layers(model)}
    biases = {id(m.bias): m for _, m in _layers(model) if m.group is not None}
    for name, t in state.items():
        if not isinstance(t, Tensor):
            raise ValueError(f"{name}: expected a tensor, got extra state of type {type(t).__name__}")
        if id(t) not in replaced:
            replaced.add(id(t))
            yield _Other(name, t, biases.get(id(t)))


def _arguments(layer: SupermaskLayer) -> dict[str, Any]:
    """What of a layer's arguments changes its answers and not its weight, as JSON gives it back."""
    if isinstance(layer, SupermaskEmbedding):
        return {"padding_idx": layer.padding_idx}
    if not isinstance(layer, SupermaskConv2d):
        return {}
    padding = layer.padding if isinstance(layer.padding, str) else list(layer.padding)
    around = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if padding == "valid":
        padding = [0, 0]
    elif padding == "same" and not any(n % 2 for n in around):  # in numbers: it may be the network of padding=1
        padding = [n // 2 for n in around]
    return {
        "stride": list(layer.stride),
        "padding": padding,
        "dilation": list(layer.dilation),
        "groups": layer.groups,
        "padding_mode": layer.padding_mode,
    }


def _dtype_name(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def _check_names(what: str, saved: list[str], here: list[str]) -> None:
    if saved != here:
        missing, extra = sorted(set(saved) - set(here)), sorted(set(here) - set(saved))
        raise TicketError(
            f"the ticket is of another network: {what} in the ticket alone {missing}, in the network alone {extra}"
            + ("" if missing or extra else "; the same names in another order")
        )


def _check_layer(saved: TicketLayer, here: SupermaskLayer) -> None:
    _check_equal(saved.name, "shape", list(saved.shape), list(here.weight_shape))
    generated = _generated(here.whole)
    for argument, value in _generated(saved.source).items():
        _check_equal(saved.name, argument, value, generated[argument])
    _check_equal(saved.name, "source", saved.source, here.whole)
    _check_equal(saved.name, "scale", saved.scale, here.scale)
    _check_equal(saved.name, "free", saved.free, here.free)
    arguments = _arguments(here)
    for argument, value in (saved.arguments or {}).items():
        _check_equal(saved.name, argument, value, arguments.get(argument))


def _generated(source: Source) -> dict[str, Any]:
    """What generates a layer, in the arguments that say so."""

    def fraction(steps: int) -> str:
        return f"{steps / 256:.3g} ({steps}/256)"

    return {
        "seed": source.seed % 2**64,
        "layer": source.layer,
        "weight": WEIGHTS[source.weight],
        "prune": fraction(source.prune_below),
        "lock": fraction(256 - source.lock_from),
    }


def _check_initialized(name: str, layer: SupermaskLayer) -> None:
    """Raises ValueError for a layer on the meta device, or as ``to_empty`` leaves it."""
    if not layer.is_initialized():
        raise ValueError(
            f"{name}: its source_id is not that of its source, so its mask is none either; expected a layer that "
            "reset_parameters, load_ticket or load_state_dict has filled, after to_empty"
        )


def _check_frozen(name: str, layer: SupermaskLayer) -> None:
    """Raises ValueError where a resolved mask is not the seed's at the frozen weights: the file holds the others."""
    if layer.compact:
        return
    device = layer.mask_words.device
    free, locked = layer.source.frozen_words(device)
    wrong = (layer.mask_words ^ locked) & ~free & layer.source.padding(device)
    if wrong.any():
        raise ValueError(
            f"{name}: its mask keeps pruned weights or drops locked ones ({int(bits.popcount(wrong)):,} together), so "
            "it was not made from scores; expected one of EdgePopup, update_mask or a ticket"
        )


def _check_equal(name: str, field: str, saved: Any, here: Any) -> None:
    if saved != here:
        raise TicketError(f"{name}: the ticket has {field}={saved}, the network {field}={here}")
