"""Numbers from users: converted to Python numbers before any arithmetic, or an error with the argument's name."""

import dataclasses
import json
import math
from decimal import Decimal
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from slt_kernels import (
    BernoulliMasks,
    EdgePopup,
    Freeze,
    Source,
    SupermaskConv2d,
    SupermaskEmbedding,
    SupermaskLinear,
    convert,
    data,
    load_ticket,
    save_ticket,
)
from slt_kernels.experiments.train.settings import Experiment, Search, SourceNetwork
from slt_kernels.models import build
from slt_kernels.nn.checks import check_sparsity
from slt_kernels.source import fraction, integer, number, positive

REALS = (np.float16, np.float32, np.float64, np.longdouble, Fraction, torch.tensor, np.array)
INTEGERS = (np.int8, np.int32, np.uint32, np.int64, np.uint64, torch.tensor, np.array)
real = pytest.mark.parametrize("kind", REALS, ids=lambda kind: kind.__name__)
whole = pytest.mark.parametrize("kind", INTEGERS, ids=lambda kind: kind.__name__)

NO_REALS = (
    "0.5",
    b"0.5",
    None,
    True,
    np.True_,
    torch.tensor(True),
    0.5 + 0j,
    np.complex64(0.5),
    torch.tensor(0.5 + 0j),
    [0.5],
    np.array([0.5]),
    torch.tensor([0.5]),
    torch.tensor(0.5, device="meta"),
    math.nan,
    np.float32("nan"),
    torch.tensor(math.nan),
)
NO_INTEGERS = (
    "3",
    None,
    3.0,
    np.float32(3),
    Fraction(3),
    True,
    np.True_,
    torch.tensor(True),
    torch.tensor([True]),
    torch.tensor(3.0),
    torch.tensor([3]),
    torch.tensor(3, device="meta"),
    np.array([3]),
    np.array(3.0),
)


@given(value=st.floats(0, 1), kind=st.sampled_from(REALS))
def test_a_number_is_a_python_float(value, kind):
    given_value = kind(value)
    expected = given_value.item() if isinstance(given_value, torch.Tensor) else given_value
    for check in (fraction, lambda name, x: number(name, x, -1, 2)):
        result = check("x", given_value)
        assert type(result) is float
        assert result == float(expected)


@given(value=st.integers(0, 127), kind=st.sampled_from((int, *INTEGERS)))
def test_an_integer_is_a_python_int(value, kind):
    result = integer("x", kind(value), 0, 127)
    assert type(result) is int
    assert result == value
    assert type(positive("x", kind(value + 1 if value < 127 else value))) is float


@pytest.mark.parametrize("value", NO_REALS, ids=repr)
def test_what_is_no_real_number(value):
    for check in (fraction, positive, lambda name, x: check_sparsity(x, 0, 0)):
        with pytest.raises(ValueError, match=r"sparsity=.*: expected a "):
            check("sparsity", value)
    with pytest.raises(ValueError, match=r"lr=.*: expected a number from 0 to 2$"):
        number("lr", value, 0, 2)


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_what_is_no_integer(value):
    with pytest.raises(ValueError, match=r"seed=.*: expected an integer from 0 to 9"):
        integer("seed", value, 0, 9)


@pytest.mark.parametrize("value", (10**5000, -(10**5000), Fraction(10**5000)), ids=("int", "negative", "fraction"))
def test_a_number_of_thousands_of_digits_is_not_printed(value):
    """An integer too long for Python to print, and too large for a float."""
    for check in (fraction, positive):
        with pytest.raises(ValueError, match=r"^x=.{,80}: expected a "):
            check("x", value)
    if isinstance(value, int):
        with pytest.raises(ValueError, match=r"^x=.{,80}: expected an integer from 0 to 9$"):
            integer("x", value, 0, 9)


def test_a_number_out_of_its_range_is_named():
    for value in (-0.1, 1.1, np.float32(1.1), np.float16(-1), Fraction(11, 10), math.inf, torch.tensor(2)):
        with pytest.raises(ValueError, match=r"x=.*: expected a fraction in \[0, 1\]"):
            fraction("x", value)
    for value in (0, -0.0, np.float32(0), Fraction(0), math.inf, np.float16(math.inf)):
        with pytest.raises(ValueError, match=r"x=.*: expected a positive number"):
            positive("x", value)
    with pytest.raises(ValueError, match=r"x=.*Decimal.*: expected"):
        fraction("x", Decimal("0.5"))


# Ranks


@real
def test_a_rank_is_that_of_exact_arithmetic(kind):
    """float32 arithmetic gives 7,650,874 instead of 7,650,873, and float16 overflows."""
    value = kind(0.3)
    exact = Fraction(value.item() if isinstance(value, torch.Tensor) else float(value))
    layer = SupermaskLinear(3, 2, sparsity=value)
    layer.whole = Source.of(64, 398_483)  # counted, not made
    assert layer.total == 25_502_912
    assert layer.rank == math.floor(exact * layer.total)


