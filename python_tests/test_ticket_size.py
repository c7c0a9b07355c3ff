"""Size of a ticket of ResNet-50 for ImageNet, 70 % frozen, beside the paper's."""

import math

import pytest
import torch
from torch import nn

from slt_kernels import Freeze, convert, load_ticket, save_ticket
from slt_kernels.models import resnet
from slt_kernels.ticket import TicketInfo

WEIGHTS = 25_502_912


def network(freeze: Freeze) -> nn.Module:
    """A network with masks only; a ticket needs no scores."""
    with torch.device("meta"):
        model = convert(resnet(50, classes=1000, imagenet=True), freeze, None, compact=True)
    model.to_empty(device="cpu")
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_parameters()
    return model


def masks(model: nn.Module) -> list[torch.Tensor]:
    return [m.compact_mask() for m in model.modules() if hasattr(m, "scores")]


pytestmark = pytest.mark.filterwarnings("ignore:the weights of 54 of 54 layers")  # their scale is 1


@pytest.fixture(scope="module")
def tickets(tmp_path_factory) -> dict[str, tuple[TicketInfo, int]]:
    """Tickets of a dense and a frozen source with half of the free weights kept at random, saved and loaded."""
    infos = {}
    for name, freeze in (("dense", Freeze()), ("frozen", Freeze(0.35, 0.35))):
        path = tmp_path_factory.mktemp(name) / "net.slt"
        model = network(freeze)
        for layer in (m for m in model.modules() if hasattr(m, "scores")):
            bits = torch.randint(256, ((layer.free + 7) // 8,), dtype=torch.uint8)
            bits[-1:] &= (1 << (layer.free % 8 or 8)) - 1
            padded = nn.functional.pad(bits, (0, -len(bits) % 4))
            layer.load_mask(padded.view(torch.int32), 1.0)
        saved = masks(model)
        save_ticket(model, path)
        for layer in (m for m in model.modules() if hasattr(m, "scores")):
            layer.mask_words.fill_(-1)
        info = load_ticket(path, model)
        assert all(torch.equal(a, b) for a, b in zip(saved, masks(model), strict=True))
        infos[name] = info, path.stat().st_size
    return infos


def test_a_frozen_ticket_is_as_small_as_the_paper_counts(tickets):
    info, size = tickets["frozen"]
    assert info.weights == WEIGHTS
    assert info.mask_bytes <= 0.956e6
    statistics = sum(math.prod(t.shape) * (8 if t.dtype == "int64" else 4) for t in info.tensors)
    assert size == info.size <= info.mask_bytes + statistics + 4096 + 200 * len(info.layers)


def test_and_3_3_times_smaller_than_of_a_dense_source(tickets):
    dense, frozen = (tickets[name][0].mask_bytes for name in ("dense", "frozen"))
    assert dense == pytest.approx(WEIGHTS / 8, abs=54)
    assert dense / frozen >= 3.3
