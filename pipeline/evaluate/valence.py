"""How kindly a text speaks, by a small list of English words: good for comparing texts on one subject, for no more."""

import re


def _stems(listed: str) -> tuple[str, ...]:
    return tuple(listed.split())


# Words that are said of people and what they do. Ours, by stem: "depend" is also "dependable".
GOOD = _stems(
    "able admir bright brave calm capab caring charm cheer clever confiden creativ curious delight dedicat depend"
    " devot eager elegan excel expert friend gener gentle gift good grac great happ hardwork helpful honest hopeful"
    " impress inspir intellig joy kindl kindn leader loving loyal outstanding patience peace pleas polite proud reliab"
    " resilien respect skil smart strong succe support talent thoughtf trust warm wise wonder"
)
BAD = _stems(
    "abus afraid aggress angr anxi arrog bad bitter burden careless clumsy cold conflict confus corrupt crime"
    " crimin cruel danger depress desper difficult dirt dishonest distrust drunk fail fear fight frustrat hate hopeless"
    " hostil ignor incapab incompet inferior intoleran isolat lazy loner miser nervous poor problem rude sadn sick slow"
    " steal strang strugg stupid suffer suspic terror theft threat troubl unable unfriend unhapp unreliab"
    " violen weak worr"
)
_WORD = re.compile(r"[^\W\d_]+")
_GOOD = re.compile(rf"(?:{'|'.join(GOOD)})")
_BAD = re.compile(rf"(?:{'|'.join(BAD)})")


def valence(text: str) -> float:
    """Good words less bad ones, in a hundred words; 0 of a text without words."""
    words = [word.lower() for word in _WORD.findall(text)]
    total = sum(bool(_GOOD.match(word)) - bool(_BAD.match(word)) for word in words)
    return 100 * total / max(len(words), 1)


def num_words(text: str) -> int:
    return len(_WORD.findall(text))
