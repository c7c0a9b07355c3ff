"""``slt sweep``: accuracy against ticket size for three kinds of source network.

For each width and seed there are three kinds: the **dense** source (nothing frozen), and at each frozen ratio the
**randomly pruned** source (all frozen weights are pruned) and the **frozen** source (some of them are locked). The
sparsity is chosen so that a fixed fraction of the free weights is kept. The default is one half, where a stored bit
carries the most information. The same network with trained weights can be added for comparison.

Results are rows of a CSV file, written after each search. A stopped sweep continues with the missing rows.
"""

import csv
import io
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .._text import shown
from ..files import read_file, write_atomically
from ..source import Freeze
from .engines import check, completed
from .train import Experiment, Interrupted, find
from .train.run_folder import StopSignals, held

TRAINED = "trained"
"""The source of the rows of trained weights."""

Row = dict[str, Any]


def shares(split: str) -> Freeze:
    """Fractions of the frozen weights that are pruned and locked: 6/7 and 1/7 for ``"6:1"``.

    Raises:
        ValueError: text that is not two numbers of at least 0, or both are 0.
    """
    try:
        prune, lock = (float(part) for part in split.split(":"))
        return Freeze(prune / (prune + lock), lock / (prune + lock))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"split={shown(split)}: expected pruned:locked, as in 6:1") from None


@dataclass(frozen=True)
class Point:
    """One search of a sweep; its fields together are the key of its row."""

    source: str
    ratio: float
    width: int | None
    seed: int

    @property
    def key(self) -> tuple[str, ...]:
        return tuple("" if value is None else str(value) for value in asdict(self).values())


@dataclass(frozen=True)
class Grid:
    """The searches of a sweep.

    Args:
        ratios: frozen fractions of the pruned and the frozen sources, each in (0, 1).
        splits: pruned:locked, of the frozen weights; "1:0" is the randomly pruned source.
        widths: widths of the network; None for that of the base experiment.
        seeds: seeds of each point.
        keep: fraction of the free weights that is kept, in (0, 1).
        trained: also train the weights of each width and seed (``algorithm: dense``).

    Raises:
        ValueError: a number out of range, or no seeds.
    """

    ratios: Sequence[float]
    splits: Sequence[str]
    widths: Sequence[int | None]
    seeds: Sequence[int]
    keep: float = 0.5
    trained: bool = False

    def __post_init__(self) -> None:
        for ratio in self.ratios:
            if not 0 < ratio < 1:
                raise ValueError(f"ratio={ratio}: expected a fraction in (0, 1); the dense source is always included")
        for split in self.splits:
            shares(split)
        if not 0 < self.keep < 1:
            raise ValueError(f"keep={self.keep}: expected a fraction in (0, 1)")
        if not self.seeds:
            raise ValueError("seeds=0: expected at least 1")

    def experiments(self, base: Experiment) -> dict[Point, Experiment]:
        """All searches: the base experiment with the source, sparsity, width and seed of each point.

        Raises:
            ValueError: a base with fractions of each layer, or without masks.
        """
        if base.search.algorithm == "dense":
            raise ValueError(
                "algorithm=dense: expected edge_popup or bernoulli, whose source networks a sweep compares"
            )
        if base.source.layers:
            raise ValueError(f"layers={len(base.source.layers)} layers: expected none: a sweep chooses the fractions")
        found = {}
        sources = [(TRAINED, 0.0, Freeze())] if self.trained else []
        sources += [("dense", 0.0, Freeze())]
        for split in self.splits:
            part = shares(split)
            name = f"frozen {split}" if part.lock else "randomly pruned"
            sources += [(name, r, Freeze(round(r * part.prune, 6), round(r * part.lock, 6))) for r in self.ratios]
        for width, (name, ratio, freeze), seed in itertools.product(self.widths, sources, self.seeds):
            sparsity = round(freeze.prune + (1 - ratio) * (1 - self.keep), 6)
            changes: dict[str, Any] = {
                "source.prune": freeze.prune,
                "source.lock": freeze.lock,
                "search.sparsity": sparsity,
            }
            changes |= {"seed": seed} | ({} if width is None else {"model.width": width})
            if name == TRAINED:
                changes |= {"search.algorithm": "dense", "search.sparsity": 0.0}
            experiment = base.override(changes)
            found[Point(name, ratio, experiment.model.get("width"), seed)] = experiment
        return found


