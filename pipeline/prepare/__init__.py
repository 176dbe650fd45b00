"""prepare: prompts in, and answers where they are to be scored. Rows of every source become conversations with stable
ids, rendered as the teacher sees them. Where more prompts are wanted, the teacher writes them (synthesis.py)."""

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import corpora
from pipeline.config import Config, Prepare, Source, output_settings, synthesis_files
from pipeline.console import console, counted, say
from pipeline.corpora import BadRowError
from pipeline.data import shipped
from pipeline.errors import UserError
from pipeline.eval_sets import eval_prompts
from pipeline.machine import hardware
from pipeline.models import lookup
from pipeline.models.tokenizer import chat_template, tokens
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.prepare import conversations, growth, likeness, screening, sources, synthesis
from pipeline.prepare.conversations import Asked, Renderer
from pipeline.prepare.likeness import PromptComparison, text_of
from pipeline.prepare.skipped import Skipped, Unseen
from pipeline.prepare.synthesis.instructions import InstructionPool, template_hash
from pipeline.records import PROMPTS
from pipeline.run import left_out, scratch
from pipeline.run.commit import Stage
from pipeline.run.files import file_hash, folder_hash, text_hash
from pipeline.run.manifest import ManifestRow
from pipeline.run.rundir import RunDir
from pipeline.screening import licences
from pipeline.text import contamination
from pipeline.text.boilerplate import NO_BOILERPLATE, Boilerplate, Sample

HUB_ROWS = 20_000  # that are read twice


def run(config: Config, run_dir: RunDir) -> None:
    """Write prepare/prompts-*.parquet. Raises UserError at the first bad row, unless `prepare.bad_rows` is skip."""
    teacher = lookup.find(config.teacher.model, config.teacher.revision)
    tokenizer = teacher.tokenizer()
    chat_template.check_has_template(tokenizer)
    lookup.check_student(config, teacher, tokenizer)
    day = _day(run_dir, tokenizer)
    template = ChatTemplate(tokenizer, config.teacher.chat_template_kwargs, day)
    eval_prompts.check(config, template)
    context = _context_tokens(config, teacher)
    licence = licences.check(config, teacher)
    fingerprint = _fingerprint(config, teacher, tokenizer, context) | {"teacher.date": day}
    if earlier := growth.earlier(config, run_dir, fingerprint):
        stage = run_dir.begin_growth("prepare", fingerprint)
        _prepare(config, stage, Renderer(config, teacher, template, context), licence, earlier)
        return
    has_drafts = any(run_dir.stage_path("prepare").glob("drafts-*.jsonl"))  # dear: gone on from, or refused by name
    stage = run_dir.begin("prepare", config, fingerprint, in_one_piece=not has_drafts)
    if stage.complete:
        return
    if config.prepare.sources == Prepare().sources:
        say(f"prepare: the prompts are the shipped ones, {Prepare().sources[0].path}; name your own in prepare.sources")
    _prepare(config, stage, Renderer(config, teacher, template, context), licence)


def _prepare(
    config: Config, stage: Stage, renderer: Renderer, licence: licences.Found, earlier: ManifestRow | None = None
) -> None:
    """Write the prompts and the manifest; `earlier` is the manifest of a run that grows."""
    pool, writes_more = InstructionPool(), config.prepare.synthesis.num_prompts is not None and earlier is None
    with scratch.database(stage.path) as database:
        prompts = _Prompts(config, stage, renderer, database)
        if earlier:
            prompts.keep(earlier)
            if "synthesis" in earlier:
                say("prepare: the prompts that the teacher wrote stay, and it writes no more of them")
        for row in prompts.of_sources():
            if writes_more:
                pool.add(row)
        facts = prompts.synthesise(renderer.teacher, renderer.template, pool) if writes_more else {}
    counts = prompts.counts
    if counts["prompts"] == counts["held_out"]:
        raise UserError(
            f"prepare: {counts['prompts']} prompts, {counts['held_out']} of them held out: none is left to train on;"
            " give more prompts, or lower prepare.held_out_frac"
        )
    for change, meaning in chat_template.CHANGES.items():
        if counts[change]:
            say(f"prepare: {meaning} ({counted(counts[change], 'prompt')})")
    facts |= {"chat_template": renderer.template.facts(), **prompts.screened.facts(licence)}
    made = {"counts": counts, "fingerprint": stage.fingerprint, **facts}
    for told in (*left_out.of_sources(made), left_out.of_held_out_prompts(made)):
        if told is not None:
            say(f"prepare: {told}")
    files = prompts.shards.close()
    if earlier:
        num = earlier["counts"]["prompts"]
        parts = [*earlier.get("parts", [num]), counts["prompts"] - num]
        facts |= {key: earlier[key] for key in ("synthesis",) if key in earlier}
        stage.grow(config, likeness.NOTES, dict(counts), parts=[num for num in parts if num], **facts)
    else:
        stage.finish([*files, *stage.notes()], dict(counts), **facts)


