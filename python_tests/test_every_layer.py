"""What holds for every layer that `convert` makes: PyTorch's answers, biases, numbers, tickets, copies, FLOPs."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from slt_kernels import (
    EdgePopup,
    Freeze,
    SupermaskBilinear,
    SupermaskEmbeddingBag,
    SupermaskGRU,
    SupermaskGRUCell,
    SupermaskLinear,
    SupermaskLSTM,
    SupermaskLSTMCell,
    SupermaskMultiheadAttention,
    SupermaskRNN,
    SupermaskRNNCell,
    TicketError,
    bits,
    convert,
    drop_scores,
    load_ticket,
    number_layers,
    save_ticket,
    summary,
    to_dense,
)
from slt_kernels.nn import SupermaskLayer

FROZEN = Freeze(0.3, 0.2)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@dataclass(frozen=True)
class Kind:
    """A module of PyTorch, its inputs, and the weight shapes of its supermask layers."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple]
    shapes: tuple[tuple[int, ...], ...]
    options: dict = field(default_factory=dict)  # of its forward


KINDS = {
    "Linear": Kind(lambda: nn.Linear(9, 5), lambda: (normal(3, 9),), ((5, 9),)),
    "Conv1d": Kind(lambda: nn.Conv1d(4, 6, 3, groups=2), lambda: (normal(2, 4, 7),), ((6, 2, 3),)),
    "Conv2d": Kind(lambda: nn.Conv2d(4, 6, 3), lambda: (normal(2, 4, 5, 4),), ((6, 4, 3, 3),)),
    "Conv3d": Kind(lambda: nn.Conv3d(2, 3, 2, 2), lambda: (normal(2, 2, 4, 5, 6),), ((3, 2, 2, 2, 2),)),
    "ConvTranspose1d": Kind(lambda: nn.ConvTranspose1d(4, 6, 3, 2), lambda: (normal(2, 4, 3),), ((4, 6, 3),)),
    "ConvTranspose2d": Kind(
        lambda: nn.ConvTranspose2d(4, 6, 2, 2, 1, 1, 2), lambda: (normal(2, 4, 3, 4),), ((4, 3, 2, 2),)
    ),
    "ConvTranspose3d": Kind(
        lambda: nn.ConvTranspose3d(2, 3, 2, 2), lambda: (normal(2, 2, 2, 3, 2),), ((2, 3, 2, 2, 2),)
    ),
    "Bilinear": Kind(lambda: nn.Bilinear(3, 5, 4), lambda: (normal(2, 6, 3), normal(2, 6, 5)), ((4, 3, 5),)),
    "Embedding": Kind(lambda: nn.Embedding(9, 5, 2), lambda: (torch.tensor([[0, 2, 8]]),), ((9, 5),)),
    "EmbeddingBag": Kind(
        lambda: nn.EmbeddingBag(9, 5, mode="max", padding_idx=2),
        lambda: (torch.tensor([0, 2, 8, 2, 1, 0]), torch.tensor([0, 3, 4, 4])),
        ((9, 5),),
    ),
    "packed attention": Kind(
        lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True),
        lambda: (normal(3, 5, 8),) * 3,
        ((8, 8),) * 4,
        {"key_padding_mask": torch.arange(5) >= torch.tensor(((5,), (3,), (4,)))},
    ),
    "separate attention": Kind(
        lambda: nn.MultiheadAttention(8, 2, bias=False, kdim=6, vdim=3, add_zero_attn=True),
        lambda: (normal(5, 3, 8), normal(4, 3, 6), normal(4, 3, 3)),
        ((8, 8), (8, 6), (8, 3), (8, 8)),
        {"need_weights": False, "attn_mask": torch.ones(5, 4, dtype=torch.bool).triu(1)},
    ),
    "RNN": Kind(
        lambda: nn.RNN(5, 7, 2, "relu", bidirectional=True),
        lambda: (normal(4, 3, 5),),
        ((7, 5), (7, 7)) * 2 + ((7, 14), (7, 7)) * 2,
    ),
    "LSTM": Kind(
        lambda: nn.LSTM(5, 7, 2, bidirectional=True, proj_size=3),
        lambda: (normal(4, 3, 5),),
        ((28, 5), (28, 3), (3, 7)) * 2 + ((28, 6), (28, 3), (3, 7)) * 2,
    ),
    "GRU": Kind(
        lambda: nn.GRU(5, 7, batch_first=True),
        lambda: (normal(4, 3, 5), normal(1, 4, 7)),
        ((21, 5), (21, 7)),
    ),
    "RNNCell": Kind(lambda: nn.RNNCell(5, 7), lambda: (normal(3, 5), normal(3, 7)), ((7, 5), (7, 7))),
    "LSTMCell": Kind(
        lambda: nn.LSTMCell(5, 7), lambda: (normal(3, 5), (normal(3, 7), normal(3, 7))), ((28, 5), (28, 7))
    ),
    "GRUCell": Kind(lambda: nn.GRUCell(5, 7, bias=False), lambda: (normal(3, 5),), ((21, 5), (21, 7))),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


