"""The Triton backend: every operation against the reference, on a GPU, or under Triton's interpreter without one.

The interpreter's 16-bit inputs are float16, as it computes bfloat16 wrong. `test_triton_simulated` runs some of these
tests on compiled kernels, and `test_triton_code` tests their machine code.
"""

import json
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from interpreter import INTERPRETED, SIMULATED, SIMULATOR, WHY_NOT

from slt_kernels import backends, bits
from slt_kernels.backends import tables
from slt_kernels.conv_geometry import Window
from slt_kernels.operations import OUTPUTS
from slt_kernels.source import WEIGHTS, Freeze, Source

if WHY_NOT:
    pytest.skip(WHY_NOT, allow_module_level=True)

from slt_kernels.backends.triton import (
    autotuning,
    embedding,
    forward,
    grad_input,
    grad_scores,
    images,
    split_k,
    tiles,
    words,
)
from slt_kernels.backends.triton import launch as launching
from slt_kernels.backends.triton import select as selecting

pytestmark = pytest.mark.usefixtures("poisoned")
triton, reference = backends.on("triton"), backends.on("reference")
BENCH = Path(__file__).parent.parent / "bench"
GRAD_ERROR = 1e-6 if INTERPRETED else 5e-6  # of grad_scores: tensor cores truncate sums
HALF = torch.float16 if INTERPRETED else torch.bfloat16
FROZEN = Freeze(0.35, 0.35)
SHAPES = ((1, 1, 1), (3, 31, 17), (17, 33, 3), (3, 63, 0), (2, 65, 3), (1, 127, 1), (17, 129, 3), (35, 300, 5))
FEW_SHAPES = ((3, 31, 17), (17, 129, 3), (35, 300, 5))
SIZES = ((1,), (9,), (5000, 3), (100, 1, 70))
CONVOLUTIONS = {  # channels, rows, images, height, width, window
    "3x3": (5, 6, 2, 3, 4, Window(3, 3, padding_h=1, padding_w=1)),
    "2x1-stride": (32, 5, 1, 7, 6, Window(2, 1, stride_h=2)),
    "depthwise": (2, 2, 1, 2, 3, Window(2, 3, padding_h=1, padding_w=2, groups=2)),
    "1x1": (33, 4, 2, 3, 3, Window(1, 1)),
    "1x1-stride": (128, 4, 3, 4, 5, Window(1, 1, 2, 2)),
    "groups-dilation": (66, 4, 1, 6, 5, Window(2, 1, padding_h=1, dilation_h=2, groups=2)),
    "17-rows-per-group": (4, 34, 1, 3, 2, Window(2, 1, groups=2)),
    "64-channels": (64, 3, 1, 2, 2, Window(1, 3, padding_w=1)),
    "70-rows": (16, 70, 2, 5, 4, Window(3, 3, stride_h=2, padding_h=1, padding_w=1)),
    "no-images": (3, 4, 0, 5, 5, Window(3, 3)),
}
FEW_CONVOLUTIONS = (  # words shared by taps; BC = 32; BC = 64; a Linear in 16 bits
    "groups-dilation",
    "2x1-stride",
    "64-channels",
    "1x1",
)


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """The device of all tensors in a test: a GPU, or the CPU under Triton's interpreter and in the simulator."""
    device = torch.device("cpu" if INTERPRETED or SIMULATED else "cuda")
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    if SIMULATED:
        monkeypatch.setattr(backends.triton, "unavailable", cache(lambda: None))
        monkeypatch.setattr(backends.triton, "supports", lambda device: True)
        for module in (forward, grad_input, grad_scores):
            monkeypatch.setattr(module, "machine", lambda device: launching.Machine(SIMULATED // 10, 4))
    backends.triton.unavailable.cache_clear()
    with device:
        yield device
    backends.triton.unavailable.cache_clear()
    if SIMULATED:
        found = [str(finding) for launch in SIMULATOR.log for finding in launch["result"].findings]
        SIMULATOR.log.clear()
        SIMULATOR.forget()
        assert not found, found


def scale() -> torch.Tensor:
    return torch.tensor(0.37)


def source_of(rows: int, fan: int, weight: str, freeze: Freeze = FROZEN) -> Source:
    return Source.of(rows, fan, seed=2**63 + 5 * rows, layer=2**32 - fan, weight=weight, freeze=freeze)


def shards(rows: int, fan: int, weight: str) -> list[Source]:
    """A source; for the largest shape, two shards that start inside a call."""
    source = source_of(rows, fan, weight)
    return [source] if fan != 300 else [source.shard((0, 34), (1, 9)), source.shard((34, 35), (6, 10))]


def random_mask(source: Source, compact: bool) -> torch.Tensor:
    """A mask with garbage in its padding."""
    shape = (bits.words_for(source.free),) if compact else (source.rows, source.words)
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def random_input(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Normal vectors, and if there are enough of them a small one, a zero one, one with a NaN, and denormals."""
    x = torch.randn(shape, dtype=dtype)
    if len(x) > 2:
        x[0] *= 2.0**-12
        x[1] = 0
        x[2].view(-1)[0] = torch.nan
    if len(x) > 3 and dtype == torch.float32:
        x[3] *= 2.0**-130
    return x


def masks(shape: tuple, weight: str, dtype: torch.dtype, sources: Sequence[Source]) -> list[torch.Tensor]:
    """A mask for each source, compact or resolved in turn: each form meets every kind of weight and dtype."""
    first = SHAPES.index(shape) + WEIGHTS.index(weight) + (dtype == HALF)
    return [random_mask(source, compact=(first + i) % 2 == 1) for i, source in enumerate(sources)]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Asserts equal values in float32; in 16 bits a small error, and no NaN that the reference does not have."""
    assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
    if ours.dtype == torch.float32:
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    else:
        assert_close(ours, theirs, 2e-3)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, error: float) -> None:
    finite = theirs.isfinite()
    ours, theirs = ours[finite].double(), theirs[finite].double()
    assert (ours - theirs).norm() <= error * theirs.norm()


def kinds(shapes: Iterable, few: Sequence) -> list:
    """Test parameters: all shapes with ``signed_constant`` in float32, a few in 16 bits and with byte weights.

    Of the byte weights ``uniform`` has one shape: it differs from ``normal`` only in how a byte becomes a weight.
    """
    signed, uniform, normal = WEIGHTS
    chosen = [(shape, signed, torch.float32) for shape in shapes]
    chosen += [(shape, weight, dtype) for shape in few for weight, dtype in ((signed, HALF), (normal, torch.float32))]
    chosen.append((few[0], uniform, torch.float32))
    return [pytest.param(*kind, id="-".join(map(name_of, kind))) for kind in chosen]


def name_of(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value).removeprefix("torch.")


# Masks


@pytest.mark.parametrize(
    "rows,fan,freeze",
    [(1, 1, FROZEN), (67, 33, FROZEN), (17, 64, Freeze()), (5, 97, Freeze(0.25, 0.5))]
    + [(17, 129, f) for f in (FROZEN, Freeze(), Freeze(1, 0), Freeze(0, 1))],
    ids=str,
)
def test_pack_and_expand(rows, fan, freeze):
    source = source_of(rows, fan, "uniform", freeze)
    compact = random_mask(source, compact=True)
    assert torch.equal(triton.expand(compact, source), reference.expand(compact, source))
    scores = torch.randn(source.free)
    for threshold, form in ((0.5, True), (0.5, False), (float("inf"), True), (float("-inf"), True)):
        ours = triton.pack(scores, torch.tensor(threshold), source, form)
        theirs = reference.pack(scores, torch.tensor(threshold), source, form)
        assert torch.equal(ours[0], theirs[0])
        assert ours[1].dtype == torch.int64 and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("sizes,dtype", [((9,), torch.float64), *((s, torch.float32) for s in SIZES)], ids=str)
def test_select(sizes, dtype):
    total = sum(sizes)
    normal, few = [torch.randn(n, dtype=dtype) for n in sizes], [torch.randint(-3, 3, (n,)).to(dtype) for n in sizes]
    for scores in (normal, few):
        scores[0][0] = torch.nan
        scores[-1][-1] = 0
        for rank in (0, 1, 2, total // 2, total - 1, total):
            assert torch.equal(triton.select(scores, rank), reference.select(scores, rank))


def test_select_of_more_tensors_than_a_launch_takes(monkeypatch):
    monkeypatch.setattr(selecting, "_TENSORS_PER_LAUNCH", 2)
    scores = [torch.randn(n) for n in (3, 0, 4097, 1)]
    for rank in (1, 2000, 4100):
        assert torch.equal(triton.select(scores, rank), reference.select(scores, rank))


@pytest.mark.parametrize("shape,weight,_", [kind for kind in kinds(SHAPES, FEW_SHAPES) if kind.values[2] != HALF])
def test_materialize(shape, weight, _):
    rows, fan, _ = shape
    for source in shards(rows, fan, weight):
        for compact in (False, True):
            mask = random_mask(source, compact)
            assert torch.equal(triton.materialize(mask, source), reference.materialize(mask, source))


def test_counters_past_32_bits():
    whole = Source.of(2**31 - 1, 129, weight="normal", freeze=FROZEN)
    source = whole.shard(rows=(2**31 - 3, 2**31 - 1))
    for weight in range(len(WEIGHTS)):
        part = source._replace(weight=weight)
        mask = random_mask(part, compact=True)
        assert torch.equal(triton.materialize(mask, part), reference.materialize(mask, part))


# Linear


@pytest.mark.parametrize("shape,weight,dtype", kinds(SHAPES, FEW_SHAPES))
def test_linear(shape, weight, dtype):
    rows, fan, batch = shape
    sources = shards(rows, fan, weight)
    for source, mask in zip(sources, masks(shape, weight, dtype, sources), strict=True):
        x = random_input(batch, source.fan, dtype=dtype)
        dy = random_input(batch, source.rows, dtype=dtype)
        bias = torch.randn(source.rows) if fan % 2 else None
        arguments = (mask, scale(), bias, source)
        assert_same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))
        arguments = (mask, scale(), source)
        assert_same(triton.linear_grad_input(dy, *arguments), reference.linear_grad_input(dy, *arguments))
        arguments = (dy.nan_to_num(), x.nan_to_num(), torch.randn(source.free), scale(), source)
        assert_close(triton.linear_grad_scores(*arguments), reference.linear_grad_scores(*arguments), GRAD_ERROR)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_two_digits(weight, dtype):
    torch.set_float32_matmul_precision("high")
    source = source_of(5, 129, weight)
    x, dy, mask = torch.randn(3, 129, dtype=dtype), torch.randn(3, 5, dtype=dtype), random_mask(source, compact=False)
    arguments = (mask, scale(), None, source)
    assert_same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))
    arguments = (mask, scale(), source)
    assert_same(triton.linear_grad_input(dy, *arguments), reference.linear_grad_input(dy, *arguments))


