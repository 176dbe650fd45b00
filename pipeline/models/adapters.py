"""Low-rank adapters as train makes them, and whether a model can have them: tried on a model without weights."""

import difflib
import warnings
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from pipeline.config import Lora
from pipeline.errors import UserError

SETTING = "train.lora.target_modules"


def lora_config(lora: Lora) -> LoraConfig:
    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules,
        task_type="CAUSAL_LM",
    )


def check(model: Any, lora: Lora) -> None:
    """Put adapters on a model that is thrown away. Raises UserError for modules that it lacks, or that take none.

    PEFT itself passes over a name that fits nothing, so long as another one fits.
    """
    if not isinstance(lora.target_modules, str):
        _check_names(model, lora.target_modules)
    ends = {"output layer": model.get_output_embeddings(), "input embedding": model.get_input_embeddings()}
    linears = _linears(model)
    try:
        with warnings.catch_warnings(action="ignore"):  # of PEFT's, about what is refused below
            get_peft_model(model, lora_config(lora))
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{SETTING}: PEFT can't adapt {_shown(lora)} ({said}); name linear layers: {linears}") from None
    now = {"output layer": model.get_output_embeddings(), "input embedding": model.get_input_embeddings()}
    if changed := [what for what, layer in ends.items() if now[what] is not layer]:
        raise UserError(f"{SETTING}: adapters on the {changed[0]} are not supported; name linear layers: {linears}")


def _check_names(model: Any, names: tuple[str, ...]) -> None:
    known = [path for path, _ in model.named_modules()]
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in known):
            last = sorted({path.rpartition(".")[2] for path in known})
            near = difflib.get_close_matches(name.rpartition(".")[2], last, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UserError(f"{SETTING}: the student has no module {name}; {hint}Its linear layers: {_linears(model)}")


def _linears(model: Any) -> str:
    """The names of a model's linear layers, but for the last."""
    last = model.get_output_embeddings()
    found = [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and module is not last]
    return ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in found))


def _shown(lora: Lora) -> str:
    return lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
