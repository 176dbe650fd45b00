"""A tokenizer's folder, written so that transformers 4 and 5 and the converters of other engines read the same."""

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.run.files import write_json

CONFIG_FILE = "tokenizer_config.json"
SHARED_CLASS = "PreTrainedTokenizerFast"  # both majors take tokenizer.json as it stands under this name
PRIVATE = ("backend", "is_local", "local_files_only", "model_specific_special_tokens", "processor_class")
NO_LIMIT = 10**20  # transformers writes 1e30 if a tokenizer knows no longest text


def save(tokenizer: Any, origin: Path, target: Path, context_tokens: int | None) -> None:
    """Write the tokenizer's files, with the SentencePiece model of `origin`, the folder it was loaded from.

    `context_tokens` is the model's context: the longest text, if the tokenizer knows none.
    """
    from transformers import TokenizersBackend

    tokenizer.save_pretrained(target)
    for file in origin.glob("*.model"):
        if not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
    path = target / CONFIG_FILE
    if not path.is_file():  # mistral-common's has files of its own
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(tokenizer, TokenizersBackend):
        settings = {k: v for k, v in settings.items() if k != "add_prefix_space"} | _of_backend(tokenizer)
    settings |= _special_tokens(tokenizer, settings)
    if context_tokens is not None and tokenizer.model_max_length > NO_LIMIT:
        settings["model_max_length"] = context_tokens
    if tokenizer.chat_template:  # beside chat_template.jinja: many tools read it here
        settings["chat_template"] = _templates(tokenizer.chat_template)
    write_json(path, {key: settings[key] for key in sorted(settings) if key not in PRIVATE})


def _of_backend(tokenizer: Any) -> dict[str, Any]:
    """What transformers 4 needs to be told to read tokenizer.json as transformers 5 does."""
    backend = tokenizer.backend_tokenizer
    is_bpe = type(backend.model).__name__ == "BPE"
    cutting = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer is not None else {}
    return {
        "tokenizer_class": SHARED_CLASS,
        "added_tokens_decoder": {str(n): t.__getstate__() for n, t in tokenizer.added_tokens_decoder.items()},
        # transformers 5 ignores it for BPE, where it takes away the space before a full stop
        "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces) and not is_bpe,
        "model_input_names": tokenizer.model_input_names,  # else it adds token_type_ids, which no chat model takes
        # transformers 4 takes the space before a text away if it is not told of it
        **{key: value for key, value in cutting.items() if key == "add_prefix_space"},
    }


def _special_tokens(tokenizer: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Special tokens beside bos, eos and the like, under the names that transformers 4 has for them."""
    named = settings.get("model_specific_special_tokens") or {}
    listed = [str(token) for token in tokenizer.extra_special_tokens]
    return {"additional_special_tokens": listed, "extra_special_tokens": {k: str(v) for k, v in named.items()}}


def _templates(template: str | dict[str, str]) -> str | list[dict[str, str]]:
    """One template, or several by name, as tokenizer_config.json holds them."""
    if isinstance(template, str):
        return template
    return [{"name": name, "template": text} for name, text in template.items()]
