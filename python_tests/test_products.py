"""The products on every backend that runs here: known answers, the method in float64, and what they promise."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from layers import Case, geometry, kernel, relative_error

from slt_kernels import EdgePopup, Freeze, Source, SupermaskConv2d, SupermaskLinear, Window, backends, bits, ops
from slt_kernels.source import WEIGHTS

FANS = (1, 2, 31, 32, 33, 63, 65, 97, 127, 129, 131, 257)
ROWS = (1, 3, 17)

# In name: (rows, fan), window, channels, size of the image
CONVOLUTIONS = {
    "1x1": ((5, 7), Window(1, 1), (4, 3)),
    "3x3": ((6, 27), Window(3, 3, padding_h=1, padding_w=1), (5, 7)),
    "stride": ((4, 45), Window(3, 3, 2, 3, 1, 0), (9, 8)),
    "dilation": ((3, 33), Window(3, 1, dilation_h=2, dilation_w=3), (8, 4)),
    "uneven": ((2, 30), Window(2, 5, 1, 2, 0, 3, 3, 1), (6, 6)),
    "groups": ((6, 18), Window(3, 3, padding_h=1, padding_w=1, groups=3), (5, 5)),
    "depthwise": ((8, 9), Window(3, 3, groups=8), (6, 4)),
    "whole": ((5, 129), Window(1, 3), (1, 3)),
}
SHAPES = [pytest.param(*case, id=name) for name, case in CONVOLUTIONS.items()]


def channels_of(fan: int, window: Window) -> int:
    return fan // math.prod(window.kernel) * window.groups


def image(shape: tuple[int, int], window: Window, size: tuple[int, int], batch: int = 3, dtype=torch.float32):
    return torch.randn(batch, channels_of(shape[1], window), *size, dtype=dtype)


def floats(words: list[str]) -> torch.Tensor:
    return torch.from_numpy(np.array([int(w, 16) for w in words], dtype=np.uint32).view(np.float32))


def gradients(y: torch.Tensor, dy: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(y, leaves, dy)


# Section 7 of the contract, to the bit


@pytest.mark.parametrize("precision,digits", (("highest", 3), ("high", 2)))
@pytest.mark.parametrize("case", known_cases := oracle.known("products"), ids=[c["weight"] for c in known_cases])
def test_known_answers(case, precision, digits, backend):
    freeze = Freeze(case["prune"], case["lock"])
    shape = (case["rows"], case["fan"])
    source = Source.of(*shape, seed=int(case["seed"]), layer=case["layer"], weight=case["weight"], freeze=freeze)
    free, locked = source.frozen_words()
    x = floats(case["x_float32_hex"]).view(case["batch"], -1)
    torch.set_float32_matmul_precision(precision)
    scores = torch.zeros(source.count_frozen()[1])
    y = ops.linear(x, scores, free | locked, torch.tensor(case["scale"]), None, source)
    assert torch.equal(y.flatten(), floats(case[f"y_D{digits}_float32_hex"]))
    # The same sums as a 1x1 convolution of one pixel
    y = ops.conv2d(x[..., None, None], scores, free | locked, torch.tensor(case["scale"]), None, source, Window(1, 1))
    assert torch.equal(y.flatten(), floats(case[f"y_D{digits}_float32_hex"]))


def vectors(batch: int, size: int) -> torch.Tensor:
    """float32 rows of all magnitudes: normal, an outlier, next to a power of two, subnormal, and all zero."""
    x = torch.randn(batch, size)
    special = (
        lambda row: row.mul_(1e-3).__setitem__(0, 300.0),
        lambda row: row.clamp_(-0.9, 0.9).__setitem__(0, 0.99999994),
        lambda row: row.clamp_(-0.9, 0.9).__setitem__(-1, -0.9960938),
        lambda row: row.mul_(1e-40),
        lambda row: row.zero_(),
        lambda row: row.mul_(1e37),
        lambda row: row.round_(),
    )
    for row, change in zip(x[1:], special, strict=False):
        change(row)
    return x


@pytest.mark.parametrize("precision,digits", (("highest", 3), ("high", 2)))
@pytest.mark.parametrize("rows,fan", ((1, 1), (3, 33), (17, 63), (5, 129), (2, 257)))
@pytest.mark.parametrize("weight", WEIGHTS)
def test_linear_is_fixed_point(weight, rows, fan, precision, digits, backend):
    torch.set_float32_matmul_precision(precision)
    case = Case(rows, fan, weight, scale=0.0137)
    x, dy, bias = vectors(9, fan), vectors(9, rows), torch.randn(rows)
    leaf = x.clone().requires_grad_()
    y = case.linear(leaf, bias)
    w = case.integer.long()
    assert torch.equal(y, oracle.fixed_linear(x, w, case.scale, digits, bias))
    (dx,) = gradients(y, dy, leaf)
    assert torch.equal(dx, oracle.fixed_linear(dy, w.T, case.scale, digits))


@pytest.mark.parametrize("precision,digits", (("highest", 3), ("high", 2)))
@pytest.mark.parametrize("shape,window,size", SHAPES)
def test_conv2d_is_fixed_point(shape, window, size, precision, digits, backend):
    torch.set_float32_matmul_precision(precision)
    case = Case(*shape, "uniform", scale=0.0137)
    x = image(shape, window, size)
    x[1] *= 1e-3
    x[1].view(-1)[3] = 77.0
    leaf, bias = x.clone().requires_grad_(), torch.randn(shape[0])
    y = case.conv2d(leaf, window, bias)
    w = kernel(case.integer, window)
    assert torch.equal(y, oracle.fixed_conv2d(x, w, case.scale, digits, bias, **geometry(window)))
    dy = torch.randn(y.shape)
    (dx,) = gradients(y, dy, leaf)
    # grad_input is linear in dy: its exact sums are those of the transposed convolution
    out = []
    for b, sample in enumerate(dy):
        integers, p = oracle.fixed_point(sample.numpy().ravel(), digits)
        exact = torch.tensor(integers, dtype=torch.float64).view(1, *sample.shape)
        sums = torch.nn.grad.conv2d_input((1, *x[b].shape), w.contiguous(), exact, **geometry(window))
        out.append([float(oracle.rounded(int(total), p, case.scale)) for total in sums.flatten().tolist()])
    assert torch.equal(dx, torch.tensor(out).view(dx.shape))


# The method, materialized, in float64


def check_linear(case: Case, batch: int, compact: bool = False) -> None:
    leaves = {
        "x": torch.randn(batch, case.fan, dtype=torch.float64),
        "scores": case.scores.clone(),
        "bias": torch.randn(case.rows, dtype=torch.float64),
    }
    ours = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    theirs = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    y = case.linear(ours["x"], ours["bias"], ours["scores"], compact)
    weight = case.dense_with(theirs["scores"]).weight(case.threshold)
    compare(ours, y, theirs, F.linear(theirs["x"], weight, theirs["bias"]))


def check_conv2d(case: Case, window: Window, x: torch.Tensor, compact: bool = False) -> None:
    leaves = {"x": x.double(), "scores": case.scores.clone(), "bias": torch.randn(case.rows, dtype=torch.float64)}
    ours = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    theirs = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    y = case.conv2d(ours["x"], window, ours["bias"], ours["scores"], compact)
    weight = case.dense_with(theirs["scores"]).kernel(case.threshold, *window.kernel)
    compare(ours, y, theirs, F.conv2d(theirs["x"], weight, theirs["bias"], **geometry(window)))


def compare(ours: dict, y: torch.Tensor, theirs: dict, truth: torch.Tensor) -> None:
    assert y.dtype == torch.float64
    assert relative_error(y, truth) < 1e-12
    dy = torch.randn_like(truth)
    for name, a, b in zip(ours, gradients(y, dy, *ours.values()), gradients(truth, dy, *theirs.values()), strict=True):
        assert a.dtype == torch.float64
        assert relative_error(a, b) < 1e-12, name


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("fan", FANS)
def test_linear_is_the_method(fan, rows, backend):
    for weight, compact in zip(WEIGHTS, (False, True, False), strict=True):
        check_linear(Case(rows, fan, weight), batch=4, compact=compact)


@given(
    rows=st.integers(1, 9),
    fan=st.integers(1, 140),
    batch=st.integers(1, 4),
    weight=st.sampled_from(WEIGHTS),
    frozen=st.sampled_from(((0, 0), (0.5, 0), (0, 0.5), (0.4, 0.6), (1, 0), (0, 1), (0.25, 0.25))),
    threshold=st.sampled_from((-math.inf, 0.0, 0.3, math.inf)),
    compact=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
def test_linear_is_the_method_anywhere(rows, fan, batch, weight, frozen, threshold, compact, seed):
    check_linear(Case(rows, fan, weight, *frozen, seed=seed, threshold=threshold), batch, compact)


@pytest.mark.parametrize("compact", (False, True), ids=("resolved", "compact"))
@pytest.mark.parametrize("shape,window,size", SHAPES)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_conv2d_is_the_method(weight, shape, window, size, compact, backend):
    check_conv2d(Case(*shape, weight), window, image(shape, window, size), compact)


@st.composite
def convolutions(draw):
    small = st.integers(1, 3)
    kh, kw, groups, inputs, outputs = (draw(small) for _ in range(5))
    stride, dilation = (draw(small), draw(small)), (draw(small), draw(small))
    padding = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    window = Window(kh, kw, *stride, *padding, *dilation, groups)
    least = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, (kh, kw), padding, strict=True)]
    size = tuple(draw(st.integers(max(1, n), max(1, n) + 5)) for n in least)
    return (groups * outputs, inputs * kh * kw), window, size


@given(convolution=convolutions(), weight=st.sampled_from(WEIGHTS), compact=st.booleans(), batch=st.integers(1, 3))
def test_conv2d_is_the_method_anywhere(convolution, weight, compact, batch):
    shape, window, size = convolution
    check_conv2d(Case(*shape, weight), window, image(shape, window, size, batch), compact)


@pytest.mark.parametrize("scope", ("local", "global"))
@pytest.mark.parametrize("scale", (None, "static", "dynamic"))
@pytest.mark.parametrize("weight", WEIGHTS)
def test_network_is_the_method(weight, scale, scope, normal_table, reference):
    """Layers, thresholds, scales and the order of fan in a convolution, all at once, in float64."""
    options = {"weight": weight, "scale": scale, "seed": 2**64 - 3, "freeze": Freeze(0.3, 0.2)}
    conv = SupermaskConv2d(3, 6, 3, padding=1, stride=2, groups=3, dtype=torch.float64, layer=0, **options)
    linear = SupermaskLinear(24, 5, dtype=torch.float64, layer=1, **options)
    for layer in (conv, linear):
        layer.scores = torch.nn.Parameter(torch.randn(layer.free, dtype=torch.float64))
    model = torch.nn.Sequential(conv, torch.nn.Flatten(), linear)
    EdgePopup(model, 0.55, scope)

    x = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    y = model(x)
    scores = [layer.scores.detach().clone().requires_grad_() for layer in (conv, linear)]
    specs = [
        oracle.Layer(layer.source.rows, layer.source.fan, 2**64 - 3, i, weight, 0.3, 0.2)
        for i, layer in enumerate((conv, linear))
    ]
    pruned = [int((s.frozen_state() == -1).sum()) for s in specs]
    totals = [s.rows * s.fan for s in specs]
    if scope == "local":
        thresholds = [
            oracle.drop_threshold([s], math.floor(0.55 * n) - p) for s, n, p in zip(scores, totals, pruned, strict=True)
        ]
    else:
        thresholds = [oracle.drop_threshold(scores, math.floor(0.55 * sum(totals)) - sum(pruned))] * 2
    oracles = [oracle.Materialized(s, t, 1.0, normal_table) for s, t in zip(specs, scores, strict=True)]
    for layer, o, threshold, spec in zip((conv, linear), oracles, thresholds, specs, strict=True):
        kept = o.mask(threshold).sum().item()
        factor = {None: 1, "static": (1 - 0.55) ** -0.5, "dynamic": (kept / spec.rows / spec.fan) ** -0.5}[scale]
        expected = math.sqrt(2) / math.sqrt(spec.fan) / oracle.STD[weight] * factor
        assert layer.weight_scale.item() == pytest.approx(expected, rel=1e-7)
        o.scale = layer.weight_scale.item()  # float32, by the contract
    weights = [oracles[0].kernel(thresholds[0], 3, 3), oracles[1].weight(thresholds[1])]
    biases = [layer.bias.detach().clone().requires_grad_() for layer in (conv, linear)]
    hidden = F.conv2d(x, weights[0], biases[0], stride=2, padding=1, groups=3)
    truth = F.linear(hidden.flatten(1), weights[1], biases[1])
    assert relative_error(y, truth) < 1e-12
    dy = torch.randn_like(y)
    ours = gradients(y, dy, conv.scores, linear.scores, conv.bias, linear.bias)
    for a, b in zip(ours, gradients(truth, dy, *scores, *biases), strict=True):
        assert relative_error(a, b) < 1e-12


def test_gradcheck_linear():
    case = Case(5, 33, "uniform", scale=0.01)
    x, bias = torch.randn(3, 33, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(case.linear, (x.requires_grad_(), bias.requires_grad_()))


@pytest.mark.parametrize("shape,window,size", SHAPES)
def test_gradcheck_conv2d(shape, window, size):
    case = Case(*shape, "uniform", scale=0.01)
    x, bias = image(shape, window, size, 2, torch.float64), torch.randn(shape[0], dtype=torch.float64)
    # Linear in both, so that all but rounding is an error: of a product of the Jacobian, into which every entry goes.
    assert torch.autograd.gradcheck(
        lambda x, bias: case.conv2d(x, window, bias),
        (x.requires_grad_(), bias.requires_grad_()),
        fast_mode=True,
        rtol=1e-6,
        atol=0,
    )


# Precision

WIDE_WINDOW = Window(3, 3, padding_h=1, padding_w=1)


def normal(shape: tuple[int, ...]) -> torch.Tensor:
    """Within one binade: a largest element above 4 would double the error of all that share its scale."""
    return torch.randn(shape).clamp(-3.9, 3.9)


def products(kind: str, dtype: torch.dtype, weight: str) -> tuple[list, list, list]:
    """y, dx and dscores of ours in dtype, the same in float64, and PyTorch's own in dtype, for normal inputs."""
    source = Source.of(64, 1024 if kind == "linear" else 576, seed=3, weight=weight)
    free, _ = source.frozen_words()
    # A scale of a power of two, so that what is measured is the product's rounding
    scale = torch.tensor(2.0**-5)
    shape = (16, 1024) if kind == "linear" else (4, 64, 6, 6)
    x = normal(shape).to(dtype)
    scores = torch.rand(source.total)  # positive: its gradient is dL/dW * v * scale
    v = source.integer_weight().double()

    def dense(x, dtype, dy=None):
        w = (v * scale.item()).to(dtype)
        w = (w if kind == "linear" else kernel(w, WIDE_WINDOW)).detach().requires_grad_()
        x = x.to(dtype).requires_grad_()
        y = F.linear(x, w) if kind == "linear" else F.conv2d(x, w, padding=1)
        dx, dw = gradients(y, dy.to(dtype), x, w)
        if kind == "conv2d":
            dw = dw.permute(0, 2, 3, 1).flatten(1)
        return [y, dx, bits.to_bit_order(dw.double() * v * scale.item())[bits.unpack(free)]]

    ours_x, ours_scores = x.clone().requires_grad_(), scores.requires_grad_()
    if kind == "linear":
        y = ops.linear(ours_x, ours_scores, free, scale, None, source)
    else:
        y = ops.conv2d(ours_x, ours_scores, free, scale, None, source, WIDE_WINDOW)
    dy = normal(y.shape).to(dtype)
    ours = [y, *gradients(y, dy, ours_x, ours_scores)]
    return ours, dense(x, torch.float64, dy), dense(x, dtype, dy)


