"""Answers made in a test, where others come from a run's files; and models small enough for the unit tier."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.config import Generate, Train
from pipeline.generate import support
from pipeline.train.examples import Index, TrainingExamples


class Listed(TrainingExamples):
    """Rows at hand, as if each `per_shard` of them stood in a file."""

    def __init__(self, rows: Sequence[dict[str, Any]], per_shard: int = 1000) -> None:
        places = np.arange(len(rows), dtype=np.int32)
        lengths = np.array([len(row["prompt_token_ids"]) + len(row["token_ids"]) for row in rows], np.int32)
        learnt = np.array([len(row["token_ids"]) for row in rows], np.int32)
        super().__init__([], Index(places // per_shard, places, lengths, learnt, places.astype(np.uint64)))
        self._listed = rows

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self._listed[int(number)]


VOCAB, K = 61, 8


def tiny(seed: int = 0, layers: int = 2) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def captured(
    teacher: LlamaForCausalLM, num: int, seed: int = 0, shift: int = 0, settings: Generate | None = None
) -> Listed:
    """Responses drawn by hand from the teacher, their rows written independently of the product's batching."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(num):
        prompt = torch.randint(1, VOCAB, (3 + index % 4,), generator=generator).tolist()
        tokens, kept = [], []
        for _ in range(4 + index % 7):
            with torch.no_grad():
                logprobs_V = teacher(torch.tensor([prompt + tokens])).logits[0, -1].log_softmax(dim=0)
            kept.append(logprobs_V)
            tokens.append(int(torch.multinomial(logprobs_V.exp(), 1, generator=generator)))
        logprobs_NV = torch.stack(kept).roll(shift, dims=0)
        best = logprobs_NV.topk(K, dim=1)
        values = best.values.numpy()
        rows.append(
            {
                "response_id": f"r{index}-0",
                "prompt_token_ids": prompt,
                "token_ids": tokens,
                "token_logprobs": [float(row[t]) for row, t in zip(kept, tokens, strict=True)],
                "logprobs": support.pack(
                    best.indices.numpy().astype(np.int32), values, VOCAB, settings or Generate(), f"r{index}-0"
                ),
                "length": len(prompt) + len(tokens),
                "masked_spans": [],
            }
        )
    return Listed(rows)


def reasoned(rows: Listed) -> list[dict[str, Any]]:
    """The rows, every second one with three tokens of reasoning, of which one is between the tags."""
    some = {"reasoning_tokens": 3, "reasoning_start": 1, "reasoning_end": 2}
    none = dict.fromkeys(some, 0)
    return [{**row, **(none if place % 2 else some)} for place, row in enumerate(rows)]


def settings(**changes: Any) -> Train:
    base = {
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "dtype": "float32",
        "report_to": (),
        "log_steps": 1,
    }
    return Train.model_validate({**base, **changes})
