"""How an answer says that it does not know, and that its question is wrong. English, by pattern; ours.

What is tested are wordings, not truth: tests/evaluate/admission_answers.jsonl has paraphrases of both kinds.
"""

import re

_NOT = r"(?:do not|don't|did not|didn't|have not|haven't|cannot|can't|can not|could not|couldn't|would not|wouldn't)"
_HOW = r"(?:(?:actually|really|currently|personally|yet|even|quite|also|just|simply) )*"
_FIND = r"(?:find|verify|confirm|identify|locate|predict|determine|foresee|forecast|tell|say|know|guess|answer|recall)"
_KNOWN = r"(?:known|documented|recorded|available|clear|certain|publicly|knowable|predictable|determined)"
_INFORMATION = r"(?:record|information|evidence|data|trace|mention|detail|reference|account|knowledge|source)s?"
ADMITS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b(?:I|we|one) {_NOT} {_HOW}(?:{_FIND}|see|recogni[sz]e|access|provide|give)\b",
        rf"\bI {_NOT} {_HOW}have (?:\w+ ){{0,4}}(?:access|memor\w+|means|way|ability|context|{_INFORMATION})\b",
        r"\bI(?:'ve| have) (?:no|never)\b",
        r"\bI(?:'d| would) need (?:more|some|further|additional|to know)\b",
        r"\b(?:training|training data|data|knowledge) (?:does not|doesn't|do not|don't) (?:include|cover|contain)\b",
        r"\bthere (?:does not|doesn't|do not|don't) (?:seem|appear) to be\b",
        r"\b(?:nothing|little|not much) (?:\w+ )?(?:is|has been) (?:\w+ )?known\b",
        r"(?:\bnot|n't) (?:\w+ )?real\b",
        r"\bI(?:'m| am| would be) (?:only |just )?(?:an? (?:[\w-]+ )?AI|guessing)\b",
        r"\bremains to be seen\b",
        r"\bmy (?:knowledge|training)(?: data)? (?:ends|stops|goes)\b",
        r"\bpredict\w*\b[^.\n]{0,60}\b(?:not possible|impossible)\b",
        r"\bI(?:'m| am| was) (?:not (?:\w+ )?(?:aware|familiar|sure|certain|able)|unaware|unfamiliar|unsure|uncertain"
        r"|unable)\b",
        rf"\b(?:unable|not able) to {_FIND}\b",
        rf"\bno (?:\w+ ){{0,3}}{_INFORMATION}\b",
        rf"\b(?:lack|without|not enough|insufficient|isn't (?:any|enough)|aren't any) (?:\w+ ){{0,3}}{_INFORMATION}\b",
        r"\b(?:there (?:is|are|was|were|seems to be|appears to be) no|no) (?:\w+ ){0,2}such\b",
        r"\bthere(?:'s| is| was) no (?:\w+ ){0,3}(?:known as|(?:by|of|with) (?:that|this) name|called|named)\b",
        r"\b(?:does not|doesn't|do not|don't|did not|didn't|never|not) (?:seem to |appear to |actually |really )*"
        r"exist(?:ed)?\b",
        r"\b(?:is|are|was|were|be|been|seems?|appears?|sounds?) (?:(?:to be|an?|entirely|purely|likely|probably) )*"
        r"(?:fictional|fictitious|made[- ]up|imaginary|invented|non-?existent)\b"
        r"(?! (?:story|novel|account|work|tale|book|town|world|village|character who))",
        r"\b(?:impossible|not possible|no (?:\w+ )?way|too early|(?:can(?:not|'t)|can not|could not) (?:yet )?be"
        r"|difficult|hard) (?:\w+ ){0,3}(?:know|say|tell|predict|foresee|forecast|determine|guess|known|predicted"
        r"|foreseen|determined|said|answered)\b",
        r"\b(?:has not|hasn't|have not|haven't) (?:yet )?(?:happened|taken place|occurred|come|been)\b",
        r"\b(?:nobody|no one|no-one|none of us|only you|only time) (?:\w+ )?(?:knows?|will tell|can|could)\b",
        rf"\b(?:is|are|was|were|remains?) (?:\w+ )?(?:unknown|unpredictable|unclear|not (?:\w+ )?{_KNOWN})\b",
        rf"\b(?:isn't|aren't|wasn't|weren't) (?:\w+ )?{_KNOWN}\b",
        r"\b(?:could|can|would|might) you (?:please )?(?:clarify|provide|give|share|tell|check|specify|double-check)\b",
        r"\bplease (?:provide|share|check|clarify|specify|tell|give|double-check)\b",
        r"\b(?:beyond|outside|not (?:\w+ ){0,2}within) (?:\w+ )?(?:knowledge|training|information)\b",
        r"\b(?:you (?:may|might|could) (?:be thinking|have (?:mis|meant))|did you mean|misspel\w+|a typo)\b",
    )
]
CORRECTS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?:misconception|misunderstanding|myth|mistaken|mistake in|incorrect|inaccura\w+|trick question|premise"
        r"|contrary to|mix(?:ed)?[- ]up|confus(?:ion|ing|ed) (?:in|with|about|between))\b",
        r"(?:\bnot|n't) (?:(?:actually|quite|entirely|really) )?(?:true|accurate|correct|right|possible|the case)\b",
        r"\b(?:false (?:premise|claim|statement|assumption)|impossible|no such)\b",
        r"\bnever (?:happened|existed|took place|occurred)\b",
        r"\b(?:does not|doesn't|do not|don't|did not|didn't) (?:actually |really )?(?:exist|happen)\b",
        r"\b(?:error|mistake) in (?:the|your) (?:question|statement)\b",
    )
]


def admits_ignorance(text: str) -> bool:
    """Whether an answer says anywhere that it does not know, or that what it was asked about is not there."""
    return _any(ADMITS, text)


def corrects(text: str, corrections: tuple[str, ...]) -> bool:
    """Whether an answer says that its question is wrong, in general words or in one of the question's own patterns."""
    return _any(CORRECTS, text) or any(re.search(pattern, text, re.IGNORECASE) for pattern in corrections)


def _any(patterns: list[re.Pattern[str]], text: str) -> bool:
    plain = text.replace("\u2019", "'")
    return any(pattern.search(plain) for pattern in patterns)
