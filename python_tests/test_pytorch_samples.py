"""PyTorch's sample inputs of Linear, Conv2d and Embedding give the shapes and values of the dense layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slt_kernels import SupermaskConv2d, SupermaskEmbedding, SupermaskLinear

pytest.importorskip("expecttest", reason="torch.testing._internal imports it")
common_modules = pytest.importorskip("torch.testing._internal.common_modules")
common_methods = pytest.importorskip("torch.testing._internal.common_methods_invocations")

MODULES = {nn.Linear: SupermaskLinear, nn.Conv2d: SupermaskConv2d, nn.Embedding: SupermaskEmbedding}


def module_samples() -> list:
    found = []
    for info in common_modules.module_db:
        if info.module_cls in MODULES:
            for sample in info.module_inputs_func(
                info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
            ):
                name = f"{info.name}-{len(found)}"
                found.append(pytest.param(info.module_cls, sample.constructor_input, sample.forward_input, id=name))
    return found


@pytest.mark.parametrize("kind,made,given", module_samples())
def test_modules(kind, made, given):
    ours = MODULES[kind](*made.args, **{k: v for k, v in made.kwargs.items() if k != "dtype"}).double()
    dense = kind(*made.args, **made.kwargs).double()
    with torch.no_grad():
        dense.weight.copy_(ours.dense_weight())
        if getattr(dense, "bias", None) is not None:
            dense.bias.copy_(ours.bias)
    expected = dense(*given.args, **given.kwargs)
    torch.testing.assert_close(ours(*given.args, **given.kwargs), expected)
    (first,) = (*given.args, *given.kwargs.values())
    torch.testing.assert_close(ours(input=first), expected)


def layer_of(name: str, weight: Tensor, bias: Tensor | None, options: dict) -> nn.Module:
    if name == "linear":
        return SupermaskLinear(weight.shape[1], weight.shape[0], bias is not None)
    if name == "embedding":
        return SupermaskEmbedding(*weight.shape, **options)
    groups = options.get("groups", 1)
    return SupermaskConv2d(weight.shape[1] * groups, len(weight), weight.shape[2:], bias=bias is not None, **options)


def function_samples() -> list:
    found = []
    for info in common_methods.op_db:
        name = info.name.removeprefix("nn.functional.")
        if info.name in ("nn.functional.linear", "nn.functional.conv2d", "nn.functional.embedding"):
            for sample in info.sample_inputs("cpu", torch.float64, requires_grad=False):
                found.append(pytest.param(name, sample, id=f"{name}-{len(found)}"))
    return found


@pytest.mark.parametrize("name,sample", function_samples())
def test_functions(name, sample):
    if name == "embedding":
        x, weight, bias = sample.args[0], sample.input, None
    else:
        x, (weight, bias) = sample.input, (*sample.args, None)[:2]
    options = dict(sample.kwargs)
    refused = [option for option in ("max_norm", "sparse") if options.get(option)]
    if refused:
        with pytest.raises(ValueError, match=refused[0]):
            layer_of(name, weight, bias, options)
        return
    layer = layer_of(name, weight, bias, options).double()
    arguments = (layer.dense_weight().double(), *(() if name == "embedding" else (layer.bias,)))
    expected = getattr(F, name)(x, *arguments, **options)
    if name == "embedding" and "padding_idx" in options:  # F.embedding reads it only for the gradient
        expected = expected.masked_fill((x == options["padding_idx"] % len(weight)).unsqueeze(-1), 0)
    torch.testing.assert_close(layer(input=x), expected)
