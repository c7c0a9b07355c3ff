"""The command line."""

import errno
import io
import json
import os
import re
import sys
import tempfile
from contextlib import redirect_stdout

import pytest
import torch
from processes import run_forked
from torch.distributed.run import get_args_parser

from slt_kernels import backends, cli, convert, save_ticket, ticket_info
from slt_kernels.cli import main
from slt_kernels.data import DATASETS, digits
from slt_kernels.experiments import data
from slt_kernels.models import convnet
from slt_kernels.train import Experiment, Run

SMALL = ("--epochs", "1", "--width", "8", "--batch-size", "256")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(ticket, report, standard output) of a small search."""
    folder = tmp_path_factory.mktemp("find")
    file, report = folder / "net.slt", folder / "report.json"
    with redirect_stdout(io.StringIO()) as printed:
        assert main(["find", "--out", str(file), "--json", str(report), *SMALL]) == 0
    return file, json.loads(report.read_text()), printed.getvalue()


def percentages(text: str) -> list[str]:
    return re.findall(r"\d+\.\d\d%", text)


def test_find_reports_what_it_wrote(found):
    file, _, printed = found
    info = ticket_info(file)
    accuracies = percentages(printed)
    assert accuracies[0] == accuracies[1] == f"{info.metadata['test_accuracy']:.2%}"
    for number in (f"{info.weights:,}", f"{info.free_bits:,}", f"{info.kept:,}", f"{info.size:,} bytes"):
        assert number in printed
    dense = 4 * sum(p.numel() for p in convnet(8).parameters())
    assert f"{dense:,} bytes" in printed
    assert info.size == file.stat().st_size


def test_find_freezes_70_percent(found):
    info = ticket_info(found[0])
    assert info.free_bits / info.weights == pytest.approx(0.3, abs=0.03)
    assert info.kept / info.weights == pytest.approx(0.3, abs=0.001)
    assert info.metadata["network"]["model"]["width"] == 8
    assert info.metadata["dimensions"] == {"classes": 10, "channels": 1, "size": 8}


def test_json_report(found):
    assert isinstance(found[1], dict)
    assert ticket_info(found[0]).metadata["test_accuracy"] in found[1].values()


class Full(io.StringIO):
    """A standard output that nobody reads, or on a full disk."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.parametrize("stdout, status", ((Full(), 2), (None, 0)), ids=("broken", "closed"))
def test_a_search_goes_on_without_its_standard_output(stdout, status, found, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["find", "--out", str(tmp_path / "net.slt"), *SMALL]) == status
    assert (tmp_path / "net.slt").read_bytes() == found[0].read_bytes()


def test_eval_gives_the_same_accuracy(found, capsys):
    assert main(["eval", str(found[0])]) == 0
    accuracies = percentages(capsys.readouterr().out)
    assert len(accuracies) == 2
    assert accuracies[0] == accuracies[1] == f"{ticket_info(found[0]).metadata['test_accuracy']:.2%}"


def test_eval_on_one_thread_gives_the_same_accuracy(found, capsys):
    assert main(["eval", str(found[0]), "--threads", "1"]) == 0
    accuracies = percentages(capsys.readouterr().out)
    assert accuracies[0] == accuracies[1]


def test_info_shows_every_layer(found, capsys):
    assert main(["info", str(found[0])]) == 0
    printed = capsys.readouterr().out
    info = ticket_info(found[0])
    assert f"{info.size:,} bytes, contract version 1" in printed
    assert f"{len(info.layers)} layers, {info.weights:,} weights" in printed
    for layer in info.layers:
        assert f"  {layer.name}: {'x'.join(map(str, layer.shape))} signed_constant, seed 0" in printed
        assert f"free {layer.free:,}, kept {layer.kept:,}" in printed
    for t in info.tensors:
        assert f"  {t.name}: {t.dtype}" in printed
    assert "test_accuracy" in printed


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert f"PyTorch {torch.__version__}" in printed
    assert "backend reference: plain PyTorch" in printed
    assert re.search(r"^backend cpu: ", printed, re.MULTILINE)
    assert re.search(r"^tensors on cpu use ", printed, re.MULTILINE)


