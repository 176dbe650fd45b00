"""Microsoft Presidio as a further finder: names, as a spaCy pipeline tells them, and numbers that its patterns know.

Off unless `privacy.presidio.model` names a pipeline, which is loaded from this machine and never downloaded.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from pipeline.config import Presidio
from pipeline.errors import UserError
from pipeline.run.files import first_line, folder_hash

MAX_CHARS = 20_000  # that are looked at together: memory grows with them
WORD_OF_A_CALL = re.compile(r"[a-z][A-Za-z_-]*")  # `role`, `user`, `getWeather`: a model may take them for names
PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9_]*>")


def find(text: str, settings: Presidio) -> Iterator[tuple[int, int, str]]:
    """Start, end and kind (Presidio's entity in small letters) of each find, in characters; none where it is off.

    Texts longer than MAX_CHARS are looked at in pieces, cut at lines or words. Raises UserError as `_loaded` does.
    """
    if settings.model is None or not text.strip() or WORD_OF_A_CALL.fullmatch(text):
        return
    analyzer, nlp = _loaded(settings.model, settings.entities)
    placeholders = [match.span() for match in PLACEHOLDER.finditer(text)]
    entities = list(settings.entities)
    for first, piece in _pieces(text):
        for found in analyzer.analyze(piece, nlp.lang, entities=entities, score_threshold=settings.min_score):
            start, end = first + found.start, first + found.end
            if not any(opens <= start and end <= closes for opens, closes in placeholders):
                yield start, end, found.entity_type.lower()


def fingerprint(settings: Presidio) -> dict[str, Any]:
    """The settings, versions and the pipeline's hash; nothing where it is off. Raises UserError as `_loaded` does."""
    if settings.model is None:
        return {}
    _, nlp = _loaded(settings.model, settings.entities)
    return {
        **settings.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("presidio-analyzer", "spacy")},
        "model.hash": folder_hash(nlp.path) if nlp.path else None,  # of a blank one spaCy's version is all there is
    }


@lru_cache(maxsize=2)
def _loaded(model: str, entities: tuple[str, ...]) -> tuple[Any, Any]:
    """Presidio's analyzer, and the spaCy pipeline that is `model`, whose language is that of the analyzer.

    Raises UserError where Presidio is not installed, the pipeline is not on this machine, or an entity is known to
    neither of them.
    """
    Presidio(model=model, entities=entities).check_installed()
    from presidio_analyzer import AnalyzerEngine  # pyright: ignore[reportMissingImports]
    from presidio_analyzer.nlp_engine import (  # pyright: ignore[reportMissingImports]
        NerModelConfiguration,
        SpacyNlpEngine,
    )

    nlp = _pipeline(model)
    labels = _names_labels(nlp)
    known = NerModelConfiguration().model_to_presidio_entity_mapping or {}
    told = {label: known[label] for label in labels if label in known}
    engine = SpacyNlpEngine(
        ner_model_configuration=NerModelConfiguration(
            model_to_presidio_entity_mapping=told or known, labels_to_ignore=labels - told.keys()
        )
    )
    engine.nlp = {nlp.lang: nlp}  # given: what the engine loads by itself it may download
    analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=[nlp.lang])
    if not told:
        analyzer.registry.remove_recognizer("SpacyRecognizer")
    has = analyzer.get_supported_entities(nlp.lang)
    if unknown := [entity for entity in entities if entity not in has]:
        raise UserError(
            f"privacy.presidio.entities: neither {model} nor Presidio, in its language ({nlp.lang}), finds"
            f" {unknown[0]}; they find {', '.join(sorted(set(has) - Presidio.OURS.keys()))}"
        )
    return analyzer, nlp


def _pipeline(name: str) -> Any:
    """A spaCy pipeline from this machine; all tokens have a lemma, by which Presidio knows the words near a find."""
    import spacy  # pyright: ignore[reportMissingImports]
    from spacy.language import Language  # pyright: ignore[reportMissingImports]

    try:
        nlp = spacy.load(name)
    except Exception as error:  # each part of a pipeline checks in ways of its own
        raise UserError(
            f"privacy.presidio.model {name}: no spaCy pipeline can be loaded from it ({first_line(error)}); name a"
            " folder, an installed package, or blank:en, which finds no names"
        ) from None
    Language.component("words_as_lemmas", func=_words_as_lemmas)
    nlp.add_pipe("words_as_lemmas", last=True)
    return nlp


def _words_as_lemmas(doc: Any) -> Any:
    for token in doc:
        token.lemma_ = token.lemma_ or token.lower_
    return doc


def _names_labels(nlp: Any) -> set[str]:
    """The labels of the pipeline's components that tell names."""
    of_names = (name for name in nlp.pipe_names if "doc.ents" in nlp.get_pipe_meta(name).assigns)
    return {label for name in of_names for label in nlp.pipe_labels.get(name, ())}


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Where each piece begins, and the piece."""
    first = 0
    while first < len(text):
        end = first + MAX_CHARS
        if end < len(text):
            end = text.rfind("\n", first, end) + 1 or text.rfind(" ", first, end) + 1 or end
        yield first, text[first:end]
        first = end
