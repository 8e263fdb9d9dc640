"""Colours for code: Pygments finds the tokens, this module says which of a few classes each is given.

The language is the one that the fence names; none is guessed. Each lexer is a set of regular expressions that others
wrote for honest code, so only well-known languages have one here, and long code stays plain.
"""

from collections.abc import Iterator
from functools import cache

from markdown_it.common.utils import escapeHtml
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Token, _TokenType

MAX_CODE = 5_000  # characters of one fence
MAX_ALL_CODE = 10_000  # characters of the fences of one text

# Left out: languages whose lexers take over a second for 5,000 characters made for it (c#, make, matlab, ocaml)
LANGUAGES = frozenset(
    (
        *(
            "bash",
            "sh",
            "shell",
            "zsh",
            "console",
            "powershell",
            "python",
            "python3",
            "py",
            "pycon",
            "javascript",
            "js",
        ),
        *("jsx", "typescript", "ts", "java", "c", "cpp", "c++", "objective-c", "objc", "go", "golang", "rust", "rs"),
        *("ruby", "rb", "php", "swift", "kotlin", "scala", "dart", "lua", "perl", "r", "julia", "haskell", "elixir"),
        *("clojure", "fortran", "sql", "mysql", "postgresql", "graphql", "html", "xml", "css", "scss", "json", "yaml"),
        *("toml", "ini", "diff", "dockerfile", "docker", "cmake", "nginx", "latex", "tex"),
    )
)
CLASS_OF = {
    Token.Comment: "c",
    Token.Keyword: "k",
    Token.Keyword.Constant: "m",
    Token.Keyword.Type: "nb",
    Token.Literal.Number: "m",
    Token.Literal.String: "s",
    Token.Operator.Word: "k",
    Token.Name.Attribute: "na",
    Token.Name.Builtin: "nb",
    Token.Name.Class: "nf",
    Token.Name.Constant: "m",
    Token.Name.Decorator: "na",
    Token.Name.Exception: "nb",
    Token.Name.Function: "nf",
    Token.Name.Tag: "k",
    Token.Name.Variable: "nv",
    Token.Generic.Deleted: "gd",
    Token.Generic.Heading: "gh",
    Token.Generic.Inserted: "gi",
    Token.Generic.Prompt: "c",
    Token.Generic.Subheading: "gh",
}
CLASSES = frozenset(CLASS_OF.values())


def highlight(code: str, language: str) -> str:
    """The code as HTML, its tokens in `<span class="…">`; escaped and plain if there is no lexer for it."""
    lexer = _lexer(language.lower())
    if lexer is None or len(code) > MAX_CODE:
        return escapeHtml(code)
    runs = list(_runs(code, lexer))
    if sum(len(text) for _, text in runs) != len(code):
        return escapeHtml(code)  # some lexers drop what they do not understand
    return "".join(
        f'<span class="{name}">{escapeHtml(text)}</span>' if name else escapeHtml(text) for name, text in runs
    )


def _runs(code: str, lexer: Lexer) -> Iterator[tuple[str, str]]:
    """Class and text of each stretch of equal class."""
    name, text = "", ""
    for _index, kind, value in lexer.get_tokens_unprocessed(code):
        new = _class_of(kind)
        if new != name and value.strip():
            if text:
                yield name, text
            name, text = new, value
        else:
            text += value
    yield name, text


@cache
def _class_of(kind: _TokenType) -> str:
    """That of the token type itself, else of the nearest more general one; none for names, operators and text."""
    return next((CLASS_OF[each] for each in reversed(kind.split()) if each in CLASS_OF), "")


@cache
def _lexer(language: str) -> Lexer | None:
    return get_lexer_by_name(language) if language in LANGUAGES else None
