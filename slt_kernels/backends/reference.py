"""The reference backend: plain PyTorch, on any device, and the oracle of all others.

It is written to be obviously right. Weights are materialized; products are float64. For inputs narrower than
float64, forward and grad_input first round each vector that shares a scale to fixed point, so every product and
every partial sum is an integer that float64 holds exactly, and the order of the sum does not matter. float32 is only
read and rounded to, in ways that `torch.set_flush_denormal` does not change (`_wide`, `_narrow`).
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from .. import bits
from ..source import MAX_FAN, Source
from ..window import Window, channels_last


def unavailable() -> str | None:
    return None


def describe() -> str:
    return "plain PyTorch, on any device"


def supports(device: torch.device) -> bool:
    return True


# Linear


def linear_forward(x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> Tensor:
    weight = materialize(mask, source).double()
    sums = _integer_sums(lambda vectors, _: vectors @ weight.T, x, scale)
    return _with_bias(sums, bias).to(x.dtype)


def linear_grad_input(dy: Tensor, mask: Tensor, scale: Tensor, source: Source) -> Tensor:
    weight = materialize(mask, source).double()
    sums = _integer_sums(lambda vectors, rows: vectors[:, rows] @ weight[rows], dy, scale, _parts(source.rows))
    return sums.to(dy.dtype)


def linear_grad_scores(dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source) -> Tensor:
    return _grad_scores(_wide(dy).T @ _wide(x), x.dtype, scores, scale, source)


# Conv2d


def conv2d_forward(
    x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
) -> Tensor:
    weight = _to_kernel(materialize(mask, source), window).double()
    geometry = (window.stride, window.padding, window.dilation, window.groups)
    sums = _integer_sums(lambda images, _: F.conv2d(images, weight, None, *geometry), x, scale)
    return _in_format_of(x, _with_bias(sums, None if bias is None else bias.view(-1, 1, 1)).to(x.dtype))


def conv2d_grad_input(
    dy: Tensor, mask: Tensor, scale: Tensor, source: Source, window: Window, size: list[int]
) -> Tensor:
    weight = _to_kernel(materialize(mask, source), window).double()
    shape = (len(dy), weight.shape[1] * window.groups, *size)
    geometry = (window.stride, window.padding, window.dilation, window.groups)
    if 0 in dy.shape:
        return _in_format_of(dy, dy.new_zeros(shape))
    by_group = weight.unflatten(0, (window.groups, -1))

    def product(images: Tensor, rows: slice) -> Tensor:
        images = images.unflatten(1, (window.groups, -1))[:, :, rows].flatten(1, 2)
        return conv2d_input(shape, by_group[:, rows].flatten(0, 1), images, *geometry)

    parts = _parts(source.rows // window.groups, window.kernel_h * window.kernel_w)
    return _in_format_of(dy, _integer_sums(product, dy, scale, parts).to(dy.dtype))


def conv2d_grad_scores(dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, window: Window) -> Tensor:
    shape = (source.rows, x.shape[1] // window.groups, *window.kernel)
    geometry = (window.stride, window.padding, window.dilation, window.groups)
    if 0 in dy.shape:
        grad = dy.new_zeros(shape, dtype=torch.float64)
    else:
        grad = conv2d_weight(_wide(x), shape, _wide(dy), *geometry)
    return _grad_scores(_to_matrix(grad), x.dtype, scores, scale, source)


# Embedding


def embedding_forward(index: Tensor, mask: Tensor, scale: Tensor, source: Source, dtype: torch.dtype) -> Tensor:
    weight = F.embedding(index, materialize(mask, source).double())
    y = torch.where(weight == 0, 0, weight * _wide(scale))  # +0 where a weight is dropped, whatever the scale's sign
    return y if dtype == torch.float64 else _narrow(y).to(dtype)


def embedding_grad_scores(dy: Tensor, index: Tensor, scores: Tensor, scale: Tensor, source: Source) -> Tensor:
    grad = dy.new_zeros(source.rows, source.fan, dtype=torch.float64)
    grad.index_put_((index.long(),), _wide(dy), accumulate=True)
    return _grad_scores(grad, dy.dtype, scores, scale, source)


# Masks


def select(scores: list[Tensor], rank: int) -> Tensor:
    """The rank-th smallest |score|; -inf for rank < 1, inf for a rank past the last. NaN counts as the largest."""
    dtype, device = scores[0].dtype, scores[0].device
    if rank < 1 or rank >= sum(s.numel() for s in scores):
        return torch.tensor(float("-inf" if rank < 1 else "inf"), dtype=dtype, device=device)
    return bits.find_rank(lambda *digit: sum(bits.histogram(s, *digit) for s in scores), rank, dtype)


def pack(scores: Tensor, threshold: Tensor, source: Source, compact: bool) -> tuple[Tensor, Tensor]:
    """Keeps the free weights with |score| > threshold. A compact mask counts its locked weights as kept too."""
    free, locked = source.frozen_words(scores.device)
    mask = bits.pack_sequence(bits.exceeds(scores, threshold))
    if compact:
        return mask, bits.popcount(mask) + bits.popcount(locked)
    resolved = bits.scatter(mask, free) | locked
    return resolved, bits.popcount(resolved)


def expand(mask: Tensor, source: Source) -> Tensor:
    free, locked = source.frozen_words(mask.device)
    return bits.scatter(mask, free) | locked


def materialize(mask: Tensor, source: Source) -> Tensor:
    resolved = mask if mask.dim() == 2 else expand(mask, source)
    kept = bits.to_k_order(bits.unpack(resolved), source.fan)
    return source.integer_weight(mask.device) * kept


# What they share


def _integer_sums(
    product: Callable[[Tensor, slice], Tensor], x: Tensor, scale: Tensor, parts: Iterable[slice] = (slice(None),)
) -> Tensor:
    """``S * scale``, where S is the sum of ``product(x, part)`` over all parts: float32 by the contract's section 7.

    ``product`` is linear with integer weights, and a part has less than 2**23 terms. One scale is shared by each
    ``x[i]``: a row of a matrix, a whole sample of a batch of images. float64 inputs are computed in float64 as they
    are. Narrower ones are rounded to ``digits`` balanced base-256 digits.
    """
    if x.dtype == torch.float64:
        return sum(product(x, part) for part in parts) * _wide(scale)
    digits = 3 if x.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest" else 2
    exact = _wide(x)
    if x.numel() == 0:
        return sum(product(exact, part) for part in parts).float()
    largest = 127 * (256**digits - 1) // 255
    m = exact.abs().amax(tuple(range(1, x.dim())), keepdim=True)
    finite = m.isfinite()
    _, e = torch.frexp(torch.where(finite, m, 0))
    shift = 8 * digits - 1 - e
    shift -= ((m * _power_of_two(shift)).round() > largest).int()
    fixed = (torch.where(finite, exact, 0) * _power_of_two(shift)).round()
    sums = sum(product(fixed, part).long() for part in parts).float()  # int64 is exact, has no -0, and is rounded once
    outer = (-1, *[1] * (sums.dim() - 1))
    y = _narrow(sums.double() * _power_of_two(-shift).view(outer))
    return torch.where(finite.view(outer), _narrow(_wide(y) * _wide(scale)), torch.nan)


def _parts(rows: int, terms: int = 1) -> list[slice]:
    """Rows in runs, each of less than 2**23 terms in a sum, where a row has so many."""
    step = max(1, MAX_FAN // terms)
    return [slice(first, first + step) for first in range(0, rows, step)]


def _with_bias(sums: Tensor, bias: Tensor | None) -> Tensor:
    """One addition in the dtype of ``sums``: of float32 numbers, float64 and then float32 round as float32 does."""
    if bias is None:
        return sums
    wide = _wide(sums) + _wide(bias)
    return wide if sums.dtype == torch.float64 else _narrow(wide)


def _wide(x: Tensor) -> Tensor:
    """As float64, exactly: a conversion of a denormal float32 may give 0."""
    if x.dtype == torch.float64:
        return x
    x = x.float()
    size = bits.magnitudes(x)
    return torch.where(size < 1 << 23, (size.double() * 2.0**-149).copysign(x), x.double())


def _narrow(x: Tensor) -> Tensor:
    """To the nearest float32, ties to even: a conversion that gives a denormal number may give 0."""
    integers = (x.abs() * 2.0**149).round().clamp(max=2.0**23).int()  # the bits of what is below 2**-126
    y = x.float()
    return torch.where(x.abs() < 2.0**-126, integers.view(torch.float32).copysign(y), y)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2.0**exponent in float64, exactly (``torch.exp2`` may be an ulp off)."""
    return (exponent.long() + 1023 << 52).view(torch.float64)


