"""What filter holds in memory: a million answers through the stage itself, and how fast near duplicates are looked up.

    .venv/bin/python scripts/bench/filters_memory.py [--quick] [--json FILE] [--rows 1000000]

A run is made on disk: prompts of 25 words and answers of 150, about 200 tokens, drawn anew for each row from
50,000 words by Zipf's law; one answer in fifty is an earlier one with a word more. `retort filter` then decides in a
process of its own, as for a user, and that process's memory is read while it does; nothing is generated or trained.

The look-up alone is timed in this process, on one core, in an index that holds as many texts: words, signatures, query
and insertion.

Figures: `rss_1m_gib` (largest resident memory of the stage; asked: 24 at the most), `rss_10_gib`, `rss_50_gib` and
`rss_100_gib` (when so many per cent were decided), `rss_growth_frac` (what the last nine tenths added to the memory of
the first; at most FLAT_FRAC is called flat), `filter_rows_per_s`, `minhash_per_s` (answers of 200 tokens; asked: 800
with all rules), `planted_found_frac`.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import answers as bench
import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa

from pipeline import config as config_module
from pipeline.config import Config
from pipeline.records import PROMPTS, RESPONSES
from pipeline.run import scratch
from pipeline.run.commit import Stage
from pipeline.run.rundir import RunDir
from pipeline.text.duplicates import NUM_BANDS, NUM_SLOTS, NearDuplicates, Sketch, sketch
from pipeline.text.words import words

ROOT = bench.ROOT
SHARD_ROWS = 4096
PROMPT_WORDS, ANSWER_WORDS, ANSWER_TOKENS = 25, 150, 200
NUM_WORDS = 50_000
PLANTED_EVERY = 50
GIB = 1 << 30
FLAT_FRAC = 0.1
TIMED_TEXTS = 20_000


class Texts:
    """Draws texts whose words follow Zipf's law."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        letters = np.array(list("etaoinshrdlucmfwygpbvk"))
        lengths = self._rng.integers(3, 10, NUM_WORDS)
        self._words = ["".join(self._rng.choice(letters, length)) for length in lengths]
        self._cumulative = np.cumsum(1 / np.arange(3, NUM_WORDS + 3))

    def draw(self, num: int, num_words: int) -> list[str]:
        """Sentences of twelve words."""
        drawn = self._rng.random((num, num_words)) * self._cumulative[-1]
        rows = np.searchsorted(self._cumulative, drawn).tolist()
        return [self._sentences([self._words[n] for n in row]) for row in rows]

    def _sentences(self, words: list[str]) -> str:
        return " ".join(" ".join(words[n : n + 12]).capitalize() + "." for n in range(0, len(words), 12))


def shards(num_rows: int) -> Iterator[tuple[list[str], list[str], list[str]]]:
    """Ids, prompts and answers, shard by shard; every fiftieth answer is that of the row before with a word changed."""
    texts = Texts(0)
    for start in range(0, num_rows, SHARD_ROWS):
        size = min(SHARD_ROWS, num_rows - start)
        prompts, answers = texts.draw(size, PROMPT_WORDS), texts.draw(size, ANSWER_WORDS)
        for n in range(1, size):
            if (start + n) % PLANTED_EVERY == 0:
                prompts[n], answers[n] = prompts[n - 1], answers[n - 1].replace(" ", " otherwise ", 1)
        yield [f"{n:016x}" for n in range(start, start + size)], prompts, answers


def fabricate(run_dir: RunDir, config: Config, num_rows: int) -> None:
    """prepare and generate, as far as filter reads them."""
    prepared = [each.model_dump(mode="json") for each in config.prepare.decontaminate]
    prepare = run_dir.begin("prepare", config, {"prepare.decontaminate": prepared})
    generate = run_dir.begin("generate", config, {"teacher.model": "demo", "teacher.revision": None})
    rng, paths = np.random.default_rng(1), ([], [])
    for number, (ids, prompts, answers) in enumerate(shards(num_rows)):
        messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
        paths[0].append(commit(prepare, f"prompts-{number:05d}.parquet", PROMPTS, prompt_id=ids, messages=messages))
        tokens = rng.integers(100, 49_000, (len(ids), ANSWER_TOKENS), dtype=np.int32)
        tokens[:, -1] = 2  # the demo teacher's end of turn
        columns: dict[str, Any] = {
            "response_id": [f"{i}-0" for i in ids],
            "prompt_id": ids,
            "split": ["train"] * len(ids),
            "text": answers,
            "finish_reason": ["stop"] * len(ids),
            "token_ids": listed(tokens),
            "token_logprobs": listed(np.full(tokens.shape, -1.0, np.float32)),
            "reasoning_tokens": [0] * len(ids),
        }
        paths[1].append(commit(generate, f"responses-{number:05d}.parquet", RESPONSES, **columns))
    for stage, files in zip((prepare, generate), paths, strict=True):
        stage.finish(files, {"rows": num_rows})


def listed(values_NT: npt.NDArray[Any]) -> pa.Array:
    offsets = np.arange(len(values_NT) + 1, dtype=np.int32) * values_NT.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values_NT.ravel()))


