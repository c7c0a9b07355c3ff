"""SupermaskEmbedding: looked-up rows of the materialized table, and the gradient of their scores, on every backend."""

import copy

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from layers import Case, relative_error
from torch import nn

from slt_kernels import (
    EdgePopup,
    Freeze,
    Source,
    SupermaskEmbedding,
    backends,
    convert,
    load_ticket,
    ops,
    save_ticket,
    summary,
)
from slt_kernels.source import WEIGHTS

SHAPES = ((1, 1), (3, 31), (17, 33), (40, 65), (5, 127), (33, 129), (2, 257))


def look_up(case: Case, index, scores=None, compact=False, dtype=torch.float32, **options):
    scores = case.scores.float() if scores is None else scores
    return ops.embedding(index, scores, case.mask(compact), case.scale_tensor(), case.source, dtype, **options)


@pytest.mark.parametrize("compact", (False, True))
@pytest.mark.parametrize("rows,fan", SHAPES)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_rows_of_the_materialized_table(weight, rows, fan, compact, backend, poisoned):
    case = Case(rows, fan, weight, scale=0.0137)
    table = case.integer.float() * case.scale_tensor()
    index = torch.randint(rows, (3, 7))
    assert torch.equal(look_up(case, index, compact=compact), F.embedding(index, table))
    assert torch.equal(look_up(case, index.int()[0], compact=compact), F.embedding(index[0], table))
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(look_up(case, index, compact=compact, dtype=dtype), F.embedding(index, table).to(dtype))
    wide = F.embedding(index, case.integer * case.scale_tensor().double())
    assert torch.equal(look_up(case, index, compact=compact, dtype=torch.float64), wide)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_instruction_set(weight, isa):
    case = Case(37, 161, weight, scale=0.0137)
    scores, dy, index = case.scores.float().requires_grad_(), torch.randn(90, 161), torch.randint(37, (90,))
    with backends.use("cpu"):
        for compact in (False, True):
            y = look_up(case, index, scores, compact)
            assert torch.equal(y, F.embedding(index, case.integer.float() * case.scale_tensor()))
        (ours,) = torch.autograd.grad(y, scores, dy)
    assert relative_error(ours, expected_gradient(case, index, dy)) < 1e-7


def expected_gradient(case: Case, index: torch.Tensor, dy: torch.Tensor, **options) -> torch.Tensor:
    scores = case.scores.clone().requires_grad_()
    y = F.embedding(index, case.dense_with(scores).weight(case.threshold), **options)
    return torch.autograd.grad(y, scores, dy.double())[0]


