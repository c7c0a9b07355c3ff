"""FSDP2: two processes with half of the scores each train like one process, and write its ticket."""

import copy

import pytest
import torch
from processes import run_processes
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from slt_kernels import Freeze, convert
from slt_kernels.experiments.train.processes import joined, shard
from slt_kernels.nn import TiedLinear, sharded_scores

NETWORK = """
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from slt_kernels import EdgePopup, Freeze, convert, load_ticket, save_ticket

mesh = init_device_mesh("cpu", (world,))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 9)
        self.image = nn.Sequential(nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(7 * 3 * 7, 5)

    def forward(self, index):
        return self.head(self.image(self.words(index).unsqueeze(1)))


def network(sparsity=None, compact=False):
    torch.manual_seed(0)
    options = dict(weight="normal", scale="dynamic", seed=1, compact=compact)
    return convert(Net(), Freeze(0.3, 0.2), sparsity, **options).eval()  # BatchNorm does not matter here


def shard(model):
    for module in (model.words, model.image, model.head):
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def layers(model):
    return {"words": model.words, "conv": model.image[0], "head": model.head}


def train(model, processes, steps=20, popup=None):
    '''Of each batch this process takes its part; `processes` is how many there are.'''
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9, weight_decay=1e-4)
    if popup:
        popup.attach(optimizer)
    data = torch.Generator().manual_seed(3)
    for _ in range(steps):
        index = torch.randint(50, (8, 5), generator=data)
        if processes > 1:
            index = index.chunk(processes)[rank]
        optimizer.zero_grad()
        F.cross_entropy(model(index), index[:, 0] % 5).backward()
        optimizer.step()
    return optimizer


def check_equal(sharded, single):
    for (name, ours), theirs in zip(layers(sharded).items(), layers(single).values()):
        scores = ours.scores.full_tensor()
        assert ((scores - theirs.scores).norm() / theirs.scores.norm()).item() < 1e-6, name
        assert torch.equal(ours.compact_mask(), theirs.compact_mask()), name
        assert torch.equal(ours.weight_scale, theirs.weight_scale), name


index = torch.arange(30).view(6, 5)
"""

TRAIN = """
for scope, compact in (("global", False), ("local", True)):
    single, sharded = network(), shard(network(compact=compact))
    start = single.head.scores.detach().clone()
    train(single, 1, popup=EdgePopup(single, 0.6, scope))
    optimizer = train(sharded, world, popup=EdgePopup(sharded, 0.6, scope))
    check_equal(sharded, single)
    assert (single.head.scores - start).norm() > 0.01 * start.norm()

# Each process holds half of the scores, and of the optimizer's momentum.
held = sum(m.scores.to_local().numel() for m in layers(sharded).values())
momentum = [optimizer.state[m.scores]["momentum_buffer"].to_local().numel() for m in layers(sharded).values()]
free = sum(m.free for m in layers(sharded).values())
assert abs(held - free / 2) <= 2 and sum(momentum) == held, (held, momentum, free)

# Layers used alone make their masks again when their scores have changed, in evaluation too.
single, sharded = network(0.5), shard(network(0.5))
names = []
sharded.words.register_forward_pre_hook(lambda module, _: names.append(dict(module.named_parameters()).keys()))
for model, processes in ((single, 1), (sharded, world)):
    train(model.train(), 1, steps=3)  # the same batch in every process, since BatchNorm matters here
    model.eval()(index)
assert all(found == {"scores"} for found in names), names
check_equal(sharded, single)
"""

