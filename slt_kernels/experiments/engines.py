"""What runs many independent tasks at a time: processes of this machine, or a cluster of dask or ray.

===========  ===========================================================================================
``loky``     processes of this machine, by joblib; one job runs in this process
``dask``     a cluster of ``distributed``, by its own futures: joblib ignores a limit on the tasks at a time,
             and runs the tasks of a cluster of one thread in this process
``ray``      a cluster of ray, by its own tasks: its joblib backend gives no result before the last one
===========  ===========================================================================================

A task whose worker was killed runs again. dask and ray do so themselves, after which they give up.
"""

import importlib
import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

_MOST_JOBS = 1024
ENGINES = ("loky", "dask", "ray")

Results = Iterator[tuple[Hashable, Any]]
Task = tuple[Hashable, tuple]
"""A key, and arguments."""
Outcome = tuple[Hashable, Any, Exception | None]
"""A key, and a result or an error."""
_PACKAGES = {"loky": ("joblib", "demo"), "dask": ("distributed", "dask"), "ray": ("ray", "ray")}
"""The package of each engine, and the extra with which it is installed."""
_LOSSES = 3  # workers killed one after the other, without a finished task, before loky's tasks are given up


def completed(
    function: Callable[..., Any],
    tasks: Mapping[Hashable, tuple],
    *,
    engine: str = "loky",
    jobs: int | None = None,
    cluster: str | None = None,
    threads: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> Results:
    """Calls ``function(*arguments)`` for each task and yields its key and result as soon as it is there.

    Args:
        function: a function of a module that the workers can import.
        tasks: the arguments by key.
        engine: one of `ENGINES`.
        jobs: tasks at a time. Default None: 1 for loky, all that the cluster has room for otherwise.
        cluster: address of dask's scheduler or of ray. Default None: that of the environment
            (``DASK_SCHEDULER_ADDRESS``, ``RAY_ADDRESS``), otherwise a cluster on this machine, which is closed
            afterwards.
        threads: threads of a task, for ray's scheduler.
        stopped: whether no further task is to start. Tasks that run are waited for.

    Raises:
        ValueError: an unknown engine, fewer than one job or too many for loky, or a cluster for it.
        ModuleNotFoundError: the engine is not installed.
        RuntimeError: workers were killed several times in a row.
        The first error of a task: no further task is handed out, and the results of those that run are yielded before.
    """
    check(engine, jobs, cluster)
    errors: list[Exception] = []

    def feed() -> Iterator[Task]:
        for key, arguments in tasks.items():
            if errors or stopped():
                return
            yield key, arguments

    if engine == "loky":
        outcomes = _loky(function, feed, jobs or 1)
    elif engine == "dask":
        outcomes = _dask(function, feed, jobs, cluster)
    else:
        outcomes = _ray(function, feed, jobs, cluster, threads)
    for key, result, error in outcomes:
        if error is None:
            yield key, result
        else:
            errors.append(error)
    if errors:
        raise errors[0]


def check(engine: str, jobs: int | None, cluster: str | None) -> None:
    """Raises the errors of `completed` about its arguments and missing packages."""
    if engine not in ENGINES:
        raise ValueError(f"engine={engine}: expected one of {', '.join(ENGINES)}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs}: expected at least 1")
    if engine == "loky" and jobs is not None and jobs > _MOST_JOBS:
        raise ValueError(f"jobs={jobs}: expected at most {_MOST_JOBS} processes on this machine")
    if engine == "loky" and cluster is not None:
        raise ValueError(f"cluster={cluster}: expected engine=dask or engine=ray; loky runs on this machine")
    try:
        importlib.import_module(_PACKAGES[engine][0])
    except ModuleNotFoundError:
        extra = _PACKAGES[engine][1]
        raise ModuleNotFoundError(f'engine={engine} is an extra: pip install "slt_kernels[{extra}]"') from None


def _attempt(function: Callable[..., Any], caller: int, key: Hashable, arguments: tuple) -> Outcome:
    """A call that returns its error instead of raising it, so that the tasks that run beside it are not lost.

    Args:
        caller: process that made the tasks.
    """
    if os.getpid() != caller and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the caller decides
    try:
        return key, function(*arguments), None
    except Exception as error:
        return key, None, error


def _loky(function: Callable[..., Any], feed: Callable[[], Iterator[Task]], jobs: int) -> Iterator[Outcome]:
    import joblib

    done: set[Hashable] = set()
    losses = 0
    while True:
        calls = (joblib.delayed(_attempt)(function, os.getpid(), *task) for task in feed() if task[0] not in done)
        options = {"return_as": "generator_unordered", "pre_dispatch": "n_jobs", "batch_size": 1}
        try:
            with joblib.parallel_config("loky", n_jobs=jobs):
                for key, result, error in joblib.Parallel(**options)(calls):
                    done.add(key)
                    losses = 0
                    yield key, result, error
            return
        except BrokenProcessPool:  # a worker was killed, and the tasks that ran beside it are lost as well
            losses += 1
            if losses == _LOSSES:
                raise RuntimeError(
                    f"{losses} workers were killed, one after the other; expected enough memory for jobs={jobs}"
                ) from None


def _dask(
    function: Callable[..., Any], feed: Callable[[], Iterator[Task]], jobs: int | None, cluster: str | None
) -> Iterator[Outcome]:
    import dask
    from distributed import Client, KilledWorker, LocalCluster, wait

    with ExitStack() as stack:
        cluster = cluster or dask.config.get("scheduler-address", None)
        if cluster is None:  # a thread per worker: a search uses process-wide generators
            cluster = stack.enter_context(
                LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR)
            )
        client = stack.enter_context(Client(cluster))

        def submit(task: Task) -> Any:
            return client.submit(_attempt, function, os.getpid(), *task, pure=False)

        def first_of(running: list) -> tuple[Any, list]:
            done = next(iter(wait(running, return_when="FIRST_COMPLETED").done))
            return done, [future for future in running if future is not done]

        def room() -> int:
            return jobs or max(1, sum(client.nthreads().values()))

        for future in _window(submit, first_of, feed(), room):
            try:
                outcome = future.result()
            except KilledWorker as error:
                outcome = None, None, RuntimeError(f"dask gave up a task: {error}")
            yield outcome


