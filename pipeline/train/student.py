"""The student before it learns: the teacher with fewer layers, a model that shares its tokenizer, or random weights."""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from pipeline import models
from pipeline.config import Config, Student, layer_indices
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.files import first_line
from pipeline.train import layers

COUNTED = ("max_window_layers", "first_k_dense_replace")  # of a config: how many of the first layers are of a kind
NUMBERED = ("mlp_only_layers",)  # of a config: lists of layers, by number
NO_LAYERS = ("architectures", "eos_token_id")  # of a config: lists whose length has nothing to do with layers


def make(config: Config, teacher: models.Model, target: Path, rows: Any) -> dict[str, Any]:
    """Save the untrained student as a plain transformers folder, with the teacher's tokenizer and template.

    `rows` are answers on which layers can be measured (see layers.block_influence). Returns what was made of what, for
    the manifest. Raises UserError where tokenizer, vocabulary or layers do not fit.
    """
    settings, tokenizer = config.student, teacher.tokenizer()
    if settings.config is not None:
        model = random_model(settings.config, tokenizer, config.train.seed)
    else:
        origin = models.find(settings.model, settings.revision) if settings.model else teacher
        models.check_origin(settings, origin, tokenizer)
        model = load(origin.path)
    facts: dict[str, Any] = {}
    if models.is_pruned(settings):
        model, facts = prune(model, settings, rows)
    facts["vocabulary_rows_cut"] = cut_vocabulary(model, teacher.vocab_size())
    if settings.config is not None or settings.model:  # it learns the teacher's turns, so ends them as the teacher does
        ends: Any = model.generation_config
        ends.eos_token_id = sorted(teacher.stop_ids(tokenizer))
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return facts


def load(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal LM from a local folder of safetensors. Raises UserError where transformers can't build it."""
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=False, use_safetensors=True)
    except (ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{path}: can't be loaded as a causal language model: {first_line(error)}") from None


def load_frozen(path: Path, bits: int | None) -> PreTrainedModel:
    """The model as adapters are trained on it: whole, or its linear layers in 4 or 8 bits (QLoRA, arXiv:2305.14314)."""
    if bits is None:
        return load(path)
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True} if bits == 4 else {}
    few = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, **four)
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, quantization_config=few, trust_remote_code=False, use_safetensors=True
    )


def merged(trained: PeftModel, base: Path, adapters: Path) -> Any:
    """The adapters of a model in few bits, merged into the whole weights that it was made of."""
    trained.save_pretrained(str(adapters))
    whole: Any = PeftModel.from_pretrained(load(base), str(adapters))
    return whole.merge_and_unload()


def random_model(name: str, tokenizer: Any, seed: int) -> PreTrainedModel:
    """A model of a config, its weights drawn from the seed alone, whose special tokens are the tokenizer's.

    Raises UserError where there is no such config, or it has no room for the tokenizer.
    """
    config = models.random_config(name)
    models.check_vocabulary(f"student.config {name}", config.get_text_config().vocab_size, tokenizer)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    for key, value in {**ids, "pad_token_id": None}.items():  # a padding token's embedding would never learn
        setattr(config.get_text_config(), key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def prune(model: PreTrainedModel, settings: Student, rows: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model with the layers that the settings name or choose; and which those are, and the influence of each.

    Raises UserError for layers that it does not have, or that can't do without the others.
    """
    of, num = len(_decoder(model).layers), settings.num_layers
    models.check_layers(settings, of)
    facts: dict[str, Any] = {}
    if num is None:
        indices, how = layer_indices(settings.keep_layers or f"0-{of - 1}"), "as named"
    elif settings.choose_layers == "influence":
        influence = layers.block_influence(model, rows)
        indices, how = layers.most_influential(influence, num), "by influence"
        facts["block_influence"] = [float(f"{value:.4g}") for value in influence]
        how += f" (all, from 0: {' '.join(f'{value:.2g}' for value in influence)})"
    else:
        choose = {"ends": layers.ends, "evenly": layers.evenly}[settings.choose_layers]
        indices, how = choose(of, num), f"by {settings.choose_layers}"
    say(f"train: the student keeps layers {models.layer_spans(indices)} of {of}, {how}")
    return keep_layers(model, indices), {"of_layers": of, "layers": indices, **facts}


def keep_layers(model: PreTrainedModel, indices: list[int]) -> PreTrainedModel:
    """The model with only these of its layers, renumbered.

    Raises UserError for a layer that it does not have, and where it could not be loaded again without the others.
    """
    decoder = _decoder(model)
    if indices[-1] >= len(decoder.layers):
        raise UserError(f"student.keep_layers names layer {indices[-1]}; the model's are 0-{len(decoder.layers) - 1}")
    config: Any = copy.deepcopy(model.config)
    text = config.get_text_config(decoder=True)
    _keep_in_config(text, indices, len(decoder.layers))
    decoder.layers = torch.nn.ModuleList([decoder.layers[i] for i in indices])
    for position, layer in enumerate(decoder.layers):
        numbered: list[Any] = [module for module in layer.modules() if hasattr(module, "layer_idx")]
        for module in numbered:
            module.layer_idx = position
    model.config, decoder.config = config, text
    if not getattr(config, "quantization_config", None) and _shapes(model) != _shapes(_empty(config)):
        raise UserError(
            f"student: without the other layers, {config.model_type} puts layers of another kind in the places of"
            f" {models.layer_spans(indices)}; keep layers whose kinds alternate as before (student.keep_layers)"
        )
    return model


def _keep_in_config(config: Any, indices: list[int], of: int) -> None:
    """What a config says of its layers, for those of these indices alone."""
    config.num_hidden_layers = len(indices)
    for key, value in config.to_dict().items():
        if key in COUNTED and isinstance(value, int):
            setattr(config, key, sum(layer < value for layer in indices))
        elif key in NUMBERED and value:
            setattr(config, key, [place for place, layer in enumerate(indices) if layer in value])
        elif isinstance(value, list | tuple) and len(value) == of and key not in (*NO_LAYERS, *NUMBERED):
            setattr(config, key, [value[layer] for layer in indices])


def cut_vocabulary(model: PreTrainedModel, vocab_size: int) -> int:
    """Cut the rows of embedding and lm_head that the teacher does not have; returns how many those were.

    Models of a family pad the same tokens to different sizes. A student with fewer rows is left as it is: the ids that
    it lacks are no tokens.
    """
    embedding: Any = model.get_input_embeddings()
    cut = embedding.weight.shape[0] - vocab_size
    if cut <= 0:
        return 0
    pad = model.config.get_text_config().pad_token_id
    if pad is not None and pad >= vocab_size:  # a config whose padding is outside its vocabulary can't be loaded
        model.config.get_text_config().pad_token_id = None
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    say(f"train: the student's vocabulary is cut to the teacher's {vocab_size} rows, by {cut} that are no tokens")
    return cut


def _decoder(model: PreTrainedModel) -> Any:
    decoder: Any = model.get_decoder()
    if not isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList):
        raise UserError(f"student: {model.config.model_type} models can't be pruned here: their layers are not found")
    return decoder


def _empty(config: Any) -> Any:
    """The model of a config, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)


def _shapes(model: Any) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in model.state_dict().items()}
