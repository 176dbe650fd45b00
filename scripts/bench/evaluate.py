"""What measuring fidelity costs: the whole pass beside forward passes whose logits are thrown away.

    .venv/bin/python scripts/bench/evaluate.py [--quick] [--json FILE] [--run RUN] [--model FOLDER] [--num TEXTS]

A teacher (`--model`, else the bundled one) and its copy with fewer layers (the quickstart's; of another model all but
the last) read the same texts in the same batches (evaluate.batch_tokens). Arms take turns, there and back:

- `forward`: `model(input_ids, attention_mask).logits` of teacher, then of student: logits at every position of the
  padded batch, as any forward pass has them, computed and thrown away;
- `answers`: of both models no more than fidelity needs: hidden states, and logits at the answer's tokens alone;
- `fidelity`: `fidelity.measure` of teacher and student: every measure, all buckets and calibration;
- `three_arms`: the same of three students at once, which is three copies of that student, and one teacher pass.

Before anything is timed, forward KL by `forward`'s logits in float64 is held against what fidelity says.

Texts are a run's held-out answers (`--run`), else random ids in lengths like the quickstart's: to matrix products and
elementwise passes all ids are alike.

Figures, each a speed over a speed: `fidelity_over_forward` (asked: 0.8 at least) and `fidelity_over_answers`, which
has no prompts to save; `three_arms_over_forward` is over forward passes of the four models;
`answer_tokens_per_s` of `fidelity`.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import answers as bench
import numpy as np
import torch

from pipeline.models.forward.forced import ForcedResponse

NUM_TEXTS = 16  # a round of which takes two cores two minutes


def texts(run: Path | None, num: int, vocab_size: int) -> list[ForcedResponse]:
    """The run's held-out answers, or random ones: prompts of 20 to 80 tokens, answers of 90 on average."""
    if run is not None:
        from pipeline.config import Train
        from pipeline.train.examples import kept_answers

        answers = kept_answers(bench.run_dir(run, ""), "held_out", Train().max_length)
        rows = [answers[n] for n in range(min(num, len(answers)))]
        return [ForcedResponse(str(n), row["prompt_token_ids"], row["token_ids"]) for n, row in enumerate(rows)]
    generator = np.random.default_rng(0)
    made = []
    for number in range(num):
        prompt, answer = int(generator.integers(20, 80)), int(generator.gamma(2, 45)) + 1
        ids = generator.integers(0, vocab_size, prompt + answer).tolist()
        made.append(ForcedResponse(str(number), ids[:prompt], ids[prompt:]))
    return made


def pair(folder: Path | None) -> tuple[Any, Any]:
    """The teacher, and a copy of it with fewer layers."""
    from pipeline.models import lookup
    from pipeline.models.forward.forced import load
    from pipeline.train import student

    if folder is None:
        return load(lookup.find("demo").path, "float32", "demo"), bench.untrained().eval()
    teacher = load(folder, "float32", str(folder))
    kept = list(range(teacher.config.num_hidden_layers - 1))
    return teacher, student.keep_layers(copy.deepcopy(teacher), kept).eval()


def padded(batch: list[ForcedResponse], device: torch.device) -> dict[str, torch.Tensor]:
    rows = [torch.tensor(text.prompt_token_ids + text.token_ids) for text in batch]
    ones = [torch.ones_like(row) for row in rows]
    names = {"input_ids": rows, "attention_mask": ones}
    return {name: torch.nn.utils.rnn.pad_sequence(of, batch_first=True).to(device) for name, of in names.items()}


@torch.no_grad()
def forward(models: list[Any], batches: list[list[ForcedResponse]]) -> None:
    for batch in batches:
        for model in models:
            model(**padded(batch, model.device), use_cache=False).logits  # noqa: B018 - computed, and thrown away


@torch.no_grad()
def answers_alone(models: list[Any], batches: list[list[ForcedResponse]]) -> None:
    from pipeline.evaluate.fidelity import CHUNK_TOKENS
    from pipeline.models.forward.forced import answer_states

    for batch in batches:
        for model in models:
            states_NH, _ = answer_states(model, batch)
            for chunk_NH in states_NH.split(CHUNK_TOKENS):
                model.get_output_embeddings()(chunk_NH)


@torch.no_grad()
def check(teacher: Any, student: Any, batch: list[ForcedResponse]) -> None:
    """Forward KL of a few texts, by logits that exist whole."""
    from pipeline.evaluate import fidelity

    sums = fidelity.measure(teacher, {"student": student}, batch, 4096)["student"]
    total = 0.0
    for text in batch:
        logprobs = [
            model(**padded([text], model.device)).logits[0].cpu().double().log_softmax(dim=1)
            for model in (teacher, student)
        ]
        p, q = (of[len(text.prompt_token_ids) - 1 : -1] for of in logprobs)
        total += float((p.exp() * (p - q)).sum())
    measured = sums.of("forward_kl_nats").sum()
    assert abs(measured - total) < 1e-3 * total, (measured, total)
    print(f"forward KL {measured / sums.num_tokens().sum():.4f} nats a token, as by whole logits in float64")


def timed(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def rounds_of(arms: dict[str, Callable[[], Any]], num: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each arm, round by round, after one of warm-up."""
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(num + 1):
        for arm in list(arms) if number % 2 == 0 else reversed(arms):
            took = timed(arms[arm], device)
            if number:
                seconds[arm].append(took)
                print(f"round {number}, {arm}: {took:.2f} s", flush=True)
    return seconds


def main() -> None:
    parser = bench.options(__doc__)
    parser.add_argument("--model", type=Path, help="the teacher's folder; else the bundled teacher")
    parser.add_argument("--num", type=int, help=f"so many texts (else {NUM_TEXTS}, half of it with --quick)")
    chosen = parser.parse_args()
    from pipeline.config import Evaluate
    from pipeline.evaluate import fidelity
    from pipeline.models.forward.forced import batches

    teacher, student = pair(chosen.model)
    num = chosen.num or (NUM_TEXTS // 2 if chosen.quick else NUM_TEXTS)
    read = texts(chosen.run, num, teacher.config.vocab_size)
    check(teacher, student, read[:2])
    tokens = Evaluate().batch_tokens
    made = list(batches(read, tokens))
    three = {f"student {number}": copy.deepcopy(student) for number in range(3)}
    arms: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward([teacher, student], made),
        "answers": lambda: answers_alone([teacher, student], made),
        "fidelity": lambda: fidelity.measure(teacher, {"teacher": teacher, "student": student}, read, tokens),
        "three_arms": lambda: fidelity.measure(teacher, three, read, tokens),
        "forward_four": lambda: forward([teacher, *three.values()], made),
    }
    seconds = rounds_of(arms, 2 if chosen.quick else 5, teacher.device)
    pairs = {
        "fidelity_over_forward": ("forward", "fidelity"),
        "fidelity_over_answers": ("answers", "fidelity"),
        "three_arms_over_forward": ("forward_four", "three_arms"),
    }
    figures = {
        name: bench.figure([a / b for a, b in zip(seconds[first], seconds[second], strict=True)])
        for name, (first, second) in pairs.items()
    }
    num_tokens = sum(len(text.token_ids) for text in read)
    figures["answer_tokens_per_s"] = bench.figure([num_tokens / took for took in seconds["fidelity"]], "tokens/s")
    bench.show(figures, chosen.json)


if __name__ == "__main__":
    main()
