"""The Triton backend without a GPU: every operation against the reference, under Triton's interpreter.

Triton decides when it is imported whether it interprets, so the tests run in a process of their own, which
`test_under_the_interpreter` starts. 16-bit means float16 here: the interpreter's bfloat16 is wrong.
"""

import json
import os
import subprocess
import sys
import threading
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from slt_kernels import backends, bits
from slt_kernels.backends import reference, triton
from slt_kernels.source import WEIGHTS, Freeze, Source
from slt_kernels.window import Window

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs under the interpreter, in a process of its own")
native = pytest.mark.skipif(INTERPRETED, reason="of the native process")
installed = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

BENCH = Path(__file__).parent.parent / "bench"
SCALE = torch.tensor(0.37)
FROZEN = Freeze(0.35, 0.35)
SHAPES = ((1, 1, 1), (3, 31, 17), (17, 33, 3), (3, 63, 0), (2, 65, 3), (1, 127, 1), (17, 129, 3), (67, 300, 5))
SIZES = ((1,), (9,), (5000, 3), (100, 1, 70))
CONVOLUTIONS = {  # channels, rows, images, height, width, window
    "3x3": (5, 6, 2, 5, 7, Window(3, 3, padding_h=1, padding_w=1)),
    "2x1-stride": (32, 5, 1, 7, 6, Window(2, 1, stride_h=2)),
    "depthwise": (2, 2, 2, 3, 3, Window(3, 3, padding_h=2, padding_w=1, groups=2)),
    "1x1-stride": (128, 4, 3, 4, 5, Window(1, 1, 2, 2)),
    "groups-dilation": (66, 4, 1, 6, 5, Window(2, 1, padding_h=1, dilation_h=2, groups=2)),
    "17-rows-a-group": (4, 34, 1, 3, 2, Window(2, 1, groups=2)),
    "64-channels": (64, 3, 1, 2, 2, Window(1, 3, padding_w=1)),
    "no-images": (3, 4, 0, 5, 5, Window(3, 3)),
}


@native
@installed
def test_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]


@native
@installed
def test_machine_code_is_within_its_budget():
    for cases in ("forward bf16", "grad_input bf16, in parts", "grad_input bf16, 257 rows"):
        command = [sys.executable, str(BENCH / "triton_sass.py"), "--check", "--arch", "90", "--only", cases]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr[-2000:]