class Model(nn.Module):
    """One module, by the name ``inside``."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.inside, self.options = kind.make(), kind.options

    def forward(self, *inputs):
        return self.inside(*inputs, **self.options)


def converted(kind: Kind, **options) -> nn.Module:
    options = {"freeze": FROZEN, "seed": 5, "weight": "uniform"} | options
    return convert(Model(kind).double(), strict=True, **options)


def tensors(outputs) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [t for output in outputs if output is not None for t in tensors(output)]


def layers_of(model: nn.Module) -> list[SupermaskLayer]:
    return [m for m in model.modules() if isinstance(m, SupermaskLayer)]


def same(ours, theirs, **bounds) -> bool:
    pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
    return all(a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, **bounds) for a, b in pairs)


EXACT = {"rtol": 0, "atol": 0}


@kinds
def test_the_answers_and_gradients_are_pytorchs(kind):
    """Against PyTorch's module with the materialized weights: outputs, and gradients of inputs, scores and biases."""
    model, inputs = converted(kind), kind.inputs()
    dense = to_dense(model)
    assert type(dense.inside) is type(kind.make())
    results = []
    for m in (model, dense):
        floating = [x.clone().requires_grad_() if x.is_floating_point() else x for x in tensors(inputs)]
        structured = (floating[0], tuple(floating[1:])) if isinstance(inputs[-1], tuple) else floating
        outputs = tensors(m(*structured))
        sum((y * torch.linspace(1, 2, y.numel()).view(y.shape)).sin().sum() for y in outputs).backward()
        results.append((outputs, [x.grad for x in floating if x.is_floating_point()]))
    assert same(results[0], results[1], rtol=0, atol=1e-11)

    ours, theirs = dict(model.named_parameters()), dict(dense.named_parameters())
    for name in ours.keys() & theirs.keys():  # biases of the same name
        assert torch.allclose(ours[name].grad, theirs[name].grad, rtol=0, atol=1e-11), name
    grads = [p.grad for name, p in theirs.items() if p.dim() > 1 and "bias" not in name]
    if len(grads) < len(kind.shapes):  # the packed weight of q, k and v
        grads = [*grads[0].chunk(3), *grads[1:]]
    for layer, grad in zip(layers_of(model), grads, strict=True):
        assert torch.allclose(layer.scores.grad.double(), straight_through(layer, grad), rtol=1e-5, atol=1e-9)


def straight_through(layer: SupermaskLayer, grad: torch.Tensor) -> torch.Tensor:
    """``dL/dW * v * scale * sign(score)`` of the free weights, in the order of the scores."""
    source = layer.source
    place = layer._as_weight(torch.arange(source.total).view(source.rows, source.fan))
    matrix = torch.empty(source.rows, source.fan, dtype=torch.float64)
    matrix.view(-1)[place.flatten()] = (grad * layer.integer_weight() * layer.weight_scale).flatten()
    free = bits.unpack(source.frozen_words()[0])
    return bits.to_bit_order(matrix)[free] * layer.scores.detach().sign()


@kinds
def test_layers_are_numbered_one_after_another(kind):
    model = converted(kind)
    assert tuple(s.shape for s in summary(model).layers) == kind.shapes
    assert [m.source.layer for m in layers_of(model)] == list(range(len(kind.shapes)))
    before = [m.scores for m in layers_of(model)]
    number_layers(model)
    assert all(a is m.scores for a, m in zip(before, layers_of(model), strict=True))
    freezes = [Freeze(0.05 * i) for i in range(len(kind.shapes))]
    assert [m.freeze for m in layers_of(converted(kind, freeze=freezes, sparsity=None))] == freezes


