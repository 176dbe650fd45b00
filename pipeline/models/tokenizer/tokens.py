"""Whether two tokenizers mean the same by their ids, and write conversations alike."""

import json
from operator import itemgetter
from typing import Any

from pipeline.errors import UserError
from pipeline.models.tokenizer import chat_template
from pipeline.models.tokenizer.chat_template import ChatTemplate, Messages
from pipeline.run.files import text_hash

CONVERSATION: Messages = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi, 你好 🙂!"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "def f(x):\n    return 2*x"},
]
TEXTS = (  # that tokenizers cut in different ways
    "It's 12345.67 km;  they'll\tsee\r\n\n\n  Ωmega, naïve cafe\u0301 – ＡＢ ﬁ",
    " leading and trailing  ",
    "Straße 北京大学 こんにちは 안녕하세요 مرحبا नमस्ते 👩‍👩‍👧 🇫🇷",
    "for (int i=0; i<10; ++i) {\n\t\tx[i] = a->b(&y) << 2; // !=\n}",
)
DAY = "2025-01-31"  # that both templates are given


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of the vocabulary and of how the tokenizer cuts text."""
    return text_hash(_whole(tokenizer) or json.dumps(sorted(tokenizer.get_vocab().items())))


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The tokenizer's control tokens: those it names, and those that were added as special."""
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(tokenizer.all_special_ids) | added


def difference(teacher: Any, student: Any) -> str | None:
    """What the student's tokenizer has otherwise than the teacher's, in words; None if all that the teacher may write
    means the same to the student.

    Tokens that the student alone has are no difference: the teacher never writes them. Nor is an added token that the
    teacher alone has and does not use.
    """
    whole, other_whole = _whole(teacher), _whole(student)
    if whole and whole == other_whole:
        return None
    theirs = student.get_vocab()
    names = {token_id: token for token, token_id in theirs.items()}
    unused = unused_ids(teacher)
    for token, token_id in sorted(teacher.get_vocab().items(), key=itemgetter(1)):
        if theirs.get(token) == token_id:
            continue
        if token in theirs:
            return f"the token {token!r} has the id {token_id} in the teacher's and {theirs[token]} in its own"
        if token_id in names:
            return f"the id {token_id} is {token!r} in the teacher's and {names[token_id]!r} in its own"
        if token_id not in unused:
            return f"it lacks the teacher's token {token!r}"
    if _merges(whole) != _merges(other_whole):
        return "it merges pieces of words in another order"
    for text in TEXTS if whole and other_whole else ():
        if teacher(text, add_special_tokens=False).input_ids != student(text, add_special_tokens=False).input_ids:
            return f"it splits texts in another way, such as {text[:20]!r}"
    return None


def unused_ids(tokenizer: Any) -> frozenset[int]:
    """The last ids of a tokenizer, if they are added tokens that neither begin nor end a text and that the chat
    template does not write, such as a token for padding."""
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    template, first = chat_template.source(tokenizer), len(tokenizer)
    while (last := first - 1) in added and last not in used and str(added[last]) not in template:
        first = last
    return frozenset(range(first, len(tokenizer)))


def renders_alike(teacher: Any, student: Any) -> bool:
    """Whether both chat templates write a conversation of the same day in the same tokens."""
    renderings = []
    for tokenizer in (teacher, student):
        template = ChatTemplate(tokenizer, {"date_string": DAY}, DAY)
        try:
            renderings.append(template.render(CONVERSATION))
        except UserError as error:
            renderings.append(str(error))
    return renderings[0] == renderings[1]


def check_same_tokenizer(teacher: Any, student: Any, name: str) -> None:
    """Raises UserError where the student's ids or template would not mean what the teacher's mean."""
    if (found := difference(teacher, student)) is not None:
        raise UserError(
            f"student.model {name}: its tokenizer differs from the teacher's ({found}), and log-probs can't be compared"
            " across tokenizers: choose a student of the same family, or prune the teacher (student.keep_layers or"
            " num_layers). Any student can learn from the answers' text (sequence-level SFT): without student.model,"
            " run `retort prepare`, `generate` and `filter`, then `retort export corpus RUN`, and train on its"
            f" messages, for instance with `trl sft --model_name_or_path {name} --dataset_name RUN/corpus`"
        )
    if student.chat_template and not renders_alike(teacher, student):  # a base model is given the teacher's
        raise UserError(
            f"student.model {name}: its chat template renders a conversation differently from the teacher's; remove"
            " the student's template (it is then given the teacher's), or choose a student of the same family"
        )


def _whole(tokenizer: Any) -> str:
    """All that the tokenizer does, as JSON; empty for one of pure Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else ""


def _merges(whole: str) -> Any:
    """What joins pieces to tokens, in order; None where nothing does."""
    return json.loads(whole)["model"].get("merges") if whole else None
