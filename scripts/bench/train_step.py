"""What a step of distillation costs: whole trainer steps beside TRL's plain SFT, on the same rows in the same batches.

    .venv/bin/python scripts/bench/train_step.py [--quick] [--run RUN] [--json FILE] [--only step,memory]

- `step`: each arm trains a fresh copy of the quickstart's student for some steps; arms take turns (A-B-C-C-B-A), the
  first step of each turn is left out; a step is from the end of one to the end of the next, reading and decoding the
  rows included. Before anything is timed, losses and gradients are compared: CE with TRL's, CE + KL with dense logits.
    sft      TRL's SFTTrainer as it comes (chunked cross-entropy)
    kd       CE + forward KL over the 50 stored and the tail
    kd_20pct the same on the 20 % of positions where the teacher's entropy is highest
    live     CE + forward KL over the whole vocabulary, the teacher run beside the student
    ce       cross-entropy alone on TRL's own batches, through this project's head: nothing is read, decoded or compared
- `memory`: peak memory of the loss alone (hidden states in, gradients out) beside logits that exist whole, each in a
  process of its own; and at 4 times the tokens.

Figures: `kd_over_sft_time`, `kd_20pct_over_sft_time`, `kd_over_ce_time`, `live_teacher_over_kd_time`,
`loss_memory_over_naive` (of 8,192 tokens; `_2048`: of so many), `loss_memory_growth` (4 times the tokens, but for the
gradient of the states that is asked for).

On a CPU, TRL scores every position, prompts and padding included; on a GPU those with a label alone.
`kd_over_ce_time` is free of that difference, and of TRL's counting of entropy and accuracy.
"""

import copy
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import answers as bench
import torch
from torch import Tensor

from pipeline.config import Train

BATCH_SIZE = 8
ARMS = {
    "sft": Train(ce_weight=1, kd_weight=0),
    "kd": Train(),
    "kd_20pct": Train(positions_frac=0.2),
    "live": Train(targets="live"),
    "ce": Train(ce_weight=1, kd_weight=0),
}
MEMORY_TOKENS = (2048, 8192)


class StepTimes:
    """A trainer callback: seconds between the ends of steps."""

    def __new__(cls) -> Any:
        from transformers import TrainerCallback

        class Callback(TrainerCallback):
            def __init__(self) -> None:
                self.ends: list[float] = []

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                self.ends.append(time.perf_counter())

        return Callback()


def settings(arm: str) -> Train:
    changes = {"batch_size": BATCH_SIZE, "dtype": "float32", "validation_frac": 0.0, "report_to": (), "epochs": 1}
    return ARMS[arm].model_copy(update=changes)


def trainer(arm: str, base: Any, teacher: Any, rows: Any, tokenizer: Any, folder: Path) -> Any:
    """The trainer of an arm, with a copy of the student of its own; all arms see the same rows in the same order."""
    from pipeline.train import trainer as ours

    chosen = settings(arm)
    model = copy.deepcopy(base)
    arguments = ours._arguments(chosen, folder / arm, validates=False)
    arguments.save_strategy, arguments.logging_strategy = "no", "no"
    if arm in ("sft", "ce"):
        return plain(chosen, model, rows, tokenizer, arguments, our_head=arm == "ce")
    live = teacher if chosen.targets == "live" else None
    return ours.distillation_trainer(chosen, model, tokenizer, rows, rows, arguments, live)


def plain(chosen: Train, model: Any, rows: Any, tokenizer: Any, arguments: Any, our_head: bool = False) -> Any:
    """TRL's SFTTrainer as it comes, but for the order of the rows; or with its cross-entropy through our head."""
    from trl.trainer.sft_trainer import SFTTrainer

    from pipeline.models.forward.head import head_of, support_logprobs
    from pipeline.train import trainer as ours
    from pipeline.train.losses import states

    class Plain(SFTTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return ours.sampler(ours.items(rows, chosen), chosen)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch: Any = None):
            if not our_head:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            hidden_NH, labels_N = states(model, {k: inputs[k] for k in ("input_ids", "attention_mask", "labels")})
            no_ids_NK = labels_N.new_zeros(len(labels_N), 0)
            got = support_logprobs(hidden_NH, head_of(model), no_ids_NK, labels_N, chosen.head_chunk_tokens)
            return -got.label_N.sum() / num_items_in_batch

    return Plain(model=model, args=arguments, train_dataset=tokens_alone(rows), processing_class=tokenizer)


