"""convert: which modules are replaced, what a replacement takes over, and errors."""

import copy
import functools
import logging
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.nn.utils import parametrizations, prune

from slt_kernels import EdgePopup, Freeze, SupermaskConv2d, SupermaskEmbedding, SupermaskLinear, convert, summary
from slt_kernels.convert import DenseSummary, Summary

FROZEN = Freeze(0.35, 0.25)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same", padding_mode="circular")
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.ReLU()) for _ in range(2))
        self.heads = nn.ModuleDict({"a": nn.Linear(8, 5), "b": nn.Linear(8, 3, bias=False)})

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = x.mean((2, 3))
        return self.heads["a"](x), self.heads["b"](x)


def structure(model: nn.Module) -> dict:
    return {name: (id(m), type(m)) for name, m in model.named_modules()} | {
        name: (id(p), p.detach().clone()) for name, p in model.named_parameters()
    }


def test_nested():
    model = Nested()
    shapes = [y.shape for y in model(torch.randn(2, 3, 6, 6))]
    assert convert(model, FROZEN, 0.5, seed=9, weight="uniform", scale="dynamic", compact=True) is model
    kinds = {name: type(m) for name, m in model.named_modules() if isinstance(m, SupermaskLinear | SupermaskConv2d)}
    assert kinds == {
        "stem": SupermaskConv2d,
        "blocks.0.0": SupermaskConv2d,
        "blocks.1.0": SupermaskConv2d,
        "heads.a": SupermaskLinear,
        "heads.b": SupermaskLinear,
    }
    assert not any(type(m) in (nn.Linear, nn.Conv2d) for m in model.modules())
    assert [y.shape for y in model(torch.randn(2, 3, 6, 6))] == shapes
    for number, name in enumerate(kinds):
        layer = model.get_submodule(name)
        source = layer.source
        assert (source.seed, source.layer, source.weight) == (9, number, 1)
        assert (layer.freeze, layer.sparsity, layer.scale, layer.compact) == (FROZEN, 0.5, "dynamic", True)


def test_geometry_is_taken_over():
    old = nn.Conv2d(4, 8, (3, 2), (2, 1), (1, 0), (1, 2), 2, padding_mode="reflect", dtype=torch.float64)
    new = convert(copy.deepcopy(old))
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(new, name) == getattr(old, name)
    assert new.padding_mode == "reflect"
    with torch.no_grad():
        old.weight.copy_(new.dense_weight())
        old.bias.copy_(new.bias)
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    assert torch.allclose(new(x), old(x), rtol=0, atol=1e-12)


def test_a_model_that_is_itself_a_layer():
    old = nn.Linear(5, 3)
    new = convert(old)
    assert type(new) is SupermaskLinear
    assert new.bias is old.bias
    assert type(convert(nn.Conv2d(2, 2, 1))) is SupermaskConv2d


def test_shared_modules_stay_shared():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Sequential(layer), nn.Linear(6, 2))
    convert(model)
    assert type(model[0]) is SupermaskLinear
    assert model[0] is model[2] is model[3][0]
    assert [s.name for s in summary(model).layers] == ["0", "4"]
    assert model[4].source.layer == 1
    assert EdgePopup(model, 0.5).total == 48


def test_exclusions():
    model = convert(Nested(), exclude=("heads.a", "blocks"))
    assert type(model.heads["a"]) is nn.Linear
    assert [type(block[0]) for block in model.blocks] == [nn.Conv2d] * 2
    assert type(model.heads["b"]) is SupermaskLinear
    assert [model.stem.source.layer, model.heads["b"].source.layer] == [0, 1]


def test_an_excluded_name_is_no_prefix():
    model = nn.Sequential()
    for name in ("head", "head2"):
        model.add_module(name, nn.Linear(2, 2))
    convert(model, exclude=["head"])
    assert [type(m) for m in model] == [nn.Linear, SupermaskLinear]


