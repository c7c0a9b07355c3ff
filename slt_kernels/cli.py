"""The command line ``slt``: find, sweep, eval, import, info, bench and doctor, each in an ``_add_*`` function."""

import argparse
import dataclasses
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import backends
from ._text import printable, shown
from .experiments import sweep
from .experiments.data import DATASETS, DEFAULTS, is_function
from .experiments.engines import ENGINES
from .experiments.models import MODELS
from .experiments.paper import from_paper
from .experiments.train import (
    Experiment,
    Interrupted,
    Run,
    Search,
    SourceNetwork,
    accuracy,
    check_experiments,
    find,
    load_data,
    processes,
)
from .experiments.train.loop import check_shard
from .experiments.train.reload import described, rebuilt
from .experiments.train.run_folder import FILES
from .files import write_atomically
from .tickets import ticket_info

_MOST_THREADS = 1024  # OpenMP ends the process if it cannot start them
_MOST_SEEDS = 10_000
_STOPPED = 130  # exit status of a program that SIGINT ends
_SETTING = re.compile(r"""(?<![\w./'"=-])(?<!- )(?<!--set )(?:(?:model|data|source|search)\.)?(\w+)=(None(?=:))?""")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit status: 0, 2 for a wrong argument or file, 130 if stopped."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may have characters that its encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        arguments.function(arguments)
        status = 0
    except Interrupted as stop:
        print(f"slt {arguments.command}: {stop}; run the same command to continue", file=sys.stderr)
        status = _STOPPED
    except KeyboardInterrupt:
        print(f"slt {arguments.command}: stopped", file=sys.stderr)
        status = _STOPPED
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:
        print(f"slt {arguments.command}: {_message(error, arguments)}", file=sys.stderr)
        status = 2
    if argv is None and processes.launched():
        processes.leave(status)
    return status


def _message(error: Exception, arguments: argparse.Namespace) -> str:
    """The error's text with flags in place of names of settings, and with the flag of the file that it names."""
    if isinstance(error, OSError) and error.filename is not None:
        return _file_message(str(error.filename), error.strerror or str(error), arguments)
    text = str(error)
    for action, path in _paths(arguments):
        if text.startswith(f"{path}: "):  # names of settings in it belong to that file, not to the command line
            return f"{action.option_strings[0]}={text}" if action.option_strings else text
        if text.startswith(f"{path}{os.sep}"):  # of a file in that folder
            return text
    flags = _flags(arguments)

    def flag(match: re.Match) -> str:
        name, empty = match.groups()
        return flags[name] + ("" if empty else "=") if name in flags else match[0]

    return _SETTING.sub(flag, text)


def _file_message(file: str, reason: str, arguments: argparse.Namespace) -> str:
    """Names the argument that is the file, or the innermost folder that contains it."""
    found = []
    for action, path in _paths(arguments):
        name = f"{action.option_strings[0] if action.option_strings else action.dest}={path}"
        if Path(path) == Path(file):
            return f"{name}: {reason}"
        if Path(path) in Path(file).parents and Path(path).parts:
            found.append((len(Path(path).parts), f"{name}: "))
    return f"{max(found, default=(0, ''))[1]}{file}: {reason}"


def _paths(arguments: argparse.Namespace) -> list[tuple[argparse.Action, Path | str]]:
    """The given arguments that are files or folders, with their values."""
    found = [(a, getattr(arguments, a.dest, None)) for a in arguments.parser._actions if a.type in _PATHS]
    return [(action, path) for action, path in found if path is not None]


