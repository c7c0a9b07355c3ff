"""SupermaskLinear and SupermaskConv2d as modules: PyTorch's arguments, masks that follow the scores, and saving."""

import copy
import io
import itertools
import json
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import run_processes
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.utils import vector_to_parameters

from slt_kernels import (
    BernoulliMasks,
    EdgePopup,
    Freeze,
    SupermaskConv2d,
    SupermaskConvTranspose2d,
    SupermaskEmbedding,
    SupermaskLinear,
    drop_scores,
    to_dense,
)
from slt_kernels.source import WEIGHTS

FROZEN = Freeze(0.35, 0.25)


def make(kind: str = "linear", **options):
    options = {"freeze": FROZEN, "seed": 2**64 - 1, "layer": 3} | options
    if kind == "linear":
        return SupermaskLinear(45, 7, **options)
    return SupermaskConv2d(6, 8, 3, padding=1, groups=2, **options)


def an_input(kind: str = "linear", batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 45) if kind == "linear" else torch.randn(batch, 6, 5, 5)


def state_of(layer) -> list[torch.Tensor]:
    return [layer.scores.detach().clone(), layer.mask_words.clone(), layer.weight_scale.clone()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(s.dtype == t.dtype and torch.equal(s, t) for s, t in zip(a, b, strict=True))


kinds = pytest.mark.parametrize("kind", ("linear", "conv2d"))
forms = pytest.mark.parametrize("compact", (False, True), ids=("resolved", "compact"))

# PyTorch's arguments


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
def test_linear_takes_pytorchs_arguments(bias, dtype):
    ours, theirs = SupermaskLinear(45, 7, bias, "cpu", dtype), nn.Linear(45, 7, bias, "cpu", dtype)
    assert ours.weight_shape == theirs.weight.shape
    assert (ours.bias is None) == (theirs.bias is None)
    x = torch.randn(3, 2, 45, dtype=dtype)
    assert ours(x).shape == theirs(x).shape
    assert ours(x).dtype == theirs(x).dtype
    if bias:
        assert (ours.bias.shape, ours.bias.dtype) == (theirs.bias.shape, theirs.bias.dtype)


CONVOLUTIONS = [
    dict(zip(("kernel_size", "stride", "padding", "dilation", "groups"), values, strict=True))
    for values in (
        *itertools.product((1, 2, 3), (1,), ("same", "valid", 0, 1, (2, 1)), (1, 2), (1,)),
        (3, 2, 1, 1, 1),
        ((3, 2), (2, 1), (1, 0), (1, 2), 2),
        ((1, 4), 1, "same", (1, 3), 2),
        ((4, 5), (3, 2), (2, 3), 1, 4),
        (5, 1, "same", 1, 4),
    )
]


def label(arguments: dict) -> str:
    return "-".join(str(v).replace(" ", "") for v in arguments.values())


@pytest.mark.parametrize("padding_mode", ("zeros", "reflect", "replicate", "circular"))
@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=label)
def test_conv2d_takes_pytorchs_arguments(arguments, padding_mode):
    """Shape and values of nn.Conv2d with the effective weight."""
    ours = SupermaskConv2d(4, 8, **arguments, padding_mode=padding_mode, dtype=torch.float64, freeze=FROZEN)
    theirs = nn.Conv2d(4, 8, **arguments, padding_mode=padding_mode, dtype=torch.float64)
    assert ours.weight_shape == theirs.weight.shape
    with torch.no_grad():
        theirs.weight.copy_(ours.dense_weight())
        theirs.bias.copy_(ours.bias)
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    for image in (x, x[0], x.contiguous(memory_format=torch.channels_last)):
        expected = theirs(image)
        assert ours(image).shape == expected.shape
        assert torch.allclose(ours(image), expected, rtol=0, atol=1e-12)


GEOMETRY = {
    "stride": (2, 1),
    "padding": 2,
    "dilation": 2,
    "padding_mode": "circular",
}


@pytest.mark.parametrize("name,value", GEOMETRY.items(), ids=GEOMETRY)
def test_a_convolution_takes_another_geometry(name, value):
    """As PyTorch's, whose attributes may be set."""
    layer, x = SupermaskConv2d(4, 6, 3, padding=1), torch.randn(2, 4, 9, 8)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            before = layer(x)
            setattr(layer, name, value)
            expected = to_dense(layer)(x)
            assert torch.allclose(layer(x), expected, atol=1e-5)
            assert before.shape != expected.shape or not torch.allclose(before, expected, atol=1e-2)
        layer = SupermaskConv2d(4, 6, 3, padding=1)


