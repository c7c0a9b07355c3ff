"""The package as such: what importing it does, its names and documentation, its layers, and choosing a backend."""

import ast
import importlib
import inspect
import os
import pkgutil
import subprocess
import textwrap
from pathlib import Path

import pytest
import torch
from processes import run_forked

import slt_kernels
from slt_kernels import Source, backends, ops
from slt_kernels.backends import registry
from slt_kernels.operations import OUTPUTS, SCHEMAS

ROOT = Path(slt_kernels.__file__).parent


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """In a new process, which has imported torch."""
    clean = {k: v for k, v in os.environ.items() if k != "SLT_BACKEND"} | environment
    return run_forked(code, clean)


def output(code: str, **environment: str) -> str:
    done = python(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Importing


def test_import_touches_no_gpu_and_prints_nothing():
    code = """
import torch, slt_kernels
assert not torch.cuda.is_initialized()
"""
    assert output(code) == ""


def test_import_brings_in_nothing_heavy_or_optional():
    """Beyond what PyTorch imports of its own; torch._dynamo takes longer than all of torch."""
    names = ("sklearn", "scipy", "rich", "triton", "torch._dynamo", "torch._inductor")
    report = f"print([name for name in {names} if name in sys.modules])"
    assert output(f"import sys, slt_kernels; {report}") == output(f"import sys, torch; {report}")


@pytest.mark.parametrize("missing", ("triton", "sklearn", "rich", "slt_kernels._cpu", "slt_kernels._cuda"))
def test_works_without(missing):
    code = f"""
import sys
sys.modules[{missing!r}] = None
import torch
from slt_kernels import SupermaskLinear, backends
layer = SupermaskLinear(33, 5)
layer(torch.randn(2, 33)).sum().backward()
assert layer.scores.grad.any()
print(backends.name_for(torch.device("cpu")))
"""
    assert output(code) in backends.names()


def test_without_the_extension_the_reference_runs_and_says_why():
    code = """
import sys
sys.modules["slt_kernels._cpu"] = None
from slt_kernels import backends
assert backends.available() == ["reference"]
print(backends.describe("cpu"))
with backends.use("cpu"):
    pass
"""
    done = python(code)
    assert done.stdout.startswith("not available: ")
    assert "RuntimeError: backend 'cpu' is not available: " in done.stderr


@pytest.mark.parametrize("missing,command", (("rich", "find"), ("sklearn", "find")))
def test_find_says_what_to_install(missing, command, tmp_path):
    code = f"""
import sys
sys.modules[{missing!r}] = None
from slt_kernels.cli import main
sys.exit(main([{command!r}, "--out", {str(tmp_path / "net.slt")!r}, "--epochs", "1", "--width", "4"]))
"""
    done = python(code)
    assert done.returncode == 2
    assert 'pip install "slt_kernels[demo]"' in done.stderr


def test_floating_point_settings_are_left_alone():
    """Denormals stay on, after a forward and a backward too."""
    code = """
import torch
from slt_kernels import SupermaskConv2d, SupermaskLinear
SupermaskLinear(65, 33)(torch.randn(64, 65)).sum().backward()
SupermaskConv2d(3, 8, 3)(torch.randn(4, 3, 9, 9)).sum().backward()
tiny = torch.full((64,), 1e-40)
assert (tiny * 1.0 == tiny).all() and (tiny / 2 != 0).all()
assert 5e-324 * 1.0 == 5e-324
"""
    assert output(code) == ""


def test_random_state_is_left_alone():
    """Weights, frozen patterns and scores come from the seed; a layer without bias takes no random number."""
    before = torch.get_rng_state()
    layer = slt_kernels.SupermaskLinear(40, 9, bias=False, freeze=slt_kernels.Freeze(0.3, 0.2))
    layer(torch.ones(1, 40)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


# Names and documentation


def modules() -> list[str]:
    """All modules except the backends, whose imports may be missing here."""
    found = [m.name for m in pkgutil.walk_packages(slt_kernels.__path__, "slt_kernels.", onerror=lambda name: None)]
    without = ("slt_kernels.backends.", "slt_kernels._cpu", "slt_kernels._cuda")
    return ["slt_kernels", *(m for m in found if not m.startswith(without))]


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_says_what_it_is(file):
    assert ast.get_docstring(ast.parse(file.read_text()))


def test_all_lists_what_the_package_imports():
    """``from slt_kernels import *`` gives each name that ``__init__.py`` imports, and no other."""
    imports = [n for n in ast.parse((ROOT / "__init__.py").read_text()).body if isinstance(n, ast.ImportFrom)]
    imported = {alias.asname or alias.name for n in imports for alias in n.names}
    given: dict = {}
    exec("from slt_kernels import *", given)
    assert slt_kernels.__all__ == sorted(imported) == sorted(given.keys() - {"__builtins__"})


@pytest.mark.parametrize("name", modules())
def test_everything_public_is_documented(name):
    """Except methods that PyTorch documents."""
    module = importlib.import_module(name)
    inherited = {"forward", "extra_repr"}
    for label, thing in vars(module).items():
        if label.startswith("_") or getattr(thing, "__module__", None) != name:
            continue
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert inspect.getdoc(thing), label
        if inspect.isclass(thing):
            for method_name, method in vars(thing).items():
                function = method.fget if isinstance(method, property) else getattr(method, "__func__", method)
                public = inspect.isfunction(function) and not method_name.startswith("_")
                if public and method_name not in inherited and not trivial(function):
                    assert inspect.getdoc(function), f"{label}.{method_name}"


def trivial(function) -> bool:
    """Its name says it all: one return of one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body
    return len(body) == 1 and isinstance(body[0], ast.Return) and body[0].lineno == body[0].end_lineno


# Imports run down this list, never up: what stands in one line may import what stands in a line before it
ORDER = (
    ("_cpu", "_cuda", "_text", "bits", "files", "philox", "conv_geometry"),
    ("source",),
    ("operations",),
    ("backends",),
    ("ops",),
    ("nn",),
    ("freezing", "numbering"),
    ("bernoulli", "edge_popup", "mask_import"),
    ("conversions", "dense"),
    ("convert", "tickets"),
    ("ticket",),
    ("experiments", "huggingface"),
    ("data", "models", "train", "sweep", "cli"),
    ("__main__",),
)
# The same inside a folder
INSIDE = {
    "backends": (
        ("arguments", "registry", "tables"),
        ("reference",),
        ("exact_products",),
        ("cpu", "cuda", "triton"),
        ("__init__",),
    ),
    "ops": (
        ("autograd", "checks", "flops"),
        ("dispatch",),
        ("conv2d", "embedding", "expand", "linear", "materialize", "pack", "plan", "select"),
        ("conv_transpose2d",),
        ("__init__",),
    ),
    "nn": (
        ("checks", "sharded_scores"),
        ("freshness", "generated_weight"),
        ("sharding",),
        ("inspection",),
        ("state",),
        ("supermask",),
        ("network", "linear", "bilinear", "convolution", "depth", "embedding"),
        ("composite", "conv1d", "conv2d", "conv3d", "conv_transpose", "inference", "parallel"),
        ("attention", "embedding_bag", "experts", "recurrent", "tied"),
        ("__init__",),
    ),
    "experiments": (("data", "engines"), ("models",), ("train",), ("paper", "sweep")),
    "experiments/train": (
        ("checkpoint_checks", "processes", "settings"),
        ("sharded_state",),
        ("run_folder",),
        ("loop",),
        ("find",),
        ("reload",),
    ),
}


def imports_of(file: Path, inside: str = "") -> set[str]:
    """Names at the top of the package, or of a folder inside it, that a file imports, for types alone too."""
    here = file.relative_to(ROOT.parent).parts
    folder = ["slt_kernels", *inside.split("/")] if inside else ["slt_kernels"]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            full = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = list(here[: len(here) - node.level]) if node.level else []
            full = [start + (node.module or "").split(".") * bool(node.module) + [a.name] for a in node.names]
        else:
            continue
        found |= {parts[len(folder)] for parts in full if parts[: len(folder)] == folder and len(parts) > len(folder)}
    return found


@pytest.mark.parametrize("folder", ("", *INSIDE))
def test_imports_run_one_way(folder):
    order = INSIDE[folder] if folder else ORDER
    level = {name: i for i, names in enumerate(order) for name in names}
    checked = 0
    for file in sorted((ROOT / folder).rglob("*.py")):
        name = file.relative_to(ROOT / folder).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        assert name in level, f"{name}: where does it stand?"
        for imported in (imports_of(file, folder) & level.keys()) - {name}:
            assert level[imported] < level[name], f"{file.relative_to(ROOT)} imports {imported}"
            checked += 1
        assert folder or imports_of(file) <= level.keys(), file
    assert checked


def test_layers_know_no_backend_and_backends_no_layer():
    for file in (*ROOT.glob("nn/*.py"), ROOT / "edge_popup.py", ROOT / "convert.py", *ROOT.glob("tickets/*.py")):
        assert "backends" not in imports_of(file), file
    for file in ROOT.rglob("backends/**/*.py"):
        below = {"backends", "bits", "operations", "philox", "source", "conv_geometry", "_cpu", "_cuda"}
        assert imports_of(file) <= below, file


# Backends


def test_names_and_available():
    assert "reference" in backends.available()
    assert set(backends.available()) <= set(backends.names())
    assert backends.names()[-1] == "reference"  # the last that anybody wants
    for name in backends.names():
        assert backends.describe(name)
        assert (backends.why_unavailable(name) is None) == (name in backends.available())


def test_use_refuses():
    with pytest.raises(ValueError, match=r"backend='cuda2': expected one of .*reference"), backends.use("cuda2"):
        pass
    with pytest.raises(ValueError, match="backend='gpu'"):
        backends.why_unavailable("gpu")


class Recording:
    """A new backend, as a new package would supply one."""

    def unavailable(self) -> str | None:
        return None

    def describe(self) -> str:
        return "a test"

    def supports(self, device: torch.device) -> bool:
        return True


@pytest.fixture
def recording(monkeypatch):
    for name in registry._backends:  # kernels that register while the copies stand would be lost with them
        registry.kernels(name, "materialize")
    monkeypatch.setattr(registry, "_backends", dict(registry._backends))
    monkeypatch.setattr(registry, "_kernels", {key: list(found) for key, found in registry._kernels.items()})
    monkeypatch.setattr(registry, "_forced", None)
    backend = Recording()
    backends.register("recording", backend)
    yield backend
    monkeypatch.undo()
    registry._choose_again()


def test_a_new_backend_is_preferred_and_gets_every_operation(recording):
    calls = []

    def record(operation):
        @backends.kernel(operation, backend="recording")
        def kernel(outputs, *arguments):
            calls.append((operation, arguments))
            (first,) = registry.kernels("reference", operation)
            first.function(outputs, *arguments)

    for operation in SCHEMAS:
        record(operation)
    assert backends.names()[0] == "recording"
    linear = slt_kernels.SupermaskLinear(9, 5)
    conv = slt_kernels.SupermaskConv2d(2, 3, 3, compact=True)
    linear(torch.randn(2, 9, requires_grad=True)).sum().backward()
    conv(torch.randn(2, 2, 5, 5, requires_grad=True)).sum().backward()
    slt_kernels.SupermaskEmbedding(4, 3)(torch.tensor([2, 0])).sum().backward()
    linear.dense_weight()
    ops.expand(conv.compact_mask(), conv.source)
    model = slt_kernels.prepare_inference(torch.nn.Sequential(conv, linear), activations="int8")
    conv(torch.randn(2, 2, 5, 5))
    linear(torch.randn(2, 9))
    slt_kernels.prepare_inference(model, signs="stored")
    linear(torch.randn(2, 9))
    assert {name for name, _ in calls} == set(SCHEMAS)
    sources = [a for _, arguments in calls for a in arguments if isinstance(a, tuple)]
    assert any(isinstance(a, Source) for a in sources)


def test_a_backend_of_one_operation_leaves_the_rest_to_others(recording):
    """And of that one operation the arguments that it does not take."""
    calls = []

    @backends.kernel("linear_forward", backend="recording", when=lambda x, *_: x.shape[0] < 4)
    def linear_forward(y, x, mask, scale, bias, source):
        calls.append(x.shape)
        y.copy_(backends.on("reference").linear_forward(x, mask, scale, bias, source))

    layer = slt_kernels.SupermaskLinear(9, 5)
    for batch in (2, 5):
        x = torch.randn(batch, 9, requires_grad=True)
        y = layer(x)
        y.sum().backward()
        with backends.use("reference"):
            assert torch.equal(layer(x), y)
        assert torch.allclose(y, x @ layer.dense_weight().T + layer.bias, atol=1e-6)
    assert calls == [(2, 9)]
    here = torch.device("cpu")
    assert backends.table(here)["linear_forward"][0] == "recording"
    assert "recording" not in backends.table(here)["select"]
    with backends.use("recording"):
        assert torch.equal(layer(torch.zeros(2, 9)), layer.bias.expand(2, -1))
        layer.update_mask()
    assert len(calls) == 2


def test_a_kernel_of_no_operation_is_refused():
    with pytest.raises(ValueError, match="operation='linear_forwards': expected one of linear_forward"):
        backends.kernel("linear_forwards", backend="reference")


def test_the_table_names_a_kernel_for_every_operation():
    table = backends.table(torch.device("cpu"))
    assert table.keys() == SCHEMAS.keys() == OUTPUTS.keys()
    assert all(names[-1] == "reference" for names in table.values())
    if "cpu" in backends.available():
        assert all("cpu" in names for names in table.values())


def test_use_forces_and_restores(recording):
    cpu = torch.device("cpu")
    assert backends.name_for(cpu) == "recording"
    with backends.use("reference"):
        assert backends.name_for(cpu) == "reference"
        with backends.use("recording"):
            assert backends.name_for(cpu) == "recording"
        assert backends.name_for(cpu) == "reference"
    assert backends.name_for(cpu) == "recording"
    with pytest.raises(ZeroDivisionError), backends.use("reference"):
        raise ZeroDivisionError
    assert backends.name_for(cpu) == "recording"


@pytest.mark.parametrize("reason", (None, "no such machine"))
def test_a_backend_that_does_not_run_here_is_passed_over(reason, recording, monkeypatch):
    monkeypatch.setattr(recording, "unavailable", lambda: reason)
    assert (backends.name_for(torch.device("cpu")) == "recording") == (reason is None)
    assert ("recording" in backends.available()) == (reason is None)
    if reason:
        assert backends.describe("recording") == "not available: no such machine"
        with pytest.raises(RuntimeError, match="backend 'recording' is not available: no such machine"):
            backends.use("recording").__enter__()


def test_a_backend_that_does_not_take_the_device_is_passed_over(recording, monkeypatch):
    monkeypatch.setattr(recording, "supports", lambda device: False, raising=False)
    assert backends.name_for(torch.device("cpu")) != "recording"
    with (
        backends.use("recording"),
        pytest.raises(RuntimeError, match="backend 'recording' does not take tensors on cpu"),
    ):
        ops.select([torch.ones(3)], 1)


def test_the_environment_forces_a_backend():
    code = "import torch; from slt_kernels import backends; print(backends.name_for(torch.device('cpu')))"
    assert output(code, SLT_BACKEND="reference") == "reference"
    assert output(code, SLT_BACKEND="") in backends.available()
    done = python(code, SLT_BACKEND="cuda3")
    assert "ValueError: backend='cuda3': expected one of" in done.stderr
    assert "line 1, in <module>\nimport slt_kernels" not in done.stderr  # using one fails, importing does not


def test_a_mistaken_instruction_set_is_refused_where_it_would_be_used():
    code = """
from slt_kernels import SupermaskLinear, backends
with backends.use("reference"):
    SupermaskLinear(33, 5)
try:
    SupermaskLinear(33, 5)
except ValueError as error:
    print(error)
"""
    if "cpu" in backends.available():
        assert output(code, SLT_CPU_ISA="avx1024").startswith("SLT_CPU_ISA='avx1024': expected one of scalar")


def test_both_backends_run_from_autograds_threads():
    """Backward passes run on threads of autograd's own; what `use` forces holds there too."""
    seen = []
    layer = slt_kernels.SupermaskLinear(9, 5)
    x = torch.randn(2, 9, requires_grad=True)
    with backends.use("reference"):
        y = layer(x)
        x.register_hook(lambda grad: seen.append(backends.name_for(grad.device)))
        y.sum().backward()
    assert seen == ["reference"]
