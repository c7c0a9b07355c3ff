"""A second implementation of the weight contract and of the paper's method, for comparison.

It shares no code with the package. Bits are computed with NumPy and Python's integers. Products use a materialized
float64 weight, ``F.linear`` or ``F.conv2d``, and autograd. Each weight is derived alone, from its (row, k).
"""

import json
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

SIGN, FREEZE, VALUE, SCORE = 0, 1, 2, 3
WEIGHTS = ("signed_constant", "uniform", "normal")
STD = {"signed_constant": 1.0, "uniform": math.sqrt((128**2 - 1) / 3), "normal": 43.926696751520026}


def known(name: str):
    """Known answers, made by an independent implementation."""
    return json.loads((Path(__file__).parent / "kat" / f"{name}.json").read_text())


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 with Python's integers, after Salmon et al. (SC'11)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def call(seed: int, layer: int, stream: int, index: int) -> list[int]:
    return philox((index % 2**32, layer, stream, index >> 32), (seed % 2**32, seed >> 32))


@dataclass(frozen=True)
class Layer:
    """The contract's layer, one weight at a time, for small layers. Results are kept, and must not be written."""

    rows: int
    fan: int
    seed: int = 0
    layer: int = 0
    weight: str = "signed_constant"
    prune: float = 0.0
    lock: float = 0.0

    @property
    def groups(self) -> int:
        return math.ceil(self.fan / 128)

    def _eight(self, stream: int, n: int, w: int) -> list[int]:
        q = n * self.groups * 4 + w
        return call(self.seed, self.layer, stream, 2 * q) + call(self.seed, self.layer, stream, 2 * q + 1)

    @cache  # noqa: B019 (equal layers share it)
    def integer_weight(self, normal_table: tuple[int, ...] | None = None) -> np.ndarray:
        """int8 [rows, fan]."""
        v = np.zeros((self.rows, self.fan), dtype=np.int8)
        for n in range(self.rows):
            for w in range(math.ceil(self.fan / 32)):
                if self.weight == "signed_constant":
                    word = call(self.seed, self.layer, SIGN, n * self.groups + w // 4)[w % 4]
                else:
                    eight = self._eight(VALUE, n, w)
                for k in range(32 * w, min(32 * w + 32, self.fan)):
                    if self.weight == "signed_constant":
                        v[n, k] = 1 - 2 * (word >> bit_of(k) & 1)
                        continue
                    u = eight[k % 32 // 4] >> 8 * (k % 4) & 0xFF
                    v[n, k] = 2 * (u >> 1) - 127 if self.weight == "uniform" else normal_table[u]
        return v

    @cache  # noqa: B019 (equal layers share it)
    def frozen_state(self) -> np.ndarray:
        """int8 [rows, fan]: -1 pruned, 0 free, +1 locked."""
        prune_below = math.floor(256 * self.prune + 0.5)
        lock_from = 256 - math.floor(256 * self.lock + 0.5)
        state = np.zeros((self.rows, self.fan), dtype=np.int8)
        for n in range(self.rows):
            for w in range(math.ceil(self.fan / 32)):
                planes = self._eight(FREEZE, n, w)
                for k in range(32 * w, min(32 * w + 32, self.fan)):
                    u = sum((plane >> bit_of(k) & 1) << (7 - i) for i, plane in enumerate(planes))
                    state[n, k] = -1 if u < prune_below else 1 if u >= lock_from else 0
        return state

    @cache  # noqa: B019 (equal layers share it)
    def free_positions(self) -> list[tuple[int, int]]:
        """(row, k) of the free weights, in the order of the scores."""
        state = self.frozen_state()
        free = [(n, k) for n in range(self.rows) for k in range(self.fan) if state[n, k] == 0]
        return sorted(free, key=lambda nk: (nk[0], nk[1] // 32, bit_of(nk[1])))

    def scores(self, count: int, bound: float) -> np.ndarray:
        words = [call(self.seed, self.layer, SCORE, i // 4)[i % 4] for i in range(count)]
        unit = [np.float32((2 * (word >> 8) + 1) / 2**24 - 1) for word in words]
        return np.array(unit, dtype=np.float32) * np.float32(bound)


def bit_of(k: int) -> int:
    """The bit of weight k in its word: even k in the low half, odd k in the high half."""
    return k % 32 // 2 + 16 * (k % 2)


def words_of(mask: np.ndarray) -> torch.Tensor:
    """bool [rows, fan] to the int32 words of a resolved mask."""
    rows, fan = mask.shape
    words = np.zeros((rows, math.ceil(fan / 32)), dtype=np.uint32)
    for n in range(rows):
        for k in range(fan):
            words[n, k // 32] |= np.uint32(int(mask[n, k]) << bit_of(k))
    return torch.from_numpy(words.view(np.int32))


def sequence_words(flags: np.ndarray) -> torch.Tensor:
    """bool [n] to the int32 words of a compact mask: first bit lowest, 32 to a word."""
    words = np.zeros(math.ceil(len(flags) / 32), dtype=np.uint32)
    for i, flag in enumerate(flags):
        words[i // 32] |= np.uint32(int(flag) << i % 32)
    return torch.from_numpy(words.view(np.int32))


# The method: scores -> threshold -> mask -> product, with the straight-through gradient


def drop_threshold(scores: list[torch.Tensor], rank: int) -> float:
    """The rank-th smallest |score|, by sorting. All are kept below rank 1, none from the last rank on."""
    ordered = torch.cat([s.detach().abs().flatten() for s in scores]).sort().values
    if rank < 1:
        return -math.inf
    return math.inf if rank >= len(ordered) else ordered[rank - 1].item()


class Materialized:
    """A layer as in the paper's code: a dense random weight, a ternary freeze mask, and scores."""

    def __init__(self, spec: Layer, scores: torch.Tensor, scale: float, normal_table=None):
        """scale: factor of the integer weights, density scaling included."""
        self.v = torch.from_numpy(spec.integer_weight(normal_table)).double()
        self.state = torch.from_numpy(spec.frozen_state())
        rows, ks = zip(*spec.free_positions(), strict=True) if (self.state == 0).any() else ((), ())
        self.at = (torch.tensor(rows, dtype=torch.long), torch.tensor(ks, dtype=torch.long))
        self.scores, self.scale = scores, scale

    def mask(self, threshold: float) -> torch.Tensor:
        kept = self.state == 1
        kept[self.at] = self.scores.detach().abs() > threshold
        return kept

    def weight(self, threshold: float) -> torch.Tensor:
        """float64 [rows, fan], with the straight-through gradient to the scores."""
        through = torch.where(self.scores < 0, -1.0, 1.0) * self.scores  # |score|, its slope at 0 that of a positive
        through = torch.zeros(self.v.shape, dtype=torch.float64).index_put(self.at, through)
        kept = self.mask(threshold).double() + through - through.detach()
        return self.scale * kept * self.v

    def kernel(self, threshold: float, kh: int, kw: int) -> torch.Tensor:
        """The weight for ``F.conv2d``. fan is in the order (kh, kw, c), the channel fastest."""
        w = self.weight(threshold)
        return w.reshape(len(w), kh, kw, w.shape[1] // (kh * kw)).permute(0, 3, 1, 2)


# Section 7: float32 products of one vector, in exact arithmetic


def fixed_point(x: np.ndarray, digits: int) -> tuple[list[int], int]:
    """float32 [n] to integers X and the exponent p with x ~ X * 2**p."""
    largest = 127 * (256**digits - 1) // 255
    m = max((abs(float(value)) for value in x), default=0.0)
    if m == 0:
        return [0] * len(x), 0
    e = math.frexp(m)[1]
    if round(Fraction(m) * Fraction(2) ** (8 * digits - 1 - e)) > largest:
        e += 1
    p = e + 1 - 8 * digits
    return [round(Fraction(float(value)) / Fraction(2) ** p) for value in x], p


def rounded(total: int, p: int, scale: float, bias: float | None = None) -> np.float32:
    """float32(S) * 2**p * scale + bias, each step rounded to float32."""
    with np.errstate(over="ignore"):  # to inf, as it should
        y = np.ldexp(np.float32(total), p) * np.float32(scale)
    return y if bias is None else y + np.float32(bias)


def fixed_linear(x, w, scale: float, digits: int, bias=None) -> torch.Tensor:
    """x float32 [B, fan], w integers [rows, fan]."""
    out = np.zeros((len(x), len(w)), dtype=np.float32)
    for b, vector in enumerate(x.numpy()):
        integers, p = fixed_point(vector, digits)
        for n, row in enumerate(np.asarray(w).tolist()):
            total = sum(a * c for a, c in zip(integers, row, strict=True))
            out[b, n] = rounded(total, p, scale, None if bias is None else bias[n].item())
    return torch.from_numpy(out)


def fixed_conv2d(x, kernel, scale: float, digits: int, bias=None, **geometry) -> torch.Tensor:
    """x float32 [B, C, H, W], kernel integers as for F.conv2d. One exponent per sample."""
    out = []
    for image in x:
        integers, p = fixed_point(image.numpy().ravel(), digits)
        exact = torch.tensor(integers, dtype=torch.float64).view(1, *image.shape)
        sums = F.conv2d(exact, torch.as_tensor(kernel).double(), **geometry)[0]
        y = torch.empty(sums.shape)
        for c, channel in enumerate(sums):
            added = None if bias is None else bias[c].item()
            for at, total in np.ndenumerate(channel.numpy()):
                y[(c, *at)] = float(rounded(int(total), p, scale, added))
        out.append(y)
    return torch.stack(out)
