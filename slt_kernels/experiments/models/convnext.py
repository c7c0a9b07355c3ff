"""ConvNeXt (Liu et al., 2022), without bias and layer scale, with ReLU."""

from torch import Tensor, nn

_DEPTHS = (3, 3, 9, 3)  # blocks of each stage of the tiny one


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of images ``[B, C, H, W]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A depthwise 7x7 convolution, then an MLP of 1x1 convolutions, added to the input."""

    def __init__(self, width: int, affine: bool) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width, bias=False),
            ChannelNorm(width, elementwise_affine=affine),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * width, width, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)


def convnext(
    classes: int = 10, width: int = 96, channels: int = 3, patch: int = 4, affine: bool = False
) -> nn.Sequential:
    """A ConvNeXt with the depths of the tiny one. It reads images faster if they are channels-last.

    Args:
        classes: outputs. Default 10.
        width: channels of the first stage; each stage has twice the channels of the previous one. Default 96.
        channels: of the input ``[B, channels, H, W]``. Default 3.
        patch: kernel and stride of the first convolution; images have sides of at least ``8 * patch``. Default 4.
        affine: learn a scale and a bias in each LayerNorm. Default False.

    Maskable weights at the default width: 28,524,000 (patch 4, 1000 classes).
    """
    layers: list[nn.Module] = []
    inputs, kernel = channels, patch
    for stage, blocks in enumerate(_DEPTHS):
        outputs = width << stage
        convolution = nn.Conv2d(inputs, outputs, kernel, kernel, bias=False)
        norm = ChannelNorm(inputs if stage else outputs, elementwise_affine=affine)
        layers += [norm, convolution] if stage else [convolution, norm]
        layers += [Block(outputs, affine) for _ in range(blocks)]
        inputs, kernel = outputs, 2
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(inputs, elementwise_affine=affine)]
    return nn.Sequential(*layers, nn.Linear(inputs, classes, bias=False))