@pytest.mark.parametrize("rows,fan", SHAPES)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_gradient_adds_up_what_is_looked_up_twice(weight, rows, fan, backend):
    case = Case(rows, fan, weight)
    index = torch.randint(max(1, rows // 2), (4, 9))  # no index selects the other rows
    dy = torch.randn(4, 9, fan)
    scores = case.scores.float().requires_grad_()
    (grad,) = torch.autograd.grad(look_up(case, index, scores), scores, dy)
    assert relative_error(grad, expected_gradient(case, index, dy)) < 1e-6
    for _ in range(3):
        assert torch.equal(torch.autograd.grad(look_up(case, index, scores), scores, dy)[0], grad)
    (grad,) = torch.autograd.grad(look_up(case, index, scores, scale_grad_by_freq=True), scores, dy)
    assert relative_error(grad, expected_gradient(case, index, dy, scale_grad_by_freq=True)) < 1e-6


def test_the_gradient_in_float64(backend):
    case = Case(7, 40, "normal")
    index, dy, scores = torch.tensor([1, 1, 6, 0]), torch.randn(4, 40, dtype=torch.float64), case.scores.clone()
    y = look_up(case, index, scores.requires_grad_(), dtype=torch.float64)
    (grad,) = torch.autograd.grad(y, scores, dy)
    assert relative_error(grad, expected_gradient(case, index, dy)) < 1e-15


@given(st.data())
def test_a_shard_is_an_offset(data):
    case = Case(20, 150, data.draw(st.sampled_from(WEIGHTS)))
    n0, n1 = sorted(data.draw(st.sets(st.integers(0, 20), min_size=2, max_size=2)))
    w0, w1 = sorted(data.draw(st.sets(st.integers(0, 5), min_size=2, max_size=2)))
    part = case.source.shard((n0, n1), (w0, w1))
    index = torch.tensor(data.draw(st.lists(st.integers(0, n1 - n0 - 1), max_size=40)), dtype=torch.long)
    mask = case.mask()[n0:n1, w0:w1].contiguous()
    y = ops.embedding(index, torch.zeros(part.free), mask, case.scale_tensor(), part)
    table = (case.integer.float() * case.scale)[n0:n1, 32 * w0 : 32 * w1]
    assert torch.equal(y, F.embedding(index, table))


def test_an_empty_look_up_and_a_strided_one(backend):
    case = Case(9, 33)
    scores = case.scores.float().requires_grad_()
    y = look_up(case, torch.zeros(0, 4, dtype=torch.long), scores)
    assert y.shape == (0, 4, 33)
    assert not torch.autograd.grad(y.sum(), scores)[0].any()
    index = torch.randint(9, (6, 5))
    table = case.integer.float() * case.scale
    assert torch.equal(look_up(case, index.T[::2], scores), F.embedding(index.T[::2], table))
    assert torch.equal(look_up(case, torch.tensor(4), scores), table[4])
    (grad,) = torch.autograd.grad(look_up(case, index, scores).sum(), scores)  # an expanded gradient
    assert relative_error(grad, expected_gradient(case, index, torch.ones(6, 5, 33))) < 1e-6


def test_operations_pass_opcheck(backend):
    case = Case(9, 33)
    mask, index, dy = case.mask(), torch.tensor([2, 8, 2]), torch.randn(3, 33)
    own = torch.ops.slt_kernels
    dtype = torch.bfloat16
    torch.library.opcheck(own.embedding_forward, (index, mask, case.scale_tensor(), [*case.source], dtype))
    arguments = (dy, index, case.scores.float(), case.scale_tensor(), [*case.source])
    torch.library.opcheck(own.embedding_grad_scores, arguments)


def test_bad_input_is_refused():
    case = Case(9, 33)
    for outside in (-1, 9):
        with pytest.raises(IndexError):
            look_up(case, torch.tensor([0, outside]))
    with pytest.raises(IndexError, match=r"index holds 9: expected rows in \[0, 9\)"), backends.use("cpu"):
        look_up(case, torch.tensor([0, 9]))
    with pytest.raises(TypeError, match=r"index\.dtype=torch\.float32: expected int64 or int32"):
        look_up(case, torch.zeros(3))
    with pytest.raises(TypeError, match=r"dtype=torch\.int8: expected float32"):
        look_up(case, torch.tensor([0]), dtype=torch.int8)
    with pytest.raises(ValueError, match="scores: expected"):
        look_up(case, torch.tensor([0]), torch.zeros(5))


# The layer


def small(**options) -> SupermaskEmbedding:
    return SupermaskEmbedding(23, 40, freeze=Freeze(0.3, 0.3), weight="uniform", seed=4, layer=2, **options)


def test_the_layer_is_an_embedding_of_its_dense_weight():
    layer = small(scale="dynamic")
    index = torch.randint(23, (2, 5))
    assert torch.equal(layer(index), F.embedding(index, layer.dense_weight()))
    source = Source.of(23, 40, seed=4, layer=2, weight="uniform", freeze=Freeze(0.3, 0.3))
    assert layer.source == source and layer.scores.shape == (source.free,) and layer.bias is None
    assert layer.integer_weight().shape == layer.mask().shape == (23, 40)


def test_weights_have_the_standard_deviation_asked_for():
    for std in (1.0, 0.02):
        layer = SupermaskEmbedding(200, 64, sparsity=None, std=std, weight="normal")
        assert layer.dense_weight().std().item() == pytest.approx(std, rel=0.02)
        assert layer.scores.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.02)


@pytest.mark.parametrize("padding_idx", (3, -20))
def test_padding_reads_as_zeros_and_has_no_gradient(padding_idx):
    layer = small(padding_idx=padding_idx)
    assert layer.padding_idx == 3
    index = torch.tensor([[3, 1], [4, 3]])
    y = layer(index)
    assert not y[index == 3].any() and y[index != 3].any()
    assert torch.equal(y, F.embedding(index, layer.dense_weight(), 3))
    layer(torch.tensor([3, 3])).sum().backward()
    assert not layer.scores.grad.any()


def test_dtypes_follow_the_layer_and_scores_do_not():
    index = torch.tensor([5, 2])
    layer = small()
    truth = layer(index)
    for dtype in (torch.bfloat16, torch.float64, torch.float16, torch.float32):
        layer.to(dtype)
        assert layer(index).dtype == dtype and layer.scores.dtype == torch.float32
        assert relative_error(layer(index), truth) < 5e-3
    assert torch.equal(layer(index), truth)
    assert small(dtype=torch.float16)(index).dtype == torch.float16


def test_training_moves_only_looked_up_rows():
    layer = small(compact=True)
    before = layer.scores.detach().clone()
    layer(torch.tensor([0, 22, 0])).square().sum().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()
    moved = layer.scores.detach() != before
    state = layer.frozen_state()
    free = [int((state[n] == 0).sum()) for n in range(23)]
    assert not moved[free[0] : sum(free[:22])].any()
    assert moved[: free[0]].any() and moved[sum(free[:22]) :].any()


def test_copies_and_checkpoints():
    layer = small(padding_idx=1)
    index = torch.tensor([5, 1, 7])
    assert torch.equal(copy.deepcopy(layer)(index), layer(index))
    with torch.no_grad():
        layer.scores.neg_().mul_(torch.rand_like(layer.scores))
    truth = layer(index)
    other = small(padding_idx=1, compact=True)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.eval()(index), truth)


