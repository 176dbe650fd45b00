"""How much memory a vLLM engine's KV cache gets: what its requests need, as far as the machine has it.

On a CPU the size is given in bytes (`kv_cache_memory_bytes`); on a GPU vLLM takes a part of the card, which is shared
out here where several engines are on it at once.
"""

import functools
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.console import say
from pipeline.errors import UserError
from pipeline.machine import hardware
from pipeline.models import lookup

T = TypeVar("T")
VARIABLE = "VLLM_CPU_KVCACHE_SPACE"  # GiB; vLLM itself reads whole ones alone
SETTING, GPU_SETTING = "kv_cache_memory_bytes", "gpu_memory_utilization"  # of vLLM's engine
_REFUSED = re.compile(r"vailable memory on node (\S+) \((\S+)/(\S+) GiB\).* less than requested memory for kv")
MAX_NUM_SEQS, BLOCK_TOKENS, BATCH_TOKENS = 128, 128, 4096  # vLLM's own on a CPU; memory is handed out by the block
USUAL_TOKENS = 2048  # a request, where its length is not known
PROGRAM_BYTES = int(1.1 * hardware.GIB)  # an engine's process without weights, cache and activations; measured
USED_FRAC, UNKNOWN_FRAC = 0.9, 0.5  # of what is free, for requests that are known, and that are not
ITEM_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Load:
    """What an engine will be asked, as far as it is known."""

    num_requests: int | None = None  # at once; None: as many as the engine takes
    tokens: int | None = None  # of the longest request, prompt and answer; None: not known
    memory_bytes: int | None = None  # for the engine, weights included, where several are up; None: all that is free


class Cache(NamedTuple):
    """Bytes of a KV cache: what it gets, and what one request needs at the least."""

    num_bytes: int
    least_bytes: int
    least_tokens: int  # that the least is for

    def tries(self) -> Iterator[int]:
        """Sizes to try in turn, where vLLM refuses them: half, half of that, and at last what one request needs."""
        size = self.num_bytes
        while size > self.least_bytes:
            yield size
            size //= 2
        yield self.least_bytes


class _Need(NamedTuple):
    """What an engine takes, bytes: weights; its process; a batch; the cache at the least, and for all requests."""

    weights_bytes: int
    process_bytes: int
    batch_bytes: int
    least_bytes: int
    cache_bytes: int
    least_tokens: int
    cache_part: float  # of what a token takes while its prompt is read: the rest are activations

    def base_bytes(self) -> int:
        return self.weights_bytes + self.process_bytes + self.batch_bytes

    def cache_in(self, room: int) -> int:
        """The largest cache that finds room beside the batches: those are as large as vLLM makes them, or hold all
        that the cache does.
        """
        return max(room - self.batch_bytes, int(room * self.cache_part))


def own_bytes() -> int | None:
    """What the user's VLLM_CPU_KVCACHE_SPACE asks for; parts of a GiB count. Raises UserError if it is not a number."""
    given = os.environ.get(VARIABLE, "").strip()
    try:
        gib = float(given or 0)
    except ValueError:
        gib = math.nan
    if not 0 <= gib < math.inf:
        raise UserError(f"{VARIABLE}={given}: give the size in GiB, such as 4 or 0.5")
    return int(gib * hardware.GIB) or None


def size(path: str, settings: dict[str, Any], load: Load) -> Cache | None:
    """The cache of an engine with these settings; None where vLLM sizes it: on a GPU, or by the user's own setting.

    Raises UserError where the model and a single request do not fit the memory that is free.
    """
    if not hardware.is_cpu():
        return None
    if own := own_bytes():
        return Cache(own, own, 0)
    if settings.get(SETTING) is not None:
        return None
    need, free = _need(path, settings, load), hardware.available_bytes(one_node=True)
    if need.weights_bytes + need.least_bytes > free:
        raise UserError(
            f"{VARIABLE}: the KV cache of one request of {need.least_tokens} tokens needs {_gib(need.least_bytes)}, and"
            f" the weights ({path}) need {_gib(need.weights_bytes)}, but only {_gib(free)} are free: {_way_out()}"
        )
    room = (load.memory_bytes or free) - need.weights_bytes - need.process_bytes
    if load.memory_bytes is None:
        room = int(room * (UNKNOWN_FRAC if load.tokens is None else USED_FRAC))
    granted = min(need.cache_bytes, need.cache_in(room), int(USED_FRAC * hardware.vllm_bytes()))
    return Cache(max(granted, need.least_bytes), need.least_bytes, need.least_tokens)


class RefusedError(Exception):
    """vLLM finds too little memory for the KV cache that it was told to have; the message says what it finds."""


