"""Tensor parallelism: two processes with a shard of each layer train like one process with the whole layer."""

import pytest
from processes import run_processes

from slt_kernels import SupermaskConvTranspose2d

NETWORK = """
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import parallelize_module
from slt_kernels import EdgePopup, Freeze, convert, load_ticket, save_ticket
from slt_kernels.nn import SupermaskLayer
from slt_kernels.nn.parallel import ColwiseParallel, RowwiseParallel

mesh = init_device_mesh("cpu", (world,))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(37, 64, padding_idx=20)
        self.places = nn.Embedding(6, 64)
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 43)
        self.middle = nn.Linear(43, 43, bias=False)
        self.head = nn.Linear(43, 5)

    def forward(self, index):
        h = self.words(index) + self.places(torch.arange(index.shape[1]))
        return self.head(self.middle(F.gelu(self.down(F.gelu(self.up(h)))).mean(1)))


def network(compact=False, **options):
    torch.manual_seed(7)
    options = dict(weight="uniform", scale="dynamic", spread="erk", seed=3, sparsity=None) | options
    return convert(Net(), Freeze(0.25, 0.2), compact=compact, **options)


PLAN = {
    "words": RowwiseParallel(),
    "places": ColwiseParallel(output_layouts=Replicate()),
    "up": ColwiseParallel(),
    "down": RowwiseParallel(),
    "head": ColwiseParallel(output_layouts=Replicate()),  # five rows: three and two
}  # "middle" is in each process whole


def parallel(**options):
    return parallelize_module(network(**options), mesh, PLAN)


def layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, SupermaskLayer)}


def train(model, popup, steps=20, lr=0.2):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    popup.attach(optimizer)
    data = torch.Generator().manual_seed(5)
    for _ in range(steps):
        index = torch.randint(37, (16, 6), generator=data)
        optimizer.zero_grad()
        F.cross_entropy(model(index), index[:, 0] % 5).backward()
        optimizer.step()


def error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def check_equal(sharded, single):
    singles = layers(single)
    for name, layer in layers(sharded).items():
        whole = singles[name]
        assert error(layer.scores, layer._part_of_scores(whole.scores)) < 1e-6, name
        assert torch.equal(layer.compact_mask(), whole.compact_mask()), name
        assert torch.equal(layer.weight_scale, whole.weight_scale), name
        if layer.bias is not None:
            assert error(layer.whole_bias(), whole.bias.detach()) < 1e-5, name
"""

TRAIN = """
for scope, compact in (("global", False), ("local", True)):
    single, sharded = network(), parallel(compact=compact)
    start = single.up.scores.detach().clone()
    train(single, EdgePopup(single, 0.6, scope))
    train(sharded, EdgePopup(sharded, 0.6, scope))
    check_equal(sharded, single)
    assert error(single.up.scores.detach(), start) > 1e-3
    held = sum(m.scores.numel() for m in layers(sharded).values() if m.group is not None)
    free = sum(m.free for m in layers(sharded).values() if m.group is not None)
    assert 0.45 * free < held < 0.55 * free
"""

FILES = """
folder = sys.argv[4]
single, sharded = network(), parallel()
popups = EdgePopup(single, 0.6), EdgePopup(sharded, 0.6)
for model, popup in zip((single, sharded), popups):
    train(model, popup, steps=3)
for name, layer in layers(single).items():  # the same scores, to the bit
    part = layers(sharded)[name]
    with torch.no_grad():
        part.scores.copy_(part._part_of_scores(layer.scores))
        if layer.bias is not None:
            part.bias.copy_(part.part_of_bias(layer.bias))
popups[1].step()
check_equal(sharded, single)

# A ticket is the single process's, byte for byte; and a sharded network takes its part of it.
save_ticket(single, f"{folder}/single{rank}.slt")
save_ticket(sharded, f"{folder}/sharded{rank}.slt")
files = [open(f"{folder}/{name}{rank}.slt", "rb").read() for name in ("single", "sharded")]
assert files[0] == files[1]
for compact in (False, True):
    other = parallel(compact=compact, sparsity=None)
    load_ticket(f"{folder}/single{rank}.slt", other)
    index = torch.randint(37, (4, 6), generator=torch.Generator().manual_seed(1))
    assert torch.equal(other(index), sharded(index))
    torch.testing.assert_close(other(index), single(index))

# Checkpoints: of a shard, of the whole network, and of another shard
    again = parallel(compact=compact)
    again.load_state_dict(sharded.state_dict())
    assert torch.equal(again(index), sharded(index))
    again = parallel(compact=compact)
    again.load_state_dict(single.state_dict())
    check_equal(again, single)
    assert torch.equal(again(index), sharded(index))
states = [None, None]
dist.all_gather_object(states, sharded.state_dict())
try:
    sharded.load_state_dict(states[1 - rank])
except RuntimeError as error_:
    assert "up.source_id is of another network" in str(error_)
else:
    raise AssertionError
"""