def test_compiles_in_one_graph():
    layer = small(padding_idx=1)
    index = torch.tensor([5, 1, 7, 7])
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(index), layer(index))
    compiled(index).square().sum().backward()
    grad, layer.scores.grad = layer.scores.grad, None
    layer(index).square().sum().backward()
    assert torch.equal(grad, layer.scores.grad)


@pytest.mark.parametrize(
    "options,message",
    (
        ({"max_norm": 1.0}, "max_norm=1.0: expected None"),
        ({"sparse": True}, "sparse=True: expected False"),
        ({"padding_idx": 23}, "padding_idx=23: expected an integer from -23 to 22"),
        ({"padding_idx": 1.5}, "padding_idx=1.5: expected an integer"),
        ({"std": 0.0}, "std=0.0: expected a positive number"),
        ({"sparsity": 0.2}, "sparsity=0.2 is below prune=0.3"),
    ),
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


class Bag(nn.Module):
    """A network: the mean of embeddings, and a linear layer."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 33, **options)
        self.head = nn.Linear(33, 4)

    def forward(self, index):
        return self.head(self.embedding(index).mean(1))


def test_converted_searched_and_kept_in_a_ticket(tmp_path):
    options = {"spread": "erk", "sparsity": None, "seed": 3}
    model = convert(Bag(padding_idx=0), Freeze(0.2, 0.2), **options)
    assert [(s.name, s.shape) for s in summary(model).layers] == [("embedding", (50, 33)), ("head", (4, 33))]
    assert model.embedding.padding_idx == 0 and model.embedding.source.layer == 0
    popup = EdgePopup(model, sparsity=0.6)
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if n.endswith("scores")], 0.5)
    popup.attach(optimizer)
    index = torch.randint(50, (16, 6))
    before = model.embedding.mask()
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(index), index[:, 0] % 4).backward()
        optimizer.step()
    assert not torch.equal(model.embedding.mask(), before)
    assert int(model.embedding.mask().sum() + model.head.mask().sum()) == 54 * 33 - int(0.6 * 54 * 33)
    save_ticket(model, tmp_path / "bag.slt")
    other = convert(Bag(padding_idx=0), Freeze(0.2, 0.2), **options)
    load_ticket(tmp_path / "bag.slt", other)
    assert torch.equal(other(index), model(index))


def test_convert_refuses_what_an_embedding_cannot_do():
    model = Bag(max_norm=1.0)
    with pytest.raises(ValueError, match=r"max_norm=1\.0: expected None"):
        convert(model)
    assert type(model.embedding) is nn.Embedding and type(model.head) is nn.Linear
