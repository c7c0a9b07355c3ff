"""The CUDA backend's host side with a library in the place of NVIDIA's driver: launches, errors, why it cannot run.

Each test is a process of its own: a process opens one driver.
"""

import json
import os
from pathlib import Path

import fake_driver
import pytest
from processes import run_forked

from slt_kernels.backends.cuda import built

_cuda = pytest.importorskip("slt_kernels._cuda")

BEFORE = f"""
import sys
sys.path.insert(0, {os.fspath(Path(__file__).parent)!r})
import os
from pathlib import Path
import torch
torch.version.cuda = "13.0"
from slt_kernels import Source, backends
from slt_kernels.backends.cuda import _cuda, built, unavailable
built.FOLDER = Path(os.environ["KERNELS"])
"""

LAUNCHING = """
from fake_driver import Driver
from slt_kernels.backends.cuda import launch
driver = Driver()
launch._stream = lambda index: 4096 + index  # PyTorch's current stream
cuda = [torch.device("cuda", index) for index in range(2)]
mask, out = torch.empty(5, 3, dtype=torch.int32), torch.empty(5, 67, dtype=torch.int8)

def made(kernel="slt_materialize", file="materialize", **changes):
    source = Source.of(5, 67, seed=3, layer=2)
    values = {"generator": source, "segment_starts": 0, "call_starts": 0, "compact": False}
    members = {"values": values, "later": ["mask", "out"]}
    sizes = {"blocks": 6, "threads": 64} | changes
    return launch.Launch(file=file, kernel=kernel, arguments="Materialize", **members, **sizes)

def error(call, *arguments):
    try:
        call(*arguments)
    except RuntimeError as error:
        return str(error)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    try:
        return fake_driver.build(tmp_path_factory.mktemp("driver"))
    except OSError as error:
        pytest.skip(f"no C++ compiler for a driver: {error}")


@pytest.fixture
def run(library, tmp_path):
    """Runs code with the driver; keywords are the environment."""
    size = _cuda.layouts()["Materialize"][0]
    (tmp_path / "materialize.fatbin").write_text(f"slt_materialize {size}\nslt_other {size}\n")
    record = {"source": _cuda.source, "nvcc": "13.0.88", "architectures": ["80", "90a", "80+PTX"], "warnings": []}
    (tmp_path / "kernels.json").write_text(json.dumps(record))

    def run(code: str, **environment: str) -> str:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLT_", "FAKE_", "PYTORCH_NVML"))}
        own = {"SLT_CUDA_DRIVER": os.fspath(library), "KERNELS": os.fspath(tmp_path)}
        done = run_forked(BEFORE + code, clean | own | environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    run.folder = tmp_path
    return run


def test_a_launch_is_what_describe_says(run):
    run(
        LAUNCHING
        + """
one = made(shared=60000, cluster=2)
launch.enqueue(one, cuda[1], mask, out)
launch.enqueue(made(), cuda[0], mask.data_ptr(), out)
first, second = driver.launches
for launched, launched_as, device in ((first, one, 1), (second, made(), 0)):
    told = launched_as.describe(mask, out.data_ptr())
    assert launched.kernel == told["kernel"] and launched.arguments == told["arguments"]
    assert launched.grid == (told["blocks"], 1, 1) and launched.block == (told["threads"], 1, 1)
    assert (launched.shared, launched.stream, launched.device) == (told["shared"], 4096 + device, device)
assert first.attributes == {4: (2, 1, 1)}  # cluster dimension
assert second.attributes == {}
assert driver.attributes == [("slt_materialize", "8", "60000", "1")]  # dynamic shared memory
"""
    )


def test_nothing_is_loaded_or_allocated_twice(run):
    run(
        LAUNCHING
        + """
setup = ("cuInit", "cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelSetAttribute", "cuDevicePrimaryCtxRetain")
loaded = lambda: driver.calls("cuKernelGetFunction")
assert not any(map(driver.calls, setup))
one = made(shared=50000)
launch.enqueue(one, cuda[0], mask, out)
assert [driver.calls(name) for name in setup] == [1, 1, 1, 1, 1]
for _ in range(3):
    launch.enqueue(one, cuda[0], mask, out)
