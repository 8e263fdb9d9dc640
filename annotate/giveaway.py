"""Answers that name the model which wrote them: where one does, annotators can tell whose it is.

Pure text. Only what tells of the writer counts: it introduces itself ("I'm Claude, made by Anthropic"), says who made
it ("as an AI developed by OpenAI"), or holds the name that the data give its model. An answer about some model, about
Claude Monet or the bard of Avon does not. The price of that care: who speaks of itself in the third person ("ChatGPT
cannot do that") is found only where the data name it so too.
"""

import re

MAX_WORDS = 100  # characters given back: what Response.giveaway holds
MAX_SEARCHED = 50_000  # characters looked through: models introduce themselves early, if they do

# Nothing else has these names; the others belong to people, animals, stars and poets too.
UNMISTAKABLE = (
    *("chatgpt", "chat gpt", "chat-gpt", "gpt-", "gpt3", "gpt4", "bing chat", "chatglm", "deepseek", "mixtral", "qwen"),
    *("openassistant", "open assistant", "openhermes", "wizardlm", "stablelm", "openbuddy", "baichuan", "internlm"),
    *("通义千问", "文心一言", "豆包"),
)
AMBIGUOUS = (
    *(
        "claude",
        "gemini",
        "bard",
        "llama",
        "alpaca",
        "vicuna",
        "koala",
        "dolly",
        "mistral",
        "falcon",
        "grok",
        "copilot",
    ),
    *("sydney", "baize", "gemma", "kimi", "tulu", "tülu", "guanaco"),
)
MAKERS = (
    *(
        "openai",
        "open ai",
        "anthropic",
        "google",
        "deepmind",
        "meta",
        "microsoft",
        "mistral",
        "alibaba",
        "baidu",
        "xai",
    ),
    *("deepseek", "cohere", "large model systems", "lmsys", "hugging face", "stability ai", "tsinghua", "moonshot"),
    *("zhipu", "nous research", "laion", "allen institute", "阿里", "智谱", "深度求索"),
)
CLUES = tuple(dict.fromkeys((*UNMISTAKABLE, *AMBIGUOUS, *MAKERS)))

MODEL = f"(?:{'|'.join(map(re.escape, UNMISTAKABLE))})(?:[\\w.-]*\\w)?"
MAYBE_MODEL = f"(?:{'|'.join(map(re.escape, AMBIGUOUS))})(?![\\w\u2019'-])"
MAKER = f"(?:{'|'.join(map(re.escape, MAKERS))})(?![\\w-])"
AI = r"\b(?:ai|artificial\ intelligence|language\ model|llm|chat\ ?bot|(?:virtual|digital)\ assistant)\b"
MADE = r"\b(?:trained|made|created|developed|built|designed)"
NEAR = r"[^.!?\n]{0,60}?"  # within a sentence
I_AM = r"""(?:\b(?:i\ am|i[\u2019']m|my\ name\ is|my\ name[\u2019']s|call\ me
    |you\ are\ (?:talking|chatting|speaking)\ (?:to|with)
    |ich\ bin|ich\ hei(?:ß|ss)e|je\ suis|je\ m[\u2019']appelle|soy|me\ llamo|sou|sono|mi\ chiamo)\ |我是|我叫)["“*]*"""
KIND = rf"(?:(?:an?|the|ein|un|uma?)\ )?(?:{AI}\ )?(?:(?:called|named|known\ as)\ )?"

SPEAKS_OF_ITSELF = re.compile(
    rf"""
      {I_AM} {KIND} {MODEL}  # I'm ChatGPT
    | {I_AM} claude (?= ["”*]* (?: [.!;:\n] | ,\ (?!an?\ ) | \ [-\u2013—] | \ {MADE} | $ ))  # My name is Claude.
    | {I_AM} {KIND} {MAYBE_MODEL} (?= {NEAR} (?: {AI} | {MADE}\ by ))  # I am Gemini, a large language model
    | (?<!such\ )(?<!same\ )(?<!known\ ) \bas\ {KIND} (?: {MODEL} | {MAYBE_MODEL} ) (?= ,{NEAR}\b(?:i|my|me)\b )
    | \b(?: i\ am | i[\u2019']m | as )\ an?\ [^.!?,\n]{{0,60}}? {AI}
      (?: {NEAR}{MADE} | \ \w+ )? \ (?:by|from|at)\ {NEAR} {MAKER}  # as an AI developed by OpenAI
    | \bi\ (?: was | am | have\ been )\ (?:\w+\ )? {MADE}\ by\ {NEAR} {MAKER}
    | \bi(?: \ am | [\u2019']m | \ was )\ based\ on\ {NEAR} {MODEL}
    | \bmy\ (?: creators? | developers? | makers? )\ (?:at|are|is)\ {MAKER}
    | {MAKER} [\u2019's]* (?: ,?\ (?:that|who|which) )? (?: \ ha[sd] )?\ {MADE}\ me\b
    """,
    re.VERBOSE,
)
NAME_PART = re.compile(r"[-_ /:]+")


def giveaway(content: str, model: str) -> str:
    """The words with which an answer names the model that wrote it; empty if it does not.

    Args:
        content: the answer.
        model: what the data call its model; may be empty.

    Returns:
        At most `MAX_WORDS` characters, as they stand in the answer.
    """
    content = content[:MAX_SEARCHED]
    lowered = _lower(content)
    if any(clue in lowered for clue in CLUES) and (found := SPEAKS_OF_ITSELF.search(lowered)):
        return content[slice(*found.span())][:MAX_WORDS]
    for name in _names(model):
        start, end = lowered.find(name), lowered.find(name) + len(name)
        if start >= 0 and not (lowered[start - 1 : start].isalnum() or lowered[end : end + 1].isalnum()):
            return content[start:end][:MAX_WORDS]
    return ""


def _lower(text: str) -> str:
    """In small letters, each character in its place."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else "".join(small if len(small := c.lower()) == 1 else c for c in text)


def _names(model: str) -> list[str]:
    """What the answer may call its model, longest first: meta/llama-3-8b is llama-3-8b and llama-3 too.

    A name without a digit is a word that may mean anything ("falcon", "human"), unless only models are called so.
    """
    name = model.lower().strip()
    parts = NAME_PART.split(name.rpartition("/")[2])
    shorter = [name[name.rfind("/") + 1 :][: len("-".join(parts[:end]))] for end in range(len(parts), 0, -1)]
    return [each for each in dict.fromkeys((name, *shorter)) if _is_telling(each)]


def _is_telling(name: str) -> bool:
    if len(name) < 4:
        return False
    return name in UNMISTAKABLE or ("/" in name) or (any(map(str.isdigit, name)) and any(map(str.isalpha, name)))
