"""A student's folder, as every stage writes it: what transformers 4 and 5, vLLM and converters of other engines load.

transformers 5 names some settings anew in config.json and reads the old names, too; others know the old ones alone, and
take a default for what they miss, such as the rotary base. So the old names are written.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from pipeline.console import say
from pipeline.models import generation_config
from pipeline.models.tokenizer import tokenizer_files
from pipeline.run.files import write_json

NOTICES = ("LICEN", "NOTICE", "COPYING", "USE_POLICY")  # how the names of files begin that go along with weights
LOCAL = "sliding_attention"  # of layer types: those with a rotary base of their own


def save(
    model: Any,
    tokenizer: Any,
    target: Path,
    tokenizer_of: Path,
    weights_of: Path | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a model and its tokenizer as a plain transformers folder.

    `tokenizer_of` and `weights_of` are the folders that these come from: the first one's SentencePiece model goes
    along, and the second one's licence and notices. `state_dict` stands in for the model's own weights.
    """
    _set_cache(model.config)
    settings, changes = generation_config.mended(model.generation_config.to_diff_dict())
    if changes:
        say(f"{model.config.model_type}: {generation_config.FILE} is corrected: {'; '.join(changes)}")
    model.generation_config = GenerationConfig(**settings)
    model.save_pretrained(target, state_dict=_without_copies(model, state_dict))
    _write_old_names(target / "config.json")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokenizer_files.save(tokenizer, tokenizer_of, target, context)
    for file in weights_of.iterdir() if weights_of else ():
        if file.is_file() and file.name.upper().startswith(NOTICES):
            shutil.copyfile(file, target / file.name)


def _set_cache(config: Any) -> None:
    """Training turns the cache of keys and values off; whoever loads the student generates."""
    for part in (config, config.get_text_config()):
        if hasattr(part, "use_cache"):
            part.use_cache = True


def _without_copies(model: Any, state_dict: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor] | None:
    """The weights without those that are tied to others; gathered from several processes, they are no longer one."""
    if state_dict is None:
        return None
    copies = {
        copy
        for copy, source in model.all_tied_weights_keys.items()
        if copy in state_dict and source in state_dict and torch.equal(state_dict[copy], state_dict[source])
    }
    return {name: weight for name, weight in state_dict.items() if name not in copies}


def _write_old_names(path: Path) -> None:
    """Put config.json into the older names, if transformers 5 reads the same config from them."""
    wanted = AutoConfig.from_pretrained(path, trust_remote_code=False).to_dict()
    written = json.loads(path.read_text(encoding="utf-8"))
    told = old_names(written)
    write_json(path, told)
    if AutoConfig.from_pretrained(path, trust_remote_code=False).to_dict() != wanted:
        told = written
        write_json(path, told)
    if "rope_parameters" in told.get("text_config", told):
        say(f"{written['model_type']}: config.json has rotary settings that transformers 4 does not know")


def old_names(written: dict[str, Any]) -> dict[str, Any]:
    """A config.json of transformers 5, or a part of it, in the names of transformers 4."""
    told = {key: old_names(value) if key.endswith("_config") and value else value for key, value in written.items()}
    if "dtype" in told:
        told["torch_dtype"] = told.pop("dtype")
    rope = told.get("rope_parameters")
    if not isinstance(rope, dict):
        return told
    of_kind = {kind: rope[kind] for kind in rope if isinstance(rope[kind], dict)}
    if of_kind and not (len(of_kind) == 2 and LOCAL in of_kind and of_kind[LOCAL].get("rope_type") == "default"):
        return told
    del told["rope_parameters"]
    if of_kind:
        local = of_kind.pop(LOCAL)["rope_theta"]
        [rope] = of_kind.values()
        told |= {"rope_local_base_freq": local} if local != rope["rope_theta"] else {}
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    told |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    return {**told, "rope_scaling": None if scaling.get("rope_type") == "default" else scaling}
