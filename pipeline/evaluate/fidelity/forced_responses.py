"""The texts that fidelity is measured on: the teacher's held-out answers, and each arm's to the chat set."""

from collections.abc import Iterable, Iterator
from itertools import islice, takewhile

import pyarrow.compute as pc

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.models.forward.forced import ForcedResponse
from pipeline.models.tokenizer import reasoning
from pipeline.records import UNCATEGORISED
from pipeline.rows import SampleRow
from pipeline.run import left_out
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_answers

NOTHING_LEARNT = "no held-out answer holds anything that train.reasoning lets a student learn"
COLUMNS = ["conversation_id", "sample", "split", "category", "prompt_token_ids", "token_ids"]


def held_out(config: Config, run_dir: RunDir) -> Iterator[ForcedResponse]:
    """The teacher's answers to held-out prompts that filter kept, shard by shard; where evaluate.held_out_responses
    limits them, the first to each prompt before the second to any.

    What is measured of an answer is what training learnt of one (train.reasoning), given the same context.
    Raises UserError where there are none.
    """
    limit = config.evaluate.held_out_responses
    num_samples = run_dir.fingerprint("generate")["generate.num_samples"]
    turns = [pc.scalar(True)] if limit is None else [pc.field("sample") == sample for sample in range(num_samples)]
    texts = (text for turn in turns for text in _held_out(run_dir, turn))
    first = next(texts, None)
    if first is None:
        filtered = run_dir.manifest("filter")
        is_none_kept = filtered["counts"]["kept"] == filtered["counts"]["kept_train"]
        raise UserError(f"evaluate: {left_out.of_held_out_answers(filtered) if is_none_kept else NOTHING_LEARNT}")
    yield first
    yield from islice(texts, None if limit is None else limit - 1)


def of_arm(rows: Iterable[SampleRow], arm: str, vocab_size: int) -> Iterator[ForcedResponse]:
    """An arm's chat answers (rows of records.SAMPLES); the turns of an item are one cluster."""
    texts = (of_row(row, vocab_size) for row in rows if row["arm"] == arm)
    yield from (text for text in texts if text.token_ids)


def of_row(row: SampleRow, vocab_size: int) -> ForcedResponse:
    """A chat answer, which ends before an id that the teacher has no embedding for; it may be empty.

    A student padded wider than its teacher may draw one.
    """
    token_ids = list(takewhile(lambda token: token < vocab_size, row["token_ids"]))
    groups = {"turn": str(row["turn"] + 1), "category": row["category"] or UNCATEGORISED}
    return ForcedResponse(row["item_id"], row["prompt_token_ids"], token_ids, groups)


def _held_out(run_dir: RunDir, chosen: pc.Expression) -> Iterator[ForcedResponse]:
    how = run_dir.fingerprint("train").get("train.reasoning", "keep")
    for answers, kept in read_answers(run_dir, [*COLUMNS, "reasoning_tokens", "reasoning_start", "reasoning_end"]):
        for row in answers.filter(kept).filter((pc.field("split") == "held_out") & chosen).to_pylist():
            text = ForcedResponse(
                row["conversation_id"], *reasoning.learnt(row, how), {"category": row["category"] or UNCATEGORISED}
            )
            if text.token_ids:
                yield text
