"""What is done with a conversation before it is a prompt: personal data taken out, labels given, its licence seen."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from pipeline.config import Config, Source, output_settings
from pipeline.console import counted, say
from pipeline.prepare.conversations import Asked
from pipeline.screening import licences, privacy, safety

BATCH = 256  # conversations that are labelled together

Row = dict[str, Any]


class Screening:
    """Privacy, safety and licences of the prompts of a run."""

    def __init__(self, config: Config) -> None:
        self._config, self._labeller = config, safety.Labeller(config.safety)
        self._found: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._prompts: Counter[str] = Counter(personal=0, labelled=0, dropped_personal=0, dropped_unsafe=0)
        self._licences: Counter[tuple[str, str | None]] = Counter()
        self._written: Counter[tuple[str, str | None]] = Counter()  # the same of the teacher's own, by method
        self._left_out: Counter[tuple[str, str]] = Counter()  # rows by source, and what they were left out for
        self._held_out: Counter[str] = Counter()  # those of them that would have been held out

    def of(self, conversations: Iterable[Asked], num_wanted: Callable[[], int | None]) -> Iterator[Asked]:
        """The conversations, redacted and labelled; those that the settings drop are counted and left out.

        No more are read at once than are still wanted: a row that is not needed may be a bad one.
        """
        stream = iter(conversations)
        while batch := list(islice(stream, min(BATCH, num_wanted() or BATCH))):
            redacted = list(map(self.redacted, batch))
            self._drop("personal", [asked for asked in redacted if self.is_personal(asked)])
            for asked in self.labelled([asked for asked in redacted if not self.is_personal(asked)]):
                if self.is_unsafe(asked):
                    self._drop("unsafe", [asked])
                else:
                    yield asked

    def _drop(self, why: str, conversations: list[Asked]) -> None:
        self._prompts[f"dropped_{why}"] += len(conversations)
        for asked in conversations:
            self.leave_out(asked.origin, why, asked)

    def leave_out(self, origin: str, why: str, asked: Asked | None = None) -> None:
        """Count a row that is left out; `asked` is the conversation in it, where there is one."""
        self._left_out[origin, why] += 1
        self._held_out[why] += asked is not None and asked.is_held_out(self._config.prepare.held_out_frac)

    def redacted(self, asked: Asked) -> Asked:
        """The conversation without personal data, and the answer to be scored, if there is one."""
        settings = self._config.privacy
        if settings.prompts == "off":
            return asked
        found = Counter(asked.redacted)
        whole = {key: getattr(asked, key) for key in ("messages", "tools", "completion")}
        parts = privacy.redact(whole, settings, found)
        return replace(asked, **parts, redacted=dict(found))

    def is_personal(self, asked: Asked) -> bool:
        """Whether a conversation is left out for the personal data that was in it."""
        return self._config.privacy.prompts == "drop" and bool(asked.redacted)

    def labelled(self, conversations: list[Asked]) -> list[Asked]:
        """The conversations with their safety labels."""
        exchanges = [safety.Exchange(_text(asked.messages), None) for asked in conversations]
        pairs = zip(conversations, self._labeller.labels(exchanges), strict=True)
        return [replace(asked, safety=labels) for asked, labels in pairs]

    def is_unsafe(self, asked: Asked) -> bool:
        """Whether a conversation is left out for a label's score."""
        highest = self._config.safety.max_prompt_score
        return highest is not None and max(asked.safety.values(), default=0.0) > highest

    def columns(self, asked: Asked) -> Row:
        """The columns of PROMPTS that say what was found in a prompt that is used; it counts in `facts` from now."""
        labels = [label for label, score in asked.safety.items() if score >= safety.FLAGGED]
        self._found.update(asked.redacted)
        self._labels.update(labels)
        self._prompts.update(personal=bool(asked.redacted), labelled=bool(labels))
        if asked.origin:
            self._licences[asked.origin, asked.licence] += 1
            if self._licences[asked.origin, asked.licence] == 1:
                licences.check_source(asked.origin, asked.licence, self._config.licence_policy)
        else:
            self._written[asked.method, asked.licence] += 1
        return {
            "licence": asked.licence,
            "redacted": list(asked.redacted.items()),
            "safety": list(asked.safety.items()),
        }

    def lost(self) -> Counter[str]:
        """How many rows were left out, by reason."""
        total: Counter[str] = Counter()
        for (_, why), num in self._left_out.items():
            total[why] += num
        return total

    def facts(self, teacher: licences.Found) -> Row:
        """What was found, for the manifest and the cards; said aloud where it is anything."""
        for what, found in (("taken out of", self._found), ("labels of", self._labels)):
            if found:
                say(f"prepare: {what} prompts: {', '.join(f'{kind} {num}' for kind, num in found.items())}")
        for key, why in (("dropped_personal", "the personal data in them"), ("dropped_unsafe", "their safety labels")):
            if num := self._prompts[key]:
                say(f"prepare: {counted(num, 'prompt')} left out for {why} (privacy.prompts, safety.max_prompt_score)")
        licences.tell(self._config, teacher, self._licences)
        sources = [
            {"source": origin, "licence": licence, "prompts": num} for (origin, licence), num in self._licences.items()
        ]
        written = [
            {"method": method, "licence": licence, "prompts": num} for (method, licence), num in self._written.items()
        ]
        return {
            "screening": {
                "privacy": output_settings(self._config.privacy),
                "safety": output_settings(self._config.safety),
                "personal": dict(self._found),
                "labels": dict(self._labels),
                "prompts": dict(self._prompts),
            },
            "licences": {"teacher": teacher._asdict(), "sources": sources, "written": written},
            "left_out": [{"source": s, "reason": why, "prompts": num} for (s, why), num in self._left_out.items()],
            "held_out_left_out": {why: num for why, num in self._held_out.items() if num},
        }


def origin_of(source: Source) -> str:
    """A source as cards name it."""
    return source.path or source.dataset or ""


def fingerprint(config: Config) -> Row:
    """The settings that decide about prompts; those about answers are filter's."""
    settings = {"privacy": privacy.fingerprint(config.privacy), "safety": safety.fingerprint(config.safety)}
    return {
        f"{section}.{key}": value
        for section, values in settings.items()
        for key, value in values.items()
        if key not in ("answers", "max_answer_score")
    }


def _text(messages: list[Row]) -> str:
    """What people and tools wrote in a conversation."""
    return "\n\n".join(message["content"] for message in messages if message.get("content"))
