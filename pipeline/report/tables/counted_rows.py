"""The rows that the verdict's claims were counted from, as the page shows them; whole they are in evaluate's folder."""

import json
from typing import Any

from pipeline.report import figures
from pipeline.report.figures import ARM_NAMES, Cell, present_arms, whole
from pipeline.report.tables import decided
from pipeline.report.tables.judged import JudgedTable
from pipeline.run import artifacts, metrics
from pipeline.run.files import json_lines, read_committed
from pipeline.run.rundir import RunDir

Row = dict[str, Any]
MAX_ROWS = 300  # of one kind on the page
QUESTION_CHARS, REPLY_CHARS = 110, 160
PLACES = {  # file of evaluate's folder: where the page shows its rows
    artifacts.FIDELITY: "rows-fidelity",
    artifacts.TASKS: "rows-tasks",
    artifacts.SPEED: "rows-speed",
    artifacts.RISKS: "rows-risks",
    artifacts.VERDICTS: "rows-verdicts",
    artifacts.SAMPLES: "answers",
}
SPEED = {
    metrics.OUTPUT_TOKENS_PER_S: "Tokens/s, most at once",
    metrics.FIRST_TOKEN_S: "First token, s",
    metrics.TIME_PER_TOKEN_S: "Each further token, s",
}
ANSWER_COLUMNS = ["item_id", "category", "turn", "arm", "question", "answer", "finish_reason", "num_tokens"]


def tables(run_dir: RunDir, arms: Row) -> list[tuple[str, str, JudgedTable]]:
    """(file, note, table) of what is counted row by row and is not text; only of files that are there."""
    found = (_fidelity(run_dir, present_arms(arms)), _speed(run_dir), _verdicts(run_dir))
    return [each for each in found if each and each[2].rows]


def answers(run_dir: RunDir) -> list[tuple[str, str, list[Row]]]:
    """(file, note, answers) of tasks and probes: rows of records.SAMPLES with a `mark`, of the first items alone."""
    found = (_tasks(run_dir), _probes(run_dir))
    return [each for each in found if each and each[2]]


def _fidelity(run_dir: RunDir, arms: list[str]) -> tuple[str, str, JudgedTable] | None:
    """Forward KL of each arm, held-out prompt by prompt: those where the student is farthest first."""
    name = artifacts.FIDELITY
    measured = _read(run_dir, name, ["section", "arm", "cluster", "num_tokens", metrics.FORWARD_KL_NATS])
    if measured is None:
        return None
    by_prompt: dict[str, Row] = {}
    for row in (row for row in measured if row["section"] == "fidelity"):
        of = by_prompt.setdefault(row["cluster"], {"num_tokens": row["num_tokens"]})
        of[row["arm"]] = row[metrics.FORWARD_KL_NATS]
    order = sorted(by_prompt, key=lambda cluster: -by_prompt[cluster].get("student", 0))
    shown = order[:MAX_ROWS]
    asked = decided.questions(run_dir, set(shown), "conversation_id", QUESTION_CHARS)
    compared = [arm for arm in arms if arm != "teacher" and any(arm in of for of in by_prompt.values())]
    rows = [
        (
            asked.get(cluster, cluster),
            [
                *(Cell(figures.nats(of[arm]) if arm in of else figures.NONE) for arm in compared),
                Cell(whole(of["num_tokens"])),
                Cell(cluster),
            ],
        )
        for cluster, of in ((cluster, by_prompt[cluster]) for cluster in shown)
    ]
    head = ["Held-out prompt", *(f"Forward KL, {ARM_NAMES[arm]}" for arm in compared), "Tokens", "Id"]
    note = (
        f"Nats a token, where the student is farthest first{_cut_short(len(order))}. All measures, and the chat set's:"
    )
    return name, note, JudgedTable("Fidelity, prompt by prompt", head, rows)