ALONE = """
from slt_kernels import SupermaskEmbedding, SupermaskLinear
from slt_kernels.nn import sharded_scores
from slt_kernels import ops

# Thresholds over shards: every rank, with ties, zeros and a NaN
single = SupermaskLinear(64, 9, freeze=Freeze(0.2, 0.3))
whole = torch.randint(-4, 5, (single.free,), generator=torch.Generator().manual_seed(0)).float()
whole[7] = torch.nan
sharded = parallelize_module(SupermaskLinear(64, 9, freeze=Freeze(0.2, 0.3)), mesh, RowwiseParallel())
with torch.no_grad():
    sharded.scores.copy_(sharded._part_of_scores(whole))
for wanted in (-1, 0, 1, 2, 30, single.free // 2, single.free - 1, single.free, single.free + 5):
    assert torch.equal(sharded_scores.select([sharded], wanted), ops.select([whole], wanted)), wanted

# A layer used alone makes its own masks, and its sparsity is the whole layer's.
for plan in (RowwiseParallel(), ColwiseParallel(output_layouts=Replicate())):
    torch.manual_seed(rank)  # the first process's bias counts
    sharded = SupermaskLinear(64, 9, freeze=Freeze(0.2, 0.3), sparsity=0.4)
    torch.manual_seed(0)
    single = SupermaskLinear(64, 9, freeze=Freeze(0.2, 0.3), sparsity=0.4)
    parallelize_module(sharded, mesh, plan)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    for layer in (single, sharded):
        with torch.no_grad():
            layer.scores.mul_(layer.scores.abs())
    part = x.chunk(2, -1)[rank].requires_grad_() if isinstance(plan, RowwiseParallel) else x.clone().requires_grad_()
    y, wanted = sharded(part), single(leaf := x.clone().requires_grad_())
    torch.testing.assert_close(y, wanted)
    assert torch.equal(sharded.compact_mask(), single.compact_mask())
    y.square().sum().backward()
    wanted.square().sum().backward()
    grad = leaf.grad.chunk(2, -1)[rank] if isinstance(plan, RowwiseParallel) else leaf.grad
    torch.testing.assert_close(part.grad, grad)
    torch.testing.assert_close(sharded.scores.grad, sharded._part_of_scores(single.scores.grad))

for layer, plan, message in (
    (SupermaskLinear(48, 9), RowwiseParallel(), "in_features=48: expected a multiple of 64"),
    (SupermaskLinear(48, 1), ColwiseParallel(), "out_features=1: expected a part for each of 2 processes"),
    (SupermaskEmbedding(9, 32), ColwiseParallel(), "embedding_dim=32: expected a multiple of 64"),
    (SupermaskEmbedding(9, 64, scale_grad_by_freq=True), RowwiseParallel(), "scale_grad_by_freq=True"),
    (sharded, RowwiseParallel(), "expected one that is not sharded yet"),
):
    try:
        parallelize_module(layer, mesh, plan)
    except ValueError as error_:
        assert message in str(error_), error_
    else:
        raise AssertionError(message)

# Plain layers are PyTorch's.
plain = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
parallelize_module(plain, mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})
assert plain[0].weight.to_local().shape == (3, 8) and plain(torch.randn(2, 8)).shape == (2, 4)
"""

ONE = """
for plan in (RowwiseParallel(), ColwiseParallel(output_layouts=Replicate())):
    single, sharded = network(), network()
    parallelize_module(sharded.down, mesh, plan)
    x = torch.randn(3, 128)
    y, wanted = sharded.down(x), single.down(x)
    assert torch.equal(y, wanted)
    for layer, z in ((sharded.down, y), (single.down, wanted)):
        z.square().sum().backward()
    torch.testing.assert_close(sharded.down.bias.grad, single.down.bias.grad)
"""


@pytest.mark.parametrize("script", (TRAIN, FILES, ALONE), ids=("train", "files", "alone"))
def test_two_processes_are_as_one(script, tmp_path):
    run_processes(NETWORK + script, 2, tmp_path, str(tmp_path))


def test_one_process_is_as_none(tmp_path):
    """One shard is the whole layer. Its bias is added once."""
    run_processes(NETWORK + ONE, 1, tmp_path)


def test_a_layer_without_a_bias_per_row_is_not_cut():
    """The rows of a transposed convolution are its input channels."""
    layer = SupermaskConvTranspose2d(6, 3, 2)
    with pytest.raises(ValueError, match="expected one with a bias per row, got a SupermaskConvTranspose2d"):
        layer.shard(None, rows=(0, 3))
    assert len(layer.bias) == 3 and layer.group is None
