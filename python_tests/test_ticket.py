"""Tickets: round trips, size, golden bytes, damage, and refused models."""

import errno
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import nn

from slt_kernels import (
    EdgePopup,
    Freeze,
    SupermaskConv2d,
    SupermaskEmbedding,
    SupermaskLinear,
    TicketError,
    convert,
    drop_scores,
    load_ticket,
    save_ticket,
    ticket_info,
    tickets,
)
from slt_kernels.files import write_atomically

GOLDEN = Path(__file__).parent / "golden_ticket.slt"
GOLDEN_LOGITS = ["bead9c42", "bea714d0", "3f1af7e9", "be84c0a3", "bee55270", "bf3beee8", "3f043e0c", "be9cb66a"]
FROZEN = Freeze(0.4, 0.2)


other_scales = pytest.mark.filterwarnings("ignore:the weights of 2 of 2 layers")  # of the golden ticket


def golden_network() -> nn.Sequential:
    """The network of golden_ticket.slt; never change it."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    convert(model, FROZEN, 0.6, seed=2**63 + 5, weight="uniform", scale="dynamic")
    for layer in (model[0], model[4]):
        layer.load_mask(torch.zeros_like(layer.compact_mask()), 0.0)  # the file has the masks
        nn.init.zeros_(layer.bias)
    return model.eval()


def network(seed: int = 5, **options) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.Flatten(), nn.Linear(16, 5)
    )
    return convert(model, **({"freeze": FROZEN, "sparsity": 0.6, "seed": seed, "scale": "dynamic"} | options))


def searched(model: nn.Module, scope: str = "global") -> nn.Module:
    """The model after a few training steps, so that all its state has changed."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    EdgePopup(model, 0.6, scope).attach(optimizer)
    dtype = next(p.dtype for n, p in model.named_parameters() if not n.endswith("scores"))
    for _ in range(3):
        optimizer.zero_grad()
        y = model(torch.randn(8, 2, 6, 6).to(dtype))
        nn.functional.cross_entropy(y.float(), torch.arange(8) % 5).backward()
        optimizer.step()
    return model.eval()


def images(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(7, 2, 6, 6, generator=torch.Generator().manual_seed(2)).to(dtype)


def everything(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "net.slt"


# Round trips


@pytest.mark.parametrize("weight", ("signed_constant", "uniform", "normal"))
@pytest.mark.parametrize("forms", ((False, False), (True, True), (False, True), (True, False)), ids=str)
def test_round_trip_gives_the_same_bits(forms, weight, file):
    model = searched(network(weight=weight, compact=forms[0]))
    save_ticket(model, file)
    other = network(weight=weight, compact=forms[1]).eval()
    x = images()
    assert not torch.equal(other(x), model(x))
    load_ticket(file, other)
    assert torch.equal(other(x), model(x))
    for a, b in zip(model, other, strict=True):
        if hasattr(a, "mask"):
            assert torch.equal(a.mask(), b.mask())
            assert torch.equal(a.weight_scale, b.weight_scale)
    assert torch.equal(other[1].running_var, model[1].running_var)
    assert other[1].num_batches_tracked == 3
    assert torch.equal(other[5].bias, model[5].bias)


@pytest.mark.parametrize("scale", (None, "static", "dynamic"))
@pytest.mark.parametrize("spread", ("erk", "igq"))
def test_round_trip_of_each_spread(spread, scale, file):
    options = {"spread": spread, "sparsity": None, "scale": scale}
    model = searched(network(**options))
    save_ticket(model, file)
    other = network(**options).eval()
    load_ticket(file, other)
    assert torch.equal(other(images()), model(images()))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64))
def test_round_trip_of_another_dtype(dtype, file):
    model = searched(network().to(dtype))
    info = save_ticket(model, file)
    other = network().to(dtype).eval()
    load_ticket(file, other)
    x = images(dtype)
    assert model(x).dtype == dtype
    assert torch.equal(other(x), model(x))
    assert {t.dtype for t in info.tensors} == {str(dtype).removeprefix("torch."), "int64"}


def test_loaded_masks_are_not_recomputed(file):
    model = searched(network())
    save_ticket(model, file)
    other = network().train()
    scores = [m.scores.clone() for m in other if hasattr(m, "scores")]
    load_ticket(file, other)
    with torch.no_grad():
        other[0].scores.add_(1)
    with pytest.warns(UserWarning, match="scores were changed, but the masks are still those made by load_ticket"):
        other(images())
    assert torch.equal(other[0].mask(), model[0].mask())
    assert torch.equal(other[3].scores, scores[1])


def test_extremes_of_freezing(file):
    """All weights frozen, and none."""
    for freeze in (Freeze(0.4, 0.6), Freeze(1.0), Freeze(0, 1.0), Freeze()):
        model = nn.Sequential(SupermaskLinear(7, 5, freeze=freeze, sparsity=None, bias=False)).eval()
        other = nn.Sequential(SupermaskLinear(7, 5, freeze=freeze, sparsity=None, bias=False)).eval()
        info = save_ticket(model, file)
        assert load_ticket(file, other) == info
        assert torch.equal(other(torch.ones(1, 7)), model(torch.ones(1, 7)))


