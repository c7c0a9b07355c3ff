"""Conv1d, Conv3d and the transposed convolutions against PyTorch's, with the oracle's weight and its gradient."""

import copy
import math
from dataclasses import dataclass

import oracle
import pytest
import torch
import torch.nn.functional as F
from layers import relative_error
from torch import nn

from slt_kernels import (
    Freeze,
    Source,
    SupermaskConv1d,
    SupermaskConv2d,
    SupermaskConv3d,
    SupermaskConvTranspose1d,
    SupermaskConvTranspose2d,
    SupermaskConvTranspose3d,
    Window,
    convert,
    ops,
    to_dense,
)
from slt_kernels.conv_geometry import as_channels_last

FROZEN = Freeze(0.3, 0.2)
FUNCTIONS = {
    SupermaskConv1d: F.conv1d,
    SupermaskConv3d: F.conv3d,
    SupermaskConvTranspose1d: F.conv_transpose1d,
    SupermaskConvTranspose2d: F.conv_transpose2d,
    SupermaskConvTranspose3d: F.conv_transpose3d,
}


@dataclass(frozen=True)
class Case:
    layer: type
    channels: tuple[int, int]
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    geometry: dict
    weight: str = "signed_constant"
    compact: bool = False

    def __str__(self) -> str:
        values = "-".join(f"{name}{value}" for name, value in self.geometry.items())
        return f"{self.layer.__name__}-{self.kernel}-{values}-{self.weight}".replace(" ", "")

    def make(self, **options):
        options = {"freeze": FROZEN, "seed": 2**64 - 3, "layer": 6, "compact": self.compact} | options
        return self.layer(*self.channels, self.kernel, **self.geometry, weight=self.weight, **options)


