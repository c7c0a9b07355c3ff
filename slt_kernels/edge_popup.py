"""Edge-Popup: masks from the scores by a threshold, once per step (Ramanujan et al., 2020)."""

import math
import warnings

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ._text import some_of
from .nn import sharded_scores
from .nn.checks import check_sparsity
from .nn.network import layers_to_search
from .numbering import warn_of_equal_layers
from .source import fraction

SCOPES = ("global", "local")


class EdgePopup:
    """Makes the masks of all supermask layers of a model, on creation and after each step of an optimizer.

    Of ``total`` weights, ``floor(sparsity * total)`` are **dropped**, pruned ones included. The threshold is an order
    statistic of |score|. A free weight is kept if its |score| is strictly greater.

    Args:
        model: any module. The `auto_mask` of its supermask layers is turned off.
        sparsity: fraction of all weights, frozen ones included, that is dropped.
        scope: "global" for one threshold over all layers (Sreenivasan et al., 2022), "local" for one per layer.

    Warns:
        UserWarning: two layers have the same seed and layer number (`number_layers`); the first masks leave a layer
            without weights, which no gradient passes.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: there is no supermask layer, or one has no scores; an unknown scope; a sparsity outside
            ``[prune, 1 - lock]``, of all weights together for the global scope, of any layer for the local one.

    Example::

        popup = EdgePopup(model, sparsity=0.7)
        popup.attach(optimizer)                 # or call popup.step() after each optimizer.step()

    A model's ``state_dict`` holds the masks, and records that an `EdgePopup` made them. A model that loads it keeps
    these masks. To continue the search, make a new `EdgePopup` and attach it. A layer whose scores train or are changed
    without one warns.

    With averaged scores (``torch.optim.swa_utils.AveragedModel``), make the masks after averaging. Averages of masks or
    of ``weight_scale`` have no meaning, so leave buffers out of the average (``use_buffers=False``, the default); where
    averaged bits contradict the frozen pattern, the next forward raises RuntimeError. Buffers that are copied beside
    averaged scores bring the masks of the other scores::

        averaged = AveragedModel(model)         # and averaged.update_parameters(model) after steps
        EdgePopup(averaged.module, popup.sparsity, popup.scope)

    or call `step` if it has an `EdgePopup`. Layers used alone make their masks themselves.
    """

    def __init__(self, model: nn.Module, sparsity: float, scope: str = "global") -> None:
        if scope not in SCOPES:
            raise ValueError(f"scope={scope!r}: expected 'global' or 'local'")
        self.scope = scope
        self.layers = layers_to_search(model)
        warn_of_equal_layers(model)
        self.total = sum(layer.total for layer in self.layers)
        self.sparsity = sparsity
        for layer in self.layers:
            layer.graded_scores = None
        self.step()
        self._warn_of_empty_layers(model)

    def _warn_of_empty_layers(self, model: nn.Module) -> None:
        scales = {id(layer): layer.weight_scale for layer in self.layers if not layer.weight_scale.is_meta}
        names = [n or "model" for n, m in model.named_modules() if id(m) in scales and not scales[id(m)]]
        if names and self.sparsity < 1:
            warnings.warn(
                f"sparsity={self.sparsity}, scope={self.scope!r}: no weight is left in {len(names)} of "
                f"{len(self.layers)} layers ({some_of(names)}), so nothing trains there or before; use scope='local', "
                "lock a fraction, or drop less",
                stacklevel=3,
            )

    @property
    def sparsity(self) -> float:
        """Fraction of all weights that is dropped. A new value takes effect at the next `step`."""
        return self._sparsity

    @sparsity.setter
    def sparsity(self, sparsity: float) -> None:
        sparsity = fraction("sparsity", sparsity)
        if self.scope == "local":
            for layer in self.layers:
                check_sparsity(sparsity, layer.freeze.prune, layer.freeze.lock)
        else:
            prune = sum(layer.freeze.prune * layer.total for layer in self.layers) / self.total
            lock = sum(layer.freeze.lock * layer.total for layer in self.layers) / self.total
            check_sparsity(sparsity, round(prune, 9), round(lock, 9))  # 0.8 instead of 0.7999999999999999
        self._sparsity = sparsity
        for layer in self.layers:
            layer.sparsity = sparsity
            layer.auto_mask = False

    @torch.no_grad()
    def step(self) -> None:
        """Makes thresholds and masks from the current scores."""
        if self.scope == "global":
            rank = math.floor(self.sparsity * self.total) - sum(layer.pruned for layer in self.layers)
            threshold = sharded_scores.select(self.layers, rank)
        for layer in self.layers:
            layer.update_mask(threshold if self.scope == "global" else sharded_scores.select([layer], layer.rank))

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Calls `step` after each step of the optimizer, until ``remove()`` of the returned handle.

        Masks change after the optimizer's step. So an optimizer that evaluates a closure several times per step (LBFGS)
        uses the same masks each time. A copy of an optimizer (``deepcopy``, pickle) has no hooks and needs another
        `attach`. Of a wrapper with an attribute ``optimizer`` (accelerate, Lightning) the optimizer inside is used.

        Raises:
            ValueError: the optimizer trains none of the scores.
        """
        optimizer = getattr(optimizer, "optimizer", optimizer)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(layer.scores) in trained for layer in self.layers):
            raise ValueError("optimizer: expected one that trains the scores of this model")
        return optimizer.register_step_post_hook(lambda *_: self.step())
