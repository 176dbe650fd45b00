"""Which licences restrict training on a model's answers, or on a corpus: a table, and a check before a token is drawn.

The table was written by people who are no lawyers, from the texts as they stood in 2026; each entry says in our own
words what it rests on and where to read it. It is there so that nobody overlooks a question, and answers none for you.
What is called an output here is what a model wrote; whoever trains on it makes a student of that model.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx
import yaml
from huggingface_hub import RepoCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from pipeline.config import Config, Source
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.run.rundir import RunDir

Verdict = Literal["free", "duties", "non_commercial", "own_family", "forbidden"]
MEANINGS: dict[Verdict, str] = {
    "free": "nothing in it restricts training on outputs",
    "duties": "training on outputs is allowed, with duties",
    "non_commercial": "outputs may be used for research or other non-commercial ends alone",
    "own_family": "outputs may improve models of the same family alone",
    "forbidden": "outputs may not train such a model",
}


@dataclass(frozen=True)
class Terms:
    """One licence. `ids` are how model and dataset cards name it; `heading` is how its text begins."""

    ids: tuple[str, ...]
    name: str
    verdict: Verdict
    clause: str
    read: str
    heading: str = ""


def _table() -> tuple[Terms, ...]:
    rows = yaml.safe_load(Path(__file__).with_name("licence_terms.yaml").read_text(encoding="utf-8"))
    return tuple(Terms(**{**row, "ids": tuple(row["ids"])}) for row in rows)


TABLE = _table()
UNKNOWN = ("other", "unknown")  # what cards write where they name none
SEVERITY: tuple[Verdict, ...] = ("free", "duties", "own_family", "non_commercial", "forbidden")
SUFFIX = re.compile(r"-(?:community-)?licen[sc]e(?:-agreement)?$|-community$|-agreement$")
CREATIVE_COMMONS = re.compile(r"creativecommons\.org/licenses/(by[a-z-]*)/([0-9.]+)")
FAMILIES = (  # versions and ports that the table does not list one by one
    (re.compile(r"cc-by-nc"), "cc-by-nc"),
    (re.compile(r"cc-by-(?:nc-)?nd"), "cc-by-nd-4.0"),
    (re.compile(r"cc-by-sa"), "cc-by-sa-4.0"),
    (re.compile(r"cc-by-[0-9]|cc-by$"), "cc-by-4.0"),
    (re.compile(r"cc0|.*publicdomain/zero"), "cc0-1.0"),
    (re.compile(r".*openrail"), "openrail"),
)


class Found(NamedTuple):
    """The teacher's licence, and where it was found."""

    licence: str | None
    told_by: str


def terms_of(licence: str | None) -> Terms | None:
    """The table's entry for a licence as a card names it; None where the table has none.

    Of several joined by AND, as SPDX does it, the one that restricts most; None where one of them is not known.
    """
    if licence is None:
        return None
    entries = [_entry(part) for part in re.split(r"\s+AND\s+", licence.strip())]
    if None in entries:
        return None
    return max((entry for entry in entries if entry), key=lambda entry: SEVERITY.index(entry.verdict))


def _entry(name: str) -> Terms | None:
    key = re.sub(r"[\s_]+", "-", name.strip().strip("()").lower())
    if match := CREATIVE_COMMONS.search(key):
        key = f"cc-{match[1]}-{match[2]}"
    short = SUFFIX.sub("", key)
    short = {"apache-license-2.0": "apache-2.0", "apache": "apache-2.0"}.get(short, short)
    family = next((known for pattern, known in FAMILIES if pattern.match(key)), None)
    return next((entry for sought in (key, short, family) for entry in TABLE if sought in entry.ids), None)


def combined(names: Iterable[str | None]) -> str | None:
    """The licences of a text made from several, as SPDX writes it (`apache-2.0 AND mit`); None: not known."""
    distinct = sorted({name or "" for name in names})
    return " AND ".join(distinct) if distinct and all(distinct) else None


def of_model(folder: Path, name: str, configured: str | None) -> Found:
    """A model's licence: as configured, else by its card's front matter, else by its LICENSE file's first lines.

    A card that says no more than `other` gives way to the file.
    """
    if configured is not None:
        return Found(configured, "teacher.licence")
    if name == lookup.DEMO:
        return Found(lookup.DEMO_LICENCE, f"the card of {lookup.DEMO_HUB_ID}")
    card = _by_card(folder / "README.md")
    if card is not None and card.licence not in UNKNOWN:
        return card
    return _by_text(folder) or card or Found(None, "nothing in its folder")


def check(config: Config, teacher: lookup.Model) -> Found:
    """The teacher's licence. Raises UserError, under licence_policy=enforce, where that or a source's is restrictive.

    That is before a token is generated, and before a row is read.
    """
    found = of_model(teacher.path, config.teacher.model, config.teacher.licence)
    _refuse(_of_teacher(config, found.licence), config.licence_policy)
    for source in map(with_card, (*config.prepare.sources, *config.prepare.synthesis.documents)):
        if source.licence is not None:
            check_source(source.path or source.dataset or "", source.licence, config.licence_policy)
    return found


