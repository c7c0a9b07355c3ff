"""Models of Hugging Face transformers, random and small."""

import copy
import json

import pytest
import safetensors.torch
import torch

from slt_kernels import EdgePopup, Freeze, TicketError, convert, summary, to_dense
from slt_kernels.nn import SupermaskLayer, TiedEmbedding, TiedLinear, drop_scores

transformers = pytest.importorskip("transformers", minversion="5")

from slt_kernels.huggingface import (  # noqa: E402
    EdgePopupCallback,
    SupermaskConfig,
    load_pretrained_ticket,
    save_pretrained_ticket,
    supermask,
)

OPTIONS = {"scale": "dynamic", "seed": 3}
CONFIG = SupermaskConfig(Freeze(0.3, 0.2), **OPTIONS)
WORDS = 100
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {"vocab_size": WORDS, **SMALL, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
IMAGE = {**SMALL, "image_size": 16, "patch_size": 4}
IDS = torch.arange(3, 27).view(2, 12)


def gpt2(**options):
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 1}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=WORDS, **sizes, **options))


def llama():
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=1, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config)


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(**TEXT))


def t5():
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=WORDS, **sizes))


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGE, num_labels=5))


def clip():
    text = {**TEXT, "max_position_embeddings": 32}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=16))


def whisper():
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 64))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 32, "num_mel_bins": 8}
    limits = {"max_source_positions": 16, "max_target_positions": 32, "decoder_start_token_id": 1}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.WhisperConfig(vocab_size=WORDS, **sizes, **heads, **limits, **special)
    return transformers.WhisperForConditionalGeneration(config)


def mamba():
    config = transformers.MambaConfig(vocab_size=WORDS, hidden_size=32, state_size=4, num_hidden_layers=1)
    return transformers.MambaForCausalLM(config)


SEQUENCES = {"input_ids": IDS, "decoder_input_ids": IDS}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
SOUND = torch.linspace(-1, 1, 2 * 8 * 32).view(2, 8, 32)
MODELS = {
    gpt2: {"input_ids": IDS},
    llama: {"input_ids": IDS},
    bert: {"input_ids": IDS},
    t5: SEQUENCES,
    vit: {"pixel_values": IMAGES},
    clip: {"input_ids": IDS, "pixel_values": IMAGES},
    whisper: {"input_features": SOUND, "decoder_input_ids": IDS},
    mamba: {"input_ids": IDS},
}


def answers(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.mark.filterwarnings("ignore:.*dense weights stay in the model and train")  # of Mamba, ViT and Whisper
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_models_are_saved_and_loaded_with_their_masks(make, tmp_path):
    torch.manual_seed(0)
    model = supermask(make(), SupermaskConfig(Freeze(0.3, 0.2), scale="dynamic", seed=3)).eval()
    EdgePopup(model, 0.6)
    expected = answers(model, MODELS[make])

    model(**MODELS[make])[0].square().mean().backward()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SupermaskLayer)}
    assert [name for name, m in layers.items() if m.scores.grad is None and m.scores.requires_grad] == []

    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    assert torch.equal(answers(loaded, MODELS[make]), expected)

    save_pretrained_ticket(model, tmp_path / "ticket")
    ticket = load_pretrained_ticket(tmp_path / "ticket")
    assert type(ticket) is type(model)
    assert torch.equal(answers(ticket, MODELS[make]), expected)
    assert not any(m.scores is not None for m in ticket.modules() if isinstance(m, SupermaskLayer))


@pytest.mark.filterwarnings("ignore:.*dense weights stay in the model and train")
@pytest.mark.filterwarnings("ignore:.* no weight is left in")
def test_an_auto_class_and_a_lower_precision(tmp_path):
    model = supermask(gpt2(), SupermaskConfig(scale="dynamic")).eval()
    EdgePopup(model, 0.8)
    model.save_pretrained(tmp_path)
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    inputs = {"input_ids": IDS}
    assert torch.equal(answers(half, inputs), answers(copy.deepcopy(model).bfloat16(), inputs))
    again = half.hf_quantizer.quantization_config
    assert again.options() == model.hf_quantizer.quantization_config.options()


@pytest.mark.filterwarnings("ignore:.* no weight is left in")
def test_a_cast_model_is_saved_in_its_dtype(tmp_path):
    """Not in that of its scores, which are its first parameter."""
    model = supermask(llama(), CONFIG).bfloat16().eval()
    assert model.dtype == model.model.dtype == torch.bfloat16
    save_pretrained_ticket(model, tmp_path / "ticket")
    model.save_pretrained(tmp_path / "whole")
    one = load_pretrained_ticket(tmp_path / "ticket")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    assert one.dtype == other.dtype == one.model.norm.weight.dtype == other.model.norm.weight.dtype == torch.bfloat16
    assert torch.equal(one(IDS).logits, other(IDS).logits)