@pytest.mark.parametrize("freeze,calls", [(Freeze(), 0), (Freeze(0.25, 0.5), 1), (Freeze(0.25, 0.3), 2)], ids=str)
def test_frozen_patterns_of_fewer_calls(freeze, calls):
    """Nothing is frozen, or the thresholds are sixteenths. Two shards begin inside a call."""
    whole = source_of(5, 300, "signed_constant", freeze)
    assert words.freeze_calls(whole) == calls
    for source in (whole.shard((0, 4), (1, 9)), whole.shard((4, 5), (6, 10))):
        mask, x, dy = random_mask(source, compact=True), torch.randn(3, source.fan), torch.randn(3, source.rows)
        arguments = (mask, scale(), None, source)
        assert_same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))
        arguments = (mask, scale(), source)
        assert_same(triton.linear_grad_input(dy, *arguments), reference.linear_grad_input(dy, *arguments))
        arguments = (dy, x, torch.randn(source.free), scale(), source)
        assert_close(triton.linear_grad_scores(*arguments), reference.linear_grad_scores(*arguments), GRAD_ERROR)
        index = torch.tensor([0, 0, source.rows - 1])
        arguments = (index, mask, scale(), source, torch.float32)
        assert_same(triton.embedding_forward(*arguments), reference.embedding_forward(*arguments))


