"""The weight contract: known answers, single weights against an oracle, shards, and words of masks."""

import hashlib

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from oracle import known

from slt_kernels import Freeze, Source, bits, philox
from slt_kernels.source import NORMAL_TABLE, WEIGHTS

SEEDS = (0, 42, 2**63 - 1, 2**63, 2**64 - 1)
FANS = (1, 31, 32, 33, 63, 65, 127, 128, 129, 131, 257)


def hexadecimal(words: torch.Tensor) -> list[str]:
    return [f"{word & 0xFFFFFFFF:08x}" for word in words.tolist()]


def digest(t: torch.Tensor) -> str:
    return hashlib.sha256(t.to(torch.int8).contiguous().numpy().tobytes()).hexdigest()


def source_of(case: dict, weight: str = "signed_constant") -> Source:
    freeze = Freeze(case["prune"], case["lock"])
    return Source.of(
        case["rows"], case["fan"], seed=int(case["seed"]), layer=case["layer"], weight=weight, freeze=freeze
    )


# Known answers

LAYERS = [pytest.param(case, id=f"seed{case['seed']}-{case['rows']}x{case['fan']}") for case in known("layers")]


@pytest.mark.parametrize("case", known("philox4x32_10"), ids=("zeros", "ones", "pi"))
def test_philox_known_answers(case):
    as_int = [int(c, 16) if isinstance(c, str) else c for c in (*case["counter"], *case["key"])]
    counter = tuple(torch.tensor(c) for c in as_int[:4])
    assert hexadecimal(philox.philox4x32(counter, tuple(as_int[4:]))) == case["out"]
    assert [f"{w:08x}" for w in oracle.philox(as_int[:4], as_int[4:])] == case["out"]


@pytest.mark.parametrize("case", LAYERS)
def test_layer_known_answers(case):
    source = source_of(case)
    state = source.frozen_state()
    shown = len(case["state_row0_first32"])
    assert hexadecimal(source.signs()[0, : len(case["sign_words_row0"])]) == case["sign_words_row0"]
    assert state[0, :shown].tolist() == case["state_row0_first32"]
    assert digest(state) == case["state_sha256_int8"]
    assert source.count_frozen() == (case["pruned"], case["free"], case["locked"])


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("case", LAYERS)
def test_weight_known_answers(case, weight):
    v = source_of(case, weight).integer_weight()
    assert v.dtype == torch.int8
    assert v[0, :16].tolist() == case[weight]["row0_first16"]
    assert digest(v) == case[weight]["sha256_int8"]


@pytest.mark.parametrize("case", LAYERS)
def test_free_enumeration_known_answers(case):
    """Bit i of a compact mask is the i-th free weight, in the order row, word, bit."""
    source = source_of(case)
    free, _ = source.frozen_words()
    count = source.count_frozen()[1]
    for i, (row, k) in enumerate(case["first_free"]):
        one = torch.zeros(count, dtype=torch.bool)
        one[i] = True
        where = bits.to_k_order(bits.unpack(bits.scatter(bits.pack_sequence(one), free)), source.fan)
        assert where.nonzero().tolist() == [[row, k]]


def test_normal_table():
    answer = known("normal_table")
    assert list(NORMAL_TABLE[128:]) == answer["positive_half"]
    assert all(NORMAL_TABLE[255 - u] == -NORMAL_TABLE[u] for u in range(256))
    assert Source.of(1, 1, weight="normal").weight_std == pytest.approx(answer["rms"], rel=1e-15)


def test_weight_std():
    values = torch.arange(-127, 128, 2).double()
    assert Source.of(1, 1, weight="uniform").weight_std == pytest.approx(values.pow(2).mean().sqrt().item(), rel=1e-14)
    assert Source.of(1, 1, weight="signed_constant").weight_std == 1


# Each weight alone


@given(
    seed=st.sampled_from(SEEDS) | st.integers(0, 2**64 - 1),
    layer=st.sampled_from((0, 1, 2**31, 2**32 - 1)) | st.integers(0, 2**32 - 1),
    stream=st.integers(0, 3),
    index=st.sampled_from((0, 2**32 - 1, 2**32, 2**45)) | st.integers(0, 2**62),
)
def test_call(seed, layer, stream, index):
    words = philox.call(seed, layer, stream, torch.tensor([index]))
    assert hexadecimal(words[0]) == [f"{w:08x}" for w in oracle.call(seed, layer, stream, index)]


def test_call_takes_a_seed_of_either_sign():
    index = torch.arange(5)
    assert torch.equal(philox.call(2**63 + 5, 1, 0, index), philox.call(5 - 2**63, 1, 0, index))


