"""A state gives the same outputs with any loader, or an error or warning; never silently another mask."""

import copy
import io
import pickle
import warnings

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune

from slt_kernels import (
    BernoulliMasks,
    EdgePopup,
    Freeze,
    SupermaskConv2d,
    SupermaskEmbedding,
    SupermaskLinear,
    bits,
    drop_scores,
    load_ticket,
    save_ticket,
)

FREEZE = Freeze(0.3, 0.1)


def network(compact: bool = False, sparsity: float = 0.5, **changes):
    options = {"freeze": FREEZE, "scale": "dynamic", "compact": compact, "sparsity": sparsity} | changes
    return nn.Sequential(
        SupermaskEmbedding(40, 48, layer=0, **options),
        nn.Unflatten(1, (3, 4)),
        SupermaskConv2d(3, 8, 3, layer=1, **options),
        nn.Flatten(),
        SupermaskLinear(8 * 2 * 46, 10, layer=2, **options),
    )


def examples() -> torch.Tensor:
    return torch.randint(0, 40, (5, 12), generator=torch.Generator().manual_seed(1))


def layers_of(model):
    return [m for m in model.modules() if hasattr(m, "mask_words")]


# The recorded maker of masks


def by_layers_alone(model):
    for layer in layers_of(model):
        layer.sparsity = 0.8
        layer.update_mask()


def by_training_alone(model):
    by_layers_alone(model)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    model(examples()).square().sum().backward()
    optimizer.step()


def by_ticket(model):
    found = copy.deepcopy(model)
    EdgePopup(found, 0.8)
    found_file = io.BytesIO()
    torch.save([(layer.compact_mask(), layer.weight_scale) for layer in layers_of(found)], found_file)
    found_file.seek(0)
    for layer, (mask, scale) in zip(layers_of(model), torch.load(found_file), strict=True):
        layer.load_mask(mask, scale)


MAKERS = {
    "global": lambda model: EdgePopup(model, 0.8),
    "local": lambda model: EdgePopup(model, 0.8, "local"),
    "samples": BernoulliMasks,
    "alone": by_layers_alone,
    "trained": by_training_alone,
    "ticket": by_ticket,
    "dropped": lambda model: drop_scores(EdgePopup(model, 0.8) and model),
}

# Ways to load a state into a new network


def one_by_one(model, state):
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor.clone())
        else:
            module._buffers[leaf] = tensor.clone()


def by_setattr(model, state):
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        setattr(module, leaf, nn.Parameter(tensor.clone()) if leaf in module._parameters else tensor.clone())


@torch.no_grad()
def in_place(model, state):
    here = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in state.items():
        here[name].copy_(tensor)


def key_by_key(model, state):
    for name, tensor in state.items():
        model.load_state_dict({name: tensor.clone()}, strict=False, assign=True)


def key_by_key_sorted(model, state):
    """In the order of a safetensors file."""
    key_by_key(model, dict(sorted(state.items())))


def at_once(model, state):
    model.load_state_dict(state, strict=False)  # a state without scores


def through_accelerate(model, state):
    accelerate = pytest.importorskip("accelerate.utils")
    for name, tensor in state.items():
        accelerate.set_module_tensor_to_device(model, name, "cpu", value=tensor.clone())


LOADERS = {
    f.__name__: f
    for f in (one_by_one, by_setattr, in_place, key_by_key, key_by_key_sorted, at_once, through_accelerate)
}


@pytest.mark.parametrize("used", (False, True), ids=("new", "used"))
@pytest.mark.parametrize("compact", (False, True), ids=("resolved", "compact"))
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("maker", MAKERS)
def test_any_loader_gives_the_same_bits(maker, load, compact, used):
    model, x = network(compact), examples()
    MAKERS[maker](model)
    y = model.eval()(x)
    other = network(compact)
    if used:
        other(x)
    load(other, model.state_dict())
    with torch.no_grad():
        assert torch.equal(other.train()(x), y)
    for again in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other)), other.double().float()):
        assert torch.equal(again.eval()(x), y)
        for ours, theirs in zip(layers_of(again), layers_of(model), strict=True):
            assert torch.equal(ours.mask(), theirs.mask())


