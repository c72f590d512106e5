"""Names to folders; the hub itself is a server on this machine that speaks the hub's protocol to the real client."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from export.checkpoint.opened import open_folder
from export.checkpoint.recognised import recognise_checkpoint
from export.checkpoint.synthesize import SynthesisRequest, synthesize
from export.modules.build import parameter_shapes
from export.source.hub import DEMO_FOLDER, resolve
from runtime_py.errors import EdgeproofError, UsageError
from runtime_py.hub.local_hub_test import COMMIT, LocalHub, hub, run

__all__ = ["hub"]

PROGRAM = """
import json, sys
from export.source.hub import resolve
from runtime_py.errors import EdgeproofError
try:
    found = resolve(*json.loads(sys.argv[1]))
    print(json.dumps([str(found.folder), found.id, found.revision]))
except EdgeproofError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sharded checkpoint, with files that must not be fetched."""
    folder = tmp_path_factory.mktemp("published") / "checkpoint"
    synthesize(SynthesisRequest("minicpm-v", "tiny", folder, shard_bytes=2_000_000))
    extra = {"modeling_minicpmv.py": b"raise SystemExit", "README.md": b"#", "LICENSE": b"Apache", "tokenizer.model": b"t"}
    extra |= {"MODEL_LICENSE.pdf": b"%PDF", "Llama3-Use_Policy.md": b"be good", "license_server.py": b"raise SystemExit"}
    extra |= {"requirements.txt": b"torch", "image.png": b"PNG"}
    extra |= {"pytorch_model.bin": b"not wanted", "assets/demo.json": b"{}", "special_tokens_map.json": b"{}"}
    return {path.name: path.read_bytes() for path in folder.iterdir()} | extra


def ask(home: Path, endpoint: str, *arguments: str | None, **environment: str) -> list[str]:
    """What `resolve` answers in a process of its own, with the hub at ``endpoint``."""
    result = run(endpoint, home, "-c", PROGRAM, json.dumps(arguments), **environment)
    assert result.stdout, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_download_then_offline(tmp_path: Path, hub: LocalHub, published: dict[str, bytes]) -> None:
    """Weights, configs, tokenizer and every licence are fetched, code and pickles are not; later the cache is enough."""
    hub.repositories["openbmb/MiniCPM-V"] = published
    folder, repo_id, revision = ask(tmp_path, hub.address, "minicpm-v")
    assert (repo_id, revision) == ("openbmb/MiniCPM-V", COMMIT)
    left_out = {"modeling_minicpmv.py", "license_server.py", "requirements.txt", "image.png", "pytorch_model.bin"}
    left_out |= {"assets/demo.json"}
    got = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    assert got == {name: text for name, text in published.items() if name not in left_out}
    assert {"LICENSE", "MODEL_LICENSE.pdf", "Llama3-Use_Policy.md", "README.md"} <= set(got)
    assert hub.fetched() == set(got)
    assert ask(tmp_path, hub.address, "minicpm-v", None, None, HF_HUB_OFFLINE="1") == [folder, repo_id, revision]
    hub.server.shutdown()
    hub.server.server_close()
    assert ask(tmp_path, hub.address, "openbmb/minicpm-v") == [folder, repo_id, revision]
    assert resolve(folder) == resolve("minicpm-v", folder)
    assert (resolve(folder).id, resolve(folder).revision) == (repo_id, COMMIT)

    next(Path(folder).glob("model-00001*")).unlink()
    kind, message = ask(tmp_path, hub.address, "minicpm-v", None, None, HF_HUB_OFFLINE="1")
    assert kind == "MachineError" and "holds no whole copy" in message


def test_pickles_where_nothing_else_is_published(tmp_path: Path, hub: LocalHub, published: dict[str, bytes]) -> None:
    names = ("config.json", "pytorch_model.bin")
    hub.repositories["someone/copy"] = {name: published[name] for name in names}
    folder, *_ = ask(tmp_path, hub.address, "someone/copy")
    assert {path.name for path in Path(folder).iterdir()} == set(names)


def test_quiet_is_quiet(tmp_path: Path, hub: LocalHub, published: dict[str, bytes]) -> None:
    hub.repositories["someone/copy"] = {name: published[name] for name in ("config.json", "pytorch_model.bin")}
    program = "import logging, sys; logging.getLogger('edgeproof').setLevel(int(sys.argv[1]))" + PROGRAM.replace(
        "argv[1]", "argv[2]"
    )
    said = {}
    for level in (logging.ERROR, logging.INFO):
        done = run(hub, tmp_path / str(level), "-c", program, str(level), json.dumps(["someone/copy"]))
        assert "someone/copy" in done.stdout
        said[level] = done.stderr
    assert said[logging.ERROR] == "" and "Fetching" in said[logging.INFO]


def test_unknown_model_is_refused_before_its_weights_are_fetched(tmp_path: Path, hub: LocalHub) -> None:
    hub.repositories["org/other"] = {"config.json": b'{"model_type": "other"}', "model.safetensors": bytes(1000)}
    kind, message = ask(tmp_path, hub.address, "org/other")
    assert kind == "UnsupportedModelError" and "'other'" in message
    assert hub.fetched() == {"config.json"}


def test_room_is_known_before_the_weights_are_fetched(tmp_path: Path, hub: LocalHub, published: dict[str, bytes]) -> None:
    hub.repositories["openbmb/MiniCPM-V"] = published
    shard = next(name for name in published if name.startswith("model-00001"))
    hub.sizes[shard] = 10**18
    kind, message = ask(tmp_path, hub.address, "minicpm-v")
    assert kind == "DoesNotFitError" and "1,000,000,000" in message and "HF_HUB_CACHE" in message
    assert not any(name.endswith(".safetensors") for name in hub.fetched())


def test_missing_gated_and_wrong_revision(tmp_path: Path, hub: LocalHub, published: dict[str, bytes]) -> None:
    hub.repositories["org/gated"] = published
    hub.gated.add("org/gated")
    assert ask(tmp_path, hub.address, "org/absent")[0] == "UsageError"
    kind, message = ask(tmp_path, hub.address, "org/gated")
    assert kind == "UsageError" and "HF_TOKEN" in message and "licence" in message
    assert ask(tmp_path, hub.address, "org/gated", None, None, HF_TOKEN="good")[1:] == ["org/gated", COMMIT]
    kind, message = ask(tmp_path, hub.address, "org/gated", None, "v9", HF_TOKEN="good")
    assert kind == "UsageError" and "revision v9" in message


def test_a_checkpoint_published_in_three_repositories_becomes_one_folder(tmp_path: Path, hub: LocalHub) -> None:
    """XVERSE-V: CLIP, language model with the tokenizer, adapters alone; then the same from the cache."""
    written = synthesize(SynthesisRequest("xverse-v", "tiny", tmp_path / "written")).folder

    def files(folder: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (written / folder).iterdir()}

    hub.repositories["openai/clip-vit-large-patch14"] = files("clip-vit") | {"flax_model.msgpack": b"not wanted"}
    terms = {"MODEL_LICENSE.pdf": b"%", "LICENSE": b"of the language model"}
    hub.repositories["xverse/XVERSE-13B-Chat"] = files("xverse-llm") | {"tokenizer.json": b"{}"} | terms
    hub.repositories["xverse/XVERSE-V-13B"] = files("adapters") | {"README.md": b"#", "LICENSE": b"of the whole"}
    joined, repo_id, revision = ask(tmp_path / "home", hub.address, "xverse-v")
    assert (repo_id, revision) == ("xverse/XVERSE-V-13B", COMMIT)
    folder = Path(joined)
    checkpoint = recognise_checkpoint(folder)
    source = checkpoint.open_source()
    spec = checkpoint.family.spec({**checkpoint.config, "lora_r": 8, "lora_alpha": 16}, source)
    checkpoint.family.weight_map(spec, source).check(parameter_shapes(spec))
    kept = {file.name: file.path.as_posix() for file in checkpoint.side_files()}
    assert kept["tokenizer.json"] == "xverse-llm/tokenizer.json"
    assert kept["MODEL_LICENSE.pdf"] == "xverse-llm/MODEL_LICENSE.pdf"
    assert kept["checkpoint.README.md"] == "adapters/README.md"
    assert {name for name in kept if "LICENSE" in name} == {"LICENSE", "adapters.LICENSE", "MODEL_LICENSE.pdf"}
    assert not any("msgpack" in name for name in hub.fetched())
    assert ask(tmp_path / "home", hub.address, "xverse-v", None, None, HF_HUB_OFFLINE="1") == [joined, repo_id, revision]


def test_a_file_published_alone_gets_its_base_s_config_and_tokenizer(tmp_path: Path, hub: LocalHub) -> None:
    """Awaker: one pickle without config; of the base only what is no weight is fetched."""
    written = synthesize(SynthesisRequest("awaker2.5-vl", "tiny", tmp_path / "written", "Awaker2.5-VL")).folder
    pickle = tmp_path / "pytorch_model.bin"
    torch.save(load_file(written / "model.safetensors"), pickle)
    base = {path.name: path.read_bytes() for path in written.iterdir() if path.suffix == ".json"}
    cards = {"README.md": b"# the base", "LICENSE": b"Apache"}
    hub.repositories["Qwen/Qwen2-VL-7B-Instruct"] = base | cards | {"vocab.json": b"{}", "model.safetensors": b"not wanted"}
    hub.repositories["MetabrainAGI/Awaker2.5-VL"] = {"pytorch_model.bin": pickle.read_bytes(), "README.md": b"# adapted"}
    checkpoint, repo_id, _ = ask(tmp_path / "home", hub.address, "awaker")
    assert repo_id == "MetabrainAGI/Awaker2.5-VL"
    assert {path.name for path in Path(checkpoint).iterdir()} == {
        *base, "vocab.json", "pytorch_model.bin", "README.md", "LICENSE", "Awaker2.5-VL.README.md"
    }  # fmt: skip
    assert (Path(checkpoint) / "Awaker2.5-VL.README.md").read_bytes() == b"# adapted"
    assert "model.safetensors" not in hub.fetched()
    assert open_folder(Path(checkpoint)).spec.variant == "Awaker2.5-VL"


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_is_one_error_within_seconds(tmp_path: Path, offline: bool) -> None:
    start = time.monotonic()
    kind, message = ask(tmp_path, "http://127.0.0.1:1", "minicpm-v", None, None, HF_HUB_OFFLINE=str(int(offline)))
    assert time.monotonic() - start < 15
    assert kind == "MachineError"
    for words in ("openbmb/MiniCPM-V", "--weights <folder>", "--weights demo"):
        assert words in message
    assert ("HF_HUB_OFFLINE is set" in message) is offline


def test_a_hub_that_does_not_answer(tmp_path: Path, hub: LocalHub) -> None:
    hub.answer = lambda request, body: time.sleep(30)  # type: ignore[method-assign]
    start = time.monotonic()
    assert ask(tmp_path, hub.address, "minicpm-v")[0] == "MachineError"
    assert time.monotonic() - start < 20


def test_a_local_folder_is_found_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my-checkpoint"
    folder.mkdir()
    for checkpoint in (resolve(str(folder)), resolve("minicpm-v", str(folder))):
        assert (checkpoint.folder, checkpoint.id, checkpoint.revision) == (folder, "my-checkpoint", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").mkdir()
    assert resolve("org/name").id == "name"
    for arguments in (("./nowhere",), ("minicpm-v", "nowhere"), ("no such thing",), ("my-checkpoint", None, "main")):
        with pytest.raises(UsageError):
            resolve(*arguments)


def test_weights_demo_is_the_delivered_checkpoint(tmp_path: Path) -> None:
    if (DEMO_FOLDER / "minicpm-v").is_dir():
        checkpoint = resolve("minicpmv", "demo")
        assert (checkpoint.folder, checkpoint.id, checkpoint.revision) == (DEMO_FOLDER / "minicpm-v", "demo/minicpm-v", None)
    else:
        with pytest.raises(UsageError, match="no demo checkpoint"):
            resolve("minicpmv", "demo")
    with pytest.raises(EdgeproofError, match="no demo checkpoint"):
        resolve(str(tmp_path), "demo")
