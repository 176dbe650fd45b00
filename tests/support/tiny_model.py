"""Llamas that are made in no time, for tests in which what they say does not matter."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def make(seed: int, vocab_size: int, **config: Any) -> Any:
    """Two layers of weights wide enough apart that no two seeds agree by chance."""
    torch.manual_seed(seed)
    made = LlamaConfig(
        **{
            "vocab_size": vocab_size,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "initializer_range": 0.4,
            **config,
        }
    )
    return LlamaForCausalLM(made).eval()


def save(folder: Path, tokenizer: Any, seed: int) -> None:
    """Write one of one layer with its tokenizer, as a plain transformers folder; seeds tell weights apart."""
    make(seed, 300, num_hidden_layers=1, initializer_range=0.02).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
