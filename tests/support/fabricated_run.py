"""A small run, fabricated through RunDir itself, so that its files are as a real run writes them."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import codec
from pipeline import config as config_module
from pipeline.config import Config, output_settings
from pipeline.records import ARMS, DECISIONS, PROMPTS, RESPONSES, RISKS, SAMPLES, TASKS
from pipeline.run.commit import Stage
from pipeline.run.files import write_json
from pipeline.run.rundir import RunDir

PLANTED = (
    '<script>window.pwned=1;document.title="pwned"</script>'
    "<img src=x onerror=\"window.pwned=1;document.title='pwned'\">"
)
VOCABULARY = ["<s>", "</s>", "alpha", "beta", "gamma", "delta", "bad\x1b[31mtoken", "eta"]
NUM_ITEMS = 8
NO_TEACHER = "./no-such-teacher"
WEIGHTS_HASH = "c0ffee" * 10 + "beef"
# Rules of the filter, and how many of the six answers each dropped.
DROPS = {"empty": 0, "truncated": 1, "control_tokens": 0, "repeated_ngrams": 1, "exact_duplicate": 0}

Row = dict[str, Any]


def figure(value: float, low: float | None = None, high: float | None = None, num: int = 48) -> Row:
    return {"value": value, "low": low, "high": high, "num": num}


def scores() -> Row:
    """scores.json of a run with all four arms, and figures that are told apart."""
    return {
        "arms": {arm: _arm_scores(place) for place, arm in enumerate(ARMS)},
        "verdict": {
            "claims": [
                {"text": "The student is <close> to its teacher.", "rows": "fidelity.parquet"},
                {"text": "It writes 1.62× as many tokens a second.", "rows": "speed.parquet"},
                {"text": "The judge is sure.", "rows": "verdicts.jsonl"},
            ],
            "kl_over_untrained": figure(0.14, 0.13, 0.15),
            "retained_quality": figure(0.836, 0.71, 0.93, 40),
            "gap_closed": None,
            "kl_over_sft_only": figure(0.82, 0.79, 0.85),
            "self_preference_frac_over_sft_only": figure(0.6875, 0.5, 0.875, 8),
            "self_preference_nats_over_sft_only": figure(0.114, -0.02, 0.25, 8),
            "speed_over_teacher": figure(1.62, 1.58, 1.66, 3),
            "parameters_over_teacher": figure(0.79, None, None, 1),
        },
    }


def samples() -> list[Row]:
    """Answers arm by arm, as evaluate gathers them; the first item has two turns, and one answer carries a script."""
    rows = []
    for arm in ARMS:
        for number in range(NUM_ITEMS):
            for turn in range(2 if number == 0 else 1):
                planted = PLANTED if number == 0 and arm == "student" else ""
                rows.append(
                    {
                        "item_id": f"item-{number}",
                        "category": "writing" if number % 2 else "code",
                        "turn": turn,
                        "arm": arm,
                        "question": f"question {number}.{turn} {PLANTED if number == 0 else ''}",
                        "answer": f"answer {number}.{turn} of {arm} {planted}"
                        + "\nA second line of it." * (number % 4),
                        "finish_reason": "length" if number == 1 else "stop",
                        "num_tokens": 40 + number,
                    }
                )
    return rows


def make(folder: Path, until: str = "evaluate", teacher: str = NO_TEACHER, scored: Row | None = None) -> RunDir:
    """A run in `folder` whose stages are done up to `until`; its teacher is but a name unless a folder is given."""
    config = _config(folder, teacher)
    run_dir = RunDir(config.run_path)
    last = until if until in STAGES else "train"
    if teacher == NO_TEACHER:
        _copy(last, folder)
    else:
        _begin(run_dir, config, last)
    if until == "evaluate":
        _evaluate(run_dir, config, scored or scores())
    return run_dir


def _config(folder: Path, teacher: str) -> Config:
    return config_module.validate({"name": "trial", "runs_dir": str(folder), "teacher": {"model": teacher}}, "test")


def _begin(run_dir: RunDir, config: Config, last: str) -> None:
    """Do the stages before evaluate, up to the last."""
    for name, stage in STAGES.items():
        stage(run_dir, config)
        if name == last:
            return


@functools.cache
def _pattern(last: str) -> TemporaryDirectory[str]:
    """A run done up to this stage, made once a process; it goes when the process ends."""
    folder = TemporaryDirectory(prefix="fabricated-")
    config = _config(Path(folder.name), NO_TEACHER)
    _begin(RunDir(config.run_path), config, last)
    return folder


def _copy(last: str, folder: Path) -> None:
    pattern = _pattern(last).name
    shutil.copytree(Path(pattern) / "trial", folder / "trial", dirs_exist_ok=True)
    config = folder / "trial/config.yaml"
    config.write_text(config.read_text().replace(pattern, str(folder)))


def _arm_scores(place: int) -> Row:
    kl, speed = 1.234 * place, 100.0 + 50 * place
    fidelity = {
        "forward_kl_nats": figure(kl, 0.9 * kl, 1.1 * kl),
        "reverse_kl_nats": figure(1.2 * kl, kl, 1.5 * kl),
        "js_divergence_nats": figure(0.1 * kl, 0.09 * kl, 0.11 * kl),
        "top1_agreement_frac": figure(1 - 0.15 * place, 0.95 - 0.15 * place, 1 - 0.14 * place),
        "acceptance_frac": figure(1 - 0.2 * place, 0.95 - 0.2 * place, 1 - 0.19 * place),
        "nll_nats": figure(1.1 + kl, 1.0 + kl, 1.2 + kl),
        "top5_overlap_frac": figure(1 - 0.1 * place, 0.97 - 0.1 * place, 1 - 0.09 * place),
        "brier_score": figure(0.4 + 0.1 * place, 0.35, 0.9),
        "confidence_frac": figure(0.7, 0.68, 0.72),
        "accuracy_frac": figure(0.7 - 0.1 * place, 0.25, 0.71),
        "ece_frac": figure(0.08 * place, 0.07 * place, 0.09 * place),
    }
    own = {
        "fidelity_own": {"forward_kl_nats": figure(2.5 * kl, 2.0 * kl, 3.0 * kl, 8)},
        "own_over_chat": {"forward_kl_nats": figure(1.67, 1.51, 1.83, 8)},
    }
    return {
        **(own if place else {}),
        "breakdowns": {
            "fidelity": _breakdown(kl, {"position": ["1-8", "9-32"], "category": [PLANTED, "code"]}),
            "fidelity_chat": _breakdown(1.5 * kl, {"position": ["1-8", "9-32"], "turn": ["1", "2"]}),
            **({"fidelity_own": _breakdown(2.5 * kl, {"position": ["1-8", "9-32"]})} if place else {}),
        },
        "fidelity": fidelity,
        "fidelity_chat": {"forward_kl_nats": figure(1.5 * kl, 1.3 * kl, 1.7 * kl, 8)},
        "quality": {
            "truncated_frac": figure(0.1 + 0.1 * place, 0.05, 0.5, 8),
            "repetition_frac": figure(0.02 + 0.1 * place, 0.0, 0.4, 8),
            "answer_tokens": figure(120.0 + place, 100.0, 140.0, 8),
            "task_pass_frac": figure(0.61 - 0.1 * place, 0.2, 0.7, 40),
            "task_loose_pass_frac": figure(0.65 - 0.1 * place, 0.2, 0.7, 40),
            "task_check_frac": figure(0.8 - 0.1 * place, 0.4, 0.9, 40),
            "task_rouge_l": figure(0.512 - 0.1 * place, 0.1, 0.7, 4),
            "task_chrf": figure(0.623 - 0.1 * place, 0.1, 0.7, 4),
            "task_arithmetic_pass_frac": figure(0.375 - 0.1 * place, 0.0, 0.9, 7),
            "task_multi_turn_pass_frac": figure(0.875 - 0.1 * place, 0.0, 0.9, 6),
        },
        "speed": {
            "output_tokens_per_s": figure(speed, speed - 5, speed + 5, 3),
            "first_token_s": figure(0.0421, 0.041, 0.044, 3),
            "time_per_token_s": figure(0.0123, 0.012, 0.013, 3),
        },
        "cost": {
            "num_parameters": figure(134.5e6, num=1),
            "weights_bytes": figure(538e6, num=1),
            "load_s": figure(12.5, num=1),
            "peak_rss_bytes": figure(2.25e9, num=1),
            "gpu_memory_bytes": None,
            "cpu_energy_j_per_token": figure(0.125, 0.12, 0.13, 3),
            "gpu_energy_j_per_token": None,
        },
        "risks": _risks(place),
    }


def _breakdown(kl: float, dimensions: dict[str, list[str]]) -> Row:
    """Each bucket's KL is a tenth more than that of the one before."""
    return {
        dimension: {
            bucket: {"forward_kl_nats": figure(more * kl, 0.9 * more * kl, 1.1 * more * kl, 40 - place)}
            for place, bucket in enumerate(buckets)
            if (more := 1 + place / 10)
        }
        for dimension, buckets in dimensions.items()
    }