def test_a_transposed_convolution_takes_another_geometry():
    layer, x = SupermaskConvTranspose2d(4, 6, 3), torch.randn(2, 4, 5, 5)
    layer(x)
    layer.stride, layer.output_padding = 2, 1
    assert torch.allclose(layer(x), to_dense(layer)(x), atol=1e-5)
    assert layer(x).shape == (2, 6, 12, 12)


@pytest.mark.parametrize("make", (SupermaskConv2d, SupermaskConvTranspose2d))
def test_a_geometry_that_cannot_be_is_refused_and_changes_nothing(make):
    layer = make(4, 6, 3)
    for name, value, error in (
        ("stride", 0, ValueError),
        ("groups", 2, AttributeError),
        ("kernel_size", 5, AttributeError),
    ):
        before = getattr(layer, name)
        with pytest.raises(error, match=f"^{name}"):
            setattr(layer, name, value)
        assert getattr(layer, name) == before
    layer.groups = layer.groups


def test_linear_is_its_dense_weight():
    for weight, compact in itertools.product(WEIGHTS, (False, True)):
        layer = make(weight=weight, compact=compact, dtype=torch.float64)
        x = torch.randn(4, 45, dtype=torch.float64)
        weight = layer.integer_weight() * layer.mask() * layer.weight_scale.double()
        assert torch.allclose(layer(x), F.linear(x, weight, layer.bias), rtol=0, atol=1e-12)
        assert torch.allclose(layer.dense_weight().double(), weight, rtol=1e-7, atol=0)


# Inspection


@kinds
@forms
@pytest.mark.parametrize("freeze", (Freeze(), Freeze(0.5), FROZEN, Freeze(0.4, 0.6)), ids=str)
def test_accessors_agree(kind, compact, freeze):
    layer = make(kind, compact=compact, freeze=freeze, sparsity=None, weight="uniform")
    state, v, mask, dense = layer.frozen_state(), layer.integer_weight(), layer.mask(), layer.dense_weight()
    for t, dtype in ((state, torch.int8), (v, torch.int8), (mask, torch.bool), (dense, torch.float32)):
        assert (t.shape, t.dtype) == (layer.weight_shape, dtype)
    counts = [int((state == s).sum()) for s in (-1, 0, 1)]
    assert [layer.pruned, layer.free, layer.locked] == counts
    assert layer.total == state.numel()
    assert layer.scores.shape == (counts[1],)
    assert layer.scores.dtype == torch.float32
    assert not mask[state == -1].any()
    assert mask[state == 1].all()
    assert mask[state == 0].all()  # sparsity=None keeps every free weight
    assert torch.equal(dense, v * mask * layer.weight_scale)


@kinds
@forms
@pytest.mark.parametrize("sparsity", (0.35, 0.5, 0.6, 0.75))
def test_sparsity_counts_all_weights(kind, compact, sparsity):
    layer = make(kind, compact=compact, sparsity=sparsity)
    dropped = min(max(int(sparsity * layer.total), layer.pruned), layer.total - layer.locked)
    assert layer.mask().sum() == layer.total - dropped
    free = layer.frozen_state() == 0
    assert (layer.mask() & free).sum() == layer.total - dropped - layer.locked


