"""Configuration: one frozen section per stage, from YAML and `key=value` overrides. Imports no torch.

A field marked `runtime(...)` changes how fast or how chatty a stage is, not what it writes: it is left out of the
stage's fingerprint, and can be changed while a run is under way.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from pipeline import chat_set, probe_set
from pipeline.errors import UserError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Limit = Annotated[float, Field(gt=0, le=1)]
LanguageCode = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]
Divergence = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation", "alpha_beta"
]
PII_KINDS = ("secret", "email", "iban", "card", "ip", "phone")
PiiKind = Literal["secret", "email", "iban", "card", "ip", "phone"]
METHODS = {  # by which the teacher writes prompts, and the templates of each
    "magpie": ("magpie",),
    "self_instruct": ("self_instruct",),
    "evolve": ("deepen", "widen", "constrain"),
    "documents": ("documents",),
}
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "clearml", "swanlab"]


def runtime(default: Any, description: str, **kwargs: Any) -> Any:
    """A field that does not change a stage's output, so is no part of its fingerprint."""
    return Field(default, description=description, json_schema_extra={"runtime": True}, **kwargs)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def _engine_args(value: dict[str, Any]) -> dict[str, Any]:
    if "hf_token" in value:
        raise ValueError("hf_token would be written to disk: set HF_TOKEN in the environment instead")
    length = value.get("max_model_len")
    if length is not None and (not isinstance(length, int) or length < 1):
        raise ValueError("max_model_len is a number of tokens, at least 1")
    return value


EngineArgs = Annotated[dict[str, Any], AfterValidator(_engine_args)]


def _base_urls(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(url.strip().rstrip("/").removesuffix("/v1").rstrip("/") for url in value)


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and re.fullmatch(r"https?://[^?#\s]+", url) is not None
    except ValueError:  # a port that is no number
        return False


class Server(Section):
    """vLLM servers that answer in place of an engine in this process; their key is RETORT_SERVER_KEY."""

    urls: Annotated[tuple[str, ...], AfterValidator(_base_urls)] = runtime(
        (), "OpenAI-compatible vLLM servers, such as [http://127.0.0.1:8000]; none: an engine in this process."
    )
    model: str | None = Field(default=None, description="Name by which they serve the teacher; null: their only one.")
    concurrency: Positive = runtime(64, "Requests in flight per URL.")
    timeout_s: float = runtime(600.0, "Longest time that one answer may take, seconds.", gt=0)
    patience_s: float = runtime(600.0, "How long no server may answer before the run stops, seconds.", gt=0)

    @model_validator(mode="after")
    def _usable_urls(self) -> "Server":
        for url in self.urls:  # none is repeated in the message: it may hold a password
            if not _is_base_url(url):
                raise ValueError("urls: each is written like http://127.0.0.1:8000")
            if "@" in url:
                raise ValueError("urls: no name or password in a URL; set RETORT_SERVER_KEY in the environment instead")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError("urls: the same URL stands there twice")
        return self


class Teacher(Section):
    """The large model whose answers and log-probs are captured."""

    model: str = Field(default="demo", description="Hub id, local folder, or `demo` (bundled SmolLM2-135M-Instruct).")
    revision: str | None = Field(
        default=None, description="Hub branch, tag or commit; null is the hub's default branch."
    )
    licence: str | None = runtime(
        None, "Its licence, such as apache-2.0 or llama3.1; null: what its model card or LICENSE says."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default={}, description="Passed to the chat template, e.g. {enable_thinking: false}."
    )
    engine: EngineArgs = Field(
        default={},
        description="Passed to vLLM's engine as they stand: tensor_parallel_size, quantization, max_model_len, ...",
    )
    server: Server = Field(default=Server(), description="Servers that answer in place of an engine in this process.")
    reasoning_tags: tuple[str, str] = Field(
        default=("<think>", "</think>"), description="What the teacher puts around its reasoning, where it reasons."
    )

    @field_validator("reasoning_tags")
    @classmethod
    def _two_tags(cls, value: tuple[str, str]) -> tuple[str, str]:
        if not all(tag.strip() for tag in value) or value[0] == value[1]:
            raise ValueError("two different tags, such as [<think>, </think>]")
        return value


class Source(Section):
    """One place prompts come from: exactly one of `path` and `dataset`."""

    path: str | None = Field(
        default=None, description="Local .jsonl, .parquet, .csv or .txt file (txt: one prompt a line)."
    )
    dataset: str | None = Field(default=None, description="`datasets` name on the hub, or a local dataset folder.")
    subset: str | None = Field(default=None, description="Configuration name of the dataset.")
    dataset_split: str = Field(default="train", description="Split of the dataset to read.")
    messages: str = Field(default="messages", description="Column with OpenAI-style messages, where the rows have one.")
    prompt: str = Field(
        default="prompt", description="Column with a bare prompt, read when there is no messages column."
    )
    completion: str = Field(
        default="completion", description="Column with the answer to a bare prompt, for generate.mode=score."
    )
    tools: str = Field(
        default="tools", description="Column with the tools of the conversation, a list or JSON; need not exist."
    )
    licence: str | None = Field(
        default=None, description="Licence of its rows, as cc-by-4.0; a row's own column `licence` or `license` wins."
    )
    category: str = Field(default="category", description="Column that labels the prompt; need not exist.")
    template: str | None = Field(
        default=None,
        description="Jinja file whose text becomes the user message; the row's columns are its variables.",
    )
    system: str | None = Field(default=None, description="System message put before each prompt that has none.")
    limit: Positive | None = Field(default=None, description="Read at most this many rows.")

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of path and dataset")
        return self


class EvaluationSet(Section):
    """Items that are asked in an evaluation: exactly one of `path` and `dataset`."""

    path: str | None = Field(
        default=None, description="Local .jsonl, .parquet, .csv or .txt file (txt: one item a line)."
    )
    dataset: str | None = Field(default=None, description="`datasets` name on the hub, or a local dataset folder.")
    subset: str | None = Field(default=None, description="Configuration name of the dataset.")
    dataset_split: str = Field(default="test", description="Split of the dataset to read.")
    columns: tuple[str, ...] = Field(
        default=("turns", "messages", "prompt", "question", "problem", "instruction", "text"),
        description="Columns whose text no corpus may repeat, those of them that a row has: text, a list of texts, or"
        " OpenAI-style messages, of which the user's count.",
    )
    limit: Positive | None = Field(default=None, description="Read at most this many rows.")

    @model_validator(mode="after")
    def _one_origin(self) -> "EvaluationSet":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of path and dataset")
        return self


# From here on a text is nearly another. Below, MinHash's bands miss too many: see pipeline/duplicates.py.
NearDuplicates = Annotated[float, Field(ge=0.7, le=1)]


class Weights(Section):
    """How the prompts that the teacher writes are shared out among the methods, in proportion; 0 turns one off."""

    magpie: float = Field(
        default=1.0, description="It is shown an empty user turn, and writes the user's message.", ge=0
    )
    self_instruct: float = Field(
        default=1.0, description="It is shown some prompts of a kind, and writes another.", ge=0
    )
    evolve: float = Field(
        default=1.0, description="It is shown a prompt, and makes it deeper, wider or more constrained.", ge=0
    )
    documents: float = Field(
        default=1.0, description="It is shown a passage of `documents`, and asks about it; none: no such prompts.", ge=0
    )


class Synthesis(Section):
    """Prompts that the teacher writes itself. They are made from prompts of the train side, and stay on it."""

    num_prompts: Positive | None = Field(
        default=None, description="Grow the corpus to this many prompts: the teacher writes what the sources lack."
    )
    weights: Weights = Field(default=Weights(), description="The methods' shares of what is written, in proportion.")
    documents: tuple[Source, ...] = Field(
        default=(),
        description="Where passages come from: a .txt or .md file is one document; of other sources each row is one,"
        " its text in the column that `prompt` names.",
    )
    templates: str = Field(
        default="prompts/templates", description="Folder of Jinja files with what the teacher is asked, by method."
    )
    temperature: float = Field(default=0.8, description="Sampling temperature of drafts.", gt=0, le=10)
    top_p: float = Field(default=0.95, description="Nucleus of sampling drafts, 0-1.", gt=0, le=1)
    max_tokens: Positive = Field(
        default=256, description="Longest draft, tokens (a teacher's reasoning counts too); longer ones are dropped."
    )
    seed: int = Field(default=0, description="Seed; the same one gives the same drafts.", ge=0)
    round_drafts: Positive = Field(
        default=256, description="Most drafts asked for at once and committed together; a crash loses at most these."
    )

    @model_validator(mode="after")
    def _some_method(self) -> "Synthesis":
        if self.num_prompts is not None and not self.shares():
            raise ValueError("no method has both a weight and what it is made from (see weights and documents)")
        return self

    def shares(self) -> dict[str, float]:
        """The part of each method that is turned on; they sum to 1."""
        weights = {name: weight for name, weight in self.weights if weight and (name != "documents" or self.documents)}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}