def test_tf32_operands_are_rounded():
    """Truncated, the gradients would be 0.07 % too small. The interpreter's products are exact."""
    torch.set_float32_matmul_precision("high")
    source = source_of(16, 128, "signed_constant", Freeze())
    arguments = (torch.randn(64, 16), torch.randn(64, 128), torch.randn(source.free), scale(), source)
    ours, theirs = triton.linear_grad_scores(*arguments), reference.linear_grad_scores(*arguments)
    assert_close(ours, theirs, 4e-4)
    assert abs((ours * theirs).sum() / theirs.square().sum() - 1) < 1e-4


@pytest.mark.skipif(SIMULATED != 90, reason="the simulator counts them, for Hopper's layouts")
@pytest.mark.skipif(backends.triton.version() < (3, 9), reason="earlier versions give the lanes of a warp other values")
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_tf32_operands_have_no_bank_conflicts(monkeypatch, precision):
    torch.set_float32_matmul_precision(precision)
    monkeypatch.setitem(SIMULATOR.options, "profile", True)
    source = source_of(128, 128, "signed_constant", Freeze())
    arguments = (torch.randn(32, 128), torch.randn(32, 128), torch.randn(source.free), scale(), source)
    ours, theirs = triton.linear_grad_scores(*arguments), reference.linear_grad_scores(*arguments)
    assert_close(ours, theirs, GRAD_ERROR if precision == "highest" else 4e-4)
    waves, without_conflicts = SIMULATOR.log[-1]["result"].shared_waves
    assert waves == without_conflicts