CASES = [
    Case(SupermaskConv1d, (4, 6), (3,), (11,), {"stride": 2, "padding": 1}),
    Case(SupermaskConv1d, (6, 4), (4,), (9,), {"dilation": 2, "padding": 3, "groups": 2}, "normal", True),
    Case(SupermaskConv1d, (35, 3), (1,), (5,), {}, "uniform"),
    Case(SupermaskConv3d, (2, 3), (3, 2, 1), (5, 4, 3), {"stride": (2, 1, 1), "padding": (1, 0, 2)}, "uniform"),
    Case(SupermaskConv3d, (4, 6), (2, 1, 3), (6, 3, 5), {"dilation": (3, 1, 2), "groups": 2}, "signed_constant", True),
    Case(SupermaskConv3d, (3, 2), (1, 2, 2), (3, 4, 4), {"stride": 2}, "normal"),
    Case(SupermaskConvTranspose1d, (4, 6), (3,), (5,), {"stride": 3, "padding": 1, "output_padding": 2}),
    Case(SupermaskConvTranspose1d, (6, 4), (2,), (5,), {"dilation": 3, "output_padding": 2, "groups": 2}, "normal"),
    Case(SupermaskConvTranspose2d, (4, 6), (3, 2), (4, 5), {"stride": (2, 3), "padding": (1, 0)}, "uniform", True),
    Case(SupermaskConvTranspose2d, (4, 2), (2, 3), (3, 4), {"stride": 2, "output_padding": 1, "groups": 2}, "normal"),
    Case(
        SupermaskConvTranspose2d, (2, 2), (2, 2), (3, 3), {"dilation": (2, 3), "output_padding": (1, 2), "padding": 1}
    ),
    Case(SupermaskConvTranspose2d, (5, 7), (1, 1), (2, 3), {}),
    Case(SupermaskConvTranspose3d, (2, 3), (3, 2, 1), (3, 2, 4), {"stride": 2, "output_padding": (1, 0, 1)}),
    Case(SupermaskConvTranspose3d, (4, 4), (2, 1, 2), (3, 3, 2), {"dilation": 2, "padding": 1, "groups": 2}, "uniform"),
    Case(SupermaskConvTranspose3d, (2, 2), (2, 1, 1), (3, 2, 2), {"dilation": 3, "output_padding": 2}, "normal"),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


def kernel_of(case: Case, matrix: torch.Tensor) -> torch.Tensor:
    """``[rows, fan]`` as PyTorch's weight. The order of fan is (kh, kw, kd, c), without what a layer has not."""
    if len(case.kernel) < 3:
        return matrix.reshape(len(matrix), *case.kernel, -1).movedim(-1, 1)
    depth, height, width = case.kernel
    return matrix.reshape(len(matrix), height, width, depth, -1).permute(0, 4, 3, 1, 2)


def expected(case: Case, layer, x: torch.Tensor, scores: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """PyTorch's function with the oracle's weight, whose gradient to the scores is straight-through."""
    half = oracle.known("normal_table")["positive_half"]
    spec = oracle.Layer(*layer.source[:2], 2**64 - 3, 6, case.weight, FROZEN.prune, FROZEN.lock)
    dense = oracle.Materialized(spec, scores, layer.weight_scale.double(), (*(-v for v in reversed(half)), *half))
    weight = kernel_of(case, dense.weight(oracle.drop_threshold([scores], layer.rank)))
    return FUNCTIONS[case.layer](x, weight, bias, **case.geometry)


@cases
def test_values_and_gradients_are_pytorchs(case):
    layer = case.make(dtype=torch.float64)
    x = torch.randn(3, case.channels[0], *case.size, dtype=torch.float64, requires_grad=True)
    scores = layer.scores.detach().double().requires_grad_()
    ours, theirs = layer(x), expected(case, layer, x, scores, layer.bias)
    assert ours.shape == theirs.shape and ours.is_contiguous()
    assert relative_error(ours, theirs) < 1e-14
    dy = torch.randn_like(ours)
    inputs = (x, layer.scores, layer.bias)
    grads = zip(
        torch.autograd.grad(ours, inputs, dy), torch.autograd.grad(theirs, (x, scores, layer.bias), dy), strict=True
    )
    for (ours, theirs), bound in zip(grads, (1e-14, 1e-6, 1e-14), strict=True):  # scores are float32
        assert relative_error(ours, theirs) < bound


@cases
@pytest.mark.parametrize("dtype,bound", ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)), ids=str)
def test_lower_precision(case, dtype, bound):
    layer = case.make()
    x = torch.randn(2, case.channels[0], *case.size).to(dtype).requires_grad_()
    double = x.detach().double().requires_grad_()
    ours, theirs = layer(x), layer(double)
    assert ours.dtype == dtype
    assert relative_error(ours, theirs) < bound
    dy = torch.randn(ours.shape).to(dtype)
    grads = torch.autograd.grad(ours, (x, layer.scores, layer.bias), dy)
    expected = torch.autograd.grad(theirs, (double, layer.scores, layer.bias), dy.double())
    for ours, theirs in zip(grads, expected, strict=True):
        assert relative_error(ours, theirs) < bound


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_one_sample_and_none(case):
    layer = case.make()
    x = torch.randn(2, case.channels[0], *case.size)
    assert torch.equal(layer(x[0]), layer(x)[0])
    empty = torch.zeros(0, *x.shape[1:], requires_grad=True)
    y = layer(empty)
    assert y.shape == (0, *layer(x).shape[1:])
    y.sum().backward()
    assert empty.grad.shape == empty.shape and not layer.scores.grad.any() and not layer.bias.grad.any()


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_nan_stays_in_its_sample(case):
    layer = case.make()
    x = torch.randn(3, case.channels[0], *case.size)
    clean = layer(x)
    x[1].fill_(math.nan)
    y = layer(x)
    assert torch.equal(y[::2], clean[::2]) and y[1].isnan().any()


