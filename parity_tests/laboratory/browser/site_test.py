"""The site that a browser is sent to: what it serves, and what it does not."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from parity_tests.laboratory.browser import program as chromium
from parity_tests.laboratory.browser import site
from parity_tests.laboratory.browser.site import Site, asked
from runtime_py.errors import MachineError


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "a.json").write_text("[1]")
    (tmp_path / "kept.txt").write_text("not for the page")
    with Site({"trials": []}, {"packages": tmp_path / "shown"}) as made, site._serving(made):
        yield made


def got(served: Site, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{served.server_port}{path}", timeout=10) as answer:
        read: bytes = answer.read()
    return read


def test_the_page_its_task_and_the_folders_are_served(served: Site) -> None:
    assert b"page.mjs" in got(served, "/page.html")
    assert json.loads(got(served, "/task")) == {"trials": []}
    assert got(served, "/packages/a.json?x=1") == b"[1]"


@pytest.mark.parametrize(
    "path", ["/packages/../kept.txt", "/packages/%2e%2e/kept.txt", "/other/a.json", "/packages//etc/hostname"]
)
def test_nothing_else_is_served(path: str, served: Site) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        got(served, path)


def test_what_the_page_posts_is_the_result(served: Site) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{served.server_port}/result", b'{"trials": [2]}', method="POST")
    urllib.request.urlopen(request, timeout=10).close()
    assert served.answered.wait(5)
    assert served.result == {"trials": [2]}


def test_without_a_browser_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chromium, "PROGRAMS", ("no-such-program",))
    with pytest.raises(MachineError, match="no Chromium"):
        asked({}, {}, 1)


def test_a_browser_and_its_profile_are_gone_with_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, browser = tmp_path / "told", tmp_path / "browser"
    browser.write_text(
        f"#!{sys.executable}\nimport os, sys, time\n"
        f"open('{told}.part', 'w').write(' '.join([str(os.getpid()), *sys.argv]))\n"
        f"os.replace('{told}.part', '{told}')\ntime.sleep(60)\n"
    )
    browser.chmod(0o755)
    monkeypatch.setattr(chromium, "installed", lambda: str(browser))
    with chromium.running(["--one", "address"]):
        ends = time.monotonic() + 20
        while not told.exists() and time.monotonic() < ends:
            time.sleep(0.02)
        process, *given = told.read_text().split()
        (profile,) = (Path(flag.split("=")[1]) for flag in given if flag.startswith("--user-data-dir="))
        assert profile.is_dir() and given[-2:] == ["--one", "address"]
    assert not profile.exists()
    assert not Path(f"/proc/{process}").exists()