@pytest.mark.parametrize("make", (llama, t5, bert))
def test_ties_are_kept(make):
    model = supermask(make())
    tied = [m for m in model.modules() if isinstance(m, TiedLinear | TiedEmbedding)]
    assert len(tied) == (3 if make is t5 else 1)
    assert {m.owner for m in tied} == {model.get_input_embeddings()}
    model.tie_weights()  # nothing is left to tie
    assert not [d for d in summary(model).dense_weights if d.trains]


def test_generation_is_that_of_the_saved_model(tmp_path):
    model = supermask(llama()).eval()
    EdgePopup(model, 0.5)
    model.generation_config.max_new_tokens = 4
    save_pretrained_ticket(model, tmp_path)
    loaded = load_pretrained_ticket(tmp_path)
    assert torch.equal(loaded.generate(IDS, do_sample=False), model.generate(IDS, do_sample=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "generation_config.json", "model.slt"]


class Sentences(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        ids = (torch.arange(8) * (i + 1)) % WORDS
        return {"input_ids": ids, "labels": ids}


def test_a_training_that_resumes_gives_the_same_bits(tmp_path):
    def trainer(folder, steps):
        torch.manual_seed(0)
        model = supermask(llama(), SupermaskConfig(Freeze(0.3, 0.2), scale="dynamic"))
        quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "steps", "save_steps": 2}
        arguments = transformers.TrainingArguments(
            str(folder),
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            **quiet,
        )
        return transformers.Trainer(model, arguments, train_dataset=Sentences(), callbacks=[EdgePopupCallback(0.6)])

    straight = trainer(tmp_path / "a", 4)
    straight.train()
    trainer(tmp_path / "b", 2).train()
    resumed = trainer(tmp_path / "b", 4)
    resumed.train(resume_from_checkpoint=True)
    states = straight.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(t, states[1][name]) for name, t in states[0].items())
    layers = [m for m in resumed.model.modules() if isinstance(m, SupermaskLayer)]
    dropped = sum(int((~m.mask()).sum()) for m in layers)
    assert dropped == int(0.6 * sum(m.total for m in layers))


# Mistakes


def test_what_cannot_be_converted_is_named():
    with pytest.raises(TypeError, match=r"expected a transformers PreTrainedModel, got Linear; use convert"):
        supermask(torch.nn.Linear(2, 2))
    model = supermask(llama())
    with pytest.raises(ValueError, match="expected one that is not quantized; it is by 'supermask'"):
        supermask(model)
    with pytest.raises(ValueError, match=r"prune=1\.5"):
        SupermaskConfig((1.5, 0))
    with pytest.raises(TypeError, match="sparse"):
        SupermaskConfig(sparse=True)
    with pytest.raises(TypeError, match=r"exclude='lm_head': expected names, such as \['lm_head'\]"):
        SupermaskConfig(exclude="lm_head")


