"""The CPU backend's gradients of the scores against float64, on every instruction set."""

import pytest
import torch
from computed_once import ComputedOnce

from slt_kernels import backends
from slt_kernels.backends.cpu.arguments import free_offsets
from slt_kernels.conv_geometry import Window
from slt_kernels.source import WEIGHTS, Freeze, Source

cpu, reference = backends.on("cpu"), ComputedOnce(backends.on("reference"))

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))

BOUND = {"highest": 5e-7, "high": 3e-4, "medium": 3e-4}  # in relative norm, on normal inputs
SHAPES = (
    (1, 1),
    (3, 31),
    (17, 32),
    (31, 131),
    (65, 33),
    (33, 129),
    (129, 17),
    (63, 65),
    (32, 127),
    (203, 300),
    (16, 256),
)

BATCHES = (1, 3, 17, 64, 300)
FREEZES = {
    "dense": Freeze(),
    "frozen": Freeze(0.35, 0.35),
    "sixteenths": Freeze(0.375, 0.25),
    "mostly-pruned": Freeze(prune=0.97),
}
WINDOWS = {
    "3x3": (5, 7, Window(3, 3, padding_h=1, padding_w=1)),
    "3x3-32": (32, 17, Window(3, 3, padding_h=1, padding_w=1)),
    "3x3-16": (16, 12, Window(3, 3, padding_h=2)),
    "3x3-48": (48, 21, Window(3, 3, padding_h=1, padding_w=2)),
    "1x1": (33, 12, Window(1, 1)),
    "strided": (6, 4, Window(3, 2, stride_h=2, stride_w=3, padding_h=0, padding_w=2)),
    "dilated": (3, 20, Window(3, 3, dilation_h=2, dilation_w=1, padding_h=2, padding_w=1)),
    "groups": (12, 8, Window(3, 3, padding_h=1, padding_w=1, groups=4)),
    "wide-groups": (64, 48, Window(3, 3, padding_h=1, padding_w=1, groups=2)),
    "depthwise": (9, 18, Window(3, 3, padding_h=1, padding_w=1, groups=9)),
    "whole-image": (2, 5, Window(9, 11)),
    "1x1-64": (64, 20, Window(1, 1)),
    "1x1-groups": (96, 9, Window(1, 1, groups=3)),
    "1x2-32": (32, 9, Window(1, 2)),
    "1x3-64": (64, 33, Window(1, 3, padding_w=1)),
    "dilated-32": (32, 17, Window(3, 3, dilation_h=2, dilation_w=1, padding_h=2, padding_w=1)),
}


@pytest.fixture(params=FREEZES.values(), ids=FREEZES)
def freeze(request):
    return request.param


@pytest.fixture(params=WINDOWS.values(), ids=WINDOWS)
def geometry(request):
    return request.param


