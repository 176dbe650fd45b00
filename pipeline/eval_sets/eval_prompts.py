"""What evaluate will ask, rendered before anything is paid for: a template that refuses it is found here."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.eval_sets import chat_set, probe_set, task_set
from pipeline.models import lookup
from pipeline.models.tokenizer import chat_template
from pipeline.models.tokenizer.chat_template import ChatTemplate

ANSWER = "Yes."  # stands for an arm's, before the later turns


def check(config: Config, template: ChatTemplate) -> None:
    """Render every turn of the chat, task and probe sets with the teacher's chat template, and with that of
    evaluate.other if it is here.

    Raises UserError with the set and the item that a template refuses, and as the sets' loaders do.
    """
    templates = [("the teacher", template)]
    if (other := lookup.local(config.evaluate.other or "")) is not None:
        tokenizer = other.tokenizer()
        if not tokenizer.chat_template:
            raise UserError(
                f"evaluate.other {other.name}: its tokenizer has no chat template; choose an instruction-tuned model"
            )
        templates.append((f"evaluate.other {other.name}", ChatTemplate(tokenizer)))
    for path, item in _items(config):
        for name, asked in templates:
            _check_item(path, item, name, asked)


def check_settings(config: Config) -> None:
    """The same before a run begins, if the teacher is a folder on this machine; and whether it can chat at all."""
    teacher = lookup.local(config.teacher.model)
    if teacher is None or config.teacher.model == lookup.DEMO:
        return
    tokenizer = teacher.tokenizer()
    chat_template.check_has_template(tokenizer)
    lookup.check_student(config, teacher, tokenizer)
    check(config, ChatTemplate(tokenizer, config.teacher.chat_template_kwargs))


def conversation(item: chat_set.ChatItem, answers: list[str]) -> list[dict[str, str]]:
    """The item's turn after these answers, with all that stands before it."""
    messages = [{"role": "system", "content": item.system}] if item.system else []
    for turn, answer in zip(item.turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": item.turns[len(answers)]}]


def _check_item(path: str, item: chat_set.ChatItem, name: str, template: ChatTemplate) -> None:
    for turn in range(len(item.turns)):
        try:
            template.apply(conversation(item, [ANSWER] * turn), add_generation_prompt=True, tokenize=False)
        except UserError as error:
            raise UserError(f"{path}: item {item.id} can't be asked of {name}: {error}") from None


def _items(config: Config) -> Iterator[tuple[str, chat_set.ChatItem]]:
    """`(file, item)` of all sets."""
    settings = config.evaluate
    if settings.chat_set:
        yield from ((settings.chat_set, item) for item in chat_set.load(Path(settings.chat_set), settings.chat_items))
    if path := settings.tasks.path:
        yield from ((path, item) for item in task_set.load(Path(path), settings.tasks.limit))
    if path := settings.risks.path:
        probes = probe_set.load(Path(path), settings.risks.limit)
        yield from ((path, item) for probe in probes for item in probe.items())
