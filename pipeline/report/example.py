"""One example carried through every stage, as plain text that is safe in a terminal."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline import codec
from pipeline import config as config_module
from pipeline.console import counted, escaped
from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.models.tokenizer import reasoning
from pipeline.report import ids
from pipeline.report.figures import NONE, rule_unit, setting_text, words
from pipeline.run import artifacts
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_shards

Row = dict[str, Any]
NUM_TOKENS = 12
NUM_ALTERNATIVES = 5


def describe(run_dir: RunDir, given: str | None) -> str:
    """Prompt, answer, first tokens with their alternatives, and what filter decided, of one response.

    `given` is the id of a response, or of a prompt (then its first response is shown), or the beginning of one; None
    is the first response that was kept. Raises UserError if there is no such id, prepare has not finished, or a file is
    damaged.
    """
    run_dir.manifest("prepare")
    chosen = None if given is None else ids.named(run_dir, given)
    response = _response(run_dir, chosen)
    prompt_id = response["prompt_id"] if response else chosen and chosen.prompt_id
    prompt = _find(run_dir, "prepare", "prompt_id", prompt_id)
    if prompt is None:
        raise UserError(f"{run_dir.path}: no prompt has the id {prompt_id!r}; see {run_dir.path}/prepare")
    lines = [*_prompt_lines(prompt), *_answer_lines(run_dir, response), *_filter_lines(run_dir, response)]
    lines += [*_train_lines(run_dir, response), _stage_line(run_dir, "evaluate")]
    return "\n".join(lines) + "\n"


def _response(run_dir: RunDir, chosen: ids.Named | None) -> Row | None:
    """The row of RESPONSES that is asked for; None where generate has not finished."""
    if not run_dir.is_done("generate"):
        return None
    if chosen is None:
        kept = _find(run_dir, "filter", "kept", True) if run_dir.is_done("filter") else None
        return _find(run_dir, "generate", "response_id", kept["response_id"] if kept else None)
    return _find(run_dir, "generate", "response_id", chosen.response_ids[0])


def _find(run_dir: RunDir, stage: str, column: str, value: Any) -> Row | None:
    """The first row of a stage whose column has the value, or just the first row where the value is None."""
    names = [f["name"] for f in run_dir.manifest(stage)["files"] if f["name"].endswith(".parquet")]
    for name, table in zip(names, read_shards(run_dir, stage, [column]), strict=True):
        values = table.column(column).to_pylist()
        if value is None and values:
            value = values[0]
        if value in values:
            whole = pq.read_table(run_dir.stage_path(stage) / name)
            return whole.slice(values.index(value), 1).to_pylist()[0]
    return None


def _prompt_lines(prompt: Row) -> Iterator[str]:
    yield f"PROMPT {prompt['prompt_id']}"
    yield f"  split {prompt['split']} · category {escaped(prompt['category'] or NONE)} · {escaped(prompt['source'])}"
    yield f"  {len(prompt['prompt_token_ids'])} prompt tokens, the chat template applied"
    if prompt.get("tools"):
        yield f"  tools: {escaped(prompt['tools'])}"
    for message in prompt["messages"]:
        yield f"  [{escaped(message['role'])}]"
        for part in ("reasoning_content", "content", "tool_calls"):
            if message.get(part):
                yield from _indented(message[part])


def _answer_lines(run_dir: RunDir, response: Row | None) -> Iterator[str]:
    yield ""
    if response is None:
        yield _stage_line(run_dir, "generate")
        return
    yield f"ANSWER {response['response_id']}"
    yield f"  {counted(len(response['token_ids']), 'token')} · finish reason {response['finish_reason']}"
    if response.get("reasoning_tokens"):
        yield f"  the first {response['reasoning_tokens']} are reasoning:"
        yield from _indented(response["reasoning"])
        yield "  the answer:"
    yield from _indented(response["text"])
    yield ""
    yield from _token_lines(run_dir, response)


def _token_lines(run_dir: RunDir, response: Row) -> Iterator[str]:
    """A line per token: number, piece, log-prob in nats, the likeliest tokens with probabilities, the tail's mass."""
    try:
        ids_NK, logprobs_NK, log_tail_N = codec.decode(response["logprobs"])
    except ValueError as error:
        raise UserError(f"response {response['response_id']}: {error}; generate again: --fresh") from None
    shown = response["token_ids"][:NUM_TOKENS]
    num_draws = response["logprobs"]["num_draws"]
    stored = f"{num_draws} draws for each" if num_draws else f"up to {ids_NK.shape[1]} log-probs for each"
    yield f"FIRST {len(shown)} OF {len(response['token_ids'])} TOKENS, stored with {stored}"
    pieces = _Pieces(run_dir)
    if pieces.problem:
        yield f"  tokens are shown by id: {pieces.problem}"
    yield f"  {'t':>3}  {'token':<18} {'nats':>7}  likeliest tokens, and the tail: the mass of all others"
    rows = zip(shown, response["token_logprobs"], ids_NK, logprobs_NK, log_tail_N, strict=False)
    for t, (token, logprob, ids_K, logprobs_K, log_tail) in enumerate(rows):
        best = zip(ids_K[:NUM_ALTERNATIVES], logprobs_K[:NUM_ALTERNATIVES], strict=True)
        known = ((int(other), value) for other, value in best if value > -np.inf)
        alternatives = "  ".join(f"{pieces.of(other)} {_percent(value)}" for other, value in known)
        yield f"  {t:>3}  {pieces.of(token):<18} {logprob:>7.3f}  {alternatives}  tail {_percent(log_tail)}"


