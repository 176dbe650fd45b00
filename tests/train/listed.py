"""Answers made in a test, where others come from a run's files."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.train.rows import Answers, Index


class Listed(Answers):
    """Rows at hand, as if each `per_shard` of them stood in a file."""

    def __init__(self, rows: Sequence[dict[str, Any]], per_shard: int = 1000) -> None:
        places = np.arange(len(rows), dtype=np.int32)
        lengths = np.array([len(row["prompt_token_ids"]) + len(row["token_ids"]) for row in rows], np.int32)
        learnt = np.array([len(row["token_ids"]) for row in rows], np.int32)
        super().__init__([], Index(places // per_shard, places, lengths, learnt, places.astype(np.uint64)))
        self._listed = rows

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self._listed[int(number)]
