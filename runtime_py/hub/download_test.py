"""Packages by their name on the hub: the real client, a hub on this machine, and the verbs as a user types them."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path

import pytest

from runtime_py.errors import UsageError
from runtime_py.hub.client import as_quiet_as_asked
from runtime_py.hub.local_hub_test import COMMIT, LocalHub, hub, run
from runtime_py.hub.reference import Reference, reference, repository
from runtime_py.package import MANIFEST, read

__all__ = ["hub"]

NAME = "you/demo"
ASK = ("--prompt", "What is this?", "--max-new-tokens", "6")
WITHOUT_CLIENT = (
    "import sys; sys.modules['huggingface_hub'] = None; from runtime_py.command.cli import main; sys.exit(main())"
)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def runtime(hub: str | LocalHub, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(hub, home, "-m", "runtime_py", *arguments, **environment)


@pytest.fixture
def demo(exported: Path, hub: LocalHub) -> LocalHub:
    """The hub with a package, and with what is no part of it beside it."""
    hub.repositories[NAME] = files_of(exported) | {".gitattributes": b"", "README.md": b"# card", "run_me.py": b"raise"}
    return hub


def test_a_package_runs_by_its_name_and_then_from_the_cache(demo: LocalHub, exported: Path, tmp_path: Path) -> None:
    told = runtime(demo, tmp_path, "info", "-p", NAME, "--json")
    assert json.loads(told.stdout)["family"] == "minicpm-v", told.stderr
    assert demo.fetched() == {MANIFEST}, "info needs nothing else"

    picture = ("--image", str(exported / "selftest" / "image.png"))
    here = runtime(demo, tmp_path, "chat", "-p", str(exported), *picture, *ASK)
    there = runtime(demo, tmp_path, "chat", "-p", f"{NAME}@main", *picture, *ASK, "-q")
    assert (there.returncode, there.stdout, there.stderr) == (0, here.stdout, "") and there.stdout.strip()
    wanted = {MANIFEST, *(row.path.rsplit("/", 1)[-1] for row in read(exported).files)}
    assert demo.fetched() == wanted, "the rows of the manifest and nothing that lies beside them"

    again = runtime(demo, tmp_path, "verify", "-p", NAME, HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and "as in the manifest" in again.stdout, again.stderr
    blob = next(tmp_path.rglob(f"snapshots/{COMMIT}/onnx/*.onnx_data"))
    blob.unlink()
    cut = runtime(demo, tmp_path, "verify", "-p", NAME, HF_HUB_OFFLINE="1")
    assert cut.returncode == 7 and "HF_HUB_OFFLINE is set" in cut.stderr and "whole copy" in cut.stderr
    assert runtime(demo, tmp_path, "verify", "-p", NAME, "--files-only").returncode == 0, "what is missing is fetched"


def test_load_takes_a_name(demo: LocalHub, tmp_path: Path) -> None:
    program = f"import runtime_py\nwith runtime_py.load('{NAME}') as model: print(model.chat('Where is it?').finish)"
    done = run(demo, tmp_path, "-c", program)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_what_is_no_package_or_not_there(hub: LocalHub, tmp_path: Path) -> None:
    hub.repositories["org/model"] = {"config.json": b"{}", "model.safetensors": b"weights"}
    hub.repositories["org/gated"] = {MANIFEST: b"{}"}
    hub.gated.add("org/gated")
    for name, words in (
        ("org/model", "python -m export --model org/model"),
        ("org/absent", "org/absent is no folder here, and the hub has no such repository"),
        ("org/model@v9", "org/model@v9 is no folder here"),
        ("org/gated", "set HF_TOKEN"),
    ):
        done = runtime(hub, tmp_path, "info", "-p", name)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    assert hub.fetched() == set()


def test_no_hub_and_no_client(tmp_path: Path) -> None:
    dead = runtime("http://127.0.0.1:1", tmp_path, "chat", "-p", NAME)
    assert dead.returncode == 7 and "cannot be downloaded" in dead.stderr
    bare = run("http://127.0.0.1:1", tmp_path, "-c", WITHOUT_CLIENT, "chat", "-p", NAME)
    assert bare.returncode == 7 and "pip install 'edgeproof[hub]'" in bare.stderr


def test_a_full_disk_is_known_before_anything_is_fetched(demo: LocalHub, tmp_path: Path) -> None:
    large = max(demo.repositories[NAME], key=lambda name: len(demo.repositories[NAME][name]))
    demo.sizes[large] = 10**18
    done = runtime(demo, tmp_path, "chat", "-p", NAME, *ASK)
    assert done.returncode == 4 and "1,000,000,000" in done.stderr and "HF_HUB_CACHE" in done.stderr, done.stderr
    assert demo.fetched() == {MANIFEST}


def test_code_that_nobody_trusts_is_not_even_fetched(demo: LocalHub, tmp_path: Path) -> None:
    files = demo.repositories[NAME]
    files[MANIFEST] = json.dumps(json.loads(files[MANIFEST]) | {"runtime_backend": "mlc"}).encode()
    done = runtime(demo, tmp_path, "chat", "-p", NAME, *ASK)
    assert done.returncode == 7 and "--trust sha256:HASH" in done.stderr, done.stderr
    assert demo.fetched() == {MANIFEST}


def test_which_names_mean_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert reference("you/demo") == Reference("you/demo")
    assert reference(Path("you/demo@v1.0")) == Reference("you/demo", "v1.0")
    assert reference("you/demo@refs/pr/1") == Reference("you/demo", "refs/pr/1")
    for path in ("./you/demo", "../you/demo", "/you/demo", "demo", "a/b/c", "you/demo/", "you/demo@", "you/d mo"):
        assert reference(path) is None, path
    (tmp_path / "you" / "demo").mkdir(parents=True)
    assert reference("you/demo") is None, "a folder goes before the hub"


@pytest.mark.parametrize("path", ["https://huggingface.co/you/demo", Path("https://huggingface.co/you/demo/tree/main")])
def test_an_address_is_told_the_name(path: str | Path) -> None:
    with pytest.raises(UsageError, match="is an address") as caught:
        reference(path)
    assert caught.value.next_step == "name it as you/demo"


@pytest.mark.parametrize("name", ["demo", "you/de--mo", "you/demo.git", "a/b/c", "you/demo@main", "-q/x"])
def test_names_that_no_repository_can_have(name: str) -> None:
    with pytest.raises(UsageError, match="no name of a repository"):
        repository(name)


def test_quiet_is_put_back() -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    log, client = logging.getLogger("edgeproof"), logging.getLogger("huggingface_hub")
    before, level, bars = log.level, client.level, are_progress_bars_disabled()
    log.setLevel(logging.ERROR)
    try:
        with as_quiet_as_asked():
            assert are_progress_bars_disabled() and client.level == logging.ERROR
        assert (client.level, are_progress_bars_disabled()) == (level, bars)
    finally:
        log.setLevel(before)
