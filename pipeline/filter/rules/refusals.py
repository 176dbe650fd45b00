"""Rules about the teacher speaking of itself: refusals, which are capped, and its identity, which is dropped."""

import re
from functools import lru_cache

from pipeline.config import Filter
from pipeline.filter.rules.candidate import Candidate, Verdict

REFUSAL_CHARS = 200
_APOLOGY = (
    r"(?:(?:I(?:'m| am)(?: \w+)? (?:sorry|afraid)|(?:I'm )?sorry|I (?:\w+ )?apologi[sz]e|my apologies|unfortunately"
    r"|regrettably|I understand[^.\n]{0,120}|I appreciate[^.\n]{0,100}|thank you[^.\n]{0,80}|while I [^.\n]{0,100}"
    r"|as an? [^,\n]{0,40})[^\w\n]*\s+(?:but |however,? |that )?)"
)
_CANNOT = (
    r"I(?:'m| am)? ?(?:really |simply |just |also |do )?(?:can(?:'t|not| not)|could(?:n't| not)|won't|will not|unable to"
    r"|not able to|not comfortable|not going to|not (?:allowed|permitted) to|must (?:\w+ )?decline|have to decline"
    r"|(?:do )?(?:don't|not) (?:feel comfortable|have (?:the (?:ability|capability)|access)|engage|provide|assist))"
)
_REFUSED = (
    r"(?:help(?! but|ing but)|assist|provid|fulfil|comply|answer|creat|writ|generat|offer|giv|shar|discuss|engag|support"
    r"|do (?:that|this)|continu|participat|produc|brows|access|recommend|endors|respond|predict|translat|open|view|see"
    r"|watch|listen|search|tell you|show you|describ|explain|complet|perform|facilitat|encourag|promot|declin|carry out"
    r"|access|request)"
)
REFUSALS = [
    re.compile(rf"^\W*{_APOLOGY}{{0,3}}{_CANNOT}\b[^.!?\n]{{0,80}}\b{_REFUSED}", re.IGNORECASE),
    re.compile(
        r"^\W*(?:I'm |I am )?sorry,? (?:but )?(?:that(?:'s| is)|this is) (?:not )?(?:something I|beyond|against)", re.I
    ),
    re.compile(
        r"\bI (?:can't|cannot|can not|won't|will not) (?:help|assist)(?: you)? with (?:that|this|your request)\b", re.I
    ),
    re.compile(r"\b(?:against|violates?) my (?:\w+ )?(?:programming|guidelines|policy|policies|principles)\b", re.I),
    re.compile(r"^\W*(?:lo siento|lamento|me temo|perdón)\b[^.\n]{0,60}\bno (?:puedo|podré|me es posible)\b", re.I),
    re.compile(
        r"^\W*(?:je suis|je m'excuse)?\W*(?:désolée?|navrée?|malheureusement)\b[^.\n]{0,60}\bje ne (?:peux|suis) pas\b",
        re.I,
    ),
    re.compile(
        r"^\W*(?:es )?tut mir (?:\w+ )?leid\b[^.\n]{0,40}\b(?:kann ich|ich kann|darf ich|ich darf)\b[^.\n]{0,80}\bnicht\b",
        re.I,
    ),
    re.compile(r"^\W*(?:sinto muito|desculpe|lamento)\b[^.\n]{0,60}\bnão posso\b", re.I),
    re.compile(r"^\W*(?:mi dispiace|purtroppo)\b[^.\n]{0,60}\bnon posso\b", re.I),
    re.compile(r"^\W*(?:к сожалению|извините|простите)\b[^.\n]{0,60}\bя не (?:могу|смогу)\b", re.I),
    re.compile(r"^\W*(?:很|非常)?(?:抱歉|对不起|對不起)[^。\n]{0,20}我?(?:无法|無法|不能|没办法)"),
    re.compile(
        r"^\W*申し訳(?:ありません|ございません|ない)[^。\n]{0,60}(?:できません|できかねます|いたしかねます|お答えできません)"
    ),
    re.compile(r"^\W*죄송(?:합니다|하지만)[^\n]{0,60}(?:수 없|어렵|못)"),
]
# Asked to decline, the teacher declines for the user; that is an answer.
ASKS_REFUSAL = re.compile(
    r"declin|refus|reject|turn(?:ing)? (?:\w+ ){0,3}down|apolog|cancel|excus|say(?:ing)? (?:no|sorry)|regret|can't (?:come"
    r"|make|attend|join)|cannot (?:come|attend)|won't be able|unable to|resign|translat|absag|ablehn",
    re.IGNORECASE,
)
_AI = r"(?:AI|artificial intelligence|(?:large )?language model|virtual assistant|chat ?bot|computer program)"
_MAKERS = (
    r"(?:OpenAI|Anthropic|Google(?: DeepMind| AI)?|DeepMind|Meta(?: AI)?|Mistral AI|Alibaba(?: Cloud)?|DeepSeek(?:-AI)?"
    r"|Hugging ?Face(?: TB)?|Microsoft|xAI|Cohere|Baidu|Tencent|Zhipu(?: AI)?|Moonshot(?: AI)?|NVIDIA|01\.AI|IBM|TII"
    r"|Stability AI|EleutherAI|Allen Institute|Nous Research|ByteDance|MiniMax|Shanghai AI Lab\w*)"
)
_MODELS = (
    r"(?:Chat ?GPT|GPT-?[345]\w*|Qwen[\w.-]*|Tongyi|DeepSeek[\w-]*|SmolLM\w*|ChatGLM\w*|InternLM\w*|Vicuna|Mixtral"
    r"|LLaMA|Llama[ -]?[234][\w.]*|Gemma[ -]?\d\w*|Phi-\d\w*|Ernie Bot|Grok|OpenAssistant|Bard|Claude(?=,? (?:an? |from |by"
    r"|made|created|developed|Anthropic))|Gemini(?=,? (?:an? |from |by|made|created|developed|Google))|Kimi)"
)
IDENTITY = [
    re.compile(rf"\bas an? (?:\w+ )?{_AI}(?: language)?(?: model| assistant| chatbot| system)?,? (?:I\b|my\b)", re.I),
    re.compile(rf"\bI(?:'m| am)(?: just| only| simply)? an? (?:\w+ ){{0,2}}{_AI}\b(?! (?:\w*er|\w*ist)\b)", re.I),
    re.compile(rf"(?:\bI(?:'m| am| was)|\bmy name is|\bcall me|\bthis is)\s+(?:\w+,? ){{0,2}}{_MODELS}(?!\w)"),
    re.compile(
        rf"\b(?:I|me|model|assistant)\b[^.\n]{{0,60}}\b(?:created|developed|trained|made|built|designed|released"
        rf"|fine-tuned) (?:\w+ )?by (?:\w+ ){{0,3}}{_MAKERS}(?!\w)"
    ),
    re.compile(
        r"\b(?:my|our) (?:knowledge|training)(?: data)?[^.\n]{0,40}\b(?:cut-?off|cut off|goes? up to|up to|ends?|until|extends)\b",
        re.I,
    ),
    re.compile(r"\b(?:as of|since|until|up to|after|before) my (?:last|latest|most recent|knowledge|training)\b", re.I),
    re.compile(r"\bmy (?:last|latest|most recent) (?:knowledge |training |data )*(?:update|cut-?off)\b", re.I),
    re.compile(
        r"我是(?:一个|一個|一款|由)?[^。\n]{0,20}(?:人工智能|人工智慧|语言模型|語言模型|通义千问|AI助手|开发的)"
    ),
    re.compile(
        r"\b(?:je suis|soy|sou|sono|ich bin) (?:une?|una?|um|uma|ein|eine|un') (?:\w+ ){0,2}(?:IA\b|KI\b|intelligence artificielle|inteligencia artificial|inteligência artificial|Sprachmodell|modèle de langage|modelo de lengua\w+|modelo de linguagem|modello linguistico|KI-\w+|assistant IA)",
        re.I,
    ),
]
HINTS = re.compile(
    r"\bAI\b|\bIA\b|\bKI|artificia|intelig|modell?|\bbot\b|chatbot|assistant|program|\bmy\b|\bour\b|trained|created|developed"
    r"|made|built|designed|released|tuned|GPT|Qwen|Llama|LLaMA|Claude|Gemini|Grok|Bard|Smol|Seek|语言|語言|人工|通义|助手|开发"
)


