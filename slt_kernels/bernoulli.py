"""Bernoulli masks: each step samples a mask that keeps a free weight with probability sigmoid(score)."""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import bits, ops, philox
from .nn import SupermaskLayer, sharded_scores
from .nn.checks import check_sparsity
from .nn.network import layers_to_search
from .numbering import warn_of_equal_layers
from .source import integer

_STREAMS = 2**31  # the first stream of mask samples; all other streams are below


class BernoulliMasks:
    """Samples the masks of all supermask layers of a model, on creation and at each `step`. Scores are logits.

    Section 5 of "Deconstructing Lottery Tickets" (Zhou et al., 2019, https://arxiv.org/abs/1905.01067). The forward
    pass uses a sample ``m ~ Bern(sigmoid(s))``. The backward pass is straight-through for the sampling and
    differentiates the sigmoid: ``dL/ds = dL/dm * sigmoid'(s)``. As in the authors' code, evaluation uses a sample too:
    the current mask, which is also what a ticket holds.

    Draw number ``d`` is a pure function of the layer's seed and number, of ``d`` and of the scores. So every process
    draws the same masks, and a continued search draws the masks of an uninterrupted one.

    Args:
        model: any module. Its supermask layers use these masks (their `auto_mask` is turned off) until `remove`, or
            until an `EdgePopup` is made for them.
        draws: number of masks drawn before. Default 0.

    Attributes:
        layers: the supermask layers.
        draws: number of masks drawn.

    Warns:
        UserWarning: two layers have the same seed and layer number (`number_layers`).

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: there is no supermask layer, or one has no scores or is sharded over processes; ``draws`` is not an
            integer of at least 0.
    """

    def __init__(self, model: nn.Module, draws: int = 0) -> None:
        self.layers = layers_to_search(model)
        if any(layer.group is not None or sharded_scores.is_dtensor(layer.scores) for layer in self.layers):
            raise ValueError("model: its scores are sharded over processes; sampling needs whole scores")
        self.draws = integer("draws", draws, 0, 2**63 - 1)
        warn_of_equal_layers(model)
        for layer in self.layers:
            layer.auto_mask = False
            layer.graded_scores = _through_sigmoid
        self.step()

    def remove(self) -> None:
        """Restores the gradient of Edge-Popup, as making an `EdgePopup` does."""
        for layer in self.layers:
            layer.graded_scores = None

    @torch.no_grad()
    def start_at(self, sparsity: float) -> None:
        """Sets all scores to the value that drops ``sparsity`` of all weights, frozen ones included, on average.

        Raises:
            ValueError: with these frozen weights, no probability between 0 and 1 gives that sparsity.
        """
        total = sum(layer.total for layer in self.layers)
        locked, free = (sum(getattr(layer, n) for layer in self.layers) for n in ("locked", "free"))
        sparsity = check_sparsity(sparsity, 1 - (locked + free) / total, locked / total)
        keep = ((1 - sparsity) * total - locked) / max(free, 1)
        if not 0 < keep < 1:
            raise ValueError(
                f"sparsity={sparsity}: free weights would be kept with probability {keep}, expected (0, 1)"
            )
        for layer in self.layers:
            layer.scores.fill_(math.log(keep / (1 - keep)))
        self.step()

    @torch.no_grad()
    def step(self) -> None:
        """Draws the next mask of every layer."""
        for layer in self.layers:
            kept = (self._uniform(layer) < layer.scores.sigmoid()).float()
            layer.take_mask(*ops.pack(kept, kept.new_tensor(0.5), layer.source, layer.compact))
            layer.weight_scale.masked_fill_(layer.scores.isnan().any(), torch.nan)  # as NaN weights would
        self.draws += 1

    def _uniform(self, layer: SupermaskLayer) -> Tensor:
        """Float32 ``[free]`` in (0, 1), from a stream of the current draw."""
        source, device = layer.source, layer.scores.device
        index = torch.arange((layer.free + 3) // 4, device=device)
        stream = _STREAMS + self.draws % _STREAMS
        words = philox.call(source.seed, source.layer, stream, index).flatten()[: layer.free]
        # The greatest would be rounded to 1, and even a weight of probability 1 would be dropped.
        return ((2 * (words >> 8 & 0xFFFFFF) + 1).float() * 2.0**-25).clamp(max=1 - 2.0**-24)


class _ThroughSigmoid(torch.autograd.Function):
    """Identity on scores. Its backward turns Edge-Popup's gradient ``dL/dm * sign(s)`` into ``dL/dm * sigmoid'(s)``."""

    @staticmethod
    def forward(ctx, scores):
        ctx.save_for_backward(scores)
        return scores.view_as(scores)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (scores,) = ctx.saved_tensors
        keep = scores.sigmoid()
        return torch.where(bits.is_negative(scores), -grad, grad) * (keep * (1 - keep)).to(grad.dtype)


def _through_sigmoid(scores: Tensor) -> Tensor:
    return _ThroughSigmoid.apply(scores)
