"""The language model in a folder: what stands beside it, such as a vision tower, is left out.

Axes: N tokens, H hidden.
"""

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pipeline import quiet
from pipeline.errors import UserError
from pipeline.models import quantised
from pipeline.models.forward import head
from pipeline.run.files import first_line

# Of a config: language models that transformers has with their tower alone, and what each is without it
ALONE = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of a config
PROOF_WIDTH = 64  # rows of the output layer that stands in for the whole one


def load(path: Path, dtype: Any, who: str, **how: Any) -> PreTrainedModel:
    """The causal LM in a local folder of safetensors, its head proved (head.prove); of a model that sees or hears, its
    language model.

    `how` goes to from_pretrained, and `who` begins the message: the stage and the model. Raises UserError if
    transformers can't build it, weights are missing, or its head is not known here.
    """
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False).to_dict()
        quantised.check_loadable(config, who)
    except (ValueError, OSError) as error:
        raise UserError(f"{who}: can't be loaded as a causal language model: {first_line(error)}") from None
    with quiet.bars() if quantised.method_of(config) else nullcontext():  # weights in few bits are converted twice
        return _load(path, dtype, who, **how)


def _load(path: Path, dtype: Any, who: str, **how: Any) -> PreTrainedModel:
    try:
        whole, lacking = _loaded(path, dtype, **how)
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: of other sizes
        raise UserError(f"{who}: can't be loaded as a causal language model: {first_line(error)}") from None
    if lacking:
        raise UserError(f"{who}: the weights lack {len(lacking)} tensors, such as {min(lacking)}: fetch them again")
    model = _alone(whole, who)
    method = quantised.method_of(whole.config.to_dict())
    try:
        head.prove(model, who)
    except (RuntimeError, AttributeError, ImportError) as error:  # of layers that a method's packages made
        if method is None:
            raise
        raise UserError(f"{who}: transformers can't run {method} weights here: {first_line(error)}") from None
    return model.eval()


def attention_of(config: Any) -> str | None:
    """The attention to load a model with; None for transformers' choice.

    Its choice, sdpa, leaves out the cap that Gemma 2 puts on attention scores, and says nothing.
    """
    caps = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
    return None if caps is None else "eager"


def config_alone(config: Any, who: str) -> Any:
    """The config of the language model in a model of this config: the config itself if there is nothing beside it.

    Raises UserError if transformers has no class for it alone.
    """
    text = config.get_text_config(decoder=True)
    if text is config:
        return config
    alone = ALONE.get(text.model_type)
    if alone:
        settings = {key: value for key, value in text.to_dict().items() if key not in ("model_type", "architectures")}
        text = AutoConfig.for_model(alone, **settings)
    elif type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{who}: a {config.model_type} is more than a language model, and transformers has no class for its"
            " language model alone; choose a text-only model"
        )
    text = copy.deepcopy(text)
    text.tie_word_embeddings = getattr(config, "tie_word_embeddings", text.tie_word_embeddings)
    for key in TOKENS:
        if getattr(text, key, None) is None:
            setattr(text, key, getattr(config, key, None))
    return text


def on_meta(config: Any, who: str) -> PreTrainedModel:
    """The language model of a config without its weights, its head proved on stand-ins for hidden states and weights.

    Raises UserError if transformers can't build it, or its head is not known here.
    """
    try:
        with torch.device("meta"):  # a model without weights
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config_alone(config, who)), trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # each architecture checks in ways of its own
        raise UserError(f"{who}: it can't be built as a causal language model: {first_line(error)}") from None
    _prove_shape(model, who)
    return model


class _States(dict):
    """What a decoder gives, of which only the hidden states are there."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, name: Any) -> Any:
        return self["last_hidden_state"] if name == 0 else super().__getitem__(name)


def _prove_shape(model: Any, who: str) -> None:
    """head.prove without weights: the model's own forward pass, but for its layers and most of its rows.

    Leaves the model as it was.
    """
    layer, decoder = model.get_output_embeddings(), head.decoder_of(model)
    if not isinstance(layer, torch.nn.Linear):
        raise UserError(f"{head.unknown(model, who)}; {head.ADVICE}")
    generator = torch.Generator().manual_seed(0)
    small = torch.nn.utils.skip_init(torch.nn.Linear, layer.in_features, PROOF_WIDTH, bias=layer.bias is not None)
    for parameter in small.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    hidden_NH = torch.randn(head.PROOF_TOKENS, layer.in_features, generator=generator) * 8 / layer.in_features**0.5
    decoder.forward = lambda *_, **__: _States(last_hidden_state=hidden_NH[None])
    try:
        model.set_output_embeddings(small)
        ids_1N = torch.zeros(1, head.PROOF_TOKENS, dtype=torch.long)
        own_NV = model(input_ids=ids_1N, attention_mask=torch.ones_like(ids_1N), use_cache=False).logits[0].detach()
    except Exception as error:  # something without weights was asked for: more than the head stands behind the layers
        raise UserError(f"{head.unknown(model, who)} ({first_line(error)}); {head.ADVICE}") from None
    else:
        head.check_logits(model, own_NV, hidden_NH, who)
    finally:
        del decoder.forward
        model.set_output_embeddings(layer)


def _loaded(path: Path, dtype: Any, **how: Any) -> tuple[Any, list[str]]:
    """The model as it stands in the folder, and what of its weights is not there."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    how = quantised.loading(config) | how
    has_tower = config.get_text_config(decoder=True) is not config
    kind = AutoModelForMultimodalLM if has_tower else AutoModelForCausalLM
    how |= {"attn_implementation": attention_of(config), "use_safetensors": True, "trust_remote_code": False}
    loaded: Any = kind.from_pretrained(path, dtype=dtype, output_loading_info=True, **how)
    model, found = loaded
    return model, sorted(found["missing_keys"])


def _alone(whole: Any, who: str) -> Any:
    """The language model of a loaded one, of the same weights, wherever they are."""
    config = config_alone(whole.config, who)
    if config is whole.config:
        return whole
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=whole.dtype, trust_remote_code=False)
    name = next((name for name, child in model.named_children() if child is head.decoder_of(model)), None)
    layer = whole.get_output_embeddings() or whole.get_decoder().get_output_embeddings()
    if name is None or layer is None:
        raise UserError(f"{who}: Retort can't separate the language model from the rest of a {whole.config.model_type}")
    setattr(model, name, head.decoder_of(whole))
    model.set_output_embeddings(layer)
    model.generation_config = whole.generation_config
    return model
