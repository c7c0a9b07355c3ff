"""Random edits of tickets with a correct checksum: refused without changes, or loaded as edited."""

import argparse
import hashlib
import json
import os
import random
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load as from_safetensors
from torch import nn

from slt_kernels import (
    EdgePopup,
    Freeze,
    SupermaskConv2d,
    SupermaskEmbedding,
    SupermaskLinear,
    TicketError,
    cli,
    load_ticket,
    save_ticket,
    tickets,
)
from slt_kernels.ticket import TicketInfo

MUTANTS = 1_500  # per case


class Network(nn.Module):
    """A small network with each kind of layer and of other tensor; never called."""

    def __init__(self) -> None:
        super().__init__()
        options = {"freeze": Freeze(0.3, 0.2), "sparsity": 0.5, "seed": 2**64 - 3}
        self.conv = SupermaskConv2d(2, 3, 3, padding=1, layer=1, scale="dynamic", **options)
        self.norm = nn.BatchNorm1d(3)
        self.linear = SupermaskLinear(9, 5, layer=2, compact=True, weight="normal", **options)
        self.words = SupermaskEmbedding(6, 4, layer=3, padding_idx=0, **options)
        self.register_buffer("table", torch.linspace(-1, 1, 4).bfloat16().view(2, 2))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        EdgePopup(self, 0.5)


def bytes_of(t: torch.Tensor) -> bytes:
    return t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def state(model: nn.Module) -> list:
    return [m.auto_mask for m in model.modules() if hasattr(m, "auto_mask")] + [
        (name, t.shape, t.dtype, bytes_of(t)) for name, t in model.state_dict().items()
    ]


CODES = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}