@native
@installed
def test_parts_have_arrived_before_they_are_counted_on_amd():
    """A barrier of AMD's waits for no store; and shared memory is 64 KiB. Compiled as on ROCm."""
    script = """if True:
        import torch
        torch.version.hip = "6.4"
        from triton_sass import CASES, GPUTarget, compile_case, launched
        case = launched(CASES["forward bf16, in parts"], 80)
        compiled = compile_case(case, GPUTarget("hip", "gfx942", 64))
        assert compiled.metadata.shared <= 65536
        code = compiled.asm["amdgcn"]
        barrier = code.rindex("s_barrier", 0, code.rindex("global_atomic_add"))
        waits = code[code.rindex("global_store", 0, barrier) : barrier]
        assert "s_waitcnt vmcnt(0)" in waits, waits
    """
    run = subprocess.run([sys.executable, "-c", script], cwd=BENCH, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


@native
@installed
def test_float32_sums_are_short():
    """grad_scores' loop adds its three products' sums to those before, rather than starting from them: tensor cores
    truncate, see bench/truncated_sums.py."""
    script = """if True:
        import re
        from triton_sass import CASES, compile_case
        ir = compile_case(CASES["grad_scores fp32"], 90).asm["ttgir"]
        sums = re.search(r"scf.yield (%\\w+)", ir).group(1)
        assert re.search(rf"{sums} = arith.addf", ir), ir
    """
    run = subprocess.run([sys.executable, "-c", script], cwd=BENCH, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


@interpreted
@pytest.mark.parametrize("section", ["checks", "speed", "memory", "compile", "tuned"])
def test_gpu_check(section, monkeypatch):
    """The script, but for what only a GPU does: the last small item of each section."""
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_check

    *_, (_, run) = gpu_check.SECTIONS[section].items(smoke=True)
    result = gpu_check.attempt(run)
    assert result["ok"], result["why"]


@interpreted
def test_gpu_check_from_end_to_end(tmp_path, monkeypatch, capfd):
    """Its processes included."""
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_check

    out = tmp_path / "result.json"
    assert gpu_check.main(["--smoke", "--only", "traffic", "--out", str(out)]) == 0, capfd.readouterr()
    report = json.loads(out.read_text())
    assert report["machine"]["backends"]["triton"].endswith("its interpreter")
    assert [item["note"] for item in report["traffic"]] == 2 * ["needs a GPU and ncu"]


@native
def test_import_leaves_triton_alone():
    code = "import sys, torch, slt_kernels; assert 'triton' not in sys.modules and not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)


@native
def test_says_why_it_is_unavailable():
    if not torch.cuda.is_available():
        assert backends.why_unavailable("triton") in ("triton is not installed", "no CUDA or ROCm device")


def source_of(rows: int, fan: int, weight: str, freeze: Freeze = FROZEN) -> Source:
    return Source.of(rows, fan, seed=2**63 + 5 * rows, layer=2**32 - fan, weight=weight, freeze=freeze)


def shards(rows: int, fan: int, weight: str) -> list[Source]:
    """A source; of the largest one, shards that start inside a call."""
    source = source_of(rows, fan, weight)
    return [source] if fan != 300 else [source.shard((0, 66), (1, 9)), source.shard((66, 67), (6, 10))]


def random_mask(source: Source, compact: bool) -> torch.Tensor:
    """Garbage in the padding included."""
    shape = (bits.words_for(source.count_frozen()[1]),) if compact else (source.rows, source.words)
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def random_input(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Where there are vectors enough: a small one, a zero one, one with a NaN, and denormals."""
    x = torch.randn(shape, dtype=dtype)
    if len(x) > 2:
        x[0] *= 2.0**-12
        x[1] = 0
        x[2].view(-1)[0] = torch.nan
    if len(x) > 3 and dtype == torch.float32:
        x[3] *= 2.0**-130
    return x


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The very bits in float32; in float16 the same within rounding, and no NaN that the reference does not have."""
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


def shape_id(shape: tuple) -> str:
    return "x".join(map(str, shape))


# Masks


@interpreted
@pytest.mark.parametrize("freeze", [Freeze(), FROZEN, Freeze(1, 0), Freeze(0, 1)], ids=str)
@pytest.mark.parametrize("rows,fan", [(1, 1), (3, 33), (17, 129)])
def test_pack_and_expand(rows, fan, freeze):
    source = source_of(rows, fan, "uniform", freeze)
    compact = random_mask(source, compact=True)
    assert torch.equal(triton.expand(compact, source), reference.expand(compact, source))
    scores = torch.randn(source.count_frozen()[1])
    for threshold in (0.5, float("inf"), float("-inf")):
        for form in (False, True):
            ours = triton.pack(scores, torch.tensor(threshold), source, form)
            theirs = reference.pack(scores, torch.tensor(threshold), source, form)
            assert torch.equal(ours[0], theirs[0])
            assert ours[1].dtype == torch.int64 and torch.equal(ours[1], theirs[1])


@interpreted
@pytest.mark.parametrize("sizes,dtype", [((9,), torch.float64), *((s, torch.float32) for s in SIZES)], ids=str)
def test_select(sizes, dtype):
    total = sum(sizes)
    normal, few = [torch.randn(n, dtype=dtype) for n in sizes], [torch.randint(-3, 3, (n,)).to(dtype) for n in sizes]
    for scores in (normal, few):
        scores[0][0] = torch.nan
        scores[-1][-1] = 0
        for rank in (0, 1, 2, total // 2, total - 1, total):
            assert torch.equal(triton.select(scores, rank), reference.select(scores, rank))


@interpreted
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("rows,fan,_", SHAPES)
def test_materialize(rows, fan, _, weight):
    for source in shards(rows, fan, weight):
        for compact in (False, True):
            mask = random_mask(source, compact)
            assert torch.equal(triton.materialize(mask, source), reference.materialize(mask, source))


@interpreted
def test_counters_past_32_bits():
    whole = Source.of(2**31 - 1, 129, weight="normal", freeze=FROZEN)
    source = whole.shard(rows=(2**31 - 3, 2**31 - 1))
    for weight in range(len(WEIGHTS)):
        part = source._replace(weight=weight)
        mask = random_mask(part, compact=True)
        assert torch.equal(triton.materialize(mask, part), reference.materialize(mask, part))


# Linear


@interpreted
@pytest.mark.parametrize("weight,dtype", [*((w, torch.float32) for w in WEIGHTS), (WEIGHTS[0], torch.float16)], ids=str)
@pytest.mark.parametrize("rows,fan,batch", SHAPES)
def test_linear(rows, fan, batch, weight, dtype):
    for source in shards(rows, fan, weight):
        x = random_input(batch, source.fan, dtype=dtype)
        dy = random_input(batch, source.rows, dtype=dtype)
        bias = torch.randn(source.rows) if fan % 2 else None
        for compact in (False, True):
            mask = random_mask(source, compact)
            arguments = (mask, SCALE, bias, source)
            assert_same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))
            arguments = (mask, SCALE, source)
            assert_same(triton.linear_grad_input(dy, *arguments), reference.linear_grad_input(dy, *arguments))
        arguments = (dy.nan_to_num(), x.nan_to_num(), torch.randn(source.count_frozen()[1]), SCALE, source)
        assert_close(triton.linear_grad_scores(*arguments), reference.linear_grad_scores(*arguments), 1e-6)


@interpreted
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_two_digits(weight, dtype):
    torch.set_float32_matmul_precision("high")
    source = source_of(5, 129, weight)
    x, dy, mask = torch.randn(3, 129, dtype=dtype), torch.randn(3, 5, dtype=dtype), random_mask(source, compact=False)
    arguments = (mask, SCALE, None, source)
    assert_same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))
    arguments = (mask, SCALE, source)
    assert_same(triton.linear_grad_input(dy, *arguments), reference.linear_grad_input(dy, *arguments))


