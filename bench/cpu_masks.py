"""The new mask of a ResNet-50 on the CPU backend, against `torch.kthvalue` and a comparison.

    python bench/cpu_masks.py --out bench/results/cpu_masks.json

Ours is `select` over the scores of all 54 layers, one global threshold, and `pack` of each; the peer takes the
magnitudes of all scores in one tensor (the concatenation is not timed), its k-th value, and a comparison to bools.
"""

import torch
from rounds import Case, Entry, bench

from slt_kernels import bits
from slt_kernels.backends import cpu
from slt_kernels.models import resnet
from slt_kernels.source import Freeze, Source

SPARSITY = 0.7


def masks(freeze: Freeze, compact: bool) -> Case:
    shapes = [p.shape for p in resnet(50, classes=1000, imagenet=True).parameters()]
    sources = [Source.of(s[0], s[1:].numel(), layer=i, freeze=freeze) for i, s in enumerate(shapes)]
    scores = [torch.randn(source.free) for source in sources]
    together = torch.cat(scores)
    rank = int(SPARSITY * len(together))

    def ours() -> list[torch.Tensor]:
        threshold = cpu.select(scores, rank)
        return [cpu.pack(s, threshold, source, compact)[0] for s, source in zip(scores, sources, strict=True)]

    def peer() -> torch.Tensor:
        magnitudes = together.abs()
        return magnitudes > magnitudes.kthvalue(rank).values

    def check() -> None:
        words = ours()
        if not compact:
            words = [bits.gather(w, s.frozen_words()[0]) for w, s in zip(words, sources, strict=True)]
        kept = [bits.unpack(w).flatten()[: s.free] for w, s in zip(words, sources, strict=True)]
        if not torch.equal(torch.cat(kept), peer()):
            raise RuntimeError("not the mask of kthvalue")

    return Case(ours, [peer], check)


FROZEN = Freeze(0.35, 0.35)
ENTRIES = (
    Entry("select + pack, 25.5 M scores, resolved", 8, lambda: masks(Freeze(), False)),
    Entry("select + pack, 25.5 M scores, compact", 8, lambda: masks(Freeze(), True)),
    Entry("select + pack, 70 % frozen, 7.6 M scores, resolved", None, lambda: masks(FROZEN, False)),
    Entry("select + pack, 70 % frozen, 7.6 M scores, compact", None, lambda: masks(FROZEN, True)),
)

if __name__ == "__main__":
    bench(__doc__, ENTRIES)
