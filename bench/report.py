"""A result as Markdown tables, plots, and a report of both. Everything here is rendered from a `result.json`.

python bench/report.py FOLDER           renders the report again, from FOLDER/result.json
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Result = dict[str, Any]
NOTHING = "Not measured in this profile."

# One colour per method, the same in all plots: ours blue, dense grey, materializing red.
COLOURS = {
    "ours": "#0b5fa5",
    "ours, 70 % frozen, compact": "#49a6e9",
    "ours, bfloat16": "#12b5a6",
    "dense float32": "#333333",
    "dense bfloat16": "#8a8a8a",
    "int8 dynamic": "#b58900",
    "int4, bfloat16": "#6b8e23",
    "materialize each call": "#e39a8b",
    "materializing layer": "#d1495b",
    "sort in each forward": "#8f2d56",
}


# Tables


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers to the right; a line of text if there are no rows."""
    if not rows:
        return NOTHING
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def megabytes(value: float) -> str:
    return f"{value / 1e6:,.1f} MB" if value < 1e9 else f"{value / 1e9:,.2f} GB"


def in_groups(result: Result, *groups: str) -> Iterator[dict]:
    """The timed cases of some groups."""
    return (c for c in result.get("cases", []) if c["group"] in groups and "error" not in c)


def ratio(case: dict) -> str:
    low, high = case["ratio_quartiles"]
    return f"{case['ratio']:.3g}x ({low:.3g} to {high:.3g})"


def targets(result: Result, only: tuple[str, ...] | None = None) -> str:
    """Ours, its fastest peer, and their ratio; all cases with their targets, or some without."""
    rows = []
    for case in in_groups(result, "targets"):
        if only is None or case["name"] in only:
            ours = next(iter(case["methods"].values()))["median_ms"]
            peer = f"{milliseconds(case['methods'][case['peer']]['median_ms'])}, {case['peer']}"
            target = [f"{case['target']:g}x" if case["target"] else ""]
            rows.append([case["name"], milliseconds(ours), peer, ratio(case), *(target if only is None else [])])
    head = ["case", "ours", "fastest peer", "ratio (quartiles)", *(["target"] if only is None else [])]
    return table(head, rows)


def by_method(*groups: str) -> Callable[[Result], str]:
    """A table of medians, one row per method, one column per case."""

    def render(result: Result) -> str:
        found = list(in_groups(result, *groups))
        columns = [case["name"] for case in found]
        methods = list(dict.fromkeys(m for case in found for m in case["methods"]))
        rows = [
            [m, *(milliseconds(c["methods"][m]["median_ms"]) if m in c["methods"] else "" for c in found)]
            for m in methods
        ]
        return table(["method", *columns], rows)

    return render


def by_case(*groups: str) -> Callable[[Result], str]:
    """A table of medians, one row per case, one column per method."""

    def render(result: Result) -> str:
        found = list(in_groups(result, *groups))
        methods = list(dict.fromkeys(m for case in found for m in case["methods"]))
        rows = [
            [c["name"], *(milliseconds(c["methods"][m]["median_ms"]) if m in c["methods"] else "" for m in methods)]
            for c in found
        ]
        return table(["case", *methods], rows)

    return render


def ternary(result: Result) -> str:
    """Medians of engines for ternary weights, hot and cold, one row per method, one column per batch."""
    found = list(in_groups(result, "ternary"))
    if not found:
        return NOTHING
    cases = {(c["at"]["hot"], c["at"]["batch"]): c["methods"] for c in found}
    batches = sorted({batch for _, batch in cases})
    methods = list(dict.fromkeys(m for case in found for m in case["methods"]))
    tables = []
    for hot in (True, False):
        rows = []
        for method in methods:
            at = [cases[hot, batch][method] for batch in batches if (hot, batch) in cases]
            error = statistics.median(spread["error"] for spread in at)
            times = [f"{spread['median_ms']:.3g}" for spread in at]
            rows.append([method, f"{at[0]['bits']:.3g}", f"{error:.1e}", *times])
        head = [f"{'hot' if hot else 'cold'}, ms", "bits per weight", "error", *(f"batch {b}" for b in batches)]
        tables.append(table(head, rows))
    tables.append(", ".join(f"{name} {version}" for name, version in result["engines"].items()) + ".")
    return "\n\n".join(tables)


