"""Frozen fractions from the masks of another network, such as the paper's ``mask_file``.

Masks of other code cannot become masks here: they belong to other random weights. But how many weights a good mask
keeps in each layer is worth knowing before a search: `import_mask` makes frozen fractions of it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .freezing import SPREADS
from .source import Freeze, fraction

_SUFFIXES = (".mask", ".weight_mask")  # of the paper's code, and of torch.nn.utils.prune
_MASKED = (nn.Linear, nn.Conv2d, nn.Embedding)


def import_mask(
    model: nn.Module,
    masks: Mapping[str, Tensor] | str | os.PathLike,
    frozen: float,
    spread: str = "uniform",
) -> list[Freeze]:
    """Frozen fractions for each layer of a model, from the masks of a network of the same shapes.

    As in the paper's code, ``frozen`` of all weights are divided among the layers by ``spread``. Half of a layer's free
    weights are kept. The frozen ones are locked and pruned so that, together, the layer keeps as many as its mask; free
    weights give way where the mask keeps too few or too many.

    Args:
        model: a network before `convert`. Its layers are its ``nn.Linear``, ``nn.Conv2d`` and ``nn.Embedding``, without
            subclasses. If `convert` replaces other modules of it too, such as an attention, give it these three as
            ``types``.
        masks: a ``state_dict``, or a file of one (of ``torch.save`` or safetensors), with ``NAME.mask`` or
            ``NAME.weight_mask`` for each layer. Elements that are not 0 are kept. Layers are matched by name, or, if
            the names differ, by their order.
        frozen: fraction of all weights together, in [0, 1].
        spread: "uniform" (default), "erk", "epl" or "igq".

    Returns:
        Fractions in the order of ``model.modules()``, for ``convert(model, freeze=...)``.

    Raises:
        ValueError: no masks, or masks of other shapes; a file that cannot be read as either; another spread; a number
            outside [0, 1].
        FileNotFoundError: no such file.

    Example::

        fractions = import_mask(network(), "their_model.pt", frozen=0.5, spread="epl")
        model = convert(network(), freeze=fractions, sparsity=None)
    """
    if spread not in SPREADS:
        raise ValueError(f"spread={spread!r}: expected one of {', '.join(SPREADS)}")
    layers = {name: m for name, m in model.named_modules() if type(m) in _MASKED}
    shapes = [tuple(m.weight.shape) for m in layers.values()]
    found = _match(_masks(masks), list(layers), shapes)
    kept = [int(mask.count_nonzero()) / mask.numel() for mask in found]
    free = SPREADS[spread](shapes, 1 - fraction("frozen", frozen))
    return [_layer(k, f) for k, f in zip(kept, free, strict=True)]


def _layer(kept: float, free: float) -> Freeze:
    """Fractions of a layer whose mask keeps ``kept``."""
    ones = min(free / 2, kept)
    zeros = min(free - ones, 1 - kept)
    ones = free - zeros
    return Freeze.of_layer(max(0.0, 1 - kept - zeros), max(0.0, kept - ones))


def _masks(masks: Mapping[str, Tensor] | str | os.PathLike) -> dict[str, Tensor]:
    """Masks by the name of their layer."""
    where = "masks" if isinstance(masks, Mapping) else os.fspath(masks)
    state: Any = masks if isinstance(masks, Mapping) else _read(Path(masks))
    found: dict[str, Tensor] = {}
    for name, t in state.items() if isinstance(state, Mapping) else ():
        for suffix in _SUFFIXES:
            if isinstance(name, str) and name.endswith(suffix) and isinstance(t, Tensor) and t.numel():
                found[name.removeprefix("module.").removesuffix(suffix)] = t
    if not found:
        raise ValueError(f"{where}: expected a state_dict with {' or '.join(f'NAME{s}' for s in _SUFFIXES)}")
    return found


def _read(file: Path) -> Any:
    if file.exists() and not file.is_file():
        raise ValueError(f"{file}: not a file: expected a state_dict with masks")
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file: expected a state_dict with masks")
    try:
        return load_file(file)
    except (SafetensorError, OSError):
        pass
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # of many types for other files
        raise ValueError(
            f"{file}: not safetensors, and not readable by torch.load: expected a state_dict of tensors alone"
        ) from None


def _match(masks: dict[str, Tensor], names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The mask of each layer."""
    by_name = set(names) <= masks.keys()
    if not by_name and len(masks) != len(names):
        raise ValueError(f"masks: {len(masks)} of them, expected one for each of {len(names)} layers")
    found = [masks[name] for name in names] if by_name else list(masks.values())
    labels = names if by_name else list(masks)
    for label, mask, name, shape in zip(labels, found, names, shapes, strict=True):
        if tuple(mask.shape) != shape:
            raise ValueError(f"{label}: mask of shape {list(mask.shape)}, expected {list(shape)}, as layer {name} has")
    return found