@pytest.mark.parametrize("processors", [1, 9], ids=["one part", "several parts"])
def test_offsets_of_64_bits(monkeypatch, processors):
    """Sources of 2**31 weights and more have them."""
    monkeypatch.setattr(launching, "_SHORT_OFFSETS", 100)
    monkeypatch.setattr(grad_scores, "machine", lambda device: launching.Machine(9, processors))
    source = source_of(6, 67, "signed_constant")
    assert launching.has_long_offsets(source) and not launching.has_long_offsets(source._replace(rows=1))
    columns = 3 if processors == 1 else 512
    dy, x = torch.randn(columns, 6), torch.randn(columns, 67)
    arguments = (dy, x, torch.randn(source.free), scale(), source)
    assert_close(triton.linear_grad_scores(*arguments), reference.linear_grad_scores(*arguments), GRAD_ERROR)


def test_types_that_the_inputs_do_not_tell():
    """A bias and scores have types of their own, and a launch that was prepared for others is not taken."""
    source = source_of(5, 40, "signed_constant")
    x, dy, mask = torch.randn(3, 40), torch.randn(3, 5), random_mask(source, compact=False)
    for dtype in (torch.float32, HALF, torch.float32):
        arguments = (x, mask, scale(), torch.randn(5).to(dtype), source)
        for _ in range(2):
            assert_same(triton.linear_forward(*arguments), reference.linear_forward(*arguments))
    for dtype in (torch.float32, torch.float64, torch.float32):
        arguments = (dy, x, torch.randn(source.free, dtype=dtype), scale(), source)
        for _ in range(2):
            ours, theirs = triton.linear_grad_scores(*arguments), reference.linear_grad_scores(*arguments)
            assert_close(ours, theirs, GRAD_ERROR)


def test_inputs_that_start_anywhere():
    """They are copied to where 16 bytes can be loaded at once; the bias and the scale are not."""
    source = source_of(16, 64, "signed_constant")
    x, dy = torch.randn(3 * 64 + 1, dtype=HALF)[1:].view(3, 64), torch.randn(3 * 16 + 1, dtype=HALF)[1:].view(3, 16)
    mask, scores = random_mask(source, compact=False), torch.randn(source.free)
    shifted = torch.empty(33, dtype=torch.int32)[1:].view(16, 2).copy_(mask)
    numbers = torch.randn(18)
    arguments = (shifted, numbers[1], numbers[2:], source)
    assert_same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))
    arguments = (shifted, numbers[1], source)
    assert_same(triton.linear_grad_input(dy, *arguments), reference.linear_grad_input(dy, *arguments))
    arguments = (dy, x, torch.empty(source.free + 1)[1:].copy_(scores), numbers[1], source)
    assert_close(triton.linear_grad_scores(*arguments), reference.linear_grad_scores(*arguments), GRAD_ERROR)


def test_strided_inputs_and_repeats():
    source = source_of(5, 40, "signed_constant")
    mask = random_mask(source, compact=False)
    wide = torch.randn(40, 6)
    for x in (wide.T, wide.T[::2], torch.randn(1, 1).expand(4, 40), torch.randn(6, 80)[:, 1::2]):
        y = triton.linear_forward(x, mask, scale(), None, source)
        assert torch.equal(y, reference.linear_forward(x, mask, scale(), None, source))
        assert torch.equal(y, triton.linear_forward(x, mask, scale(), None, source))


