"""What log-probs cost on disk: Retort's supports beside JSON, plain arrays and DistillKit's layout, on one capture.

    .venv/bin/python scripts/bench/storage.py [--quick] [--json FILE]

The demo teacher answers seed prompts with the quickstart's settings through the product's own engine; its 256 best
log-probs of each token are the truth that every format is made from. A second model of random weights has a
vocabulary of 151,936. Bytes per answer token are those of a Parquet shard as `retort generate` writes it: the columns
that KD needs (prompt and answer ids, packed log-probs), offsets and metadata included; `with the rest` adds text,
sampled log-probs and labels. KL is the forward KL between the buckets (entries and tail) before and after the format.
Of counts of draws (`sampled`) nothing is lost; that they are
draws has another price.

The others: JSON as an OpenAI-style server answers; int32 + float16 arrays; DistillKit's published "budget pick"
(k=50: ids of ⌈log2 V⌉ bits, one log-prob in bfloat16, three float32 terms 1, i, √i fitted to the rest).

Figures: `top50_bytes_per_token`, `sampled50_...`, `sampled32_...`, `drawn50_...`, `drawn32_...`, `nucleus_...`, each
also with `_v151936`; `top50_kl_nats`; `encode_tokens_per_s`, `decode_tokens_per_s` (K=50, one core), and
`decode_over_train` (against training steps of the quickstart's student).
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from answers import figure, untrained
from rich.console import Console
from rich.table import Table

from pipeline import codec, config, generate
from pipeline.config import Config, Generate
from pipeline.generate import support
from pipeline.inference.engine import Completion, Engine, Request
from pipeline.models import lookup
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.records import RESPONSES
from pipeline.run.files import write_table

ROOT = Path(__file__).parent.parent.parent
WIDE_K, K, LARGE_VOCABULARY = 256, 50, 151_936
KD_COLUMNS = ["prompt_token_ids", "token_ids", "logprobs"]
ARMS = {
    "top50": {"k": K, "support": "top"},
    "nucleus": {"k": 64, "support": "nucleus"},
    "drawn50": {"k": WIDE_K, "support": "drawn", "num_draws": 50},
    "drawn32": {"k": WIDE_K, "support": "drawn", "num_draws": 32},
    "sampled50": {"k": WIDE_K, "support": "sampled", "num_draws": 50},
    "sampled32": {"k": WIDE_K, "support": "sampled", "num_draws": 32},
}
Format = tuple[float, float | None]  # bytes per token, KL


def demo_answers(num: int) -> tuple[list[Completion], Any, int]:
    """Answers of the demo teacher to seed prompts, as the quickstart has them; tokenizer and vocabulary."""
    settings = config.load(ROOT / "configs/quickstart.yaml").generate
    teacher = lookup.find("demo")
    template = ChatTemplate(teacher.tokenizer())
    lines = (ROOT / "prompts/seeds.jsonl").read_text(encoding="utf-8").splitlines()
    engine = Engine(str(teacher.path), {}, k=WIDE_K)
    wide = settings.model_copy(update={"k": WIDE_K})
    requests = [
        generate.request(
            {"response_id": f"r{n}", "prompt_token_ids": template.render(json.loads(line)["messages"])},
            wide,
        )
        for n, line in enumerate(lines[:: len(lines) // num][:num])
    ]
    return list(engine.answers(requests)), template.tokenizer, engine.vocab_size


def random_answers(num: int, folder: Path) -> list[Completion]:
    """Answers of a small model of random weights over a large vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=LARGE_VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    engine = Engine(str(folder), {"skip_tokenizer_init": True, "max_model_len": 512}, k=WIDE_K)
    prompts = np.random.default_rng(0).integers(10, LARGE_VOCABULARY, (num, 16))
    requests = [Request(f"r{n}", p.tolist(), 64, 1.0, n, WIDE_K, ignore_eos=True) for n, p in enumerate(prompts)]
    return list(engine.answers(requests))


def shard_bytes(answers: list[Completion], vocab_size: int, settings: Generate, tokenizer: Any) -> dict[str, float]:
    """Bytes per answer token of a shard: the columns of KD alone, and all of them."""
    rows = []
    for number, answer in enumerate(answers):
        cut = Completion(
            **{
                **vars(answer),
                "ids_TK": answer.ids_TK[:, : settings.k],
                "logprobs_TK": answer.logprobs_TK[:, : settings.k],
            }
        )
        row = {"response_id": f"{number:016x}-0", "prompt_id": f"{number:016x}", "sample": 0, "split": "train"}
        row |= {"category": "chat", "prompt_token_ids": answer.request.prompt_token_ids}
        rows.append(generate.response(row, cut, tokenizer, vocab_size, Config(name="bench", generate=settings)))
    table = pa.Table.from_pylist(rows, schema=RESPONSES)
    tokens = sum(len(answer.token_ids) for answer in answers)
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, columns in (("kd", KD_COLUMNS), ("all", table.column_names)):
            write_table(table.select(columns), Path(folder) / "shard.parquet", generate.ZSTD_LEVEL)
            sizes[name] = (Path(folder) / "shard.parquet").stat().st_size / tokens
    return sizes


