"""Conversions of other libraries' modules and of users' own, and the choice of types."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from test_convert import structure
from torch import nn

from slt_kernels import (
    Freeze,
    SupermaskConv2d,
    SupermaskExperts,
    SupermaskLinear,
    SupermaskLSTM,
    conversions,
    convert,
    import_mask,
    register_conversion,
    summary,
    to_dense,
)

FROZEN = Freeze(0.3, 0.2)


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten."""
    monkeypatch.setattr(conversions, "_conversions", list(conversions._conversions))


class Own(nn.Module):
    """A user's module with two matrices in one parameter, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Parameter(torch.randn(2, 5, 5))
        self.shift = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return F.linear(F.linear(x, self.stack[0]), self.stack[1]) + self.shift


class SupermaskOwn(nn.Module):
    def __init__(self, shift: nn.Parameter, freeze: list[Freeze], layer: int, **options) -> None:
        super().__init__()
        self.first, self.second = (
            SupermaskLinear(5, 5, False, freeze=f, layer=layer + i, **options) for i, f in enumerate(freeze)
        )
        self.shift = shift

    def forward(self, x):
        return self.second(self.first(x)) + self.shift


def own_matrices(old: Own) -> list:
    return [("stack", (5, 5))] * 2


def test_users_add_their_own(registry):
    register_conversion(Own, lambda old, **options: SupermaskOwn(old.shift, **options), own_matrices)
    model = nn.Sequential(nn.Linear(5, 5), Own(), nn.Linear(5, 5))
    shift = model[1].shift
    convert(model, [Freeze(0.1 * i) for i in range(4)], seed=7, strict=True)
    assert type(model[1]) is SupermaskOwn and model[1].shift is shift
    assert [s.name for s in summary(model).layers] == ["0", "1.first", "1.second", "2"]
    assert [m.source.layer for m in (model[0], model[1].first, model[1].second, model[2])] == [0, 1, 2, 3]
    assert [m.freeze.prune for m in (model[1].first, model[1].second)] == [0.1, 0.2]
    x = torch.randn(3, 5)
    assert torch.allclose(to_dense(model)(x), model(x), atol=1e-6)


def test_a_later_registration_comes_first(registry):
    class Other(SupermaskLinear):
        pass

    register_conversion(nn.Linear, lambda old, **options: Other(old.in_features, old.out_features, False, **options))
    assert type(convert(nn.Linear(3, 2, bias=False))) is Other


@pytest.mark.parametrize(
    "build,message",
    (
        (lambda old, **o: SupermaskOwn(nn.Parameter(torch.zeros(5)), **o), r"1: its .* lose .* \(shift\); exclude it"),
        (lambda old, **o: SupermaskOwn(old.shift, **o | {"layer": 0}), r"numbers \[0, 1\], expected \[1, 2\]"),
        (lambda old, **o: SupermaskOwn(old.shift, **o | {"freeze": o["freeze"][:1]}), "not enough values"),
    ),
)
def test_a_wrong_conversion_leaves_the_model_alone(registry, build, message):
    register_conversion(Own, build, own_matrices)
    model = nn.Sequential(nn.Linear(5, 5), Own())
    before = structure(model)
    with pytest.raises(ValueError, match=message):
        convert(model)
    after = structure(model)
    assert {name: value[0] for name, value in after.items()} == {name: value[0] for name, value in before.items()}


@pytest.mark.parametrize("kind", (3, torch.Tensor, nn.Linear(2, 2)), ids=("number", "other type", "module"))
def test_what_is_no_kind_of_module(kind):
    with pytest.raises(TypeError, match="expected a type of modules"):
        register_conversion(kind, lambda old, **options: old)


# The choice of types


def test_only_the_given_types_are_converted():
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(2, 2, 1), nn.LSTM(3, 4))
    with pytest.warns(UserWarning, match=r"128 dense weights .*1 Linear .*1 LSTM"):
        convert(model, types=[nn.Conv2d])
    assert [type(m) for m in model] == [nn.Linear, SupermaskConv2d, nn.LSTM]
    convert(model, types={nn.Linear, nn.LSTM, nn.Embedding}, strict=True)
    assert [type(m) for m in model] == [SupermaskLinear, SupermaskConv2d, SupermaskLSTM]


@pytest.mark.parametrize(
    "types,error,message",
    (
        (
            [nn.RNNBase],
            ValueError,
            r"types: torch.nn.modules.rnn.RNNBase \(1.rnn\) has no .*register_conversion\(RNNBase",
        ),
        ([nn.Linear, Own], ValueError, r"types: .*Own has no conversion"),
        ([nn.Embedding], ValueError, r"expected at least one module to convert.*of types=\[Embedding\]"),
        (nn.Linear, TypeError, "expected a collection of types of modules"),
        (["Linear"], TypeError, "expected a collection of types of modules"),
    ),
)
def test_types_that_cannot_be_converted(types, error, message):
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"rnn": nn.RNNBase("GRU", 3, 4)}))
    with pytest.raises(error, match=message):
        convert(model, types=types)
    assert type(model[0]) is nn.Linear


def test_fractions_from_masks_are_those_of_the_three_types():
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    fractions = import_mask(model, {"0.mask": torch.ones(4, 4)}, 0.5)
    with pytest.warns(UserWarning, match="1 MultiheadAttention"):
        convert(model, fractions, None, types=[nn.Linear, nn.Conv2d, nn.Embedding])
    assert model[0].freeze == fractions[0]


# Modules with several weights


def test_a_part_of_a_module_is_not_excluded_alone():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 8)})
    with pytest.raises(ValueError, match=r"exclude=\['attention.out_proj'\]: .* is a part of attention, which is"):
        convert(model, exclude=["attention.out_proj"])
    with pytest.warns(UserWarning, match=r"256 dense weights .*MultiheadAttention \(192 weights: attention.in_proj"):
        convert(model, types=[nn.Linear])
    assert type(model["attention"]) is nn.MultiheadAttention


def test_weights_of_which_some_are_fixed_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 4))
    model[1].weight_hh_l0.requires_grad_(False)
    with pytest.raises(ValueError, match=r"1: some of its weights have requires_grad=False \(weight_hh_l0\)"):
        convert(model)
    model[1].weight_ih_l0.requires_grad_(False)
    assert type(convert(model, strict=True)[1]) is nn.LSTM


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("lazy", (nn.LazyConv1d, nn.LazyConv3d, nn.LazyConvTranspose2d))
def test_lazy_convolutions_have_to_be_made_first(lazy):
    with pytest.raises(ValueError, match=f"1: {lazy.__name__} has no weight yet; run a forward first"):
        convert(nn.Sequential(nn.Linear(3, 3), lazy(4, 2)))


# Hugging Face


def weights_of(model: nn.Module) -> dict[str, int]:
    return {d.kind: d.weights for d in summary(model).dense_weights}


def same_as_dense(model: nn.Module, index: torch.Tensor) -> None:
    """Logits of a language model are its dense copy's, and every parameter gets a gradient."""
    dense = to_dense(model)
    y, expected = model(index).logits, dense(index).logits
    assert torch.allclose(y, expected, rtol=1e-4, atol=1e-4)
    y.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_gpt2_is_converted_whole():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    config.tie_word_embeddings = False
    model = transformers.GPT2LMHeadModel(config).eval()
    bias = model.transformer.h[0].attn.c_attn.bias
    convert(model, FROZEN, strict=True)
    attention = model.transformer.h[0].attn.c_attn
    assert type(attention) is SupermaskLinear and attention.bias is bias
    assert attention.weight_shape == (48, 16)
    assert weights_of(model) == {}
    same_as_dense(model, torch.randint(40, (2, 7)))


