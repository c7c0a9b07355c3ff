"""Hugging Face transformers: supermask models that Auto classes load, `Trainer` searches, and folders hold as tickets.

    from transformers import AutoModelForCausalLM
    from slt_kernels.huggingface import EdgePopupCallback, SupermaskConfig, supermask

    model = supermask(AutoModelForCausalLM.from_config(config), SupermaskConfig(scale="dynamic", seed=1))
    Trainer(model, ..., callbacks=[EdgePopupCallback(sparsity=0.7)]).train()
    model.save_pretrained("folder")
    AutoModelForCausalLM.from_pretrained("folder")

Importing this module registers the method "supermask" beside transformers' own, so that a model whose ``config.json``
has a `SupermaskConfig` under ``quantization_config`` gets supermask layers when it is loaded. Needs transformers 5.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, TrainerCallback
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils import cached_file
from transformers.utils.quantization_config import QuantizationConfigMixin

from .convert import convert
from .dense import FINISHERS
from .edge_popup import EdgePopup
from .nn import SupermaskLayer, drop_scores
from .source import DENSE, Freeze
from .tickets import load_ticket, save_ticket

TICKET = "model.slt"
_METHOD = "supermask"


@register_quantization_config(_METHOD)
@dataclasses.dataclass
class SupermaskConfig(QuantizationConfigMixin):
    """The arguments of `convert` as a part of a model's configuration.

    Args:
        freeze: a `Freeze`, or (prune, lock); default (0, 0).
        spread, sparsity, weight, scale, gain, seed, compact, exclude: as `convert`'s. ``sparsity`` is None by default,
            because `EdgePopupCallback` makes the masks.

    Raises:
        TypeError, ValueError: an unknown argument, a freeze outside its range, or a string as ``exclude``.
    """

    freeze: Freeze | Sequence[float] = (DENSE.prune, DENSE.lock)
    spread: str = "uniform"
    sparsity: float | None = None
    weight: str = "signed_constant"
    scale: str | None = None
    gain: float = 2**0.5
    seed: int = 0
    compact: bool = False
    exclude: Sequence[str] = ()
    quant_method: str = dataclasses.field(default=_METHOD, kw_only=True)  # first in the base class

    def __post_init__(self) -> None:
        prune, lock = (self.freeze.prune, self.freeze.lock) if isinstance(self.freeze, Freeze) else self.freeze
        Freeze(prune, lock)  # raises
        self.freeze = [prune, lock]  # as JSON has it
        if isinstance(self.exclude, str):
            raise TypeError(f"exclude={self.exclude!r}: expected names, such as [{self.exclude!r}]")
        self.exclude = list(self.exclude)

    def options(self) -> dict[str, Any]:
        """The arguments for `convert`."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del given["quant_method"]
        return given | {"freeze": Freeze(*self.freeze)}


@register_quantizer(_METHOD)
class SupermaskQuantizer(HfQuantizer):
    """What transformers calls when it loads a model that has a `SupermaskConfig`."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        _convert(model, self.quantization_config)
        for m in model.modules():
            if isinstance(m, PreTrainedModel):
                m._init_weights = partial(_initialize, m._init_weights)  # of what the checkpoint does not have
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        for m in model.modules():
            m.__dict__.pop("_init_weights", None)
        return model

    def is_serializable(self, **_: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True  # `Trainer` trains no other quantized models

    @property
    def is_compileable(self) -> bool:
        return True


def _finish_dense(model: nn.Module) -> None:
    """Makes a dense copy transformers' own: from a folder it would be converted again, and lose its weights."""
    for m in model.modules():
        if not isinstance(m, PreTrainedModel):
            continue
        if isinstance(getattr(m.config, "quantization_config", None), SupermaskConfig):
            for name in ("hf_quantizer", "is_quantized", "quantization_method"):
                m.__dict__.pop(name, None)
            for config in (m.config, *(getattr(m.config, name, None) for name in m.config.sub_configs)):
                if config is not None:
                    config.__dict__.pop("quantization_config", None)
        # A tied head may have had another scale than its embedding, and must not be tied again.
        head = m.get_output_embeddings()
        if head is not None and getattr(head, "weight", None) is not getattr(m.get_input_embeddings(), "weight", None):
            m.config.tie_word_embeddings = False


FINISHERS.append(_finish_dense)