def with_card(source: Source) -> Source:
    """A source with the licence that its dataset's card names, where it has none of its own."""
    if source.licence is not None or (found := _by_card(_card_of(source))) is None:
        return source
    return source.model_copy(update={"licence": found.licence})


def _card_of(source: Source) -> Path:
    """The README.md beside a source's files, or that of its dataset on the hub; it need not exist."""
    here = Path(source.path or source.dataset or "")
    if source.path is not None or here.is_dir():
        return (here if here.is_dir() else here.parent) / "README.md"
    return _card_on_hub(str(here), source.revision)


@cache
def _card_on_hub(dataset: str, revision: str | None) -> Path:
    try:
        return Path(hf_hub_download(dataset, "README.md", repo_type="dataset", revision=revision))
    except (OSError, ValueError, HfHubHTTPError, httpx.HTTPError):  # whoever reads the rows tells what is not there
        return Path(dataset) / "README.md"


def check_source(name: str, licence: str | None, policy: str) -> None:
    """Raises UserError, under licence_policy=enforce, where the licence of a source or of one of its rows is
    restrictive."""
    _refuse(_of_source(name, licence), policy)


def check_run(config: Config, run_dir: RunDir) -> None:
    """The same of all that a run was prepared with, where the policy was another then. Raises UserError likewise."""
    told = run_dir.manifest("prepare").get("licences")
    if told is None:  # an earlier version prepared it
        found = of_model(lookup.teacher_of(run_dir).path, config.teacher.model, config.teacher.licence)
        _refuse(_of_teacher(config, found.licence), config.licence_policy)
        return
    licence = config.teacher.licence or told["teacher"]["licence"]
    _refuse(_of_teacher(config, licence), config.licence_policy)
    for source in told["sources"]:
        check_source(source["source"], source["licence"], config.licence_policy)


def tell(config: Config, teacher: Found, sources: Iterable[tuple[str, str | None]]) -> None:
    """Say what the licences of teacher and sources, `(name, licence)`, restrict or ask for, and which are not known."""
    if config.licence_policy != "off":
        for concern in (_of_teacher(config, teacher.licence), *(_of_source(*source) for source in sources)):
            if concern is not None:
                say(f"licence: {concern.text}")


def verdict_of(entry: Terms, is_own_family: bool = False) -> Verdict:
    """What an entry means for this student: one of the teacher's own family may learn what others may not."""
    return "duties" if entry.verdict == "own_family" and is_own_family else entry.verdict


def is_own_family(student_model: str | None, student_config: str | None) -> bool:
    """Whether a student is made of the teacher's own weights; of another model it can't be told."""
    return student_model is None and student_config is None


class _Concern(NamedTuple):
    text: str
    is_grave: bool  # enforce refuses it


def _of_teacher(config: Config, licence: str | None) -> _Concern | None:
    is_own = is_own_family(config.student.model, config.student.config)
    return _concern(f"teacher {config.teacher.model}", licence, "teacher.licence", is_own)


def _of_source(name: str, licence: str | None) -> _Concern | None:
    return _concern(f"source {name}", licence, "its `licence` in prepare.sources", False)


def _concern(who: str, licence: str | None, setting: str, is_own: bool) -> _Concern | None:
    entry = terms_of(licence)
    if entry is None:
        if licence in (None, *UNKNOWN):
            told = f"names no licence; find out which it has, and set {setting}, to mit, say"
        else:
            told = f"licence {licence!r} is not in Retort's table; read whether it allows training on its texts, and go"
            told += " on where it does"
        return _Concern(f"{who}: {told}", False)
    verdict = verdict_of(entry, is_own)
    if verdict == "free":
        return None
    text = f"{who}: {entry.name}: {MEANINGS[verdict]}. {entry.clause} See {entry.read}"
    return _Concern(text, verdict != "duties")


def _refuse(concern: _Concern | None, policy: str) -> None:
    if concern is not None and concern.is_grave and policy == "enforce":
        raise UserError(
            f"{concern.text}. Choose another. If you may use it all the same (your use is not commercial, or you hold"
            " another licence), set licence_policy=warn"
        )


def _by_card(path: Path) -> Found | None:
    """The licence in a card's front matter; `other` gives way to the name that goes with it."""
    if not path.is_file():
        return None
    try:
        data: Any = RepoCard.load(path, ignore_metadata_errors=True).data
    except (ValueError, OSError, yaml.YAMLError):
        return None
    named, name = data.get("license"), data.get("license_name")
    named = combined(map(str, named)) if isinstance(named, list) and named else named
    licence = name if isinstance(name, str) and named in (None, *UNKNOWN) else named
    return Found(licence, "its model card") if isinstance(licence, str) else None


def _by_text(folder: Path) -> Found | None:
    """The licence whose heading stands near the beginning of a LICENSE file."""
    for path in sorted(filter(Path.is_file, [*folder.glob("LICEN[SC]E*"), *folder.glob("licen[sc]e*")])):
        text = path.read_text(encoding="utf-8", errors="replace")[:3000]
        for entry in sorted(TABLE, key=lambda entry: -len(entry.heading)):
            if entry.heading and re.search(entry.heading, text, re.IGNORECASE):
                return Found(entry.ids[0], f"its {path.name}")
    return None