@pytest.mark.parametrize("precision,bound", (("highest", 5e-7), ("high", 5e-5), ("medium", 4e-3)))
@pytest.mark.parametrize("kind", ("linear", "conv2d"))
def test_float32_accuracy(kind, precision, bound, backend):
    torch.set_float32_matmul_precision(precision)
    for weight in WEIGHTS:
        ours, truth, _ = products(kind, torch.float32, weight)
        for name, a, b in zip(("y", "dx", "dscores"), ours, truth, strict=True):
            assert a.dtype == torch.float32
            rounded = 2 if name == "dscores" else 1  # operands; their errors are independent
            assert relative_error(a, b) < bound * rounded**0.5, name


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("kind", ("linear", "conv2d"))
def test_16_bit_accuracy(kind, dtype, backend):
    for weight in ("signed_constant", "uniform"):
        ours, truth, torchs = products(kind, dtype, weight)
        assert [t.dtype for t in ours] == [dtype, dtype, torch.float32]
        for name, a, b, c in zip(("y", "dx", "dscores"), ours, truth, torchs, strict=True):
            assert relative_error(a, b) < 2 * relative_error(c, b) + 1e-6, name


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_bias_gradients_are_summed_in_float32(dtype, backend):
    case, window = Case(9, 27), Window(3, 3)
    for x, run in (
        (torch.randn(4000, 27), case.linear),
        (torch.randn(40, 3, 12, 12), lambda *a: case.conv2d(a[0], window, *a[1:])),
    ):
        bias = torch.zeros(9, requires_grad=True)
        y = run(x.to(dtype), bias)
        dy = (torch.randn(y.shape) + 0.5).to(dtype)
        axes = [i for i in range(dy.dim()) if i != 1]
        assert relative_error(gradients(y, dy, bias)[0], dy.double().sum(axes)) < 1e-6


