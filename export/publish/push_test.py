"""A demo package exported, verified and pushed with the real client to a hub on this machine, then run from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime_py.hub.local_hub_test import LocalHub, hub, run
from runtime_py.package import MANIFEST
from runtime_py.package.files import sha256

__all__ = ["hub"]

NAME = "you/demo-cpu"
COMMANDS = """
import contextlib, io, json, os, sys
from export.__main__ import root
from runtime_py.command.dispatch import execute
for arguments, environment in json.loads(sys.argv[1]):
    os.environ.update(environment)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(root(), "edgeproof", arguments)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


def edgeproof(hub: str | LocalHub, home: Path, *calls: tuple[list[str], dict[str, str]], **environment: str) -> list[Said]:
    """Several calls of ``edgeproof`` in one process, each with its arguments and environment."""
    done = run(hub, home, "-c", COMMANDS, json.dumps(calls), **environment)
    assert done.returncode == 0, done.stderr
    return [Said(*json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def shared_hub() -> Iterator[LocalHub]:
    hub = LocalHub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture(scope="module")
def pushed(shared_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A verified package, exported and pushed by one command, and what that command printed."""
    pytest.importorskip("onnxruntime")
    home = tmp_path_factory.mktemp("pushed")
    what = ["--model", "minicpm-v", "--weights", "demo", "--target", "cpu", "--precision", "int4", "-o", str(home / "out")]
    how = ["--push", NAME, "--private", "--json", "-q"]
    done = run(shared_hub, home, "-m", "export", *what, *how, HF_TOKEN="good")
    assert (done.returncode, done.stderr) == (0, "")
    return home / "out", json.loads(done.stdout)["pushed"]


def test_an_export_is_pushed_and_runs_from_the_hub(
    pushed: tuple[Path, dict[str, Any]], shared_hub: LocalHub, tmp_path: Path
) -> None:
    package, told = pushed
    files = shared_hub.repositories[NAME]
    here = {path.relative_to(package).as_posix(): path.read_bytes() for path in package.rglob("*") if path.is_file()}
    assert files == here | {name: files[name] for name in (".gitattributes", "README.md")}
    assert NAME in shared_hub.private
    assert told["revision"] == shared_hub.commit_of(NAME) and told["url"] == f"{shared_hub.address}/{NAME}"
    assert told["bytes"] == sum(map(len, here.values())) - len(here[MANIFEST])

    asked = ("--image", str(package / "selftest" / "image.png"), "--prompt", "What is this?")
    local = run(shared_hub, tmp_path, "-m", "runtime_py", "chat", "-p", str(package), *asked)
    name = f"{NAME}@{told['revision']}"
    remote = run(shared_hub, tmp_path, "-m", "runtime_py", "chat", "-p", name, *asked, "-q", HF_TOKEN="good")
    assert (remote.returncode, remote.stderr) == (0, "")
    assert remote.stdout == local.stdout and remote.stdout.strip()


def test_the_model_card_tells_licence_tags_and_verdicts(pushed: tuple[Path, dict[str, Any]], shared_hub: LocalHub) -> None:
    facts = shared_hub.cards[0]
    assert facts["license"] == "other" and facts["license_link"] == "LICENSE" and facts["library_name"] == "edgeproof"
    assert facts["pipeline_tag"] == "image-text-to-text" and {"minicpm-v", "cpu", "int4", "onnx"} <= set(facts["tags"])
    assert "base_model" not in facts, "the demo is no repository of the hub"
    text = shared_hub.repositories[NAME]["README.md"].decode()
    for words in (
        "every judged probe is within its limit",
        "| implementation | `prefill_logits` | pass |",
        f"chat --package {NAME} --image photo.jpg",
        f'runtime_py.load("{NAME}")',
        f"AutoProcessor.from_pretrained('{NAME}')",
        "[LICENSE](LICENSE)",
        "sha256:",
    ):
        assert words in text


def test_a_second_package_takes_the_place_of_the_first(
    pushed: tuple[Path, dict[str, Any]], hub: LocalHub, tmp_path: Path
) -> None:
    """What the earlier package held goes, what somebody added stays, and what the hub has is not sent again."""
    package, _ = pushed
    manifest = json.loads((package / MANIFEST).read_text())
    manifest["files"] = [*manifest["files"], {"path": "onnx/old.onnx", "bytes": 3, "sha256": "0" * 64}]
    hub.repositories["you/demo"] = {
        MANIFEST: json.dumps(manifest).encode(),
        "onnx/old.onnx": b"old",
        "notes.txt": b"mine",
        "README.md": b"# before",
    }
    call: tuple[list[str], dict[str, str]] = (["push", "you/demo", "-p", str(package), "-q"], {})
    first, second = edgeproof(hub, tmp_path, call, call, HF_TOKEN="good")
    assert (first.code, first.err, first.out) == (0, "", f"{hub.address}/you/demo\n")
    files = hub.repositories["you/demo"]
    assert "onnx/old.onnx" not in files and files["notes.txt"] == b"mine"
    assert files[MANIFEST] == (package / MANIFEST).read_bytes() and files["README.md"].startswith(b"---\n")
    assert second.code == 0
    sent = [path for path in hub.requests if path.startswith("/large/")]
    assert sent and len(sent) == len(set(sent))


def test_what_is_not_verified_is_pushed_only_by_force(
    pushed: tuple[Path, dict[str, Any]], hub: LocalHub, tmp_path: Path
) -> None:
    package = Path(shutil.copytree(pushed[0], tmp_path / "package"))
    manifest = json.loads((package / MANIFEST).read_text())
    manifest["verification"] |= {"verdict": "fail", "first_failure": "vision"}
    (package / MANIFEST).write_text(json.dumps(manifest))
    push = ["push", "you/demo", "-p", str(package), "-q"]
    refused, forced = edgeproof(hub, tmp_path, (push, {}), ([*push, "--force"], {}), HF_TOKEN="good")
    assert refused.code == 2 and "is not verified" in refused.err and "first at vision" in refused.err
    assert forced.code == 0, forced.err
    assert b"**This package is not verified: the check's verdict is `fail`" in hub.repositories["you/demo"]["README.md"]

    (package / "README.md").write_text("# of the checkpoint")
    rows = [*manifest["files"], {"path": "README.md", "bytes": 19, "sha256": sha256(package / "README.md")}]
    (package / MANIFEST).write_text(json.dumps(manifest | {"files": rows}))
    [earlier] = edgeproof(hub, tmp_path, ([*push, "--force"], {}), HF_TOKEN="good")
    assert earlier.code == 2 and "under the name of the hub's model card" in earlier.err
    (package / "README.md").unlink()
    (package / MANIFEST).write_text(json.dumps(manifest))

    (package / "LICENSE").write_text("altered")
    [altered] = edgeproof(hub, tmp_path, ([*push, "--force"], {}), HF_TOKEN="good")
    assert altered.code == 7 and "differs from its manifest" in altered.err


def test_what_must_not_be_pushed_is_refused_by_name(
    pushed: tuple[Path, dict[str, Any]], hub: LocalHub, tmp_path: Path
) -> None:
    package = str(pushed[0])
    hub.repositories["you/model"] = {"config.json": b"{}", "model.safetensors": b"weights"}
    hub.repositories["you/public"] = {}

    def push(name: str, *more: str, **environment: str) -> tuple[list[str], dict[str, str]]:
        return ["push", name, "-p", package, "-q", *more], {"HF_TOKEN": "good"} | environment

    expected = [
        (push("demo"), 2, "no name of a repository"),
        (push("you/demo", HF_TOKEN=""), 7, "there is no token for the hub"),
        (push("you/demo", HF_TOKEN="unknown"), 7, "the hub does not know this token"),
        (push("you/demo", HF_TOKEN="reads"), 2, "a token with the right to write"),
        (push("others/demo"), 2, "a repository of you, your-organisation"),
        (push("you/model"), 2, "holds something else: config.json, model.safetensors"),
        (push("you/public", "--private"), 2, "everybody sees it"),
        (push("your-organisation/demo"), 0, ""),
    ]
    for told, (_, code, words) in zip(edgeproof(hub, tmp_path, *(call for call, _, _ in expected)), expected, strict=True):
        assert (told.code, words in told.err) == (code, True), told.err
    assert set(hub.repositories["you/model"]) == {"config.json", "model.safetensors"}

    hub.full = True
    [full] = edgeproof(hub, tmp_path, push("you/demo"))
    assert full.code == 7 and "has no room at the hub" in full.err and "storage limit reached" in full.err
    assert set(hub.repositories["you/demo"]) == {".gitattributes"}, "nothing half"
    [offline] = edgeproof(hub, tmp_path, push("you/demo"), HF_HUB_OFFLINE="1")
    assert offline.code == 7 and "HF_HUB_OFFLINE is set" in offline.err
    [dead] = edgeproof("http://127.0.0.1:1", tmp_path, push("you/demo"))
    assert dead.code == 7 and "cannot be pushed to" in dead.err


def test_an_export_is_not_begun_for_a_push_that_would_fail(hub: LocalHub, tmp_path: Path) -> None:
    what = ["export", "--model", "minicpm-v", "--weights", "demo", "--target", "cpu", "-o", str(tmp_path / "out"), "-q"]
    [told] = edgeproof(hub, tmp_path, ([*what, "--push", "others/demo"], {"HF_TOKEN": "good"}))
    assert told.code == 2 and "may not write to others/demo" in told.err
    assert not list(tmp_path.glob("out*"))
