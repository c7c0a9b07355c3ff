"""Sources and windows with arbitrary integers give an error or the right result, never a crash."""

import resource
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from layers import Case

from slt_kernels import Source, Window, backends, ops

EXTREMES = (
    *(2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**64),
    *(-(2**31), -(2**62), -(2**63), -(2**64)),
    *(-1, 0, 1, 2, 3, 127, 255, 256, 257),
    *(True, 1.0, float("nan"), "1", None, torch.tensor(1)),
)
CASES = {"dense": Case(6, 18, prune=0, lock=0), "frozen": Case(6, 18, prune=0.3, lock=0.2)}
WINDOW = Window(3, 3, padding_h=1, padding_w=1)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Kernels run on one thread: a thread that starts under the memory limit may fail."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def changes(fields: tuple[str, ...]):
    return st.dictionaries(st.sampled_from(fields), st.sampled_from(EXTREMES), min_size=1, max_size=2)


@contextmanager
def little_memory():
    """Limits the process to one gigabyte more, so that larger allocations fail at once."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def gradients(y: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    return [y, *torch.autograd.grad(y, leaves, torch.ones_like(y))]


def results(case: Case, source: Source, window: Window) -> list[list[torch.Tensor] | type]:
    """The result of every operation: its tensors, or the type of its error."""
    torch.manual_seed(0)
    scores = case.scores.float().requires_grad_()
    scale, x = torch.tensor(0.5), torch.randn(3, 18).requires_grad_()
    images = torch.randn(3, 2 * (3 if window.groups == 3 else 1), 5, 4).requires_grad_()
    index, threshold = torch.arange(6), torch.tensor(0.5)

    def of_mask(compact: bool) -> list:
        mask = case.mask(compact)
        return [
            lambda: list(ops.pack(scores, threshold, source, compact)),
            lambda: [ops.materialize(mask, source)],
            lambda: gradients(ops.linear(x, scores, mask, scale, torch.ones(6), source), x, scores),
            lambda: gradients(ops.conv2d(images, scores, mask, scale, None, source, window), images, scores),
            lambda: gradients(ops.embedding(index, scores, mask, scale, source), scores),
        ]

    operations = [*of_mask(False), *of_mask(True), lambda: [ops.expand(case.mask(True), source)]]
    found = []
    for operation in operations:
        try:
            found.append(operation())
        except (TypeError, ValueError) as error:
            found.append(type(error))
        except (MemoryError, RuntimeError) as error:
            assert "memory" in str(error) or isinstance(error, MemoryError)
            found.append(MemoryError)
    return found


def check(case: Case, source: Source, window: Window) -> None:
    with little_memory():
        found = results(case, source, window)
        with backends.use("reference"):
            expected = results(case, source, window)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, type) or isinstance(ours, type):
            assert ours == theirs or MemoryError in (ours, theirs)
        else:
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", CASES)
@given(changed=changes(Source._fields))
@settings(max_examples=40)
def test_any_source(kind, changed):
    source = CASES[kind].source._replace(**changed)
    if kind == "frozen" and source.rows == 2**31 - 1:
        return  # a valid source; counting its free weights would take long
    check(CASES[kind], source, WINDOW)


@pytest.mark.parametrize("kind", CASES)
@given(changed=changes(Window._fields))
@settings(max_examples=40)
def test_any_window(kind, changed):
    check(CASES[kind], CASES[kind].source, WINDOW._replace(**changed))


@pytest.mark.parametrize(
    "change,message",
    (
        ({"first_word": -1}, "source.first_word=-1: expected an int from 0"),
        ({"rows": 2**62}, "source.rows=.*: expected an int from 1 to 2147483647"),
        ({"fan": 18.0}, "source.fan=18.0: expected an int"),
        ({"first_row": 2**31 - 6}, r"first_row \+ rows of at most"),
        ({"first_word": 4}, r"first_word \+ ceil\(fan / 32\) of at most"),
        ({"prune_below": 200, "lock_from": 100}, "prune_below of at most lock_from"),
    ),
)
def test_a_source_that_cannot_be(change, message):
    case = CASES["dense"]
    source = case.source._replace(**change)
    arguments = None, case.mask(), torch.tensor(1.0)
    for operation in (
        lambda: ops.linear(torch.ones(1, 18), *arguments, None, source),
        lambda: ops.conv2d(torch.ones(1, 2, 3, 3), *arguments, None, source, WINDOW),
        lambda: ops.embedding(torch.zeros(1).long(), *arguments, source),
        lambda: ops.pack(case.scores, torch.tensor(0.5), source, False),
        lambda: ops.expand(case.mask(True), source),
        lambda: ops.materialize(case.mask(), source),
    ):
        with pytest.raises(ValueError, match=message):
            operation()


@pytest.mark.parametrize(
    "window,message",
    (
        (Window(3, 3, 1, 2**62, 1, 2**62), "window.stride_w=.*: expected an int from 1 to 2147483647"),
        (WINDOW._replace(padding_h=2**30), r"expected sides under 2\*\*31, padding included"),
        (WINDOW._replace(padding_h=2**29, padding_w=2**29), r"at most 2\*\*53 numbers"),
    ),
)
def test_a_window_that_cannot_be(window, message):
    case = CASES["dense"]
    with pytest.raises(ValueError, match=message):
        ops.conv2d(torch.ones(1, 2, 3, 3), None, case.mask(), torch.tensor(1.0), None, case.source, window)


@pytest.mark.parametrize("stride", (2**31 - 1, 7))
def test_strides_beyond_the_image(stride, backend):
    """The output has one position. Pixels that it does not read have the gradient 0, for remainders of either sign."""
    case, window = CASES["dense"], WINDOW._replace(stride_h=stride, stride_w=stride)
    x = torch.randn(2, 2, 5, 4).requires_grad_()
    y = ops.conv2d(x, None, case.mask(), torch.tensor(1.0), None, case.source, window)
    once = ops.conv2d(x, None, case.mask(), torch.tensor(1.0), None, case.source, WINDOW)
    assert torch.equal(y, once[:, :, :1, :1])
    (dx,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad(once[:, :, 0, 0].sum(), x)
    torch.testing.assert_close(dx, expected)


def test_ranks_of_any_size(backend):
    scores = [torch.tensor([1.0, -2.0])]
    assert ops.select(scores, 2**70).item() == float("inf")
    assert ops.select(scores, -(2**70)).item() == -float("inf")
    with pytest.raises(TypeError, match=r"rank=1\.0: expected an integer"):
        ops.select(scores, 1.0)