def test_a_model_that_is_itself_a_layer(file):
    layer = SupermaskLinear(9, 4)
    assert save_ticket(layer, file).layers[0].name == ""
    other = SupermaskLinear(9, 4).eval()
    load_ticket(file, other)
    assert torch.equal(other(torch.ones(9)), layer.eval()(torch.ones(9)))


def test_wrapped_models(file, tmp_path):
    """DataParallel and torch.compile change neither a written ticket nor loading."""
    model = searched(network())
    save_ticket(model, file)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrappers = (
            nn.parallel.DistributedDataParallel,
            nn.DataParallel,
            lambda m: torch.compile(m, backend="eager"),
            lambda m: torch.compile(nn.parallel.DistributedDataParallel(m), backend="eager"),
        )
        for wrap in wrappers:
            again = tmp_path / "again.slt"
            save_ticket(wrap(model), again)
            assert same_contents(again, file)
            other = network().eval()
            load_ticket(file, wrap(other))
            assert torch.equal(other(images()), model(images()))
    finally:
        torch.distributed.destroy_process_group()


def test_tied_parameters_are_stored_once(file):
    model = nn.ModuleDict({"a": SupermaskLinear(8, 8), "b": nn.Embedding(50, 8), "c": nn.Embedding(50, 8)})
    model["c"].weight = model["b"].weight
    info = save_ticket(model, file)
    assert [t.name for t in info.tensors] == ["a.bias", "b.weight"]


# Content


def test_info(file):
    model = searched(network(weight="normal"))
    metadata = {"name": "digits", "accuracy": 0.975, "nested": {"list": [1, None, True, "ü"]}}
    info = save_ticket(model, file, metadata)
    assert ticket_info(file) == info
    assert ticket_info(str(file)) == info
    assert load_ticket(file, network(weight="normal")) == info
    assert info.metadata == metadata
    assert info.contract == 1
    assert info.size == file.stat().st_size
    layers = [m for m in model if hasattr(m, "scores")]
    assert [layer.name for layer in info.layers] == ["0", "3", "5"]
    for saved, layer in zip(info.layers, layers, strict=True):
        assert saved.shape == layer.weight_shape
        assert saved.source == layer.source
        assert (saved.free, saved.kept) == (layer.free, int(layer.mask().sum()))
        assert (saved.weight, saved.scale, saved.sparsity) == ("normal", "dynamic", 0.6)
        assert saved.weight_scale == layer.weight_scale.item()
    assert info.weights == sum(layer.total for layer in layers)
    assert info.free_bits == sum(layer.free for layer in layers)
    assert info.kept == sum(int(layer.mask().sum()) for layer in layers)
    names = ["0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "5.bias"]
    assert [t.name for t in info.tensors] == names
    assert [t.shape for t in info.tensors] == [(6,)] * 5 + [(), (5,)]


@pytest.mark.parametrize("compact", (False, True))
def test_loading_for_inference_makes_no_scores(file, compact):
    model = searched(network())
    model(torch.randn(8, 2, 6, 6))  # BatchNorm's statistics
    save_ticket(model, file)
    with torch.device("meta"):
        used = drop_scores(network(compact=compact))
    used = used.to_empty(device="cpu")
    for t in (*used.parameters(), *used.buffers()):
        t.detach().reshape(-1).view(torch.uint8).fill_(0xFF)  # garbage in uninitialized memory
    load_ticket(file, used)
    x = torch.randn(3, 2, 6, 6)
    assert torch.equal(used.eval()(x), model.eval()(x))
    again = file.with_name("again.slt")
    save_ticket(used, again)
    assert again.read_bytes() == file.read_bytes()
    state, ours = model.state_dict(), used.state_dict()
    assert ours.keys() == {name for name in state if not name.endswith("scores")}
    if not compact:
        assert all(torch.equal(state[name], t) for name, t in ours.items() if not name.endswith("mask_origin"))


@pytest.mark.parametrize("on_meta,name", ((slice(None), "0"), (slice(1, 2), "1.weight")), ids=("all", "a part"))
def test_a_model_on_the_meta_device_is_refused(on_meta, name, file):
    save_ticket(network(), file)
    model = network()
    for module in model[on_meta]:
        module.to("meta")
    with pytest.raises(ValueError, match=rf"^{name}: on the meta device.*expected model\.to_empty\(device=\.\.\.\)"):
        load_ticket(file, model)


def test_empty_metadata(file):
    assert save_ticket(network(), file).metadata == {}


@pytest.mark.parametrize("metadata", ({"a": float("nan")}, {"a": object()}, {"a": {1, 2}}, {"a": torch.ones(2)}, ["a"]))
def test_metadata_that_are_not_json(metadata, file):
    file.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"metadata=.*: expected (a dict|JSON values)"):
        save_ticket(network(), file, metadata)
    assert file.read_bytes() == b"old"


# Size

LONG = "a_module_with_a_rather_long_name_as_they_are_in_large_models"


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3)
        for i in range(40):
            block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
            self.add_module(f"{LONG}_{i}", nn.ModuleDict({"residual_branch": block}))


