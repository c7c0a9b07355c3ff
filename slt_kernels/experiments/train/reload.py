"""The network of a ticket that ``slt find`` wrote, from the ticket alone."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..._text import printable, shown
from ...nn import drop_scores
from ...tickets import TicketInfo, load_ticket, ticket_info
from .. import models
from ..data import DIMENSIONS, Dataset
from ..models import MODELS
from .find import build
from .settings import Experiment


def load_network(path: str | Path, device: torch.device | str = "cpu", *, scores: bool = False) -> nn.Module:
    """The network of a ticket that `find` or ``slt find`` wrote, in evaluation mode; its data are not needed.

    Args:
        path: the ticket.
        device: of the network. Default: the CPU.
        scores: keep initial scores, to search on from this mask. Default False: one bit per weight.

    Raises:
        TicketError: as `load_ticket`.
        ValueError: a ticket that does not say how to build its network, or does not fit what it says; one of an older
            release, which needs its data set: ``slt eval`` tests it, and `load_ticket` takes a network built with it.
        OSError: the file cannot be opened.
        ModuleNotFoundError: the ticket is compressed, and the package of the extra ``compress`` is missing.

    Example::

        model = load_network("ticket.slt")
        logits = model(images)
    """
    info = ticket_info(path)
    experiment, _ = described(info, path)
    dimensions = info.metadata.get("dimensions")
    if dimensions is None:
        raise ValueError(
            f"{path}: of an older release, without the dimensions of its data: expected load_ticket, with a network of "
            "models.build for the data set"
        )
    if not isinstance(dimensions, dict) or not dimensions.keys() <= set(DIMENSIONS):
        raise ValueError(f"{path}: dimensions={shown(dimensions)}: expected some of {', '.join(DIMENSIONS)}")
    return rebuilt(experiment, dimensions, info, path, device, scores=scores).eval()


def described(info: TicketInfo, path: str | Path) -> tuple[Experiment, float]:
    """The experiment of a ticket of `find`, with default search settings, and its test accuracy.

    Raises:
        ValueError: it describes none, or one with unknown settings; an impossible accuracy.
    """
    network, found = info.metadata.get("network"), info.metadata.get("test_accuracy")
    if not isinstance(network, dict) or type(found) not in (int, float):
        raise ValueError(f"{path}: not written by slt find: it does not describe how to build its network")
    if not 0 <= found <= 1:
        raise ValueError(f"{path}: test_accuracy={shown(found)}: expected a number from 0 to 1")
    try:
        return Experiment.from_dict(network), found
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def rebuilt(
    experiment: Experiment,
    data: Dataset | Mapping[str, int],
    info: TicketInfo,
    path: str | Path,
    device: torch.device | str,
    *,
    scores: bool = False,
) -> nn.Module:
    """The network that a ticket describes for a data set, or for its dimensions, with the ticket loaded.

    Raises:
        ValueError: the description does not fit the ticket. It is compared before anything is allocated.
    """
    _check_depth(experiment, info, path)
    _check_shapes(experiment, data, info, path)
    model = build(experiment, data, device)
    load_ticket(path, model if scores else drop_scores(model))
    return model


def _check_depth(experiment: Experiment, info: TicketInfo, path: str | Path) -> None:
    """Raises ValueError for more blocks than the ticket has layers; such a network could take forever to build."""
    depth = experiment.model.get("depth", 0)
    names = ("resnet", "conv_n")  # builders with a short list of depths
    if depth > len(info.layers) and MODELS[experiment.model["name"]].builder.__name__ not in names:
        raise ValueError(f"{path}: model.depth={depth}: expected at most {len(info.layers)}, the number of its layers")


def _check_shapes(
    experiment: Experiment, data: Dataset | Mapping[str, int], info: TicketInfo, path: str | Path
) -> None:
    """Raises ValueError unless the network described by a ticket has the ticket's shapes; allocates neither."""
    try:
        dense = models.build(**experiment.model, data=data, device="meta")
    except RuntimeError as error:  # sizes that overflow
        raise ValueError(f"{path}: its network cannot be built ({str(error)[:200]})") from None
    named = {name: tuple(t.shape) for name, t in dense.state_dict().items()}
    held = {f"{layer.name}.weight": layer.shape for layer in info.layers} | {t.name: t.shape for t in info.tensors}
    different = sorted(name for name in named.keys() | held.keys() if named.get(name) != held.get(name))
    if different:
        name = different[0]
        there, here = (shape and list(shape) for shape in (held.get(name), named.get(name)))
        raise ValueError(f"{path}: {printable(name)} has shape {there}, in the network that it describes {here}")