def test_what_is_kept_has_the_larger_scores():
    layer = make(sparsity=0.5)
    kept = torch.tensor([bool(layer.compact_mask()[i // 32] >> i % 32 & 1) for i in range(layer.free)])
    assert 0 < kept.sum() < layer.free
    assert layer.scores[kept].abs().min() > layer.scores[~kept].abs().max()


def test_a_convolution_is_numbered_channel_fastest():
    conv = SupermaskConv2d(6, 8, (3, 2), seed=5, layer=9, weight="uniform", freeze=FROZEN)
    flat = SupermaskLinear(36, 8, seed=5, layer=9, weight="uniform", freeze=FROZEN)
    for of_conv, of_flat in (
        (conv.integer_weight(), flat.integer_weight()),
        (conv.frozen_state(), flat.frozen_state()),
        (conv.mask(), flat.mask()),
    ):
        assert torch.equal(of_conv.permute(0, 2, 3, 1).flatten(1), of_flat)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_kaiming_scale(weight):
    layer = SupermaskLinear(4000, 50, weight=weight, sparsity=None)
    assert layer.dense_weight().std().item() == pytest.approx((2 / 4000) ** 0.5, rel=0.01)
    assert SupermaskLinear(4000, 50, weight=weight, gain=1.0).weight_scale * 2**0.5 == pytest.approx(layer.weight_scale)


@pytest.mark.parametrize("scale", (None, "static", "dynamic"))
def test_scale(scale):
    layer = make(scale=scale, sparsity=0.6)
    kept = layer.mask().sum().item()
    factor = {None: 1, "static": 0.4**-0.5, "dynamic": (kept / layer.total) ** -0.5}[scale]
    assert layer.weight_scale.item() == pytest.approx((2 / 45) ** 0.5 * factor, rel=1e-6)


def test_scores_start_the_same_everywhere():
    a, b, other = make(), make(), make(layer=4)
    assert torch.equal(a.scores, b.scores)
    assert a.free != other.free or not torch.equal(a.scores, other.scores)
    assert a.scores.std().item() == pytest.approx((2 / 45) ** 0.5, rel=0.2)


@pytest.mark.parametrize("layer", (SupermaskLinear(400, 100), SupermaskEmbedding(100, 400, std=0.02)), ids=repr)
@pytest.mark.parametrize(
    "how,std", (("uniform", (2 / 400) ** 0.5), ("normal", (2 / 400) ** 0.5), ("hidden_networks", 1 / (3 * 400) ** 0.5))
)
def test_initial_scores(layer, how, std):
    before = layer.mask_words.clone()
    layer.reset_scores(how)
    scores = layer.scores.detach()
    assert scores.std().item() == pytest.approx(std, rel=0.02)
    kurtosis = (scores.pow(4).mean() / scores.pow(2).mean() ** 2).item()
    assert kurtosis == pytest.approx(3 if how == "normal" else 1.8, rel=0.05)
    assert torch.equal(layer.mask_words, before)  # the next use makes it
    with pytest.raises(ValueError, match="how='xavier': expected one of uniform, normal, hidden_networks"):
        layer.reset_scores("xavier")


def test_repr_says_what_it_is():
    for kind in ("linear", "conv2d"):
        text = repr(make(kind))
        for part in ("prune=0.35", "lock=0.25", "seed=18446744073709551615", "layer=3", "weight=signed_constant"):
            assert part in text


# The mask follows the scores


@kinds
@forms
def test_mask_follows_a_step_in_training(kind, compact):
    layer = make(kind, compact=compact)
    optimizer = torch.optim.SGD([layer.scores], 10.0)
    before = layer.mask()
    layer(an_input(kind)).pow(2).sum().backward()
    optimizer.step()
    layer(an_input(kind))
    after = layer.mask()
    assert not torch.equal(after, before)
    layer.update_mask()
    assert torch.equal(layer.mask(), after)


def functional(layer, scores):
    return functional_call(layer, {"scores": scores}, (an_input(),))


def fused_step(layer):
    layer.scores.grad = torch.randn_like(layer.scores)
    torch.optim.Adam(layer.parameters(), 0.1, fused=True).step()


def compiled_fused_step(layer):
    layer.scores.grad = torch.randn_like(layer.scores)
    torch.compile(torch.optim.SGD(layer.parameters(), 1.0, fused=True).step, backend="aot_eager")()


def in_place(layer):
    with torch.no_grad():
        layer.scores.copy_(layer.scores.flip(0))


def replace(layer):
    layer.scores = nn.Parameter(layer.scores.detach().flip(0))


CHANGES = {
    "fused": fused_step,
    "compiled": compiled_fused_step,
    "in place": in_place,
    "replaced": replace,
    "vector": lambda layer: vector_to_parameters(torch.randn(layer.free), [layer.scores]),
    "functional": lambda layer: functional(layer, torch.randn(layer.free)),
}
USES = {
    "training": lambda layer: layer.train()(an_input()),
    "evaluation": lambda layer: layer(an_input()),
    "state_dict": lambda layer: layer.state_dict(),
    "compact_mask": lambda layer: layer.compact_mask(),
    "dense_weight": lambda layer: layer.dense_weight(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_uses_the_mask_uses_that_of_the_scores(change, use):
    layer = make().eval()
    change(layer)
    use(layer)
    used = layer.mask_words.clone()
    layer.update_mask()
    assert torch.equal(used, layer.mask_words)


def test_functional_scores_have_their_own_masks():
    """Also if a tensor gets the address of a deleted one."""
    layer, copied = make(), make()
    for seed in range(4):
        scores = torch.randn(layer.free, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            copied.scores.copy_(scores)
        functional(layer, scores)
        assert torch.equal(layer.mask_words, copied.state_dict()["mask_words"])
        del scores


def test_mask_follows_in_evaluation():
    """A compiled graph uses the mask of ``eval()``, and is not compiled again."""
    layer, x = make(), an_input()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    compiled.eval()(x)
    for _ in range(2):
        fused_step(layer)
        compiled.train()
        with torch.compiler.set_stance("fail_on_recompile"):
            y = compiled.eval()(x)
        layer.update_mask()
        assert torch.equal(y, layer(x))


def test_others_steps_change_no_mask():
    """A loaded mask stays the same while another network is trained, and when its layer is moved."""
    layer, student = make().eval(), make(layer=1)
    other = make(sparsity=0.7)
    layer.load_state_dict(other.state_dict())
    fused_step(student)
    layer.double().float()(an_input())
    assert torch.equal(layer.mask(), other.mask())


def test_mask_is_made_only_when_scores_change(monkeypatch):
    layer, made = make(), []
    monkeypatch.setattr(layer, "update_mask", lambda: made.append(layer._remember_scores()))
    for _ in range(3):
        layer(an_input())
    assert not made
    with torch.no_grad():
        layer.scores.add_(1)
    for _ in range(3):
        layer(an_input())
    assert len(made) == 1


@pytest.mark.parametrize("copied", (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))), ids=("deepcopy", "pickle"))
@pytest.mark.parametrize("changes", range(4))
def test_mask_of_a_copy_follows_its_own_scores(copied, changes):
    """For any number of earlier changes of either scores."""
    layer = make()
    for _ in range(changes):
        with torch.no_grad():
            layer.scores.mul_(1)
    layer(an_input())
    copied = copied(layer)
    with torch.no_grad():
        copied.scores.copy_(copied.scores.flip(0))
    copied(an_input())
    expected = copied.mask()
    copied.update_mask()
    assert torch.equal(copied.mask(), expected)
    assert not torch.equal(copied.mask(), layer.mask())


def test_mask_in_inference_mode():
    with torch.inference_mode():
        layer = make()
        y = layer(an_input())
        layer.scores.copy_(layer.scores.flip(0))
        layer(an_input())
    assert y.shape == (4, 7)
    expected = make()
    with torch.no_grad():
        expected.scores.copy_(expected.scores.flip(0))
    expected.update_mask()
    assert torch.equal(layer.mask(), expected.mask())


@forms
def test_load_mask(compact):
    layer = make(compact=compact)
    bits = torch.randint(-(2**31), 2**31, layer.compact_mask().shape).int()
    bits[-1] &= (1 << layer.free % 32) - 1
    layer.load_mask(bits, 0.75)
    assert torch.equal(layer.compact_mask(), bits)
    assert layer.weight_scale == 0.75
    with torch.no_grad():
        layer.scores.add_(1)
    with pytest.warns(UserWarning, match="scores were changed, but the masks are still those made by load_ticket or"):
        layer.train()(an_input())
    assert torch.equal(layer.compact_mask(), bits)


# Moving, copying and saving


@kinds
@forms
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_casting_leaves_scores_and_masks_alone(kind, compact, dtype):
    layer = make(kind, compact=compact)
    layer(an_input(kind)).sum().backward()
    before, gradient = state_of(layer), layer.scores.grad.clone()
    assert layer.to(dtype) is layer
    assert layer.bias.dtype == dtype
    assert same(state_of(layer), before)
    assert torch.equal(layer.scores.grad, gradient)
    y = layer(an_input(kind).to(dtype))
    assert y.dtype == dtype
    y.sum().backward()
    assert same(state_of(layer.float()), before)


CASTS = (nn.Module.half, nn.Module.bfloat16, nn.Module.double, nn.Module.float, lambda m: m.type(torch.float64))


@pytest.mark.parametrize("cast", CASTS, ids=("half", "bfloat16", "double", "float", "type"))
def test_casting_a_network(cast):
    model = nn.Sequential(make("conv2d"), nn.Flatten(), nn.Linear(200, 3))
    before = state_of(model[0])
    cast(model)
    assert same(state_of(model[0]), before)
    x = an_input("conv2d").to(model[2].weight.dtype)
    assert model(x).dtype == x.dtype


def test_meta_device():
    layer = make().to("meta")
    assert {t.device.type for t in (*layer.parameters(), *layer.buffers())} == {"meta"}
    assert layer.scores.dtype == torch.float32
    assert layer(torch.randn(4, 45, device="meta")).shape == (4, 7)


@kinds
@forms
@pytest.mark.parametrize("copied", (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))), ids=("deepcopy", "pickle"))
def test_copies(kind, compact, copied):
    layer = make(kind, compact=compact)
    with torch.no_grad():
        layer.scores.copy_(torch.randn(layer.free))
    x = an_input(kind)
    y = layer(x)
    other = copied(layer)
    assert same(state_of(other), state_of(layer))
    assert other.source == layer.source
    assert torch.equal(other(x), y)
    with torch.no_grad():
        other.scores.zero_()
    assert layer.scores.any()


# Without scores


@kinds
@forms
def test_dropped_scores_leave_every_answer_and_gradient(kind, compact):
    layer, x = make(kind, compact=compact), an_input(kind).requires_grad_()
    other = copy.deepcopy(layer)
    assert drop_scores(other) is other
    y = layer(x)
    (dx, d_bias) = torch.autograd.grad(y.square().sum(), (x, layer.bias))
    for used in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other)), other.to(torch.float32)):
        assert torch.equal(used(x), y)
        gradients = torch.autograd.grad(used(x).square().sum(), (x, used.bias))
        assert torch.equal(gradients[0], dx)
        assert torch.equal(gradients[1], d_bias)
        with torch.no_grad():
            assert torch.equal(used(x), y)
    assert [name for name, _ in other.named_parameters()] == ["bias"]
    assert "scores" not in other.state_dict()
    assert torch.equal(torch.compile(other, backend="eager", fullgraph=True)(x), y)
    assert torch.equal(other.dense_weight(), layer.dense_weight())
    assert other.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@forms
