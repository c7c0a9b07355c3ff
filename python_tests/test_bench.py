"""The bench itself: wrong results are not timed, peers compute what we do, and results render."""

import importlib
import json
import platform
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import run_script

from slt_kernels import SupermaskConv2d, backends, cli

cpu = backends.on("cpu")

BENCH = Path(__file__).parent.parent / "bench"
needs_cpu = pytest.mark.skipif(cpu.unavailable() is not None, reason="the benches are of the CPU backend")


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def module(name: str):
    return importlib.import_module(name)


def test_a_wrong_result_is_not_timed():
    rounds, calls = module("rounds"), []

    def check() -> None:
        raise RuntimeError("wrong")

    with pytest.raises(RuntimeError, match="wrong"):
        rounds.measure(rounds.Case({"ours": lambda: calls.append(1)}, check), 0.01, 3)
    assert calls == []


def test_medians_quartiles_and_the_fastest_peer(monkeypatch):
    rounds = module("rounds")
    milliseconds = {"ours": 2e-3, "ours, compact": 1e-3, "slow": 8e-3, "fast": 4e-3}
    monkeypatch.setattr(rounds, "timed", lambda call: call())
    case = rounds.Case({name: lambda t=t: t for name, t in milliseconds.items()}, lambda: None)
    result = rounds.measure(case, 0, 3)
    assert result["rounds"] == 3
    assert result["methods"]["slow"] == {"median_ms": pytest.approx(8), "quartiles_ms": pytest.approx([8, 8])}
    assert result["peer"] == "fast"
    assert result["ratio"] == pytest.approx(2)


def test_what_runs_before_a_timed_call_is_given_it():
    rounds, order = module("rounds"), []
    ours = lambda: order.append("ours")  # noqa: E731 (it is compared)
    before = lambda call: order.append("before" if call is ours else call)  # noqa: E731
    result = rounds.measure(rounds.Case({"ours": ours}, lambda: {"ours": {"error": 0.5}}, before), 0, 2)
    assert order == ["ours", "before", "ours", "before", "ours"]
    assert result["methods"]["ours"]["error"] == 0.5


@needs_cpu
def test_ternary_engines_compute_our_product(monkeypatch):
    """Those that are installed, PyTorch's at least; and the table of their times."""
    cases, rounds, report = module("cases"), module("rounds"), module("report")
    monkeypatch.setattr(cases, "SIZE", 256)
    found = rounds.measure(cases.ternary(2, True), 0, 2)["methods"]
    assert {"ours, int8, stored signs", "ours, highest", "PyTorch int8, x86"} <= found.keys()
    assert found["ours, highest"]["error"] < 1e-6 < 5e-3 < found["ours, int8"]["error"] < 1e-2
    timed = [{"group": "ternary", "at": {"batch": 2, "hot": hot}, "methods": found} for hot in (True, False)]
    table = report.ternary({"cases": timed, "engines": module("ternary").versions()})
    assert table.count("| PyTorch int8, x86 | 8 | ") == 2
    assert f"torch {torch.__version__}" in table


def test_without_another_engine_there_is_no_comparison(monkeypatch):
    cases, ternary = module("cases"), module("ternary")
    monkeypatch.setattr(ternary, "ENGINES", {k: e for k, e in ternary.ENGINES.items() if e.needs == ("torch",)})
    assert list(cases.ternary_engines()) == []
    monkeypatch.setitem(ternary.ENGINES, "another", ternary.Engine(2, ("json",), None))
    assert len(list(cases.ternary_engines())) == 12


@needs_cpu
def test_a_peer_that_computes_something_else_is_not_timed(monkeypatch):
    cases, peers = module("cases"), module("peers")
    small = cases.linear(64)
    monkeypatch.setitem(cases.NETWORKS, "small", small)

    class Wrong(peers.Dense):
        def forward(self, x):
            return super().forward(x) + 1

    monkeypatch.setitem(cases.METHODS, "wrong", peers.Method(Wrong))
    case = cases.inference("small", 4, ("ours", "wrong"))
    with pytest.raises(cases.WrongResultError, match="wrong: relative error"):
        case.check()


@needs_cpu
@pytest.mark.parametrize("kind", ("Linear", "Conv2d"))
def test_peers_compute_what_we_do(kind, monkeypatch):
    """Each method's forward; and for those that train, the same scores after a step as ours have."""
    cases, peers = module("cases"), module("peers")
    network = cases.linear(128) if kind == "Linear" else cases.conv3x3(16, 6)
    monkeypatch.setitem(cases.NETWORKS, kind, network)
    methods = [name for name, m in peers.METHODS.items() if m.convolves or kind == "Linear"]
    cases.inference(kind, 5, tuple(methods)).check()

    ours, x = peers.supermask(network.build(), True, False), network.inputs(5)
    other = peers.METHODS["materializing layer, 70 % frozen"].hold(ours)
    losses = [[step() for _ in range(3)] for step in (peers.training_step(m, x, network.loss) for m in (ours, other))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][2] != losses[0][0]
    torch.testing.assert_close(peers.dense_scores(ours), other.scores.detach(), rtol=1e-4, atol=1e-6)


