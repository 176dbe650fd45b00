"""A run on disk: one folder per stage, shards committed atomically, a manifest written last.

A stage is complete when its manifest exists, its fingerprint matches, and the files it names are there. A stage that
was interrupted has a `started.json` with its fingerprint; its committed shards are kept, and it goes on from them.
"""

import json
import shlex
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import filelock
import yaml

from pipeline import config as config_module
from pipeline.config import Config
from pipeline.console import say
from pipeline.errors import UnsureError, UserError
from pipeline.records import STAGES
from pipeline.report.figures import seconds
from pipeline.run import artifacts, discarding
from pipeline.run.changes import changes, check_accepted, refusal
from pipeline.run.commit import GROWN_FROM, Stage, now
from pipeline.run.earlier import discard, is_whole, left_by, lost_files, tries_before
from pipeline.run.files import file_hash, read_json, text_hash, write_json, write_text
from pipeline.run.manifest import INPUT, FileRow, Fingerprint, Manifest, ManifestRow, Started

NOTHING: dict[str, Any] = {"fingerprint": {}}
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
    def lock(self) -> Generator[None]:
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
        return (left_by(self.stage_path(stage)) or {"fingerprint": {}})["fingerprint"]

    def lost_files(self, stage: str) -> list[str]:
        """The files of a complete stage that are missing or have another size; their content is not read."""
        return lost_files(self.stage_path(stage), self.manifest(stage))

    def check_files(self, stage: str) -> None:
        """Raises UserError for a file of a complete stage that is missing or altered."""
        for record in self.manifest(stage)["files"]:
            self.check_file(stage, record)

    def check_file(self, stage: str, record: FileRow) -> Path:
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
            discard(self.stage_path(later))
        (self.path / artifacts.REPORT).unlink(missing_ok=True)

    def check_discard(self, stage: str) -> None:
        """Raises UnsureError as `discard_from`, which deletes."""
        if not self.is_sure:
            way = "give --fresh twice (--fresh --fresh) to discard it, or the run a new name (name=...) to keep it"
            folders = [self.stage_path(later) for later in STAGES[STAGES.index(stage) :]]
            discarding.check(self.path, folders, "--fresh", way)

    def check_accept(self, stages: Sequence[str]) -> None:
        """Raises UserError for an accepted key that none of these stages could be made with, naming what was meant."""
        check_accepted(self.accept, stages, {key for stage in stages for key in self.begun_with(stage)})

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
                discard(folder)  # not what follows: that is refused by name, where this comes out otherwise
        earlier = left_by(folder)
        tries = tries_before(folder, earlier)
        if earlier is not None and self._input_grew(earlier, fingerprint):
            earlier = self._take_growth(stage, earlier, fingerprint)
        if earlier is not None and self.fresh == "changed" and self._is_other(folder, earlier, fingerprint):
            self.discard_from(stage)
            earlier = None
        tries = tries if earlier else tries_before(folder, None)
        accepted = self._accepted(stage, earlier, fingerprint) if earlier else []
        folder.mkdir(parents=True, exist_ok=True)
        made_with = earlier["fingerprint"] if earlier else fingerprint
        opened = Stage(self, stage, folder, made_with, accepted, spent_s=tries["spent_s"], num_tries=tries["num_tries"])
        if earlier is None:
            leftovers = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
            if leftovers:
                raise UserError(f"{folder}: holds {leftovers[0]} but not the settings it was made with; delete it")
            self.write_config(stage, config)
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
        tries = tries_before(folder, earlier)
        added = folder / ADDED
        discard(added)
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
            discard(folder)
            return None
        if stage != "generate":
            return earlier
        facts = read_json(folder / artifacts.STARTED, Started)["facts"]
        if self.is_done(stage):
            for record in earlier["files"]:
                if (folder / record["name"]).exists():  # what is missing is made anew
                    self.check_file(stage, record)
            facts = {**facts, GROWN_FROM: [*earlier.get(GROWN_FROM, ()), self.output_hash(stage)]}
        kept = {"fingerprint": fingerprint, "accepted": earlier["accepted"], "started": now(), "facts": facts}
        write_json(folder / artifacts.STARTED, kept)
        (folder / artifacts.MANIFEST).unlink(missing_ok=True)
        return kept

    def _is_other(self, folder: Path, earlier: dict[str, Any], fingerprint: dict[str, Any]) -> bool:
        """Whether what is there can't stand for these settings, accepted changes aside."""
        changed = changes(earlier["fingerprint"], fingerprint, earlier["accepted"])
        since = changes(earlier["fingerprint"], fingerprint, [])
        return any(c["key"] not in self.accept for c in changed) or bool(since and not is_whole(folder))

    def _accepted(self, stage: str, earlier: dict[str, Any], fingerprint: dict[str, Any]) -> list[dict[str, Any]]:
        """The changes that were accepted, now or before. Raises UserError for one that was not, or can't be."""
        folder = self.stage_path(stage)
        changed = changes(earlier["fingerprint"], fingerprint, earlier["accepted"])
        if refused := [c for c in changed if c["key"] not in self.accept]:
            raise UserError(refusal(self.path, stage, refused, is_whole(folder)))
        since = changes(earlier["fingerprint"], fingerprint, [])
        if since and not is_whole(folder):
            keys = ", ".join(c["key"] for c in since)
            raise UserError(
                f"{folder}: not whole, so what is missing can't be made with another {keys} (--accept keeps the"
                " output of whole stages); do it again with --fresh, or give the run a new name"
            )
        return earlier["accepted"] + changed

    def _reopen(self, stage: "Stage", manifest: dict[str, Any], tries: dict[str, Any]) -> None:
        """Find a finished stage complete, or make it one that has lost files and goes on."""
        lost = lost_files(stage.path, manifest)
        for record in manifest["files"]:
            if record["name"] in lost and (stage.path / record["name"]).exists():
                self.check_file(stage.name, record)  # cut short: says so
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
            discard(folder)
        # what is made anew has another hash: the old manifest must not outlive a kill
        started = stage.path / artifacts.STARTED
        write_json(started, {**read_json(started, Started), "accepted": stage.accepted, **tries})
        (stage.path / artifacts.MANIFEST).unlink()

    def write_config(self, stage: str, config: Config) -> None:
        """Put the stage's sections into the run's config.yaml; those of earlier stages stay as they were run."""
        path, new = self.path / artifacts.CONFIG, config.model_dump(mode="json")
        try:
            old = dict(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.exists() else new
        except (yaml.YAMLError, ValueError, TypeError):  # no YAML, not UTF-8, no mapping
            raise UserError(f"{path}: damaged; delete it, and it will be written again") from None
        keys = (*config_module.read_by(stage), "name", "runs_dir")  # of a run that was copied, the copy's
        merged = {key: new[key] if key in keys or key not in old else old[key] for key in new}
        for section, _, name in (key.partition(".") for key in keys if "." in key):
            merged[section] = {**merged[section], name: new[section][name]}
        header = f"{config_module.RUN_HEADER} {self.path.name} was run with.\n"
        write_text(path, header + config_module.dump_plain(merged))
