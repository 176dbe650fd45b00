"""Labels of prompts and answers: word lists, a classifier, a guard model on a server. A label drops nothing by itself.

A label is `words:CATEGORY` (1 where a pattern of the list occurs), `classifier:LABEL` (its probability) or `guard:…`
(1 unsafe, 0.5 controversial, 0 safe; and 1 for each category that the guard names).
"""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import yaml

from pipeline.config import Safety, output_settings
from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.rows import DecisionRow
from pipeline.run.files import file_hash, first_line, one_line

FLAGGED = 0.5  # from this score on a label counts in reports and cards
SHIPPED = Path(__file__).parent / "safety_words.yaml"
BATCH, GUARD_REQUESTS, GUARD_TRIES, GUARD_TIMEOUT_S = 32, 16, 4, 120.0
KEY = "RETORT_GUARD_KEY"

Labels = dict[str, float]


@dataclass(frozen=True)
class Exchange:
    """A prompt, and the answer that is judged; the prompt itself where that is None."""

    prompt: str
    answer: str | None

    @property
    def judged(self) -> str:
        return self.prompt if self.answer is None else self.answer


class Labeller:
    """Whatever `safety` has turned on. Raises UserError if a list, a model or a server is missing."""

    def __init__(self, settings: Safety) -> None:
        self._settings = settings
        self._words = load_words(settings.words) if settings.words else {"prompts": {}, "both": {}}

    def labels(self, exchanges: list[Exchange]) -> list[Labels]:
        """The labels of each, in order."""
        found = [self._of_words(exchange) for exchange in exchanges]
        for more in (self._of_classifier(exchanges), self._of_guard(exchanges)):
            for labels, others in zip(found, more, strict=True):
                labels.update(others)
        return found

    def _of_words(self, exchange: Exchange) -> Labels:
        lists = ("prompts", "both") if exchange.answer is None else ("both",)
        text = " ".join(exchange.judged.lower().split())
        return {
            f"words:{category}": 1.0
            for name in lists
            for category, phrases in self._words[name].items()
            if any(mark in text for mark in phrases.marks) and phrases.pattern.search(text)
        }

    def _of_classifier(self, exchanges: list[Exchange]) -> list[Labels]:
        """The probability of each of `unsafe_labels`; a text longer than the model reads is cut."""
        if self._settings.classifier is None:
            return [{} for _ in exchanges]
        results = self._classifier([exchange.judged for exchange in exchanges], batch_size=BATCH, truncation=True)
        return [
            {
                f"classifier:{item['label']}": item["score"]
                for item in of
                if item["label"] in self._settings.unsafe_labels
            }
            for of in results
        ]

    @cached_property
    def _classifier(self) -> Any:
        """transformers' text-classification pipeline, of weights in safetensors alone."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

        lookup.quiet_transformers()
        name = self._settings.classifier or ""
        folder = lookup.find(name, self._settings.classifier_revision).path
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # each architecture checks in ways of its own
            raise UserError(
                f"safety.classifier {name}: no text classifier can be loaded from it: {first_line(error)}"
            ) from None
        has = list(model.config.id2label.values())
        if unknown := set(self._settings.unsafe_labels) - set(has):
            raise UserError(f"safety.unsafe_labels: {name} has no label {min(unknown)!r}; it has {', '.join(has)}")
        limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 1 << 30))
        tokenizer.model_max_length = limit
        return pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)

    def _of_guard(self, exchanges: list[Exchange]) -> list[Labels]:
        if self._settings.guard_url is None:
            return [{} for _ in exchanges]
        with ThreadPoolExecutor(GUARD_REQUESTS) as pool:
            return list(pool.map(self._asked, exchanges))

    def _asked(self, exchange: Exchange) -> Labels:
        turns = [("user", exchange.prompt), ("assistant", exchange.answer)]
        messages = [{"role": role, "content": text} for role, text in turns if text is not None]
        body = {"model": self._settings.guard_model, "messages": messages, "max_tokens": 64, "temperature": 0}
        return guard_labels(self._post(body))

    def _post(self, body: dict[str, Any]) -> str:
        """The guard's answer; asked again, with growing pauses, where the server is ill."""
        url, problem = f"{self._settings.guard_url}/v1/chat/completions", ""
        for number in range(GUARD_TRIES):
            if number:
                time.sleep(2**number / 4)
            try:
                reply = self._client.post(url, json=body)
                reply.raise_for_status()
                return str(reply.json()["choices"][0]["message"]["content"])
            except httpx.HTTPStatusError as error:
                problem = f"HTTP {error.response.status_code}"
                if error.response.status_code < 500 and error.response.status_code != 429:
                    break
            except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
                problem = type(error).__name__
        raise UserError(
            f"safety.guard_url {self._settings.guard_url}: the guard does not answer ({problem}); see that it serves"
            f" {self._settings.guard_model}, and that {KEY} is its key, then run the same command again"
        )

    @cached_property
    def _client(self) -> httpx.Client:
        key = os.environ.get(KEY)
        return httpx.Client(timeout=GUARD_TIMEOUT_S, headers={"Authorization": f"Bearer {key}"} if key else {})


