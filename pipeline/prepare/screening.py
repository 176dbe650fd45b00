"""What is done with a conversation before it is a prompt: personal data taken out, labels given, its licence seen."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from pipeline import licences, privacy, safety
from pipeline.config import Config, Source, output_settings
from pipeline.console import say

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

    def of(self, conversations: Iterable[Any]) -> Iterator[Any]:
        """The conversations, redacted and labelled; those that the settings drop are counted and left out."""
        stream = iter(conversations)
        while batch := list(islice(stream, BATCH)):
            clean = [asked for asked in map(self._redacted, batch) if asked is not None]
            exchanges = [safety.Exchange(_text(asked.messages), None) for asked in clean]
            for asked, labels in zip(clean, self._labeller.labels(exchanges), strict=True):
                highest = self._config.safety.max_prompt_score
                if highest is not None and max(labels.values(), default=0.0) > highest:
                    self._prompts["dropped_unsafe"] += 1
                else:
                    yield replace(asked, safety=labels)

    def columns(self, asked: Any) -> Row:
        """The columns of PROMPTS that say what was found in a prompt that is used; it counts in `facts` from now."""
        labels = [label for label, score in asked.safety.items() if score >= safety.FLAGGED]
        self._found.update(asked.redacted)
        self._labels.update(labels)
        self._prompts.update(personal=bool(asked.redacted), labelled=bool(labels))
        self._licences[asked.origin, asked.licence] += 1
        if self._licences[asked.origin, asked.licence] == 1:
            licences.check_source(asked.origin, asked.licence, self._config.licence_policy)
        return {
            "licence": asked.licence,
            "redacted": list(asked.redacted.items()),
            "safety": list(asked.safety.items()),
        }

    def facts(self, teacher: licences.Found) -> Row:
        """What was found, for the manifest and the cards; said aloud where it is anything."""
        for what, counted in (("taken out of", self._found), ("labels of", self._labels)):
            if counted:
                say(f"prepare: {what} prompts: {', '.join(f'{kind} {num}' for kind, num in counted.items())}")
        licences.tell(self._config, teacher, self._licences)
        sources = [
            {"source": origin, "licence": licence, "prompts": num} for (origin, licence), num in self._licences.items()
        ]
        return {
            "screening": {
                "privacy": output_settings(self._config.privacy),
                "safety": output_settings(self._config.safety),
                "personal": dict(self._found),
                "labels": dict(self._labels),
                "prompts": dict(self._prompts),
            },
            "licences": {"teacher": teacher._asdict(), "sources": sources},
        }

    def _redacted(self, asked: Any) -> Any | None:
        """The conversation without personal data, and the answer to be scored, if there is one; None: dropped."""
        settings = self._config.privacy
        if settings.prompts == "off":
            return asked
        found: Counter[str] = Counter()
        parts = {
            key: privacy.redact(getattr(asked, key), settings, found) for key in ("messages", "tools", "completion")
        }
        if found and settings.prompts == "drop":
            self._prompts["dropped_personal"] += 1
            return None
        return replace(asked, **parts, redacted=dict(found))


def origin_of(source: Source) -> str:
    """A source as cards name it."""
    return source.path or source.dataset or ""


def fingerprint(config: Config) -> Row:
    """The settings that decide about prompts; those about answers are filter's."""
    settings = {"privacy": output_settings(config.privacy), "safety": safety.fingerprint(config.safety)}
    return {
        f"{section}.{key}": value
        for section, values in settings.items()
        for key, value in values.items()
        if key not in ("answers", "max_answer_score")
    }


def _text(messages: list[Row]) -> str:
    """What people and tools wrote in a conversation."""
    return "\n\n".join(message["content"] for message in messages if message.get("content"))