def joined(answers: list[Completion]) -> tuple[np.ndarray, np.ndarray]:
    """`(ids_NK, logprobs_NK)` of all tokens, K best."""
    return (
        np.concatenate([answer.ids_TK[:, :K] for answer in answers]),
        np.concatenate([answer.logprobs_TK[:, :K] for answer in answers]).astype(np.float64),
    )


def kl_nats(logprobs_NK: np.ndarray, after_NK: np.ndarray, tail_N: np.ndarray, after_tail_N: np.ndarray) -> float:
    """Mean forward KL over entries and tail; a tail that is stored as none counts as TAIL_STEP / 2."""
    with np.errstate(invalid="ignore"):
        difference_NK = np.where(logprobs_NK > -np.inf, logprobs_NK - after_NK, 0)
    entries_N = (np.exp(logprobs_NK) * difference_NK).sum(axis=1)
    after_tail_N = np.maximum(after_tail_N, codec.TAIL_STEP / 2)
    return float(
        (entries_N + np.where(tail_N > 0, tail_N * np.log(np.maximum(tail_N, 1e-30) / after_tail_N), 0)).mean()
    )


def of_codec(answers: list[Completion], vocab_size: int, settings: Generate) -> float:
    """KL that the codec costs to the buckets of a support of levels."""
    total, tokens = 0.0, 0
    for answer in answers:
        ids_NK, logprobs_NK = answer.ids_TK[:, : settings.k], answer.logprobs_TK[:, : settings.k]
        packed = support.pack(ids_NK, logprobs_NK, vocab_size, settings, "r")
        after_ids_NK, decoded_NK, after_tail_N = codec.decode(packed)
        after_NK = np.full(logprobs_NK.shape, -np.inf)
        rows_N1 = np.arange(len(ids_NK))[:, None]
        rank_NV = np.full((len(ids_NK), vocab_size), -1, np.int16)
        np.put_along_axis(rank_NV, ids_NK, np.arange(settings.k, dtype=np.int16)[None], 1)
        is_entry_NK = decoded_NK > -np.inf  # what is not stored, went into the tail
        after_NK[
            np.broadcast_to(rows_N1, decoded_NK.shape)[is_entry_NK], rank_NV[rows_N1, after_ids_NK][is_entry_NK]
        ] = decoded_NK[is_entry_NK]
        logprobs_NK = np.where(after_NK > -np.inf, logprobs_NK, -np.inf)
        tail_N = np.exp(codec.log_tail(logprobs_NK, vocab_size).astype(np.float64))
        total += kl_nats(logprobs_NK.astype(np.float64), after_NK, tail_N, np.exp(after_tail_N)) * len(ids_NK)
        tokens += len(ids_NK)
    return total / tokens


def others(answers: list[Completion], vocab_size: int) -> dict[str, Format]:
    """Bytes per token of the columns of log-probs, and KL, of the formats in use elsewhere; uncompressed."""
    ids_NK, logprobs_NK = joined(answers)
    tail_N = 1 - np.exp(logprobs_NK).sum(axis=1)
    shown = [
        json.dumps({str(i): round(float(p), 6) for i, p in zip(ids, values, strict=True)})
        for ids, values in zip(ids_NK[:500], logprobs_NK[:500], strict=True)
    ]
    halves_NK = logprobs_NK.astype(np.float16).astype(np.float64)
    rest = np.arange(K - 1, dtype=np.float64)
    terms = np.stack([np.ones(K - 1), rest, np.sqrt(rest)], axis=1)
    fitted_NK = logprobs_NK.copy()
    fitted_NK[:, 1:] = logprobs_NK[:, 1:] @ (np.linalg.pinv(terms).T @ terms.T)
    # kindly: made to sum to what the row held
    fitted_NK += np.log(np.exp(logprobs_NK).sum(axis=1) / np.exp(fitted_NK).sum(axis=1))[:, None]
    bits = K * math.ceil(math.log2(vocab_size)) + 16 + 3 * 32
    return {
        "JSON": (statistics.mean(map(len, shown)), 0.0),
        "int32 + float16": (K * 6.0, kl_nats(logprobs_NK, halves_NK, tail_N, tail_N)),
        "DistillKit k=50": (bits / 8, kl_nats(logprobs_NK, fitted_NK, tail_N, tail_N)),
    }


