"""What distillation is worth: held-out KL of students trained on the same answers with other targets.

    .venv/bin/python scripts/bench/kd_quality.py [--quick] [--run RUN] [--json FILE] [--seeds 3] [--num 160]
                                                 [--only arms,learning_rates,divergences,temperature]

The demo teacher answers the seed prompts once (256 log-probs a token); every arm is the quickstart's student, trained
one pass over the same answers, in an order that the seed alone decides. What is measured is forward KL over the whole
vocabulary on the answers to the held-out prompts.

- `arms`: `sft` cross-entropy alone, by TRL's SFTTrainer with this project's head (train_step.py asserts that loss and
  gradients are TRL's; its own head takes longer); `top50` the 50 best and their tail; `renormalised12` the 12 best
  blown up to 1; `sampled50` the counts of 50 draws from 256; `full` the whole vocabulary of a live teacher. `sft`
  and `top50` are measured on a third of the prompts on their way too.
- `learning_rates`: `sft` and `top50` at a third and at three times the learning rate, one seed: is SFT behind for want
  of a better one?
- `divergences`: each divergence at temperatures 1 and 2 on `top50`, one seed, a third of the answers: a table.
- `temperature`: how many equal tokens the demo teacher's tail is like on answers to held-out prompts, and how far off
  the stored rows are from the exact ones at a temperature (train/losses/temperature.py).

Figures: `kd_over_sft_kl` (top50), `kd_over_sft_kl_equal_time` (the slower one is cut short), `sampled_over_sft_kl`,
`full_kd_gain_recovered` (sampled50's share of what full gains over sft), `top50_gain_recovered`,
`renormalised12_over_full_kl`, `tokens_to_sft_kl` (share of the tokens after which top50 has the KL that sft ends with,
on top50's way to the end of its schedule), `acceptance_gain` (top50 over sft, less 1), `kd_over_sft_kl_best_rate`
(each at the rate that is best for it). Median and spread are over seeds; the 95 % interval
is a bootstrap over prompts and seeds, both drawn anew and all arms alike.

Trainings are kept in runs/.bench-quality: the same command goes on after the last. Delete it where code has changed.
"""

import copy
import hashlib
import pickle
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import answers as bench
import numpy as np
import numpy.typing as npt
import torch
import train_step

from pipeline.config import Divergence, Generate, Train

Floats = npt.NDArray[np.float64]
WAY = (0.15, 0.3, 0.45, 0.7)  # shares of a training at which the arms with a curve are measured
RESAMPLES = 4000
VOCAB_SIZE = 49_152
LEARN = {"epochs": 1, "batch_size": 4, "learning_rate": 3e-4, "ce_weight": 0, "kd_weight": 1}
RATES = (1e-4, 3e-4, 9e-4)
ARMS: dict[str, tuple[Generate, dict[str, Any]]] = {
    "sft": (Generate(k=50), {"ce_weight": 1, "kd_weight": 0}),
    "top50": (Generate(k=50), {}),
    "renormalised12": (Generate(k=12), {"tail": "renormalise"}),
    "sampled50": (Generate(k=256, support="sampled", num_draws=50), {}),
    "full": (Generate(k=50), {"targets": "live"}),
}
ON_THE_WAY = ("sft", "top50")


class Trained(NamedTuple):
    """A training: held-out sums on its way (from the untrained student to the end) and at its end."""

    ways: list[float]
    curve: list[Any]  # fidelity.Sums on a third of the prompts, at each of `ways`
    end: Any  # fidelity.Sums on all prompts
    seconds: float


class Repacked:
    """Made of answers that were stored in full width: the first of them, as another `generate.support` stores them."""

    def __new__(cls, answers: Any, num: int, settings: Generate) -> Any:
        from pipeline import codec
        from pipeline.generate import support
        from pipeline.train.examples import TrainingExamples

        class Rows(TrainingExamples):
            def __getitem__(self, number: int) -> dict[str, Any]:
                row = answers[number]
                ids_NK, logprobs_NK, _ = codec.decode(row["logprobs"])
                best = slice(0, settings.k)
                packed = support.pack(ids_NK[:, best], logprobs_NK[:, best], VOCAB_SIZE, settings, row["response_id"])
                return {**row, "logprobs": packed}

        return Rows([], answers.index.take(np.arange(num)))


