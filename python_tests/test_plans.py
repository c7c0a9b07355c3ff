"""Plans of the layers: a call without gradients that checks only its input gives what the operation gives."""

import copy

import pytest
import torch
from torch import nn

from slt_kernels import Freeze, SupermaskConv2d, SupermaskEmbedding, SupermaskLinear, backends
from slt_kernels.backends import cpu

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

FROZEN = Freeze(0.25, 0.25)
LAYERS = {
    "linear": (lambda **o: SupermaskLinear(40, 7, **o), lambda *batch: torch.randn(*(batch or (3,)), 40)),
    "conv2d": (
        lambda **o: SupermaskConv2d(6, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, **o),
        lambda *batch: torch.randn(*(batch or (3,)), 6, 9, 7),
    ),
    "embedding": (lambda **o: SupermaskEmbedding(11, 40, **o), lambda *batch: torch.randint(11, batch or (3,))),
    "embedding, padded": (
        lambda **o: SupermaskEmbedding(11, 40, padding_idx=3, **o),
        lambda *batch: torch.randint(11, batch or (5,)),
    ),
}


@pytest.fixture(params=LAYERS)
def kind(request):
    return request.param


def planned(kind: str, **options) -> tuple[nn.Module, torch.Tensor]:
    """A layer that has a plan, and an input."""
    make, an_input = LAYERS[kind]
    layer, x = make(freeze=FROZEN, seed=5, **options), an_input()
    with torch.no_grad():
        layer(x)
    return layer, x


def by_operation(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """With gradients no plan is used."""
    with torch.enable_grad():
        return layer(x).detach()


def check(layer: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        y = layer(x)
    expected = by_operation(layer, x)
    assert (y.dtype, y.shape, y.stride()) == (expected.dtype, expected.shape, expected.stride())
    assert torch.equal(y, expected)


def test_the_first_call_makes_a_plan_and_the_next_use_it(kind, monkeypatch):
    layer, x = planned(kind)
    plan = layer._plan
    assert plan.call is not None
    called = []
    call = plan.call
    monkeypatch.setattr(plan, "call", lambda x: called.append(x) or call(x))
    check(layer, x)
    assert len(called) == 1 and layer._plan is plan


@pytest.mark.parametrize("batch", ((), (0,), (1,), (17,)), ids=str)
def test_batches(kind, batch):
    layer, _ = planned(kind)
    for _ in range(2):
        check(layer, LAYERS[kind][1](*batch))


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16))
def test_dtypes(kind, dtype):
    layer, x = planned(kind)
    if x.is_floating_point():
        for _ in range(2):
            check(layer, x.to(dtype))
    layer.to(dtype)
    for _ in range(2):
        check(layer, x.to(dtype) if x.is_floating_point() else x)


def test_layouts():
    layer, x = planned("conv2d")
    for images in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x[0],
    ):
        check(layer, images)
    layer, x = planned("linear")
    for rows in (x.T.contiguous().T, x[0], x.expand(2, 3, 40), x[:, None]):
        check(layer, rows)
    layer, x = planned("embedding")
    for index in (x.int(), x[0], x[None, ::2], x.expand(2, 3)):
        check(layer, index)


def test_what_changes_is_seen(kind):
    """Scores, the scale, the bias, another mask or bias tensor, another backend, a copy of the layer."""
    layer, x = planned(kind)
    with torch.no_grad():
        layer.scores.mul_(torch.randn_like(layer.scores))
        check(layer, x)
        layer.load_mask(layer.compact_mask() ^ 1, 0.25)
        check(layer, x)
        layer.mask_words = layer.mask_words.clone()
        check(layer, x)
        if getattr(layer, "bias", None) is not None:
            layer.bias.add_(1)
            check(layer, x)
            layer.bias = nn.Parameter(torch.randn_like(layer.bias))
            check(layer, x)
    with backends.use("reference"):
        check(layer, x)
    check(copy.deepcopy(layer), x)


def test_a_cast_drops_the_plan(kind):
    """Its tensors may move, and others take their addresses."""
    layer, _ = planned(kind)
    assert layer.double()._plan is None


@pytest.mark.parametrize("kind", ("linear", "conv2d"))
def test_a_parametrized_bias_is_used(kind):
    make, an_input = LAYERS[kind]
    layer, x = make(seed=5), an_input()
    bias = layer.bias.detach().clone()
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.ReLU())
    zero = make(seed=5, bias=False)
    shape = (-1,) if kind == "linear" else (-1, 1, 1)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(layer(x), zero(x) + bias.relu().view(shape))


def test_a_compact_mask_has_no_plan(kind):
    """It is expanded in each call; that there is none is found once."""
    layer, x = planned(kind, compact=True)
    plan = layer._plan
    assert plan.call is None
    check(layer, x)
    assert layer._plan is plan


@pytest.mark.parametrize("context", (torch.no_grad, torch.enable_grad), ids=("plan", "operation"))
def test_wrong_inputs_are_the_same_errors(context):
    conv, _ = planned("conv2d")
    linear, _ = planned("linear")
    embedding, _ = planned("embedding")
    with context():
        with pytest.raises(ValueError, match=r"x.shape=\[2, 5, 9, 7\]: expected \[B, 6, H, W\]"):
            conv(torch.randn(2, 5, 9, 7))
        with pytest.raises(ValueError, match=r"x.shape=\[2, 6, 9, 1\]: the image is empty"):
            conv(torch.randn(2, 6, 9, 1))
        with pytest.raises(ValueError, match=r"x.shape=\[2, 41\]: expected \[..., 40\]"):
            linear(torch.randn(2, 41))
        for outside in (-1, 11):
            with pytest.raises(IndexError, match=rf"index holds {outside}: expected rows in \[0, 11\)"):
                embedding(torch.tensor([3, outside, 12]))
        for layer in (conv, linear, embedding):
            with pytest.raises(TypeError, match="expected a"):
                layer([1.0])