def supermask(model: PreTrainedModel, config: SupermaskConfig | None = None) -> PreTrainedModel:
    """Converts a transformers model in place (`convert`), records how in its configuration, and returns it.

    Embeddings and heads that share a weight still do (`TiedLinear`, `TiedEmbedding`).

    Args:
        model: a model of random or trained weights; these are dropped.
        config: default ``SupermaskConfig()``.

    Raises:
        TypeError: ``model`` is not a `PreTrainedModel`.
        ValueError: it is quantized or converted already; or as `convert`. The model is unchanged.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model: expected a transformers PreTrainedModel, got {type(model).__name__}; use convert")
    if getattr(model, "hf_quantizer", None) is not None:
        method = model.hf_quantizer.quantization_config.quant_method
        raise ValueError(f"model: expected one that is not quantized; it is by {str(method)!r}")
    quantizer = SupermaskQuantizer(SupermaskConfig() if config is None else config)
    _convert(model, quantizer.quantization_config)
    model.hf_quantizer = quantizer
    model.is_quantized, model.quantization_method = True, _METHOD
    return quantizer.postprocess_model(model)


def _convert(model: PreTrainedModel, config: SupermaskConfig) -> PreTrainedModel:
    parts = {prefix: m for prefix, m in model.named_modules() if isinstance(m, PreTrainedModel)}
    ties = {prefix: m.get_expanded_tied_weights_keys() for prefix, m in parts.items()}
    for prefix, m in parts.items():
        for to, owner in ties[prefix].items():  # as tie_weights(), which does nothing while a model is loaded
            place, _, name = to.rpartition(".")
            setattr(m.get_submodule(place), name, m.get_parameter(owner))
    convert(model, tie=True, **config.options())
    for prefix, m in parts.items():  # a weight that was replaced has no name to tie by
        names = {name for name, _ in m.named_parameters(remove_duplicate=False)}
        m._tied_weights_keys = {to: owner for to, owner in ties[prefix].items() if {to, owner} <= names}
        m.all_tied_weights_keys = {to: owner for to, owner in m.all_tied_weights_keys.items() if {to, owner} <= names}
    return model


@torch.no_grad()
def _initialize(of_transformers: Callable[[nn.Module], None], module: nn.Module) -> None:
    """Initializes a module that transformers has loaded, in the part that the checkpoint does not have.

    Such tensors are of memory that holds anything, another layer's state too, so that only transformers' own marks tell
    what was loaded.

    Raises:
        RuntimeError: a mask was loaded without all that belongs to it.
    """
    if not isinstance(module, SupermaskLayer):
        of_transformers(module)
        return
    buffers = dict(module.named_buffers(recurse=False))
    missing = [name for name, tensor in buffers.items() if not _is_loaded(tensor)]
    if module.mask_words.is_meta:  # its memory is on a disk
        return
    if "mask_words" in missing:  # as in a new head, or in a checkpoint of dense weights, which may give the bias
        bias = module.bias.clone() if module.bias is not None and _is_loaded(module.bias) else None
        module.reset_parameters()
        if bias is not None:
            module.bias.copy_(bias)
    elif missing:
        raise RuntimeError(f"the checkpoint has a mask of {module}, but no {', '.join(missing)}")
    elif module.scores is not None and not _is_loaded(module.scores):  # they were dropped before it was saved
        module.reset_scores()


def _dtype(model: PreTrainedModel) -> torch.dtype:
    """That of the first parameter, as transformers', but of a layer's weight in place of its scores' float32."""
    for m in model.modules():
        if isinstance(m, SupermaskLayer):
            return m.dtype
        for parameter in m.parameters(recurse=False):
            if parameter.is_floating_point():
                return parameter.dtype
    raise StopIteration  # as transformers' without parameters


PreTrainedModel.dtype = property(_dtype)  # models multiply in it, and save_pretrained records it


def _is_loaded(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "_is_hf_initialized", False)


class EdgePopupCallback(TrainerCallback):
    """Makes the masks of the model that a `Trainer` trains, with an `EdgePopup`, after each step of its optimizer.

    A training that resumes from a checkpoint continues with the masks of the checkpoint's scores.

    Args:
        sparsity, scope: as `EdgePopup`'s.
    """

    def __init__(self, sparsity: float, scope: str = "global") -> None:
        self.sparsity, self.scope = sparsity, scope
        self.popup: EdgePopup | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        self.popup = EdgePopup(model, self.sparsity, self.scope)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.popup is not None, "on_train_begin comes first"
        self.popup.step()


def save_pretrained_ticket(model: PreTrainedModel, folder: str | Path) -> Path:
    """Writes a folder as ``save_pretrained`` does, with the ticket ``model.slt`` in place of the weights.

    It has the configuration, the generation configuration if there is one, and the ticket: it can be pushed to a hub
    as it is.

    Returns:
        The path of the ticket.

    Raises:
        ValueError: the model was not made by `supermask`; or as `save_ticket`.
    """
    if not isinstance(getattr(model.config, "quantization_config", None), SupermaskConfig):
        raise ValueError("model: its configuration has no SupermaskConfig; expected a model that supermask converted")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_ticket(model, folder / TICKET)
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    return folder / TICKET


def load_pretrained_ticket(
    folder: str | Path, model_class: type[PreTrainedModel] | None = None, *, scores: bool = False
) -> PreTrainedModel:
    """The model of a folder that `save_pretrained_ticket` wrote, in evaluation mode.

    Args:
        folder: a folder, or the name of a repository on the hub.
        model_class: of the model; by default the class that the configuration names, of transformers.
        scores: keep initial scores, to search on from this mask; by default they are dropped, and the model holds one
            bit per weight. Dense weights are allocated while the model is built.

    Raises:
        OSError: there is no such folder or repository, or it has no ticket.
        ValueError: the configuration has no SupermaskConfig, or names no class of transformers.
        TicketError: the ticket is damaged, or of another network.
    """
    ticket = cached_file(str(folder), TICKET)
    config = transformers.AutoConfig.from_pretrained(folder)
    options = getattr(config, "quantization_config", None)
    if not isinstance(options, dict | SupermaskConfig) or dict(options).get("quant_method") != _METHOD:
        raise ValueError(f"{folder}: its config.json has no quantization_config of the method {_METHOD!r}")
    if model_class is None:
        model_class = _named_class(config, folder)
    del config.quantization_config
    model = supermask(model_class._from_config(config), SupermaskConfig(**dict(options)))
    load_ticket(ticket, model if scores else drop_scores(model))
    if model.can_generate():
        with suppress(OSError):  # a folder without one: the model has its own, of its configuration
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model.eval()


def _named_class(config: PretrainedConfig, folder: str | Path) -> type[PreTrainedModel]:
    name = (config.architectures or [None])[0]
    found = getattr(transformers, name or "", None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ValueError(f"{folder}: its class is {name!r}, which is not one of transformers; pass it as model_class")
    return found