class _Prompts:
    """The prompts of a run: each conversation that is usable, lawful and like no other, once."""

    def __init__(self, config: Config, stage: Stage, renderer: Renderer, database: sqlite3.Connection) -> None:
        self._config, self._stage, self._renderer = config, stage, renderer
        self.screened = screening.Screening(config)
        self._skipped, self._num_rows = Skipped(), 0
        self._known = growth.Known(database)
        self._others = PromptComparison(config, stage, database, self._boilerplate())
        self._read: list[tuple[str, sources.SourceSummary, Unseen]] = []  # what the rows of each source were taken for
        self.shards = _Shards(stage, config.prepare.shard_prompts)
        self.counts: Counter[str] = Counter(
            prompts=0, held_out=0, duplicates=0, near_duplicates=0, contaminated=0, bad_rows=0
        )

    def keep(self, earlier: ManifestRow) -> None:
        """Take the prompts of a run that grows: nothing is written of them, and they count as they did."""
        for row, asked in growth.kept(self._config, self._stage.run, self._renderer.template.tokenizer):
            self._known.add_earlier(row)
            self._others.keep(asked, row["prompt_id"], row["split"] == "held_out")
            self.screened.columns(asked)
            self._count(row, asked)
        self.counts.update({key: earlier["counts"][key] for key in ("synthesised",) if key in earlier["counts"]})
        self.shards.begin_after(sum(name["name"].endswith(".parquet") for name in earlier["files"]))

    def of_sources(self) -> Iterator[dict[str, Any]]:
        """Take those of the sources: the rows, as they are taken. Raises UserError where there is none."""
        held_out_frac, max_prompts = self._config.prepare.held_out_frac, self._config.prepare.max_prompts
        asked_in_turn = self._asked(self._config.prepare.sources, self._refuse)
        new = self._new(asked_in_turn)
        for asked in self.screened.of(new, lambda: max_prompts and max_prompts - len(self._known)):
            identifier = asked.identifier()
            if identifier in self._known:
                self._leave_out(asked.origin, "duplicates")  # the same prompt is taken: nothing is lost
                continue
            try:
                rendered = self._renderer.columns(asked)
            except UserError as problem:
                self._refuse(asked.origin, asked.place, str(problem), asked)
                continue
            if fault := self._others.fault(asked, asked.is_held_out(held_out_frac)):
                self._leave_out(asked.origin, fault, asked)
                continue
            self._known.add(identifier)
            yield self._take(asked, rendered)
            if len(self._known) == max_prompts:
                break
        self._known.check(self._stage.run, new)
        if not self._known:
            raise UserError(f"prepare: the sources hold no prompt (prepare.sources){self._why_none()}")
        if self.counts["bad_rows"]:
            say(f"prepare: {counted(self.counts['bad_rows'], 'row')} skipped: {self._skipped.told()}")
        for origin, tally, unseen in self._read:
            for line in (*tally.told(), *unseen.told()):
                say(f"prepare: {origin}: {line}")

    def _new(self, conversations: Iterable[Asked]) -> Iterator[Asked]:
        """Those that the run does not have yet; one that it has and that stands there twice is a duplicate."""
        for asked in conversations:
            if not (self._known.num_unmet and self._known.meets(self.screened.redacted(asked).identifier())):
                yield asked

    def _why_none(self) -> str:
        if not self._num_rows:
            origins = {screening.origin_of(source): None for source in self._config.prepare.sources}
            return f": there is no row in {', '.join(origins)}"
        told = {"bad_rows": f" ({self._skipped.told()})"}
        parts = [f"{num} {why.replace('_', ' ')}{told.get(why, '')}" for why, num in self.screened.lost().items()]
        return f": {self._num_rows} rows were read, and all left out: {', '.join(parts)}"

    def synthesise(self, teacher: lookup.Model, template: ChatTemplate, pool: InstructionPool) -> dict[str, Any]:
        """Add the prompts that the teacher writes. Returns what the manifest says of them."""
        judge = synthesis.DraftReader(self._config, template.tokenizer, pool, self.screened, self._fault_of_draft)
        files, report = synthesis.grow(self._config, self._stage, teacher, template, pool, judge)
        self.counts["synthesised"] = report["written"]
        for asked in synthesis.prompts(files):
            self._take(asked, self._renderer.columns(asked))
        for table in synthesis.describe(report):
            console.print(table)
        return {"synthesis": report}

    def _fault_of_draft(self, asked: Asked) -> str | None:
        """What a draft can't be a prompt for beside those that there are, which it joins where there is nothing."""
        try:
            self._renderer.columns(asked)
        except UserError:
            return "too_long"
        return self._others.fault(asked, is_held_out=False)

    def _take(self, asked: Asked, rendered: dict[str, Any]) -> dict[str, Any]:
        row = conversations.row(asked, self._config.prepare.held_out_frac)
        row |= {**self.screened.columns(asked), **rendered}
        self.shards.add(row)
        self._count(row, asked)
        return row

    def _count(self, row: dict[str, Any], asked: Asked) -> None:
        self.counts["prompts"] += 1
        self.counts["held_out"] += row["split"] == "held_out"
        self.counts.update(self._renderer.template.changes(asked.messages))

    def _boilerplate(self) -> Boilerplate:
        """What many prompts of a source share: the sources are read once more for it, before anything is taken.

        Of a dataset on the hub so many rows, as they are fetched twice.
        """
        settings, sample = self._config.prepare, Sample[Asked]()
        if settings.near_duplicates is None:
            return NO_BOILERPLATE
        sources = [
            source.model_copy(update={"limit": min(source.limit or HUB_ROWS, HUB_ROWS)})
            if source.dataset and not Path(source.dataset).is_dir()
            else source
            for source in settings.sources
        ]
        for asked in islice(self._asked(sources, self._check_strict, is_survey=True), settings.max_prompts):
            sample.add(asked.origin, asked.identifier(), asked)
        return Boilerplate([text_of(self.screened.redacted(asked)) for asked in drawn] for drawn in sample.by_source())

    def _asked(
        self, given_sources: Iterable[Source], refuse: Callable[[str, str, str], None], is_survey: bool = False
    ) -> Iterator[Asked]:
        """What every usable row of the sources asks; `refuse` is told origin, place and problem of the others.

        A survey counts no row and says nothing: the rows are read again.
        """
        for source in map(licences.with_card, given_sources):
            template, tally = sources.load_template(source.template), sources.SourceSummary()
            digest = template_hash(template.text) if template else None
            is_scored = self._config.generate.mode == "score"
            unseen = Unseen(source, is_scored)
            if not is_survey:
                self._read.append((screening.origin_of(source), tally, unseen))
            for place, row in corpora.read(source, sources.columns_of(source, template, is_scored)):
                self._num_rows += not is_survey
                try:
                    if isinstance(row, BadRowError):
                        raise row
                    unseen.see(row)
                    tools = sources.tools_of(row, source)
                    if is_scored:
                        pairs = sources.pairs_of(row, source, template, tally)
                    else:
                        pairs = [(sources.prompt_of(row, source, template, tally), None)]
                except BadRowError as problem:
                    refuse(screening.origin_of(source), place, str(problem))
                    continue
                category = sources.category_of(row, source)
                given = (screening.origin_of(source), sources.licence_of(row, source))
                for messages, completion in pairs:
                    asked = Asked(place, category, messages, tools, completion, *given, template=digest)
                    if tally.draw(conversations.is_taken(asked, source.weight)):
                        yield asked

    def _refuse(self, origin: str, place: str, problem: str, asked: Asked | None = None) -> None:
        self._check_strict(origin, place, problem)
        self._skipped.add(place, problem)
        self._leave_out(origin, "bad_rows", asked)

    def _check_strict(self, origin: str, place: str, problem: str) -> None:
        if self._config.prepare.bad_rows == "error":
            raise UserError(f"{place}: {problem} (prepare.bad_rows=skip leaves such rows out)")

    def _leave_out(self, origin: str, why: str, asked: Asked | None = None) -> None:
        self.counts[why] += 1
        self.screened.leave_out(origin, why, asked)