@real
@pytest.mark.parametrize("scope", ("global", "local"))
def test_edge_popup_takes_any_number(kind, scope):
    value = kind(0.3)
    plain = value.item() if isinstance(value, torch.Tensor) else float(value)
    models = [convert(torch.nn.Sequential(torch.nn.Linear(300, 50), torch.nn.Linear(50, 9))) for _ in range(2)]
    for model, sparsity in zip(models, (value, plain), strict=True):
        popup = EdgePopup(model, sparsity, scope)
        assert type(popup.sparsity) is float
        assert {type(layer.sparsity) for layer in model} == {float}
    assert all(torch.equal(a.mask_words, b.mask_words) for a, b in zip(*models, strict=True))


def test_a_sparsity_that_is_refused_changes_nothing():
    model = convert(torch.nn.Sequential(torch.nn.Linear(30, 5), torch.nn.Linear(5, 9)))
    for scope in ("global", "local"):
        popup = EdgePopup(model, 0.4, scope)
        for value in (True, "0.5", np.float32(1.5), torch.tensor([0.5])):
            with pytest.raises(ValueError, match="sparsity="):
                popup.sparsity = value
        assert popup.sparsity == 0.4
        assert [layer.sparsity for layer in model] == [0.4, 0.4]


def test_a_layers_own_sparsity_may_be_set():
    layer = SupermaskLinear(30, 5)
    layer.sparsity = np.float16(0.25)
    assert type(layer.sparsity) is float
    assert layer.rank == 37
    with pytest.raises(ValueError, match="sparsity='a': expected a fraction"):
        layer.sparsity = "a"
    layer.sparsity = None
    assert layer.rank == 0


def test_equal_fractions_of_another_precision_are_equal():
    for value in (0.7, 0.9, 0.35, 0.1):
        for f in (Freeze(value), Freeze(0, value)):
            layer = SupermaskLinear(30, 5, freeze=f, sparsity=np.float32(value if f.prune else 1 - value))
            assert layer.sparsity == pytest.approx(value if f.prune else 1 - value)


# The other arguments


@real
def test_a_freeze_holds_floats(kind):
    freeze = Freeze(kind(0.375), kind(0.25))
    assert freeze == Freeze(0.375, 0.25)
    assert {type(freeze.prune), type(freeze.lock)} == {float}
    assert json.loads(json.dumps([freeze.prune, freeze.lock])) == [0.375, 0.25]
    assert (freeze.prune_below, freeze.lock_from) == (96, 192)


@real
def test_gain_and_std(kind):
    layer = SupermaskLinear(30, 5, gain=kind(1.5))
    assert type(layer.gain) is float
    assert torch.equal(layer.weight_scale, SupermaskLinear(30, 5, gain=1.5).weight_scale)
    embedding = SupermaskEmbedding(30, 5, std=kind(0.25))
    assert type(embedding.gain) is float
    assert torch.equal(embedding.weight_scale, SupermaskEmbedding(30, 5, std=0.25).weight_scale)
    for value in (True, "1", torch.tensor([1.0])):
        with pytest.raises(ValueError, match=r"gain=.*: expected a positive number"):
            SupermaskLinear(30, 5, gain=value)
        with pytest.raises(ValueError, match=r"std=.*: expected a positive number"):
            SupermaskEmbedding(30, 5, std=value)


@whole
def test_sizes_and_seeds(kind):
    source = Source.of(kind(5), kind(70), seed=kind(3), layer=kind(2))
    assert source == Source.of(5, 70, seed=3, layer=2)
    parts = source, source.shard((kind(1), kind(3)), (kind(1), kind(2)))
    assert {type(n) for part in parts for n in part} == {int}
    assert parts[1] == Source.of(5, 70, seed=3, layer=2).shard((1, 3), (1, 2))
    layers = (
        SupermaskLinear(kind(5), kind(3), seed=kind(1), layer=kind(2)),
        SupermaskEmbedding(kind(5), kind(3), kind(1), seed=kind(1), layer=kind(3)),
        SupermaskConv2d(kind(2), kind(4), (kind(3), kind(1)), (kind(2), kind(1)), groups=kind(2), layer=kind(4)),
    )
    for layer in layers:
        numbers = [*layer.source, *layer.weight_shape, *getattr(layer, "window", ())]
        assert {type(n) for n in numbers} == {int}
    assert type(layers[1].padding_idx) is int


@pytest.mark.parametrize("ends", ((0, 0), (2, 1), (-1, 2), (0, 6), (0.0, 2), (True, 2), (0,), (0, 1, 2), 3), ids=str)
def test_a_shard_is_a_range_of_integers(ends):
    source = Source.of(5, 160)
    for name in ("rows", "words"):
        with pytest.raises(ValueError, match=rf"{name}=.*: expected a range inside \[0, 5\)"):
            source.shard(**{name: ends})


