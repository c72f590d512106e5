"""The HTML report in a real browser: no error in the console, nothing requested, no sideways scrolling on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parity_tests.judging.judge import judge
from parity_tests.report import html_report
from parity_tests.report.report_test import sample_run

pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SMALLEST_TEXT = 9.0
"""Pixels; the height of the smallest letters in a plot on a phone."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright; the test is skipped where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        pytest.skip(f"no browser was found: none of {', '.join(NAMES)}")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A failing report whose answers and blocks have long names."""
    run = sample_run(1.0)
    answer = replace(run.details.answers[0], candidate="averylongwordwithoutanyspace" * 30)
    folder = tmp_path_factory.mktemp("report")
    return html_report.write(folder, judge(replace(run, details=replace(run.details, answers=(answer,)))))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844), (320, 640)])
def test_the_page_is_quiet_and_fits(browser: Any, page_file: Path, width: int, height: int, scheme: str):
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        "Array.from(document.querySelectorAll('body *')).filter(e => !e.closest('.scroll, svg')"
        " && e.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert outside == 0
    sizes = page.evaluate(
        "Array.from(document.querySelectorAll('svg'))"
        ".map(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width * 11)"
    )
    assert min(sizes) >= (SMALLEST_TEXT if width >= 390 else 7)
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    assert contrast(*colours) >= 7
    context.close()


def test_text_has_enough_contrast_in_both_schemes(browser: Any, page_file: Path):
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(page_file.as_uri())
        pairs = page.evaluate(
            "Array.from(document.querySelectorAll('.card .soft, .badge.fail, .badge.pass')).map(e => {"
            " let b = e; while (getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement;"
            " return [getComputedStyle(e).color, getComputedStyle(b).backgroundColor]; })"
        )
        assert pairs
        assert min(contrast(*pair) for pair in pairs) >= 4.5
        context.close()


def contrast(first: str, second: str) -> float:
    """WCAG 2.1's contrast ratio of two ``rgb(r, g, b)`` colours."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
