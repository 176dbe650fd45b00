"""What a student is made of: chosen layers, a vocabulary of another padding, random weights; and what is refused."""

import copy
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.fabricated_run import make as fabricated
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline import train
from pipeline.config import Config, validate
from pipeline.errors import UserError
from pipeline.export import corpus
from pipeline.models import language_model, lookup, pruning
from pipeline.run.rundir import RunDir
from pipeline.train import layers, student

TOKENS, VOCAB = 20, 24  # tokens of the tokenizer; rows of the teacher, padding included
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant "
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
IDS = torch.randint(1, TOKENS, (2, 12), generator=torch.Generator().manual_seed(0))


def built(kind: str, layers: int = 6, seed: int = 0, **changes: Any) -> Any:
    """A small random model of a kind, such as Qwen2."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, "num_hidden_layers": layers, **changes})
    attention = language_model.attention_of(config)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits


def reloaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return student.load(folder).eval()


class Rows:
    """Answers that are read one by one: with a length, and nothing else that a list has."""

    def __init__(self, num: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.rows = [
            {
                "prompt_token_ids": torch.randint(1, TOKENS, (2 + n % 3,), generator=generator).tolist(),
                "token_ids": torch.randint(1, TOKENS, (3 + n % 5,), generator=generator).tolist(),
            }
            for n in range(num)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


# --- which layers


@pytest.mark.parametrize(
    ("of", "num", "by_ends", "by_evenly"),
    [
        (6, 1, [0], [0]),
        (6, 2, [0, 5], [0, 5]),
        (6, 3, [0, 1, 5], [0, 3, 5]),
        (9, 5, [0, 1, 2, 7, 8], [0, 2, 4, 6, 8]),
        (4, 4, [0, 1, 2, 3], [0, 1, 2, 3]),
        (1, 1, [0], [0]),
    ],
)
def test_both_ends_and_evenly(of: int, num: int, by_ends: list[int], by_evenly: list[int]) -> None:
    assert pruning.ends(of, num) == by_ends
    assert pruning.evenly(of, num) == by_evenly


def test_every_number_of_layers_can_be_chosen_and_none_twice() -> None:
    for of in range(2, 41):
        for num in range(2, of + 1):
            for chosen in (pruning.ends(of, num), pruning.evenly(of, num)):
                assert len(chosen) == num
                assert chosen == sorted(set(chosen))
                assert (chosen[0], chosen[-1]) == (0, of - 1)
            gaps = {b - a for a, b in itertools.pairwise(chosen)}
            assert max(gaps) - min(gaps) <= 1


def test_the_most_influential_layers_stay_in_their_order() -> None:
    assert layers.most_influential([0.5, 0.1, 0.9, 0.1, 0.7], 3) == [0, 2, 4]
    assert layers.most_influential([0.1, 0.1, 0.1], 2) == [0, 1]


def by_hand(model: LlamaForCausalLM, rows: Rows) -> list[float]:
    """Block influence, written out for Llama: layer by layer, with a causal mask of its own."""
    distances: list[list[float]] = [[] for _ in model.model.layers]
    for index in range(len(rows)):
        ids = torch.tensor([rows[index]["prompt_token_ids"] + rows[index]["token_ids"]])
        hidden: Any = model.model.embed_tokens(ids)
        places = torch.arange(ids.shape[1])[None]
        rotary = model.model.rotary_emb(hidden, places)
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)[None, None]
        for place, layer in enumerate(model.model.layers):
            after: Any = layer(hidden, attention_mask=mask, position_ids=places, position_embeddings=rotary)
            for x, y in zip(hidden[0], after[0], strict=True):
                distances[place].append(1 - float(x @ y / (x @ x).sqrt() / (y @ y).sqrt()))
            hidden = after
    return [sum(of_layer) / len(of_layer) for of_layer in distances]


def test_block_influence_is_what_a_loop_through_the_layers_gives() -> None:
    model, rows = built("Llama", layers=4), Rows(7)
    with torch.no_grad():
        model.model.norm.weight.mul_(torch.linspace(-3, 3, 16))  # the final norm has no part in the last layer's
        wanted = by_hand(model, rows)
    assert layers.block_influence(model, rows) == pytest.approx(wanted, abs=1e-5)
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_a_layer_that_does_nothing_has_no_influence_and_goes_first(capsys: pytest.CaptureFixture[str]) -> None:
    model = built("Llama", layers=4)
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    wanted, settings = logits(model), Config(name="x").student.model_copy(update={"num_layers": 3})
    pruned, facts = student.prune(model, settings.model_copy(update={"choose_layers": "influence"}), Rows(5))
    assert facts["layers"] == [0, 1, 3]
    assert facts["block_influence"][2] == pytest.approx(0, abs=1e-6)
    assert min(facts["block_influence"][place] for place in (0, 1, 3)) > 0.01
    torch.testing.assert_close(logits(pruned), wanted)
    assert "the student keeps layers 0-1,3 of 4, by influence (all, from 0: " in capsys.readouterr().err


def test_of_many_answers_some_are_measured_spread_over_all() -> None:
    read = []

    class Counted(Rows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            read.append(index)
            return super().__getitem__(index)

    layers.block_influence(built("Llama", layers=2), Counted(200))
    assert len(set(read)) == layers.NUM_MEASURED
    assert max(read) > 180


# --- pruned


FAMILIES = {
    "Llama": {},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    "Qwen3": {
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 6,
        "layer_types": ["full_attention", "sliding_attention"] * 3,
    },
    "Gemma2": {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "Gemma3Text": {"sliding_window": 4, "query_pre_attn_scalar": 8, "layer_types": None},
    "SmolLM3": {"no_rope_layers": [1, 1, 0, 1, 0, 0], "use_sliding_window": False},
    "Qwen3Moe": {"mlp_only_layers": [0, 3], "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("kept", [[0, 1, 4, 5], [2, 3, 5], [1]])
def test_a_pruned_model_loads_as_the_whole_one_that_leaves_layers_out(
    tmp_path: Path, kind: str, kept: list[int]
) -> None:
    """Independently: the whole model, in which each layer that goes hands on what it is given."""
    model = built(kind, **FAMILIES[kind])
    handles = [
        layer.register_forward_hook(lambda layer, args, output: args[0])
        for place, layer in enumerate(model.model.layers)
        if place not in kept
    ]
    wanted = logits(model)
    for handle in handles:
        handle.remove()
    assert not torch.allclose(logits(model), wanted, atol=1e-2)
    pruned: Any = student.keep_layers(model, kept)
    torch.testing.assert_close(logits(pruned), wanted)
    loaded = reloaded(pruned, tmp_path / "pruned")
    torch.testing.assert_close(logits(loaded), wanted)
    assert [layer.self_attn.layer_idx for layer in pruned.model.layers] == list(range(len(kept)))
    loaded.generate(IDS, max_new_tokens=6, do_sample=False)  # the cache is indexed by layer_idx


def test_what_a_config_says_of_each_layer_goes_with_the_layer(tmp_path: Path) -> None:
    def saved(kind: str, kept: list[int]) -> dict[str, Any]:
        student.keep_layers(built(kind, **FAMILIES[kind]), kept).save_pretrained(tmp_path / kind)
        return json.loads((tmp_path / kind / "config.json").read_text())

    full, sliding = "full_attention", "sliding_attention"
    qwen2 = saved("Qwen2", [0, 2, 4, 5])
    assert (qwen2["num_hidden_layers"], qwen2["max_window_layers"]) == (4, 2)
    assert qwen2["layer_types"] == [full, full, sliding, sliding]
    qwen3 = saved("Qwen3", [0, 2, 3])
    assert (qwen3["max_window_layers"], qwen3["layer_types"]) == (3, [full, full, sliding])
    assert saved("SmolLM3", [0, 2, 5])["no_rope_layers"] == [1, 0, 0]
    assert saved("Qwen3Moe", [1, 3, 4])["mlp_only_layers"] == [1]


def test_a_list_that_is_as_long_by_chance_is_left_alone() -> None:
    model = built("Llama", layers=2, eos_token_id=[2, 3])
    assert student.keep_layers(model, [1]).config.eos_token_id == [2, 3]


def test_layers_that_would_be_of_another_kind_where_they_come_to_stand_are_refused() -> None:
    moe = {**FAMILIES["Qwen3Moe"], "mlp_only_layers": [], "decoder_sparse_step": 2}
    assert student.keep_layers(built("Qwen3Moe", **moe), [0, 1, 4, 5]).config.num_hidden_layers == 4
    with pytest.raises(UserError, match="qwen3_moe puts layers of another kind in the places of 0-1,3"):
        student.keep_layers(built("Qwen3Moe", **moe), [0, 1, 3])


def test_a_layer_the_model_does_not_have_is_named() -> None:
    with pytest.raises(UserError, match="layer 9"):
        student.keep_layers(built("Llama", layers=2), [0, 9])


def test_layers_of_another_name_are_found_and_those_that_are_not_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    folder = tmp_path / "gpt2"
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2}
    AutoModelForCausalLM.from_config(transformers.GPT2Config(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gpt2 = lookup.find(str(folder))
    whole, _ = made(gpt2, tmp_path / "whole")
    assert torch.equal(logits(whole), logits(student.load(folder)))
    pruned: Any = student.keep_layers(copy.deepcopy(whole), [1])
    assert pruned.config.num_hidden_layers == 1
    whole.transformer.h = torch.nn.Sequential(*whole.transformer.h)
    with pytest.raises(UserError, match="gpt2 models can't be pruned: Retort does not find their layers"):
        student.keep_layers(whole, [0])


# --- vocabularies of one tokenizer, padded to different sizes


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"tie_word_embeddings": False}),
        ("Phi", {"tie_word_embeddings": False}),  # its lm_head has a bias
        ("Gemma3Text", {"pad_token_id": VOCAB + 7}),
    ],
    ids=["tied", "untied", "bias", "padding outside"],
)
def test_a_cut_vocabulary_changes_no_tokens_logit(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    model = built(kind, layers=2, **{"vocab_size": VOCAB + 8, **changes})
    if kind == "Phi":
        torch.nn.init.normal_(model.lm_head.bias)
    before, rows = logits(model), model.get_output_embeddings().weight[:VOCAB].clone()
    assert student.cut_vocabulary(model, VOCAB) == 8
    loaded = reloaded(model, tmp_path / "cut")
    assert loaded.config.vocab_size == VOCAB
    for weight in (loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight):
        assert weight.shape[0] == VOCAB
    assert torch.equal(loaded.get_output_embeddings().weight, rows)
    after = logits(loaded)
    torch.testing.assert_close(after, before[..., :VOCAB], rtol=0, atol=1e-6)
    p, q = before[..., :TOKENS].log_softmax(-1), after[..., :TOKENS].log_softmax(-1)  # over tokens alone
    assert (p.exp() * (p - q)).sum(-1).abs().max() < 1e-6


@pytest.mark.parametrize("vocab_size", [VOCAB, VOCAB - 3])
def test_a_vocabulary_that_is_no_larger_is_left_as_it_is(vocab_size: int) -> None:
    model = built("Llama", layers=1, vocab_size=vocab_size)
    before = copy.deepcopy(model.state_dict())
    assert student.cut_vocabulary(model, VOCAB) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- made, as train has it


@pytest.fixture
def tokenizer() -> Any:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    words = ["<pad>", "<s>", "</s>", "system", "user", "assistant", *(f"w{n}" for n in range(TOKENS - 6))]
    cutter: Any = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<pad>"))
    cutter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=cutter, chat_template=TEMPLATE, **special)


@pytest.fixture
def teacher(tmp_path: Path, tokenizer: Any) -> lookup.Model:
    return saved_model(tmp_path / "teacher", tokenizer)


def saved_model(folder: Path, tokenizer: Any, **changes: Any) -> lookup.Model:
    model = built("Llama", **changes)
    model.generation_config.eos_token_id = [2, 5]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return lookup.find(str(folder))


def config_of(teacher: lookup.Model, **settings: Any) -> Config:
    sections = {"teacher": {"model": teacher.name}, "student": settings, "generate": {"k": 4}}
    return validate({"name": "trial", **sections}, "test")


def made(teacher: lookup.Model, target: Path, rows: Any = None, **settings: Any) -> tuple[Any, dict[str, Any]]:
    facts = student.make(config_of(teacher, **settings), teacher, target, rows)
    assert lookup.find(str(target)).tokenizer().get_vocab() == teacher.tokenizer().get_vocab()
    return student.load(target).eval(), facts


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"keep_layers": "0,4-5"}, [0, 4, 5]),
        ({"num_layers": 3}, [0, 1, 5]),
        ({"num_layers": 3, "choose_layers": "evenly"}, [0, 3, 5]),
    ],
)
def test_the_teacher_is_pruned_as_asked(
    tmp_path: Path, teacher: lookup.Model, settings: dict[str, Any], kept: list[int]
) -> None:
    model, facts = made(teacher, tmp_path / "student", **settings)
    pruned = {"of_layers": 6, "layers": kept} if settings else {}
    assert facts == {**pruned, "vocabulary_rows_cut": 0}
    wanted = student.keep_layers(student.load(teacher.path), kept)
    assert torch.equal(logits(model), logits(wanted))
    said = lookup.kept_layers({"student": facts})  # as report and card have it
    assert said == (settings.get("keep_layers") or lookup.layer_spans(kept) if settings else None)


def test_layers_are_measured_on_the_rows(tmp_path: Path, teacher: lookup.Model) -> None:
    rows = Rows(6)
    wanted = layers.block_influence(student.load(teacher.path), rows)
    _, facts = made(teacher, tmp_path / "student", rows, num_layers=2, choose_layers="influence")
    assert facts["block_influence"] == pytest.approx(wanted, rel=1e-3)
    assert facts["layers"] == sorted(sorted(range(6), key=lambda layer: -wanted[layer])[:2])


def test_a_student_of_the_family_is_cut_to_the_teachers_rows_and_stops_where_it_does(
    tmp_path: Path, teacher: lookup.Model, tokenizer: Any
) -> None:
    small = saved_model(tmp_path / "small", tokenizer, layers=2, vocab_size=VOCAB + 8, seed=3)
    (small.path / "generation_config.json").write_text('{"eos_token_id": 1}')  # as a base model's
    model, facts = made(teacher, tmp_path / "student", model=small.name, num_layers=1)
    assert facts == {"of_layers": 2, "layers": [0], "vocabulary_rows_cut": 8}
    assert model.config.vocab_size == VOCAB
    assert model.generation_config.eos_token_id == [2, 5]


def test_a_student_is_given_rows_for_a_token_that_is_not_used(
    tmp_path: Path, teacher: lookup.Model, tokenizer: Any
) -> None:
    """A teacher was given a padding token of its own; the student's family has none."""
    small = saved_model(tmp_path / "small", tokenizer, layers=2, vocab_size=TOKENS, seed=3)
    tokenizer.add_special_tokens({"pad_token": "<mine>"})
    tokenizer.save_pretrained(teacher.path)
    model, facts = made(teacher, tmp_path / "student", model=small.name)
    assert facts == {"vocabulary_rows_cut": 0}
    assert model.config.vocab_size == TOKENS + 1 == len(lookup.Model("", tmp_path / "student").tokenizer())
    torch.testing.assert_close(logits(model)[..., :TOKENS], logits(student.load(small.path)), rtol=0, atol=1e-6)
    again, _ = made(teacher, tmp_path / "again", model=small.name)
    assert torch.equal(logits(again), logits(model))


