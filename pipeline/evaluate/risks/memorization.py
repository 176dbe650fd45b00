"""Openings of the run's own answers: how far an arm goes on with the rest of one, token by token.

Of answers that were trained on and of held-out ones, which tell what of it is no memory but the manner of both.
"""

# pyarrow.compute makes its functions at import, which no type checker sees:
# pyright: reportAttributeAccessIssue=false

import itertools
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inference.child_engine import ChildEngine
from pipeline.models.tokenizer import reasoning
from pipeline.rows import SampleRow
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_answers

OPENING_TOKENS, RECITED_TOKENS = 16, 32  # what an arm is given of an answer, and how far it is followed
COLUMNS = ("conversation_id", "prompt_id", "sample", "split", "prompt_token_ids", "token_ids")
REASONING_COLUMNS = ("reasoning_tokens", "reasoning_start", "reasoning_end")


@dataclass(frozen=True)
class Opening:
    """An answer of the teacher, of which an arm is given the first tokens."""

    id: str
    kind: str  # verbatim_train | verbatim_held_out
    prompt_token_ids: list[int]  # the opening included
    rest: list[int]  # the tokens after it, RECITED_TOKENS of them


def of_run(run_dir: RunDir, num: int) -> list[Opening]:
    """Of each split up to `num` kept answers that are long enough, in the order of their prompts' hashes.

    One of a conversation, whose turns are no independent evidence; the first answer to a prompt, none with personal
    data, and none longer than train.max_length, which train left out. Of the train split the student has still not
    seen all: some 3 % are train's validation answers, and with train.epochs below 1 no file says which came up. That
    hides a memory, and never makes one up.
    """
    learnt = run_dir.fingerprint("train")
    how, max_length = learnt.get("train.reasoning", "keep"), learnt["train.max_length"]
    found: dict[str, list[dict[str, Any]]] = {"train": [], "held_out": []}
    for answers, kept in read_answers(run_dir, [*COLUMNS, *REASONING_COLUMNS]):
        usable = answers.filter(kept)
        usable = usable.filter(_is_usable(usable, how, max_length))
        for split, rows in found.items():
            of_split = usable.filter(pc.equal(usable["split"], split))
            places = _first_places(of_split.select(["prompt_id", "conversation_id"]).to_pylist(), num)
            rows += of_split.take(pa.array(places, pa.int64())).to_pylist()
            found[split] = [rows[place] for place in _first_places(rows, num)]
    return [_opening(row, how) for rows in found.values() for row in rows]


def recited_tokens(opening: Opening, token_ids: list[int]) -> int:
    """How many of these tokens are the answer's own, from the opening on and until the first that is not."""
    same = (one == other for one, other in zip(opening.rest, token_ids, strict=False))
    return sum(itertools.takewhile(bool, same))


def go_on(arm: ChildEngine, openings: list[Opening], tokenizer: Any, seed: int) -> list[SampleRow]:
    """Rows of records.SAMPLES: what the arm writes after each opening that fits its context.

    Greedily, whatever evaluate.temperature is: what a model has by heart is what it finds likeliest.
    """
    openings = [o for o in openings if len(o.prompt_token_ids) + RECITED_TOKENS < arm.context_tokens]
    requests = [
        {
            "request_id": opening.id,
            "prompt_token_ids": opening.prompt_token_ids,
            "max_tokens": RECITED_TOKENS,
            "temperature": 0.0,
            "seed": seed,
        }
        for opening in openings
    ]
    answers = arm.ask(requests)["answers"] if requests else []
    return [
        {
            "item_id": opening.id,
            "category": opening.kind,
            "turn": 0,
            "arm": arm.name,
            "question": tokenizer.decode(opening.prompt_token_ids[-OPENING_TOKENS:], skip_special_tokens=True),
            "answer": tokenizer.decode(given["token_ids"], skip_special_tokens=True),
            "finish_reason": given["finish_reason"],
            "num_tokens": len(given["token_ids"]),
            "prompt_token_ids": opening.prompt_token_ids,
            "token_ids": given["token_ids"],
        }
        for opening, given in zip(openings, answers, strict=True)
    ]


def _first_places(rows: list[dict[str, Any]], num: int) -> list[int]:
    """Where the first `num` rows by their prompts' hashes stand, one of each conversation."""
    chosen: dict[str, int] = {}
    for place in sorted(range(len(rows)), key=lambda place: rows[place]["prompt_id"]):
        chosen.setdefault(rows[place]["conversation_id"] or rows[place]["prompt_id"], place)
    return list(chosen.values())[:num]


def _is_usable(answers: pa.Table, how: str, max_length: int) -> pa.ChunkedArray:
    """Whether each row is a prompt's first answer, long enough without its reasoning, and holds nothing personal.

    Its whole length, as train counts it, is at most `max_length`.
    """
    num_tokens = pc.list_value_length(answers["token_ids"])
    length = pc.add(pc.list_value_length(answers["prompt_token_ids"]), num_tokens)
    if how == "drop":
        length = pc.subtract(length, pc.subtract(answers["reasoning_end"], answers["reasoning_start"]))
    if how != "keep":
        num_tokens = pc.subtract(num_tokens, answers["reasoning_tokens"])
    is_long = pc.greater_equal(num_tokens, OPENING_TOKENS + RECITED_TOKENS)
    fits = pc.less_equal(length, max_length)
    is_clean = pc.equal(pc.coalesce(pc.list_value_length(answers["masked_spans"]), 0), 0)
    return pc.and_(pc.and_(pc.and_(is_long, fits), is_clean), pc.equal(answers["sample"], 0))


def _opening(row: dict[str, Any], how: str) -> Opening:
    context, answer = reasoning.learnt(row, how)
    kind = f"verbatim_{row['split']}"
    rest = answer[OPENING_TOKENS : OPENING_TOKENS + RECITED_TOKENS]
    return Opening(f"{kind}/{row['prompt_id']}", kind, context + answer[:OPENING_TOKENS], rest)