launch.enqueue(made(shared=40000), cuda[0], mask, out)  # less than is allowed already
assert [driver.calls(name) for name in setup] == [1, 1, 1, 1, 1]
assert loaded() == 1
launch.enqueue(made("slt_other"), cuda[0], mask, out)
launch.enqueue(made(shared=70000), cuda[0], mask, out)
assert [driver.calls(name) for name in setup] == [1, 1, 2, 2, 1] and loaded() == 2
assert len(driver.launches) == 7
assert driver.calls("cuStreamSynchronize") == 0
"""
    )


def test_other_threads_of_python_run_while_a_launch_waits(run):
    """The driver waits where its queue is full, and what would empty it may need Python."""
    run(
        LAUNCHING
        + """
import threading
results = []
waiting = threading.Thread(target=lambda: results.append(error(launch.enqueue, made(), cuda[0], mask, out)))
driver.hold(True)
waiting.start()
while not driver.calls("cuLaunchKernelEx"):
    pass
driver.hold(False)
waiting.join()
assert results == [None]
"""
    )


def test_devices(run):
    """The right context, whichever device is current; what was current is so afterwards."""
    run(
        LAUNCHING
        + """
one = made(shared=50000)
for now in (-1, 0, 1):
    driver.current(now)
    for device in cuda:
        launch.enqueue(one, device, mask, out)
assert [l.device for l in driver.launches] == [0, 1] * 3
assert driver.calls("cuCtxPushCurrent") == driver.calls("cuCtxPopCurrent") == 4
assert driver.calls("cuDevicePrimaryCtxRetain") == 2
assert driver.calls("cuLibraryLoadData") == driver.calls("cuLibraryGetKernel") == 1
assert driver.attributes == [("slt_materialize", "8", "50000", "0"), ("slt_materialize", "8", "50000", "1")]
assert launch.machine(cuda[1]) == launch.Machine(90, 132, 227 * 1024)
assert "cuda:2" in error(launch.enqueue, one, torch.device("cuda", 2), mask, out)
"""
    )


def test_no_blocks_launch_nothing(run):
    run(
        LAUNCHING
        + """
launch.enqueue(made(blocks=0), cuda[0], mask, out)
assert driver.calls("cuInit") == 0 and driver.launches == []
"""
    )


def test_errors_name_the_kernel(run):
    run(
        LAUNCHING
        + """
assert "of materialize.fatbin: error 500" in error(launch.enqueue, made("slt_none"), cuda[0], mask, out)
assert "missing.fatbin: cannot be read" in error(launch.enqueue, made(file="missing"), cuda[0], mask, out)
sizes = "6 blocks of 64 threads, 70000 bytes of shared memory, clusters of 3 blocks"
for name, what in (("cuKernelSetAttribute", "slt_materialize on cuda:1: 70000 bytes of shared memory"),
                   ("cuLaunchKernelEx", f"slt_materialize on cuda:1, {sizes}")):
    driver.fail(name, 1)
    assert error(launch.enqueue, made(shared=70000, cluster=3), cuda[1], mask, out) == f"{what}: invalid argument"
    driver.fail(name, 0)
driver.current(-1)
launch.enqueue(made(shared=70000, cluster=3), cuda[1], mask, out)  # as if there had been no error
assert driver.calls("cuCtxPushCurrent") == driver.calls("cuCtxPopCurrent")
"""
    )


def test_wrong_arguments_are_refused_before_the_driver(run):
    run(
        LAUNCHING
        + """
for values, kind in (((mask,), ValueError), ((mask, out, 0), ValueError), ((mask, "out"), AttributeError),
                     ((mask, 1.5), TypeError), ((mask, None), TypeError)):
    for call in (made().describe, lambda *v: launch.enqueue(made(), cuda[0], *v)):
        try:
            call(*values)
        except kind:
            continue
        raise AssertionError(values)
for changes in ({"cluster": 4}, {"cluster": 0}):
    try:
        made(**changes)
    except ValueError as wrong:
        assert "clusters" in str(wrong)
    else:
        raise AssertionError(changes)
assert driver.calls("cuInit") == 0
"""
    )


def test_loading_during_a_capture_is_refused(run):
    run(
        LAUNCHING
        + """
driver.capture(True)
refused = "first use of slt_materialize on cuda:0 during CUDA graph capture: run the same calls once before it"
assert error(launch.enqueue, made(), cuda[0], mask, out) == refused
assert driver.calls("cuLibraryLoadData") == 0 and driver.launches == []
driver.capture(False)
launch.enqueue(made(), cuda[0], mask, out)
driver.capture(True)
launch.enqueue(made(shared=50000), cuda[0], mask, out)  # loaded: another launch of it may be captured
assert "on cuda:1 during" in error(launch.enqueue, made(), cuda[1], mask, out)
assert len(driver.launches) == 2
assert driver.calls("cuThreadExchangeStreamCaptureMode") == 4  # around each preparation
"""
    )


def test_check_mode_waits(run):
    run(
        LAUNCHING
        + """
