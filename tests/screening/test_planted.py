"""360 planted items through prepare and filter as a run has them, and what train then reads: none of them is learnt."""

import json

import pytest
from support.planted_personal import KINDS, LOOK_ALIKES, NUM, items
from support.planted_run import YES, Run, examples, learnt

from pipeline.config import Privacy, Train
from pipeline.export import corpus
from pipeline.screening.privacy import find
from pipeline.train.batches import collate_items
from pipeline.train.contract import proof_batch
from pipeline.train.targets import IGNORED


@pytest.fixture(scope="module", params=["bytes", "demo"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """By tokens that are bytes, and by the demo teacher's."""
    from transformers import AutoTokenizer

    folder = request.getfixturevalue("byte_tokenizer" if request.param == "bytes" else "demo_teacher")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Run(tmp_path_factory.mktemp(request.param), tokenizer).prepared().filtered()


def test_no_prompt_that_the_teacher_is_given_holds_an_item(run: Run) -> None:
    prompts = run.prompts()
    assert len(prompts) == 6 * NUM + len(LOOK_ALIKES)
    for item, prompt in zip(run.planted, prompts, strict=False):
        rendered = run.tokenizer.decode(prompt["prompt_token_ids"])
        [message] = prompt["messages"]
        for text in (rendered, message["content"]):
            assert item.secret not in text
            assert f"<{item.kind.upper()}>" in text
            assert find(text, Privacy()) == []
        assert dict(prompt["redacted"]) == {item.kind: 1}
    for text, prompt in zip(LOOK_ALIKES, prompts[6 * NUM :], strict=True):
        assert prompt["messages"][0]["content"].endswith(text)
        assert prompt["redacted"] == []
    manifest = run.run_dir.manifest("prepare")["screening"]
    assert manifest["personal"] == dict.fromkeys(KINDS, NUM)
    assert manifest["prompts"]["personal"] == 6 * NUM


def test_every_item_is_found_in_its_answer_and_nothing_else_is(run: Run) -> None:
    kinds = [[span["kind"] for span in decision["masked_spans"]] for decision in run.decisions()]
    assert kinds == [*([item.kind] for item in run.planted), *([] for _ in LOOK_ALIKES)]
    assert all(decision["kept"] for decision in run.decisions())
    assert run.run_dir.manifest("filter")["screening"]["personal"] == dict.fromkeys(KINDS, NUM)


@pytest.mark.parametrize(
    "settings",
    [
        Train(batch_size=7),
        Train(batch_size=3, pack_tokens=2048),
        Train(batch_size=7, positions_frac=0.5),
        Train(batch_size=7, reasoning="mask"),
        Train(batch_size=3, pack_tokens=2048, reasoning="drop"),
        Train(batch_size=7, tail="label"),
    ],
    ids=["padded", "packed", "positions", "reasoning masked", "reasoning dropped", "label"],
)
def test_no_label_that_train_reads_spells_any_part_of_an_item(run: Run, settings: Train) -> None:
    secrets = {item.secret for item in run.planted}
    num_pieces = 0
    for input_ids, labels in examples(run, settings):
        whole = run.tokenizer.decode(input_ids)
        is_planted = any(secret in whole for secret in secrets)
        for piece in learnt(run, labels):
            num_pieces += 1
            assert not any(secret in piece for secret in secrets)
            if is_planted or settings.positions_frac == 1:  # half a look-alike may look like something else
                assert find(piece, Privacy()) == []
    assert num_pieces > 6 * NUM / 2


def test_all_else_is_learnt(run: Run) -> None:
    """Of each answer what stands before and after the item, but for letters that share a token with it."""
    answers, settings = run.answers(), Train(batch_size=1)
    seen = 0
    for number in range(len(answers)):
        row = answers[number]
        which = run.number_of(row)
        batch = collate_items([{"rows": [number]}], answers, 0, len(run.tokenizer), settings)
        labels = batch["labels"][0].tolist()[len(row["prompt_token_ids"]) :]
        masked = [place for place, label in enumerate(labels) if label == IGNORED]
        if which >= len(run.planted):
            assert masked == []
            continue
        item, seen = run.planted[which], seen + 1
        assert masked == list(range(masked[0], masked[-1] + 1))
        before, after = (
            run.tokenizer.decode(ids) for ids in (row["token_ids"][: masked[0]], row["token_ids"][masked[-1] + 1 :])
        )
        rest = item.after + (YES if which % 2 else "") + run.tokenizer.eos_token
        assert item.before.startswith(before)
        assert rest.endswith(after)
        assert len(item.before) - len(before) + len(rest) - len(after) <= 24
        assert batch["teacher_ids_NK"][:, 0].tolist() == [label for label in labels if label != IGNORED]
    assert seen == 6 * NUM


def test_the_proof_before_training_learns_nothing_of_them_either(run: Run) -> None:
    batch = proof_batch(run.answers(), len(run.tokenizer))
    assert len(batch["token_logprobs_N"]) == len(batch["teacher_ids_NK"]) == int((batch["labels"] != IGNORED).sum())
    for labels in batch["labels"].tolist():
        assert all(find(piece, Privacy()) == [] for piece in learnt(run, labels))


def test_what_is_masked_stays_as_context(run: Run) -> None:
    """Said, not hidden: a later token is predicted from all that the teacher saw."""
    item = run.planted[2 * NUM]
    rows = [row for row in run.answers() if run.number_of(row) == 2 * NUM]
    assert item.secret in run.tokenizer.decode(rows[0]["token_ids"])


def test_the_exported_corpus_has_placeholders_in_their_place(run: Run) -> None:
    import pyarrow.dataset as ds

    folder = corpus.write(run.run_dir)
    rows = ds.dataset(folder / "data", format="parquet").to_table().to_pylist()
    assert len(rows) == 6 * NUM + len(LOOK_ALIKES)
    placed = 0
    for row in rows:
        which = run.number_of(row)
        text = json.dumps(row, ensure_ascii=False)
        if which < len(run.planted):
            item = run.planted[which]
            assert item.secret not in text
            assert json.dumps(item.secret)[1:-1] not in text
            told = row["messages"][-1]
            placed += f"<{item.kind.upper()}>" in (told["content"] + (told["reasoning_content"] or ""))
    assert placed == 6 * NUM
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{6 * NUM} have placeholders; 0 more were left out" in card


def test_what_goes_with_token_ids_leaves_answers_with_items_out(run: Run) -> None:
    import pyarrow.dataset as ds

    folder = corpus.write(run.run_dir, with_logprobs=True)
    rows = ds.dataset(folder / "data", format="parquet").to_table().to_pylist()
    assert [run.number_of(row) - 6 * NUM for row in rows] == list(range(len(LOOK_ALIKES)))
    assert f"0 have placeholders; {6 * NUM} more were left out" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_sample_of_kinds_is_whole() -> None:
    assert [sum(item.kind == kind for item in items()) for kind in KINDS] == [NUM] * 6
