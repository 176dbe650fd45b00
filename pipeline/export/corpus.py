"""The kept answers as a folder that `datasets` loads, with a card made from the manifests; and its way to the hub."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from huggingface_hub.errors import HfHubHTTPError

from pipeline.config import Privacy
from pipeline.errors import UserError
from pipeline.export import cards, snippets
from pipeline.models import lookup
from pipeline.records import MESSAGE, PROMPTS, RESPONSES
from pipeline.report.figures import setting_text, words
from pipeline.run.files import first_line, folder_hash, user_disk_errors, write_table
from pipeline.run.manifest import ManifestRow
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_answers, read_planned, shard_paths
from pipeline.screening import privacy

Row = dict[str, Any]
SPLITS = ("train", "held_out")
ORIGIN = ("source", "licence", "method", "parents", "template")  # of a prompt; null in runs of earlier versions
PLAIN = pa.schema(
    [
        ("response_id", pa.string()),
        ("prompt_id", pa.string()),
        ("category", pa.string()),
        *(PROMPTS.field(name) for name in ORIGIN),
        ("teacher", pa.string()),
        ("teacher_revision", pa.string()),
        ("chat_template", pa.string()),  # its hash
        ("run", pa.string()),
        ("messages", pa.list_(MESSAGE)),  # the conversation with the teacher's answer as its last message
        ("tools", pa.string()),
        ("finish_reason", pa.string()),
    ]
)
CAPTURED = ("prompt_token_ids", "token_ids", "token_logprobs", "logprobs")
FOLDER = "corpus"  # in a run


def write(run_dir: RunDir, with_logprobs: bool = False) -> Path:
    """Write <run>/corpus: Parquet files by split, and README.md; an earlier one is replaced as a whole.

    The files' names hold a hash of all of them: `datasets` knows a corpus in its cache by the folder's name and by the
    names in the card, so would give another run's rows, or those of an earlier export.

    Tokens that filter masked leave no trace: in the text stands a placeholder, such as <EMAIL>, and an answer that
    would be handed on with its token ids, which spell it, is left out. Raises UserError where filter has not finished,
    or a file is damaged.
    """
    target, temporary = run_dir.path / FOLDER, run_dir.path / f".{FOLDER}.tmp"
    schema = pa.schema([*PLAIN, *(RESPONSES.field(name) for name in CAPTURED)]) if with_logprobs else PLAIN
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "data").mkdir(parents=True)
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    personal: Counter[str] = Counter(redacted=0, left_out=0)
    with user_disk_errors(target):
        for number, rows in enumerate(_kept(run_dir, with_logprobs, personal)):
            for split in SPLITS:
                of_split = [row for row in rows if row["split"] == split]
                counts[split] += len(of_split)
                if of_split:
                    path = temporary / "data" / f"{split}-{number:05d}.parquet"
                    write_table(pa.Table.from_pylist(of_split, schema=schema), path)
        version = _name_by_content(temporary / "data")
        card(run_dir, counts, with_logprobs, personal, version).save(temporary / "README.md")
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
    return target


def push(folder: Path, repo: str, endpoint: str | None = None) -> str:
    """Upload a corpus to a private dataset repository of the hub; returns its address. The token is HF_TOKEN's.

    The rows of an earlier push are deleted in the same commit. Raises UserError if the hub refuses.
    """
    api = HfApi(endpoint=endpoint)
    try:
        url = api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repo,
            repo_type="dataset",
            commit_message="Corpus from Retort",
            delete_patterns="data/*",  # those of an earlier push
        )
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise UserError(
            f"{repo}: the hub refuses the upload ({first_line(error)}); HF_TOKEN must allow writing there"
        ) from None
    return str(url)


def _name_by_content(data: Path) -> str:
    """Put a hash of all files into the name of each, as `train-<hash>-00000.parquet`; returns the hash."""
    version = folder_hash(data)[:12]
    for path in sorted(data.iterdir()):
        split, number = path.name.rsplit("-", 1)
        path.rename(data / f"{split}-{version}-{number}")
    return version


def _metadata(counts: dict[str, int], is_demo: bool, version: str) -> DatasetCardData:
    """What the hub and `datasets` read of a card."""
    return DatasetCardData(
        license=lookup.DEMO_LICENCE if is_demo else None,
        task_categories=["text-generation"],
        tags=["distillation", "synthetic"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": s, "path": f"data/{s}-{version}-*.parquet"} for s in SPLITS if counts[s]],
            }
        ],
    )


def card(
    run_dir: RunDir, counts: dict[str, int], with_logprobs: bool, personal: dict[str, int], version: str
) -> DatasetCard:
    """What the corpus is, where it comes from, what was left out, and how to read it; all from the manifests.

    `personal` says of how many answers a part was replaced, and how many were left out, for the personal data in them;
    `version` is the hash in the files' names.
    """
    generated, filtered = run_dir.manifest("generate"), run_dir.manifest("filter")
    made = generated["fingerprint"]
    is_demo = made["teacher.model"] == lookup.DEMO
    sampled = ("temperature", "top_p", "top_k", "max_tokens", "num_samples", "seed")
    sampling = ", ".join(f"{key} {made.get(f'generate.{key}')}" for key in sampled)
    is_scored = made.get("generate.mode") == "score"
    origin = "Answers that the sources had, scored by" if is_scored else "Answers of"
    settings = filtered.get("settings", {})
    drops = "\n".join(
        f"| {words(row['reason'])} | {row['dropped']} | {setting_text(row['reason'], settings)} |"
        for row in filtered["waterfall"]
    )
    revision = made.get("teacher.revision") or "not pinned"
    licence = "" if is_demo else "- The licences of the teacher and of the prompts apply: see them before you share\n"
    handed_on = f"Of the answers handed on here {personal['redacted']} have placeholders"
    handed_on += f"; {personal['left_out']} more were left out: their token ids would spell what the text leaves out."
    handed_on = handed_on if any(personal.values()) else ""
    first = next((split for split in SPLITS if counts[split]), SPLITS[0])
    return DatasetCard(f"""---
{_metadata(counts, is_demo, version).to_yaml()}
---