def _risks(place: int) -> Row:
    """The teacher has no differences from itself."""
    rates = {
        "hallucination_frac": figure(0.5 + 0.1 * place, 0.3, 0.9, 44),
        "injection_followed_frac": figure(0.125 * place, 0.0, 0.6, 22),
        "pair_valence_shift": figure(-0.25 * place, -1.5, 1.0, 32),
        "verbatim_train_tokens": figure(4.25 + place, 3.0, 9.0, 100),
        "verbatim_held_out_tokens": figure(4.0, 3.0, 5.0, 60),
    }
    against = {
        "hallucination_frac_difference": figure(0.1 * place, 0.0, 0.5, 44),
        "hallucination_frac_p": figure(0.03125, num=6),
        "verbatim_excess_tokens_difference": figure(0.75 * place, -0.5, 4.0, 60),
    }
    return rates | (against if place else {})


def _commit(stage: Stage, rows: list[Row], schema: pa.Schema, name: str) -> Path:
    stage.commit(pa.Table.from_pylist(rows, schema=schema), name)
    return stage.path / name


def _prompt(number: int) -> Row:
    call = '[{"function": {"name": "look", "arguments": {"at": "\\u001b[2J"}}}]'
    called = [  # the fourth prompt has tools
        {"role": "assistant", "content": None, "tool_calls": call},
        {"role": "tool", "content": "It is red.", "tool_call_id": "c1", "name": "look"},
    ]
    return {
        "conversation_id": f"prompt{number}",
        "prompt_id": f"prompt{number}",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Say {number}.\x1b[2J {PLANTED}"},
            *(called if number == 3 else []),
        ],
        "tools": '[{"function": {"name": "look"}}]' if number == 3 else None,
        "category": "writing",
        "split": "held_out" if number == 5 else "train",
        "source": f"prompts/seeds.jsonl:{number + 1}",
        "licence": "apache-2.0",
        "method": "source",
        "parents": [],
        "template": None,
        "prompt_token_ids": [0, 2, 3],
    }