def counted(result: Result) -> str:
    """Bytes per weight, by purpose."""
    rows = []
    for record in result.get("counted", []):
        parts = record["bytes_per_weight"]
        formula = " + ".join(f"{size:.3g} {what}" for what, size in parts.items())
        rows.append([record["method"], record["phase"], f"{sum(parts.values()):.3g}", formula])
    return table(["method", "call", "bytes per weight", "of which"], rows)


def allocated(result: Result) -> str:
    rows = []
    for record in result.get("memory", []):
        sizes = [record.get(key) for key in ("held", "returned", "on_the_way")]
        cells = ["failed"] * 4 if None in sizes else [megabytes(size) for size in (*sizes, sum(sizes))]
        rows.append([f"{record['network']}, {record['phase']}, batch {record['batch']}", record["method"], *cells])
    return table(["case", "method", "held", "returned", "on the way", "together"], rows)


def held(result: Result) -> str:
    """Memory of a network in inference, by method."""
    methods = ("dense float32", "materializing layer", "ours", "ours, 70 % frozen, compact")
    found = {(r["network"], r["method"]): r.get("held") for r in result.get("memory", []) if r["phase"] == "forward"}
    networks = [n for n in dict.fromkeys(network for network, _ in found) if all(found.get((n, m)) for m in methods)]
    return table(["network", *methods], [[n, *(megabytes(found[n, m]) for m in methods)] for n in networks])


def gradients(result: Result) -> str:
    """The project's target: temporary memory of a forward and backward of one layer."""
    dense = 4 * 8192 * 8192
    rows = [
        [r["method"], megabytes(r["on_the_way"]), f"{r['on_the_way'] / dense:.3f}"]
        for r in result.get("memory", [])
        if r["phase"] == "gradients" and "error" not in r
    ]
    return table(["method", "on the way", "of the dense fp32 weight"], rows)


def moved(result: Result) -> str:
    found = result.get("moved", {"unavailable": "not in this run"})
    if why := found.get("unavailable") or found.get("error"):
        return f"Not measured: {why}."
    rows = [
        [
            f"{r['network']}, {r['phase']}",
            r["method"],
            f"{r['bytes'] / 1e6:,.2f} MB",
            f"{r['bytes'] / r['weights']:.2f}",
            f"{r['instructions'] / r['weights']:,.1f}",
        ]
        for r in found["records"]
    ]
    return table(["case", "method", "fetched", "bytes per weight", "instructions per weight"], rows)


def ceilings(result: Result) -> str:
    if not (found := result.get("ceilings")) or "error" in found:
        return NOTHING
    names = {
        "copy_67MB": "copy of 67 MB, read and written",
        "copy_1GB": "copy of 1 GB, read and written",
        "product_float32": "float32 product",
        "product_bfloat16": "bfloat16 product",
    }
    rows = [
        [name, f"{found[key] / 1e9:,.4g} {'GB/s' if key.startswith('copy') else 'Gop/s'}"]
        for key, name in names.items()
    ]
    return table(["ceiling", "measured"], rows)


def generator(result: Result) -> str:
    return _lines(result, "generator", "2048 weights, one thread")


def tiles(result: Result) -> str:
    return _lines(result, "tiles", "tiles of int8, 16 x 16 x 64, one thread")


def _lines(result: Result, section: str, head: str) -> str:
    found = result.get(section, {"unavailable": "not in this run"})
    if why := found.get("unavailable") or found.get("error"):
        return f"Not measured: {why}."
    return table([head, "time", "cycles"], [[x["what"], f"{x['ns']:.1f} ns", str(x["cycles"])] for x in found["lines"]])