def check_refused(text: str) -> None:
    """Raises RefusedError if this is how vLLM's worker on a CPU says so."""
    if told := _REFUSED.search(text):
        raise RefusedError(f"vLLM finds {told[2]} of {told[3]} GiB free on memory node {told[1]}")


def start(settings: dict[str, Any], load: Load, start_with: Callable[[dict[str, Any]], T]) -> T:
    """What `start_with` makes of the settings with a KV cache's size in them.

    Where it raises RefusedError, half of the size is tried, and half of that, down to what one request needs. Raises
    UserError if that is refused too.
    """
    cache = size(settings["model"], settings, load)
    refused = ""
    for num_bytes in cache.tries() if cache else (None,):
        sized = settings
        if num_bytes is not None:
            if refused:
                say(f"{refused}; trying a KV cache of {_gib(num_bytes)}")
            _make_room(settings["model"], num_bytes, load)
            sized = settings | {SETTING: num_bytes}
        try:
            return start_with(sized)
        except RefusedError as error:
            refused = str(error)
    if cache is None or own_bytes():
        own = VARIABLE if cache else f"teacher.engine.{SETTING}"
        raise UserError(f"{own} asks for more memory than is free ({refused}); set it lower, or remove it")
    raise UserError(
        f"{VARIABLE}: the KV cache of one request of {cache.least_tokens} tokens needs {_gib(cache.least_bytes)}, but"
        f" {refused}: {_way_out()}"
    )


def check_context(max_model_len: int, settings: dict[str, Any], load: Load) -> None:
    """Raises UserError if an engine is up and its cache holds fewer tokens than the longest request has.

    A context that the user or the model limits is another matter.
    """
    model = lookup.Model(settings["model"], Path(settings["model"]))
    stretched = model.config().get("original_max_position_embeddings")  # LongRoPE: vLLM's own limit
    wanted = min(load.tokens or 1, model.context_tokens(), stretched or math.inf)
    if max_model_len < wanted and settings.get("max_model_len") == -1:
        setting = VARIABLE if hardware.is_cpu() else f"teacher.engine.{GPU_SETTING}"
        raise UserError(
            f"{setting}: the KV cache holds {max_model_len} tokens, but the longest request has {wanted}: {_way_out()}"
        )


def shares(engines: list[tuple[str, dict[str, Any]]], load: Load) -> list[int] | None:
    """Memory for each of several engines that are up at once on this CPU, bytes; None where they do not all fit.

    Each gets its process, its weights and one request's cache; what is left is shared out by what each needs beyond.
    """
    needs = [_need(path, settings, load) for path, settings in engines]
    if own := own_bytes():
        needs = [need._replace(least_bytes=own, cache_bytes=own) for need in needs]
    left = int(USED_FRAC * hardware.available_bytes(one_node=True))
    left -= sum(need.base_bytes() + need.least_bytes for need in needs)
    if left < 0:
        return None
    beyond = [need.cache_bytes - need.least_bytes for need in needs]
    part = min(1.0, left / max(1, sum(beyond)))
    return [n.base_bytes() + n.least_bytes + int(part * more) for n, more in zip(needs, beyond, strict=True)]


def gpu_shares(weights: list[int], own: list[float | None], free: int, total: int) -> list[float]:
    """`gpu_memory_utilization` of each of several engines on one card: a user's own stays, the others share the rest.

    `weights`, `free` and `total` are bytes of the card. Beyond its weights each engine gets the same.
    Raises UserError where the weights alone do not fit.
    """
    rest = USED_FRAC * free - sum(part * total for part in own if part is not None)
    sharing = [size for size, part in zip(weights, own, strict=True) if part is None]
    each = (rest - sum(sharing)) / max(1, len(sharing))
    if sharing and each <= 0:
        raise UserError(
            f"evaluate.interleave_speed=true holds {len(weights)} models on one GPU at once, but their weights do not"
            f" fit the {_gib(free)} that are free: set it to false, or set {GPU_SETTING} in evaluate.engine"
        )
    return [(size + each) / total if part is None else part for size, part in zip(weights, own, strict=True)]


def gpu_weights_bytes(path: str, settings: dict[str, Any]) -> int:
    """The weights of an engine on each of its cards."""
    cards = int(settings.get("tensor_parallel_size") or 1) * int(settings.get("pipeline_parallel_size") or 1)
    return _weights_bytes(path, _item_bytes(path, settings)) // cards