FILES = """
folder = sys.argv[4]
sharded = shard(network())
popup = EdgePopup(sharded, 0.6)
train(sharded, world, steps=3, popup=popup)
answers = sharded(index)

# A whole checkpoint of the sharded network goes into a single one, and back.
whole = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
states = [whole]
dist.broadcast_object_list(states)
single = network()
single.load_state_dict(states[0])
assert torch.equal(single(index), answers)
check_equal(sharded, single)
again = shard(network())
set_model_state_dict(again, single.state_dict(), options=StateDictOptions(full_state_dict=True))
assert torch.equal(again(index), answers)
check_equal(again, single)

# So does one that is sharded.
again = shard(network(compact=True))
again.load_state_dict(sharded.state_dict())
assert torch.equal(again(index), answers)

# A ticket is the single network's, byte for byte.
save_ticket(sharded, f"{folder}/sharded{rank}.slt")
EdgePopup(single, 0.6)
save_ticket(single, f"{folder}/single{rank}.slt")
files = [open(f"{folder}/{name}{rank}.slt", "rb").read() for name in ("single", "sharded")]
assert files[0] == files[1]
again = shard(network(compact=True))
load_ticket(f"{folder}/single{rank}.slt", again)
assert torch.equal(again(index), answers)

# A network too large for one process is made in parts.
with torch.device("meta"):
    made = network()
shard(made).to_empty(device="cpu")
for module in made.modules():
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
for (name, ours), theirs in zip(layers(made).items(), layers(network()).values()):
    assert isinstance(ours.scores, DTensor)
    assert torch.equal(ours.scores.full_tensor(), theirs.scores), name
    assert torch.equal(ours.mask_words, theirs.mask_words) and torch.equal(ours.source_id, theirs.source_id), name
"""


@pytest.mark.parametrize("script", (TRAIN, FILES), ids=("train", "files"))
def test_two_processes_are_as_one(script, tmp_path):
    run_processes(NETWORK + script, 2, tmp_path, str(tmp_path))


@pytest.mark.parametrize(
    "make,x",
    (
        (lambda: nn.Linear(5, 7), torch.randn(3, 5)),
        (lambda: nn.Linear(5, 7), torch.randn(2, 3, 5)),
        (lambda: nn.Embedding(9, 5), torch.arange(6).view(2, 3)),
        (lambda: nn.Conv1d(2, 4, 3), torch.randn(2, 2, 6)),
        (lambda: nn.ConvTranspose1d(2, 4, 3, bias=False), torch.randn(2, 2, 6)),
        (lambda: nn.Conv2d(2, 4, 3), torch.randn(2, 2, 6, 6)),
    ),
    ids=("linear", "tokens", "embedding", "conv1d", "transposed", "conv2d"),
)
def test_an_output_may_be_changed_in_place(make, x):
    """FSDP2 frees the scores after the forward, and gathers them again by a hook on the output."""
    grads = []
    for sharded in (False, True):
        torch.manual_seed(0)  # for the bias
        model = convert(nn.Sequential(make(), nn.ReLU(inplace=True)), Freeze(0.3, 0.2))
        with joined(torch.device("cpu"), alone=True):
            if sharded:
                shard(model)
            (model(x).sum() + model(x).square().sum()).backward()
            grads.append(sharded_scores.whole(model[0].scores.grad))
    assert torch.equal(*grads)
    assert grads[0].any()


def test_a_shared_weight_is_sharded_with_its_users():
    model = convert(nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 9, False)), tie=False)
    model[1] = TiedLinear(model[0])
    index, grads = torch.arange(9), []
    model(index).square().sum().backward()
    grads.append(model[0].scores.grad)
    model[0].scores.grad = None
    with joined(torch.device("cpu"), alone=True):
        whole, parts = fully_shard(copy.deepcopy(model)), copy.deepcopy(model)
        whole(index).square().sum().backward()
        assert torch.equal(whole[0].scores.grad.full_tensor(), grads[0])
        shard(parts)
        with pytest.raises(RuntimeError, match="expected fully_shard on a module that holds both"):
            parts(index)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keep", (True, False))
def test_fsdp1_is_refused(keep):
    """It trained with masks that nothing made again: its views of the scores have versions of their own."""
    model = convert(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    with (
        joined(torch.device("cpu"), alone=True),
        pytest.raises(AttributeError, match=r"expected fully_shard \(FSDP2\)"),
    ):
        FullyShardedDataParallel(model, use_orig_params=keep, device_id=torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
def test_scores_that_were_not_gathered_are_an_error():
    model = convert(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True)))
    with joined(torch.device("cpu"), alone=True):
        shard(model)
        y = model(torch.randn(2, 6, 6))  # of a single image, the output is a view
        with pytest.raises(RuntimeError, match="scores: their memory was freed before the backward"):
            y.sum().backward()
