"""The CUDA backend's kernels of masks and embeddings, executed in a simulator, against the reference."""

import ctypes
import math
import os
import shlex
import subprocess

import cuda_cases
import pytest
import torch
from cuda_cases import random_mask
from cuda_simulator import CSRC, simulated, why_not

from slt_kernels import Freeze, backends, bits
from slt_kernels.source import WEIGHTS, Source

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no simulation: {why_not()}")
reference, cuda = backends.on("reference"), backends.on("cuda")

DENSE, COARSE, FINE = FREEZES = tuple(cuda_cases.FREEZES.values())
NAMES = ("dense", "coarse", "fine")


def _source(rows: int, fan: int, weight: str = WEIGHTS[0], freeze: Freeze = FINE) -> Source:
    return cuda_cases.source_of(rows, fan, weight, freeze)


def _sources() -> dict[str, Source]:
    """Fans on both sides of a word, a call, and a warp; frozen in each way; shards; indices past 2^32."""
    fans = (1, 31, 33, 127, 129, 513)
    sources = {
        f"{fan}-{NAMES[f]}": _source(3 + 7 * (fan == 33), fan, WEIGHTS[(f + i) % 3], freeze)
        for i, fan in enumerate(fans)
        for f, freeze in enumerate(FREEZES)
    }
    whole = _source(9, 500)
    sources["shard"] = whole.shard((2, 7), (3, 11))
    sources["shard-dense"] = whole._replace(prune_below=0, lock_from=256).shard((2, 7), (6, 16))
    sources["shard-bytes"] = whole._replace(weight=2).shard((8, 9), (1, 2))
    far = Source.of(2**31 - 1, 8191, seed=3, layer=1, freeze=FINE)
    sources["far"] = far.shard((2**31 - 3, 2**31 - 1), (1, 9))
    sources["far-bytes"] = sources["far"]._replace(weight=1, prune_below=16)
    for rows, fan in ((64, 31), (65, 31), (33, 129)):  # a block has 64 calls
        sources[f"{rows} rows of {fan}"] = _source(rows, fan, "uniform", COARSE)
    sources["all pruned"] = _source(3, 70, freeze=Freeze(1, 0))
    sources["all locked"] = _source(3, 70, freeze=Freeze(0, 1))
    return sources


SOURCES = _sources()
each_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


@each_source
def test_expand_and_materialize(simulator, source):
    simulator.options.update(schedule=source.fan, quantum=30, resident=2)
    for compact in (True, False):
        mask = random_mask(source, compact)
        for operation in ("expand", "materialize") if compact else ("materialize",):
            found = getattr(cuda, operation)(mask, source)
            assert simulator.never_written(found) == 0
            assert torch.equal(found, getattr(reference, operation)(mask, source))


@pytest.mark.parametrize("freeze", FREEZES[1:], ids=("coarse", "fine"))
@pytest.mark.parametrize("rows,fan", [(7, 129), (3, 66000), (257, 33)])
def test_free_starts(simulator, rows, fan, freeze):
    """The start of each call; with more than one segment of 512 calls per row as well."""
    from slt_kernels.backends.cuda import free_starts

    source = _source(rows, fan, freeze=freeze)
    if fan == 129:
        source = source.shard((1, 7), (1, 5))
    starts = free_starts.counted_starts(source, torch.device("cpu"))
    assert simulator.never_written(starts.calls) == 0
    free, locked = source.frozen_words()
    skipped, calls = source.first_word % 4, starts.calls.shape[1]
    counts = torch.zeros(rows if fan != 129 else 6, 4 * calls, dtype=torch.int64)
    counts[:, skipped : skipped + source.words] = bits.unpack(free).sum(-1)
    counts = counts.view(-1, calls, 4).sum(-1)
    expected = (counts.flatten().cumsum(0) - counts.flatten()).view_as(counts)
    assert torch.equal(starts.segments.repeat_interleave(512, dim=1)[:, :calls] + starts.calls.long() % 2**16, expected)
    assert starts.locked == int(bits.popcount(locked))


def test_a_dense_source_has_no_table(simulator):
    from slt_kernels.backends.cuda import free_starts

    source = _source(5, 40, freeze=DENSE)
    assert free_starts.free_starts(source, torch.device("cpu")) == (0, 0, 0)
    assert simulator.launches == []


EDGES = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, 0.5, -0.5, 3e38, math.inf, -math.inf, math.nan, -math.nan])


@each_source
def test_pack(simulator, source):
    scores = torch.randn(source.free)
    scores[: len(EDGES)] = EDGES[: source.free]
    for threshold, compact in ((0.5, True), (0.5, False), (math.inf, True), (-math.inf, False)):
        _check_pack(simulator, scores, torch.tensor(threshold), source, compact)


