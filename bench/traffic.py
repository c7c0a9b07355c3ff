"""Memory traffic of one layer: *counted* from sizes, and *moved* into a last-level cache.

Counted is what a method's own tensors need by formula: each tensor that is read, once a pass; each one that is made on
the way, written once and read once. Temporaries inside an expression are left out, in favour of the materializing
methods. Moved is what a simulated processor fetches from memory (`callgrind`'s caches, in the manner of cachegrind):
last-level misses of one call that finds empty caches, on one thread.

    python bench/traffic.py         the moved bytes of every method, as JSON
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from callgrind import CACHES, ISA, LINE, count, run, unavailable
from cases import NETWORKS, cast
from memory import FORWARD, OURS, STEP, call
from peers import METHODS, supermask

SMALL = ("Linear 1024 x 1024", "Conv2d 3x3, 64 channels, 8 x 8")
BATCH = 8
# Bytes a weight; `f` is the free fraction. Twice where something is written and read.
_DENSE32 = {"weight": 4}
_MATERIALIZING = {"weight": 4, "frozen pattern": 4, "scores": 4, "mask": 2 * 4, "masked weight": 2 * 4}
_SORTING = {"weight": 4, "scores": 4, "sorted scores and their order": 4 + 2 * 8, "mask": 2 * 4, "masked weight": 2 * 4}


def _masked_backward(pattern: bool) -> dict[str, float]:
    """The gradient of a masked weight becomes the gradient of dense scores."""
    return {
        "masked weight, for the input's gradient": 4,
        "gradient of the masked weight": 2 * 4,
        "weight, again": 4,
        "gradient of the mask": 2 * 4,
        "scores, again": 4,
        **({"frozen pattern, again": 4} if pattern else {}),
        **_optimizer(4),
    }


def _optimizer(size: float) -> dict[str, float]:
    return {"gradient of what is trained": 2 * size, "momentum": 2 * size, "update": 2 * size}


def bytes_a_weight(method: str, phase: str) -> dict[str, float]:
    """What one forward, or one whole training step, needs for each weight: bytes, by what they are for."""
    f = 0.3 if METHODS[method].frozen else 1.0
    mask = f / 8 + 2 / 8 if METHODS[method].compact else 1 / 8  # compact: expanded for the length of the call
    forward = {
        "ours": {"mask": mask},
        "dense float32": _DENSE32,
        "dense bfloat16": {"weight": 2},
        "int8 dynamic": {"weight": 1},
        "int4, bfloat16": {"weight": 1 / 2, "scales": 4 / 64},
        "materialize each call": {"mask": mask, "integer weight": 2 * 1, "weight": 2 * 4, "scaled weight": 2 * 4},
        "materializing layer": _MATERIALIZING,
        "sort in each forward": _SORTING,
    }
    parts = forward["ours" if method.startswith("ours") else method]
    if phase == "forward":
        return parts
    return (
        parts
        | {
            "ours": {
                "mask, for the input's gradient": mask,
                "scores, for the sign": 4 * f,
                **_optimizer(4 * f),
                "scores, for the threshold (three passes)": 3 * 4 * f,
                "scores, for the mask": 4 * f,
                "new mask": f / 8 if METHODS[method].compact else 1 / 8,
            },
            "dense float32": {"weight, for the input's gradient": 4, **_optimizer(4)},
            "materializing layer": _masked_backward(True) | {"scores, sorted for the threshold": 4 + 2 * 4},
            "sort in each forward": _masked_backward(False),
        }["ours" if method.startswith("ours") else method]
    )


def activation_bytes(method: str) -> dict[str, float]:
    """Of a forward, for each element of the input and of the output."""
    size = METHODS[method].dtype.itemsize
    if method.startswith("ours"):
        return {"input": size, "digits": 2 * (3 if size == 4 else 2), "output": size}
    if method == "int8 dynamic":
        return {"input": size, "quantized": 2 * 1, "output": size}
    return {"input": size, "output": size}


def counted() -> list[dict[str, Any]]:
    """Every method's bytes of a forward and of a training step, by what they are for."""
    return [
        {
            "method": method,
            "phase": phase,
            "bytes_a_weight": bytes_a_weight(method, phase),
            "bytes_an_activation": activation_bytes(method),
        }
        for phase, methods in (("forward", ("ours, bfloat16", *FORWARD)), ("step", STEP))
        for method in methods
    ]


# Moved


def moved(quick: bool) -> dict[str, Any]:
    """Bytes fetched by one forward and one training step of two small layers, by each method; or why none are known."""
    if reason := unavailable():
        return {"unavailable": reason}
    counts = run(__file__, *(["--quick"] if quick else []), "--inside", caches=True)
    records = []
    for key, events in counts.items():
        network, method, phase = key.split("/")
        fetched = LINE * (events["DLmr"] + events["DLmw"])
        weights = sum(p.numel() for p in NETWORKS[network].build().parameters())
        record = {"network": network, "method": method, "phase": phase, "batch": BATCH, "weights": weights}
        records.append(record | {"bytes": fetched, "instructions": events["Ir"]})
    return {"instruction_set": ISA, "caches": CACHES, "records": records}


def _cases(quick: bool) -> Iterator[tuple[str, str, str]]:
    """Sorting under valgrind takes a minute: once is enough."""
    if quick:
        for method in (*OURS, "dense float32", "dense bfloat16", "materializing layer"):
            yield SMALL[0], method, "forward"
        return
    yield SMALL[0], "sort in each forward", "forward"
    for network in SMALL:
        for phase, methods in (("forward", FORWARD[:-1]), ("step", STEP[:-1])):
            for method in methods:
                if METHODS[method].convolves or network == SMALL[0]:
                    yield network, method, phase


def _inside(quick: bool) -> None:
    """Each call once to settle, and once counted, from caches that a sweep has emptied of everything else."""
    sweep = torch.ones(1 << 20)  # 4 MB
    torch.set_num_threads(1)
    for name, method, phase in _cases(quick):
        network = NETWORKS[name]
        x = cast(network.inputs(BATCH), METHODS[method].dtype)
        form = METHODS[method]
        one = call(network, form.hold(supermask(network.build(), form.frozen, form.compact)), x, phase)
        one()
        count(f"{name}/{method}/{phase}", one, before=sweep.sum)


def main() -> None:
    quick = "--quick" in sys.argv
    if "--inside" in sys.argv:
        _inside(quick)
    else:
        print(json.dumps(moved(quick), indent=1))


if __name__ == "__main__":
    main()
