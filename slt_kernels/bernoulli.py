"""Bernoulli masks: a free weight is kept with probability sigmoid(score), drawn anew each step (Zhou et al., 2019)."""

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

_STREAMS = 2**31  # from here on nothing else draws


class BernoulliMasks:
    """Samples the masks of all supermask layers of a model, now and at each `step`; a score is a logit.

    Section 5 of "Deconstructing Lottery Tickets" (https://arxiv.org/abs/1905.01067): the forward pass takes a sample
    ``m ~ Bern(sigmoid(s))``, the backward pass goes straight through the sampling and on through the sigmoid,
    ``dL/ds = dL/dm * sigmoid'(s)``. As in the authors' code, evaluation takes a sample too: the mask as it stands,
    which is what a ticket holds.

    Draw number ``d`` is a pure function of the layer's seed and number, of ``d`` and of the scores, so every process
    draws the same masks, and a search that is continued draws on where it stopped.

    Args:
        model: any module; its supermask layers are taken over (their `auto_mask` is turned off) until `remove`, or
            until an `EdgePopup` takes them.
        draws: how many masks were drawn before. Default 0.

    Attributes:
        layers: the supermask layers.
        draws: how many masks have been drawn.

    Warns:
        UserWarning: two layers of one seed and layer number (`number_layers`).

    Raises:
        TypeError: a model that is no module.
        ValueError: no supermask layer, one without scores, or one that is sharded over processes; ``draws`` that is no
            integer of at least 0.
    """

    def __init__(self, model: nn.Module, draws: int = 0) -> None:
        self.layers = layers_to_search(model)
        if any(layer.group is not None or sharded_scores.is_dtensor(layer.scores) for layer in self.layers):
            raise ValueError("model: its scores are sharded over processes; expected whole ones, to sample from")
        self.draws = integer("draws", draws, 0, 2**63 - 1)
        warn_of_equal_layers(model)
        for layer in self.layers:
            layer.auto_mask = False
            layer.graded_scores = _through_sigmoid
        self.step()

    def remove(self) -> None:
        """Gives the layers Edge-Popup's gradient again, as an `EdgePopup` of the model does."""
        for layer in self.layers:
            layer.graded_scores = None

    @torch.no_grad()
    def start_at(self, sparsity: float) -> None:
        """Gives all scores the value at which ``sparsity`` of all weights, frozen included, is dropped on average.

        Raises:
            ValueError: no probability between 0 and 1 does that, given how many weights are frozen.
        """
        total = sum(layer.total for layer in self.layers)
        locked, free = (sum(getattr(layer, n) for layer in self.layers) for n in ("locked", "free"))
        sparsity = check_sparsity(sparsity, 1 - (locked + free) / total, locked / total)
        keep = ((1 - sparsity) * total - locked) / max(free, 1)
        if not 0 < keep < 1:
            raise ValueError(f"sparsity={sparsity}: expected one that leaves the free weights a choice (keeps {keep})")
        for layer in self.layers:
            layer.scores.fill_(math.log(keep / (1 - keep)))
        self.step()

    @torch.no_grad()
    def step(self) -> None:
        """Draws the next mask of every layer."""
        for layer in self.layers:
            kept = (self._uniform(layer) < layer.scores.sigmoid()).float()
            layer.take_mask(*ops.pack(kept, kept.new_tensor(0.5), layer.source, layer.compact))
        self.draws += 1

    def _uniform(self, layer: SupermaskLayer) -> Tensor:
        """Float32 ``[free]`` on (0, 1), from a stream of its own for each draw."""
        source, device = layer.source, layer.scores.device
        index = torch.arange((layer.free + 3) // 4, device=device)
        stream = _STREAMS + self.draws % _STREAMS
        words = philox.call(source.seed, source.layer, stream, index).flatten()[: layer.free]
        return (2 * (words >> 8 & 0xFFFFFF) + 1).float() * 2.0**-25


class _ThroughSigmoid(torch.autograd.Function):
    """The scores; their gradient from the operations' ``dL/dm * sign(s)``, Edge-Popup's, to ``dL/dm * sigmoid'(s)``."""

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