# Masks


def with_garbage(mask: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """The mask with random bits wherever ``used`` has none."""
    return mask | (torch.randint(-(2**31), 2**31, mask.shape).int() & ~used)


@pytest.mark.parametrize("fan", (1, 31, 33, 129))
def test_padding_bits_are_ignored(fan, backend):
    case = Case(5, fan)
    source, x = case.source, torch.randn(3, fan)
    used = {
        False: source.padding().expand(5, -1),
        True: oracle.sequence_words(np.ones(len(case.scores), dtype=bool)),
    }
    for compact in (False, True):
        garbage = with_garbage(case.mask(compact), used[compact])
        results = []
        for mask in (case.mask(compact), garbage):
            leaf = x.clone().requires_grad_()
            y = ops.linear(leaf, case.scores.float(), mask, case.scale_tensor(), None, source)
            pixels = x.view(3, 1, 1, fan).clone().requires_grad_()
            image = ops.conv2d(pixels, case.scores.float(), mask, case.scale_tensor(), None, source, Window(1, fan))
            results.append([y, *gradients(y, torch.ones_like(y), leaf), image])
            results[-1] += [*gradients(image, torch.ones_like(image), pixels), ops.materialize(mask, source)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    # What is stored has zeros there again
    assert torch.equal(ops.expand(garbage, source), case.mask())


@pytest.mark.parametrize("fan", FANS)
def test_masks_are_the_oracles(fan, backend):
    for frozen in ((0, 0), (0.3, 0.2), (0.5, 0.5), (0, 1)):
        case = Case(3, fan, "uniform", *frozen)
        for dtype in (torch.float32, torch.float64):
            scores = case.scores.to(dtype)
            threshold = torch.tensor(case.threshold, dtype=dtype)
            for compact in (False, True):
                mask, kept = ops.pack(scores, threshold, case.source, compact)
                assert torch.equal(mask, case.mask(compact))
                assert kept == case.kept.sum()
                assert (kept.dtype, kept.shape) == (torch.int64, ())
                assert torch.equal(ops.materialize(mask, case.source).double(), case.integer)
        assert torch.equal(ops.expand(case.mask(True), case.source), case.mask())


@pytest.mark.parametrize("precision", ("highest", "high"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
def test_resolved_is_compact(dtype, precision, backend):
    torch.set_float32_matmul_precision(precision)
    case, window = Case(9, 99, "normal"), Window(3, 3)
    for x, run in ((torch.randn(4, 99), case.linear), (torch.randn(2, 11, 5, 5), None)):
        results = []
        for compact in (False, True):
            leaf, scores = x.to(dtype).requires_grad_(), case.scores.float().requires_grad_()
            if run is not None:
                y = run(leaf, None, scores, compact)
            else:
                y = case.conv2d(leaf, window, None, scores, compact)
            results.append((y, *gradients(y, torch.ones_like(y), leaf, scores)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("threshold", (-math.inf, math.inf), ids=("all", "none"))
@pytest.mark.parametrize("frozen", ((0, 0), (1, 0), (0, 1)), ids=("free", "pruned", "locked"))
def test_all_and_no_weights(frozen, threshold, backend):
    case = Case(4, 45, "signed_constant", *frozen, threshold=threshold)
    x = torch.randn(3, 45)
    expected = oracle.fixed_linear(x, case.integer.long(), case.scale, 3)
    assert torch.equal(case.linear(x), expected)
    assert torch.equal(case.linear(x, compact=True), expected)
    if frozen == (1, 0) or (frozen == (0, 0) and threshold == math.inf):
        assert not expected.any()


# Ordinary use


@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64))
def test_nan_and_inf_stay_in_their_sample(value, dtype, backend):
    case, window = Case(9, 27), Window(3, 3, padding_h=1, padding_w=1)
    for x, run in (
        (torch.randn(4, 27), case.linear),
        (torch.randn(4, 3, 5, 5), lambda x: case.conv2d(x, window)),
    ):
        x = x.to(dtype)
        bad = x.clone()
        bad[2].view(-1)[7] = value
        leaf, clean = bad.clone().requires_grad_(), x.clone().requires_grad_()
        y, expected = run(leaf), run(clean)
        others = torch.tensor((0, 1, 3))
        assert torch.equal(y[others], expected[others])
        assert not y[2].isfinite().all()
        if dtype == torch.float32:
            assert y[2].isnan().all()
        dy = torch.randn_like(y)
        bad_dy = dy.clone()
        bad_dy[2].view(-1)[7] = value
        (dx,), (clean_dx,) = gradients(y, bad_dy, leaf), gradients(expected, dy, clean)
        assert torch.equal(dx[others], clean_dx[others])
        assert not dx[2].isfinite().all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
def test_empty_batch(dtype, backend):
    case, bias = Case(9, 27), torch.randn(9, requires_grad=True)
    for x, run, shape in (
        (torch.randn(0, 27), case.linear, (0, 9)),
        (torch.randn(2, 0, 27), case.linear, (2, 0, 9)),
        (torch.randn(0, 3, 5, 5), lambda *a: case.conv2d(a[0], Window(3, 3), *a[1:]), (0, 9, 3, 3)),
    ):
        leaf, scores = x.to(dtype).requires_grad_(), case.scores.float().requires_grad_()
        y = run(leaf, bias, scores)
        assert (y.shape, y.dtype) == (shape, dtype)
        dx, dscores, dbias = gradients(y, torch.ones_like(y), leaf, scores, bias)
        assert dx.shape == x.shape
        assert torch.equal(dscores, torch.zeros_like(scores))
        assert torch.equal(dbias, torch.zeros(9))


def test_expanded_gradient(backend):
    case, window = Case(9, 27), Window(3, 3, 2, 2, 1, 1)
    for x, run in (
        (torch.randn(4, 27), case.linear),
        (torch.randn(4, 3, 5, 5), lambda *a: case.conv2d(a[0], window, *a[1:])),
    ):
        results = []
        for expanded in (True, False):
            leaves = [x.clone().requires_grad_(), torch.zeros(9, requires_grad=True)]
            leaves.append(case.scores.float().requires_grad_())
            y = run(*leaves)
            if expanded:
                y.sum().backward()
            else:
                y.backward(torch.ones_like(y).contiguous())
            results.append([leaf.grad for leaf in leaves])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def strided(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The values of x in other memory layouts."""
    layouts = {
        "transposed": x.transpose(0, -1).contiguous().transpose(0, -1),
        "rows apart": torch.stack((x, x.neg()), 1)[:, 0],
        "elements apart": torch.stack((x, x.neg()), -1)[..., 0],
        "misaligned": torch.cat((torch.zeros(1), x.flatten()))[1:].view(x.shape),
    }
    if x.dim() == 4:
        layouts["channels last"] = x.contiguous(memory_format=torch.channels_last)
        layouts["width first"] = x.transpose(2, 3).contiguous().transpose(2, 3)
    return layouts


def test_strided_inputs(backend):
    case, window = Case(9, 27), Window(3, 3, padding_h=1, padding_w=1)
    for x, dy, run in (
        (torch.randn(4, 27), torch.randn(4, 9), case.linear),
        (torch.randn(4, 3, 5, 6), torch.randn(4, 9, 5, 6), lambda *a: case.conv2d(a[0], window, *a[1:])),
    ):
        results = {}
        for name, layout in {"plain": x, **strided(x)}.items():
            assert torch.equal(layout, x)
            leaf, scores = layout.detach().requires_grad_(), case.scores.float().requires_grad_()
            y = run(leaf, None, scores)
            results[name] = (y, *gradients(y, dy, leaf, scores))
        for name, layout in strided(dy).items():
            leaf, scores = x.clone().requires_grad_(), case.scores.float().requires_grad_()
            y = run(leaf, None, scores)
            results[f"dy {name}"] = (y, *gradients(y, layout, leaf, scores))
        for name, (y, dx, dscores) in results.items():
            assert torch.equal(y, results["plain"][0]), name
            assert torch.equal(dx, results["plain"][1]), name
            assert relative_error(dscores, results["plain"][2]) < 1e-6, name


def test_expanded_input(backend):
    case = Case(9, 27)
    x = torch.randn(1, 27)
    assert torch.equal(case.linear(x.expand(4, 27)), case.linear(x).expand(4, 9))
    one = torch.randn(3, 1)
    assert torch.equal(case.linear(one.expand(3, 27)), case.linear(one.expand(3, 27).contiguous()))


@pytest.mark.parametrize("shape,window,size", SHAPES)
def test_channels_last(shape, window, size, backend):
    case, x = Case(*shape), image(shape, window, size)
    y = case.conv2d(x, window)
    last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y_last = case.conv2d(last, window)
    assert torch.equal(y_last, y)
    assert y.is_contiguous()
    if not last.is_contiguous():
        assert y_last.is_contiguous(memory_format=torch.channels_last)
    dy = torch.randn_like(y).contiguous(memory_format=torch.channels_last)
    (dx,) = gradients(y_last, dy, last)
    assert dx.shape == x.shape


@pytest.mark.parametrize("shape", ((27,), (1, 27), (2, 3, 27), (2, 1, 3, 27)))
def test_batch_dimensions_of_linear(shape, backend):
    case, x = Case(9, 27), torch.randn(shape)
    y = case.linear(x)
    assert y.shape == (*shape[:-1], 9)
    assert torch.equal(y.view(-1, 9), case.linear(x.view(-1, 27)))


def test_image_without_a_batch(backend):
    case, window = Case(9, 27), Window(3, 3)
    x = torch.randn(3, 5, 6, requires_grad=True)
    y = case.conv2d(x, window)
    assert torch.equal(y, case.conv2d(x.unsqueeze(0), window)[0])
    assert gradients(y, torch.ones_like(y), x)[0].shape == x.shape


@pytest.mark.parametrize("precision", ("highest", "high"))
def test_batch_split_is_the_same_bits(precision, backend):
    torch.set_float32_matmul_precision(precision)
    case, window = Case(17, 99, "uniform"), Window(3, 3, padding_h=1, padding_w=1)
    for x, dy, run in (
        (torch.randn(67, 99), torch.randn(67, 17), case.linear),
        (torch.randn(9, 11, 6, 5), torch.randn(9, 17, 6, 5), lambda x: case.conv2d(x, window)),
    ):
        whole = x.clone().requires_grad_()
        y = run(whole)
        (dx,) = gradients(y, dy, whole)
        for size in (1, 2, 3, 5, 8):
            for part, y_part, dy_part, dx_part in zip(*(t.split(size) for t in (x, y, dy, dx)), strict=True):
                leaf = part.clone().requires_grad_()
                again = run(leaf)
                assert torch.equal(again, y_part)
                assert torch.equal(gradients(again, dy_part, leaf)[0], dx_part)


def test_one_thread_gives_the_same_bits(backend):
    case, x = Case(65, 129, "normal"), torch.randn(33, 129)
    many = case.linear(x)
    torch.set_num_threads(1)
    assert torch.equal(case.linear(x), many)


def test_a_hundred_runs_are_the_same_bits(backend):
    case, window = Case(6, 45, "normal"), Window(3, 3, padding_h=1, padding_w=1)
    x, images = torch.randn(7, 45, requires_grad=True), torch.randn(3, 5, 6, 6, requires_grad=True)
    scores = case.scores.float().requires_grad_()
    dy, dimages = torch.randn(7, 6), torch.randn(3, 6, 6, 6)

    def run():
        y, z = case.linear(x, None, scores), case.conv2d(images, window, None, scores)
        return (y, z, *gradients(y, dy, x, scores), *gradients(z, dimages, images, scores))

    first = run()
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


# Autograd


def run_both(x_dtype=torch.float32):
    """(name, leaves, function) of a Linear and a Conv2d."""
    case, window = Case(9, 27), Window(3, 3)
    for name, x, run in (
        ("linear", torch.randn(4, 27), case.linear),
        ("conv2d", torch.randn(2, 3, 5, 5), lambda *a: case.conv2d(a[0], window, *a[1:])),
    ):
        yield name, [x.to(x_dtype), torch.randn(9), case.scores.float()], run


@pytest.mark.parametrize("needs", list(itertools.product((True, False), repeat=3)))
def test_gradients_that_are_asked_for(needs, backend):
    for _, leaves, run in run_both():
        full = [t.clone().requires_grad_() for t in leaves]
        some = [t.clone().requires_grad_(n) for t, n in zip(leaves, needs, strict=True)]
        y, z = run(*full), run(*some)
        assert torch.equal(y, z)
        assert z.requires_grad == any(needs)
        if any(needs):
            y.backward(torch.ones_like(y))
            z.backward(torch.ones_like(z))
            for a, b, need in zip(full, some, needs, strict=True):
                assert (b.grad is not None) == need
                assert not need or torch.equal(a.grad, b.grad)


def test_retain_graph(backend):
    for _, leaves, run in run_both():
        leaves = [t.requires_grad_() for t in leaves]
        y = run(*leaves)
        y.sum().backward(retain_graph=True)
        once = [t.grad.clone() for t in leaves]
        y.sum().backward()
        assert all(torch.equal(t.grad, 2 * g) for t, g in zip(leaves, once, strict=True))


def test_backward_leaves_its_tensors_alone(backend):
    for _, leaves, run in run_both():
        before = [t.clone() for t in leaves]
        leaves = [t.requires_grad_() for t in leaves]
        y = run(*leaves)
        dy = torch.randn_like(y)
        dy_before = dy.clone()
        y.backward(dy)
        assert torch.equal(dy, dy_before)
        assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))


def test_no_second_derivative(backend):
    for _, leaves, run in run_both():
        x = leaves[0].requires_grad_()
        y = run(x, *leaves[1:])
        (dx,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            dx.sum().backward()


def test_a_changed_input_is_noticed(backend):
    for _, leaves, run in run_both():
        x, scores = leaves[0].clone(), leaves[2].requires_grad_()
        y = run(x, leaves[1], scores)
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_autocast(dtype, backend):
    for _, leaves, run in run_both():
        x, bias, scores = (t.requires_grad_() for t in leaves)
        with torch.autocast("cpu", dtype):
            y = run(x, bias, scores)
        assert y.dtype == dtype
        assert torch.equal(y, run(x.detach().to(dtype), bias, scores))
        dtypes = [g.dtype for g in gradients(y, torch.ones_like(y), x, bias, scores)]
        assert dtypes == [torch.float32] * 3


def test_autocast_leaves_float64_alone(backend):
    for _, leaves, run in run_both(torch.float64):
        with torch.autocast("cpu", torch.bfloat16):
            assert run(*leaves).dtype == torch.float64


@pytest.mark.parametrize("x_dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("other", (torch.float32, torch.float64, torch.bfloat16, torch.float16))
def test_mixed_dtypes(x_dtype, other, backend):
    """The output is of the input's dtype, each gradient of its own tensor's."""
    for _, leaves, run in run_both(x_dtype):
        bias = leaves[1].to(other)
        scores = leaves[2].to(torch.float64 if other == torch.float64 else torch.float32)
        leaves = [leaves[0].requires_grad_(), bias.requires_grad_(), scores.requires_grad_()]
        y = run(*leaves)
        assert y.dtype == x_dtype
        for leaf, grad in zip(leaves, gradients(y, torch.ones_like(y), *leaves), strict=True):
            assert grad.dtype == leaf.dtype
            assert grad.shape == leaf.shape


def test_inference_mode(backend):
    for _, leaves, run in run_both():
        expected = run(*leaves)
        with torch.inference_mode():
            assert torch.equal(run(*leaves), expected)


# torch.library and torch.compile


def samples() -> dict[str, list[tuple]]:
    case, window = Case(9, 27), list(Window(3, 3, 2, 1, 1, 1))
    source, scale, scores = list(case.source), case.scale_tensor(), case.scores.float()
    x, dy, bias = torch.randn(4, 27), torch.randn(4, 9), torch.randn(9)
    images = torch.randn(2, 3, 5, 6)
    shape = (2, 9, *Window(*window).output_size(5, 6))
    dimages = torch.randn(shape)
    last = {"memory_format": torch.channels_last}
    found = {name: [] for name in ("linear_forward", "linear_grad_input", "conv2d_forward", "conv2d_grad_input")}
    for compact in (False, True):
        mask = case.mask(compact)
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            found["linear_forward"] += [
                (x.to(dtype), mask, scale, bias, source),
                (x[:1].to(dtype), mask, scale, None, source),
            ]
            found["linear_grad_input"].append((dy.to(dtype), mask, scale, source))
        for t, dt in ((images, dimages), (images.contiguous(**last), dimages.contiguous(**last))):
            found["conv2d_forward"].append((t, mask, scale, bias, source, window))
            found["conv2d_grad_input"].append((dt, mask, scale, source, window, [5, 6]))
    found["linear_forward_int8"] = [a for a in found["linear_forward"] if a[0].dtype != torch.float64]
    found["linear_forward_stored"] = [
        (t, case.mask(), case.source.signs(), scale, bias, source, int8)
        for t in (x, x.bfloat16())
        for int8 in (False, True)
    ]
    found["conv2d_forward_int8"] = found["conv2d_forward"]
    found["linear_grad_scores"] = [
        (dy.to(d), x.to(d), scores, scale, source) for d in (torch.float32, torch.float64, torch.bfloat16)
    ]
    found["conv2d_grad_scores"] = [
        (dimages.to(d), images.to(d), scores, scale, source, window) for d in (torch.float32, torch.float64)
    ]
    found["select"] = [([scores, scores[:5]], rank) for rank in (0, 7, 10**6)]
    found["pack"] = [(scores, torch.tensor(0.3), source, compact) for compact in (False, True)]
    found["expand"] = [(case.mask(True), source)]
    found["materialize"] = [(case.mask(compact), source) for compact in (False, True)]
    return found


def test_every_operation_has_samples():
    schemas = {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("slt_kernels::")}
    embedding = {"embedding_forward", "embedding_grad_scores"}  # theirs are in test_embedding.py
    assert schemas == {f"slt_kernels::{name}" for name in embedding | set(samples())}


@pytest.mark.parametrize("name", samples())
def test_opcheck(name, backend):
    """What is traced is the same with every backend, so it is traced with one."""
    tests = ("test_schema", "test_faketensor")
    if backend == backends.available()[0]:
        tests += ("test_autograd_registration", "test_aot_dispatch_dynamic")
    for arguments in samples()[name]:
        torch.library.opcheck(getattr(torch.ops.slt_kernels, name).default, arguments, test_utils=tests)


@pytest.mark.parametrize("name", samples())
def test_no_output_is_an_input(name, backend):
    for arguments in samples()[name]:
        outputs = getattr(torch.ops.slt_kernels, name)(*arguments)
        inputs = {t.data_ptr() for t in arguments if isinstance(t, torch.Tensor) and t.numel()}
        for out in outputs if isinstance(outputs, tuple) else (outputs,):
            assert out.data_ptr() not in inputs


@pytest.mark.parametrize("name", samples())
def test_fake_is_real(name, backend):
    """Shapes, dtypes and strides: torch.compile lays out its code by them."""
    mode = torch._subclasses.FakeTensorMode()
    for arguments in samples()[name]:
        op = getattr(torch.ops.slt_kernels, name)
        real = op(*arguments)
        with mode:
            fake = op(*torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, arguments))
        pairs = zip(real, fake, strict=True) if isinstance(real, tuple) else ((real, fake),)
        for a, b in pairs:
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def network() -> torch.nn.Sequential:
    options = {"freeze": Freeze(0.3, 0.2), "scale": "dynamic"}
    torch.manual_seed(1)
    return torch.nn.Sequential(
        SupermaskConv2d(3, 6, 3, padding=1, layer=0, **options),
        torch.nn.ReLU(),
        SupermaskConv2d(6, 4, 2, padding="same", padding_mode="reflect", layer=1, compact=True, **options),
        torch.nn.Flatten(),
        SupermaskLinear(64, 5, layer=2, compact=True, **options),
    )


def check_compiled(dynamic: bool, *sizes: int) -> None:
    model = network().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    scores = list(model.parameters())
    for size in sizes:
        for x in (torch.randn(size, 3, 4, 4), torch.randn(size, 3, 4, 4).contiguous(memory_format=torch.channels_last)):
            ours, theirs = compiled(x), model(x)
            assert torch.equal(ours, theirs)
            for a, b in zip(*(torch.autograd.grad(y.square().sum(), scores) for y in (ours, theirs)), strict=True):
                assert torch.equal(a, b)
            with torch.no_grad():
                assert torch.equal(compiled(x), model(x))


def test_compile(backend):
    check_compiled(False, 3)


def test_compile_for_any_batch():
    check_compiled(True, 3, 5, 2)


def test_compile_training(monkeypatch):
    """A few steps of training, masks made anew in the graph: scores and masks are eager's."""
    # Whether this compiler makes vector code for this processor: TorchInductor would try it in new processes.
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", True)
    # A resolved mask and a compact one.
    models = [
        torch.nn.Sequential(*network()[:2], torch.nn.Flatten(), SupermaskLinear(96, 5, scale="dynamic", compact=True))
        for _ in range(2)
    ]
    runs = torch.compile(models[0], fullgraph=True, dynamic=True), models[1]
    optimizers = [torch.optim.SGD(m.parameters(), 0.5) for m in models]
    x, y = torch.randn(8, 3, 4, 4), torch.randint(5, (8,))
    first = [m[0].mask().clone() for m in models]
    with torch._dynamo.config.patch(error_on_recompile=True):  # nothing that changes in training is a guard
        for _ in range(3):
            for run, optimizer in zip(runs, optimizers, strict=True):
                optimizer.zero_grad()
                F.cross_entropy(run(x), y).backward()
                optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert relative_error(a, b) < 1e-6
    outputs = [run(x) for run in runs]
    assert relative_error(*outputs) < 1e-5
    for a, b in zip(models[0], models[1], strict=True):
        if hasattr(a, "mask"):
            assert torch.equal(a.mask(), b.mask())
    assert not torch.equal(models[0][0].mask(), first[0])


# Bad input

GOOD = Case(9, 27)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("scale", (0.5, -0.5))
@pytest.mark.parametrize("precision", ("highest", "high"))
def test_a_sum_of_0_is_plus_0_times_the_scale(scale, precision, backend):
    """Also where it has one term, which in floats may be -0: a weight that is dropped, or a 0, times a negative one."""
    torch.set_float32_matmul_precision(precision)
    scale = torch.tensor(scale)
    expected = torch.tensor(0.0) * scale
    for shape in ((1, 5), (5, 1)):
        source = Source.of(*shape)
        none = torch.zeros(source.rows, source.words, dtype=torch.int32)
        for x in (torch.full((2, source.fan), -1.0), torch.full((2, source.fan, 2, 3), -1.0)):
            x.requires_grad_()
            arguments = x, None, none, scale, None, source
            y = ops.linear(*arguments) if x.dim() == 2 else ops.conv2d(*arguments, Window(1, 1))
            (dx,) = torch.autograd.grad(y, x, -torch.ones_like(y))
            assert same_bits(y, expected.expand(y.shape)) and same_bits(dx, expected.expand(x.shape))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_dropped_weight_of_an_embedding_is_plus_0(weight, backend):
    case = Case(7, 70, weight)
    y = ops.embedding(torch.arange(7), None, case.mask(), torch.tensor(-0.5), case.source)
    expected = torch.where(case.kept, -0.5 * case.dense.v, 0).float()
    assert (expected == 0).any() and same_bits(y, expected)


def layer_arguments(**changes) -> tuple:
    scores, mask, source = GOOD.scores.float(), GOOD.mask(), GOOD.source
    good = {"x": torch.randn(4, 27), "scores": scores, "mask": mask, "scale": torch.tensor(0.5), "bias": None}
    return tuple((good | {"source": source} | changes).values())


BAD = {
    "x of integers": ({"x": torch.ones(4, 27, dtype=torch.int32)}, TypeError, "x.dtype=torch.int32: expected"),
    "x of booleans": ({"x": torch.ones(4, 27, dtype=torch.bool)}, TypeError, "x.dtype=torch.bool: expected"),
    "x complex": ({"x": torch.ones(4, 27, dtype=torch.complex64)}, TypeError, "x.dtype=torch.complex64: expected"),
    "x too wide": ({"x": torch.ones(4, 28)}, ValueError, r"x.shape=\[4, 28\]: expected"),
    "x a scalar": ({"x": torch.tensor(1.0)}, ValueError, r"x.shape=\[\]: expected"),
    "scores of half": ({"scores": torch.zeros(9).half()}, ValueError, "scores: expected float32 or float64"),
    "scores a matrix": ({"scores": torch.zeros(9, 9)}, ValueError, r"scores: expected .* got torch.float32 \[9, 9\]"),
    "scores too few": ({"scores": GOOD.scores.float()[:-1]}, ValueError, r"scores: expected .*\[\d+\], got"),
    "mask of int64": ({"mask": GOOD.mask().long()}, ValueError, "mask: expected int32.* got torch.int64"),
    "mask of other rows": ({"mask": GOOD.mask()[:8]}, ValueError, r"mask: expected int32 \[9, 1\].* got .*\[8, 1\]"),
    "mask of three dimensions": ({"mask": GOOD.mask()[None]}, ValueError, "mask: expected"),
    "mask apart": ({"mask": torch.zeros(9, 2, dtype=torch.int32)[:, :1]}, ValueError, "mask: expected contiguous"),
    "compact mask too short": ({"mask": GOOD.mask(True)[:-1]}, ValueError, "mask: expected"),
    "compact mask too long": ({"mask": torch.zeros(99, dtype=torch.int32)}, ValueError, "mask: expected"),
    "mask of None": ({"mask": None}, TypeError, "mask: expected a tensor, got NoneType"),
    "scale a number": ({"scale": 0.5}, TypeError, "scale: expected a tensor, got float"),
    "scores a list": ({"scores": [0.5]}, TypeError, "scores: expected a tensor, got list"),
    "bias a list": ({"bias": [0.5] * 9}, TypeError, "bias: expected a tensor, got list"),
    "source a tuple": ({"source": tuple(GOOD.source)}, TypeError, "source: expected a Source, got tuple"),
    "scale of float64": ({"scale": torch.tensor(0.5).double()}, ValueError, "scale: expected one float32"),
    "scale of two": ({"scale": torch.ones(2)}, ValueError, r"scale: expected one float32 element, got .*\[2\]"),
    "bias too long": ({"bias": torch.ones(10)}, ValueError, r"bias.shape=\[10\]: expected \[9\]"),
    "bias of integers": ({"bias": torch.ones(9, dtype=torch.int64)}, TypeError, "bias.dtype=torch.int64: expected"),
    "bias elsewhere": ({"bias": torch.ones(9, device="meta")}, ValueError, "bias.device=meta: expected cpu"),
    "scale elsewhere": ({"scale": torch.tensor(1.0, device="meta")}, ValueError, "scale.device=meta: expected cpu"),
    "mask elsewhere": ({"mask": GOOD.mask().to("meta")}, ValueError, "mask.device=meta: expected cpu"),
    "scores elsewhere": ({"scores": GOOD.scores.float().to("meta")}, ValueError, "scores.device=meta: expected cpu"),
}


@pytest.mark.parametrize("changes,error,message", BAD.values(), ids=BAD)
def test_linear_refuses(changes, error, message, backend):
    with pytest.raises(error, match=message):
        ops.linear(*layer_arguments(**changes))


@pytest.mark.parametrize("name", [name for name in BAD if not name.startswith("x ")])
def test_conv2d_refuses_layers(name, backend):
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        ops.conv2d(*layer_arguments(x=torch.randn(2, 3, 5, 5), **changes), Window(3, 3))


@pytest.mark.parametrize(
    "x,window,error,message",
    (
        (torch.ones(2, 3, 5, 5).int(), Window(3, 3), TypeError, "x.dtype=torch.int32: expected"),
        (torch.ones(2, 4, 5, 5), Window(3, 3), ValueError, r"x.shape=\[2, 4, 5, 5\]: expected \[B, 3, H, W\]"),
        (torch.ones(5, 5), Window(3, 3), ValueError, r"x.shape=\[5, 5\]: expected"),
        (torch.ones(2, 3, 2, 5), Window(3, 3), ValueError, r"x.shape=\[2, 3, 2, 5\]: .*smaller than kernel_size"),
        (torch.ones(2, 3, 0, 5), Window(3, 3, padding_h=3), ValueError, "the image is empty"),
        (torch.ones(2, 3, 4, 5), Window(3, 3, dilation_h=2), ValueError, "smaller than kernel_size=.* with dilation"),
        (torch.ones(2, 3, 5, 5), Window(3, 3, groups=3), ValueError, r"expected \[B, 9, H, W\]"),
        (torch.ones(2, 3, 5, 5), Window(3, 3, groups=2), ValueError, "window=.*groups rows=9"),
        (torch.ones(2, 3, 5, 5), Window(2, 3), ValueError, r"kernel_h \* kernel_w to divide fan=27"),
        (torch.ones(2, 3, 5, 5), Window(3, 3, stride_w=0), ValueError, "window.stride_w=0: expected an int from 1"),
        (torch.ones(2, 3, 5, 5), Window(3, 3, padding_h=-1), ValueError, "window.padding_h=-1: expected an int from 0"),
        (torch.ones(2, 3, 5, 5), (3, 3), TypeError, "window: expected a Window, got tuple"),
    ),
)
def test_conv2d_refuses(x, window, error, message, backend):
    with pytest.raises(error, match=message):
        ops.conv2d(*layer_arguments(x=x), window)


@pytest.mark.parametrize("mask", (GOOD.mask(), GOOD.mask(True)[:-1], GOOD.mask(True).long()))
def test_expand_refuses(mask, backend):
    with pytest.raises(ValueError, match="mask"):
        ops.expand(mask, GOOD.source)


@pytest.mark.parametrize("mask", (GOOD.mask()[1:], GOOD.mask(True)[:-1], GOOD.mask().float(), GOOD.mask()[None]))
def test_materialize_refuses(mask, backend):
    with pytest.raises(ValueError, match="mask"):
        ops.materialize(mask, GOOD.source)


@pytest.mark.parametrize(
    "scores,threshold,message",
    (
        (GOOD.scores, torch.tensor(0.5), "threshold: expected one torch.float64 element"),
        (GOOD.scores, torch.ones(2, dtype=torch.float64), "threshold: expected one"),
        (GOOD.scores, torch.tensor(0.5, dtype=torch.float64, device="meta"), "threshold: expected one"),
        (GOOD.scores[:-1], torch.tensor(0.5, dtype=torch.float64), "scores"),
        (GOOD.scores.view(1, -1), torch.tensor(0.5, dtype=torch.float64), "scores"),
        (GOOD.scores.half(), torch.tensor(0.5).half(), "scores"),
    ),
)
@pytest.mark.parametrize("compact", (False, True), ids=("resolved", "compact"))
def test_pack_refuses(scores, threshold, message, compact, backend):
    with pytest.raises((TypeError, ValueError), match=message):
        ops.pack(scores, threshold, GOOD.source, compact)


def test_lazily_negated_and_zero_tensors():
    """PyTorch marks them instead of writing their values: a kernel that reads memory must not see them."""
    x, layer = torch.randn(3, 45), SupermaskLinear(45, 20)
    lazy, zero = torch._neg_view(x), torch._efficientzerotensor(3, 45)
    for marked, expected in ((lazy, -x), (zero, torch.zeros(3, 45))):
        with torch.inference_mode():
            for _ in range(2):  # the second time there is a plan
                assert torch.equal(layer(marked), layer(expected))
        layer.zero_grad()
        layer(marked).sum().backward()
        ours = layer.scores.grad.clone()
        layer.zero_grad()
        layer(expected).sum().backward()
        assert torch.equal(ours, layer.scores.grad)
    y = layer(x)
    for dy in (torch._neg_view(torch.ones_like(y)), torch._efficientzerotensor(3, 20)):
        (ours,) = torch.autograd.grad(y, layer.scores, dy, retain_graph=True)
        (expected,) = torch.autograd.grad(y, layer.scores, dy * 1, retain_graph=True)
        assert torch.equal(ours, expected)


def test_a_plan_reads_a_strided_bias():
    layer, x = SupermaskLinear(45, 20), torch.randn(3, 45)
    layer.bias = torch.nn.Parameter(torch.randn(20, 2)[:, 0])
    expected = layer(x).detach()
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x), expected)