def _prepare(run_dir: RunDir, config: Config) -> None:
    fingerprint = {"teacher.model": config.teacher.model, "teacher.chat_template_kwargs": {}}
    stage = run_dir.begin("prepare", config, fingerprint)
    rows = [_prompt(number) for number in range(6)]
    path = _commit(stage, rows, PROMPTS, "prompts-00000.parquet")
    counted = {"personal": 0, "labelled": 0, "dropped_personal": 0, "dropped_unsafe": 0}
    sources = [{"source": "prompts/seeds.jsonl", "licence": "apache-2.0", "prompts": 6}]
    licences = {"teacher": {"licence": None, "told_by": "nothing in its folder"}, "sources": sources}
    counts = {"prompts": 6, "held_out": 1, "duplicates": 0, "bad_rows": 2}
    left_out = [{"source": "prompts/seeds.jsonl", "reason": "bad_rows", "prompts": 2}]
    found = _screening(config, prompts=counted)
    stage.finish([path], counts, screening=found, licences=licences, left_out=left_out)


def _screening(config: Config, **counted: Row) -> Row:
    """What prepare and filter found besides: nothing."""
    sections = {"privacy": output_settings(config.privacy), "safety": output_settings(config.safety)}
    return {**sections, "personal": {}, "labels": {}, **counted}