def tokens_alone(rows: Any) -> Any:
    """The rows as TRL's own SFT takes them: input_ids and labels."""
    from datasets import Dataset

    from pipeline.train.targets import IGNORED

    return Dataset.from_list(
        [
            {
                "input_ids": row["prompt_token_ids"] + row["token_ids"],
                "labels": [IGNORED] * len(row["prompt_token_ids"]) + row["token_ids"],
            }
            for row in rows
        ]
    )


def check_losses(base: Any, rows: Any, tokenizer: Any, folder: Path) -> None:
    """One batch: CE and its gradient as TRL has them; CE + KL and its gradient as dense logits give them."""
    import math

    from pipeline.train.batches import collate

    ours, theirs = (trainer(arm, base, None, rows, tokenizer, folder) for arm in ("ce", "sft"))
    pairs = [(each, next(iter(each.get_train_dataloader()))) for each in (ours, theirs)]
    labels = [batch["labels"][batch["labels"] != -100].tolist() for _, batch in pairs]
    assert labels[0] == labels[1], "the arms see different rows"
    (loss, gradient), (wanted, wanted_gradient) = (gradients(each, batch) for each, batch in pairs)
    assert math.isclose(loss, wanted, rel_tol=1e-5), (loss, wanted)
    assert_near(gradient, wanted_gradient)
    kd = trainer("kd", base, None, rows, tokenizer, folder)
    batch = next(iter(kd.get_train_dataloader()))
    (loss, gradient), dense = gradients(kd, batch), copy.deepcopy(base)
    wanted_loss = naive_loss(dense, collate([rows[i] for i in first_rows(kd)], 0, 49152, settings("kd")))
    wanted_loss.backward()
    assert math.isclose(loss, wanted_loss.item(), rel_tol=1e-5), (loss, wanted_loss.item())
    assert_near(gradient, dense.get_input_embeddings().weight.grad)
    print(f"losses and gradients agree: CE {wanted:.4f} as TRL's, CE + KL {loss:.4f} as dense logits'")


def first_rows(of: Any) -> list[int]:
    order = list(of._get_train_sampler())[:BATCH_SIZE]
    return [of.train_dataset[number]["rows"][0] for number in order]


