"""The page of ``creche.web`` in a browser, as its tests look at it."""

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
"""Gives the milliseconds from each frame to the next for some seconds, while it scrolls."""


def of_frames(gaps):
    """Sum up what ``MEASURE`` gave."""
    gaps = sorted(gaps)
    places = {"median": 50, "95 %": 95, "99 %": 99}
    told = {name: round(gaps[len(gaps) * place // 100], 1) for name, place in places.items()}
    return {"frames": len(gaps), **told, "worst": round(gaps[-1], 1)}


@contextmanager
def opened():
    """Open a browser, or skip the test where there is none."""
    with browsers.opened() as (browser, reason):
        if browser is None:
            if os.environ.get("CRECHE_BROWSER_NEEDED"):
                pytest.fail(reason)
            pytest.skip(reason)
        yield browser


def drawn(page):
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")


def rows(page):
    """The rows as text, from above."""
    drawn(page)
    return page.evaluate(
        """[...document.querySelectorAll("[role=treeitem]:not([hidden])")]
           .sort((a, b) => a.top - b.top)
           .map((row) => [...row.querySelectorAll(".what > *, .row > span")]
             .filter((part) => part.className !== "what" && part.textContent)
             .map((part) => part.textContent).join(" | "))"""
    )


def until(page, what):
    """Wait until something is true in the page, which must not evaluate strings by itself."""
    page.evaluate(
        f"new Promise((done) => {{ (function look() {{ "
        f"if ({what}) done(); else requestAnimationFrame(look); }})() }})"
    )


def row(page, name):
    return page.get_by_role("treeitem").filter(has_text=name)