def refusal(answer: Candidate, settings: Filter) -> Verdict | None:
    """1 where the first 200 characters refuse. No ban: the run keeps refusals up to `max_refusal_frac` of what it keeps.

    The rule marks; filter then keeps so many of those that nothing else dropped, in the order of their ids' hashes.
    Asked to decline for the user, an answer that declines is none (patterns ours, in eleven languages).
    """
    if settings.max_refusal_frac is None:
        return None
    start = answer.text[:REFUSAL_CHARS].replace("’", "'")
    refuses = any(pattern.search(start) for pattern in REFUSALS) and not ASKS_REFUSAL.search(answer.prompt)
    return float(refuses), not refuses


def teacher_identity(answer: Candidate, settings: Filter) -> Verdict | None:
    """Times that the teacher speaks of itself as a model, of its maker, or of the date its knowledge ends; `identity_names`.

    A student that learns it says that it is its teacher (open-instruct, which lists names; more of them, and phrases).
    """
    if not settings.drop_teacher_identity:
        return None
    text = answer.text.replace("’", "'")
    num = sum(pattern.search(text) is not None for pattern in IDENTITY) if HINTS.search(text) else 0
    if settings.identity_names:
        num += _names(settings.identity_names).search(text) is not None
    return num, num == 0


@lru_cache(maxsize=8)
def _names(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", re.IGNORECASE)
