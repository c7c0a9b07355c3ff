"""The search: what it trains, stopping and resuming at any step, and each setting."""

import copy
import csv
import functools
import hashlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from slt_kernels import EdgePopup, Freeze, TicketError, load_ticket, models, save_ticket, ticket_info
from slt_kernels.cli import main
from slt_kernels.data import UNANSWERED, Dataset, digits
from slt_kernels.experiments.data.images import Images
from slt_kernels.experiments.train.loop import mixed
from slt_kernels.files import write_atomically
from slt_kernels.train import Experiment, Interrupted, Run, Search, accuracy, build, find, search

SOURCE = {"freeze": Freeze(0.6, 0.1), "sparsity": None, "scale": "dynamic"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The networks are too small for several threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """A tenth of the digits."""
    whole = digits()
    parts = [Images(part.images[:n], part.labels[:n]) for part, n in zip(whole[:3], (116, 40, 40), strict=True)]
    return whole._replace(train=parts[0], validation=parts[1], test=parts[2])


def network(seed: int = 0, width: int = 6, **source) -> nn.Module:
    return models.build("convnet", width=width, supermask=SOURCE | {"seed": seed} | source)


def settings(**changes) -> Search:
    return Search(**({"epochs": 2, "batch_size": 32} | changes))


def found(data: Dataset, seed: int = 0, source=None, **changes) -> tuple[nn.Module, list[dict]]:
    model = network(seed, **(source or {}))
    return model, search(model, data, settings(**changes), seed=seed)


def layers_of(model: nn.Module) -> list:
    return [m for m in model.modules() if hasattr(m, "scores")]


def same_state(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(name == other and torch.equal(x, y) for (name, x), (other, y) in pairs)


# What a search does


def test_search_is_deterministic(data):
    (a, first), (b, second) = found(data), found(data)
    assert first == second
    assert same_state(a, b)
    assert not torch.equal(layers_of(found(data, seed=1)[0])[2].scores[:50], layers_of(a)[2].scores[:50])


def test_search_trains_scores_alone_and_learns():
    model = network(width=8)
    rows = search(model, digits(), settings(epochs=3, batch_size=64))
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["kept"] == pytest.approx(0.3, abs=1e-3)
    assert accuracy(model, digits().test) > 0.2  # chance is 10 %; the experiments reach 98 %
    assert {name.rpartition(".")[2] for name, _ in model.named_parameters()} == {"scores"}
    assert all(not m.auto_mask for m in layers_of(model))


def test_search_reports_its_progress(data):
    epochs, steps = [], []
    search(network(), data, settings(), lambda *news: epochs.append(news), on_step=lambda *news: steps.append(news))
    assert [number for number, *_ in epochs] == [1, 2]
    assert steps == [(epoch, step, 4) for epoch in (1, 2) for step in (1, 2, 3, 4)]


def test_search_then_ticket(data, tmp_path):
    model, _ = found(data)
    save_ticket(model, tmp_path / "net.slt")
    other = network()
    load_ticket(tmp_path / "net.slt", other)
    (images,), _ = data.test.batch(torch.arange(40))
    assert torch.equal(other.eval()(images), model.eval()(images))


def test_accuracy_is_the_fraction_that_is_right():
    test = digits().test
    constant = nn.Linear(64, 10)
    with torch.no_grad():
        constant.weight.zero_()
        constant.bias.copy_(torch.arange(10) == 3)
    model = nn.Sequential(nn.Flatten(), constant).train()
    expected = (test.labels == 3).float().mean().item()
    for batch_size in (1000, 256, 7):
        assert accuracy(model, test, batch_size) == pytest.approx(expected)
    assert not model.training
    ignored = copy.copy(test)
    ignored.labels = torch.full_like(test.labels, UNANSWERED)
    with pytest.raises(ValueError, match=r"targets: all of the 360 examples are ignored \(-100\)"):
        accuracy(model, ignored)


# Stopping and resuming


class KilledError(Exception):
    pass


HARD = {"ema": 0.9, "mixup": 0.4, "clip": 1.0, "label_smoothing": 0.1, "optimizer": "adamw", "lr": 0.01}
CASES = {
    "sgd": {},
    "all at once": HARD | {"pick": "best", "warmup_epochs": 1},
    "fp16": {"amp": "fp16", "optimizer": "adamw"},
    "bernoulli": {"algorithm": "bernoulli", "lr": 5.0, "ema": 0.5},
    "cutmix": {"cutmix": 1.0, "mixup": 0.4, "repeats": 3, "nesterov": True, "test_each_epoch": True},
}


def with_dropout() -> nn.Module:
    """A network that uses the global generator."""
    model = network()
    model.insert(-1, nn.Dropout(0.2))
    return model


@pytest.fixture(scope="module")
def uninterrupted(data):
    """The network and rows of each case; searched once."""

    @functools.cache
    def search_case(case: str) -> tuple[nn.Module, list[dict]]:
        model = with_dropout()
        return model, search(model, data, settings(**CASES[case]), seed=3)

    return search_case


@pytest.mark.parametrize("stop_at", (1, 4, 6), ids=lambda n: f"step {n}")
@pytest.mark.parametrize("case", CASES)
def test_a_search_that_is_killed_continues_to_the_same_bits(case, stop_at, data, tmp_path, uninterrupted):
    """Killed just before the checkpoint of that step."""

    def run() -> Run:
        return Run(tmp_path / "run", {"case": case}, save_every=1)

    def kill(epoch: int, step: int, steps: int) -> None:
        if (epoch - 1) * steps + step == stop_at:
            raise KilledError

    whole, rows = uninterrupted(case)
    second = with_dropout()
    with pytest.raises(KilledError):
        search(with_dropout(), data, settings(**CASES[case]), seed=3, run=run(), on_step=kill)
    torch.rand(7)  # the global generator's state must not matter
    again = search(second, data, settings(**CASES[case]), seed=3, run=run())
    assert again == rows
    assert same_state(whole, second)


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT), ids=("SIGTERM", "SIGINT"))
def test_a_signal_stops_a_search_after_its_step(number, data, tmp_path):
    before = signal.getsignal(number)
    stopped, whole = network(), network()

    def send(epoch: int, step: int, steps: int) -> None:
        if (epoch, step) == (2, 2):
            os.kill(os.getpid(), number)

    run = Run(tmp_path, {})
    with pytest.raises(Interrupted, match="stopped in epoch 2, after step 2"):
        search(stopped, data, settings(), run=run, on_step=send)
    assert signal.getsignal(number) is before
    assert run.load()["progress"]["taken"] == 6
    assert search(stopped, data, settings(), run=Run(tmp_path, {})) == search(whole, data, settings())
    assert same_state(stopped, whole)


