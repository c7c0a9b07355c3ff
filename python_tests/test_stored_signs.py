"""Stored signs: the same bits from a layer that holds its sign words, and when it drops them."""

import copy
import pickle

import pytest
import torch
from torch import nn

from slt_kernels import (
    Freeze,
    SupermaskConv2d,
    SupermaskLinear,
    backends,
    load_ticket,
    number_layers,
    ops,
    prepare_inference,
    save_ticket,
)
from slt_kernels.source import Source


def held(layer: SupermaskLinear) -> bool:
    """Whether the layer has the signs of its source, by the product that reads them."""
    if not layer.stored_signs:
        return False
    *_, source, signs, _ = layer._operands()
    assert torch.equal(signs, source.signs())
    return True


@pytest.fixture(params=({}, {"compact": True, "freeze": Freeze(0.3, 0.3)}, {"activations": "int8"}), ids=str)
def layer(request):
    """In evaluation, with stored signs."""
    layer = SupermaskLinear(300, 70, bias=False, seed=3, layer=1, **request.param).eval()
    layer.store_signs()
    return layer


def test_outputs_have_the_same_bits(layer, backend):
    for dtype in (torch.float32, torch.bfloat16):
        for batch in (1, 4, 17):
            x = torch.randn(batch, 300, dtype=dtype)
            for grad in (False, True):
                with torch.set_grad_enabled(grad):
                    layer.store_signs()
                    stored = [layer(x) for _ in range(2)]  # the second by a plan
                    layer.store_signs(False)
                    assert all(torch.equal(y, layer(x)) for y in stored)


def test_float64_is_computed_as_without_them():
    layer, x = SupermaskLinear(300, 70).eval(), torch.randn(3, 300, dtype=torch.float64)
    expected = layer(x)
    layer.store_signs()
    assert torch.equal(layer(x), expected)


def test_copies_and_moves_keep_them(layer):
    x = torch.randn(3, 300)
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.half(), layer.to("cpu").float()):
        assert held(other)
        assert torch.equal(other(x), expected)
    assert not layer.to("meta").stored_signs
    assert not layer.to_empty(device="cpu").stored_signs


def test_to_empty_does_not_lose_them(layer):
    """The memory of parameters and buffers is garbage then; signs follow from the source alone."""
    assert held(layer.to_empty(device="cpu"))


def test_training_and_another_source_drop_them(layer):
    layer.train()
    assert not layer.stored_signs
    layer.eval()
    assert not layer.stored_signs
    layer.store_signs()
    layer.eval()
    assert held(layer)
    number_layers(nn.Sequential(layer))
    assert layer.source.layer == 0
    assert not layer.stored_signs


def test_a_new_mask_leaves_them(layer):
    x, other = (
        torch.randn(3, 300),
        SupermaskLinear(300, 70, bias=False, seed=3, layer=1, compact=layer.compact, freeze=layer.freeze),
    )
    other.scores.data.neg_().add_(0.01)
    other.update_mask()
    layer.load_state_dict(other.state_dict())
    assert held(layer)
    other.activations = layer.activations
    assert torch.equal(layer(x), other(x))


def test_they_are_in_no_state_and_no_ticket(layer, tmp_path):
    save_ticket(layer, tmp_path / "stored")
    names = set(layer.state_dict())
    layer.store_signs(False)
    save_ticket(layer, tmp_path / "plain")
    assert (tmp_path / "stored").read_bytes() == (tmp_path / "plain").read_bytes()
    assert names == set(layer.state_dict())
    layer.store_signs()
    load_ticket(tmp_path / "plain", layer)
    assert held(layer)


def test_compiled(layer):
    x = torch.randn(3, 300)
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


def test_a_model_in_one_call():
    """Linears alone have them; the next call may take them away."""
    model = nn.Sequential(SupermaskConv2d(3, 8, 3), nn.Flatten(), SupermaskLinear(72, 5, layer=1))
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    assert prepare_inference(model, signs="stored") is model
    assert held(model[2])
    assert not model[0].stored_signs
    assert torch.equal(model(x), expected)
    prepare_inference(model)
    assert not model[2].stored_signs


def test_bad_input():
    uniform = nn.Sequential(SupermaskLinear(3, 4), nn.Sequential(SupermaskLinear(4, 5, weight="uniform", layer=1)))
    with pytest.raises(
        ValueError, match=r"1\.0: expected weight='signed_constant', the only one with signs, not 'uniform'"
    ):
        prepare_inference(uniform, signs="stored", activations="int8")
    assert uniform.training and uniform[0].activations is None and not uniform[0].stored_signs
    with pytest.raises(ValueError, match="signs='kept': expected 'generated' or 'stored'"):
        prepare_inference(uniform, signs="kept")
    with pytest.raises(ValueError, match="expected a layer in evaluation"):
        SupermaskLinear(3, 4).store_signs()
    with pytest.raises(ValueError, match="expected a layer that is not on the meta device"):
        SupermaskLinear(3, 4, device="meta").eval().store_signs()
    x, source = torch.randn(2, 300), Source.of(70, 300)
    mask, scale = torch.zeros(70, 10, dtype=torch.int32), torch.tensor(1.0)
    for signs in (mask[:-1], mask.float(), mask.to("meta")):
        with pytest.raises(ValueError, match=r"signs: expected int32 \[70, 10\] on cpu, got"):
            ops.linear(x, None, mask, scale, None, source, signs)
    with pytest.raises(ValueError, match="signs: expected contiguous words"):
        ops.linear(x, None, mask, scale, None, source, mask.repeat(1, 2)[:, ::2])
    with pytest.raises(TypeError, match="signs: expected a tensor, got list"):
        ops.linear(x, None, mask, scale, None, source, [1])
    with pytest.raises(ValueError, match="signs: expected None, since the weight is normal"):
        ops.linear(x, None, mask, scale, None, Source.of(70, 300, weight="normal"), mask)


def test_a_backend_is_given_them():
    """An operation of its own: the reference computes with the signs it is given."""
    source = Source.of(70, 300)
    mask, x = torch.full((70, 10), -1, dtype=torch.int32), torch.randn(2, 300)
    none = torch.zeros_like(mask)
    y = backends.on("reference").linear_forward_stored(x, mask, none, torch.tensor(1.0), None, source, False)
    assert torch.allclose(y, x.sum(1, keepdim=True).expand(-1, 70), atol=1e-4)