launch.enqueue(made(), cuda[0], mask, out)
assert driver.calls("cuStreamSynchronize") == 1
driver.capture(True)
launch.enqueue(made(), cuda[0], mask, out)
assert driver.calls("cuStreamSynchronize") == 1  # a captured launch cannot be waited for
driver.capture(False)
driver.fail("cuStreamSynchronize", 700)
assert error(launch.enqueue, made(), cuda[0], mask, out).endswith(
    "slt_materialize on cuda:0, 6 blocks of 64 threads, 0 bytes of shared memory: "
    "an illegal memory access was encountered")
""",
        SLT_CUDA_CHECK="1",
    )


def test_threads(run):
    run(
        LAUNCHING
        + """
from concurrent.futures import ThreadPoolExecutor
one = made(shared=50000)
with ThreadPoolExecutor(8) as threads:
    list(threads.map(lambda i: launch.enqueue(one, cuda[i % 2], mask, out), range(400)))
assert sorted(l.device for l in driver.launches) == [0] * 200 + [1] * 200
assert all(l.stream == 4096 + l.device for l in driver.launches)
assert driver.calls("cuLibraryLoadData") == 1
"""
    )


def test_importing_and_computing_on_the_cpu_load_no_driver(run):
    run(
        """
from slt_kernels import SupermaskLinear
import slt_kernels.backends.cuda.launch
SupermaskLinear(33, 5)(torch.randn(2, 33)).sum().backward()
backends.table(torch.device("cpu"))
loaded = Path("/proc/self/maps").read_text()
assert "fake_cuda" not in loaded and "libcuda.so" not in loaded
"""
    )


# Why it cannot run


@pytest.mark.parametrize(
    "environment,reason",
    (
        ({}, "None"),
        ({"FAKE_DEVICES": "0"}, "no CUDA device"),
        ({"FAKE_VERSION": "12090"}, "the driver is of CUDA 12.9: the kernels need 13.0 or later"),
        ({"FAKE_VERSION": "14020"}, "None"),
        ({"FAKE_CAPABILITY": "75"}, "the device has compute capability 7.5: expected 8.0 or later"),
        ({"FAKE_CAPABILITY": "89"}, "None"),
        ({"FAKE_CAPABILITY": "110"}, "None"),  # by PTX
        ({"FAKE_CAPABILITY": "120"}, "the device has compute capability 12.0: the kernels are built for 80, 90a,"),
        ({"FAKE_CAPABILITY_0": "75"}, "None"),  # one of two devices is enough
        ({"FAKE_cuInit": "100"}, "the driver cannot be initialized: error 100"),
        ({"FAKE_cuDeviceGetCount": "1"}, "the devices cannot be counted: invalid argument"),
        (
            {"SLT_CUDA_DRIVER": "/nowhere/libcuda.so"},
            "NVIDIA's driver cannot be loaded: /nowhere/libcuda.so: cannot open",
        ),
    ),
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_unavailable(environment, reason, run):
    assert run("print(unavailable()); assert unavailable() == unavailable()", **environment).startswith(reason)


def test_a_device_is_looked_for_once(run):
    run(
        """
from fake_driver import Driver
driver = Driver()
for _ in range(3):
    assert unavailable() is None
    assert not backends.on("cuda").supports(torch.device("cuda", 0))
    assert backends.on("cuda").supports(torch.device("cuda", 1))
    assert not backends.on("cuda").supports(torch.device("cpu"))
assert driver.calls("cuInit") == driver.calls("cuDeviceGetCount") == 1
assert driver.calls("cuDevicePrimaryCtxRetain") == 0  # no context is made
""",
        FAKE_CAPABILITY_0="75",
    )


def test_nothing_is_initialized_where_pytorch_is_told_not_to(run):
    run(
        """
