"""What the tests share: settings, known answers, and small layers."""

import hypothesis
import oracle
import pytest
import torch

from slt_kernels import backends
from slt_kernels.backends import cpu

hypothesis.settings.register_profile("repository", deadline=None, derandomize=True, max_examples=40, database=None)
hypothesis.settings.load_profile("repository")


@pytest.fixture(scope="session")
def normal_table() -> tuple[int, ...]:
    half = oracle.known("normal_table")["positive_half"]
    return (*(-v for v in reversed(half)), *half)


@pytest.fixture(autouse=True)
def settings():
    """Every test starts from the same random numbers and precision, and leaves the process as it was."""
    torch.manual_seed(0)
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)


@pytest.fixture
def reference():
    """The reference backend, whatever the default is."""
    with backends.use("reference"):
        yield


@pytest.fixture(params=backends.available())
def backend(request):
    """Each backend that runs here, in turn."""
    with backends.use(request.param):
        yield request.param


@pytest.fixture(params=cpu.instruction_sets() if cpu.unavailable() is None else ())
def isa(request):
    """Each instruction set of the CPU backend that runs here, in turn."""
    with cpu.use_instruction_set(request.param):
        yield request.param


@pytest.fixture
def poisoned(monkeypatch):
    """Every output starts full of NaN, or of garbage, so that an element nobody writes shows."""
    empty = torch.empty

    def garbage(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(torch.nan) if out.is_floating_point() else out.fill_(-123456789)

    monkeypatch.setattr(torch, "empty", garbage)
