"""The sweep: its grid, resuming, and its table and plots."""

import csv
import errno
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from slt_kernels.cli import main
from slt_kernels.experiments import sweep
from slt_kernels.experiments.train.run_folder import held
from slt_kernels.sweep import Grid, Point
from slt_kernels.train import Experiment, Interrupted, Search

FOUND = dict.fromkeys(sweep.COLUMNS[4:], 1)
BASE = Experiment(model={"name": "convnet", "width": 6}, search=Search(epochs=1))


def grid(**changes) -> Grid:
    return Grid(**({"ratios": [0.5, 0.8], "splits": ["1:0", "6:1"], "widths": [None], "seeds": range(2)} | changes))


def rows_of(points, accuracy=lambda point: 0.5) -> list[dict]:
    """Rows as `sweep.read` returns them."""
    return [
        {
            "source": point.source,
            "ratio": point.ratio,
            "width": point.width,
            "seed": point.seed,
            "prune": e.source.prune,
            "lock": e.source.lock,
            "ticket_bytes": round(1000 * (1.1 - point.ratio) * (point.width or 1)),
            "test_accuracy": accuracy(point),
        }
        for point, e in points.items()
    ]


def test_the_three_sources_share_all_but_their_freezing():
    points = grid().experiments(BASE)
    assert len(points) == 2 * (1 + 2 * 2)
    by_name = {(p.source, p.ratio): e for p, e in points.items() if p.seed == 1}
    assert set(by_name) == {("dense", 0.0)} | {(s, r) for s in ("randomly pruned", "frozen 6:1") for r in (0.5, 0.8)}
    freezings = {name: (e.source.prune, e.source.lock, e.search.sparsity) for name, e in by_name.items()}
    assert freezings["dense", 0.0] == (0, 0, 0.5)
    assert freezings["randomly pruned", 0.8] == (0.8, 0, 0.9)
    assert freezings["frozen 6:1", 0.5] == pytest.approx((0.5 * 6 / 7, 0.5 / 7, 0.5 * 6 / 7 + 0.25), abs=1e-6)
    for e in by_name.values():
        assert e.seed == 1
        assert e.override({"seed": 0, "source.prune": 0.6, "source.lock": 0.1, "search.sparsity": 0.7}) == BASE
    assert {p.width for p in points} == {6}  # the base's own, as a row says it
    wide = grid(widths=[8, 16], keep=0.25).experiments(BASE)
    assert {e.model["width"] for e in wide.values()} == {8, 16}
    assert {e.search.sparsity for p, e in wide.items() if p.source == "dense"} == {0.75}


def test_trained_weights_can_be_compared():
    points = grid(trained=True).experiments(BASE)
    trained = {p: e for p, e in points.items() if p.source == "trained"}
    assert {(p.ratio, p.seed) for p in trained} == {(0.0, 0), (0.0, 1)}
    for e in trained.values():
        assert (e.search.algorithm, e.source.prune, e.source.lock) == ("dense", 0, 0)
    assert len(points) == len(grid().experiments(BASE)) + 2
    rows = [row | {"ticket_bytes": 10**6} if row["source"] == "trained" else row for row in rows_of(points)]
    header, _, first, *_ = sweep.table(rows).splitlines()
    assert header.startswith("| width | frozen | ticket | trained, % | dense, %")
    assert first.startswith("| 6 | 0% | 6,600 B | 50.0")


@pytest.mark.parametrize(
    "changes,message",
    (
        ({"ratios": [0.5, 1.0]}, r"ratio=1\.0: expected a fraction"),
        ({"ratios": [0]}, r"ratio=0: expected a fraction"),
        ({"splits": ["6"]}, "split='6': expected pruned:locked"),
        ({"splits": ["0:0"]}, "split='0:0': expected pruned:locked"),
        ({"splits": ["-1:2"]}, "split='-1:2': expected pruned:locked"),
        ({"splits": ["a:b"]}, "split='a:b': expected pruned:locked"),
        ({"keep": 1.0}, r"keep=1\.0: expected a fraction"),
        ({"seeds": range(0)}, "seeds=0: expected at least 1"),
    ),
    ids=str,
)
def test_a_grid_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        grid(**changes)


