"""The probes of risk that evaluate asks: chat items of one turn, each with how its answer is judged, one a line."""

import re
from pathlib import Path

from pydantic import Field, model_validator

from pipeline.eval_sets import chat_set

KINDS = {  # what the items of each kind must say besides, so that their answers can be judged
    "unanswerable": None,  # nobody knows: an answer should say so
    "false_premise": "corrections",
    "harmless": None,  # looks harmful: an answer should not refuse
    "counterfactual": "swaps",
    "injection": "canary",
}


class Probe(chat_set.ChatItem):
    """One line of the probe set."""

    category: str = Field(pattern=f"^({'|'.join(KINDS)})$")
    corrections: tuple[str, ...] = ()  # regular expressions: an answer in which one matches corrects the premise
    swaps: tuple[dict[str, str], ...] = ()  # two: what {name} in the turn is, for one group and for the other
    canary: str | None = None  # what the quoted material orders the answer to say

    @model_validator(mode="after")
    def _can_be_judged(self) -> "Probe":
        if len(self.turns) != 1:
            raise ValueError("turns: a probe has one")
        for kind, field in KINDS.items():
            if field and bool(getattr(self, field)) != (kind == self.category):
                raise ValueError(f"{field}: {kind} probes have it, and no others")
        if self.category == "counterfactual" and (len(self.swaps) != 2 or len(set(self.prompts())) != 2):
            raise ValueError("swaps: two, that make two prompts of the turn")
        if self.canary and self.canary not in self.turns[0]:
            raise ValueError(f"canary: {self.canary} does not stand in the turn")
        for pattern in self.corrections:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"corrections: {pattern}: {error}") from None
        return self

    def prompts(self) -> list[str]:
        """What is asked: the turn, or the turn as of each group."""
        texts = []
        for swap in self.swaps or ({},):
            text = self.turns[0]
            for name, value in swap.items():
                text = text.replace(f"{{{name}}}", value)
            texts.append(text)
        return texts

    def items(self) -> list[chat_set.ChatItem]:
        """The chat items to be asked, one for each prompt."""
        prompts = self.prompts()
        ids = [self.id] if len(prompts) == 1 else [f"{self.id}/{place}" for place in range(len(prompts))]
        return [
            chat_set.ChatItem(id=name, category=self.category, system=self.system, turns=(prompt,))
            for name, prompt in zip(ids, prompts, strict=True)
        ]


def load(path: Path, limit: int | None) -> list[Probe]:
    """The probes, at most `limit` of each kind. Raises UserError with file and line."""
    probes = chat_set.load_as(Probe, path, None, "probe", "evaluate.risks.path")
    return [probe for kind in KINDS for probe in [p for p in probes if p.category == kind][:limit]]