def rates(answers: list[Completion], vocab_size: int, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of encode and decode at K=50, by turns, on one core."""
    tokens = sum(len(answer.token_ids) for answer in answers)
    settings = Generate(k=K)
    packed = [support.pack(a.ids_TK[:, :K], a.logprobs_TK[:, :K], vocab_size, settings, "r") for a in answers]

    def encode() -> None:
        for a in answers:
            support.pack(a.ids_TK[:, :K], a.logprobs_TK[:, :K], vocab_size, settings, "r")

    def decode() -> None:
        for each in packed:
            codec.decode(each)

    measured: dict[str, list[float]] = {"encode": [], "decode": []}
    for _ in range(rounds):
        for name, work in (("encode", encode), ("decode", decode)):
            measured[name].append(tokens / timed(work))
    return measured


def training_rate(steps: int) -> list[float]:
    """Answer tokens per second of training steps of the quickstart's student, forward to backward; any text does."""
    from pipeline.train.batches import collate
    from pipeline.train.losses import token_losses

    quickstart = config.load(ROOT / "configs/quickstart.yaml")
    model = untrained()
    rng, vocab_size = np.random.default_rng(0), lookup.find("demo").vocab_size()
    logprobs_NK = np.tile(-np.log(2) * np.arange(1, K + 1), (96, 1)).astype(np.float32)
    rows = [
        {
            "response_id": f"r{number}",
            "prompt_token_ids": rng.integers(0, vocab_size, 60).tolist(),
            "token_ids": rng.integers(0, vocab_size, 96).tolist(),
            "masked_spans": None,
            "logprobs": support.pack(
                np.array([rng.choice(vocab_size, K, replace=False) for _ in range(96)], np.int32),
                logprobs_NK,
                vocab_size,
                Generate(k=K),
                "r",
            ),
        }
        for number in range(8)
    ]
    batch = collate(rows, 0, vocab_size, quickstart.train)

    def step() -> None:
        losses = token_losses(model, batch, quickstart.train)
        (losses.ce_N + losses.divergence_N).mean().backward()

    step()
    return [len(batch["teacher_ids_NK"]) / timed(step) for _ in range(steps)]


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(answers: list[Completion], vocab_size: int, tokenizer: Any, title: str) -> dict[str, float]:
    """Print the table of one capture; returns bytes per token of each of Retort's supports, and the KL."""
    table = Table(title=title, title_justify="left")
    for column in ("format", "bytes/token", "with the rest", "KL, nats"):
        table.add_column(column, justify="left" if column == "format" else "right")
    measured = {}
    for name, chosen in ARMS.items():
        settings = Generate.model_validate(chosen)
        sizes = shard_bytes(answers, vocab_size, settings, tokenizer)
        measured[name] = sizes["kd"]
        if settings.support == "sampled":
            lost = "counts kept"
        else:
            measured[f"{name}_kl"] = of_codec(answers, vocab_size, settings)
            lost = f"{measured[f'{name}_kl']:.1e}"
        table.add_row(f"retort {name}", f"{sizes['kd']:.1f}", f"{sizes['all']:.1f}", lost)
    for name, (size, lost) in others(answers, vocab_size).items():
        table.add_row(f"{name} (log-probs alone)", f"{size:.1f}", "", f"{lost:.1e}" if lost else "0")
    Console(width=100).print(table)
    return measured


class NoTokenizer:
    """Decodes nothing: the random model has no text."""

    unk_token_id = None

    def decode(self, *_: Any, **__: Any) -> str:
        return ""

    def convert_tokens_to_ids(self, _: str) -> None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few answers: rough figures in two minutes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    num, rounds = (48, 3) if options.quick else (256, 5)
    trained = training_rate(rounds)  # before vLLM takes the cores
    answers, tokenizer, vocab_size = demo_answers(num)
    tokens = sum(len(answer.token_ids) for answer in answers)
    demo = compare(answers, vocab_size, tokenizer, f"demo teacher, V={vocab_size:,}, {tokens:,} tokens")
    with tempfile.TemporaryDirectory() as folder:
        random = random_answers(num, Path(folder))
    large = compare(random, LARGE_VOCABULARY, NoTokenizer(), f"random weights, V={LARGE_VOCABULARY:,}")
    rate = rates(answers, vocab_size, rounds)
    figures = {
        **{f"{name}_bytes_per_token": figure([demo[name]], "bytes/token") for name in ARMS},
        **{f"{name}_bytes_per_token_v151936": figure([large[name]], "bytes/token") for name in ARMS},
        "top50_kl_nats": figure([demo["top50_kl"]], "nats"),
        "top50_kl_nats_v151936": figure([large["top50_kl"]], "nats"),
        "encode_tokens_per_s": figure(rate["encode"], "tokens/s"),
        "decode_tokens_per_s": figure(rate["decode"], "tokens/s"),
        "train_tokens_per_s": figure(trained, "tokens/s"),
        "decode_over_train": figure([a / b for a, b in zip(rate["decode"], trained, strict=True)], "ratio"),
    }
    for name, value in figures.items():
        print(f"{name:>34}  {value['median']:.6g}  ({value['low']:.6g}–{value['high']:.6g}, {value['num']})")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