@needs_cpu
@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last))
def test_sorting_keeps_the_mask_that_we_keep(memory_format):
    layer, weight = SupermaskConv2d(8, 16, 3, sparsity=0.5), []
    sorting = module("peers").Sorting(layer).to(memory_format=memory_format)
    sorting.product = lambda x, w: weight.append(w)
    sorting(torch.zeros(1, 8, 3, 3))
    assert torch.equal(weight[0] != 0, layer.mask())


@needs_cpu
def test_memory_of_one_row():
    """In a fresh process: a dense float32 layer holds its weight, its gradients are as large, and it returns them."""
    memory = module("memory")
    record = memory.in_fresh_process(memory.Row("Linear 1024 x 1024", "dense float32", "step", 2))
    assert record["held"] == pytest.approx(4 << 20, rel=0.2)
    assert record["returned"] == 2 * 4 << 20


def test_memory_of_a_process_that_fails(monkeypatch, tmp_path):
    """Its last line is the error."""
    memory, row = module("memory"), ("no such network", "ours", "forward", "2")
    monkeypatch.setattr(memory, "measure", lambda *_: {})
    monkeypatch.setattr(sys, "argv", ["memory.py", *row])
    with pytest.raises(KeyError, match="no such network"):
        memory.main()
    (tmp_path / "fails.py").write_text("import sys; sys.exit(f'once more\\n{sys.argv[1]}')")
    monkeypatch.setattr(memory, "__file__", str(tmp_path / "fails.py"))
    with pytest.raises(RuntimeError, match=r"^no such network$"):
        memory.in_fresh_process(memory.Row(*row))


def test_counted_bytes():
    traffic = module("traffic")
    forward = {method: sum(traffic.bytes_per_weight(method, "forward").values()) for method in traffic.FORWARD}
    assert forward["ours"] == 1 / 8
    assert forward["ours, 70 % frozen, compact"] == pytest.approx(0.3 / 8 + 2 / 8)
    assert (forward["dense float32"], forward["dense bfloat16"], forward["int8 dynamic"]) == (4, 2, 1)
    for method in traffic.STEP:
        assert sum(traffic.bytes_per_weight(method, "step").values()) > forward[method]


def test_the_gate_opens_and_shuts(capsys):
    instructions = module("instructions")
    figures = {"compiler": "some compiler", "instructions": {"pack": 1000}}
    assert instructions.compare({"pack": 1100}, figures) == 0
    assert instructions.compare({"pack": 500}, figures) == 0
    assert "OVER" not in capsys.readouterr().out
    assert instructions.compare({"pack": 1101}, figures) == 1
    assert "OVER" in capsys.readouterr().out


def committed() -> list[Path]:
    return sorted((BENCH / "results").glob("*/result.json"))


@pytest.mark.parametrize("file", committed(), ids=lambda file: file.parent.name)
def test_reports_are_what_their_results_say(file, tmp_path):
    """The text without its links to plots; checks that the plots are drawn."""
    report = module("report")
    result = json.loads(file.read_text())
    assert report.failures(result) == []
    report.write(result, tmp_path)
    assert (tmp_path / "report.md").read_text() == (file.parent / "report.md").read_text()
    assert sorted(p.name for p in tmp_path.glob("*.png")) == sorted(p.name for p in file.parent.glob("*.png"))


def test_a_part_of_a_result_renders(tmp_path):
    report = module("report")
    machine = {"cpu": "some", "threads": 1, "torch": "2", "commit": "abc", "backends": {"cpu": "avx2, 1 threads"}}
    failed = {"group": "targets", "name": "a case", "target": None, "at": {}, "error": "not the reference's bits"}
    result = {"profile": "quick", "date": "today", "seconds": 1.0, "machine": machine, "cases": [failed]}
    report.write(result | {"moved": {"unavailable": "valgrind is not installed"}}, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "- a case: not the reference's bits" in text
    assert "Not measured: valgrind is not installed." in text


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("c++") is None, reason="they need c++ and x86-64")
@pytest.mark.parametrize("program", ["cpu_generator", "cpu_tiles"])
def test_programs_that_measure_bounds_compile(program):
    """Their command has all that the kernels' headers need; at the end of a run it would be late to find out."""
    command = module("ceilings").compiler(program)
    assert subprocess.run([*command, "-fsyntax-only", str(BENCH / f"{program}.cpp")]).returncode == 0


