"""Edge-Popup: the exact order statistic, local and global thresholds, and known errors of other implementations."""

import copy
import math
import warnings

import hypothesis.strategies as st
import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import nn

from slt_kernels import EdgePopup, Freeze, SupermaskConv2d, SupermaskLinear, backends, convert, ops
from slt_kernels.models import convnet

FROZEN = Freeze(0.3, 0.2)
scopes = pytest.mark.parametrize("scope", ("local", "global"))


def network(freeze: Freeze = FROZEN, **options) -> nn.Sequential:
    return nn.Sequential(
        SupermaskConv2d(2, 6, 3, padding=1, layer=0, freeze=freeze, sparsity=None, **options),
        nn.ReLU(),
        nn.Flatten(),
        SupermaskLinear(96, 20, layer=1, freeze=freeze, sparsity=None, **options),
        nn.ReLU(),
        SupermaskLinear(20, 5, layer=2, freeze=freeze, sparsity=None, **options),
    )


def layers_of(model: nn.Module) -> list:
    return [m for m in model.modules() if hasattr(m, "scores")]


def train_step(model, optimizer, x=None) -> None:
    optimizer.zero_grad()
    x = torch.randn(8, 2, 4, 4) if x is None else x
    F.cross_entropy(model(x), torch.arange(len(x)) % 5).backward()
    optimizer.step()


# select