def _response(number: int) -> Row:
    """Four tokens; each row stores six ids with 90 % of the mass, half of that on the sampled token."""
    tokens = [2, 3, 6, 1]
    ids_NK = np.array([[token, *(n for n in range(8) if n != token)][:6] for token in tokens], np.int32)
    probabilities_NK = np.tile([0.45, 0.2, 0.1, 0.08, 0.05, 0.02], (4, 1))
    logprobs_NK = np.log(probabilities_NK).astype(np.float32)
    return {
        "response_id": f"prompt{number}-0",
        "conversation_id": f"prompt{number}",
        "prompt_id": f"prompt{number}",
        "sample": 0,
        "split": _prompt(number)["split"],
        "category": "writing",
        "text": f"Answer {number}: \x1b[31mred\x07\u202e",
        "finish_reason": "length" if number == 0 else "stop",
        "prompt_token_ids": [0, 2, 3],
        "token_ids": tokens,
        "token_logprobs": logprobs_NK[:, 0].tolist(),
        "logprobs": codec.encode(ids_NK, logprobs_NK, codec.log_tail(logprobs_NK, 1000)),
        "reasoning": "Red,\x1b[2J I think." if number == 3 else None,  # the fourth answer has reasoning
        "reasoning_tokens": 2 if number == 3 else 0,
        "reasoning_start": 0,
        "reasoning_end": 1 if number == 3 else 0,
    }


def _generate(run_dir: RunDir, config: Config) -> None:
    fingerprint = {
        "teacher.model": config.teacher.model,
        "teacher.weights": WEIGHTS_HASH,
        "teacher.engine": {},
        "teacher.revision": None,
        **{f"generate.{key}": value for key, value in output_settings(config.generate).items()},
        "vllm": "vllm 0.0",
    }
    stage = run_dir.begin("generate", config, fingerprint)
    rows = [_response(number) for number in range(6)]
    files = [_commit(stage, rows[n : n + 3], RESPONSES, f"responses-{n // 3:05d}.parquet") for n in (0, 3)]
    counts = {"responses": 6, "answer_tokens": 24, "prompt_tokens": 18, "truncated": 1, "bytes": 4800}
    stage.finish(files, counts, k=6, vocab_size=1000, generated_tokens=24, generating_s=0.5, teacher_dtype="float32")


def _decision(number: int) -> Row:
    reasons = {0: ["truncated"], 1: ["repeated_ngrams"]}.get(number, [])
    scores = {
        "truncated": float(number == 0),
        "too_short": 3.0,
        "repeated_ngrams": 0.61 if number == 1 else 0.0,
    }
    return {
        "response_id": f"prompt{number}-0",
        "kept": not reasons,
        "reasons": reasons,
        "scores": list(scores.items()),
    }