class Prepare(Section):
    """prepare: prompts in."""

    sources: tuple[Source, ...] = Field(
        default=(Source(path="prompts/seeds.jsonl", licence="apache-2.0"),), description="Where prompts come from."
    )
    held_out_frac: Fraction = Field(
        default=0.1, description="Share of prompts kept for evaluation, chosen by each prompt's own hash; 0-1.", lt=1
    )
    bad_rows: Literal["error", "skip"] = Field(
        default="error", description="A row without a usable prompt: stop with its place, or skip and count it."
    )
    decontaminate: tuple[EvaluationSet, ...] = Field(
        default=(EvaluationSet(path="prompts/chat_eval.jsonl"), EvaluationSet(path="prompts/risks.jsonl")),
        description="Evaluation items: a prompt that repeats one (a 13-gram of words, or half of its 8-grams) is left"
        " out and listed in contamination.jsonl; filter checks the answers against the same. Name your benchmarks.",
    )
    near_duplicates: NearDuplicates | None = Field(
        default=0.72,
        description="A prompt this similar to an earlier one (Jaccard of 5-grams of words) is left out and listed in"
        " near_duplicates.jsonl, so none is nearly on both sides of the split; null: only exact copies are.",
    )
    max_prompts: Positive | None = Field(
        default=None, description="Take at most this many distinct prompts from the sources."
    )
    synthesis: Synthesis = Field(default=Synthesis(), description="Prompts that the teacher writes.")
    shard_prompts: Positive = Field(default=4096, description="Prompts per Parquet file.")

    @field_validator("sources")
    @classmethod
    def _some_source(cls, value: tuple[Source, ...]) -> tuple[Source, ...]:
        if not value:
            raise ValueError("give at least one source of prompts")
        return value


