"""The pictures of the docs can be drawn, and that of the states is up to date."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def pictures():
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_diagram_of_the_states_is_up_to_date(pictures):
    """The file matches the table of states; ``nox -s pictures`` draws it again."""
    kept = (DOCS / "pictures" / "states.svg").read_text(encoding="utf-8")
    assert pictures.states() == kept


def test_each_change_of_state_is_an_arrow(pictures):
    """The arrows are exactly the transitions of the table."""
    titles = ET.fromstring(pictures.states()).iter("{http://www.w3.org/2000/svg}title")  # noqa: S314 (our own)
    assert sorted(title.text for title in titles)[:-1] == [
        "PENDING to CANCELLED",
        "PENDING to ERROR",
        "PENDING to RUNNING",
        "RUNNING to CANCELLED",
        "RUNNING to ERROR",
        "RUNNING to SUCCESS",
    ]


def test_all_pictures_can_be_drawn(pictures, monkeypatch, tmp_path):
    """The command writes every picture, the same each time, and each is an SVG file."""
    pytest.importorskip("rich")
    pytest.importorskip("trio")
    monkeypatch.setattr(pictures, "PLACE", tmp_path / "pictures")
    drawn = []
    for _ in range(2):
        pictures.main([])
        files = sorted((tmp_path / "pictures").iterdir())
        drawn.append([file.read_text(encoding="utf-8") for file in files])
    assert [file.name for file in files] == sorted(pictures.PICTURES)
    assert sorted(pictures.PICTURES) == sorted(file.name for file in DOCS.glob("pictures/*.svg"))
    assert drawn[0] == drawn[1]
    assert all(ET.fromstring(text).tag.endswith("svg") for text in drawn[0])  # noqa: S314 (our own)


def test_the_board_is_in_its_picture(pictures):
    """The picture of the board shows running workers, queued ones and a failure."""
    pytest.importorskip("rich")
    pytest.importorskip("trio")
    text = pictures.board().replace("&#160;", " ")
    assert all(words in text for words in ("limit 4", "30 more queued", "has hung up", "5 running"))
