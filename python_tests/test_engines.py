"""Tasks on this machine's processes and on local clusters of two workers."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from slt_kernels.experiments import engines
from slt_kernels.experiments.engines import ENGINES, completed


@contextmanager
def by_value(cloudpickle: str) -> Iterator[None]:
    """Workers get the functions of these modules by value, so that they need not import PyTorch."""
    pickle = pytest.importorskip(cloudpickle)
    modules = (engines, sys.modules[__name__])
    for module in modules:
        pickle.register_pickle_by_value(module)
    yield
    for module in modules:
        pickle.unregister_pickle_by_value(module)


@pytest.fixture(params=ENGINES)
def engine(request) -> Iterator[str]:
    """Each engine that is installed."""
    if request.param != "loky":
        pytest.importorskip({"dask": "distributed"}.get(request.param, request.param))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with by_value("ray.cloudpickle" if request.param == "ray" else "cloudpickle"):
        yield request.param
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers, "signals of the caller"


def square(number: int, kill: str | None = None) -> tuple[int, int]:
    """The number's square, and this process. ``kill``: a file that the first call makes, and then dies."""
    if kill is not None:
        try:
            os.close(os.open(kill, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return number**2, os.getpid()


def test_a_task_whose_worker_is_killed_runs_again(engine, tmp_path):
    tasks = {i: (i, str(tmp_path / "killed") if i == 2 else None) for i in range(5)}
    found = list(completed(square, tasks, engine=engine, jobs=2))
    assert sorted((key, value) for key, (value, _) in found) == [(i, i * i) for i in range(5)]
    assert os.getpid() not in {process for _, (_, process) in found}
    assert (tmp_path / "killed").exists()


def fails(number: int) -> int:
    if number == 1:
        raise KeyError("one")
    return number


def test_an_error_ends_the_tasks():
    results = []
    with pytest.raises(KeyError, match="one"):
        for key, result in completed(fails, {i: (i,) for i in range(5)}):
            results.append((key, result))
    assert results == [(0, 0)]


def fails_or_takes_long(number: int) -> int:
    if number == 0:
        raise KeyError("none")
    time.sleep(0.2)
    return number


def test_an_error_comes_after_the_results_of_running_tasks():
    results = {}
    with by_value("cloudpickle"), pytest.raises(KeyError, match="none"):
        for key, result in completed(fails_or_takes_long, {i: (i,) for i in range(10)}, jobs=2):
            results[key] = result
    assert results[1] == 1 and 9 not in results


running: list[int] = []


def count_running(number: int) -> int:
    """How many tasks run in this process, this one included."""
    running.append(number)
    time.sleep(0.05)
    count = len(running)
    running.remove(number)
    return count


def test_jobs_limit_the_tasks_of_a_larger_cluster():
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 4, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        tasks = {i: (i,) for i in range(6)}
        found = dict(completed(count_running, tasks, engine="dask", cluster=cluster.scheduler_address, jobs=2))
    assert found.keys() == tasks.keys() and max(found.values()) == 2


def test_no_task_starts_after_a_stop():
    results = {}
    for key, result in completed(fails, {i: (i,) for i in (5, 6, 7)}, stopped=lambda: len(results) == 2):
        results[key] = result
    assert results == {5: 5, 6: 6}


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_kills_every_worker_is_given_up(monkeypatch):
    monkeypatch.setattr(engines, "_LOSSES", 1)
    message = "1 workers were killed, one after the other; expected enough memory for jobs=2"
    with by_value("cloudpickle"), pytest.raises(RuntimeError, match=message):
        list(completed(dies, {0: ()}, jobs=2))


def test_a_task_that_dask_gives_up():
    dask = pytest.importorskip("dask")
    allowed = dask.config.set({"distributed.scheduler.allowed-failures": 0})
    with allowed, by_value("cloudpickle"), pytest.raises(RuntimeError, match=r"dask gave up a task: .* on 1 different"):
        list(completed(dies, {0: ()}, engine="dask", jobs=1))


@pytest.mark.parametrize(
    "options,message",
    (
        ({"engine": "slurm"}, "engine=slurm: expected one of loky, dask, ray"),
        ({"jobs": 0}, "jobs=0: expected at least 1"),
        ({"cluster": "a:1"}, "cluster=a:1: expected engine=dask or engine=ray"),
    ),
)
def test_engines_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        list(completed(fails, {}, **options))


@pytest.mark.parametrize("engine,module", (("dask", "distributed"), ("ray", "ray"), ("loky", "joblib")))
def test_a_missing_engine_names_its_extra(engine, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "slt_kernels\['):
        list(completed(fails, {0: (0,)}, engine=engine, jobs=2))
