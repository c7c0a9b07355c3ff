"""Timing: the methods of a case take turns, after the results were compared."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

MOST_ROUNDS = 300


class Case(NamedTuple):
    """Methods that compute the same, ours first (names that begin with "ours" are not peers), and a check.

    Attributes:
        check: raises if a result is wrong; the case is then not timed. It may return facts about each method, by name,
            which are kept beside its times.
        before: what runs before each timed call of a method, which it is given.
    """

    methods: dict[str, Callable[[], Any]]
    check: Callable[[], dict[str, dict[str, float]] | None]
    before: Callable[[Callable[[], Any]], Any] | None = None


def microseconds(call: Callable[[], object], count: int) -> float:
    """The mean of some calls."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count * 1e6


def least_microseconds(call: Callable[[], object], calls: int, rounds: int) -> float:
    """The least mean of so many calls: what a call costs the host when nothing disturbs it."""
    return min(microseconds(call, calls) for _ in range(rounds))


class Entry(NamedTuple):
    """A case: its group, name and constructor. Its tensors exist only while it is measured.

    Attributes:
        target: the ratio to reach.
        quick: whether it is in the quick profile.
        at: coordinates in tables and plots.
        precision, threads: settings of PyTorch, for all methods of the case.
        rounds: the least number of rounds, however long they take.
    """

    group: str
    name: str
    make: Callable[[], Case]
    target: float | None = None
    quick: bool = False
    at: Mapping[str, Any] = MappingProxyType({})
    precision: str = "highest"
    threads: int | None = None
    rounds: int = 5


@contextmanager
def settings(entry: Entry) -> Iterator[None]:
    """Sets PyTorch up for an entry, and restores its settings."""
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision(entry.precision)
    torch.set_num_threads(entry.threads or before[1])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.set_num_threads(before[1])


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(case: Case, seconds: float, least: int) -> dict[str, Any]:
    """Median and quartiles of each method, and of the ratio of the fastest peer to ours in each round.

    A round calls each method once: all run under the same conditions, and the others evict a method's data from the
    caches.
    """
    facts = case.check() or {}
    calls = case.methods
    for call in calls.values():
        call()

    def prepared(call: Callable[[], Any]) -> float:
        if case.before is not None:
            case.before(call)
        return timed(call)

    rounds, end = [], time.perf_counter() + seconds
    while len(rounds) < least or (time.perf_counter() < end and len(rounds) < MOST_ROUNDS):
        rounds.append({name: prepared(call) for name, call in calls.items()})
    methods = {name: _quartiles([1e3 * r[name] for r in rounds], "ms") | facts.get(name, {}) for name in calls}
    result = {"methods": methods, "rounds": len(rounds)}
    peers = [name for name in calls if not name.startswith("ours")]
    if peers:
        peer = min(peers, key=lambda name: methods[name]["median_ms"])
        ours = next(iter(calls))
        low, median, high = statistics.quantiles((r[peer] / r[ours] for r in rounds), n=4)
        result |= {"peer": peer, "ratio": median, "ratio_quartiles": [low, high]}
    return result


def _quartiles(values: list[float], unit: str) -> dict[str, Any]:
    low, median, high = statistics.quantiles(values, n=4)
    return {f"median_{unit}": median, f"quartiles_{unit}": [low, high]}


def line(record: dict[str, Any]) -> str:
    """A measured entry in one line."""
    methods = record["methods"]
    ours = next(iter(methods.values()))["median_ms"]
    text = f"{record['group']:13} {record['name']:64} {ours:9.3f} ms"
    if "peer" in record:
        text += f"  {methods[record['peer']]['median_ms']:9.3f} ms {record['peer']:28} {record['ratio']:7.2f}x"
        text += f" (target {record['target']:g}x)" if record["target"] else ""
    return text
