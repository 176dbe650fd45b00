"""What a stage's manifest.json and started.json hold, with the type of each key.

A fingerprint has a key for each setting that changes what a stage writes (`generate.num_samples`), and keys for what
the stage read: weights, files, the output of an earlier stage. Each stage has some of these keys, and runs of older
versions lack some: read a key that may be missing with `.get`.
"""

from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
INPUT = "input."  # a fingerprint's key of another stage's output

Fingerprint = TypedDict(
    "Fingerprint",
    {
        "input.prepare": str,  # hashes of what those stages wrote
        "input.generate": str,
        "teacher.model": str,
        "teacher.revision": str | None,
        "teacher.weights": str,  # hash
        "teacher.tokenizer": str,  # hash
        "teacher.chat_template": str,  # hash
        "teacher.chat_template_kwargs": dict[str, Any],
        "teacher.date": str,  # that the template sees
        "teacher.engine": dict[str, Any],
        "teacher.reasoning_tags": list[str],
        "teacher.served": dict[str, Any],  # what the servers said of themselves
        "vllm": str,  # `vllm 0.32.0`
        "prepare.sources": list[dict[str, Any]],
        "prepare.held_out_frac": float | None,
        "prepare.decontaminate": list[dict[str, Any]],
        "generate.mode": Literal["sample", "score"],
        "generate.num_samples": int,
        "generate.support": str,
        "generate.temperature": float,
        "generate.top_p": float,
        "generate.top_k": int,
        "filter.selection": dict[str, Any],
        "filter.selection.judge": Any,  # null if no judge is asked
        "filter.decontaminate": list[dict[str, Any]] | None,
        "student.model": str | None,
        "student.config": str | None,
        "student.keep_layers": Any,
        "train.reasoning": str,
        "train.max_length": int,
        "train.divergence": str,
        "train.temperature": float,
        "train.targets": str,
        "train.tail": str,
        "evaluate.judge": Any,  # null if no judge is asked
        "evaluate.harness": dict[str, Any],
        "evaluate.chat_set": str | None,
        "evaluate.chat_set.hash": str,
    },
)


class FileRow(TypedDict):
    """One file of a complete stage."""

    name: str  # within the stage's folder
    bytes: int
    sha256: str
    rows: int  # of a Parquet file


class ManifestRow(TypedDict):
    """manifest.json, with the facts that each stage adds."""

    schema_version: Literal[1]
    stage: str
    fingerprint: Fingerprint
    accepted: list[dict[str, Any]]  # changes that `--accept` took: key, was, is
    files: list[FileRow]
    counts: dict[str, Any]
    versions: dict[str, str]
    elapsed_s: float
    num_tries: int | None
    finished: str  # when, ISO 8601
    grown_from: list[str]  # hashes of the stage's output before it grew
    # prepare
    parts: list[int]  # prompts of each growth
    chat_template: dict[str, Any]
    licences: Any
    left_out: Any
    held_out_left_out: dict[str, int]
    synthesis: dict[str, Any]
    # generate
    alignment: str
    k: int
    vocab_size: int
    teacher_dtype: str
    engine_start_s: float
    generated_tokens: int
    generating_s: float
    # filter
    waterfall: list[dict[str, Any]]
    held_out: dict[str, Any]
    settings: dict[str, Any]
    limits: dict[str, Any]
    screening: dict[str, Any]
    graded: dict[str, Any]
    # train
    arms: dict[str, Any]
    student: dict[str, Any]
    contract: dict[str, Any]
    dtype: str
    # export
    evaluated: str  # when


class FileRecord(BaseModel):
    """What is checked of a file's row."""

    name: str
    bytes: int
    sha256: str


class Started(BaseModel):
    """What is checked of started.json; a stage may add more."""

    model_config = ConfigDict(extra="allow")

    fingerprint: dict[str, Any]
    accepted: list[dict[str, Any]]
    facts: dict[str, Any] = {}
    began_s: float | None = None  # of the last try, since 1970; None: another version began it
    spent_s: float = 0  # by the tries before it
    num_tries: int | None = None  # None: not known


class Manifest(Started):
    """What is checked of manifest.json; a stage may add more."""

    schema_version: Literal[1]
    files: list[FileRecord]
    counts: dict[str, Any]
    elapsed_s: float  # of all tries whose files are in it: of a stopped one until its newest file
    finished: str
