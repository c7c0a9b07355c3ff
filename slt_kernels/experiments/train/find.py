"""An experiment from its settings to a ticket, which is verified by reloading it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import backends
from ...tickets import entropy_coder, load_ticket, save_ticket
from .. import data, models
from ..data import Dataset
from . import processes
from .loop import accuracy, search
from .run_folder import Run
from .settings import Experiment


def load_data(experiment: Experiment) -> Dataset:
    """The experiment's data set, split with the experiment's seed."""
    return data.load(**experiment.data, seed=experiment.seed)


def build(experiment: Experiment, dataset: Dataset, device: torch.device | str = "cpu") -> nn.Module:
    """The experiment's random network of supermask layers for a data set; the same in every process."""
    torch.manual_seed(experiment.seed % 2**63)  # for parameters that are not masked, such as biases
    model = models.build(**experiment.model, data=dataset, supermask=experiment.source.supermask(experiment.seed))
    return model.to(device)


def check_experiments(*experiments: Experiment) -> None:
    """Raises the errors of `find` about data and networks, before a search and without allocating weights.

    Args:
        experiments: experiments on the same data set, which is read once.

    Raises:
        ValueError, RuntimeError, OSError, ModuleNotFoundError: as `data.load` and `models.build`.
    """
    dataset = load_data(experiments[0])
    for e in experiments:
        models.build(**e.model, data=dataset, supermask=e.source.supermask(e.seed), device="meta")


def find(
    experiment: Experiment,
    out: Path,
    device: torch.device,
    *,
    compress: bool = False,
    run: Run | None = None,
    on_epoch: Callable[[int, float, float], None] | None = None,
    on_step: Callable[[int, int, int], None] | None = None,
) -> dict[str, Any]:
    """Searches for the experiment's ticket, writes it, reloads it, and tests both.

    Returns:
        A report: test_accuracy, reloaded_accuracy, validation_accuracy (of the picked epoch), weights, free_bits, kept,
        mask_bytes, ticket_bytes, fp32_bytes, seconds, backend and experiment.

    Raises:
        ModuleNotFoundError: ``compress`` without its package; raised before the search.
        RuntimeError: the reloaded ticket has another accuracy than the saved network.
    """
    if compress:
        entropy_coder()  # a missing package raises here, before the search
    started = time.perf_counter()
    dataset = load_data(experiment)
    model = build(experiment, dataset, device)
    settings = experiment.search
    rows = search(model, dataset, settings, on_epoch, seed=experiment.seed, run=run, on_step=on_step)
    found = accuracy(model, dataset.test, settings.batch_size, settings.workers)
    if processes.rank() == 0:
        save_ticket(model, out, {"network": experiment.network, "test_accuracy": found}, compress)
    processes.wait()

    validated = [row["validation"] for row in rows]
    reloaded = build(experiment, dataset, device)
    ticket = load_ticket(out, reloaded)
    again = accuracy(reloaded, dataset.test, settings.batch_size, settings.workers)
    if again != found:
        raise RuntimeError(f"{out}: the reloaded ticket has test accuracy {again:.4f}, expected {found:.4f}")
    return {
        "test_accuracy": found,
        "reloaded_accuracy": again,
        "validation_accuracy": max(validated) if settings.pick == "best" else validated[-1],
        "weights": ticket.weights,
        "free_bits": ticket.free_bits,
        "kept": ticket.kept,
        "mask_bytes": ticket.mask_bytes,
        "ticket_bytes": ticket.size,
        "fp32_bytes": 4 * ticket.weights,
        "seconds": time.perf_counter() - started,
        "backend": backends.name_for(device),
        "experiment": experiment.to_dict(),
    }
