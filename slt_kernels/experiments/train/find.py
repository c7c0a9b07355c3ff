"""An experiment from its settings to a ticket, which is verified by reloading it."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from ... import backends
from ...files import write_atomically
from ...nn import SupermaskLayer, sharded_scores
from ...source import Freeze
from ...tickets import entropy_coder, load_ticket, save_ticket
from .. import data, models
from ..data import Dataset
from . import processes
from .loop import accuracy, evaluate, search
from .run_folder import Run
from .settings import Experiment


def load_data(experiment: Experiment) -> Dataset:
    """The experiment's data set, split with the experiment's seed."""
    return data.load(**experiment.data, seed=experiment.seed)


def build(
    experiment: Experiment, dataset: Dataset | Mapping[str, int], device: torch.device | str = "cpu"
) -> nn.Module:
    """The experiment's random network of supermask layers for a data set, or its dimensions; the same in every process.

    With ``algorithm: dense`` it is a network of PyTorch's layers, whose weights begin as those of the unfrozen random
    network.
    """
    torch.manual_seed(experiment.seed % 2**63)  # for parameters that are not masked, such as biases
    dense = experiment.search.algorithm == "dense"
    supermask = experiment.source.supermask(experiment.seed)
    if dense:
        supermask |= {"freeze": Freeze(), "sparsity": 0.0, "exclude": ()}
    model = models.build(**experiment.model, data=dataset, supermask=supermask)
    return (_with_weights(models.build(**experiment.model, data=dataset), model) if dense else model).to(device)


@torch.no_grad()
def _with_weights(model: nn.Module, source: nn.Module) -> nn.Module:
    """The dense network with the weights of one of supermask layers."""
    for name, layer in source.named_modules():
        if isinstance(layer, SupermaskLayer):
            model.get_submodule(name).weight.copy_(layer.weight)
    return model


def check_experiments(*experiments: Experiment) -> None:
    """Raises the errors of `find` about data and networks, before a search and without allocating weights.

    Args:
        experiments: experiments on the same data set, which is read once.

    Raises:
        ValueError, RuntimeError, OSError, ModuleNotFoundError: as `data.load` and `models.build`.
    """
    dataset = load_data(experiments[0])
    for e in experiments:
        _check_classes(e, dataset)
        models.build(**e.model, data=dataset, supermask=e.source.supermask(e.seed), device="meta")


def _check_classes(experiment: Experiment, dataset: Dataset) -> None:
    """Raises ValueError for a network with fewer outputs than the data have classes."""
    classes = experiment.model.get("classes", dataset.classes)
    if classes < dataset.classes:
        name = experiment.data["name"]
        raise ValueError(f"model.classes={classes}: expected at least {dataset.classes}, the classes of {name}")


def find(
    experiment: Experiment,
    out: Path,
    device: torch.device,
    *,
    compress: bool = False,
    run: Run | None = None,
    on_epoch: Callable[[int, float, float], None] | None = None,
    on_step: Callable[[int, int, int], None] | None = None,
    shard: str | None = None,
) -> dict[str, Any]:
    """Searches for the experiment's ticket, writes it, reloads it, and tests both.

    With ``algorithm: dense`` the weights are trained instead, and ``out`` becomes a safetensors file of the network.

    Args:
        experiment: what is searched.
        out: the file of the ticket.
        device: of this process.
        compress: entropy-code the ticket's bits. Default False.
        run, on_epoch, on_step, shard: as in `search`.

    Returns:
        A report: test_accuracy, test_bits (cross-entropy of a test target, in bits), reloaded_accuracy,
        validation_accuracy (of the picked epoch), weights, free_bits, kept, mask_bytes, ticket_bytes, fp32_bytes,
        seconds, backend and experiment.

    Raises:
        ValueError: ``compress`` of a dense network, or fewer classes than the data have; raised before the search.
        ModuleNotFoundError: ``compress`` without its package; raised before the search.
        RuntimeError: the reloaded ticket has another accuracy than the saved network.
    """
    if compress and experiment.search.algorithm == "dense":
        raise ValueError("compress=True: expected False: a dense network has no mask bits")
    if compress:
        entropy_coder()  # a missing package raises here, before the search
    started = time.perf_counter()
    dataset = load_data(experiment)
    _check_classes(experiment, dataset)
    model = build(experiment, dataset, device)
    settings = experiment.search
    rows = search(model, dataset, settings, on_epoch, seed=experiment.seed, run=run, on_step=on_step, shard=shard)
    found, bits = evaluate(model, dataset.test, settings.batch_size, settings.workers)
    metadata = {"network": experiment.network, "dimensions": dataset.dimensions, "test_accuracy": found}
    if settings.algorithm == "dense":
        _save_dense(model, out, metadata)
    elif processes.rank() == 0 or shard:  # of a sharded model every process writes the same ticket
        save_ticket(model, out, metadata, compress)
    processes.wait()

    validated = [row["validation"] for row in rows]
    reloaded = build(experiment, dataset, device)
    if settings.algorithm == "dense":
        reloaded.load_state_dict(load_file(out, str(device)))
        counts = _dense_counts(model, out)
    else:
        ticket = load_ticket(out, reloaded)
        counts = {name: getattr(ticket, name) for name in ("weights", "free_bits", "kept", "mask_bytes")}
        counts["ticket_bytes"] = ticket.size
    again = accuracy(reloaded, dataset.test, settings.batch_size, settings.workers)
    if again != found:
        raise RuntimeError(f"{out}: the reloaded ticket has test accuracy {again:.4f}, expected {found:.4f}")
    return {
        "test_accuracy": found,
        "test_bits": bits,
        "reloaded_accuracy": again,
        "validation_accuracy": max(validated) if settings.pick == "best" else validated[-1],
        **counts,
        "fp32_bytes": 4 * counts["weights"],
        "seconds": time.perf_counter() - started,
        "backend": backends.name_for(device),
        "experiment": experiment.to_dict(),
    }


def _save_dense(model: nn.Module, out: Path, metadata: dict[str, Any]) -> None:
    """Writes the state of a dense network as safetensors, in process 0; collective if it is sharded."""
    tensors = {name: sharded_scores.whole(t.detach()).cpu().contiguous() for name, t in model.state_dict().items()}
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    if processes.rank() == 0:
        write_atomically(out, save(tensors, texts))


def _dense_counts(model: nn.Module, out: Path) -> dict[str, int]:
    """The report's counts for a dense network: no bit is free, and every weight is kept."""
    weights = sum(p.numel() for p in model.parameters() if p.dim() >= 2)
    return {
        "weights": weights,
        "free_bits": 0,
        "kept": weights,
        "mask_bytes": 0,
        "ticket_bytes": out.stat().st_size,
    }
