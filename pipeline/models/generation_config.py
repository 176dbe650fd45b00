"""A model's generation_config.json: read as vLLM reads it, and made such that transformers 5 saves it."""

import json
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.run.files import first_line

FILE = "generation_config.json"
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
OF_TRAINING = ("_from_model_config", "transformers_version", "use_cache")  # a cache is for whoever generates
DECIDING = ("do_sample", "num_beams", "return_dict_in_generate")  # others are checked against these


def read(name: str, folder: Path) -> dict[str, Any] | None:
    """What the file says; None if there is none. `name` is the model's, for messages.

    Raises UserError if it is damaged, or if it holds what transformers, and so vLLM, refuse to load.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, dict):
            raise ValueError("it is not a JSON object")
        _config(told)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        hint = "correct it, or fetch the model again"
        raise UserError(f"model {name}: {path} can't be used: {first_line(error)}; {hint}") from None
    _check_ids(name, path, told.get("eos_token_id"))
    return told


def end_ids(told: dict[str, Any]) -> frozenset[int]:
    """The end-of-turn tokens that a generation config or a config.json names: one, a list, or none."""
    ids = told.get("eos_token_id")
    return frozenset(ids if isinstance(ids, list) else () if ids is None else (ids,))


def mended(told: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings that transformers agrees to save, and in words what was changed.

    Sampling settings without `do_sample` were meant to be used, and vLLM does so. A temperature of 0 is greedy. What
    contradicts the other settings is left out.
    """
    wanted = {key: value for key, value in told.items() if value is not None and key not in OF_TRAINING}
    sampling, changes = {key: wanted[key] for key in SAMPLING if key in wanted}, []
    if wanted.get("temperature") == 0:
        wanted = {key: value for key, value in wanted.items() if key not in sampling} | {"do_sample": False}
        changes.append("do_sample is false (the temperature is 0)")
    elif "do_sample" not in wanted and not _is_valid(sampling):
        wanted["do_sample"] = True
        changes.append("do_sample is true (it has sampling settings)")
    kept: dict[str, Any] = {}
    for key in sorted(wanted, key=lambda key: key not in DECIDING):
        if _is_valid({**kept, key: wanted[key]}):
            kept[key] = wanted[key]
        else:
            changes.append(f"{key}={wanted[key]} is left out")
    return kept, changes


def as_generated(told: dict[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a run's sampling in place of their own; `made` is the fingerprint of its generate manifest.

    Answers that the teacher only scored were not sampled: the settings stay as they are.
    """
    if made.get("generate.mode") == "score":
        return told
    kept = {key: value for key, value in told.items() if key not in (*SAMPLING, *DECIDING, "repetition_penalty")}
    temperature = made["generate.temperature"]
    if temperature == 0:
        return {**kept, "do_sample": False}
    drawn = {"temperature": temperature, "top_p": made["generate.top_p"], "top_k": made["generate.top_k"]}
    return {**kept, "do_sample": True, **drawn}  # top_k 0 is all: left out, transformers would take 50


def _is_valid(settings: dict[str, Any]) -> bool:
    if any(not isinstance(settings.get(key, 0), Real) for key in SAMPLING):
        return False
    try:
        _config(settings).validate(strict=True)
    except (ValueError, TypeError, AttributeError):
        return False
    return True


def _config(settings: dict[str, Any]) -> Any:
    """transformers' own object, made without its advice on the screen."""
    from transformers import GenerationConfig
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return GenerationConfig(**settings)
    finally:
        logging.set_verbosity(before)


def _check_ids(name: str, path: Path, ids: Any) -> None:
    """Raises UserError for end-of-turn tokens that are no token ids."""
    for token in ids if isinstance(ids, list) else [ids]:
        if token is not None and (not isinstance(token, int) or isinstance(token, bool)):
            raise UserError(f"model {name}: {path}: eos_token_id holds {token!r}, which is not a token id; correct it")