@kinds
def test_biases_are_the_same_parameters(kind):
    model = Model(kind)
    biases = {id(p) for name, p in model.named_parameters() if "bias" in name}
    convert(model)
    scores = {id(m.scores) for m in layers_of(model)}
    assert {id(p) for p in model.parameters()} - scores == biases
    assert summary(model).dense_weights == ()


@kinds
def test_a_search_changes_masks_and_its_ticket_gives_the_same(kind, tmp_path):
    model, inputs = converted(kind), kind.inputs()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    EdgePopup(model, 0.6, "global").attach(optimizer)
    before = [m.compact_mask() for m in layers_of(model)]
    sum((y - 1).square().sum() for y in tensors(model(*inputs))).backward()
    optimizer.step()
    assert any(not torch.equal(m.compact_mask(), mask) for m, mask in zip(layers_of(model), before, strict=True))
    save_ticket(model, tmp_path / "net.slt")
    y = model(*inputs)
    for compact in (False, True):
        other = drop_scores(converted(kind, compact=compact))
        load_ticket(tmp_path / "net.slt", other)
        assert same(other(*inputs), y, **EXACT)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(copied(*inputs), y, **EXACT)
    again = converted(kind)
    again.load_state_dict(model.state_dict())
    assert same(again(*inputs), y, **EXACT)


@pytest.mark.parametrize(
    "make,other,message",
    (
        (
            lambda: nn.MultiheadAttention(8, 2),
            lambda: nn.MultiheadAttention(8, 4),
            "num_heads=2, the network num_heads=4",
        ),
        (lambda: nn.EmbeddingBag(9, 5), lambda: nn.EmbeddingBag(9, 5, mode="max"), "mode=mean, the network mode=max"),
        (lambda: nn.GRU(5, 7), lambda: nn.GRU(5, 7, batch_first=True), "batch_first=0, the network batch_first=1"),
        (lambda: nn.RNNCell(5, 7), lambda: nn.RNNCell(5, 7, True, "relu"), "nonlinearity=tanh, the network nonlinear"),
        (
            lambda: nn.ConvTranspose1d(2, 2, 3, 2),
            lambda: nn.ConvTranspose1d(2, 2, 3, 2, 0, 1),
            r"output_padding=\[0\], the network output_padding=\[1\]",
        ),
    ),
)
def test_a_ticket_of_other_arguments_is_refused(make, other, message, tmp_path):
    save_ticket(convert(nn.Sequential(make())), tmp_path / "net.slt")
    with pytest.raises(TicketError, match=message):
        load_ticket(tmp_path / "net.slt", convert(nn.Sequential(other())))


@kinds
def test_casting_and_the_meta_device(kind):
    model = converted(kind)
    scores = [m.scores.clone() for m in layers_of(model)]
    model.bfloat16()
    assert all(torch.equal(a, m.scores) for a, m in zip(scores, layers_of(model), strict=True))
    assert {p.dtype for p in to_dense(model).parameters()} == {torch.bfloat16}
    meta = convert(Model(kind).to("meta"), FROZEN)
    EdgePopup(meta, 0.6)
    assert {t.device.type for t in meta.state_dict().values()} == {"meta"}


