"""Memory traffic of one layer: *counted* from sizes, and *moved* into a last-level cache.

Counted bytes follow a formula over a method's tensors: a tensor that is read counts once per pass; a temporary one is
written once and read once. Temporaries inside an expression are left out, in favour of the materializing methods. Moved
bytes are those that a simulated processor fetches from memory (`callgrind`'s caches, as in cachegrind): last-level
misses of one call with empty caches, on one thread.

    python bench/traffic.py         the moved bytes of each method, as JSON
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
# Bytes per weight. A factor of 2: written and read. `f` below is the free fraction.
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


def bytes_per_weight(method: str, phase: str) -> dict[str, float]:
    """Bytes per weight of one forward, or of one training step, by purpose."""
    f = 0.3 if METHODS[method].frozen else 1.0
    mask = f / 8 + 2 / 8 if METHODS[method].compact else 1 / 8  # compact: each call expands it
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
    """Bytes of a forward per element of the input and of the output, by purpose."""
    size = METHODS[method].dtype.itemsize
    if method.startswith("ours"):
        return {"input": size, "digits": 2 * (3 if size == 4 else 2), "output": size}
    if method == "int8 dynamic":
        return {"input": size, "quantized": 2 * 1, "output": size}
    return {"input": size, "output": size}


def counted() -> list[dict[str, Any]]:
    """Bytes of a forward and of a training step of each method, by purpose."""
    return [
        {
            "method": method,
            "phase": phase,
            "bytes_per_weight": bytes_per_weight(method, phase),
            "bytes_per_activation": activation_bytes(method),
        }
        for phase, methods in (("forward", ("ours, bfloat16", *FORWARD)), ("step", STEP))
        for method in methods
    ]


# Moved


def moved(quick: bool) -> dict[str, Any]:
    """Bytes fetched by one forward and one training step of two small layers, per method; or why not measured."""
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
    """Sorting takes a minute under valgrind, so it is measured once."""
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
    """Makes each call once to warm up, then counts one, after a sweep that evicts its data from the caches."""
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