def gradients(of: Any, batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    num = (batch["labels"] != -100).sum()
    of.model.zero_grad()
    loss = of.compute_loss(of.model, dict(batch), num_items_in_batch=num)
    loss.backward()
    return loss.item(), of.model.get_input_embeddings().weight.grad.clone()  # the head's too: they are tied


def assert_near(gradient: Tensor, wanted: Tensor) -> None:
    off = ((gradient - wanted).norm() / wanted.norm()).item()
    assert off < 1e-4, f"the gradient is {off:.2g} of its length off"


def naive_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """½·CE + ½·KL by logits that exist whole."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    return naive_of_logits(logits[labels != -100], labels[labels != -100], batch)


def naive_of_logits(logits_NV: Tensor, labels_N: Tensor, batch: dict[str, Tensor]) -> Tensor:
    student_NV = logits_NV.log_softmax(dim=1)
    ids_NK, p_NK = batch["teacher_ids_NK"], batch["teacher_logprobs_NK"]
    q_tail_N = student_NV.scatter(1, ids_NK, -torch.inf).logsumexp(dim=1)
    p_tail_N = batch["teacher_log_tail_N"]
    inside_N = torch.where(p_NK.isneginf(), 0, p_NK.exp() * (p_NK - student_NV.gather(1, ids_NK))).sum(dim=1)
    kl_N = inside_N + p_tail_N.exp() * (p_tail_N - q_tail_N)
    ce_N = -student_NV.gather(1, labels_N[:, None]).squeeze(1)
    return (0.5 * ce_N + 0.5 * kl_N).mean()


def step_figures(run: Path | None, quick: bool) -> dict[str, Any]:
    """Seconds of every arm's steps, round by round, as ratios."""
    from pipeline.models import lookup
    from pipeline.train import student
    from pipeline.train.examples import kept_answers

    rows = kept_answers(bench.run_dir(run, "bench-train", "generate.k=50"), "train", 2048)
    tokenizer, base = lookup.find("demo").tokenizer(), bench.untrained()
    teacher = student.load(lookup.find("demo").path)
    steps, rounds = (3, 2) if quick else (6, 6)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        check_losses(base, rows, tokenizer, Path(folder))
        for number in range(rounds):
            for arm in list(ARMS) if number % 2 == 0 else reversed(ARMS):
                of = trainer(arm, base, teacher, rows, tokenizer, Path(folder))
                times = StepTimes()
                of.add_callback(times)
                of.args.max_steps = steps + 1
                of.train()
                seconds[arm].append((times.ends[-1] - times.ends[0]) / steps)
                print(f"round {number + 1}, {arm}: {seconds[arm][-1]:.3f} s a step", flush=True)
    pairs = {
        "kd_over_sft_time": ("kd", "sft"),
        "kd_20pct_over_sft_time": ("kd_20pct", "sft"),
        "kd_over_ce_time": ("kd", "ce"),
        "live_teacher_over_kd_time": ("live", "kd"),
    }
    return {
        name: bench.figure([a / b for a, b in zip(seconds[first], seconds[second], strict=True)])
        for name, (first, second) in pairs.items()
    }


def peak_bytes(kind: str, num_tokens: int) -> int:
    """In this process: how far memory rises while the loss of random states is computed, forward and backward."""
    from pipeline.models.forward.head import Head, support_logprobs
    from pipeline.train.losses.divergences import buckets, forward_kl_nats

    V, H, K = 49_152, 576, 50
    torch.manual_seed(0)
    hidden_NH = torch.randn(num_tokens, H).requires_grad_()
    weight_VH = (torch.randn(V, H) / H**0.5).requires_grad_()
    batch = {
        "teacher_ids_NK": torch.stack([torch.randperm(V)[:K] for _ in range(64)]).repeat(num_tokens // 64, 1),
        "teacher_logprobs_NK": torch.full((num_tokens, K), 0.9 / K).log(),
        "teacher_log_tail_N": torch.full((num_tokens,), 0.1).log(),
    }
    labels_N = torch.randint(V, (num_tokens,))
    weight_VH.grad = torch.zeros_like(weight_VH)  # what both hold anyway
    before = resident_bytes()
    if kind == "naive":
        naive_of_logits(hidden_NH @ weight_VH.T, labels_N, batch).backward()
    else:
        got = support_logprobs(hidden_NH, Head(weight_VH), batch["teacher_ids_NK"], labels_N, Train().head_chunk_tokens)
        targets = batch["teacher_logprobs_NK"], batch["teacher_log_tail_N"]
        kl_N = forward_kl_nats(*buckets(*targets, got.support_NK, got.log_tail_N))
        (-0.5 * got.label_N + 0.5 * kl_N).mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def resident_bytes() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def memory_figures() -> dict[str, Any]:
    peaks: dict[tuple[str, int], int] = {}
    for kind in ("naive", "sparse"):
        for num_tokens in MEMORY_TOKENS:
            command = [sys.executable, __file__, "--peak", kind, str(num_tokens)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=bench.ROOT)
            peaks[kind, num_tokens] = int(done.stdout.split()[-1])
            print(f"{kind} loss of {num_tokens} tokens: {peaks[kind, num_tokens] / 1e6:.0f} MB", flush=True)
    few, many = MEMORY_TOKENS
    states = 4 * 576 * (many - few)  # the gradient of the hidden states, which is asked for
    return {
        "loss_memory_over_naive": bench.figure([peaks["sparse", many] / peaks["naive", many]]),
        f"loss_memory_over_naive_{few}": bench.figure([peaks["sparse", few] / peaks["naive", few]]),
        "loss_memory_growth": bench.figure([(peaks["sparse", many] - states) / peaks["sparse", few]]),
    }


def main() -> None:
    parser = bench.options(__doc__)
    parser.add_argument("--only", default="step,memory", help="parts, with commas: step, memory")
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "TOKENS"), help="used by `memory`")
    chosen = parser.parse_args()
    if chosen.peak:
        print(peak_bytes(chosen.peak[0], int(chosen.peak[1])))
        return
    figures: dict[str, Any] = {}
    if "memory" in chosen.only:
        figures |= memory_figures()
    if "step" in chosen.only:
        figures |= step_figures(chosen.run, chosen.quick)
    bench.show(figures, chosen.json)


if __name__ == "__main__":
    main()
