"""Conv2, Conv4, Conv6 and Conv8 (Frankle and Carbin, 2019; Ramanujan et al., 2020): VGG-like, without BatchNorm."""

from torch import nn


def conv_n(depth: int = 6, classes: int = 10, width: int = 64, channels: int = 3, size: int = 32) -> nn.Sequential:
    """``depth`` 3x3 convolutions with pooling after every second, and three linear layers; no bias, no BatchNorm.

    Args:
        depth: number of convolutions: 2, 4, 6 or 8. Each pair has twice the channels of the pair before.
        classes: outputs. Default 10.
        width: channels of the first two convolutions; the hidden linear layers have ``4 * width``. Default 64.
        channels, size: of the input ``[B, channels, size, size]``. Default 3 and 32.

    Maskable weights for CIFAR-10: 4,300,992 (2), 2,425,024 (4), 2,261,184 (6), 5,275,840 (8).

    Raises:
        ValueError: another depth, or images too small for the poolings.
    """
    if depth not in (2, 4, 6, 8):
        raise ValueError(f"depth={depth}: expected 2, 4, 6 or 8")
    pools = depth // 2
    if size < 2**pools:
        raise ValueError(f"size={size}: expected at least {2**pools}, for {pools} poolings")
    layers: list[nn.Module] = []
    inputs = channels
    for pool in range(pools):
        outputs = width << pool
        for _ in range(2):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.ReLU(inplace=True)]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    inputs *= (size >> pools) ** 2
    for _ in range(2):
        layers += [nn.Linear(inputs, 4 * width, bias=False), nn.ReLU(inplace=True)]
        inputs = 4 * width
    return nn.Sequential(*layers, nn.Linear(inputs, classes, bias=False))
