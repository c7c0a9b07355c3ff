"""What the tests share: settings, devices, backends and instruction sets."""

import atexit
import gc
import os
import re
import sys
import zlib

# pytest-xdist runs a process per core, and each has as many OpenMP threads: those that wait must not spin. Read when
# torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import interpreter  # noqa: F401, I001 (before anything imports Triton)
import hypothesis
import oracle
import pytest
import torch
from cuda_simulator import simulated

from slt_kernels import backends
from slt_kernels.backends import registry
from slt_kernels.backends.cpu import _cpu

cpu = backends.on("cpu")
if _cpu:
    _cpu.divide_work_from(0)  # the smallest products too, or tests of threads would need large ones


# Files with tests that take long. They start first, or one worker would end with them while the others idle.
LONG = ("test_without_python.py", "test_triton_simulated.py", "test_cuda_code.py")


def pytest_collection_modifyitems(config, items):
    """Of the simulated CUDA cases each runs on one of the two architectures; SLT_ALL_SIMULATIONS=1 runs all.

    Which one depends on its name alone. A test without other parameters runs on both. Tests with the mark
    `all_simulations` run with it only: they test the tests, by removing the barriers of a kernel one at a time.
    """
    items.sort(key=lambda item: item.path.name not in LONG)
    if os.environ.get("SLT_ALL_SIMULATIONS") == "1":
        return
    kept, left = [], []
    for item in items:
        found = re.search(r"\[sm_(80|90)-", item.nodeid) if item.path.name.startswith("test_cuda_") else None
        other = zlib.crc32(item.nodeid.replace(found[0], "[").encode()) % 2 if found else 0
        leave = item.get_closest_marker("all_simulations") or (found and other == (found[1] == "90"))
        (left if leave else kept).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


gc.set_threshold(50_000, 20, 20)  # it took a fifth of the time of all tests to look for garbage more often
if "PYTEST_XDIST_WORKER" in os.environ:
    atexit.register(os._exit, 0)  # it would take seconds to take all modules apart
else:
    atexit.register(gc.unfreeze)  # or libraries would report modules as leaks


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # nor is any among the modules and the tests


def pytest_sessionfinish(session):
    if session.config.pluginmanager.hasplugin("dsession"):  # pytest-xdist's main process, which runs no test
        gc.freeze()  # or pytest would look for garbage five times among all reports


hypothesis.settings.register_profile("repository", deadline=None, derandomize=True, max_examples=40, database=None)
hypothesis.settings.load_profile("repository")


# Without a GPU, torch.manual_seed queues the seed for one together with a stack trace: 2 ms per test.
seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed


@pytest.fixture(scope="session")
def normal_table() -> tuple[int, ...]:
    half = oracle.known("normal_table")["positive_half"]
    return (*(-v for v in reversed(half)), *half)


@pytest.fixture(autouse=True)
def settings():
    """Each test starts from the same seed and precision; what it sets is restored."""
    seed(0)
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    yield
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()  # what one test compiles counts towards the limit of the next
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)


DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def takes(name: str, device: torch.device) -> bool:
    """Whether a backend takes tensors on a device."""
    try:
        with backends.use(name):
            return backends.name_for(device) == name
    except RuntimeError:
        return False


@pytest.fixture(params=DEVICES, ids=str)
def device(request) -> torch.device:
    """The CPU, and CUDA or ROCm where there is a device."""
    return request.param


@pytest.fixture
def reference():
    """The reference backend, whatever the default is."""
    with backends.use("reference"):
        yield


@pytest.fixture(params=[name for name in backends.available() if takes(name, DEVICES[0])])
def backend(request):
    """Each backend that takes tensors on the CPU."""
    with backends.use(request.param):
        yield request.param


@pytest.fixture
def isa() -> str:
    """Each instruction set of the CPU backend that runs here, one after the other: see `pytest_pyfunc_call`."""
    if cpu.unavailable() is not None:
        pytest.skip(cpu.unavailable())
    return cpu.instruction_set()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Calls a test that has the fixture `isa` on each instruction set, from the same seed and precision.

    As one test, because tests of seven sets would spend more on their fixtures and on their oracle than on kernels.
    """
    if "isa" not in pyfuncitem.fixturenames:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    for name in cpu.instruction_sets():
        seed(0)
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        if "isa" in arguments:
            arguments["isa"] = name
        try:
            with cpu.use_instruction_set(name):
                pyfuncitem.obj(**arguments)
        except (Exception, pytest.skip.Exception) as error:  # a skipped set would leave out those after it
            raise AssertionError(f"on the instruction set {name}") from error
    return True


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Outputs are NaN, or garbage, before a kernel runs, so that an element that it does not write shows."""
    make = registry.make_outputs

    def poison(t: torch.Tensor) -> torch.Tensor:
        return t.fill_(torch.nan) if t.is_floating_point() else t.fill_(-123)

    def garbage(operation: str, arguments: tuple) -> torch.Tensor | tuple[torch.Tensor, ...]:
        outputs = make(operation, arguments)
        return poison(outputs) if isinstance(outputs, torch.Tensor) else tuple(map(poison, outputs))

    monkeypatch.setattr(registry, "make_outputs", garbage)


@pytest.fixture(params=[80, 90], ids=lambda capability: f"sm_{capability}")
def simulator(request):
    """The CUDA backend on simulated devices."""
    with simulated(request.param) as simulator:
        yield simulator
