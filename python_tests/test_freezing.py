"""Freezing spreads: totals, formulas, and the rule for prune and lock."""

import math
import warnings
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from slt_kernels import Freeze, convert, summary
from slt_kernels.freezing import SPREADS, epl, erk, igq, spread_freeze, uniform

CONV6 = [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (256, 128, 3, 3), (10, 256)]
NUMELS = [math.prod(s) for s in CONV6]

shapes = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 60)) | st.tuples(*[st.integers(1, 12)] * 4), min_size=1, max_size=8
)
densities = st.floats(0, 1)
spreads = pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)


def total(shapes, keep) -> float:
    return sum(math.prod(s) * k for s, k in zip(shapes, keep, strict=True))


@spreads
@given(shapes=shapes, density=densities)
def test_the_total_is_met(spread, shapes, density):
    keep = spread(shapes, density)
    assert len(keep) == len(shapes)
    assert all(-1e-12 <= k <= 1 + 1e-12 for k in keep)
    weights = sum(math.prod(s) for s in shapes)
    assert total(shapes, keep) == pytest.approx(density * weights, rel=1e-9, abs=1e-9 * weights)


@spreads
@given(shapes=shapes, a=densities, b=densities)
def test_no_layer_loses_when_more_stays(spread, shapes, a, b):
    less, more = spread(shapes, min(a, b)), spread(shapes, max(a, b))
    assert all(k <= m + 1e-9 for k, m in zip(less, more, strict=True))


@spreads
def test_extremes(spread):
    assert spread(CONV6, 0.0) == pytest.approx([0] * 6, abs=1e-12)
    assert spread(CONV6, 1.0) == pytest.approx([1] * 6)


def test_uniform():
    assert uniform(CONV6, 0.3) == [0.3] * 6


def brute_force(share, density: float) -> list[float]:
    """min(1, unit * share_l) for each layer, with the unit that gives the total, by bisection."""
    low, high = 0.0, 1e12
    for _ in range(300):
        unit = (low + high) / 2
        met = sum(n * min(1, unit * s) for n, s in zip(NUMELS, share, strict=True))
        low, high = (unit, high) if met < density * sum(NUMELS) else (low, unit)
    return [min(1, high * s) for s in share]


@pytest.mark.parametrize("density", (0.01, 0.1, 0.3, 0.65, 0.9, 0.99))
def test_erk(density):
    share = [sum(s) / math.prod(s) for s in CONV6]
    assert erk(CONV6, density) == pytest.approx(brute_force(share, density), rel=1e-9)


@pytest.mark.parametrize("density", (0.01, 0.1, 0.3, 0.65, 0.9, 0.99))
def test_epl(density):
    keep = epl(CONV6, density)
    assert keep == pytest.approx(brute_force([1 / n for n in NUMELS], density), rel=1e-9)
    edges = [k * n for k, n in zip(keep, NUMELS, strict=True)]
    open_layers = [e for e, k in zip(edges, keep, strict=True) if k < 1]
    assert open_layers == pytest.approx([max(edges)] * len(open_layers))


@pytest.mark.parametrize("density", (0.01, 0.1, 0.3, 0.65, 0.9, 0.99))
def test_igq(density):
    """keep_l = n_l / (F n_l + 1) weights in each layer, for one F."""
    keep = igq(CONV6, density)
    forces = [1 / (k * n) - 1 / n for k, n in zip(keep, NUMELS, strict=True)]
    assert forces == pytest.approx([forces[0]] * 6, rel=1e-6)


def test_small_layers_keep_more():
    for spread in (erk, epl, igq):
        keep = spread(CONV6, 0.3)
        assert keep[0] > keep[4]


# prune and lock


@pytest.mark.parametrize("name", SPREADS)
@pytest.mark.parametrize(
    "prune,lock", ((0.35, 0.35), (0.6, 0.1), (0.7, 0), (0, 0.7), (0.3, 0.7), (0, 0), (1, 0), (0, 1))
)
def test_rule_for_prune_and_lock(name, prune, lock):
    """frozen_l = 1 - dist(1 - (p + r)), p_l = 1 - dist(1 - p), r_l = frozen_l - p_l."""
    dist = SPREADS[name]
    frozen = [1 - k for k in dist(CONV6, 1 - (prune + lock))]
    pruned = [1 - k for k in dist(CONV6, 1 - prune)]
    freezes = spread_freeze(Freeze(prune, lock), CONV6, name)
    assert [f.prune for f in freezes] == pytest.approx(pruned, abs=1e-9)
    assert [f.lock for f in freezes] == pytest.approx([f - p for f, p in zip(frozen, pruned, strict=True)], abs=1e-9)
    weights = sum(NUMELS)
    assert total(CONV6, [f.prune for f in freezes]) == pytest.approx(prune * weights, abs=1e-6 * weights)
    assert total(CONV6, [f.lock for f in freezes]) == pytest.approx(lock * weights, abs=1e-6 * weights)


@given(shapes=shapes, name=st.sampled_from(sorted(SPREADS)), prune=densities, share=densities)
@pytest.mark.filterwarnings("ignore:.* fractions come in steps of 1/256")
def test_any_spread_is_a_freeze(shapes, name, prune, share):
    for freeze in spread_freeze(Freeze(prune, share * (1 - prune)), shapes, name):
        assert 0 <= freeze.prune <= 1
        assert 0 <= freeze.lock <= 1
        assert freeze.prune + freeze.lock <= 1 + 1e-9


def test_split_differs_by_layer():
    freezes = spread_freeze(Freeze(0.35, 0.35), CONV6, "erk")
    assert len({round(f.prune / (f.prune + f.lock + 1e-9), 3) for f in freezes}) > 1


