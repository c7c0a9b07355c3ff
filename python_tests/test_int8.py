"""Int8 activations: what they compute, on every backend, and what a layer makes of the option."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slt_kernels import (
    Freeze,
    SupermaskConv1d,
    SupermaskConv2d,
    SupermaskConv3d,
    SupermaskEmbedding,
    SupermaskLinear,
    backends,
    ops,
    prepare_inference,
    save_ticket,
)
from slt_kernels.backends import exact_products
from slt_kernels.conv_geometry import Window
from slt_kernels.source import WEIGHTS, Source

BAD = (float("nan"), float("inf"), -float("inf"))


def layer(rows: int = 70, fan: int = 300, weight: str = "signed_constant") -> tuple:
    """Mask, scale, bias and source."""
    source = Source.of(rows, fan, seed=1, weight=weight)
    mask = torch.randint(-(2**31), 2**31, (rows, source.words), dtype=torch.int64).to(torch.int32)
    return mask, torch.tensor(0.37), torch.randn(rows), source


@pytest.mark.parametrize("weight", WEIGHTS)
def test_it_is_the_documented_formula(backend, weight):
    """In float32, as anybody would write it, where nothing leaves the range of normal numbers."""
    mask, scale, bias, source = layer(weight=weight)
    x = torch.randn(17, 300) * 10.0 ** torch.arange(-8, 9).unsqueeze(1)
    m = x.abs().amax(1, keepdim=True)
    integers = (x * (127 / m)).round()
    sums = integers.double() @ ops.materialize(mask, source).double().T
    assert integers.abs().amax(1).eq(127).all()
    expected = sums.float() * (m / 127) * scale + bias
    assert torch.equal(ops.linear(x, None, mask, scale, bias, source, activations="int8"), expected)


def test_the_ends_of_the_range(backend):
    """Rows scaled by powers of two have the same integers, also where 127 / m is no float32."""
    mask, scale, _, source = layer()
    x = torch.randn(1, 300).bfloat16().float()  # bits to spare for denormal numbers
    y = ops.linear(x, None, mask, scale, None, source, activations="int8")
    for exponent in (-126, -100, 100, 120):
        scaled = ops.linear(x.ldexp(torch.tensor(exponent)), None, mask, scale, None, source, activations="int8")
        scaled = scaled.double().ldexp(torch.tensor(-exponent)).float()
        if exponent == -126:  # denormal results are rounded
            assert torch.allclose(scaled, y, rtol=0, atol=2.0**-22)
        else:
            assert torch.equal(scaled, y)
    assert torch.equal(ops.linear(0 * x, None, mask, scale, None, source, activations="int8"), torch.zeros(1, 70))


@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_finite_stays_in_its_row(backend, bad):
    mask, scale, bias, source = layer()
    x = torch.randn(5, 300)
    expected = ops.linear(x, None, mask, scale, bias, source, activations="int8")
    x[3, 299] = bad
    y = ops.linear(x, None, mask, scale, bias, source, activations="int8")
    assert y[3].isnan().all()
    assert torch.equal(y[[0, 1, 2, 4]], expected[[0, 1, 2, 4]])


def test_the_documented_error():
    """Normal inputs: 9e-3 in relative norm; uniform rounding of +-m predicts m / 127 / sqrt(12)."""
    mask, scale, _, source = layer(512, 4096)
    x = torch.randn(64, 4096)
    exact = x.double() @ ops.materialize(mask, source).double().T * scale.double()
    y = ops.linear(x, None, mask, scale, None, source, activations="int8")
    error = float((y - exact).norm() / exact.norm())
    predicted = float((x.abs().amax(1) / 127 / 12**0.5).square().mean().sqrt())
    assert 0.95 < error / predicted < 1.05
    assert 8e-3 < error < 1e-2


@pytest.mark.parametrize("precision", ("highest", "high", "medium"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_a_backend_without_kernels_of_it_has_the_same_bits(dtype, precision, monkeypatch):
    """`exact_products` on the default backend's float32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        reference = backends.on("reference")
        mask, scale, bias, source = layer(weight="normal")
        x = (torch.randn(5, 300) * 10.0 ** torch.arange(-3, 2).unsqueeze(1)).to(dtype)
        y = torch.empty(5, 70, dtype=dtype)
        exact_products.linear_forward_int8(y, x, mask, scale, bias, source)
        assert torch.equal(y, reference.linear_forward_int8(x, mask, scale, bias, source))
        images, window = x.view(5, 12, 5, 5), Window(5, 5)
        y = torch.empty(5, 70, 1, 1, dtype=dtype)
        exact_products.conv2d_forward_int8(y, images, mask, scale, bias, source, window)
        assert torch.equal(y, reference.conv2d_forward_int8(images, mask, scale, bias, source, window))
        y = torch.empty(5, 70, dtype=dtype)
        mask, scale, bias, source = layer()
        for int8, operation in ((True, reference.linear_forward_int8), (False, ops.linear)):
            exact_products.linear_forward_stored(y, x, mask, source.signs(), scale, bias, source, int8)
            arguments = (x, mask) if int8 else (x, None, mask)
            assert torch.equal(y, operation(*arguments, scale, bias, source))
    finally:
        torch.set_float32_matmul_precision(before)