def test_a_teacher_with_fewer_rows_than_tokens_is_its_own_student(
    tmp_path: Path, teacher: lookup.Model, tokenizer: Any
) -> None:
    """As Gemma 3's text models: a token for images, which they have no row for."""
    tokenizer.add_tokens([f"<image {n}>" for n in range(VOCAB + 1 - TOKENS)])
    tokenizer.save_pretrained(teacher.path)
    lookup.check_student(config_of(teacher), teacher, teacher.tokenizer())
    model, _ = made(teacher, tmp_path / "student")
    assert model.config.vocab_size == VOCAB == len(tokenizer) - 1


def test_random_weights_follow_from_config_and_seed(tmp_path: Path, teacher: lookup.Model, tokenizer: Any) -> None:
    folder = tmp_path / "new"
    LlamaConfig(**{**SIZES, "num_hidden_layers": 3, "eos_token_id": 9, "pad_token_id": 4}).save_pretrained(folder)
    config = config_of(teacher, config=str(folder))
    state = torch.random.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(ord(name) % 7)  # what was drawn before has no part in it
        seeded = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
        student.make(seeded, teacher, tmp_path / name, None)
    torch.random.set_rng_state(state)
    loaded: list[Any] = [student.load(tmp_path / name) for name in "abc"]
    a, b, c = loaded
    assert torch.equal(logits(a), logits(b))
    assert not torch.allclose(logits(a), logits(c))
    assert a.config.num_hidden_layers == 3
    assert (a.config.eos_token_id, a.generation_config.eos_token_id) == (2, [2, 5])
    assert a.get_input_embeddings().weight.std(dim=1).min() > 0.1, "every token's row is random, none is padding"
    one_file, facts = made(teacher, tmp_path / "d", config=str(folder / "config.json"))
    assert torch.equal(logits(one_file), logits(a))
    assert facts == {"vocabulary_rows_cut": 0}


