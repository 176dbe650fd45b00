"""Chat templates and tokenizers of real families, and small templates with the habits of others."""

import copy
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from support.word_tokenizer import WORDS, tokenizer

from pipeline.config import validate
from pipeline.errors import UserError
from pipeline.eval_sets import eval_prompts
from pipeline.models.lookup import Model
from pipeline.models.tokenizer import chat_template, reasoning, tokens
from pipeline.models.tokenizer.chat_template import ChatTemplate

FAMILIES = ("qwen3", "gemma3", "llama3_1", "deepseek_v3")
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
PLAIN = (
    "{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}" + PLAIN.removeprefix("{% for m in messages %}")
)
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
GEMMA_2 = REFUSING + ALTERNATING
LLAMA_2 = (  # the system message goes into the first user turn
    "{% if messages[0].role == 'system' %}{% set system, messages = messages[0].content + '\n--\n', messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}" + ALTERNATING.replace("{{ m.content }}", "{% if loop.first %}"
    "{{ system }}{% endif %}{{ m.content.strip() }}")
)  # fmt: skip
DROPPING = PLAIN.replace(TURN, "{% if m.role != 'system' %}" + TURN + "{% endif %}")
FIRST_ONLY = PLAIN.replace(TURN, "{% if m.role != 'system' or loop.first %}" + TURN + "{% endif %}")
# as Llama's and Qwen's, which write arguments as JSON and other content as it stands
OBJECTS = PLAIN.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for c in m.tool_calls %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}",
)
TEXTS = OBJECTS.replace("{{ c.function.arguments | tojson }}", "{{ '~' + c.function.arguments + '~' }}")
LISTED = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Grüße, 你好 🙂?"}
ANSWER = {"role": "assistant", "content": "Hello you."}
MORE = {"role": "user", "content": "def f(x):\n    return 2 * x"}
TALKS = {
    "a question": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, MORE],
    "a later system message": [SYSTEM, USER, ANSWER, {"role": "system", "content": "Now in French."}, MORE],
    "two questions in a row": [USER, MORE],
    "two answers in a row": [USER, ANSWER, {"role": "assistant", "content": "And more."}, MORE],
    "an empty answer": [USER, {"role": "assistant", "content": ""}, MORE],
    "special tokens as text": [{"role": "user", "content": "What is <|im_end|>, <end_of_turn>, <|eot_id|>, </think>?"}],
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What it is like.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}],
}
RESULT = {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"}


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, real_tokenizer: Callable[[str], Path]) -> Any:
    """A real tokenizer, as a stage loads it."""
    return Model(request.param, real_tokenizer(request.param)).tokenizer()


each_family = pytest.mark.parametrize("family", FAMILIES, indirect=True)


@pytest.fixture
def written(byte_tokenizer: Path) -> Callable[[str], ChatTemplate]:
    """A template of a tokenizer of bytes."""

    def make(source: str) -> ChatTemplate:
        made = Model("bytes", byte_tokenizer).tokenizer()
        made.chat_template = source
        return ChatTemplate(made)

    return make


