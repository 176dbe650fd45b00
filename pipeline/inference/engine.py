"""vLLM, and the only module that imports it: token ids in, token ids and raw log-probs out, as they finish.

The tokens are drawn, or those of a text that exists: then its log-probs are vLLM's `prompt_logprobs`.
"""

import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.codec import FloatArray, IdArray
from pipeline.errors import UserError
from pipeline.inference import kv_cache
from pipeline.inference.engine_args import engine_settings
from pipeline.inference.kv_cache import Load
from pipeline.machine import hardware
from pipeline.run.files import one_line

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
    """One answer to be drawn, or scored."""

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
class Completion:
    """One answer drawn or scored: T tokens, the end-of-turn included, and row t of the log-probs for token t."""

    request: Request
    token_ids: list[int]
    finish_reason: str  # stop | length
    token_logprobs: FloatArray  # (T,) nats, of the answer's tokens
    ids_TK: IdArray  # the K best, best first
    logprobs_TK: FloatArray  # nats
    first_token_s: float  # since the request was handed to the engine
    total_s: float


class Engine:
    """A vLLM engine in this process (its workers, where there are several, are vLLM's own)."""

    def __init__(
        self, path: str, engine_args: dict[str, Any], k: int = 0, load: Load | None = None, scoring: bool = False
    ) -> None:
        """`load` is what it will be asked; `scoring` sets it up for requests with `completion_token_ids`.

        Any engine takes those, with more memory. Raises UserError where vLLM refuses the settings, or there is no room
        for one request's KV cache.
        """
        os.environ.update({k: v for k, v in hardware.vllm_environment().items() if k not in os.environ})
        check_engine_args(engine_args)
        load, settings = load or Load(), engine_settings(path, engine_args, k, scoring)
        try:
            self._llm = kv_cache.start(settings, load, _llm)
        except (ValueError, TypeError) as error:  # pydantic's ValidationError is a ValueError
            raise UserError(f"teacher.engine: vLLM refuses these settings: {_reason(error)}") from None
        _watch(self._llm.llm_engine.engine_core)
        config = self._llm.llm_engine.vllm_config
        self.max_num_seqs: int = config.scheduler_config.max_num_seqs
        self.max_model_len: int = config.model_config.max_model_len
        kv_cache.check_context(self.max_model_len, settings, load)
        self.vocab_size: int = config.model_config.get_vocab_size()
        self.dtype = str(config.model_config.dtype).removeprefix("torch.")
        if k > self.vocab_size:
            raise UserError(f"generate.k={k} is above the teacher's vocabulary of {self.vocab_size}")

    def answers(self, requests: Iterable[Request], timed: bool = False) -> Iterator[Completion]:
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
            outputs: list[Any] = _step(engine)
            for output in outputs:
                request, began = waiting[output.request_id]
                elapsed_s = time.perf_counter() - began
                first_s.setdefault(output.request_id, elapsed_s)
                if not output.finished:
                    continue
                if _reaches_into_completion(request, output):
                    self._add(request, timed, reuse=False)
                    continue
                del waiting[output.request_id]
                yield _answer(request, output, first_s.pop(output.request_id), elapsed_s)

    def _add(self, request: Request, timed: bool, reuse: bool = True) -> None:
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        completion = request.completion_token_ids
        token_ids = [*request.prompt_token_ids, *(completion or ())]
        if len(token_ids) >= self.max_model_len:
            raise UserError(
                f"{request.request_id}: its prompt has {len(token_ids)} tokens, the engine's context"
                f" is {self.max_model_len} (teacher.engine.max_model_len)"
            )
        shared: dict[str, Any] = {
            "flat_logprobs": bool(request.k) or completion is not None,
            "detokenize": False,
            "output_kind": RequestOutputKind.CUMULATIVE if timed else RequestOutputKind.FINAL_ONLY,
        }
        if completion is None:
            params = SamplingParams(
                temperature=request.temperature,
                top_p=request.top_p,
                top_k=request.top_k,
                max_tokens=request.max_tokens,
                seed=request.seed,
                logprobs=request.k or None,
                ignore_eos=request.ignore_eos,
                **shared,
            )
        else:  # vLLM draws a token at the least; it is thrown away
            params = SamplingParams(
                temperature=0.0,
                max_tokens=1,
                prompt_logprobs=request.k,
                skip_reading_prefix_cache=not reuse,
                **shared,
            )
        self._llm.llm_engine.add_request(request.request_id, tokens_input(token_ids), params)