class Remembering:
    """A teacher for measuring alone, that computes the states of a batch once."""

    def __init__(self, model: Any) -> None:
        self.parameters, self.get_output_embeddings = model.parameters, model.get_output_embeddings
        self._decoder, self._known = model.get_decoder(), {}

    def get_decoder(self) -> Any:
        return self._states

    def _states(self, input_ids: torch.Tensor, **given: Any) -> Any:
        key = hashlib.sha256(input_ids.numpy().tobytes() + str(input_ids.shape).encode()).digest()
        if key not in self._known:
            self._known[key] = self._decoder(input_ids=input_ids, **given)
        return self._known[key]


class Laboratory:
    """A teacher, its answers, the student before it learns, and the held-out prompts' answers to measure it on."""

    def __init__(self, run: Any, num: int) -> None:
        from pipeline.models import lookup
        from pipeline.models.forward.forced import ForcedResponse
        from pipeline.train import student
        from pipeline.train.examples import HeldExamples, kept_answers

        answers, self.held_out = (kept_answers(run, split, 2048) for split in ("train", "held_out"))
        some = np.random.default_rng(0).permutation(len(answers))[:num]
        self.answers = HeldExamples(answers._paths, answers.index.take(some))
        self._texts = [
            ForcedResponse(str(conversation), row["prompt_token_ids"], row["token_ids"])
            for conversation, row in zip(self.held_out.index.conversations, self.held_out, strict=True)
        ]
        self.tokenizer = lookup.find("demo").tokenizer()
        self.teacher, self._base = student.load(lookup.find("demo").path).eval(), bench.untrained()
        self._measured_by = Remembering(self.teacher)
        self._done = bench.ROOT / "runs/.bench-quality" / run.output_hash("filter")[:16]
        self._done.mkdir(parents=True, exist_ok=True)

    def measured(self, model: Any, every: int = 1) -> Any:
        from pipeline.evaluate import fidelity

        model.eval()
        sums = fidelity.measure(self._measured_by, {"model": model}, self._texts[::every], 2048)["model"]
        model.train()
        return sums

    def trained(self, arm: str, seed: int, share: float = 1, **changes: Any) -> Trained:
        """A copy of the student, trained on the first answers as the arm has them; what was done is not done again."""
        unchanged = {**LEARN, **ARMS[arm][1]}
        what = {**unchanged, **changes}
        has_curve = arm in ON_THE_WAY and share == 1 and what == unchanged
        key = f"{arm} {seed} {len(self.answers)} {share:g} {sorted(what.items())}"
        path = self._done / f"{arm}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pickle"
        if not path.exists():
            trained = self._train(arm, seed, has_curve, share, **changes)
            path.with_suffix(".tmp").write_bytes(pickle.dumps(trained))
            path.with_suffix(".tmp").rename(path)
        return pickle.loads(path.read_bytes())

    def _train(self, arm: str, seed: int, has_curve: bool, share: float, **changes: Any) -> Trained:
        from transformers import TrainerCallback

        from pipeline.train import trainer as ours

        support, of_arm = ARMS[arm]
        settings = Train.model_validate(
            {**LEARN, **of_arm, **changes, "seed": seed, "report_to": (), "validation_frac": 0.0}
        )
        rows, model = Repacked(self.answers, round(share * len(self.answers)), support), copy.deepcopy(self._base)
        arguments = ours._arguments(settings, bench.ROOT / "runs/.bench-quality", validates=False)
        arguments.save_strategy, arguments.logging_strategy = "no", "no"
        live = self.teacher if settings.targets == "live" else None
        if settings.kd_weight == 0:
            of = train_step.plain(settings, model, rows, self.tokenizer, arguments, our_head=True)
        else:
            of = ours.distillation_trainer(settings, model, self.tokenizer, rows, rows, arguments, live)
        steps = -(-len(rows) // settings.batch_size)
        points = {round(steps * way) for way in WAY} if has_curve else set()
        ways, curve = [0.0], [self.measured(model, every=3)] if has_curve else []
        measuring_s, measured = 0.0, self.measured

        class Curve(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                nonlocal measuring_s
                if state.global_step in points:
                    began = time.perf_counter()
                    ways.append(state.global_step / steps)
                    curve.append(measured(model, every=3))
                    measuring_s += time.perf_counter() - began

        of.add_callback(Curve())
        began = time.perf_counter()
        of.train()
        seconds = time.perf_counter() - began - measuring_s
        if has_curve:
            ways.append(1.0)
            curve.append(self.measured(model, every=3))
        trained = Trained(ways, curve, self.measured(model), seconds)
        what = " ".join(f"{name} {value}" for name, value in changes.items())
        print(f"seed {seed}, {arm} {what}: KL {mean(trained, KL):.4f} nats, {seconds:.0f} s", flush=True)
        return trained


KL, ACCEPTANCE = "forward_kl_nats", "acceptance_frac"
Arms = dict[str, list[Trained]]  # seeds in order


def mean(trained: Trained, measure: str) -> float:
    return trained.end.of(measure).sum() / trained.end.num_tokens().sum()


def at(ways: Floats, kl: Floats, way: float) -> float:
    """KL after this share of the tokens, between the points of a curve."""
    return float(np.interp(way, ways, kl))


def reached(ways: Floats, kl: Floats, wanted: float) -> float:
    """Share of the tokens after which a curve first is at this KL; 1 where it never is."""
    for n in range(1, len(kl)):
        if kl[n] <= wanted:
            return float(ways[n - 1] + (ways[n] - ways[n - 1]) * (kl[n - 1] - wanted) / (kl[n - 1] - kl[n]))
    return 1.0


class Drawn(NamedTuple):
    """How often each seed and each prompt stands in a resample: (R, S) and (R, P); the first is the data itself."""

    seeds_RS: Floats
    prompts_RP: Floats

    def means(self, of: list[Any], measure: str) -> Floats:
        """Mean per token of a measure in each resample, (R,), from the sums of each seed."""
        sums_SP = np.stack([sums.of(measure) for sums in of])
        num_tokens_P = of[0].num_tokens()
        shares_RS = self.seeds_RS / self.seeds_RS.sum(axis=1, keepdims=True)
        return np.einsum("rs,sp,rp->r", shares_RS, sums_SP, self.prompts_RP) / (self.prompts_RP @ num_tokens_P)


def drawn(num_seeds: int, num_prompts: int, resamples: int) -> Drawn:
    """Weights of the data itself, then of resamples with replacement."""
    generator = np.random.default_rng(0)
    weights = [
        np.vstack([np.ones(n), generator.multinomial(n, np.full(n, 1 / n), size=resamples)]).astype(np.float64)
        for n in (num_seeds, num_prompts)
    ]
    return Drawn(*weights)


def arm_values(arms: Arms, resamples: int) -> dict[str, Floats]:
    """Each figure, (R,): of the data itself, then of each resample."""
    seeds, some = range(len(arms["sft"])), arms["sft"][0]
    on_all, on_third = (drawn(len(seeds), len(sums.num_tokens()), resamples) for sums in (some.end, some.curve[0]))
    kl = {name: on_all.means([t.end for t in trained], KL) for name, trained in arms.items()}
    kept = {name: on_all.means([t.end for t in trained], ACCEPTANCE) for name, trained in arms.items()}
    curve_RW = {
        name: np.stack([on_third.means([t.curve[w] for t in arms[name]], KL) for w in range(len(some.ways))], axis=1)
        for name in ON_THE_WAY
    }
    ways = np.array(some.ways)
    # share of the slower one's training that fits in the time of the faster
    pace = sum(t.seconds for t in arms["top50"]) / sum(t.seconds for t in arms["sft"])
    pairs = list(zip(curve_RW["top50"], curve_RW["sft"], strict=True))
    timely = [at(ways, kd_W, min(1, 1 / pace)) / at(ways, sft_W, min(1, pace)) for kd_W, sft_W in pairs]
    gain = kl["sft"] - kl["full"]
    return {
        "kd_over_sft_kl": kl["top50"] / kl["sft"],
        "kd_over_sft_kl_equal_time": np.array(timely),
        "sampled_over_sft_kl": kl["sampled50"] / kl["sft"],
        "full_kd_gain_recovered": (kl["sft"] - kl["sampled50"]) / gain,
        "top50_gain_recovered": (kl["sft"] - kl["top50"]) / gain,
        "renormalised12_over_full_kl": kl["renormalised12"] / kl["full"],
        "tokens_to_sft_kl": np.array([reached(ways, kd_W, sft_W[-1]) for kd_W, sft_W in pairs]),
        "acceptance_gain": kept["top50"] / kept["sft"] - 1,
    }


def arm_figures(arms: Arms) -> dict[str, Any]:
    values = arm_values(arms, RESAMPLES)
    by_seed = [
        arm_values({name: [trained[seed]] for name, trained in arms.items()}, 0) for seed in range(len(arms["sft"]))
    ]
    return {
        name: bench.figure([float(one[name][0]) for one in by_seed], interval=values_R[1:])
        for name, values_R in values.items()
    }


def show_arms(arms: Arms) -> None:
    """KL and acceptance of each arm, seeds side by side, and the curve of the first."""
    from rich.console import Console
    from rich.table import Table

    table = Table("arm", "forward KL, nats", "acceptance", "seconds", "KL on its way, first seed")
    for name, trained in arms.items():
        shown = [" ".join(f"{mean(t, measure):.4f}" for t in trained) for measure in (KL, ACCEPTANCE)]
        on_way = " ".join(f"{s.of(KL).sum() / s.num_tokens().sum():.3f}" for s in trained[0].curve)
        table.add_row(name, *shown, " ".join(f"{t.seconds:.0f}" for t in trained), on_way)
    Console(width=150).print(table)


def all_arms(laboratory: Laboratory, num_seeds: int) -> dict[str, Any]:
    arms: Arms = {name: [] for name in ARMS}
    for seed in range(num_seeds):
        for name in ARMS:
            arms[name].append(laboratory.trained(name, seed))
    show_arms(arms)
    return arm_figures(arms)


def learning_rates(laboratory: Laboratory, num_seeds: int) -> dict[str, Any]:
    """Each arm at each learning rate; one seed."""
    best = {}
    for name in ON_THE_WAY:
        trained = [laboratory.trained(name, 0, learning_rate=rate) for rate in RATES]
        best[name] = min(trained, key=lambda t: mean(t, KL))
    ends = {name: drawn(1, len(t.end.num_tokens()), RESAMPLES).means([t.end], KL) for name, t in best.items()}
    ratio_R = ends["top50"] / ends["sft"]
    return {"kd_over_sft_kl_best_rate": bench.figure([float(ratio_R[0])], interval=ratio_R[1:])}


def divergence_table(laboratory: Laboratory, num_seeds: int) -> dict[str, Any]:
    from rich.console import Console
    from rich.table import Table

    table = Table("divergence", "temperature", "forward KL", "reverse KL", "same first choice", "acceptance")
    for name in Divergence.__args__:
        for temperature in (1.0, 2.0):
            trained = laboratory.trained("top50", 0, share=1 / 3, divergence=name, temperature=temperature)
            measures = (KL, "reverse_kl_nats", "top1_agreement_frac", ACCEPTANCE)
            table.add_row(name, f"{temperature:g}", *(f"{mean(trained, m):.3f}" for m in measures))
    Console(width=110).print(table)
    return {}


@torch.no_grad()
def temperature_figures(laboratory: Laboratory, num_seeds: int) -> dict[str, Any]:
    """Of some hundred rows with 50 entries: the size of the tail, and the error of what is stored, by temperature."""
    from pipeline.models.forward.head import head_of, logits
    from pipeline.train.batches import collate
    from pipeline.train.losses import states, temperature

    teacher = laboratory.teacher
    batch = collate(list(Repacked(laboratory.held_out, 6, Generate(k=50))), 0, VOCAB_SIZE, Train())
    hidden_NH, _ = states(teacher, batch)
    ids_NK, logprobs_NK, log_tail_N = (batch[f"teacher_{name}"] for name in ("ids_NK", "logprobs_NK", "log_tail_N"))
    logits_NV, found = logits(hidden_NH, head_of(teacher)), {}
    for T in (0.5, 1.5, 2.0, 3.0, 4.0):
        sizes_N = temperature.tail_tokens(logits_NV.log_softmax(dim=1), ids_NK, T)
        errors_N = temperature.tempering_error_nats(logits_NV, ids_NK, logprobs_NK, log_tail_N, T)
        found[f"tail_tokens_t{T:g}"] = bench.figure([sizes_N.log().mean().exp().item()], "tokens")
        found[f"tempering_error_nats_t{T:g}"] = bench.figure([errors_N.mean().item()], "nats")
    return found


PARTS: dict[str, Callable[[Laboratory, int], dict[str, Any]]] = {
    "temperature": temperature_figures,
    "arms": all_arms,
    "learning_rates": learning_rates,
    "divergences": divergence_table,
}


def main() -> None:
    parser = bench.options(__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num", type=int, default=160, help="answers to train on")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    num, seeds = (32, 1) if options.quick else (options.num, options.seeds)
    laboratory = Laboratory(bench.run_dir(options.run, "bench-quality", "generate.k=256"), num)
    figures: dict[str, Any] = {}
    for name in PARTS:
        if name in options.only.split(","):
            figures |= PARTS[name](laboratory, seeds)
            bench.show(figures, options.json)  # after each part, as a whole run takes an hour or two


if __name__ == "__main__":
    main()