def test_call_has_the_shape_of_its_index():
    index = torch.arange(3 * 41_000).view(3, 41_000)  # more than one chunk
    words = philox.call(7, 1, 2, index)
    assert words.shape == (3, 41_000, 4)
    assert words.dtype == torch.int32
    for n, i in ((0, 0), (0, 32767), (0, 32768), (2, 40_999)):
        assert hexadecimal(words[n, i]) == [f"{w:08x}" for w in oracle.call(7, 1, 2, 41_000 * n + i)]


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("fan", FANS)
def test_integer_weight_each_alone(fan, weight, normal_table):
    for seed in (3, 2**63 + fan):
        spec = oracle.Layer(3, fan, seed, layer=2**32 - 1, weight=weight)
        source = Source.of(3, fan, seed=seed, layer=2**32 - 1, weight=weight)
        assert np.array_equal(source.integer_weight().numpy(), spec.integer_weight(normal_table))


@pytest.mark.parametrize("prune,lock", ((0.35, 0.35), (0.6, 0.1), (0, 0.5), (0.7, 0), (1, 0), (0, 1), (0.5, 0.5)))
@pytest.mark.parametrize("fan", (1, 33, 129, 160))
def test_freezing_each_alone(fan, prune, lock):
    spec = oracle.Layer(4, fan, seed=2**64 - 1, layer=7, prune=prune, lock=lock)
    source = Source.of(4, fan, seed=2**64 - 1, layer=7, freeze=Freeze(prune, lock))
    state = spec.frozen_state()
    assert np.array_equal(source.frozen_state().numpy(), state)
    assert source.count_frozen() == tuple(int((state == s).sum()) for s in (-1, 0, 1))
    free, locked = source.frozen_words()
    assert torch.equal(free, oracle.words_of(state == 0))  # padding included: it is 0
    assert torch.equal(locked, oracle.words_of(state == 1))


@pytest.mark.parametrize("fan", (1, 31, 64, 130))
def test_compact_order_each_alone(fan):
    spec = oracle.Layer(5, fan, seed=11, layer=3, prune=0.3, lock=0.2)
    source = Source.of(5, fan, seed=11, layer=3, freeze=Freeze(0.3, 0.2))
    positions = spec.free_positions()
    flags = torch.rand(len(positions)) < 0.5
    full = np.zeros((5, fan), dtype=bool)
    for (n, k), flag in zip(positions, flags.tolist(), strict=True):
        full[n, k] = flag
    free, _ = source.frozen_words()
    compact = bits.pack_sequence(flags)
    assert torch.equal(compact, oracle.sequence_words(flags.numpy()))
    assert torch.equal(bits.scatter(compact, free), oracle.words_of(full))
    assert torch.equal(bits.gather(oracle.words_of(full), free), compact)


@given(threshold=st.integers(0, 256), other=st.integers(0, 256))
def test_every_freezing_threshold(threshold, other):
    prune, lock = sorted((threshold, other))[0], 256 - max(threshold, other)
    state = Source.of(2, 70, seed=5, freeze=Freeze(prune / 256, lock / 256)).frozen_state()
    assert np.array_equal(state.numpy(), oracle.Layer(2, 70, 5, prune=prune / 256, lock=lock / 256).frozen_state())


# Thresholds of Freeze


@pytest.mark.parametrize(
    "prune,lock,prune_below,lock_from",
    (
        (0, 0, 0, 256),
        (1, 0, 256, 256),
        (0, 1, 0, 0),
        (0.35, 0.35, 90, 166),
        (0.7, 0, 179, 256),
        (0.001, 0.001, 0, 256),
        (0.5 / 256, 0, 1, 256),  # a half rounds up
        (0, 0.5 / 256, 0, 255),
        (0.501953125, 0.498046875, 129, 129),  # both round up: nothing is free, and no byte is both
    ),
)
@pytest.mark.filterwarnings("ignore:.* fractions come in steps of 1/256")
def test_thresholds(prune, lock, prune_below, lock_from):
    freeze = Freeze(prune, lock)
    assert (freeze.prune_below, freeze.lock_from) == (prune_below, lock_from)


def test_prune_and_lock_that_both_round_up():
    source = Source.of(64, 64, freeze=Freeze(0.501953125, 0.498046875))
    pruned, free, locked = source.count_frozen()
    assert free == 0
    assert pruned + locked == source.total
    assert set(source.frozen_state().unique().tolist()) == {-1, 1}


def test_frozen_fractions_are_realized():
    pruned, free, locked = Source.of(500, 500, freeze=Freeze(0.35, 0.25)).count_frozen()
    assert pruned / 250_000 == pytest.approx(90 / 256, abs=0.004)  # four standard deviations
    assert locked / 250_000 == pytest.approx(64 / 256, abs=0.004)
    assert pruned + free + locked == 250_000


