"""All benchmarks: times, memory, traffic, sizes; one JSON and a report. `slt bench` runs this.

    slt bench quick                         a few minutes on two cores
    slt bench full                          under 20 minutes
    python bench/suite.py full --only GROUP --out FOLDER        the groups that match a regular expression

Results are written to FOLDER/MACHINE-PROFILE: `result.json`, and the report that `report.py` renders from it. A case
whose check fails is not timed; the report names it, and the exit status is 1.
"""

import argparse
import datetime
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cases
import ceilings
import find_digits
import memory
import report
import rounds
import sizes
import ternary
import torch
import traffic
from machine import machine, slug

from slt_kernels import backends

cpu = backends.on("cpu")

RESULTS = Path(__file__).resolve().parent / "results"


class Profile(NamedTuple):
    seconds: float  # per timed case
    quick: bool


PROFILES = {"quick": Profile(0.3, True), "full": Profile(1.5, False)}


def timed_cases(profile: Profile, only: str) -> Iterator[dict[str, Any]]:
    for entry in cases.entries():
        if not re.search(only, entry.group) or (profile.quick and not entry.quick):
            continue
        record = {"group": entry.group, "name": entry.name, "target": entry.target, "at": dict(entry.at)}
        torch.manual_seed(0)
        try:
            with rounds.settings(entry):
                record |= rounds.measure(entry.make(), profile.seconds, entry.rounds)
            say(rounds.line(record))
        except Exception as error:  # the other cases are timed
            record["error"] = f"{type(error).__name__}: {error}"
            say(f"{entry.name}: NOT TIMED: {record['error']}")
        yield record


def allocated(profile: Profile) -> Iterator[dict[str, Any]]:
    for row in memory.rows(profile.quick):
        try:
            record = memory.in_fresh_process(row)
            held, returned, on_the_way = (record[key] / 1e6 for key in ("held", "returned", "on_the_way"))
            say(
                f"{row.network}, {row.phase}, {row.method}: holds {held:.1f} MB, then {returned:.1f} + {on_the_way:.1f}"
            )
        except RuntimeError as error:
            record = {**row._asdict(), "error": str(error)}
            say(f"{row.network}, {row.phase}, {row.method}: {error}")
        yield record


def say(line: str) -> None:
    print(line, flush=True)


def sections(profile: Profile, only: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "cases", lambda: list(timed_cases(profile, only))
    yield "memory", lambda: list(allocated(profile))
    yield "counted", traffic.counted
    yield "moved", lambda: traffic.moved(profile.quick)
    yield "ceilings", lambda: ceilings.ceilings(profile.seconds)
    yield "generator", ceilings.generator
    yield "tiles", ceilings.tiles
    yield "sizes", lambda: sizes.sizes(profile.quick)
    if not profile.quick:
        yield "find", find_digits.find_all


def run(name: str, out: Path, only: str = "") -> Path:
    """Measures; writes ``result.json`` and the report. Returns the folder."""
    profile, started = PROFILES[name], time.perf_counter()
    groups = {entry.group for entry in cases.entries()}
    result = {"profile": name, "date": datetime.date.today().isoformat(), "machine": machine()}
    if only:
        result["only"] = only
    if re.search(only, "ternary"):
        result["engines"] = ternary.versions()
    for section, measure in sections(profile, only):
        wanted = any(re.search(only, group) for group in groups) if section == "cases" else re.search(only, section)
        if wanted:
            say(f"[{time.perf_counter() - started:5.0f} s] {section}")
            try:
                result[section] = measure()
            except Exception as error:  # keeps the results of the other sections
                result[section] = {"error": f"{type(error).__name__}: {error}"}
                say(f"{section}: {result[section]['error']}")
    result["seconds"] = time.perf_counter() - started
    folder = out / f"{slug(result['machine'])}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    report.write(result, folder)
    say(f"[{result['seconds']:5.0f} s] written: {folder / 'report.md'}")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", choices=PROFILES)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results (default: bench/results)")
    parser.add_argument("--only", default="", help="groups to run, a regular expression; needs --out")
    arguments = parser.parse_args()
    if arguments.only and arguments.out == RESULTS:
        parser.error("--only: expected --out FOLDER with it: bench/results holds whole runs")
    if reason := cpu.unavailable():
        print(f"slt bench: the CPU backend cannot run here: {reason}", file=sys.stderr)
        return 2
    if importlib.util.find_spec("matplotlib") is None:
        print('slt bench: its report needs matplotlib: pip install -e ".[bench]"', file=sys.stderr)
        return 2
    folder = run(arguments.profile, arguments.out, arguments.only)
    return 1 if report.failures(json.loads((folder / "result.json").read_text())) else 0


if __name__ == "__main__":
    raise SystemExit(main())