@pytest.mark.parametrize("padding_mode", ("zeros", "reflect", "replicate", "circular"))
@pytest.mark.parametrize("padding", ("same", "valid", 1))
@pytest.mark.parametrize("kind,kernel", ((SupermaskConv1d, 4), (SupermaskConv3d, (2, 3, 4))))
def test_padding(kind, kernel, padding, padding_mode):
    layer = kind(2, 3, kernel, padding=padding, padding_mode=padding_mode, dtype=torch.float64)
    x = torch.randn(2, 2, *(5, 6, 7)[: layer.dimensions], dtype=torch.float64)
    assert torch.allclose(layer(x), layer.to_dense()(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "kind", (SupermaskConvTranspose1d, SupermaskConvTranspose2d, SupermaskConvTranspose3d), ids=lambda k: k.__name__
)
def test_output_size(kind):
    layer = kind(2, 3, 3, stride=2, padding=1, dtype=torch.float64)
    x = torch.randn(2, 2, *(3,) * layer.dimensions, dtype=torch.float64)
    for size in (5, 6):
        sizes = (size,) * layer.dimensions
        ours = layer(x, sizes)
        assert torch.allclose(ours, layer.to_dense()(x, sizes), rtol=0, atol=1e-13)
        assert torch.equal(layer(x, ours.shape), ours)
    for wrong in (4, 7):
        with pytest.raises(ValueError, match=rf"output_size=\[{wrong}.*expected sizes in 5 to 6"):
            layer(x, (wrong,) * layer.dimensions)
    with pytest.raises(ValueError, match="output_size="):
        layer(x, (5,) * (layer.dimensions + 3))


def test_the_transposed_operation_is_the_adjoint_of_conv2d(backend):
    """On each backend, in float32: <dz, conv_transpose2d(x)> = <conv2d(dz), x>."""
    source = Source.of(6, 4 // 2 * 6, seed=3, freeze=FROZEN)
    window = Window(3, 2, 2, 1, 1, 0, 1, 2, 2)
    scores = torch.randn(source.free, requires_grad=True)
    mask, _ = ops.pack(scores.detach(), torch.tensor(0.4), source, False)
    layer = scores, mask, torch.tensor(0.125)
    x, dz = torch.randn(3, 6, 4, 5, requires_grad=True), torch.randn(3, 4, 8, 7)
    z = ops.conv_transpose2d(x, *layer, source, window, (1, 0))
    assert z.shape == dz.shape
    y = ops.conv2d(dz, *layer, None, source, window)
    dx, dscores = torch.autograd.grad(z, (x, scores), dz)
    assert torch.equal(dx, y)
    assert relative_error((z * dz).sum(), (y * x).sum()) < 1e-5
    assert torch.equal(dscores, torch.autograd.grad(y, scores, x)[0])


@pytest.mark.parametrize("kind", (SupermaskConv1d, SupermaskConvTranspose1d), ids=lambda k: k.__name__)
def test_a_transposed_sequence_gives_a_contiguous_output(kind):
    layer, x = kind(4, 6, 3), torch.randn(2, 9, 4).transpose(1, 2)
    y = layer(x)
    assert y.is_contiguous()
    assert torch.equal(y, layer(x.contiguous()))


@pytest.mark.parametrize("kind", (SupermaskConv1d, SupermaskConvTranspose1d), ids=lambda k: k.__name__)
def test_a_ticket_has_the_arguments_of_the_module_around_a_layer(kind):
    layer = kind(4, 6, 3)
    own = layer.arguments
    layer.outer_arguments = {"heads": 2}
    assert layer.arguments == {**own, "heads": 2}


def test_channels_last_stays_channels_last():
    layer = SupermaskConvTranspose2d(4, 6, 3, stride=2)
    x = torch.randn(2, 4, 5, 6)
    y = layer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, layer(x))


@pytest.mark.parametrize("channels,padding_mode", ((1, "zeros"), (1, "reflect"), (4, "zeros"), (4, "circular")))
def test_a_channels_last_layer_returns_such_images(channels, padding_mode):
    """With the same values; as PyTorch's, after a copy, moves and conversion, and from images of either format."""
    options = {"padding": 1, "padding_mode": padding_mode}
    plain = SupermaskConv2d(channels, 6, 3, **options)
    layer = copy.deepcopy(plain).to(memory_format=torch.channels_last).double().float()
    assert layer.channels_last and not plain.channels_last
    x = torch.randn(2, channels, 5, 6)
    for images in (x, x.contiguous(memory_format=torch.channels_last), as_channels_last(x)):
        results = []
        for each, of in ((layer, images), (plain, x)):
            of = of.clone().requires_grad_()
            y = each(of)
            results.append((y.detach(), *torch.autograd.grad(y.square().sum(), (of, each.scores))))
            with torch.no_grad():
                assert torch.equal(each(of), y) and torch.equal(each(of), y)  # the second by a plan
                assert each(of).stride() == y.stride()
        for got, expected in zip(*results, strict=True):
            assert (got - expected).norm() <= 1e-6 * expected.norm()
        assert results[0][0].stride() == (180, 1, 36, 6) and results[1][0].is_contiguous()
    assert torch.equal(layer(x[0]), plain(x[0]))
    assert not layer.to(memory_format=torch.contiguous_format).channels_last


def test_convert_keeps_the_memory_format():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 3)).to(memory_format=torch.channels_last)
    x = torch.randn(1, 4, 9, 9)
    expected, converted = model(x).stride(), convert(copy.deepcopy(model))
    assert converted(x).stride() == expected == to_dense(converted)(x).stride()
    assert convert(nn.Sequential(nn.Conv2d(4, 6, 3)))(x).is_contiguous()