LAYERS = {
    "linear": (lambda **o: SupermaskLinear(40, 7, **o), (3, 40)),
    "conv1d": (lambda **o: SupermaskConv1d(6, 8, 3, padding=1, **o), (3, 6, 11)),
    "conv2d": (lambda **o: SupermaskConv2d(6, 8, (3, 2), stride=(2, 1), groups=2, **o), (3, 6, 9, 7)),
    "conv3d": (lambda **o: SupermaskConv3d(6, 8, 2, **o), (3, 6, 4, 5, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_those_of_the_product_of_what_was_not_rounded(kind):
    make, shape = LAYERS[kind]
    rounded, exact = (make(seed=2, freeze=Freeze(0.2, 0.2), activations=a) for a in ("int8", None))
    exact.load_state_dict(rounded.state_dict())
    x = torch.randn(shape, requires_grad=True)
    y = rounded(x)
    assert not torch.equal(y, exact(x))
    assert (y - exact(x)).norm() < 0.02 * y.norm()
    dy = torch.randn_like(y)
    grads = [torch.autograd.grad(m(x), (x, m.scores, m.bias), dy) for m in (rounded, exact)]
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_are_modules_that_use_it(kind):
    """With gradients, without (a plan), in bfloat16, after a change of the option, and in copies."""
    make, shape = LAYERS[kind]
    model, x = make(seed=2, activations="int8"), torch.randn(shape)
    expected = model(x).detach()
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(model(x), expected)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert model(x.bfloat16()).dtype == torch.bfloat16
        model.activations = None
        assert not torch.equal(model(x), expected)
        model.activations = "int8"
        assert torch.equal(model(x), expected)


def test_it_is_in_no_state_and_no_ticket(tmp_path):
    plain, int8 = SupermaskLinear(40, 7, seed=1), SupermaskLinear(40, 7, seed=1, activations="int8")
    int8.load_state_dict(plain.state_dict())
    for name, model in (("plain", plain), ("int8", int8)):
        save_ticket(model, tmp_path / name)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "int8").read_bytes()


def test_compiled():
    model, x = SupermaskLinear(40, 7, activations="int8").eval(), torch.randn(3, 40)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


def test_a_model_in_one_call():
    model = torch.nn.Sequential(SupermaskConv2d(3, 8, 3), torch.nn.Flatten(), SupermaskLinear(72, 5, layer=1))
    assert prepare_inference(model, activations="int8") is model
    assert not model.training
    assert [m.activations for m in (model[0], model[2])] == ["int8", "int8"]
    prepare_inference(model)
    assert [m.activations for m in (model[0], model[2])] == [None, None]


def test_flops_are_counted():
    model = torch.nn.Sequential(SupermaskConv2d(3, 8, 3), torch.nn.Flatten(), SupermaskLinear(72, 5, layer=1))
    for signs in ("generated", "stored"):
        prepare_inference(model, signs=signs, activations="int8")
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(2, 3, 5, 5))
        assert counter.get_total_flops() == 2 * 2 * (9 * 8 * 27 + 72 * 5)


def test_bad_input():
    mask, scale, bias, source = layer()
    x = torch.randn(3, 300)
    with pytest.raises(TypeError, match=r"x\.dtype=torch\.float64 with activations='int8': expected float32"):
        ops.linear(x.double(), None, mask, scale, bias, source, activations="int8")
    with pytest.raises(TypeError, match=r"x\.dtype=torch\.float64 with activations='int8'"):
        SupermaskConv2d(3, 4, 1, activations="int8")(torch.zeros(1, 3, 2, 2, dtype=torch.float64))
    for make in (
        lambda: ops.linear(x, None, mask, scale, bias, source, activations="int4"),
        lambda: SupermaskLinear(3, 4, activations="int4"),
        lambda: prepare_inference(SupermaskLinear(3, 4), activations="int4"),
    ):
        with pytest.raises(ValueError, match="activations='int4': expected None or 'int8'"):
            make()
    with pytest.raises(ValueError, match="activations='int8': expected None, since a SupermaskEmbedding has no int8"):
        SupermaskEmbedding(3, 4).activations = "int8"
