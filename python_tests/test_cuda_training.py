"""Steps of training on the CUDA backend, in the simulator: every operation of a small residual network."""

import pytest
import torch
import torch.nn.functional as F
from cuda_simulator import simulated, why_not

from slt_kernels import EdgePopup, Freeze, SupermaskConv2d, SupermaskLinear, backends

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no simulation: {why_not()}")
FROZEN = Freeze(0.25, 0.25)


class Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = SupermaskConv2d(3, 16, 3, padding=1, bias=False, freeze=FROZEN, seed=1)
        self.block = SupermaskConv2d(16, 16, 3, padding=1, bias=False, freeze=FROZEN, seed=1, layer=1)
        self.down = SupermaskConv2d(16, 8, 1, stride=2, bias=False, seed=1, layer=2, compact=True)
        self.norm = torch.nn.BatchNorm2d(16, affine=False)
        self.head = SupermaskLinear(8 * 4, 5, freeze=FROZEN, seed=1, layer=3, compact=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.block(x) + x)
        return self.head(self.down(x).flatten(1))


def train() -> list[torch.Tensor]:
    torch.manual_seed(0)
    net = Residual()
    popup = EdgePopup(net, sparsity=0.5, scope="global")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(4, 3, 4, 4), torch.randint(5, (4,))
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        popup.step()
        losses.append(loss.detach())
    layers = net.stem, net.block, net.down, net.head
    return [*losses, *(layer.scores.detach() for layer in layers), *(layer.mask_words.clone() for layer in layers)]


@pytest.mark.parametrize("capability", [80, 90], ids=lambda capability: f"sm_{capability}")
def test_two_steps_are_those_of_the_reference(capability):
    with simulated(capability) as simulator, backends.use("cuda"):
        ours = train()
    with backends.use("reference"):
        theirs = train()
    torch.testing.assert_close(ours, theirs)
    launched = {launch["kernel"] for launch in simulator.launches}
    for part in ("product", "forward_small", "grad_input", "grad_scores", "select", "pack"):
        assert any(part in kernel for kernel in launched), f"{part} ran elsewhere: {launched}"