@pytest.mark.parametrize("loader", ("one_by_one", "at_once"))
@pytest.mark.parametrize("maker", MAKERS)
def test_a_loaded_mask_stays_until_scores_change(maker, loader):
    """Layers used alone make masks from the new scores. The others wait for an EdgePopup, with a warning."""
    model, other, x = network(), network(), examples()
    MAKERS[maker](model)
    LOADERS[loader](other, model.state_dict())
    y = other(x)
    optimizer = torch.optim.SGD([layer.scores for layer in layers_of(other)], 1.0)
    y.square().sum().backward()
    optimizer.step()
    if maker in ("alone", "trained"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other(x)
        expected = copy.deepcopy(other)
        for layer in layers_of(expected):
            layer.update_mask()
        assert torch.equal(other(x), expected(x))
        assert not torch.equal(other(x), y)
    else:
        with pytest.warns(UserWarning, match="scores were trained, but the masks are still those made by"):
            assert torch.equal(other(x), y)
        assert not any(layer.auto_mask for layer in layers_of(other))
        EdgePopup(other, 0.7)
        assert not torch.equal(other(x), y)


def test_turned_on_again_auto_mask_follows_scores():
    layer = SupermaskLinear(40, 30)
    EdgePopup(layer, 0.8)
    kept = layer.mask().sum()
    assert not layer.auto_mask
    layer.auto_mask = True
    assert layer.auto_mask
    assert layer.mask().sum() == kept
    layer.sparsity = 0.25
    with torch.no_grad():
        layer.scores.mul_(2)
    assert layer.mask().sum() == 900


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_compiled_graph_uses_the_loaded_masks(load):
    """Also if a compiled graph is the first to use them, in training."""
    model, other, x = network(), network(), examples()
    EdgePopup(model, 0.8)
    load(other, model.state_dict())
    compiled = torch.compile(other, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), model(x))
    assert torch.equal(compiled.eval()(x), model(x))


@pytest.mark.parametrize("maker", ("global", "local", "samples", "ticket", "dropped"))
def test_a_compiled_graph_uses_masks_that_are_loaded_after_its_first_call(maker):
    model, other, x = network(), network(), examples()
    MAKERS[maker](model)
    compiled = torch.compile(other, backend="eager", fullgraph=True)
    compiled(x)
    other.load_state_dict(model.state_dict(), strict=maker != "dropped")
    assert torch.equal(compiled(x), model(x))
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("load", [LOADERS[n] for n in ("one_by_one", "by_setattr", "in_place", "key_by_key")])
@pytest.mark.parametrize("change", ({"seed": 1}, {"freeze": Freeze(0.3, 0.2)}, {"weight": "normal"}), ids=str)
@pytest.mark.parametrize("search", (False, True))
def test_another_networks_state_is_an_error(load, change, search):
    model, other = network(), network(**change)
    if not search:
        drop_scores(other)
    state = {n: t for n, t in model.state_dict().items() if "source_id" in n or "mask" in n}
    with pytest.raises(RuntimeError, match="source_id is of another network"):
        load(other, state)
        other(examples())
    if search and load is not key_by_key:  # an error, which left the network as it was
        with pytest.raises(RuntimeError, match="source_id is of another network"):
            EdgePopup(other, 0.8)


@pytest.mark.parametrize("name", ("mask_words", "weight_scale", "mask_origin"))
@pytest.mark.parametrize("load", [LOADERS[n] for n in ("one_by_one", "at_once")])
def test_a_cast_state_is_an_error(load, name):
    """Words as floats lose bits, and a 16-bit scale changes the outputs."""
    model, other = network(), network()
    EdgePopup(model, 0.8)
    state = {n: t.half() if n.endswith(name) else t for n, t in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=rf"{name}: expected torch\.\w+.*got torch\.float16"):
        load(other, state)
        other.eval()(examples())


def test_words_of_another_shape_are_an_error():
    layer = SupermaskLinear(45, 20)
    layer._buffers["mask_words"] = layer.mask_words[:1].clone()
    with pytest.raises(RuntimeError, match=r"mask_words: expected torch\.int32 of shape \(20, 2\) or \(29,\)"):
        layer(torch.randn(2, 45))


