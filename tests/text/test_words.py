"""What of a text counts when texts are compared."""

import pytest

from pipeline.text.words import ask, prompt_text, words


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", ["hello", "world"]),
        ("  “Quoted” – and… (more)\n", ["quoted", "and", "more"]),
        ("ﬁne ＡＢＣ ½", ["fine", "abc", "1", "2"]),
        ("Straße", ["strasse"]),
        ("It's Ann’s '3.5'", ["its", "anns", "3", "5"]),
        ("- Some **bold** words", ["some", "bold", "words"]),
        ("", []),
        ("?! …", ["?!", "..."]),
    ],
)
def test_words_are_without_case_and_punctuation_where_there_are_any(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 3 + 4?", "What is 3 * 4?"),
        ("What is 3-4?", "What is 3+4?"),
        ("Simplify x*y", "Simplify x/y"),
        ("Is a < b?", "Is a > b?"),
        ("What is C?", "What is C++?"),
        ("What is C++?", "What is C#?"),
        ("What does 😂 mean?", "What does 😭 mean?"),
        ("100 €", "100 $"),
    ],
)
def test_signs_that_change_the_meaning_are_words(one: str, other: str) -> None:
    assert words(one) != words(other)


@pytest.mark.parametrize(
    ("text", "num_words"),
    [
        ("天空为什么是蓝色的？", 9),
        ("空はなぜ青い", 6),
        ("Python编程很好", 5),
        ("ฟ้า", 3),
        ("नमस्ते दुनिया", 2),
        ("하늘은 왜 파란가요", 3),
        ("السَّمَاءُ زرقاء", 2),
    ],
)
def test_characters_are_words_where_a_script_sets_no_spaces(text: str, num_words: int) -> None:
    assert len(words(text)) == num_words


def test_a_conversation_says_what_stands_in_its_messages_but_the_systems() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user("Hi"),
        {"role": "assistant", "content": None},
        user("And?"),
    ]
    assert prompt_text(messages) == "Hi\nAnd?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Why is the sky blue?", "Why is the sky blue?"),
        ("Translate:\nThe sky was blue that day.", "Translate:"),
        ("The sky was blue that day.\n\nWho says so?", "Who says so?"),
        (
            "What does this print?\n```python\nprint('a line that is longer than the question')\n```",
            "What does this print?",
        ),
        ("```\nprint(1)\n```", "```\nprint(1)\n```"),
        ("Mend this:\n```\nnever closed", "Mend this:"),
        ("", ""),
    ],
)
def test_the_ask_is_what_stands_beside_the_passage(text: str, expected: str) -> None:
    assert ask([user("Before."), user(text)]) == expected


def test_a_message_without_text_asks_nothing() -> None:
    assert ask([{"role": "tool", "content": None}]) == ""
