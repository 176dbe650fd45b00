"""A Request as the body of vLLM's POST /v1/completions, and the reply as a Completion.

The prompt goes as token ids, so that no template and no tokenizer of the server comes between. Candidates come back by
token id ("token_id:N") behind the sampled token, which is listed first and, in some versions, in place of the last one
asked for: so K + 1 are asked for, sorted, and cut at K. JSON knows no −∞: vLLM writes −9999.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from pipeline.codec import FloatArray, IdArray
from pipeline.errors import UserError
from pipeline.inference.engine import Completion, Request

NO_MASS = -9999.0
PROBE_TOKEN = 0
NEUTRAL = {  # else the server fills in what the model's generation_config.json recommends
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class _Shape(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class _Logprobs(_Shape):
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]


class _Scored(_Shape):
    logprob: float
    rank: int


class _Choice(_Shape):
    finish_reason: Literal["stop", "length"]  # others are aborts
    token_ids: list[int]
    prompt_token_ids: list[int]
    logprobs: _Logprobs | None = None
    prompt_logprobs: list[dict[int, _Scored] | None] | None = None


class Reply(_Shape):
    """What is read of a reply. Validation raises ValueError for any other shape."""

    choices: tuple[_Choice]
    system_fingerprint: str | None = None


def body(request: Request, model: str, vocab_size: int, max_model_len: int) -> dict[str, Any]:
    """The JSON body for one request. Raises UserError for text that does not fit the context."""
    prompt = _prompt(request)
    if len(prompt) >= max_model_len:
        what = "prompt has" if request.completion_token_ids is None else "prompt and completion have"
        raise UserError(
            f"{request.request_id}: its {what} {len(prompt)} tokens, the server's context is {max_model_len}"
            " (--max-model-len)"
        )
    if request.completion_token_ids is None and len(prompt) + request.max_tokens > max_model_len:
        raise UserError(
            f"{request.request_id}: its prompt of {len(prompt)} tokens and generate.max_tokens={request.max_tokens}"
            f" exceed the server's context of {max_model_len} (--max-model-len), which would cut the answer short"
        )
    asked = {"model": model, "prompt": prompt, "return_token_ids": True, **NEUTRAL}
    if request.completion_token_ids is not None:
        return asked | {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": request.k}
    return asked | {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "seed": request.seed,
        "ignore_eos": request.ignore_eos,
        "logprobs": asked_logprobs(request.k, vocab_size) if request.k else None,
        "return_tokens_as_token_ids": True,
    }


def asked_logprobs(k: int, vocab_size: int) -> int:
    """How many log-probs a token are asked for where K are wanted."""
    return min(k + 1, vocab_size)


class ReplacedError(Exception):
    """The reply is of a server that was started otherwise than the one that was checked."""


def answer(
    request: Request, content: bytes, vocab_size: int, total_s: float, system_fingerprint: str = ""
) -> Completion:
    """The Completion of a reply to `body`. Its rows are the K best, best first; a row with fewer is padded at −inf.

    Raises ValueError where the reply has another shape, ReplacedError where another server than the one with this
    fingerprint wrote it, UserError where the server answered another prompt.
    """
    reply = Reply.model_validate_json(content)
    if (reply.system_fingerprint or "") != system_fingerprint:
        raise ReplacedError
    (choice,) = reply.choices
    if choice.prompt_token_ids != _prompt(request):
        raise UserError(
            f"{request.request_id}: the server answered another prompt than it was sent ({len(choice.prompt_token_ids)}"
            f" token ids came back for {len(_prompt(request))}): it, or something before it, changes prompts"
        )
    is_scored = request.completion_token_ids is not None
    token_ids, token_logprobs, candidates = _scored(request, choice) if is_scored else _drawn(request, choice)
    if not token_ids or not len(token_ids) == len(token_logprobs) == len(candidates):
        raise ValueError(f"{len(token_ids)} tokens, {len(token_logprobs)} log-probs, {len(candidates)} rows")
    ids_TK, logprobs_TK = _best(candidates, request.k)
    if max(max(token_ids), int(ids_TK.max(initial=0))) >= vocab_size:
        raise UserError(
            f"{request.request_id}: the server's model has tokens beyond the vocabulary of {vocab_size} of"
            " teacher.model: it serves another model"
        )
    return Completion(
        request=request,
        token_ids=token_ids,
        finish_reason="stop" if is_scored else choice.finish_reason,
        token_logprobs=_nats(np.array(token_logprobs, np.float32)),
        ids_TK=ids_TK,
        logprobs_TK=logprobs_TK,
        first_token_s=total_s,
        total_s=total_s,
    )


def probe(model: str, k: int, vocab_size: int) -> dict[str, Any]:
    """A body whose reply tells whether the server gives what `check_probe` wants: enough log-probs, and raw ones."""
    logprobs = min(max(k + 1, 5), vocab_size) if k else None
    request = Request("probe", [PROBE_TOKEN], max_tokens=1, temperature=1.0, seed=0, top_k=1)
    return body(request, model, vocab_size, max_model_len=2) | {"logprobs": logprobs}


def check_probe(content: bytes, url: str) -> str:
    """The server's own fingerprint of its build and settings, "" where it tells none.

    Raises UserError where its log-probs are not those of the alignment contract, ValueError for another shape.
    """
    reply = Reply.model_validate_json(content)
    (choice,) = reply.choices
    if choice.prompt_token_ids != [PROBE_TOKEN]:
        raise UserError(f"{url}: answers another prompt than it is sent: it, or something before it, changes prompts")
    if choice.logprobs is not None:
        (row,) = choice.logprobs.top_logprobs
        masses = np.exp(_nats(np.array(list(row.values()), np.float64)))
        # drawn with top_k=1: processed log-probs have no second candidate, and logits are no log-probs at all
        if np.count_nonzero(masses) < 2 or masses.max() > 1 or masses.sum() > 1.001:
            raise UserError(
                f"{url}: its log-probs are not the model's own over the whole vocabulary; start it with"
                " --logprobs-mode raw_logprobs"
            )
    return reply.system_fingerprint or ""


Candidates = Sequence[dict[int, float]]


def _prompt(request: Request) -> list[int]:
    return [*request.prompt_token_ids, *(request.completion_token_ids or ())]


def _drawn(request: Request, choice: _Choice) -> tuple[list[int], list[float], Candidates]:
    T = len(choice.token_ids)
    if not request.k:
        return choice.token_ids, [float("nan")] * T, [{}] * T
    if choice.logprobs is None:
        raise ValueError("no log-probs")
    rows = [{int(key.removeprefix("token_id:")): p for key, p in row.items()} for row in choice.logprobs.top_logprobs]
    return choice.token_ids, choice.logprobs.token_logprobs, rows


def _scored(request: Request, choice: _Choice) -> tuple[list[int], list[float], Candidates]:
    token_ids = list(request.completion_token_ids or ())
    begin = len(request.prompt_token_ids)
    given = (choice.prompt_logprobs or [])[begin : begin + len(token_ids)]
    if begin == 0 or len(given) < len(token_ids) or None in given:  # the first of all has no row
        raise ValueError("no log-probs of the prompt")
    rows = [row for row in given if row is not None]
    own = [row[token].logprob if token in row else float("nan") for token, row in zip(token_ids, rows, strict=True)]
    if np.isnan(own).any():
        raise ValueError("a token without a log-prob of its own")
    # the token itself is listed whatever its rank
    best = [{token: s.logprob for token, s in row.items() if s.rank <= request.k} for row in rows]
    return token_ids, own, best


def _best(rows: Candidates, k: int) -> tuple[IdArray, FloatArray]:
    """`(ids_TK, logprobs_TK)`: each row's K best, best first; a short row is padded with its first id at −inf."""
    T, C = len(rows), max([k, *map(len, rows)])
    ids_TC, logprobs_TC = np.zeros((T, C), np.int32), np.full((T, C), -np.inf, np.float32)
    for t, row in enumerate(rows):
        ids_TC[t, : len(row)] = list(row)
        logprobs_TC[t, : len(row)] = list(row.values())
    logprobs_TC = _nats(logprobs_TC)
    order_TC = np.argsort(-logprobs_TC, axis=1, kind="stable")[:, :k]
    ids_TK, logprobs_TK = np.take_along_axis(ids_TC, order_TC, 1), np.take_along_axis(logprobs_TC, order_TC, 1)
    for t, row in enumerate(rows):
        ids_TK[t, len(row) :] = ids_TK[t, :1]
    return ids_TK, logprobs_TK


def _nats(logprobs: Any) -> Any:
    """−9999 is how vLLM writes −∞."""
    logprobs[logprobs <= NO_MASS] = -np.inf
    return logprobs
