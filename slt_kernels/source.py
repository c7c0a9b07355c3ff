"""The source network: a layer's weights and its frozen pattern as pure functions of a seed.

This file is the plainest implementation of the contract in `docs/contract.md`. A layer is a matrix of ``rows`` (output
features or channels) by ``fan`` (inputs of one row), in words of 32 weights (`bits`).
"""

import math
import sys
import warnings
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from operator import index
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor

from . import bits, philox
from ._text import shown

CONTRACT_VERSION = 1

_WORDS_PER_CALL = 4
_UNIFORM_STD = math.sqrt((128**2 - 1) / 3)


# fmt: off
_NORMAL_HALF = (
    1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 5, 6, 6, 7, 7, 8, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 12, 13, 13, 14,
    14, 15, 15, 16, 16, 17, 17, 17, 18, 18, 19, 19, 20, 20, 21, 21, 22, 22, 23, 23, 24, 24, 25, 25, 26, 26, 27,
    27, 28, 28, 29, 29, 30, 30, 31, 32, 32, 33, 33, 34, 34, 35, 36, 36, 37, 37, 38, 39, 39, 40, 41, 41, 42, 43,
    43, 44, 45, 46, 46, 47, 48, 49, 49, 50, 51, 52, 53, 54, 55, 56, 56, 57, 59, 60, 61, 62, 63, 64, 65, 67, 68,
    70, 71, 73, 75, 77, 79, 81, 83, 86, 89, 93, 97, 103, 111, 127,
)
# fmt: on
NORMAL_TABLE = (*(-v for v in reversed(_NORMAL_HALF)), *_NORMAL_HALF)
"""The table ``T`` of ``normal``: for each byte, 44 times the normal quantile, rounded; magnitudes are at least 1."""


def _rms(values: tuple[int, ...]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values))


WEIGHTS = ("signed_constant", "uniform", "normal")
_STD = (1.0, _UNIFORM_STD, _rms(NORMAL_TABLE))  # of v, in the order of WEIGHTS


MAX_ROWS = 2**31 - 1
MAX_FAN = 2**23 - 1  # so that sums of products are exact in float64


def integer(name: str, value: SupportsIndex, low: int, high: int) -> int:
    """Converts a value to ``int``.

    Args:
        name: of the argument, for the error.
        value: a Python or NumPy integer, or a 0-dimensional array or tensor of one.
        low, high: the smallest and the largest value allowed.

    Raises:
        ValueError: the value is not an integer, is a bool, or is outside ``[low, high]``.
    """
    try:
        plain = python_number(value)
        result = None if isinstance(plain, bool) or hasattr(plain, "shape") else index(plain)
    except (TypeError, RuntimeError):  # not an integer; a tensor on the meta device
        result = None
    if result is None or not low <= result <= high:
        raise ValueError(f"{name}={shown(value)}: expected an integer from {low} to {high}")
    return result


def number(name: str, value: Real, low: float, high: float, expected: str = "") -> float:
    """Converts a value to a Python ``float``: exactly from a NumPy float, otherwise to the nearest one.

    Convert before any arithmetic. A product with a ``numpy.float32`` is rounded to 24 bits, and one with a
    ``numpy.float16`` overflows at 65,520.

    Args:
        name: of the argument, for the error.
        value: a Python number, a ``fractions.Fraction``, a NumPy scalar, or a 0-dimensional array or tensor.
        low, high: the smallest and the largest value allowed.
        expected: describes the allowed values in the error. Default: the range.

    Raises:
        ValueError: the value is not a real number, is a bool, is NaN, or is outside ``[low, high]``.
    """
    try:
        plain = python_number(value)
        result = float(plain) if isinstance(plain, Real) and not isinstance(plain, bool) else math.nan
    except (OverflowError, RuntimeError):  # larger than any float; a tensor on the meta device
        result = math.nan
    if not low <= result <= high:
        raise ValueError(f"{name}={shown(value)}: expected {expected or f'a number from {low} to {high}'}")
    return result