def _day(run_dir: RunDir, tokenizer: Any) -> str | None:
    """The date that the run's prompts are rendered with, if the template asks for one: that of the day prepare began.

    Evaluate and a later try of prepare use it as well, so that midnight changes nothing.
    """
    if not chat_template.asks_date(tokenizer):
        return None
    begun = {} if run_dir.fresh == "always" else run_dir.begun_with("prepare")
    return begun.get("teacher.date") or datetime.now().astimezone().date().isoformat()


def _context_tokens(config: Config, teacher: lookup.Model) -> int:
    return min(teacher.context_tokens(), int(config.teacher.engine.get("max_model_len") or 1 << 31))


class _Shards:
    """Rows of PROMPTS, committed a file at a time."""

    def __init__(self, stage: Stage, num_rows: int) -> None:
        self._stage, self._num_rows = stage, num_rows
        self._rows: list[dict[str, Any]] = []
        self._files: list[Path] = []
        self._num_earlier = 0

    def begin_after(self, num_files: int) -> None:
        """Number the files from here on: so many are there."""
        self._num_earlier = num_files

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == self._num_rows:
            self._commit()

    def close(self) -> list[Path]:
        """Commit what is left; returns all files, in order."""
        if self._rows:
            self._commit()
        return self._files

    def _commit(self) -> None:
        name = f"prompts-{self._num_earlier + len(self._files):05d}.parquet"
        self._stage.commit(pa.Table.from_pylist(self._rows, schema=PROMPTS), name)
        self._files.append(self._stage.path / name)
        self._rows = []