@pytest.mark.parametrize("processors,summands", [(9, 2**17), (1, 256)], ids=["many processors", "few summands"])
def test_split_sums(monkeypatch, processors, summands):
    """A split of k gives the same bits, whether it fills the device or keeps int32 sums from overflowing."""
    for module in (forward, grad_input, grad_scores):
        monkeypatch.setattr(module, "machine", lambda device: launching.Machine(9, processors))
    monkeypatch.setattr(split_k, "SUMMANDS", summands)
    source = source_of(3, 600, "normal")
    x, mask, bias = torch.randn(2, 600), random_mask(source, compact=True), torch.randn(3)
    arguments = (mask, scale(), bias, source)
    assert_same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))
    source = source_of(300, 20, "normal")
    dy, mask = torch.randn(40, 300), random_mask(source, compact=False)
    arguments = (mask, scale(), source)
    assert_same(triton.linear_grad_input(dy, *arguments), reference.linear_grad_input(dy, *arguments))
    source = source_of(3, 20, "normal")
    arguments = (torch.randn(512, 3), torch.randn(512, 20), torch.randn(source.free), scale(), source)
    assert_close(triton.linear_grad_scores(*arguments), reference.linear_grad_scores(*arguments), GRAD_ERROR)


@pytest.mark.parametrize("generation,pieces", [(8, 2), (9, 2), (10, 1)])
def test_large_tiles(monkeypatch, generation, pieces):
    """A step's weights are multiplied in two pieces, except on Blackwell."""
    machine = launching.Machine(generation, 1)
    for module in (forward, grad_input):
        monkeypatch.setattr(module, "machine", lambda device: machine)
    assert tiles.pieces(128, 0, machine) == pieces
    source = source_of(70, 256, "signed_constant")
    x, dy = torch.randn(130, 256, dtype=HALF), torch.randn(130, 70, dtype=HALF)
    mask = random_mask(source, compact=False)
    arguments = (mask, scale(), None, source)
    assert_same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))
    arguments = (mask, scale(), source)
    assert_same(triton.linear_grad_input(dy, *arguments), reference.linear_grad_input(dy, *arguments))


def test_tiles_fill_a_device(monkeypatch):
    """Registers are limited for the resident programs; k is split for no more, and sums fit in WORKSPACE_BYTES."""
    monkeypatch.setattr(torch.version, "hip", None)
    h100 = launching.Machine(9, 132)
    assert [tiles.resident(4, columns, 0, 0, False, True, False) for columns in (16, 32, 64, 128)] == [4, 3, 3, 2]
    assert tiles.Tile(128, 16, 4, 3, programs=4).meta()["maxnreg"] == 128
    assert "maxnreg" not in tiles.Tile(128, 128, 4, 3, programs=2).meta()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "maxnreg" not in tiles.Tile(128, 16, 4, 3, programs=4).meta()
    assert tiles.narrowed(128, 4096, 64, h100) == 128
    assert tiles.narrowed(128, 256, 64, h100) == 64
    assert tiles.narrowed(64, 196, 2, h100) == 32
    assert split_k.split(64, 128, 64, 128 * 16, 0, 4, h100) == (8, 8)
    assert split_k.split(64, 128, 256, 128 * 128, 0, 4, h100) == (1, 64)
    assert split_k.split(4096, 128, 64, 128 * 128, 3, 8, h100) == (4, 1024)  # so that no int32 sum overflows
    tile = tiles.Tile(128, 64, 8, 3, programs=2)
    assert grad_scores._parts(25, 64, tile, h100) == (1, 25)  # four parts would cost more than they save
    parts, steps = grad_scores._parts(1568, 2, tile, h100)
    assert 66 <= parts < 121 and (parts - 1) * steps < 1568 <= parts * steps


def test_autotuning(monkeypatch, tmp_path):
    """Every tile gives the same bits. The file keeps the fastest, and later calls time nothing."""
    timed = []

    def milliseconds(run, device):
        timed.append(run())
        return -len(timed)  # the last is the fastest

    file = tmp_path / "tiles.json"
    monkeypatch.setattr(autotuning, "FILE", str(file))
    monkeypatch.setattr(autotuning, "_milliseconds", milliseconds)
    source = source_of(3, 33, "signed_constant")
    mask, x, dy, scores = random_mask(source, False), torch.randn(18, 33), torch.randn(18, 3), torch.randn(source.free)
    for times in (True, False):
        arguments = (x, mask, scale(), None, source)
        assert_same(triton.linear_forward(*arguments), reference.linear_forward(*arguments))
        arguments = (dy, mask, scale(), source)
        assert_same(triton.linear_grad_input(*arguments), reference.linear_grad_input(*arguments))
        arguments = (dy, x, scores, scale(), source)
        assert_close(triton.linear_grad_scores(*arguments), reference.linear_grad_scores(*arguments), GRAD_ERROR)
        assert bool(timed) == times
        timed.clear()
        autotuning._known.cache_clear()
    assert len(json.loads(file.read_text())) == 3
    file.write_text("{")
    with pytest.raises(ValueError, match="SLT_AUTOTUNE"):
        triton.linear_forward(x, mask, scale(), None, source._replace(rows=2))


