"""Layers that use supermask layers without being one: several of their own, or one of another module."""

import copy
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from torch import nn

from ..source import Freeze
from .supermask import SupermaskLayer


class CompositeLayer(nn.Module):
    """Base of layers that replace one of PyTorch's, with several supermask layers or with none (`tied.py`).

    The supermask layers are numbered ``layer``, ``layer + 1``, ... in the order of ``modules()``, as `number_layers`
    and `convert` number them.
    """

    def to_dense(self) -> nn.Module:
        """PyTorch's own layer with the same weights; where it has none, this one with dense layers inside."""
        return with_dense_layers(self)


def with_dense_layers(model: nn.Module) -> nn.Module:
    """A copy of a model in which each supermask layer inside it is PyTorch's own (`SupermaskLayer.to_dense`)."""
    memo: dict[int, nn.Module] = {}  # what deepcopy takes for a copy made before

    def replace_inside(module: nn.Module) -> None:
        for m in module.children():
            if isinstance(m, SupermaskLayer | CompositeLayer):
                if id(m) not in memo:
                    memo[id(m)] = take_hooks(m.to_dense(), m, copied=True)
            else:
                replace_inside(m)

    replace_inside(model)
    return copy.deepcopy(model, memo)


def take_hooks(new: nn.Module, old: nn.Module, copied: bool = False) -> nn.Module:
    """Gives a module the hooks of another, and returns it.

    Args:
        new, old: the modules.
        copied: whether each has its own afterwards. Default False: they share them, so that existing handles can still
            remove hooks.
    """
    for name in _HOOKS:
        hooks = getattr(old, name)
        setattr(new, name, copy.copy(hooks) if copied else hooks)
    return new


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def weight_options(freeze: Freeze | Sequence[Freeze], weights: int, layer: int) -> Iterator[dict[str, Any]]:
    """The arguments ``freeze`` and ``layer`` of each of a layer's weights, numbered from ``layer`` on.

    Raises:
        ValueError: a list of another length.
    """
    freezes = [freeze] * weights if isinstance(freeze, Freeze) else list(freeze)
    if len(freezes) != weights:
        raise ValueError(f"freeze: {len(freezes)} given, expected one, or one for each of {weights} weights")
    return ({"freeze": f, "layer": number} for f, number in zip(freezes, count(layer), strict=False))