def token_bytes(config: Any, item_bytes: int) -> int:
    """KV cache of one token, bytes, from a transformers config; an upper bound where layers forget (sliding windows).

    Multi-head latent attention (DeepSeek) keeps one latent vector and a rotary key for all heads. A model without
    attention is taken for one of a single head.
    """
    text = config.get_text_config(decoder=True)
    if latent := getattr(text, "kv_lora_rank", None):
        return text.num_hidden_layers * (latent + text.qk_rope_head_dim) * item_bytes
    heads = max(_widest(text, name) for name in ("num_key_value_heads", "num_kv_heads", "num_global_key_value_heads"))
    num_queries = getattr(text, "num_attention_heads", None) or 1
    width = max(_widest(text, name) for name in ("head_dim", "global_head_dim")) or text.hidden_size // num_queries
    heads = heads or num_queries
    return text.num_hidden_layers * 2 * heads * width * item_bytes


def _widest(config: Any, name: str) -> int:
    """A number of a config, the largest where each layer has its own; 0 where it has none."""
    value = getattr(config, name, None)
    return max(value) if isinstance(value, list | tuple) else value or 0


def _need(path: str, settings: dict[str, Any], load: Load) -> _Need:
    config, item_bytes = _transformers_config(path), _item_bytes(path, settings)
    cache_item_bytes = 1 if str(settings.get("kv_cache_dtype", "auto")).startswith("fp8") else item_bytes
    block = settings.get("block_size") or BLOCK_TOKENS
    cached_bytes, active_bytes = token_bytes(config, cache_item_bytes), _activation_bytes(config, item_bytes)
    block_bytes = block * cached_bytes

    def cache(num: int, tokens: int) -> int:
        return (num * math.ceil(tokens / block) + 1) * block_bytes  # vLLM keeps a block for itself

    most = settings.get("max_num_seqs") or MAX_NUM_SEQS
    num = min(most, load.num_requests or most)
    limit = model_len if (model_len := settings.get("max_model_len") or 0) > 0 else None
    context = limit or lookup.Model(path, Path(path)).context_tokens()
    tokens = min(context, load.tokens or USUAL_TOKENS)
    least_tokens = limit or tokens  # vLLM wants room for one request of the length it is told
    whole = cache(1, context) if load.tokens is None else 0
    least = cache(1, least_tokens)
    needed = max(cache(num, tokens), least, whole)
    batch_tokens = min(num * tokens, settings.get("max_num_batched_tokens") or max(context, BATCH_TOKENS))
    # engine_args.py has prompts read in parts where all their tokens are scored; else each has logits of its last token
    logits = batch_tokens * 6 if settings.get("enable_chunked_prefill") else num * 3 * 4
    process = PROGRAM_BYTES + logits * config.get_text_config(decoder=True).vocab_size
    part = cached_bytes / (cached_bytes + active_bytes)
    sizes = (process, batch_tokens * active_bytes, least, needed)
    return _Need(_weights_bytes(path, item_bytes), *sizes, least_tokens, part)


def _activation_bytes(config: Any, item_bytes: int) -> int:
    """What one layer makes of a token, bytes: layers take turns in the same memory."""
    text = config.get_text_config(decoder=True)
    hidden = text.hidden_size
    return (2 * (_widest(text, "intermediate_size") or 4 * hidden) + 4 * hidden) * item_bytes


def _weights_bytes(path: str, item_bytes: int) -> int:
    model = lookup.Model(path, Path(path))
    return model.weights_bytes() if "quantization_config" in model.config() else model.loaded_bytes(item_bytes)


def _item_bytes(path: str, settings: dict[str, Any]) -> int:
    """Bytes of a weight as the engine holds it, and of a cached number."""
    dtype = settings.get("dtype", "auto")
    if dtype == "auto":
        dtype = _transformers_config(path).get_text_config(decoder=True).dtype or "float32"
    return ITEM_BYTES.get(str(dtype).removeprefix("torch."), 4)


@functools.cache
def _transformers_config(path: str) -> Any:
    """A model's config as transformers reads it, which knows what an architecture's config.json may leave out."""
    from transformers import AutoConfig, PreTrainedConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (ValueError, KeyError, OSError):  # an architecture that vLLM knows, and transformers does not
        return PreTrainedConfig.from_dict(lookup.Model(path, Path(path)).config())


def _make_room(path: str, num_bytes: int, load: Load) -> None:
    """Have memory free as vLLM counts it, for a cache of this size and the weights that it reads first."""
    files = lookup.Model(path, Path(path)).weights_bytes()
    wanted = num_bytes + 3 * files + PROGRAM_BYTES  # files are in the page cache, and as floats of twice their size
    hardware.make_room(min(wanted, load.memory_bytes or wanted))


def _way_out() -> str:
    return "free some memory, ask for shorter answers, or lower teacher.engine.max_model_len"


def _gib(num_bytes: int) -> str:
    gib = num_bytes / hardware.GIB
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{gib * 1024:.1f} MiB"