def test_a_shared_module_is_excluded_in_every_place():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, layer, nn.Sequential(layer), nn.Linear(6, 6))
    for name in ("0", "1", "2", "2.0"):
        converted = convert(copy.deepcopy(model), exclude=[name])
        assert converted[0] is converted[1] is converted[2][0]
        assert [type(converted[i]) for i in (0, 3)] == [nn.Linear, SupermaskLinear]


def test_device_dtype_training_and_bias_are_kept():
    model = Nested().bfloat16()
    model.heads["a"].eval()
    model.heads["b"].weight.requires_grad_(False)
    model.heads["a"].bias.requires_grad_(False)
    biases = {name: p for name, p in model.named_parameters() if name.endswith("bias")}
    convert(model)
    assert {name: p for name, p in model.named_parameters() if name.endswith("bias")} == biases
    assert all(p is biases[name] for name, p in model.named_parameters() if name.endswith("bias"))
    assert [model.stem.training, model.heads["a"].training, model.heads["b"].training] == [True, False, True]
    assert not model.heads["a"].bias.requires_grad
    assert model.heads["b"].bias is None
    assert model.stem.scores.dtype == torch.float32
    assert model(torch.randn(1, 3, 6, 6).bfloat16())[0].dtype == torch.bfloat16
    assert {p.device.type for p in convert(Nested().to("meta")).parameters()} == {"meta"}


def test_hooks_are_kept_and_their_handles_work():
    model, calls = nn.Sequential(nn.Linear(4, 3)), []
    old = model[0]
    handles = [
        old.register_forward_hook(lambda module, args, y: calls.append(("forward", type(module)))),
        old.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(("pre", type(module))), with_kwargs=True
        ),
        old.register_full_backward_hook(lambda module, dx, dy: calls.append(("backward", type(module)))),
    ]
    convert(model)
    model(torch.randn(2, 4, requires_grad=True)).sum().backward()
    assert sorted(calls) == sorted((when, SupermaskLinear) for when in ("forward", "pre", "backward"))
    for handle in handles:
        handle.remove()
    calls.clear()
    model(torch.randn(2, 4, requires_grad=True)).sum().backward()
    assert not calls


def test_subclasses_are_left_alone(caplog):
    class Special(nn.Linear):
        pass

    model = nn.ModuleDict({"a": Special(4, 4), "c": nn.Linear(4, 4)})
    with caplog.at_level(logging.INFO, "slt_kernels.convert"), pytest.warns(UserWarning, match="1 Special"):
        convert(model)
    assert type(model["a"]) is Special
    assert type(model["c"]) is SupermaskLinear
    assert "not converted: a (Special)" in caplog.text
    assert "1 layers, 16 weights, 16 free bits" in caplog.text


@pytest.mark.parametrize("norm_first", (False, True))
@pytest.mark.parametrize("activation", ("relu", "gelu", F.relu))
def test_a_transformer_encoder_works(activation, norm_first):
    """PyTorch's fused inference path would read the weights of the replaced Linears."""
    block = nn.TransformerEncoderLayer(16, 2, 32, 0.0, activation, norm_first=norm_first, batch_first=True)
    model = convert(nn.TransformerEncoder(block, 2, enable_nested_tensor=not norm_first))
    names = [s.name for s in summary(model).layers]
    inside = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "linear1", "linear2")
    assert names == [f"layers.{i}.{name}" for i in range(2) for name in inside]
    x = torch.randn(3, 5, 16)
    padding = torch.arange(5) >= torch.tensor((5, 3, 4)).unsqueeze(1)
    trained = model.train()(x, src_key_padding_mask=padding)
    trained.sum().backward()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            evaluated = model.eval()(x, src_key_padding_mask=padding)
        assert torch.allclose(evaluated[~padding], trained[~padding], atol=1e-5)