@pytest.mark.parametrize(
    "make,message",
    (
        (lambda: SupermaskConv1d(4, 6, 3, groups=4), "out_channels=6: expected a multiple of groups=4"),
        (lambda: SupermaskConv1d(4, 6, (3, 3)), r"kernel_size=\(3, 3\): expected an integer of at least 1, or one"),
        (
            lambda: SupermaskConv3d(4, 6, 3, stride=(1, 0, 1)),
            r"stride=\(1, 0, 1\): expected an integer of at least 1, or",
        ),
        (lambda: SupermaskConv3d(4, 6, 3, padding="full"), "padding='full': expected 'same', 'valid', an integer"),
        (lambda: SupermaskConv1d(4, 6, 3, 2, "same"), r"padding='same' with stride=\(2,\): expected stride 1"),
        (lambda: SupermaskConvTranspose1d(4, 6, 3, output_padding=1), r"output_padding=\(1,\): expected less than"),
        (lambda: SupermaskConvTranspose2d(4, 6, 3, padding_mode="reflect"), "padding_mode='reflect': expected 'zeros'"),
        (lambda: SupermaskConv1d(4, 6, 3)(torch.randn(2, 3, 9)), r"expected \[B, 4, W\] or \[4, W\]"),
        (lambda: SupermaskConv3d(4, 6, 3)(torch.randn(2, 4, 9, 9)), r"expected \[B, 4, D, H, W\] or \[4, D, H, W\]"),
        (
            lambda: SupermaskConv3d(1, 1, 3)(torch.randn(1, 1, 2, 9, 9)),
            "its depth, with .* is smaller than kernel_size",
        ),
        (lambda: SupermaskConv3d(1, 1, 3)(torch.randn(1, 1, 3, 2, 9)), "smaller than"),
        (lambda: SupermaskConvTranspose2d(4, 6, 3)(torch.randn(2, 6, 9, 9)), r"expected \[B, 4, H, W\] or \[4, H, W\]"),
        (lambda: SupermaskConvTranspose2d(1, 1, 1, padding=1)(torch.randn(1, 1, 2, 2)), "leaves an output of 0 x 0"),
        (lambda: SupermaskConvTranspose3d(1, 1, 1, padding=1)(torch.randn(1, 1, 2, 9, 9)), "output has a depth of 0"),
        (lambda: SupermaskConvTranspose1d(1, 1, 1)(torch.randn(1, 1, 0)), "the image is empty"),
    ),
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "shape,output_padding,message",
    (
        ((2, 5, 4, 4), (0, 0), r"x.shape=\[2, 5, 4, 4\]: expected \[B, 6, H, W\] or \[6, H, W\]"),
        ((6, 4), (0, 0), r"x.shape=\[6, 4\]: expected \[B, 6, H, W\] or \[6, H, W\]"),
        ((2, 6, 4, 4), (0, 2), r"output_padding=\(0, 2\): expected 0 to stride - 1, with stride=\(3, 2\)"),
        ((2, 6, 4, 4), (-1, 0), r"output_padding=\(-1, 0\): expected 0 to stride - 1, with stride=\(3, 2\)"),
    ),
)
def test_the_transposed_operation_refuses(shape, output_padding, message):
    source, window = Source.of(6, 4 * 4), Window(2, 2, stride_h=3, stride_w=2)
    mask = torch.zeros(source.rows, source.words, dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        ops.conv_transpose2d(torch.randn(shape), None, mask, torch.tensor(1.0), source, window, output_padding)


def test_a_compiled_graph_gives_the_same():
    """One graph, of the operation that has no kernel of its own and of a folded depth."""
    options = {"bias": False, "freeze": FROZEN}
    model = nn.Sequential(
        SupermaskConvTranspose1d(6, 4, 3, stride=2, **options),
        nn.Unflatten(2, (3, 1, 5)),
        SupermaskConv3d(4, 4, (2, 1, 3), padding=1, groups=2, layer=1, **options),
    )
    for i in (0, 2):
        model[i].auto_mask = False
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 6, 7, requires_grad=True)
    ours, theirs = compiled(x), model(x)
    assert torch.equal(ours, theirs)
    inputs = (x, *model.parameters())
    ours, theirs = (torch.autograd.grad(y.square().sum(), inputs) for y in (ours, theirs))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _network(layer, dimensions):
    torch.manual_seed(0)
    return convert(layer(3, 4, 3)).eval(), torch.randn(2, 3, *[5] * dimensions), torch.randn(6, 3, *[5] * dimensions)


CONVOLUTIONS = [(getattr(nn, f"Conv{kind}{n}d"), n) for kind in ("", "Transpose") for n in (1, 2, 3)]


@pytest.mark.parametrize("layer,dimensions", CONVOLUTIONS)
def test_an_exported_program_takes_other_batches(layer, dimensions):
    model, x, larger = _network(layer, dimensions)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
    assert all(torch.equal(exported(images), model(images)) for images in (x, larger))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("layer,dimensions", CONVOLUTIONS)
def test_a_traced_module_takes_other_batches(layer, dimensions):
    model, x, larger = _network(layer, dimensions)
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        assert all(torch.equal(traced(images), model(images)) for images in (x, larger))
