"""Prompts that are left out for what they are like: an evaluation item, or a prompt before them."""

import json
import sqlite3

from pipeline.config import Config
from pipeline.prepare.conversations import Asked
from pipeline.run.commit import Stage
from pipeline.text import contamination, duplicates
from pipeline.text.boilerplate import Boilerplate, Text
from pipeline.text.duplicates import Sketch, Twin
from pipeline.text.words import ask, prompt_text, words

CONTAMINATION, NEAR_DUPLICATES = NOTES = "contamination.jsonl", "near_duplicates.jsonl"


class PromptComparison:
    """Judges prompts in the order of the sources: of two that are alike the first stays, whichever side it is on.

    A prompt on the other side of the split than one like it is left out even where the two ask for something else (see
    `texts.ask`): so no prompt to train on is nearly a held-out one. On its own side a prompt has to ask for the same,
    and one whose answer is to be scored to have nearly the same answer. The lists of what was left out name the twins.
    What many prompts share, as an instruction, makes none of them alike.
    """

    def __init__(self, config: Config, stage: Stage, database: sqlite3.Connection, boilerplate: Boilerplate) -> None:
        self._stage, self._boilerplate = stage, boilerplate
        self._items = contamination.load(contamination.sets_of(config), config.privacy)
        threshold = config.prepare.near_duplicates
        self._prompts, self._answered = (
            None if threshold is None else duplicates.NearDuplicates(threshold, database, table)
            for table in ("prompt", "answered")
        )
        self._held_out: set[str] = set()  # prompt_ids of those that were taken
        for name in (CONTAMINATION, NEAR_DUPLICATES):  # of a stage that stopped, or lost a file, and is done again
            (stage.path / name).unlink(missing_ok=True)

    def fault(self, asked: Asked, is_held_out: bool) -> str | None:
        """What a prompt is left out for (`contaminated` or `near_duplicates`), None where it stays."""
        prompt, prompt_id = prompt_text(asked.messages), asked.identifier()
        noted = {"prompt_id": prompt_id, "source": asked.place, "text": prompt}
        prompt_words = words(prompt)
        if hits := self._items.hits(prompt_words):
            for row in contamination.rows(hits):
                self._stage.note(CONTAMINATION, {**noted, **row})
            return "contaminated"
        alone, scored = self._sketches(asked, prompt_words)
        if twin := self._twin(prompt_id, alone, scored, is_held_out):
            found = {"twin_id": twin.name, "jaccard": round(twin.jaccard, 3)}
            across_split = (twin.name in self._held_out) != is_held_out
            self._stage.note(NEAR_DUPLICATES, {**noted, **found, "across_split": across_split})
            return "near_duplicates"
        if is_held_out:
            self._held_out.add(prompt_id)
        return None

    def keep(self, asked: Asked, prompt_id: str, is_held_out: bool) -> None:
        """Take a prompt that the run has, whatever it is like."""
        alone, scored = self._sketches(asked, words(prompt_text(asked.messages)))
        self._add(prompt_id, alone, scored)
        if is_held_out:
            self._held_out.add(prompt_id)

    def _sketches(self, asked: Asked, prompt: list[str]) -> tuple[Sketch, Sketch | None]:
        """Of a prompt, given its words, and of the prompt with the answer to be scored."""
        tools = json.dumps(asked.tools, ensure_ascii=False)
        prompt = self._boilerplate.compared(prompt, asked.messages)
        core = words(asked.question or ask(asked.messages))
        alone = duplicates.sketch(prompt, core, tools, self._boilerplate)
        if asked.completion is None:
            return alone, None
        answer = words(_answer(asked))
        return alone, duplicates.sketch([*prompt, *answer], answer, tools, self._boilerplate)

    def _twin(self, prompt_id: str, asked: Sketch, scored: Sketch | None, held_out: bool) -> Twin | None:
        """A prompt taken before that this one can't stand beside; where there is none, this one is taken."""
        if self._prompts is None or self._answered is None:
            return None
        alike = self._prompts.twins(asked)
        twins = [twin for twin in alike if (twin.name in self._held_out) != held_out]
        twins += [twin for twin in (self._answered.twins(scored) if scored else alike) if twin.is_duplicate]
        if twins:
            return twins[0]
        self._add(prompt_id, asked, scored)
        return None

    def _add(self, prompt_id: str, asked: Sketch, scored: Sketch | None) -> None:
        if self._prompts is None or self._answered is None:
            return
        self._prompts.add(asked, prompt_id)
        if scored:
            self._answered.add(scored, prompt_id)


def text_of(asked: Asked) -> Text:
    """What a conversation is compared by."""
    return Text.of(asked.messages, _answer(asked))


def _answer(asked: Asked) -> str:
    """The answer to be scored: its text, or else its calls of tools; empty where the teacher gives its own."""
    if asked.completion is None:
        return ""
    return asked.completion["content"] or json.dumps(asked.completion.get("tool_calls"), ensure_ascii=False)