def file_of(tensors: dict[str, torch.Tensor], version: str) -> bytes:
    """A ticket of arbitrary tensors with a correct checksum."""
    digest, header, content = hashlib.sha256(), {}, b""
    for name in sorted(tensors):
        t, octets = tensors[name], bytes_of(tensors[name])
        digest.update(f"{name} {str(t.dtype).removeprefix('torch.')} {t.numel()}\n".encode() + octets)
        span = [len(content), len(content) + len(octets)]
        header[name] = {"dtype": CODES[t.dtype], "shape": list(t.shape), "data_offsets": span}
        content += octets
    header["__metadata__"] = {"slt_kernels.ticket": f"{version} {digest.hexdigest()}"}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def tensor_of(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


# Edits of the index

DEEP = 5_000
VALUES = (
    None, True, False, 0, 1, -1, 2, 7, 255, 256, 2**31, 2**63, -(2**63) - 1, 10**40, 0.0, -0.0, 0.5, 1.0, 2.0, 1e-320,
    3.5e38, 1e300, -1e300, "", "x", "conv", "int64", "float32", "complex128", "half", "dynamic", "nan", [], {}, [0],
    [1, 1], [[1]], ["a"], {"a": 1}, [None], "\ud800", [1] * 65, float("nan"), float("inf"),
)  # fmt: skip


def places(tree, found: list) -> list:
    """All pairs (container, key) of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found.append((tree, key))
        places(value, found)
    return found


def other_type(value, rng: random.Random):
    """The value as another type, or a nearby value."""
    if isinstance(value, bool) or value is None:
        return rng.choice((0, 1, "none"))
    if isinstance(value, int):
        return rng.choice((float(value), str(value), [value], -value, value + 1, value - 1, value + 2**64, bool(value)))
    if isinstance(value, float):
        return rng.choice((str(value), [value], -value, value * 2, value + 1e-12, int(value), value * 1e200))
    if isinstance(value, str):
        return rng.choice(([value], value + "x", value.upper(), value.encode().hex(), {value: 1}, len(value)))
    if isinstance(value, list):
        return rng.choice((value * 2, value[::-1], value[1:], [value], dict(enumerate(value)), str(value), [*value, 1]))
    return rng.choice((list(value), list(value.items()), [value], {**value, "more": 1}, str(value)))


def edit_index(index: dict, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        container, key = rng.choice(places(index, []))
        how = rng.randrange(5)
        if how == 0:
            del container[key]
        elif how == 1:
            container[key] = rng.choice(VALUES)
        elif how == 2 and isinstance(container, list):
            container.insert(rng.randrange(len(container) + 1), json.loads(json.dumps(container[key])))
        elif how == 3:
            other, place = rng.choice(places(index, []))
            container[key] = json.loads(json.dumps(other[place]))
        else:
            container[key] = other_type(container[key], rng)
    return json.dumps(index).encode()


def edit_text(text: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(text))
    value = rng.choice(
        (b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP, b"9" * DEEP, b"1e999", b"NaN", b"\xff", b'"', b",", b"")
    )
    return text[:at] + value + text[at + rng.randrange(3) :]


def edit_packed(packed: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        (packed[:-1], packed + b"x", packed[: len(packed) // 2], packed * 2, b"", packed[::-1], b"\0" * 9)
    )


# Edits of the tensors


def edit_tensors(tensors: dict, rng: random.Random) -> None:
    name, other = rng.choice(sorted(tensors)), rng.choice(sorted(tensors))
    t = tensors[name]
    dtypes = (
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.float16,
        torch.int32,
        torch.float32,
        torch.bool,
        torch.complex64,
    )
    how = rng.randrange(10)
    if how == 0:
        tensors[name] = t.reshape(rng.choice(((1, -1), (-1, 1), (1,) * 70 + (-1,), (1, -1, 1))))
    elif how == 1 and t.numel() == 1:
        tensors[name] = t.reshape(())
    elif how == 2:
        tensors[name] = t.to(rng.choice(dtypes))
    elif how == 3:
        tensors[name] = tensor_of(bytes_of(t))
    elif how == 4:
        del tensors[name]
    elif how == 5:
        tensors[rng.choice(("more", "uint8", "masks", "coded", "float64", other))] = tensors.pop(name)
    elif how == 6:
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif how == 7:
        tensors[name] = rng.choice(
            (t.flatten()[:-1], t.flatten()[1:], torch.cat((t.flatten(), t.flatten())), t.flatten()[:0])
        )
    else:
        octets = bytearray(bytes_of(t))
        if octets:
            octets[rng.randrange(len(octets))] ^= 1 << rng.randrange(8)
            tensors[name] = tensor_of(bytes(octets)).view(t.dtype)


def mutant(tensors: dict, version: str, rng: random.Random) -> bytes:
    tensors = dict(tensors)
    how = rng.randrange(20)
    text = zlib.decompress(bytes_of(tensors["index"]))
    if how < 11:
        tensors["index"] = tensor_of(zlib.compress(edit_index(json.loads(text), rng), 1))
    elif how < 12:
        tensors["index"] = tensor_of(zlib.compress(edit_text(text, rng), 1))
    elif how < 13:
        tensors["index"] = tensor_of(edit_packed(bytes_of(tensors["index"]), rng))
    elif how < 19:
        for _ in range(rng.choice((1, 1, 2))):
            if tensors:
                edit_tensors(tensors, rng)
    else:
        version = rng.choice(("1", "2", "3", "01", "", "9" * DEEP, "²", "-1", " 1"))
    return file_of(tensors, version)


@pytest.fixture(scope="module", params=(False, True), ids=("plain", "compressed"))
def written(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ticket") / "net.slt"
    save_ticket(Network(), path, {"a": {"b": [1, 2.5, None, "ü"]}}, compress=request.param)
    return path


def identity(info: TicketInfo) -> list:
    """The fields of a ticket that define the network: all except metadata, sparsity and arguments."""
    fields = ("name", "shape", "source", "free", "kept", "scale", "weight_scale", "ones")
    layers = [[(type(v), v) for v in (getattr(layer, field) for field in fields)] for layer in info.layers]
    return [layers, info.tensors]


def check_equals_file(model: nn.Module, info: TicketInfo, file: Path) -> None:
    """Asserts that the network has the bits of the file."""
    layers = {name: m for name, m in model.named_modules() if hasattr(m, "weight_scale")}
    assert list(layers) == [layer.name for layer in info.layers]
    octets = []
    for saved, layer in zip(info.layers, layers.values(), strict=True):
        assert (saved.shape, saved.source, saved.free) == (layer.weight_shape, layer.whole, layer.free)
        assert (saved.kept, saved.weight_scale) == (int(layer.mask().sum()), layer.weight_scale.item())
        octets.append(tensor_of(bytes_of(layer.compact_mask())[: saved.mask_bytes]))
    tensors = from_safetensors(file.read_bytes())
    if info.compressed:
        ones = [layer.ones for layer in info.layers]
        coded = tickets.entropy.encode(octets, [layer.free for layer in info.layers], ones)
        assert torch.equal(coded, tensors["coded"])
    else:
        assert torch.equal(torch.cat(octets), tensors["masks"])
    state, taken = model.state_dict(), {}
    for saved in info.tensors:
        t = state[saved.name]
        assert (saved.shape, f"torch.{saved.dtype}") == (tuple(t.shape), str(t.dtype))
        taken[saved.dtype] = taken.get(saved.dtype, b"") + bytes_of(t)
    assert all(bytes_of(tensors[dtype]) == content for dtype, content in taken.items())


@pytest.fixture
def file(tmp_path) -> Iterator[Path]:
    """A file in memory if there is such a file system, because thousands are written."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder, "mutant.slt")


def parts(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Tensors and version of a ticket."""
    with safe_open(path, framework="pt") as opened:
        version = opened.metadata()["slt_kernels.ticket"].split()[0]
    return from_safetensors(path.read_bytes()), version


@pytest.mark.filterwarnings("ignore:the weights of . of . layers")  # whose scale was altered
def test_mutants(written, file):
    model, rng = Network(), random.Random(1)
    info = load_ticket(written, model)
    before, loaded, messages = state(model), 0, set()
    original = parts(written)
    for _ in range(MUTANTS):
        file.write_bytes(mutant(*original, rng))
        try:
            found = load_ticket(file, model)
        except TicketError as error:
            messages.add(str(error).replace(str(file), "")[:40])
            assert state(model) == before
        else:
            loaded += 1
            after = state(model)
            if after == before:
                assert identity(found) == identity(info)
            else:
                check_equals_file(model, found, file)
            before, info = after, found
    assert loaded > MUTANTS / 100 and len(messages) > 30, "the mutants are too similar"


def test_info_of_mutants_is_printable_or_a_ticket_error(written, file, capsys):
    rng, original = random.Random(3), parts(written)
    for _ in range(MUTANTS // 5):
        file.write_bytes(mutant(*original, rng))
        try:
            cli._info(argparse.Namespace(file=file))
        except TicketError as error:
            printed = str(error)
        else:
            printed = capsys.readouterr().out
        assert all(line.isprintable() for line in printed.splitlines())


def test_headers_of_safetensors(written, file):
    """The header is not part of the checksum."""
    content = written.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    model = Network()
    before = state(model)
    entry = header["__metadata__"]["slt_kernels.ticket"]
    headers = [b"[" * DEEP, b"9" * DEEP, b"{}", b"null", b"[]", b'{"__metadata__": []}', b'{"__metadata__": null}']
    for value in (None, 3, [entry], {"a": entry}, "", entry * 2, entry.replace(" ", "  "), entry[:-1], entry.upper()):
        headers.append(json.dumps(header | {"__metadata__": {"slt_kernels.ticket": value}}).encode())
    for change in ({"shape": [-1]}, {"shape": [2**63]}, {"shape": "x"}, {"shape": [2**40] * 70}, {"dtype": "F4"}):
        headers.append(json.dumps(header | {"index": header["index"] | change}).encode())
    for offsets in ([0, 2**63], [-1, 1], [5, 1], [0], [0, 1, 2], "x", [0.5, 2]):
        headers.append(json.dumps(header | {"index": header["index"] | {"data_offsets": offsets}}).encode())
    for text in headers:
        file.write_bytes(len(text).to_bytes(8, "little") + text + rest)
        with pytest.raises(TicketError):
            load_ticket(file, model)
        assert state(model) == before
    for length in (0, 1, 2**16 + 1, 2**40, 2**64 - 1):
        file.write_bytes(length.to_bytes(8, "little") + content[8:])
        with pytest.raises(TicketError, match="not a ticket, or cut short"):
            load_ticket(file, model)