def test_one_freeze_a_layer():
    freezes = [Freeze(0.1), Freeze(0, 0.5), Freeze()]
    model = convert(nn.Sequential(*(nn.Linear(30, 30) for _ in range(3))), freezes, sparsity=0.3)
    assert [m.freeze for m in model] == freezes
    assert [m.pruned > 0 for m in model] == [True, False, False]
    assert [m.locked > 0 for m in model] == [False, True, False]


def test_layers_differ_and_seeds_differ():
    model = convert(nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30)), seed=1)
    other = convert(nn.Sequential(nn.Linear(30, 30)), seed=2)
    assert not torch.equal(model[0].integer_weight(), model[1].integer_weight())
    assert not torch.equal(model[0].integer_weight(), other[0].integer_weight())
    again = convert(nn.Sequential(nn.Linear(30, 30)), seed=1)
    assert torch.equal(model[0].integer_weight(), again[0].integer_weight())


def test_converting_twice_finds_what_is_left():
    model = convert(Nested(), exclude=["heads"])
    stem = model.stem
    convert(model, seed=1)
    assert model.stem is stem
    assert [model.heads[name].source.layer for name in ("a", "b")] == [3, 4]


def test_converting_twice_numbers_on():
    """Layers of the same shape get different weights and scores, in any order of conversion."""
    model = convert(nn.Sequential(*(nn.Linear(30, 30) for _ in range(3))), exclude=["0", "2"])
    convert(model)
    assert [m.source.layer for m in model] == [1, 0, 2]
    assert not any(torch.equal(model[1].integer_weight(), model[i].integer_weight()) for i in (0, 2))


def test_a_lazy_module_has_to_be_made_first():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(ValueError, match=r"2: LazyLinear has no weight yet; run a forward first, or exclude it"):
        convert(model)
    assert type(model[0]) is nn.Conv2d
    assert type(convert(copy.deepcopy(model), exclude=["2"])[2]) is nn.LazyLinear
    model(torch.randn(1, 1, 5, 5))
    assert type(convert(model)[2]) is SupermaskLinear


def test_summary():
    model = convert(Nested(), FROZEN, seed=3)
    s = summary(model)
    assert isinstance(s, Summary)
    assert [x.name for x in s.layers] == ["stem", "blocks.0.0", "blocks.1.0", "heads.a", "heads.b"]
    assert [x.shape for x in s.layers] == [(8, 3, 3, 3), (8, 2, 3, 3), (8, 2, 3, 3), (5, 8), (3, 8)]
    assert [x.weights for x in s.layers] == [216, 144, 144, 40, 24]
    assert s.weights == 568
    for x in s.layers:
        state = model.get_submodule(x.name).frozen_state()
        assert [x.pruned, x.free, x.locked] == [int((state == i).sum()) for i in (-1, 0, 1)]
    assert s.free_bits == sum(x.free for x in s.layers)
    text = str(s)
    assert "blocks.0.0" in text
    assert "8x3x3x3" in text
    assert f"5 layers, 568 weights, {s.free_bits} free bits" in text
    for share, kind in ((s.prune, "pruned"), (s.lock, "locked")):
        assert share == sum(getattr(x, kind) for x in s.layers) / 568
    assert f"frozen: prune={s.prune:.4f}, lock={s.lock:.4f} of all weights" in text
    row = next(line for line in text.splitlines() if line.startswith("heads.a"))
    x = s.layers[3]
    assert row.split()[-2:] == [f"{x.pruned / 40:.4f}", f"{x.locked / 40:.4f}"]
    assert s.dense_weights == ()
    assert "dense parameters: 29 (stem.bias, blocks.0.0.bias, blocks.1.0.bias, ...)" in text
    assert s.dense == {n: p.numel() for n, p in model.named_parameters() if n.endswith("bias")}
    assert "dense" not in str(summary(convert(nn.Linear(3, 3, bias=False))))


