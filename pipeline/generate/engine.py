"""vLLM, and the only module that imports it: token ids in, token ids and raw log-probs out, as they finish."""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import hardware
from pipeline.codec import FloatArray, IdArray
from pipeline.errors import UserError

LOGPROBS_MODE = "raw_logprobs"  # before temperature, top-p, top-k and penalties: the contract in records.py
OURS = (
    "model",
    "revision",
    "tokenizer",
    "seed",
    "logprobs_mode",
    "max_logprobs",
    "trust_remote_code",
    "load_format",
    "hf_token",
)


@dataclass(frozen=True)
class Request:
    """One answer to be drawn."""

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    temperature: float
    seed: int
    k: int = 0  # log-probs per token; 0 for none
    top_p: float = 1.0
    top_k: int = 0
    ignore_eos: bool = False
    completion_token_ids: tuple[int, ...] | None = None  # text to be scored, in place of an answer to be drawn


@dataclass(frozen=True)
class Answer:
    """One answer drawn: T tokens, the end-of-turn included, and row t of the log-probs for token t."""

    request: Request
    token_ids: list[int]
    finish_reason: str  # stop | length
    token_logprobs: FloatArray  # (T,) nats, of the sampled tokens
    ids_TK: IdArray  # the K best, best first
    logprobs_TK: FloatArray  # nats
    first_token_s: float  # since the request was handed to the engine
    total_s: float


class Engine:
    """A vLLM engine in this process (its workers, where there are several, are vLLM's own)."""

    def __init__(self, path: str, engine_args: dict[str, Any], k: int = 0, memory_share: float = 0.4) -> None:
        os.environ.update({k: v for k, v in hardware.vllm_environment(memory_share).items() if k not in os.environ})
        # a CPU has no Triton, which torch tells on every start
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
        from vllm import LLM

        check_engine_args(engine_args)
        try:
            self._llm = LLM(**engine_settings(path, engine_args, k))
        except (ValueError, TypeError) as error:  # pydantic's ValidationError is a ValueError
            raise UserError(f"teacher.engine: vLLM refuses these settings: {_reason(error)}") from None
        config = self._llm.llm_engine.vllm_config
        self.max_num_seqs: int = config.scheduler_config.max_num_seqs
        self.max_model_len: int = config.model_config.max_model_len
        self.vocab_size: int = config.model_config.get_vocab_size()
        self.dtype = str(config.model_config.dtype).removeprefix("torch.")
        if k > self.vocab_size:
            raise UserError(f"generate.k={k} is above the teacher's vocabulary of {self.vocab_size}")

    def answers(self, requests: Iterable[Request], timed: bool = False) -> Iterator[Answer]:
        """Answers as they finish, out of order. `requests` is read no further ahead than keeps the engine full.

        `timed` has every token reported, so that `first_token_s` is the first token's; else it is the whole's.
        Raises UserError for a prompt that does not fit the context.
        """
        source = iter(requests)
        waiting: dict[str, tuple[Request, float]] = {}
        first_s: dict[str, float] = {}
        engine = self._llm.llm_engine
        while True:
            while len(waiting) < 2 * self.max_num_seqs and (request := next(source, None)) is not None:
                waiting[request.request_id] = (request, time.perf_counter())
                self._add(request, timed)
            if not waiting:
                return
            outputs: list[Any] = engine.step()
            for output in outputs:
                request, began = waiting[output.request_id]
                elapsed_s = time.perf_counter() - began
                first_s.setdefault(output.request_id, elapsed_s)
                if output.finished:
                    del waiting[output.request_id]
                    yield _answer(request, output.outputs[0], first_s.pop(output.request_id), elapsed_s)

    def _add(self, request: Request, timed: bool) -> None:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        if len(request.prompt_token_ids) >= self.max_model_len:
            raise UserError(
                f"{request.request_id}: its prompt has {len(request.prompt_token_ids)} tokens, the engine's context"
                f" is {self.max_model_len} (teacher.engine.max_model_len)"
            )
        params = SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=request.max_tokens,
            seed=request.seed,
            logprobs=request.k or None,
            flat_logprobs=bool(request.k),
            detokenize=False,
            ignore_eos=request.ignore_eos,
            output_kind=RequestOutputKind.CUMULATIVE if timed else RequestOutputKind.FINAL_ONLY,
        )
        self._llm.llm_engine.add_request(request.request_id, tokens_input(request.prompt_token_ids), params)


def engine_settings(path: str, engine_args: dict[str, Any], k: int) -> dict[str, Any]:
    """What vLLM is started with, here or as a server: what the contract needs, and defaults that the user overrides."""
    defaults: dict[str, Any] = {"disable_log_stats": True, "use_tqdm_on_load": False}
    if hardware.is_cpu():
        # A chunked prefill rewinds the request's generator, which CPU generators can't do: vLLM would raise.
        defaults |= {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 128}
        defaults |= {"enable_chunked_prefill": False}
    needed = {
        "model": path,
        "max_logprobs": max(k, 1),
        "logprobs_mode": LOGPROBS_MODE,
        "load_format": "safetensors",
    }
    return needed | defaults | engine_args


def check_engine_args(engine_args: dict[str, Any]) -> None:
    """Raises UserError for a name that vLLM's engine does not know, or that Retort sets itself."""
    import dataclasses
    import difflib

    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in engine_args:
        if name in OURS:
            raise UserError(f"teacher.engine.{name} is set by retort itself; remove it")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise UserError(f"teacher.engine.{name} is no argument of vLLM's engine{hint}")
    if int(engine_args.get("data_parallel_size") or 1) > 1:
        raise UserError("teacher.engine.data_parallel_size: one engine is one replica; use tensor_parallel_size")


def _answer(request: Request, completion: Any, first_s: float, total_s: float) -> Answer:
    T = len(completion.token_ids)
    flat = completion.logprobs
    if flat is None:
        ids_TC, logprobs_TC = np.empty((T, 1), np.int32), np.empty((T, 1), np.float32)
    else:
        # column 0 is the sampled token, 1..K are the K best; a sampled token among them stands twice
        ids_TC = np.asarray(flat.token_ids, np.int32).reshape(T, request.k + 1)
        logprobs_TC = np.asarray(flat.logprobs, np.float32).reshape(T, request.k + 1)
    return Answer(
        request=request,
        token_ids=list(completion.token_ids),
        finish_reason=str(completion.finish_reason),
        token_logprobs=logprobs_TC[:, 0],
        ids_TK=ids_TC[:, 1:],
        logprobs_TK=logprobs_TC[:, 1:],
        first_token_s=first_s,
        total_s=total_s,
    )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("For further information", "1 validation error"))]
    return " ".join(useful)[:400]
