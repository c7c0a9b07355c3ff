"""MobileNetV2 (Sandler et al., 2018), for small images and for ImageNet, without bias."""

from torch import Tensor, nn

# Of each stage: expansion, channels at width 32, blocks, stride for ImageNet, stride for small images.
_STAGES = (
    (1, 16, 1, 1, 1),
    (6, 24, 2, 2, 1),
    (6, 32, 3, 2, 2),
    (6, 64, 4, 2, 2),
    (6, 96, 3, 1, 1),
    (6, 160, 3, 2, 2),
    (6, 320, 1, 1, 1),
)
_LAST = 1280


class InvertedResidual(nn.Module):
    """A 1x1 convolution to more channels, a depthwise 3x3, a 1x1 to fewer; and the input, if shapes are equal."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, affine: bool) -> None:
        super().__init__()
        middle = inputs * expansion
        layers = [] if expansion == 1 else _convolution(inputs, middle, 1, relu=True, affine=affine)
        layers += _convolution(middle, middle, 3, stride, groups=middle, relu=True, affine=affine)
        layers += _convolution(middle, outputs, 1, affine=affine)
        self.residual = nn.Sequential(*layers)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.residual(x)
        return x + y if self.adds_input else y


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, relu: bool = False, affine: bool
) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    layers = [convolution, nn.BatchNorm2d(outputs, affine=affine)]
    return [*layers, nn.ReLU6(inplace=True)] if relu else layers


def mobilenet_v2(
    classes: int = 10, width: int = 32, channels: int = 3, imagenet: bool = False, affine: bool = False
) -> nn.Sequential:
    """A MobileNetV2, most of whose layers are depthwise or 1x1 convolutions.

    Args:
        classes: outputs. Default 10.
        width: channels of the first convolution; all other layers grow with it, the last one too. Default 32.
        channels: of the input ``[B, channels, H, W]``. Default 3.
        imagenet: strides of 32 in all, for large images. Default False, strides of 8.
        affine: learn a scale and a bias in each BatchNorm. Default False.

    Maskable weights at the default width: 3,469,760 (1000 classes).
    """

    def scaled(count: int) -> int:
        return max(1, round(count * width / 32))

    layers = _convolution(channels, width, 3, 2 if imagenet else 1, relu=True, affine=affine)
    inputs = width
    for expansion, count, blocks, large, small in _STAGES:
        for block in range(blocks):
            stride = (large if imagenet else small) if block == 0 else 1
            layers.append(InvertedResidual(inputs, scaled(count), expansion, stride, affine))
            inputs = scaled(count)
    layers += _convolution(inputs, scaled(_LAST), 1, relu=True, affine=affine)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(scaled(_LAST), classes, bias=False)]
    return nn.Sequential(*layers)
