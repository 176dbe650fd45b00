"""Which responses an id means: one, all of a prompt, or the one whose id begins so if there is no other."""

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_shards

MOST_SHOWN = 3


class Named(NamedTuple):
    """A prompt, and those of its responses that are meant; none if generate has not finished."""

    prompt_id: str
    response_ids: list[str]


def named(run_dir: RunDir, given: str) -> Named:
    """What an id stands for. Raises UserError if nothing has it, or several ids begin with it."""
    found: dict[str, list[str]] = {}
    prompts: set[str] = set()
    for prompt_id, response_id in _ids(run_dir):
        if response_id == given:
            return Named(prompt_id, [given])
        if prompt_id.startswith(given) or (response_id or "").startswith(given):
            prompts.add(prompt_id)
            found.setdefault(prompt_id, []).extend([response_id] if response_id else [])
    chosen = [given] if given in prompts else sorted(prompts)
    if len(chosen) > 1:
        shown = ", ".join(chosen[:MOST_SHOWN]) + (", ..." if len(chosen) > MOST_SHOWN else "")
        raise UserError(f"{run_dir.path}: {len(chosen)} ids begin with {given!r}: {shown}; give more of the id")
    if not chosen or not given:
        stage = "generate" if run_dir.is_done("generate") else "prepare"
        raise UserError(
            f"{run_dir.path}: no response or prompt has the id {given!r}; ids are in {run_dir.stage_path(stage)}"
        )
    return Named(chosen[0], found[chosen[0]])


def _ids(run_dir: RunDir) -> Iterator[tuple[str, str | None]]:
    """`(prompt_id, response_id)` of every response, or of every prompt if none is answered."""
    if run_dir.is_done("generate"):
        for table in read_shards(run_dir, "generate", ["prompt_id", "response_id"]):
            yield from zip(*(table.column(name).to_pylist() for name in ("prompt_id", "response_id")), strict=True)
        return
    for table in read_shards(run_dir, "prepare", ["prompt_id"]):
        yield from ((prompt_id, None) for prompt_id in table.column("prompt_id").to_pylist())
