"""The layers on every device of this machine."""

import pytest
import torch

from slt_kernels import Freeze, SupermaskConv2d, SupermaskEmbedding, SupermaskLinear, backends

LAYERS = {
    "linear": (lambda: SupermaskLinear(65, 33, freeze=Freeze(0.2, 0.1)), lambda: torch.randn(5, 65)),
    "conv2d": (lambda: SupermaskConv2d(3, 8, 3, compact=True), lambda: torch.randn(2, 3, 7, 6)),
    "embedding": (lambda: SupermaskEmbedding(40, 33), lambda: torch.randint(40, (2, 9))),
}


@pytest.mark.parametrize("make,inputs", LAYERS.values(), ids=LAYERS)
def test_a_step_equals_the_reference_on_the_cpu(make, inputs, device):
    """Output, gradient of the scores, and mask; a product is exact everywhere, a sum of float32 is not."""
    layer, x = make(), inputs()

    def step(device: torch.device) -> list[torch.Tensor]:
        on_device = make().to(device)
        on_device.load_state_dict(layer.state_dict())
        y = on_device(x.to(device))
        y.square().sum().backward()
        assert y.device.type == on_device.scores.grad.device.type == device.type
        return [t.detach().cpu() for t in (y, on_device.scores.grad, on_device.mask())]

    ours = step(device)
    with backends.use("reference"):
        y, grad, mask = step(torch.device("cpu"))
    torch.testing.assert_close(ours[0], y)
    torch.testing.assert_close(ours[1], grad)
    assert torch.equal(ours[2], mask)
