"""Training loops of other libraries, and programs that leave PyTorch's eager mode. See docs/ecosystem.md."""

from pathlib import Path

import pytest
import torch
from test_documents import ROOT, python
from torch.utils.data import DataLoader, TensorDataset

from slt_kernels import EdgePopup
from slt_kernels.nn import SupermaskLayer

for name in ("transformers", "accelerate", "pytorch_lightning", "onnx", "onnxscript"):
    pytest.importorskip(name)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """What the Python blocks of the document define."""
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        exec(python(ROOT / "docs/ecosystem.md"), names)
        names["folder"], names["x"] = Path.cwd(), torch.randn(4, 64)
        names["y"] = names["model"](names["x"])  # before a test trains it
    return names


@pytest.fixture
def batches():
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(32, 64), torch.randint(0, 10, (32,))), 8)


def masks(model):
    return torch.cat([m.mask().flatten() for m in model.modules() if isinstance(m, SupermaskLayer)])


def check_new_masks(before, model):
    """They differ from those before, and are those of an EdgePopup of the present scores."""
    after = masks(model)
    assert not torch.equal(after, before)
    EdgePopup(model, 0.6, "local")
    assert torch.equal(masks(model), after)


def test_transformers(examples):
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        logits = [examples[name].eval()(ids).logits for name in ("text", "again", "ticket")]
    assert torch.equal(logits[1], logits[0])
    assert torch.equal(logits[2], logits[0])


def test_lightning(examples, batches, tmp_path):
    from pytorch_lightning import Trainer

    torch.manual_seed(0)
    search = examples["Search"]()
    before = masks(search)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", **off)
    trainer.fit(search, batches)
    check_new_masks(before, search)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = examples["Search"].load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    x = torch.randn(3, 64)
    assert torch.equal(loaded.model(x), search.model(x))


def test_accelerate(examples, batches):
    model, optimizer, accelerator = (examples[name] for name in ("model", "optimizer", "accelerator"))
    model.train()
    before = masks(model)
    for x, labels in batches:
        optimizer.zero_grad()
        accelerator.backward(torch.nn.functional.cross_entropy(model(x), labels))
        optimizer.step()
    check_new_masks(before, model)


def test_an_exported_program_gives_the_same_bits(examples):
    model, x = examples["Search"]().model.eval(), torch.randn(4, 64)
    exported = torch.export.export(model, (x,))
    assert torch.equal(exported.module()(x), model(x))


def test_an_onnx_file_gives_the_same_answers(examples):
    from onnx.reference import ReferenceEvaluator

    network = ReferenceEvaluator(str(examples["folder"] / "net.onnx"))
    (y,) = network.run(None, {network.input_names[0]: examples["x"].numpy()})
    assert torch.allclose(torch.from_numpy(y), examples["y"], atol=1e-5)
