"""The command line: ``slt find``, ``slt eval``, ``slt info``, ``slt bench``, ``slt doctor``."""

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from . import backends
from .convert import convert, summary
from .data import DATASETS
from .edge_popup import SCOPES
from .freezing import SPREADS
from .models import MODELS, build
from .nn.supermask import SCALES
from .source import WEIGHTS, Freeze
from .ticket import TicketInfo, load_ticket, save_ticket, ticket_info
from .train import Search, accuracy, search


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, or 2 where an argument or a file is at fault."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:
        print(f"slt {arguments.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser("slt", description="Strong lottery tickets: random networks, learned masks.")
    commands = parser.add_subparsers(dest="command", required=True)

    find = commands.add_parser("find", help="search a ticket, write it, report what it is", formatter_class=form)
    find.set_defaults(run=_find)
    find.add_argument("--out", type=Path, default=Path("ticket.slt"), help="the ticket file to write")
    find.add_argument("--json", type=Path, help="write the report there too, as JSON")
    find.add_argument("--data", choices=DATASETS, default="digits", help="data set")
    find.add_argument("--model", choices=MODELS, default="convnet", help="network")
    find.add_argument("--width", type=int, default=96, help="channels of its first layer")
    source = find.add_argument_group("source network")
    source.add_argument("--seed", type=int, default=0, help="of the network, the split and the order of examples")
    source.add_argument("--prune", type=float, default=0.6, help="fraction of the weights never in the ticket")
    source.add_argument("--lock", type=float, default=0.1, help="fraction always in it")
    source.add_argument("--spread", choices=SPREADS, default="uniform", help="how these are shared out over layers")
    source.add_argument("--weight", choices=WEIGHTS, default="signed_constant", help="distribution of the weights")
    source.add_argument("--scale", choices=[s or "none" for s in SCALES], default="dynamic", help="factor on them")
    source.add_argument("--compact", action="store_true", help="hold masks as one bit a free weight: least memory")
    how = find.add_argument_group("search")
    how.add_argument("--sparsity", type=float, default=0.7, help="fraction of all weights dropped, frozen included")
    how.add_argument("--scope", choices=SCOPES, default="global", help="one threshold for all layers, or one each")
    how.add_argument("--epochs", type=int, default=16)
    how.add_argument("--batch-size", type=int, default=32)
    how.add_argument("--lr", type=float, default=0.1, help="of SGD; follows a cosine to 0")
    how.add_argument("--momentum", type=float, default=0.9)
    how.add_argument("--weight-decay", type=float, default=1e-4, help="on the scores")
    _add_machine(find)

    evaluate = commands.add_parser("eval", help="load a ticket that find wrote, and test it", formatter_class=form)
    evaluate.set_defaults(run=_eval)
    evaluate.add_argument("file", type=Path)
    _add_machine(evaluate)

    info = commands.add_parser("info", help="what a ticket file holds")
    info.set_defaults(run=_info)
    info.add_argument("file", type=Path)

    bench = commands.add_parser("bench", help="measure speed, memory and sizes here, beside what others do")
    bench.set_defaults(run=_bench)
    bench.add_argument("profile", choices=("quick", "full"), help="under 2 minutes, or under 20, on two cores")
    bench.add_argument("--out", type=Path, help="folder for the results; bench/results of the checkout if not given")

    doctor = commands.add_parser("doctor", help="which backends run here, and for the others why not")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="where to run, as PyTorch names it")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; PyTorch's choice where not given")


def _on_machine(arguments: argparse.Namespace) -> torch.device:
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"threads={arguments.threads}: expected at least 1")
        torch.set_num_threads(arguments.threads)
    return torch.device(arguments.device)


# find and eval


def _build(options: dict) -> torch.nn.Module:
    """The random network that ``find`` searches in, from the options that a ticket of it carries."""
    return convert(
        build(options["model"], width=options["width"], classes=options["classes"]),
        Freeze(options["prune"], options["lock"]),
        sparsity=None,
        spread=options["spread"],
        weight=options["weight"],
        scale=options["scale"],
        seed=options["seed"],
        compact=options["compact"],
    )


