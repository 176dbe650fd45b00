"""What distillation is worth: held-out KL of students trained on the same answers with other targets.

    .venv/bin/python scripts/bench/kd_quality.py [--quick] [--run RUN] [--json FILE] [--seeds 3] [--num 240]
                                                 [--only arms,divergences,temperature]

The demo teacher answers the seed prompts once (256 log-probs a token); every arm is the quickstart's student, trained
one pass over the same answers, in an order that the seed alone decides. What is measured is forward KL over the whole
vocabulary on the answers to the held-out prompts, at some points of the training and at its end.

- `arms`: `sft` cross-entropy alone, by TRL's own SFTTrainer; `top50` the 50 best and their tail; `renormalised12`,
  `renormalised50` the K best blown up to 1; `sampled50` the counts of 50 draws from 256; `full` the whole vocabulary
  of a live teacher.
- `divergences`: each divergence at temperatures 1 and 2, on `top50`, one seed: a table.
- `temperature`: how many equal tokens the demo teacher's tail is like, and how far off the stored rows are from the
  exact ones at a temperature (train/temperature.py).

Figures: `kd_over_sft_kl` and `kd_over_sft_kl_equal_time` (top50), `sampled_over_sft_kl`, `full_kd_gain_recovered`
(sampled50's share of what full gains over sft), `top50_gain_recovered`, `renormalised12_over_full_kl`,
`renormalised50_over_full_kl`, `tokens_to_sft_kl` (share of the tokens after which top50 has the KL that sft ends with),
`acceptance_gain` (top50 over sft, less 1). One value a seed; the intervals over prompts are printed beside.
"""

import copy
import itertools
import time
from pathlib import Path
from typing import Any

import answers as bench
import numpy as np
import torch
import train_step

from pipeline.config import Divergence, Generate, Train

POINTS = 5  # of a training at which KL is measured, the end included
LEARN = {"epochs": 1, "batch_size": 4, "learning_rate": 3e-4, "ce_weight": 0, "kd_weight": 1, "dtype": "float32"}
ARMS: dict[str, tuple[Generate, dict[str, Any]]] = {
    "sft": (Generate(k=50), {"ce_weight": 1, "kd_weight": 0}),
    "top50": (Generate(k=50), {}),
    "renormalised12": (Generate(k=12), {"tail": "renormalise"}),
    "renormalised50": (Generate(k=50), {"tail": "renormalise"}),
    "sampled50": (Generate(k=256, support="sampled", num_draws=50), {}),
    "full": (Generate(k=50), {"targets": "live"}),
}


class Repacked:
    """Made of the answers that a run stored in full width: the same, as another `generate.support` stores them."""

    def __new__(cls, answers: Any, settings: Generate, vocab_size: int) -> Any:
        from pipeline import codec
        from pipeline.generate import support
        from pipeline.train.rows import Answers

        class Rows(Answers):
            def __getitem__(self, number: int) -> dict[str, Any]:
                row = answers[number]
                ids_NK, logprobs_NK, _ = codec.decode(row["logprobs"])
                best = slice(0, settings.k)
                packed = support.pack(ids_NK[:, best], logprobs_NK[:, best], vocab_size, settings, row["response_id"])
                return {**row, "logprobs": packed}

        return Rows([], answers.index)


class Held:
    """Forward KL and acceptance of a model on the held-out answers, prompt by prompt."""

    def __init__(self, run: Any, teacher: Any, num: int) -> None:
        from pipeline.evaluate.fidelity import ForcedText
        from pipeline.train.rows import kept_answers

        rows = kept_answers(run, "held_out", 2048)
        self._teacher = teacher
        self._texts = [
            ForcedText(row["response_id"], row["prompt_token_ids"], row["token_ids"]) for row in list(rows)[:num]
        ]

    def sums(self, model: Any, share: int = 1) -> Any:
        from pipeline.evaluate import fidelity

        model.eval()
        sums = fidelity.measure(self._teacher, {"model": model}, self._texts[::share], 2048)["model"]
        model.train()
        return sums

    def kl_nats(self, model: Any) -> float:
        sums = self.sums(model, share=3)
        return sums.of("forward_kl_nats").sum() / sums.num_tokens().sum()