def test_weights_that_were_cut_short_are_told_with_their_folder(teacher: lookup.Model, tmp_path: Path) -> None:
    shutil.copytree(teacher.path, tmp_path / "cut")
    [weights] = (tmp_path / "cut").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"/cut: can't be loaded as a causal language model: "):
        student.load(tmp_path / "cut")


def test_drawing_weights_leaves_the_global_generator_as_it_was(teacher: lookup.Model, tokenizer: Any) -> None:
    before = torch.random.get_rng_state()
    student.random_model(str(teacher.path), tokenizer, 5)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_layers": 7}, r"student\.num_layers=7: the model has only 6 layers"),
        ({"keep_layers": "0-6"}, r"student\.keep_layers: there is no layer 6, only 0-5"),
        ({"config": "none.json"}, r"student\.config none\.json: no such file; give a transformers config"),
        ({"config": "bad.json"}, r"bad\.json: it can't be built as a causal language model"),
        ({"config": "odd.json"}, r"odd\.json: it can't be built as a causal language model"),
        ({"config": "encoder.json"}, r"encoder\.json: it can't be built as a causal language model"),
        ({"config": "heads.json"}, r"heads\.json: it can't be built as a causal language model"),
        ({"config": "few.json"}, r"few\.json: its vocabulary of 19 is below the tokenizer's 20 tokens"),
        ({"model": "./few"}, r"few: its vocabulary of 19 is below the tokenizer's 20 tokens"),
    ],
)
def test_what_can_not_be_made_is_one_line_before_the_first_stage(
    tmp_path: Path,
    teacher: lookup.Model,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    llama = {"model_type": "llama", **SIZES}
    files = {
        "bad": "{",
        "odd": '{"model_type": "no-such-thing"}',
        "encoder": '{"model_type": "vit"}',
        "heads": json.dumps({**llama, "num_attention_heads": 0}),
        "few": json.dumps({**llama, "vocab_size": TOKENS - 1}),
    }
    for name, text in files.items():
        Path(f"{name}.json").write_text(text)
    saved_model(Path("few"), tokenizer, layers=1, vocab_size=TOKENS - 1)
    config = config_of(teacher, **settings)

    def before_the_first_stage() -> None:
        lookup.check_settings(config)  # the command
        lookup.check_student(config, teacher, tokenizer)  # prepare's first line

    for attempt in (before_the_first_stage, lambda: student.make(config, teacher, tmp_path / "student", None)):
        with pytest.raises(UserError, match=said) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_choosing_layers_without_their_number_is_refused(teacher: lookup.Model) -> None:
    with pytest.raises(UserError, match=r"choose_layers=evenly chooses nothing yet: .*student\.num_layers"):
        lookup.check_settings(config_of(teacher, choose_layers="evenly"))


@pytest.fixture
def filtered(tmp_path: Path, teacher: lookup.Model, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(lookup, "check_weights", lambda *_: None)  # the run's answers are fabricated
    return fabricated(tmp_path, until="filter", teacher=teacher.name)


def test_the_run_remembers_which_layers_were_chosen(
    teacher: lookup.Model, filtered: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(train.contract, "prove", stop)
    config = config_of(teacher, num_layers=2, choose_layers="influence")
    with pytest.raises(InterruptedError):
        train.run(config, filtered)
    monkeypatch.setattr(student, "make", lambda *_: pytest.fail("made twice"))
    with pytest.raises(InterruptedError):  # killed behind the making, and gone on with
        train.run(config, filtered)
    remembered = json.loads((filtered.path / "train" / "started.json").read_text())["facts"]["student"]
    assert len(remembered["layers"]) == 2
    assert len(remembered["block_influence"]) == 6


def test_another_config_of_random_weights_is_another_student(
    tmp_path: Path, teacher: lookup.Model, filtered: RunDir
) -> None:
    path = tmp_path / "new.json"
    config = config_of(teacher, config=str(path))
    prints = []
    for num in (2, 3):
        path.write_text(json.dumps({"model_type": "llama", **SIZES, "num_hidden_layers": num}))
        prints.append(train._fingerprint(config, filtered))
    assert prints[0] != prints[1]
    assert {key for key in prints[0] if prints[0][key] != prints[1][key]} == {"student.weights"}


# --- another tokenizer


def test_another_tokenizer_is_pointed_to_sequence_level_sft(
    tmp_path: Path, teacher: lookup.Model, tokenizer: Any, byte_tokenizer: Path
) -> None:
    other = transformers.AutoTokenizer.from_pretrained(byte_tokenizer)
    name = saved_model(tmp_path / "other", other, layers=1, vocab_size=300).name
    with pytest.raises(UserError, match=r"can't be compared across tokenizers.*retort export corpus RUN.*trl sft") as e:
        lookup.check_student(config_of(teacher, model=name), teacher, tokenizer)
    assert "\n" not in str(e.value)


def test_the_corpus_trains_a_model_of_another_tokenizer(tmp_path: Path, byte_tokenizer: Path) -> None:
    """What that error advises, done: TRL's SFT on the folder's messages as they stand."""
    from datasets import load_dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    folder = corpus.write(fabricated(tmp_path, until="filter"))
    other = transformers.AutoTokenizer.from_pretrained(byte_tokenizer)
    other.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    other.pad_token = other.eos_token
    rows: Any = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    trainer = SFTTrainer(
        model=built("Llama", layers=1, vocab_size=len(other), max_position_embeddings=512),
        args=SFTConfig(
            output_dir=str(tmp_path / "sft"),
            max_steps=2,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
        ),
        train_dataset=rows,
        processing_class=other,
    )
    learnt: Any = trainer.train_dataset
    texts = [other.decode(row["input_ids"]) for row in learnt]
    for row, text in zip(rows, texts, strict=True):
        assert row["messages"][-1]["content"] in text
    assert 0 < trainer.train().training_loss < 20