@pytest.mark.parametrize("compact", (False, True))
def test_words_of_the_other_form_are_taken(compact):
    model, other, x = network(compact), network(not compact), examples()
    EdgePopup(model, 0.8)
    one_by_one(other, model.state_dict())
    assert torch.equal(other.eval()(x), model.eval()(x))
    assert [layer.mask_words.dim() for layer in layers_of(other)] == [1 + compact] * 3
    assert torch.equal(layers_of(other)[0].compact_mask(), layers_of(model)[0].compact_mask())


def test_scores_that_are_averaged_have_masks_of_their_own():
    """A mask that was not made from the scores beside it, as after averaging checkpoints, is made again."""
    a, b, other = network(), network(), network()
    by_training_alone(a)
    state = {n: (t + b.state_dict()[n]) / 2 if n.endswith("scores") else t for n, t in a.state_dict().items()}
    other.load_state_dict(state)
    used = [layer.mask() for layer in layers_of(other)]
    for layer, mask in zip(layers_of(other), used, strict=True):
        layer.update_mask()
        assert torch.equal(layer.mask(), mask)


def test_averaged_masks_are_an_error():
    """A mask of the bits of two, which neither search has made; an `EdgePopup` makes one of the averaged scores."""
    model = network()
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True, avg_fn=lambda a, b, _: a + (b - a) // 2)
    for sparsity in (0.6, 0.8):
        EdgePopup(model, sparsity)
        average.update_parameters(model)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^mask_words: [\d,]+ of its bits keep pruned weights or drop locked"):
            average(examples())
    EdgePopup(average.module, 0.8)
    average(examples())


def test_a_gain_that_was_averaged_is_told():
    layer = SupermaskLinear(20, 5)
    layer.source_id[-1] += 1  # its bits, as the last number
    with pytest.raises(RuntimeError, match="another network: its gain differs in the last digits, as an average of"):
        layer(torch.randn(3, 20))


def test_scores_without_their_masks_are_told():
    """As a change in place is: nothing has made masks of them."""
    model = network()
    EdgePopup(model, 0.5)
    other = {name: torch.randn_like(scores) for name, scores in model.named_parameters()}
    with pytest.warns(UserWarning, match="scores were changed, but the masks are still those made by an EdgePopup"):
        model.load_state_dict(other, strict=False)
        model(examples())


def test_masks_without_their_scores_are_kept():
    """Until an `EdgePopup` or `update_mask` makes others of the scores that are there."""
    model, other = network(), network()
    by_training_alone(model)
    masks = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("scores")}
    other.load_state_dict(masks, strict=False)
    assert torch.equal(other(examples()), model(examples()))
    for layer in layers_of(other):  # from now on the layer's own again, which follow the scores
        layer.auto_mask = True
    kept = layers_of(other)[2].mask()
    by_training_alone(other)
    used = layers_of(other)[2].mask()
    assert not torch.equal(used, kept)
    layers_of(other)[2].update_mask()
    assert torch.equal(layers_of(other)[2].mask(), used)
    scores = {name: tensor for name, tensor in model.state_dict().items() if name.endswith("scores")}
    third = network()
    for part in (masks, scores):  # in pieces it is a whole state
        third.load_state_dict(part, strict=False)
    assert torch.equal(third(examples()), model(examples()))
    assert all(layer.auto_mask for layer in layers_of(third))


def test_another_sparsity_makes_another_mask():
    model = network()
    model.state_dict()  # records of which scores the masks are
    layers_of(model)[2].sparsity = 0.9
    model.eval()
    assert layers_of(model)[2].mask().float().mean() < 0.11


FIXED = {"gain": 1.0, "scale": None, "freeze": FREEZE, "compact": True, "in_features": 10}


@pytest.mark.parametrize("name,value", FIXED.items())
def test_what_weights_or_states_depend_on_is_fixed(name, value):
    layer = SupermaskLinear(20, 5, scale="dynamic")
    setattr(layer, name, getattr(layer, name))
    with pytest.raises(AttributeError, match=f"^{name}: fixed when the layer is made"):
        setattr(layer, name, value)


