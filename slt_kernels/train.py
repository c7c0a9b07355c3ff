"""The search for a ticket: train the scores of a supermask network, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .data import Dataset, Part
from .edge_popup import EdgePopup


@dataclass(frozen=True)
class Search:
    """Settings of a search with Edge-Popup. Defaults are the paper's (Otsuka et al., 2024), but for the epochs.

    Args:
        sparsity: fraction of all weights that is dropped, frozen ones included.
        scope: of the threshold, "global" or "local".
        epochs, batch_size: passes over the training part, and examples a step.
        lr, momentum, weight_decay: of SGD on the scores; lr follows a cosine to 0, per epoch.
        seed: of the order of the examples.
    """

    sparsity: float = 0.7
    scope: str = "global"
    epochs: int = 16
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        for name, value in (("lr", self.lr), ("momentum", self.momentum), ("weight_decay", self.weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name}={value}: expected a number of at least 0")


def search(
    model: nn.Module, data: Dataset, settings: Search, on_epoch: Callable[[int, float, float], None] | None = None
) -> None:
    """Searches a ticket in a supermask model, in place.

    Args:
        model: with supermask layers, on the device to train on.
        data: trained on its training part, examples in an order fixed by ``settings.seed``.
        settings: see `Search`.
        on_epoch: called after each epoch with its number (from 1), its mean loss, and the validation accuracy.

    Raises:
        ValueError: a sparsity that the model's freezing does not allow; see `EdgePopup`.
    """
    popup = EdgePopup(model, settings.sparsity, settings.scope)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    hook = popup.attach(optimizer)
    device = popup.layers[0].scores.device
    images, labels = (t.to(device) for t in (data.train.images, data.train.labels))
    order = torch.Generator().manual_seed(settings.seed)
    for epoch in range(1, settings.epochs + 1):
        model.train()
        total = 0.0
        for batch in torch.randperm(len(labels), generator=order).to(device).split(settings.batch_size):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        if on_epoch is not None:
            on_epoch(epoch, total / len(labels), accuracy(model, data.validation))
    hook.remove()


@torch.no_grad()
def accuracy(model: nn.Module, part: Part, batch_size: int = 256) -> float:
    """Fraction of the examples that the model, set to evaluation, classifies rightly."""
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for images, labels in zip(part.images.split(batch_size), part.labels.split(batch_size), strict=True):
        right += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
    return right / len(part)