@pytest.mark.parametrize(
    "options,message",
    (
        ({"exclude": ["head", "stem"]}, "exclude=['head']: expected names of modules of the model"),
        (
            {"exclude": ["stem.weight"]},
            "exclude=['stem.weight']: expected names of modules of the model, or of weights",
        ),
        ({"exclude": ["stem", "blocks", "heads"]}, "model: expected at least one module to convert"),
        ({"freeze": [Freeze()] * 4}, "freeze: 4 given, expected one for each of 5 layers"),
        ({"spread": "random"}, "spread='random': expected one of"),
        ({"weight": "gaussian"}, "weight='gaussian': expected one of"),
        ({"seed": 2**64}, "seed=18446744073709551616: expected"),
        ({"scale": "big"}, "scale='big': expected"),
        ({"freeze": Freeze(0.7), "sparsity": 0.5}, "sparsity=0.5 is below prune=0.7"),
        ({"freeze": [Freeze()] * 4 + [Freeze(0.7)]}, "heads.b: sparsity=0.5 is below prune=0.7"),
        ({"freeze": Freeze(0, 0.45), "spread": "erk"}, "stem: sparsity=0.5 is above 1 - lock=0.39"),
        ({"sparsity": "a"}, "sparsity='a': expected a fraction in [0, 1]"),
        ({"gain": "a"}, "gain='a': expected a positive number"),
        ({"seed": True}, "seed=True: expected an integer"),
    ),
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_what_is_refused_leaves_the_model_alone(options, message):
    model = Nested()
    before = structure(model)
    with pytest.raises(ValueError) as error:
        convert(model, **options)
    assert message in str(error.value)
    after = structure(model)
    assert after.keys() == before.keys()
    for name, (identity, value) in after.items():
        assert identity == before[name][0]
        assert torch.equal(value, before[name][1]) if isinstance(value, torch.Tensor) else value == before[name][1]


@pytest.mark.parametrize("parametrize", (parametrizations.weight_norm, parametrizations.orthogonal))
def test_a_parametrized_weight_is_refused(parametrize):
    model = nn.Sequential(nn.Linear(4, 4), parametrize(nn.Linear(4, 4)))
    before = structure(model)
    kinds = [type(m) for m in model]
    with pytest.raises(ValueError, match="1: its weight or bias is computed from others"):
        convert(model)
    assert [type(m) for m in model] == kinds
    assert structure(model).keys() == before.keys()


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_an_old_weight_norm_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), torch.nn.utils.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="1: its weight or bias is computed from others"):
        convert(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    "module,name",
    (
        (lambda: nn.Linear(4, 4), "weight"),
        (lambda: nn.Linear(4, 4), "bias"),
        (lambda: nn.LSTM(4, 4), "bias_ih_l0"),
    ),
    ids=("weight", "bias", "lstm"),
)
def test_pruned_by_pytorch_is_refused(module, name):
    model = nn.Sequential(nn.Linear(4, 4), prune.l1_unstructured(module(), name, 0.5))
    with pytest.raises(ValueError, match="1: its weight or bias is computed from others"):
        convert(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    "arguments,message",
    (
        ((None,), "model: expected a module, got NoneType"),
        ((nn.Linear(2, 2), 0.6), r"freeze=0.6: expected a Freeze\(prune, lock\), or a list of them"),
        ((nn.Linear(2, 2), [0.6]), r"freeze=0.6: expected a Freeze\(prune, lock\)"),
    ),
)
def test_what_is_no_model_and_no_freeze(arguments, message):
    with pytest.raises(TypeError, match=message):
        convert(*arguments)


def test_a_name_is_no_collection_of_names():
    with pytest.raises(TypeError, match=r"exclude='10': expected a collection of names, such as \['10'\]"):
        convert(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), exclude="10")


def test_numpys_integers_are_integers():
    layer = convert(nn.Linear(5, 3), seed=np.int64(3))
    assert type(layer.source.seed) is int
    assert torch.equal(layer.integer_weight(), convert(nn.Linear(5, 3), seed=3).integer_weight())


# What stays dense