def test_what_needs_scores_says_so(compact):
    layer = drop_scores(nn.Sequential(make(compact=compact)))
    before = layer[0].mask_words.clone()
    for refused in (layer[0].update_mask, layer[0].reset_scores):
        with pytest.raises(RuntimeError, match="scores were dropped"):
            refused()
    for search in (lambda: EdgePopup(layer, 0.5), lambda: BernoulliMasks(layer)):
        with pytest.raises(ValueError, match="scores were dropped"):
            search()
    assert torch.equal(layer[0].mask_words, before)
    with pytest.raises(ValueError, match="at least one supermask layer"):
        drop_scores(nn.Linear(3, 3))


@forms
@pytest.mark.parametrize("with_scores", (True, False))
def test_a_layer_without_scores_takes_states(compact, with_scores):
    searched, other = make(compact=compact), drop_scores(make(compact=compact, sparsity=0.7))
    x, state = an_input(), searched.state_dict()
    if not with_scores:
        del state["scores"]
    other.load_state_dict(state)
    assert torch.equal(other(x), searched(x))
    if not with_scores:
        with pytest.raises(RuntimeError, match=r"Missing key.*scores"):
            make(compact=compact).load_state_dict(other.state_dict())


def saved(layer) -> dict:
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def trained(layer, kind: str, steps: int = 3):
    optimizer = torch.optim.SGD(layer.parameters(), 5.0, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(an_input(kind)).pow(2).mean().backward()
        optimizer.step()
    layer(an_input(kind))
    return layer


@kinds
@pytest.mark.parametrize("steps", (0, 3), ids=("before", "after"))
@pytest.mark.parametrize("forms", list(itertools.product((False, True), repeat=2)), ids=str)
def test_state_dict_round_trip(kind, steps, forms):
    """Before and after training, between both forms of a mask."""
    layer = trained(make(kind, compact=forms[0]), kind, steps)
    other = trained(make(kind, compact=forms[1]), kind, 2)
    other.load_state_dict(saved(layer))
    x = an_input(kind)
    assert torch.equal(other.scores, layer.scores)
    assert torch.equal(other.compact_mask(), layer.compact_mask())
    assert torch.equal(other.mask(), layer.mask())
    assert torch.equal(other.weight_scale, layer.weight_scale)
    assert torch.equal(other.eval()(x), layer.eval()(x))
    assert torch.equal(other.train()(x), layer.train()(x))


def test_loading_leaves_the_state_dict_alone():
    state = make(compact=True).state_dict()
    shapes = {name: t.shape for name, t in state.items()}
    make().load_state_dict(state)
    assert {name: t.shape for name, t in state.items()} == shapes


def test_training_goes_on_from_a_checkpoint():
    layers = [trained(make(), "linear") for _ in range(1)]
    other = make()
    other.load_state_dict(saved(layers[0]))
    layers.append(other)
    x = an_input()
    for layer in layers:
        optimizer = torch.optim.SGD(layer.parameters(), 5.0)
        for _ in range(2):
            optimizer.zero_grad()
            layer(x).pow(2).mean().backward()
            optimizer.step()
        layer(x)
    assert torch.equal(layers[0].scores, layers[1].scores)
    assert torch.equal(layers[0].mask(), layers[1].mask())


@pytest.mark.parametrize("form", (False, True), ids=("resolved", "compact"))
def test_a_checkpoint_holds_no_weights(form):
    layer = SupermaskLinear(512, 256, freeze=Freeze(0.5, 0.3), compact=form)
    size = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    mask = layer.free / 8 if form else layer.total / 8
    assert size <= 4 * layer.free + mask + 4 * 256 + 200
    assert size < layer.total  # not even a byte a weight


@pytest.mark.parametrize(
    "change,message",
    (
        ({"seed": 1}, r"seed=-1 \(expected 1\)"),
        ({"layer": 4}, r"layer=3 \(expected 4\)"),
        ({"freeze": Freeze(0.25, 0.35)}, r"prune_below=90 \(expected 64\), lock_from=192 \(expected 166\)"),
        ({"weight": "normal"}, r"weight=0 \(expected 2\)"),
        ({"scale": "dynamic"}, r"scale=None \(expected dynamic\)"),
        ({"gain": 1.0}, r"gain=1\.414214 \(expected 1\.0\)"),
    ),
    ids=lambda c: next(iter(c)) if isinstance(c, dict) else "",
)
def test_a_checkpoint_of_another_network_is_refused(change, message):
    layer = make(**change)
    before = state_of(layer)
    with pytest.raises(RuntimeError, match=f"source_id is of another network: {message}"):
        layer.load_state_dict(make().state_dict())
    assert same(state_of(layer), before)


def test_a_checkpoint_from_before_scale_and_gain_were_told():
    layer, other = trained(make(), "linear"), make()
    state = layer.state_dict()
    state["source_id"] = state["source_id"][:-2]
    other.load_state_dict(state)
    assert same(state_of(other), state_of(layer))
    assert torch.equal(other.source_id, layer.source_id)


@pytest.mark.parametrize("fused", (False, True))
def test_a_search_goes_on_from_a_state_dict(fused):
    """Three steps, a new network, three more steps: the same bits as six steps."""

    def network():
        torch.manual_seed(1)
        return nn.Sequential(SupermaskLinear(45, 20, layer=0), nn.ReLU(), SupermaskLinear(20, 7, layer=1))

    def train(model, steps):
        optimizer = torch.optim.SGD(model.parameters(), 1.0, fused=fused)
        for seed in steps:
            x = torch.randn(8, 45, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.arange(8) % 7).backward()
            optimizer.step()
        return model.state_dict()

    whole, first, second = network(), network(), network()
    second.load_state_dict(copy.deepcopy(train(first, range(3))))
    ours, theirs = train(second, range(3, 6)), train(whole, range(6))
    assert all(torch.equal(t, theirs[name]) for name, t in ours.items())


def test_threads_and_gradients_of_one_thread():
    layer, x = make("conv2d"), an_input("conv2d")
    y = layer(x)
    torch.set_num_threads(1)
    assert torch.equal(layer(x), y)


# Second derivatives


@pytest.mark.parametrize("kind", ("linear", "conv2d", "embedding"))
def test_a_second_derivative_is_refused(kind):
    """Also through the last layer, whose incoming gradient does not require grad."""
    layer = SupermaskEmbedding(9, 8) if kind == "embedding" else make(kind)
    x = torch.arange(4) if kind == "embedding" else an_input(kind).requires_grad_()
    wanted = [layer.scores] if kind == "embedding" else [x, layer.scores, layer.bias]
    first = torch.autograd.grad(layer(x).sum(), wanted)
    again = torch.autograd.grad(layer(x).sum(), wanted, create_graph=True)
    assert same(list(first), list(again))
    for gradient in again:
        with pytest.raises(RuntimeError, match="a supermask layer has no second derivative"):
            gradient.square().sum().backward(retain_graph=True)


def test_a_second_derivative_is_not_zero_in_silence():
    """``torch.autograd.functional`` replaces unreachable gradients by zeros."""
    layer, x = make(), an_input(batch=1)[0]
    functional = torch.autograd.functional
    for call in (functional.hessian, lambda f, x: functional.hvp(f, x, x), lambda f, x: functional.vhp(f, x, x)):
        with pytest.raises(RuntimeError, match="a supermask layer has no second derivative"):
            call(lambda x: layer(x).square().sum(), x)
    (gradient,) = torch.autograd.grad(layer(x.requires_grad_()).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="a supermask layer has no second derivative"):
        torch.autograd.grad(gradient.square().sum(), layer.scores, allow_unused=True)


def test_a_checkpoint_gives_gradients_that_could_be_differentiated():
    """With create_graph=True. A checkpoint allows one unpacking of saved tensors."""
    layer, x = make(), an_input().requires_grad_()
    expected = torch.autograd.grad(layer(x).square().sum(), [x, layer.scores])
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    got = torch.autograd.grad(y.square().sum(), [x, layer.scores], create_graph=True)
    assert same(list(got), list(expected))


@kinds
def test_forward_mode_is_refused(kind):
    layer, x = make(kind), an_input(kind)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
            layer(forward_ad.make_dual(x, x))
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError):
            torch.func.jvp(layer, (x,), (x,))


