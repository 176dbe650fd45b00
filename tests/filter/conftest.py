"""A teacher's folder with a tokenizer of a few words, and a filter stage over answers that a test commits."""

import json
from pathlib import Path

import pytest
from support.captured import END, Filtered


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of a few words: 0 and END are special, and of those added later 5 is, and 6 is not."""
    from safetensors.numpy import save_file
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("teacher")
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": END, "alpha": 2, "beta": 3, "gamma": 4}, unk_token="<s>"))
    words.add_special_tokens([AddedToken("<|tool|>")])
    words.add_tokens([AddedToken("```")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 7}))
    save_file({}, folder / "model.safetensors")
    return folder


@pytest.fixture
def filtered(tmp_path: Path, teacher: Path) -> Filtered:
    return Filtered(tmp_path, teacher)