def test_a_sweep_of_dense_networks_is_refused():
    with pytest.raises(
        ValueError, match="algorithm=dense: expected edge_popup or bernoulli, whose source networks a sweep compares"
    ):
        grid().experiments(BASE.override({"search.algorithm": "dense"}))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(folder, rows, options) of a sweep of three searches in two child processes."""
    folder = tmp_path_factory.mktemp("sweep") / "digits"
    options = ["--width", "6", "--epochs", "1", "--ratios", "0.5", "--splits", "1:0", "1:1", "--seeds", "1"]
    options += ["--batch-size", "128"]
    threads = torch.get_num_threads()
    assert main(["sweep", "--out", str(folder), *options, "--threads", "1", "--jobs", "2"]) == 0
    torch.set_num_threads(threads)
    return folder, sweep.read(folder), options


def test_a_sweep_writes_rows_and_plots(swept):
    folder, rows, _ = swept
    written = {"experiment.json", "lock", "sweep.csv", "sweep.png", "sweep.svg"}
    assert {path.name for path in folder.iterdir()} == written
    assert [(row["source"], row["ratio"]) for row in rows] == [
        ("dense", 0.0),
        ("randomly pruned", 0.5),
        ("frozen 1:1", 0.5),
    ]
    for row in rows:
        assert 0 <= row["test_accuracy"] <= 1
        assert row["free_bits"] == pytest.approx((1 - row["ratio"]) * row["weights"], rel=0.1)
        assert row["kept"] / row["weights"] == pytest.approx(1 - row["sparsity"], abs=0.01)
        assert row["free_bits"] / 8 < row["ticket_bytes"] < row["free_bits"] / 8 + 4096
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert "randomly pruned" in (folder / "sweep.svg").read_text()


def test_a_sweep_runs_the_missing_searches(swept, monkeypatch, capsys):
    folder, rows, options = swept
    text = (folder / "sweep.csv").read_text()
    lines = text.splitlines(keepends=True)
    (folder / "sweep.csv").write_text("".join(lines[:1] + lines[2:]))  # removes the dense source

    run, searches = sweep.completed, []

    def counted(function, tasks, **options):
        searches.extend(tasks)
        return run(function, tasks, **options | {"jobs": 1})

    monkeypatch.setattr(sweep, "completed", counted)
    assert main(["sweep", "--out", str(folder), *options, "--threads", "1"]) == 0
    assert [point.source for point in searches] == ["dense"]
    again = sweep.read(folder)
    for row in (*rows, *again):
        row.pop("seconds")
    assert again == rows
    with pytest.raises(SystemExit):
        main(["sweep", "--out", str(folder), "--prune", "0.1"])  # a sweep has no flags for the settings that it varies
    assert main(["sweep", "--out", str(folder), *options, "--lr", "0.2"]) == 2
    assert "holds rows of another experiment" in capsys.readouterr().err
    assert main(["sweep", "--out", str(folder), *options, "--seeds", "-1"]) == 2
    assert "seeds=-1: expected at least 1" in capsys.readouterr().err
    with held("out", folder):
        assert main(["sweep", "--out", str(folder), *options]) == 2
    assert f"out={folder}: another search is running there" in capsys.readouterr().err
    assert main(["sweep", "--out", str(folder), *options, "--jobs", "0"]) == 2
    assert "jobs=0: expected at least 1" in capsys.readouterr().err
    assert main(["sweep", "--out", str(folder / "sweep.csv"), *options]) == 2
    assert "sweep.csv: expected a folder" in capsys.readouterr().err


def test_rows_of_an_unknown_experiment_are_refused(tmp_path):
    sweep._write(tmp_path, [FOUND | row for row in rows_of(grid().experiments(BASE))])
    with pytest.raises(ValueError, match=r"out=.*: holds sweep\.csv without experiment\.json, so its rows may be of"):
        sweep.run(BASE, grid(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.csv"]


def test_table_has_mean_and_range():
    points = grid(seeds=range(3)).experiments(Experiment())
    rows = rows_of(points, lambda point: 0.9 + 0.01 * point.seed - 0.1 * point.ratio)
    lines = sweep.table(rows).splitlines()
    assert lines[0] == "| width | frozen | ticket | dense, % | randomly pruned, % | frozen 6:1, % |"
    assert lines[2:] == [
        "| default | 0% | 1,100 B | 91.0 (90.0 to 92.0) |  |  |",
        "| default | 50% | 600 B |  | 86.0 (85.0 to 87.0) | 86.0 (85.0 to 87.0) |",
        "| default | 80% | 300 B |  | 83.0 (82.0 to 84.0) | 83.0 (82.0 to 84.0) |",
    ]


def test_a_table_of_bits():
    rows = [row | {"test_bits": 2 + row["seed"] / 8} for row in rows_of(grid().experiments(BASE))]
    header, _, first, *_ = sweep.table(rows, bits=True).splitlines()
    assert header == "| width | frozen | ticket | dense, bits | randomly pruned, bits | frozen 6:1, bits |"
    assert "| 2.062 (2.000 to 2.125) |" in first


def test_a_table_with_rows_of_an_older_version_has_accuracies():
    rows = [row | {"test_bits": 2.0} for row in rows_of(grid().experiments(BASE))]
    rows[0]["test_bits"] = None
    assert sweep.table(rows, bits=True) == sweep.table(rows)


def test_a_file_without_bits_is_of_an_older_version(tmp_path):
    rows = rows_of(grid().experiments(BASE))
    sweep._write(tmp_path, [FOUND | row for row in rows])
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    (tmp_path / "sweep.csv").write_text("".join(line.rpartition(",")[0] + "\n" for line in lines))
    assert [row["test_bits"] for row in sweep.read(tmp_path)] == [None] * len(rows)


def test_plots_repeat(tmp_path):
    rows = rows_of(grid(widths=[8, 16], seeds=range(3)).experiments(BASE))
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sweep.plot(rows, tmp_path / name)
        files.append([(tmp_path / name / f"sweep.{suffix}").read_bytes() for suffix in ("png", "svg")])
    assert files[0] == files[1]
    assert b"frozen 6:1, width 16" in files[0][1]


def test_a_plot_of_many_widths(tmp_path):
    sweep.plot(rows_of(grid(widths=range(1, 11)).experiments(BASE)), tmp_path)
    assert b"width 10" in (tmp_path / "sweep.svg").read_bytes()


def test_rows_before_a_failed_search_are_kept(tmp_path, monkeypatch):
    def completed(function, tasks, **options):
        yield next(iter(tasks)), FOUND
        raise ValueError("no memory")

    monkeypatch.setattr(sweep, "completed", completed)
    monkeypatch.setattr(sweep, "_order", lambda _: 0)
    with pytest.raises(ValueError, match="no memory"):
        sweep.run(BASE, grid(), tmp_path)
    assert [row["seed"] for row in sweep.read(tmp_path)] == [0]


def test_a_signal_stops_a_sweep_after_its_search(tmp_path, monkeypatch):
    done = []

    def search(*_):
        done.append(os.kill(os.getpid(), signal.SIGTERM) if len(done) == 2 else None)
        return FOUND | {"prune": 0, "lock": 0}

    monkeypatch.setattr(sweep, "_search", search)
    points = grid().experiments(BASE)
    with pytest.raises(Interrupted, match=f"stopped with {len(points) - 3} of {len(points)} searches left"):
        sweep.run(BASE, grid(), tmp_path)
    assert len(sweep.read(tmp_path)) == len(done) == 3
    assert len(sweep.run(BASE, grid(), tmp_path)) == len(done) == len(points)


@pytest.mark.parametrize("damage", ("", "a,b\n1,2\n", None), ids=("empty", "another table", "cut short"))
def test_a_damaged_table_is_refused(damage, tmp_path, swept):
    content = (swept[0] / "sweep.csv").read_text()
    (tmp_path / "sweep.csv").write_text(content[:-40] if damage is None else damage)
    with pytest.raises(ValueError, match=r"sweep\.csv: damaged, or not of a sweep"):
        sweep.read(tmp_path)


@pytest.mark.parametrize(
    "column,cell",
    [(name, cell) for name in sweep.COLUMNS[1:] for cell in ("many", "-1", "nan", "inf", "1e400")]
    + [(name, "") for name in sweep.COLUMNS[1:] if name not in ("width", "test_bits")]
    + [(name, "1.5") for name in ("ratio", "prune", "lock", "sparsity", "test_accuracy", "width", "seed", "kept")]
    + [("weights", "9" * 5000), ("seconds", "x" * 200_000)],
    ids=lambda value: value[:9],
)
def test_a_cell_that_is_not_of_its_column_is_refused(column, cell, tmp_path, capsys):
    """A resumed sweep raises in one line that names the file, the row and the column."""
    rows = [FOUND | row for row in rows_of(grid().experiments(BASE))]
    rows[2][column] = cell
    with (tmp_path / "sweep.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, sweep.COLUMNS)
        table.writeheader()
        table.writerows(rows)
    with pytest.raises(ValueError, match=r"sweep\.csv: damaged") as error:
        sweep.read(tmp_path)
    assert len(str(error.value)) < 1000
    if len(cell) < 10_000:
        assert f"damaged in row 3: {column}=" in str(error.value)


def test_a_duplicate_row_is_refused(tmp_path):
    row = FOUND | rows_of(grid().experiments(BASE))[0]
    sweep._write(tmp_path, [row, row])
    with pytest.raises(ValueError, match=r"damaged in row 2: same search as an earlier row"):
        sweep.read(tmp_path)


@pytest.mark.parametrize("content", (b"\xff\xfe", b"\0", b'"'), ids=("encoding", "zero", "quote"))
def test_files_that_are_not_text(content, tmp_path):
    (tmp_path / "sweep.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"sweep\.csv: damaged, or not of a sweep"):
        sweep.read(tmp_path)
    (tmp_path / "experiment.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"experiment\.json\); expected another folder"):
        sweep.run(Experiment(), grid(), tmp_path)


def test_the_error_of_a_read_only_file_system_names_the_folder(tmp_path, monkeypatch, capsys):
    """The folder's default name is the command's."""

    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["sweep", "--epochs", "1"]) == 2
    assert capsys.readouterr().err.endswith("slt sweep: --out=sweep: Read-only file system\n")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/lock").symlink_to("elsewhere")
    assert main(["sweep", "--epochs", "1"]) == 2
    assert capsys.readouterr().err.endswith("slt sweep: --out=sweep: sweep/lock: Too many levels of symbolic links\n")
    assert not (tmp_path / "sweep/elsewhere").exists()


def test_plots_are_written_atomically(tmp_path, monkeypatch):
    rows = rows_of(grid().experiments(BASE))
    sweep.plot(rows, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        sweep.plot(rows[:3], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_matplotlib_nothing_is_searched(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["sweep", "--out", str(tmp_path / "out")]) == 2
    assert "slt_kernels[plot]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rows_are_read_back_unchanged(tmp_path):
    points = grid(widths=[None, 8]).experiments(Experiment())
    rows = rows_of(points)
    sweep._write(tmp_path, [FOUND | row for row in rows])
    with (tmp_path / "sweep.csv").open() as file:
        assert next(csv.reader(file)) == list(sweep.COLUMNS)
    assert {sweep._key(row) for row in sweep.read(tmp_path)} == {point.key for point in points}
    assert Point("dense", 0.0, None, 1).key in {sweep._key(row) for row in sweep.read(tmp_path)}
