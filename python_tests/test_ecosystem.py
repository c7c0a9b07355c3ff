"""Training loops of other libraries, and programs that leave PyTorch's eager mode. See docs/ecosystem.md."""

import re
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from processes import run_processes
from test_documents import ROOT, python
from torch.utils.data import DataLoader, TensorDataset

from slt_kernels import EdgePopup
from slt_kernels.nn import SupermaskLayer

LIBRARIES = ("transformers", "accelerate", "pytorch_lightning", "onnx", "onnxscript")
# Not imported here: every process of pytest collects these tests, and one runs them.
pytestmark = pytest.mark.skipif(not all(map(find_spec, LIBRARIES)), reason=f"they need {', '.join(LIBRARIES)}")


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


SHARDED = """
import accelerate
from torch import nn
from torch.distributed.tensor import DTensor
from slt_kernels import EdgePopup, Freeze, convert

place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
os.environ.update({name: str(value) for name, value in place.items()})


class OnCpu(accelerate.Accelerator):
    def __init__(self, fsdp_plugin):
        super().__init__(cpu=True, fsdp_plugin=fsdp_plugin)
        self.state.distributed_type, self.state.fsdp_plugin = accelerate.DistributedType.FSDP, fsdp_plugin


accelerate.Accelerator = OnCpu


def network():
    torch.manual_seed(0)
    layers = nn.Linear(16, 128), nn.ReLU(inplace=True), nn.Linear(128, 4)
    return convert(nn.Sequential(*layers), Freeze(0.3, 0.2), None, scale="dynamic")


def train(model, optimizer, backward, part):
    data = torch.Generator().manual_seed(1)
    for _ in range(3):
        x, y = (t[part] for t in (torch.randn(8, 16, generator=data), torch.arange(8) % 4))
        optimizer.zero_grad()
        backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()


single = network()
optimizer = torch.optim.SGD(single.parameters(), lr=0.1)
EdgePopup(single, 0.6).attach(optimizer)
train(single, optimizer, torch.Tensor.backward, slice(None))
model = network()
EXAMPLE
train(model, optimizer, accelerator.backward, slice(rank, None, world))
for ours, theirs in zip((model[0], model[2]), (single[0], single[2])):
    assert isinstance(ours.scores, DTensor)
    assert torch.allclose(ours.scores.full_tensor(), theirs.scores, rtol=0, atol=1e-6)
    assert torch.equal(ours.mask_words, theirs.mask_words)
"""


def test_accelerate_with_fsdp2(tmp_path):
    text = (ROOT / "docs/ecosystem.md").read_text()
    (example,) = re.findall(r"So too with FSDP2:\n\n((?:    .*\n|\n)+)", text)
    run_processes(SHARDED.replace("EXAMPLE", dedent(example)), 2, tmp_path)


def test_an_exported_program_gives_the_same_bits(examples):
    model, x = examples["Search"]().model.eval(), torch.randn(4, 64)
    exported = torch.export.export(model, (x,))
    assert torch.equal(exported.module()(x), model(x))


def test_an_onnx_file_gives_the_same_answers(examples):
    from onnx.reference import ReferenceEvaluator

    network = ReferenceEvaluator(str(examples["folder"] / "net.onnx"))
    (y,) = network.run(None, {network.input_names[0]: examples["x"].numpy()})
    assert torch.allclose(torch.from_numpy(y), examples["y"], atol=1e-5)