@pytest.mark.parametrize(
    "build",
    (
        lambda: nn.Sequential(nn.Linear(8, 8)),
        lambda: nn.Sequential(nn.Linear(1024, 512), nn.Linear(512, 10)),
        lambda: nn.Sequential(*(nn.Linear(9, 9, bias=False) for _ in range(150))),
        lambda: nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(100))),
        Deep,
        lambda: Deep().bfloat16(),
    ),
    ids=("tiny", "wide", "many", "batchnorms", "long names", "bfloat16"),
)
@pytest.mark.parametrize("freeze", (Freeze(), Freeze(0.35, 0.35)), ids=("dense", "frozen"))
def test_size(build, freeze, file):
    """A ticket is hardly larger than its mask bits and other tensors."""
    model = convert(build(), freeze, None, spread="erk", seed=2**64 - 1)
    layers = [m for m in model.modules() if hasattr(m, "scores")]
    ours = {id(t) for m in layers for t in (m.scores, m.mask_words, m.weight_scale, m.source_id, m.mask_origin)}
    others = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in ours}
    info = save_ticket(model, file)
    free_bits = sum(m.free for m in layers)
    assert info.free_bits == free_bits
    other_bytes = sum(t.numel() * t.element_size() for t in others.values())
    assert file.stat().st_size <= free_bits / 8 + other_bytes + 4096 + 200 * len(layers)
    assert file.stat().st_size >= free_bits / 8 + other_bytes


# Golden bytes


def contents(path: Path) -> tuple[str, dict, dict]:
    """Version, index and tensors of a ticket; the bytes of the index depend on zlib's version."""
    with safe_open(path, framework="pt") as f:
        (entry,) = f.metadata().items()
    tensors = from_safetensors(path.read_bytes())
    index = json.loads(zlib.decompress(tensors.pop("index").numpy().tobytes()))
    return f"{entry[0]} {entry[1].split()[0]}", index, tensors


def same_contents(a: Path, b: Path) -> bool:
    a, b = contents(a), contents(b)
    return a[:2] == b[:2] and same(a[2], b[2])


def check_like_golden(path: Path, golden: Path) -> None:
    """The golden files have no ``arguments``, which are newer; the rest must be equal."""
    version, index, tensors = contents(path)
    arguments = [layer.pop("arguments", None) for layer in index["layers"]]
    pairs = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}
    assert arguments == [pairs | {"groups": 1, "padding_mode": "zeros"}, None]
    expected = contents(golden)
    assert (version, index) == expected[:2] and same(tensors, expected[2])


def test_the_same_network_is_the_same_bytes(written, tmp_path):
    for i in range(5):
        model = network()
        load_ticket(written, model)
        save_ticket(model, tmp_path / f"{i}.slt", {"a": 1})
        assert (tmp_path / f"{i}.slt").read_bytes() == written.read_bytes()


@other_scales
def test_golden_ticket_loads():
    """A ticket of version 1 must always decode to the same network."""
    model = golden_network()
    info = load_ticket(GOLDEN, model)
    assert info.metadata == {"golden": True}
    x = (torch.arange(2 * 2 * 4 * 4).view(2, 2, 4, 4) % 7 - 3) / 4
    logits = model[4](model[0](x).relu().flatten(1))  # only products that the contract fixes
    words = logits.detach().view(torch.int32).flatten().tolist()
    assert [f"{w & 0xFFFFFFFF:08x}" for w in words] == GOLDEN_LOGITS
    assert model[1].running_var.tolist() == [1.5, 2.0, 0.75]
    assert model[1].num_batches_tracked == 12


@other_scales
def test_golden_ticket_is_written_the_same(file):
    model = golden_network()
    load_ticket(GOLDEN, model)
    save_ticket(model, file, {"golden": True})
    check_like_golden(file, GOLDEN)
    assert {name: t.dtype for name, t in contents(file)[2].items()} == {
        "masks": torch.uint8,
        "float32": torch.float32,
        "int64": torch.int64,
    }


# Damage


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ticket") / "net.slt"
    save_ticket(searched(network()), path, {"a": 1})
    return path


def refused(path: Path, message: str, model: nn.Module | None = None) -> None:
    """load_ticket raises with that message and leaves the model unchanged."""
    model = network() if model is None else model
    before, automatic = everything(model), [getattr(m, "auto_mask", None) for m in model.modules()]
    with pytest.raises(TicketError, match=message) as error:
        load_ticket(path, model)
    assert isinstance(error.value, ValueError)
    assert same(everything(model), before)
    assert [getattr(m, "auto_mask", None) for m in model.modules()] == automatic


def test_cut_short(written, file):
    content = written.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, *range(150, len(content), 97), len(content) - 1):
        file.write_bytes(content[:length])
        refused(file, "not a ticket, or cut short")
        with pytest.raises(TicketError):
            ticket_info(file)


def test_too_long(written, file):
    file.write_bytes(written.read_bytes() + b"\0")
    refused(file, "not a ticket")


@pytest.mark.parametrize("flip", (0x01, 0x20, 0xFF))
def test_each_byte_changed(written, file, flip):
    content = written.read_bytes()
    for at in (*range(16), *range(16, len(content), 3)):
        changed = bytearray(content)
        changed[at] ^= flip
        file.write_bytes(changed)
        with pytest.raises(TicketError):
            ticket_info(file)