# Conv2d


@pytest.mark.parametrize("name,weight,dtype", kinds(CONVOLUTIONS, FEW_CONVOLUTIONS))
def test_conv2d(name, weight, dtype):
    channels, rows, images, height, width, window = CONVOLUTIONS[name]
    source = source_of(rows, channels // window.groups * window.kernel_h * window.kernel_w, weight)
    x = random_input(images, channels, height, width, dtype=dtype)
    dy = random_input(images, rows, *window.output_size(height, width), dtype=dtype)
    bias = torch.randn(rows)
    for compact in (False, True):
        mask = random_mask(source, compact)
        if compact:
            x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
        arguments = (mask, scale(), bias, source, window)
        assert_same(triton.conv2d_forward(x, *arguments), reference.conv2d_forward(x, *arguments))
        arguments = (mask, scale(), source, window, [height, width])
        assert_same(triton.conv2d_grad_input(dy, *arguments), reference.conv2d_grad_input(dy, *arguments))
    scores = torch.randn(source.free)
    arguments = (dy.nan_to_num(), x.nan_to_num(), scores, scale(), source, window)
    assert_close(triton.conv2d_grad_scores(*arguments), reference.conv2d_grad_scores(*arguments), GRAD_ERROR)


def test_images_are_copied_once(monkeypatch):
    """A convolution's backward gets the channels-last images of its forward, and dy once in that format."""
    conv2d = import_module("slt_kernels.ops.conv2d")

    channels, rows, images, height, width, window = CONVOLUTIONS["3x3"]
    source = source_of(rows, channels * 9, "signed_constant")
    fixed = (random_mask(source, compact=False), scale(), None, source, window)
    x, scores = torch.randn(images, channels, height, width), torch.randn(source.free)
    dy = torch.randn(images, rows, *window.output_size(height, width))
    seen = []

    def recorded(name):
        def call(first, *others):
            seen.append((name, first, others[0] if name == "grad_scores" else None))
            return getattr(triton, f"conv2d_{name}")(first, *others)

        return call

    def step() -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_(), scores.clone().requires_grad_()]
        y = conv2d.conv2d(leaves[0], leaves[1], *fixed)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    for name in ("forward", "grad_input", "grad_scores"):
        monkeypatch.setattr(conv2d, name, recorded(name))
    with backends.use("triton"):
        ours = step()
    (_, x_seen, _), (_, dy_seen, _), (_, dy_again, x_again) = seen
    assert x_seen.is_contiguous(memory_format=torch.channels_last) and x_again.data_ptr() == x_seen.data_ptr()
    assert dy_seen.is_contiguous(memory_format=torch.channels_last) and dy_again is dy_seen
    monkeypatch.undo()
    with backends.use("reference"):
        theirs = step()
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        assert_same(one, other)
    assert_close(ours[2], theirs[2], GRAD_ERROR)


# Embedding


@pytest.mark.parametrize("shape,weight,dtype", kinds(SHAPES, FEW_SHAPES))
def test_embedding(shape, weight, dtype):
    rows, fan, count = shape
    sources = shards(rows, fan, weight)
    for source, mask in zip(sources, masks(shape, weight, dtype, sources), strict=True):
        index = torch.randint(source.rows, (2 * count + 3,)) // 2  # some rows often, others never
        arguments = (index, mask, scale(), source, dtype)
        assert_same(triton.embedding_forward(*arguments), reference.embedding_forward(*arguments))
        arguments = (torch.randn(len(index), source.fan, dtype=dtype), index, torch.randn(source.free), scale(), source)
        assert_close(triton.embedding_grad_scores(*arguments), reference.embedding_grad_scores(*arguments), GRAD_ERROR)


