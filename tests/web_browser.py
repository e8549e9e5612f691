"""Helpers for tests that open the page of ``creche.web`` in a browser."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest

import browser as browsers

MEASURE = """(scroll) => new Promise((done) => {
  const gaps = [], begun = performance.now();
  let last = begun;
  function frame(time) {
    gaps.push(time - last); last = time;
    if (scroll) tree.scrollTop += 97;
    if (time - begun < 4000) requestAnimationFrame(frame); else done(gaps.slice(2));
  }
  requestAnimationFrame(frame);
})"""
"""Returns the milliseconds between frames for four seconds, optionally while scrolling."""


def of_frames(gaps):
    """Summarise the result of ``MEASURE``."""
    gaps = sorted(gaps)
    places = {"median": 50, "95 %": 95, "99 %": 99}
    told = {name: round(gaps[len(gaps) * place // 100], 1) for name, place in places.items()}
    return {"frames": len(gaps), **told, "worst": round(gaps[-1], 1)}


@contextmanager
def opened():
    """Open a browser, or skip the test if there is none."""
    with browsers.opened() as (browser, reason):
        if browser is None:
            if os.environ.get("CRECHE_BROWSER_NEEDED"):
                pytest.fail(reason)
            pytest.skip(reason)
        yield browser


def drawn(page):
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")


def rows(page):
    """Return the visible rows as text, from top to bottom."""
    drawn(page)
    return page.evaluate(
        """[...document.querySelectorAll("[role=treeitem]:not([hidden])")]
           .sort((a, b) => a.top - b.top)
           .map((row) => [...row.querySelectorAll(".what > *, .row > span")]
             .filter((part) => part.className !== "what" && part.textContent)
             .map((part) => part.textContent).join(" | "))"""
    )


def until(page, what):
    """Wait until an expression is true in the page, whose policy forbids it to evaluate strings."""
    page.evaluate(
        f"new Promise((done) => {{ (function look() {{ "
        f"if ({what}) done(); else requestAnimationFrame(look); }})() }})"
    )


def row(page, name):
    return page.get_by_role("treeitem").filter(has_text=name)
