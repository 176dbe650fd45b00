"""What is looked for in answers besides their quality: personal data, and what a safety label says."""

from collections import Counter
from typing import Any

from pipeline.config import Config, output_settings
from pipeline.rows import DecisionRow
from pipeline.screening import privacy, safety

REASONS = ("pii", "unsafe")
COLUMNS = ["reasoning", "prompt_token_ids"]  # of a response, besides those that the rules read

Row = dict[str, Any]


class Screen:
    """Privacy and safety of the answers of a run, shard by shard."""

    def __init__(self, config: Config, tokenizer: Any) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._labeller = safety.Labeller(config.safety)
        self._found: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._answers: Counter[str] = Counter(personal=0, labelled=0)

    def decide(self, rows: list[Row], decisions: list[DecisionRow]) -> None:
        """Complete filter's decisions about a shard: `masked_spans`, `safety`, scores `pii` and `unsafe`, and drops."""
        privacy.decide(rows, decisions, self._config.privacy, self._tokenizer)
        exchanges = [safety.Exchange(self._prompt(row), row["text"]) for row in rows]
        for decision, labels in zip(decisions, self._labeller.labels(exchanges), strict=True):
            safety.decide(decision, labels, self._config.safety)
            self._count(decision)

    def facts(self) -> Row:
        """What was found, of all answers, for the manifest and the cards."""
        settings = {"privacy": output_settings(self._config.privacy), "safety": output_settings(self._config.safety)}
        found = {"personal": dict(self._found), "labels": dict(self._labels)}
        return {**settings, **found, "answers": dict(self._answers)}

    def _prompt(self, row: Row) -> str:
        """What the teacher read, for a guard model alone: it judges an answer by its question."""
        if self._config.safety.guard_url is None:
            return ""
        return self._tokenizer.decode(row["prompt_token_ids"], skip_special_tokens=True)

    def _count(self, decision: DecisionRow) -> None:
        self._found.update(span["kind"] for span in decision["masked_spans"])
        labels = [label for label, score in decision["safety"] if score >= safety.FLAGGED]
        self._labels.update(labels)
        self._answers.update(personal=bool(dict(decision["scores"]).get("pii")), labelled=bool(labels))


def fingerprint(config: Config) -> Row:
    """The settings that decide about answers; those about prompts were prepare's."""
    settings = {"privacy": privacy.fingerprint(config.privacy), "safety": safety.fingerprint(config.safety)}
    about_prompts = {*config.privacy.ABOUT_PROMPTS, *config.safety.ABOUT_PROMPTS}
    return {
        f"{section}.{key}": value
        for section, values in settings.items()
        for key, value in values.items()
        if key not in about_prompts
    }


def thresholds(config: Config) -> Row:
    """What the reasons are held to, as the report shows it beside filter's own settings."""
    return {"privacy.answers": config.privacy.answers, "safety.max_answer_score": config.safety.max_answer_score}