def bounds(result: Result) -> str:
    """A lower bound of each kernel's time, from this run's ceilings, and the measured time as a multiple of it."""
    made, tile = ({x["what"]: x["ns"] for x in result.get(s, {}).get("lines", [])} for s in ("generator", "tiles"))
    most, threads = result.get("ceilings", {}), result["machine"]["threads"]
    times = {c["name"]: next(iter(c["methods"].values()))["median_ms"] for c in in_groups(result, "targets")}
    weights, scores = 4096 * 4096, 25_502_912
    rows = []

    def row(case: str, seconds: float, why: str) -> None:
        if case in times:
            ms = 1e3 * seconds
            rows.append([case, why, milliseconds(ms), milliseconds(times[case]), f"{times[case] / ms:.2g}x"])

    def making(case: str, digits: int, *lines: str) -> None:
        """Of few vectors. A matrix unit multiplies meanwhile; dot products take turns with making the weights."""
        if made.keys() >= set(lines):
            ns, why = sum(made[line] for line in lines), f"making the weights ({', '.join(lines)})"
            if not tile and (digit := made.get("a digit")):
                ns, why = ns + digits * digit, f"{why} and {digits} dot products"
            row(case, ns * 1e-9 * weights / 2048 / threads, why)

    def products(case: str, digits: int, batch: int, tables: bool = False) -> None:
        if ns := tile.get("a product, operands in registers"):
            row(case, digits * weights * batch / 16384 * ns * 1e-9 / threads, f"{digits} int8 products")
        elif tables and (ns := made.get("lines, 16 vectors")):
            row(case, weights * batch / 16 / 2048 * ns * 1e-9 / threads, "adding lines of tables")
        elif ns := made.get("a digit"):
            row(case, digits * weights * batch / 2048 * ns * 1e-9 / threads, f"dot products with {digits} digits")

    making("forward float32 highest, batch 1", 3, "signed constant")
    making("forward bfloat16, batch 1", 2, "signed constant")
    making("forward uniform weights, batch 1", 3, "uniform")
    making("forward normal weights, batch 1", 3, "normal")
    making("forward compact mask, batch 1", 3, "frozen pattern", "signed constant")
    making("forward compact mask, frozen in sixteenths, batch 1", 3, "frozen pattern, sixteenths", "signed constant")
    if not tile:
        making("forward float32 highest, batch 4", 12, "signed constant")
    products("forward float32 highest, batch 256", 3, 256, tables=True)
    products("forward float32 highest, batch 1024", 3, 1024, tables=True)
    products("forward bfloat16, batch 256", 2, 256)
    products("grad_input, batch 256", 3, 256, tables=True)
    if tile:
        products("grad_scores, batch 256", 8, 256)
    elif rate := most.get("product_float32"):
        row("grad_scores, batch 256", 2 * weights * 256 / rate, "PyTorch's fastest float32 product")
    if rate := most.get("copy_67MB"):
        passes = "three passes over the scores (two select, one packs)"
        row("select + pack, 25.5 M scores, resolved", 3 * 4 * scores / rate, passes)
    return table(["case", "bound", "takes at least", "measured", "measured / bound"], rows)


def sizes(result: Result) -> str:
    rows = []
    for r in result.get("sizes", []):
        kinds = [f"{r[k] / 1e6:.3f} MB" for k in ("fp32", "int8", "ticket_dense", "ticket_frozen")]
        rows.append([r["network"], f"{r['weights']:,}", *kinds, f"{r['fp32'] / r['ticket_frozen']:.0f}x"])
    head = ["network", "weights", "fp32", "int8", "ticket, dense source", "ticket, 70 % frozen", "fp32 / last"]
    return table(head, rows)


def find(result: Result) -> str:
    found = result.get("find", {})
    if "error" in found:
        return f"Not measured: {found['error']}."
    rows = []
    for source, runs in found.items():
        accuracies = [run["test_accuracy"] for run in runs]
        spread = f"{statistics.median(accuracies):.1%} ({min(accuracies):.1%} to {max(accuracies):.1%})"
        first, seconds = runs[0], statistics.median(run["seconds"] for run in runs)
        cells = [f"{first['free_bits']:,}", f"{first['ticket_bytes']:,} B"]
        cells.append(f"{first['fp32_bytes'] / first['ticket_bytes']:.0f}x")
        rows.append([source, spread, *cells, f"{seconds:.0f} s"])
    seeds = len(next(iter(found.values()), []))
    head = ["source network", f"test accuracy, {seeds} seeds", "free bits", "ticket", "smaller than fp32", "time"]
    return table(head, rows)


