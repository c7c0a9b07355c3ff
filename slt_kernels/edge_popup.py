"""Edge-Popup: which weights are kept, from the scores, once a step (Ramanujan et al., 2020)."""

import math

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .nn import sharded_scores
from .nn.checks import check_sparsity
from .nn.network import layers_to_search
from .numbering import warn_of_equal_layers
from .source import fraction

SCOPES = ("global", "local")


class EdgePopup:
    """Makes the masks of all supermask layers of a model, now and after each step of an optimizer.

    Of ``total`` weights ``floor(sparsity * total)`` are **dropped**, the pruned ones among them: the threshold is the
    order statistic of |score| that does so, and a free weight is kept if its |score| is strictly greater.

    Args:
        model: any module; its supermask layers are taken over (their `auto_mask` is turned off).
        sparsity: fraction of all weights, frozen included, that is dropped.
        scope: "global" for one threshold over all layers together (Sreenivasan et al., 2022), "local" for one a layer.

    Warns:
        UserWarning: two layers of one seed and layer number (`number_layers`).

    Raises:
        TypeError: a model that is no module.
        ValueError: no supermask layer, or one without scores; a scope of another name; a sparsity outside
            ``[prune, 1 - lock]``, over all weights together for the global scope, in any layer for the local one.

    Example::

        popup = EdgePopup(model, sparsity=0.7)
        popup.attach(optimizer)                 # or call popup.step() after each optimizer.step()

    A model's ``state_dict`` holds the masks, and that an `EdgePopup` made them: a model that has loaded it keeps them.
    To continue the search, make the `EdgePopup` again and attach it; a layer whose scores train without one warns.

    Of scores that are averaged (``torch.optim.swa_utils.AveragedModel``) the masks are made once the average is taken;
    an average of masks or of ``weight_scale`` means nothing, so buffers stay out of it (``use_buffers=False``, the
    default)::

        averaged = AveragedModel(model)         # and averaged.update_parameters(model) after steps
        EdgePopup(averaged.module, popup.sparsity, popup.scope)

    or, where an `EdgePopup` of it is there, its `step`. Layers used alone do so of their own accord.
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

    @property
    def sparsity(self) -> float:
        """Fraction of all weights that is dropped; a new value takes effect at the next `step`."""
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
            check_sparsity(sparsity, round(prune, 9), round(lock, 9))  # 0.8, where the sum has 0.7999999999999999
        self._sparsity = sparsity
        for layer in self.layers:
            layer.sparsity = sparsity
            layer.auto_mask = False

    @torch.no_grad()
    def step(self) -> None:
        """Makes thresholds and masks from the scores as they are now."""
        if self.scope == "global":
            rank = math.floor(self.sparsity * self.total) - sum(layer.pruned for layer in self.layers)
            threshold = sharded_scores.select(self.layers, rank)
        for layer in self.layers:
            layer.update_mask(threshold if self.scope == "global" else sharded_scores.select([layer], layer.rank))

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Calls `step` after each step of the optimizer, until the returned handle's ``remove()``.

        Masks move after the optimizer's step, so one that evaluates a closure several times in a step (LBFGS) sees
        the same masks throughout. A copy of an optimizer (``deepcopy``, pickle) has no hooks: attach to it again.

        Raises:
            ValueError: the optimizer trains none of the scores.
        """
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(layer.scores) in trained for layer in self.layers):
            raise ValueError("optimizer: expected one that trains the scores of this model")
        return optimizer.register_step_post_hook(lambda *_: self.step())