def _find(arguments: argparse.Namespace) -> None:
    rich = _rich()
    device = _on_machine(arguments)
    started = time.perf_counter()
    settings = Search(
        sparsity=arguments.sparsity,
        scope=arguments.scope,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        momentum=arguments.momentum,
        weight_decay=arguments.weight_decay,
        seed=arguments.seed,
    )
    for name in ("out", "json"):
        path = getattr(arguments, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{name}={path}: expected a file in a folder that exists")
    if arguments.width < 1:
        raise ValueError(f"width={arguments.width}: expected at least 1")
    data = DATASETS[arguments.data](seed=arguments.seed)
    names = ("data", "model", "width", "seed", "prune", "lock", "spread", "weight", "compact")
    options = {name: getattr(arguments, name) for name in names} | {
        "scale": None if arguments.scale == "none" else arguments.scale,
        "classes": data.classes,
    }
    model = _build(options).to(device)
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(), rich.progress.TextColumn("{task.fields[state]}")
    ) as progress:
        task = progress.add_task(f"searching in {summary(model).weights:,} weights", total=settings.epochs, state="")

        def on_epoch(epoch: int, loss: float, validation: float) -> None:
            progress.update(task, completed=epoch, state=f"loss {loss:.3f}, validation {validation:.1%}")

        search(model, data, settings, on_epoch)
    found = accuracy(model, data.test)
    save_ticket(model, arguments.out, {"options": options, "test_accuracy": found})

    reloaded = _build(options).to(device)
    ticket = load_ticket(arguments.out, reloaded)
    again = accuracy(reloaded, data.test)
    if again != found:
        raise RuntimeError(f"{arguments.out}: reloaded, it reaches {again:.4f} on test, not {found:.4f}")

    dense = build(options["model"], width=options["width"], classes=options["classes"])
    report = {
        "test_accuracy": found,
        "weights": ticket.weights,
        "free_bits": ticket.free_bits,
        "kept": ticket.kept,
        "ticket_bytes": ticket.size,
        "fp32_bytes": 4 * sum(p.numel() for p in dense.parameters()),
        "seconds": time.perf_counter() - started,
        "backend": backends.name_for(device),
        "options": options,
        "search": dataclasses.asdict(settings),
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    _print_report(rich, report, again, arguments)


def _print_report(rich, report: dict, again: float, arguments: argparse.Namespace) -> None:
    table = rich.table.Table(title=f"A ticket in {arguments.data}", show_header=False)
    size, free, weights = report["ticket_bytes"], report["free_bits"], report["weights"]
    for row in (
        ("test accuracy", f"{report['test_accuracy']:.2%}"),
        ("reloaded from the file", f"{again:.2%}"),
        ("weights", f"{weights:,}"),
        ("free bits", f"{free:,} ({1 - free / weights:.0%} frozen)"),
        ("kept weights", f"{report['kept']:,}"),
        ("ticket", f"{size:,} bytes ({size - (free + 7) // 8:,} of them not mask bits)"),
        ("the same network in fp32", f"{report['fp32_bytes']:,} bytes ({report['fp32_bytes'] / size:.0f}x)"),
        ("backend", report["backend"]),
        ("time", f"{report['seconds']:.1f} s"),
        ("written to", str(arguments.out)),
    ):
        table.add_row(*row)
    rich.console.Console().print(table)


def _eval(arguments: argparse.Namespace) -> None:
    device = _on_machine(arguments)
    options, reported = _found_by_us(arguments.file, ticket_info(arguments.file))
    data = DATASETS[options["data"]](seed=options["seed"])
    model = _build(options).to(device)
    load_ticket(arguments.file, model)
    result = accuracy(model, data.test)
    print(f"test accuracy {result:.2%} (when it was found: {reported:.2%})")


def _found_by_us(path: Path, info: TicketInfo) -> tuple[dict, float]:
    try:
        return info.metadata["options"], info.metadata["test_accuracy"]
    except KeyError:
        raise ValueError(f"{path}: not written by slt find: nothing in it tells how to build its network") from None


# info, bench and doctor


def _info(arguments: argparse.Namespace) -> None:
    info = ticket_info(arguments.file)
    print(f"{arguments.file}: {info.size:,} bytes, contract version {info.contract}")
    print(f"{len(info.layers)} layers, {info.weights:,} weights, {info.free_bits:,} free bits, {info.kept:,} kept")
    print(f"learned bits: {info.mask_bytes:,} bytes" + (", entropy-coded" if info.compressed else ""))
    for layer in info.layers:
        source = layer.source
        shape = "x".join(map(str, layer.shape))
        print(
            f"  {layer.name or '(root)'}: {shape} {layer.weight}, seed {source.seed & (2**64 - 1)}, "
            f"layer {source.layer}, pruned {source.prune_below}/256, locked {256 - source.lock_from}/256, "
            f"free {layer.free:,}, kept {layer.kept:,}, scale {layer.weight_scale:.6g} ({layer.scale or 'none'})"
        )
    for tensor in info.tensors:
        print(f"  {tensor.name}: {tensor.dtype} {list(tensor.shape)}")
    for key, value in info.metadata.items():
        print(f"  {key}: {value}")


def _bench(arguments: argparse.Namespace) -> None:
    suite = Path(__file__).resolve().parent.parent / "bench" / "suite.py"
    if not suite.is_file():
        raise FileNotFoundError(
            f"{suite} is not there: the benches are in a checkout alone, with `pip install -e .`, beside the package"
        )
    out = [] if arguments.out is None else ["--out", str(arguments.out)]
    status = subprocess.run([sys.executable, str(suite), arguments.profile, *out], check=False).returncode
    if status != 0:
        raise SystemExit(status)


def _doctor(arguments: argparse.Namespace) -> None:
    print(f"Python {platform.python_version()}, PyTorch {torch.__version__}, {platform.machine()}")
    for package in ("triton", "safetensors", "numpy"):
        try:
            print(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package} is not installed")
    for name in backends.names():
        print(f"backend {name}: {backends.describe(name)}")


def _rich():
    try:
        import rich.console
        import rich.progress
        import rich.table
    except ModuleNotFoundError:
        raise ModuleNotFoundError('slt find shows its progress with rich: pip install "slt_kernels[demo]"') from None
    return rich


if __name__ == "__main__":
    raise SystemExit(main())