class Generate(Section):
    """generate: the teacher's answers with the log-probs behind every token."""

    mode: Literal["sample", "score"] = Field(
        default="sample", description="The teacher answers the prompts, or scores the answers that the sources have."
    )
    num_samples: Positive = Field(default=1, description="Answers per prompt.")
    temperature: float = Field(default=1.0, description="Sampling temperature; 0 is greedy.", ge=0, le=10)
    top_p: float = Field(default=1.0, description="Nucleus of sampling, 0-1.", gt=0, le=1)
    top_k: int = Field(default=0, description="Sample among this many best tokens; 0 is all.", ge=0)
    max_tokens: Positive = Field(default=512, description="Longest answer, tokens.")
    k: Positive = Field(default=64, description="Log-probs asked of the teacher per token: its K best.")
    support: Literal["top", "nucleus", "drawn", "sampled"] = Field(
        default="top",
        description="What is stored of the K best. top: all; nucleus: the likeliest, up to nucleus_mass; drawn: those"
        " that num_draws draws hit; each with its log-prob, and the mass of all others. sampled: the counts of the"
        " draws, smallest and unbiased within the K best, outside which the student learns no mass: take k=256, say.",
    )
    nucleus_mass: Fraction = Field(default=0.98, description="nucleus: entries are stored until they hold this; 0-1.")
    nucleus_min: Positive = Field(default=4, description="nucleus: fewest entries per token.")
    num_draws: Positive = Field(default=50, description="drawn, sampled: draws per token.", le=127)
    draw: Literal["systematic", "independent"] = Field(
        default="systematic", description="drawn, sampled: evenly spaced draws, which vary least, or independent."
    )
    seed: int = Field(
        default=0, description="Seed; each response draws from its own stream, made of this and its id.", ge=0
    )
    shard_responses: Positive = Field(
        default=256, description="Responses per Parquet file; a crash loses at most the files in flight."
    )
    pilot_prompts: Positive = runtime(50, "Prompts that `retort plan` answers, spread over all.")
    price_per_hour: float | None = runtime(
        None, "Price of the machine per hour, in whatever currency; `retort plan` multiplies it.", ge=0
    )

    @model_validator(mode="after")
    def _scored_once(self) -> "Generate":
        if self.mode == "score" and self.num_samples != 1:
            raise ValueError("mode=score reads each answer once: num_samples must be 1")
        return self


class Selection(Section):
    """Which of the answers to train on that every rule kept are enough; what is null is off."""

    best_of: Positive | None = Field(
        default=None,
        description="Of several answers to a prompt (generate.num_samples) keep so many: those that the teacher itself"
        " finds likeliest, per token.",
    )
    max_category_frac: Limit | None = Field(
        default=None, description="Largest share of answers to prompts of one category; those above it are dropped."
    )
    max_length_frac: Limit | None = Field(
        default=None, description="Largest share of answers of about one length: 1, 2-3, 4-7, 8-15, ... tokens."
    )
    max_difficulty_frac: Limit | None = Field(
        default=None, description="Largest share of answers of one difficulty: mean NLL in steps of a quarter nat."
    )
    seed: int = Field(default=0, description="Seed of which answers go where a share is too large.", ge=0)


class Learnability(Section):
    """What a first student can still learn of each answer: its mean KL from the teacher on the stored rows."""

    student: str | None = Field(
        default=None,
        description="A first student: the folder of another run's train/student, or a model with the teacher's tokens;"
        " null: off.",
    )
    learnt_frac: Fraction | None = Field(
        default=0.05, description="Share of the run's answers that is dropped for the least KL: known already.", lt=1
    )
    wildest_frac: Fraction | None = Field(
        default=0.01, description="Share dropped for the greatest KL: out of the student's reach, or noise.", lt=1
    )


