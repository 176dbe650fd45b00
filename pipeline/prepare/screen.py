"""Prompts that are left out for what they are like: an evaluation item, or a prompt before them."""

import json
from typing import Any

from pipeline import contamination, duplicates
from pipeline.config import Prepare
from pipeline.prepare.sources import Message, Messages
from pipeline.rundir import Stage
from pipeline.texts import ask, prompt_text, words

CONTAMINATION, NEAR_DUPLICATES = "contamination.jsonl", "near_duplicates.jsonl"


class Screen:
    """Judges prompts in the order of the sources: of two that are alike the first stays, whichever side it is on.

    A prompt on the other side of the split than one like it is left out even where the two ask for something else (see
    `texts.ask`): so no prompt to train on is nearly a held-out one. The lists of what was left out name the twins.
    """

    def __init__(self, settings: Prepare, stage: Stage) -> None:
        self._stage = stage
        self._items = contamination.load(settings.decontaminate)
        threshold = settings.near_duplicates
        self._index = None if threshold is None else duplicates.NearDuplicates(threshold)
        self._taken: list[tuple[str, bool]] = []  # prompt_id, and whether it is held out, by row of the index
        for path in stage.notes():  # of a stage that lost a file and is done again
            path.unlink()

    def fault(
        self,
        place: str,
        prompt_id: str,
        held_out: bool,
        messages: Messages,
        tools: list[Any] | None,
        completion: Message | None,
    ) -> str | None:
        """What a prompt is left out for (`contaminated` or `near_duplicates`), None where it stays."""
        prompt = prompt_text(messages)
        noted = {"prompt_id": prompt_id, "source": place, "text": prompt}
        prompt_words = words(prompt)
        if hits := self._items.hits(prompt_words):
            for hit in hits:
                self._stage.note(CONTAMINATION, {**noted, **hit.row()})
            return "contaminated"
        if self._index is None:
            return None
        if completion is None:
            sketch = duplicates.sketch(prompt_words, words(ask(messages)), _json(tools))
        else:
            core = words(completion["content"] or _json(completion.get("tool_calls")))
            sketch = duplicates.sketch(prompt_words + core, core, _json(tools))
        for twin in self._index.twins(sketch):
            twin_id, twin_held_out = self._taken[twin.row]
            if twin.is_duplicate or twin_held_out != held_out:
                across = twin_held_out != held_out
                found = {"twin_id": twin_id, "jaccard": round(twin.jaccard, 3), "across_split": across}
                self._stage.note(NEAR_DUPLICATES, {**noted, **found})
                return "near_duplicates"
        self._index.add(sketch)
        self._taken.append((prompt_id, held_out))
        return None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
