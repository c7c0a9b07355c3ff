"""Data sets of the user: any map-style data set of PyTorch or Hugging Face, and functions named ``module:function``."""

import importlib
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..._text import shown
from ...source import MAX_ROWS, integer
from .dataset import UNANSWERED, Dataset, Part
from .rng import draws, split

_TARGETS = ("label", "labels", "target")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class MapStyle(Protocol):
    """A map-style data set, such as ``torch.utils.data.Dataset`` or ``datasets.Dataset`` of Hugging Face."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def from_datasets(
    train: MapStyle,
    validation: MapStyle | float,
    test: MapStyle,
    *,
    classes: int | None = None,
    input: str | None = None,
    target: str | None = None,
    seed: int = 0,
) -> Dataset:
    """A data set of images or of tokens from three map-style data sets.

    An example is a pair (input, target), or a dict with a column of each, as Hugging Face has them. An input is an
    image ``[C, H, W]`` or a sequence of tokens ``[T]``, in which case the target is ``[T]`` too. An image is a
    floating-point tensor or array, which is used as it is (in float32), or a Pillow image or uint8, which is divided by
    255; its numbers are finite. Tokens are less than ``classes``. Ignored targets are `UNANSWERED`. All inputs have one
    shape.

    Before an example is read, the global generators of Python, NumPy and PyTorch are seeded from (seed, epoch, index),
    and restored afterwards. So random transforms repeat, and an interrupted search continues with the same examples.

    Args:
        train, test: data sets.
        validation: a data set, or the fraction of ``train`` to use for it (with the transforms of ``train``).
        classes: number of classes, or of tokens. Default: that of the label in Hugging Face's ``features``, or the
            length of torchvision's ``classes``.
        input, target: columns, if examples are dicts. Default: the target is "label", "labels" or "target", and the
            input is the only other column.
        seed: for the generators above, and for the split. Default 0.

    Returns:
        A `Dataset` of kind "images" or "text". Nothing is read before it is used, except the first training example.

    Raises:
        TypeError: an argument that has no length or no examples by index.
        ValueError: an empty data set; an example, a column or a number of classes that is not as above. The examples
            are checked when they are read.
    """
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        if name == "validation" and isinstance(part, float):
            continue
        if not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
            kind = type(part).__name__
            raise TypeError(f"{name}: expected a data set with a length and examples by index, got {kind}")
        if not len(part):
            raise ValueError(f"{name}: expected at least one example")
    if isinstance(validation, float):
        rest, held = split(len(train), validation, seed)
        parts = {"train": (train, rest), "validation": (train, held), "test": (test, None)}
    else:
        parts = {"train": (train, None), "validation": (validation, None), "test": (test, None)}

    columns = _columns(train[0], input, target)
    classes = _classes(train, columns) if classes is None else integer("classes", classes, 1, MAX_ROWS)
    first, _ = _example(train[0], columns, "train[0]")
    if first.dim() == 3:
        kind, dimensions = "images", {"channels": first.shape[0], "size": first.shape[1]}
    else:
        kind, dimensions = "text", {"context": first.shape[0]}
    shape = tuple(first.shape)
    examples = (Examples(*part, name, shape, classes, columns, seed) for name, part in parts.items())
    return Dataset(*examples, kind, {"classes": classes, **dimensions})


class Examples(Part):
    """Examples of a map-style data set.

    Args:
        dataset: the data set.
        indices: int64 ``[N]`` of the examples to use; None for all.
        name: of the part, for errors.
        shape: of an input.
        classes: targets, and tokens, are less than this.
        columns: of input and target in a dict; None if examples are pairs.
        seed: for random transforms.
    """

    def __init__(
        self,
        dataset: MapStyle,
        indices: Tensor | None,
        name: str,
        shape: tuple[int, ...],
        classes: int,
        columns: tuple[str, str] | None,
        seed: int,
    ) -> None:
        self.dataset = dataset
        self.indices = indices
        self.name = name
        self.shape = shape
        self.classes = classes
        self.columns = columns
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)

    def batch(self, indices: Tensor, epoch: int | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        numbers = indices if self.indices is None else self.indices[indices]
        seeds = (draws(numbers, 1, self.seed, epoch or 0)[:, 0] * 2**32).long()
        inputs, targets = [], []
        with _generators_restored():
            for number, seed in zip(numbers.tolist(), seeds.tolist(), strict=True):
                random.seed(seed)
                np.random.seed(seed)
                torch.default_generator.manual_seed(seed)
                x, y = _example(self.dataset[number], self.columns, f"{self.name}[{number}]")
                self._check(x, y, number)
                inputs.append(x)
                targets.append(y)
        return (torch.stack(inputs),), torch.stack(targets)

    def _check(self, x: Tensor, y: Tensor, number: int) -> None:
        if x.shape != self.shape:
            expected = f"expected {list(self.shape)}, as the first training example"
            raise ValueError(f"{self.name}[{number}]: input of shape {list(x.shape)}, {expected}")
        if not x.isfinite().all():
            raise ValueError(f"{self.name}[{number}]: input with NaN or infinity, expected finite numbers")
        if x.dim() == 1:
            self._check_range("token", x, (x < 0) | (x >= self.classes), number)
        if y.shape != (x.shape if x.dim() == 1 else ()):
            expected = "one for each token" if x.dim() == 1 else "one class"
            raise ValueError(f"{self.name}[{number}]: target of shape {list(y.shape)}, expected {expected}")
        self._check_range("target", y, ((y < 0) & (y != UNANSWERED)) | (y >= self.classes), number)

    def _check_range(self, what: str, values: Tensor, wrong: Tensor, number: int) -> None:
        if wrong.any():
            expected = f"expected 0 to {self.classes - 1}" + f", or {UNANSWERED}" * (what == "target")
            raise ValueError(f"{self.name}[{number}]: {what} {values[wrong][0]}, {expected}")


@contextmanager
def _generators_restored() -> Iterator[None]:
    """Restores the global generators of Python, NumPy and PyTorch (of the CPU) after a ``with`` block."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