def _llm(settings: dict[str, Any]) -> Any:
    """vLLM with these settings. Raises RefusedError if it finds too little memory for the KV cache."""
    from vllm import LLM

    gc.collect()  # the weights of one that was refused its cache
    try:
        with _hidden(kv_cache.VARIABLE):  # it has been read, and vLLM knows whole GiB alone
            return LLM(**settings)
    except (ValueError, RuntimeError) as error:
        kv_cache.check_refused(str(error))
        raise


@contextlib.contextmanager
def _hidden(variable: str) -> Iterator[None]:
    """Without this variable in the environment, for the time being."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def _watch(client: Any) -> None:
    """Have `step` raise when the engine's own process dies: vLLM notes that, and leaves `step` waiting for ever."""
    from vllm.v1.engine.core_client import SyncMPClient
    from vllm.v1.engine.exceptions import EngineDeadError

    if not isinstance(client, SyncMPClient):
        return
    resources, outputs = client.resources, client.outputs_queue

    def wake() -> None:
        while not resources.engine_dead:
            time.sleep(1)
        outputs.put_nowait(EngineDeadError())

    threading.Thread(target=wake, daemon=True, name="engine watch").start()


def _step(engine: Any) -> list[Any]:
    """What finished or went on. Raises UserError where the engine's own process, where it has one, is gone."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        return engine.step()
    except EngineDeadError:
        raise UserError("vLLM's engine process died (see its messages above); run the same command to resume") from None


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
            raise UserError(f"teacher.engine.{name} is not an argument of vLLM's engine{hint}")
    if int(engine_args.get("data_parallel_size") or 1) > 1:
        raise UserError("teacher.engine.data_parallel_size: one engine is one replica; use tensor_parallel_size")


def _reaches_into_completion(request: Request, output: Any) -> bool:
    """Whether vLLM took positions from its prefix cache, and so without log-probs, whose log-probs are wanted."""
    wanted_from = len(request.prompt_token_ids) - 1  # the position that predicts the completion's first token
    return request.completion_token_ids is not None and (output.num_cached_tokens or 0) > wanted_from


def _answer(request: Request, output: Any, first_s: float, total_s: float) -> Completion:
    drawn = output.outputs[0]
    scored = request.completion_token_ids
    token_ids = list(drawn.token_ids if scored is None else scored)
    ids_TC, logprobs_TC = _rows(drawn.logprobs if scored is None else output.prompt_logprobs, request.k, len(token_ids))
    if scored is not None and ids_TC[:, 0].tolist() != token_ids:
        raise RuntimeError(f"{request.request_id}: vLLM's log-probs are not those of the text that was to be scored")
    return Completion(
        request=request,
        token_ids=token_ids,
        finish_reason=str(drawn.finish_reason) if scored is None else "stop",
        token_logprobs=logprobs_TC[:, 0],
        ids_TK=ids_TC[:, 1:],
        logprobs_TK=logprobs_TC[:, 1:],
        first_token_s=first_s,
        total_s=total_s,
    )


def _rows(flat: Any, k: int, T: int) -> tuple[IdArray, FloatArray]:
    """The last T rows of vLLM's flat log-probs: a prompt's rows come before its completion's.

    Column 0 is the answer's token, 1..K are the K best; an answer's token among them stands twice.
    """
    if flat is None:
        return np.empty((T, 1), np.int32), np.empty((T, 1), np.float32)
    first = len(flat.token_ids) - T * (k + 1)
    shape = (T, k + 1)
    return (
        np.asarray(flat.token_ids[first:], np.int32).reshape(shape),
        np.asarray(flat.logprobs[first:], np.float32).reshape(shape),
    )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("For further information", "1 validation error"))]
    return one_line(" ".join(useful))