def _grad_scores(grad: Tensor, dtype: torch.dtype, scores: Tensor, scale: Tensor, source: Source) -> Tensor:
    """From dL/dW ``[rows, fan]`` to the free weights' straight-through gradient: dL/dW * v * scale * sign(score).

    A score of 0 counts as positive: a zero gradient would keep it there for ever.
    """
    free, _ = source.frozen_words(grad.device)
    grad = bits.to_bit_order(grad * source.integer_weight(grad.device))[bits.unpack(free)] * _wide(scale)
    grad = torch.where(bits.is_negative(scores), -grad, grad)
    return grad if dtype == torch.float64 else _narrow(grad)


def _to_kernel(weight: Tensor, window: Window) -> Tensor:
    """``[rows, fan]`` with fan in the order (kh, kw, c) to PyTorch's ``[out, in / groups, kh, kw]``."""
    return weight.view(len(weight), *window.kernel, -1).permute(0, 3, 1, 2)


def _to_matrix(kernel: Tensor) -> Tensor:
    """The inverse of `_to_kernel`."""
    return kernel.permute(0, 2, 3, 1).flatten(1)


def _in_format_of(x: Tensor, y: Tensor) -> Tensor:
    return y.contiguous(memory_format=torch.channels_last if channels_last(x) else torch.contiguous_format)