def _columns(example: Any, input: str | None, target: str | None) -> tuple[str, str] | None:
    """Names of the input and target columns of a dict; None for a pair."""
    if not isinstance(example, Mapping):
        if input is not None or target is not None:
            given = f"input={shown(input)}" if input is not None else f"target={shown(target)}"
            raise ValueError(f"{given}: expected examples with columns, got {type(example).__name__}")
        return None
    names = list(map(str, example))
    if target is None:
        target = next((name for name in _TARGETS if name in names), None)
    if target not in names:
        raise ValueError(f"target={shown(target)}: expected one of the columns {', '.join(names)}")
    others = [name for name in names if name != target]
    if input is None and len(others) == 1:
        input = others[0]
    if input not in others:
        raise ValueError(f"input={shown(input)}: expected one of the columns {', '.join(others)}")
    return input, target


def _classes(train: MapStyle, columns: tuple[str, str] | None) -> int:
    """The number of classes that a data set states."""
    if columns is not None:
        label = getattr(train, "features", {}).get(columns[1])
        if getattr(label, "num_classes", None):
            return label.num_classes
    if getattr(train, "classes", None):
        return len(train.classes)
    raise ValueError("classes=None: expected the number of classes, which train does not state")


def _example(example: Any, columns: tuple[str, str] | None, where: str) -> tuple[Tensor, Tensor]:
    """An example's input, float32 ``[C, H, W]`` or int64 ``[T]``, and its target, int64."""
    if columns is not None:
        if not isinstance(example, Mapping) or not set(columns) <= example.keys():
            raise ValueError(f"{where}: expected the columns {' and '.join(columns)}, got {shown(example)}")
        x, y = (example[name] for name in columns)
    else:
        if not isinstance(example, tuple | list) or len(example) != 2:
            raise ValueError(f"{where}: expected a pair (input, target), got {shown(example)}")
        x, y = example
    if hasattr(x, "convert") and hasattr(x, "mode"):  # a Pillow image
        if x.mode[0] in "IF":  # Pillow would cut off what is above 255
            raise ValueError(f"{where}: image of Pillow's mode {x.mode}, expected one of 8 bits")
        pixels = np.array(x.convert("L" if x.mode in ("1", "L") else "RGB"))
        x = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
    try:
        x, y = torch.as_tensor(x), torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where}: expected an image or tokens, and classes: {shown(str(error))}") from None
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"{where}: target of {y.dtype}, expected integers")
    integers = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
    if x.dim() == 3 and (x.is_floating_point() or x.dtype == torch.uint8):
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    elif x.dim() == 1 and integers:
        x = x.long()
    else:
        expected = f"an image [C, H, W] or integer tokens [T], got {x.dtype} {list(x.shape)}"
        raise ValueError(f"{where}: expected {expected}; pixels are floating-point numbers or uint8")
    return x, y.long()


def is_function(name: Any) -> bool:
    """Whether the name of a data set is one of the user: ``package.module:function``."""
    return isinstance(name, str) and _FUNCTION.fullmatch(name) is not None


def function(name: str) -> Callable[..., Dataset]:
    """The function of a name ``package.module:function``; its module may lie in the current folder.

    Raises:
        ValueError: there is no such module or function.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # a module that the user's own one imports
        raise ValueError(f"data={name}: there is no module {module}") from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ValueError(f"data={name}: {module} has no function {attribute}")
    return found