# {run_dir.path.name}

{origin} {lookup.described(made["teacher.model"])}, captured with Retort through {made["vllm"]}.

- Splits: {", ".join(f"{split} {num}" for split, num in counts.items())} answers. Each prompt is in one split only.
- Prompts: {_origin(run_dir.manifest("prepare"))}
- Teacher: {made["teacher.model"]}, revision {revision}, weights `{made["teacher.weights"]}`
- Sampling: {"none, the answers are not the teacher's" if is_scored else sampling}
- Made {generated["finished"]}
{licence}
## What was left out

{filtered["counts"]["kept"]} of {filtered["counts"]["responses"]} answers were kept. Each dropped answer
is counted under the first rule that dropped it.

| rule | dropped | setting |
|---|---|---|
{drops}

{cards.intended_use("corpus")}
{cards.licences_section(run_dir)}
{cards.decontamination_section(run_dir)}
{cards.personal_section(run_dir, handed_on)}
{cards.safety_section(run_dir)}
{snippets.of_corpus(FOLDER, first, with_logprobs)}
{cards.questions(run_dir, "corpus")}""")


def _origin(prepared: ManifestRow) -> str:
    """How many prompts of the whole run come from the sources, and how many the teacher wrote, by which method."""
    methods = prepared.get("synthesis", {}).get("methods", {})
    written = {method: tally["written"] for method, tally in methods.items() if tally["written"]}
    told = f"{prepared['counts']['prompts'] - sum(written.values())} from the sources"
    if not written:
        return told
    listed = ", ".join(f"{words(method)} {num}" for method, num in written.items())
    return (
        f"{told}, {sum(written.values())} written by the teacher itself ({listed}; column `method`; `parents` are the"
        " prompts or passages it was shown), all of them in the train split"
    )


def _kept(run_dir: RunDir, with_logprobs: bool, personal: Counter[str]) -> Iterator[list[Row]]:
    """The kept answers of each shard, with their conversations; responses stand in the order of the prompts."""
    made = run_dir.fingerprint("generate")
    known = set(ORIGIN) & set(pq.read_schema(shard_paths(run_dir, "prepare")[0]).names)
    prompts = read_planned(run_dir, ["messages", "tools", *known], made["generate.num_samples"])
    settings = _privacy(run_dir)
    origin = {
        "teacher": made["teacher.model"],
        "teacher_revision": made.get("teacher.revision"),
        "chat_template": made.get("teacher.chat_template"),
        "run": run_dir.path.name,
    }
    columns = ["response_id", "prompt_id", "split", "category", "text", "reasoning", "finish_reason"]
    for answers, kept in read_answers(run_dir, [*columns, *(CAPTURED if with_logprobs else ())]):
        rows = []
        for answer, is_kept, prompt in zip(answers.to_pylist(), kept.to_pylist(), prompts, strict=False):
            if prompt["response_id"] != answer["response_id"]:
                raise UserError(f"{run_dir.path}: answers and prompts are not in one order; see retort verify")
            if is_kept and (clean := _clean(answer, settings, with_logprobs, personal)):
                told = {"content": clean["text"], "reasoning_content": clean.get("reasoning") or None}
                messages = [*prompt["messages"], {"role": "assistant", **told}]
                kept_of_prompt = {key: prompt.get(key) for key in ("tools", *ORIGIN)}
                rows.append({**clean, **kept_of_prompt, **origin, "messages": messages})
        yield rows


def _privacy(run_dir: RunDir) -> Privacy:
    """What filter looked for. Raises UserError where an earlier version did not look."""
    screening = run_dir.manifest("filter").get("screening")
    if screening is None:
        raise UserError(
            f"{run_dir.path}: another version of Retort filtered it, which looked for no personal data; filter again:"
            f" {run_dir.command('filter', '--fresh')}"
        )
    return Privacy.model_validate(screening["privacy"])


def _clean(answer: Row, settings: Privacy, with_logprobs: bool, personal: Counter[str]) -> Row | None:
    """An answer as it may be handed on: its masked tokens as placeholders; None where that can't be."""
    if not answer["masked_spans"]:
        return answer
    texts = None if with_logprobs else privacy.redacted_answer(answer, settings)
    if texts is None:
        personal["left_out"] += 1
        return None
    personal["redacted"] += 1
    return {**answer, **texts}