@interpreted
def test_strided_inputs_and_repeats():
    source = source_of(5, 40, "signed_constant")
    mask = random_mask(source, compact=False)
    wide = torch.randn(40, 6)
    for x in (wide.T, wide.T[::2], torch.randn(1, 1).expand(4, 40), torch.randn(6, 80)[:, 1::2]):
        y = triton.linear_forward(x, mask, SCALE, None, source)
        assert torch.equal(y, reference.linear_forward(x, mask, SCALE, None, source))
        assert torch.equal(y, triton.linear_forward(x, mask, SCALE, None, source))


@interpreted
@pytest.mark.parametrize("processors,summands", [(9, 2**17), (1, 256)], ids=["many processors", "few summands"])
def test_parts_of_a_sum(monkeypatch, processors, summands):
    """Sums in parts, for a device to have enough programs and an int32 not too many summands, are the same bits."""
    from slt_kernels.backends.triton import tiles

    monkeypatch.setattr(tiles, "processors", lambda device: processors)
    monkeypatch.setattr(tiles, "SUMMANDS", summands)
    source = source_of(3, 600, "normal")
    x, mask, bias = torch.randn(2, 600), random_mask(source, compact=True), torch.randn(3)
    arguments = (mask, SCALE, bias, source)
    assert_same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))
    source = source_of(300, 20, "normal")
    dy, mask = torch.randn(40, 300), random_mask(source, compact=False)
    arguments = (mask, SCALE, source)
    assert_same(triton.linear_grad_input(dy, *arguments), reference.linear_grad_input(dy, *arguments))
    source = source_of(3, 20, "normal")
    arguments = (torch.randn(140, 3), torch.randn(140, 20), torch.randn(source.count_frozen()[1]), SCALE, source)
    assert_close(triton.linear_grad_scores(*arguments), reference.linear_grad_scores(*arguments), 1e-6)


@interpreted
@pytest.mark.parametrize("generation,pieces", [(8, 2), (9, 2), (10, 1)])
def test_large_tiles(monkeypatch, generation, pieces):
    """Whose weights are multiplied in two pieces, but on Blackwell."""
    from slt_kernels.backends.triton import forward, grad_input, tiles

    for module in (forward, grad_input, tiles):
        monkeypatch.setattr(module, "generation", lambda device: generation)
    for module in (forward, grad_input):
        module._tiles.cache_clear()
    assert tiles.pieces(128, 0, SCALE.device) == pieces
    source = source_of(70, 256, "signed_constant")
    x, dy = torch.randn(130, 256, dtype=torch.float16), torch.randn(130, 70, dtype=torch.float16)
    mask = random_mask(source, compact=False)
    arguments = (mask, SCALE, None, source)
    assert_same(triton.linear_forward(x, *arguments), reference.linear_forward(x, *arguments))
    arguments = (mask, SCALE, source)
    assert_same(triton.linear_grad_input(dy, *arguments), reference.linear_grad_input(dy, *arguments))
    for module in (forward, grad_input):
        module._tiles.cache_clear()


