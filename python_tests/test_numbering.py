"""Layers with the same seed and number: warnings, and number_layers."""

import copy
import warnings

import pytest
import torch
from torch import nn

from slt_kernels import (
    BernoulliMasks,
    EdgePopup,
    Freeze,
    SupermaskConv2d,
    SupermaskEmbedding,
    SupermaskLinear,
    convert,
    drop_scores,
    load_ticket,
    number_layers,
    save_ticket,
    summary,
)

FROZEN = Freeze(0.35, 0.25)


def network(numbers=(0, 0, 0), seeds=(0, 0, 0), **options) -> nn.Sequential:
    """A network built by hand, with the same biases in every call."""
    torch.manual_seed(1)
    layers = [
        SupermaskEmbedding(20, 40, seed=seeds[0], layer=numbers[0], **options),
        SupermaskLinear(40, 40, seed=seeds[1], layer=numbers[1], **options),
        SupermaskConv2d(40, 9, 1, seed=seeds[2], layer=numbers[2], **options),
    ]
    return nn.Sequential(layers[0], nn.ReLU(), nn.Sequential(layers[1]), nn.Unflatten(-1, (40, 1, 1)), layers[2])


USES = {
    "edge_popup": lambda model, path: EdgePopup(model, 0.5),
    "bernoulli": lambda model, path: BernoulliMasks(model),
    "save_ticket": lambda model, path: save_ticket(model, path),
    "summary": lambda model, path: summary(model),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_equal_layers_are_warned_of(use, tmp_path):
    with pytest.warns(UserWarning) as caught:
        use(network((4, 3, 4), (2**63, 2**63, 2**63)), tmp_path / "t.slt")
    (warning,) = caught
    assert "2 layers (0, 4) have seed=9223372036854775808 and layer=4" in str(warning.message)
    assert "number_layers(model)" in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_other_layers_are_not(use, tmp_path):
    shared = SupermaskLinear(5, 5)
    models = (
        network((2, 0, 1)),
        network(seeds=(0, 1, 2)),
        number_layers(network()),
        convert(nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))),
        nn.Sequential(shared, nn.ReLU(), shared),
        SupermaskLinear(5, 5),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in models:
            use(model, tmp_path / "t.slt")


def test_the_warning_names_a_few_of_many():
    model = nn.Sequential(*(SupermaskLinear(3, 3, layer=i // 4) for i in range(9)))
    with pytest.warns(
        UserWarning, match=r"4 layers \(0, 1, 2, \.\.\.\) have seed=0 and layer=0, and 1 more such sets:"
    ):
        summary(model)


def test_a_warning_that_is_an_error_changes_nothing(tmp_path):
    model = network()
    before = copy.deepcopy(model.state_dict())
    (tmp_path / "t.slt").write_bytes(b"old")
    for use in USES.values():
        with warnings.catch_warnings(), pytest.raises(UserWarning):
            warnings.simplefilter("error")
            use(model, tmp_path / "t.slt")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(layer.auto_mask and layer.graded_scores is None for layer in model if hasattr(layer, "auto_mask"))
    assert (tmp_path / "t.slt").read_bytes() == b"old"


@pytest.mark.parametrize("compact", (False, True))
@pytest.mark.parametrize("freeze", (Freeze(), FROZEN), ids=("dense", "frozen"))
@pytest.mark.parametrize("scale", (None, "dynamic"))
def test_numbered_layers_are_those_built_with_numbers(compact, freeze, scale):
    """Compares every tensor, count and attribute, in module order."""
    options = {"compact": compact, "freeze": freeze, "scale": scale, "sparsity": 0.6}
    model, expected = network(**options), network((0, 1, 2), **options)
    assert number_layers(model) is model
    state = model.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(t, state[name]) for name, t in expected.state_dict().items())
    for layer, other in zip(model.modules(), expected.modules(), strict=True):
        for name in ("source", "whole", "pruned", "free", "locked", "sparsity", "freeze"):
            assert getattr(layer, name, None) == getattr(other, name, None), name
    tokens = torch.randint(20, (6,))
    assert torch.equal(model(tokens), expected(tokens))


def test_a_search_of_numbered_layers_fits_the_network_built_with_numbers(tmp_path):
    options = {"freeze": FROZEN, "sparsity": None}
    model, other = number_layers(network(**options)), network((0, 1, 2), **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    EdgePopup(model, 0.6).attach(optimizer)
    tokens = torch.randint(20, (6,))
    for _ in range(3):
        model(tokens).square().mean().backward()
        optimizer.step()
    save_ticket(model, tmp_path / "t.slt")
    load_ticket(tmp_path / "t.slt", other)
    assert torch.equal(model(tokens), other(tokens))
    again = number_layers(network(**options))
    again.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens), again(tokens))


def test_layers_that_have_their_numbers_are_left_as_they_are():
    model = number_layers(network((0, 7, 2)))
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    with torch.no_grad():
        for _, (p, _) in before.items():
            p.neg_()
    number_layers(model)
    for name, p in model.named_parameters():
        assert p is before[name][0]
        assert torch.equal(p, -before[name][1])


def test_what_stays_of_a_numbered_layer():
    model = network(seeds=(5, 6, 7))
    biases = [model[2][0].bias, model[4].bias]
    values = [b.detach().clone() for b in biases]
    model[4].scores.requires_grad_(False)
    model.eval()
    number_layers(model)
    assert [model[0].source.seed, model[2][0].source.seed, model[4].source.seed] == [5, 6, 7]
    assert [model[2][0].bias, model[4].bias] == biases
    assert all(torch.equal(b, v) for b, v in zip(biases, values, strict=True))
    assert [model[2][0].scores.requires_grad, model[4].scores.requires_grad] == [True, False]
    assert not any(m.training for m in model.modules())


def test_on_the_meta_device():
    """After ``to_empty`` a layer stays uninitialized until ``reset_parameters``."""
    options = {"freeze": FROZEN, "compact": True}
    expected = network((0, 1, 2), **options)
    for first in (True, False):
        with torch.device("meta"):
            model = network(**options)
        if first:
            number_layers(model)
        model.to_empty(device="cpu")
        if not first:
            number_layers(model)
        layers = [m for m in model.modules() if hasattr(m, "reset_scores")]
        assert not any(m.is_initialized() for m in layers[0 if first else 1 :])
        for m in layers:
            m.reset_parameters()
        for name in ("scores", "mask_words", "source_id", "weight_scale"):
            others = [getattr(m, name) for m in expected.modules() if hasattr(m, name)]
            assert all(torch.equal(getattr(m, name), o) for m, o in zip(layers, others, strict=True))


def test_what_cannot_be_numbered():
    sharded = network()
    sharded[4].group = "a group"
    cases = (
        (None, TypeError, "model: expected a module"),
        (nn.Linear(2, 2), ValueError, "model: expected at least one supermask layer"),
        (drop_scores(network()), ValueError, "model: its scores were dropped"),
        (sharded, ValueError, "model: its scores are sharded over processes"),
    )
    for model, error, message in cases:
        with pytest.raises(error, match=message):
            number_layers(model)
    assert [sharded[0].source.layer, sharded[2][0].source.layer] == [0, 0]