# Processes


def forward_in_child(connection, layer, x):
    torch.set_num_threads(1)  # as data loaders do: PyTorch's own products hang in a forked child otherwise
    connection.send_bytes(layer(x).detach().numpy().tobytes())


def test_fork_after_a_forward():
    """Like the workers of a data loader."""
    layer = SupermaskLinear(512, 256)
    x = torch.randn(64, 512)
    y = layer(x)
    y.sum().backward()
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=forward_in_child, args=(theirs, layer, x), daemon=True)
    child.start()
    try:
        assert ours.poll(60), "the child hangs"
        assert ours.recv_bytes() == y.detach().numpy().tobytes()
        child.join(30)
        assert child.exitcode == 0
    finally:
        child.kill()


DISTRIBUTED = """
from slt_kernels import EdgePopup, Freeze, SupermaskLinear

options = {"freeze": Freeze(0.35, 0.25), "scale": "dynamic"}
model = torch.nn.Sequential(SupermaskLinear(16, 32, layer=0, **options), torch.nn.ReLU(),
                            SupermaskLinear(32, 4, layer=1, **options))
torch.manual_seed(0)
for layer in (model[0], model[2]):
    torch.nn.init.uniform_(layer.bias)
wrapped = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(wrapped.parameters(), 1.0)
EdgePopup(wrapped, 0.6).attach(optimizer)
x, y = torch.randn(8, 16), torch.randint(4, (8,))
before = model[0].compact_mask()
for _ in range(3):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(wrapped(x[rank::world]), y[rank::world]).backward()
    optimizer.step()
assert not torch.equal(model[0].compact_mask(), before)
mine = torch.cat([model[0].compact_mask(), model[2].compact_mask()])
everyones = [torch.zeros_like(mine) for _ in range(world)]
dist.all_gather(everyones, mine)
assert all(torch.equal(m, mine) for m in everyones)
print(mine.sum().item())
"""


