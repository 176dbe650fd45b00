"""A model with fewer layers: which ones by their place, and what its config then says of them."""

import copy
import math
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.config import Student, layer_indices
from pipeline.errors import UserError
from pipeline.models import language_model, lookup
from pipeline.models.forward.head import decoder_of

# Of a config: how many of the first layers are of a kind
COUNTED = ("max_window_layers", "first_k_dense_replace", "num_dense_layers")
# Of a config: lists of layers, by number
NUMBERED = ("mlp_only_layers", "moe_layers", "attn_layer_indices", "full_attn_idxs", "local_layer_ids")
GROWING = ("scale_depth",)  # of a config: what is divided by the square root of the number of layers
MAX_SAMPLE_BYTES, SAMPLE_VOCAB = 2 << 30, 16
NO_LAYERS = ("architectures", "eos_token_id")  # of a config: lists whose length has nothing to do with layers


def ends(of: int, num: int) -> list[int]:
    """`num` of `of` layers: the first half of them, rounded up, from the bottom, the rest from the top."""
    first = (num + 1) // 2
    return [*range(first), *range(of - (num - first), of)]


def evenly(of: int, num: int) -> list[int]:
    """`num` of `of` layers, spread evenly from the first to the last; one alone is the first."""
    gaps = max(num - 1, 1)
    return [(2 * place * (of - 1) + gaps) // (2 * gaps) for place in range(num)]  # rounded, halves up: never twice one


def by_place(settings: Student, of: int) -> list[int] | None:
    """The layers that the settings name, or choose by their place, of so many; None if influence chooses."""
    if settings.num_layers is None:
        return layer_indices(settings.keep_layers or f"0-{of - 1}")
    choose = {"ends": ends, "evenly": evenly}.get(settings.choose_layers)
    return choose(of, settings.num_layers) if choose else None


def keep_layers(model: PreTrainedModel, indices: list[int]) -> PreTrainedModel:
    """The model with only these of its layers, renumbered.

    Raises UserError for a layer that it does not have, and if it could not be loaded again without the others.
    """
    whole, decoder = layers_of(model), decoder_of(model)
    if indices[-1] >= len(whole):
        raise UserError(f"student.keep_layers names layer {indices[-1]}; the model's are 0-{len(whole) - 1}")
    config: Any = copy.deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    if shared := getattr(text, "num_kv_shared_layers", 0):
        raise UserError(f"student: the last {shared} layers of this {text.model_type} use other layers' keys: keep all")
    kept = torch.nn.ModuleList([whole[i] for i in indices])
    setattr(decoder, _layers_name(model), kept)
    _keep_in_config(text, indices, len(whole))
    for position, layer in enumerate(kept):
        numbered: list[Any] = [module for module in layer.modules() if hasattr(module, "layer_idx")]
        for module in numbered:
            module.layer_idx = position
    model.config, decoder.config = config, text
    if getattr(config, "quantization_config", None):
        return model
    if _shapes(model) != _shapes(language_model.on_meta(config, "student")):
        raise UserError(
            f"student: without the other layers, {config.model_type} puts layers of another kind in the places of"
            f" {lookup.layer_spans(indices)}; keep layers whose kinds alternate as before (student.keep_layers)"
        )
    return model


def sample(config: Any) -> PreTrainedModel | None:
    """A random model with one layer of each kind that this language model's config has, and hardly any vocabulary.

    None if that would take more than MAX_SAMPLE_BYTES.
    """
    config, kinds = copy.deepcopy(config), list(getattr(config, "layer_types", None) or ["layer"])
    _keep_in_config(config, sorted({kinds.index(kind) for kind in kinds}), config.num_hidden_layers)
    config.vocab_size = SAMPLE_VOCAB
    for key in language_model.TOKENS:
        setattr(config, key, None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    if 4 * model.num_parameters() > MAX_SAMPLE_BYTES:
        return None
    with torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _keep_in_config(config: Any, indices: list[int], of: int) -> None:
    """What a config says of its layers, for those of these indices alone."""
    config.num_hidden_layers = len(indices)
    for key, value in config.to_dict().items():
        if key in GROWING and isinstance(value, int | float):
            setattr(config, key, value * math.sqrt(len(indices) / of))
        elif key in COUNTED and isinstance(value, int):
            setattr(config, key, sum(layer < value for layer in indices))
        elif key in NUMBERED and value:
            setattr(config, key, [place for place, layer in enumerate(indices) if layer in value])
        elif isinstance(value, list | tuple) and len(value) == of and key not in (*NO_LAYERS, *NUMBERED):
            setattr(config, key, [value[layer] for layer in indices])


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The model's layers, whatever it calls them. Raises UserError if they are not found."""
    return getattr(decoder_of(model), _layers_name(model))


def _layers_name(model: PreTrainedModel) -> str:
    decoder: Any = decoder_of(model)
    of = model.config.get_text_config(decoder=True).num_hidden_layers
    for name, module in decoder.named_children():
        if isinstance(module, torch.nn.ModuleList) and len(module) == of:
            return name
    raise UserError(f"student: {model.config.model_type} models can't be pruned: Retort does not find their layers")


def _shapes(model: Any) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in model.state_dict().items()}