def rewritten(path: Path, file: Path, version="1", index=None, **tensors) -> Path:
    """The ticket with some parts replaced and a correct checksum."""
    all_tensors = from_safetensors(path.read_bytes())
    old_index = json.loads(zlib.decompress(all_tensors["index"].numpy().tobytes()))
    if index is not None:
        text = index(old_index)
        text = text if isinstance(text, bytes) else json.dumps(text).encode()
        all_tensors["index"] = torch.frombuffer(bytearray(zlib.compress(text)), dtype=torch.uint8)
    all_tensors.update(tensors)
    all_tensors = {name: t for name, t in all_tensors.items() if t is not None}
    metadata = {"slt_kernels.ticket": f"{version} {tickets.format.checksum(all_tensors)}"}
    file.write_bytes(to_safetensors(all_tensors, metadata))
    return file


def test_a_rewritten_ticket_loads(written, file):
    load_ticket(rewritten(written, file, index=lambda index: index), network())


@pytest.mark.parametrize("version", ("3", "10", "0", "-1", "", "one", "1.0"))
def test_another_version(version, written, file):
    refused(
        rewritten(written, file, version),
        f"version='{version}': expected 1 or 2; a newer package may read others",
    )


def test_another_contract(written, file):
    path = rewritten(written, file, index=lambda index: index | {"contract": 2})
    refused(path, "contract=2: this package implements version 1")


def test_files_that_are_not_tickets(file):
    file.write_bytes(to_safetensors({"weight": torch.ones(3)}))
    refused(file, "expected 'slt_kernels.ticket' in its metadata, got \\[\\]")
    file.write_bytes(to_safetensors({"weight": torch.ones(3)}, {"format": "pt"}))
    refused(file, "got \\['format'\\]")
    torch.save(network().state_dict(), file)
    refused(file, "not a ticket")
    file.write_text("a text")
    refused(file, "not a ticket")
    with pytest.raises(FileNotFoundError):
        load_ticket(file.with_name("none.slt"), network())


@pytest.mark.parametrize(
    "index",
    (
        lambda index: [],
        lambda index: {},
        lambda index: b"{",
        lambda index: b"\xff\xfe",
        lambda index: {k: v for k, v in index.items() if k != "layers"},
        lambda index: index | {"layers": [{"name": "x"}]},
        lambda index: index | {"layers": [{**index["layers"][0], "more": 1}]},
        lambda index: index | {"layers": 3},
        lambda index: index | {"layers": [{**layer, "arguments": 3} for layer in index["layers"]]},
        lambda index: index | {"layers": [{**layer, "weight_scale": None} for layer in index["layers"]]},
        lambda index: index | {"layers": [{**layer, "weight_scale": "x"} for layer in index["layers"]]},
        lambda index: index | {"layers": [{**layer, "weight_scale": float("nan")} for layer in index["layers"]]},
        lambda index: index | {"layers": [{**layer, "source": [1, 1, 0, 0, 9] + [0] * 5} for layer in index["layers"]]},
        lambda index: index | {"tensors": [{"name": "x"}]},
        lambda index: index | {"layers": index["layers"][:1]},
        lambda index: index | {"tensors": index["tensors"][:1]},
    ),
)
def test_a_damaged_index(index, written, file):
    refused(rewritten(written, file, index=index), "damaged index|contradict its index")


def test_damaged_tensors(written, file):
    refused(rewritten(written, file, masks=torch.zeros(3, dtype=torch.uint8)), "contradict its index")
    refused(rewritten(written, file, index=None, float32=None), "contradict its index")
    refused(rewritten(written, file, more=torch.zeros(3)), r"damaged: 'more' is float32 \[3\]")
    path = rewritten(written, file)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    assert b'"index"' in content[8 : 8 + length]
    del_index = {name: t for name, t in from_safetensors(content).items() if name != "index"}
    path.write_bytes(to_safetensors(del_index, {"slt_kernels.ticket": f"1 {tickets.format.checksum(del_index)}"}))
    refused(path, "damaged index")


def bombs(index: dict) -> dict[str, bytes]:
    """Large texts of an index that are small when compressed."""
    text = json.dumps(index).encode()
    return {
        "spaces": text + b" " * (1 << 27),
        "lists": text[:-1] + b', "more": [' + b"[]," * (1 << 24) + b"[]]}",
        "nested": b"[" * 10**6,
    }