def fraction(name: str, value: Real) -> float:
    """As `number`, for a value in [0, 1]."""
    return number(name, value, 0.0, 1.0, "a fraction in [0, 1]")


def positive(name: str, value: Real) -> float:
    """As `number`, for a finite value above 0."""
    return number(name, value, math.ulp(0.0), sys.float_info.max, "a positive number")


def python_number(value: object) -> object:
    """Converts a NumPy scalar or a 0-dimensional array or tensor to a Python number; returns other values unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


@dataclass(frozen=True)
class Freeze:
    """The fractions of a layer's weights that the seed alone decides.

    Args:
        prune: fraction of weights that are never in the ticket, in [0, 1]. Default 0.
        lock: fraction of weights that are always in the ticket, in [0, 1]; ``prune + lock <= 1``. Default 0.

    ``Freeze()`` is the dense source network, ``Freeze(prune=p)`` the randomly pruned one of Gadhikar et al. (2023), and
    ``Freeze(p, r)`` the frozen one of Otsuka et al. (2024). Each weight draws one byte, which is compared with two
    thresholds. So the fractions are rounded to steps of 1/256, and a layer's counts have a binomial distribution.
    Kernels regenerate the pattern with half the calls of the generator where both fractions are multiples of 1/16.

    Both are stored as Python floats (`number`).

    Warns:
        UserWarning: a fraction above 0 that rounds to 0, or two with a sum below 1 that round to all weights.

    Raises:
        ValueError: a fraction outside [0, 1], or a sum above 1.
    """

    prune: float = 0.0
    lock: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prune", "lock"):
            object.__setattr__(self, name, fraction(name, getattr(self, name)))
        both = self.prune + self.lock
        if both > 1 + 1e-9:
            raise ValueError(f"prune={self.prune} + lock={self.lock} = {both}: expected at most 1")
        steps = {"prune": self.prune_below, "lock": 256 - self.lock_from}
        for name, done in (("prune", "pruned"), ("lock", "locked")):
            if getattr(self, name) > 0 and steps[name] == 0:
                text = f"{name}={getattr(self, name)} rounds to 0/256, so no weight is {done}"
                warnings.warn(f"{text}: fractions come in steps of 1/256", stacklevel=3)
        if both < 1 - 1e-9 and sum(steps.values()) == 256:
            text = f"prune={self.prune} + lock={self.lock} rounds to 256/256, so no weight is left to search"
            warnings.warn(f"{text}: fractions come in steps of 1/256", stacklevel=3)

    @classmethod
    def of_layer(cls, prune: float, lock: float) -> "Freeze":
        """The fractions of one layer of a network. These may round to 0 without a warning."""
        freeze = object.__new__(cls)
        object.__setattr__(freeze, "prune", fraction("prune", prune))
        object.__setattr__(freeze, "lock", fraction("lock", lock))
        return freeze

    @property
    def prune_below(self) -> int:
        """Weights with a byte below this are pruned, 0 to 256."""
        return math.floor(256 * self.prune + 0.5)

    @property
    def lock_from(self) -> int:
        """Weights with this byte or a higher one are locked, 0 to 256.

        It is at least ``prune_below``. If ``prune + lock = 1`` and both round up, the byte in both ranges is pruned.
        """
        return max(256 - math.floor(256 * self.lock + 0.5), self.prune_below)


DENSE = Freeze()


class Source(NamedTuple):
    """What generates a layer, or a shard of it, as ten integers, which pass through ``torch.ops``.

    Made by `Source.of`; a shard by `shard`.
    """

    rows: int
    fan: int
    seed: int  # 64 bits, as a signed number
    layer: int
    weight: int  # index into WEIGHTS
    prune_below: int
    lock_from: int
    first_row: int  # start of a shard in the whole layer
    first_word: int
    row_calls: int  # Philox calls per row of the whole layer: ceil(whole fan / 128)

    @classmethod
    def of(
        cls,
        rows: int,
        fan: int,
        *,
        seed: int = 0,
        layer: int = 0,
        weight: str = "signed_constant",
        freeze: Freeze = Freeze(),
    ) -> "Source":
        """The source of a whole layer.

        Args:
            rows: output features or channels, at least 1.
            fan: inputs of one row, 1 to 2**23 - 1 (so that sums of products are exact in float64).
            seed: 0 to 2**64 - 1.
            layer: the layer number, 0 to 2**32 - 1. Layers with the same seed need different numbers.
            weight: "signed_constant", "uniform" or "normal".
            freeze: the pruned and locked fractions.

        Raises:
            ValueError: an argument outside its range.
            TypeError: ``freeze`` is not a `Freeze`.
        """
        rows = integer("rows", rows, 1, MAX_ROWS)
        fan = integer("fan", fan, 1, MAX_FAN)
        seed = integer("seed", seed, 0, 2**64 - 1)
        layer = integer("layer", layer, 0, 2**32 - 1)
        if weight not in WEIGHTS:
            raise ValueError(f"weight={weight!r}: expected one of {', '.join(WEIGHTS)}")
        if not isinstance(freeze, Freeze):
            raise TypeError(f"freeze={freeze!r}: expected a Freeze(prune, lock)")
        signed_seed = seed - 2**64 if seed >= 2**63 else seed
        row_calls = (fan + 127) // 128
        kind = WEIGHTS.index(weight)
        return cls(rows, fan, signed_seed, layer, kind, freeze.prune_below, freeze.lock_from, 0, 0, row_calls)

    def shard(self, rows: tuple[int, int] | None = None, words: tuple[int, int] | None = None) -> "Source":
        """Rows ``[n0, n1)`` and words ``[w0, w1)`` of this source. The shard generates exactly that slice.

        Raises:
            ValueError: a range is empty or exceeds this source.
        """
        n0, n1 = _range("rows", rows, self.rows)
        w0, w1 = _range("words", words, self.words)
        fan = min(self.fan, w1 * bits.WORD) - w0 * bits.WORD
        return self._replace(rows=n1 - n0, fan=fan, first_row=self.first_row + n0, first_word=self.first_word + w0)

    @property
    def words(self) -> int:
        """Number of words in a row."""
        return bits.words_for(self.fan)

    @property
    def total(self) -> int:
        """Number of weights, frozen ones included."""
        return self.rows * self.fan

    @property
    def weight_std(self) -> float:
        """Standard deviation of the integer weight."""
        return _STD[self.weight]

    def _rows(self, device: torch.device | str) -> Tensor:
        return torch.arange(self.first_row, self.first_row + self.rows, device=device).unsqueeze(1)

    def _eight_words(self, stream: int, device: torch.device | str) -> Tensor:
        """The two Philox calls per word of the streams VALUE and FREEZE: int32 ``[rows, words, 8]``."""
        words = torch.arange(self.first_word, self.first_word + self.words, device=device)
        q = self._rows(device) * (self.row_calls * _WORDS_PER_CALL) + words
        pairs = torch.stack((2 * q, 2 * q + 1), dim=-1)
        return philox.call(self.seed, self.layer, stream, pairs).view(self.rows, self.words, 8)

    def signs(self, device: torch.device | str = "cpu") -> Tensor:
        """Sign words of ``signed_constant``, int32 ``[rows, words]``. A set bit is -1. Padding bits are not cleared."""
        first_call = self.first_word // _WORDS_PER_CALL
        last_call = (self.first_word + self.words - 1) // _WORDS_PER_CALL
        index = self._rows(device) * self.row_calls + torch.arange(first_call, last_call + 1, device=device)
        words = philox.call(self.seed, self.layer, philox.SIGN, index).view(self.rows, -1)
        skipped = self.first_word - first_call * _WORDS_PER_CALL
        return words[:, skipped : skipped + self.words]

    def integer_weight(self, device: torch.device | str = "cpu") -> Tensor:
        """``v``, the weight without its scale: int8 ``[rows, fan]``, |v| <= 127."""
        if WEIGHTS[self.weight] == "signed_constant":
            return bits.to_k_order(1 - 2 * bits.unpack(self.signs(device)).to(torch.int8), self.fan)
        values = self._eight_words(philox.VALUE, device).view(torch.uint8)  # bytes are in k order
        values = values.view(self.rows, -1)[:, : self.fan]
        if WEIGHTS[self.weight] == "uniform":
            return (values ^ 0x80 | 1).view(torch.int8)
        return torch.tensor(NORMAL_TABLE, dtype=torch.int8, device=device)[values.int()]

    def padding(self, device: torch.device | str = "cpu") -> Tensor:
        """The valid bits of a row, int32 ``[words]``. Bits past ``fan`` are 0."""
        return bits.pack(bits.to_bit_order(torch.ones(1, self.fan, dtype=torch.bool, device=device)))[0]

    def frozen_words(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Free weights and locked weights as bits, each int32 ``[rows, words]``. Padding bits are 0."""
        weights = self.padding(device).expand(self.rows, -1)
        if self.prune_below == 0 and self.lock_from == 256:
            return weights.contiguous(), torch.zeros_like(weights)
        planes = self._eight_words(philox.FREEZE, device).unbind(-1)
        pruned = _below(planes, self.prune_below)
        unlocked = _below(planes, self.lock_from)
        return unlocked & ~pruned & weights, ~unlocked & weights

    def frozen_state(self, device: torch.device | str = "cpu") -> Tensor:
        """Int8 ``[rows, fan]``: -1 pruned, 0 free, +1 locked."""
        free, locked = (bits.unpack(words).to(torch.int8) for words in self.frozen_words(device))
        return bits.to_k_order(2 * locked + free - 1, self.fan)

    def count_frozen(self) -> tuple[int, int, int]:
        """Numbers of pruned, free and locked weights. Counted once per process."""
        return _count_frozen(self)

    @property
    def free(self) -> int:
        """Number of free weights, which is the number of scores and of bits in a compact mask."""
        return self.count_frozen()[1]

    def initial_scores(self, count: int, bound: float, device: torch.device | str = "cpu") -> Tensor:
        """Scores of the first ``count`` free weights: float32, uniform on (-bound, bound), a function of the seed."""
        if torch.device(device).type == "meta":  # Philox would take long there, and write nothing
            return torch.empty(count, dtype=torch.float32, device=device)
        index = torch.arange((count + 3) // 4, device=device)
        words = philox.call(self.seed, self.layer, philox.SCORE, index).flatten()[:count]
        odd = 2 * (words >> 8 & 0xFFFFFF) + 1 - 2**24  # magnitude below 2**24, so exact in float32
        return odd.float() * 2.0**-24 * bound


def _range(name: str, ends: tuple[int, int] | None, size: int) -> tuple[int, int]:
    """The ends as Python integers; ``(0, size)`` for None. ValueError if the range is empty or exceeds ``size``."""
    try:
        first, last = (0, size) if ends is None else ends
        first = integer(name, first, 0, size - 1)
        return first, integer(name, last, first + 1, size)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={shown(ends)}: expected a range inside [0, {size})") from None


@lru_cache(maxsize=4096)
def _count_frozen(source: Source) -> tuple[int, int, int]:
    if source.prune_below == 0 and source.lock_from == 256:
        return 0, source.total, 0
    free = locked = 0
    step = max(1, (1 << 20) // source.words)  # rows at a time, to limit memory
    for n0 in range(0, source.rows, step):
        part = source.shard(rows=(n0, min(n0 + step, source.rows))).frozen_words()
        free += int(bits.popcount(part[0]))
        locked += int(bits.popcount(part[1]))
    return source.total - free - locked, free, locked


def _below(planes: tuple[Tensor, ...], threshold: int) -> Tensor:
    """Compares the bytes of eight bit planes, the most significant first, with ``threshold``: one result per bit."""
    if threshold == 256:
        return torch.full_like(planes[0], -1)
    below = torch.zeros_like(planes[0])
    for i, plane in enumerate(reversed(planes)):
        below = below | ~plane if threshold >> i & 1 else below & ~plane
    return below
