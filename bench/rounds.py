"""How the benches of single operations measure: ours and its peers in turn, after ours has been checked."""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from machine import machine

LEAST_ROUNDS, MOST_ROUNDS = 7, 300


class Case(NamedTuple):
    """Ours, its peers (the fastest of them counts), and a check that raises where our result is wrong."""

    ours: Callable[[], Any]
    peers: list[Callable[[], Any]]
    check: Callable[[], None]


class Entry(NamedTuple):
    """A case's name, the ratio that the project asks for, and how to make it: its tensors live while it is measured."""

    name: str
    target: float | None
    make: Callable[[], Case]


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """Medians of each, and the quartiles of the rounds' ratios; a case whose check fails is not timed."""
    case.check()
    calls = (case.ours, *case.peers)
    for call in calls:
        call()
    rounds, end = [], time.perf_counter() + seconds
    while len(rounds) < LEAST_ROUNDS or (time.perf_counter() < end and len(rounds) < MOST_ROUNDS):
        rounds.append([timed(call) for call in calls])
    ours, *peers = (statistics.median(column) for column in zip(*rounds, strict=True))
    best = 1 + peers.index(min(peers))
    quartiles = statistics.quantiles((row[best] / row[0] for row in rounds), n=4)
    return {
        "ours_ms": 1e3 * ours,
        "peer_ms": 1e3 * min(peers),
        "ratio": quartiles[1],
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "rounds": len(rounds),
    }


def bench(description: str, entries: Iterable[Entry]) -> None:
    """The command line of a bench: prints a line a case, and writes all of them with ``--out``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--only", default="", help="cases whose name matches this regular expression")
    parser.add_argument("--seconds", type=float, default=2, help="for each case")
    arguments = parser.parse_args()
    cases = []
    print(f"{'case':56} {'ours ms':>9} {'peer ms':>9} {'ratio':>8} {'target':>7}")
    for entry in entries:
        if not re.search(arguments.only, entry.name):
            continue
        case = {"name": entry.name, "target": entry.target, **measure(entry.make(), arguments.seconds)}
        cases.append(case)
        target = "" if entry.target is None else f"{entry.target:g}x"
        times = f"{case['ours_ms']:9.3f} {case['peer_ms']:9.3f} {case['ratio']:7.2f}x"
        print(f"{entry.name:56} {times} {target:>7}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"machine": machine(), "cases": cases}, indent=1) + "\n")
