"""A tokenizer of a few words, with a chat template."""

from typing import Any

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant] "
WORDS = ("<unk>", "[", "]", "system", "user", "assistant", "Be", "brief", "Hi", "Hello")


def tokenizer(words: tuple[str, ...] = WORDS, template: str | None = TEMPLATE) -> Any:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    cutter: Any = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    cutter.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=cutter, unk_token="<unk>", chat_template=template)