@pytest.mark.parametrize("world", (1, 2))
def test_distributed_data_parallel(world, tmp_path):
    """Every process makes the same masks from the same scores, without communication."""
    assert len(set(run_processes(DISTRIBUTED, world, tmp_path))) == 1


# Bad input


@pytest.mark.parametrize(
    "arguments,message",
    (
        ({"in_features": 0}, "in_features=0: expected an integer from 1 to 8388607"),
        ({"out_features": -1}, "out_features=-1: expected an integer from 1 to 2147483647"),
        ({"sparsity": 1.5}, "sparsity=1.5: expected a fraction"),
        ({"sparsity": -0.1}, "sparsity=-0.1: expected a fraction"),
        ({"sparsity": float("nan")}, "sparsity=nan: expected a fraction"),
        ({"sparsity": 0.2}, "sparsity=0.2 is below prune=0.35"),
        ({"sparsity": 0.8}, "sparsity=0.8 is above 1 - lock=0.75"),
        ({"scale": "kaiming"}, "scale='kaiming': expected None, 'static' or 'dynamic'"),
        ({"sparsity": "0.5"}, "sparsity='0.5': expected a fraction"),
        ({"gain": "a"}, "gain='a': expected a positive number"),
        ({"gain": 0}, "gain=0: expected a positive number"),
        ({"gain": float("inf")}, "gain=inf: expected a positive number"),
        ({"weight": "ternary"}, "weight='ternary': expected one of"),
        ({"seed": -1}, "seed=-1: expected"),
        ({"seed": True}, "seed=True: expected"),
        ({"layer": 2**32}, "layer=4294967296: expected"),
    ),
)
def test_linear_refuses(arguments, message):
    with pytest.raises(ValueError) as error:
        SupermaskLinear(**({"in_features": 45, "out_features": 7, "freeze": FROZEN} | arguments))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "arguments,message",
    (
        ({"in_channels": 5, "groups": 2}, "in_channels=5: expected a multiple of groups=2"),
        ({"out_channels": 7, "groups": 2}, "out_channels=7: expected a multiple of groups=2"),
        ({"out_channels": 0}, "out_channels=0: expected"),
        ({"groups": 0}, "groups=0: expected an integer from 1"),
        ({"groups": True}, "groups=True: expected"),
        ({"kernel_size": 0}, "kernel_size=0: expected"),
        ({"kernel_size": True}, "kernel_size=True: expected"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size=(3, 3, 3): expected"),
        ({"stride": -1}, "stride=-1: expected"),
        ({"dilation": 0}, "dilation=0: expected"),
        ({"dilation": 1.5}, "dilation=1.5: expected"),
        ({"padding": -1}, "padding=-1: expected"),
        ({"padding": "full"}, "padding='full': expected 'same', 'valid'"),
        ({"padding": "same", "stride": 2}, "padding='same' with stride=(2, 2): expected stride 1"),
        ({"padding_mode": "mirror"}, "padding_mode='mirror': expected one of zeros, reflect, replicate, circular"),
        ({"sparsity": 0.9, "freeze": FROZEN}, "sparsity=0.9 is above 1 - lock=0.75"),
    ),
)
def test_conv2d_refuses(arguments, message):
    with pytest.raises(ValueError) as error:
        SupermaskConv2d(**({"in_channels": 4, "out_channels": 8, "kernel_size": 3} | arguments))
    assert message in str(error.value)