@interpreted
def test_tiles_fill_a_device(monkeypatch):
    """Registers are limited for the programs that a multiprocessor holds; sums are cut for no more, and fit in ROOM."""
    from slt_kernels.backends.triton import tiles

    monkeypatch.setattr(tiles, "processors", lambda device: 132)
    device = SCALE.device
    assert [tiles.resident(4, columns, 0, 0, False, True, False) for columns in (16, 32, 64, 128)] == [4, 3, 3, 2]
    assert tiles.Tile(128, 16, 4, 3, programs=4).meta()["maxnreg"] == 128
    assert "maxnreg" not in tiles.Tile(128, 128, 4, 3, programs=2).meta()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "maxnreg" not in tiles.Tile(128, 16, 4, 3, programs=4).meta()
    assert tiles.narrowed(128, 4096, 64, device) == 128
    assert tiles.narrowed(128, 256, 64, device) == 64
    assert tiles.narrowed(64, 196, 2, device) == 32
    assert tiles.split(64, 128, 64, 128 * 16, 0, 4, device) == (8, 8)
    assert tiles.split(64, 128, 256, 128 * 128, 0, 4, device) == (1, 64)
    assert tiles.split(4096, 128, 64, 128 * 128, 3, 8, device) == (4, 1024)  # as many as an int32 needs


@interpreted
def test_autotuning(monkeypatch, tmp_path):
    """Every tile gives the same bits; the fastest is kept in a file, and taken from it."""
    from slt_kernels.backends.triton import tiles

    timed = []

    def milliseconds(run, device):
        timed.append(run())
        return -len(timed)  # the last is the fastest

    file = tmp_path / "tiles.json"
    monkeypatch.setattr(tiles, "FILE", str(file))
    monkeypatch.setattr(tiles, "_milliseconds", milliseconds)
    source = source_of(3, 33, "signed_constant")
    mask, x, dy, scores = random_mask(source, False), torch.randn(18, 33), torch.randn(18, 3), torch.randn(source.free)
    for times in (True, False):
        arguments = (x, mask, SCALE, None, source)
        assert_same(triton.linear_forward(*arguments), reference.linear_forward(*arguments))
        arguments = (dy, mask, SCALE, source)
        assert_same(triton.linear_grad_input(*arguments), reference.linear_grad_input(*arguments))
        arguments = (dy, x, scores, SCALE, source)
        assert_close(triton.linear_grad_scores(*arguments), reference.linear_grad_scores(*arguments), 1e-6)
        assert bool(timed) == times
        timed.clear()
        tiles._known.cache_clear()
    assert len(json.loads(file.read_text())) == 3
    file.write_text("{")
    with pytest.raises(ValueError, match="SLT_AUTOTUNE"):
        triton.linear_forward(x, mask, SCALE, None, source._replace(rows=2))


# Conv2d


@interpreted
@pytest.mark.parametrize("weight,dtype", [*((w, torch.float32) for w in WEIGHTS), (WEIGHTS[0], torch.float16)], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
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
        arguments = (mask, SCALE, bias, source, window)
        assert_same(triton.conv2d_forward(x, *arguments), reference.conv2d_forward(x, *arguments))
        arguments = (mask, SCALE, source, window, [height, width])
        assert_same(triton.conv2d_grad_input(dy, *arguments), reference.conv2d_grad_input(dy, *arguments))
    scores = torch.randn(source.count_frozen()[1])
    arguments = (dy.nan_to_num(), x.nan_to_num(), scores, SCALE, source, window)
    assert_close(triton.conv2d_grad_scores(*arguments), reference.conv2d_grad_scores(*arguments), 1e-6)


# Embedding


@interpreted
@pytest.mark.parametrize("weight,dtype", [*((w, torch.float32) for w in WEIGHTS), (WEIGHTS[0], torch.float16)], ids=str)
@pytest.mark.parametrize("rows,fan,count", SHAPES)
def test_embedding(rows, fan, count, weight, dtype):
    for source in shards(rows, fan, weight):
        index = torch.randint(source.rows, (2 * count + 3,)) // 2  # some rows often, and some never
        for compact in (False, True):
            arguments = (index, random_mask(source, compact), SCALE, source, dtype)
            assert_same(triton.embedding_forward(*arguments), reference.embedding_forward(*arguments))
        arguments = (torch.randn(len(index), source.fan, dtype=dtype), index, torch.randn(source.free), SCALE, source)
        assert_close(triton.embedding_grad_scores(*arguments), reference.embedding_grad_scores(*arguments), 1e-6)


@interpreted
def test_a_row_that_is_not_there_is_nan():
    source = source_of(3, 33, "uniform")
    for compact in (False, True):
        index = torch.tensor([-1, 2, 3, 2**40])
        y = triton.embedding_forward(index, random_mask(source, compact), SCALE, source, torch.float32)
        assert y.isnan().all(1).tolist() == [True, False, True, True]


@interpreted
def test_a_row_that_is_not_there_has_no_gradient():
    source = source_of(3, 33, "uniform")
    scores, dy = torch.randn(source.free), torch.randn(7, 33)
    expected = triton.embedding_grad_scores(dy[:2], torch.tensor([2, 2]), scores, SCALE, source)
    index = torch.tensor([2, 2, -1, -5, 3, 2**32 + 1, 2**40])
    assert torch.equal(triton.embedding_grad_scores(dy, index, scores, SCALE, source), expected)


@interpreted
def test_look_ups_without_a_gradient_are_not_looped_over(monkeypatch):
    """As those of padding_idx, which may be most of a batch: the loop of their row would be as long."""
    from slt_kernels.backends.triton import embedding

    launched = []

    def launch(kernel, programs, device, dy, index, *others, **meta):
        launched.append(index)

    monkeypatch.setattr(embedding, "launch", launch)
    source = source_of(3, 33, "uniform")
    dy = torch.zeros(5, 33)
    dy[1] = torch.nan
    dy[3, 32] = 1
    triton.embedding_grad_scores(dy, torch.tensor([0, 0, 0, 1, 2]), torch.randn(source.free), SCALE, source)
    assert launched[0].tolist() == [0, 1, 3, 3, 3]


# On the host


@interpreted
def test_what_is_kept_is_in_no_callers_pool(monkeypatch):
    """A thread of its own makes it, as a pool takes a thread's allocations, and waits for it; a capture is refused."""
    from slt_kernels.backends.triton import launch

    waited = []
    stream = SimpleNamespace(synchronize=lambda: waited.append(threading.get_ident()))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    made = launch.kept(threading.get_ident, torch.device("cuda:1"))
    assert waited == [made] and made != threading.get_ident()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="capture"):
        launch.kept(threading.get_ident, torch.device("cuda:1"))