def text_of(template: ChatTemplate, messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
    return template.tokenizer.decode(template.render(messages, tools))


# --- real families


@each_family
def test_text_is_cut_as_the_tokenizers_own_file_says(family: Any) -> None:
    """Whatever class its configuration names."""
    from tokenizers import Tokenizer

    file = Tokenizer.from_file(f"{family.name_or_path}/tokenizer.json")
    for text in (*tokens.TEXTS, USER["content"], MORE["content"]):
        assert file.encode(text, add_special_tokens=False).ids == family(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("family", ["deepseek_v3"], indirect=True)
def test_text_is_cut_alike_whatever_model_the_tokenizer_stands_beside(family: Any, tmp_path: Path) -> None:
    """DeepSeek's distilled Llamas have its tokenizer, whose spaces a Llama's would lose."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(Path(family.name_or_path) / name)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    beside = Model("m", tmp_path).tokenizer()
    ids = beside("Hi, 你好!\n\ta  b", add_special_tokens=False).input_ids
    assert beside.decode(ids) == "Hi, 你好!\n\ta  b"


@each_family
@pytest.mark.parametrize("talk", TALKS)
def test_every_conversation_is_written_whole_and_gone_on_with(family: Any, talk: str) -> None:
    template, messages = ChatTemplate(family), TALKS[talk]
    prompt = template.render(messages)
    text = family.decode(prompt)
    assert all(message["content"].strip() in text for message in messages)
    assert "None" not in text
    stop = family.eos_token_id
    answer = template.render_completion(messages, ANSWER, None, frozenset([stop]))
    assert answer[-1] == stop
    assert stop not in answer[:-1]
    assert family.decode(answer[:-1]).endswith(ANSWER["content"])
    # the whole as the template itself writes it
    whole = family.apply_chat_template([*template.shaped(messages), ANSWER], return_dict=False)
    assert whole[: len(prompt) + len(answer)] == prompt + answer


@pytest.mark.parametrize("family", ["llama2"], indirect=True)
def test_an_answer_of_a_sentencepiece_family_begins_where_the_prompt_ends(family: Any) -> None:
    family.chat_template = (  # after Llama 2
        "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if (m.role == 'user') != "
        "(loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + (system or '' if loop.first else '') + m.content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    template = ChatTemplate(family)
    for messages in TALKS.values():
        prompt = template.render(messages)
        answer = template.render_completion(messages, ANSWER, None, frozenset([family.eos_token_id]))
        whole = family.apply_chat_template([*template.shaped(messages), ANSWER], return_dict=False)
        assert family.decode(answer) == "Hello you. </s>"
        assert whole == prompt + answer


@each_family
def test_a_user_turn_can_be_opened(family: Any) -> None:
    template = ChatTemplate(family)
    for system in ("", "You like maths."):
        opened = template.render_user_turn(system)
        whole = template.render([*([{"role": "system", "content": system}] if system else []), USER])
        assert whole[: len(opened)] == opened
        assert system in family.decode(opened)


@each_family
def test_a_family_is_its_own_student(family: Any) -> None:
    tokens.check_same_tokenizer(family, copy.copy(family), "student")
    assert family.eos_token_id in tokens.special_ids(family)


@pytest.mark.parametrize("family", ["deepseek_v3"], indirect=True)
def test_one_may_have_a_token_more_that_the_other_never_meets(family: Any) -> None:
    more = copy.deepcopy(family)
    more.add_tokens(["<|extra|>"])
    assert len(more) == len(family) + 1
    tokens.check_same_tokenizer(family, more, "more")
    tokens.check_same_tokenizer(more, family, "less")
    more.chat_template += "<|extra|>"
    with pytest.raises(UserError, match=r"it lacks the teacher's token '<\|extra\|>'"):
        tokens.check_same_tokenizer(more, family, "less")


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
@pytest.mark.parametrize("enable_thinking", [True, False])
def test_reasoning_is_written_where_the_teacher_begins_and_found_again(family: Any, enable_thinking: bool) -> None:
    template = ChatTemplate(family, {"enable_thinking": enable_thinking})
    messages, answer = [SYSTEM, USER, ANSWER, MORE], {**ANSWER, "reasoning_content": "They greet."}
    stop_ids = frozenset([family.eos_token_id])
    if not enable_thinking:  # its opened turn has an empty block
        with pytest.raises(UserError, match="does not write this answer as the teacher would"):
            template.render_completion(messages, answer, None, stop_ids)
        answer = ANSWER
    prompt, ids = template.render(messages), template.render_completion(messages, answer, None, stop_ids)
    parts = reasoning.split(family, ("<think>", "</think>"), prompt, ids)
    assert parts.text == "Hello you."
    assert parts.reasoning == ("They greet." if enable_thinking else None)


@pytest.mark.parametrize("family", ["qwen3", "deepseek_v3"], indirect=True)
@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_a_tool_call_is_written_with_its_name_and_arguments(family: Any, content: str | None, shape: str) -> None:
    """Qwen wants empty text beside an object, DeepSeek null beside JSON text."""
    call = CALLING["tool_calls"][0] if shape == "nested" else {"name": "weather", "arguments": {"city": "Zürich"}}
    messages = [USER, {**CALLING, "content": content, "tool_calls": [call]}, RESULT, ANSWER, MORE]
    text = text_of(ChatTemplate(family), messages)
    assert "weather" in text
    assert '{"city": "Zürich"}' in text
    assert "rain" in text
    assert "None" not in text


@pytest.mark.parametrize("family", ["gemma3", "llama3_1"], indirect=True)
def test_tool_calls_are_refused_where_the_template_knows_none(family: Any) -> None:
    with pytest.raises(UserError, match=r"leaves out tool calls|refuses a prompt: .*must alternate"):
        ChatTemplate(family).render([USER, CALLING, RESULT])


@pytest.mark.parametrize("family", ["gemma3", "llama3_1", "deepseek_v3"], indirect=True)
def test_tools_that_the_template_leaves_out_are_told(family: Any) -> None:
    with pytest.raises(UserError, match="leaves out the tools that it may call"):
        ChatTemplate(family).render([USER], [WEATHER])


@each_family
def test_what_evaluate_asks_is_taken_by_every_family(family: Any) -> None:
    eval_prompts.check(validate({"name": "trial"}, "test"), ChatTemplate(family))


# --- habits


@pytest.mark.parametrize("source", [GEMMA_2, DROPPING, LLAMA_2, PLAIN])
def test_a_system_message_reaches_the_teacher_whatever_the_template_does(written: Any, source: str) -> None:
    template = written(source)
    text = text_of(template, [SYSTEM, USER, ANSWER, MORE])
    assert text.index("Be brief.") < text.index(USER["content"]) < text.index(ANSWER["content"])
    assert template.shape.takes_system == (source in (LLAMA_2, PLAIN))
    if not template.shape.takes_system:
        assert f"<|im_start|>user\nBe brief.\n\n{USER['content']}<|im_end|>" in text


@pytest.mark.parametrize("source", [GEMMA_2, DROPPING, LLAMA_2, FIRST_ONLY])
def test_a_later_system_message_goes_before_the_next_user_message(written: Any, source: str) -> None:
    template = written(source)
    later = {"role": "system", "content": "Now in French."}
    assert f"Now in French.\n\n{MORE['content']}" in text_of(template, [SYSTEM, USER, ANSWER, later, MORE])
    assert text_of(template, [USER, ANSWER, MORE, later]).rstrip().endswith("assistant")
    assert template.changes([SYSTEM, USER, ANSWER, later, MORE]) == {"system_in_user_turn"}
    assert template.changes([USER, ANSWER, MORE]) == set()


@pytest.mark.parametrize("source", [GEMMA_2, LLAMA_2])
def test_messages_of_one_role_are_joined_where_roles_must_alternate(written: Any, source: str) -> None:
    template = written(source)
    for talk in ("two questions in a row", "two answers in a row"):
        text = text_of(template, TALKS[talk])
        assert all(message["content"] in text for message in TALKS[talk])
        assert template.changes(TALKS[talk]) == {"turns_merged"}
    assert f"{USER['content']}\n\n{MORE['content']}" in text_of(template, [USER, MORE])
    assert written(PLAIN).changes([USER, MORE]) == set()


def test_what_no_shape_helps_is_refused_in_one_line(written: Any) -> None:
    with pytest.raises(UserError, match="refuses a prompt: Roles must alternate"):
        written(GEMMA_2).render([ANSWER, USER])
    for source in ("{{ raise_exception('Not this.\nNo.') }}", "{{ 1 / 0 }}"):
        with pytest.raises(UserError, match="the teacher's chat template refuses a prompt: ") as caught:
            written(source).render([USER])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [GEMMA_2, LLAMA_2, DROPPING, PLAIN])
def test_the_shipped_sets_can_be_asked_of_every_template(written: Any, source: str) -> None:
    eval_prompts.check(validate({"name": "trial"}, "test"), written(source))


def test_an_item_that_a_template_refuses_is_named(written: Any, tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    items = [{"id": "a", "turns": ["Hi"]}, {"id": "b", "turns": ["Hi", "two"]}]
    path.write_text("\n".join(map(json.dumps, items)))
    chosen = {"chat_set": str(path), "tasks": {"path": None}, "risks": {"path": None}}
    config = validate({"name": "trial", "evaluate": chosen}, "test")
    once = "{% if messages | length > 1 %}{{ raise_exception('One message alone') }}{% endif %}" + PLAIN
    with pytest.raises(UserError, match=r"set\.jsonl: item b can't be asked of the teacher: .*One message alone"):
        eval_prompts.check(config, written(once))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (OBJECTS, '<call>weather {"city": "Zürich"}</call>'),
        (TEXTS, '<call>weather ~{"city": "Zürich"}~</call>'),
        (OBJECTS.replace("arguments | tojson", "arguments"), '<call>weather {"city": "Zürich"}</call>'),
        (OBJECTS.replace("{{ m.content }}", "{{ m.content if m.content is not none else '' }}"), "\n<call>weather"),
        (OBJECTS.replace("{{ m.content }}", "{% if m.tool_calls and m.content is not none %}{{ raise_exception('?') }}"
                         "{% endif %}{{ m.content or '' }}"), "\n<call>weather"),
        (OBJECTS.replace("{{ m.content }}", "{{ m.content + '' }}"), "\n<call>weather"),
    ],
    ids=["objects", "text", "text as it stands", "null or text", "null alone", "text alone"],
)  # fmt: skip
@pytest.mark.parametrize("content", [None, ""])
def test_calls_are_given_as_the_template_wants_them(written: Any, source: str, said: str, content: Any) -> None:
    text = text_of(written(LISTED + source), [USER, {**CALLING, "content": content}, RESULT], [WEATHER])
    assert said in text
    assert "None" not in text


def test_a_call_left_out_beside_a_tool_of_its_name_is_told(written: Any) -> None:
    with pytest.raises(UserError, match=r"leaves out tool calls \(here of weather\)"):
        written(LISTED + PLAIN).render([USER, CALLING, RESULT], [WEATHER])
    forgetful = OBJECTS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
    with pytest.raises(UserError, match="leaves out the results of tool calls"):
        written(LISTED + forgetful).render([USER, CALLING, RESULT], [WEATHER])


def test_a_template_for_tools_beside_another_is_used_with_tools(byte_tokenizer: Path, tmp_path: Path) -> None:
    made = Model("bytes", byte_tokenizer).tokenizer()
    made.chat_template = {"default": PLAIN, "tool_use": LISTED + OBJECTS}
    made.save_pretrained(tmp_path)
    template = ChatTemplate(Model("two", tmp_path).tokenizer())
    assert "weather" in text_of(template, [USER], [WEATHER])
    assert text_of(template, [USER]).startswith("<|im_start|>user")
    assert "tool_use" in chat_template.source(template.tokenizer)


# --- dates

LLAMA_3_1 = (
    "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }} " + PLAIN
)
LLAMA_3_2 = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }} "
    + PLAIN
)


def test_a_day_that_is_fixed_is_the_templates_today(written: Any) -> None:
    made = written(LLAMA_3_2)
    assert text_of(made, [USER]).startswith(datetime.now(UTC).astimezone().strftime("%d %b %Y"))
    assert text_of(ChatTemplate(made.tokenizer, day="2001-02-03"), [USER]).startswith("03 Feb 2001 ")
    chosen = ChatTemplate(made.tokenizer, {"date_string": "today"}, "2001-02-03")
    assert text_of(chosen, [USER]).startswith("today ")
    assert chat_template.asks_date(made.tokenizer)
    assert not chat_template.asks_date(written(LLAMA_3_1).tokenizer)


def test_a_fixed_date_and_todays_are_one_template(written: Any) -> None:
    old, new = written(LLAMA_3_1).tokenizer, written(LLAMA_3_2).tokenizer
    assert date.today().year != 2024  # else the two agree by chance
    tokens.check_same_tokenizer(old, new, "new")
    tokens.check_same_tokenizer(new, old, "old")


# --- one tokenizer, one template


def test_a_student_with_the_teachers_tokenizer_and_template_passes() -> None:
    tokens.check_same_tokenizer(tokenizer(), tokenizer(), "small")
    tokens.check_same_tokenizer(tokenizer(), tokenizer((*WORDS, "more")), "small")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (WORDS[:-1], "it lacks the teacher's token 'Hello'"),
        ((*WORDS[:-1], "Hallo"), "the id 9 is 'Hello' in the teacher's and 'Hallo' in its own"),
        ((*WORDS[:-2], "Hello", "Hi"), "the token 'Hi' has the id 8 in the teacher's and 9 in its own"),
    ],
    ids=["one less", "another", "other ids"],
)
def test_a_student_with_another_tokenizer_is_refused_with_what_to_choose(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(
        UserError, match=r"student\.model small: its tokenizer differs .*keep_layers.*export corpus"
    ) as of:
        tokens.check_same_tokenizer(tokenizer(), tokenizer(words), "small")
    assert said in str(of.value)


def test_a_student_that_cuts_text_in_another_way_is_refused() -> None:
    from tokenizers import pre_tokenizers

    other = tokenizer(("<unk>", *"abcdefghijklmnopqrstuvwxyz", "It", "s", "'", "12345.67"))
    whole = tokenizer(("<unk>", *"abcdefghijklmnopqrstuvwxyz", "It", "s", "'", "12345.67"))
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert "it splits texts in another way" in str(tokens.difference(whole, other))


def test_pieces_that_are_joined_in_another_order_are_another_tokenizer() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {piece: n for n, piece in enumerate(["a", "b", "c", "ab", "bc"])}
    first, second = (
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocab, merges=merges)))
        for merges in ([("a", "b"), ("b", "c")], [("b", "c"), ("a", "b")])
    )
    assert first.get_vocab() == second.get_vocab()
    assert tokens.difference(first, second) == "it merges pieces of words in another order"


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0].content }}", "{{ raise_exception('No system role') }}"],
    ids=["another", "one that refuses"],
)
def test_a_student_with_another_template_is_refused_with_how_to_mend_it(template: str) -> None:
    with pytest.raises(UserError, match=r"student\.model small: its chat template .*remove the student's template"):
        tokens.check_same_tokenizer(tokenizer(), tokenizer(template=template), "small")


def test_templates_that_differ_in_text_alone_are_one() -> None:
    plain = tokenizer().chat_template
    tokens.check_same_tokenizer(tokenizer(), tokenizer(template="{# the same #}" + plain), "small")


def test_a_student_without_a_template_passes_for_it_is_given_the_teachers() -> None:
    tokens.check_same_tokenizer(tokenizer(), tokenizer(template=None), "small")


def test_a_tokenizers_hash_follows_its_vocabulary() -> None:
    assert tokens.tokenizer_hash(tokenizer()) == tokens.tokenizer_hash(tokenizer(template=None))
    assert tokens.tokenizer_hash(tokenizer()) != tokens.tokenizer_hash(tokenizer((*WORDS, "more")))


def test_a_tokenizer_of_pure_python_has_a_hash_too() -> None:
    class Slow:
        def __init__(self, **vocab: int) -> None:
            self.get_vocab = lambda: vocab

    assert tokens.tokenizer_hash(Slow(a=1, b=2)) == tokens.tokenizer_hash(Slow(b=2, a=1))
    assert tokens.tokenizer_hash(Slow(a=1)) != tokens.tokenizer_hash(Slow(a=2))


def test_a_tokenizer_without_a_template_cannot_chat() -> None:
    with pytest.raises(UserError, match="no chat template; use an instruction-tuned model"):
        chat_template.check_has_template(tokenizer(template=None))


# --- Mistral's own format


@pytest.fixture(scope="module")
def tekken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Mistral's tekken.json alone, which comes with mistral-common."""
    import mistral_common

    folder = tmp_path_factory.mktemp("tekken")
    [file] = (Path(mistral_common.__file__).parent / "data").glob("tekken_240911.json")
    (folder / "tekken.json").symlink_to(file)
    return folder


def test_a_folder_with_tekken_alone_chats_as_mistral_itself_writes_it(tekken: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tekken / "config.json").write_text('{"model_type": "mistral"}')
    made, theirs = Model("mistral", tekken).tokenizer(), AutoTokenizer.from_pretrained(tekken)
    chat_template.check_has_template(made)
    template = ChatTemplate(made)
    for talk in ("a question", "system", "turns", "two questions in a row"):
        assert template.render(TALKS[talk]) == theirs.apply_chat_template(TALKS[talk], return_dict=False)
    with_tools = theirs.apply_chat_template([USER], tools=[WEATHER], return_dict=False)
    assert template.render([USER], [WEATHER]) == with_tools
    stop_ids = Model("mistral", tekken).stop_ids(made)
    assert template.render_completion([USER], ANSWER, None, stop_ids)[-1] == made.eos_token_id
    assert not template.takes(TALKS["an empty answer"])
    # a student is given it, and may have lost its template
    made.chat_template = None
    made.save_pretrained(tmp_path)
    assert not Model("student", tmp_path).tokenizer().chat_template
    (tmp_path / "tekken.json").symlink_to((tekken / "tekken.json").resolve())
    assert Model("student", tmp_path).tokenizer().chat_template