def test_machines_have_names():
    slug = module("machine").slug
    info = {"cpu": "Intel(R) Xeon(R) CPU E5-2680 @ 2.7GHz, family 6", "threads": 2, "backends": {"cpu": "avx2, x"}}
    assert slug(info) == "intel-xeon-e5-2680-avx2-2threads"


def test_a_machine_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module("machine").machine()["commit"] == ""


def test_bench_needs_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "slt_kernels" / "cli.py"))
    assert cli.main(["bench", "quick"]) == 2
    assert "only in a checkout" in capsys.readouterr().err


def test_partial_runs_stay_out_of_the_results(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["suite.py", "quick", "--only", "sizes"])
    with pytest.raises(SystemExit, match="2"):
        module("suite").main()
    assert "--only: expected --out" in capsys.readouterr().err


@needs_cpu
def test_a_run_writes_its_result_and_report(tmp_path):
    """The smallest of the sections."""
    done = run_script(BENCH / "suite.py", "quick", "--only", "counted|sizes", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert folder.name == f"{module('machine').slug(result['machine'])}-quick"
    assert {"machine", "date", "seconds", "counted", "sizes"} <= result.keys()
    assert (folder / "report.md").exists()


# The supervision of the GPU check

WORKER = """if True:
    import json, os, subprocess, sys, time
    print("{}", flush=True)
    for line in sys.stdin:
        i = int(line)
        if i == 1: print("the reason", file=sys.stderr); os._exit(7)
        if i == 3:  # hangs, and so does what it started
            print("started", subprocess.Popen(["sleep", "60"]).pid, file=sys.stderr, flush=True)
            time.sleep(60)
        if i == 4: os.write(1, b'{"ok": tr'); os._exit(1)
        if i == 5: os.write(1, b"no json\\n"); continue
        if i == 6: os.close(1); time.sleep(60)
        if i == 9: time.sleep(60)
        print(json.dumps({"ok": i != 2, "process": os.getpid()}), flush=True)
"""


def numbered(count: int) -> list[dict]:
    return [{"name": f"item {i}"} for i in range(count)]


def test_gpu_check_outlives_its_processes():
    """One crashes, one fails, one hangs, one is cut short, one says something else, one closes its output."""
    started = time.monotonic()
    results = module("gpu_check").supervise([sys.executable, "-c", WORKER], numbered(9), 1, 1.5, started + 60)
    assert time.monotonic() - started < 20
    assert [r["name"] for r in results] == [item["name"] for item in numbered(9)]
    assert [i for i, r in enumerate(results) if r["ok"] is True] == [0, 7, 8]
    assert all(r["ok"] is False for r in results[1:7])
    assert "ended with 7: the reason" in results[1]["why"]
    assert "no answer after" in results[3]["why"]
    started_too = Path("/proc") / results[3]["why"].split("started ")[1].strip() / "stat"
    assert not started_too.exists() or started_too.read_text().split()[2] == "Z"
    assert "in the middle of" in results[4]["why"]
    assert "no json" in results[5]["why"]
    assert "ended with -9" in results[6]["why"]
    assert results[0]["process"] != results[2]["process"] != results[7]["process"] == results[8]["process"]


def test_gpu_check_ends_in_time():
    """Two hang, each within its limit, until there is no time left."""
    started = time.monotonic()
    items = [{}] * 20  # of which number 3 hangs, and 9 in the other process
    results = module("gpu_check").supervise([sys.executable, "-c", WORKER], items, 2, 60, started + 2)
    assert time.monotonic() - started < 10
    assert results[3]["ok"] is None and results[3]["why"].startswith("no time left after")
    assert results[19] == {"ok": None, "why": "no time left"}


def test_a_worker_of_the_gpu_check():
    """Its own: what others print is no answer, an error is one, and where an item hangs is said."""
    worker = """if True:
        import os, time, gpu_check

        def noisy(): os.write(1, b"noise")
        def failing(): raise AssertionError("wrong")
        def hanging(): time.sleep(60)

        items = [({}, noisy), ({}, failing), ({}, hanging)]
        gpu_check.synchronize = lambda: None
        gpu_check.SECTIONS["some"] = gpu_check.Section(lambda smoke: iter(items), 1, 0.5)
        gpu_check.work("some", True)
    """
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(BENCH), str(BENCH.parent)]}\n{worker}"]
    results = module("gpu_check").supervise(command, numbered(3), 1, 2, time.monotonic() + 300)
    assert [r["ok"] for r in results] == [True, False, False]
    assert results[1]["why"] == "AssertionError: wrong (<string>:6)"
    assert "in hanging" in results[2]["why"]