def _fingerprint(config: Config, teacher: lookup.Model, tokenizer: Any, context: int) -> dict[str, Any]:
    prepare = {key: value for key, value in output_settings(config.prepare).items() if key != "synthesis"}
    paths = [str(path) for source in config.prepare.sources for path in corpora.files_of(source)]
    paths += [template.path for each in config.prepare.sources if (template := sources.load_template(each.template))]
    prepare["decontaminate"] = [each.model_dump(mode="json") for each in contamination.sets_of(config)]
    decontaminate = contamination.content_hashes(contamination.sets_of(config), "prepare.decontaminate")
    folders = [s.dataset for s in config.prepare.sources if s.dataset and Path(s.dataset).is_dir()]
    return {
        **{f"prepare.{key}": value for key, value in prepare.items()},
        **screening.fingerprint(config),
        "generate.mode": config.generate.mode,  # whether answers are read too
        # it decides which prompts fit the context
        "generate.max_tokens": config.generate.max_tokens if config.generate.mode == "sample" else None,
        **{f"prepare.file.{path}": file_hash(shipped.find(path)) for path in paths},
        **{f"prepare.decontaminate.{name}": value for name, value in decontaminate.items()},
        **{f"prepare.folder.{folder}": folder_hash(Path(folder)) for folder in folders},
        "teacher.context_tokens": context,
        "teacher.model": config.teacher.model,
        "teacher.revision": config.teacher.revision,
        "teacher.chat_template_kwargs": config.teacher.chat_template_kwargs,
        "teacher.chat_template": text_hash(chat_template.source(tokenizer)),
        "teacher.tokenizer": tokens.tokenizer_hash(tokenizer),
        **_synthesis_fingerprint(config, teacher),
    }


def _synthesis_fingerprint(config: Config, teacher: lookup.Model) -> dict[str, Any]:
    """All that changes what the teacher writes; nothing where it writes no prompts."""
    settings = config.prepare.synthesis
    if settings.num_prompts is None:
        return {}
    paths = synthesis_files(settings)
    folders = [s.dataset for s in settings.documents if s.dataset and Path(s.dataset).is_dir()]
    is_server = bool(config.teacher.server.urls)
    return {
        **{f"prepare.synthesis.{key}": value for key, value in output_settings(settings).items()},
        **{f"prepare.synthesis.file.{path}": file_hash(shipped.find(path)) for path in paths},
        **{f"prepare.synthesis.folder.{folder}": folder_hash(Path(folder)) for folder in folders},
        "teacher.weights": teacher.weights_hash(),
        "teacher.engine": config.teacher.engine,
        "teacher.reasoning_tags": list(config.teacher.reasoning_tags),
        "vllm": "a server's" if is_server else hardware.vllm_version(),
    }