def test_the_program_stops_and_goes_on(tmp_path):
    """SIGTERM, and the same command again; the ticket equals that of an uninterrupted search."""

    def command(name: str) -> list[str]:
        files = ["--folder", str(tmp_path / name), "--out", str(tmp_path / f"{name}.slt"), "--save-every", "9"]
        return ["find", "--width", "6", "--epochs", "2", "--batch-size", "64", "--threads", "1", *files]

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    stopped = subprocess.Popen([sys.executable, "-m", "slt_kernels.cli", *command("stopped")], **pipes)
    while not (tmp_path / "stopped/last.pt").exists():
        assert stopped.poll() is None, stopped.communicate()
        time.sleep(0.005)
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, errors
    assert "run the same command to continue" in errors
    assert not (tmp_path / "stopped.slt").exists()
    for name in ("stopped", "alone"):
        assert main(command(name)) == 0
    assert (tmp_path / "stopped.slt").read_bytes() == (tmp_path / "alone.slt").read_bytes()
    assert (tmp_path / "stopped/log.csv").read_text() == (tmp_path / "alone/log.csv").read_text()


def test_a_finished_search_is_found_again(data, tmp_path):
    first, second = network(), network()
    rows = search(first, data, settings(pick="best"), run=Run(tmp_path, {}))
    assert search(second, data, settings(pick="best"), run=Run(tmp_path, {})) == rows
    assert same_state(first, second)