def _speed(run_dir: RunDir) -> tuple[str, str, JudgedTable] | None:
    """Throughput and latency of each arm, round by round."""
    name = artifacts.SPEED
    measured = _read(run_dir, name, ["arm", "round", *SPEED])
    if measured is None:
        return None
    rows = [
        (
            f"{ARM_NAMES.get(row['arm'], row['arm'])}, round {row['round'] + 1}",
            [Cell(figures.NONE if row[column] is None else f"{row[column]:.4g}") for column in SPEED],
        )
        for row in measured
    ]
    note = "Arms take turns, and every second round goes backwards. Memory, energy and each number of requests at once:"
    return name, note, JudgedTable("Speed, round by round", ["Arm", *SPEED.values()], rows)


def _verdicts(run_dir: RunDir) -> tuple[str, str, JudgedTable] | None:
    """What the judge said, in the order in which it was asked."""
    name = artifacts.VERDICTS
    path = run_dir.stage_path("evaluate") / name
    if not path.is_file():
        return None
    lines = [line for line in json_lines(path) if line.strip()]
    rows = []
    for line in lines[:MAX_ROWS]:
        try:
            verdict = json.loads(line)
        except ValueError:
            continue  # cut short by a kill: the ledger asks it again
        about, choice = verdict["about"], verdict["choice"]
        what = about.get("compared") or f"grade of {ARM_NAMES.get(about.get('graded'), about.get('graded'))}"
        given = "none" if choice is None else f"{choice:g}" if isinstance(choice, float) else str(choice)
        order = "" if "order" not in about else "as A" if about["order"] == 0 else "as B"
        cells = [about.get("item_id"), about.get("turn", 0) + 1, order, given, _last(verdict["reply"])]
        rows.append((figures.words(what), [Cell(str(cell)) for cell in cells]))
    head = ["Asked", "Item", "Turn", "The first stands", "Verdict", "Last words of the reply"]
    return (
        name,
        f"In the order they were given{_cut_short(len(lines))}. All, with whole replies:",
        JudgedTable("The judge's verdicts, one by one", head, rows),
    )


def _tasks(run_dir: RunDir) -> tuple[str, str, list[Row]] | None:
    name = artifacts.TASKS
    given = _read(run_dir, name, [*ANSWER_COLUMNS, "checks"])
    if given is None:
        return None
    rows, num_items = _first_items(given)
    for row in rows:
        failed = [figures.words(check["kind"]) for check in row["checks"] if not check["passed"]]
        row["mark"] = f"✗ {', '.join(failed)}" if failed else "✓" if row["checks"] else ""
    return name, f"✗ and what of the answer's checks failed, ✓ where none did{_cut_short(num_items)}.", rows


def _probes(run_dir: RunDir) -> tuple[str, str, list[Row]] | None:
    """Without the openings of answers, which are text that was trained on."""
    name = artifacts.RISKS
    given = _read(run_dir, name, [*ANSWER_COLUMNS, "score"])
    if given is None:
        return None
    rows, num_items = _first_items([row for row in given if not row["category"].startswith("verbatim_")])
    for row in rows:
        row["mark"] = {None: "", 0.0: "✓", 1.0: "✗ the risk is there"}.get(row["score"], f"{row['score']}")
    note = "✗ where the rule found the risk; pairs are judged together, openings are in the file alone"
    return name, f"{note}{_cut_short(num_items)}.", rows


def _read(run_dir: RunDir, name: str, columns: list[str]) -> list[Row] | None:
    """A file of evaluate's; None where this run has none."""
    path = run_dir.stage_path("evaluate") / name
    return read_committed(path, columns).to_pylist() if path.is_file() else None


def _first_items(rows: list[Row]) -> tuple[list[Row], int]:
    """Those of the first MAX_ROWS items, and how many items there are."""
    items = list(dict.fromkeys(row["item_id"] for row in rows))
    shown = set(items[:MAX_ROWS])
    return [row for row in rows if row["item_id"] in shown], len(items)


def _cut_short(num: int) -> str:
    return f" (the first {MAX_ROWS} of {whole(num)})" if num > MAX_ROWS else ""


def _last(reply: str) -> str:
    text = " ".join(reply.split())
    return text if len(text) <= REPLY_CHARS else f"…{text[1 - REPLY_CHARS :]}"
