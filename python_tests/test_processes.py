"""A search in several processes: scores as in one process, equal masks, and only gradients sent."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from processes import run_processes

from slt_kernels import ticket_info
from slt_kernels.cli import main
from slt_kernels.experiments.train.processes import joined
from slt_kernels.train import search

# Run by the single process and by both processes: 20 steps, the last of each epoch on a smaller batch. Digits contain
# equal patches, so without noise rounding would decide between equal maxima in the pooling.
SETUP = """
import torch
from slt_kernels import Freeze, models
from slt_kernels.data import digits
from slt_kernels.experiments.data.images import Images
from slt_kernels.experiments.train import processes
from slt_kernels.train import Interrupted, Run, Search, search

SEARCHES = {
    "batch normalization": ("convnet", {}),
    "local, none": ("conv2", {"lr": 0.02, "scope": "local"}),
    "bernoulli": ("convnet", {"algorithm": "bernoulli", "lr": 5.0, "clip": 1.0, "ema": 0.5}),
}

def start(name, changes):
    whole, noise = digits(), torch.Generator().manual_seed(0)
    parts = []
    for part, n in zip(whole[:3], (149, 51, 50)):
        parts.append(Images(part.images[:n] + 0.3 * torch.randn(n, 1, 8, 8, generator=noise), part.labels[:n]))
    data = whole._replace(train=parts[0], validation=parts[1], test=parts[2])
    source = {"freeze": Freeze(0.6, 0.1), "sparsity": None, "scale": "dynamic"}
    return models.build(name, data, width=6, supermask=source), data, Search(epochs=4, batch_size=32, **changes)
"""

IN_TWO = """
import copy, os, signal, sys
from pathlib import Path

folder, found = Path(sys.argv[4]), {}

for case, (name, changes) in SEARCHES.items():
    model, data, settings = start(name, changes)
    rows = search(model, data, settings)
    found[case] = model.state_dict(), rows

# A communication hook records the buckets that DistributedDataParallel sends in a step.
sent = []

class Watched(processes.DistributedDataParallel):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_comm_hook(None, watch)
        sent.append((self.broadcast_buffers, sum(p.numel() for p in self.module.parameters())))

def watch(_, bucket):
    sent.append(bucket.buffer().numel())
    buffer = bucket.buffer().div_(world)
    return dist.all_reduce(buffer, async_op=True).get_future().then(lambda done: done.value()[0])

plain, processes.DistributedDataParallel = processes.DistributedDataParallel, Watched
model, data, settings = start("convnet", {})
rows = search(model, data, settings)
processes.DistributedDataParallel = plain
found["sent"] = sent

# A signal to one process stops both after the same step; both resume.
def stop(epoch, step, steps):
    if rank == 1 and (epoch, step) == (2, 3):
        os.kill(os.getpid(), signal.SIGTERM)

model, data, settings = start("convnet", {})
try:
    search(model, data, settings, run=Run(folder, {}), on_step=stop)
except Interrupted as stopped:
    found["stopped"] = str(stopped)
model, data, settings = start("convnet", {})
rows = search(model, data, settings, run=Run(folder, {}))
found["continued"] = copy.deepcopy(model.state_dict()), rows

with torch.no_grad():
    if rank == 1:
        model[0].mask_words[0] ^= 1
try:
    processes.check_same(model)
except RuntimeError as error:
    found["check"] = str(error)

torch.save(found, folder / f"{rank}.pt")
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    """The results of each of two processes."""
    folder = tmp_path_factory.mktemp("two")
    run_processes(SETUP + IN_TWO, 2, folder, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def in_one(case: str) -> tuple[dict, list]:
    here = {}
    exec(SETUP, here)
    model, data, settings = (here := SimpleNamespace(**here)).start(*here.SEARCHES[case])
    rows = search(model, data, settings)
    return model.state_dict(), rows


@pytest.mark.parametrize("case", ("batch normalization", "local, none", "bernoulli"))
def test_two_processes_find_what_one_does(case, two):
    (state, rows), (other, other_rows) = (found[case] for found in two)
    assert rows == other_rows
    assert all(torch.equal(t, other[name]) for name, t in state.items())
    expected, expected_rows = in_one(case)
    assert rows[-1]["step"] == 20
    for name, t in expected.items():
        if name.endswith("scores"):
            assert (state[name] - t).double().norm() / t.double().norm() < 1e-6, name
        elif "running" in name:
            assert torch.allclose(state[name], t, rtol=1e-5, atol=1e-6), name
        elif "mask_words" in name:
            assert torch.equal(state[name], t), name
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-5)


def test_only_the_gradients_of_free_weights_are_sent(two):
    ((broadcast_buffers, free), *buckets) = two[0]["sent"]
    assert not broadcast_buffers
    assert sum(buckets) == 20 * free
    weights = sum(t.numel() for name, t in two[0]["batch normalization"][0].items() if name.endswith("scores"))
    assert free == weights


def test_a_signal_to_one_stops_both_and_they_continue(two):
    for found in two:
        assert found["stopped"] == "stopped in epoch 2, after step 3"
        state, rows = found["batch normalization"]
        again, rows_again = found["continued"]
        assert rows_again == [pytest.approx(row, rel=1e-12) for row in rows]  # the loss is summed in another order
        assert all(torch.equal(t, again[name]) for name, t in state.items())


def test_different_masks_are_detected(two):
    for found in two:
        assert found["check"] == "the masks or parameters of processes [1] differ from those of process 0"


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"RANK": "4", "LOCAL_RANK": "4", "WORLD_SIZE": "8", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="LOCAL_RANK=4: PyTorch finds 4 GPUs"), joined(torch.device("cuda")):
        pass


def test_torchrun_takes_the_same_command(tmp_path, capsys):
    out, folder = tmp_path / "net.slt", tmp_path / "run"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "slt_kernels.cli"]
    command = [*launch, "find", "--width", "6", "--epochs", "1", "--threads", "1", "--out", str(out)]
    command += ["--folder", str(folder)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("A ticket for digits") == 1
    assert done.stdout.count("epoch 1 of 1: loss") == 1
    assert (folder / "last.pt").exists()
    assert main(["eval", str(out)]) == 0
    assert f"{ticket_info(out).metadata['test_accuracy']:.2%}" in capsys.readouterr().out
