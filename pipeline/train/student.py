"""The student before it learns: the teacher with fewer layers, a model that shares its tokenizer, or random weights."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from pipeline.config import Config, Student
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.models import generation_config, language_model, lookup, model_folder
from pipeline.models.forward.head import PROOF_TOKENS
from pipeline.models.pruning import by_place, keep_layers, layers_of
from pipeline.train import layers

SAVED_TOLERANCE = 1e-4  # of the largest logit


def make(config: Config, teacher: lookup.Model, target: Path, rows: Any) -> dict[str, Any]:
    """Save the untrained student as a plain transformers folder, with the teacher's tokenizer and template.

    `rows` are answers on which layers can be measured (see layers.block_influence). Returns what was made of what, for
    the manifest. Raises UserError where tokenizer, vocabulary or layers do not fit.
    """
    settings, tokenizer, origin = config.student, teacher.tokenizer(), None
    if settings.config is not None:
        model = random_model(settings.config, tokenizer, config.train.seed)
    else:
        origin = lookup.find(settings.model, settings.revision) if settings.model else teacher
        lookup.check_origin(settings, origin, tokenizer)
        model = load(origin.path)
    facts: dict[str, Any] = {}
    if lookup.is_pruned(settings):
        model, facts = prune(model, settings, rows)
    grow_vocabulary(model, min(len(tokenizer), teacher.vocab_size()))
    facts["vocabulary_rows_cut"] = cut_vocabulary(model, teacher.vocab_size())
    ends: Any = model.generation_config
    if generation_config.end_ids(ends.to_dict()) != (stops := teacher.stop_ids(tokenizer)):
        ends.eos_token_id = sorted(stops)  # it learns the teacher's turns, so ends them as the teacher does
    model_folder.save(model, tokenizer, target, teacher.path, origin.path if origin else None)
    wanted_NV = _proof_logits(model)
    del model  # its memory is the loaded one's
    check_saved(wanted_NV, load(target))
    return facts


def check_saved(wanted_NV: Tensor, saved: PreTrainedModel) -> None:
    """Raises UserError if the student, loaded from its folder, is not the one that was saved."""
    off = (wanted_NV - _proof_logits(saved)).abs().max().item()
    if not off <= SAVED_TOLERANCE * (1 + wanted_NV.abs().max().item()):
        raise UserError(
            f"student: a {saved.config.model_type} gives other logits when it is loaded again (off by {off:.3g}):"
            " its config can't tell what was left out; take it whole, or choose another student"
        )


def load(path: Path, dtype: str = "float32") -> PreTrainedModel:
    """The causal LM in a local folder, as language_model.load has it. Raises UserError if it can't be had."""
    return language_model.load(path, dtype, f"train: {path}")


def load_frozen(path: Path, bits: int | None) -> PreTrainedModel:
    """The model as adapters are trained on it: whole, or its linear layers in 4 or 8 bits (QLoRA, arXiv:2305.14314)."""
    if bits is None:
        return load(path)
    four: Any = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True} if bits == 4 else {}
    few = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, **four)
    attention = language_model.attention_of(AutoConfig.from_pretrained(path, trust_remote_code=False))
    how = {"attn_implementation": attention, "trust_remote_code": False, "use_safetensors": True}
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, quantization_config=few, **how)


def merged(trained: PeftModel, base: Path, adapters: Path) -> Any:
    """The adapters of a model in few bits, merged into the whole weights that it was made of."""
    trained.save_pretrained(str(adapters))
    whole: Any = PeftModel.from_pretrained(load(base), str(adapters))
    return whole.merge_and_unload()


@torch.no_grad()
def _proof_logits(model: Any) -> Tensor:
    """Logits on tokens from all over the vocabulary, (N, V)."""
    ids_N = torch.linspace(0, model.get_input_embeddings().weight.shape[0] - 1, PROOF_TOKENS).long()
    return model.eval()(input_ids=ids_N[None], use_cache=False).logits[0]


def random_model(name: str, tokenizer: Any, seed: int) -> PreTrainedModel:
    """A model of a config, its weights drawn from the seed alone, whose special tokens are the tokenizer's.

    Raises UserError where there is no such config, or it has no room for the tokenizer.
    """
    config = lookup.random_config(name)
    lookup.check_vocabulary(f"student.config {name}", config.get_text_config().vocab_size, tokenizer)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    for key, value in {**ids, "pad_token_id": None}.items():  # a padding token's embedding would never learn
        setattr(config.get_text_config(), key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        how = {"attn_implementation": language_model.attention_of(config), "trust_remote_code": False}
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, **how)


def prune(model: PreTrainedModel, settings: Student, rows: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model with the layers that the settings name or choose; and which those are, and the influence of each.

    Raises UserError for layers that it does not have, or that can't do without the others.
    """
    of, num = len(layers_of(model)), settings.num_layers
    lookup.check_layers(settings, of)
    facts: dict[str, Any] = {}
    indices, how = by_place(settings, of), f"by {settings.choose_layers}" if num else "as named"
    if indices is None:
        assert num is not None  # noqa: S101 - by_place has it so
        influence = layers.block_influence(model, rows)
        indices = layers.most_influential(influence, num)
        facts["block_influence"] = [float(f"{value:.4g}") for value in influence]
        how += f" (all, from 0: {' '.join(f'{value:.2g}' for value in influence)})"
    say(f"train: the student keeps layers {lookup.layer_spans(indices)} of {of}, {how}")
    return keep_layers(model, indices), {"of_layers": of, "layers": indices, **facts}


def grow_vocabulary(model: PreTrainedModel, vocab_size: int) -> None:
    """Give the model rows for the last tokens that its tokenizer lacks: see tokens.unused_ids."""
    embeddings: Any = model.get_input_embeddings()
    if (missing := vocab_size - len(embeddings.weight)) > 0:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.resize_token_embeddings(vocab_size, mean_resizing=False)
        say(f"train: the student is given {missing} rows for tokens that the teacher's tokenizer has and does not use")


def cut_vocabulary(model: PreTrainedModel, vocab_size: int) -> int:
    """Cut the rows of embedding and lm_head that the teacher does not have; returns how many those were.

    Models of a family pad the same tokens to different sizes. A student with fewer rows is left as it is: the ids that
    it lacks are not tokens.
    """
    embedding: Any = model.get_input_embeddings()
    cut = embedding.weight.shape[0] - vocab_size
    if cut <= 0:
        return 0
    pad = model.config.get_text_config().pad_token_id
    if pad is not None and pad >= vocab_size:  # a config whose padding is outside its vocabulary can't be loaded
        model.config.get_text_config().pad_token_id = None
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    say(f"train: the student's vocabulary is cut to the teacher's {vocab_size} rows, by {cut} that are not tokens")
    return cut