def test_results_of_the_gpu_check_are_written_when_they_come(small_gpu_check, tmp_path, monkeypatch):
    """A run that is killed in a section keeps its results."""
    gpu_check, found = module("gpu_check"), []
    monkeypatch.setitem(
        gpu_check.SECTIONS, "checks", gpu_check.SECTIONS["checks"]._replace(items=lambda smoke: [({}, None)] * 3)
    )
    monkeypatch.setattr(gpu_check, "write", lambda report, file: found.append(len(report["checks"])))
    assert small_gpu_check(["--out", str(tmp_path / "result.json"), "--only", "checks"]) == 0
    assert found == [1, 2, 3, 3]


def test_gpu_check_never_takes_longer_than_it_says(small_gpu_check, monkeypatch):
    gpu_check, ended = module("gpu_check"), []
    monkeypatch.setattr(gpu_check, "SPARE", 0.1)
    monkeypatch.setattr(gpu_check, "check", lambda *_: time.sleep(0.6) or 0)
    monkeypatch.setattr(gpu_check.os, "_exit", ended.append)
    assert small_gpu_check(["--seconds", "0.2"]) == 0 and ended == [3]
    with pytest.raises(SystemExit):
        small_gpu_check(["--seconds", "541"])


def test_gpu_check_where_no_process_begins():
    worker = [sys.executable, "-c", "import sys; sys.exit('no such library')"]
    results = module("gpu_check").supervise(worker, numbered(2), 1, 60, time.monotonic() + 60)
    assert all(r["ok"] is False and "ended with 1: no such library" in r["why"] for r in results)
    results = module("gpu_check").supervise(["no such program"], numbered(1), 1, 60, time.monotonic() + 60)
    assert "no such program" in results[0]["why"]


@pytest.fixture
def small_gpu_check(monkeypatch):
    """Its main function, with items that say which section they are of; "traffic" cannot even be listed."""
    gpu_check = module("gpu_check")
    found = {"ok": True, "commit": "", "backends": {"triton": "Triton on a GPU"}}
    worker = "print('{}', flush=True)\nfor line in open(0): print(%r, flush=True)"

    def command(section: str, smoke: bool) -> list[str]:
        result = found if section == "machine" else {"ok": True, "section": section}
        return [sys.executable, "-c", worker % json.dumps(result)]

    monkeypatch.setattr(gpu_check, "worker_command", command)
    for name, section in gpu_check.SECTIONS.items():
        items = None if name == "traffic" else lambda smoke: iter([({}, None)])
        monkeypatch.setitem(gpu_check.SECTIONS, name, section._replace(items=items))
    return gpu_check.main


def test_two_gpu_checks_write_into_one_file(small_gpu_check, tmp_path, capsys):
    out = tmp_path / "no such" / "folder" / "result.json"
    common = ["--out", str(out), "--commit", "abc"]
    assert small_gpu_check([*common, "--only", "traffic", "checks"]) == 0
    assert small_gpu_check([*common, "--only", "tuned"]) == 0
    report = json.loads(out.read_text())
    assert report["machine"]["commit"] == "abc"
    assert list(report["seconds"]) == ["checks", "traffic", "tuned"]
    assert report["checks"] == [{"ok": True, "section": "checks"}]
    assert report["tuned"] == [{"ok": True, "section": "tuned"}]
    assert report["traffic"][0]["ok"] is False and "TypeError" in report["traffic"][0]["why"]
    assert "replaced" not in capsys.readouterr().out
    assert small_gpu_check([*common, "--only", "speed", "--commit", "def"]) == 0
    assert "replaced" in capsys.readouterr().out
    assert list(json.loads(out.read_text())["seconds"]) == ["speed"]


@pytest.mark.parametrize("content", ["{", "[1, 2]", "{}"])
def test_gpu_check_leaves_other_files_alone(small_gpu_check, tmp_path, content, capsys):
    out = tmp_path / "notes.json"
    out.write_text(content)
    with pytest.raises(SystemExit):
        small_gpu_check(["--out", str(out)])
    assert out.read_text() == content
    with pytest.raises(SystemExit):
        small_gpu_check(["--out", str(out / "result.json")])
    assert capsys.readouterr().err.count("expected a new file, or one from an earlier run") == 2


@pytest.mark.parametrize("copies", [1, 5, 33])
def test_graphs_hold_as_many_calls_for_every_method(monkeypatch, copies):
    """32 or more, and each copy as often; a replay's time is shared among them."""
    gpu_check, calls = module("gpu_check"), []

    class Event:
        def __init__(self, enable_timing):
            self.record = self.synchronize = lambda: None

        def elapsed_time(self, after):
            return len(calls)

    graph = SimpleNamespace(replay=lambda: None)
    monkeypatch.setattr(gpu_check, "INTERPRETED", False)
    monkeypatch.setattr(gpu_check, "synchronize", calls.clear)  # what is left is the graph's
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert gpu_check.milliseconds(copies, calls.append, seconds=0)["median"] == 1
    assert 32 <= len(calls) < 32 + copies
    assert {calls.count(i) for i in range(copies)} == {len(calls) // copies}
