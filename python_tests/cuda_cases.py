"""What the tests of the simulated CUDA kernels share: sources, masks, inputs, and the comparison with the reference."""

from collections.abc import Iterable

import torch
from torch import Tensor

from slt_kernels import bits
from slt_kernels.conv_geometry import Window
from slt_kernels.source import DENSE, WEIGHTS, Freeze, Source

SIGNED, UNIFORM, NORMAL = WEIGHTS
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
FREEZES = {"nothing": DENSE, "sixteenths": Freeze(0.25, 0.3125), "any": Freeze(0.35, 0.35)}
CONVOLUTIONS = {  # channels, rows, images, height, width, window
    "3x3": (5, 6, 2, 3, 4, Window(3, 3, padding_h=1, padding_w=1)),
    "2x1-stride": (32, 5, 1, 7, 6, Window(2, 1, stride_h=2)),
    "depthwise": (2, 2, 1, 2, 3, Window(2, 3, padding_h=1, padding_w=2, groups=2)),
    "1x1-stride": (128, 4, 3, 4, 5, Window(1, 1, 2, 2)),
    "groups-dilation": (66, 4, 1, 6, 5, Window(2, 1, padding_h=1, dilation_h=2, groups=2)),
    "17-rows-per-group": (4, 34, 1, 3, 2, Window(2, 1, groups=2)),
    "64-channels": (64, 3, 1, 2, 2, Window(1, 3, padding_w=1)),
}


def source_of(rows: int, fan: int, weight: str = SIGNED, freeze: Freeze = DENSE) -> Source:
    return Source.of(rows, fan, seed=2**63 + 5 * rows, layer=2**32 - fan, weight=weight, freeze=freeze)


def shards(weight: str) -> list[Source]:
    """Parts of a layer that begin anywhere in a call; the calls of the last are past 2**32."""
    whole = source_of(80, 900, weight)
    far = Source.of(2**31 - 1, 8191, seed=3, layer=1, weight=weight)
    return [
        whole.shard((70, 80), (1, 9)),
        whole.shard((5, 6), (4, 12)),
        whole.shard((0, 3), (7, 29)),
        far.shard((2**31 - 3, 2**31 - 1), (1, 9)),
    ]


def random_mask(source: Source, compact: bool = False) -> Tensor:
    """A mask with garbage in its padding."""
    shape = (bits.words_for(source.free),) if compact else (source.rows, source.words)
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def unaligned_mask(source: Source) -> Tensor:
    """Resolved words that do not start at a multiple of 16 bytes."""
    words = random_mask(source)
    return torch.cat([torch.zeros(1, dtype=torch.int32), words.flatten()])[1:].view_as(words)


def special_values() -> Tensor:
    """Nine vectors of 260: zeros, NaN, infinity, denormals, the largest numbers, and edges of the rounding."""
    x = torch.randn(9, 260)
    x[0] = 0
    x[1, 17] = torch.nan
    x[2, 259] = -torch.inf
    x[3] *= 2.0**-140  # denormal
    x[4] = torch.finfo(torch.float32).max * x[4].sign()
    x[5] = 1 - 2.0**-24  # rounds above L, so that the exponent is raised
    x[6] = torch.tensor([-0.0, 2.0**-149]).repeat(130)
    x[7, 1:] *= 2.0**-20
    return x


def kinds(shapes: Iterable, few: Iterable) -> list[tuple]:
    """All shapes with signed weights in float32, a few with the other kernels."""
    chosen = [(shape, SIGNED, FLOAT32) for shape in shapes]
    others = [(SIGNED, BFLOAT16), (SIGNED, FLOAT16), (NORMAL, FLOAT32), (UNIFORM, BFLOAT16)]
    return chosen + [(shape, *kind) for shape in few for kind in others]


def assert_same(ours: Tensor, theirs: Tensor, error: float) -> None:
    """Asserts the bits of the reference in float32; in 16 bits a small error in relative norm."""
    assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
    if ours.dtype == FLOAT32:
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num().view(torch.int32), theirs.nan_to_num().view(torch.int32))
    else:
        finite = theirs.isfinite()
        assert finite.equal(ours.isfinite())
        ours, theirs = ours[finite].double(), theirs[finite].double()
        assert (ours - theirs).norm() <= error * theirs.norm()
