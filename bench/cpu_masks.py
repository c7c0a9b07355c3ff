"""The new mask of a ResNet-50 (one global threshold, then every layer's words) against kthvalue and a comparison.

    python bench/cpu_masks.py [--out masks.json]

Ours is `select` over the 54 layers' scores and `pack` of each; the peer is `torch.kthvalue` of their concatenated
magnitudes (the copy is not timed) and a comparison to bools. Rounds alternate between the two, so that a machine with
other work slows both; times are medians.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from slt_kernels.backends import cpu
from slt_kernels.source import Freeze, Source

SPARSITY = 0.7
FREEZES = {"dense": Freeze(), "frozen": Freeze(0.35, 0.35)}


def resnet50() -> list[tuple[int, int]]:
    """Rows and fan of the layers of an ImageNet ResNet-50: 25.5 M weights."""
    layers, width_in = [(64, 3 * 49)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers += [(width, width_in), (width, 9 * width), (4 * width, width)]
            if block == 0:
                layers.append((4 * width, width_in))
            width_in = 4 * width
    return [*layers, (1000, width_in)]


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(freeze: Freeze, compact: bool, rounds: int) -> dict:
    sources = [Source.of(r, f, layer=i, freeze=freeze) for i, (r, f) in enumerate(resnet50())]
    scores = [torch.randn(int(cpu.free_offsets(s)[-1])) for s in sources]
    together = torch.cat(scores)
    rank = int(SPARSITY * len(together))
    threshold = cpu.select(scores, rank)
    assert threshold == together.abs().kthvalue(rank).values

    def pack() -> None:
        for part, source in zip(scores, sources, strict=True):
            cpu.pack(part, threshold, source, compact)

    def peer() -> None:
        magnitudes = together.abs()
        _ = magnitudes > magnitudes.kthvalue(rank).values

    calls = {"select": lambda: cpu.select(scores, rank), "pack": pack, "peer": peer}
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(timed(call))
    row = {f"{name}_ms": 1e3 * statistics.median(t) for name, t in times.items()}
    ratios = [p / (s + k) for s, k, p in zip(*times.values(), strict=True)]
    return {"scores": len(together), "compact": compact, **row, "ratio": statistics.median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    print(f"{cpu.instruction_set()}, {torch.get_num_threads()} threads")
    print(f"{'source':8} {'mask':9} {'scores':>11} {'select ms':>10} {'pack ms':>9} {'kthvalue ms':>12} {'ratio':>7}")
    results = []
    for name, freeze in FREEZES.items():
        for compact in (False, True):
            r = {"source": name, **measure(freeze, compact, args.rounds)}
            results.append(r)
            mask = "compact" if compact else "resolved"
            print(
                f"{name:8} {mask:9} {r['scores']:11,} {r['select_ms']:10.2f} {r['pack_ms']:9.2f} "
                f"{r['peer_ms']:12.1f} {r['ratio']:6.1f}x"
            )
    if args.out:
        machine = {"instruction_set": cpu.instruction_set(), "threads": torch.get_num_threads()}
        args.out.write_text(json.dumps({**machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
