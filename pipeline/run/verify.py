"""What a run's files prove about themselves, without a model: nothing lost, doubled, shifted or altered."""

from collections.abc import Iterator
from typing import Any

from pipeline.console import counted, progress
from pipeline.errors import UserError
from pipeline.records import STAGES, split_of
from pipeline.run import alignment
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_planned, read_shards, shard_paths

Row = dict[str, Any]
RESPONSE_COLUMNS = ["response_id", "split", "prompt_token_ids", "token_ids", "token_logprobs", "logprobs"]


def run(run_dir: RunDir) -> list[tuple[str, str]]:
    """`(stage, what was proved)` of each stage.

    Raises UserError at the first file, row or token that is not as it should be, naming it; or where nothing finished.
    """
    finished = [stage for stage in STAGES if run_dir.is_done(stage)]
    run_dir.manifest("prepare")
    for stage in finished:
        run_dir.check_files(stage)
    checks = {"prepare": _prompts, "generate": _responses, "filter": _decisions}
    proved = []
    for stage in STAGES:
        if stage not in finished:
            proved.append((stage, "has not finished; nothing is proved of it"))
            continue
        num_files = len(run_dir.manifest(stage)["files"])
        told = checks[stage](run_dir) if stage in checks else "nothing more to prove from files"
        proved.append((stage, f"{counted(num_files, 'file')} unaltered; {told}"))
    return proved


def _prompts(run_dir: RunDir) -> str:
    manifest, seen = run_dir.manifest("prepare"), set[str]()
    held_out_frac = manifest["fingerprint"].get("prepare.held_out_frac")
    columns = ["prompt_id", "prompt_token_ids", "conversation_id", "split", "method"]
    for place, row in _rows(run_dir, "prepare", columns):
        if row["prompt_id"] in seen:
            raise UserError(f"{place}: prompt {row['prompt_id']} is there twice")
        if not row["prompt_token_ids"]:
            raise UserError(f"{place}: prompt {row['prompt_id']} has no tokens")
        if held_out_frac is not None and row["split"] != split_of(row["conversation_id"], row["method"], held_out_frac):
            raise UserError(f"{place}: prompt {row['prompt_id']} is on the other side of the split than its hash says")
        seen.add(row["prompt_id"])
    told = f"{counted(len(seen), 'prompt')}, each once"
    if held_out_frac is not None:
        told += " and on the side of the split that its hash says"
    parts = manifest.get("parts", [len(seen)])
    if sum(parts) != len(seen):
        raise UserError(f"{run_dir.path}/prepare: {len(seen)} prompts, but the manifest counts {sum(parts)} as it grew")
    if len(parts) > 1:
        told += f" ({' + '.join(map(str, parts))} as it grew)"
    return f"{told}; {_written(run_dir)}" if "synthesis" in manifest else told


def _written(run_dir: RunDir) -> str:
    """What the teacher wrote is to train on, and so is all that it was shown."""
    rows = list(_rows(run_dir, "prepare", ["prompt_id", "split", "method", "parents"]))
    is_train = {row["prompt_id"]: row["split"] == "train" for _, row in rows}
    written = [(place, row) for place, row in rows if row["method"] != "source"]
    for place, row in written:
        of_prompts = row["parents"] if row["method"] != "documents" else []  # else the passage's place
        if not all(is_train.get(prompt_id) for prompt_id in [row["prompt_id"], *of_prompts]):
            raise UserError(f"{place}: prompt {row['prompt_id']} is held out, or made from one that is or is not there")
    return f"the teacher wrote {len(written)} of them, all to train on, from none that is held out"


def _responses(run_dir: RunDir) -> str:
    """Responses stand in the order of the prompts, so they are compared with the plan as both are read."""
    manifest = run_dir.manifest("generate")
    num_samples = manifest["fingerprint"]["generate.num_samples"]
    planned = read_planned(run_dir, ["split", "prompt_token_ids", "completion_token_ids"], num_samples)
    num_responses = num_tokens = 0
    worst = 0.0
    with progress("responses") as bar:
        task = bar.add_task("verify", total=manifest["counts"]["responses"], note="")
        for place, row in _rows(run_dir, "generate", RESPONSE_COLUMNS):
            expected = next(planned, {"response_id": "none"})
            if row["response_id"] != expected["response_id"]:
                raise UserError(f"{place}: response {row['response_id']}, where {expected['response_id']} was planned")
            for key in ("split", "prompt_token_ids"):
                if row[key] != expected[key]:
                    raise UserError(f"{place}: response {row['response_id']} has another {key} than its prompt")
            if expected["completion_token_ids"] not in (None, row["token_ids"]):
                raise UserError(f"{place}: response {row['response_id']} is not the text that was to be scored")
            try:
                worst = max(worst, alignment.check(row, manifest["vocab_size"]))
            except UserError as problem:
                raise UserError(f"{place}: {problem}") from None
            num_responses += 1
            num_tokens += len(row["token_ids"])
            bar.update(task, advance=1, note=f"{num_tokens} tokens")
    if (left := next(planned, None)) is not None:
        raise UserError(
            f"{run_dir.path}/generate: response {left['response_id']} is missing, and so is what follows it"
        )
    return (
        f"{counted(num_responses, 'response')}, each once and with its prompt; {counted(num_tokens, 'token')}, each"
        f" with a row that sums to 1 and has the token's own log-prob, to {worst:.2g} nats"
    )


def _decisions(run_dir: RunDir) -> str:
    responses = _rows(run_dir, "generate", ["response_id"])
    num = 0
    for place, row in _rows(run_dir, "filter", ["response_id", "kept", "reasons"]):
        _, expected = next(responses, ("", {"response_id": "none"}))
        if row["response_id"] != expected["response_id"]:
            raise UserError(f"{place}: a decision about {row['response_id']}, where {expected['response_id']} stands")
        if row["kept"] == bool(row["reasons"]):
            raise UserError(f"{place}: {row['response_id']} is kept with a reason to drop it, or dropped without one")
        num += 1
    if (left := next(responses, None)) is not None:
        raise UserError(f"{run_dir.path}/filter: no decision about {left[1]['response_id']}, nor about what follows it")
    return f"{counted(num, 'decision')}, one for each response"


def _rows(run_dir: RunDir, stage: str, columns: list[str]) -> Iterator[tuple[str, Row]]:
    """`(file:row, row)` of every row of a stage, rows counted from 1 as lines are."""
    for path, table in zip(shard_paths(run_dir, stage), read_shards(run_dir, stage, columns), strict=True):
        for number, row in enumerate(table.to_pylist(), 1):
            yield f"{path}:{number}", row
