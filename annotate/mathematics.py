r"""Mathematics in Markdown: $…$, $$…$$, \(…\) and \[…\] become MathML, which browsers draw by themselves.

latex2mathml reads the TeX. What it makes is hostile still: \href and \style come through as attributes, and characters
as entities half escaped. So its tree is written anew here: only the elements and the values listed below come out, all
text is escaped, and variants of letters become the letters that Unicode has for them (browsers know no other way).
The sanitiser of annotate.rendering, which takes its lists from here, is the second wall.

A formula that is broken, too long, too deep, or that would hide words from the reader is shown as its source.
"""

import re
import unicodedata
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.utils import EnvType

MAX_TEX = 2_000  # characters of a formula
MAX_ALL_TEX = 20_000  # characters of the formulas of one text
MAX_LINES = 60  # of a formula that stands by itself
MAX_ELEMENTS = 2_000
MAX_DEPTH = 40

_BOOLEAN = frozenset({"true", "false"})
_BIG = frozenset({"1.2em", "1.623em", "2.047em", "2.470em", "3em"})
ATTRIBUTES = {
    "math": {"display": frozenset({"block"})},
    "mi": {"mathvariant": frozenset({"normal"})},
    "mo": {
        **dict.fromkeys(("fence", "movablelimits", "stretchy"), _BOOLEAN),
        "form": frozenset({"prefix", "infix", "postfix"}),
        **dict.fromkeys(("minsize", "maxsize"), _BIG),
    },
    "mfrac": {"linethickness": frozenset({"0"})},
    **{tag: {"accent": _BOOLEAN, "accentunder": _BOOLEAN} for tag in ("mover", "munder", "munderover")},
    "mspace": {"width": frozenset({"-0.167em", "0.167em", "0.222em", "0.278em", "0.333em", "0.5em", "1em", "2em"})},
    "mstyle": {"displaystyle": _BOOLEAN, "scriptlevel": frozenset({"0", "1", "2"})},
    "mtable": {"displaystyle": _BOOLEAN},
}
TAGS = frozenset(
    {"math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mstyle", "mfrac", "msqrt", "mroot", "msub", "msup"}
    | {"msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd", "mpadded"}
)
CLASSES = {"mtd": {"left", "right"}, "mrow": {"boxed", "struck"}}

# Macros may grow without bound; the others leave out words that the reader should see, or draw over some.
REFUSED = re.compile(
    r"\\(?:(?:re)?newcommand|def|let|newenvironment|DeclareMathOperator|mathchoice|h?phantom|vphantom|href|style|class"
    r"|unicode|verb|leftroot|uproot|rule|[lrc]lap|math[lrc]lap|smash|raise|lower|move(?:left|right))(?![a-zA-Z])|(?<!\\)%"
)
ENVIRONMENT = re.compile(
    r"(\\(?:begin|end)\s*\{)(align|aligned|alignat|alignedat|eqnarray|gather|gathered|multline|dcases)\*?\}"
)
SAME_AS = {"gather": "matrix", "gathered": "matrix", "multline": "matrix", "dcases": "cases"}
ENTITY = re.compile("&#x([0-9A-Fa-f]{2,6});")
VARIANTS = {
    "bold": "BOLD",
    "italic": "ITALIC",
    "bold-italic": "BOLD ITALIC",
    "double-struck": "DOUBLE-STRUCK",
    "script": "SCRIPT",
    "fraktur": "FRAKTUR",
    "sans-serif": "SANS-SERIF",
    "sans-serif-italic": "SANS-SERIF ITALIC",
    "monospace": "MONOSPACE",
}


class NotShowableError(Exception):
    """Something in a formula that is not shown as mathematics."""


def to_mathml(tex: str, *, is_block: bool = False) -> str | None:
    """The formula as a `<math>` element; None if it cannot be shown as one."""
    if len(tex) > MAX_TEX or REFUSED.search(tex):
        return None
    tex = ENVIRONMENT.sub(lambda match: f"{match[1]}{SAME_AS.get(match[2], 'align*')}}}", tex)
    try:
        tree = convert_to_element(tex.strip(), display="block" if is_block else "inline")
        return "".join(_Writer().write(tree))
    except Exception:  # it meets broken TeX with StopIteration, KeyError, RecursionError and what not
        return None


class _Writer:
    """Writes a tree of latex2mathml's as HTML, from the lists above alone."""

    def __init__(self) -> None:
        self.num_elements = 0

    def write(self, element: Element, depth: int = 0) -> list[str]:
        self.num_elements += 1
        if depth > MAX_DEPTH or self.num_elements > MAX_ELEMENTS:
            raise NotShowableError
        tag, classes = element.tag, element.get("columnalign", "")
        if tag == "menclose":
            tag, classes = "mrow", "boxed" if element.get("notation") == "box" else "struck"
        if tag not in TAGS:
            raise NotShowableError
        attributes = "".join(
            f' {name}="{value}"'
            for name, value in element.attrib.items()
            if value in ATTRIBUTES.get(tag, {}).get(name, ())
        )
        if classes in CLASSES.get(tag, ()):
            attributes += f' class="{classes}"'
        parts = [f"<{tag}{attributes}>", self._text(element)]
        for child in element:
            parts += self.write(child, depth + 1)
        parts.append(f"</{tag}>")
        return parts

    @staticmethod
    def _text(element: Element) -> str:
        text = ENTITY.sub(lambda match: chr(int(match[1], 16)), element.text or "")
        is_command = len(text) > 1 and text.startswith("\\") and element.tag != "mtext"
        if is_command or (text == "&" and element.tag == "mi"):
            raise NotShowableError  # a command or a table that the library does not know
        variant = VARIANTS.get(element.get("mathvariant", ""))
        return escapeHtml("".join(_letter(character, variant) for character in text) if variant else text)


