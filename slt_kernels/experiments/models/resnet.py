"""Residual networks (He et al., 2016), for small images and for ImageNet, without bias."""

from torch import Tensor, nn

# Depth: the number of blocks in each stage, and whether they are bottlenecks.
_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


class Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1, and a shortcut, projected if shapes differ."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, bottleneck: bool, affine: bool) -> None:
        super().__init__()
        if bottleneck:
            layers = _convolution(inputs, middle, 1, relu=True, affine=affine)
            layers += _convolution(middle, middle, 3, stride, relu=True, affine=affine)
            layers += _convolution(middle, outputs, 1, affine=affine)
        else:
            layers = _convolution(inputs, middle, 3, stride, relu=True, affine=affine)
            layers += _convolution(middle, outputs, 3, affine=affine)
        self.residual = nn.Sequential(*layers)
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(*_convolution(inputs, outputs, 1, stride, affine=affine))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, relu: bool = False, affine: bool
) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    layers = [convolution, nn.BatchNorm2d(outputs, affine=affine)]
    return [*layers, nn.ReLU(inplace=True)] if relu else layers


def resnet(
    depth: int = 18,
    classes: int = 10,
    width: int = 64,
    channels: int = 3,
    bottleneck_width: int = 1,
    imagenet: bool = False,
    affine: bool = False,
) -> nn.Sequential:
    """A residual network.

    Args:
        depth: 18, 34, 50 or 101.
        classes: outputs. Default 10.
        width: channels of the first stage; each stage has twice the channels of the previous one. Default 64.
        channels: of the input ``[B, channels, H, W]``. Default 3.
        bottleneck_width: factor on the channels inside a bottleneck; 2 for Wide ResNets. Default 1.
        imagenet: a 7x7 stem of stride 2 and a pooling, for large images. Default False, a 3x3 stem.
        affine: learn a scale and a bias in each BatchNorm. Default False.

    Maskable weights at the default width: 11,164,352 (18, 10 classes); for ImageNet with 1000 classes 11,678,912 (18),
    21,779,648 (34), 25,502,912 (50), 68,814,016 (50, bottleneck_width 2).

    Raises:
        ValueError: another depth.
    """
    if depth not in _DEPTHS:
        raise ValueError(f"depth={depth}: expected one of {', '.join(map(str, _DEPTHS))}")
    stages, bottleneck = _DEPTHS[depth]
    if imagenet:
        layers = [*_convolution(channels, width, 7, 2, relu=True, affine=affine), nn.MaxPool2d(3, 2, padding=1)]
    else:
        layers = _convolution(channels, width, 3, relu=True, affine=affine)
    inputs = width
    for stage, blocks in enumerate(stages):
        base = width << stage
        middle, outputs = (base * bottleneck_width, 4 * base) if bottleneck else (base, base)
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(Block(inputs, middle, outputs, stride, bottleneck, affine))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes, bias=False)]
    return nn.Sequential(*layers)
