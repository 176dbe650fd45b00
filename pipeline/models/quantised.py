"""Weights that are stored in few bits (GPTQ, AWQ, compressed-tensors, FP8, ...), and what transformers does with them.

vLLM serves them all. Evaluate and the proof before training run the teacher by transformers, as plain weights where it
can make those; nothing can be trained, or pruned, on weights in few bits.
"""

import copy
import inspect
from typing import Any

from pipeline.errors import UserError

FULL_CACHE = ("auto", "float16", "bfloat16", "float32")  # of vLLM's kv_cache_dtype


def method_of(config: dict[str, Any]) -> str | None:
    """The method by its name in config.json (gptq, awq, compressed-tensors, fp8, ...); None for plain weights."""
    found = settings_of(config)
    if not found:
        return None
    few_bits = next((f"bitsandbytes ({bits} bits)" for bits in (4, 8) if found.get(f"load_in_{bits}bit")), None)
    return few_bits or str(found.get("quant_method") or "an unknown method")


def settings_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """What config.json says of the method, wherever it stands there."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):  # the second is an old name
            if isinstance(part.get(key), dict) and part[key]:
                return part[key]
    return None


def is_served(config: dict[str, Any], engine_args: dict[str, Any]) -> bool:
    """Whether an engine computes in few bits: so are the model's weights, or so its arguments have it make them."""
    cache = str(engine_args.get("kv_cache_dtype") or "auto")
    return method_of(config) is not None or bool(engine_args.get("quantization")) or cache not in FULL_CACHE


def check_loadable(config: dict[str, Any], who: str) -> None:
    """Raises UserError, with transformers' own words, if it can't load weights of this method on this machine."""
    found, method = settings_of(config), method_of(config)
    if found is None:
        return
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantizer = AutoHfQuantizer.from_config(copy.deepcopy(found), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # each method asks for packages and hardware in ways of its own
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{who}: transformers can't load {method} weights on this machine: {said[:160]}") from None


def loading(config: Any) -> dict[str, Any]:
    """What from_pretrained is given so that a model of this transformers config is loaded as plain weights."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoQuantizationConfig

    found = settings_of(config.to_dict())
    if found is None or found.get("quant_method") not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return {}
    kind = type(AutoQuantizationConfig.from_dict(copy.deepcopy(found)))
    if "dequantize" not in inspect.signature(kind).parameters:  # its layers compute with what is stored
        return {}
    return {"quantization_config": kind(dequantize=True)}


def num_parameters(config: Any) -> int:
    """Of a transformers config: what its weights would be if they were plain, shared ones once."""
    import torch
    from transformers import AutoModelForCausalLM

    plain = copy.deepcopy(config)
    for part in (plain, plain.get_text_config(decoder=True)):
        for key in ("quantization_config", "compression_config"):
            if hasattr(part, key):
                delattr(part, key)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(plain, trust_remote_code=False)
    return sum(parameter.numel() for parameter in model.parameters())
