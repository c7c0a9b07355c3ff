"""Checks of the operations' arguments, before anything runs."""

from typing import Any

import torch
from torch import Tensor

from ..bits import words_for
from ..conv_geometry import Window
from ..source import MAX_FAN, MAX_ROWS, WEIGHTS, Source


def check_tensor(name: str, value: object) -> None:
    """Raises TypeError unless it is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


_passed: dict[tuple[int, ...], tuple] = {}  # what need not be checked again, by identity: equal values may be no ints


def _has_passed(*values: object) -> bool:
    return not torch.compiler.is_compiling() and tuple(map(id, values)) in _passed


def _pass(*values: object) -> None:
    """Keeps the values, so that no others can have their identity."""
    if not torch.compiler.is_compiling():
        if len(_passed) >= _MOST_PASSED:
            _passed.clear()
        _passed[tuple(map(id, values))] = values


_MOST_PASSED = 4096


def check_source(value: object) -> None:
    """Raises TypeError unless it is a source, and ValueError unless `Source.of` and `shard` can make it.

    Kernels compute addresses from its integers, which anyone may put together by hand.
    """
    if _has_passed(value):
        return
    if not isinstance(value, Source):
        raise TypeError(f"source: expected a Source, got {type(value).__name__}")
    check_integers("source", value, SOURCE_RANGES)
    rows, fan, _, _, _, prune_below, lock_from, first_row, first_word, row_calls = value
    if first_row + rows > MAX_ROWS or first_word + words_for(fan) > 4 * row_calls or prune_below > lock_from:
        raise ValueError(
            f"source={value}: expected first_row + rows of at most {MAX_ROWS}, first_word + ceil(fan / 32) of at most "
            "4 * row_calls, and prune_below of at most lock_from"
        )
    _pass(value)


SOURCE_RANGES = (
    (1, MAX_ROWS),
    (1, MAX_FAN),
    (-(2**63), 2**63 - 1),  # seed
    (0, 2**32 - 1),  # layer
    (0, len(WEIGHTS) - 1),
    (0, 256),  # prune_below
    (0, 256),  # lock_from
    (0, MAX_ROWS - 1),  # first_row
    (0, words_for(MAX_FAN) - 1),  # first_word
    (1, (MAX_FAN + 127) // 128),  # row_calls
)


def check_integers(name: str, values: tuple, ranges: tuple[tuple[int, int], ...]) -> None:
    """Raises ValueError unless each field of a named tuple is an ``int`` in its range.

    NumPy integers are refused: their sums and products may overflow.
    """
    for i, (value, (low, high)) in enumerate(zip(values, ranges, strict=True)):
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)) or not low <= value <= high:
            raise ValueError(f"{name}.{values._fields[i]}={value!r}: expected an int from {low} to {high}")


def check_floating(name: str, dtype: torch.dtype) -> None:
    """Raises TypeError unless it is one of the dtypes that products take."""
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(f"{name}={dtype}: expected float32, float64, bfloat16 or float16")


def check_activations(activations: str | None, x: Tensor | None = None) -> None:
    """Raises ValueError unless it is None or "int8", and TypeError if ``x`` is then float64."""
    if activations not in (None, "int8"):
        raise ValueError(f"activations={activations!r}: expected None or 'int8'")
    if activations is not None and x is not None and x.dtype == torch.float64:
        raise TypeError("x.dtype=torch.float64 with activations='int8': expected float32, bfloat16 or float16")


def check_signs(signs: Tensor, x: Tensor, source: Source) -> None:
    """Raises TypeError or ValueError unless they are sign words of that source, where the input is."""
    check_tensor("signs", signs)
    if WEIGHTS[source.weight] != "signed_constant":
        raise ValueError(f"signs: expected None, since the weight is {WEIGHTS[source.weight]}, not signed_constant")
    if signs.dtype != torch.int32 or signs.shape != (source.rows, source.words) or signs.device != x.device:
        raise ValueError(
            f"signs: expected int32 [{source.rows}, {source.words}] on {x.device}, got {signs.dtype} "
            f"{list(signs.shape)} on {signs.device}"
        )
    if not signs.is_contiguous():
        raise ValueError("signs: expected contiguous words")


def check_layer(
    x: Tensor, scores: Tensor | None, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source
) -> None:
    """Raises TypeError or ValueError unless the tensors of one layer fit each other, their source, and the input."""
    check_source(source)
    check_tensor("scale", scale)
    free = None
    if scores is not None:
        check_tensor("scores", scores)
        free = scores.numel() if torch.compiler.is_compiling() else source.free  # a graph cannot count
        if scores.shape != (free,) or scores.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"scores: expected float32 or float64 [{free}], got {scores.dtype} {list(scores.shape)}")
    check_mask(mask, source, free)
    if scale.dtype != torch.float32 or scale.numel() != 1:
        raise ValueError(f"scale: expected one float32 element, got {scale.dtype} {list(scale.shape)}")
    if bias is not None:
        check_tensor("bias", bias)
        check_floating("bias.dtype", bias.dtype)
        if bias.shape != (source.rows,):
            raise ValueError(f"bias.shape={list(bias.shape)}: expected [{source.rows}]")
    for name, tensor in (("scores", scores), ("mask", mask), ("scale", scale), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name}.device={tensor.device}: expected {x.device}, where the input is")


def check_mask(mask: Tensor, source: Source, free: int | None = None) -> None:
    """Raises TypeError or ValueError unless it is resolved words of that source, or compact ones of its free weights.

    These are counted where ``free`` does not say how many; not while a graph is compiled, which cannot count.
    """
    check_tensor("mask", mask)
    if free is None and mask.dim() == 1 and not torch.compiler.is_compiling():
        free = source.free
    compact = mask.dim() == 1 and (free is None or len(mask) == words_for(free))
    resolved = mask.dim() == 2 and mask.shape == (source.rows, source.words)
    if mask.dtype != torch.int32 or not (resolved or compact):
        raise ValueError(
            f"mask: expected int32 [{source.rows}, {source.words}] (resolved) or [ceil(free / 32)] (compact, "
            f"free={free}), got {mask.dtype} {list(mask.shape)}"
        )
    if not mask.is_contiguous():
        raise ValueError("mask: expected contiguous words")


def check_window(window: Window, source: Source) -> None:
    """Raises TypeError or ValueError unless it is a window, and one that a kernel of that source can have."""
    if _has_passed(window, source):
        return
    if not isinstance(window, Window):
        raise TypeError(f"window: expected a Window, got {type(window).__name__}")
    check_integers("window", window, _WINDOW_RANGES)
    kernel_h, kernel_w, *_, groups = window
    if source.fan % (kernel_h * kernel_w) or source.rows % groups:
        raise ValueError(
            f"window={window}: expected kernel_h * kernel_w to divide fan={source.fan}, and groups rows={source.rows}"
        )
    _pass(window, source)


_WINDOW_RANGES = tuple((0 if name.startswith("padding") else 1, 2**31 - 1) for name in Window._fields)


def check_images(x: Tensor, source: Source, window: Window) -> None:
    """Raises ValueError unless they are images of the window's channels, and neither too small for it nor too large.

    Kernels count the pixels of a padded image in 32 bits a side, and all of its numbers in 64.
    """
    channels = source.fan // (window.kernel_h * window.kernel_w) * window.groups
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(f"x.shape={list(x.shape)}: expected [B, {channels}, H, W] or [{channels}, H, W]")
    size = window.output_size(*x.shape[-2:])
    if min(*x.shape[-2:], *size) < 1:
        raise ValueError(
            f"x.shape={list(x.shape)}: the image is empty, or with padding={window.padding} smaller than "
            f"kernel_size={window.kernel} with dilation={window.dilation}"
        )
    _check_numbers(x, x.shape[-2:], size, source, window)


def check_transposed_images(
    x: Tensor, source: Source, window: Window, output_padding: tuple[int, int]
) -> tuple[int, int]:
    """Height and width of the output of a transposed convolution.

    Raises:
        ValueError: the input is no image of the source's rows, is empty or too large, or leaves no output; or
            ``output_padding`` is not below the stride.
    """
    if x.dim() not in (3, 4) or x.shape[-3] != source.rows:
        raise ValueError(f"x.shape={list(x.shape)}: expected [B, {source.rows}, H, W] or [{source.rows}, H, W]")
    if any(not 0 <= extra < stride for extra, stride in zip(output_padding, window.stride, strict=True)):
        raise ValueError(f"output_padding={output_padding}: expected 0 to stride - 1, with stride={window.stride}")
    height, width = window.input_size(*x.shape[-2:])
    size = (height + output_padding[0], width + output_padding[1])
    if min(*x.shape[-2:], *size) < 1:
        raise ValueError(
            f"x.shape={list(x.shape)}: the image is empty, or with padding={window.padding} leaves an output of "
            f"{size[0]} x {size[1]}"
        )
    _check_numbers(x, size, x.shape[-2:], source, window)
    return size


def _check_numbers(x: Tensor, size: Any, output: Any, source: Source, window: Window) -> None:
    """Raises ValueError if the images of a convolution are too large.

    Args:
        x: what the message names.
        size, output: height and width of the convolution's input and output.
    """
    channels = source.fan // (window.kernel_h * window.kernel_w) * window.groups
    height, width = (side + 2 * padding for side, padding in zip(size, window.padding, strict=True))
    batch = x.shape[0] if x.dim() == 4 else 1
    numbers = batch * max(channels * height * width, source.rows * output[0] * output[1])
    if max(height, width) >= 2**31 or numbers > _MOST_NUMBERS:
        raise ValueError(
            f"x.shape={list(x.shape)} with padding={window.padding}: expected sides under 2**31, padding included, and "
            f"at most 2**53 numbers in the padded images and in the output, got {height} x {width}, {numbers} numbers"
        )


_MOST_NUMBERS = 2**53  # several bytes each, and some padding, stay far below 2**63