from fake_driver import Driver
torch.cuda.is_available = lambda: True
assert unavailable() is None and Driver().calls("cuInit") == 0
assert not backends.on("cuda").supports(torch.device("cuda", 0)) and Driver().calls("cuInit") == 1
""",
        PYTORCH_NVML_BASED_CUDA_CHECK="1",
        FAKE_CAPABILITY="75",
    )


@pytest.mark.parametrize(
    "change,reason",
    (
        ('torch.version.cuda, torch.version.hip = None, "6.4"', "PyTorch is built for ROCm"),
        ("torch.version.cuda = torch.version.hip = None", "PyTorch is built without CUDA"),
        ("os.environ['CUDA_FORCE_PTX_JIT'] = '1'", "CUDA_FORCE_PTX_JIT=1 keeps the driver from using the cubins"),
        ("(built.FOLDER / 'kernels.json').unlink()", "the kernels are not built: pip install -e . builds them"),
        (
            "(built.FOLDER / 'kernels.json').write_text('{\"why_none\": \"nvcc 12.0.1 was too old\"}')",
            "the kernels are not built: nvcc 12.0.1 was too old",
        ),
        (
            "(built.FOLDER / 'kernels.json').write_text('{\"source\": \"another\"}')",
            "the kernels and the extension were built of different sources",
        ),
    ),
    ids=("rocm", "no cuda", "forced PTX", "no kernels", "nvcc too old", "stale"),
)
def test_unavailable_without_looking_for_a_device(change, reason, run):
    out = run(f"{change}\nprint(unavailable())\nassert 'fake_cuda' not in Path('/proc/self/maps').read_text()")
    assert out.startswith(reason)


def test_without_the_extension_the_backend_says_why(run):
    code = 'print(backends.why_unavailable("cuda"))'
    done = run_forked(
        f"import sys\nsys.modules['slt_kernels._cuda'] = None\nfrom slt_kernels import backends\n{code}", {}
    )
    assert done.stdout.startswith(
        ("import of slt_kernels._cuda halted", "the extension slt_kernels._cuda is not built")
    )


def test_doctor_says_what_the_fatbins_hold(run):
    out = run("from slt_kernels.cli import main\nmain(['doctor'])", FAKE_CAPABILITY="75")
    assert "backend cuda: not available: the device has compute capability 7.5: expected 8.0 or later" in out
    assert "CUDA kernels: sm_80, sm_90a, PTX of compute_80; 0.00 MB, built by nvcc 13.0.88" in out


@pytest.mark.parametrize(
    "architectures,nvcc,capability,driver,reason",
    (
        (("80", "90a"), (13, 0, 88), 86, 13000, None),
        (("80", "90a"), (13, 0, 88), 100, 13000, "10.0: the kernels are built for 80, 90a"),
        (("90a",), (13, 0, 88), 80, 13000, "8.0: the kernels are built for 90a"),
        (("100",), (13, 0, 88), 103, 13000, None),
        (("86",), (13, 0, 88), 80, 13000, "8.0: the kernels are built for 86"),
        (("80", "80+PTX"), (13, 1, 0), 110, 13010, None),
        (("100f",), (13, 0, 88), 103, 13000, None),
        (("80", "80+PTX"), (13, 0, 88), 100, 13000, "10.0: the kernels are built for 80, 80+PTX"),
        (("80", "90a", "80+PTX"), (13, 0, 88), 120, 13000, "12.0: the kernels are built for 80, 90a, 80+PTX"),
        (("90a", "80+PTX"), (13, 0, 88), 86, 13000, "8.6: the kernels are built for 90a, 80+PTX"),
        (("80", "80+PTX"), (13, 1, 0), 110, 13000, "the kernels on compute capability 11.0 need 13.1 or later"),
        (("80", "90+PTX"), (13, 0, 0), 75, 13000, "7.5: expected 8.0 or later"),
        (("90a", "90a+PTX"), (13, 0, 88), 110, 13000, "11.0: the kernels are built for 90a, 90a+PTX"),
    ),
)
def test_where_fatbins_run(architectures, nvcc, capability, driver, reason):
    found = built.Kernels(nvcc, architectures, 0).why_not_on(capability, driver)
    assert found is None if reason is None else found.endswith(reason)


@pytest.mark.parametrize(
    "nvcc,driver,loads",
    (
        ((12, 8, 93), 12030, False),  # from 12.4 on, drivers of CUDA 12 decompress them
        ((12, 8, 93), 12040, True),
        ((12, 8, 93), 13000, True),
        ((13, 2, 0), 12090, False),
        ((13, 2, 0), 13000, True),  # compatibility of minor versions
    ),
)
def test_which_drivers_load_fatbins(nvcc, driver, loads):
    assert (built.Kernels(nvcc, ("80",), 0).why_not_with(driver) is None) == loads