@pytest.mark.parametrize("kind", ("spaces", "lists", "nested"))
def test_a_small_file_that_holds_a_large_index_is_refused(kind, written, file):
    """Raises before allocating memory for the index."""
    rewritten(written, file, index=lambda index: bombs(index)[kind])
    assert file.stat().st_size < 1 << 18
    model = network()
    with pytest.raises(TicketError, match="damaged index"):
        load_ticket(file, model)  # once before measuring, so that imports are not counted
    tracemalloc.start()
    try:
        refused(file, "damaged index", model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def test_metadata_that_compress_well_are_kept(file):
    """The bound on an index does not limit valid tickets."""
    metadata = {"zeros": [0] * 2_000_000}
    save_ticket(network(), file, metadata)
    assert ticket_info(file).metadata == metadata
    load_ticket(file, network())
    with pytest.raises(ValueError, match=r"^metadata: expected at most [\d,]+ bytes of JSON"):
        save_ticket(network(), file, {"a": "a" * (1 << 26)})
    assert ticket_info(file).metadata == metadata


def test_a_deep_network_s_index_is_far_from_its_bound(file):
    """The index of 300 equal layers, the most compressible case, is stored compressed."""
    model = nn.ModuleList(SupermaskLinear(1, 1, layer=i, bias=False) for i in range(300))
    save_ticket(model, file)
    packed = from_safetensors(file.read_bytes())["index"].numpy().tobytes()
    assert len(zlib.decompress(packed)) < len(packed) * tickets.format._MAX_RATIO / 2


# How files are read


class Alarm:
    """Fails a test that hangs."""

    def __enter__(self) -> None:
        def ring(*_):
            raise TimeoutError("it hangs")

        self.before = signal.signal(signal.SIGALRM, ring)
        signal.alarm(30)

    def __exit__(self, *_) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self.before)


def test_paths_that_are_not_files_are_refused_at_once(file):
    os.mkfifo(file)
    model = network()
    for path in (file, Path("/dev/null"), Path("/dev/zero"), file.parent):
        with Alarm():
            refused(path, "expected a file, not a folder, a device or a pipe|not a ticket, but a folder", model)
    file.with_name("loop.slt").symlink_to("loop.slt")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        load_ticket(file.with_name("loop.slt"), model)


def test_a_large_file_that_is_not_a_ticket_is_not_read(file):
    """A sparse file of a terabyte, which would take too long to read."""
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with Alarm():
        refused(file, "not a ticket, or cut short")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_file_that_is_truncated_during_loading_is_read_or_refused(written, file):
    """Another process truncates and rewrites it in place."""
    content = written.read_bytes()
    file.write_bytes(content)
    info, model, refusals = ticket_info(written), network(), 0

    def spoil() -> None:
        with file.open("r+b", buffering=0) as opened:
            while True:
                opened.truncate(os.urandom(1)[0])
                opened.seek(0)
                opened.write(content)

    process = multiprocessing.get_context("fork").Process(target=spoil)
    process.start()
    try:
        for _ in range(300):
            try:
                assert load_ticket(file, model) == info
            except TicketError:
                refusals += 1
    finally:
        process.kill()
        process.join()
    assert refusals > 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_file_that_is_replaced_during_loading_is_old_or_new(written, file):
    contents = []
    for metadata in ({"a": 1}, {"a": 2, "more": "x" * 50_000}):
        save_ticket(network(), file, metadata)
        contents.append(file.read_bytes())

    def replace() -> None:
        for i in itertools.count():
            write_atomically(file, contents[i % 2])

    process = multiprocessing.get_context("fork").Process(target=replace)
    process.start()
    try:
        found = {ticket_info(file).metadata["a"] for _ in range(200)}
    finally:
        process.kill()
        process.join()
    assert found == {1, 2}


def test_a_ticket_is_opened_once(written, monkeypatch):
    opened, before = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(path) or before(path, *rest))
    load_ticket(written, network())
    assert opened == [written]


# Models that cannot load a ticket


def with_buffer(name: str, value: torch.Tensor) -> nn.Module:
    model = network()
    setattr(model[1], name, value)
    return model


def lazy() -> nn.Module:
    return nn.Sequential(*network(), nn.LazyLinear(3))


@pytest.mark.parametrize(
    "build,message",
    (
        (lambda: with_buffer("running_mean", torch.zeros(1).expand(6)), "1.running_mean: expanded"),
        (lambda: with_buffer("running_var", torch.zeros(3).as_strided((6,), (0,))), "1.running_var: expanded"),
        (lambda: with_buffer("running_mean", torch.zeros(6, dtype=torch.complex128)), "network dtype=complex128"),
        (lambda: with_buffer("running_mean", torch.zeros(6, device="meta")), "1.running_mean: on the meta device"),
        (lambda: with_buffer("running_mean", torch.zeros(6).to_sparse()), "1.running_mean: layout=torch.sparse_coo"),
        (lambda: with_buffer("running_mean", torch.zeros(6).double()), "network dtype=float64"),
        (lazy, "6.weight: expected an initialized parameter"),
    ),
    ids=("expanded", "stride 0", "complex128", "meta", "sparse", "float64", "lazy"),
)
def test_a_target_that_cannot_be_written_is_refused_before_the_first_write(build, message, written):
    model = build()
    kept = [m for m in model if hasattr(m, "scores")]
    before = [m.mask_words.clone() for m in kept]
    with pytest.raises(TicketError, match=message):
        load_ticket(written, model)
    assert all(torch.equal(m.mask_words, words) and m.auto_mask for m, words in zip(kept, before, strict=True))


def test_inference_tensors(written):
    with torch.inference_mode():
        whole = network()
        buffer = torch.zeros(6)
    refused(written, r"^0: an inference tensor; expected load_ticket inside torch\.inference_mode\(\)", whole)
    refused(written, r"^1\.running_mean: an inference tensor", with_buffer("running_mean", buffer))
    with torch.inference_mode():
        load_ticket(written, whole)
        expected = network()
        load_ticket(written, expected)
        assert torch.equal(whole.eval()(images()), expected.eval()(images()))


