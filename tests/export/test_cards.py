"""What cards say of use, licences, personal data and safety: from the manifests, and nothing that they don't hold."""

import json
from typing import Any

import pytest
from huggingface_hub import ModelCard
from support.fabricated_run import scores

from pipeline import export
from pipeline.export import cards
from pipeline.report.tables import prepared
from pipeline.run.rundir import RunDir


def told(run_dir: RunDir, stage: str, **facts: Any) -> None:
    """Facts put into a manifest as the stage writes them."""
    path = run_dir.stage_path(stage) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


SCREENED = {
    "privacy": {"kinds": ["email", "card"], "prompts": "redact", "answers": "mask", "phone_regions": ["US"]},
    "safety": {
        "words": "shipped",
        "classifier": None,
        "guard_model": "Guard-1",
        "max_prompt_score": None,
        "max_answer_score": 0.5,
    },
}


def test_licences_are_told_with_what_they_mean(run_dir: RunDir) -> None:
    sources = [
        {"source": "seeds.jsonl", "licence": "cc-by-4.0", "prompts": 5},
        {"source": "mine.csv", "licence": None, "prompts": 1},
    ]
    told(
        run_dir,
        "prepare",
        licences={"teacher": {"licence": "llama3.1", "told_by": "its model card"}, "sources": sources},
    )
    text = cards.licences_section(run_dir)
    assert "| teacher: ./no-such-teacher | llama3.1 |  | training on outputs is allowed, with duties. " in text
    assert "begins its name with `Llama`" in text
    assert "| seeds.jsonl | cc-by-4.0 | 5 | training on outputs is allowed, with duties. Name the authors" in text
    assert "| mine.csv | not known | 1 | not in Retort's table: read it |" in text
    assert "comes from its model card" in text
    assert "no lawyers" in text


def test_a_card_says_what_the_chat_template_does_not_take(run_dir: RunDir) -> None:
    assert cards.template_section(run_dir) == ""
    told(run_dir, "prepare", chat_template={"takes_system": False, "takes_any_order": True})
    text = cards.template_section(run_dir)
    assert "takes no system message" in text
    assert "take turns" not in text
    told(run_dir, "prepare", chat_template={"takes_system": True, "takes_any_order": False})
    assert "take turns" in cards.template_section(run_dir)


def test_a_licence_that_the_config_names_later_wins(run_dir: RunDir) -> None:
    told(run_dir, "prepare", licences={"teacher": {"licence": None, "told_by": "nothing in its folder"}, "sources": []})
    path = run_dir.path / "config.yaml"
    path.write_text(path.read_text().replace("licence: null", "licence: mit", 1))
    assert "| mit |" in cards.licences_section(run_dir)


def test_a_pruned_teacher_is_of_its_family(run_dir: RunDir) -> None:
    told(run_dir, "prepare", licences={"teacher": {"licence": "llama3", "told_by": "its LICENSE"}, "sources": []})
    assert "allowed, with duties" in cards.licences_section(run_dir)


def test_personal_data_is_told_with_what_became_of_it(run_dir: RunDir) -> None:
    prompts = {"personal": 3, "labelled": 0, "dropped_personal": 0, "dropped_unsafe": 0}
    told(run_dir, "prepare", screening={**SCREENED, "personal": {"email": 4}, "labels": {}, "prompts": prompts})
    told(
        run_dir,
        "filter",
        screening={**SCREENED, "personal": {}, "labels": {}, "answers": {"personal": 0, "labelled": 0}},
    )
    text = cards.personal_section(run_dir, "Handed on so.")
    assert "Looked for, by shape and check digit: email, card." in text
    assert "- Prompts: found in 3 (email 4); replaced by placeholders before the teacher read them" in text
    assert "- Answers: found in none\n" in text
    assert "- Handed on so." in text


def test_what_was_looked_for_is_told_of_prompts_and_answers_by_the_stage_that_looked(run_dir: RunDir) -> None:
    """Filter looked anew, with Presidio; prepare had none."""
    on = {"model": "en_core_web_sm", "entities": ["PERSON"], "min_score": 0.4}
    beside = SCREENED["privacy"] | {"kinds": ["email"], "presidio": on}
    told(run_dir, "prepare", screening={**SCREENED, "personal": {}, "labels": {}, "prompts": {"personal": 0}})
    counts = {"personal": {}, "labels": {}, "answers": {"personal": 0}}
    told(run_dir, "filter", screening={**SCREENED, "privacy": beside, **counts})
    text = cards.personal_section(run_dir)
    assert "Looked for in prompts, by shape and check digit: email, card. Names, street addresses and other" in text
    assert "Looked for in answers, by shape and check digit: email. By Microsoft Presidio, with the spaCy" in text
    shown = prepared.described(run_dir)
    assert shown["sought"] == "email, card"
    assert "Presidio" not in shown["sought_beyond"]
    told(run_dir, "filter", screening={**SCREENED, "privacy": beside | {"answers": "off"}, **counts})
    assert "Presidio" not in cards.personal_section(run_dir)
    assert "Looked for in prompts, by" in cards.personal_section(run_dir)


