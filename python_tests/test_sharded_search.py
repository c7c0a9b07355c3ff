"""``slt find --shard fsdp2``: scores, gradients and optimizer state are divided among the processes of a search."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import run_processes
from safetensors import safe_open
from safetensors.torch import load_file
from test_processes import SETUP

from slt_kernels.cli import main
from slt_kernels.experiments.train.processes import joined
from slt_kernels.train import Run, search

SETTINGS = """
SEARCHES["adam"] = ("convnet", {"optimizer": "adam", "lr": 0.01, "ema": 0.5, "clip": 1.0, "pick": "best"})
"""

# Continues the search of a folder until the second step of an epoch. The checkpoint that it finds is compared with
# what the last process had in its memory.
CONTINUE = """
import os, signal
from pathlib import Path
from torch.distributed.tensor import DTensor

folder, until = Path(sys.argv[4]), int(sys.argv[5])
run = Run(folder / "run", {}, sharded=True)


def whole(state):
    return {name: t.full_tensor() if isinstance(t, DTensor) else t.clone() for name, t in state.items()}


def stop(epoch, step, steps):
    if rank == 0 and (epoch, step) == (until, 2):
        os.kill(os.getpid(), signal.SIGTERM)


if world > 1:
    left, _ = torch.load(folder / "left")
    found = whole(run.load()["model"])
    assert found.keys() == left.keys() and all(torch.equal(t, left[name]) for name, t in found.items())

model, data, settings = start("adam")
try:
    rows = search(model, data, settings, run=run, on_step=stop, shard="fsdp2")
except Interrupted:
    rows = None
held, total = (sum(t.numel() for t in tensors) for tensors in (
    [p.to_local() for p in model.parameters()], model.parameters()
))
assert abs(held - total / world) < 2 * len(list(model.parameters())), (held, total)
left = whole(model.state_dict()), rows
if rank == 0:
    torch.save(left, folder / "left")
"""


def setup() -> SimpleNamespace:
    here: dict = {}
    exec(SETUP + SETTINGS, here)
    return SimpleNamespace(**here)


@pytest.fixture(scope="module")
def expected() -> tuple[dict, list]:
    """What one process finds that is not sharded."""
    model, data, settings = (here := setup()).start(*here.SEARCHES["adam"])
    rows = search(model, data, settings)
    return model.state_dict(), rows


def test_a_search_goes_on_with_another_number_of_processes(expected, tmp_path):
    script = SETUP.replace("def start(name, changes):", "def start(case):\n    name, changes = SEARCHES[case]")
    for world, until in ((1, 2), (2, 3), (3, 9)):
        run_processes(script + SETTINGS + CONTINUE, world, tmp_path, str(tmp_path), str(until))
    state, rows = torch.load(tmp_path / "left")
    for name, t in expected[0].items():
        if name.endswith("scores"):
            assert (state[name] - t).double().norm() / t.double().norm() < 1e-6, name
        elif "mask_words" in name:
            assert torch.equal(state[name], t), name
    assert rows == [pytest.approx(row, rel=1e-5) for row in expected[1]]
    folders = {path.name.partition(".")[0] for path in (tmp_path / "run").iterdir() if path.is_dir()}
    assert folders == {"last", "best"}  # one of each: older ones are gone
    assert len([path for path in (tmp_path / "run").iterdir() if path.is_dir()]) == 2


@pytest.fixture
def alone():
    with joined(torch.device("cpu"), alone=True):
        yield


def stopped(folder: Path, sharded: bool) -> None:
    """A folder of a search that was stopped in its second epoch."""
    model, data, settings = (here := setup()).start(*here.SEARCHES["adam"])

    def stop(epoch, step, steps):
        if (epoch, step) == (2, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run = Run(folder, {}, save_every=1, sharded=sharded)
        search(model, data, settings, run=run, on_step=stop, shard="fsdp2" if sharded else None)


def test_one_process_finds_the_same_bits(expected, alone, tmp_path):
    stopped(tmp_path, True)
    model, data, settings = (here := setup()).start(*here.SEARCHES["adam"])
    rows = search(model, data, settings, run=Run(tmp_path, {}, sharded=True), shard="fsdp2")
    assert rows == expected[1]
    for name, t in model.state_dict().items():
        t = t.to_local() if name.endswith("scores") else t
        assert name.endswith("mask_origin") or torch.equal(t, expected[0][name]), name


@pytest.mark.parametrize("sharded", (True, False))
def test_checkpoints_of_the_other_kind_are_refused(sharded, alone, tmp_path):
    stopped(tmp_path, sharded)
    there, here = ("with shard='fsdp2'", "without shard")[:: 1 if sharded else -1]
    with pytest.raises(ValueError, match=f"folder=.*: holds a search {there}, and this is one {here}, which cannot"):
        Run(tmp_path, {}, sharded=not sharded).load()


@pytest.mark.parametrize("change", ("altered", "missing", "elsewhere"))
def test_a_damaged_checkpoint_is_refused(change, alone, tmp_path):
    stopped(tmp_path / "run", True)
    (folder,) = (tmp_path / "run").glob("last.*/")
    if change == "altered":
        file = max(folder.iterdir(), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        shutil.move(folder, tmp_path / folder.name) if change == "elsewhere" else shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"last\.pt: not a checkpoint of a search, or damaged; delete"):
        Run(tmp_path / "run", {}, sharded=True).load()


def test_what_cannot_be_sharded_is_refused(tmp_path):
    model, data, settings = (here := setup()).start(*here.SEARCHES["bernoulli"])
    with pytest.raises(ValueError, match="expected None for algorithm=bernoulli, which samples from whole scores"):
        search(model, data, settings, shard="fsdp2")
    model, data, settings = here.start(*here.SEARCHES["adam"])
    with pytest.raises(ValueError, match="shard='fsdp2': expected a process group"):
        search(model, data, settings, shard="fsdp2")
    with pytest.raises(ValueError, match="shard='fsdp': expected None or 'fsdp2'"):
        search(model, data, settings, shard="fsdp")
    with pytest.raises(ValueError, match="run: sharded=True: expected False for shard=None"):
        search(model, data, settings, run=Run(tmp_path, {}, sharded=True))


@pytest.mark.parametrize("options", ((), ("--algorithm", "dense"), ("--amp", "fp16")), ids=("slt", "dense", "fp16"))
def test_the_command_writes_the_same_file(options, tmp_path, capsys):
    command = ["find", "--width", "6", "--epochs", "1", "--batch-size", "600", *options]
    for name, shard in (("whole", ()), ("sharded", ("--shard", "fsdp2", "--folder", str(tmp_path / "run")))):
        assert main([*command, "--out", str(tmp_path / name), *shard]) == 0, capsys.readouterr().err
    sharded, whole = tmp_path / "sharded", tmp_path / "whole"
    if "dense" in options:  # safetensors has no order of its metadata
        assert content(sharded) == content(whole)
    else:
        assert sharded.read_bytes() == whole.read_bytes()


def content(path: Path) -> tuple[dict, dict]:
    """The metadata of a safetensors file, and its tensors as bytes."""
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def test_the_command_names_its_flag(capsys):
    assert main(["find", "--shard", "fsdp2", "--algorithm", "bernoulli"]) == 2
    assert "--shard" in capsys.readouterr().err
