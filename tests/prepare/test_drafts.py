"""Drafts: what is taken off around a prompt, and what each rule turns away."""

import json
from pathlib import Path

import pytest

import pipeline
from pipeline.prepare.synthesis import drafts
from pipeline.prepare.synthesis.drafts import Draft, clean, reason, scripts_of

SEEDS = Path(pipeline.__file__).parent.parent / "prompts/seeds.jsonl"
LATIN = frozenset({"LATIN"})


def judged(text: str, is_ended: bool = True, has_control_tokens: bool = False) -> str | None:
    return reason(Draft(text, is_ended, has_control_tokens, LATIN))


@pytest.mark.parametrize(
    ("raw", "prompt"),
    [
        ("  Why is the sea salt?\n", "Why is the sea salt?"),
        ('"Why is the sea salt?"', "Why is the sea salt?"),
        ("“Why is the sea salt?”", "Why is the sea salt?"),
        ("Prompt: Why is the sea salt?", "Why is the sea salt?"),
        ("**New message:** Why is the sea salt?", "Why is the sea salt?"),
        ("Message 5: Why is the sea salt?", "Why is the sea salt?"),
        ("### Rewritten prompt:\n\nWhy is the sea salt?", "Why is the sea salt?"),
        ('Here is a new message:\n\n"Why is the sea salt?"', "Why is the sea salt?"),
        ("Sure! Here's one more message:\nWhy is the sea salt?", "Why is the sea salt?"),
        ("1. Why is the sea salt?\n2. Why is the sky blue?", "Why is the sea salt?"),
        ("- Why is the sea salt?\n- Why is the sky blue?", "Why is the sea salt?"),
        # what belongs to a prompt stays
        ("Put 'a' before 'b'", "Put 'a' before 'b'"),
        ("'One' or 'two'", "'One' or 'two'"),
        ("Write a list:\n1. apples\n2. pears", "Write a list:\n1. apples\n2. pears"),
        ("Message my landlord for me: the tap drips.", "Message my landlord for me: the tap drips."),
        ("3 apples cost 2 euros. How much are 9?", "3 apples cost 2 euros. How much are 9?"),
        ("", ""),
        ("1.", "1."),
    ],
)
def test_what_stands_around_a_prompt_is_taken_off(raw: str, prompt: str) -> None:
    assert clean(raw) == prompt


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "too_short"),
        ("???", "too_short"),
        ("Why?", "too_short"),
        ("Why is the sea\x00 salt?", "unprintable"),
        ("Why is the sea\ufffd salt?", "unprintable"),
        ("Why is the sea\ue000 salt?", "unprintable"),
        ("为什么海水是咸的？请简短回答。", "other_script"),
        ("Почему море солёное?", "other_script"),
        ("Why is the sea salt?<|im_end|>", "template_leftovers"),
        ("[INST] Why is the sea salt? [/INST]", "template_leftovers"),
        ("Write a letter to [insert name] about the dripping tap.", "template_leftovers"),
        ("Dear [Your Name], can you call me?", "template_leftovers"),
        ("Make the given prompt longer and ask for reasons.", "template_leftovers"),
        ("Sure! Why is the sea salt?", "answer_like"),
        ("Here is a poem about the sea. It is salt.", "answer_like"),
        ("As an AI language model I do not swim. What now?", "answer_like"),
        ("I'm sorry, but I can't help with that.", "answer_like"),
        ("Hello! How can I help you today?", "answer_like"),
        ("You are a helpful assistant. What is your name?", "answer_like"),
        ("Why is the sea salt?\n\nAnswer: Rivers bring it.", "answer_like"),
        ("What is it? What is it? What is it? What is it?", "repetitive"),
        ("The sea is salt because rivers bring it.", "not_a_request"),
        ("```python\nprint(1)\n```", "not_a_request"),
        ("Why, I made a joke.", "not_a_request"),
        ("This is the list of it:\n\nprint(x)\nreturn = max(x)", "not_a_request"),
        ("In this case, you can use a list to find it.", "answer_like"),
        ("The old house stood on a hill. It was empty, and the windows were broken.", "not_a_request"),
    ],
)
def test_each_rule_turns_away_what_it_is_for(text: str, why: str) -> None:
    assert judged(text) == why


def test_what_was_cut_or_holds_control_tokens_is_turned_away() -> None:
    assert judged("Why is the sea salt?", is_ended=False) == "truncated"
    assert judged("Why is the sea salt?", has_control_tokens=True) == "control_tokens"


@pytest.mark.parametrize(
    "text",
    [
        "Why is the sea salt?",
        "limerick about a goat who loves cheese crackers pls",
        "I run a bike shop and need a friendly sign for the door.",
        "In two sentences, explain what a boolean is.",
        "Write a function `f(x)` in Python:\n\tdef f(x):\n\t\treturn {'a': x}",
        "My flatmate never does the dishes. Help me find words.",
        "Solve for x: 2x + 3 = 7",
        "What does this do?\n```python\nx = [text[1], {{1}}]\n```",
        "```python\nx = 1\n```\nExplain the above.",
        "Was ist die Hauptstadt von Peru?",
        "Nenne mir drei Obstsorten und sage, wo sie wachsen.",
        "Explain what π and Δ stand for in this formula.",
        "Be a cloud passing over my town 🙂",
    ],
)
def test_requests_are_taken(text: str) -> None:
    assert judged(text) is None


@pytest.mark.parametrize(
    ("text", "is_kept"),
    [
        ("When was the lighthouse built?", True),
        ("Who cleaned the lenses of the light, and how often?", True),
        ("Where is it?", False),
        ("灯塔是什么时候建的？", True),  # nothing to go by
        ("Why can't I leave the ship with my luggage?", False),
        ("Which of these sentences is grammatically incorrect?", False),
    ],
)
def test_a_question_has_to_be_about_its_passage(text: str, is_kept: bool) -> None:
    passage = "The lighthouse was built in 1871. An engineer comes twice a year to clean the lens of its light."
    assert drafts.on_subject(Draft(text, True, False, LATIN, passage)) is is_kept
    assert drafts.on_subject(Draft(text, True, False, LATIN))


def test_few_prompts_that_people_wrote_would_be_turned_away() -> None:
    """The rules are strict, but not so strict that drafts could not be like the seeds."""
    rows = [json.loads(line) for line in SEEDS.read_text(encoding="utf-8").splitlines()]
    texts = [row["messages"][0]["content"] for row in rows if len(row["messages"]) == 1]
    turned_away = [(judged(clean(text)), text) for text in texts if judged(clean(text))]
    assert len(texts) > 300
    assert len(turned_away) <= 0.03 * len(texts), turned_away


def test_scripts_are_those_of_the_sources() -> None:
    assert scripts_of(["Why?", "Warum?"]) == LATIN
    assert scripts_of(["Why?", "为什么海水是咸的"]) == {"LATIN", "CJK"}
    assert scripts_of(["a" * 1000 + "π"]) == LATIN
    chinese = Draft("海水为什么是咸的？", True, False, frozenset({"CJK"}))
    assert drafts.same_scripts(chinese)
    assert drafts.long_enough(chinese)
