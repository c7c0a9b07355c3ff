"""A small convolutional network for small images."""

from torch import nn


def convnet(width: int = 96, classes: int = 10, channels: int = 1, affine: bool = False) -> nn.Sequential:
    """Four 3x3 convolutions (width, width, pool, 2 width, 2 width), global average pooling, and a linear head.

    Like the source networks of Edge-Popup it has no bias and, by default, no affine BatchNorm, so everything learned is
    in its masks. 0.58 M weights at the default width.

    Args:
        width: channels of the first two convolutions; the last two have ``2 * width``. Default 96.
        classes: outputs. Default 10.
        channels: of the input ``[B, channels, H, W]``, H and W at least 2. Default 1.
        affine: learn a scale and a bias in each BatchNorm. Default False.
    """

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs, affine=affine), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *block(channels, width),
        *block(width, width),
        nn.MaxPool2d(2),
        *block(width, 2 * width),
        *block(2 * width, 2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes, bias=False),
    )
