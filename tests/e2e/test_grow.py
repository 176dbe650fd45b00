"""The real demo teacher writes prompts by every method, as a user asks it to."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.commands import retort

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.timeout(1500)]
PASSAGE = """The lighthouse at Skerry Point was built in 1871 from grey stone. Its lamp burned paraffin until 1956,
when a cable brought electricity from the mainland. A keeper lived there with two assistants, who took turns to wind
the clockwork that turned the lens. Since 1989 nobody has lived on the rock: the light goes on by itself at dusk, and an
engineer comes by boat twice a year to clean the glass."""


def test_a_few_seeds_grow_by_every_method(tmp_path: Path) -> None:
    (tmp_path / "lighthouse.md").write_text(PASSAGE)
    settings = [
        "prepare.max_prompts=40",
        "prepare.synthesis.num_prompts=48",
        "prepare.synthesis.max_tokens=64",
        f"prepare.synthesis.documents=[{{path: {tmp_path}/lighthouse.md}}]",
        "teacher.engine.max_model_len=2048",
    ]
    done = retort("prepare", "configs/quickstart.yaml", f"runs_dir={tmp_path}", "name=grown", *settings, timeout=1400)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "grown/prepare"
    rows = pq.read_table(folder / "prompts-00000.parquet").to_pylist()
    written = [row for row in rows if row["method"] != "source"]
    assert len(rows) == 40 + len(written)
    # two of each were wanted; how many of so few a small teacher gives is luck, that some come is not
    assert {row["method"] for row in written} >= {"magpie", "documents"}
    assert len(written) >= 6
    assert {row["split"] for row in written} == {"train"}
    for row in written:
        text = row["messages"][0]["content"]
        assert text.strip() == text != ""
        assert "<|im" not in text
    report = json.loads((folder / "manifest.json").read_text())["synthesis"]
    assert sum(tally["drafts"] for tally in report["methods"].values()) >= len(written)
    assert report["diversity"]["all"]["prompts"] == len(rows)
    drafts = [json.loads(line) for line in (folder / "drafts-00000.jsonl").read_text().splitlines()]
    assert {draft["prompt"]["method"] for draft in drafts} == {"magpie", "self_instruct", "evolve", "documents"}
    assert retort("verify", f"{tmp_path}/grown").returncode == 0
