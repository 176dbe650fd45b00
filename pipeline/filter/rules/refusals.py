"""Rules about the teacher speaking of itself: refusals, which are capped, and its identity, which is dropped."""

import re
from functools import lru_cache

from pipeline.config import Filter
from pipeline.filter.rules.response import Response, Verdict
from pipeline.text.refusals import refuses

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
ASCII_LETTERS = {code: " " for code in range(128) if not chr(code).islower()}  # all else is a space
HAN_HINTS = re.compile("模型|人工|通义|助手|开发的")


def refusal(answer: Response, settings: Filter) -> Verdict | None:
    """1 where the first 200 characters refuse. No ban: refusals may be `max_refusal_frac` of what the run keeps.

    The rule marks; filter then keeps so many of those that nothing else dropped, in the order of their ids' hashes.
    Asked to decline for the user, an answer that declines is none (pipeline/text/refusals.py). Ours.
    """
    if settings.max_refusal_frac is None:
        return None
    refused = refuses(answer.text) and not ASKS_REFUSAL.search(answer.prompt)
    return float(refused), not refused


def teacher_identity(answer: Response, settings: Filter) -> Verdict | None:
    """Ways in which the teacher speaks of itself as a model, of its maker, of its cut-off date; `identity_names`.

    A student that learns it says that it is its teacher (open-instruct, which lists names; more of them, and phrases).
    """
    if not settings.drop_teacher_identity:
        return None
    text = answer.text.replace("’", "'")
    lower = text.lower()
    if lower.isascii():  # as LETTERS has it, in half the time
        is_hinted = not HINTS.isdisjoint(lower.translate(ASCII_LETTERS).split())
    else:
        is_hinted = not HINTS.isdisjoint(LETTERS.findall(lower)) or HAN_HINTS.search(lower)
    num = sum(pattern.search(text) is not None for pattern in IDENTITY) if is_hinted else 0
    if settings.identity_names:
        num += _names(settings.identity_names).search(text) is not None
    return num, num == 0


@lru_cache(maxsize=8)
def _names(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", re.IGNORECASE)
