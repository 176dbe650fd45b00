"""What vLLM's engine is started with, in this process or behind a server."""

from math import prod
from typing import Any

from pipeline.machine import hardware
from pipeline.models import lookup, quantised

LOGPROBS_MODE = "raw_logprobs"  # before temperature, top-p, top-k and penalties: the contract in records.py
SCORING_BATCH_TOKENS = 2048  # vLLM holds tokens × vocabulary × 6 bytes of them, beyond what it reserves
PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")  # GPUs of one engine


def num_gpus(engine_args: dict[str, Any]) -> int:
    """GPUs that an engine with these arguments runs on; 0 on a CPU."""
    return 0 if hardware.is_cpu() else prod(int(engine_args.get(name) or 1) for name in PARALLEL)


def engine_settings(path: str, engine_args: dict[str, Any], k: int, scoring: bool = False) -> dict[str, Any]:
    """What vLLM is started with, here or as a server: what the contract needs, and defaults that the user overrides."""
    defaults: dict[str, Any] = {"disable_log_stats": True, "use_tqdm_on_load": False}
    defaults |= {"max_model_len": -1}  # the model's own, or as many tokens as the KV cache holds
    if hardware.is_cpu():
        # A chunked prefill rewinds the request's generator, which CPU generators can't do: vLLM would raise.
        # Scoring draws greedily, without one.
        defaults |= {"enforce_eager": True, "max_num_seqs": 128, "enable_chunked_prefill": scoring}
        model = lookup.local(path)
        if not quantised.is_served(model.config() if model else {}, engine_args):
            defaults |= {"dtype": "float32"}  # else vLLM's own choice: its kernels for few bits take half precision
    if scoring:
        defaults |= {"max_num_batched_tokens": SCORING_BATCH_TOKENS}
    needed = {
        "model": path,
        "max_logprobs": max(k, 1),
        "logprobs_mode": LOGPROBS_MODE,
        "load_format": "safetensors",
    }
    return needed | defaults | engine_args