class Filter(Section):
    """filter: which answers train sees; a rule that is null or false is off."""

    drop_truncated: bool = Field(default=True, description="Drop answers that hit max_tokens.")
    min_end_prob: Fraction | None = Field(
        default=None,
        description="Where those are kept: least probability that one cut off could have ended there; 0.1, say.",
    )
    drop_control_tokens: bool = Field(default=True, description="Drop answers with special tokens before their end.")
    drop_template_markup: bool = Field(
        default=True, description="Drop answers with marks of a chat template as text, or with the user's next turn."
    )
    drop_unclosed: bool = Field(
        default=True, description="Drop finished answers with a code fence or a reasoning tag that is left open."
    )
    drop_broken_characters: bool = Field(
        default=True, description="Drop answers with bytes that are no text, and with UTF-8 read as Latin-1."
    )
    min_tokens: int | None = Field(default=1, description="Shortest answer, tokens without the end-of-turn.", ge=0)
    max_tokens: Positive | None = Field(default=2048, description="Longest answer, tokens.")
    max_length_ratio: float | None = Field(
        default=None,
        description="Most words an answer may have for each of the prompt's (20 words on); for corpora of one task.",
        gt=0,
    )
    max_echo_frac: Fraction | None = Field(
        default=0.8, description="Largest share of an answer and its prompt that is the prompt said again."
    )
    drop_broken_json: bool = Field(
        default=True, description="Drop answers without JSON that parses, where the prompt asks for JSON."
    )
    max_sentence_repeats: Positive | None = Field(
        default=3,
        description="Most times the same sentence may stand in a row (×2 in answers with code or maths, ×3 in lists).",
    )
    max_paragraph_repeats: Positive | None = Field(
        default=9, description="Most times the same paragraph may stand in a row (×2 and ×3 likewise)."
    )
    max_duplicate_ngram_frac: Fraction | None = Field(
        default=0.35, description="Largest share of an answer's 10-grams of words that are repeats (30 words on)."
    )
    max_top_ngram_frac: tuple[Limit, Limit, Limit] | None = Field(
        default=(0.3, 0.27, 0.24),
        description="Largest share of the characters in the commonest 2-, 3- and 4-gram of words (40 words on); Gopher,"
        " for web pages: two thirds of it.",
    )
    max_duplicate_ngram_char_frac: tuple[Limit, Limit, Limit, Limit, Limit, Limit] | None = Field(
        default=(0.45, 0.42, 0.39, 0.36, 0.33, 0.3),
        description="Largest share of the characters in repeated 5- to 10-grams (40 words on); Gopher, for web pages:"
        " a third of it.",
    )
    max_duplicate_line_frac: tuple[Limit, Limit] | None = Field(
        default=(0.3, 0.2), description="Largest share of lines that are repeats, and of their characters (4 lines on)."
    )
    max_duplicate_paragraph_frac: tuple[Limit, Limit] | None = Field(
        default=(0.3, 0.2), description="The same of paragraphs (3 on)."
    )
    min_word_frac: Fraction | None = Field(
        default=0.8, description="Least share of words with a letter or digit (20 words on; not code, not maths)."
    )
    max_symbol_frac: float | None = Field(
        default=0.1, description="Most hash signs and ellipses for each word (20 words on; not code).", ge=0
    )
    word_length_chars: tuple[float, float] | None = Field(
        default=(2.5, 12), description="Shortest and longest mean length of words, characters (20 words on; prose)."
    )
    languages: tuple[LanguageCode, ...] | None = Field(
        default=None,
        description="Languages that answers may be in, such as [en, de] (ISO 639-1); null: each prompt's own, and those"
        " that it names.",
    )
    max_other_language_prob: Fraction | None = Field(
        default=0.65, description="An answer is dropped where another language is this probable (20 words on)."
    )
    max_unexpected_script_frac: Fraction | None = Field(
        default=0.05, description="Largest share of letters in scripts that the prompt gives no cause for."
    )
    max_loop_tokens: Positive | None = Field(
        default=64,
        description="Longest stretch that says again what stands before, with a probability above 0.9 a token.",
    )
    max_span_nll_nats: float | None = Field(
        default=4.0,
        description="Highest mean NLL of 32 tokens in a row, nats a token: the teacher lost the thread.",
        gt=0,
    )
    worst_nll_frac: Fraction | None = Field(
        default=0.01,
        description="Share of the run's answers that is dropped for the highest mean NLL (8 tokens on).",
        lt=1,
    )
    drop_teacher_identity: bool = Field(
        default=True, description="Drop answers in which the teacher speaks of itself, its maker or its cut-off date."
    )
    identity_names: tuple[str, ...] = Field(
        default=(), description="Further names for that rule: of products, companies, fine-tunes."
    )
    max_refusal_frac: Fraction | None = Field(
        default=0.02, description="Largest share of refusals among the answers kept; those above it are dropped.", lt=1
    )
    drop_exact_duplicates: bool = Field(default=True, description="Drop an answer already given to the same prompt.")
    near_duplicates: NearDuplicates | None = Field(
        default=0.72,
        description="Drop an answer this similar to an earlier one, alone and together with its prompt (Jaccard of"
        " 5-grams of words).",
    )
    learnability: Learnability = Field(
        default=Learnability(), description="Answers that a first student has learnt, or can't."
    )
    decontaminate: tuple[EvaluationSet, ...] = Field(
        default=(), description="Evaluation sets besides those of prepare.decontaminate, for prompts and answers."
    )
    selection: Selection = Field(default=Selection(), description="Balance, and the best of several answers.")

    @field_validator("languages")
    @classmethod
    def _some_language(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value == ():
            raise ValueError("none: no answer could be kept; null is each prompt's own")
        return value

    @field_validator("word_length_chars")
    @classmethod
    def _ascending(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("the shortest comes first")
        return value

    @model_validator(mode="after")
    def _some_length(self) -> "Filter":
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens is above max_tokens: no answer could be kept")
        return self


class Privacy(Section):
    """privacy: personal data and secrets, told by their shape; names and street addresses have none."""

    kinds: tuple[PiiKind, ...] = Field(
        default=PII_KINDS,
        description="What is looked for: keys, tokens and passwords; e-mail addresses; bank accounts; payment cards; IP"
        " addresses; telephone numbers.",
    )
    phone_regions: tuple[str, ...] = Field(
        default=("US", "GB", "DE", "FR"),
        description="Countries (ISO 3166) whose numbers are found without a +, as written there; more find more, take"
        " longer, and take more other numbers for telephones. None: numbers with a + alone.",
    )
    prompts: Literal["redact", "drop", "off"] = Field(
        default="redact",
        description="In prompts, and in answers to be scored: a placeholder such as <EMAIL> before the teacher reads"
        " them; the prompt left out; or nothing done.",
    )
    answers: Literal["mask", "drop", "off"] = Field(
        default="mask",
        description="In the teacher's answers: no loss, of any kind, on its tokens (they stay as context of those that"
        " follow: drop leaves no trace); the answer dropped; or nothing done.",
    )

    @field_validator("phone_regions")
    @classmethod
    def _known_regions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from phonenumbers import SUPPORTED_REGIONS

        if unknown := sorted(set(value) - SUPPORTED_REGIONS):
            raise ValueError(f"no such region: {unknown[0]}; write countries like US, GB, DE")
        return value


class Safety(Section):
    """safety: labels of prompts and answers, each with a score of 0-1; they drop nothing unless a threshold is set."""

    words: str | None = Field(
        default="shipped",
        description="Phrases by category: `shipped` (pipeline/safety_words.yaml: few, English, about doing harm; and"
        " attempts at prompt injection and jailbreaks, in prompts alone), a YAML file like it, or null.",
    )
    classifier: str | None = Field(
        default=None, description="A transformers text classifier: hub id or local folder, safetensors; null: none."
    )
    classifier_revision: str | None = Field(default=None, description="Its hub branch, tag or commit.")
    unsafe_labels: tuple[str, ...] = Field(
        default=(), description="The classifier's labels that say unsafe, as it names them: [toxic, threat]."
    )
    guard_url: str | None = runtime(
        None, "OpenAI-compatible server of a guard model, such as http://127.0.0.1:8001; its key is RETORT_GUARD_KEY."
    )
    guard_model: str | None = Field(
        default=None, description="Name by which guard_url serves it: Llama Guard, Qwen3Guard, ShieldGemma, ..."
    )
    max_prompt_score: Fraction | None = Field(
        default=None, description="Leave out prompts with a label above this score; null: keep them, with their labels."
    )
    max_answer_score: Fraction | None = Field(
        default=None, description="Drop answers with a label above this score; null: keep them, with their labels."
    )

    @field_validator("guard_url")
    @classmethod
    def _usable_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        [url] = _base_urls((value,))
        if not _is_base_url(url) or "@" in url:  # not repeated in the message: it may hold a password
            raise ValueError("written like http://127.0.0.1:8001, without a name or password")
        return url

    @model_validator(mode="after")
    def _whole(self) -> "Safety":
        if (self.guard_url is None) != (self.guard_model is None):
            raise ValueError("guard_url and guard_model go together: where the guard is served, and under which name")
        if (self.classifier is None) != (not self.unsafe_labels):
            raise ValueError("classifier and unsafe_labels go together: which of its labels say unsafe")
        return self


class Student(Section):
    """The small model that learns."""

    model: str | None = Field(
        default=None, description="Hub id, local folder or `demo`; null is the teacher, to be pruned."
    )
    revision: str | None = Field(default=None, description="Hub branch, tag or commit.")
    keep_layers: str | None = Field(
        default=None, description="Layers to keep, from 0, e.g. `0-11,18-29`; null keeps all.", pattern=r"^[\d\s,-]+$"
    )
    num_layers: Positive | None = Field(
        default=None, description="How many layers to keep, chosen by choose_layers; in place of keep_layers."
    )
    choose_layers: Literal["ends", "evenly", "influence"] = Field(
        default="ends",
        description="num_layers: the first and last ones; spread evenly; or those that change the hidden state most,"
        " as measured on kept answers (block influence).",
    )
    config: str | None = Field(
        default=None, description="A transformers config (config.json or its folder): a student with random weights."
    )

    @field_validator("keep_layers", mode="before")
    @classmethod
    def _one_layer(cls, value: Any) -> Any:
        return str(value) if type(value) is int else value  # YAML reads `3` as a number

    @model_validator(mode="after")
    def _one_origin(self) -> "Student":
        if self.keep_layers is not None and self.num_layers is not None:
            raise ValueError("keep_layers and num_layers both choose layers: give one, and null for the other")
        if self.config is not None and (self.model or self.keep_layers is not None or self.num_layers is not None):
            raise ValueError("config makes a new model: model, keep_layers and num_layers don't go with it")
        return self


class Lora(Section):
    """Low-rank adapters (PEFT) in place of full fine-tuning; merged into the student at the end."""

    r: Positive = Field(default=16, description="Rank of the adapters.")
    alpha: Positive = Field(default=32, description="Scale: adapters count alpha/r.")
    dropout: Fraction = Field(default=0.0, description="Dropout inside the adapters, 0-1.")
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear", description="Modules adapted, as PEFT names them."
    )
    bits: Literal[4, 8] | None = Field(
        default=None, description="QLoRA: the frozen weights in this many bits (bitsandbytes); null: as they are."
    )


class Train(Section):
    """train: CE on the teacher's tokens + a divergence from its distributions."""

    ce_weight: float = Field(default=0.5, description="Weight of cross-entropy on the teacher's tokens.", ge=0)
    kd_weight: float = Field(default=0.5, description="Weight of the divergence from the teacher.", ge=0)
    ce_weight_end: float | None = Field(
        default=None, description="ce_weight at the last step, reached in a straight line; null: it stays.", ge=0
    )
    kd_weight_end: float | None = Field(default=None, description="kd_weight at the last step, likewise.", ge=0)
    divergence: Divergence = Field(
        default="forward_kl", description="What kd_weight weighs: one of the functions of train/divergences.py."
    )
    alpha: Fraction | None = Field(
        default=None,
        description="skew_*: the share of the distribution's own that is mixed in (0.1); alpha_beta: its alpha (0.2).",
        gt=0,
    )
    beta: Fraction | None = Field(
        default=None, description="jsd: the teacher's share of the mixture (0.5); alpha_beta: its beta (0.7).", gt=0
    )
    temperature: float = Field(
        default=1.0,
        description="Softens both distributions of the divergence, which is then multiplied by its square.",
        gt=0,
        le=20,
    )
    targets: Literal["stored", "live"] = Field(
        default="stored",
        description="Stored distributions, or those of the teacher run beside the student: whole vocabulary, dearer.",
    )
    tail: Literal["bucket", "label", "renormalise"] = Field(
        default="bucket",
        description="The mass outside the stored support: one bucket of its own; given to the token that was sampled;"
        " or shared out over the support, which is biased.",
    )
    positions_frac: Fraction = Field(
        default=1.0,
        description="Share of answer tokens with loss, those of highest entropy; the head skips the rest.",
        gt=0,
    )
    positions_by: Literal["teacher_entropy", "student_entropy"] = Field(
        default="teacher_entropy", description="Whose entropy chooses: of the stored rows, or of the student as it is."
    )
    sft_only_arm: bool = Field(
        default=False, description="Also train a second student by CE alone, same tokens, to show what KD bought."
    )
    epochs: float = Field(default=2.0, description="Passes over the kept answers.", gt=0)
    learning_rate: float = Field(default=1e-4, description="Peak learning rate of AdamW.", gt=0)
    warmup_frac: Fraction = Field(default=0.05, description="Share of steps with a rising learning rate, 0-1.", lt=1)
    weight_decay: float = Field(default=0.0, description="AdamW's weight decay.", ge=0)
    max_grad_norm: float = Field(default=1.0, description="Gradients are clipped to this norm.", gt=0)
    batch_size: Positive = Field(
        default=8, description="Responses (with pack_tokens: packs of them) per forward pass and process."
    )
    accumulation_steps: Positive = Field(default=1, description="Forward passes per optimizer step.")
    reasoning: Literal["keep", "mask", "drop"] = Field(
        default="keep",
        description="The teacher's reasoning: learnt like the rest, context without loss, or cut out between its tags.",
    )
    max_length: Positive = Field(default=2048, description="Longest prompt + answer, tokens; longer ones are left out.")
    pack_tokens: Positive | None = Field(
        default=None,
        description="Lay answers end to end, each seeing itself alone, in rows of at most this many tokens; null:"
        " padded rows of like length.",
    )
    validation_frac: Fraction = Field(
        default=0.03,
        description="Share of the answers to train on that is kept back (256 at most), to measure the student and to"
        " choose the best checkpoint; whole prompts, by their hash. 0: none.",
        lt=1,
    )
    keep: Literal["best", "last"] = Field(
        default="best", description="The checkpoint that becomes the student: lowest validation KL, or last."
    )
    lora: Lora | None = Field(default=None, description="Adapters in place of full fine-tuning.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Arithmetic of forward and backward; auto: bfloat16 where the machine has it natively.",
    )
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations: less memory, more time.")
    seed: int = Field(default=0, description="Seed of shuffling and dropout.", ge=0)
    launch: tuple[str, ...] = Field(
        default=(),
        description="Arguments of `accelerate launch`, to train in several processes: [--multi_gpu, --num_processes,"
        " '8'], or [--config_file, fsdp.yaml]; each takes batch_size rows a step, and the last step of an epoch is"
        " filled up with rows of its first. None: one process.",
    )
    head_chunk_tokens: Positive = runtime(256, "Tokens whose vocabulary logits are held at once, tokens.")
    checkpoint_steps: Positive = Field(default=50, description="Optimizer steps between checkpoints and validations.")
    log_steps: Positive = runtime(5, "Optimizer steps between two points of the curves.")
    report_to: tuple[Tracker, ...] = runtime(
        ("tensorboard",), "Trackers; all but tensorboard are packages to install: wandb, mlflow, trackio, ..."
    )

    @model_validator(mode="after")
    def _some_loss(self) -> "Train":
        ends = (self.ce_weight_end or 0, self.kd_weight_end or 0)
        if self.ce_weight == 0 and self.kd_weight == 0 and ends == (0, 0):
            raise ValueError("ce_weight and kd_weight are both 0: nothing would be learnt")
        return self

    @model_validator(mode="after")
    def _parameters_that_count(self) -> "Train":
        takes = {"alpha": ("skew_forward_kl", "skew_reverse_kl", "alpha_beta"), "beta": ("jsd", "alpha_beta")}
        for name, divergences in takes.items():
            if getattr(self, name) is not None and self.divergence not in divergences:
                raise ValueError(f"{name} is no parameter of {self.divergence} (of {', '.join(divergences)})")
        if self.divergence != "alpha_beta" and 1 in (self.alpha, self.beta):
            raise ValueError(f"alpha and beta of {self.divergence} are below 1: at 1 it is 0 whatever the student does")
        return self

    @model_validator(mode="after")
    def _tail_that_serves(self) -> "Train":
        if self.targets == "live" or self.tail == "bucket":
            return self
        if self.temperature != 1:
            raise ValueError(f"temperature needs tail=bucket: with tail={self.tail} what is outside is no longer known")
        if self.divergence == "reverse_kl":
            raise ValueError(f"reverse_kl needs tail=bucket: with tail={self.tail} it is infinite")
        return self


class Risks(Section):
    """Probes of risks that a student may carry over: made-up facts, refusals, injection, stereotypes, recitation."""

    path: str | None = Field(
        default="prompts/risks.jsonl",
        description="Probes, each with how it is judged (pipeline/probe_set.py); null: neither these nor the openings"
        " of the run's own answers, by which recitation is measured.",
    )
    limit: Positive | None = Field(
        default=None,
        description="At most this many probes of each kind, and openings of each split; null: all, and 100 openings."
        " Few probes show large differences alone.",
    )
    max_tokens: Positive = Field(default=128, description="Longest answer to a probe, tokens.")


class Evaluate(Section):
    """evaluate: the student against its teacher."""

    chat_set: str | None = Field(default="prompts/chat_eval.jsonl", description="Chat items to answer; null for none.")
    chat_items: Positive | None = Field(
        default=None, description="At most this many chat items, spread over categories."
    )
    max_tokens: Positive = Field(default=512, description="Longest answer in evaluation, tokens.")
    temperature: float = Field(
        default=0.0, description="Sampling temperature of the answers; 0 is greedy.", ge=0, le=10
    )
    held_out_responses: Positive | None = Field(
        default=None, description="At most this many held-out answers for fidelity."
    )
    engine: EngineArgs = Field(
        default={},
        description="Passed to vLLM for evaluation, over teacher.engine: where another machine evaluates.",
    )
    batch_tokens: Positive = runtime(4096, "Tokens per teacher-forced forward pass.")
    risks: Risks = Field(default=Risks(), description="What goes wrong more often than in the teacher.")
    speed_concurrency: tuple[Positive, ...] = Field(
        default=(1, 8, 32),
        description="Requests at once of the throughput tests; the largest is what arms are compared by, and what costs"
        " are of. One request alone is always timed, for its latency.",
        min_length=1,
    )
    speed_tokens: Positive = Field(default=64, description="Output tokens per request of the speed test.")
    speed_rounds: Positive = Field(default=3, description="Rounds of the speed test.")
    interleave_speed: bool | None = Field(
        default=None,
        description="Hold teacher and student at once and time them in turn (A-B-B-A); null: yes on CPU, no on GPU.",
    )
    price_per_hour: float | None = Field(
        default=None,
        description="What the machine costs an hour, in any currency: evaluate then says what a million output tokens"
        " and the run cost; null: no costs.",
        ge=0,
    )
    bootstrap: Positive = Field(default=10_000, description="Bootstrap resamples of the intervals.")
    seed: int = Field(default=0, description="Seed of the bootstrap.", ge=0)


class Export(Section):
    """export: the student as a folder that vLLM and transformers load, with its card."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="Type of the exported weights."
    )


class Config(Section):
    """Everything one run does."""

    name: str = Field(default="", description="Name of the run, and of its folder.", pattern=r"^[\w][\w.-]*$")
    runs_dir: str = Field(default="runs", description="Folder that holds the runs.")
    teacher: Teacher = Teacher()
    prepare: Prepare = Prepare()
    generate: Generate = Generate()
    filter: Filter = Filter()
    privacy: Privacy = Privacy()
    safety: Safety = Safety()
    licence_policy: Literal["warn", "enforce", "off"] = runtime(
        "warn",
        "What to do about a teacher or a source whose licence restricts training on its texts (pipeline/licences.py):"
        " say so, stop before a token is generated, or nothing.",
    )
    student: Student = Student()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()

    @field_validator("runs_dir")
    @classmethod
    def _expand(cls, value: str) -> str:
        try:
            return str(Path(value).expanduser())
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _prompts_to_answer(self) -> "Config":
        if self.prepare.synthesis.num_prompts is not None and self.generate.mode == "score":
            raise ValueError(
                "prepare.synthesis writes prompts without answers: there is nothing for generate.mode=score"
            )
        return self

    @property
    def run_path(self) -> Path:
        return Path(self.runs_dir) / self.name


def load(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The validated config of a YAML file and `section.key=value` overrides.

    Raises UserError: missing file, malformed YAML or override, unknown key, value out of range.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; give its config, such as {path / 'config.yaml'}")
    if not path.is_file():
        raise UserError(f"{path}: no such config file; the shipped ones are in configs/")
    for override in overrides:
        if "=" not in override:
            raise UserError(f"{override!r} is no override: write section.key=value, e.g. train.learning_rate=1e-5")
    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise UserError(f"{path}: a config is a mapping of sections, such as `teacher:` and `train:`")
        tree = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        data = OmegaConf.to_container(tree, resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{path}: {_one_line(error)}") from error
    data = cast(dict[str, Any], data)
    data.setdefault("name", path.stem)
    return validate(data, str(path))


def validate(data: dict[str, Any], origin: str) -> Config:
    """The config of a plain dict; `origin` stands before each error message."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{origin}: " + "; ".join(_explain(item) for item in error.errors())) from None


