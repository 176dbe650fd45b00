"""The whole chain as a user runs it, killed twice on the way: real vLLM, the real demo teacher, the real trainer.

Its run is made once; what has no mark reads it in the default tier.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import ROOT, retort
from support.processes import survivors

from pipeline import codec
from pipeline.run.files import file_hash

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]
NUM_PROMPTS, NUM_SAMPLES = 24, 2
SETTINGS = [
    "name=chain",
    f"prepare.max_prompts={NUM_PROMPTS}",
    "prepare.held_out_frac=0.25",
    f"generate.num_samples={NUM_SAMPLES}",
    "generate.max_tokens=32",
    "generate.k=32",
    "generate.shard_responses=8",
    "teacher.engine.max_num_seqs=8",
    "teacher.engine.max_model_len=1024",
    "student.keep_layers=0-5,24-29",
    "train.batch_size=2",
    "train.checkpoint_steps=3",
    "train.log_steps=1",
    "train.dtype=float32",
    "evaluate.chat_items=2",
    "evaluate.tasks.limit=4",
    "evaluate.tasks.max_tokens=12",
    "evaluate.max_tokens=12",
    "evaluate.risks.limit=1",
    "evaluate.risks.max_tokens=12",
    "evaluate.speed_concurrency=[1,4]",
    "evaluate.price_per_hour=1.5",
    "evaluate.speed_tokens=8",
    "evaluate.speed_rounds=1",
]


class Runs:
    """The command, with its runs in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "chain"

    def words(self, verb: str, *more: str) -> list[str]:
        return [verb, "configs/quickstart.yaml", *SETTINGS, f"runs_dir={self.folder}", *more]

    def do(self, verb: str, *more: str) -> subprocess.CompletedProcess[str]:
        return retort(*self.words(verb, *more), timeout=1400)

    def kill_when(self, verb: str, is_time: Callable[[], bool]) -> None:
        """Start a verb, and send SIGKILL to it (not to its child) as soon as the condition holds."""
        command = [sys.executable, "-m", "pipeline", *self.words(verb)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while not is_time():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not survivors(children, timeout=20), "a stage outlived the command that started it"

    def manifest(self, stage: str) -> dict[str, Any]:
        return json.loads((self.path / stage / "manifest.json").read_text())


def copy_of(runs: Runs, target: Path) -> Runs:
    shutil.copytree(runs.folder, target)
    return Runs(target)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A finished run that was killed once in generate and once in train."""
    runs = Runs(tmp_path_factory.mktemp("runs"))
    shards, checkpoints = runs.path / "generate", runs.path / "train/checkpoints/student"
    runs.kill_when("run", lambda: len(list(shards.glob("responses-*.parquet"))) >= 2)
    assert not (shards / "manifest.json").exists(), "generate had finished: the kill proved nothing"
    before = {path.name: file_hash(path) for path in shards.glob("responses-*.parquet")}
    runs.kill_when("run", lambda: any(checkpoints.glob("checkpoint-*/trainer_state.json")))
    assert {name: file_hash(shards / name) for name in before} == before, "a committed shard was made again"
    done = runs.do("run")
    assert done.returncode == 0, done.stderr
    return runs


def test_every_response_is_there_once(runs: Runs) -> None:
    table = pa.concat_tables(pq.read_table(path) for path in sorted((runs.path / "generate").glob("*.parquet")))
    ids = table.column("response_id").to_pylist()
    prompts = pq.read_table(runs.path / "prepare/prompts-00000.parquet").column("prompt_id").to_pylist()
    assert sorted(ids) == sorted(f"{prompt}-{sample}" for prompt in prompts for sample in range(NUM_SAMPLES))
    assert len(ids) == NUM_PROMPTS * NUM_SAMPLES
    for row in table.to_pylist():
        ids_NK, _, _ = codec.decode(row["logprobs"])
        assert len(ids_NK) == len(row["token_ids"]) == len(row["token_logprobs"])


def test_training_went_on_from_its_checkpoint(runs: Runs) -> None:
    trained = runs.manifest("train")
    assert trained["arms"]["student"]["resumed_from"].startswith("checkpoint-")
    lines = [json.loads(line) for line in (runs.path / "train/metrics.jsonl").read_text().splitlines()]
    for arm in ("student", "sft_only"):
        steps = [line["step"] for line in lines if line["arm"] == arm and "loss" in line]
        assert steps == list(range(1, trained["counts"]["steps"] + 1))


def losses(runs: Runs) -> dict[tuple[str, int], float]:
    lines = [json.loads(line) for line in (runs.path / "train/metrics.jsonl").read_text().splitlines()]
    return {(line["arm"], line["step"]): line["loss"] for line in lines if "loss" in line}


@pytest.mark.nightly
def test_a_killed_training_ends_where_an_uninterrupted_one_does(runs: Runs, tmp_path: Path) -> None:
    whole = copy_of(runs, tmp_path / "runs")
    done = whole.do("train", "--fresh", "--fresh")
    assert done.returncode == 0, done.stderr
    manifests = whole.manifest("train"), runs.manifest("train")
    assert manifests[0]["arms"]["student"]["resumed_from"] is None
    assert manifests[0]["counts"] == manifests[1]["counts"]
    assert losses(whole).keys() == losses(runs).keys()
    for place, loss in losses(whole).items():
        assert losses(runs)[place] == pytest.approx(loss, abs=1e-6), place
    best = [manifest["arms"]["student"]["best_validation_kl_nats"] for manifest in manifests]
    assert best[0] == pytest.approx(best[1], abs=1e-6)


@pytest.mark.ci
def test_two_processes_train_adapters_on_packs_of_a_student_chosen_by_influence(runs: Runs, tmp_path: Path) -> None:
    here = copy_of(runs, tmp_path / "runs")
    changes = ["student.keep_layers=null", "student.num_layers=12", "student.choose_layers=influence"]
    changes += ["train.pack_tokens=200", "train.positions_frac=0.5", "train.lora.r=4", "train.sft_only_arm=false"]
    launch = "train.launch=[--multi_gpu, --num_processes, '2']"
    done = here.do("train", "--fresh", "--fresh", *changes, launch)
    assert done.returncode == 0, done.stderr
    trained = here.manifest("train")
    assert len(trained["student"]["layers"]) == 12
    assert len(trained["student"]["block_influence"]) == 30
    assert trained["counts"]["validation_rows"] >= 1
    assert (here.path / "train/student/model.safetensors").is_file()
    assert not (here.path / "train/sft_only").exists()
    refused = here.do("train", "--fresh", "--fresh", "train.launch=[--no-such-flag]")
    assert refused.returncode == 2
    assert "not what `accelerate launch` takes" in refused.stderr


def test_the_contract_was_proved_on_the_real_capture(runs: Runs) -> None:
    contract = runs.manifest("train")["contract"]
    assert contract["teacher_logprob_difference_nats"] < 1e-3
    assert abs(contract["teacher_kl_nats"]) < 2e-3  # what the codec rounds
    assert contract["worst_sampled_difference_nats"] < 0.1
    assert contract["student_kl_nats"] < contract["student_kl_shifted_nats"]


def test_scores_are_those_of_a_teacher_and_its_student(runs: Runs) -> None:
    arms = json.loads((runs.path / "evaluate/scores.json").read_text())["arms"]
    assert set(arms) == {"teacher", "student", "sft_only", "untrained"}
    kl = {arm: scores["fidelity"]["forward_kl_nats"]["value"] for arm, scores in arms.items()}
    assert abs(kl["teacher"]) < 1e-6
    assert arms["teacher"]["fidelity"]["top1_agreement_frac"]["value"] == 1
    assert kl["student"] < 0.9 * kl["untrained"]
    assert arms["student"]["cost"]["num_parameters"]["value"] < 0.7 * arms["teacher"]["cost"]["num_parameters"]["value"]
    for scores in arms.values():
        assert scores["speed"]["output_tokens_per_s"]["value"] > 0
        assert set(scores["quality"]) > {"truncated_frac", "repetition_frac", "answer_tokens", "task_pass_frac"}
        assert scores["quality"]["task_pass_frac"]["num"] == arms["teacher"]["quality"]["task_pass_frac"]["num"]


@pytest.mark.ci
def test_run_again_does_nothing_again(runs: Runs) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.path.rglob("manifest.json")}
    began = time.monotonic()
    assert runs.do("run").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in runs.path.rglob("manifest.json")} == before
    assert time.monotonic() - began < 90


@pytest.mark.ci
def test_a_plan_comes_close_to_what_the_run_took(runs: Runs, tmp_path: Path) -> None:
    planned = Runs(tmp_path)
    done = planned.do("plan", f"generate.pilot_prompts={NUM_PROMPTS}", "generate.price_per_hour=3.6")
    assert done.returncode == 0, done.stderr
    assert "recommended" in done.stderr
    plan, counts = json.loads((planned.path / "plan.json").read_text()), runs.manifest("generate")["counts"]
    assert plan["responses"] == counts["responses"]
    assert plan["tokens"] == pytest.approx(counts["answer_tokens"], rel=0.15)
    assert plan["disk_bytes"] == pytest.approx(counts["bytes"], rel=0.25)
    assert plan["cost"] == pytest.approx(plan["generate_s"] / 1000)
    masses = [measured["mass_frac"] for measured in plan["by_k"].values()]
    assert masses == sorted(masses)
    assert 0.5 < masses[0] < masses[-1] <= 1


def test_a_changed_setting_is_refused_and_named(runs: Runs) -> None:
    before = runs.manifest("generate")
    refused = runs.do("generate", "generate.temperature=0.1")
    assert refused.returncode == 2
    message = refused.stderr.strip().splitlines()[-1]
    assert message.startswith("error:")
    for part in ("generate.temperature was 0.7, is 0.1", "--fresh", "name=", "--accept generate.temperature"):
        assert part in message
    assert runs.manifest("generate") == before


def test_report_status_and_show_tell_of_it(runs: Runs) -> None:
    page = (runs.path / "report.html").read_text()
    assert "forward KL" in page
    for verb in ("status", "verify", "show", "report"):
        done = retort(verb, str(runs.path))
        assert done.returncode == 0, done.stderr


@pytest.mark.ci
def test_export_writes_a_plain_model_with_a_card(runs: Runs) -> None:
    done = runs.do("export")
    assert done.returncode == 0, done.stderr
    folder = runs.path / "export/model"
    card = (folder / "README.md").read_text()
    assert "held-out prompts" in card
    assert "library_name: transformers" in card
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_hidden_layers == 12
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert prompt


@pytest.mark.ci
def test_the_corpus_loads_with_datasets_alone(runs: Runs, tmp_path: Path) -> None:
    from datasets import load_dataset

    assert retort("export", "corpus", str(runs.path), "--logprobs").returncode == 0
    splits = load_dataset(str(runs.path / "corpus"), cache_dir=str(tmp_path))
    assert {str(name): len(rows) for name, rows in splits.items()} == {
        "train": runs.manifest("filter")["counts"]["kept_train"],
        "held_out": runs.manifest("filter")["counts"]["kept"] - runs.manifest("filter")["counts"]["kept_train"],
    }


@pytest.mark.ci
def test_a_damaged_shard_is_named_and_alone_made_anew(runs: Runs, tmp_path: Path) -> None:
    copy = copy_of(runs, tmp_path / "copy")
    shard = copy.path / "generate/responses-00001.parquet"
    others = {path.name: file_hash(path) for path in (copy.path / "generate").glob("*.parquet") if path != shard}
    shard.write_bytes(shard.read_bytes()[:-100])
    refused = copy.do("filter", "--fresh", "--fresh")
    assert refused.returncode == 2
    assert "responses-00001.parquet: damaged" in refused.stderr
    shard.unlink()
    done = copy.do("generate")
    assert done.returncode == 0, done.stderr
    assert shard.exists()
    assert {name: file_hash(shard.parent / name) for name in others} == others
    assert copy.do("filter", "--fresh", "--fresh").returncode == 0


@pytest.mark.ci
def test_rows_shifted_by_one_stop_the_training_before_step_one(runs: Runs, tmp_path: Path) -> None:
    copy = copy_of(runs, tmp_path / "copy")
    path = copy.path / "generate/manifest.json"
    manifest = json.loads(path.read_text())
    for record in manifest["files"]:
        shard = path.parent / record["name"]
        table = pq.read_table(shard)
        late = []
        for packed in table.column("logprobs").to_pylist():
            ids_NK, logprobs_NK, log_tail_N = codec.decode(packed)
            late.append(codec.encode(np.roll(ids_NK, 1, 0), np.roll(logprobs_NK, 1, 0), np.roll(log_tail_N, 1, 0)))
        place = table.column_names.index("logprobs")
        pq.write_table(table.set_column(place, "logprobs", pa.array(late, codec.TYPE)), shard)
        record |= {"bytes": shard.stat().st_size, "sha256": file_hash(shard)}
    path.write_text(json.dumps(manifest))
    assert copy.do("filter", "--fresh", "--fresh").returncode == 0
    verified = retort("verify", str(copy.path))
    assert verified.returncode == 2
    assert "responses-00000.parquet:1: response" in verified.stderr
    refused = copy.do("train")
    assert refused.returncode == 2
    assert "not aligned" in refused.stderr
    assert not (copy.path / "train/student").exists()


def test_a_second_process_on_the_same_run_is_refused(runs: Runs, tmp_path: Path) -> None:
    import filelock

    copy = copy_of(runs, tmp_path / "copy")
    with filelock.FileLock(copy.path / ".lock"):
        refused = copy.do("filter")
    assert refused.returncode == 2
    assert "another process is working on this run" in refused.stderr


@pytest.mark.nightly
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(runs: Runs, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("a tmpfs can't be mounted here")
    try:
        full = Runs(small)
        shutil.copytree(runs.path / "prepare", full.path / "prepare")
        filler = small / "filler"
        filler.write_bytes(b"x" * (shutil.disk_usage(small).free - 100_000))  # a few shards fit, not all
        refused = full.do("generate")
        assert refused.returncode == 2
        assert "no disk space" in refused.stderr
        kept = {path.name: file_hash(path) for path in (full.path / "generate").glob("responses-*.parquet")}
        assert not list((full.path / "generate").glob(".*.tmp"))
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        done = full.do("generate")
        assert done.returncode == 0, done.stderr
        assert full.manifest("generate")["counts"]["responses"] == NUM_PROMPTS * NUM_SAMPLES
        assert {name: file_hash(full.path / "generate" / name) for name in kept} == kept
    finally:
        subprocess.run(["umount", str(small)], check=False)
