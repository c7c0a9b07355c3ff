"""README.md and docs/ agree with the code and the results."""

import ast
import inspect
import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from processes import run_as_torchrun, run_forked, run_script
from test_data import write_cifar
from torch import nn
from torch.distributed.run import get_args_parser

from slt_kernels import (
    Freeze,
    SupermaskBilinear,
    SupermaskConv1d,
    SupermaskConv2d,
    SupermaskConv3d,
    SupermaskConvTranspose2d,
    SupermaskEmbedding,
    SupermaskLinear,
    SupermaskLSTMCell,
    SupermaskMultiheadAttention,
    SupermaskRNNCell,
    cli,
    convert,
)
from slt_kernels.experiments import sweep
from slt_kernels.nn.supermask import check_sparsity
from slt_kernels.source import NORMAL_TABLE

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = (*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")  # whose links and paths are checked as well
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_tables_are_what_the_results_say():
    done = run_script(ROOT / "bench/render.py", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


# Python


def python(document: Path) -> str:
    """The Python blocks of a document, joined to one script."""
    return "\n".join(re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL))


def run(code: str, *arguments: str, cwd: Path) -> str:
    """What a program prints that is run in a folder, in one thread."""
    before = f"import os, sys, torch\nos.chdir({str(cwd)!r})\nsys.path.insert(0, {str(ROOT)!r})\n"
    done = run_forked(f"{before}torch.set_num_threads(1)\n{code}", None, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_of_the_readme(tmp_path):
    """Run unchanged. It prints the counts in its comments, and the ticket gives the same outputs."""
    example = python(ROOT / "README.md")
    (counts,) = re.findall(r"# ([\d,]+ weights, [\d,]+ free bits)", example)
    assert example.count("load_ticket(") == 1
    example = example.replace("drop_scores(network()))", "copy := drop_scores(network()))")
    check = "\nx = torch.randn(5, 64)\nassert torch.equal(copy(x), model(x))\n"
    assert counts in run(example + check, cwd=tmp_path)


def test_examples_of_networks_and_data(tmp_path, monkeypatch):
    write_cifar(tmp_path / "path/to/data", count=700)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(python(ROOT / "docs/models.md"), names)
    assert type(names["ticket"]) is type(names["dense"])
    assert names["logits"].shape[1:] == (10,)


def test_examples_of_tickets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(python(ROOT / "docs/tickets.md"), names)
    x = torch.randn(3, 64)
    assert torch.equal(names["used"](x), names["model"](x))
    assert all(m.scores is None for m in names["used"].modules() if isinstance(m, SupermaskLinear))


def test_the_example_of_own_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(python(ROOT / "docs/data.md"), names)
    assert names["accuracy"](names["model"], names["stripes"].test) > 0.9
    assert (tmp_path / "stripes.slt").exists()


def test_examples_of_several_processes():
    """Run as torchrun does, as one script, followed by a training step of each network."""
    check = """
x = torch.randint(256, (2, 8))
before = [p.detach().clone() for p in model.parameters()]
model(x).square().mean().backward()
optimizer.step()
assert any(not torch.equal(a.full_tensor(), p.full_tensor()) for a, p in zip(before, model.parameters()))
assert mlp(torch.ones(2, 64)).shape == (2, 64)
print("done", flush=True)
dist.barrier()
"""
    assert run_as_torchrun(python(ROOT / "docs/distributed.md") + check, 2) == ["done\n", "done\n"]


def test_the_product_in_four_steps():
    """Its last block compares with the layer bit for bit. The earlier steps agree within rounding."""
    names = {}
    exec(python(ROOT / "docs/kernels.md"), names)
    for y in (names["y"], names["y_by_panels"]):
        torch.testing.assert_close(y, names["y_exact"])


def test_quoted_lines_of_cpp():
    """Each is a line of a header in csrc/."""
    lines = {line for path in (ROOT / "csrc").rglob("*.h") for line in path.read_text().splitlines()}
    quoted = [
        block for document in DOCUMENTS for block in re.findall(r"```cpp\n(.*?)```", document.read_text(), re.DOTALL)
    ]
    assert quoted
    assert set("".join(quoted).splitlines()) <= lines


def test_every_python_block_is_run():
    """Each document with Python is in a test above; ecosystem.md is in test_ecosystem.py."""
    tested = {"README.md", "models.md", "data.md", "tickets.md", "distributed.md", "kernels.md", "ecosystem.md"}
    assert {document.name for document in DOCUMENTS if python(document)} == tested
    for document in DOCUMENTS:
        ast.parse(python(document))


# Commands

PROGRAMS = r"(?:[A-Z_]+=\S+ )*(?:slt|pip|python|pytest|torchrun)(?= |$)"


def commands(text: str) -> Iterator[list[str]]:
    """The commands in indented lines and inline code, split into words, without variables before and comments after."""
    for line in re.findall(rf"^    ({PROGRAMS}.*)$", text, re.M) + re.findall(rf"`({PROGRAMS} [^`]*)`", text):
        for part in line.split("&&"):
            words = shlex.split(re.split(r"\s{2,}", part.strip())[0], comments=True)
            yield words[next(i for i, word in enumerate(words) if not re.match("[A-Z_]+=", word)) :]


def texts() -> dict[str, str]:
    """Texts with commands, by file name: the documents, and the docstrings of the benches."""
    found = {path.name: path.read_text() for path in DOCUMENTS}
    for path in sorted((ROOT / "bench").glob("*.py")):
        found[path.name] = (ast.get_docstring(ast.parse(path.read_text())) or "").replace("`", "")
    return found


COMMANDS = [(name, words) for name, text in texts().items() for words in commands(text)]


def all_of(program: str) -> list:
    return [
        pytest.param(words[1:], id=f"{name}: {shlex.join(words)}") for name, words in COMMANDS if words[0] == program
    ]


def check_slt(words: list[str]) -> None:
    """Parses a command line of slt, and builds its experiments."""
    if words == ["--help"]:
        return
    arguments = cli._parser().parse_args(words)
    if arguments.command not in ("find", "sweep"):
        return
    experiment = cli._experiment(arguments)
    experiments = [experiment]
    if arguments.command == "sweep":
        widths, seeds = arguments.widths or [None], range(arguments.seeds)
        grid = sweep.Grid(arguments.ratios, arguments.splits, widths, seeds, arguments.keep)
        experiments = grid.experiments(experiment).values()
    for e in experiments:
        check_sparsity(e.search.sparsity, e.source.prune, e.source.lock)


def test_commands_are_found():
    """Every program and some known commands are found, so that no test below is empty."""
    assert {words[0] for _, words in COMMANDS} == {"slt", "pip", "python", "pytest", "torchrun"}
    assert ("README.md", ["slt", "find"]) in COMMANDS
    assert sum(name == "reproducing.md" for name, _ in COMMANDS) >= 6


@pytest.mark.parametrize("words", all_of("slt"))
def test_commands_of_slt(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_slt(words)


@pytest.mark.parametrize("words", all_of("torchrun"))
def test_commands_of_torchrun(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    parsed = get_args_parser().parse_args(words)
    assert (parsed.module, parsed.training_script) == (True, "slt_kernels")
    check_slt(parsed.training_script_args)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_flags_that_a_configuration_names(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    comments = "\n".join(line for line in config.read_text().splitlines() if line.startswith("#"))
    for flags in ["", *re.findall(r": ((?:--\w+ [\d.]*\d ?)+)", comments)]:
        check_slt(["find", "--config", str(config), *flags.split()])


@pytest.mark.parametrize("words", all_of("pytest"))
def test_commands_of_pytest(words):
    assert words
    assert all((ROOT / word).is_dir() for word in words)


EXTRAS = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[
    1
]


def check_extras(wanted: str) -> None:
    assert set(wanted.split(",")) <= set(re.findall(r"^(\w+) = \[", EXTRAS, re.MULTILINE))


@pytest.mark.parametrize("words", all_of("pip"))
def test_commands_of_pip(words):
    install, *others = words
    assert install == "install"
    if others[0] == "-c":
        assert (ROOT / others[1]).is_file()
        others = others[2:]
    (extras,) = re.findall(r"^(?:-e \.|slt_kernels)(?:\[([\w,]+)\])?$", " ".join(others))
    if extras:
        check_extras(extras)


def test_extras_that_errors_and_tables_name():
    sources = [*DOCUMENTS, *(ROOT / "slt_kernels").rglob("*.py"), *(ROOT / "bench").glob("*.py")]
    text = "\n".join(path.read_text() for path in sources)
    found = re.findall(r"pip install [^\[\n]*\[([\w,]+)\]", text) + re.findall(r"[(]?extra `(\w+)`", text)
    assert len(found) > 15
    for extras in found:
        check_extras(extras)


def test_commands_of_python():
    """Each script parses its arguments and then stops."""
    lines = sorted({tuple(words[1:]) for _, words in COMMANDS if words[0] == "python"})
    code = """
import argparse, json, runpy, sys

class Parsed(BaseException):
    pass

plain = argparse.ArgumentParser.parse_args

def parse(*arguments):
    plain(*arguments)
    raise Parsed

argparse.ArgumentParser.parse_args = parse
sys.path.insert(0, "bench")
for line in json.loads(sys.argv[1]):
    sys.argv = line
    try:
        runpy.run_path(line[0], run_name="__main__")
    except Parsed:
        continue
    raise SystemExit(f"{line}: no parser")
"""
    parsed = []
    for file, *arguments in lines:
        assert (ROOT / file).is_file()
        if "parse_args" in (ROOT / file).read_text():
            parsed.append([file, *arguments])
        else:
            assert not arguments or "sys.argv" in (ROOT / file).read_text(), f"{file} takes no arguments"
    run(code, json.dumps(parsed), cwd=ROOT)


def test_flags_in_running_text():
    """Every `--flag` in inline code is an option of slt."""
    subparsers = cli._parser()._subparsers._group_actions[0].choices.values()
    known = {option for parser in subparsers for option in parser._option_string_actions} | {"--help"}
    for document in DOCUMENTS:
        for span in re.findall(r"`(--[^`]*)`", document.read_text()):
            assert span.split()[0] in known, f"{document.name}: {span}"


# Statements


def test_arguments_of_the_layers_are_pytorch_s():
    """In the same order. `max_norm` and `sparse` are errors."""
    for ours, theirs in (
        (SupermaskLinear, nn.Linear),
        (SupermaskConv2d, nn.Conv2d),
        (SupermaskEmbedding, nn.Embedding),
        (SupermaskConv1d, nn.Conv1d),
        (SupermaskConv3d, nn.Conv3d),
        (SupermaskConvTranspose2d, nn.ConvTranspose2d),
        (SupermaskBilinear, nn.Bilinear),
        (SupermaskMultiheadAttention, nn.MultiheadAttention),
        (SupermaskLSTMCell, nn.LSTMCell),
        (SupermaskRNNCell, nn.RNNCell),
    ):
        names = [name for name in inspect.signature(theirs).parameters if not name.startswith("_")]
        assert list(inspect.signature(ours).parameters)[: len(names)] == names
    for option in ({"max_norm": 1.0}, {"sparse": True}):
        with pytest.raises(ValueError, match=next(iter(option))):
            SupermaskEmbedding(5, 3, **option)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_convert_leaves_dense_trains():
    model = convert(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.RNNCellBase(1, 1, False, 1)))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"0.scores", "0.bias", "1.weight", "1.bias", "2.weight_ih", "2.weight_hh"}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_tracing():
    model = convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))).eval()
    x = torch.randn(2, 3, 8, 8)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(model, x)(x), model(x))
    with pytest.raises((torch.fx.proxy.TraceError, TypeError)):
        torch.fx.symbolic_trace(model)


