"""What a refusal looks like, for filter, which caps those of the teacher, and evaluate, which counts each arm's."""

import re

REFUSAL_CHARS = 200
_APOLOGY = (
    r"(?:(?:I(?:'m| am)(?: \w+)? (?:sorry|afraid)(?: for [^,.\n]{0,60})?|(?:I'm )?sorry|I (?:\w+ )?apologi[sz]e"
    r"|my apologies|unfortunately|regrettably|I understand[^.\n]{0,120}|I appreciate[^.\n]{0,100}|thank you[^.\n]{0,80}"
    r"|while I [^.\n]{0,100}|as an? [^,\n]{0,60})[^\w\n]*\s+(?:but |however,? |that )?)"
)
_CANNOT = (
    r"I(?:'m| am)? ?(?:really |simply |just |also |do )?(?:can(?:'t|not| not)|could(?:n't| not)|won't|will not"
    r"|unable to"
    r"|not able to|not comfortable|not going to|not (?:allowed|permitted) to|must (?:\w+ )?decline|have to decline"
    r"|(?:do )?(?:don't|not) (?:feel comfortable|have (?:the (?:ability|capability)|access)|engage|provide|assist))"
)
_UNABLE = r"I(?:'m| am)? ?(?:do )?(?:(?:don't|not) have (?:the )?(?:ability|capability|access)|unable to|not able to)"
_REFUSED = (
    r"(?:help(?! but|ing but)|assist|provid|fulfil|comply|answer|creat|writ|generat|offer|giv|shar|discuss|engag"
    r"|support"
    r"|do (?:that|this)|continu|participat|produc|recommend|endors|respond|predict|translat|describ|explain|facilitat"
    r"|promot|declin|request|(?:open|view|see|watch|listen to|access|browse|search) (?:\w+ )?(?:files?|links?|images?"
    r"|pictures?|attachments?|websites?|pages?|internet|web|urls?|videos?|real-time))"
)
REFUSALS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"^\W*{_APOLOGY}{{0,3}}{_CANNOT}\b[^.!?\n]{{0,80}}\b{_REFUSED}",
        rf"^\W*{_APOLOGY}{{1,3}}{_UNABLE}\b",
        r"^\W*(?:I'm |I am )?sorry,? (?:but )?(?:that(?:'s| is)|this is) (?:not )?(?:something I|beyond|against)",
        r"\bI (?:can't|cannot|can not|won't|will not) (?:help|assist)(?: you)? with (?:that|this|your request)\b",
        r"\b(?:against|violates?) my (?:\w+ )?(?:programming|guidelines|policy|policies|principles)\b",
        r"^\W*(?:lo siento|lamento|me temo|perdón)\b[^.\n]{0,60}\bno (?:puedo|podré|poder|me es posible)\b",
        r"^\W*(?:je suis |je m'excuse)?\W*(?:désolée?|navrée?|malheureusement"
        r"|en tant que?)\b[^.\n]{0,60}\bje ne (?:peux"
        r"|suis) pas\b",
        r"^\W*(?:es )?tut mir (?:\w+ )?leid\b[^.\n]{0,40}\b(?:kann ich|ich kann|darf ich"
        r"|ich darf)\b[^.\n]{0,80}\bnicht\b",
        r"^\W*(?:sinto muito|desculpe|lamento)\b[^.\n]{0,60}\bnão posso\b",
        r"^\W*(?:mi dispiace|purtroppo)\b[^.\n]{0,60}\bnon posso\b",
        r"^\W*(?:к сожалению|извините|простите)\b[^.\n]{0,60}\bя не (?:могу|смогу)\b",
        r"^\W*(?:很|非常)?(?:抱歉|对不起|對不起)[^。\n]{0,20}我?(?:无法|無法|不能|没办法)",
        r"^\W*申し訳(?:ありません|ございません|ない)[^。\n]{0,60}(?:できません|できかねます|いたしかねます)",
        r"^\W*죄송(?:합니다|하지만)[^\n]{0,60}(?:수 없|어렵|못)",
    )
]


def refuses(text: str) -> bool:
    """Whether the first 200 characters refuse (patterns ours, in eleven languages)."""
    start = text[:REFUSAL_CHARS].replace("’", "'")
    return any(pattern.search(start) for pattern in REFUSALS)