def test_folders_that_hold_no_ticket_are_refused(tmp_path):
    model = llama()
    with pytest.raises(ValueError, match="its configuration has no SupermaskConfig"):
        save_pretrained_ticket(model, tmp_path)
    with pytest.raises(OSError, match=r"model\.slt"):
        load_pretrained_ticket(tmp_path)
    ticket = save_pretrained_ticket(supermask(model), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    changed = {
        "quantization_config": (None, ValueError, "has no quantization_config of the method 'supermask'"),
        "architectures": (["Mine"], ValueError, "its class is 'Mine'"),
        "hidden_size": (48, TicketError, "the ticket has shape"),
    }
    for key, (value, error, message) in changed.items():
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(error, match=message):
            load_pretrained_ticket(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    ticket.write_bytes(ticket.read_bytes()[:-5])
    with pytest.raises(TicketError):
        load_pretrained_ticket(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_head_that_the_checkpoint_lacks_is_initialized(tmp_path):
    """A model of another task takes the layers that it shares, and its own are as new."""
    saved = supermask(bert(), CONFIG)
    EdgePopup(saved, 0.6)
    saved.save_pretrained(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3).eval()
    saved.eval()
    states = [m.bert(input_ids=IDS).last_hidden_state for m in (model, saved)]
    assert torch.equal(*states)
    head = model.classifier
    new = type(head)(32, 3, sparsity=None, freeze=head.freeze, layer=head.source.layer, **OPTIONS)
    assert torch.equal(head.scores, new.scores) and torch.equal(head.mask_words, new.mask_words)
    assert head.bias.abs().max() <= 32**-0.5 and head.bias.any()
    assert model(input_ids=IDS).logits.isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_dense_weights_gives_its_biases(tmp_path):
    dense = bert()
    torch.nn.init.normal_(dense.bert.encoder.layer[0].output.dense.bias)
    dense.save_pretrained(tmp_path)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, quantization_config=CONFIG)
    layer, old = (m.bert.encoder.layer[0].output.dense for m in (model, dense))
    assert torch.equal(layer.bias, old.bias)
    assert layer.is_initialized() and layer.scores.isfinite().all()
    assert model(input_ids=IDS).logits.isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_memory_with_the_state_of_another_model_is_not_taken_for_loaded(tmp_path, monkeypatch):
    """What a checkpoint lacks gets memory that may hold the state of the same network, loaded before."""
    bert().save_pretrained(tmp_path)
    allocate = transformers.PreTrainedModel._move_missing_keys_from_meta_to_device

    def stale(self, *arguments):
        allocate(self, *arguments)
        for layer in filter(lambda m: isinstance(m, SupermaskLayer), self.modules()):
            layer.source_id.copy_(torch.tensor(layer._identity(layer.source)))
            layer.mask_origin.fill_(3)
            layer.scores.data.fill_(torch.nan)

    monkeypatch.setattr(transformers.PreTrainedModel, "_move_missing_keys_from_meta_to_device", stale)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, quantization_config=CONFIG)
    layer = model.bert.encoder.layer[0].output.dense
    new = type(layer)(64, 32, sparsity=None, freeze=layer.freeze, layer=layer.source.layer, **OPTIONS)
    assert torch.equal(layer.scores, new.scores) and torch.equal(layer.mask_words, new.mask_words)
    assert "_init_weights" not in model.__dict__


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_without_scores_gives_its_masks(tmp_path):
    saved = supermask(bert(), CONFIG).eval()
    EdgePopup(saved, 0.6)
    drop_scores(saved).save_pretrained(tmp_path)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    ours, theirs = ([m for m in each.modules() if isinstance(m, SupermaskLayer)] for each in (model, saved))
    assert all(torch.equal(a.mask_words, b.mask_words) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(model(input_ids=IDS).logits, saved(input_ids=IDS).logits)
    assert all(layer.scores.isfinite().all() and layer.scores.any() for layer in ours)


@pytest.mark.filterwarnings("ignore")
def test_a_mask_without_its_origin_is_refused(tmp_path):
    supermask(bert(), CONFIG).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(file)
    del state["bert.encoder.layer.0.output.dense.mask_origin"]
    safetensors.torch.save_file(state, file, {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"the checkpoint has a mask of SupermaskLinear.*but no mask_origin"):
        transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)


def test_a_dense_copy_of_a_model_that_convert_tied_is_saved_with_its_head(tmp_path):
    model = convert(llama().eval(), tie=True, scale="dynamic")
    assert isinstance(model.lm_head, TiedLinear)
    dense = to_dense(model)
    dense.save_pretrained(tmp_path)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(IDS).logits, dense(IDS).logits)
    assert model.config.tie_word_embeddings and not dense.config.tie_word_embeddings


@pytest.mark.filterwarnings("ignore:.*dense weights stay in the model and train")
@pytest.mark.parametrize("make", [make for make in MODELS if make is not gpt2], ids=lambda make: make.__name__)
def test_a_dense_copy_is_saved_and_loaded_as_transformers_own(make, tmp_path):
    """A head that had another scale than its embedding is not tied again. (GPT-2's Conv1D becomes a Linear.)"""
    torch.manual_seed(0)
    model = supermask(make(), SupermaskConfig(Freeze(0.3, 0.2), scale="dynamic", seed=3)).eval()
    dense = to_dense(model)
    dense.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert not any(isinstance(m, SupermaskLayer) for m in loaded.modules())
    torch.testing.assert_close(answers(loaded, MODELS[make]), answers(dense, MODELS[make]), rtol=0, atol=0)
    torch.testing.assert_close(answers(dense.float(), MODELS[make]), answers(model, MODELS[make]))
    model.save_pretrained(tmp_path / "supermask")  # the copy took nothing from it
    again = type(model).from_pretrained(tmp_path / "supermask").eval()
    assert torch.equal(answers(again, MODELS[make]), answers(model, MODELS[make]))