class Phrases(NamedTuple):
    """A category of a word list: its pattern is tried where one of the marks occurs, in lower-case text."""

    marks: tuple[str, ...]
    pattern: re.Pattern[str]


def load_words(name: str) -> dict[str, dict[str, Phrases]]:
    """A word list: `prompts` and `both`, each with categories; those of `both` are looked for in answers too.

    A category is a list of regular expressions, or has them as `patterns`, and `marks`; case does not count.
    Raises UserError where it is not such a file.
    """
    path = SHIPPED if name == "shipped" else Path(name)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if unknown := set(data) - {"prompts", "both"}:
            raise ValueError(f"{min(unknown)} is neither prompts nor both")
        return {
            key: {str(category): _phrases(given) for category, given in (data.get(key) or {}).items()}
            for key in ("prompts", "both")
        }
    except FileNotFoundError:
        raise UserError(f"safety.words {path}: no such word list (`shipped` is Retort's own; null for none)") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, re.error) as error:
        first = one_line(str(error))
        raise UserError(
            f"safety.words {path}: not a word list ({first}); see pipeline/screening/safety_words.yaml for its form"
        ) from None


def guard_labels(reply: str) -> Labels:
    """What a guard model means: `unsafe` and categories such as S1 on the next line (Llama Guard), or `Safety: Unsafe`
    and `Categories: Violent, …` (Qwen3Guard), or yes and no, which answer whether a policy is violated (ShieldGemma).

    Raises UserError where it says none of these.
    """
    lower = reply.lower()
    verdict = re.search(r"\b(unsafe|controversial|safe)\b", lower) or re.match(r"\s*(yes|no)\b", lower)
    if verdict is None:
        raise UserError(
            f"safety.guard_model answers {reply.strip()[:60]!r}, neither safe nor unsafe: it is not a guard model"
        )
    score = {"unsafe": 1.0, "yes": 1.0, "controversial": 0.5}.get(verdict[1], 0.0)
    categories: list[str] = []
    if score:
        listed = re.search(r"categor(?:y|ies)\s*:\s*(.+)", reply, re.IGNORECASE)
        categories = re.findall(r"\bS\d{1,2}\b", reply) or ([c.strip() for c in listed[1].split(",")] if listed else [])
    return {"guard:unsafe": score, **{f"guard:{category}": score for category in categories if category != "None"}}


def decide(decision: DecisionRow, labels: Labels, settings: Safety) -> None:
    """Give one of filter's decisions its labels, the highest as score `unsafe`, and that as a reason to drop where it
    is above `safety.max_answer_score`."""
    highest = max(labels.values(), default=0.0)
    decision["safety"] = list(labels.items())
    decision["scores"].append(("unsafe", highest))
    if settings.max_answer_score is not None and highest > settings.max_answer_score:
        decision["reasons"].append("unsafe")
        decision["kept"] = False


def fingerprint(settings: Safety) -> dict[str, Any]:
    """The settings, the word list's hash and the classifier's: what labels follow from."""
    words = SHIPPED if settings.words == "shipped" else settings.words and Path(settings.words)
    if words:
        load_words(settings.words or "")
    return {
        **output_settings(settings),
        "words.hash": file_hash(words) if words else None,
        "classifier.weights": (
            lookup.find(settings.classifier, settings.classifier_revision).weights_hash()
            if settings.classifier
            else None
        ),
    }


def _phrases(given: Any) -> Phrases:
    category = given if isinstance(given, dict) else {"patterns": given}
    patterns: Any = category.get("patterns")
    marks: Any = category.get("marks", [""])
    for each in (patterns, marks):
        if not isinstance(each, list) or not each or not all(isinstance(item, str) for item in each):
            raise ValueError("a category is a list of regular expressions, or has patterns and marks that are lists")
    whole = "|".join(f"(?:{each})" for each in patterns)
    return Phrases(tuple(mark.lower() for mark in marks), re.compile(whole, re.IGNORECASE))
