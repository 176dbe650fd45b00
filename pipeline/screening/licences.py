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


HUB = "its model's page on the hub"
TABLE: tuple[Terms, ...] = (
    Terms(
        ("apache-2.0", "apache2", "apache-2"),
        "Apache License 2.0",
        "free",
        "Speaks of the work and its derivatives, not of what a model writes; keep the notices with copied weights.",
        "apache.org/licenses/LICENSE-2.0",
        r"Apache License\s+Version 2\.0",
    ),
    Terms(
        ("mit",),
        "MIT License",
        "free",
        "Asks for the notice with copies of the work; says nothing of outputs.",
        "opensource.org/license/mit",
        r"MIT License|Permission is hereby granted, free of charge",
    ),
    Terms(
        ("bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "0bsd"),
        "BSD and its like",
        "free",
        "Notices with copies; nothing of outputs.",
        "opensource.org/licenses",
        r"Redistribution and use in source and binary forms",
    ),
    Terms(
        ("cc0-1.0", "pddl", "public-domain"),
        "Public domain",
        "free",
        "All rights waived.",
        "creativecommons.org/publicdomain/zero/1.0",
        r"CC0 1\.0",
    ),
    Terms(
        ("cc-by-4.0", "cc-by-3.0", "cc-by-2.0", "odc-by"),
        "Attribution (CC BY, ODC-By)",
        "duties",
        "Name the authors, link the licence and say what was changed wherever the texts are passed on.",
        "creativecommons.org/licenses/by/4.0, section 3",
        r"Attribution 4\.0 International",
    ),
    Terms(
        ("cc-by-sa-4.0", "cc-by-sa-3.0", "odbl", "gpl-3.0", "agpl-3.0", "gfdl"),
        "Share alike (CC BY-SA, ODbL, GPL)",
        "duties",
        "What is adapted from the texts and passed on stays under the same licence; whether a trained model is an"
        " adaptation is disputed.",
        "creativecommons.org/licenses/by-sa/4.0, section 3(b)",
        r"Attribution-ShareAlike",
    ),
    Terms(
        ("cc-by-nd-4.0", "cc-by-nd-3.0"),
        "No derivatives (CC BY-ND)",
        "duties",
        "Adapted texts may not be passed on: a corpus of rewritten prompts may be adapted.",
        "creativecommons.org/licenses/by-nd/4.0, section 2(a)",
        r"Attribution-NoDerivatives",
    ),
    Terms(
        (
            "cc-by-nc-4.0",
            "cc-by-nc-3.0",
            "cc-by-nc-2.0",
            "cc-by-nc-sa-4.0",
            "cc-by-nc-sa-3.0",
            "cc-by-nc-nd-4.0",
            "cc-by-nc",
            "cc-by-nc-sa",
        ),
        "Non-commercial (CC BY-NC)",
        "non_commercial",
        "Use for commercial advantage or payment is not granted; Cohere's Command and Aya weights come under it, and"
        " under an acceptable-use policy.",
        "creativecommons.org/licenses/by-nc/4.0, section 2(a)",
        r"Attribution-NonCommercial",
    ),
    Terms(
        ("llama2", "llama-2"),
        "Llama 2 Community License",
        "own_family",
        "The weights and what they write may not improve a language model that is not Llama 2 or derived from it.",
        "section 1.b.v of its LICENSE",
        r"LLAMA 2 COMMUNITY LICENSE",
    ),
    Terms(
        ("llama3", "llama-3"),
        "Meta Llama 3 Community License",
        "own_family",
        "The weights and what they write may not improve a language model that is not Llama 3 or derived from it;"
        " derived ones begin their name with `Llama 3` and say `Built with Meta Llama 3`.",
        "section 1.b of its LICENSE",
        r"META LLAMA 3 COMMUNITY LICENSE",
    ),
    Terms(
        ("llama3.1", "llama3.2", "llama3.3", "llama4", "llama-3.1", "llama-3.2", "llama-3.3", "llama-4"),
        "Llama 3.1, 3.2, 3.3 and 4 Community Licenses",
        "duties",
        "A model that was trained on outputs and is passed on begins its name with `Llama`, says `Built with Llama`,"
        " and follows the acceptable-use policy; above 700 million monthly users ask Meta.",
        "sections 1.b.i and 2 of its LICENSE",
        r"LLAMA (?:3\.[123]|4) COMMUNITY LICENSE",
    ),
    Terms(
        ("gemma",),
        "Gemma Terms of Use (Gemma 1 to 3)",
        "duties",
        "A model made to perform like Gemma by training on its outputs counts as a derivative: pass the terms and the"
        " prohibited-use policy on with it. Outputs themselves are not claimed.",
        "sections 1.1(e), 3.1 and 3.3 at ai.google.dev/gemma/terms",
        r"Gemma Terms of Use",
    ),
    Terms(
        ("qwen", "qwen-license", "tongyi-qianwen-2"),
        "Qwen License Agreement (Qwen2.5-72B and others; most Qwen weights are Apache 2.0)",
        "duties",
        "A model that was trained on outputs and is passed on shows `Built with Qwen` or `Improved using Qwen` in its"
        " documentation; above 100 million monthly users ask for a licence.",
        "sections 3 to 5 of its LICENSE",
        r"Qwen LICENSE AGREEMENT",
    ),
    Terms(
        ("qwen-research", "tongyi-qianwen-research"),
        "Qwen Research License Agreement (Qwen2.5-3B and others)",
        "non_commercial",
        "Research and evaluation alone; a model that was trained on outputs shows `Built with Qwen`.",
        "sections 2 and 4 of its LICENSE",
        r"Qwen RESEARCH LICENSE|Tongyi Qianwen RESEARCH",
    ),
    Terms(
        ("tongyi-qianwen",),
        "Tongyi Qianwen License Agreement (first Qwen models)",
        "own_family",
        "The weights and what they write may not improve a language model that is not Tongyi Qianwen, or derived from"
        " it.",
        "its section on rules of use",
        r"Tongyi Qianwen LICENSE AGREEMENT",
    ),
    Terms(
        ("mrl", "mistral-research", "mistral-ai-research-license"),
        "Mistral AI Research License",
        "non_commercial",
        "Weights, derivatives and outputs are for research that has no commercial end, direct or indirect.",
        "mistral.ai/licenses/MRL-0.1.md",
        r"Mistral AI Research License",
    ),
    Terms(
        ("mnpl", "mistral-ai-non-production", "mnpl-0.1"),
        "Mistral AI Non-Production License",
        "non_commercial",
        "Weights, derivatives and outputs are for tests, research and evaluation, not for production.",
        "mistral.ai/licenses/MNPL-0.1.md",
        r"Mistral AI Non-Production License",
    ),
    Terms(
        ("deepseek", "deepseek-license"),
        "DeepSeek License Agreement 1.0 (V2, first V3; later ones are MIT)",
        "duties",
        "Derivatives include models made by distilling outputs: pass on the use restrictions of its attachment A.",
        "sections 1 and 5 and attachment A of its LICENSE-MODEL",
        r"DEEPSEEK LICENSE AGREEMENT",
    ),
    Terms(
        ("openrail", "bigscience-openrail-m", "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "openrail++"),
        "OpenRAIL-M",
        "duties",
        "A model made from outputs to perform alike counts as a derivative: pass on the use restrictions.",
        "sections 1 and 4 and attachment A of its text",
        r"RAIL-M|Responsible AI License",
    ),
    Terms(
        ("nvidia-open-model-license", "nvidia-open-model-agreement"),
        "NVIDIA Open Model License",
        "duties",
        "NVIDIA claims no outputs and allows derivatives; pass the agreement and its notice on with them, and keep the"
        " guardrails.",
        "sections 2 and 3 of its text at nvidia.com/en-us/agreements",
        r"NVIDIA Open Model License",
    ),
    Terms(
        ("tencent-hunyuan", "tencent-hunyuan-community"),
        "Tencent Hunyuan Community License",
        "own_family",
        "Outputs may not improve a language model that is not Hunyuan or derived from it; none is granted in the EU, UK"
        " and South Korea.",
        "sections 1 and 5 of its LICENSE",
        r"TENCENT HUNYUAN COMMUNITY LICENSE",
    ),
    Terms(
        ("openai", "openai-terms", "gpt-4", "gpt-4o", "chatgpt"),
        "OpenAI's terms for its services (its open weights, gpt-oss, are Apache 2.0)",
        "forbidden",
        "Outputs may not be used to develop models that compete with OpenAI.",
        "`What you cannot do` in openai.com/policies/terms-of-use, and the services agreement for business",
    ),
    Terms(
        ("anthropic", "anthropic-terms", "claude"),
        "Anthropic's commercial terms",
        "forbidden",
        "The services may not be used to build a competing product or to train competing models.",
        "the use restrictions at anthropic.com/legal/commercial-terms",
    ),
    Terms(
        ("google-api", "gemini", "gemini-api"),
        "Google's Gemini API terms",
        "forbidden",
        "The services may not be used to develop models that compete with them.",
        "`Use restrictions` at ai.google.dev/gemini-api/terms",
    ),
)
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
    """The teacher's licence, and what told it."""

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
            f"{concern.text}. Choose another, or set licence_policy=warn where you may all the same: nothing here is"
            " commercial, say, or you hold another licence"
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