def test_a_step_leaves_pending_gradients_of_other_layers_alone():
    layers = SupermaskLinear(20, 5), SupermaskLinear(20, 5, layer=1)
    optimizer = torch.optim.SGD([p for layer in layers for p in layer.parameters()], 0.1)
    first, second = (layer(torch.randn(3, 20)).sum() for layer in layers)
    first.backward()
    optimizer.step()
    second.backward()
    assert layers[1].scores.grad is not None


def test_a_copy_of_a_compiled_layer_is_its_own():
    layer, x = SupermaskLinear(20, 5), torch.randn(3, 20)
    layer.compile(backend="eager")
    layer(x)
    pickle.dumps(layer)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.scores.copy_(torch.randn_like(other.scores))
    assert torch.allclose(other(x), x @ other.dense_weight().T + other.bias, atol=1e-5)
    assert not torch.equal(other(x), layer(x))


def test_scores_that_other_processes_write_are_seen():
    """Their writes increment no version here: shared scores make a mask at each use."""
    layer = SupermaskLinear(20, 5).share_memory()
    layer(torch.randn(3, 20))
    layer.scores.data.copy_(torch.randn_like(layer.scores))  # as another process, without a version
    mask = layer.mask()
    layer.update_mask()
    assert torch.equal(layer.mask(), mask)


def _prune(layer):
    prune.l1_unstructured(layer, "scores", 0.3)
    layer(torch.randn(3, 20))


def _parametrize(layer):
    nn.utils.parametrize.register_parametrization(layer, "scores", nn.Tanh())


@pytest.mark.parametrize(
    "take,error,message",
    (
        (_prune, RuntimeError, "^scores: no parameter of the layer any more; expected one that is neither pruned"),
        (_parametrize, AttributeError, "^scores: a supermask layer keeps its own, but FullyShardedDataParallel and"),
    ),
)
def test_taking_the_scores_away_is_refused(take, error, message):
    with pytest.raises(error, match=message):
        take(SupermaskLinear(20, 5))


def test_a_state_from_before_mask_origin():
    model, other, x = network(sparsity=0.8), network(), examples()
    state = {n: t for n, t in model.state_dict().items() if not n.endswith("mask_origin")}
    other.load_state_dict(state)
    assert torch.equal(other.eval()(x), model.eval()(x))
    with torch.no_grad():
        layers_of(other)[0].scores.neg_().add_(0.01)
    assert layers_of(other)[0].mask().sum() == 40 * 48 - (40 * 48) // 2


def test_state_dict_says_of_which_scores():
    layer = SupermaskLinear(45, 20)
    before = layer.state_dict()["mask_origin"].clone()
    with torch.no_grad():
        layer.scores[[0, 1]] = layer.scores[[1, 0]]
    after = layer.state_dict()["mask_origin"]
    assert before[0] == after[0] == 0
    assert 0 != before[1] != after[1] != 0
    with torch.no_grad():
        layer.scores[[0, 1]] = layer.scores[[1, 0]]
    assert torch.equal(layer.state_dict()["mask_origin"], before)


def test_functional_call_takes_a_whole_state():
    model, other, x = network(), network(), examples()
    EdgePopup(model, 0.8)
    own = other(x)
    assert torch.equal(functional_call(other, model.state_dict(), (x,)), model(x))
    assert torch.equal(other(x), own)


# Invalid masks