def _ray(
    function: Callable[..., Any],
    feed: Callable[[], Iterator[Task]],
    jobs: int | None,
    cluster: str | None,
    threads: int,
) -> Iterator[Outcome]:
    import ray

    with _connected(ray, cluster):
        call = ray.remote(num_cpus=threads, max_retries=3)(_attempt)

        def submit(task: Task) -> Any:
            return call.remote(function, os.getpid(), *task)

        def first_of(running: list) -> tuple[Any, list]:
            (done,), running = ray.wait(running, num_returns=1)
            return done, running

        def room() -> int:
            return jobs or max(1, int(ray.cluster_resources().get("CPU", 0)) // threads)

        for reference in _window(submit, first_of, feed(), room):
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayError as error:
                outcome = None, None, RuntimeError(f"ray gave up a task: {error}")
            yield outcome


def _window(
    submit: Callable[[Task], Any],
    first_of: Callable[[list], tuple[Any, list]],
    tasks: Iterator[Task],
    room: Callable[[], int],
) -> Iterator[Any]:
    """Submits tasks while there is room, and yields what `submit` returned as each is done."""
    running: list = []
    while True:
        running += map(submit, itertools.islice(tasks, max(0, room() - len(running))))
        if not running:
            return
        done, running = first_of(running)
        yield done


def _connected(ray, cluster: str | None) -> AbstractContextManager:
    if ray.is_initialized():
        return nullcontext()
    handler = signal.getsignal(signal.SIGTERM)
    connection = ray.init(cluster, include_dashboard=None if cluster else False, log_to_driver=False)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # ray's own ends the tasks that run: the caller decides
    return connection