def test_count_frozen_of_many_rows():
    """The count of a large layer is the sum over pieces of it."""
    source = Source.of(3, 2**22 + 5, freeze=Freeze(0.3, 0.3))
    state = source.frozen_state()
    assert source.count_frozen() == tuple(int((state == s).sum()) for s in (-1, 0, 1))


# Shards


@st.composite
def shards(draw):
    rows, fan = draw(st.integers(1, 9)), draw(st.sampled_from((*FANS, 300)))
    words = (fan + 31) // 32
    n0 = draw(st.integers(0, rows - 1))
    w0 = draw(st.integers(0, words - 1))
    return rows, fan, (n0, draw(st.integers(n0 + 1, rows))), (w0, draw(st.integers(w0 + 1, words)))


@given(shape=shards(), weight=st.sampled_from(WEIGHTS), prune=st.sampled_from((0, 0.4)))
def test_shard_is_slice(shape, weight, prune):
    rows, fan, (n0, n1), (w0, w1) = shape
    source = Source.of(rows, fan, seed=2**63 + 9, layer=4, weight=weight, freeze=Freeze(prune, prune / 2))
    shard = source.shard((n0, n1), (w0, w1))
    k0, k1 = 32 * w0, min(32 * w1, fan)
    assert (shard.rows, shard.fan, shard.words) == (n1 - n0, k1 - k0, w1 - w0)
    assert torch.equal(shard.integer_weight(), source.integer_weight()[n0:n1, k0:k1])
    assert torch.equal(shard.frozen_state(), source.frozen_state()[n0:n1, k0:k1])
    assert torch.equal(shard.signs(), source.signs()[n0:n1, w0:w1])
    for part, whole in zip(shard.frozen_words(), source.frozen_words(), strict=True):
        assert torch.equal(part, whole[n0:n1, w0:w1])


def test_shard_of_a_shard():
    source = Source.of(9, 300, weight="uniform", freeze=Freeze(0.2, 0.2))
    assert source.shard((2, 8), (1, 9)).shard((1, 3), (4, 6)) == source.shard((3, 5), (5, 7))
    assert source.shard() == source