def test_the_experts_of_mixtral_are_converted():
    transformers = pytest.importorskip("transformers", minversion="5")
    options = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_local_experts": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 40, "num_experts_per_tok": 2}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**options, **heads)).eval()
    experts = model.model.layers[0].mlp.experts
    x, index = torch.randn(5, 16), torch.tensor([[0, 2], [2, 1], [0, 1], [3, 3], [2, 0]])  # 3: no expert
    shares = torch.rand(5, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the router's weight is a single parameter
        convert(model, FROZEN)
    ours = model.model.layers[0].mlp.experts
    assert type(ours) is SupermaskExperts and set(weights_of(model)) == {"MixtralTopKRouter"}
    with torch.no_grad():
        for stacked, layers in ((experts.gate_up_proj, ours.gate_up_proj), (experts.down_proj, ours.down_proj)):
            stacked.copy_(torch.stack([layer.dense_weight() for layer in layers]))
    experts.config._experts_implementation = "eager"  # their other ones need a share of 0 where there is no expert
    assert torch.allclose(ours(x, index, shares), experts(x, index, shares), rtol=1e-5, atol=1e-5)
    same_as_dense(model, torch.randint(40, (2, 7)))


@pytest.mark.parametrize("name,value", (("is_transposed", True), ("has_bias", True), ("has_gate", False)))
def test_experts_of_another_layout_stay_dense(name, value):
    transformers = pytest.importorskip("transformers", minversion="5")
    options = {"hidden_size": 8, "intermediate_size": 8, "num_local_experts": 2, "num_attention_heads": 2}
    experts = transformers.models.mixtral.modeling_mixtral.MixtralExperts(transformers.MixtralConfig(**options))
    nn.init.normal_(experts.gate_up_proj)
    setattr(experts, name, value)
    with pytest.warns(UserWarning, match=r"dense weights stay .*1 MixtralExperts"):
        convert(nn.Sequential(experts, nn.Linear(2, 2)))


# torch-geometric


class Linear(nn.Module):
    """As torch-geometric's ``Linear``, whose full name it has in this test."""

    __module__ = "torch_geometric.nn.dense.linear"

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        lazy = in_channels < 0
        self.weight = nn.UninitializedParameter() if lazy else nn.Parameter(torch.randn(out_channels, in_channels))
        self.bias = nn.Parameter(torch.randn(out_channels))


def linear_of_pyg(*sizes: int) -> nn.Module:
    try:
        from torch_geometric.nn import Linear as Theirs
    except ImportError:
        return Linear(*sizes)
    return Theirs(*sizes)


def test_the_linear_of_torch_geometric_is_converted():
    model = nn.ModuleDict({"lin": linear_of_pyg(6, 4)})
    bias = model["lin"].bias
    convert(model, FROZEN, strict=True)
    assert type(model["lin"]) is SupermaskLinear and model["lin"].bias is bias
    assert model["lin"].weight_shape == (4, 6)


def test_a_lazy_one_has_to_be_made_first():
    with pytest.raises(ValueError, match="lin: Linear has no weight yet; run a forward first, or exclude it"):
        convert(nn.ModuleDict({"lin": linear_of_pyg(-1, 4)}))
