"""Sections about prompts and answers: sources, evaluation sets, what the teacher writes, prepare and generate."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Fraction, Positive, Section, runtime
from pipeline.data import shipped
from pipeline.errors import UserError

METHODS = {  # by which the teacher writes prompts, and the templates of each
    "magpie": ("magpie",),
    "self_instruct": ("self_instruct",),
    "evolve": ("deepen", "widen", "constrain"),
    "documents": ("documents",),
}


class Origin(Section):
    """Where rows come from: exactly one of `path` and `dataset`."""

    path: str | None = Field(
        default=None,
        description="Local file, folder, or pattern such as data/*.jsonl.gz: .json, .jsonl, .csv, .tsv or .txt (one row"
        " a line), each also packed as .gz, .bz2, .xz or .zst; .parquet, .arrow; or a folder of `save_to_disk`.",
    )
    dataset: str | None = Field(default=None, description="`datasets` name on the hub, or a local dataset folder.")
    subset: str | None = Field(default=None, description="Configuration name of the dataset.")
    dataset_split: str = Field(
        default="train",
        description="Split of the dataset to read, or a part of it, as train[:5%], for which it is downloaded whole.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a dataset on the hub.")
    data_files: tuple[str, ...] = Field(
        default=(), description="Files of the dataset to read, as data/en-*.parquet; none named: as its card says."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of path and dataset")
        if self.path is not None and (self.revision is not None or self.data_files):
            raise ValueError("revision and data_files go with dataset, not with path")
        return self


class Source(Origin):
    """One place prompts come from: exactly one of `path` and `dataset`.

    Where `messages`, `prompt` and `completion` are as they are here, each row is read as its columns tell
    (pipeline/prepare/formats.py).
    """

    messages: str = Field(
        default="messages",
        description="Column with a conversation. The default: known formats are told by their columns.",
    )
    prompt: str = Field(
        default="prompt", description="Column with a bare prompt. The default: known formats are told by their columns."
    )
    completion: str = Field(
        default="completion",
        description="Column with the answer to a bare prompt, for generate.mode=score; the default as above.",
    )
    tools: str = Field(
        default="tools", description="Column with the tools of the conversation, a list or JSON; need not exist."
    )
    licence: str | None = Field(
        default=None,
        description="Licence of its rows, as cc-by-4.0; a row's own column `licence` or `license` wins. null: what the"
        " dataset's card says, which is the README.md beside local files.",
    )
    category: str = Field(
        default="category", description="Column with the prompt's label, or a list of labels; need not exist."
    )
    template: str | None = Field(
        default=None,
        description="Jinja file whose text becomes the user message. Its variables are the row's columns; `row` holds"
        " those whose names can't be variables: row['the text']. A null is written as nothing.",
    )
    system: str | None = Field(default=None, description="System message put before each prompt that has none.")
    limit: Positive | None = Field(default=None, description="Read at most this many rows.")
    weight: float = Field(
        default=1.0,
        description="Share of its prompts that is taken, chosen by each prompt's own hash: a larger share keeps all"
        " that a smaller one took.",
        gt=0,
        le=1,
    )


class EvaluationSet(Origin):
    """Items that are asked in an evaluation: exactly one of `path` and `dataset`."""

    dataset_split: str = Field(default="test", description="Split of the dataset to read.")
    columns: tuple[str, ...] = Field(
        default=("turns", "messages", "prompt", "question", "problem", "instruction", "text"),
        description="Columns whose text no corpus may repeat, those of them that a row has: text, a list of texts, or"
        " OpenAI-style messages, of which the user's count.",
    )
    limit: Positive | None = Field(default=None, description="Read at most this many rows.")


# From here on a text is nearly another. Below, MinHash's bands miss too many: see pipeline/text/duplicates.py.
NearDuplicates = Annotated[float, Field(ge=0.7, le=1)]


class Weights(Section):
    """How the prompts that the teacher writes are shared out among the methods, in proportion; 0 turns one off."""

    magpie: float = Field(
        default=1.0, description="The teacher sees an empty user turn, and writes the user's message.", ge=0
    )
    self_instruct: float = Field(
        default=1.0, description="The teacher sees some prompts of one category, and writes another.", ge=0
    )
    evolve: float = Field(
        default=1.0, description="The teacher sees a prompt, and makes it deeper, wider or more constrained.", ge=0
    )
    documents: float = Field(
        default=1.0,
        description="The teacher sees a passage of `documents`, and asks about it. Without documents there are no "
        "such prompts.",
        ge=0,
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
        default="prompts/templates",
        description="Folder of Jinja files with what the teacher is asked, one for each method. Variables: magpie has"
        " `category`, self_instruct `category` and `examples`, deepen, widen and constrain `prompt`, documents"
        " `passage`.",
    )
    temperature: float = Field(default=0.8, description="Sampling temperature of drafts.", gt=0, le=10)
    top_p: float = Field(default=0.95, description="Nucleus sampling of drafts, 0-1.", gt=0, le=1)
    max_tokens: Positive = Field(
        default=256, description="Longest draft, tokens (a teacher's reasoning counts too); longer ones are dropped."
    )
    seed: int = Field(default=0, description="Seed. The same seed gives the same drafts.", ge=0)
    round_drafts: Positive = Field(
        default=256, description="Drafts asked for and committed together. A crash loses at most these."
    )

    @model_validator(mode="after")
    def _some_method(self) -> "Synthesis":
        if self.num_prompts is not None and not self.shares():
            raise ValueError("no method has both a weight and what it is made from (see weights and documents)")
        if any(source.weight != 1 for source in self.documents):
            raise ValueError("a document has no weight: all its passages may be asked about")
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
        default="error", description="If a row has no usable prompt: stop and say where it is, or skip and count it."
    )
    decontaminate: tuple[EvaluationSet, ...] = Field(
        default=tuple(EvaluationSet(path=f"prompts/{name}.jsonl") for name in ("chat_eval", "tasks", "risks")),
        description="Evaluation items: a prompt that repeats one (a 13-gram of words, or half of its 8-grams) is left"
        " out and listed in contamination.jsonl; filter checks the answers against the same. Name your benchmarks.",
    )
    near_duplicates: NearDuplicates | None = Field(
        default=0.72,
        description="A prompt this similar to an earlier one (Jaccard of 5-grams of words, without those that many"
        " prompts share) is left out and listed in near_duplicates.jsonl, so near copies are never on both sides of the"
        " split; null: only exact copies are left out.",
    )
    max_prompts: Positive | None = Field(
        default=None, description="Take only the first N distinct prompts of the sources."
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
        default="sample",
        description="sample: the teacher answers the prompts. score: it scores the answers that the sources have.",
    )
    num_samples: Positive = Field(default=1, description="Answers per prompt.")
    temperature: float = Field(default=1.0, description="Sampling temperature; 0 is greedy.", ge=0, le=10)
    top_p: float = Field(default=1.0, description="Nucleus sampling, 0-1.", gt=0, le=1)
    top_k: int = Field(default=0, description="Sample among this many best tokens; 0 is all.", ge=0)
    max_tokens: Positive = Field(default=512, description="Longest answer, tokens.")
    k: Positive = Field(
        default=64,
        description="Log-probs a token: the teacher's K best.",
        le=65_535,  # entries of a row that pipeline/codec.py can count
    )
    support: Literal["top", "nucleus", "drawn", "sampled"] = Field(
        default="top",
        description="Which of the K best are stored. top: all. nucleus: the likeliest, up to nucleus_mass. drawn: "
        "those that num_draws draws hit. Each is stored with its log-prob, and the mass of all others "
        "with them. sampled: the counts of the draws: smallest, unbiased within the K best, and no mass "
        "outside them, so take a large k such as 256.",
    )
    nucleus_mass: Fraction = Field(
        default=0.98, description="nucleus: store the likeliest entries until they hold this mass, 0-1."
    )
    nucleus_min: Positive = Field(default=4, description="nucleus: fewest entries per token.")
    num_draws: Positive = Field(
        default=50, description="drawn, sampled: draws a token, evenly spaced so that they vary least.", le=127
    )
    seed: int = Field(
        default=0, description="Seed. Each response has its own stream, made from the seed and its id.", ge=0
    )
    shard_responses: Positive = Field(
        default=256, description="Responses per Parquet file; a crash loses at most the files in flight."
    )
    reuse: tuple[str, ...] = runtime(
        (),
        "Folders of finished runs with the same teacher and settings. A prompt that one of them has "
        "answered keeps that answer; only the others are generated.",
    )
    pilot_prompts: Positive = runtime(50, "Prompts that `retort plan` answers, spread over all.")
    price_per_hour: float | None = runtime(
        None, "Price of the machine an hour, in any currency, for the estimate of `retort plan`.", ge=0
    )

    @model_validator(mode="after")
    def _scored_once(self) -> "Generate":
        if self.mode == "score" and self.num_samples != 1:
            raise ValueError("mode=score reads each answer once: num_samples must be 1")
        return self


def synthesis_files(settings: Synthesis) -> list[str]:
    """The templates and documents that the methods in use read; none where nothing is synthesised.

    Raises UserError for one that is missing.
    """
    if settings.num_prompts is None:
        return []
    methods = settings.shares()
    templates = [f"{settings.templates}/{name}.jinja" for method in methods for name in METHODS[method]]
    given = [path for source in settings.documents for path in (source.path, source.template) if path]
    paths = [*templates, *(given if "documents" in methods else [])]
    for path in paths:
        if not shipped.find(path).is_file():
            raise UserError(f"{path}: no such file (prepare.synthesis); paths are from where you stand")
    return paths