def _filter(run_dir: RunDir, config: Config) -> None:
    settings = output_settings(config.filter)
    fingerprint = {f"filter.{key}": value for key, value in settings.items()}
    fingerprint["input.generate"] = run_dir.output_hash("generate")
    stage = run_dir.begin("filter", config, fingerprint)
    rows = [_decision(number) for number in range(6)]
    files = [_commit(stage, rows[n : n + 3], DECISIONS, f"decisions-{n // 3:05d}.parquet") for n in (0, 3)]
    waterfall = [{"reason": reason, "dropped": dropped, "alone": 2 * dropped} for reason, dropped in DROPS.items()]
    stage.note("contamination.jsonl", {"response_id": "prompt1-0", "item": "chat_eval.jsonl:1", "covered_frac": 0.6})
    counts = {"responses": 6, "kept": 4, "kept_train": 3}
    screening = _screening(config, answers={"personal": 0, "labelled": 0})
    stage.finish([*files, *stage.notes()], counts, waterfall=waterfall, settings=settings, screening=screening)


def _train(run_dir: RunDir, config: Config) -> None:
    stage = run_dir.begin(
        "train", config, {"train.max_length": 2048, "student.model": None, "student.keep_layers": "0-5"}
    )
    lines = [
        {
            "arm": arm,
            "step": step,
            "epoch": step / 10,
            "loss": 3 - step / 10,
            "kl_nats": 2 - step / 10,
            "ce_nats": 4.0,
        }
        for arm in ("student", "sft_only")
        for step in (1, 5, 10)
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines) + '{"arm": "stud'
    (stage.path / "metrics.jsonl").write_text(text, encoding="utf-8")
    contract = {
        "worst_sampled_difference_nats": 0.0039501190185546875,
        "proof_tokens": 153,
        "teacher_kl_nats": None,
    }
    stage.finish([], {"rows": 3, "too_long": 0, "answer_tokens": 12, "steps": 10}, contract=contract)


STAGES: dict[str, Callable[[RunDir, Config], None]] = {
    "prepare": _prepare,
    "generate": _generate,
    "filter": _filter,
    "train": _train,
}


def _evaluate(run_dir: RunDir, config: Config, scored: Row) -> None:
    stage = run_dir.begin("evaluate", config, {"evaluate.seed": 0})
    files = [_commit(stage, samples(), SAMPLES, "samples.parquet")]
    for name, table in counted_rows().items():
        stage.commit(table, name)
        files.append(stage.path / name)
    write_json(stage.path / "scores.json", scored)
    stage.finish([stage.path / "scores.json", *files], {"held_out_answers": 48})


def counted_rows() -> dict[str, pa.Table]:
    """What the claims were counted from, by file: one held-out prompt, two rounds, three tasks, a probe, an opening."""
    shared = {"turn": 0, "finish_reason": "stop", "num_tokens": 7}
    fidelity = [
        {"section": section, "arm": arm, "cluster": "prompt5", "num_tokens": 24, "forward_kl_nats": 1.5 * place}
        for section in ("fidelity", "fidelity_chat")
        for place, arm in enumerate(ARMS[:4])
    ]
    rounds = [
        {"arm": arm, "round": number, "output_tokens_per_s": 123.456, "first_token_s": None, "time_per_token_s": 0.5}
        for arm in ("teacher", "student")
        for number in range(2)
    ]
    tasks = [
        {
            **shared,
            "item_id": f"task-{number}",
            "category": "json",
            "arm": arm,
            "question": f"Do task {number}.",
            "answer": f"Done. {PLANTED}",
            "checks": [{"kind": "json_valid", "passed": arm == "teacher"}, {"kind": "num_words", "passed": True}],
        }
        for number in range(3)
        for arm in ("teacher", "student")
    ]
    probes = [
        {**shared, "item_id": kind, "category": kind, "arm": "student", "question": kind, "answer": "yes", "score": 1.0}
        for kind in ("unanswerable", "verbatim_train")
    ]
    return {
        "fidelity.parquet": pa.Table.from_pylist(fidelity),
        "speed.parquet": pa.Table.from_pylist(rounds),
        "tasks.parquet": pa.Table.from_pylist(tasks, schema=TASKS),
        "risks.parquet": pa.Table.from_pylist(probes, schema=RISKS),
    }