def test_an_index_outside_the_rows_gives_nan():
    source = source_of(3, 33, "uniform")
    for compact in (False, True):
        index = torch.tensor([-1, 2, 3, 2**40])
        y = triton.embedding_forward(index, random_mask(source, compact), scale(), source, torch.float32)
        assert y.isnan().all(1).tolist() == [True, False, True, True]


def test_an_index_outside_the_rows_has_no_gradient():
    source = source_of(3, 33, "uniform")
    scores, dy = torch.randn(source.free), torch.randn(7, 33)
    expected = triton.embedding_grad_scores(dy[:2], torch.tensor([2, 2]), scores, scale(), source)
    index = torch.tensor([2, 2, -1, -5, 3, 2**32 + 1, 2**40])
    assert torch.equal(triton.embedding_grad_scores(dy, index, scores, scale(), source), expected)


def test_long_runs_of_look_ups_are_added_in_pieces(monkeypatch):
    monkeypatch.setattr(embedding, "_LONGEST_RUN", 4)
    source = source_of(4, 33, "signed_constant")
    index = torch.tensor([1] * 13 + [0] * 4 + [3] * 5 + [-1] * 6 + [4] * 7)[torch.randperm(35)]
    arguments = (torch.randn(35, 33), index.clamp(0, 3), torch.randn(source.free), scale(), source)
    ours = triton.embedding_grad_scores(*arguments)
    assert_close(ours, reference.embedding_grad_scores(*arguments), GRAD_ERROR)
    assert torch.equal(ours, triton.embedding_grad_scores(*arguments))
    outside = triton.embedding_grad_scores(arguments[0], index, *arguments[2:])
    inside = (index >= 0) & (index < 4)
    arguments = (arguments[0][inside], index[inside], *arguments[2:])
    assert_close(outside, reference.embedding_grad_scores(*arguments), GRAD_ERROR)


def test_look_ups_with_zero_gradient_are_skipped(monkeypatch):
    """Those of padding_idx may be most of a batch, and one program would loop over all of them."""
    launched = []

    def record(kernel, programs, device, dy, index, *others, **meta):
        launched.append(index)

    monkeypatch.setattr(embedding, "launch", record)
    source = source_of(3, 33, "uniform")
    dy = torch.zeros(5, 33)
    dy[1] = torch.nan
    dy[3, 32] = 1
    triton.embedding_grad_scores(dy, torch.tensor([0, 0, 0, 1, 2]), torch.randn(source.free), scale(), source)
    assert launched[0].tolist() == [0, 1, 3, 3, 3]


# On the host


def test_every_operation_has_a_kernel():
    assert [name for name in OUTPUTS if not backends.registry.kernels("triton", name)] == []


def test_the_reference_takes_float64_and_empty_batches():
    source = source_of(3, 33, "uniform")
    [kernel] = backends.registry.kernels("triton", "linear_forward")
    for x in (torch.randn(2, 33, dtype=torch.float64), torch.empty(0, 33)):
        arguments = (x, random_mask(source, compact=False), scale(), None, source)
        assert not kernel.when(*arguments)
        assert torch.equal(triton.linear_forward(*arguments), reference.linear_forward(*arguments))


def test_kept_tensors_belong_to_no_memory_pool(monkeypatch):
    """A memory pool takes the allocations of one thread, so another makes the tensors, and synchronizes. During the
    capture of a graph that is an error."""
    waited = []
    stream = SimpleNamespace(synchronize=lambda: waited.append(threading.get_ident()))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    made = launching.made_to_last(threading.get_ident, torch.device("cuda:1"))
    assert waited == [made] and made != threading.get_ident()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="capture"):
        launching.made_to_last(threading.get_ident, torch.device("cuda:1"))


def test_tables_of_the_sources_used_last_are_kept(monkeypatch):
    """And those that a captured graph reads, for ever."""
    made, captures = [], []
    monkeypatch.setattr(tables, "capturing", lambda device: bool(captures))
    device = torch.device("cpu")

    @partial(tables.SourceTables, most=2)
    def numbers(source, device):
        made.append(source.seed)
        return object()

    def of(seed):
        return numbers(Source.of(1, 1, seed=seed), device)

    first = of(1)
    of(2)
    assert of(1) is first and made == [1, 2]
    of(3)  # frees 2
    assert of(1) is first and made == [1, 2, 3]
    captures.append(True)
    assert of(1) is first
    captures.clear()
    for seed in (2, 3, 4, 5):
        of(seed)
    assert of(1) is first
    numbers.clear()
    assert of(1) is first and of(5) and made == [1, 2, 3, 2, 4, 5, 5]


