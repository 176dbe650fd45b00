"""What packing saves: an epoch of training in packs beside one in padded rows, over the share of padding it avoids.

    .venv/bin/python scripts/bench/packing.py [--quick] [--json FILE] [--run FOLDER]

The answers that a run's filter kept (`--run`), else those of the demo teacher to seed prompts with the quickstart's
settings. The student is the quickstart's: the demo teacher pruned to 24 layers. An epoch is forward and backward of
the real loss in float32 over all batches, made beforehand; arms take turns, there and back:

- `padded`: rows in the order of the corpus, so a batch is as long as the longest answer that happens to be in it;
- `grouped`: padded rows in the order of training, like lengths together;
- `packed`: train.pack_tokens, one pack a batch, each answer seeing itself alone.

Were the time that of the tokens alone, packed would take `fill` times that of padded: that ratio over the fill ratio
is what packing costs by itself (asked: 1.05 at the most). The head is computed at loss positions only, whichever arm:
padding never cost it anything, so `decoder_` has the same ratio without it.

Figures: `packed_over_padded_time`, `fill_ratio` (real tokens over padded ones), `packed_over_padded_time_over_fill`,
`packed_over_padded_decoder_time_over_fill`, each also with `grouped` for `padded`; `packed_tokens_per_s`, ...
"""

import sys
import time
from pathlib import Path
from typing import Any

import answers as bench

ARMS = ("padded", "grouped", "packed")
PARTS = ("whole", "decoder")
Times = dict[tuple[str, str], list[float]]  # (arm, part): seconds, round by round


def corpus(run: Path | None, num: int) -> Any:
    """The first answers to train on that are there."""
    import numpy as np

    from pipeline.config import Train
    from pipeline.train.examples import kept_answers

    answers = kept_answers(bench.run_dir(run, "bench-train", "generate.k=50"), "train", Train().max_length)
    return answers.subset(np.arange(min(num, len(answers))))


def batches(answers: Any, vocab_size: int, batch_size: int, pack_tokens: int) -> dict[str, list[dict[str, Any]]]:
    """An epoch's batches of each arm."""
    from pipeline.config import Train
    from pipeline.train.batches import collate_items, items, sampler

    rows, packs = Train(batch_size=batch_size), Train(batch_size=1, pack_tokens=pack_tokens)
    orders = {
        "padded": (rows, range(len(answers))),
        "grouped": (rows, sampler(items(answers, rows), rows)),
        "packed": (packs, sampler(items(answers, packs), packs)),
    }
    made = {}
    for arm, (settings, order) in orders.items():
        dataset, places = items(answers, settings), list(order)
        size = settings.batch_size
        chosen = [[dataset[n] for n in places[start : start + size]] for start in range(0, len(places), size)]
        made[arm] = [collate_items(each, answers, 0, vocab_size, settings) for each in chosen]
    return made


def students() -> dict[str, Any]:
    """The quickstart's student, as padded and as packed rows need it; both have the same weights."""
    from pipeline.models.forward import packed_attention

    made = {arm: bench.untrained().train() for arm in ("padded", "packed")}
    packed_attention.use(made["packed"], "float32")
    return made | {"grouped": made["padded"]}


def epoch_s(model: Any, epoch: list[dict[str, Any]], part: str) -> float:
    """Seconds of forward and backward over all batches, of the whole loss or of the decoder alone."""
    from pipeline.config import Train
    from pipeline.train.losses import token_losses

    began = time.perf_counter()
    for batch in epoch:
        if part == "whole":
            losses = token_losses(model, batch, Train())
            (losses.ce_N.sum() + losses.divergence_N.sum()).backward()
        else:
            given = {k: v for k, v in batch.items() if k != "labels" and not k.startswith("teacher_")}
            model.get_decoder()(**given, use_cache=False).last_hidden_state.sum().backward()
        model.zero_grad()
    return time.perf_counter() - began


def measure(epochs: dict[str, list[dict[str, Any]]], rounds: int, parts: tuple[str, ...]) -> Times:
    """The arms in turn, there and back, after a batch of each to warm up."""
    models = students()
    times: Times = {(arm, part): [] for part in parts for arm in ARMS}
    for arm in ARMS:
        epoch_s(models[arm], epochs[arm][:1], "whole")
    for _ in range(rounds):
        for arm, part in [*times, *reversed(times)]:
            times[arm, part].append(epoch_s(models[arm], epochs[arm], part))
            print(f"{arm:>8} {part:<8} {times[arm, part][-1]:7.1f} s", file=sys.stderr, flush=True)
    return times


def figures(times: Times, epochs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Ratios of neighbours in time, and those over the fill ratio."""
    sizes = {arm: sum(batch["input_ids"].numel() for batch in epoch) for arm, epoch in epochs.items()}
    found = {
        f"{arm}_tokens_per_s": bench.figure([sizes["packed"] / s for s in times[arm, "whole"]], "tokens/s")
        for arm in ARMS
    }
    for other in ("padded", "grouped"):
        fill = sizes["packed"] / sizes[other]
        found["fill_ratio" if other == "padded" else f"fill_ratio_{other}"] = bench.figure([fill])
        for part, name in (("whole", ""), ("decoder", "decoder_")):
            if ("packed", part) not in times:
                continue
            pairs = zip(times["packed", part], times[other, part], strict=True)
            ratios = [packed_s / other_s for packed_s, other_s in pairs]
            found[f"packed_over_{other}_{name}time"] = bench.figure(ratios)
            found[f"packed_over_{other}_{name}time_over_fill"] = bench.figure([ratio / fill for ratio in ratios])
    return found


def main() -> None:
    parser = bench.options(__doc__)
    parser.add_argument("--num", type=int, default=64, help="answers of an epoch, the first that filter kept")
    parser.add_argument("--rounds", type=int, default=1, help="rounds there and back")
    parser.add_argument("--batch-size", type=int, default=4, help="answers in a padded batch")
    parser.add_argument("--pack-tokens", type=int, default=1024, help="tokens in a pack")
    options = parser.parse_args()
    if options.quick:
        options.num, options.rounds = 12, 1
    from pipeline.models import lookup

    answers = corpus(options.run, options.num)
    epochs = batches(answers, lookup.find("demo").vocab_size(), options.batch_size, options.pack_tokens)
    print(f"{len(answers)} answers of {answers.lengths.mean():.0f} tokens, {answers.lengths.max()} at the most")
    times = measure(epochs, options.rounds, PARTS[: 1 if options.quick else 2])
    bench.show(figures(times, epochs), options.json)


if __name__ == "__main__":
    main()
