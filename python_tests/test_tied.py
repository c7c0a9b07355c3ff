"""Modules that share one random weight and its mask, and weights that other code multiplies by itself."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slt_kernels import (
    EdgePopup,
    Freeze,
    SupermaskEmbedding,
    SupermaskLinear,
    TicketError,
    convert,
    load_ticket,
    save_ticket,
    summary,
    ticket_info,
    to_dense,
)
from slt_kernels.nn import TiedEmbedding, TiedLinear


def tied(**options) -> nn.ModuleDict:
    """An embedding, another one and a head that share its weight; the head comes first."""
    torch.manual_seed(0)
    modules = {"head": nn.Linear(40, 30), "words": nn.Embedding(30, 40, padding_idx=2), "types": nn.Embedding(30, 40)}
    model = nn.ModuleDict(modules)
    model["head"].weight = model["types"].weight = model["words"].weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return convert(model, freeze=Freeze(0.3, 0.2), scale="dynamic", tie=True, **options)


def test_the_embedding_owns_the_weight():
    model = tied()
    assert [type(m) for m in model.values()] == [TiedLinear, SupermaskEmbedding, TiedEmbedding]
    assert len(summary(model).layers) == 1
    assert {name for name in model.state_dict() if not name.startswith("words.")} == {"head.bias"}
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied["head"].owner is copied["types"].owner is copied["words"]


@pytest.mark.parametrize("compact", (False, True))
def test_outputs_and_gradients_are_those_of_one_dense_weight(compact):
    model = tied(compact=compact)
    words, types, head = model["words"], model["types"], model["head"]
    weight = types.dense_weight().double().requires_grad_()
    index, x = torch.tensor([[2, 5], [8, 5]]), torch.randn(3, 40)
    factor = 2**0.5 / 40**0.5  # a Linear's Kaiming scale over an embedding's 1
    ours = head(x), types(index), words(index)
    dense = (
        F.linear(x.double(), weight * factor, head.bias.double()),
        F.embedding(index, weight),
        F.embedding(index, weight, padding_idx=2).masked_fill((index == 2).unsqueeze(-1), 0),
    )
    upstream = [torch.randn_like(y) for y in ours]
    for a, b, dy in zip(ours, dense, upstream, strict=True):
        assert torch.allclose(a.double(), b, atol=1e-5)
        a.backward(dy)
        b.backward(dy.double())
    learned, words.scores.grad = words.scores.grad, None
    types.learned_weight().backward(weight.grad.float())
    assert torch.allclose(learned, words.scores.grad, atol=1e-4)


def test_an_edge_popup_changes_both():
    model = tied()
    x = torch.randn(3, 40)
    before = model["head"](x), model["types"](torch.arange(30))
    EdgePopup(model, 0.8)
    after = model["head"](x), model["types"](torch.arange(30))
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.allclose(model["head"].dense_weight(), model["types"].dense_weight() * (2 / 40) ** 0.5)


def test_a_ticket_holds_the_mask_once(tmp_path):
    model, other = tied(), tied()
    EdgePopup(model, 0.8)
    save_ticket(model, tmp_path / "net.slt")
    load_ticket(tmp_path / "net.slt", other)
    assert [layer.name for layer in ticket_info(tmp_path / "net.slt").layers] == ["words"]
    x = torch.randn(3, 40)
    assert torch.equal(other["head"](x), model["head"](x))


def test_the_dense_network_gives_the_same_answers():
    model, index, x = tied(), torch.arange(30), torch.randn(3, 40)
    dense = to_dense(model)
    assert [type(m) for m in dense.values()] == [nn.Linear, nn.Embedding, nn.Embedding]
    assert torch.allclose(dense["head"](x), model["head"](x), atol=1e-5)
    for name in ("words", "types"):
        assert torch.equal(dense[name](index), model[name](index))


def test_two_linears_share_at_one_scale():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6, bias=False))
    model[1].weight = model[0].weight
    convert(model, tie=True)
    assert [type(m) for m in model] == [SupermaskLinear, TiedLinear]
    assert torch.equal(model[1].weight.detach(), model[0].weight.detach())


def test_a_dense_copy_in_float64_is_as_exact_as_its_owners():
    model = nn.Sequential(nn.Linear(7, 7), nn.Linear(7, 7)).double()
    model[1].weight = model[0].weight
    convert(model, tie=True, weight="uniform")
    x = torch.randn(3, 7, dtype=torch.float64)
    assert torch.allclose(to_dense(model)(x), model(x), rtol=0, atol=1e-13)


def test_gradients_scaled_by_frequency_are_pytorchs():
    model = nn.ModuleList((nn.Embedding(5, 4), nn.Embedding(5, 4, -1, scale_grad_by_freq=True)))
    model[1].weight = model[0].weight
    convert(model, tie=True)
    dense, index = to_dense(model)[1], torch.tensor([1, 1, 3, 4, 4, 1])
    assert (dense.padding_idx, dense.scale_grad_by_freq) == (4, True)
    dy = torch.randn(6, 4)
    for module in (model[1], dense):
        module(index).backward(dy)
    expected = copy.deepcopy(model[0])
    expected.learned_weight().backward(dense.weight.grad)
    assert torch.allclose(model[0].scores.grad, expected.scores.grad, atol=1e-6)


@pytest.mark.parametrize(
    "second,message",
    (
        (nn.Embedding(5, 4, max_norm=1.0), r"1: max_norm=1\.0: expected None"),
        (nn.Embedding(5, 4, sparse=True), "1: sparse=True: expected False"),
        (nn.Linear(4, 5), r"1: its replacement would lose what was added to it \(extra\); exclude it"),
    ),
)
def test_what_a_tied_module_cannot_keep_is_refused(second, message):
    model = nn.ModuleList((nn.Embedding(5, 4), copy.deepcopy(second)))
    model[1].weight = model[0].weight
    model[1].register_buffer("extra", torch.zeros(1))
    with pytest.raises(ValueError, match=message):
        convert(model, tie=True)
    assert type(model[0]) is nn.Embedding


def test_a_default_device_does_not_move_a_padding_row():
    embedding = tied()["words"]
    again = TiedEmbedding(embedding, 2)
    with torch.device("meta"):
        weight = again.dense_weight()
    assert torch.equal(weight, embedding.dense_weight())


def test_owners_and_rows_that_do_not_fit_are_refused():
    owner = SupermaskEmbedding(5, 4)
    with pytest.raises(TypeError, match="owner: expected a SupermaskEmbedding or a SupermaskLinear, got Embedding"):
        TiedLinear(nn.Embedding(5, 4))
    with pytest.raises(ValueError, match="padding_idx=5: expected an integer from -5 to 4"):
        TiedEmbedding(owner, 5)
    with pytest.raises(ValueError, match="gain=0: expected a positive number"):
        TiedLinear(owner, gain=0)


# `layer.weight` in other code


def test_a_weight_is_read_as_a_number():
    layer = SupermaskLinear(1, 1, sparsity=None)
    assert int(layer.weight) == int(layer.dense_weight()) != 0


def test_a_weight_that_other_code_multiplies_by_trains_its_scores():
    torch.manual_seed(0)
    a = SupermaskLinear(45, 20, freeze=Freeze(0.3, 0.2))
    b = copy.deepcopy(a)
    x = torch.randn(7, 45)
    y = F.linear(x, a.weight, a.bias)
    assert torch.allclose(y, b(x), atol=1e-5)
    dy = torch.randn_like(y)
    y.backward(dy)
    b(x).backward(dy)
    assert torch.allclose(a.scores.grad, b.scores.grad, atol=1e-5)
    with torch.no_grad():
        assert not F.linear(x, a.weight).requires_grad


def test_attention_of_pytorch_trains_its_output_layer():
    attention = nn.MultiheadAttention(16, 2)
    attention.out_proj = SupermaskLinear(16, 16)
    x = torch.randn(5, 2, 16)
    attention(x, x, x)[0].square().mean().backward()
    assert attention.out_proj.scores.grad.abs().sum() > 0


def test_a_ticket_of_another_gain_or_padding_is_refused(tmp_path):
    """Of tied modules: both are in no tensor."""
    save_ticket(tied(), tmp_path / "net.slt")
    with pytest.raises(TicketError, match=r"has tied_gain=.*1.41.*, the network tied_gain=.*1.0"):
        load_ticket(tmp_path / "net.slt", tied(gain=1.0))
    model = tied()
    TiedEmbedding(model["words"], padding_idx=1)
    with pytest.raises(TicketError, match="tied_padding_idx"):
        load_ticket(tmp_path / "net.slt", model)
    again = tied()
    again["head"] = TiedLinear(again["words"], again["head"].bias)
    load_ticket(tmp_path / "net.slt", again)


class ReadsWeight(nn.Module):
    """Reads its layer's weight twice, and calls the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.layer.weight
        return F.linear(x, weight) * weight.shape[0] + x @ weight.T + self.layer(x)


@pytest.mark.parametrize("backend", ("eager", "aot_eager"))
@pytest.mark.parametrize("training", (True, False))
def test_a_compiled_module_reads_a_weight(backend, training):
    torch.manual_seed(0)
    ours = convert(ReadsWeight(), Freeze(0.3, 0.2)).train(training)
    theirs = copy.deepcopy(ours)
    x = torch.randn(4, 16)
    y, expected = torch.compile(ours, backend=backend)(x), theirs(x)
    assert torch.equal(y, expected)
    for output in (y, expected):
        output.square().sum().backward()
    assert torch.equal(ours.layer.scores.grad, theirs.layer.scores.grad)