@real
def test_a_ticket_of_any_numbers(kind, tmp_path):
    options = {"sparsity": kind(0.5), "gain": kind(1.5), "seed": np.int64(3), "layer": np.uint32(1)}
    layer = SupermaskLinear(30, 5, freeze=Freeze(kind(0.25)), **options)
    info = save_ticket(layer, tmp_path / "t.slt")
    assert info.layers[0].sparsity == 0.5
    plain = SupermaskLinear(30, 5, freeze=Freeze(0.25), sparsity=0.5, gain=1.5, seed=3, layer=1)
    plain.bias = layer.bias
    load_ticket(tmp_path / "t.slt", plain)
    x = torch.randn(2, 30)
    assert torch.equal(plain(x), layer(x))


@real
def test_bernoulli_masks_start_at_any_number(kind):
    models = [SupermaskLinear(300, 50) for _ in range(2)]
    for model, sparsity in zip(models, (kind(0.25), 0.25), strict=True):
        BernoulliMasks(model).start_at(sparsity)
    assert torch.equal(models[0].scores, models[1].scores)
    assert torch.equal(models[0].mask_words, models[1].mask_words)


@whole
def test_bernoulli_masks_draw_on(kind):
    """A 32-bit NumPy integer would overflow in the stream number."""
    models = [SupermaskLinear(300, 50) for _ in range(2)]
    masks = [BernoulliMasks(model, draws) for model, draws in zip(models, (kind(7), 7), strict=True)]
    assert [type(m.draws) for m in masks] == [int, int]
    assert torch.equal(models[0].mask_words, models[1].mask_words)
    for draws in (-1, 1.0, True, "7"):
        layer = SupermaskLinear(3, 5)
        with pytest.raises(ValueError, match=f"draws={draws!r}: expected an integer"):
            BernoulliMasks(layer, draws)
        assert layer.auto_mask
        assert layer.graded_scores is None


# Networks, data and experiments


@whole
def test_networks_and_data_take_any_integer(kind):
    model = build("convnet", width=kind(3), classes=kind(10), channels=kind(1))
    sizes = [tuple(p.shape) for p in model.parameters()]
    assert sizes == [tuple(p.shape) for p in build("convnet", width=3, classes=10, channels=1).parameters()]
    part = data.load("digits", seed=kind(3)).train
    expected = data.load("digits", seed=3).train
    for rank in range(2):
        options = {"batch_size": 32, "seed": 5, "rank": rank, "ranks": 2, "workers": 0}
        loaders = (
            data.Loader(part, **{n: kind(v) for n, v in options.items()}, training=True),
            data.Loader(expected, **options, training=True),
        )
        a, b = (next(iter(loader.epoch(1))) for loader in loaders)
        assert torch.equal(a.inputs[0], b.inputs[0])
        assert torch.equal(a.targets, b.targets)


@pytest.mark.parametrize("seed", (1.0, True, "3", None, 2**64, -(2**63) - 1), ids=str)
def test_a_seed_of_data_is_an_integer(seed):
    with pytest.raises(ValueError, match=f"seed={seed!r}: expected an integer"):
        data.load("digits", seed=seed)
    with pytest.raises(ValueError, match=f"seed={seed!r}: expected an integer"):
        data.Loader(data.load("digits").test, 4, seed=seed)


@real
def test_an_experiment_holds_floats(kind):
    source = SourceNetwork(prune=kind(0.375), lock=kind(0.125))
    experiment = Experiment(source=source, search=Search(sparsity=kind(0.5), lr=kind(0.25), momentum=kind(0)))
    plain = Experiment(source=SourceNetwork(0.375, 0.125), search=Search(sparsity=0.5, lr=0.25, momentum=0.0))
    assert experiment == plain
    assert json.dumps(experiment.to_dict()) == json.dumps(plain.to_dict())


@whole
def test_an_experiment_holds_integers(kind):
    experiment = Experiment(seed=kind(3), search=Search(epochs=kind(4), milestones=[kind(1), kind(2)], lr=kind(1)))
    experiment = dataclasses.replace(experiment, model={"name": "convnet", "width": kind(3)})
    plain = Experiment(
        seed=3, model={"name": "convnet", "width": 3}, search=Search(epochs=4, milestones=(1, 2), lr=1.0)
    )
    assert experiment == plain
    assert json.dumps(experiment.to_dict()) == json.dumps(plain.to_dict())


@pytest.mark.parametrize(
    "options,message",
    (
        ({"sparsity": np.float32(7)}, "sparsity=7.0: expected 0 to 1"),
        ({"sparsity": Fraction(7)}, "sparsity=7.0: expected 0 to 1"),
        ({"sparsity": True}, "sparsity=True: expected a number"),
        ({"lr": np.float64(math.nan)}, "lr=nan: expected a finite number of at least 0"),
        ({"lr": Fraction(10**400)}, "lr=.*: expected a number"),
        ({"epochs": np.int64(0)}, "epochs=0: expected at least 1"),
        ({"epochs": True}, "epochs=True: expected an integer"),
        ({"epochs": 1.5}, "epochs=1.5: expected an integer"),
        ({"milestones": (1.5,)}, "milestones=1.5: expected an integer"),
        ({"scope": 3}, "scope=3: expected text"),
    ),
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_settings_are_checked_without_a_file_too(options, message):
    with pytest.raises(ValueError, match=message):
        Search(**options)