def _flags(arguments: argparse.Namespace) -> dict[str, str]:
    """The flag of each setting by its name in messages; the given one if a setting has two flags."""
    flags = {}
    actions = [a for a in arguments.parser._actions if a.option_strings]
    for action in sorted(actions, key=lambda a: getattr(arguments, a.dest, a.default) != a.default):
        name = action.dest.rpartition(".")[2]
        flags[name] = action.option_strings[0]
        if action.nargs == "+":  # messages name one of its values
            flags[name.removesuffix("s")] = action.option_strings[0]
    for key, _, _ in (text.partition("=") for text in getattr(arguments, "set", ())):
        flags[key.rpartition(".")[2]] = f"--set {key}"
    return flags


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("slt", description="Strong lottery tickets: random networks, learned masks.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_find, _add_sweep, _add_eval, _add_import, _add_info, _add_bench, _add_doctor):
        add(commands)
    return parser


def _add(commands, name: str, function, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(function=function, parser=parser)
    return parser


# Arguments of several commands: files, the experiment, and the machine


def _name(text: str) -> str:
    """The type of a path that stays text; refuses an empty one, which would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected the path of a file or folder, got an empty text")
    return text


def _path(text: str) -> Path:
    return Path(_name(text))


_PATHS = (_path, _name)  # types of arguments that are files or folders


def _add_experiment(parser: argparse.ArgumentParser, leave_out: tuple[str, ...] = ()) -> None:
    """Flags of an experiment; a given flag overrides the value of the file or the default."""
    what = parser.add_argument_group("experiment")
    what.add_argument("--config", type=_path, help="YAML file with settings; flags override them (default: the digits)")
    given = {"default": argparse.SUPPRESS}
    what.add_argument(
        "--data",
        metavar="NAME",
        help=f"data set: {', '.join(DATASETS)}, or package.module:function (default: digits, or karate for graphs)",
        **given,
    )
    what.add_argument(
        "--path", dest="data.path", type=_name, metavar="PATH", help="folder or file of the data set", **given
    )
    what.add_argument("--model", choices=MODELS, help="network (default: convnet)", **given)
    what.add_argument(
        "--width",
        dest="model.width",
        type=_width,
        metavar="N",
        help="width of the network's first layer; with a decimal point (0.5) a factor on its default",
        **given,
    )
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key of a YAML file, for example model.depth=4, or several: search={epochs: 4, lr: 0.2}",
    )
    for title, section, kind in (
        ("", "", Experiment),
        ("source network", "source.", SourceNetwork),
        ("search", "search.", Search),
    ):
        group = parser.add_argument_group(title) if title else what
        hints = typing.get_type_hints(kind)
        for f in dataclasses.fields(kind):
            if f.metadata and f.name not in (*leave_out, "layers"):  # too many numbers for a flag
                _add_setting(group, section, f, hints[f.name])


def _width(text: str) -> int | float:
    return float(text) if "." in text else int(text)


_width.__name__ = "width"  # in argparse's error


def _add_setting(group, section: str, f: dataclasses.Field, hint: Any) -> None:
    default = f.default if f.default != () else "none"
    options = {"dest": section + f.name, "default": argparse.SUPPRESS}
    name = f.name.replace("_", "-")
    options["help"] = f"{f.metadata['what']} (default: {'none' if default is None else default})"
    if hint is bool:
        options["action"] = "store_true"
    elif typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        options |= {"type": kind, "nargs": "+", "metavar": "NAME" if kind is str else "N"}
    elif f.metadata["choices"]:
        options["choices"] = [c or "none" for c in f.metadata["choices"]]
    else:
        options |= {"type": hint, "metavar": "N" if hint is int else "X"}
    group.add_argument(f"--{name}", **options)


def _experiment(arguments: argparse.Namespace) -> Experiment:
    experiment = Experiment.load(arguments.config) if arguments.config else Experiment()
    changes = {k: v for k, v in vars(arguments).items() if "." in k or k in ("seed", "model", "data")}
    for text in arguments.set:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ValueError(f"set={shown(text)}: expected KEY=VALUE")
        try:
            read = Experiment.read_value(value)
        except ValueError as error:
            raise ValueError(f"set={shown(text)}: {error}") from None
        for path, part in _parts(key, read).items():
            for same in (path, path.removesuffix(".name"), f"{path}.name"):
                if same in changes and changes[same] != part:
                    raise ValueError(f"set={shown(text)}: another value than {changes[same]}, which was given too")
            changes[path] = part
    name = changes.get("model", changes.get("model.name"))
    if isinstance(name, str) and name in MODELS and not changes.keys() & {"data", "data.name"} and not arguments.config:
        changes["data"] = DEFAULTS.get(MODELS[name].kind, experiment.data["name"])
    return experiment.override(changes)


def _parts(key: str, value: Any) -> dict[str, Any]:
    """The keys and values of a section that is given as a whole; of another key, itself."""
    if not isinstance(value, Mapping) or key not in {f.name for f in dataclasses.fields(Experiment)}:
        return {key: value}
    return {key if name == "name" else f"{key}.{name}": part for name, part in value.items()}


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads of each process (default: PyTorch's choice)")


def _on_machine(arguments: argparse.Namespace) -> torch.device:
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"threads={arguments.threads}: expected at least 1")
        if arguments.threads > _MOST_THREADS:
            raise ValueError(f"threads={arguments.threads}: expected at most {_MOST_THREADS}")
        torch.set_num_threads(arguments.threads)
    try:
        device = torch.device(arguments.device)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={shown(arguments.device)}: expected cpu, cuda or cuda:N")
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(f"device={shown(arguments.device)}: PyTorch finds {gpus or 'no'} GPU{'s' * (gpus > 1)}")
    return device


def _check_written(
    arguments: argparse.Namespace, names: Sequence[str], inputs: Mapping[str, Any], search: Path | None = None
) -> None:
    """Raises ValueError before any work for output files that cannot be written or would overwrite another file.

    Args:
        arguments: the command's.
        names: those of output files.
        inputs: files that are read, by their names in messages; other values than paths are ignored.
        search: the folder of the search's own files.
    """
    paths = {name: path for name, path in inputs.items() if isinstance(path, str | Path)}
    used = {Path(path).resolve(): f"{name}={path}" for name, path in paths.items()}
    for name in names:
        path = getattr(arguments, name)
        if path is None:
            continue
        folder = path.resolve().parent
        if path.is_dir():
            raise ValueError(f"{name}={path}: expected a file, not a folder")
        if path.exists() and not path.is_file():
            raise ValueError(f"{name}={path}: expected a file, not a device or a pipe")
        if not folder.is_dir():
            raise ValueError(f"{name}={path}: expected a file in a folder that exists")
        try:
            with tempfile.TemporaryFile(dir=folder):  # permissions are not sufficient, as on a read-only file system
                pass
        except OSError:
            raise ValueError(f"{name}={path}: expected a file in a folder that can be written") from None
        if path.resolve() in used:
            raise ValueError(f"{name}={path}: expected another file than {used[path.resolve()]}")
        if search is not None and folder == search.resolve() and FILES.fullmatch(path.resolve().name):
            raise ValueError(f"{name}={path}: expected another file than those of the search in folder={search}")
        used[path.resolve()] = f"{name}={path}"


def _rich():
    try:
        import rich.console
        import rich.progress
        import rich.table
    except ModuleNotFoundError:
        raise ModuleNotFoundError('progress is shown with rich: pip install "slt_kernels[demo]"') from None
    return rich


class _Progress:
    """Progress of a long command: a bar on a terminal, otherwise a line per event, flushed at once.

    The bar appears with the first update, so that errors in arguments are printed before it.
    """

    def __init__(self, rich, shown: bool = True) -> None:
        console = rich.console.Console()
        terminal = sys.stdout is not None and sys.stdout.isatty() and console.is_interactive
        self._lines = shown and not terminal
        self._bar = None
        if shown and terminal:
            columns = (*rich.progress.Progress.get_default_columns(), rich.progress.TextColumn("{task.fields[event]}"))
            self._bar = rich.progress.Progress(*columns, console=console)
            self._task = self._bar.add_task("searching", total=None, event="")

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.start()
            self._bar.update(self._task, completed=done, total=total)

    def show(self, event: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, event=event)
        elif self._lines:
            try:
                print(event, flush=True)
            except OSError:  # nobody reads any more (`| head`), or the disk is full: that does not end a search
                self._lines = False


# find


def _add_find(commands) -> None:
    parser = _add(commands, "find", _find, "search for a ticket, write it, reload and test it, and print a report")
    parser.add_argument(
        "--out", type=_path, default=Path("ticket.slt"), help="file of the ticket (default: ticket.slt)"
    )
    parser.add_argument("--json", type=_path, help="file for the report as JSON")
    parser.add_argument("--compress", action="store_true", help="entropy-code the ticket's bits")
    run = parser.add_argument_group("run")
    run.add_argument(  # not --run, which torchrun would parse as its own --run-path
        "--folder", type=_path, help="folder for checkpoints and logs; a stopped search continues from them"
    )
    run.add_argument("--save-every", type=int, default=0, help="steps between checkpoints (default: one epoch)")
    run.add_argument("--keep-every", type=int, default=0, help="epochs between kept checkpoints (default: none)")
    run.add_argument("--tensorboard", action="store_true", help="also log for TensorBoard")
    run.add_argument(
        "--shard",
        choices=["fsdp2"],
        help="divide scores, gradients and optimizer state among the processes; their number may change from one "
        "start to the next (default: each process has all)",
    )
    _add_machine(run)
    _add_experiment(parser)


def _find(arguments: argparse.Namespace) -> None:
    rich = _rich()
    experiment = _experiment(arguments)
    inputs = {"config": arguments.config, "path": experiment.data.get("path")}
    _check_written(arguments, ("out", "json"), inputs, arguments.folder)
    needs_folder = {name: getattr(arguments, name) for name in ("save_every", "keep_every", "tensorboard")}
    if arguments.folder is None and any(needs_folder.values()):
        given = next(f"--{name.replace('_', '-')}" for name, value in needs_folder.items() if value)
        raise ValueError(f"{given}: expected --folder too, the folder of the checkpoints and logs")
    epochs, shard = experiment.search.epochs, arguments.shard
    check_shard(shard, experiment.search)
    with processes.joined(_on_machine(arguments), alone=shard is not None) as device:
        first = processes.rank() == 0
        run = None
        if arguments.folder is not None:
            run = Run(arguments.folder, experiment.identity, **needs_folder, sharded=shard is not None)
        with _Progress(rich, shown=first) as progress:

            def on_step(epoch: int, step: int, steps: int) -> None:
                progress.update((epoch - 1) * steps + step, epochs * steps)

            def on_epoch(epoch: int, loss: float, validation: float) -> None:
                progress.show(f"epoch {epoch} of {epochs}: loss {loss:.3f}, validation {validation:.1%}")

            more = {"on_epoch": on_epoch, "on_step": on_step, "shard": shard}
            report = find(experiment, arguments.out, device, compress=arguments.compress, run=run, **more)
        if first:
            if arguments.json is not None:
                write_atomically(arguments.json, (json.dumps(report, indent=1) + "\n").encode())
            _print_report(rich, report, arguments.out)


def _print_report(rich, report: dict[str, Any], out: Path) -> None:
    network = report["experiment"]
    dense = network["search"]["algorithm"] == "dense"
    what = "A dense network" if dense else "A ticket"
    table = rich.table.Table(title=f"{what} for {network['data']['name']}", show_header=False)
    size, free, weights = report["ticket_bytes"], report["free_bits"], report["weights"]
    masks = (
        ("free bits", f"{free:,} ({1 - free / weights:.0%} frozen)"),
        ("kept weights", f"{report['kept']:,}"),
        ("ticket", f"{size:,} bytes, of which {report['mask_bytes']:,} are mask bits"),
    )
    for row in (
        ("test accuracy", f"{report['test_accuracy']:.2%}"),
        ("test cross-entropy", f"{report['test_bits']:.3f} bits per target"),
        ("reloaded from the file", f"{report['reloaded_accuracy']:.2%}"),
        ("weights", f"{weights:,}"),
        *((("file", f"{size:,} bytes"),) if dense else masks),
        ("the same network in fp32", f"{report['fp32_bytes']:,} bytes ({report['fp32_bytes'] / size:.0f}x)"),
        ("backend", report["backend"]),
        ("time", f"{report['seconds']:.1f} s"),
        ("written to", str(out)),
    ):
        table.add_row(*row)
    rich.console.Console().print(table)


# sweep


def _add_sweep(commands) -> None:
    parser = _add(commands, "sweep", _sweep, "measure accuracy against ticket size for three kinds of source network")
    parser.add_argument("--out", type=_path, default=Path("sweep"), help="folder for the results (default: sweep)")
    grid = parser.add_argument_group("grid")
    grid.add_argument(
        "--ratios", type=float, nargs="+", default=[0.5, 0.7, 0.8, 0.9], help="frozen fractions (default: %(default)s)"
    )
    grid.add_argument(
        "--splits",
        nargs="+",
        default=["1:0", "6:1", "1:1"],
        help="pruned:locked, of the frozen weights (default: %(default)s)",
    )
    grid.add_argument("--widths", type=int, nargs="+", help="widths of the network (default: its own)")
    grid.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default: 3)")
    grid.add_argument("--keep", type=float, default=0.5, help="fraction of the free weights kept (default: 0.5)")
    grid.add_argument("--trained", action="store_true", help="also train the weights of each width, for comparison")
    where = parser.add_argument_group("where the searches run")
    where.add_argument(
        "--engine",
        choices=ENGINES,
        default="loky",
        help="loky: processes of this machine; dask, ray: a cluster (default: loky)",
    )
    where.add_argument(
        "--jobs", type=int, help="number of concurrent searches (default: 1, or as many as the cluster has room for)"
    )
    where.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="address of dask's scheduler or of ray (default: that of the environment, or a cluster on this machine)",
    )
    _add_machine(where)
    _add_experiment(parser, leave_out=("seed", "prune", "lock", "sparsity"))


def _sweep(arguments: argparse.Namespace) -> None:
    rich = _rich()
    sweep.load_matplotlib()  # a missing package raises here, before the searches
    if arguments.seeds < 1:
        raise ValueError(f"seeds={arguments.seeds}: expected at least 1")
    if arguments.seeds > _MOST_SEEDS:
        raise ValueError(f"seeds={arguments.seeds}: expected at most {_MOST_SEEDS}")
    experiment, device = _experiment(arguments), _on_machine(arguments)
    grid = sweep.Grid(
        ratios=arguments.ratios,
        splits=arguments.splits,
        widths=arguments.widths or [None],
        seeds=range(arguments.seeds),
        keep=arguments.keep,
        trained=arguments.trained,
    )
    each_width = {point.width: e for point, e in grid.experiments(experiment).items()}
    check_experiments(*each_width.values())
    with _Progress(rich) as progress:

        def on_row(done: int, total: int) -> None:
            progress.update(done, total)
            progress.show(f"{done} of {total} searches done")

        rows = sweep.run(
            experiment,
            grid,
            arguments.out,
            engine=arguments.engine,
            jobs=arguments.jobs,
            cluster=arguments.cluster,
            threads=arguments.threads,
            device=device,
            on_row=on_row,
        )
    bits = MODELS[experiment.model["name"]].kind == "text"
    sweep.plot(rows, arguments.out, bits)
    print(sweep.table(rows, bits))
    print(f"written to {arguments.out}: sweep.csv, sweep.png, sweep.svg")


# eval


def _add_eval(commands) -> None:
    parser = _add(commands, "eval", _eval, "load and test a ticket of slt find")
    parser.add_argument("file", type=_path)
    parser.add_argument(
        "--path",
        type=_name,
        help="folder or file of the data set (required for data that do not ship with a package)",
    )
    parser.add_argument("--data", metavar="NAME", help="package.module:function of the ticket's data, which is run")
    _add_machine(parser)


def _eval(arguments: argparse.Namespace) -> None:
    device = _on_machine(arguments)
    info = ticket_info(arguments.file)
    experiment, found = described(info, arguments.file)
    name, named = experiment.data["name"], experiment.data.get("path")
    if is_function(name) and arguments.data != name:  # a ticket must not decide what runs here
        raise ValueError(f"data: expected --data {name}, which runs that function, to test a ticket of its data")
    if arguments.data not in (None, name):
        raise ValueError(f"data={shown(arguments.data)}: expected {name}, the data of the ticket")
    if arguments.path is not None:
        experiment = experiment.override({"data.path": arguments.path})
    elif named is not None:  # the ticket has the path on its author's machine
        raise ValueError(f"path: expected --path, the folder or file of {name} (path in the ticket: {shown(named)})")
    data = load_data(experiment)
    model = rebuilt(experiment, data, info, arguments.file, device)
    result = accuracy(model, data.test)
    print(f"test accuracy {result:.2%} (in the ticket: {found:.2%})")


# import


def _add_import(commands) -> None:
    text = "convert a configuration file of the code of Otsuka et al. (2024), and list what is left out or differs"
    parser = _add(commands, "import", _import, text)
    parser.add_argument("file", type=_path, help="their YAML file; its mask_file is read too")
    parser.add_argument("--out", type=_path, help="file for the configuration (default: print it)")


def _import(arguments: argparse.Namespace) -> None:
    try:
        values = Experiment.read_values(arguments.file)
    except ValueError as error:
        raise ValueError(f"{arguments.file}: {error}") from None
    masks = values.get("mask_file") if isinstance(values, Mapping) else None
    _check_written(arguments, ("out",), {"file": arguments.file, "mask_file": masks})
    try:
        experiment, left_out = from_paper(values)
    except ValueError as error:
        raise ValueError(f"{arguments.file}: {error}") from None
    for line in left_out:
        print(f"slt import: {line}", file=sys.stderr)
    text = experiment.to_yaml()
    if arguments.out is None:
        print(text, end="")
    else:
        write_atomically(arguments.out, text.encode())


# info


def _add_info(commands) -> None:
    _add(commands, "info", _info, "print the content of a ticket").add_argument("file", type=_path)


def _info(arguments: argparse.Namespace) -> None:
    info = ticket_info(arguments.file)
    print(f"{arguments.file}: {info.size:,} bytes, contract version {info.contract}")
    print(f"{len(info.layers)} layers, {info.weights:,} weights, {info.free_bits:,} free bits, {info.kept:,} kept")
    print(f"learned bits: {info.mask_bytes:,} bytes" + (", entropy-coded" if info.compressed else ""))
    for layer in info.layers:
        source = layer.source
        shape = "x".join(map(str, layer.shape))
        print(
            f"  {printable(layer.name) or '(root)'}: {shape} {layer.weight}, seed {source.seed & (2**64 - 1)}, "
            f"layer {source.layer}, pruned {source.prune_below}/256, locked {256 - source.lock_from}/256, "
            f"free {layer.free:,}, kept {layer.kept:,}, scale {layer.weight_scale:.6g} ({layer.scale or 'none'})"
        )
    for tensor in info.tensors:
        print(f"  {printable(tensor.name)}: {tensor.dtype} {list(tensor.shape)}")
    for key, value in info.metadata.items():
        print(f"  {printable(key)}: {printable(value) if isinstance(value, str) else shown(value, 2000)}")


# bench


def _add_bench(commands) -> None:
    parser = _add(commands, "bench", _bench, "measure speed, memory and sizes on this machine, beside other libraries")
    parser.add_argument(
        "profile", choices=("quick", "full"), help="quick takes a few minutes on two cores, full about twenty"
    )
    parser.add_argument("--out", type=_path, help="folder for the results (default: bench/results of the checkout)")


def _bench(arguments: argparse.Namespace) -> None:
    suite = Path(__file__).resolve().parent.parent / "bench" / "suite.py"
    if not suite.is_file():
        raise FileNotFoundError(
            f"{suite} does not exist: the benches are only in a checkout, installed with `pip install -e .`"
        )
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)  # an error here comes before minutes of work
    out = [] if arguments.out is None else ["--out", str(arguments.out)]
    status = subprocess.run([sys.executable, str(suite), arguments.profile, *out], check=False).returncode
    if status != 0:
        raise SystemExit(status)


# doctor


def _add_doctor(commands) -> None:
    _add(commands, "doctor", _doctor, "list the backends and their kernels, and why a backend does not run here")


def _doctor(arguments: argparse.Namespace) -> None:
    print(f"Python {platform.python_version()}, PyTorch {torch.__version__}, {platform.machine()}")
    for package in ("triton", "safetensors", "numpy"):
        try:
            print(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package} is not installed")
    for name in backends.names():
        print(f"backend {name}: {backends.describe(name)}")
    print(f"CUDA kernels: {backends.on('cuda').kernels()}")
    devices = [torch.device(kind) for kind in ("cpu", "cuda") if kind == "cpu" or torch.cuda.is_available()]
    for device in devices:
        try:
            print(f"tensors on {device} use {backends.name_for(device)}")
        except (RuntimeError, ValueError) as error:  # a wrong SLT_BACKEND or SLT_CPU_ISA
            print(error)
    print(_kernel_table(devices))


def _kernel_table(devices: Sequence[torch.device]) -> str:
    """The backends with a kernel for each operation and device, in the order in which they are tried."""
    tables = [backends.table(device) for device in devices]
    lines = [["operation", *map(str, devices)]]
    lines += [[operation, *(", ".join(table[operation]) for table in tables)] for operation in tables[0]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


if __name__ == "__main__":
    raise SystemExit(main())