@pytest.mark.parametrize("threshold", EDGES.tolist())
def test_thresholds(simulator, threshold):
    source = _source(3, 33)
    scores = EDGES.repeat(10)[: source.free]
    for compact in (True, False):
        _check_pack(simulator, scores, torch.tensor(threshold), source, compact)


@pytest.mark.parametrize("count", [8191, 8192, 8193, 20000])
def test_pack_in_blocks(simulator, count):
    simulator.options.update(schedule=5, quantum=20, resident=2)
    for source in (_source(1, count, freeze=DENSE), _source(7, count // 7, freeze=COARSE)):
        for compact in (True, False):
            _check_pack(simulator, torch.randn(source.free), torch.tensor(0.6), source, compact)


def _check_pack(simulator, scores, threshold, source, compact):
    found, expected = (b.pack(scores, threshold, source, compact) for b in (cuda, reference))
    for ours, theirs in zip(found, expected, strict=True):
        assert simulator.never_written(ours) == 0
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_pack_of_strided_scores_and_of_float64(simulator):
    source = _source(3, 33)
    scores = torch.randn(source.free, 2)[:, 1]
    _check_pack(simulator, scores, torch.tensor(0.5), source, False)
    launched = len(simulator.launches)
    cuda.pack(scores.double(), torch.tensor(0.5, dtype=torch.float64), source, False)
    assert len(simulator.launches) == launched


# 200 tensors are two launches per pass; 70000 scores more pieces than blocks.
@pytest.mark.parametrize(
    "sizes",
    [(1,), (9,), (0, 5000, 0, 3), (8191, 8193), (70000, 70000, 1), (3,) * 200],
    ids=lambda sizes: str(sizes)[:20],
)
def test_select(simulator, sizes):
    total = sum(sizes)
    normal = [torch.randn(n) for n in sizes]
    few = [torch.randint(-3, 3, (n,)).float() for n in sizes]
    edges = [EDGES.repeat(n // len(EDGES) + 1)[:n] for n in sizes]
    ranks = {1, total // 2, total - 1} if total < 500 and len(sizes) < 9 else {total // 3}
    for schedule, scores in enumerate((normal, few, edges)):
        simulator.options.update(schedule=schedule, quantum=50, resident=3)
        for rank in ranks | {0, total, total + 1}:
            found = cuda.select(scores, rank)
            assert simulator.never_written(found) == 0
            assert torch.equal(found.view(torch.int32), reference.select(scores, rank).view(torch.int32))


def test_select_launches_once_a_pass(simulator):
    cuda.select([torch.randn(n) for n in (5, 3000, 17)], 100)
    cuda.select([torch.randn(9, dtype=torch.float64)], 5)  # on the reference
    assert [launch["kernel"] for launch in simulator.launches] == ["slt_clear", *(f"slt_select_{n}" for n in range(3))]


EMBEDDING = {  # rows, fan, look-ups
    "one": (1, 1, 1),
    "31": (3, 31, 7),
    "33": (4, 33, 9),
    "128": (9, 128, 64),
    "129": (5, 129, 130),
    "513": (3, 513, 65),
    "1040": (2, 1040, 3),
    "none": (2, 40, 0),
}


def _embeddings() -> list:
    chosen = [(s, DENSE, "uniform", torch.float32) for s in ("1040", "none")]
    for i, size in enumerate(("one", "31", "33", "128", "129", "513")):
        for f, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
            chosen.append((size, FREEZES[(i + f) % 3], WEIGHTS[(i // 2 + f) % 3], dtype))
    return [pytest.param(*c, id=f"{c[0]}-{c[2]}-{str(c[3])[6:]}") for c in chosen]


@pytest.mark.parametrize("size,freeze,weight,dtype", _embeddings())
def test_embedding(simulator, size, freeze, weight, dtype):
    rows, fan, count = EMBEDDING[size]
    source = _source(rows, fan, weight, freeze)
    _check_embedding(simulator, source, torch.randint(2 * rows, (count,)) // 2, dtype)


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith(("shard", "far", "all"))])
def test_embedding_of_a_shard(simulator, name):
    source = SOURCES[name]
    _check_embedding(simulator, source, torch.randint(source.rows, (5,)), torch.float32)


def _check_embedding(simulator, source, index, dtype):
    scale = torch.tensor(-0.37)
    for compact in (True, False):
        arguments = (index, random_mask(source, compact), scale, source, dtype)
        found, expected = cuda.embedding_forward(*arguments), reference.embedding_forward(*arguments)
        assert simulator.never_written(found) == 0
        assert torch.equal(found, expected) and torch.equal(found.signbit(), expected.signbit())
    scores = torch.randn(source.free)
    scores[: len(EDGES)] = EDGES[: source.free]
    arguments = (torch.randn(len(index), source.fan).to(dtype), index, scores, scale, source)
    found, expected = cuda.embedding_grad_scores(*arguments), reference.embedding_grad_scores(*arguments)
    assert simulator.never_written(found) == 0
    torch.testing.assert_close(found, expected, rtol=2e-7, atol=1e-30)


@pytest.mark.parametrize("runs", [(64, 64), (1, 63, 200, 1), (300,), (65, 127, 3), (10, 54, 64, 5)], ids=str)
def test_long_runs(simulator, runs):
    """Rows that begin, end, and go on at the ends of chunks of 64 look-ups."""
    simulator.options.update(schedule=3, quantum=30, resident=2)
    source = _source(len(runs) + 2, 70, "normal")
    index = torch.arange(1, len(runs) + 1).repeat_interleave(torch.tensor(runs))
    index = index[torch.randperm(len(index))]
    dy, scores, scale = torch.randn(len(index), 70), torch.randn(source.free), torch.tensor(0.37)
    found = cuda.embedding_grad_scores(dy, index, scores, scale, source)
    assert simulator.never_written(found) == 0
    expected = reference.embedding_grad_scores(dy, index, scores, scale, source)
    torch.testing.assert_close(found, expected, rtol=2e-7, atol=1e-30)


def test_an_index_outside_the_rows(simulator):
    """It gives NaN, and has no gradient."""
    source = _source(3, 33, "uniform")
    scale, scores, dy = torch.tensor(0.37), torch.randn(source.free), torch.randn(207, 33)
    for compact in (False, True):
        index = torch.tensor([-1, 2, 3, 2**40])
        y = cuda.embedding_forward(index, random_mask(source, compact), scale, source, torch.float32)
        assert y.isnan().all(1).tolist() == [True, False, True, True]
    expected = cuda.embedding_grad_scores(dy[:2], torch.tensor([2, 2]), scores, scale, source)
    index = torch.tensor([2, 2, -1, -5, 3, 2**32 + 1, 2**40] + 100 * [-7] + 100 * [3])
    for count in (3, 7, 207):
        assert torch.equal(cuda.embedding_grad_scores(dy[:count], index[:count], scores, scale, source), expected)


def test_denormal_gradients(simulator):
    source = _source(2, 33, "uniform")
    dy, index, scores = torch.randn(6, 33) * 2.0**-130, torch.tensor([0, 1, 1, 0, 1, 1]), torch.randn(source.free)
    arguments = dy, index, scores, torch.tensor(2.0**-10), source
    found, expected = cuda.embedding_grad_scores(*arguments), reference.embedding_grad_scores(*arguments)
    torch.testing.assert_close(found, expected, rtol=2e-7, atol=2e-45)


# Faults


def _faulty_materialize(simulator):
    source = _source(3, 513, "normal")
    mask = random_mask(source, True)
    assert torch.equal(cuda.materialize(mask, source), reference.materialize(mask, source))


def _faulty_pack(simulator):
    source = _source(70, 300)
    for compact in (True, False):
        _check_pack(simulator, torch.randn(source.free), torch.tensor(0.6), source, compact)


def _faulty_select(simulator):
    scores = [torch.randn(9000), torch.randn(8000)]
    assert torch.equal(cuda.select(scores, 7000), reference.select(scores, 7000))


def _faulty_embedding(simulator):
    _check_embedding(simulator, _source(3, 1100, "normal"), torch.tensor([0, 2, 1, 2]), torch.float32)
    _check_embedding(simulator, _source(9, 130, "normal"), torch.tensor(80 * [2] + 20 * [1, 3]), torch.bfloat16)


@pytest.mark.all_simulations
@pytest.mark.parametrize(
    "file,kernel,check",
    [
        ("materialize", "slt_materialize", _faulty_materialize),
        ("pack", "slt_pack_compact", _faulty_pack),
        ("pack", "slt_pack_resolved_8", _faulty_pack),
        *(("select", f"slt_select_{number}", _faulty_select) for number in range(3)),
        *(("embedding", f"slt_embedding_{name}", _faulty_embedding) for name in ("forward", "sum", "add_parts")),
    ],
)
def test_missing_barriers_are_found(file, kernel, check):
    from cuda_faults import survivors

    with simulated(90) as simulator:
        left = survivors(simulator, file, kernel, lambda: check(simulator))
    # The simulator takes every atomic operation to acquire, so that the fence after that of a counter does nothing.
    assert len(left) == (file == "select") and all("membar.gl" in fault for fault in left), left


# On the host

PROGRAM = """
#include <initializer_list>

#include "cuda/words.h"
using namespace slt;
using namespace slt::cuda;

static uint64_t next(uint64_t &state) {  // splitmix64
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9, z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

extern "C" {
int64_t wrong_calls(int64_t count) {  // of random layers, a thousand calls each; half of them past 2^32
    uint64_t state = 1;
    int64_t wrong = 0;
    for (int64_t i = 0; i < count / 1000; ++i) {
        const int64_t seed = int64_t(next(state)), layer = int64_t(next(state) >> 32);
        const Stream stream = Stream(i % 4);
        const Calls calls = calls_of(seed, layer, stream);
        for (int j = 0; j < 1000; ++j) {
            const uint64_t index = next(state) >> (j % 2 * 32);
            const Words4 found = call_words(calls, index), expected = philox_call(seed, layer, stream, index);
            for (int w = 0; w < 4; ++w) wrong += found.word[w] != expected.word[w];
        }
    }
    return wrong;
}
int64_t wrong_deposits(int64_t count) {
    uint64_t state = 2;
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t r = next(state), s = next(state);
        const uint32_t bits = uint32_t(r), few = uint32_t(r >> 32), more = uint32_t(s);
        const uint32_t others[] = {few & more, few | more, few & more & uint32_t(s >> 32), few,
                                   uint32_t(0xFFFFFFFFFFFF >> few % 48)};
        const uint32_t at = others[i % 5];
        uint32_t expected = 0;
        for (uint32_t left = at, b = bits; left; left &= left - 1, b >>= 1)
            if (b & 1) expected |= left & -left;
        wrong += deposit(bits, at) != expected;
    }
    return wrong;
}
int64_t wrong_patterns() {  // all pairs of thresholds, a few words each
    uint64_t state = 3;
    int64_t wrong = 0;
    for (int64_t prune = 0; prune <= 256; ++prune)
        for (int64_t lock = prune; lock <= 256; lock += 1 + lock % 3) {
            const Source s = {int64_t(1) << 30, 300, int64_t(next(state)), 7, 0, prune, lock, 1000, 6, 9};
            const Generator g = generator_of(s);
            const int64_t row = int64_t(next(state) >> 35), w = int64_t(next(state) % 10);
            const FrozenWord expected = frozen_word(s, row, w);
            const uint64_t index = 4 * call_index(g, uint32_t(row), uint32_t(w + g.skipped) / 4) + (w + g.skipped) % 4;
            const uint32_t valid = valid_word(g, int32_t(w));
            const auto check = [&](const FrozenWord &found) {
                wrong += found.free != expected.free || found.locked != expected.locked;
            };
            check(frozen_word<8>(g, index, valid));
            check(frozen_word<ANY>(g, index, valid));
            if (prune % 16 == 0 && lock % 16 == 0) check(frozen_word<4>(g, index, valid));
            if (prune == 0 && lock == 256) check(frozen_word<0>(g, index, valid));
        }
    return wrong;
}
int64_t wrong_quotients(int64_t count) {
    uint64_t state = 4;
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint64_t r = next(state);
        const uint32_t number = uint32_t(r >> (33 + i % 31)) | 1, value = uint32_t(r) >> 1;
        for (uint32_t v : {value, 0x7FFFFFFFu, value / number * number, value / number * number - 1})
            if (v <= 0x7FFFFFFF) wrong += v / divisor(number) != v / number;
        for (uint32_t even : {number + 1, number * 2})
            if (even <= 0x7FFFFFFF) wrong += value / divisor(even) != value / even;
    }
    return wrong;
}
}
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    library = tmp_path_factory.mktemp("words") / "words.so"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = ["-std=c++20", "-O2", "-Wall", "-Wno-unused-function", "-Wno-parentheses", "-Werror", "-shared", "-fPIC"]
    command = [*compiler, *flags, f"-I{CSRC}", "-xc++", "-", "-o", library]
    run = subprocess.run(command, input=PROGRAM, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize(
    "function,count", [("calls", 10**7), ("deposits", 10**6), ("patterns", None), ("quotients", 10**6)]
)
def test_words_on_the_host(host, function, count):
    """Hoisted calls, deposits, bit planes and divisions are those of the contract, or of plain C++."""
    arguments = [] if count is None else [ctypes.c_int64(count)]
    assert getattr(host, f"wrong_{function}")(*arguments) == 0