def test_arguments_of_numpy():
    one, three = np.int64(1), np.int32(3)
    x, layer = (
        torch.ones(1, 4, 5, 5),
        SupermaskConv2d(np.int64(4), np.int64(8), three, one, one, one, np.int64(2), False),
    )
    assert torch.equal(layer(x), SupermaskConv2d(4, 8, 3, 1, 1, 1, 2, False)(x))
    embedding = SupermaskEmbedding(np.int64(5), 4, padding_idx=np.int64(-1))
    json.dumps([layer.padding, layer.kernel_size, layer.groups, layer.in_channels, embedding.padding_idx])


def test_a_layer_refuses_an_input_that_does_not_fit():
    with pytest.raises(ValueError, match=r"x.shape=\[4, 44\]: expected \[..., 45\]"):
        make()(torch.randn(4, 44))
    with pytest.raises(ValueError, match=r"x.shape=\[5, 5\]: expected"):
        SupermaskConv2d(4, 8, 3, padding=1, padding_mode="reflect")(torch.randn(5, 5))
    with pytest.raises(TypeError, match=r"x\.dtype=torch\.int64"):
        make()(torch.ones(4, 45, dtype=torch.int64))
    padded = SupermaskConv2d(6, 8, 3, padding=1, padding_mode="reflect")
    for layer, name in ((make(), "x"), (make("conv2d"), "x"), (padded, "x"), (SupermaskEmbedding(9, 8, 0), "index")):
        for value in ([[1.0]], torch.ones(4, 45).numpy()):
            with pytest.raises(TypeError, match=f"{name}: expected a tensor, got {type(value).__name__}"):
                layer(value)
