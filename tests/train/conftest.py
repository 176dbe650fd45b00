"""A random teacher, and a tokenizer of its vocabulary."""

from typing import Any

import pytest
from listed import VOCAB, tiny
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def teacher() -> LlamaForCausalLM:
    return tiny().eval()


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(VOCAB)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "w0")), pad_token="w0", eos_token="w1"
    )


@pytest.fixture
def tokenizer() -> Any:
    return word_tokenizer()