def test_doctor_shows_the_kernels_of_each_operation(capsys):
    """A row per operation and a column per device: the backends in the order in which they are tried."""
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (header,) = (number for number, line in enumerate(lines) if re.match("operation +cpu", line))
    shown = [re.split(r" {2,}", line)[:2] for line in lines[header + 1 :]]
    table = backends.table(torch.device("cpu"))
    assert shown == [[operation, ", ".join(names)] for operation, names in table.items()]


def test_doctor_reports_an_unknown_forced_backend(capsys, monkeypatch):
    monkeypatch.setattr("slt_kernels.backends.registry._forced", "foo")
    assert main(["doctor"]) == 0
    assert "foo" in capsys.readouterr().out


def test_compressing_without_the_package_is_refused_before_the_search(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    monkeypatch.setattr(data, "load", None)
    assert main(["find", "--out", str(tmp_path / "net.slt"), *SMALL, "--compress"]) == 2
    assert 'pip install "slt_kernels[compress]"' in capsys.readouterr().err


def test_a_pipe_is_not_a_ticket(tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert main(["find", "--out", str(pipe), *SMALL]) == 2
    assert f"--out={pipe}: expected a file, not a device or a pipe" in capsys.readouterr().err
    assert pipe.is_fifo()


def test_options_reach_the_ticket(tmp_path, capsys):
    file = tmp_path / "net.slt"
    options = ["--seed", "7", "--prune", "0.3", "--lock", "0.2", "--spread", "erk", "--weight", "normal"]
    options += ["--scale", "static", "--compact", "--sparsity", "0.5", "--scope", "global"]
    assert main(["find", "--out", str(file), *SMALL, *options]) == 0
    info = ticket_info(file)
    assert {(x.source.seed, x.weight, x.scale, x.sparsity) for x in info.layers} == {(7, "normal", "static", 0.5)}
    assert len({x.source.prune_below for x in info.layers}) > 1  # spread
    assert info.kept / info.weights == pytest.approx(0.5, abs=0.001)
    assert main(["eval", str(file)]) == 0


@pytest.mark.parametrize(
    "arguments,message",
    (
        (("--epochs", "0"), "--epochs=0: expected at least 1"),
        (("--batch-size", "0"), "--batch-size=0: expected at least 1"),
        (("--width", "0"), "--width=0: expected at least 1"),
        (("--width", str(10**40)), "--width=1000000000"),
        (("--batch-size", str(2**63)), f"--batch-size={2**63}: expected less than 2**63"),
        (("--warmup-epochs", str(10**400)), "expected less than 2**63"),
        (("--lr", "-1"), "--lr=-1.0: expected"),
        (("--lr", "nan"), "--lr=nan: expected"),
        (("--lr", "inf"), "--lr=inf: expected a finite number of at least 0"),
        (("--lr", "1e39"), "--lr=1e+39: expected at most 3.402823e+38, the largest float32"),
        (("--sparsity", "nan"), "--sparsity=nan: expected 0 to 1"),
        (("--momentum", "-0.1"), "--momentum=-0.1: expected"),
        (("--weight-decay", "-1"), "--weight-decay=-1.0: expected"),
        (("--prune", "1.5"), "--prune=1.5: expected 0 to 1"),
        (("--lock", "-0.5"), "--lock=-0.5: expected 0 to 1"),
        (("--prune", "0.8", "--lock", "0.8"), "--prune=0.8 + --lock=0.8"),
        (("--prune", "0.8"), "--sparsity=0.7 is below --prune=0.8:"),
        (("--sparsity", "0.95"), "--sparsity=0.95 is above 1 - lock="),
        (("--seed", "-1"), "--seed=-1: expected"),
        (("--seed", str(2**64)), f"--seed={2**64}: expected"),
        (("--threads", "0"), "--threads=0: expected at least 1"),
        (("--threads", "1025"), "--threads=1025: expected at most 1024"),
        (("--threads", str(2**40)), f"--threads={2**40}: expected at most"),
        (("--workers", "1025"), "--workers=1025: expected 0 to 1024"),
        (("--ema", "1"), "--ema=1: expected less"),
        (("--config", os.devnull), f"--config={os.devnull}: expected a file, not a device or a pipe"),
        (("--device", "quantum"), "--device='quantum': expected cpu, cuda or cuda:N"),
        (("--device", "meta"), "--device='meta': expected cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), "--device='cuda:99': PyTorch finds"),
    ),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_find_refuses(arguments, message, tmp_path, capsys):
    """Exit status 2, a message that names the argument, and an unchanged old file."""
    file = tmp_path / "net.slt"
    file.write_bytes(b"old")
    assert main(["find", "--out", str(file), *SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert file.read_bytes() == b"old"


@pytest.mark.parametrize(
    "arguments,name",
    (
        (("find", "--spread", "random"), "--spread"),
        (("find", "--weight", "gaussian"), "--weight"),
        (("find", "--scope", "layer"), "--scope"),
        (("find", "--scale", "big"), "--scale"),
        (("find", "--model", "vgg"), "--model"),
        (("find", "--epochs", "many"), "--epochs"),
        (("find", "--nonsense"), "--nonsense"),
        (("find", "--folder", ""), "argument --folder: expected the path of a file or folder, got an empty text"),
        (("find", "--path", ""), "--path"),
        (("find", "--out", ""), "--out"),
        (("info", ""), "file"),
        (("import", ""), "file"),
        (("eval",), "file"),
        (("search",), "command"),
        ((), "command"),
    ),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_parser_refuses(arguments, name, capsys):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    assert name in capsys.readouterr().err


def test_a_search_that_diverges_writes_no_ticket(tmp_path, capsys):
    files = ["--out", str(tmp_path / "net.slt"), "--json", str(tmp_path / "report.json")]
    assert main(["find", *files, *SMALL, "--lr", "1e30"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("slt find: diverged in epoch 1: ")
    assert not list(tmp_path.iterdir())


def test_find_refuses_a_folder_that_does_not_exist(tmp_path, capsys):
    assert main(["find", "--out", str(tmp_path / "none" / "net.slt"), *SMALL]) == 2
    assert "--out=" in capsys.readouterr().err


@pytest.mark.parametrize("name", ("out", "json"))
def test_find_refuses_an_output_that_cannot_be_written(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert main(["find", f"--{name}", "folder", *SMALL]) == 2
    assert f"--{name}=folder: expected a file" in capsys.readouterr().err

    plain = tempfile.TemporaryFile

    def temporary(dir):
        if dir.name == "folder":
            raise OSError(30, "Read-only file system")
        return plain(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    assert main(["find", f"--{name}", "folder/file", *SMALL]) == 2
    assert f"--{name}=folder/file: expected a file in a folder that can be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    "arguments,message",
    (
        (("--out", "text", "--json", "text"), "--json=text: expected another file than --out=text"),
        (("--out", "./text", "--data", "text", "--path", "text"), "--out=text: expected another file than --path=text"),
        (("--config", "net.yaml", "--json", "net.yaml"), "--json=net.yaml: expected another file than --config="),
    ),
)
def test_find_overwrites_neither_its_inputs_nor_its_outputs(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = {"text": "so it goes", "net.yaml": "{seed: 3}"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    assert main(["find", *SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == contents


@pytest.mark.parametrize("name", ("last.pt", "best.pt", "epoch_12.pt", "log.csv", "lock", "tensorboard"))
def test_find_does_not_overwrite_the_files_of_its_folder(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for option in ("--out", "--json"):
        assert main(["find", *SMALL, "--folder", "run", option, f"./run/{name}"]) == 2
        message = f"{option}=run/{name}: expected another file than those of the search in --folder=run"
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "run").iterdir())


def test_a_search_continues_with_another_number_of_workers(tmp_path):
    command = ["find", "--out", str(tmp_path / "net.slt"), "--folder", str(tmp_path / "run"), *SMALL]
    assert main(command) == 0
    assert main([*command, "--workers", "1"]) == 0


@pytest.mark.parametrize(
    "arguments,changes",
    (
        (("--set", "search={epochs: 1}", "--lr", "0.5"), {"search.epochs": 1, "search.lr": 0.5}),
        (("--lr", "0.5", "--set", "search={epochs: 1, lr: 0.5}"), {"search.epochs": 1, "search.lr": 0.5}),
        (("--set", "search={epochs: 1}", "--set", "search={lr: 0.5}"), {"search.epochs": 1, "search.lr": 0.5}),
        (("--set", "model={name: conv2, width: 4}", "--model", "conv2"), {"model": {"name": "conv2", "width": 4}}),
        (("--width", "4", "--model", "conv2"), {"model": {"name": "conv2", "width": 4}}),
        (("--set", "model={name: gin, width: 4}"), {"model": {"name": "gin", "width": 4}, "data": "karate"}),
        (("--model", "gin", "--set", "data.name=digits_graph"), {"model": "gin", "data": "digits_graph"}),
    ),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_flags_and_sections_are_merged(arguments, changes):
    assert cli._experiment(cli._parser().parse_args(["find", *arguments])) == Experiment().override(changes)


def test_flags_override_a_config(tmp_path, capsys):
    config, out = tmp_path / "small.yaml", tmp_path / "net.slt"
    config.write_text("{seed: 3, model: {name: convnet, width: 8}, source: {prune: 0.2, lock: 0.3}}")
    command = ["find", "--config", str(config), "--out", str(out), "--lock", "0.4", "--set", "search.sparsity=0.4"]
    assert main([*command, "--epochs", "1", "--compress", "--json", str(tmp_path / "report.json")]) == 0
    experiment = json.loads((tmp_path / "report.json").read_text())["experiment"]
    assert (experiment["seed"], experiment["model"]) == (3, {"name": "convnet", "width": 8})
    assert (experiment["source"]["prune"], experiment["source"]["lock"]) == (0.2, 0.4)
    assert (experiment["search"]["sparsity"], experiment["search"]["epochs"]) == (0.4, 1)
    info = ticket_info(out)
    assert info.compressed
    assert {layer.source.seed for layer in info.layers} == {3}
    assert info.metadata["network"] == Experiment.from_dict(experiment).network


@pytest.mark.parametrize(
    "arguments,message",
    (
        (("--config", "none.yaml"), "none.yaml"),
        (("--set", "search.lr"), "--set='search.lr': expected KEY=VALUE"),
        (("--set", "=3"), "--set='=3': expected KEY=VALUE"),
        (("--set", "search.lr=-1"), "--set search.lr=-1.0: expected at least 0"),
        (("--set", "search.lr=1", "--lr", "2"), "--set='search.lr=1': another value than 2.0, which was given too"),
        (("--set", "seed=1", "--set", "seed=2"), "--set='seed=2': another value than 1, which was given too"),
        (("--set", "search={epochs: 2}"), "--set='search={epochs: 2}': another value than 1, which was given too"),
        (("--set", "model={name: convnet, width: 4}"), "another value than 8, which was given too"),
        (("--model", "conv2", "--set", "model.name=convnet"), "another value than conv2, which was given too"),
        (("--set", "search.lr=.nan"), "--set search.lr=nan: expected a finite number of at least 0"),
        (("--set", "model.classes=3"), "--set model.classes=3: expected at least 10, the classes of digits"),
        (
            ("--schedule", "multistep", "--milestones", "0", "0", "--gamma", "1e30"),
            "--gamma=1e+30: expected a learning",
        ),
        (("--set", "search.rate=1"), "search.rate: unknown"),
        (("--set", "search.lr=["), "--set='search.lr=[': not YAML"),
        (("--set", "model.depth=4"), "--set model.depth=4: convnet has only"),
        (("--path", "here"), "--path=here: expected no path: digits ships"),
        (("--data", "cifar10"), "--path: expected the folder or file of cifar10"),
        (("--data", "minst"), "data.name='minst': unknown; did you mean mnist?"),
        (("--data", "no.module:load"), "--data=no.module:load: there is no module no.module"),
        (("--data", "slt_kernels:data"), "--data=slt_kernels:data: slt_kernels has no function data"),
        (("--data", "text", "--path", "here"), "--path=here: no such file"),
        (("--model", "gpt_mini"), "expected data of kind text, got images"),
        (("--save-every", "-1", "--folder", "run"), "--save-every=-1: expected at least 0"),
        (("--save-every", "3"), "--save-every: expected --folder too"),
        (("--tensorboard",), "--tensorboard: expected --folder too"),
    ),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_find_refuses_arguments_that_do_not_fit(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["find", *SMALL, *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""  # no progress bar
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments,message",
    (
        (("--ratios", "2"), "--ratios=2.0: expected a fraction"),
        (("--splits", "1"), "--splits='1': expected pruned:locked"),
        (("--widths", "0"), "--widths=0: expected at least 1"),
        (("--width", "0"), "--width=0: expected at least 1"),
        (("--keep", "2"), "--keep=2.0: expected a fraction"),
        (("--jobs", "0"), "--jobs=0: expected at least 1"),
        (("--jobs", "1025"), "--jobs=1025: expected at most 1024 processes"),
        (("--cluster", "tcp://a:1"), "--cluster=tcp://a:1: expected --engine=dask or --engine=ray"),
        (("--seeds", "0"), "--seeds=0: expected at least 1"),
        (("--seeds", str(10**12)), f"--seeds={10**12}: expected at most 10000"),
        (("--batch-size", "0"), "--batch-size=0: expected at least 1"),
        (("--data", "text"), "--path: expected the folder or file of text"),
        (("--model", "gpt_mini"), "expected data of kind text, got images"),
        (("--set", "model.classes=3"), "--set model.classes=3: expected at least 10, the classes of digits"),
    ),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_sweep_refuses_before_the_first_search(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("slt sweep: ")
    assert message in printed.err
    assert printed.out == ""
    assert not list(tmp_path.iterdir())


# Messages


@pytest.mark.parametrize("command", ("find", "sweep", "eval"))
def test_errors_name_the_flag_of_a_setting(command):
    arguments = cli._parser().parse_args([command, *(["x"] if command == "eval" else [])])
    options = {a.dest: a.option_strings[0] for a in arguments.parser._actions if a.option_strings}
    for name, option in options.items():
        assert cli._message(ValueError(f"{name}=3: expected 4"), arguments) == f"{option}=3: expected 4"
        assert (
            cli._message(ValueError(f"a {name.rpartition('.')[2]}=None: expected 4"), arguments)
            == f"a {option}: expected 4"
        )


def test_errors_in_a_config_keep_its_keys(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text("search: {lr: -1}")
    assert main(["find", "--config", str(file), "--lr", "0.1"]) == 2
    assert capsys.readouterr().err == f"slt find: --config={file}: lr=-1.0: expected at least 0\n"


def test_errors_in_a_checkpoint_keep_its_keys(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["find", *SMALL, "--folder", "run"]
    experiment = cli._experiment(cli._parser().parse_args(command))
    progress = {"epoch": 0, "step": 0, "taken": 0, "loss": 0.0}
    state = {"scaler": {}, "draws": None, "progress": progress, "rows": [], "model": "x"}
    Run(tmp_path / "run", experiment.identity).save(state)
    assert main(command) == 2
    message = "--folder=run: its checkpoints do not fit this search (model='x': expected keys and values)"
    assert capsys.readouterr().err == f"slt find: {message}\n"


def test_errors_in_a_file_of_a_folder_keep_its_keys():
    arguments = cli._parser().parse_args(["sweep", "--out", "results"])
    message = "results/sweep.csv: damaged in row 1: width='x': expected an integer of at least 0"
    assert cli._message(ValueError(message), arguments) == message


def test_names_are_printed_in_any_encoding(found, tmp_path, monkeypatch):
    file = tmp_path / "ünïcødé.slt"
    file.write_bytes(found[0].read_bytes())
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii"))
    assert main(["info", str(file)]) == 0
    sys.stdout.flush()
    assert b"\\xfcn\\xefc\\xf8d\\xe9.slt: " in printed.getvalue()


def test_descriptions_keep_their_capitals():
    assert (
        "Convert a configuration file of the code of Otsuka"
        in cli._parser().parse_args(["import", "x"]).parser.description
    )


@pytest.mark.parametrize(
    "command,file,flag",
    (
        ("find --out find", "find", "--out=find: "),
        ("find --data text --path text", "text", "--path=text: "),
        ("find --path a --folder a/b", "a/b/lock", "--folder=a/b: a/b/lock: "),
        ("find --path . --out net.slt", "tmp", "tmp: "),
        ("find --model gin", "gin", "gin: "),
        ("sweep", "sweep", "--out=sweep: "),
        ("sweep", "sweep/experiment.json", "--out=sweep: sweep/experiment.json: "),
        ("eval eval", "eval", "file=eval: "),
        ("info info", "info", "file=info: "),
    ),
)
def test_errors_name_the_flag_of_a_file(command, file, flag):
    """Even if another argument or the command has the same name."""
    error = OSError(30, "Read-only file system", file)
    assert cli._message(error, cli._parser().parse_args(command.split())) == f"{flag}Read-only file system"


def test_a_read_only_file_system(tmp_path, capsys, monkeypatch):
    def mkdir(path, **_):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pathlib.Path.mkdir", mkdir)
    for command, flag in (("sweep", "--out=sweep"), ("find --folder find", "--folder=find")):
        assert main([*command.split(), *SMALL]) == 2
        printed = capsys.readouterr()
        assert printed == ("", f"slt {command.split()[0]}: {flag}: Read-only file system\n")


class Log(io.StringIO):
    """A file that records its content at each flush."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal, self.flushed = terminal, []

    def isatty(self) -> bool:
        return self.terminal

    def flush(self) -> None:
        self.flushed.append(self.getvalue())


def test_bench_refuses_a_folder_that_is_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.run", None)
    (tmp_path / "file").touch()
    assert main(["bench", "quick", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"slt bench: --out={tmp_path / 'file'}: File exists\n"


def test_without_a_terminal_each_epoch_is_a_line(tmp_path, monkeypatch):
    log = Log(terminal=False)
    monkeypatch.setattr(sys, "stdout", log)
    assert main(["find", "--out", str(tmp_path / "net.slt"), "--model", "gin", "--epochs", "2"]) == 0
    first, second, *_ = log.getvalue().splitlines()
    for number, line in enumerate((first, second), 1):
        assert re.fullmatch(rf"epoch {number} of 2: loss \d+\.\d+, validation \d+\.\d%", line)
    assert log.flushed[:2] == [f"{first}\n", f"{first}\n{second}\n"]
    assert "\x1b" not in log.getvalue()


def test_on_a_terminal_there_is_a_bar(tmp_path, monkeypatch):
    log = Log(terminal=True)
    monkeypatch.setattr(sys, "stdout", log)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["find", "--out", str(tmp_path / "net.slt"), "--data", "text"]) == 2
    assert log.getvalue() == ""
    assert main(["find", "--out", str(tmp_path / "net.slt"), "--model", "gin", "--epochs", "2"]) == 0
    assert "\x1b" in log.getvalue()
    assert "searching" in log.getvalue()
    assert "epoch 2 of 2: loss" in log.getvalue()


@pytest.mark.parametrize("command", ("find", "sweep", "eval", "import", "info", "bench", "doctor"))
def test_torchrun_passes_on_every_option(command):
    """torchrun parses the whole line and refuses an option that abbreviates several of its own."""
    for action in cli._parser()._subparsers._group_actions[0].choices[command]._actions:
        for option in action.option_strings:
            line = [command, option, "X", f"{option}=X"]
            parsed = get_args_parser().parse_args(["--nproc-per-node", "2", "-m", "slt_kernels", *line])
            assert (parsed.nproc_per_node, parsed.training_script_args) == ("2", line)


def test_the_default_data_of_a_graph_network(tmp_path):
    out = tmp_path / "net.slt"
    assert main(["find", "--model", "gin", "--width", "8", "--epochs", "1", "--out", str(out)]) == 0
    assert ticket_info(out).metadata["network"]["data"] == {"name": "karate"}


@pytest.mark.parametrize(
    "arguments,message",
    (
        (("find", "--config", "none.yaml"), "--config=none.yaml: No such file or directory"),
        (("sweep", "--config", "."), "--config=.: Is a directory"),
        (("eval", "none.slt"), "file=none.slt: No such file or directory"),
        (("info", "none.slt"), "file=none.slt: No such file or directory"),
        (("info", "."), ".: not a ticket, but a folder"),
    ),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_file_that_cannot_be_read(arguments, message, tmp_path, capsys, monkeypatch):
    """The error is one line that names the argument."""
    monkeypatch.chdir(tmp_path)
    assert main(list(arguments)) == 2
    assert capsys.readouterr() == ("", f"slt {arguments[0]}: {message}\n")


@pytest.mark.parametrize("command", ("eval", "info"))
def test_files_that_are_not_tickets(command, found, tmp_path, capsys):
    file = tmp_path / "net.slt"
    assert main([command, str(file)]) == 2
    assert "net.slt" in capsys.readouterr().err
    file.write_bytes(found[0].read_bytes()[:-10])
    assert main([command, str(file)]) == 2
    assert "cut short" in capsys.readouterr().err


def test_eval_refuses_a_ticket_that_find_did_not_write(tmp_path, capsys):
    file = tmp_path / "net.slt"
    save_ticket(convert(convnet(4)), file)
    assert main(["eval", str(file)]) == 2
    assert "not written by slt find" in capsys.readouterr().err
    assert main(["info", str(file)]) == 0


@pytest.mark.parametrize(
    "module,arguments,status,out,err",
    (
        ("slt_kernels", ("--help",), 0, "usage: slt .*", ""),
        ("slt_kernels.cli", ("info", "no-such-file"), 2, "", "slt info: .*no-such-file: .*\n"),
    ),
)
def test_as_a_program(module, arguments, status, out, err):
    """As ``python -m`` runs it."""
    code = "import runpy, sys\nrunpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    done = run_forked(code, None, module, *arguments)
    assert done.returncode == status
    assert re.fullmatch(out, done.stdout, re.DOTALL) and re.fullmatch(err, done.stderr)


# Data


def test_digits():
    assert DATASETS["digits"] is digits
    data = digits()
    assert [len(part) for part in data[:3]] == [1149, 288, 360]
    assert data.classes == 10
    images = torch.cat([part.images for part in data[:3]])
    assert (images.shape, images.dtype) == ((1797, 1, 8, 8), torch.float32)
    assert data.train.images.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train.images.std().item() == pytest.approx(1, abs=1e-5)
    for part in data[:3]:
        counts = part.labels.bincount(minlength=10)
        assert counts.min() > 0.08 * len(part)
    assert torch.equal(digits().test.images, data.test.images)
    assert not torch.equal(digits(1).test.labels, data.test.labels)
    rows = {tuple(image.flatten().tolist()) for image in data.test.images}
    trained = {tuple(image.flatten().tolist()) for image in data.train.images}
    assert len(rows & trained) == 0
