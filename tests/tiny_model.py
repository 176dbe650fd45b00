"""A model of one layer that is made in no time, for tests in which its answers do not matter."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def save(folder: Path, tokenizer: Any, seed: int) -> None:
    """Write it with its tokenizer, as a plain transformers folder; seeds tell weights apart."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
