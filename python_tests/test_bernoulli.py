"""Bernoulli masks: their distribution, the same draws in every process, and the gradient through the sampling."""

import copy
import math

import pytest
import torch
from torch import nn

from slt_kernels import BernoulliMasks, EdgePopup, Freeze, SupermaskConv2d, SupermaskLinear, backends, bits

FROZEN = Freeze(0.3, 0.2)


def network(**options) -> nn.Sequential:
    options = {"freeze": FROZEN, "sparsity": None, "bias": False} | options
    return nn.Sequential(
        SupermaskConv2d(3, 16, 3, padding=1, layer=0, **options),
        nn.Flatten(),
        SupermaskLinear(16 * 25, 40, layer=1, **options),
    )


def layers_of(model: nn.Module) -> list:
    return [m for m in model.modules() if hasattr(m, "scores")]


def masks_of(model: nn.Module) -> list[torch.Tensor]:
    return [layer.compact_mask() for layer in layers_of(model)]


def equal(a: list, b: list) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_score_is_a_logit():
    """Over many draws a free weight is kept at the rate of its probability, a frozen one always or never."""
    layer = SupermaskLinear(50, 20, bias=False, freeze=FROZEN)
    with torch.no_grad():
        layer.scores.copy_(torch.linspace(-4, 4, layer.free))
    masks = BernoulliMasks(layer)
    draws = 400
    kept = torch.zeros(20, 50)
    for _ in range(draws):
        masks.step()
        kept += layer.mask()
    state = layer.frozen_state()
    assert (kept[state == 1] == draws).all()
    assert (kept[state == -1] == 0).all()
    free = bits.to_bit_order(kept)[bits.unpack(layer.source.frozen_words()[0])] / draws
    expected = layer.scores.detach().sigmoid()
    deviation = (expected * (1 - expected) / draws).sqrt()
    z = (free - expected) / deviation
    assert z.abs().max() < 5
    assert z.mean().abs() < 5 / math.sqrt(layer.free)


@pytest.mark.parametrize("word, score, kept", ((2**32 - 1, 90.0, 10), (0, -90.0, 0)))
def test_certain_weights_are_kept_and_impossible_ones_dropped(monkeypatch, word, score, kept):
    """Whatever is drawn: float32's sigmoid of 90 is 1."""
    layer = SupermaskLinear(10, 1)
    with torch.no_grad():
        layer.scores.fill_(score)
    monkeypatch.setattr("slt_kernels.philox.call", lambda *a: torch.full((len(a[3]), 4), word))
    BernoulliMasks(layer).step()
    assert layer.mask().sum() == kept


@pytest.mark.parametrize("sparsity", (0.4, 0.6, 0.75))
def test_start_at_drops_that_fraction_on_average(sparsity):
    model = network()
    BernoulliMasks(model).start_at(sparsity)
    total = sum(layer.total for layer in layers_of(model))
    kept = sum(int(layer.mask().sum()) for layer in layers_of(model))
    assert kept / total == pytest.approx(1 - sparsity, abs=0.02)
    assert len({round(layer.scores.unique().item(), 6) for layer in layers_of(model)}) == 1


def test_draws_repeat_and_continue():
    """The next draw depends on the number of earlier draws, and on nothing else that the process drew."""
    a, b = network(), network()
    first, second = BernoulliMasks(a), BernoulliMasks(b)
    assert equal(masks_of(a), masks_of(b))
    before = masks_of(a)
    first.step()
    assert not equal(masks_of(a), before)
    torch.rand(3)
    second.step()
    assert equal(masks_of(a), masks_of(b))
    late = BernoulliMasks(copy.deepcopy(b), draws=second.draws)
    first.step()
    assert equal(masks_of(a), [layer.compact_mask() for layer in late.layers])
    other = network(seed=1)
    assert not equal(masks_of(other), before)


def test_draws_are_the_same_on_every_backend(backend):
    model = network()
    BernoulliMasks(model).step()
    with backends.use("reference"):
        other = network()
        BernoulliMasks(other).step()
    assert equal(masks_of(model), masks_of(other))


@pytest.mark.parametrize("compact", (False, True), ids=("resolved", "compact"))
def test_the_gradient_goes_through_the_sigmoid(compact, reference):
    """Against autograd on a materialized weight ``scale * v * (m + sigmoid(s) - sigmoid(s).detach())``."""
    layer = SupermaskLinear(33, 7, bias=False, freeze=FROZEN, compact=compact)
    with torch.no_grad():
        layer.scores.mul_(5)
        layer.scores[3] = 0
    masks = BernoulliMasks(layer)
    x = torch.randn(5, 33, dtype=torch.float64)
    layer(x).square().sum().backward()

    scores = layer.scores.detach().double().requires_grad_()
    spread = torch.zeros(7, 2, 32, dtype=torch.float64)
    free = bits.unpack(layer.source.frozen_words()[0])
    keep = spread.masked_scatter(free, scores.sigmoid())
    keep = bits.to_k_order(keep, 33)
    mask = layer.mask().double() + keep - keep.detach()
    weight = mask * layer.integer_weight().double() * layer.weight_scale.double()
    (x @ weight.T).square().sum().backward()
    assert torch.allclose(layer.scores.grad.double(), scores.grad, rtol=1e-5, atol=1e-9)
    assert scores.grad[3] != 0

    expected = layer.scores.grad.clone()

    def gradient(layer):
        layer.scores.grad = None
        layer(x).square().sum().backward()
        return layer.scores.grad

    assert torch.equal(gradient(copy.deepcopy(layer)), expected)
    layer.load_state_dict({k: v.clone() for k, v in layer.state_dict().items()}, assign=True)
    assert torch.equal(gradient(layer), expected)
    again = BernoulliMasks(layer, draws=masks.draws - 1)  # takes the place of the first
    assert torch.equal(gradient(layer), expected)
    again.remove()
    straight_through = gradient(layer)
    assert not torch.allclose(straight_through.double(), scores.grad, rtol=0.1)
    BernoulliMasks(layer)
    EdgePopup(layer, 0.5)
    assert layer.graded_scores is None


def test_refusals():
    with pytest.raises(ValueError, match="model: expected at least one supermask layer"):
        BernoulliMasks(nn.Linear(2, 2))
    masks = BernoulliMasks(network())
    with pytest.raises(ValueError, match=r"sparsity=0\.1 is below prune="):
        masks.start_at(0.1)
    with pytest.raises(ValueError, match=r"sparsity=1\.5: expected a fraction"):
        masks.start_at(1.5)
    with pytest.raises(ValueError, match="free weights would be kept with probability"):
        BernoulliMasks(network(freeze=Freeze())).start_at(1.0)


def test_outputs_are_nan_where_scores_are():
    layer = SupermaskLinear(20, 5)
    with torch.no_grad():
        layer.scores[3] = torch.nan
    BernoulliMasks(layer).step()
    assert layer(torch.randn(3, 20)).isnan().all()
