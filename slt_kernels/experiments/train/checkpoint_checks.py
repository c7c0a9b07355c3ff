"""Checks that a checkpoint fits a search: its file may have been edited, or written by another search."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..._text import shown
from ...nn.sharded_scores import local

_ADAM = {"step", "exp_avg", "exp_avg_sq"}
_STATE = {torch.optim.Adam: _ADAM, torch.optim.AdamW: _ADAM, torch.optim.SGD: {"momentum_buffer"}}


def check(
    last: Mapping[str, Any],
    best: Mapping[str, Any] | None,
    here: Mapping[str, Any],
    evaluated: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    rates: Sequence[float],
    steps: int,
    tested: bool,
) -> None:
    """Checks the checkpoints of a search completely before anything is loaded.

    Missing and unexpected tensors of a network are left to its ``load_state_dict``, which converts older states.

    Args:
        last, best: the checkpoints; best may be None.
        here: the checkpoint that the search would write at its start.
        evaluated: the state of the network that is evaluated.
        optimizer: the optimizer of the search.
        rates: the learning rate of each epoch.
        steps: steps in an epoch.
        tested: whether rows have a test accuracy.

    Raises:
        ValueError: another structure, type, shape or dtype; a number or a score that is not finite; impossible
            progress.
    """
    for name in ("scaler", "draws", "progress"):
        if name not in last:
            raise ValueError(f"{name}: missing")
        _check_like(last[name], here[name], name)
    epoch, step, taken = (last["progress"][name] for name in ("epoch", "step", "taken"))
    if not (0 <= epoch <= len(rates) and 0 <= step <= steps and taken == epoch * steps + step):
        raise ValueError(f"epoch={epoch}, step={step}, taken={taken}: expected {len(rates)} epochs of {steps} steps")
    if last["draws"] is not None and last["draws"] < 0:
        raise ValueError(f"draws={last['draws']}: expected at least 0")
    _check_rows(last.get("rows"), rates[:epoch], steps, tested)
    _check_state(last.get("model"), here["model"], "model")
    if here["average"] is not None:
        _check_state(last.get("average"), here["average"], "average")
    _check_optimizer(last.get("optimizer"), optimizer, taken)
    if best is not None:
        _check_like({n: best.get(n) for n in ("epoch", "validation")}, {"epoch": 0, "validation": 0.0}, "best")
        _check_state(best.get("model"), evaluated, "best.model")
        if best["model"].keys() != last["model"].keys():
            raise ValueError("best.model: expected the tensors of last.pt's model")


def _check_rows(rows: Any, rates: Sequence[float], steps: int, tested: bool) -> None:
    measured = dict.fromkeys(("loss", "validation", "kept", *(["test"] if tested else [])), 0.0)
    expected = [{"epoch": i + 1, "step": (i + 1) * steps, "lr": rate} | measured for i, rate in enumerate(rates)]
    _check_like(rows, expected, "rows")
    for row, known in zip(rows, expected, strict=True):
        for name, value in row.items():
            if value != known[name] if name not in measured else name != "loss" and not 0 <= value <= 1:
                raise ValueError(f"rows: {name}={value}: expected {'0 to 1' if name in measured else known[name]}")


def _check_state(saved: Any, here: Mapping[str, Any], name: str) -> None:
    _check_mapping(saved, name)
    for key in sorted(map(str, saved.keys() & here.keys())):
        _check_like(saved[key], here[key], f"{name}.{key}")
        if key.endswith(("scores", "weight_scale")) and not local(saved[key]).isfinite().all():
            raise ValueError(f"{name}.{key}: expected finite numbers")


def _check_optimizer(saved: Any, optimizer: torch.optim.Optimizer, taken: int) -> None:
    """Checks settings and state. The learning rate is not compared, because every step sets it."""
    if not isinstance(saved, Mapping) or not isinstance(saved.get("param_groups"), list):
        raise ValueError(f"optimizer={shown(saved)}: expected param_groups and state")
    groups = optimizer.state_dict()["param_groups"]
    for theirs, ours in zip(saved["param_groups"], groups, strict=False):  # load_state_dict compares their number
        _check_mapping(theirs, "optimizer.param_groups")
        for name in theirs.keys() & ours.keys() - {"lr"}:  # each version of PyTorch has its own keys
            if theirs[name] != ours[name]:
                raise ValueError(f"optimizer: {name}={shown(theirs[name])}: expected {shown(ours[name])}")
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    _check_mapping(saved.get("state"), "optimizer.state")
    for number, state in saved["state"].items():
        _check_mapping(state, f"optimizer.state.{shown(number)}")
        if number not in parameters or (state and state.keys() != _STATE[type(optimizer)]):
            raise ValueError(
                f"optimizer.state.{shown(number)}: {shown(list(state))}: expected the state of a parameter"
            )
        for name, value in state.items():
            if value is None:  # momentum before the first gradient
                continue
            here = torch.zeros((), device="cpu") if name == "step" else parameters[number]
            _check_like(value, here, f"optimizer.state.{number}.{name}")
            if local(value).isnan().any() or (name == "step" and not 0 <= value <= taken):
                raise ValueError(f"optimizer.state.{number}.{name}: expected no NaN, and at most {taken} steps")


def _check_mapping(saved: Any, name: str) -> None:
    if not isinstance(saved, Mapping):
        raise ValueError(f"{name}={shown(saved)}: expected keys and values")


def _check_like(saved: Any, here: Any, name: str) -> None:
    """Raises ValueError unless a value of a checkpoint has the structure of the search's own.

    Args:
        saved: the checkpoint's value: plain values, tensors, and dicts and lists of these.
        here: the search's value. Types, keys, lengths, shapes and dtypes must be equal; numbers must be finite.
        name: name of the value, for the error.
    """
    if isinstance(here, Mapping):
        if not isinstance(saved, Mapping) or saved.keys() != here.keys():
            keys = list(saved) if isinstance(saved, Mapping) else saved
            raise ValueError(f"{name}: expected the keys {shown(list(here))}, got {shown(keys)}")
        for key, value in here.items():
            _check_like(saved[key], value, f"{name}.{key}")
    elif isinstance(here, list | tuple):
        if type(saved) is not type(here) or len(saved) != len(here):
            raise ValueError(f"{name}={shown(saved)}: expected {len(here)} values")
        for i, value in enumerate(here):
            _check_like(saved[i], value, f"{name}[{i}]")
    elif isinstance(here, torch.Tensor):
        expected = f"{here.dtype} {list(here.shape)}"
        if not isinstance(saved, torch.Tensor) or (saved.dtype, saved.shape) != (here.dtype, here.shape):
            found = f"{saved.dtype} {list(saved.shape)}" if isinstance(saved, torch.Tensor) else shown(saved)
            raise ValueError(f"{name}: expected a tensor {expected}, got {found}")
    elif type(saved) is not type(here) or (isinstance(saved, float) and not math.isfinite(saved)):
        kind = "a finite number" if isinstance(here, float) else type(here).__name__
        raise ValueError(f"{name}={shown(saved)}: expected {kind}")