@pytest.mark.parametrize("compact", (False, True))
@pytest.mark.parametrize(
    "mask,error,message",
    (
        (torch.zeros(1, dtype=torch.int32), ValueError, r"compact: expected int32 \[\d+\], got torch.int32 \[1\]"),
        (torch.zeros((), dtype=torch.int32), ValueError, r"got torch.int32 \[\]"),
        (torch.zeros(18), ValueError, "got torch.float32"),
        (torch.zeros(18, dtype=torch.bool), ValueError, "got torch.bool"),
        (torch.zeros(18, dtype=torch.int64), ValueError, "got torch.int64"),
        ([0] * 18, TypeError, "compact: expected a tensor, got list"),
    ),
    ids=("one word", "0-d", "float", "bool", "int64", "list"),
)
def test_load_mask_refuses(mask, error, message, compact):
    layer = SupermaskLinear(45, 20, freeze=FREEZE, compact=compact)
    assert len(layer.compact_mask()) == 18
    before = {n: t.clone() for n, t in layer.state_dict().items()}
    with pytest.raises(error, match=message):
        layer.load_mask(mask, 0.5)
    with pytest.raises((ValueError, TypeError), match="words: expected"):
        layer.take_mask(mask, torch.tensor(3))
    for scale in (float("nan"), float("inf"), 1e300, torch.tensor(torch.nan)):
        with pytest.raises(ValueError, match=r"weight_scale=.*: expected a finite float32 number"):
            layer.load_mask(layer.compact_mask(), scale)
    for scale in (None, "half", torch.ones(2)):
        with pytest.raises(TypeError, match="weight_scale: expected a number"):
            layer.load_mask(layer.compact_mask(), scale)
    assert layer.auto_mask
    assert all(torch.equal(t, before[n]) for n, t in layer.state_dict().items())


@pytest.mark.parametrize("compact", (False, True))
def test_bits_past_the_last_free_weight_are_ignored(compact):
    layer = SupermaskLinear(45, 20, freeze=FREEZE, compact=compact)
    assert layer.free % 32
    layer.load_mask(torch.full((18,), -1, dtype=torch.int32), 0.5)
    assert bits.popcount(layer.compact_mask()) == layer.free


# Parameters on meta


def test_parameters_on_meta_and_buffers_real():
    """Builds a network like ``accelerate.init_empty_weights``."""
    register = nn.Module.register_parameter

    def register_empty(module, name, parameter):
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(module._parameters[name].to("meta"))

    nn.Module.register_parameter = register_empty
    try:
        other = network()
    finally:
        nn.Module.register_parameter = register
    assert all(layer.scores.is_meta and not layer.mask_words.is_meta for layer in layers_of(other))
    assert not any(layer.is_initialized() for layer in layers_of(other))
    other.train().eval().state_dict()
    model, x = network(), examples()
    EdgePopup(model, 0.8)
    one_by_one(other, model.state_dict())
    assert torch.equal(other(x), model.eval()(x))


