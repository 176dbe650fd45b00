"""The student before it learns: the teacher with fewer layers, or a model that shares its tokenizer."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline import models
from pipeline.config import Config, layer_indices
from pipeline.errors import UserError


def make(config: Config, teacher: models.Model, target: Path) -> None:
    """Save the untrained student as a plain transformers folder, with the teacher's tokenizer and template.

    Raises UserError where tokenizer, vocabulary or layers do not fit.
    """
    chosen = config.student.model
    origin = models.find(chosen, config.student.revision) if chosen else teacher
    tokenizer = teacher.tokenizer()
    if chosen:
        models.check_same_tokenizer(tokenizer, origin.tokenizer(), chosen)
    if len(tokenizer) > origin.vocab_size():
        raise UserError(
            f"student.model {origin.name}: its vocabulary of {origin.vocab_size()} is below the tokenizer's"
            f" {len(tokenizer)} tokens"
        )
    model = load(origin.path)
    if config.student.keep_layers is not None:
        model = keep_layers(model, layer_indices(config.student.keep_layers))
    head_weight(model)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def load(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal LM from a local folder of safetensors. Raises UserError where transformers can't build it."""
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=False, use_safetensors=True)
    except (ValueError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path}: can't be loaded as a causal language model: {first}") from None


def keep_layers(model: PreTrainedModel, indices: list[int]) -> PreTrainedModel:
    """The model with only these of its layers, renumbered. Raises UserError for a layer it does not have."""
    decoder: Any = model.get_decoder()
    if indices[-1] >= len(decoder.layers):
        raise UserError(f"student.keep_layers names layer {indices[-1]}; the model's are 0-{len(decoder.layers) - 1}")
    config: Any = copy.deepcopy(model.config)
    config.num_hidden_layers = len(indices)
    if getattr(config, "layer_types", None):  # models that mix attention kinds
        config.layer_types = [config.layer_types[i] for i in indices]
    decoder.layers = torch.nn.ModuleList([decoder.layers[i] for i in indices])
    for position, layer in enumerate(decoder.layers):
        numbered: list[Any] = [module for module in layer.modules() if hasattr(module, "layer_idx")]
        for module in numbered:
            module.layer_idx = position
    model.config = decoder.config = config
    return model


def head_weight(model: PreTrainedModel) -> torch.Tensor:
    """The lm_head's weight, (V, H). Raises UserError where logits are more than hidden · weightᵀ."""
    config: Any = model.config
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UserError(f"student: models with {name} are not supported yet")
    head: Any = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise UserError("student: models whose lm_head has a bias are not supported yet")
    return head.weight