def test_labels_are_told_with_who_gave_them(run_dir: RunDir) -> None:
    labels = {"words:violence": 2, "guard:S1": 1}
    told(run_dir, "prepare", screening={**SCREENED, "personal": {}, "labels": {}, "prompts": {"personal": 0}})
    told(run_dir, "filter", screening={**SCREENED, "personal": {}, "labels": labels, "answers": {"personal": 0}})
    text = cards.safety_section(run_dir)
    assert "- Prompts, by word list (shipped), guard Guard-1: none; labels alone drop nothing" in text
    assert (
        "- Answers, by word list (shipped), guard Guard-1: guard:S1 1, words:violence 2; a score above 0.5 drops"
        in text
    )


def test_what_an_earlier_version_did_not_record_is_not_claimed(run_dir: RunDir) -> None:
    for stage in ("prepare", "filter"):
        path = run_dir.stage_path(stage) / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in manifest.items() if k not in ("screening", "licences")}))
    text = cards.licences_section(run_dir) + cards.personal_section(run_dir) + cards.safety_section(run_dir)
    assert text.count("did not record it") == 5
    assert "found in none" not in text


def test_differences_are_those_that_were_measured() -> None:
    text = cards.differences(scores())
    assert "| | student | sft only | untrained | other | teacher |" in text
    assert "| forward KL, nats a token |" in text
    bare = {"arms": {"student": {"fidelity": {}}, "teacher": {}}}
    assert "forward KL" not in cards.differences(bare)


@pytest.mark.parametrize("kind", ["corpus", "model"])
def test_a_reviews_questions_are_answered_or_left_to_people(run_dir: RunDir, kind: str) -> None:
    text = cards.questions(run_dir, kind)
    for part in ("MAP 1.1", "MEASURE 2.10", "A.7.5", "4 of 6 answers were kept", "for you to write"):
        assert part in text
    assert ("MEASURE 2.3" in text) == (kind == "model")


def _model_card(run_dir: RunDir, scored: dict[str, Any]) -> str:
    made = {"train.divergence": "forward_kl", "train.alpha": None, "train.beta": None, "train.temperature": 1}
    made |= {"train.targets": "stored", "train.tail": "bucket", "train.ce_weight": 0.5, "train.ce_weight_end": None}
    made |= {"train.kd_weight": 0.5, "train.kd_weight_end": None, "student.model": None, "student.keep_layers": "0-5"}
    trained: Any = {**run_dir.manifest("train"), "fingerprint": made}
    return str(export._card(run_dir, scored, trained, "bfloat16"))


def test_the_model_cards_index_has_the_reports_figures(run_dir: RunDir) -> None:
    scored = scores()
    scored["arms"]["student"]["harness"] = {"gsm8k_exact_match": {"value": 0.25, "low": None, "high": None, "num": 9}}
    index: Any = ModelCard(_model_card(run_dir, scored)).data
    assert index.model_name == run_dir.path.name
    found = {result.metric_type: result for result in index.eval_results or []}
    kl = scored["arms"]["student"]["fidelity"]["forward_kl_nats"]
    assert found["forward_kl_nats"].metric_value == pytest.approx(kl["value"])
    assert f"{kl['low']:.4g} to {kl['high']:.4g}" in (found["forward_kl_nats"].metric_name or "")
    assert found["forward_kl_nats"].dataset_name == "held-out prompts of the run (48)"
    assert found["task_pass_frac"].metric_value == scored["arms"]["student"]["quality"]["task_pass_frac"]["value"]
    assert found["gsm8k_exact_match"].metric_value == 0.25
    assert "interval" not in (found["gsm8k_exact_match"].metric_name or "")
    scored["arms"]["student"] = {"fidelity": {"forward_kl_nats": None}}
    bare: Any = ModelCard(_model_card(run_dir, scored)).data
    assert not bare.eval_results


def test_the_model_card_has_all_of_it(run_dir: RunDir) -> None:
    text = _model_card(run_dir, scores())
    for part in (
        "## Intended use",
        "## Sources and licences",
        "## Personal data",
        "## Safety labels",
        "## What a review",
    ):
        assert part in text