@pytest.mark.parametrize("weight", WEIGHTS)
def test_counters_past_32_bits(weight, normal_table):
    """Row 2**31 of a layer with 512 inputs has calls with an index above 2**32."""
    first, fan, groups = 2**31, 512, 4
    far = Source.of(1, fan, seed=6, weight=weight)._replace(first_row=first, prune_below=90, lock_from=166)
    assert first * groups > 2**32
    v, state = far.integer_weight()[0], far.frozen_state()[0]
    for k in (0, 1, 31, 32, 100, 129, 511):
        w = k // 32
        q = first * groups * 4 + w
        if weight == "signed_constant":
            expected = 1 - 2 * (oracle.call(6, 0, 0, first * groups + w // 4)[w % 4] >> oracle.bit_of(k) & 1)
        else:
            eight = oracle.call(6, 0, 2, 2 * q) + oracle.call(6, 0, 2, 2 * q + 1)
            u = eight[k % 32 // 4] >> 8 * (k % 4) & 0xFF
            expected = 2 * (u >> 1) - 127 if weight == "uniform" else normal_table[u]
        planes = oracle.call(6, 0, 1, 2 * q) + oracle.call(6, 0, 1, 2 * q + 1)
        u = sum((plane >> oracle.bit_of(k) & 1) << (7 - i) for i, plane in enumerate(planes))
        assert v[k] == expected
        assert state[k] == (-1 if u < 90 else 1 if u >= 166 else 0)


def test_a_large_layer():
    source = Source.of(4096, 4096, seed=1)
    signs = source.signs()
    assert signs.shape == (4096, 128)
    assert torch.equal(signs[4000:], source.shard(rows=(4000, 4096)).signs())
    assert bits.popcount(signs) / source.total == pytest.approx(0.5, abs=0.001)


# Initial scores


@pytest.mark.parametrize("count", (0, 1, 3, 4, 5, 127, 1000))
def test_initial_scores(count):
    scores = Source.of(40, 40, seed=2**63 + 1, layer=5).initial_scores(count, 0.3)
    expected = oracle.Layer(40, 40, 2**63 + 1, 5).scores(count, 0.3)
    assert scores.dtype == torch.float32
    assert np.array_equal(scores.numpy(), expected)
    assert (scores.abs() < 0.3).all()
    assert (scores != 0).all()


def test_initial_scores_on_the_meta_device():
    scores = Source.of(40, 40).initial_scores(37, 0.3, "meta")
    assert (scores.device.type, scores.dtype, scores.shape) == ("meta", torch.float32, (37,))


def test_initial_scores_are_spread_evenly():
    scores = Source.of(1, 1).initial_scores(100_000, 1.0)
    assert scores.mean().item() == pytest.approx(0, abs=0.01)
    assert scores.std().item() == pytest.approx(3**-0.5, rel=0.01)


# Words


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9))
def test_unpack_pack(words):
    t = torch.tensor(words, dtype=torch.int32)
    unpacked = bits.unpack(t)
    assert unpacked.shape == (len(words), 32)
    assert unpacked.tolist() == [[bool(w >> b & 1) for b in range(32)] for w in words]
    assert torch.equal(bits.pack(unpacked), t)
    assert bits.popcount(t) == sum((w & 0xFFFFFFFF).bit_count() for w in words)


@given(rows=st.integers(1, 4), fan=st.integers(1, 140))
def test_bit_order(rows, fan):
    values = torch.arange(1, rows * fan + 1).view(rows, fan)
    in_words = bits.to_bit_order(values)
    assert torch.equal(bits.to_k_order(in_words, fan), values)
    for n in range(rows):
        for k in range(fan):
            assert in_words[n, k // 32, oracle.bit_of(k)] == values[n, k]
    assert in_words.sum() == values.sum()  # padding is 0


@given(flags=st.lists(st.booleans(), max_size=100))
def test_pack_sequence(flags):
    t = torch.tensor(flags, dtype=torch.bool)
    words = bits.pack_sequence(t)
    assert words.shape == (bits.words_for(len(flags)),)
    assert torch.equal(words, oracle.sequence_words(np.array(flags, dtype=bool)))


@given(fan=st.integers(1, 100), seed=st.integers(0, 2**64 - 1))
def test_scatter_gather(fan, seed):
    source = Source.of(3, fan, seed=seed, freeze=Freeze(0.3, 0.3))
    free, _ = source.frozen_words()
    count = source.count_frozen()[1]
    compact = bits.pack_sequence(torch.rand(count) < 0.5)
    scattered = bits.scatter(compact, free)
    assert not (scattered & ~free).any()
    assert torch.equal(bits.gather(scattered, free), compact)
    assert bits.popcount(scattered) == bits.popcount(compact)


def test_popcount_of_many_words():
    words = torch.full((70_000,), -1, dtype=torch.int32)
    assert bits.popcount(words) == 70_000 * 32
    assert bits.popcount(words).dtype == torch.int64


# Bad input


@pytest.mark.parametrize(
    "arguments,message",
    (
        ({"rows": 0}, "rows=0"),
        ({"rows": 2.0}, "rows=2.0"),
        ({"rows": 2**31}, "rows=2147483648"),
        ({"fan": 0}, "fan=0"),
        ({"fan": 2**23}, "fan=8388608"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"seed": "1"}, "seed='1'"),
        ({"layer": -1}, "layer=-1"),
        ({"layer": 2**32}, "layer=4294967296"),
        ({"weight": "binary"}, "weight='binary': expected one of signed_constant, uniform, normal"),
    ),
)
def test_source_refuses(arguments, message):
    with pytest.raises(ValueError) as error:
        Source.of(**({"rows": 2, "fan": 2} | arguments))
    assert message in str(error.value)
    assert "expected" in str(error.value)


def test_source_refuses_another_freeze():
    with pytest.raises(TypeError, match=r"freeze=0\.5: expected a Freeze"):
        Source.of(2, 2, freeze=0.5)


@pytest.mark.parametrize(
    "prune,lock,message",
    (
        (-0.1, 0, "prune=-0.1"),
        (1.1, 0, "prune=1.1"),
        (0, -0.1, "lock=-0.1"),
        (0, 1.5, "lock=1.5"),
        (float("nan"), 0, "prune=nan"),
        (0, float("inf"), "lock=inf"),
        (0.6, 0.5, "prune=0.6 + lock=0.5 = 1.1: expected at most 1"),
    ),
)
def test_freeze_refuses(prune, lock, message):
    with pytest.raises(ValueError) as error:
        Freeze(prune, lock)
    assert message in str(error.value)
    assert "expected" in str(error.value)


@pytest.mark.parametrize("prune,lock", ((0.7, 0.3), (0.1, 0.9), (0.9, 0.1), (0.35, 0.65), (0.2, 0.8), (1 / 3, 2 / 3)))
def test_freeze_takes_fractions_that_add_to_one(prune, lock):
    assert Source.of(8, 8, freeze=Freeze(prune, lock)).total == 64


@pytest.mark.parametrize("rows", ((1, 1), (-1, 2), (0, 6), (3, 2), (5, 6)))
def test_shard_refuses_rows(rows):
    with pytest.raises(ValueError, match=r"rows=.*expected a range inside \[0, 5\)"):
        Source.of(5, 70).shard(rows=rows)


@pytest.mark.parametrize("words", ((1, 1), (-1, 2), (0, 4), (2, 1)))
def test_shard_refuses_words(words):
    with pytest.raises(ValueError, match=r"words=.*expected a range inside \[0, 3\)"):
        Source.of(5, 70).shard(words=words)
