"""The gradient of the scores against the dense weight gradient of PyTorch, in float32 "highest".

    python bench/cpu_grad_scores.py [--out grad_scores.json]

Ours quantizes or packs its inputs, makes the product, regenerates weights and frozen pattern, and writes the gradient
of the free scores; the peer is the dense product alone (`dy.T @ x`, and the better memory format of `conv2d_weight`).
Rounds alternate between the two; times are medians, and so are the ratios of the rounds.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch.nn.grad import conv2d_weight

from slt_kernels.backends import cpu, reference
from slt_kernels.source import Freeze, Source
from slt_kernels.window import Window

FREEZES = {"dense": Freeze(), "frozen": Freeze(0.35, 0.35)}


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def scores_of(source: Source) -> torch.Tensor:
    return torch.randn(int(cpu.free_offsets(source)[-1]))


def linear(weight: str, freeze: Freeze, batch: int):
    source = Source.of(4096, 4096, weight=weight, freeze=freeze)
    dy, x, scores, scale = torch.randn(batch, 4096), torch.randn(batch, 4096), scores_of(source), torch.tensor(0.1)
    return lambda: cpu.linear_grad_scores(dy, x, scores, scale, source), [lambda: dy.T @ x], None


def conv2d(freeze: Freeze, batch: int):
    source, window = Source.of(128, 1152, freeze=freeze), Window(3, 3, padding_h=1, padding_w=1)
    dy, x = torch.randn(batch, 128, 32, 32), torch.randn(batch, 128, 32, 32)
    scores, scale = scores_of(source), torch.tensor(0.1)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (dy, x)]
    peers = [lambda dy=dy, x=x: conv2d_weight(x, (128, 128, 3, 3), dy, padding=1) for dy, x in ((dy, x), last)]
    args = dy, x, scores, scale, source, window
    return lambda: cpu.conv2d_grad_scores(*args), peers, lambda: reference.conv2d_grad_scores(*args)


CASES = {
    "linear 4096x4096, batch 256, dense": lambda: linear("signed_constant", FREEZES["dense"], 256),
    "linear 4096x4096, batch 256, frozen": lambda: linear("signed_constant", FREEZES["frozen"], 256),
    "linear 4096x4096, batch 256, normal": lambda: linear("normal", FREEZES["dense"], 256),
    "linear 4096x4096, batch 64, dense": lambda: linear("signed_constant", FREEZES["dense"], 64),
    "linear 4096x4096, batch 16, frozen": lambda: linear("signed_constant", FREEZES["frozen"], 16),
    "conv 3x3 128->128 32x32, batch 32, dense": lambda: conv2d(FREEZES["dense"], 32),
    "conv 3x3 128->128 32x32, batch 32, frozen": lambda: conv2d(FREEZES["frozen"], 32),
    "conv 3x3 128->128 32x32, batch 1, dense": lambda: conv2d(FREEZES["dense"], 1),
}


def measure(case, rounds: int) -> dict:
    ours, peers, oracle = case()
    got = ours()
    if oracle is not None:
        expected = oracle()
        assert (got - expected).norm() < 1e-6 * expected.norm()
    for peer in peers:
        peer()
    times = [[timed(call) for call in (ours, *peers)] for _ in range(rounds)]
    ratios = [min(rest) / mine for mine, *rest in times]
    columns = [1e3 * statistics.median(column) for column in zip(*times, strict=True)]
    return {"ours_ms": columns[0], "peer_ms": min(columns[1:]), "ratio": statistics.median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print(f"{cpu.instruction_set()}, {torch.get_num_threads()} threads")
    print(f"{'case':42} {'ours ms':>9} {'peer ms':>9} {'ratio':>7}")
    results = []
    for name, case in CASES.items():
        r = {"case": name, **measure(case, args.rounds)}
        results.append(r)
        print(f"{name:42} {r['ours_ms']:9.2f} {r['peer_ms']:9.2f} {r['ratio']:6.2f}x", flush=True)
    if args.out:
        machine = {"instruction_set": cpu.instruction_set(), "threads": torch.get_num_threads()}
        args.out.write_text(json.dumps({**machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
