"""Which responses each shard holds: every one once, in order, the same every time."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import generate
from pipeline.config import Config, validate
from pipeline.run import shards
from pipeline.run.rundir import RunDir

quick = settings(max_examples=100, deadline=None, database=None)
Plan = dict[str, list[dict[str, Any]]]


def config_with(num_samples: int, shard_responses: int) -> Config:
    return validate({"name": "t", "generate": {"num_samples": num_samples, "shard_responses": shard_responses}}, "test")


def plan(config: Config, run_dir: RunDir, prompts_per_file: list[int], parts: list[int] | None = None) -> Plan:
    """The plan over prompts p0, p1, ... that lie in files of these lengths; of a run that grew, `parts` at a time."""
    manifest = {"counts": {"prompts": sum(prompts_per_file)}, **({"parts": parts} if parts else {})}
    ends = [sum(prompts_per_file[: i + 1]) for i in range(len(prompts_per_file))]
    files = [range(end - length, end) for end, length in zip(ends, prompts_per_file, strict=True)]
    tables = [
        pa.table({"prompt_id": [f"p{i}" for i in numbers], "split": ["train"] * len(numbers)}) for numbers in files
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "read_shards", lambda *_: iter(tables))
        patch.setattr(RunDir, "manifest", lambda *_: manifest)
        return dict(generate.planned(run_dir, config))


plans = given(
    prompts_per_file=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    num_samples=st.integers(1, 5),
    shard_responses=st.integers(1, 40),
)


@quick
@plans
def test_every_response_is_planned_once_in_order(
    prompts_per_file: list[int], num_samples: int, shard_responses: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = RunDir(tmp_path_factory.getbasetemp())
    shards = plan(config_with(num_samples, shard_responses), run_dir, prompts_per_file)
    ids = [row["response_id"] for name in sorted(shards) for row in shards[name]]
    assert ids == [f"p{i}-{sample}" for i in range(sum(prompts_per_file)) for sample in range(num_samples)]


@quick
@plans
def test_every_shard_but_the_last_is_full_and_none_is_empty(
    prompts_per_file: list[int], num_samples: int, shard_responses: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = RunDir(tmp_path_factory.getbasetemp())
    shards = plan(config_with(num_samples, shard_responses), run_dir, prompts_per_file)
    lengths = [len(shards[name]) for name in sorted(shards)]
    assert all(length == shard_responses for length in lengths[:-1])
    assert all(0 < length <= shard_responses for length in lengths[-1:])


def test_how_prompts_lie_in_files_does_not_change_the_plan(tmp_path: Any) -> None:
    config = config_with(2, 3)
    assert plan(config, RunDir(tmp_path), [5, 0, 2]) == plan(config, RunDir(tmp_path), [7])


@quick
@plans
def test_what_is_planned_before_a_run_grows_stays_as_it_is(
    prompts_per_file: list[int], num_samples: int, shard_responses: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config, run_dir = config_with(num_samples, shard_responses), RunDir(tmp_path_factory.getbasetemp())
    parts = [num for num in prompts_per_file if num]
    whole = plan(config, run_dir, prompts_per_file, parts)
    before = plan(config, run_dir, parts[:-1], parts[:-1])
    assert {name: whole[name] for name in before} == before
    ids = [row["response_id"] for name in sorted(whole) for row in whole[name]]
    assert ids == [f"p{i}-{sample}" for i in range(sum(parts)) for sample in range(num_samples)]


def test_a_response_has_its_own_seed_whatever_is_beside_it() -> None:
    seeds = [generate.response_seed(0, f"p{i}-{sample}") for i in range(50) for sample in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 32 for seed in seeds)
    assert generate.response_seed(1, "p0-0") != generate.response_seed(0, "p0-0")
    assert generate.response_seed(0, "p0-0") == seeds[0]