def test_a_checkpoint_of_another_search_is_refused(data, tmp_path):
    search(network(), data, settings(epochs=1), run=Run(tmp_path, {"seed": 0, "search": {"lr": 0.1}}))
    other = Run(tmp_path, {"seed": 0, "search": {"lr": 0.2}})
    with pytest.raises(ValueError, match=r"holds another search: search\.lr=0\.1 there, 0\.2 here"):
        search(network(), data, settings(epochs=1), run=other)


def test_a_folder_in_which_a_search_runs_is_refused(data, tmp_path):
    refusals = []

    def second(*_) -> None:
        with pytest.raises(ValueError, match=r"^folder=.*: another search is running there; expected another") as error:
            search(network(), data, settings(epochs=1), run=Run(tmp_path, {}))
        refusals.append(error)

    rows = search(network(), data, settings(epochs=1), run=Run(tmp_path, {}), on_step=second)
    assert len(refusals) == 4
    assert search(network(), data, settings(epochs=1), run=Run(tmp_path, {})) == rows


def test_a_killed_search_releases_its_lock(data, tmp_path):
    code = "import sys, pathlib; from slt_kernels.train import Run; held = Run(pathlib.Path(sys.argv[1]), {}).held()"
    holder = [sys.executable, "-c", f"{code}; held.__enter__(); print(flush=True); sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(ValueError, match="another search is running there"):
            search(network(), data, settings(epochs=1), run=Run(tmp_path, {}))
        process.kill()
        process.wait()
        search(network(), data, settings(epochs=1), run=Run(tmp_path, {}))


@pytest.mark.parametrize("damage", (b"", b"no checkpoint", None), ids=("empty", "text", "cut short"))
@pytest.mark.parametrize("name", ("last", "best"))
def test_a_damaged_checkpoint_is_refused(name, damage, data, tmp_path):
    search(network(), data, settings(epochs=1), run=Run(tmp_path, {}))
    log, file = (tmp_path / "log.csv").read_text(), tmp_path / f"{name}.pt"
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    message = rf"{name}\.pt: not a checkpoint of a search, or damaged; delete .*last\.pt to start the search from"
    with pytest.raises(ValueError, match=rf"{message} the beginning$"):
        search(network(), data, settings(epochs=1), run=Run(tmp_path, {}))
    (tmp_path / "last.pt").unlink()
    search(network(), data, settings(epochs=1), run=Run(tmp_path, {}))
    assert (tmp_path / "log.csv").read_text() == log


@pytest.mark.parametrize("name", ("last", "best"))
def test_a_flipped_bit_of_a_checkpoint_is_detected(name, data, tmp_path):
    search(network(), data, settings(epochs=1), run=Run(tmp_path, {}))
    file = tmp_path / f"{name}.pt"
    content = file.read_bytes()
    assert Run(tmp_path, {}).load(name) is not None
    for at in (*range(0, 100, 3), *range(100, len(content), len(content) // 40)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(ValueError, match=r"\.pt: not a checkpoint of a search, or damaged"):
            Run(tmp_path, {}).load(name)


def test_a_checkpoint_without_a_checksum_is_of_an_older_version(data, tmp_path):
    rows = search(network(), data, settings(epochs=1), run=Run(tmp_path, {}))
    for name in ("last", "best"):
        file = tmp_path / f"{name}.pt"
        file.write_bytes(file.read_bytes().partition(b"\n")[2])
    assert search(network(), data, settings(epochs=1), run=Run(tmp_path, {})) == rows


def deep(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def in_model(tree: dict, name: str, value) -> None:
    key = next(key for key in tree["model"] if key.endswith(name))
    tree["model"][key] = value(tree["model"][key])


def spoilt(at: int, value: float):
    def change(t: torch.Tensor) -> torch.Tensor:
        t = t.clone()
        t.view(-1)[at] = value
        return t

    return change


# Edits of a checkpoint, each of which is refused.
EDITS = {
    "no dict": lambda last: [1],
    "empty": lambda last: last.clear(),
    **{f"no {name}": lambda last, name=name: last.pop(name) for name in ("model", "optimizer", "scaler", "rows")},
    **{
        f"no {name}": lambda last, name=name: last.pop(name) for name in ("draws", "progress", "version", "description")
    },
    **{f"{name} is a list": lambda last, name=name: last.update({name: [1]}) for name in ("model", "optimizer")},
    **{f"{name} is a number": lambda last, name=name: last.update({name: 3}) for name in ("rows", "progress", "draws")},
    "version": lambda last: last.update(version=10**6),
    "version is a list": lambda last: last.update(version=[1] * 1000),
    "description is text": lambda last: last.update(description="x"),
    "description holds a tensor": lambda last: last.update(description={"a": torch.ones(2)}),
    "description has other keys": lambda last: last.update(description={1: 2, "a": 3}),
    "description is deep": lambda last: last.update(description={"a": deep(300)}),
    "step": lambda last: last["progress"].update(step=10**9),
    "negative step": lambda last: last["progress"].update(step=-1),
    "step is a float": lambda last: last["progress"].update(step=1.0),
    "epoch": lambda last: last["progress"].update(epoch=10**9),
    "taken": lambda last: last["progress"].update(taken=10**9),
    "loss": lambda last: last["progress"].update(loss=float("nan")),
    "more progress": lambda last: last["progress"].update(more=1),
    "less progress": lambda last: last["progress"].pop("taken"),
    "rows": lambda last: last["rows"].append({"epoch": 1}),
    "no row": lambda last: last["rows"].clear(),
    "a row's epoch": lambda last: last["rows"][0].update(epoch=2),
    "a row's text": lambda last: last["rows"][0].update(kept="x"),
    "a row's accuracy": lambda last: last["rows"][0].update(validation=2.0),
    "nan score": lambda last: in_model(last, "scores", spoilt(3, float("nan"))),
    "inf score": lambda last: in_model(last, "scores", spoilt(0, float("inf"))),
    "nan scale": lambda last: in_model(last, "weight_scale", spoilt(0, float("nan"))),
    "score shape": lambda last: in_model(last, "scores", lambda t: t[:-1]),
    "score dtype": lambda last: in_model(last, "scores", lambda t: t.double()),
    "score text": lambda last: in_model(last, "scores", lambda t: "x"),
    "mask shape": lambda last: in_model(last, "mask_words", lambda t: t[None]),
    "source": lambda last: in_model(last, "source_id", lambda t: t + 1),
    "another tensor": lambda last: last["model"].update(more=torch.ones(2)),
    "no tensor": lambda last: last["model"].popitem(),
    "momentum shape": lambda last: last["optimizer"]["state"][0].update(momentum_buffer=torch.ones(2)),
    "nan momentum": lambda last: last["optimizer"]["state"][0]["momentum_buffer"].fill_(float("nan")),
    "momentum text": lambda last: last["optimizer"]["state"][0].update(momentum_buffer="x"),
    "state of none": lambda last: last["optimizer"]["state"].update({99: {}}),
    "state is a list": lambda last: last["optimizer"].update(state=[1]),
    "another optimizer": lambda last: last["optimizer"]["param_groups"][0].update(momentum=7.0),
    "no groups": lambda last: last["optimizer"].update(param_groups=[]),
    "groups of text": lambda last: last["optimizer"].update(param_groups=["x"]),
    "groups' parameters": lambda last: last["optimizer"]["param_groups"][0].update(params=[0]),
    "scaler": lambda last: last["scaler"].update(scale=-1.0),
}


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """The folder of a search of two epochs that stopped in the second."""
    folder = tmp_path_factory.mktemp("stopped")

    def kill(epoch: int, step: int, steps: int) -> None:
        if (epoch, step) == (2, 2):
            raise KilledError

    with pytest.raises(KilledError):
        search(network(), data, settings(), run=Run(folder, {}, save_every=1), on_step=kill)
    return folder


OF_BEST = {
    "no dict": EDITS["no dict"],
    "empty": EDITS["empty"],
    "no validation": lambda best: best.pop("validation"),
    "nan validation": lambda best: best.update(validation=float("nan")),
    "epoch": lambda best: best.update(epoch="x"),
    **{name: edit for name, edit in EDITS.items() if "model" in name or "score" in name or name.endswith("tensor")},
}
CHANGES = [("last", edit) for edit in EDITS.values()] + [("best", edit) for edit in OF_BEST.values()]
NAMES = [f"last: {name}" for name in EDITS] + [f"best: {name}" for name in OF_BEST]


@pytest.mark.parametrize("name,edit", CHANGES, ids=NAMES)
def test_an_edited_checkpoint_is_refused(name, edit, data, tmp_path, stopped):
    """The checksum is correct. The message is short and names the folder or the file."""
    shutil.copytree(stopped, tmp_path / "run")
    state = Run(tmp_path / "run", {}).load(name)
    changed = edit(state)
    content = io.BytesIO()
    torch.save(changed if isinstance(changed, list) else state, content)
    line = f"slt_kernels.checkpoint {hashlib.sha256(content.getvalue()).hexdigest()}\n"
    (tmp_path / "run" / f"{name}.pt").write_bytes(line.encode() + content.getvalue())
    with pytest.raises(ValueError) as error:
        search(network(), data, settings(), run=Run(tmp_path / "run", {}))
    assert str(tmp_path / "run") in str(error.value) and len(str(error.value)) < 2000


def test_pipes_and_links_in_the_folder_are_refused(data, tmp_path):
    victim = tmp_path / "victim"
    for name in ("lock", "last.pt"):
        folder = tmp_path / f"run_{name}"
        folder.mkdir()
        os.mkfifo(folder / name)
        with pytest.raises(ValueError, match=r"expected a file, not|not a checkpoint of a search"):
            search(network(), data, settings(epochs=1), run=Run(folder, {}))
        (folder / name).unlink()
        (folder / name).symlink_to(victim)
        with pytest.raises(OSError, match=r"symbolic links|No such file"):
            search(network(), data, settings(epochs=1), run=Run(folder, {}))
        assert not victim.exists()


def test_a_missing_best_checkpoint_is_refused(data, tmp_path):
    search(network(), data, settings(epochs=1, pick="best"), run=Run(tmp_path, {}))
    (tmp_path / "best.pt").unlink()
    with pytest.raises(ValueError, match=r"has last\.pt without best\.pt"):
        search(network(), data, settings(epochs=1, pick="best"), run=Run(tmp_path, {}))


def test_a_crash_at_the_end_of_an_epoch_loses_no_row(data, tmp_path, monkeypatch):
    save = Run.save

    def crash(self, state, name="last"):
        save(self, state, name)
        if name == "last":
            raise OSError("the machine is gone")

    monkeypatch.setattr(Run, "save", crash)
    with pytest.raises(OSError, match="gone"):
        search(network(), data, settings(epochs=1), run=Run(tmp_path, {}))
    monkeypatch.undo()
    rows = search(network(), data, settings(epochs=1), run=Run(tmp_path, {}))  # finds a finished search
    with (tmp_path / "log.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows) == 1


def test_the_picked_epoch_s_validation_is_reported(tmp_path, monkeypatch):
    epochs = iter((0.9, 0.5))
    loop, finding = (sys.modules[f"slt_kernels.experiments.train.{module}"] for module in ("loop", "find"))
    monkeypatch.setattr(loop, "accuracy", lambda *_: next(epochs))
    monkeypatch.setattr(finding, "evaluate", lambda *_: (0.4, 1.0))  # of the ticket
    monkeypatch.setattr(finding, "accuracy", lambda *_: 0.4)  # of its reload
    experiment = Experiment(model={"name": "convnet", "width": 4}, search=settings(pick="best", batch_size=600))
    assert find(experiment, tmp_path / "net.slt", torch.device("cpu"))["validation_accuracy"] == 0.9


@pytest.mark.parametrize("save_every,taken", ((0, 4), (1, 5)), ids=("epoch", "step"))
def test_a_search_that_diverges_stops_and_keeps_the_last_good_checkpoint(save_every, taken, data, tmp_path):
    """A score becomes NaN after the sixth step; the next checkpoint or the end of the epoch detects it."""
    model = network()

    def spoil(epoch: int, step: int, steps: int) -> None:
        if (epoch, step) == (2, 2):
            layers_of(model)[0].scores.data[3] = float("nan")

    with pytest.raises(RuntimeError, match=r"^diverged in epoch 2: a score is not finite; expected a lower .* lr=0\.1"):
        search(model, data, settings(epochs=3), run=Run(tmp_path, {}, save_every), on_step=spoil)
    state = Run(tmp_path, {}).load()
    assert state["progress"]["taken"] == taken
    assert all(t.isfinite().all() for t in state["model"].values())


def test_a_loss_that_is_not_finite_stops_a_search(data):
    inputs = data.train.images.clone()
    inputs[0] = float("inf")
    with pytest.raises(RuntimeError, match=r"^diverged in epoch 1: the loss is not finite"):
        search(network(), data._replace(train=Images(inputs, data.train.labels)), settings())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "last.pt"
    write_atomically(file, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        write_atomically(file, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    assert file.read_bytes() == b"old"


def test_a_run_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder=.*file: expected a folder"):
        Run(tmp_path / "file", {})
    with pytest.raises(ValueError, match="save_every=-1: expected at least 0"):
        Run(tmp_path, {}, save_every=-1)


def test_logs(data, tmp_path):
    rows = search(network(), data, settings(), run=Run(tmp_path, {}, tensorboard=True))
    with (tmp_path / "log.csv").open() as file:
        logged = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert logged == rows
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("lr", "loss", "validation", "kept"):
        assert [e.step for e in events.Scalars(name)] == [1, 2]
        assert [e.value for e in events.Scalars(name)] == pytest.approx([row[name] for row in rows])


# Settings


def rates_of(data, **changes) -> list[float]:
    """The learning rate of each step, with one step per epoch."""
    rates = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        found(data, batch_size=200, **changes)
    finally:
        handle.remove()
    return rates


@pytest.mark.parametrize(
    "schedule,expected",
    (
        ({}, [0.2, 0.15, 0.05]),
        ({"schedule": "constant"}, [0.2, 0.2, 0.2]),
        ({"schedule": "multistep", "milestones": (1, 2)}, [0.2, 0.02, 0.002]),
        ({"schedule": "multistep", "milestones": (2,), "gamma": 0.5}, [0.2, 0.2, 0.1]),
        ({"warmup_epochs": 1}, [0.1, 0.2, 0.1]),
        ({"schedule": "constant", "warmup_epochs": 3}, [0.05, 0.1, 0.15]),
    ),
    ids=str,
)
def test_schedules(schedule, expected, data):
    assert rates_of(data, epochs=3, lr=0.2, **schedule) == pytest.approx(expected)


def one_step(data, **changes) -> tuple[nn.Module, nn.Module]:
    """The network after one step on all data, and the network before it."""
    after, _ = found(data, epochs=1, batch_size=200, weight_decay=0.0, momentum=0.0, **changes)
    before = network()
    return after, before


def gradients(model: nn.Module, data: Dataset, loss) -> list[torch.Tensor]:
    (images,), labels = data.train.batch(torch.arange(116))
    EdgePopup(model, 0.7)
    loss(model.train(), images, labels).backward()
    return [layer.scores.grad for layer in layers_of(model)]


def test_label_smoothing_is_in_the_loss(data):
    after, before = one_step(data, label_smoothing=0.2, lr=0.5)
    expected = gradients(before, data, lambda m, x, y: F.cross_entropy(m(x), y, label_smoothing=0.2))
    for a, b, grad in zip(layers_of(after), layers_of(before), expected, strict=True):
        assert torch.allclose(a.scores, b.scores - 0.5 * grad, rtol=1e-4, atol=1e-6)


def test_mixup_mixes_inputs_and_targets(data):
    plain, mixed, again = (found(data, epochs=1, mixup=mixup)[0] for mixup in (0.0, 1.0, 1.0))
    assert same_state(mixed, again)
    assert not same_state(plain, mixed)
    with pytest.raises(ValueError, match=r"mixup=1\.0: expected 0 for nodes"):
        search(network(), data._replace(kind="nodes"), settings(mixup=1.0))


@pytest.mark.parametrize("size", (7, 8))
def test_cutmix_pastes_a_rectangle_and_weighs_its_area(size):
    """The targets' weight is the fraction of the pixels that an image keeps."""
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, size, size)
    random = np.random.default_rng(0)
    weights = []
    for _ in range(30):
        result, kept = mixed(images, Search(cutmix=1.0), random)
        own = result == images
        assert torch.equal(result[~own], images.flip(0)[~own])
        assert own.float().mean((1, 2, 3)).tolist() == pytest.approx([kept] * 4)
        pasted = (~own[0, 0]).nonzero()
        assert len(pasted) == math.prod((pasted.amax(0) - pasted.amin(0) + 1).tolist()) if len(pasted) else True
        weights.append(kept)
    assert min(weights) < 0.5 and max(weights) > 0.9


def test_mixup_and_cutmix_take_turns():
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    random = np.random.default_rng(0)
    for switch, expected in ((0.0, 0), (0.5, 50), (1.0, 100)):
        settings = Search(mixup=1.0, cutmix=1.0, switch=switch)
        cut = sum(set(mixed(images, settings, random)[0].unique().tolist()) <= {0.0, 1.0} for _ in range(100))
        assert cut == pytest.approx(expected, abs=15 if 0 < switch < 1 else 0)


def test_scores_of_trunc_normal_have_one_standard_deviation(data):
    model = network(width=16)
    search(model, data, settings(scores="trunc_normal", lr=0.0, weight_decay=0.0, epochs=1))
    for layer in layers_of(model)[1:4]:
        assert layer.scores.std().item() == pytest.approx(0.02, rel=0.1)


def test_adam_and_adamw_decay_scores_differently(data):
    a, b = (found(data, optimizer=name, lr=0.01, weight_decay=0.5)[0] for name in ("adam", "adamw"))
    assert not torch.equal(layers_of(a)[0].scores, layers_of(b)[0].scores)


def test_the_test_accuracy_of_each_epoch_is_logged(data, tmp_path):
    model = network()
    rows = search(model, data, settings(test_each_epoch=True), run=Run(tmp_path, {}))
    assert rows[-1]["test"] == accuracy(model, data.test)
    assert (tmp_path / "log.csv").read_text().splitlines()[0].endswith("kept,test")


def test_checkpoints_of_some_epochs_are_kept(data, tmp_path):
    """A search continues from one that is copied to last.pt."""
    first, second = network(), network()
    rows = search(first, data, settings(epochs=4), run=Run(tmp_path, {}, keep_every=2))
    assert {path.name for path in tmp_path.glob("epoch_*")} == {"epoch_2.pt", "epoch_4.pt"}
    shutil.copy(tmp_path / "epoch_2.pt", tmp_path / "last.pt")
    assert search(second, data, settings(epochs=4), run=Run(tmp_path, {})) == rows
    assert same_state(first, second)


# Dense weights


DENSE = Experiment(model={"name": "convnet", "width": 4}, search=Search(algorithm="dense", epochs=1, batch_size=128))


def test_dense_training_starts_from_the_random_network(data):
    """With the same weights as the network of supermask layers without freezing, and all of them kept."""
    model = build(DENSE, data)
    source = models.build("convnet", width=4, supermask={"sparsity": 0.0, "seed": DENSE.seed})
    assert {type(m) for m in model.modules() if hasattr(m, "weight")} <= {nn.Conv2d, nn.Linear, nn.BatchNorm2d}
    images = data.test.images[:8]
    torch.testing.assert_close(model.eval()(images), source.eval()(images))


@pytest.mark.parametrize("ema", (0.0, 0.9))
def test_dense_weights_are_trained(ema, data, tmp_path):
    model = build(DENSE, data)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = search(model, data, settings(algorithm="dense", ema=ema, pick="best"), run=Run(tmp_path, {}))
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert [row["kept"] for row in rows] == [1.0, 1.0]
    again = build(DENSE, data)
    assert search(again, data, settings(algorithm="dense", ema=ema, pick="best"), run=Run(tmp_path, {})) == rows
    assert same_state(again, model)


def test_a_dense_network_is_written_and_reloaded(tmp_path, capsys):
    options = ["--algorithm", "dense", "--width", "4", "--epochs", "1", "--batch-size", "128"]
    options += ["--out", str(tmp_path / "net.safetensors"), "--json", str(tmp_path / "report.json")]
    assert main(["find", *options]) == 0
    printed = capsys.readouterr().out
    assert "A dense network for digits" in printed and "frozen" not in printed and "mask" not in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["test_accuracy"] == report["reloaded_accuracy"]
    assert (report["free_bits"], report["mask_bytes"], report["kept"]) == (0, 0, report["weights"])
    assert report["ticket_bytes"] == (tmp_path / "net.safetensors").stat().st_size > 4 * report["weights"]
    with pytest.raises(TicketError, match="not a ticket"):
        ticket_info(tmp_path / "net.safetensors")


def test_a_dense_network_is_not_compressed(tmp_path):
    with pytest.raises(ValueError, match="compress=True: expected False"):
        find(DENSE, tmp_path / "net.safetensors", torch.device("cpu"), compress=True)


def test_an_excluded_layer_is_trained_and_in_the_ticket(tmp_path):
    experiment = DENSE.override({"search.algorithm": "edge_popup", "source.exclude": ["last"]})
    report = find(experiment, tmp_path / "net.slt", torch.device("cpu"))
    assert report["test_accuracy"] == report["reloaded_accuracy"]
    info = ticket_info(tmp_path / "net.slt")
    assert "15" not in {layer.name for layer in info.layers}
    assert ("15.weight", "float32") in {(t.name, t.dtype) for t in info.tensors}


@pytest.mark.parametrize("amp", (None, "bf16", "fp16"))
def test_clipping_bounds_a_step_with_and_without_amp(amp, data):
    """Without momentum a step moves the scores by lr times the bound."""
    after, before = one_step(data, clip=1e-3, lr=1.0, amp=amp)
    pairs = zip(layers_of(after), layers_of(before), strict=True)
    moved = sum((a.scores - b.scores).square().sum() for a, b in pairs).sqrt()
    assert 0.99e-3 < moved < 1.01e-3


@pytest.mark.parametrize("amp", ("bf16", "fp16"))
def test_amp_computes_in_its_dtype(amp, data):
    model, seen = network(), []
    layers_of(model)[-1].register_forward_hook(lambda m, x, y: seen.append((m.training, y.dtype)))
    rows = search(model, data, settings(amp=amp, epochs=3))
    assert {dtype for training, dtype in seen if training} == {torch.bfloat16 if amp == "bf16" else torch.float16}
    assert {dtype for training, dtype in seen if not training} == {torch.float32}
    assert all(layer.scores.dtype == torch.float32 for layer in layers_of(model))
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_ema_averages_scores_and_makes_masks_of_them(data):
    decay, history, plain = 0.6, [], network()
    search(
        plain, data, settings(epochs=1), on_step=lambda *_: history.append([m.scores.clone() for m in layers_of(plain)])
    )
    averaged = network()
    search(averaged, data, settings(epochs=1, ema=decay))
    expected = history[0]
    for scores in history[1:]:
        expected = [decay * a + (1 - decay) * s for a, s in zip(expected, scores, strict=True)]
    kept = 0
    for layer, scores in zip(layers_of(averaged), expected, strict=True):
        assert torch.allclose(layer.scores, scores, rtol=1e-5, atol=1e-7)
        kept += int(layer.mask().sum())
        assert not (layer.mask() & (layer.frozen_state() == -1)).any()
    total = sum(layer.total for layer in layers_of(averaged))
    assert kept == total - int(0.7 * total)


def test_pick_best_leaves_the_best_epoch(data, monkeypatch):
    """Patched accuracies make the second of three epochs the best."""
    said = iter((0.3, 0.9, 0.5))
    monkeypatch.setattr("slt_kernels.experiments.train.loop.accuracy", lambda *_: next(said))
    best = network()
    search(best, data, settings(epochs=3, pick="best", schedule="constant"))
    monkeypatch.undo()
    two, _ = found(data, epochs=2, schedule="constant")
    assert same_state(best, two)