def _letter(character: str, variant: str) -> str:
    """Mathematical bold A for A; the character itself where Unicode has no such variant."""
    name = unicodedata.name(character, "")
    for noise in ("LATIN ", "GREEK ", "LETTER "):
        name = name.replace(noise, "")
    for kind in (f"MATHEMATICAL {variant}", variant, variant.replace("FRAKTUR", "BLACK-LETTER")):
        try:
            return unicodedata.lookup(f"{kind} {name}")
        except KeyError:
            continue
    return character


# Markdown


def teach(parser: MarkdownIt) -> None:
    """Teach the parser mathematics; formulas beyond `MAX_ALL_TEX` stay the text they are."""
    parser.inline.ruler.before("escape", "mathematics", _inline)
    parser.block.ruler.before("fence", "mathematics", _block, {"alt": ["paragraph", "blockquote", "list"]})


def _inline(state: StateInline, silent: bool) -> bool:
    opening = _opening(state.src, state.pos)
    if opening is None:
        return False
    closing, begin = CLOSING[opening], state.pos + len(opening)
    end = _find_closing(state.src, closing, begin, min(state.posMax, begin + MAX_TEX))
    if end < 0 or not _is_formula(state.src, opening, begin, end) or not _is_affordable(state.env, end - begin):
        return False
    if not silent:
        state.env["num_tex"] = state.env.get("num_tex", 0) + end - begin
        token = state.push("mathematics", "", 0)
        token.content, token.markup = state.src[begin:end], opening
    state.pos = end + len(closing)
    return True


def _block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """A formula whose delimiters begin one line and end the same or a later one, with no empty line between."""
    if state.is_code_block(first):
        return False
    start = state.bMarks[first] + state.tShift[first]
    opening = state.src[start : start + 2]
    if opening not in ("$$", "\\["):
        return False
    closing = CLOSING[opening]
    for line in range(first, min(last, first + MAX_LINES)):
        if line > first and (state.isEmpty(line) or state.sCount[line] < state.blkIndent):
            return False
        text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].rstrip()
        if text.endswith(closing) and (line > first or len(text) >= 4):
            break
    else:
        return False
    lines = state.getLines(first, line + 1, state.blkIndent, False).strip()
    tex = lines[2:-2]
    is_formula = line > first or _is_formula(lines, opening, 2, len(lines) - 2)
    if closing in tex or not tex.strip() or not is_formula or not _is_affordable(state.env, len(tex)):
        return False
    if not silent:
        state.env["num_tex"] = state.env.get("num_tex", 0) + len(tex)
        token = state.push("mathematics_block", "", 0)
        token.block, token.content, token.markup, token.map = True, tex, opening, [first, line + 1]
        state.line = line + 1
    return True


CLOSING = {"$": "$", "$$": "$$", "\\(": "\\)", "\\[": "\\]"}
WORD = re.compile(r"(?<![\\\w{])[^\W\d_]{3,}")  # prose; in TeX such words are commands or stand in braces
SIGN = re.compile(r"[\\^_=<>+*/{}|-]")


def _opening(text: str, pos: int) -> str | None:
    if text[pos] == "$":
        return "$$" if text.startswith("$$", pos) else "$"
    opening = text[pos : pos + 2]
    return opening if opening in ("\\(", "\\[") else None


def _find_closing(text: str, closing: str, begin: int, end: int) -> int:
    """Where the formula ends; -1 if nowhere. A backslash takes its next character with it, as in \\$."""
    found = text.find(closing, begin, end)
    while found > 0 and _is_escaped(text, begin, found):
        found = text.find(closing, found + 1, end)
    return found


def _is_escaped(text: str, begin: int, pos: int) -> bool:
    before = text[begin:pos]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _is_formula(text: str, opening: str, begin: int, end: int) -> bool:
    """Whether what stands between the delimiters is mathematics: "$5 and $10" and "\\[sic\\]" are not."""
    tex = text[begin:end]
    if not tex.strip() or "\n\n" in tex:
        return False
    num_words = len(WORD.findall(tex))
    if opening == "$":
        before, after = text[begin - 2 : begin - 1], text[end + 1 : end + 2]
        if tex[0].isspace() or tex[-1].isspace() or "\n" in tex or before.isalnum() or after.isdigit():
            return False
        is_plain_word = len(tex) > 1 and not SIGN.search(tex)  # the nth is mathematics, $HOME$PATH is not
        return num_words < (1 if tex[0].isdigit() else 2) and not (after.isalpha() and is_plain_word)
    if opening == "\\[":
        return SIGN.search(tex) is not None and num_words < 5
    return num_words < 2 or "\\" in tex


def _is_affordable(env: EnvType, num_chars: int) -> bool:
    return int(env.get("num_tex", 0)) + num_chars <= MAX_ALL_TEX