class _Dumper(yaml.SafeDumper):
    """Quotes texts that OmegaConf reads as numbers and PyYAML does not, such as `1e5`."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9_.]+(?:[eE][-+]?[0-9]+)?$"), list("-+0123456789.")
)


def dump(config: Config) -> str:
    """The resolved config as YAML, that `load` reads back to the same config."""
    return dump_plain(config.model_dump(mode="json"))


def dump_plain(data: dict[str, Any]) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def dump_explained(config: Config) -> str:
    """The resolved config as YAML, each setting's meaning behind it."""
    lines: list[str] = []
    for name in Config.model_fields:
        value = getattr(config, name)
        if isinstance(value, Section):
            lines.append(f"{name}:  # {(type(value).__doc__ or '').strip()}")
            lines += [f"  {line}" for line in _explained_fields(value)]
        else:
            lines.append(f"{name}: {_flow(value)}  # {Config.model_fields[name].description}")
    return "\n".join(lines) + "\n"


def _explained_fields(section: Section) -> list[str]:
    values, lines = section.model_dump(mode="json"), []
    for key, field in type(section).model_fields.items():
        if isinstance(value := getattr(section, key), Section):
            lines.append(f"{key}:  # {field.description}")
            lines += [f"  {line}" for line in _explained_fields(value)]
        else:
            lines.append(f"{key}: {_flow(values[key])}  # {field.description}")
    return lines


