"""Which kernel runs an operation: the first that takes the arguments, of the backends that run here, in their order.

A backend is a package beside this file. It says what it needs (``unavailable()``), which devices it takes
(``supports(device)``) and what it runs on (``describe()``); its modules register kernels with `kernel`. It need not
have every operation, nor take every argument: what no other takes, the reference computes.
"""

import os
import pkgutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..operations import OUTPUTS

REFERENCE = "reference"


class Kernel(NamedTuple):
    """A function ``(outputs, *arguments)`` that writes an operation's outputs.

    ``when(*arguments)`` says whether it takes them; None takes all.
    """

    function: Callable[..., None]
    when: Callable[..., bool] | None


_backends: dict[str, ModuleType] = {}  # the preferred first
_kernels: dict[tuple[str, str], list[Kernel]] = {}  # by backend and operation
_loaded: set[str] = set()  # the backends whose kernels are registered
_loading = threading.RLock()
_planners: dict[tuple[str, str], Callable[..., Callable[[Tensor], Tensor] | None]] = {}  # by backend and operation
_candidates: dict[tuple[str, torch.device], tuple[Kernel, ...]] = {}  # by operation and device; filled on first use
_copying: dict[torch.device, bool] = {}  # see `copies_images`; filled on first use
choices = 0  # counts the changes after which another kernel may be chosen: plans made before them are void
_forced: str | None = os.environ.get("SLT_BACKEND") or None


def register(name: str, backend: ModuleType) -> None:
    """Adds a backend, preferred to those already there."""
    global _backends
    _backends = {name: backend, **{k: v for k, v in _backends.items() if k != name}}
    _choose_again()


def _choose_again() -> None:
    global choices
    choices += 1
    _candidates.clear()
    _copying.clear()