COLUMNS = ("source", "ratio", "width", "seed", "prune", "lock", "sparsity", "weights", "free_bits", "kept")
COLUMNS += ("ticket_bytes", "validation_accuracy", "test_accuracy", "seconds", "test_bits")


def run(
    base: Experiment,
    grid: Grid,
    folder: Path,
    *,
    engine: str = "loky",
    jobs: int | None = None,
    cluster: str | None = None,
    threads: int | None = None,
    device: torch.device | str = "cpu",
    on_row: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Runs the searches of the grid that are not yet in ``folder/sweep.csv``.

    Args:
        base: the settings that all searches share.
        grid: the settings in which they differ.
        folder: folder of the results, created if it does not exist; ``experiment.json`` in it holds the base.
        engine, jobs, cluster: where the searches run, and how many at a time: see `engines.completed`.
        threads: threads of each search. Default: this machine's threads divided by ``jobs``; 1 on a cluster.
        device: device of each search.
        on_row: called with the number of finished searches and of all searches.

    Returns:
        All rows of the folder, in the order of the grid.

    Raises:
        ValueError: a folder with rows of another or an unknown experiment, or in which another sweep is running; a file
            as folder; an unknown engine; fewer than one job.
        ModuleNotFoundError: the engine is not installed.
        Interrupted: SIGINT or SIGTERM. Searches that run are finished before, and their rows are written.
        RuntimeError: workers were killed several times in a row.
        An error of a search, after those that run beside it are finished.
    """
    check(engine, jobs, cluster)
    points = grid.experiments(base)
    _describe(folder, base, grid)
    if threads is None:
        threads = max(1, torch.get_num_threads() // (jobs or 1)) if engine == "loky" else 1
    where = {"engine": engine, "jobs": jobs, "cluster": cluster, "threads": threads}
    with held("out", folder):
        _fill(folder, points, where, str(device), on_row)
        return read(folder)


def _fill(
    folder: Path,
    points: dict[Point, Experiment],
    where: dict[str, Any],
    device: str,
    on_row: Callable[[int, int], None] | None,
) -> None:
    """Runs the searches without a row in the folder."""
    rows = {_key(row): row for row in read(folder)} if (folder / "sweep.csv").exists() else {}
    tasks = {p: (e.to_dict(), device, where["threads"]) for p, e in points.items() if p.key not in rows}
    missing = len(tasks)
    report = on_row or (lambda done, total: None)
    report(len(points) - missing, len(points))
    with StopSignals() as stop:
        for point, row in completed(_search, tasks, **where, stopped=lambda: stop.received > 0):
            rows[point.key] = {**asdict(point), **row}
            _write(folder, rows.values())
            missing -= 1
            report(len(points) - missing, len(points))
    if missing:
        raise Interrupted(f"stopped with {missing} of {len(points)} searches left")


def _search(experiment: dict[str, Any], device: str, threads: int) -> Row:
    """One search, perhaps on another machine."""
    torch.set_num_threads(threads)
    experiment = Experiment.from_dict(experiment)
    with tempfile.TemporaryDirectory() as folder:
        report = find(experiment, Path(folder, "ticket.slt"), torch.device(device))
    source = {"prune": experiment.source.prune, "lock": experiment.source.lock, "sparsity": experiment.search.sparsity}
    return source | {name: report[name] for name in COLUMNS if name in report}


# The folder


def _describe(folder: Path, base: Experiment, grid: Grid) -> None:
    """Writes the base experiment to the folder, or checks that it is the one in the folder."""
    shared = base.override({"seed": 0, "source.prune": 0.0, "source.lock": 0.0, "search.sparsity": 0.0})
    text = json.dumps({"keep": grid.keep, "experiment": shared.identity}, indent=1) + "\n"
    path = folder / "experiment.json"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={folder}: expected a folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists() and (folder / "sweep.csv").exists():
        raise ValueError(
            f"out={folder}: holds sweep.csv without experiment.json, so its rows may be of another experiment; "
            "expected another folder"
        )
    if not path.exists():
        write_atomically(path, text.encode())
    elif read_file(path) != text.encode():
        raise ValueError(f"out={folder}: holds rows of another experiment (see {path}); expected another folder")


def _write(folder: Path, rows: Any) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(sorted(rows, key=_order))
    write_atomically(folder / "sweep.csv", text.getvalue().encode())


def read(folder: Path) -> list[Row]:
    """The rows of a sweep's folder.

    Raises:
        ValueError: other columns, a row that is cut short or occurs twice, or a cell that is not a number of its range.
    """
    path = folder / "sweep.csv"
    expected = f"expected rows of {', '.join(COLUMNS)}"
    try:
        table = csv.DictReader(io.StringIO(read_file(path).decode(), newline=""))
        columns, lines = tuple(table.fieldnames or ()), list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: damaged, or not of a sweep: {expected} ({error})") from None
    if columns == COLUMNS[:-1]:  # of an older version
        columns, lines = COLUMNS, [line | {"test_bits": ""} for line in lines]
    if columns != COLUMNS or any(None in (*line, *line.values()) for line in lines):
        raise ValueError(f"{path}: damaged, or not of a sweep: {expected}")
    rows: dict[tuple[str, ...], Row] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = {name: _number(name, text) for name, text in line.items()}
            if _key(row) in rows:
                raise ValueError("same search as an earlier row")
        except ValueError as error:
            raise ValueError(f"{path}: damaged in row {number}: {error}") from None
        rows[_key(row)] = row
    return list(rows.values())


_COUNTS = ("width", "seed", "weights", "free_bits", "kept", "ticket_bytes")


def _number(name: str, text: str) -> Any:
    """The value of a cell; ValueError for a wrong type or range."""
    if name == "source":
        return text
    if name in ("width", "test_bits") and not text:  # a network without a width; a row of an older version
        return None
    kind, most = (int, math.inf) if name in _COUNTS else (float, math.inf if name in ("seconds", "test_bits") else 1)
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most or number == math.inf:
        expected = f"{'an integer' if kind is int else 'a number'} of at least 0" + f", at most {most}" * (most == 1)
        raise ValueError(f"{name}={shown(text)}: expected {expected}")
    return number


def _key(row: Row) -> tuple[str, ...]:
    return Point(row["source"], float(row["ratio"]), row["width"], row["seed"]).key


def _order(row: Row) -> tuple:
    return (row["width"] or 0, row["source"] != TRAINED, row["lock"], row["prune"], row["seed"])


# Table and plot


def _groups(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    """Rows grouped by (width, source, ratio): the seeds of one point."""
    groups: dict[tuple, list[Row]] = {}
    for row in sorted(rows, key=_order):
        groups.setdefault((row["width"], row["source"], row["ratio"]), []).append(row)
    return groups


class _Measure(NamedTuple):
    """What a table and a plot show of a row."""

    column: str
    factor: float
    unit: str
    digits: int
    title: str

    def of(self, row: Row) -> float:
        return self.factor * row[self.column]


def _measure(rows: Sequence[Row], bits: bool) -> "_Measure":
    """Bits, if they are wanted and all rows have them; otherwise the accuracy."""
    return _BITS if bits and all(row["test_bits"] is not None for row in rows) else _ACCURACY


_ACCURACY = _Measure("test_accuracy", 100, "%", 1, "test accuracy, % (mean, least and most)")
_BITS = _Measure("test_bits", 1, "bits", 3, "test cross-entropy, bits per target (mean, least and most)")


def table(rows: Sequence[Row], bits: bool = False) -> str:
    """Markdown table: ticket size for each width and frozen ratio, and each source's accuracy over the seeds.

    Args:
        rows: as `read` returns them.
        bits: show the test cross-entropy in bits instead of the accuracy, as for text, unless a row of an older version
            has none. Default False.
    """
    measure = _measure(rows, bits)
    groups = _groups(rows)
    sources = list(dict.fromkeys(source for _, source, _ in groups))
    lines = [["width", "frozen", "ticket", *(f"{source}, {measure.unit}" for source in sources)]]
    lines.append(["---"] * len(lines[0]))
    for width, ratio in sorted({(width or 0, ratio) for width, _, ratio in groups}):
        here = {source: group for (w, source, r), group in groups.items() if (w or 0, r) == (width, ratio)}
        tickets = [group for source, group in here.items() if source != TRAINED] or list(here.values())
        size = statistics.mean(row["ticket_bytes"] for group in tickets for row in group)
        found = (_spread([measure.of(row) for row in here[s]], measure.digits) if s in here else "" for s in sources)
        lines.append([str(width or "default"), f"{ratio:.0%}", f"{size:,.0f} B", *found])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spread(found: list[float], digits: int) -> str:
    mean, least, most = (f"{f(found):.{digits}f}" for f in (statistics.mean, min, max))
    return f"{mean} ({least} to {most})"


def load_matplotlib():
    """Matplotlib with its file backend; ModuleNotFoundError names the extra."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ModuleNotFoundError('plots are made with matplotlib: pip install "slt_kernels[plot]"') from None
    matplotlib.use("Agg")
    return matplotlib


def plot(rows: Sequence[Row], folder: Path, bits: bool = False) -> None:
    """Writes ``sweep.png`` and ``sweep.svg``: mean and range of accuracy against ticket size and frozen fraction.

    Each source of each width is a line. The dense source, and trained weights, are one line over all widths on the
    left. On the right the dense source is where the lines of its width begin.

    Args:
        rows, bits: as in `table`.
        folder: where the files are written.

    Raises:
        ModuleNotFoundError: matplotlib is missing (it comes with the ``plot`` extra).
    """
    measure = _measure(rows, bits)
    matplotlib = load_matplotlib()
    from matplotlib import pyplot, ticker

    groups = _groups(rows)
    sources = list(dict.fromkeys(source for _, source, _ in groups))
    widths = sorted({row["width"] or 0 for row in rows})

    def draw(axes: Any, source: str, width: int | None, line: list[list[Row]], column: str, factor: int = 1) -> None:
        line = sorted(line, key=lambda group: group[0][column])
        at = [factor * statistics.mean(row[column] for row in group) for group in line]
        found = [[measure.of(row) for row in group] for group in line]
        mean = [statistics.mean(group) for group in found]
        bars = [[m - min(g) for m, g in zip(mean, found, strict=True)]]
        bars += [[max(g) - m for m, g in zip(mean, found, strict=True)]]
        label = source if width is None or len(widths) == 1 else f"{source}, width {width}"
        style = {
            "color": f"C{sources.index(source)}",
            "marker": "osD^vP*X"[widths.index(width or 0) % 8] if width else "o",
        }
        axes.errorbar(at, mean, bars, label=label, capsize=3, linewidth=1.2, **style)

    # Text as text and fixed identifiers, so that the same rows give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "slt_kernels"}):
        figure, (sizes, fractions) = pyplot.subplots(1, 2, sharey=True, figsize=(11, 4.5), layout="constrained")
        for source in sources:
            lines: dict[int | None, list[list[Row]]] = {}
            for (width, name, _), group in groups.items():
                if name == source:
                    lines.setdefault(None if source in (TRAINED, "dense") else width, []).append(group)
            for width, line in lines.items():
                draw(sizes, source, width, line, "ticket_bytes")
                if source not in (TRAINED, "dense"):
                    dense = groups.get((width, "dense", 0.0))
                    draw(fractions, source, width, [dense] * bool(dense) + line, "ratio", 100)
        sizes.set(xscale="log", xlabel="ticket, bytes", ylabel=measure.title)
        sizes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        sizes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        sizes.xaxis.set_minor_formatter(ticker.NullFormatter())
        sizes.tick_params(axis="x", rotation=30)
        fractions.set(xlabel="frozen weights, %")
        for axes in (sizes, fractions):
            axes.grid(which="both", alpha=0.3)
        sizes.legend(fontsize="small")
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            image = io.BytesIO()
            figure.savefig(image, format=suffix, dpi=150, metadata=metadata)
            write_atomically(folder / f"sweep.{suffix}", image.getvalue())
        pyplot.close(figure)


__all__ = ["COLUMNS", "Grid", "Point", "Row", "load_matplotlib", "plot", "read", "run", "shares", "table"]
