"""The CPU backend's select, pack, expand and free offsets: the reference's very bits on every instruction set."""

import math

import pytest
import torch
from computed_once import ComputedOnce

from slt_kernels import backends, bits
from slt_kernels.backends.cpu.arguments import count_frozen, free_offsets
from slt_kernels.source import Freeze, Source

cpu, reference = backends.on("cpu"), ComputedOnce(backends.on("reference"))

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

SIZES = (1, 3, 17, 31, 32, 33, 63, 65, 127, 129, 131)
SHAPES = [(rows, fan) for i, rows in enumerate(SIZES) for fan in (SIZES[i], SIZES[-1 - i], SIZES[(3 * i + 5) % 11])]
SHAPES += [(2, 2081), (40, 1031)]  # more words than a tile of the frozen pattern has
FREEZES = {
    "dense": Freeze(),
    "pruned-source": Freeze(prune=0.6),
    "frozen": Freeze(0.35, 0.35),
    "sixteenths": Freeze(0.375, 0.25),  # decided by one call of Philox
    "all-pruned": Freeze(prune=1),
    "all-locked": Freeze(lock=1),
}
INF, NAN = math.inf, math.nan


@pytest.fixture(autouse=True)
def one_thread():
    """Most inputs are small; `threads` asks for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=(1, 2), ids=("1-thread", "2-threads"))
def threads(request, one_thread):
    torch.set_num_threads(request.param)
    return request.param


@pytest.fixture(params=FREEZES.values(), ids=FREEZES)
def freeze(request):
    return request.param


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.int32), b.view(torch.int32))


def frozen_source(rows: int, fan: int, freeze: Freeze) -> Source:
    return Source.of(rows, fan, seed=2**63 + rows, layer=fan, freeze=freeze)


def garbled_scores(count: int) -> torch.Tensor:
    """Ties, zeros of both signs, NaN of both signs, infinities and subnormals among ordinary scores.

    Of NaN also the first one after infinity, where the magnitudes end that are kept.
    """
    scores = torch.randn(count)
    odd = torch.tensor([0.5, -0.5, 0.0, -0.0, NAN, -NAN, INF, -INF, 1e-40, -1e-40, 0.5])
    odd = torch.cat([odd, torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)])
    at = torch.rand(count) < 0.3
    scores[at] = odd[torch.randint(len(odd), (int(at.sum()),))]
    return scores


# free_offsets, pack, expand


@pytest.mark.parametrize("rows,fan", SHAPES)
def test_masks(isa, freeze, rows, fan):
    source = frozen_source(rows, fan, freeze)
    count_frozen.cache_clear()
    free = bits.unpack(source.frozen_words()[0]).flatten(1).sum(1)
    assert free_offsets(source).tolist() == [0, *free.cumsum(0).tolist()]
    scores = garbled_scores(int(free.sum()))
    for threshold in (-INF, 0.0, 0.5, 1e-40, INF, NAN):
        for compact in (False, True):
            args = scores, torch.tensor(threshold), source, compact
            mask, kept = cpu.pack(*args)
            expected, expected_kept = reference.pack(*args)
            assert torch.equal(mask, expected)
            assert torch.equal(kept, expected_kept)
    garbage = torch.randint(-(2**31), 2**31, mask.shape).int()
    assert torch.equal(cpu.expand(garbage, source), reference.expand(garbage, source))


def test_masks_of_shards(isa, freeze):
    whole = frozen_source(40, 1031, freeze)
    for rows, words in (((3, 40), (1, 33)), ((0, 17), (6, 9)), ((39, 40), (32, 33))):
        source = whole.shard(rows, words)
        scores = garbled_scores(int(free_offsets(source)[-1]))
        for compact in (False, True):
            args = scores, torch.tensor(0.5), source, compact
            assert all(map(torch.equal, cpu.pack(*args), reference.pack(*args)))
        mask = cpu.pack(*args)[0]
        assert torch.equal(cpu.expand(mask, source), reference.expand(mask, source))


def test_masks_of_large_layer(isa, threads, freeze):
    source = frozen_source(321, 1500, freeze)
    scores = torch.randn(2 * int(free_offsets(source)[-1]))[::2]
    for compact in (False, True):
        args = scores, torch.tensor(0.7), source, compact
        assert all(map(torch.equal, cpu.pack(*args), reference.pack(*args)))
    mask = cpu.pack(*args)[0]
    assert torch.equal(cpu.expand(mask, source), reference.expand(mask, source))


def test_counts_that_do_not_fit(freeze):
    source = frozen_source(17, 33, freeze)
    free = int(free_offsets(source)[-1])
    with pytest.raises(ValueError, match=f"scores has {free + 1} elements: expected {free}"):
        cpu.pack(torch.randn(free + 1), torch.tensor(0.0), source, False)
    words = bits.words_for(free)
    with pytest.raises(ValueError, match=f"mask has {words + 1} elements: expected {words}"):
        cpu.expand(torch.zeros(words + 1, dtype=torch.int32), source)


def test_float64_scores():
    source = frozen_source(17, 65, Freeze(0.35, 0.35))
    scores = torch.randn(int(free_offsets(source)[-1]), dtype=torch.float64)
    threshold = cpu.select([scores], 100)
    assert threshold == scores.abs().sort().values[99]
    args = scores, threshold, source, False
    assert all(map(torch.equal, cpu.pack(*args), reference.pack(*args)))


# select


def check_select(scores: list[torch.Tensor], ranks) -> None:
    for rank in ranks:
        assert same_bits(cpu.select(scores, rank), reference.select(scores, rank)), rank


@pytest.mark.parametrize("count", (1, 2, 3, 5, 31, 100))
def test_select_all_ranks(isa, count):
    check_select([garbled_scores(count)], range(-1, count + 2))


def test_select_many_tensors(isa, threads):
    scores = [garbled_scores(n) for n in (0, 1, 17, 1000, 0, 4097)]
    scores += [garbled_scores(60).view(3, 4, 5).transpose(0, 2), torch.randn(1).expand(700), torch.randn(2000)[::3]]
    total = sum(s.numel() for s in scores)
    check_select(scores, (0, 1, 2, total // 3, total // 2, total - 2, total - 1, total, total + 1))


def test_select_more_than_a_piece(isa, threads):
    scores = [torch.randn(2**18 + 1), torch.rand(2**19 + 77) - 0.5, torch.randn(3)]
    expected = torch.cat(scores).abs().sort().values
    for rank in (1, 2, 12345, 400_000, len(expected) - 1):
        assert cpu.select(scores, rank) == expected[rank - 1]


@pytest.mark.parametrize("kind", ("half-normal", "ascending", "two-values", "equal", "nan", "hidden", "hidden-high"))
def test_select_from_a_sample(isa, threads, kind):
    """So many that a sample guesses where it lies; "hidden" gives the sample what nothing else is."""
    count = 2**18 + 12345
    sampled = torch.tensor([(i * 0x9E3779B97F4A7C15 % 2**64) * count >> 64 for i in range(2**14)])
    scores = torch.randn(count)
    if kind == "ascending":
        scores = scores.abs().sort().values
    elif kind == "two-values":
        scores = torch.where(scores > 1, 0.5, 0.25)
    elif kind == "equal":
        scores = torch.full_like(scores, -3.0)
    elif kind == "nan":
        scores[scores > 0.5] = NAN
    elif kind.startswith("hidden"):
        scores[sampled] = 1e-30 if kind == "hidden" else 1e30
    expected = scores.abs().view(torch.int32).sort().values.view(torch.float32)
    tensors = list(scores.split([1, 100_000, 0, count - 100_001]))
    for rank in (1, 2, 300, 399, 400, count // 7, count // 2, count - 400, count - 2, count - 1):
        assert same_bits(cpu.select(tensors, rank), expected[rank - 1]), rank


@pytest.mark.parametrize("value", (0.0, -0.0, 1.0, INF, NAN, 1e-45, 3.4e38))
def test_select_all_equal(isa, value):
    check_select([torch.full((5000,), value)], (1, 2500, 4999))


def test_select_leaves_scores_alone(isa):
    scores = [garbled_scores(1000).requires_grad_()]
    before = scores[0].detach().clone()
    assert not cpu.select(scores, 500).requires_grad
    assert same_bits(scores[0].detach(), before)
