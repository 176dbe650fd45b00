"""Rules about the teacher speaking of itself: refusals, which are capped, and its identity, which is dropped."""

import re
from functools import lru_cache

from pipeline.config import Filter
from pipeline.filter.rules.candidate import Candidate, Verdict

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
# Asked to decline, the teacher declines for the user; that is an answer.
ASKS_REFUSAL = re.compile(
    r"declin|refus|reject|turn(?:ing)? (?:\w+ ){0,3}down|apolog|cancel|excus|say(?:ing)? (?:no|sorry)|regret|resign"
    r"|can't (?:come|make|attend|join)|cannot (?:come|attend)|won't be able|unable to|translat|absag|ablehn",
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
    r"|LLaMA|Llama[ -]?[234][\w.]*|Gemma[ -]?\d\w*|Phi-\d\w*|Ernie Bot|Grok|OpenAssistant|Bard|Kimi"
    r"|Claude(?=,? (?:an? |from |by|made|created|developed|Anthropic))"
    r"|Gemini(?=,? (?:an? |from |by|made|created|developed|Google)))"
)
IDENTITY = [
    re.compile(
        rf"\bas an? (?:\w+ )?{_AI}(?: language)?(?: model| assistant| chatbot| system)?[^.,\n]{{0,60}},? (?:I\b|my\b)",
        re.IGNORECASE,
    ),
    re.compile(
        rf"\bI(?:'m| am)(?: just| only| simply)? an? (?:\w+ ){{0,2}}{_AI}\b(?! (?:\w*er|\w*ist)\b)", re.IGNORECASE
    ),
    re.compile(rf"(?:\bI(?:'m| am| was)|\b[Mm]y name is|\b[Cc]all me|\b[Tt]his is)\s+(?:\w+,? ){{0,2}}{_MODELS}(?!\w)"),
    re.compile(
        rf"\b(?:I|me|model|assistant)\b[^.\n]{{0,60}}\b(?:created|developed|trained|made|built|designed|released"
        rf"|fine-tuned) (?:\w+ )?by (?:\w+ ){{0,3}}{_MAKERS}(?!\w)"
    ),
    re.compile(
        r"\b(?:my|our) (?:knowledge|training)(?: data)?[^.\n]{0,40}\b(?:cut-?off|cut off|goes? up to|up to|ends?|until"
        r"|extends)\b",
        re.IGNORECASE,
    ),
    re.compile(
        r"\b(?:as of|since|until|up to|after|before) my (?:last|latest|most recent|knowledge|training)"
        r" (?:knowledge |training |data )*(?:update|cut-?off|cut off|data)\b",
        re.IGNORECASE,
    ),
    re.compile(r"\bmy (?:last|latest|most recent) (?:knowledge |training |data )+(?:update|cut-?off)\b", re.IGNORECASE),
    re.compile(
        r"我是(?:一个|一個|一款|由)?[^。\n]{0,20}(?:人工智能|人工智慧|语言模型|語言模型|通义千问|AI助手|开发的)"
    ),
    re.compile(
        r"\b(?:je suis|soy|sou|sono|ich bin) (?:une?|una?|um|uma|ein|eine|un') (?:\w+ ){0,2}(?:IA\b|KI\b|intelligence"
        r" artificielle|inteligencia artificial|inteligência artificial|Sprachmodell|modèle de langage"
        r"|modelo de lengua\w+|modelo de linguagem|modello linguistico|KI-\w+|assistant IA)",
        re.IGNORECASE,
    ),
]
# A text that a pattern of IDENTITY matches has one of these words, or these Han: to look for them costs a tenth.
_HINTS = (
    "ai ia ki artificial artificielle inteligencia inteligência language langage lenguaje linguagem linguistico program"
    " sprachmodell chatbot bot virtual cutoff update knowledge training chat chatgpt gpt qwen smollm"
    " llama tongyi deepseek chatglm internlm vicuna mixtral gemma phi ernie grok openassistant bard claude gemini kimi"
    " openai anthropic google deepmind meta mistral alibaba hugging huggingface microsoft xai cohere baidu tencent"
    " zhipu moonshot nvidia ibm tii stability eleutherai allen nous bytedance minimax shanghai"
)
HINTS = frozenset(_HINTS.split())
LETTERS = re.compile(r"[a-zà-ÿ]+")
HAN_HINTS = re.compile("模型|人工|通义|助手|开发的")


def refusal(answer: Candidate, settings: Filter) -> Verdict | None:
    """1 where the first 200 characters refuse. No ban: refusals may be `max_refusal_frac` of what the run keeps.

    The rule marks; filter then keeps so many of those that nothing else dropped, in the order of their ids' hashes.
    Asked to decline for the user, an answer that declines is none (patterns ours, in eleven languages).
    """
    if settings.max_refusal_frac is None:
        return None
    start = answer.text[:REFUSAL_CHARS].replace("’", "'")
    refuses = any(pattern.search(start) for pattern in REFUSALS) and not ASKS_REFUSAL.search(answer.prompt)
    return float(refuses), not refuses


def teacher_identity(answer: Candidate, settings: Filter) -> Verdict | None:
    """Ways in which the teacher speaks of itself as a model, of its maker, of its cut-off date; `identity_names`.

    A student that learns it says that it is its teacher (open-instruct, which lists names; more of them, and phrases).
    """
    if not settings.drop_teacher_identity:
        return None
    text = answer.text.replace("’", "'")
    lower = text.lower()
    is_hinted = not HINTS.isdisjoint(LETTERS.findall(lower)) or (not lower.isascii() and HAN_HINTS.search(lower))
    num = sum(pattern.search(text) is not None for pattern in IDENTITY) if is_hinted else 0
    if settings.identity_names:
        num += _names(settings.identity_names).search(text) is not None
    return num, num == 0


@lru_cache(maxsize=8)
def _names(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", re.IGNORECASE)