def test_a_dense_source_has_no_table_of_offsets():
    dense = [launching.free_starts(source_of(rows, 33, "uniform", Freeze()), torch.device("cpu")) for rows in (2, 3)]
    assert dense[0] is dense[1]


@pytest.mark.parametrize(
    "capability,hip,expected",
    [((8, 9), None, 8), ((9, 0), None, 9), ((10, 3), None, 10), ((12, 0), None, 8), ((9, 4), "6.4", 8)],
)
def test_generation(monkeypatch, capability, hip, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    properties = SimpleNamespace(multi_processor_count=7)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert launching.machine.__wrapped__(torch.device("cuda:1")) == (expected, 7)


def test_a_tile_that_does_not_compile_is_not_chosen(device, monkeypatch, tmp_path):
    monkeypatch.setattr(autotuning, "FILE", str(tmp_path / "tiles.json"))
    first, second = tiles.Tile(16, 16, 4, 2, 2), tiles.Tile(16, 32, 4, 2, 2)

    def run(tile):
        if tile in broken:
            raise RuntimeError("PassManager::run failed")

    def key():
        return ("x",)

    broken = {first, second}
    assert autotuning.choose(key, (), 1, device, [first, second], run) == first
    broken = {first}
    assert autotuning.choose(key, (), 1, device, [first, second], run) == second
    with pytest.raises(ValueError, match="split the batch"):
        autotuning.choose(key, (), 2**31 - 2**20, device, [first], run)


def test_too_many_image_rows():
    with pytest.raises(ValueError, match="split the batch"):
        images.flat(torch.zeros(1).expand(2**16, 1, 2**15, 1))


# The layer on top


def test_training_step(monkeypatch):
    from slt_kernels import EdgePopup, SupermaskConv2d, SupermaskLinear

    if SIMULATED:  # it takes what a layer allocates, and PyTorch writes, for undefined
        monkeypatch.setattr(SIMULATOR, "track", lambda tensor: tensor)

    def steps() -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            SupermaskConv2d(3, 8, 3, padding=1, bias=False, freeze=FROZEN, seed=1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            SupermaskLinear(8 * 16, 5, freeze=FROZEN, seed=1, layer=1, compact=True),
        )
        popup = EdgePopup(net, sparsity=0.5, scope="global")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            loss = net(torch.randn(4, 3, 4, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            popup.step()
        return [loss.detach(), net[0].mask_words, net[3].mask_words]

    with backends.use("triton"):
        ours = steps()
    with backends.use("reference"):
        theirs = steps()
    torch.testing.assert_close(ours, theirs)


# The script for a GPU


@pytest.fixture
def gpu_check(monkeypatch):
    """bench/gpu_check.py, imported anew: it decides at its import whether Triton interprets."""
    monkeypatch.syspath_prepend(str(BENCH))
    for name in ("gpu_check", "gpu_correctness"):
        monkeypatch.setitem(sys.modules, name, None)  # so that monkeypatch restores it
        del sys.modules[name]
    return import_module("gpu_check")


@pytest.mark.skipif(SIMULATED > 0, reason="the script asks PyTorch for a GPU, or Triton to interpret")
@pytest.mark.parametrize("section", ["first", "warm", "speed", "checks", "memory", "compile", "tuned"])
def test_gpu_check(section, gpu_check):
    """The last small item of each section, without what needs a GPU."""
    *_, (_, run) = gpu_check.SECTIONS[section].items(smoke=True)
    result = gpu_check.attempt(run)
    assert result["ok"], result["why"]


@pytest.mark.skipif(not INTERPRETED, reason="a GPU measures it")
def test_gpu_check_from_end_to_end(tmp_path, gpu_check, capfd):
    """With its worker processes."""
    out = tmp_path / "result.json"
    assert gpu_check.main(["--smoke", "--only", "traffic", "--out", str(out)]) == 0, capfd.readouterr()
    report = json.loads(out.read_text())
    assert report["machine"]["backends"]["triton"].endswith("its interpreter")
    assert [item["note"] for item in report["traffic"]] == 2 * ["needs a GPU and ncu"]