def test_tensors_that_share_memory_need_equal_values(written):
    """Buffers that are views of one tensor load equal values and refuse different ones."""
    model = network()
    shared = torch.zeros(11)
    model[1].running_mean, model[1].running_var = shared[:6], shared[5:]
    refused(written, r"net\.slt: 1\.running_mean: shares memory with a tensor", model)
    apart = torch.zeros(12)
    model[1].running_mean, model[1].running_var = apart[::2], apart[1::2]
    load_ticket(written, model)
    expected = network()
    load_ticket(written, expected)
    assert torch.equal(model[1].running_mean, expected[1].running_mean)
    assert torch.equal(model[1].running_var, expected[1].running_var)


@pytest.mark.parametrize(
    "words",
    (lambda m: m.mask_words.long(), lambda m: m.mask_words[:1], lambda m: m.mask_words[None]),
    ids=("dtype", "rows", "dimensions"),
)
def test_a_mask_of_another_form_is_refused(words, written):
    model = network()
    model[5].mask_words = words(model[5])
    before = model[0].mask_words.clone()
    with pytest.raises(TicketError, match=r"mask_words: expected torch\.int32 of shape"):
        load_ticket(written, model)
    assert torch.equal(model[0].mask_words, before)


def test_a_scale_of_another_dtype_is_refused(written):
    model = network()
    model[5].weight_scale = model[5].weight_scale.half()
    refused(written, r"^5\.weight_scale: the network has float16", model)


@pytest.mark.parametrize("failure", (MemoryError, KeyboardInterrupt, RuntimeError("out of memory")), ids=str)
@pytest.mark.parametrize("owner,name,call", ((SupermaskLinear, "load_mask", 1), (tickets.network.Other, "load", 3)))
def test_a_failure_between_writes_restores_the_model(owner, name, call, failure, written, monkeypatch):
    model = searched(network(scale="static"))
    saved = written.with_name("static.slt")
    save_ticket(searched(network(scale="static"), "local"), saved)
    before, automatic, calls = everything(model), [getattr(m, "auto_mask", None) for m in model], []
    original = getattr(owner, name)

    def fail(self, *arguments):
        calls.append(self)
        original(self, *arguments)
        if len(calls) == call:
            raise failure

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(failure if failure is KeyboardInterrupt else TicketError):
        load_ticket(saved, model)
    assert len(calls) == call
    assert same(everything(model), before)
    assert [getattr(m, "auto_mask", None) for m in model] == automatic
    monkeypatch.undo()
    load_ticket(saved, model)
    assert not same(everything(model), before)


def test_a_model_that_is_not_a_module(file, written):
    for model in (None, 3, {"a": 1}, network().state_dict()):
        with pytest.raises(TypeError, match=r"^model: expected a module, got "):
            load_ticket(written, model)
        with pytest.raises(TypeError, match=r"^model: expected a module, got "):
            save_ticket(model, file)
    assert not file.exists()


@pytest.mark.parametrize(
    "value",
    (torch.zeros(6, dtype=torch.complex128), torch.zeros(6).to_sparse(), torch.zeros(6, dtype=torch.complex64).conj()),
    ids=("complex128", "sparse", "conjugate"),
)
def test_tensors_that_safetensors_cannot_store_are_refused_before_writing(value, file):
    file.write_bytes(b"old")
    model = with_buffer("running_mean", value)
    if value.dtype == torch.complex64:
        value = value + 1j
        model[1].running_mean = value.conj()
        save_ticket(model, file)
        other = with_buffer("running_mean", torch.zeros(6, dtype=torch.complex64).conj())
        load_ticket(file, other)
        assert torch.equal(other[1].running_mean, value.conj())
        return
    with pytest.raises(ValueError, match=r"^1\.running_mean: dtype=.*: expected a dense tensor of a dtype that"):
        save_ticket(model, file)
    assert file.read_bytes() == b"old"


@pytest.mark.parametrize("nested", (0, 10**4), ids=("short", "deep"))
def test_the_error_for_huge_metadata_is_short(nested, file):
    value = [object()]
    for _ in range(nested or 60):
        value = [value] if nested else [value, value]
    with pytest.raises(ValueError, match="expected JSON values") as error:
        save_ticket(network(), file, {"a": value if nested else 10**5000})
    assert len(str(error.value)) < 1000


# Another network