@pytest.fixture(autouse=True)
def settings():
    """One thread: most inputs are small, and `test_threads` uses more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
    torch.set_float32_matmul_precision("highest")


SCALE = torch.tensor(0.37)


def make_scores(source: Source) -> torch.Tensor:
    """Zeros of both signs among them."""
    scores = torch.randn(int(free_offsets(source)[-1]))
    scores[::5] = 0.0
    scores[1::7] = -0.0
    return scores


def check(got: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    assert got.dtype == torch.float32
    few = 1000 if len(expected) < 10 else 20 if len(expected) < 200 else 1  # a few sums may all happen to be small
    assert (got.double() - expected).norm() <= few * bound * expected.norm()


def linear_inputs(rows: int, fan: int, batch: int, weight: str, freeze: Freeze) -> tuple:
    source = Source.of(rows, fan, seed=2**63 + rows, layer=fan, weight=weight, freeze=freeze)
    return torch.randn(batch, rows), torch.randn(batch, fan), make_scores(source), SCALE, source


def conv2d_inputs(
    geometry, weight: str = "signed_constant", freeze: Freeze = FREEZES["dense"], batch: int = 5
) -> tuple:
    channels, rows, window = geometry
    fan = channels // window.groups * window.kernel_h * window.kernel_w
    source = Source.of(rows, fan, seed=7, layer=fan, weight=weight, freeze=freeze)
    x = torch.randn(batch, channels, 9, 11)
    dy = torch.randn(batch, rows, *window.output_size(9, 11))
    return dy, x, make_scores(source), SCALE, source, window


def in_float64(operation, dy, x, scores, *rest) -> torch.Tensor:
    return operation(dy.double(), x.double(), scores, *rest)


def check_linear(*args, bound: float = BOUND["highest"]) -> None:
    check(cpu.linear_grad_scores(*args), in_float64(reference.linear_grad_scores, *args), bound)


def check_conv2d(*args, bound: float = BOUND["highest"]) -> None:
    check(cpu.conv2d_grad_scores(*args), in_float64(reference.conv2d_grad_scores, *args), bound)


@pytest.mark.parametrize("rows,fan", SHAPES)
def test_linear(isa, freeze, rows, fan):
    for i, batch in enumerate(BATCHES):
        check_linear(*linear_inputs(rows, fan, batch, WEIGHTS[(i + rows) % 3], freeze))


@pytest.mark.parametrize("precision", ("high", "medium"))
def test_precision(isa, precision):
    torch.set_float32_matmul_precision(precision)
    check_linear(*linear_inputs(65, 257, 129, "normal", FREEZES["frozen"]), bound=BOUND[precision])
    check_conv2d(*conv2d_inputs(WINDOWS["3x3-32"]), bound=BOUND[precision])


def narrow(dtype: torch.dtype, dy, x, *rest) -> tuple:
    return dy.to(dtype), x.to(dtype), *rest


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_16_bits(isa, dtype):
    """The same in all layouts. A product of bfloat16 is exact; float16 is what it is as float32 under "high"."""
    torch.set_float32_matmul_precision("high")
    bound = BOUND["highest" if dtype == torch.bfloat16 else "high"]
    dy, x, *rest = narrow(dtype, *linear_inputs(65, 257, 129, "uniform", FREEZES["frozen"]))
    expected = cpu.linear_grad_scores(dy, x, *rest)
    check(expected, in_float64(reference.linear_grad_scores, dy, x, *rest), bound)
    for rows in (x, x.T.contiguous().T, x.repeat(1, 2)[:, :257], x[:, None].expand(-1, 2, -1)[:, 0]):
        assert torch.equal(cpu.linear_grad_scores(dy, rows, *rest), expected)
    mixed = cpu.linear_grad_scores(dy.float(), x.float(), *rest)
    assert torch.equal(cpu.linear_grad_scores(dy, x.float(), *rest), mixed)
    assert dtype == torch.bfloat16 or torch.equal(mixed, expected)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_16_bit_images(isa, geometry, dtype):
    for batch in (1, 2, 3, 12):
        dy, x, *rest = narrow(dtype, *conv2d_inputs(geometry, freeze=FREEZES["frozen"], batch=batch))
        expected = in_float64(reference.conv2d_grad_scores, dy, x, *rest)
        bound = BOUND["highest" if dtype == torch.bfloat16 else "high"]
        for memory_format in (torch.contiguous_format, torch.channels_last):
            images = dy.to(memory_format=memory_format), x.to(memory_format=memory_format)
            check(cpu.conv2d_grad_scores(*images, *rest), expected, bound)


def test_float64():
    dy, x, *rest = linear_inputs(17, 65, 5, "normal", FREEZES["frozen"])
    args = dy.double(), x.double(), *rest
    assert torch.equal(cpu.linear_grad_scores(*args), reference.linear_grad_scores(*args))


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
def test_the_default_dtype_is_not_theirs(dtype):
    """Gradients are float32, whatever new tensors are."""
    dy, x, *rest = conv2d_inputs(WINDOWS["3x3"])
    index = torch.tensor([3, 1, 3])
    source = Source.of(9, 45, seed=1)
    embedding = torch.randn(3, 45), index, make_scores(source), torch.tensor(0.3), source
    torch.set_default_dtype(dtype)
    try:
        got = cpu.conv2d_grad_scores(dy, x, *rest), cpu.embedding_grad_scores(*embedding)
        empty = cpu.conv2d_grad_scores(dy[:0], x[:0], *rest)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [t.dtype for t in (*got, empty)] == 3 * [torch.float32]
    check(got[0], in_float64(reference.conv2d_grad_scores, dy, x, *rest), BOUND["highest"])
    assert torch.equal(got[1], reference.embedding_grad_scores(*embedding))


def test_linear_layouts(isa):
    dy, x, *rest = linear_inputs(65, 129, 64, "signed_constant", FREEZES["frozen"])
    expected = cpu.linear_grad_scores(dy, x, *rest)
    strided_x, strided_dy = torch.randn(64, 258)[:, ::2], torch.randn(128, 65)[::2]
    strided_x.copy_(x)
    strided_dy.copy_(dy)
    for like_x in (x.T.contiguous().T, strided_x):
        for like_dy in (dy.T.contiguous().T, strided_dy):
            assert torch.equal(cpu.linear_grad_scores(like_dy, like_x, *rest), expected)
    for expanded in (torch.ones(()).expand(64, 65), torch.randn(65).expand(64, 65), torch.randn(64, 1).expand(64, 65)):
        check_linear(expanded, x, *rest)


def test_linear_shard(isa):
    dy, x, _, scale, source = linear_inputs(40, 1031, 20, "normal", FREEZES["frozen"])
    for rows, words in (((3, 40), (1, 33)), ((0, 17), (6, 9)), ((39, 40), (32, 33))):
        shard = source.shard(rows, words)
        first = 32 * words[0]
        args = dy[:, slice(*rows)], x[:, first : first + shard.fan], make_scores(shard), scale, shard
        check_linear(*args)


@pytest.mark.parametrize(
    "freeze", (Freeze(prune=1), Freeze(lock=1), Freeze(0.5, 0.5)), ids=("pruned", "locked", "both")
)
def test_nothing_free(isa, freeze):
    assert cpu.linear_grad_scores(*linear_inputs(17, 65, 5, "normal", freeze)).shape == (0,)


def test_empty_batch(isa, geometry):
    args = linear_inputs(17, 65, 0, "normal", Freeze())
    assert torch.equal(cpu.linear_grad_scores(*args), torch.zeros(17 * 65))
    args = conv2d_inputs(geometry, batch=0)
    assert torch.equal(cpu.conv2d_grad_scores(*args), torch.zeros_like(args[2]))


def test_conv2d(isa, geometry, freeze):
    for batch in (1, 2, 3, 5, 12):
        check_conv2d(*conv2d_inputs(geometry, freeze=freeze, batch=batch))


@pytest.mark.parametrize("weight", WEIGHTS[1:])
def test_conv2d_weights(isa, geometry, weight):
    check_conv2d(*conv2d_inputs(geometry, weight))


def test_conv2d_layouts(isa, geometry):
    dy, x, *rest = conv2d_inputs(geometry)
    strided = torch.randn(*x.shape[:3], 2 * x.shape[3])[..., ::2]
    strided.copy_(x)
    transposed = dy.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(cpu.conv2d_grad_scores(transposed, strided, *rest), cpu.conv2d_grad_scores(dy, x, *rest))
    last_x, last_dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    for like_x in (x, last_x, strided):
        for like_dy in (dy, last_dy, transposed):
            check_conv2d(like_dy, like_x, *rest)
    check_conv2d(torch.ones(()).expand(dy.shape), x, *rest)


def test_threads(isa):
    inputs = [linear_inputs(203, 1500, 77, "normal", FREEZES["frozen"]), conv2d_inputs(WINDOWS["3x3-32"], batch=12)]
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append((cpu.linear_grad_scores(*inputs[0]), cpu.conv2d_grad_scores(*inputs[1])))
    for linear, conv2d in results[1:]:
        assert torch.equal(linear, results[0][0])
        assert torch.equal(conv2d, results[0][1])


def test_many_images(isa):
    """More than are worked on at a time: each part's gradients are added to those before."""
    torch.set_num_threads(2)
    window = Window(3, 3, padding_h=1, padding_w=1)
    source = Source.of(8, 72, seed=7, layer=1, weight="uniform", freeze=FREEZES["frozen"])
    dy, x = torch.randn(9, 8, 260, 256), torch.randn(9, 8, 260, 256)
    check_conv2d(dy, x, make_scores(source), SCALE, source, window)
    x[8, 0, 0, 0] = torch.inf
    got = cpu.conv2d_grad_scores(dy, x, make_scores(source), SCALE, source, window)
    assert not got.isfinite().all() and got.isfinite().any()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
