"""A linter for words and phrases that pages, docstrings, comments and messages must not use.

``python tests/prose.py`` lists where they do; the session ``lint`` runs it. Each phrase is stiff,
outdated or not idiomatic, and is listed with what to write instead. Code is skipped, in pages and
in docstrings. In the core, the tests and the benchmarks, all docstrings and comments are read.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize

from pages import PROSE, ROOT

SOURCES = ROOT / "src" / "creche"
OUTSIDE = ("tests", "benchmarks", "examples")
CORE = ("_ground", "_nursery", "_running", "_messages", "_core", "_looking")

INSTEAD = {
    r"(?:for|to|of|by|from|with|than|as) who": "whoever, those who",
    r"nobody is told|none is told|none is lost|told twice": "is reported once",
    r"(?:a|the|that) ring|in rings?": "a cycle",
    r"patience": "a grace period",
    r"mend(?:s|ed|ing)?": "fix",
    r"anew": "again, from the start",
    r"in (?:that|the|this) (?:very )?moment": "at that moment, at once",
    r"dearer": "more expensive",
    r"shall": "must, should, will",
    r"(?:state|one) since|is in since": "the new state",
    r"makes? no sense": "is invalid",
    r"goes? (?:before|first)": "takes precedence",
    r"gets? on|got on|getting on": "makes progress",
    r"in the midst": "in the middle of, during",
    r"round (?:it|them|that|its|the|a|each|what)": "around",
    r"say[,;)]": "for example, such as",
    r"(?:that|node|it) (?:falls|fell|has fallen)": "fails",
    r"upon|hence|thereby|therein|thereof|whereby|wherein|whilst|amongst|thus": "a plainer word",
    r"told (?:by|in|at|of|as)": "reported, announced, logged",
    r"tells? of": "reports",
    r"takes? note of": "records, notices",
    r"(?:is|are) no (?:node|worker|group|class|number|message|function|limit|executor)": "is not a",
    r"what is no|that is no|which is no": "what is not a",
    r"in the course of|with regard to|in order that": "during, about, so that",
    r"one's own|workers of one's": "your own",
    r"all the same": "anyway, still",
    r"goes nowhere|comes of (?:it|them)|came of": "a plainer phrase",
    r"has its turn|in its turn": "is next",
    r"for ever": "forever",
    r"in (?:the|its) midst": "in the middle of, during",
    r"broken? off|breaks? (?:it|one|them) off": "is interrupted",
    r"take note|takes note": "record, note",
    r"(?:make|makes|made) up for": "handle, do in its place",
    r"have it said|has it said": "log it",
    r"without saying so": "silently",
    r"sets? in motion": "start",
    r"comes? round to": "takes, gets to",
    r"who (?:waits(?! for whom)|listens|watches|has called|calls|hears)": "those who",
    r"(?:is|are|be|was) dear": "expensive",
    r"dance|oneself": "a plainer word",
    r"; tell whether": "return whether, find out whether",
    r"is news": "is the first, was not known",
    r"at a stroke": "at once",
    r"can be told|could be told": "is known",
    r"may be called again": "safe to call again",
    r"made if need be|if need be": "if necessary",
    r"none of anybody's": "unused, nothing's",
    r"has heard it|is heard by|nothing to be heard": "notices, gets",
    r"left to itself": "left behind, abandoned",
}
PHRASES = {
    re.compile(rf"\b(?:{phrase})(?!\w)".replace(" ", r"\s+"), re.IGNORECASE): instead
    for phrase, instead in INSTEAD.items()
}
EXPORTS = re.compile(r"^__all__ = (\[.*?\])", re.MULTILINE | re.DOTALL)


def without_code(text):
    """Blank out blocks of code, code within lines, and the addresses of links."""

    def blank(found):
        return re.sub(r"[^\n]", " ", found[0])

    for code in (r"^ *```.*?^ *```", r"``.*?``", r"`[^`\n]*`", r"\]\([^)\n]*\)", r'"[^"\n]*"'):
        text = re.sub(code, blank, text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^(?:    |>>> ).*", blank, text, flags=re.MULTILINE)


def docstrings(node, names, *, is_public=True):
    """Yield the docstrings of public names in a file or class, and the lines they begin in."""
    for child in node.body:
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            if is_public and isinstance(child.value.value, str):
                yield child.lineno, child.value.value
        elif not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        elif child.name in names or (names is ALL and not child.name.startswith("_")):
            if isinstance(child, ast.ClassDef):
                yield from docstrings(child, ALL)
            elif ast.get_docstring(child):
                yield child.body[0].lineno, ast.get_docstring(child)


def private(source, tree):
    """Yield all comments and docstrings of a file, and the lines they begin in."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield node.lineno, value.value


def messages(tree):
    """Yield the strings in the raise statements of a file, and their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            for part in ast.walk(node.exc):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.lineno, part.value


ALL = frozenset({""})


def exported():
    """Yield the names in ``__all__`` of every file."""
    for path in SOURCES.rglob("*.py"):
        found = EXPORTS.search(path.read_text("utf-8"))
        yield from ast.literal_eval(found[1]) if found else ()


def texts():
    """Yield every text to check: its file, the line it begins in, and the text."""
    for page in PROSE:
        yield page, 1, without_code(page.read_text("utf-8"))
    names = {*exported(), "StateChanged", "ProgressChanged", "Restarted", "Stalled", "Ready"}
    for path in sorted(SOURCES.rglob("*.py")):
        source = path.read_text("utf-8")
        tree = ast.parse(source)
        is_public = "/_" not in str(path).replace("__init__", "")
        for line, text in docstrings(tree, names, is_public=is_public):
            yield path, line, without_code(re.sub(r"^ {4,}", "", text, flags=re.MULTILINE))
        if path.relative_to(SOURCES).parts[0] in CORE:
            for line, text in private(source, tree):
                yield path, line, without_code(re.sub(r"^ {4,}", "", text, flags=re.MULTILINE))
        for line, text in messages(tree):
            yield path, line, text
    for path in sorted(each for folder in OUTSIDE for each in (ROOT / folder).rglob("*.py")):
        if path.name not in ("prose.py", "test_prose.py"):  # they contain the phrases
            source = path.read_text("utf-8")
            for line, text in private(source, ast.parse(source)):
                yield path, line, without_code(re.sub(r"^ {4,}", "", text, flags=re.MULTILINE))


def found():
    """Yield a line of output for each unwanted phrase found."""
    for path, first, text in texts():
        for phrase, instead in PHRASES.items():
            for match in phrase.finditer(text):
                line = first + text.count("\n", 0, match.start())
                words = " ".join(match[0].split())
                yield f"{path.relative_to(ROOT)}:{line}: {words!r}: write {instead}"


if __name__ == "__main__":
    sys.exit("\n".join(sorted({*found()})) or 0)