class Other(nn.Module):
    """The network of the tests with other names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()


def renamed_buffer() -> nn.Module:
    model = network()
    model[1].register_buffer("more", torch.zeros(2))
    return model


def without_bias() -> nn.Module:
    model = network()
    model[5].bias = None
    return model


@pytest.mark.parametrize(
    "build,message",
    (
        (lambda: network(seed=2**64 - 1), f"0: the ticket has seed=5, the network seed={2**64 - 1}"),
        (
            lambda: network(freeze=Freeze(0.2, 0.4)),
            r"0: the ticket has prune=0.398 \(102/256\), the network prune=0.199 \(51/256\)",
        ),
        (
            lambda: network(freeze=Freeze(0.4, 0.1)),
            r"0: the ticket has lock=0.199 \(51/256\), the network lock=0.102 \(26/256\)",
        ),
        (lambda: network(weight="normal"), "0: the ticket has weight=signed_constant, the network weight=normal"),
        (lambda: network(scale=None), "0: the ticket has scale=dynamic, the network scale=None"),
        (lambda: network().double(), "0.bias: the ticket has dtype=float32, the network dtype=float64"),
        (lambda: network(exclude=["0"]), r"supermask layers only in the ticket \['0'\], only in the network \[\]"),
        (Other, r"supermask layers only in the ticket \['0', '3', '5'\], only in the network \['body.0'"),
        (renamed_buffer, r"other tensors only in the ticket \[\], only in the network \['1.more'\]"),
        (without_bias, r"other tensors only in the ticket \['5.bias'\]"),
        (
            lambda: convert(nn.Sequential(*list(network_shapes(5, 3))), FROZEN, 0.6, seed=5, scale="dynamic"),
            r"5: the ticket has shape=\[5, 16\], the network shape=\[3, 16\]",
        ),
        (
            lambda: convert(nn.Sequential(*list(network_shapes(2, 5))), FROZEN, 0.6, seed=5, scale="dynamic"),
            r"0: the ticket has shape=\[6, 2, 3, 3\], the network shape=\[6, 2, 9, 1\]",
        ),
    ),
    ids=(
        [
            "seed",
            "prune",
            "lock",
            "weight",
            "scale",
            "dtype",
            "excluded",
            "names",
            "buffer",
            "bias",
            "outputs",
            "kernel",
        ]
    ),
)
def test_another_network(build, message, written):
    refused(written, message, build())


def conv(*channels: int, **arguments) -> SupermaskConv2d:
    return SupermaskConv2d(*(channels or (4, 6, 3)), bias=False, **({"padding": 1} | arguments))


@pytest.mark.parametrize(
    "build,message",
    (
        (lambda: conv(padding=0), r"padding=\[1, 1\], the network padding=\[0, 0\]"),
        (lambda: conv(padding="same", dilation=2), r"padding=\[1, 1\], the network padding=\[2, 2\]"),
        (lambda: conv(stride=(1, 2)), r"stride=\[1, 1\], the network stride=\[1, 2\]"),
        (lambda: conv(dilation=2), r"dilation=\[1, 1\], the network dilation=\[2, 2\]"),
        (lambda: conv(8, 6, 3, groups=2), "groups=1, the network groups=2"),
        (lambda: conv(padding_mode="reflect"), "padding_mode=zeros, the network padding_mode=reflect"),
    ),
    ids=("padding", "same", "stride", "dilation", "groups", "padding_mode"),
)
def test_another_geometry(build, message, file):
    """Equal weights, other outputs. A file without geometry fits all."""
    save_ticket(nn.Sequential(conv()), file)
    refused(file, rf"^0: the ticket has {message}", nn.Sequential(build()))

    def forget(index: dict) -> dict:
        del index["layers"][0]["arguments"]
        return index

    load_ticket(rewritten(file, file.with_name("older.slt"), index=forget), nn.Sequential(build()))


@pytest.mark.parametrize("kernel,numbers", ((3, 1), ((3, 5), (1, 2)), ((1, 5), (0, 2))), ids=str)
def test_padding_as_word_equals_padding_as_numbers(kernel, numbers, file):
    save_ticket(nn.Sequential(conv(4, 6, kernel, padding="same")), file)
    load_ticket(file, nn.Sequential(conv(4, 6, kernel, padding=numbers)))
    save_ticket(nn.Sequential(conv(4, 6, kernel, padding="valid")), file)
    load_ticket(file, nn.Sequential(conv(4, 6, kernel, padding=0)))


def test_another_padding_idx(file):
    save_ticket(nn.Sequential(SupermaskEmbedding(9, 4, padding_idx=-1)), file)
    load_ticket(file, nn.Sequential(SupermaskEmbedding(9, 4, padding_idx=8)))
    refused(
        file, "^0: the ticket has padding_idx=8, the network padding_idx=None", nn.Sequential(SupermaskEmbedding(9, 4))
    )


def network_shapes(kernel: int, outputs: int):
    """The network of the tests with another head, or with another kernel shape of equal size."""
    first = nn.Conv2d(2, 6, (9, 1)) if kernel == 2 else nn.Conv2d(2, 6, 3)
    yield from (first, nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.Flatten())
    yield nn.Linear(16, outputs)


def test_another_shape_of_a_tensor(written):
    model = network()
    model[1].running_mean = torch.zeros(1, 6)
    refused(written, r"1.running_mean: the ticket has shape=\[6\], the network shape=\[1, 6\]", model)


def test_another_layer_number(written):
    model = network()
    wrong = SupermaskConv2d(6, 4, 3, bias=False, freeze=FROZEN, sparsity=0.6, scale="dynamic", seed=5, layer=7)
    model[3] = wrong
    refused(written, "3: the ticket has layer=1, the network layer=7", model)


# Writing


def test_a_model_without_layers(file):
    with pytest.raises(ValueError, match="model: expected at least one supermask layer"):
        save_ticket(nn.Linear(2, 2), file)
    assert not file.exists()


def test_an_uninitialized_layer_is_refused(file):
    with torch.device("meta"):
        model = network()
    with pytest.raises(ValueError, match=r"^0: its source_id does not match .* expected reset_parameters"):
        save_ticket(model, file)
    model = model.to_empty(device="cpu")
    for t in (*model.parameters(), *model.buffers()):
        t.detach().reshape(-1).view(torch.uint8).fill_(0x01)  # garbage in uninitialized memory
    model[0].reset_parameters()
    with pytest.raises(ValueError, match=r"^3: its source_id does not match .* expected reset_parameters"):
        save_ticket(model, file)
    assert not file.exists()


def test_a_mask_that_contradicts_the_seed_is_refused(file):
    """Garbage past the last weight of a row is allowed."""
    model = searched(network())
    model[0].mask_words |= model[0].source.padding()
    with pytest.raises(ValueError, match=r"^0: its mask keeps pruned weights or drops locked ones \(\d+ in total\)"):
        save_ticket(model, file)
    assert not file.exists()
    EdgePopup(model, 0.6)
    model[5].mask_words |= ~model[5].source.padding()
    save_ticket(model, file)


def test_a_scale_that_is_not_finite_is_refused(file):
    model = network()
    model[3].weight_scale.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"3\.weight_scale=nan: expected a finite number"):
        save_ticket(model, file)
    assert not file.exists()


def test_the_target_of_a_link_is_written(file, tmp_path):
    target, model = tmp_path / "elsewhere.slt", network()
    file.symlink_to(target)
    save_ticket(model, file)
    target.chmod(0o600)
    save_ticket(model, file, {"again": True})
    assert file.is_symlink() and target.stat().st_mode & 0o777 == 0o600
    assert ticket_info(target).metadata == {"again": True}


def test_a_pipe_is_not_replaced(file):
    os.mkfifo(file)
    with pytest.raises(FileExistsError, match="expected a file, not a device or a pipe"):
        save_ticket(network(), file)
    assert file.is_fifo()


def test_a_default_device_is_ignored(file):
    def network(**device):
        convolution = SupermaskConv2d(5, 4, 3, compact=True, layer=1, **device)
        return nn.Sequential(SupermaskLinear(9, 5, **device), convolution)

    with torch.device("meta"):
        model = network(device="cpu")
        save_ticket(model, file)
        load_ticket(file, model)
    expected = network()
    assert torch.equal(model[0].dense_weight(), expected[0].dense_weight())
    assert torch.equal(model[1].dense_weight(), expected[1].dense_weight())


def test_extra_state_that_is_not_a_tensor(file):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    model = nn.Sequential(SupermaskLinear(2, 2), Extra(2, 2))
    with pytest.raises(ValueError, match=r"1\._extra_state: expected a tensor, got extra state of type dict"):
        save_ticket(model, file)
    assert not file.exists()


@pytest.mark.parametrize("owner,function", ((Path, "replace"), (os, "fsync")), ids=("replace", "fsync"))
def test_a_failed_save_leaves_the_old_file(owner, function, file, monkeypatch):
    save_ticket(network(), file)
    before = file.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(owner, function, fail)
    with pytest.raises(OSError, match="no space left"):
        save_ticket(searched(network()), file)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_paths_that_cannot_be_files(file, monkeypatch):
    """The message names the given path only."""
    monkeypatch.chdir(file.parent)
    with pytest.raises(FileNotFoundError, match=r"^none/net\.slt: expected a file in a folder that exists"):
        save_ticket(network(), "none/net.slt")
    for path in (".", "", file.parent):
        with pytest.raises(IsADirectoryError, match=f"^{path or '.'}: expected a file, not a folder"):
            save_ticket(network(), path)
    assert not list(file.parent.iterdir())


def test_saving_replaces_and_leaves_no_temporary(file):
    save_ticket(network(), file)
    first = file.read_bytes()
    save_ticket(searched(network()), file)
    assert file.read_bytes() != first
    assert os.listdir(file.parent) == [file.name]


def test_saving_is_deterministic_and_does_not_change_the_model(file):
    model = searched(network())
    before = everything(model)
    save_ticket(model, file)
    again = file.with_name("again.slt")
    save_ticket(model, again)
    assert same_contents(again, file)
    assert again.stat().st_size == file.stat().st_size
    assert same(everything(model), before)


def test_a_ticket_can_be_moved(file):
    model = searched(network())
    save_ticket(model, file)
    elsewhere = Path(shutil.move(file, file.with_name("other name.bin")))
    other = network().eval()
    load_ticket(elsewhere, other)
    assert torch.equal(other(images()), model(images()))


def test_a_ticket_of_another_gain_gives_a_warning(file):
    """The ticket's outputs, but masks of a further search would have this network's scale."""
    model, other = (
        convert(nn.Sequential(nn.Linear(64, 8, bias=False)), scale=scale, gain=gain)
        for gain, scale in ((1.0, "dynamic"), (2.0, "dynamic"))
    )
    x = torch.randn(3, 64)
    save_ticket(model, file)
    with pytest.warns(UserWarning, match=r"the weights of 1 of 1 layers \(0\) have the ticket's size"):
        load_ticket(file, other)
    assert torch.equal(other(x), model(x))
    load_ticket(file, drop_scores(convert(nn.Sequential(nn.Linear(64, 8, bias=False)), scale="dynamic", gain=2.0)))
