"""A tokenizer of the tiny model's vocabulary."""

from typing import Any

from support.listed import VOCAB
from transformers import PreTrainedTokenizerFast


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(VOCAB)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "w0")), pad_token="w0", eos_token="w1"
    )