def by_sorting(scores: list[torch.Tensor], rank: int) -> torch.Tensor:
    return torch.tensor(oracle.drop_threshold(scores, rank), dtype=scores[0].dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_select_is_the_order_statistic(dtype, backend):
    scores = [torch.randn(1000, dtype=dtype), torch.randn(7, 31, dtype=dtype) * 1e-3, torch.randn(1, dtype=dtype)]
    count = sum(s.numel() for s in scores)
    for rank in (-5, 0, 1, 2, 3, 100, 217, 218, 600, count - 2, count - 1, count, count + 1, 10**9):
        threshold = ops.select(scores, rank)
        assert (threshold.dtype, threshold.shape) == (dtype, ())
        assert torch.equal(threshold, by_sorting(scores, rank)), rank


awkward = st.sampled_from((0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-40, 1.1754944e-38, 3.4e38, math.inf, -math.inf))
numbers = awkward | st.floats(width=32, allow_nan=False)


@given(
    tensors=st.lists(st.lists(numbers, max_size=20), min_size=1, max_size=4).filter(any),
    data=st.data(),
    dtype=st.sampled_from((torch.float32, torch.float64)),
)
def test_select_anywhere(tensors, data, dtype):
    """Includes ties, zeros of both signs, denormals, infinities and empty tensors."""
    scores = [torch.tensor(t, dtype=dtype) for t in tensors]
    count = sum(map(len, tensors))
    rank = data.draw(st.integers(-1, count + 1))
    for name in backends.available():
        with backends.use(name):
            assert torch.equal(ops.select(scores, rank), by_sorting(scores, rank))


def test_select_of_neighbours(backend):
    """Floats that differ only in their last bit."""
    one = torch.tensor(1.0)
    near = torch.stack([one, torch.nextafter(one, one + 1), torch.nextafter(one, one - 1)]).repeat(50)
    near = near * torch.where(torch.arange(150) % 2 == 0, 1, -1)
    for rank in (1, 50, 51, 100, 101, 149):
        assert torch.equal(ops.select([near], rank), by_sorting([near], rank))


def test_select_of_ties(backend):
    scores = torch.full((100,), 0.25)
    assert [ops.select([scores], r).item() for r in (0, 1, 50, 99, 100)] == [-math.inf, 0.25, 0.25, 0.25, math.inf]


def test_nan_is_the_largest_and_never_kept(backend):
    scores = torch.tensor((3.0, math.nan, 1.0, -math.nan, 2.0, math.inf))
    assert [ops.select([scores], r).item() for r in (1, 2, 3, 4)] == [1, 2, 3, math.inf]
    assert ops.select([scores], 5).isnan()
    layer = SupermaskLinear(6, 1, sparsity=None)
    for threshold in (-math.inf, 2.5, math.inf, math.nan):
        _, kept = ops.pack(scores, torch.tensor(threshold), layer.source, True)
        assert kept == sum(abs(s) > threshold for s in scores.tolist())


def test_select_takes_any_layout(backend):
    scores = torch.randn(60, 40)
    for layout in (scores.T, scores[::2, ::3], scores.expand(2, 60, 40), nn.Parameter(scores)):
        assert torch.equal(ops.select([layout], 77), by_sorting([layout], 77))
        assert not ops.select([layout], 77).requires_grad


@pytest.mark.parametrize(
    "scores,error,message",
    (
        ([], ValueError, r"scores=\[\]: expected at least one tensor"),
        ([torch.zeros(3).half()], TypeError, r"scores\[0\].dtype=torch.float16: expected"),
        ([torch.zeros(3, dtype=torch.int32)], TypeError, r"scores\[0\].dtype=torch.int32: expected"),
        ([torch.zeros(3), torch.zeros(3).double()], ValueError, r"scores\[1\] is torch.float64 on cpu: expected"),
        ([torch.zeros(3), torch.zeros(3, device="meta")], ValueError, r"scores\[1\] is torch.float32 on meta"),
    ),
)
def test_select_refuses(scores, error, message):
    with pytest.raises(error, match=message):
        ops.select(scores, 1)


# Thresholds, exactly


@scopes
@pytest.mark.parametrize("compact", (False, True), ids=("resolved", "compact"))
@pytest.mark.parametrize("sparsity", (0.31, 0.45, 0.5, 0.7, 0.79))
def test_thresholds(sparsity, compact, scope):
    model = network(compact=compact)
    layers = layers_of(model)
    EdgePopup(model, sparsity, scope)
    scores = [layer.scores for layer in layers]
    ranks = [math.floor(sparsity * layer.total) - layer.pruned for layer in layers]
    if scope == "local":
        thresholds = [oracle.drop_threshold([s], rank) for s, rank in zip(scores, ranks, strict=True)]
    else:
        rank = math.floor(sparsity * sum(m.total for m in layers)) - sum(m.pruned for m in layers)
        thresholds = [oracle.drop_threshold(scores, rank)] * len(layers)
    for layer, threshold in zip(layers, thresholds, strict=True):
        kept = layer.scores.detach().abs() > threshold
        assert torch.equal(layer.compact_mask(), oracle.sequence_words(kept.numpy()))
        assert layer.mask().sum() == layer.locked + kept.sum()


def test_scopes_differ():
    """Layers have scores of different magnitude. A global threshold drops more where scores are small."""
    counts = {}
    for scope in ("local", "global"):
        model = network()
        EdgePopup(model, 0.5, scope)
        counts[scope] = [layer.mask().float().mean().item() for layer in layers_of(model)]
    assert max(counts["local"]) - min(counts["local"]) < 0.02
    assert max(counts["global"]) - min(counts["global"]) > 0.1


def test_a_score_at_the_threshold_is_dropped():
    layer = SupermaskLinear(10, 10, sparsity=0.5)
    with torch.no_grad():
        layer.scores.copy_(torch.arange(1.0, 101))
    layer.update_mask()
    assert layer.mask().sum() == 50
    with torch.no_grad():
        layer.scores.fill_(1)
    layer.update_mask()
    assert not layer.mask().any()  # all tie with the threshold
    layer.update_mask(torch.tensor(0.5))
    assert layer.mask().all()


def test_everything_free_is_kept_where_the_pruned_are_enough():
    """drop <= pruned: by chance, more weights of this layer are pruned than have to be dropped."""
    layer = SupermaskLinear(40, 40, freeze=Freeze(0.25, 0.2), sparsity=0.25, seed=first_seed(lambda m: m.rank < 0))
    assert torch.equal(layer.mask(), layer.frozen_state() >= 0)


def test_nothing_free_is_kept_where_the_locked_are_enough():
    """drop - pruned >= free: more weights of this layer are locked than have to be kept."""
    seed = first_seed(lambda m: math.floor(0.8 * m.total) - m.pruned > m.free)
    layer = SupermaskLinear(40, 40, freeze=Freeze(0.25, 0.2), sparsity=0.8, seed=seed)
    assert layer.free > 0
    assert torch.equal(layer.mask(), layer.frozen_state() == 1)


def first_seed(wanted) -> int:
    options = {"freeze": Freeze(0.25, 0.2), "sparsity": 0.25}
    return next(seed for seed in range(99) if wanted(SupermaskLinear(40, 40, seed=seed, **options)))


# Steps


def test_attached_it_follows_the_optimizer():
    """Masks are made after the optimizer step, and at no other time."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 2.0)
    popup = EdgePopup(model, 0.5)
    handle = popup.attach(optimizer)
    for _ in range(3):
        before = [layer.mask() for layer in layers_of(model)]
        with torch.no_grad():
            layers_of(model)[0].scores.add_(0.01)
        with pytest.warns(UserWarning, match="scores were changed, but the masks are still those made by an EdgePopup"):
            model.train()(torch.randn(2, 2, 4, 4))
        assert all(torch.equal(layer.mask(), m) for layer, m in zip(layers_of(model), before, strict=True))
        train_step(model, optimizer)
        after = [layer.mask() for layer in layers_of(model)]
        assert not all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
        popup.step()
        assert all(torch.equal(layer.mask(), m) for layer, m in zip(layers_of(model), after, strict=True))
    handle.remove()
    train_step(model, optimizer)
    assert all(torch.equal(layer.mask(), m) for layer, m in zip(layers_of(model), after, strict=True))


def test_stepped_by_hand_it_is_the_same():
    models = [network() for _ in range(2)]
    for m in models:
        m.load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), 1.0, momentum=0.9) for m in models]
    popups = [EdgePopup(m, 0.6) for m in models]
    popups[0].attach(optimizers[0])
    for _ in range(3):
        x = torch.randn(8, 2, 4, 4)
        for model, optimizer in zip(models, optimizers, strict=True):
            train_step(model, optimizer, x)
        popups[1].step()
    for a, b in zip(layers_of(models[0]), layers_of(models[1]), strict=True):
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.mask(), b.mask())


def test_a_search_finds_something():
    """The loss of a fixed batch falls although no weight is trained."""
    model = network(scale="dynamic")
    optimizer = torch.optim.SGD([layer.scores for layer in layers_of(model)], 0.2, momentum=0.9)
    EdgePopup(model, 0.5).attach(optimizer)
    x, y = torch.randn(8, 2, 4, 4), torch.arange(8) % 5
    weights = [layer.integer_weight() for layer in layers_of(model)]
    first = F.cross_entropy(model(x), y).item()
    for _ in range(40):
        train_step(model, optimizer, x)
    assert F.cross_entropy(model(x), y).item() < first / 4
    assert all(torch.equal(layer.integer_weight(), v) for layer, v in zip(layers_of(model), weights, strict=True))


def test_sparsity_follows_a_schedule():
    model = network()
    popup = EdgePopup(model, 0.3)
    total = sum(layer.total for layer in layers_of(model))
    for sparsity in (0.4, 0.6, 0.75, 0.5):
        popup.sparsity = sparsity
        popup.step()
        assert popup.sparsity == sparsity
        kept = sum(int(layer.mask().sum()) for layer in layers_of(model))
        assert kept == total - math.floor(sparsity * total)
    with pytest.raises(ValueError, match=r"sparsity=0\.9 is above 1 - lock"):
        popup.sparsity = 0.9
    assert popup.sparsity == 0.5


def test_static_scale_is_of_the_networks_sparsity():
    model = network(scale="static")
    EdgePopup(model, 0.75)
    for layer in layers_of(model):
        assert layer.weight_scale.item() == pytest.approx(2 * math.sqrt(2 / layer.source.fan), rel=1e-6)


def test_a_shared_layer_counts_once():
    shared = SupermaskLinear(20, 20, layer=0)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    popup = EdgePopup(model, 0.5)
    assert popup.total == 400
    assert shared.mask().sum() == 200


def test_refusals():
    model = network()
    with pytest.raises(ValueError, match="scope='layer': expected 'global' or 'local'"):
        EdgePopup(model, 0.5, "layer")
    with pytest.raises(ValueError, match="model: expected at least one supermask layer"):
        EdgePopup(nn.Linear(2, 2), 0.5)
    with pytest.raises(TypeError, match="model: expected a module, got list"):
        EdgePopup([model], 0.5)
    for sparsity in (1.2, "0.5", None):
        with pytest.raises(ValueError, match=f"sparsity={sparsity!r}: expected a fraction"):
            EdgePopup(model, sparsity)
    popup = EdgePopup(model, 0.5)
    biases = [layer.bias for layer in layers_of(model)]
    with pytest.raises(ValueError, match="optimizer: expected one that trains the scores of this model"):
        popup.attach(torch.optim.SGD(biases, 0.1))


def test_a_refused_popup_leaves_the_model_alone():
    model = network()
    before = [layer.mask() for layer in layers_of(model)]
    with pytest.raises(ValueError):
        EdgePopup(model, 0.1)
    assert all(layer.auto_mask for layer in layers_of(model))
    assert all(torch.equal(layer.mask(), m) for layer, m in zip(layers_of(model), before, strict=True))


# Known errors of other implementations of Edge-Popup


@scopes
@pytest.mark.parametrize("freeze", (Freeze(), Freeze(0, 0.4)), ids=("dense", "locked"))
def test_trap_01_sparsity_0_keeps_everything(freeze, scope):
    model = network(freeze)
    EdgePopup(model, 0.0, scope)
    assert all(layer.mask().all() for layer in layers_of(model))
    assert SupermaskLinear(9, 9, sparsity=0.0).mask().all()


@scopes
def test_trap_02_prune_above_sparsity_is_an_error(scope):
    with pytest.raises(ValueError, match=r"sparsity=0\.5 is below prune=0\.7"):
        SupermaskLinear(9, 9, freeze=Freeze(0.7), sparsity=0.5)
    with pytest.raises(ValueError, match=r"sparsity=0\.5 is below prune=0\.(7|6999)"):
        EdgePopup(network(Freeze(0.7)), 0.5, scope)
    mixed = nn.Sequential(SupermaskLinear(40, 40), SupermaskLinear(40, 40, layer=1, freeze=Freeze(0.8), sparsity=0.8))
    EdgePopup(mixed, 0.5, "global")  # 0.4 of all weights are pruned
    with pytest.raises(ValueError, match=r"sparsity=0\.5 is below prune=0\.8"):
        EdgePopup(mixed, 0.5, "local")


def test_trap_03_checkpoints_load_after_a_forward():
    model = network(scale="dynamic")
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    EdgePopup(model, 0.5).attach(optimizer)
    fresh = copy.deepcopy(model.state_dict())
    shapes = {name: (t.shape, t.dtype) for name, t in fresh.items()}
    for _ in range(2):
        train_step(model, optimizer)
    model.eval()(torch.randn(1, 2, 4, 4))
    assert {name: (t.shape, t.dtype) for name, t in model.state_dict().items()} == shapes
    other = network(scale="dynamic")
    x = torch.randn(3, 2, 4, 4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), model(x))
    model.load_state_dict(fresh)
    assert not torch.equal(other(x), model(x))


@scopes
def test_trap_04_a_target_does_not_drift(scope):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    EdgePopup(model, 0.6, scope).attach(optimizer)
    kept = [int(layer.mask().sum()) for layer in layers_of(model)]
    for _ in range(6):
        train_step(model, optimizer)
        model.eval()(torch.randn(2, 2, 4, 4))
        model.train()
    after = [int(layer.mask().sum()) for layer in layers_of(model)]
    assert after == kept if scope == "local" else sum(after) == sum(kept)


@pytest.mark.filterwarnings("ignore:.* no weight is left in")
def test_trap_05_an_emptied_layer_is_0_and_never_nan():
    for scale in (None, "static", "dynamic"):
        layer = SupermaskLinear(20, 9, bias=False, scale=scale, sparsity=1.0)
        x = torch.randn(3, 20, requires_grad=True)
        y = layer(x)
        y.sum().backward()
        assert not layer.mask().any()
        assert layer.weight_scale == 0
        for t in (y, x.grad, layer.scores.grad):
            assert torch.equal(t, torch.zeros_like(t))
    model = network(Freeze(), scale="dynamic")
    with torch.no_grad():
        layers_of(model)[2].scores.mul_(1e-9)
    EdgePopup(model, 0.5)  # the global threshold empties a layer of small scores
    assert not layers_of(model)[2].mask().any()
    assert model(torch.randn(2, 2, 4, 4)).isfinite().all()


@pytest.mark.parametrize("classes", (3, 10, 37))
def test_trap_06_heads_have_the_classes_that_are_asked_for(classes):
    model = convnet(width=8, classes=classes)
    assert model.eval()(torch.randn(2, 1, 8, 8)).shape == (2, classes)
    assert convert(model)(torch.randn(2, 1, 8, 8)).shape == (2, classes)


def test_trap_07_clipping_works_and_averages_keep_masks_binary():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    EdgePopup(model, 0.5).attach(optimizer)
    average = torch.optim.swa_utils.AveragedModel(model)
    before = [layer.scores.detach().clone() for layer in layers_of(model)]
    F.cross_entropy(model(torch.randn(8, 2, 4, 4)), torch.arange(8) % 5).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    moved = sum((layer.scores - b).square().sum() for layer, b in zip(layers_of(model), before, strict=True)).sqrt()
    assert 0 < moved < 1.001e-3
    for _ in range(4):
        train_step(model, optimizer)
        average.update_parameters(model)
    EdgePopup(average, 0.5)
    total = sum(layer.total for layer in layers_of(average))
    assert sum(int(layer.mask().sum()) for layer in layers_of(average)) == total - math.floor(0.5 * total)
    for layer in layers_of(average):
        assert layer.mask_words.dtype == torch.int32
        assert ((layer.frozen_state() == 1) <= layer.mask()).all()
        assert not (layer.mask() & (layer.frozen_state() == -1)).any()


@pytest.mark.parametrize("masks", ("global", "local", "alone"))
def test_masks_of_averaged_scores(masks):
    """As the docstring of `EdgePopup` says: average scores only, then make masks. A layer used alone makes its own."""
    model = network()
    for layer in layers_of(model):
        layer.sparsity = 0.5
        layer.update_mask()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    if masks != "alone":
        popup = EdgePopup(model, 0.5, masks)
        popup.attach(optimizer)
    averaged, seen = torch.optim.swa_utils.AveragedModel(model), []
    for _ in range(3):
        train_step(model, optimizer)
        averaged.update_parameters(model)
        seen.append([layer.scores.detach().clone() for layer in layers_of(model)])
    expected = network()
    for layer, scores in zip(layers_of(expected), zip(*seen, strict=True), strict=True):
        with torch.no_grad():
            layer.scores.copy_(sum(scores) / 3)
    EdgePopup(expected, 0.5, "global" if masks == "global" else "local")
    if masks != "alone":
        EdgePopup(averaged.module, popup.sparsity, popup.scope)
    averaged.eval()(torch.randn(2, 2, 4, 4))
    for ours, theirs in zip(layers_of(averaged), layers_of(expected), strict=True):
        assert torch.allclose(ours.scores, theirs.scores, atol=1e-6)
        assert torch.equal(ours.mask_words, theirs.mask_words)
        assert torch.equal(ours.weight_scale, theirs.weight_scale)


@pytest.mark.parametrize("mode", ("reflect", "replicate", "circular"))
def test_trap_08_padding_mode_is_not_ignored(mode):
    options = {"padding": 1, "bias": False, "dtype": torch.float64}
    layer = SupermaskConv2d(2, 4, 3, padding_mode=mode, **options)
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    expected = F.conv2d(F.pad(x, (1, 1, 1, 1), mode), layer.dense_weight().double())
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(layer(x), SupermaskConv2d(2, 4, 3, **options)(x), atol=0.1)


def test_trap_09_a_score_of_0_can_leave_it():
    layer = SupermaskLinear(20, 6, bias=False, sparsity=0.5)
    with torch.no_grad():
        layer.scores[::2] = 0
        layer.scores[2::4] = -0.0
    layer(torch.randn(4, 20)).pow(2).sum().backward()
    assert (layer.integer_weight() != 0).all()
    assert (layer.scores.grad[::2] != 0).any()
    layer.update_mask(torch.tensor(-1.0))
    layer.scores.grad = None
    layer(torch.randn(4, 20)).pow(2).sum().backward()
    assert (layer.scores.grad != 0).all()


def test_trap_10_sparsity_is_what_is_dropped_and_says_so():
    assert SupermaskLinear(100, 10, sparsity=0.7).mask().sum() == 300
    model = network(Freeze())
    EdgePopup(model, 0.7)
    total = sum(layer.total for layer in layers_of(model))
    assert sum(int(layer.mask().sum()) for layer in layers_of(model)) == total - math.floor(0.7 * total)
    for documented in (SupermaskLinear, EdgePopup):
        assert "dropped" in documented.__doc__


def test_a_layer_without_weights_is_warned_of():
    """A global threshold drops the smaller initial scores of a wide layer first."""
    model = convert(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)))
    with pytest.warns(UserWarning, match=r"no weight is left in 1 of 2 layers \(2\).*scope='local'") as caught:
        EdgePopup(model, 0.6)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EdgePopup(model, 0.6, "local")
        EdgePopup(model, 1.0)


@pytest.mark.parametrize("scope", ("global", "local", "layer"))
def test_outputs_are_nan_where_scores_are(scope):
    """As they are with NaN weights: masks without a free weight would look finite."""
    model = nn.Sequential(SupermaskLinear(20, 5, freeze=FROZEN))
    step = model[0].update_mask if scope == "layer" else EdgePopup(model, 0.6, scope=scope).step
    x = torch.randn(3, 20)
    for layer in layers_of(model):
        layer.scores.data.fill_(torch.nan)
    step()
    assert model(x).isnan().all()
    for layer in layers_of(model):
        layer.scores.data.normal_()
    step()
    assert model(x).isfinite().all()