def test_not_finite(isa, value, dtype):
    """Only where the dense product is not finite."""
    convolutions = [conv2d_inputs(WINDOWS[name]) for name in ("3x3-32", "1x1-64", "dilated-32")]
    for args in (linear_inputs(65, 129, 64, "normal", FREEZES["frozen"]), *convolutions):
        args = narrow(dtype, *args)
        operation = "linear_grad_scores" if len(args) == 5 else "conv2d_grad_scores"
        for which in (0, 1):
            poisoned = [a.clone() if i < 2 else a for i, a in enumerate(args)]
            poisoned[which].flatten()[0] = value  # a corner, which some taps do not see
            got = getattr(cpu, operation)(*poisoned)
            expected = getattr(reference, operation)(*poisoned)
            assert torch.equal(got.isfinite(), expected.isfinite())
            assert not got.isfinite().all()


def test_sizes_far_apart(isa):
    """Each row and each column has a scale of its own."""
    dy, x, *rest = linear_inputs(65, 129, 64, "signed_constant", Freeze())
    dy *= torch.logspace(-12, 12, 65)
    x *= torch.logspace(12, -12, 129)
    got = cpu.linear_grad_scores(dy, x, *rest)
    expected = in_float64(reference.linear_grad_scores, dy, x, *rest)
    sizes = reference.linear_grad_scores(dy.double().norm(dim=0)[None], x.double().norm(dim=0)[None], *rest)
    assert ((got - expected) / sizes).abs().max() < 1e-6