def commit(stage: Stage, name: str, schema: pa.Schema, **columns: Any) -> Path:
    """A file with these columns, the others null."""
    num = len(columns["prompt_id"])
    arrays = [
        pa.array(columns[field.name], field.type)
        if isinstance(columns.get(field.name), list)
        else columns[field.name].cast(field.type)
        if field.name in columns
        else pa.nulls(num, field.type)
        for field in schema
    ]
    stage.commit(pa.Table.from_arrays(arrays, schema=schema), name)
    return stage.path / name


def filtered(run_dir: RunDir, config: Path) -> tuple[list[tuple[int, int]], float]:
    """`(rows decided, bytes resident)` as `retort filter` goes on, and its seconds."""
    began, curve = time.perf_counter(), []
    child = subprocess.Popen([sys.executable, "-m", "pipeline", "filter", str(config)], cwd=ROOT)
    told = 0.0
    while child.poll() is None:
        resident = max((rss(process) for process in psutil.Process(child.pid).children(recursive=True)), default=0)
        decided = SHARD_ROWS * len(list((run_dir.path / "filter").glob("decisions-*.parquet")))
        curve.append((decided, resident))
        if time.perf_counter() - told > 15:
            told = time.perf_counter()
            print(f"{decided:>9} answers {resident / GIB:6.2f} GiB {told - began:7.0f} s", file=sys.stderr, flush=True)
        time.sleep(0.25)
    if child.returncode:
        raise SystemExit(child.returncode)
    return curve, time.perf_counter() - began


def rss(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:  # it has ended
        return 0


def minhash_per_s(num_held: int) -> list[float]:
    """Answers a second of processor time with their prompts, thousand by thousand, from words to insertion."""
    texts, rates = Texts(2), []
    with tempfile.TemporaryDirectory() as folder, scratch.database(Path(folder)) as database:
        index = NearDuplicates(0.72, database, "text")
        for each in random_sketches(num_held - TIMED_TEXTS):
            index.add(each, "random")
        for _ in range(TIMED_TEXTS // 1000):
            pairs = list(zip(texts.draw(1000, PROMPT_WORDS), texts.draw(1000, ANSWER_WORDS), strict=True))
            began = time.process_time()
            for prompt, answer in pairs:
                prompt_words, answer_words = words(prompt), words(answer)
                each = sketch(prompt_words + answer_words, answer_words)
                index.twins(each)
                index.add(each, "drawn")
            rates.append(1000 / (time.process_time() - began))
    return rates


def random_sketches(num: int) -> Iterator[Sketch]:
    """Of texts that have nothing in common."""
    rng, any_64 = np.random.default_rng(3), np.iinfo(np.int64)
    for _ in range(num):
        bands = tuple(rng.integers(any_64.min, any_64.max, NUM_BANDS).tolist())
        yield Sketch(bands, rng.integers(0, 1 << 16, (2, NUM_SLOTS), np.uint16), 0)


def resident(curve: list[tuple[int, int]], percent: int, num_rows: int) -> int:
    """The largest resident memory up to the moment when so many per cent of the rows were decided."""
    first = next((n for n, (decided, _) in enumerate(curve) if 100 * decided >= percent * num_rows), len(curve))
    return max(each for _, each in curve[: first + 1])


def main() -> None:
    parser = bench.options(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="answers")
    parser.add_argument("--folder", type=Path, help="where the run is made and left; else a temporary folder")
    options = parser.parse_args()
    if options.quick:
        options.rows = 20_000
    figures = {"minhash_per_s": bench.figure(minhash_per_s(options.rows), "answers/s")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        config = config_module.validate({"name": "million", "runs_dir": str(folder)}, "bench")
        run_dir, path = RunDir(config.run_path), folder / "million.yaml"
        fabricate(run_dir, config, options.rows)
        path.write_text(config_module.dump(config), encoding="utf-8")
        curve, elapsed_s = filtered(run_dir, path)
        counts = run_dir.manifest("filter")["counts"]
    most = {percent: resident(curve, percent, options.rows) for percent in (10, 50, 100)}
    growth_frac = most[100] / most[10] - 1
    print(f"{'flat' if growth_frac <= FLAT_FRAC else 'not flat'}: {growth_frac:.1%} more at 100 % than at 10 %")
    planted = sum(n % SHARD_ROWS > 0 for n in range(PLANTED_EVERY, options.rows, PLANTED_EVERY))
    figures |= {
        "rss_1m_gib": bench.figure([max(each for _, each in curve) / GIB], f"GiB at {options.rows} answers"),
        **{f"rss_{percent}_gib": bench.figure([each / GIB], "GiB") for percent, each in most.items()},
        "rss_growth_frac": bench.figure([growth_frac], "ratio"),
        "filter_rows_per_s": bench.figure([options.rows / elapsed_s], "answers/s"),
        "planted_found_frac": bench.figure([(counts["responses"] - counts["kept"]) / planted], "ratio"),
    }
    bench.show(figures, options.json)


if __name__ == "__main__":
    main()