def test_what_the_sweep_shows():
    """The cases in which a frozen source is ahead of the randomly pruned one on average, by more than a point."""
    groups = sweep._groups(sweep.read(ROOT / "docs/sweep_digits"))
    mean = {key: sum(row["test_accuracy"] for row in rows) / len(rows) for key, rows in groups.items()}
    ahead = {}
    for (width, source, ratio), accuracy in mean.items():
        if source.startswith("frozen") and accuracy > mean[width, "randomly pruned", ratio] + 0.01:
            ahead.setdefault(source, set()).add((width, ratio))
    assert ahead["frozen 1:1"] == {(24, 0.8), (24, 0.98), (48, 0.98)}
    assert ahead["frozen 6:1"] == {(24, 0.8), (24, 0.9), (24, 0.95), (24, 0.98), (48, 0.95)}


def test_the_normal_table_and_the_scale_as_the_contract_words_them():
    quantile = NormalDist().inv_cdf
    half = [max(1, round(44 * quantile((u + 1 / 2) / 256))) for u in range(128, 256)]
    assert tuple([-t for t in reversed(half)] + half) == NORMAL_TABLE
    assert min(abs(44 * quantile((u + 1 / 2) / 256) % 1 - 1 / 2) for u in range(128, 256)) > 0.006
    std = math.sqrt(sum(t * t for t in NORMAL_TABLE) / 256)
    options = {"freeze": Freeze(0.2, 0.2), "sparsity": 0.6, "weight": "normal"}
    kept = SupermaskLinear(70, 30, **options).mask().sum().item()
    densities = {None: 1.0, "static": 1 / math.sqrt(1 - 0.6), "dynamic": 1 / math.sqrt(kept / (30 * 70))}
    for scale, density in densities.items():
        expected = torch.tensor(math.sqrt(2) / math.sqrt(70) / std * density, dtype=torch.float64).float()
        assert torch.equal(SupermaskLinear(70, 30, scale=scale, **options).weight_scale, expected)
    assert torch.equal(SupermaskLinear(70, 30, sparsity=1.0, scale="dynamic").weight_scale, torch.zeros(()))
    expected = torch.tensor(0.5 * math.sqrt(70) / math.sqrt(70) / std, dtype=torch.float64).float()
    assert torch.equal(SupermaskEmbedding(30, 70, std=0.5, weight="normal").weight_scale, expected)


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    for document in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text()):
            there = document.parent / target if target else document
            assert there.exists(), f"{document.name}: {target}"
            assert not anchor or anchor in anchors(there), f"{document.name}: {target}#{anchor}"


def test_paths_in_running_text():
    """Every path of a file or folder in inline code exists, from the root of the repository."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    found = 0
    for document in PAGES:
        for span in re.findall(r"`([\w./]+/[\w./]*)`", document.read_text()):
            if span.split("/")[0] in folders:
                found += 1
                assert (ROOT / span).exists(), f"{document.name}: {span}"
    assert found > 10