def train(answers: Any, changes: dict[str, Any], seed: int, held: Held, teacher: Any, base: Any) -> dict[str, Any]:
    """Train a copy of the student; its curve of held-out KL, its sums at the end, and the seconds of its steps."""
    from transformers import TrainerCallback

    from pipeline import models
    from pipeline.train import trainer as ours

    settings = Train.model_validate({**LEARN, **changes, "seed": seed, "report_to": (), "validation_frac": 0.0})
    model = copy.deepcopy(base)
    arguments = ours._arguments(settings, bench.ROOT / "runs/.bench-quality", validates=False)
    arguments.save_strategy, arguments.logging_strategy = "no", "no"
    live = teacher if settings.targets == "live" else None
    tokenizer = models.find("demo").tokenizer()
    if settings.kd_weight == 0:
        of = train_step.plain(settings, model, answers, tokenizer, arguments)
    else:
        of = ours.distillation_trainer(settings, model, tokenizer, answers, answers, arguments, live)
    steps = -(-len(answers) // settings.batch_size)
    points = {round(steps * place / POINTS) for place in range(1, POINTS)}
    curve, measuring_s = [(0.0, held.kl_nats(model))], 0.0

    class Curve(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal measuring_s
            if state.global_step in points:
                began = time.perf_counter()
                curve.append((state.global_step / steps, held.kl_nats(model)))
                measuring_s += time.perf_counter() - began

    of.add_callback(Curve())
    began = time.perf_counter()
    of.train()
    seconds = time.perf_counter() - began - measuring_s
    curve.append((1.0, held.kl_nats(model)))
    return {"curve": curve, "sums": held.sums(model), "seconds": seconds}


def mean(trained: dict[str, Any], measure: str) -> float:
    return trained["sums"].of(measure).sum() / trained["sums"].num_tokens().sum()


def at(curve: list[tuple[float, float]], way: float) -> float:
    """KL after this share of the tokens, between the points of a curve."""
    ways, kl_nats = zip(*curve, strict=True)
    return float(np.interp(way, ways, kl_nats))


def reached(curve: list[tuple[float, float]], kl_nats: float) -> float:
    """Share of the tokens after which a curve first is at this KL; 1 where it never is."""
    for (before, high), (after, low) in itertools.pairwise(curve):
        if low <= kl_nats:
            return before + (after - before) * (high - kl_nats) / (high - low)
    return 1.0


def arm_figures(arms: dict[str, Any], num_seeds: int) -> dict[str, Any]:
    values: dict[str, list[float]] = {}
    for seed in range(num_seeds):
        of = {name: trained[seed] for name, trained in arms.items()}
        kl = {name: mean(trained, "forward_kl_nats") for name, trained in of.items()}
        kept = {name: mean(trained, "acceptance_frac") for name, trained in of.items()}
        pace = of["top50"]["seconds"] / of["sft"]["seconds"]  # the slower one is cut short
        timely = at(of["top50"]["curve"], min(1, 1 / pace)) / at(of["sft"]["curve"], min(1, pace))
        gain = kl["sft"] - kl["full"]
        for name, value in {
            "kd_over_sft_kl": kl["top50"] / kl["sft"],
            "kd_over_sft_kl_equal_time": timely,
            "sampled_over_sft_kl": kl["sampled50"] / kl["sft"],
            "full_kd_gain_recovered": (kl["sft"] - kl["sampled50"]) / gain,
            "top50_gain_recovered": (kl["sft"] - kl["top50"]) / gain,
            "renormalised12_over_full_kl": kl["renormalised12"] / kl["full"],
            "renormalised50_over_full_kl": kl["renormalised50"] / kl["full"],
            "tokens_to_sft_kl": reached(of["top50"]["curve"], of["sft"]["curve"][-1][1]),
            "acceptance_gain": kept["top50"] / kept["sft"] - 1,
        }.items():
            values.setdefault(name, []).append(value)
    return {name: bench.figure(each) for name, each in values.items()}


def show_arms(arms: dict[str, Any]) -> None:
    """KL and acceptance of each arm, seeds side by side, and the ratio to `full` with an interval over prompts."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.evaluate.statistics import ratio

    table = Table("arm", "forward KL, nats", "acceptance", "KL over full's (95 % over prompts)", "curve, first seed")
    for name, trained in arms.items():
        shown = [
            " ".join(f"{mean(t, measure):.4f}" for t in trained) for measure in ("forward_kl_nats", "acceptance_frac")
        ]
        sums: list[Any] = [sum(t["sums"].of("forward_kl_nats") for t in each) for each in (trained, arms["full"])]
        over = ratio(sums[0], sums[1], resamples=10_000, seed=0)
        curve = " ".join(f"{kl:.3f}" for _, kl in trained[0]["curve"])
        table.add_row(name, *shown, f"{over['value']:.3f} ({over['low']:.3f}–{over['high']:.3f})", curve)
    Console(width=150).print(table)


def all_arms(run: Any, num: int, num_seeds: int) -> dict[str, Any]:
    answers, teacher, base, held = ready(run, num)
    arms: dict[str, Any] = {name: [] for name in ARMS}
    for seed in range(num_seeds):
        for name, (support, changes) in ARMS.items():
            rows = Repacked(answers, support, 49_152)
            arms[name].append(train(rows, changes, seed, held, teacher, base))
            kl_nats, seconds = mean(arms[name][-1], "forward_kl_nats"), arms[name][-1]["seconds"]
            print(f"seed {seed}, {name}: KL {kl_nats:.4f} nats, {seconds:.0f} s", flush=True)
    show_arms(arms)
    return arm_figures(arms, num_seeds)


def ready(run: Any, num: int) -> tuple[Any, Any, Any, Held]:
    from pipeline import models
    from pipeline.train import student
    from pipeline.train.rows import HeldAnswers, kept_answers

    answers = kept_answers(run, "train", 2048)
    answers = answers.subset(np.arange(min(num, len(answers))))
    teacher = student.load(models.find("demo").path).eval()
    return HeldAnswers(answers._paths, answers.index), teacher, bench.untrained(), Held(run, teacher, 48)


def divergence_table(run: Any, num: int) -> dict[str, Any]:
    from rich.console import Console
    from rich.table import Table

    answers, teacher, base, held = ready(run, num)
    rows = Repacked(answers, Generate(k=50), 49_152)
    table = Table("divergence", "temperature", "forward KL", "reverse KL", "same first choice", "acceptance")
    for name in Divergence.__args__:
        for temperature in (1.0, 2.0):
            trained = train(rows, {"divergence": name, "temperature": temperature}, 0, held, teacher, base)
            measures = ("forward_kl_nats", "reverse_kl_nats", "top1_agreement_frac", "acceptance_frac")
            table.add_row(name, f"{temperature:g}", *(f"{mean(trained, m):.3f}" for m in measures))
            print(f"{name} at {temperature:g}: KL {mean(trained, measures[0]):.4f}", flush=True)
    Console(width=110).print(table)
    return {}


@torch.no_grad()
def temperature_figures(run: Any, num: int) -> dict[str, Any]:
    """Of some hundred rows with 50 entries: the size of the tail, and the error of what is stored, by temperature."""
    from pipeline.train import temperature
    from pipeline.train.batches import collate
    from pipeline.train.head import head_of, logits
    from pipeline.train.losses import states

    answers, teacher, _, _ = ready(run, 8)
    batch = collate(list(Repacked(answers, Generate(k=50), 49_152))[:6], 0, 49_152, Train())
    hidden_NH, _ = states(teacher, batch)
    ids_NK, logprobs_NK, log_tail_N = (batch[f"teacher_{name}"] for name in ("ids_NK", "logprobs_NK", "log_tail_N"))
    logits_NV, found = logits(hidden_NH, head_of(teacher)), {}
    for T in (0.5, 1.5, 2.0, 3.0, 4.0):
        sizes_N = temperature.tail_tokens(logits_NV.log_softmax(dim=1), ids_NK, T)
        errors_N = temperature.tempering_error_nats(logits_NV, ids_NK, logprobs_NK, log_tail_N, T)
        found[f"tail_tokens_t{T:g}"] = bench.figure([sizes_N.log().mean().exp().item()], "tokens")
        found[f"tempering_error_nats_t{T:g}"] = bench.figure([errors_N.mean().item()], "nats")
    return found


def main() -> None:
    parser = bench.options(__doc__)
    parser.add_argument("--only", default="arms,divergences,temperature", help="parts, with commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num", type=int, default=240, help="answers to train on")
    options = parser.parse_args()
    num, seeds = (64, 1) if options.quick else (options.num, options.seeds)
    run = bench.run_dir(Path(options.run) if options.run else None, "bench-quality", "generate.k=256")
    figures: dict[str, Any] = {}
    if "temperature" in options.only:
        figures |= temperature_figures(run, num)
    if "arms" in options.only:
        figures |= all_arms(run, num, seeds)
    if "divergences" in options.only:
        figures |= divergence_table(run, num)
    bench.show(figures, options.json)


if __name__ == "__main__":
    main()
