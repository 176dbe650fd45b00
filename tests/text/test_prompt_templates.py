"""Jinja templates of prompts: what a null is in them, and what an error tells."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.text import prompt_templates
from pipeline.text.prompt_templates import FillError, PromptTemplate

NAN = float("nan")
Load = Callable[..., PromptTemplate]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def make(text: str | bytes, **syntax: bool) -> PromptTemplate:
        path = tmp_path / "ask.jinja"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return prompt_templates.load(path, "some.setting", **syntax)

    return make


@pytest.mark.parametrize("null", [None, NAN], ids=["null", "nan"])
@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("[{{ x }}]", "[]"),
        ("[{{ x | trim }}{{ x | upper }}{{ x | string }}{{ x | e }}]", "[]"),
        ("[{{ 'a' ~ x ~ 'b' }}]", "[ab]"),
        ("[{{ '%s' % x }}{{ '{}'.format(x) }}]", "[]"),
        ("[{{ x | default('-') }}]", "[-]"),
        ("[{{ x or '-' }}]", "[-]"),
        ("[{{ x | int }}]", "[0]"),
        ("[{% if x %}yes{% else %}no{% endif %}]", "[no]"),
        ("[{% if x is none %}yes{% endif %}{% if x == none %}yes{% endif %}]", "[yesyes]"),
        ("[{% if x is defined %}yes{% endif %}]", "[]"),
        ("[{% if x in ['', none] %}yes{% endif %}]", "[yes]"),
        ("[{% for each in x %}{{ each }}{% endfor %}{{ x | length }}]", "[0]"),
        ("[{{ x | tojson }}]", "[null]"),
        ("[{{ [x] }}{{ [x] | join('-') }}]", "[[null]]"),
    ],
)
def test_a_null_is_written_as_nothing(load: Load, text: str, filled: str, null: Any) -> None:
    assert load(text).fill({"x": null}) == filled


def test_a_null_within_a_value_is_written_as_nothing(load: Load) -> None:
    template = load("{{ x.a }}{{ x['b'][0] }}{% for each in x.c %}<{{ each.d }}>{% endfor %}")
    assert template.fill({"x": {"a": None, "b": [NAN], "c": [{"d": None}, {"d": 1}]}}) == "<><1>"


def test_lists_and_objects_are_written_as_json(load: Load) -> None:
    day = datetime.date(2026, 1, 2)
    assert (
        load("{{ x }}").fill({"x": ["é", None, {"a": NAN, "b": [day]}]})
        == '["é", null, {"a": null, "b": ["2026-01-02"]}]'
    )
    assert load("{{ x }}").fill({"x": day}) == "2026-01-02"


@pytest.mark.parametrize("text", ["{{ x.name }}", "{{ x + 1 }}", "{{ x[0] }}", "{{ x.strip() }}", "{{ x < 3 }}"])
def test_what_a_template_needs_of_a_null_is_an_error(load: Load, text: str) -> None:
    with pytest.raises(FillError, match=r"^'x' is null$"):
        load(text).fill({"x": None})


def test_binary_data_is_no_text(load: Load) -> None:
    with pytest.raises(FillError, match="binary data is not text"):
        load("{{ x }}").fill({"x": b"\xff"})


def test_an_undefined_variable_is_told_with_those_that_are_defined(load: Load) -> None:
    with pytest.raises(FillError, match=r"^'txt' is undefined; its variables: text, id; did you mean text\?$"):
        load("{{ txt }}").fill({"text": "a", "id": 1})
    with pytest.raises(FillError, match=r"^'qqq' is undefined; its variables: text$"):
        load("{{ text.qqq }}").fill({"text": {}})
    with pytest.raises(FillError, match=r"^element 5 is undefined; "):
        load("{{ text[5] }}").fill({"text": [1]})


def test_the_list_of_variables_is_one_that_can_be_read(load: Load) -> None:
    with pytest.raises(FillError) as caught:
        load("{{ x }}").fill({f"{n} {'long' * 100}": n for n in range(500)})
    assert len(str(caught.value)) < 2000
    assert str(caught.value).endswith("… and 470 more")


def test_an_error_is_one_line(load: Load) -> None:
    with pytest.raises(FillError) as caught:
        load("{{ [1] | map(x) | list }}").fill({"x": "a\nb"})
    assert "\n" not in str(caught.value)


def test_the_variables_are_those_that_come_from_outside(load: Load) -> None:
    text = "{% set mine = 1 %}{{ mine }}{% for each in range %}{{ each.of }}{% endfor %}{{ a.b | default(c) }}"
    assert load(text).variables == {"range", "a", "c"}
    assert load("{{ range }}").fill({"range": "5 km"}) == "5 km"
    assert load("{{ range(3) | list }}").fill({}) == "[0, 1, 2]"


def test_a_byte_order_mark_is_no_part_of_the_prompt(load: Load) -> None:
    template = load(b"\xef\xbb\xbfSay {{ x }}")
    assert (template.text, template.fill({"x": 1})) == ("Say {{ x }}", "Say 1")


@pytest.mark.parametrize(
    ("text", "said"), [("{% if %}", "malformed Jinja template: "), (b"\xff", "not a prompt template in UTF-8 ")]
)
def test_a_template_that_can_not_be_used_is_told_with_its_setting(load: Load, text: Any, said: str) -> None:
    with pytest.raises(UserError, match=rf"ask\.jinja: {said}.*\(some\.setting\)$"):
        load(text)
