"""Freezing spreads: how a network's frozen fractions are divided among its layers.

A spread maps the fraction of all weights that stays, the density, to one fraction per layer, ``dist(density)``. Layers
follow Otsuka et al. (2024). With p pruned and r locked in the whole network, ``frozen_l = 1 - dist(1 - (p + r))``,
``p_l = 1 - dist(1 - p)``, and ``r_l = frozen_l - p_l``. So the ratio of pruned to locked differs between layers.

Every spread takes the shapes of the weights and a density in [0, 1], and raises ValueError for other values.

The paper's code has another way to spread locked weights, ``density_distribution``: ``r_l = dist(r)``, with the same
``p_l``. A layer then has as many locked weights as a network of density r, whatever is pruned.
"""

import math
from collections.abc import Callable, Sequence

from .source import MAX_ROWS, Freeze, fraction, integer

Shape = Sequence[int]


def uniform(shapes: Sequence[Shape], density: float) -> list[float]:
    """The same fraction in every layer."""
    return [fraction("density", density)] * len(_numels(shapes))


def erk(shapes: Sequence[Shape], density: float) -> list[float]:
    """Erdos-Renyi-Kernel (Evci et al., 2020): ``density_l = eps * sum(shape_l) / numel_l``, at most 1."""
    numels, density = _numels(shapes), fraction("density", density)
    raw = [sum(map(int, s)) / n for s, n in zip(shapes, numels, strict=True)]
    return _fill(numels, density, [r * n for r, n in zip(raw, numels, strict=True)])


def epl(shapes: Sequence[Shape], density: float) -> list[float]:
    """Edges per layer: the same *number* of weights stays in each; the excess of small layers goes to the others."""
    numels, density = _numels(shapes), fraction("density", density)
    return _fill(numels, density, [1.0] * len(numels))


def igq(shapes: Sequence[Shape], density: float) -> list[float]:
    """Ideal gas quota (Chen et al., 2021): ``keep_l = n_l / (F n_l + 1)``, with the F that gives the total."""
    numels, density = _numels(shapes), fraction("density", density)
    if density == 0:
        return [0.0] * len(numels)
    target = density * sum(numels)

    def kept(force: float) -> float:
        return sum(n / (force * n + 1) for n in numels)

    low, high = 0.0, 1.0
    while kept(high) > target:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) > target else (low, middle)
    return [1 / (high * n + 1) for n in numels]


SPREADS: dict[str, Callable[[Sequence[Shape], float], list[float]]] = {
    "uniform": uniform,
    "erk": erk,
    "epl": epl,
    "igq": igq,
}


LOCK_SPREADS = ("frozen", "locked")
"""What the locked weights follow: the spread of the frozen weights, or a spread of their own. The paper's code calls
these ``sparsity_distribution`` and ``density_distribution``."""


def spread_freeze(
    freeze: Freeze, shapes: Sequence[Shape], spread: str = "uniform", lock_spread: str = "frozen"
) -> list[Freeze]:
    """The prune and lock fractions of each layer, such that the whole network has those of ``freeze``.

    Args:
        freeze: fractions of all weights together.
        shapes: of the weights, ``[out, in]`` or ``[out, in / groups, kh, kw]``.
        spread: "uniform" (default), "erk", "epl" or "igq".
        lock_spread: "frozen" (default) or "locked"; see `LOCK_SPREADS`.

    Raises:
        ValueError: an unknown spread; a size in a shape that is below 1 or not an integer.
    """
    if spread not in SPREADS:
        raise ValueError(f"spread={spread!r}: expected one of {', '.join(SPREADS)}")
    if lock_spread not in LOCK_SPREADS:
        raise ValueError(f"lock_spread={lock_spread!r}: expected one of {', '.join(LOCK_SPREADS)}")
    stay = SPREADS[spread]
    not_pruned = stay(shapes, 1 - freeze.prune)
    if lock_spread == "locked":  # at most what is not pruned: no layer loses when more stays
        locked = stay(shapes, freeze.lock)
        return [Freeze.of_layer(_clamped(1 - a), _clamped(min(a, b))) for a, b in zip(not_pruned, locked, strict=True)]
    not_frozen = stay(shapes, max(0.0, 1 - freeze.prune - freeze.lock))
    return [Freeze.of_layer(_clamped(1 - a), _clamped(a - b)) for a, b in zip(not_pruned, not_frozen, strict=True)]


def _numels(shapes: Sequence[Shape]) -> list[int]:
    return [math.prod(integer(f"shapes[{i}]", n, 1, MAX_ROWS) for n in s) for i, s in enumerate(shapes)]


def _clamped(value: float) -> float:
    return min(1.0, max(0.0, value))


def _fill(numels: list[int], density: float, shares: list[float]) -> list[float]:
    """Divides ``density * sum(numels)`` in proportion to ``shares``, at most a layer's size for each layer."""
    rest, left = density * sum(numels), set(range(len(numels)))
    keep = [0.0] * len(numels)
    while left:
        unit = rest / sum(shares[i] for i in left)
        full = {i for i in left if unit * shares[i] >= numels[i]}
        for i in full or left:
            keep[i] = min(float(numels[i]), unit * shares[i])
        if not full:
            break
        rest -= sum(numels[i] for i in full)
        left -= full
    return [k / n for k, n in zip(keep, numels, strict=True)]