@pytest.mark.parametrize("buffers", (False, True))
def test_accelerate_loads_a_network(buffers, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, x = network(), examples()
    EdgePopup(model, 0.8)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with accelerate.init_empty_weights(include_buffers=buffers):
        other = network()
    other = accelerate.load_checkpoint_and_dispatch(other, str(tmp_path / "model.pt"), device_map={"": "cpu"})
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_what_to_empty_leaves_is_an_error():
    with torch.device("meta"):
        model = network()
    model.to_empty(device="cpu")
    assert not any(layer.is_initialized() for layer in layers_of(model))
    state = model.train().eval().state_dict()  # a template to load into
    with pytest.raises(RuntimeError, match="nothing was loaded after to_empty"):
        model(examples())
    assert state.keys() == network().state_dict().keys()
    for layer in layers_of(model):
        layer.reset_parameters()
    assert torch.equal(layers_of(model)[1].mask(), layers_of(network())[1].mask())


def test_what_another_network_left_in_memory_is_no_state(monkeypatch):
    with torch.device("meta"):
        model = network()
    left, empty_like = [layer.source_id for layer in layers_of(network())], torch.empty_like

    def used_before(t, **options):
        return left.pop(0) if left and t.shape == left[0].shape else empty_like(t, **options)

    monkeypatch.setattr(torch, "empty_like", used_before)
    model.to_empty(device="cpu")
    assert left == [] and not any(layer.is_initialized() for layer in layers_of(model))


# Masks without an EdgePopup that would update them


def train(model, optimizer):
    optimizer.zero_grad()
    model(examples()).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("make", (lambda m: EdgePopup(m, 0.8), BernoulliMasks), ids=("edge_popup", "bernoulli"))
def test_masks_that_nobody_makes_are_told_once(make):
    model = network()
    masks, optimizer = make(model), torch.optim.SGD(model.parameters(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            train(model, optimizer)
            masks.step()
        train(model, optimizer)
        model.eval()(examples())
        model.train()
    with pytest.warns(UserWarning, match=r"attach\(optimizer\) an EdgePopup, or call its step"):
        train(model, optimizer)


def averaged(model):
    average = copy.deepcopy(model)
    with torch.no_grad():
        for p in average.parameters():
            p.lerp_(p.flip(0), 0.5)
    return average


def of_averaged_states(model):
    """Whose masks and other integers are those of the first state."""
    state, other = model.state_dict(), network().state_dict()
    model.load_state_dict({n: (t + other[n].flip(0)) / 2 if n.endswith("scores") else t for n, t in state.items()})
    return model


def reset(model):
    layers_of(model)[0].reset_scores("hidden_networks")
    return model


@pytest.mark.parametrize("change", (averaged, of_averaged_states, reset))
@pytest.mark.parametrize("make", (lambda m: EdgePopup(m, 0.8), BernoulliMasks), ids=("edge_popup", "bernoulli"))
def test_masks_of_other_scores_are_told_once(make, change):
    """Also in evaluation, and without an optimizer."""
    model = network()
    make(model)
    with pytest.warns(UserWarning, match="scores were changed, but the masks are still those made by"):
        changed = change(model).eval()
        changed(examples())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        changed(examples())
        assert copy.deepcopy(changed).state_dict().keys() == network().state_dict().keys()
    EdgePopup(changed, 0.8)
    changed(examples())


def test_attached_masks_are_silent():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    EdgePopup(model, 0.8).attach(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            train(model, optimizer)


def test_scores_that_do_not_train_are_silent(tmp_path):
    model = network()
    save_ticket(model, tmp_path / "net.slt")
    load_ticket(tmp_path / "net.slt", model)
    for layer in layers_of(model):
        layer.scores.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            train(model, optimizer)


# The generated weight


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_weight_answers_as_a_dense_layers(dtype):
    dense = (nn.Linear(45, 20), nn.Conv2d(6, 4, (3, 2), groups=2), nn.Embedding(30, 40))
    ours = (SupermaskLinear(45, 20), SupermaskConv2d(6, 4, (3, 2), groups=2), SupermaskEmbedding(30, 40))
    for a, b in zip(ours, dense, strict=True):
        weight, expected = a.to(dtype).weight, b.to(dtype).weight
        for name in ("shape", "dtype", "device", "ndim", "is_meta", "is_leaf", "grad"):
            assert getattr(weight, name) == getattr(expected, name)
        assert weight.size(0) == expected.size(0)
        assert weight.numel() == expected.numel()
        assert isinstance(weight, nn.Parameter)
        assert a.get_parameter("weight").shape == expected.shape
        assert "weight" not in dict(a.named_parameters())
        assert not any(n.endswith("weight") for n in a.state_dict())


def test_weight_costs_nothing_until_its_values_are_used(monkeypatch):
    layer = SupermaskLinear(45, 20)
    monkeypatch.setattr(layer, "dense_weight", lambda: pytest.fail("values were not asked for"))
    weight = layer.weight
    assert (weight.shape, weight.dtype, weight.device, len(weight)) == (
        (20, 45),
        torch.float32,
        torch.device("cpu"),
        20,
    )
    assert "20, 45" in repr(weight)


USES = {
    "sum": lambda w: w.sum(),
    "norm": torch.linalg.norm,
    "linear": lambda w: nn.functional.linear(torch.eye(45), w),
    "data": lambda w: w.data.clone(),
    "detach": lambda w: w.detach(),
    "numpy": lambda w: torch.from_numpy(w.numpy()),
    "list": lambda w: torch.tensor(w.tolist()),
    "index": lambda w: w[3:5, ::2],
    "copied": copy.deepcopy,
    "pickled": lambda w: pickle.loads(pickle.dumps(w)),
    "into": lambda w: torch.empty(20, 45).copy_(w),
    "matmul": lambda w: torch.eye(20) @ w,
    "cast": lambda w: w.to(torch.float64),
    "kept": lambda w: nn.Linear(45, 20).weight.data.copy_(w),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_values_of_weight_are_the_dense_weight(use):
    layer = SupermaskLinear(45, 20)
    ours, expected = use(layer.weight), use(layer.dense_weight())
    assert type(ours) is type(expected)
    assert torch.equal(ours, expected)


def test_values_of_weight_are_those_of_the_moment():
    layer = SupermaskLinear(45, 20)
    weight, before = layer.weight, layer.dense_weight()
    layer.update_mask(torch.tensor(0.05))
    assert torch.equal(weight.clone(), layer.dense_weight())
    assert not torch.equal(weight.clone(), before)


WRITES = {
    "in place": lambda w: w.mul_(2),
    "init": lambda w: nn.init.normal_(w),
    "index": lambda w: w.__setitem__(0, 1.0),
    "out": lambda w: torch.add(torch.ones(20, 45), 1, out=w),
    "data": lambda w: setattr(w, "data", torch.ones(20, 45)),
    "in data": lambda w: w.data.normal_(),
    "+=": lambda w: w.__iadd__(1),
    "copy_": lambda w: w.copy_(torch.ones(20, 45)),
    "requires_grad": lambda w: w.requires_grad_(),
}


def test_data_of_weight_has_no_gradient():
    layer = SupermaskLinear(45, 20)
    assert not layer.weight.data.abs().requires_grad and layer.weight.abs().requires_grad
    assert torch.equal(layer.weight.data.clone(), layer.dense_weight())
    assert layer.weight.data.shape == (20, 45)
    (layer.weight.data * layer.weight).sum().backward()
    assert layer.scores.grad is not None


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_weight_is_read_only(write):
    layer = SupermaskLinear(45, 20)
    before = layer.dense_weight()
    with torch.no_grad(), pytest.raises(RuntimeError, match="weight: read-only: a SupermaskLinear's weight"):
        write(layer.weight)
    assert torch.equal(layer.dense_weight(), before)


def test_weight_inside_a_compiled_model():
    """Like T5, which reads the dtype of a weight in its forward."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = SupermaskLinear(45, 20)

        def forward(self, x):
            return self.layer(x.to(self.layer.weight.dtype) * self.layer.weight.shape[0])

    model, x = Model().eval(), torch.randn(3, 45, dtype=torch.float64)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


def test_values_of_weights_inside_a_compiled_model():
    """Operators, methods and functions of two weights, and their gradients."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = SupermaskLinear(45, 20), SupermaskLinear(45, 20, layer=1)

        def forward(self, x):
            return nn.functional.linear(x, self.a.weight + self.b.weight) * self.b.weight.t().sum() - self.a(x)

    model, x = Model(), torch.randn(3, 45)
    compiled, found = torch.compile(model, backend="aot_eager", fullgraph=True), []
    for module in (model, compiled):
        model.zero_grad()
        y = module(x)
        y.square().sum().backward()
        found.append((y, model.a.scores.grad, model.b.scores.grad))
    assert all(map(torch.allclose, *found))


def test_weight_has_no_address(tmp_path):
    """It would be that of values that are freed at once."""
    layer = SupermaskLinear(45, 20)
    for use in (Tensor.data_ptr, lambda w: safetensors.torch.save_file({"weight": w}, tmp_path / "weight")):
        with pytest.raises(RuntimeError, match=r"weight: has no address.*use dense_weight\(\)"):
            use(layer.weight)


def test_tying_is_refused():
    embedding, head = SupermaskEmbedding(50, 32), SupermaskLinear(32, 50, layer=1)
    for value in (embedding.weight, nn.Parameter(torch.randn(50, 32)), torch.randn(50, 32)):
        with pytest.raises(AttributeError, match=r"SupermaskLinear generates its own from its seed.*nor tied"):
            head.weight = value
    head.weight = head.weight  # like a loader that sets what it read
    assert "weight" not in head.__dict__


def test_a_forward_inside_a_step_is_no_reason_to_warn():
    """LBFGS, and Lightning's optimizers, run the forward in a closure."""
    layer = SupermaskLinear(45, 20)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    EdgePopup(layer, 0.6).attach(optimizer)

    def closure():
        optimizer.zero_grad(set_to_none=False)
        loss = layer(torch.ones(3, 45)).square().mean()
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.step(closure)