def failures(result: Result) -> list[str]:
    """Cases that failed, and so were not measured."""
    wrong = [f"{c['name']}: {c['error']}" for c in result.get("cases", []) if "error" in c]
    wrong += [
        f"{r['network']}, {r['phase']}, {r['method']}: {r['error']}" for r in result.get("memory", []) if "error" in r
    ]
    return wrong + [f"{k}: {v['error']}" for k, v in result.items() if isinstance(v, dict) and "error" in v]


def on(result: Result) -> str:
    """The machine of a result, in one sentence."""
    m = result["machine"]
    command = f"slt bench {result['profile']}"
    if "only" in result:
        command = f"python bench/suite.py {result['profile']} --only {result['only']} --out FOLDER"
    limits = "".join(f"{name}={value} " for name, value in m.get("limits", {}).items())
    return (
        f"Measured on {m['cpu']}, {m['threads']} threads, PyTorch {m['torch']}, commit {m['commit']}, "
        f"{result['date']}. Command: `{limits}{command}`."
    )


# Plots


def plots(result: Result, folder: Path) -> None:
    """Writes ``batch.png``, ``memory.png``, ``roofline.png`` and ``scaling.png``, for the measured sections."""
    import matplotlib

    matplotlib.use("Agg")
    style = {
        "figure.dpi": 110,
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        for name, plot in PLOTS.items():
            figure = plot(result)
            if figure is not None:
                figure.savefig(folder / f"{name}.png", metadata={"Software": None})


def _figure(columns: int, width: float = 9.5, height: float = 4.2):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _log2(axis, values: list[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(values, [f"{v:,}" for v in values])
    axis.minorticks_off()


def batch_plot(result: Result):
    """Time and counted bytes of one layer over the batch size."""
    found = list(in_groups(result, "batch", "materializing"))
    if not found or "counted" not in result:
        return None
    figure, (time, traffic) = _figure(2)
    points: dict[str, dict[int, dict]] = {}
    for case in found:
        for method, spread in case["methods"].items():
            points.setdefault(method, {}).setdefault(case["at"]["batch"], spread)  # ours is of the first group
    batches = sorted({b for at in points.values() for b in at})
    for method, at in points.items():
        xs = sorted(at)
        style = {"color": COLOURS[method], "marker": "o", "markersize": 3.5, "linewidth": 1.6}
        style["linestyle"] = "--" if "bfloat16" in method or "int8" in method else "-"
        time.plot(xs, [at[b]["median_ms"] for b in xs], label=method, **style)
        time.fill_between(
            xs, *zip(*(at[b]["quartiles_ms"] for b in xs), strict=True), color=COLOURS[method], alpha=0.15
        )
        traffic.plot(batches, [_forward_bytes(result, method, 4096, b) / 1e6 for b in batches], **style)
    time.set(title="time of a forward, 4096 x 4096", xlabel="batch", ylabel="milliseconds", yscale="log")
    traffic.set(title="bytes that it needs, counted", xlabel="batch", ylabel="MB", yscale="log")
    for axis in (time, traffic):
        _log2(axis, batches)
        axis.yaxis.set_major_formatter("{x:,g}")
    figure.legend(*time.get_legend_handles_labels(), loc="outside right center")
    return figure


def _forward_bytes(result: Result, method: str, size: int, batch: int) -> float:
    """Counted bytes of a square Linear's forward."""
    record = next(r for r in result["counted"] if (r["method"], r["phase"]) == (method, "forward"))
    weights, activations = (sum(record[k].values()) for k in ("bytes_per_weight", "bytes_per_activation"))
    return weights * size * size + activations * batch * size


def roofline_plot(result: Result):
    """Operations per second over operations per counted byte, under the measured ceilings."""
    found, most = list(in_groups(result, "batch")), result.get("ceilings")
    if not found or not most or "error" in most or "counted" not in result:
        return None
    figure, (axis,) = _figure(1, 8)
    low, high = 0.3, 2e3
    top = most["product_bfloat16"]
    for key, style in (("product_bfloat16", "-"), ("product_float32", "--")):
        label = f"{key.removeprefix('product_')} product, {most[key] / 1e9:,.0f} Gop/s"
        axis.axhline(most[key] / 1e9, color="#999999", linewidth=1, linestyle=style, zorder=1, label=label)
    for key, style in (("copy_67MB", "-."), ("copy_1GB", ":")):
        slope = most[key]
        label = f"copy of {key.removeprefix('copy_').replace('MB', ' MB').replace('GB', ' GB')}, {slope / 1e9:.0f} GB/s"
        ends = [low, top / slope], [low * slope / 1e9, top / 1e9]
        axis.plot(*ends, color="#999999", linewidth=1.2, linestyle=style, zorder=1, label=label)
    for method in ("ours", "ours, bfloat16", "dense float32", "dense bfloat16"):
        points = []
        for case in found:
            if method in case["methods"]:
                operations = 2 * 4096 * 4096 * case["at"]["batch"]
                x = operations / _forward_bytes(result, method, 4096, case["at"]["batch"])
                points.append((x, operations / case["methods"][method]["median_ms"] / 1e6, case["at"]["batch"]))
        xs, ys, _ = zip(*points, strict=True)
        axis.plot(xs, ys, color=COLOURS[method], marker="o", markersize=4, linewidth=1.4, label=method)
        if "bfloat16" not in method:
            for x, y, batch in points:
                place = {"textcoords": "offset points", "xytext": (5, -9), "fontsize": 7, "color": COLOURS[method]}
                axis.annotate(f"batch {batch}", (x, y), **place)
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(None, 2e-9 * top))
    axis.set(xlabel="operations per counted byte", ylabel="Gop/s (2 operations per weight and row)")
    axis.set_title("forward, 4096 x 4096, under what PyTorch reaches here")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
    return figure


def memory_plot(result: Result):
    """Held, returned and on the way, stacked, for a forward and a training step of one layer."""
    from matplotlib.patches import Patch

    rows = [r for r in result.get("memory", []) if r["phase"] != "gradients" and "error" not in r]
    if not rows:
        return None
    network = rows[0]["network"]
    rows = [r for r in rows if r["network"] == network]
    methods = list(dict.fromkeys(r["method"] for r in rows))
    figure, axes = _figure(2)
    shades = {"held": 1.0, "returned": 0.55, "on_the_way": 0.25}
    for axis, phase in zip(axes, ("forward", "step"), strict=True):
        shown = {r["method"]: r for r in rows if r["phase"] == phase}
        for y, method in enumerate(reversed(methods)):
            if method not in shown:
                axis.annotate(" does not train", (0, y), va="center", fontsize=7, color="#777777")
                continue
            left = 0.0
            for key, alpha in shades.items():
                width = shown[method][key] / 1e6
                axis.barh(y, width, left=left, color=COLOURS[method], alpha=alpha)
                left += width
            axis.annotate(f" {left:,.0f}", (left, y), va="center", fontsize=7)
        axis.set(title="a forward" if phase == "forward" else "a training step", xlabel=f"MB, {network}")
        axis.set_yticks(range(len(methods)), reversed(methods) if phase == "forward" else [""] * len(methods))
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.14)
    patches = [Patch(color="#333333", alpha=a, label=k.replace("_", " ")) for k, a in shades.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3)
    return figure


def scaling_plot(result: Result):
    """Time against the size of a square layer."""
    found = list(in_groups(result, "size"))
    if not found:
        return None
    batches = sorted({case["at"]["batch"] for case in found})
    figure, axes = _figure(len(batches), 4.2 * len(batches), 3.8)
    for axis, batch in zip(axes, batches, strict=True):
        shown = [case for case in found if case["at"]["batch"] == batch]
        xs = [case["at"]["size"] for case in shown]
        for method in ("ours", "dense float32"):
            spreads = [case["methods"][method] for case in shown]
            axis.plot(
                xs, [s["median_ms"] for s in spreads], color=COLOURS[method], marker="o", markersize=4, label=method
            )
        axis.set(title=f"forward of a square layer, batch {batch}", xlabel="size", ylabel="milliseconds", yscale="log")
        _log2(axis, xs)
        axis.tick_params(axis="x", labelrotation=30)
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.legend()
    return figure


PLOTS = {"batch": batch_plot, "memory": memory_plot, "roofline": roofline_plot, "scaling": scaling_plot}


# The report

_INTRODUCTION = """# slt bench {profile}

{on} Took {minutes:.1f} minutes.
{failures}
Times are medians of rounds in which all methods of a case alternate in one process, after their results were compared
with the reference and with each other; a ratio is the median of the rounds' own ratios. *Ours* has a dense source and a
resolved mask unless it says otherwise; *70 % frozen* is 35 % pruned and 35 % locked; *compact* is a mask of one bit a
free weight. The other methods, each as `bench/peers.py` writes it: *dense* is PyTorch's own product; *int8 dynamic*
PyTorch's dynamic quantization, and *int4* its 4-bit weights; *materialize each call* our seed and mask expanded to a
dense weight in each call; *materializing layer* the paper's code; *sort in each forward* hidden-networks' layer.
"""

COUNTED = """By formula: each tensor that a method reads, once a pass; each that it makes on the way, written once and
read once. Temporaries inside an expression are left out. Activations come on top."""
ALLOCATED = """In a fresh process for each row, as resident sets: *held* is what building the network added (ours has
dropped its scores, 4 bytes a free weight, for a forward alone); one call then adds what it *returned* (outputs,
gradients, the optimizer's state) and what it needed *on the way*."""
MOVED = """What a simulated last level of 1 MB, empty at the start, fetches: its misses, as callgrind counts them, times
64 bytes. Valgrind runs neither AVX-512 nor AMX, so every method runs its AVX2 code here, on one thread. Batch 8."""
BOUNDS = "How far the kernels are from what bounds them, by the figures above:"
BILLION = "A layer of a billion weights; its dense float32 weight is 4 GB, and its dense scores as much:"
TERNARY = """4096 x 4096, the same ternary weights in all engines, which round inputs to 8 bits; errors are against
float64, in relative norm. *Hot*: each timed call follows 5 ms of its own. *Cold*: 128 MB of other memory are read and
written before it."""
TRAINING = "A training step: forward, backward, SGD with momentum, new masks:"

# Title (none: goes on with the one before), text, table, plot.
_SECTIONS = (
    ("Operations", "The project's cases, each against the fastest of its peers.", targets, None),
    ("Against the batch", "One 4096 x 4096 layer, as a module.", by_method("batch"), "batch"),
    (None, "The materializing methods, in turn with ours:", by_method("materializing"), None),
    (None, "A convolution:", by_method("convolution"), None),
    ("Memory traffic, counted", COUNTED, counted, None),
    ("Memory, allocated", ALLOCATED, allocated, "memory"),
    ("Memory traffic, moved", MOVED, moved, None),
    ("Roofline", "What PyTorch reaches on this machine:", ceilings, "roofline"),
    ("What a weight costs", "`bench/cpu_generator.cpp`, on one thread:", generator, None),
    ("What a product costs", "`bench/cpu_tiles.cpp`, on one thread:", tiles, None),
    (None, BOUNDS, bounds, None),
    ("Networks", "A forward:", by_method("network"), None),
    (None, TRAINING, by_method("training step"), None),
    ("Scaling", "Square layers.", by_case("size"), "scaling"),
    (None, "Threads, 4096 x 4096:", by_case("threads"), None),
    (None, BILLION, by_case("billion"), None),
    ("Against ternary engines", TERNARY, ternary, None),
    ("Sizes", "Files of random networks, whatever their accuracy.", sizes, None),
    ("Tickets found", "`slt find` on the digits.", find, None),
)


def write(result: Result, folder: Path) -> None:
    """``report.md`` and its plots."""
    plots(result, folder)
    wrong = failures(result)
    listed = (
        "\n**Not timed, because something was wrong:**\n\n" + "\n".join(f"- {w}" for w in wrong) + "\n" if wrong else ""
    )
    parts = [
        _INTRODUCTION.format(profile=result["profile"], on=on(result), minutes=result["seconds"] / 60, failures=listed)
    ]
    for title, text, render, plot in _SECTIONS:
        parts += [f"## {title}\n"] if title else []
        parts.append(f"{text}\n\n{render(result)}\n")
        if plot and (folder / f"{plot}.png").exists():
            parts.append(f"![{plot}]({plot}.png)\n")
    (folder / "report.md").write_text("\n".join(parts))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write(json.loads((target / "result.json").read_text()), target)
