"""Pages, docstrings, comments and error messages use none of the phrases in prose.py."""

from __future__ import annotations

import ast

import pytest

import prose


def test_nothing_uses_them():
    """No page, docstring, comment or error message that is checked has one of the phrases."""
    if not prose.SOURCES.exists():
        pytest.skip("the wheel is tested without the sources")
    assert list(prose.found()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("for who looks only now and then", "for who"),
        ("it waits in a ring", "a ring"),
        ("the state that it is in since", "is in since"),
        ("Each is told twice.", "told twice"),
        ("Defects are mended.", "mended"),
        ("an argument makes\nno sense", "makes\nno sense"),
        ("a call that comes in its midst", "in its midst"),
        ("whatever breaks it off", "breaks it off"),
        ("workers die without saying so", "without saying so"),
        ("a runner comes round to it", "comes round to"),
        ("whoever is in a ring", "a ring"),
    ],
)
def test_they_are_noticed(text, words):
    """A phrase is found wherever it stands in a sentence, and across the end of a line."""
    found = [match[0] for phrase in prose.PHRASES for match in phrase.finditer(text)]
    assert found == [words]


def test_comments_and_private_docstrings_are_read():
    """Comments are read, and so are the docstrings of private functions."""
    source = 'def _wait():\n    """Who waits, waits."""\n    return 1  # or for ever\n'
    found = dict(prose.private(source, ast.parse(source)))
    assert found == {2: "Who waits, waits.", 3: "# or for ever"}


def test_tests_and_benchmarks_are_read():
    """The tests and the benchmarks are checked, too."""
    read = {path.relative_to(prose.ROOT).parts[0] for path, _, _ in prose.texts()}
    assert {"tests", "benchmarks"} <= read


def test_code_is_left_out():
    """Code in a page is not checked: neither in blocks nor within a line nor in links."""
    page = "a `ring` and [it](of-who.md)\n\n```python\nshall = anew\n```\n\n    hence\n\nshall\n"
    text = prose.without_code(page)
    found = [match for phrase in prose.PHRASES for match in phrase.finditer(text)]
    assert [text.count("\n", 0, match.start()) for match in found] == [page.count("\n") - 1]


def test_docstrings_are_those_of_public_names():
    """Docstrings of exported classes and functions are read, and of the public methods."""
    tree = ast.parse('''
class Out:
    """1"""
    def method(self):
        """2"""
    def _own(self):
        """no"""
class In:
    """no"""
def out():
    """3"""
''')
    read = [text for _, text in prose.docstrings(tree, {"Out", "out"})]
    assert read == ["1", "2", "3"]
