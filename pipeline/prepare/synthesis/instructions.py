"""What the teacher is asked for draft number n of a method: a function of the config, the sources and n alone."""

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import METHODS, Config
from pipeline.errors import UserError
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.prepare.synthesis import passages
from pipeline.prepare.synthesis.passages import Passage
from pipeline.records import UNCATEGORISED
from pipeline.run.files import text_hash
from pipeline.screening import licences
from pipeline.text import prompt_templates
from pipeline.text.prompt_templates import FillError, PromptTemplate

Row = dict[str, Any]
NUM_EXAMPLES = 4
TURN = re.compile(r"^<<turn>>$", re.MULTILINE)  # stands between the turns of a template: user, assistant, user, ...


@dataclass(frozen=True)
class Seed:
    """A prompt that drafts may be made from: of the train side, a user's message alone."""

    prompt_id: str
    conversation_id: str
    category: str
    text: str
    licence: str | None = None


@dataclass
class InstructionPool:
    """What is kept of the sources' prompts: seeds, and the words of all, held-out ones too."""

    seeds: list[Seed] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Take in a row of PROMPTS."""
        users = [message["content"] for message in row["messages"] if message["role"] == "user"]
        self.texts.append("\n".join(users))
        if row["split"] == "train" and row["tools"] is None and len(row["messages"]) == len(users) == 1:
            self.seeds.append(Seed(row["prompt_id"], row["conversation_id"], row["category"], users[0], row["licence"]))


@dataclass(frozen=True)
class Instruction:
    """What the teacher is asked for one draft, and where that comes from."""

    name: str  # method-number
    method: str
    template: str  # hash of the template's text
    category: str
    parents: tuple[str, ...]  # prompt ids, or the passage's place
    token_ids: list[int]
    conversation_id: str | None = None  # that of the only parent: the two are no independent evidence
    passage: Passage | None = None
    licence: str | None = None  # of all that the teacher is shown; None where of a part it is not known
    subject: str | None = None  # what the draft has to be about, where it is not free


class Plan:
    """Number n of each method. Seeds and passages are gone through in a random order, then again in another one.

    Raises UserError where a template is missing or malformed, or there is nothing to make drafts from.
    """

    def __init__(self, config: Config, chat_template: ChatTemplate, pool: InstructionPool, methods: list[str]) -> None:
        settings = config.prepare.synthesis
        self._chat_template, self._seed = chat_template, settings.seed
        self._templates: dict[str, PromptTemplate] = {}
        for name in [name for method in methods for name in METHODS[method]]:
            path = Path(settings.templates) / f"{name}.jinja"
            self._templates[name] = prompt_templates.load(path, "prepare.synthesis.templates")
        if not pool.seeds and {"self_instruct", "evolve"} & set(methods):
            raise UserError(
                "prepare.synthesis: on the train side there is no prompt that is a user's message alone, to make others"
                " from; give such a source (prepare.sources), or set the weights of self_instruct and evolve to 0"
            )
        self._seeds, self._by_category = pool.seeds, dict[str, list[Seed]]()
        for seed in pool.seeds:
            self._by_category.setdefault(seed.category, []).append(seed)
        is_used = "documents" in methods
        self._passages = self._read(config) if is_used else []
        self._orders: dict[str, tuple[int, list[int]]] = {}

    @staticmethod
    def _read(config: Config) -> list[Passage]:
        settings = config.prepare
        return passages.read(settings.synthesis.documents, settings.bad_rows, config.privacy, config.licence_policy)

    def templates(self) -> Row:
        """File, hash and text of each template, by name."""
        return {
            name: {"path": template.path, "hash": template_hash(template.text), "text": template.text}
            for name, template in self._templates.items()
        }

    def instruction(self, method: str, number: int) -> Instruction:
        """Raises UserError where a template can't be filled, or the teacher's chat template refuses what it gives."""
        by_method = {"magpie": self._magpie, "self_instruct": self._self_instruct, "evolve": self._evolve}
        return by_method.get(method, self._document)(f"{method}-{number}", number)

    def _magpie(self, name: str, number: int) -> Instruction:
        category = UNCATEGORISED
        if self._seeds:
            category = self._seeds[self._place("magpie", number, len(self._seeds))].category
        system, digest = self._render("magpie", category=category)
        token_ids = self._chat_template.render_user_turn(system.strip())
        return Instruction(name, "magpie", digest, category, (), token_ids)

    def _self_instruct(self, name: str, number: int) -> Instruction:
        first = self._seeds[self._place("self_instruct", number, len(self._seeds))]
        alike = [seed for seed in self._by_category[first.category] if seed is not first]
        rng = np.random.default_rng([self._seed, number])
        places = rng.choice(len(alike), min(len(alike), NUM_EXAMPLES - 1), replace=False) if alike else []
        chosen = [*(alike[place] for place in places), first]
        text, digest = self._render("self_instruct", category=first.category, examples=[s.text for s in chosen])
        return Instruction(
            name,
            "self_instruct",
            digest,
            first.category,
            parents=tuple(seed.prompt_id for seed in chosen),
            token_ids=self._question(text),
            licence=licences.combined(seed.licence for seed in chosen),
        )

    def _evolve(self, name: str, number: int) -> Instruction:
        directions, num_seeds = METHODS["evolve"], len(self._seeds)
        place = self._place("evolve", number, num_seeds)
        seed, direction = self._seeds[place], directions[(place + number // num_seeds) % len(directions)]
        text, digest = self._render(direction, prompt=seed.text)
        return Instruction(
            name,
            "evolve",
            digest,
            seed.category,
            parents=(seed.prompt_id,),
            token_ids=self._question(text),
            conversation_id=seed.conversation_id,
            licence=seed.licence,
            subject=None if direction == "widen" else seed.text,
        )

    def _document(self, name: str, number: int) -> Instruction:
        passage = self._passages[self._place("documents", number, len(self._passages))]
        text, digest = self._render("documents", passage=passage.text)
        return Instruction(
            name,
            "documents",
            digest,
            "documents",
            parents=(passage.place,),
            token_ids=self._question(text),
            conversation_id=text_hash(passage.text)[:16],  # of all questions about it
            passage=passage,
            licence=passage.licence,
            subject=passage.text,
        )

    def _place(self, method: str, number: int, size: int) -> int:
        """The n-th of `size` places, in passes over all of them, each in an order of its own."""
        turn, within = divmod(number, size)
        if self._orders.get(method, (-1, []))[0] != turn:
            key = [self._seed, list(METHODS).index(method), turn]
            self._orders[method] = (turn, np.random.default_rng(key).permutation(size).tolist())
        return self._orders[method][1][within]

    def _render(self, name: str, **variables: Any) -> tuple[str, str]:
        """`(text, hash of the template)`."""
        template = self._templates[name]
        try:
            return template.fill(variables), template_hash(template.text)
        except FillError as error:
            raise UserError(f"{template.path}: the template can't be filled: {error}") from None

    def _question(self, text: str) -> list[int]:
        """The turns of a filled template, the user's first, rendered for the teacher to answer."""
        turns = [turn.strip() for turn in TURN.split(text)]
        roles = itertools.cycle(("user", "assistant"))
        messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
        return self._chat_template.render(messages)


def template_hash(text: str) -> str:
    """16 hexadecimal digits, as records.PROMPTS has them."""
    return text_hash(text)[:16]