class Transposed(nn.Module):
    """Like the ``Conv1D`` of Hugging Face's GPT-2."""

    def __init__(self, fan: int, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan, rows))
        self.bias = nn.Parameter(torch.zeros(rows))


class Experts(nn.Module):
    """Fused experts: one parameter holds the weights of all."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(4, 6, 10))
        self.down = nn.Parameter(torch.randn(4, 5, 6))


class Special(nn.Linear):
    pass


DENSE_MODULES = {  # and how many weights they have
    "RNNBase": (lambda: nn.RNNBase("RNN_TANH", 3, 5, 2), 5 * (3 + 5 + 5 + 5)),
    "Transposed": (lambda: Transposed(3, 5), 15),
    "Experts": (Experts, 4 * 6 * 10 + 4 * 5 * 6),
    "Special": (lambda: Special(3, 5), 15),
    "ParameterList": (lambda: nn.ParameterList([torch.randn(2, 3), torch.randn(2)]), 6),
}
dense_modules = pytest.mark.parametrize(
    "kind,make,weights", [(k, *v) for k, v in DENSE_MODULES.items()], ids=DENSE_MODULES
)


@dense_modules
def test_dense_weights_that_train_are_warned_of(kind, make, weights, caplog):
    model = nn.ModuleDict({"a": make(), "b": nn.Linear(4, 4), "c": make()})
    with pytest.warns(UserWarning) as caught:
        convert(model)
    (warning,) = caught
    assert f"{2 * weights:,} dense weights stay in the model and train: 2 {kind} (" in str(warning.message)
    assert "a." in str(warning.message)
    assert warning.filename == __file__
    found = summary(model).dense_weights
    assert {(d.kind, d.trains) for d in found} == {(kind, True)}
    assert sum(d.weights for d in found) == 2 * weights
    assert f"dense weights that train: 2 {kind} ({2 * weights:,} weights: a." in str(summary(model))


@dense_modules
def test_strict_refuses_them(kind, make, weights):
    model = nn.Sequential(nn.Linear(4, 4), make())
    modules = list(model)
    with pytest.raises(ValueError, match=rf"dense weights stay in the model and train: 1 {kind} \(.*strict=True"):
        convert(model, strict=True)
    assert list(model) == modules


@dense_modules
@pytest.mark.parametrize("strict", (False, True))
def test_excluded_and_fixed_weights_are_no_surprise(kind, make, weights, strict):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = nn.Sequential(nn.Linear(4, 4), make())
        model = convert(model, exclude=["1"], strict=strict)
        assert type(model[0]) is SupermaskLinear
        assert all(d.trains for d in summary(model).dense_weights)
        fixed = make()
        for name, p in fixed.named_parameters():
            if is_lazy(p):  # requires_grad cannot be set
                fixed.register_parameter(name, UninitializedParameter(requires_grad=False))
            else:
                p.requires_grad_(False)
        model = convert(nn.Sequential(nn.Linear(4, 4), fixed), strict=strict)
        assert not any(d.trains for d in summary(model).dense_weights)
    assert f"dense weights that are fixed: 1 {kind} ({weights:,} weights: 1." in str(summary(model))
    assert "dense weights that train" not in str(summary(model))


def test_biases_and_norms_are_no_dense_weights():
    norms = (nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.LayerNorm((3, 4, 4)), nn.RMSNorm((4, 4)), nn.LazyBatchNorm2d())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = convert(nn.Sequential(nn.Conv2d(3, 3, 1), *norms, nn.PReLU(4)), strict=True)
    assert summary(model).dense_weights == ()
    assert {"0.bias", "3.weight", "4.weight"} < summary(model).dense.keys()


def test_a_bare_parameter_may_be_excluded_by_its_name():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.randn(1, 4, 8))
            self.head = nn.Linear(8, 3)

    with pytest.warns(UserWarning, match=r"32 dense weights .*1 Positions \(32 weights: positions\)"):
        convert(Positions())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = convert(Positions(), exclude=["positions"], strict=True)
    assert type(model.head) is SupermaskLinear
    assert summary(model).dense_weights == (DenseSummary("positions", "Positions", 32, True),)
    with pytest.raises(ValueError, match=r"exclude=\['head.weight'\]: expected names of modules"):
        convert(Positions(), exclude=["head.weight"])


def test_a_parametrized_weight_is_its_modules():
    model = nn.Sequential(parametrizations.weight_norm(Transposed(3, 5)), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=r"18 dense weights stay in the model and train: 1 Transposed \(18 weights: 0"):
        convert(model)


def test_a_shared_dense_weight_counts_once():
    model = nn.Sequential(Transposed(3, 5), nn.Linear(4, 4), Transposed(3, 5))
    model[2].weight = model[0].weight
    with pytest.warns(UserWarning, match=r"15 dense weights .*1 Transposed \(15 weights: 0.weight\)"):
        convert(copy.deepcopy(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model, exclude=["2"], strict=True)


class Keeps(nn.Module):
    """Uses its layers by what `keep` makes of them."""

    def __init__(self, keep) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.kept = keep(self.inside)


@pytest.mark.parametrize(
    "keep",
    (
        list,
        lambda inside: {"a": [(inside[0], "relu")]},
        lambda inside: inside[0].forward,
        lambda inside: functools.partial(inside[0]),
    ),
    ids=("list", "nested", "method", "partial"),
)
def test_modules_that_stay_in_use_are_warned_of(keep):
    """An attribute that is no submodule goes on holding the dense layer."""
    with pytest.warns(UserWarning, match=r"whose trained weights go on being used there: 0\.kept \(0\.inside\.0\);"):
        convert(nn.Sequential(Keeps(keep)))


@pytest.mark.parametrize(
    "keep", (lambda inside: [inside[1]], lambda inside: inside[0].in_features), ids=("relu", "int")
)
def test_other_attributes_are_not(keep):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(nn.Sequential(Keeps(keep)))


def test_a_warning_that_is_an_error_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(4, 4), Special(3, 4))
    before = list(model)
    with warnings.catch_warnings(), pytest.raises(UserWarning):
        warnings.simplefilter("error")
        convert(model)
    assert list(model) == before


def test_a_module_that_refuses_its_new_child_leaves_the_model_alone():
    class Fussy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def __setattr__(self, name, value):
            if name == "second" and not isinstance(value, nn.Linear):
                raise TypeError("expected a nn.Linear")
            super().__setattr__(name, value)

    model = nn.Sequential(nn.Linear(4, 4), Fussy())
    before = structure(model)
    with pytest.raises(TypeError, match=r"expected a nn\.Linear"):
        convert(model)
    assert {name: value[0] for name, value in structure(model).items()} == {n: v[0] for n, v in before.items()}


# Fixed weights


def test_fixed_weights_are_left_alone(caplog):
    model = nn.Sequential(nn.Embedding.from_pretrained(torch.randn(5, 4)), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.requires_grad_(False)
    old = list(model)
    values = [m.weight.clone() for m in old[:2]]
    with caplog.at_level(logging.INFO, "slt_kernels.convert"), warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model, [Freeze()], strict=True)
    assert [model[0], model[1]] == old[:2]
    assert all(torch.equal(m.weight, v) for m, v in zip(model, values, strict=False))
    assert model[1].bias.requires_grad
    assert type(model[2]) is SupermaskLinear
    assert model[2].source.layer == 0
    assert "not converted: 0 (requires_grad=False)" in caplog.text
    assert "not converted: 1 (requires_grad=False)" in caplog.text
    assert summary(model).dense_weights == (
        DenseSummary("0.weight", "Embedding", 20, False),
        DenseSummary("1.weight", "Linear", 16, False),
    )
    assert "dense weights that are fixed: 1 Embedding (20 weights: 0.weight), 1 Linear (16" in str(summary(model))


def test_a_model_that_is_all_fixed_is_refused():
    for model in (Nested().requires_grad_(False), nn.Linear(4, 4).requires_grad_(False)):
        before = structure(model)
        with pytest.raises(ValueError, match=r"has requires_grad=False, .*call model.requires_grad_\(True\) first"):
            convert(model)
        assert structure(model).keys() == before.keys()
        converted = convert(model.requires_grad_(True))
        assert len(summary(converted).layers) == len([n for n in before if n.endswith("weight")])
    with pytest.raises(ValueError, match="model: expected at least one module to convert"):
        convert(nn.Linear(4, 4).requires_grad_(False), exclude=[""])


def test_a_fixed_parametrized_weight_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4)).requires_grad_(False))
    old = model[1]
    assert convert(model)[1] is old
    model = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4)).requires_grad_(False))
    model[1].bias.requires_grad_(True)
    old = model[1]
    assert convert(model)[1] is old


# Shared weights


def test_weights_that_two_modules_share_are_warned_of():
    model = nn.ModuleDict({"words": nn.Embedding(9, 4), "mlp": nn.Linear(4, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["words"].weight
    for options, head in (({}, SupermaskLinear), ({"exclude": ["head"]}, nn.Linear)):
        tied = copy.deepcopy(model)
        assert tied["head"].weight is tied["words"].weight
        with pytest.warns(UserWarning) as caught:
            convert(tied, **options)
        (warning,) = caught
        assert "weights that modules share are not shared after convert" in str(warning.message)
        assert str(warning.message).endswith(": words.weight and head.weight")
        assert warning.filename == __file__
        assert [type(tied["words"]), type(tied["head"])] == [SupermaskEmbedding, head]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(convert(model, exclude=["words", "head"])["mlp"]) is SupermaskLinear


def test_a_weight_that_a_dense_module_shares_trains_on():
    model = nn.ModuleDict({"words": nn.Embedding(9, 4), "head": Special(4, 9, bias=False)})
    model["head"].weight = model["words"].weight
    with pytest.warns(UserWarning) as caught:
        convert(model)
    assert ["36 dense weights" in str(w.message) for w in caught] == [True, False]
    assert "words.weight and head.weight" in str(caught[1].message)


def test_a_module_in_two_places_shares_nothing():
    layer = nn.Linear(6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(nn.Sequential(layer, nn.ReLU(), layer))


# What a replacement would lose


@pytest.mark.parametrize("what", ("parameter", "buffer", "module", "forward"))
def test_what_was_added_to_a_module_is_not_lost(what):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    add = {
        "parameter": lambda m: m.register_parameter("extra", nn.Parameter(torch.ones(2))),
        "buffer": lambda m: m.register_buffer("extra", torch.ones(2)),
        "module": lambda m: m.add_module("extra", nn.ReLU()),
        "forward": lambda m: setattr(m, "forward", lambda x: 2 * x),
    }
    add[what](model[1])
    before = list(model)
    with pytest.raises(ValueError, match=r"1: its replacement would lose what was added to it \((extra|forward)\)"):
        convert(model)
    assert list(model) == before
    assert type(convert(model, exclude=["1"])[0]) is SupermaskLinear


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize("spread", ("uniform", "erk", "epl", "igq"))
def test_an_empty_weight_is_named(spread):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(0, 4))
    with pytest.raises(ValueError, match=r"1: its weight of shape \[4, 0\] is empty; exclude it"):
        convert(model, Freeze(0.2), spread=spread)
    assert type(convert(model, Freeze(0.2), exclude=["1"], spread=spread)[0]) is SupermaskLinear


def test_an_equal_layer_in_the_model_already_is_the_callers_to_hear_of():
    model = nn.Sequential(SupermaskLinear(4, 4), SupermaskLinear(4, 4), nn.Linear(4, 4))
    assert convert(model)[2].source.layer == 1
    with pytest.warns(UserWarning, match="2 layers"):
        summary(model)
