"""LeNet-300-100 (LeCun et al., 1998), the fully connected network of the lottery tickets on MNIST."""

import itertools

from torch import nn


def lenet(width: int = 300, classes: int = 10, channels: int = 1, size: int = 28) -> nn.Sequential:
    """Three linear layers with ReLU between them; no bias.

    Args:
        width: features of the first layer; the second has ``width // 3``. Default 300, so 300 and 100.
        classes: outputs. Default 10.
        channels, size: of the input ``[B, channels, size, size]``. Default 1 and 28.

    Maskable weights for MNIST: 266,200.

    Raises:
        ValueError: a width below 3.
    """
    if width < 3:
        raise ValueError(f"width={width}: expected at least 3")
    sizes = (channels * size * size, width, width // 3)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes, bias=False))
