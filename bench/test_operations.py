"""Times by operation: ``pytest bench``. Each case is a group of two, ours and its fastest peer.

A case whose check fails is not timed. ``-k grad_scores`` selects cases; pytest-benchmark's options save and
compare results.
"""

from functools import lru_cache

import pytest
import torch
from cases import targets
from rounds import Case, settings, timed

ENTRIES = {entry.name: entry for entry in targets()}


@lru_cache(maxsize=1)  # for the two tests of a case
def checked(name: str) -> Case:
    torch.manual_seed(0)
    case = ENTRIES[name].make()
    case.check()
    return case


@pytest.mark.parametrize("who", ("ours", "peer"))
@pytest.mark.parametrize("name", ENTRIES)
def test_operation(benchmark, name: str, who: str):
    with settings(ENTRIES[name]):
        (_, ours), *peers = checked(name).methods.items()
        method, call = "ours", ours
        if who == "peer":
            method, call = min(peers, key=lambda peer: min(timed(peer[1]) for _ in range(3)))
        benchmark.group, benchmark.name = name, method
        benchmark(call)