class _Pieces:
    """Token ids as quoted text, by the teacher's tokenizer; by number where that can't be had."""

    def __init__(self, run_dir: RunDir) -> None:
        self.problem = ""
        try:
            teacher = config_module.load(run_dir.path / artifacts.CONFIG).teacher
            self._tokenizer = lookup.find(teacher.model, teacher.revision).tokenizer()
        except UserError as error:
            self.problem = escaped(str(error))

    def of(self, token: int) -> str:
        if self.problem:
            return f"#{token}"
        text = self._tokenizer.decode([token])
        if not text or "\ufffd" in text:  # part of a character, whose bytes say more
            text = self._bytes(token)
        return f'"{escaped(text)}"'

    def _bytes(self, token: int) -> str:
        """`<F0 9F>` where the vocabulary spells bytes as letters (byte-level BPE), else its own name of the token."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        name = self._tokenizer.convert_ids_to_tokens(token)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if name is None or "ByteLevel" not in str(getattr(backend, "decoder", "")):
            return name or f"#{token}"
        byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
        return f"<{' '.join(f'{byte_of[letter]:02X}' for letter in name)}>" if set(name) <= byte_of.keys() else name


def _filter_lines(run_dir: RunDir, response: Row | None) -> Iterator[str]:
    yield ""
    if response is None or not run_dir.is_done("filter"):
        yield _stage_line(run_dir, "filter")
        return
    decision = _find(run_dir, "filter", "response_id", response["response_id"])
    if decision is None:
        yield "filter: has no decision about this response; filter again: --fresh"
        return
    reasons = ", ".join(words(reason) for reason in decision["reasons"])
    yield "FILTER kept" if decision["kept"] else f"FILTER dropped: {reasons}"
    manifest = run_dir.manifest("filter")
    settings, limits = manifest.get("settings", {}), manifest.get("limits")
    yield f"  {'rule':<20} {'score':>8} {'':<13}  setting"
    for rule, score in decision["scores"]:
        mark = "  ← dropped" if rule in decision["reasons"] else ""
        unit = rule_unit(rule, settings)
        yield f"  {words(rule):<20} {score:>8.4g} {unit:<13}  {setting_text(rule, settings, limits)}{mark}"


def _train_lines(run_dir: RunDir, response: Row | None) -> Iterator[str]:
    yield ""
    if response is None or not run_dir.is_done("train"):
        yield _stage_line(run_dir, "train")
        return
    decision = _find(run_dir, "filter", "response_id", response["response_id"]) if run_dir.is_done("filter") else None
    made = run_dir.fingerprint("train")
    context, answer = reasoning.learnt(response, made.get("train.reasoning", "keep"))
    length = len(context) + len(answer)
    limit = made.get("train.max_length")
    if decision is None:
        reason = "done; filter's decision about this answer is missing, so it may not be among those trained on"
    elif not decision["kept"]:
        reason = "left out: filter dropped it"
    elif response["split"] != "train":
        reason = f"left out: its prompt is of the {response['split']} split"
    elif limit is not None and length > limit:
        reason = f"left out: {length} tokens with its prompt, above train.max_length = {limit}"
    else:
        reason = f"learnt from it, {length} tokens with its prompt"
    yield f"train: {reason}"


def _stage_line(run_dir: RunDir, stage: str) -> str:
    if run_dir.is_done(stage):
        return f"{stage}: done"
    begun = (run_dir.stage_path(stage) / artifacts.STARTED).is_file()
    return f"{stage}: begun, not finished" if begun else f"{stage}: not run yet"


def _indented(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        yield f"    {escaped(line)}".rstrip()


def _percent(logprob: float) -> str:
    """A probability that is given by its natural logarithm."""
    return f"{100 * math.exp(logprob):.1f}%"