@interpreted
@pytest.mark.parametrize(
    "capability,hip,expected",
    [((8, 9), None, 8), ((9, 0), None, 9), ((10, 3), None, 10), ((12, 0), None, 8), ((9, 4), "6.4", 8)],
)
def test_generation(monkeypatch, capability, hip, expected):
    from slt_kernels.backends.triton import launch

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert launch.generation.__wrapped__(torch.device("cuda:1")) == expected


@interpreted
def test_a_tile_that_does_not_compile_is_not_chosen(monkeypatch, tmp_path):
    from slt_kernels.backends.triton import tiles

    monkeypatch.setattr(tiles, "FILE", str(tmp_path / "tiles.json"))
    first, second = tiles.Tile(16, 16, 4, 2, 2), tiles.Tile(16, 32, 4, 2, 2)

    def run(tile):
        if tile in broken:
            raise RuntimeError("PassManager::run failed")

    broken = {first, second}
    assert tiles.choose(("x",), 1, SCALE.device, [first, second], run) == first
    broken = {first}
    assert tiles.choose(("x",), 1, SCALE.device, [first, second], run) == second
    with pytest.raises(ValueError, match="split the batch"):
        tiles.choose(("x",), 2**31 - 2**20, SCALE.device, [first], run)


@native
@installed
def test_modules_do_not_stand_in_for_operations():
    """Whichever module of the backend is imported first."""
    code = """if True:
        from importlib import import_module
        from pkgutil import iter_modules
        from slt_kernels.backends import triton
        for module in iter_modules(triton.__path__): import_module(f"{triton.__name__}.{module.name}")
        assert all(callable(getattr(triton, name)) for name in triton.operations.__all__)
        assert not hasattr(triton, "no_operation")
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@native
def test_a_folder_is_not_triton(monkeypatch):
    """Nor is a distribution's name asked for: ROCm's wheels have others."""
    triton.unavailable.cache_clear()
    monkeypatch.setattr(triton, "find_spec", lambda name: SimpleNamespace(origin=None))
    assert triton.unavailable() == "triton is not installed"
    triton.unavailable.cache_clear()
    monkeypatch.setattr(triton, "find_spec", lambda name: SimpleNamespace(origin="triton/__init__.py"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton, "import_module", lambda name: SimpleNamespace(__version__="3.5.1+rocm"))
    assert triton.unavailable() == "triton 3.5.1+rocm is installed, and 3.6 is the oldest that will do"
    triton.unavailable.cache_clear()


# The layer on top


@interpreted
def test_training_step():
    from slt_kernels import EdgePopup, SupermaskConv2d, SupermaskLinear

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
