"""A random teacher, and a tokenizer of its vocabulary."""

from typing import Any

import pytest
from support.listed import tiny
from support.numbered_words import word_tokenizer
from transformers import LlamaForCausalLM


@pytest.fixture(scope="module")
def teacher() -> LlamaForCausalLM:
    return tiny().eval()


@pytest.fixture
def tokenizer() -> Any:
    return word_tokenizer()