@pytest.mark.parametrize("name", SPREADS)
def test_convert_spreads(name):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Linear(256, 100))
    expected = spread_freeze(Freeze(0.35, 0.25), [m.weight.shape for m in model], name)
    converted = convert(model, Freeze(0.35, 0.25), sparsity=None, spread=name)
    assert [m.freeze for m in converted] == expected
    counts = [sum(getattr(m, what) for m in converted) for what in ("pruned", "locked", "total")]
    assert counts[0] / counts[2] == pytest.approx(0.35, abs=0.01)
    assert counts[1] / counts[2] == pytest.approx(0.25, abs=0.01)


def test_unknown_spread():
    with pytest.raises(ValueError, match="spread='random': expected one of uniform, erk, epl, igq"):
        spread_freeze(Freeze(), CONV6, "random")


@pytest.mark.parametrize("value", ("a", None, -0.1, 1.5))
@pytest.mark.parametrize("name", ("prune", "lock"))
def test_a_freeze_is_of_fractions(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}: expected a fraction in"):
        Freeze(**{name: value})


# Fractions that round away


@pytest.mark.parametrize(
    "prune,lock,messages",
    (
        (0.001, 0, ["prune=0.001 rounds to 0/256, so no weight is pruned"]),
        (0, 0.001, ["lock=0.001 rounds to 0/256, so no weight is locked"]),
        (0.001, 0.0019, ["prune=0.001 rounds to 0/256", "lock=0.0019 rounds to 0/256"]),
        (0.999, 0, ["prune=0.999 + lock=0.0 rounds to 256/256, so no weight is left to search"]),
        (0, 0.999, ["prune=0.0 + lock=0.999 rounds to 256/256"]),
        (0.5, 0.499, ["prune=0.5 + lock=0.499 rounds to 256/256"]),
        (0.998046875, 0.001953125, ["lock=0.001953125 rounds to 0/256"]),  # the byte they share is pruned
        (0, 0, []),
        (1, 0, []),
        (0.3, 0.7, []),
        (0.002, 0.002, []),
        (0.998, 0, []),
    ),
)
def test_a_fraction_that_rounds_away_is_warned_of(prune, lock, messages):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        freeze = Freeze(prune, lock)
    assert [str(w.message)[: len(m)] for w, m in zip(caught, messages, strict=True)] == messages
    assert all(w.filename == __file__ for w in caught)
    realized = summary(convert(nn.Linear(300, 300), freeze, None))
    assert realized.layers[0].prune == realized.prune == pytest.approx(prune, abs=0.01)
    assert realized.layers[0].lock == realized.lock == pytest.approx(lock, abs=0.01)


@given(prune=densities, share=densities)
def test_the_warning_tells_what_the_thresholds_do(prune, share):
    lock = share * (1 - prune)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        freeze = Freeze(prune, lock)
    text = "".join(str(w.message) for w in caught)
    assert ("no weight is pruned" in text) == (prune > 0 and freeze.prune_below == 0)
    assert ("no weight is locked" in text) == (lock > 0 and freeze.lock_from == 256)
    assert ("left to search" in text) == (prune + lock < 1 - 1e-9 and freeze.prune_below == freeze.lock_from)


@pytest.mark.parametrize("name", SPREADS)
def test_a_layers_own_part_may_round_away(name):
    """A small layer that keeps all its weights is no reason for a warning."""
    shapes = [(1, 1), (10, 20), (2000, 2000)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        freezes = [spread_freeze(Freeze(p, r), shapes, name) for p, r in ((0.01, 0.01), (0.5, 0.4), (0.3, 0), (0, 0))]
    if name == "igq":
        assert any(f.prune > 0 and f.prune_below == 0 for f in freezes[0])


@pytest.mark.parametrize("kind", (np.float16, np.float32, np.float64, Fraction, torch.tensor, np.array))
@spreads
def test_a_density_is_any_number(spread, kind):
    value = kind(0.25)
    assert spread(CONV6, value) == spread(CONV6, 0.25)
    sizes = [tuple(np.int32(n) for n in shape) for shape in [*CONV6, (70_000, 70_000)]]
    plain = [tuple(map(int, shape)) for shape in sizes]
    assert spread(sizes, value) == spread(plain, 0.25)


@spreads
def test_what_is_no_density_and_no_shape(spread):
    for density in (-0.1, 1.5, math.nan, True, "0.5", None):
        with pytest.raises(ValueError, match=f"density={density!r}: expected a fraction in"):
            spread(CONV6, density)
    for shape in ((0, 3), (3, -1), (2.0, 3), ("3",)):
        with pytest.raises(ValueError, match=r"shapes\[1\]=.*: expected an integer"):
            spread([(2, 2), shape], 0.5)


def test_locked_weights_can_have_a_spread_of_their_own():
    """``r_l = dist(r)``: what the paper's code calls density_distribution."""
    freeze = Freeze(0.3, 0.2)
    for name in ("erk", "epl", "igq"):
        layers = spread_freeze(freeze, CONV6, name, "locked")
        assert [f.lock for f in layers] == pytest.approx(SPREADS[name](CONV6, 0.2))
        assert [f.prune for f in layers] == pytest.approx([f.prune for f in spread_freeze(freeze, CONV6, name)])
        assert sum(f.lock * n for f, n in zip(layers, NUMELS, strict=True)) == pytest.approx(0.2 * sum(NUMELS))
    with pytest.raises(ValueError, match="lock_spread='both': expected one of frozen, locked"):
        spread_freeze(freeze, CONV6, "erk", "both")
