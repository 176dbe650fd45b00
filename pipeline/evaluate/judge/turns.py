"""The arms' answers turn by turn, as the judge is shown them."""

from collections import defaultdict

from pipeline.judge.questions import JudgedAnswer, Pair
from pipeline.rows import SampleRow

Rows = list[SampleRow]


def replies(rows: Rows, arm: str) -> dict[tuple[str, int], JudgedAnswer]:
    """An arm's answers by item and turn. Rows are as records.SAMPLES has them, and may have `system`, `reference`."""
    history: dict[str, tuple[tuple[str, str], ...]] = defaultdict(tuple)
    found: dict[tuple[str, int], JudgedAnswer] = {}
    for row in sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["turn"]):
        item_id = row["item_id"]
        found[item_id, row["turn"]] = JudgedAnswer(
            item_id=item_id,
            category=row["category"],
            turn=row["turn"],
            system=row.get("system"),
            question=row["question"],
            reference=row.get("reference"),
            history=history[item_id],
            answer=row["answer"],
        )
        history[item_id] += ((row["question"], row["answer"]),)
    return found


def pairs(
    name: str, ones: dict[tuple[str, int], JudgedAnswer], others: dict[tuple[str, int], JudgedAnswer]
) -> list[Pair]:
    """The turns that both arms answered."""
    return [Pair(name, one, others[place]) for place, one in ones.items() if place in others]