def _flow(value: Any) -> str:
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=1 << 20, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def output_settings(section: Section) -> dict[str, Any]:
    """The section's settings that change what its stage writes, JSON-ready."""
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("runtime"):
            del values[name]
    return values


def fields(model: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Each setting's dotted name and its field, sections expanded."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def check_files(config: Config) -> None:
    """Raises UserError for a source or tracker that the config names and that is not there, or layers that are no list.

    So that a mistake about a late stage is found before the first.
    """
    for source in config.prepare.sources:
        for path, what in ((source.path, "prompts"), (source.template, "prompt template")):
            if path and not Path(path).is_file():
                raise UserError(f"{path}: no such file ({what}, prepare.sources); paths are from where you stand")
    for stage, sets in (("prepare", config.prepare.decontaminate), ("filter", config.filter.decontaminate)):
        for path in filter(None, (items.path for items in sets)):
            if not Path(path).is_file():
                raise UserError(
                    f"{path}: no such file (evaluation items, {stage}.decontaminate); paths are from where you stand"
                )
    for path in synthesis_files(config.prepare.synthesis):
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file (prepare.synthesis); paths are from where you stand")
    if config.evaluate.chat_set:
        chat_set.load(Path(config.evaluate.chat_set), None)
    if config.evaluate.risks.path:
        probe_set.load(Path(config.evaluate.risks.path), None)
    for tracker in config.train.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(f"train.report_to: {tracker} is not installed: pip install {tracker}")
    if config.train.lora and config.train.lora.bits and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("train.lora.bits: bitsandbytes is not installed: pip install bitsandbytes")
    check_counts(config.train, config.generate.support)
    if config.student.keep_layers is not None:
        layer_indices(config.student.keep_layers)


def synthesis_files(settings: Synthesis) -> list[str]:
    """The templates and documents that the methods in use read; none where nothing is synthesised."""
    if settings.num_prompts is None:
        return []
    methods = settings.shares()
    templates = [f"{settings.templates}/{name}.jinja" for method in methods for name in METHODS[method]]
    given = [path for source in settings.documents for path in (source.path, source.template) if path]
    return [*templates, *(given if "documents" in methods else [])]


def check_counts(train: Train, support: str) -> None:
    """Raises UserError where stored counts of draws are asked for what they are not unbiased for."""
    if support != "sampled" or train.targets == "live" or train.kd_weight == (train.kd_weight_end or 0) == 0:
        return
    by_teacher = train.positions_frac if train.positions_by == "teacher_entropy" else 1  # chosen by their own noise
    for name, value, only in (
        ("divergence", train.divergence, "forward_kl"),
        ("temperature", train.temperature, 1),
        ("positions_frac", by_teacher, 1),
        ("tail", train.tail, "bucket"),
    ):
        if value != only:
            raise UserError(
                f"train.{name}={value}: counts of draws (generate.support=sampled) are unbiased for"
                f" {name}={only} alone; generate with support=drawn or top, or set train.targets=live"
            )


def layer_indices(keep_layers: str) -> list[int]:
    """`0-2,5` as [0, 1, 2, 5]. Raises UserError where it is not an ascending list of layers."""
    indices: list[int] = []
    try:
        for part in keep_layers.replace(" ", "").split(","):
            first, _, last = part.partition("-")
            indices.extend(range(int(first), int(last or first) + 1))
    except ValueError:
        raise UserError(f"student.keep_layers {keep_layers!r}: write ranges such as 0-11,18-29") from None
    if not indices or indices != sorted(set(indices)):
        raise UserError(f"student.keep_layers {keep_layers!r}: layers must ascend, each once")
    return indices


def _explain(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(location[-1], _names(location[:-1]), n=1, cutoff=0.5)
        elsewhere = [name for name, _ in fields() if name.rpartition(".")[2] == location[-1]]
        meant = elsewhere or [".".join([*location[:-1], nearest[0]]) for _ in nearest]
        return f"unknown key {key}" + (f"; did you mean {' or '.join(meant)}?" if meant else "")
    message = error["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, such as [a, b]")
    message = message.replace("a valid dictionary or instance of Source", "a mapping, such as {path: prompts.jsonl}")
    message = re.sub(r"a valid dictionary or instance of \w+", "a mapping of settings", message)
    value = error["input"]
    given = "" if isinstance(value, dict) else f" (given {value!r})"
    return f"{key}: {message[0].lower()}{message[1:]}{given}" if key else message


def _names(location: list[str]) -> list[str]:
    """The valid names at a place in the config, for the nearest-name hint."""
    model: type[Section] = Config
    for part in location:
        if part.isdigit():
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))
    return list(model.model_fields)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
