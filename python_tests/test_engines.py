"""Tasks on this machine's processes and on local clusters of two workers."""

import os
import signal
import sys
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
    with by_value("ray.cloudpickle" if request.param == "ray" else "cloudpickle"):
        yield request.param


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


def test_an_error_comes_after_the_results_of_running_tasks():
    results = []
    with pytest.raises(KeyError, match="one"):
        for key, result in completed(fails, {i: (i,) for i in range(5)}):
            results.append((key, result))
    assert results == [(0, 0)]


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
