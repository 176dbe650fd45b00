"""A run on disk: one folder per stage, shards committed atomically, a manifest written last.

A stage is complete when its manifest exists, its fingerprint matches, and the files it names are there. A stage that
was interrupted has a `started.json` with its fingerprint; its committed shards are kept, and it goes on from them.
"""

import difflib
import json
import shlex
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import filelock
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline import config as config_module
from pipeline.config import Config
from pipeline.console import say
from pipeline.errors import UnsureError, UserError
from pipeline.machine import hardware
from pipeline.records import STAGES
from pipeline.report.figures import seconds
from pipeline.run import artifacts, discarding
from pipeline.run.files import file_hash, read_json, text_hash, user_disk_errors, write_json, write_table, write_text
from pipeline.run.manifest import INPUT, SCHEMA_VERSION, FileRow, Fingerprint, Manifest, ManifestRow, Started

NOTHING: dict[str, Any] = {"fingerprint": {}}
GROWN_FROM = "grown_from"  # in a manifest: the output hashes that the stage had before it grew
ADDED = ".added"  # the folder of what a stage that grows has added so far
Fresh = Literal["no", "changed", "always"]


@dataclass(frozen=True)
class RunDir:
    """A run's folder, and what to do where a stage was made with other settings."""

    path: Path
    fresh: Fresh = "no"  # discard a stage, and those after it: where its fingerprint differs, or always
    accept: tuple[str, ...] = ()  # fingerprint keys whose change is accepted, and recorded
    is_sure: bool = False  # that more than a minute's work may be discarded

    def stage_path(self, stage: str) -> Path:
        return self.path / stage

    def command(self, stage: str, *arguments: str) -> str:
        """What does a stage of this run, to be pasted; CONFIG where the run does not remember its settings."""
        path = self.path / artifacts.CONFIG
        try:
            config_module.load(path)
        except UserError:  # none yet, or damaged
            return shlex.join(["retort", stage, "CONFIG", *arguments])
        return shlex.join(["retort", stage, str(path), *arguments])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process works on a run. A folder that was made for it goes again if nothing was written there.

        Raises UserError if another process has the run.
        """
        new = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: the run's folder can't be made ({error.strerror}); see runs_dir") from None
        lock = filelock.FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"{self.path}: another process is working on this run; wait for it, or stop it") from None
        except OSError as error:
            raise UserError(f"{self.path}: the run can't be written to ({error.strerror}); see runs_dir") from None
        try:
            yield
        finally:
            if new and [path.name for path in self.path.iterdir()] == [".lock"]:
                (self.path / ".lock").unlink()
                for folder in new:
                    with suppress(OSError):  # another run is there by now
                        folder.rmdir()
            lock.release()

    def is_done(self, stage: str) -> bool:
        """Whether a stage has finished."""
        return (self.stage_path(stage) / artifacts.MANIFEST).is_file()

    def manifest(self, stage: str) -> ManifestRow:
        """The manifest of a complete stage. Raises UserError if the stage has not finished."""
        if not self.is_done(stage):
            raise UserError(f"{self.path}: {stage} has not finished; run it first: {self.command(stage)}")
        return cast(ManifestRow, read_json(self.stage_path(stage) / artifacts.MANIFEST, Manifest))

    def fingerprint(self, stage: str) -> Fingerprint:
        """What a complete stage was made with. Raises UserError if the stage has not finished."""
        return self.manifest(stage)["fingerprint"]

    def begun_with(self, stage: str) -> dict[str, Any]:
        """The fingerprint that a stage was begun with; empty where it was not begun."""
        return (_earlier(self.stage_path(stage)) or {"fingerprint": {}})["fingerprint"]

    def lost_files(self, stage: str) -> list[str]:
        """The files of a complete stage that are missing or have another size; their content is not read."""
        return _lost(self.stage_path(stage), self.manifest(stage))

    def check_files(self, stage: str) -> None:
        """Raises UserError for a file of a complete stage that is missing or altered."""
        for record in self.manifest(stage)["files"]:
            self._check_file(stage, record)

    def _check_file(self, stage: str, record: FileRow) -> Path:
        path = self.stage_path(stage) / record["name"]
        if not path.is_file() or path.stat().st_size != record["bytes"] or file_hash(path) != record["sha256"]:
            what = "damaged (it is not the" if path.exists() else "missing (it is a"
            folder = path.parent if path.parent != self.stage_path(stage) else None  # there whole, or not at all
            first = f"delete {folder} and " if folder else "delete it and " if path.exists() else ""
            raise UserError(
                f"{path}: {what} file that {stage} wrote); {first}do `{self.command(stage)}` again:"
                " only what is missing is made anew"
            )
        return path

    def output_hash(self, stage: str) -> str:
        """One hash over all files that a complete stage wrote: the input of the next."""
        files = self.manifest(stage)["files"]
        return text_hash(json.dumps([[f["name"], f["sha256"]] for f in files]))

    def discard_from(self, stage: str) -> None:
        """Delete a stage's output and that of all later stages.

        Raises UnsureError if that is more than a minute's work, unless the run is opened with `is_sure`.
        """
        self.check_discard(stage)
        for later in STAGES[STAGES.index(stage) :]:
            _discard(self.stage_path(later))
        (self.path / artifacts.REPORT).unlink(missing_ok=True)

    def check_discard(self, stage: str) -> None:
        """Raises UnsureError as `discard_from`, which deletes."""
        if not self.is_sure:
            way = "give --fresh twice (--fresh --fresh) to discard it, or the run a new name (name=...) to keep it"
            folders = [self.stage_path(later) for later in STAGES[STAGES.index(stage) :]]
            discarding.check(self.path, folders, "--fresh", way)

    def check_accept(self, stages: Sequence[str]) -> None:
        """Raises UserError for an accepted key that none of these stages could be made with, naming what was meant.

        A key is a setting as refusals name it, or one file of several (`prepare.file.prompts.jsonl`).
        """
        if not self.accept:
            return
        sections = {section.partition(".")[0] for stage in stages for section in config_module.read_by(stage)}
        all_settings = {_setting(name) for name, _ in config_module.fields()}
        made_with = {key for stage in stages for key in self.begun_with(stage)}
        known = made_with | {name for name in all_settings if name.partition(".")[0] in sections}
        of_files = {_setting(key) for key in made_with if key != _setting(key)}
        for key in self.accept:
            if key in known or (_setting(key) in of_files and key != _setting(key)):
                continue
            nearest = [] if key in all_settings else difflib.get_close_matches(key, sorted(known), n=1)
            alike = [name for name in known if name.partition(".")[0] == key.partition(".")[0]]
            listed = f"choose from {', '.join(sorted({_setting(name) for name in alike or known}))}"
            meant = f"did you mean {nearest[0]}?" if nearest else listed
            raise UserError(f"--accept {key}: no such setting of {', '.join(stages)}; {meant}")

    def begin(self, stage: str, config: Config, fingerprint: dict[str, Any], in_one_piece: bool = False) -> "Stage":
        """Open a stage to be done, gone on with, or found complete.

        A stage done `in_one_piece` starts anew where it has not finished, so its settings may change until then; and
        so may those of any stage that has committed nothing yet.

        Raises UserError where it was made with other settings, naming each, unless `fresh` or `accept` says what to do;
        and where a file was cut short.
        """
        folder = self.stage_path(stage)
        manifest, started = folder / artifacts.MANIFEST, folder / artifacts.STARTED
        if self.fresh == "always":
            for earlier_stage in STAGES[: STAGES.index(stage)]:  # nothing is discarded that could not be made again
                if self.is_done(earlier_stage):
                    self.check_files(earlier_stage)
            self.discard_from(stage)
        elif folder.exists() and not manifest.exists():
            committed = [p for p in folder.iterdir() if p != started and not p.name.startswith(".")]
            if in_one_piece or not committed:
                _discard(folder)  # not what follows: that is refused by name, where this comes out otherwise
        earlier = _earlier(folder)
        tries = _tries(folder, earlier)
        if earlier is not None and self._input_grew(earlier, fingerprint):
            earlier = self._take_growth(stage, earlier, fingerprint)
        if earlier is not None and self.fresh == "changed" and self._is_other(folder, earlier, fingerprint):
            self.discard_from(stage)
            earlier = None
        tries = tries if earlier else _tries(folder, None)
        accepted = self._accepted(stage, earlier, fingerprint) if earlier else []
        folder.mkdir(parents=True, exist_ok=True)
        made_with = earlier["fingerprint"] if earlier else fingerprint
        opened = Stage(self, stage, folder, made_with, accepted, spent_s=tries["spent_s"], num_tries=tries["num_tries"])
        if earlier is None:
            leftovers = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
            if leftovers:
                raise UserError(f"{folder}: holds {leftovers[0]} but not the settings it was made with; delete it")
            self._write_config(stage, config)
            made = {"fingerprint": fingerprint, "accepted": accepted, "started": now(), "facts": {}}
            write_json(started, {**made, **tries})
        elif not manifest.exists():
            write_json(started, {**earlier, **tries})
        else:
            if accepted != earlier["accepted"]:
                write_json(manifest, {**earlier, "accepted": accepted})
            self._reopen(opened, earlier, tries)
        return opened

    def begin_growth(self, stage: str, fingerprint: dict[str, Any]) -> "Stage":
        """Open a finished stage that takes more. What is added is written to a folder of its own until `Stage.grow`
        puts it beside what is there, so a try that stops changes nothing."""
        folder = self.stage_path(stage)
        earlier = self.manifest(stage)
        tries = _tries(folder, earlier)
        added = folder / ADDED
        _discard(added)
        added.mkdir()
        return Stage(
            self,
            stage,
            added,
            fingerprint,
            earlier["accepted"],
            spent_s=tries["spent_s"],
            num_tries=tries["num_tries"],
        )

    def _input_grew(self, earlier: dict[str, Any], fingerprint: dict[str, Any]) -> bool:
        """Whether a stage's inputs are all that changed, and hold what it was made from and more."""
        changed = changes(earlier["fingerprint"], fingerprint, earlier["accepted"])
        return (
            bool(changed)
            and self.fresh != "always"
            and all(
                c["key"].startswith(INPUT)
                and c["key"] not in self.accept
                and c["was"] in self.manifest(c["key"].removeprefix(INPUT)).get(GROWN_FROM, ())
                for c in changed
            )
        )

    def _take_growth(self, stage: str, earlier: dict[str, Any], fingerprint: dict[str, Any]) -> dict[str, Any] | None:
        """What a stage whose input grew goes on from. generate keeps its files; filter is done anew, as it compares
        responses with each other; of a later stage nothing changes, so it is refused by name."""
        folder = self.stage_path(stage)
        if stage == "filter":
            if not self.is_sure:
                way = "give --fresh twice (--fresh --fresh) to filter all responses anew"
                discarding.check(self.path, [folder], f"{stage} of the responses that were added", way)
            _discard(folder)
            return None
        if stage != "generate":
            return earlier
        facts = read_json(folder / artifacts.STARTED, Started)["facts"]
        if self.is_done(stage):
            for record in earlier["files"]:
                if (folder / record["name"]).exists():  # what is missing is made anew
                    self._check_file(stage, record)
            facts = {**facts, GROWN_FROM: [*earlier.get(GROWN_FROM, ()), self.output_hash(stage)]}
        kept = {"fingerprint": fingerprint, "accepted": earlier["accepted"], "started": now(), "facts": facts}
        write_json(folder / artifacts.STARTED, kept)
        (folder / artifacts.MANIFEST).unlink(missing_ok=True)
        return kept

    def _is_other(self, folder: Path, earlier: dict[str, Any], fingerprint: dict[str, Any]) -> bool:
        """Whether what is there can't stand for these settings, accepted changes aside."""
        changed = changes(earlier["fingerprint"], fingerprint, earlier["accepted"])
        since = changes(earlier["fingerprint"], fingerprint, [])
        return any(c["key"] not in self.accept for c in changed) or bool(since and not _is_whole(folder))

    def _accepted(self, stage: str, earlier: dict[str, Any], fingerprint: dict[str, Any]) -> list[dict[str, Any]]:
        """The changes that were accepted, now or before. Raises UserError for one that was not, or can't be."""
        folder = self.stage_path(stage)
        changed = changes(earlier["fingerprint"], fingerprint, earlier["accepted"])
        if refused := [c for c in changed if c["key"] not in self.accept]:
            raise UserError(_refusal(self.path, stage, refused, _is_whole(folder)))
        since = changes(earlier["fingerprint"], fingerprint, [])
        if since and not _is_whole(folder):
            keys = ", ".join(c["key"] for c in since)
            raise UserError(
                f"{folder}: not whole, so what is missing can't be made with another {keys} (--accept keeps the"
                " output of whole stages); do it again with --fresh, or give the run a new name"
            )
        return earlier["accepted"] + changed

    def _reopen(self, stage: "Stage", manifest: dict[str, Any], tries: dict[str, Any]) -> None:
        """Find a finished stage complete, or make it one that has lost files and goes on."""
        lost = _lost(stage.path, manifest)
        for record in manifest["files"]:
            if record["name"] in lost and (stage.path / record["name"]).exists():
                self._check_file(stage.name, record)  # cut short: says so
        if not lost:
            stage.complete = True
            say(f"{stage.name}: done already")
            return
        folders = [stage.path / name for name in sorted({Path(n).parts[0] for n in lost if len(Path(n).parts) > 1})]
        folders = [folder for folder in folders if folder.is_dir()]  # one is there whole, or not at all
        if folders and not self.is_sure and manifest["elapsed_s"] > discarding.LITTLE_S:
            raise UnsureError(
                f"{stage.path / lost[0]} is missing: making it again would discard {folders[0]} and repeat"
                f" {seconds(manifest['elapsed_s'])} of work",
                f"put the file back, or delete {folders[0]} yourself",
            )
        for folder in folders:
            _discard(folder)
        # what is made anew has another hash: the old manifest must not outlive a kill
        started = stage.path / artifacts.STARTED
        write_json(started, {**read_json(started, Started), "accepted": stage.accepted, **tries})
        (stage.path / artifacts.MANIFEST).unlink()

    def _write_config(self, stage: str, config: Config) -> None:
        """Put the stage's sections into the run's config.yaml; those of earlier stages stay as they were run."""
        path, new = self.path / artifacts.CONFIG, config.model_dump(mode="json")
        try:
            old = dict(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.exists() else new
        except (yaml.YAMLError, ValueError, TypeError):  # no YAML, not UTF-8, no mapping
            raise UserError(f"{path}: damaged; delete it, and it is written anew") from None
        keys = (*config_module.read_by(stage), "name", "runs_dir")  # of a run that was copied, the copy's
        merged = {key: new[key] if key in keys or key not in old else old[key] for key in new}
        for section, _, name in (key.partition(".") for key in keys if "." in key):
            merged[section] = {**merged[section], name: new[section][name]}
        header = f"{config_module.RUN_HEADER} {self.path.name} was run with.\n"
        write_text(path, header + config_module.dump_plain(merged))


@dataclass
class Stage:
    """A stage under way: commits files, then the manifest."""

    run: RunDir
    name: str
    path: Path
    fingerprint: dict[str, Any]
    accepted: list[dict[str, Any]]
    complete: bool = False
    began: float = field(default_factory=time.monotonic)
    spent_s: float = 0.0  # by earlier tries
    num_tries: int | None = 1  # with this one; None: not known

    def commit(self, table: pa.Table, name: str, level: int = 3) -> None:
        """Write one Parquet file: temporary name, fsync, rename. Raises UserError where the disk is full."""
        write_table(table, self.path / name, level)

    def shards(self, prefix: str) -> list[str]:
        """Names of the files committed so far, in order."""
        return sorted(p.name for p in self.path.glob(f"{prefix}-*.parquet"))

    def note(self, name: str, row: dict[str, Any]) -> None:
        """Add a line to a JSONL file for people, such as a list of what was left out."""
        path = self.path / name
        with user_disk_errors(path), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def notes(self) -> list[Path]:
        """The JSONL files that are there."""
        return sorted(self.path.glob("*.jsonl"))

    def remember(self, **facts: Any) -> None:
        """Keep facts that a later try could not find out again, until the manifest has them."""
        started = read_json(self.path / artifacts.STARTED, Started)
        write_json(self.path / artifacts.STARTED, {**started, "facts": {**self.facts(), **facts}})

    def facts(self) -> dict[str, Any]:
        """What was remembered, in this try or an earlier one."""
        return read_json(self.path / artifacts.STARTED, Started).get("facts", {})

    def elapsed_s(self) -> float:
        """What this try has taken so far, and what is known of those before it."""
        return self.spent_s + time.monotonic() - self.began

    def finish(self, files: list[Path], counts: dict[str, Any], **facts: Any) -> None:
        """Write the manifest: the stage is complete."""
        write_json(
            self.path / artifacts.MANIFEST,
            {
                "schema_version": SCHEMA_VERSION,
                "stage": self.name,
                "fingerprint": self.fingerprint,
                "accepted": self.accepted,
                "files": [self._file_record(path) for path in files],
                "counts": counts,
                **self.facts(),
                **facts,
                "versions": hardware.versions(),
                "machine": hardware.describe(),
                "elapsed_s": round(self.elapsed_s(), 3),
                "num_tries": self.num_tries,
                "finished": now(),
            },
        )
        say(f"{self.name}: {', '.join(f'{key} {value}' for key, value in counts.items())} → {self.path}")

    def grow(self, config: Config, written_anew: Collection[str], counts: dict[str, Any], **facts: Any) -> None:
        """Put what was added beside what was there, and write the manifest: the stage is complete.

        What is there stays, but for the files `written_anew`, which go if this try wrote none of that name.
        """
        folder, added = self.run.stage_path(self.name), sorted(path.name for path in self.path.iterdir())
        manifest = self.run.manifest(self.name)
        kept = [record["name"] for record in manifest["files"] if record["name"] not in {*added, *written_anew}]
        earlier_hashes = [*manifest.get(GROWN_FROM, ()), self.run.output_hash(self.name)]
        for name in written_anew:
            (folder / name).unlink(missing_ok=True)
        for name in added:
            (self.path / name).replace(folder / name)
        self.path.rmdir()
        self.path = folder
        self.run._write_config(self.name, config)
        started = read_json(folder / artifacts.STARTED, Started)
        write_json(folder / artifacts.STARTED, {**started, "fingerprint": self.fingerprint})
        names = sorted([*kept, *added], key=lambda name: (not name.endswith(".parquet"), name))
        self.finish([folder / name for name in names], counts, **facts, **{GROWN_FROM: earlier_hashes})

    def _file_record(self, path: Path) -> dict[str, Any]:
        record: dict[str, Any] = {"name": str(path.relative_to(self.path)), "bytes": path.stat().st_size}
        if path.suffix == ".parquet":
            record["rows"] = pq.read_metadata(path).num_rows
        return {**record, "sha256": file_hash(path)}


def read_shards(run: RunDir, stage: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The Parquet files of a complete stage, in order, each checked against the manifest's hash before it is read.

    Raises UserError that names a file which is missing, truncated or altered.
    """
    for record in _shard_records(run, stage):
        yield _read_shard(run, stage, record, columns)


def read_shard(run: RunDir, stage: str, number: int, columns: list[str] | None = None) -> pa.Table:
    """One of them, with the same checks."""
    return _read_shard(run, stage, _shard_records(run, stage)[number], columns)


def _shard_records(run: RunDir, stage: str) -> list[FileRow]:
    return [record for record in run.manifest(stage)["files"] if record["name"].endswith(".parquet")]


def _read_shard(run: RunDir, stage: str, record: FileRow, columns: list[str] | None) -> pa.Table:
    path = run._check_file(stage, record)
    if lacking := set(columns or []) - set(pq.read_schema(path).names):
        raise UserError(
            f"{path}: has no {min(lacking)}: another version of Retort made it; do"
            f" `{run.command(stage, '--fresh')}` and what follows, or use that version"
        )
    return pq.read_table(path, columns=columns)


def shard_paths(run: RunDir, stage: str) -> list[Path]:
    """The Parquet files of a complete stage, in the order in which `read_shards` reads and checks them."""
    return [run.stage_path(stage) / record["name"] for record in _shard_records(run, stage)]


def read_planned(run: RunDir, columns: list[str], num_samples: int) -> Iterator[dict[str, Any]]:
    """The responses that generate plans, in its order: each prompt's columns, `sample` and `response_id`."""
    for table in read_shards(run, "prepare", sorted({"prompt_id", *columns})):
        for prompt in table.to_pylist():
            for sample in range(num_samples):
                yield {**prompt, "sample": sample, "response_id": f"{prompt['prompt_id']}-{sample}"}


def read_answers(run: RunDir, columns: list[str]) -> Iterator[tuple[pa.Table, pa.ChunkedArray]]:
    """`(answers, kept)` of each shard: generate's rows, and filter's decision about each.

    The answers have a column more, `masked_spans`: filter's too.

    Raises UserError where a file is damaged, or filter decided about other answers than those that are there.
    """
    if run.fingerprint("filter")["input.generate"] != run.output_hash("generate"):
        raise UserError(
            f"{run.path}: filter decided about other answers than generate has now; filter again:"
            f" {run.command('filter', '--fresh')}"
        )
    decisions = read_shards(run, "filter", ["kept", "masked_spans"])
    for answers, decided in zip(read_shards(run, "generate", columns), decisions, strict=True):
        yield answers.append_column("masked_spans", decided.column("masked_spans")), decided.column("kept")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def changes(old: Mapping[str, Any], new: Mapping[str, Any], accepted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The keys in which two fingerprints differ, each with what it `was` and `is`; but for accepted changes."""
    known = [(a["key"], a["is"]) for a in accepted]
    return [
        {"key": key, "was": old.get(key), "is": new.get(key)}
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and (key, new.get(key)) not in known
    ]


def _setting(key: str) -> str:
    """The setting of a fingerprint's key: `prepare.file` of prepare.file.prompts.jsonl."""
    return ".".join(key.split(".")[:2])


def _refusal(path: Path, stage: str, changes: list[dict[str, Any]], is_whole: bool) -> str:
    differences = (_differences(c["key"], c["was"], c["is"]) for c in changes)
    listed = "; ".join(f"{key} was {_short(was)}, is {_short(now_is)}" for of in differences for key, was, now_is in of)
    accepts = " ".join(f"--accept {c['key']}" for c in changes)
    ways = [f"give the run a new name (name=...), do {stage} and what follows again (--fresh)"]
    if is_whole:
        ways.append(f"keep its output as it is ({accepts})")
    if all(c["key"].startswith(INPUT) for c in changes):
        inputs = " and ".join(c["key"].removeprefix(INPUT) for c in changes)
        ways[0] = f"do {stage} and what follows again (--fresh)"
        if stage == "train":
            go_on = f"generate.reuse={path} student.model={path}/train/student"
            ways.append(f"go on from its student under a new name (name=... {go_on})")
        return f"{path}/{stage} was made from what {inputs} wrote before that changed. Either {', or '.join(ways)}"
    return f"{path}/{stage} was made with other settings: {listed}. Either {', or '.join(ways)}"


def _differences(key: str, was: Any, now_is: Any) -> list[tuple[str, Any, Any]]:
    """What differs, as deep as it lies: `prepare.sources.0.licence`, not the whole of the sources."""
    if isinstance(was, list) and isinstance(now_is, list) and len(was) == len(now_is):
        was, now_is = dict(enumerate(was)), dict(enumerate(now_is))
    if not (isinstance(was, dict) and isinstance(now_is, dict) and was.keys() == now_is.keys()):
        return [(key, was, now_is)]
    parts = (_differences(f"{key}.{name}", was[name], now_is[name]) for name in was if was[name] != now_is[name])
    return [each for part in parts for each in part]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _discard(folder: Path) -> None:
    """Delete a folder: out of sight at once, so that a kill leaves no part of it."""
    discarded = folder.with_name(f".discarded-{folder.name}")
    shutil.rmtree(discarded, ignore_errors=True)
    if folder.exists():
        folder.rename(discarded)
        shutil.rmtree(discarded)


def _earlier(folder: Path) -> dict[str, Any] | None:
    """What an earlier try left: a manifest where it finished, else what it started with, or None."""
    for name, shape in ((artifacts.MANIFEST, Manifest), (artifacts.STARTED, Started)):
        if (folder / name).exists():
            return read_json(folder / name, shape)
    return None


def _tries(folder: Path, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """What started.json says of a try that begins now, and of those before it, by what they left."""
    num, spent_s = 0, 0.0
    if earlier and "elapsed_s" in earlier:
        num, spent_s = earlier.get("num_tries"), earlier["elapsed_s"]
    elif earlier and earlier.get("began_s") is None:
        num = None  # one or several, with pauses between them
    elif earlier:
        newest_s = max(path.stat().st_mtime for path in folder.rglob("*") if path.is_file())
        num, spent_s = earlier["num_tries"], earlier["spent_s"] + max(0.0, newest_s - earlier["began_s"])
    return {"began_s": time.time(), "spent_s": round(spent_s, 3), "num_tries": None if num is None else num + 1}


def _lost(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files of a manifest that are missing or have another size."""
    sizes = {record["name"]: record["bytes"] for record in manifest["files"]}
    return [n for n, size in sizes.items() if not (folder / n).is_file() or (folder / n).stat().st_size != size]


def _is_whole(folder: Path) -> bool:
    """Whether a stage has its manifest, and every file that it names."""
    return (folder / artifacts.MANIFEST).exists() and not _lost(
        folder, read_json(folder / artifacts.MANIFEST, Manifest)
    )
