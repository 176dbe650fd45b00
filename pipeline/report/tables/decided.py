"""What filter decided, with the answers themselves: why one was kept or dropped, and examples of each reason."""

import random
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from pipeline.config import Privacy
from pipeline.console import counted, escaped
from pipeline.errors import UserError
from pipeline.report import ids
from pipeline.report.figures import NONE, rule_unit, setting_text, words
from pipeline.run.manifest import ManifestRow
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_answers, read_shard, read_shards
from pipeline.screening import privacy

Row = dict[str, Any]
Place = tuple[int, int]  # file, row
KEPT = "kept"
COLUMNS = ["response_id", "prompt_id", "text", "finish_reason", "category"]


def explain(run_dir: RunDir, given: str) -> str:
    """A response's text, and of each rule its score, its setting and its verdict, as plain text safe in a terminal.

    `given` is the id of a response, or of a prompt (then all its responses are explained), or the beginning of one.
    Raises UserError if filter has not finished, or there is no such id.
    """
    manifest = run_dir.manifest("filter")
    return "\n".join(_explained(run_dir, manifest, each) for each in ids.named(run_dir, given).response_ids)


def _explained(run_dir: RunDir, manifest: ManifestRow, response_id: str) -> str:
    decision, answer = _decision(run_dir, response_id)
    messages = _conversations(run_dir, {answer["prompt_id"]}).get(answer["prompt_id"], [])
    settings, limits = manifest.get("settings", {}), manifest.get("limits")
    scores = dict(decision["scores"])
    lines = [f"PROMPT {answer['prompt_id']}", *_indented(_question(messages))]
    lines += ["", f"ANSWER {response_id}", *_indented(answer["text"]), ""]
    lines += ["FILTER kept" if decision["kept"] else f"FILTER dropped: {_listed(decision['reasons'])}"]
    lines += [f"  {'rule':<20} {'score':>8} {'':<26}  {'verdict':<9}  setting"]
    for rule in (step["reason"] for step in manifest["waterfall"]):
        setting = setting_text(rule, settings, limits)
        if rule not in scores:
            verdict, score = "off" if setting == "off" else "–", ""
        else:
            verdict, score = "drop" if rule in decision["reasons"] else "keep", f"{scores[rule]:.4g}"
        unit = rule_unit(rule, settings) if score else ""
        lines.append(f"  {words(rule):<20} {score:>8} {unit:<26}  {verdict:<9}  {setting}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def sample(run_dir: RunDir, reason: str, num: int) -> str:
    """So many answers that were dropped for this reason, or `kept`, as plain text: a random choice, always the same.

    Raises UserError where filter has not finished, or knows no such reason.
    """
    waterfall = run_dir.manifest("filter")["waterfall"]
    if reason not in (*(step["reason"] for step in waterfall), KEPT):
        dropped = [step["reason"] for step in waterfall if step["dropped"]]
        raise UserError(
            f"{reason!r} is not a reason of this run's filter; it has dropped for: {', '.join(dropped) or 'none'}"
            f" ({KEPT!r} for what it kept)"
        )
    total, chosen = 0, []
    draw = random.Random(0)  # noqa: S311  the same examples every time
    for place, reasons in _decided(run_dir):
        if reason in reasons:
            total += 1  # each has the same chance of being among those chosen (a reservoir)
            slot = len(chosen) if len(chosen) < num else draw.randrange(total)
            chosen[slot : slot + 1] = [place] if slot < num else chosen[slot : slot + 1]
    lines = [f"{len(chosen)} of {counted(total, 'answer')}: {words(reason)}"]
    for row in _rows(run_dir, sorted(chosen)):
        lines += ["", f"{row['response_id']} · {_listed(row['reasons']) or KEPT} · {escaped(row['category'] or NONE)}"]
        lines += [*_indented(f"Q: {_question(row['messages'])}"), *_indented(f"A: {row['text']}")]
    return "\n".join(lines) + "\n"


def examples(run_dir: RunDir, num: int, max_chars: int) -> dict[str, list[Row]]:
    """The first `num` answers that each reason dropped: `response_id`, `text`, and what it answered.

    That is in `turns` from the last thing the user said on, and in `earlier` before it: each message's `role` and
    `text`. All texts are cut to `max_chars`. Personal data that filter looked for is left out of them: a report is
    passed on. Of the answers only the files that hold an example are read.
    """
    settings = _privacy(run_dir)

    def turns(messages: list[Row]) -> list[Row]:
        said = [(each["role"], each["content"] or each["tool_calls"] or "") for each in messages]
        return [{"role": role, "text": _cut(text, max_chars)} for role, text in said]

    chosen: dict[str, list[Place]] = {}
    for place, reasons in _decided(run_dir):
        for reason in reasons:
            if reason != KEPT and len(chosen.setdefault(reason, [])) < num:
                chosen[reason].append(place)
    wanted = sorted({place for places in chosen.values() for place in places})
    by_place = dict(zip(wanted, _rows(run_dir, wanted), strict=True))
    told = {}
    for place, row in by_place.items():
        last = _last_user(row["messages"]) or 0
        clean = privacy.shown({key: row[key] for key in ("messages", "text", "reasoning")}, settings)
        is_whole = privacy.redacted_answer(row, settings) is not None
        told[place] = {
            "response_id": row["response_id"],
            "earlier": turns(clean["messages"][:last]),
            "turns": turns(clean["messages"][last:]),
            "text": _cut(clean["text"], max_chars) if is_whole else "(personal data)",
        }
    return {reason: [told[place] for place in places] for reason, places in chosen.items()}


def questions(run_dir: RunDir, ids: set[str], column: str, max_chars: int) -> dict[str, str]:
    """The last thing that the user said in each prompt, by `column`, cut, without personal data that filter looks for.

    None where filter's folder is gone, which says what that is.
    """
    if not run_dir.is_done("filter"):
        return {}
    settings = _privacy(run_dir)
    asked = _conversations(run_dir, ids, column)
    return {name: _cut(_question(privacy.shown(messages, settings)), max_chars) for name, messages in asked.items()}


def _privacy(run_dir: RunDir) -> Privacy:
    return Privacy.model_validate(run_dir.manifest("filter").get("screening", {}).get("privacy", {}))


def _decision(run_dir: RunDir, response_id: str) -> tuple[Row, Row]:
    """What filter decided about a response, and the response."""
    decisions = read_shards(run_dir, "filter")
    for (answers, _), decided in zip(read_answers(run_dir, COLUMNS), decisions, strict=True):
        place = pc.index(decided.column("response_id"), response_id).as_py()
        if place >= 0:
            return decided.slice(place, 1).to_pylist()[0], answers.slice(place, 1).to_pylist()[0]
    raise UserError(f"{run_dir.path}: no response has the id {response_id!r}; ids are in {run_dir.path}/generate")


def _decided(run_dir: RunDir) -> Iterator[tuple[Place, list[str]]]:
    """Each answer's place, and why it was dropped, or `kept`. Raises UserError where these are about other answers."""
    next(read_answers(run_dir, ["response_id"]), None)  # checks that
    for number, table in enumerate(read_shards(run_dir, "filter", ["reasons"])):
        for row, reasons in enumerate(table.column("reasons").to_pylist()):
            yield (number, row), reasons or [KEPT]


def _rows(run_dir: RunDir, places: list[Place]) -> list[Row]:
    """The answers at these places, in ascending order, each with its prompt's messages and why it was dropped."""
    rows = []
    for number in dict.fromkeys(number for number, _ in places):
        whole = read_shard(run_dir, "generate", number, [*COLUMNS, "reasoning"])
        decided = read_shard(run_dir, "filter", number, ["reasons", "masked_spans"])
        for row in (row for file, row in places if file == number):
            rows.append(whole.slice(row, 1).to_pylist()[0] | decided.slice(row, 1).to_pylist()[0])
    asked = _conversations(run_dir, {row["prompt_id"] for row in rows})
    return [row | {"messages": asked.get(row["prompt_id"], [])} for row in rows]


def _conversations(run_dir: RunDir, ids: set[str], column: str = "prompt_id") -> dict[str, list[Row]]:
    """The messages of each prompt, the last where several have one id; none where prepare's folder is gone."""
    found: dict[str, list[Row]] = {}
    for table in read_shards(run_dir, "prepare", [column, "messages"]) if run_dir.is_done("prepare") else ():
        for place, name in enumerate(table.column(column).to_pylist()):
            if name in ids:
                found[name] = table.column("messages")[place].as_py()
    return found


def _last_user(messages: list[Row]) -> int | None:
    """Where the last thing that the user said stands."""
    return max((n for n, message in enumerate(messages) if message["role"] == "user"), default=None)


def _question(messages: list[Row]) -> str:
    """The last thing that the user said."""
    place = _last_user(messages)
    return NONE if place is None else messages[place]["content"] or ""


def _listed(reasons: list[str]) -> str:
    return ", ".join(map(words, reasons))


def _cut(text: str, max_chars: int) -> str:
    text = " ".join(text.split())
    return escaped(text if len(text) <= max_chars else f"{text[: max_chars - 1].rstrip()}…")


def _indented(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        yield f"    {escaped(line)}".rstrip()
