"""What an answer is held against beyond its own text: evaluation items, and the answers that were kept before it."""

import sqlite3
from typing import Any

from pipeline.config import Config, EvaluationSet
from pipeline.filter.rules import Verdict
from pipeline.rows import DecisionRow
from pipeline.run.commit import Stage
from pipeline.run.rundir import RunDir
from pipeline.screening import privacy
from pipeline.text import contamination, duplicates
from pipeline.text.boilerplate import Boilerplate
from pipeline.text.words import prompt_text, words

REASONS = ("contaminated", "near_duplicate")
AMONG_KEPT = ("near_duplicate",)  # answers that all else kept are compared, and no others
CONTAMINATION, NEAR_DUPLICATES = "contamination.jsonl", "near_duplicates.jsonl"


def prepared_sets(config: Config, run_dir: RunDir) -> tuple[EvaluationSet, ...]:
    """The evaluation sets that prepare held its prompts against; the config's, where a version before them made it."""
    made_with = run_dir.fingerprint("prepare").get("prepare.decontaminate")
    if made_with is None:
        return config.prepare.decontaminate
    return tuple(EvaluationSet.model_validate(each) for each in made_with)


def fingerprint(config: Config, run_dir: RunDir) -> dict[str, Any]:
    """The evaluation sets of prepare, and the hashes of all sets that are files or local folders."""
    prepared = prepared_sets(config, run_dir)
    settings = "prepare.decontaminate, filter.decontaminate"
    hashes = contamination.content_hashes([*prepared, *config.filter.decontaminate], settings)
    return {
        "prepare.decontaminate": [each.model_dump(mode="json") for each in prepared],
        **{f"decontaminate.{name}": value for name, value in hashes.items()},
    }


class ResponseComparison:
    """Evaluation items, and the answers kept so far; of two that are alike the first stays, whichever side it is on.

    The answers are held in the database: duplicates.NearDuplicates. What many of them share makes none alike.
    """

    def __init__(
        self, config: Config, run_dir: RunDir, stage: Stage, database: sqlite3.Connection, boilerplate: Boilerplate
    ) -> None:
        self._stage, self._privacy, self._boilerplate = stage, config.privacy, boilerplate
        self._items = contamination.load(
            [*prepared_sets(config, run_dir), *config.filter.decontaminate], config.privacy
        )
        threshold = config.filter.near_duplicates
        self._kept = None if threshold is None else duplicates.NearDuplicates(threshold, database, "kept")
        for path in stage.notes():  # of a stage that lost a file and is done again
            path.unlink()

    def decide(self, row: dict[str, Any], messages: list[dict[str, Any]], decision: DecisionRow) -> None:
        """Complete filter's decision about an answer to these messages: scores, by reason, and reasons to drop it."""
        for name, (score, keep) in self._verdicts(row, messages, decision["kept"]).items():
            decision["scores"].append((name, score))
            if not keep:
                decision["reasons"].append(name)
                decision["kept"] = False

    def _verdicts(self, row: dict[str, Any], messages: list[dict[str, Any]], is_kept: bool) -> dict[str, Verdict]:
        """`near_duplicate` only of an answer that all else kept, which is held from then on.

        contaminated: the largest share of an evaluation item that its prompt or its answer repeats.
        near_duplicate: the Jaccard similarity with an answer before, prompts included, where the answers are as near.
        """
        if self._kept is None and not len(self._items):
            return {}
        prompt, verdicts = prompt_text(messages), {}
        prompt_words, answer_words = words(prompt), words(row["text"])
        if len(self._items):
            parts = {"prompt": (prompt, prompt_words), "answer": (row["text"], answer_words)}
            verdicts["contaminated"] = self._contaminated(row["response_id"], parts)
            is_kept = is_kept and verdicts["contaminated"][1]
        if self._kept is not None and is_kept:
            asked = self._boilerplate.compared(prompt_words, messages)
            sketch = duplicates.sketch([*asked, *answer_words], answer_words, boilerplate=self._boilerplate)
            verdicts["near_duplicate"] = self._near_duplicate(row["response_id"], sketch, self._kept)
        return verdicts

    def _contaminated(self, response_id: str, parts: dict[str, tuple[str, list[str]]]) -> Verdict:
        found = [(part, text, hit) for part, (text, each) in parts.items() for hit in self._items.hits(each)]
        for part, text in {part: text for part, text, _ in found}.items():
            told = {"response_id": response_id, "part": part, "text": privacy.shown(text, self._privacy)}
            for row in contamination.rows([hit for of, _, hit in found if of == part]):
                self._stage.note(CONTAMINATION, {**told, **row})
        return max((hit.covered_frac for _, _, hit in found), default=0.0), not found

    def _near_duplicate(self, response_id: str, sketch: duplicates.Sketch, kept: duplicates.NearDuplicates) -> Verdict:
        twins = [twin for twin in kept.twins(sketch) if twin.is_duplicate]
        if twins:
            nearest = max(twins, key=lambda twin: twin.jaccard)
            found = {"twin_id": nearest.name, "jaccard": round(nearest.jaccard, 3)}
            self._stage.note(NEAR_DUPLICATES, {"response_id": response_id, **found})
            return nearest.jaccard, False
        kept.add(sketch, response_id)
        return 0.0, True


class ExactDuplicates:
    """Keys of answers, and whether one that has it was kept; held in the database, 40 bytes a key."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._execute = database.execute
        self._execute("CREATE TABLE exact (key BLOB PRIMARY KEY, kept INTEGER) WITHOUT ROWID")

    def of_kept(self, key: bytes) -> bool | None:
        """Whether an answer of this key was kept; None where there was none of it."""
        held = self._execute("SELECT kept FROM exact WHERE key = ?", (key,)).fetchone()
        return None if held is None else bool(held[0])

    def hold(self, key: bytes, kept: bool) -> None:
        self._execute("INSERT OR REPLACE INTO exact VALUES (?, ?)", (key, kept))