def kernel(
    operation: str, *, backend: str, when: Callable[..., bool] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers the decorated function ``(outputs, *arguments)`` as a backend's kernel of an operation.

    Args:
        operation: its name in `operations`.
        backend: the name that the backend has in `register`.
        when: whether it takes these arguments of the operation; None takes all. Of a backend's kernels of one
            operation the first registered that takes them runs.

    Raises:
        ValueError: no such operation.
    """
    if operation not in OUTPUTS:
        raise ValueError(f"operation={operation!r}: expected one of {', '.join(OUTPUTS)}")

    def add(function: Callable[..., None]) -> Callable[..., None]:
        _kernels.setdefault((backend, operation), []).append(Kernel(function, when))
        _choose_again()
        return function

    return add


def planner(operation: str, *, backend: str) -> Callable[[Callable], Callable]:
    """Registers the decorated function as a backend's planner of a forward operation: see `plan`.

    It takes the operation's arguments except the first, and returns a function of the first; or None if it prepares
    nothing for them.
    """

    def add(function: Callable) -> Callable:
        _planners[backend, operation] = function
        return function

    return add


def plan(operation: str, device: torch.device, *arguments: Any) -> Callable[[Tensor], Tensor] | None:
    """A forward operation with all arguments except the input converted, for many calls.

    None if the backend prepares none. It is valid while `choices` and the addresses of the tensors among ``arguments``
    stay the same. It takes contiguous inputs of float32, bfloat16 or float16 (an embedding's: int64), and checks
    nothing except the range of an index.
    """
    backend = name_for(device)
    kernels(backend, operation)  # so that its modules are imported
    prepare = _planners.get((backend, operation))
    return None if prepare is None else prepare(*arguments)


def kernels(backend: str, operation: str) -> list[Kernel]:
    """A backend's kernels of an operation, in the order in which they are tried; imports its modules at first."""
    if backend not in _loaded:
        with _loading:
            package = _backends[backend]
            for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
                import_module(f"{package.__name__}.{module.name}")
            _loaded.add(backend)  # last: another thread must not find half of them
    return _kernels.get((backend, operation), [])


def run(operation: str, *arguments: Any) -> Any:
    """Runs an operation on the first kernel that takes the arguments, on the device of its first tensor.

    Returns:
        Its outputs: a tensor, or a tuple of them.

    Raises:
        ValueError, RuntimeError: see `name_for`.
    """
    first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
    candidates = _candidates.get((operation, first.device)) or _find_candidates(operation, first.device)
    return _run_first(operation, candidates, arguments)


class on:  # noqa: N801 (reads as a function)
    """Some backends' operations as functions of tensors: ``on("cpu").linear_forward(x, mask, ...)``.

    They are tried in their order; what their kernels do not take, the reference's do. All other names are those of the
    first backend's package.

    Raises:
        ValueError: no backend has that name.
    """

    def __init__(self, *names: str) -> None:
        for name in names:
            why_unavailable(name)
        self.names = names

    def __getattr__(self, name: str) -> Any:
        if name not in OUTPUTS:
            return getattr(_backends[self.names[0]], name)
        return lambda *arguments: _run_first(name, _kernels_of((*self.names, REFERENCE), name), arguments)


def _run_first(operation: str, candidates: Sequence[Kernel], arguments: tuple[Any, ...]) -> Any:
    for function, when in candidates:
        if when is None or when(*arguments):
            outputs = make_outputs(operation, arguments)
            function(outputs, *arguments)
            return outputs
    raise NotImplementedError(f"{operation}: no kernel takes these arguments")


def make_outputs(operation: str, arguments: tuple[Any, ...]) -> Any:
    """An operation's outputs, not yet written."""
    return OUTPUTS[operation](*arguments)


def _kernels_of(order: Iterable[str], operation: str) -> tuple[Kernel, ...]:
    """The kernels of some backends, each once, in that order."""
    return tuple(k for name in dict.fromkeys(order) for k in kernels(name, operation))


def _find_candidates(operation: str, device: torch.device) -> tuple[Kernel, ...]:
    """Kernels in the order in which they are tried."""
    first = name_for(device)
    order = [first, REFERENCE] if _forced else _running_on(device)
    _candidates[operation, device] = found = _kernels_of(order, operation)
    return found


def _running_on(device: torch.device) -> list[str]:
    """The backends that take tensors of that device, and run here.

    `supports` is called first, because `unavailable` of a GPU backend looks for its devices.
    """
    return [name for name, backend in _backends.items() if backend.supports(device) and backend.unavailable() is None]


def names() -> list[str]:
    """All backends, the preferred ones first, whether or not they run here."""
    return list(_backends)


def why_unavailable(name: str) -> str | None:
    """Why the backend cannot run here; None if it can.

    Raises:
        ValueError: no backend has that name.
    """
    if name not in _backends:
        raise ValueError(f"backend={name!r}: expected one of {', '.join(_backends)}")
    return _backends[name].unavailable()


def available() -> list[str]:
    """The backends that run here, the preferred ones first."""
    return [name for name in _backends if why_unavailable(name) is None]


def describe(name: str) -> str:
    """What the backend runs on here, or why it cannot."""
    reason = why_unavailable(name)
    return _backends[name].describe() if reason is None else f"not available: {reason}"


@contextmanager
def use(name: str) -> Iterator[None]:
    """Forces a backend inside a ``with`` block, for every thread (autograd runs backward passes on its own).

    Operations and arguments that it does not take run on the reference.

    Raises:
        ValueError: no backend has that name.
        RuntimeError: it cannot run here; the message says why.
    """
    global _forced
    _check(name)
    before, _forced = _forced, name
    _choose_again()
    try:
        yield
    finally:
        _forced = before
        _choose_again()


def _check(name: str) -> None:
    reason = why_unavailable(name)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} is not available: {reason}")


def name_for(device: torch.device) -> str:
    """The backend that operations on tensors of that device try first.

    Raises:
        ValueError: ``SLT_BACKEND`` names no backend.
        RuntimeError: the forced backend cannot run here, or not on that device.
    """
    if _forced is not None:
        _check(_forced)
        if not _backends[_forced].supports(device):
            raise RuntimeError(f"backend {_forced!r} does not take tensors on {device}")
        return _forced
    return next(n for n, b in _backends.items() if b.supports(device) and b.unavailable() is None)


def copies_images(device: torch.device) -> bool:
    """Whether the preferred backend copies images that are not channels-last in every operation (its package has
    ``COPIES_IMAGES``).

    A caller of several operations may then copy once for all.
    """
    if device not in _copying:
        _copying[device] = getattr(_backends[name_for(device)], "COPIES_IMAGES", False)
    return _copying[device]


def table(device: torch.device) -> dict[str, list[str]]:
    """For each operation, the backends that have a kernel of it for tensors of that device, in their order."""
    order = _running_on(device)
    return {operation: [name for name in order if kernels(name, operation)] for operation in OUTPUTS}