PRODUCTS = ("Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


@pytest.mark.parametrize("name", (*PRODUCTS, "packed attention"))
def test_flops_are_the_dense_layers(name):
    """Forward and backward. PyTorch counts the gradient of a grouped kernel for all channels, so without groups."""
    kind = KINDS[name]
    model, inputs = converted(kind), kind.inputs()
    grouped = getattr(model.inside, "groups", 1) > 1
    counts = []
    for m in (model, to_dense(model)):
        inputs = [x.clone().requires_grad_() for x in inputs]
        with FlopCounterMode(display=False) as counter:
            y = m(*inputs)
            if not grouped:
                sum(t.sum() for t in tensors(y)).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


# One layer each


def test_recurrent_layers_take_packed_sequences():
    sequences = [normal(n, 5) for n in (4, 6, 1)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    for layer, hx in (
        (SupermaskLSTM(5, 7, **options), (normal(4, 3, 7), normal(4, 3, 7))),
        (SupermaskGRU(5, 7, **options), normal(4, 3, 7)),
        (SupermaskRNN(5, 7, **options), normal(4, 3, 7)),
    ):
        (ours, last), (theirs, their_last) = layer(packed, hx), layer.to_dense()(packed, hx)
        assert torch.allclose(ours.data, theirs.data, rtol=0, atol=1e-12)
        assert same(last, their_last, rtol=0, atol=1e-12)


def test_dropout_between_recurrent_layers():
    layer = SupermaskLSTM(5, 7, 2, dropout=1.0)
    x = torch.randn(4, 3, 5)
    dropped, _ = layer(x)
    assert torch.equal(dropped, layer(2 * x)[0])  # the second layer has no input left
    assert not torch.equal(layer.eval()(x)[0], layer(2 * x)[0])


@pytest.mark.parametrize(
    "make,inputs",
    (
        (lambda: nn.LSTM(5, 6), lambda: (torch.randn(4, 3, 5), (torch.randn(1, 3, 6),) * 2)),
        (lambda: nn.LSTM(5, 6, proj_size=2), lambda: (torch.randn(4, 3, 5),)),
        (lambda: nn.GRU(5, 6), lambda: (torch.randn(4, 3, 5),)),
        (lambda: nn.RNN(5, 6), lambda: (torch.randn(4, 3, 5), torch.randn(1, 3, 6))),
        (lambda: nn.LSTMCell(5, 6), lambda: (torch.randn(3, 5),)),
        (lambda: nn.RNNCell(5, 6), lambda: (torch.randn(3, 5),)),
        (lambda: nn.MultiheadAttention(8, 2), lambda: (torch.randn(5, 3, 8),) * 3 + (torch.zeros(3, 5, dtype=bool),)),
    ),
    ids=("lstm", "projected", "gru", "rnn", "lstm cell", "rnn cell", "attention"),
)
def test_autocast_gives_the_dtypes_of_pytorch(make, inputs):
    dense, inputs = nn.Sequential(make()), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        expected = [t.dtype for t in tensors(dense[0](*inputs))]
        assert [t.dtype for t in tensors(convert(dense)[0](*inputs))] == expected


@pytest.mark.parametrize("average", (False, True))
def test_attention_weights(average):
    layer = SupermaskMultiheadAttention(8, 2, dtype=torch.float64)
    x, mask = normal(5, 3, 8), normal(6, 5, 5)
    ours = layer(x, x, x, attn_mask=mask, average_attn_weights=average)
    assert same(ours, layer.to_dense()(x, x, x, attn_mask=mask, average_attn_weights=average), rtol=0, atol=1e-13)
    assert same(layer(x[:, 0], x[:, 0], x[:, 0]), layer.to_dense()(x[:, 0], x[:, 0], x[:, 0]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("batch_first", (False, True))
@pytest.mark.parametrize("need_weights", (False, True))
def test_attention_is_contiguous(batch_first, need_weights):
    x = torch.randn(5, 3, 8)
    y, _ = SupermaskMultiheadAttention(8, 2, batch_first=batch_first)(x, x, x, need_weights=need_weights)
    assert y.is_contiguous()


@pytest.mark.parametrize(
    "make",
    (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    ),
    ids=("attention", "encoder"),
)
def test_exported_attention_takes_other_batches(make):
    model, batch = convert(make()).eval(), torch.export.Dim("batch", min=2, max=64)
    few, many = ([torch.randn(n, 5, 8)] * (3 if isinstance(model, SupermaskMultiheadAttention) else 1) for n in (3, 7))
    exported = torch.export.export(model, tuple(few), dynamic_shapes=({0: batch},) * len(few)).module()
    assert all(same(exported(*inputs), model(*inputs), rtol=0, atol=0) for inputs in (few, many))


@pytest.mark.parametrize("missing", ("in_proj_bias", "out_proj.bias"))
def test_attention_with_one_bias_only(missing):
    attention = nn.MultiheadAttention(8, 2, dtype=torch.float64)
    module, _, name = missing.rpartition(".")
    setattr(attention.get_submodule(module), name, None)
    layer, x = convert(attention), normal(5, 3, 8)
    assert same(layer(x, x, x), layer.to_dense()(x, x, x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", ("sum", "mean", "max"))
@pytest.mark.parametrize("padding_idx", (None, 2))
def test_bags(mode, padding_idx):
    layer = SupermaskEmbeddingBag(9, 33, mode=mode, padding_idx=padding_idx, include_last_offset=True)
    dense = layer.to_dense()
    index = torch.randint(9, (11,))
    for arguments in (
        (index, torch.tensor([0, 4, 4, 11])),
        (index[:10].view(2, 5),),
        (torch.zeros(0, dtype=torch.long), torch.tensor([0, 0])),
        (index.int(), torch.tensor([0, 11]).int()),
        *([(index, torch.tensor([0, 11]), torch.randn(11))] if mode == "sum" else []),
    ):
        assert torch.allclose(layer(*arguments), dense(*arguments), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "make,message",
    (
        (lambda: SupermaskMultiheadAttention(9, 2), "embed_dim=9: expected a multiple of num_heads=2"),
        (lambda: SupermaskMultiheadAttention(8, 2, freeze=[FROZEN] * 3), "freeze: 3 given, expected one, or one for"),
        (lambda: SupermaskMultiheadAttention(8, 2, dropout=2), r"dropout=2: expected a fraction in \[0, 1\]"),
        (lambda: SupermaskLSTM(5, 7, proj_size=7), "proj_size=7: expected an integer from 0 to 6"),
        (lambda: SupermaskLSTM(5, 7, dropout=2), r"dropout=2: expected a fraction in \[0, 1\]"),
        (lambda: SupermaskLSTM(5, 7)(torch.randn(2, 3, 4)), r"expected \[T, B, 5\] or \[T, 5\]"),
        (lambda: SupermaskGRU(5, 7)(torch.randn(0, 3, 5)), "expected at least one time step"),
        (lambda: SupermaskGRU(5, 7)(torch.randn(2, 3, 5), torch.zeros(1, 2, 7)), r"expected \[1, 3, 7\]"),
        (lambda: SupermaskRNN(5, 7, nonlinearity="gelu"), "nonlinearity='gelu': expected 'tanh' or 'relu'"),
        (lambda: SupermaskRNNCell(5, 7, nonlinearity=None), "nonlinearity=None: expected 'tanh' or 'relu'"),
        (lambda: SupermaskGRUCell(5, 7)(torch.randn(3, 4)), r"expected \[B, 5\] or \[5\]"),
        (lambda: SupermaskLSTMCell(5, 7)(torch.randn(3, 5), (torch.zeros(3, 7),) * 2 + (1,)), "expected a pair"),
        (lambda: SupermaskBilinear(3, 5, 2)(torch.randn(2, 3), torch.randn(3, 5)), r"\[\.\.\., 3\] and \[\.\.\., 5\]"),
        (lambda: SupermaskEmbeddingBag(5, 3, mode="min"), "mode='min': expected one of sum, mean, max"),
        (lambda: SupermaskEmbeddingBag(5, 3, max_norm=1.0), "max_norm=1.0: expected None"),
        (lambda: attend(attn_mask=torch.zeros(4, 5)), r"attn_mask.shape=\[4, 5\]: expected \[5, 5\] or \[6, 5, 5\]"),
        (lambda: attend(key_padding_mask=torch.zeros(5, 3)), r"key_padding_mask.shape=\[5, 3\]: expected \[3, 5\]"),
        (lambda: attend(is_causal=True), "is_causal=True: expected the causal mask as attn_mask too"),
    ),
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@kinds
def test_inputs_that_are_no_tensors_are_refused(kind):
    with pytest.raises(TypeError, match="expected a tensor, got list"):
        converted(kind)(*[[1.0]] * len(kind.inputs()))


def attend(**options):
    x = torch.randn(5, 3, 8)
    return SupermaskMultiheadAttention(8, 2)(x, x, x, **options)


# to_dense


def test_to_dense_changes_nothing_of_the_model():
    layer = SupermaskLinear(6, 6, freeze=FROZEN)
    model = nn.ModuleDict({"a": layer, "b": nn.BatchNorm1d(6), "again": layer})
    model["a"].register_forward_hook(lambda module, args, y: y + 1)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    dense = to_dense(model.eval())
    assert type(dense["a"]) is nn.Linear and dense["a"] is dense["again"]
    assert not dense["a"].training and model["a"] is layer
    x = torch.randn(4, 6)
    assert torch.allclose(dense["a"](x), layer(x), atol=1e-6)
    with torch.no_grad():
        for p in dense.parameters():
            p.zero_()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert type(to_dense(layer)) is nn.Linear
    with pytest.raises(ValueError, match="expected at least one supermask layer"):
        to_dense(dense)
