"""A real package, exported here from the demo checkpoint, through loading, checking, chatting and the verbs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import runtime_py
from runtime_py import package, tokenizer
from runtime_py.command.cli import main
from runtime_py.errors import PackageError
from runtime_py.generation.generate import Overrides
from runtime_py.generation.session import Limits, Session
from runtime_py.model import Model
from runtime_py.preprocess.base import Message

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "export" / "demo" / "checkpoints" / "minicpm-v"
GREEDY = Overrides(temperature=0.0, repetition_penalty=1.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def model(exported: Path) -> Model:
    return runtime_py.load(exported, threads=1)


def test_chunked_prefill_and_steps_agree(model: Model, picture: np.ndarray) -> None:
    images, features = model.session.encode_images([picture])
    ids = model.processor.encode([Message("user", "Where is it?", (0,))], images)
    layout = model.processor.layout(ids, images)
    whole = Session(model.backend, model.processor, Limits(256, 256))
    expected = whole.prefill(whole.merge(layout, features), layout, "all")
    pieces = Session(model.backend, model.processor, Limits(256, 7))
    np.testing.assert_allclose(pieces.prefill(pieces.merge(layout, features), layout, "all"), expected, atol=1e-4)
    short = model.processor.layout(ids[:, :-4], images)
    pieces.prefill(pieces.merge(short, features), short)
    for place in range(-4, 0):
        np.testing.assert_allclose(pieces.step(int(ids[0, place]))[0, 0], expected[0, place], atol=1e-4)


def test_a_conversation_reuses_the_cache_and_says_the_same(exported: Path, model: Model, picture: np.ndarray) -> None:
    model.reset()
    first = model.chat("What colour is it?", [picture], overrides=GREEDY)
    turns = [
        {"role": "user", "content": "What colour is it?"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "图中有几个图形？"},
    ]
    second = model.chat(turns, [picture], overrides=GREEDY)
    assert second.timing.kept_tokens >= first.timing.prompt_tokens
    model.reset()
    fresh = model.chat(turns, [picture], overrides=GREEDY)
    assert fresh.timing.kept_tokens == 0 and fresh.ids == second.ids


def test_the_penalty_and_the_seed_reach_the_model(model: Model, picture: np.ndarray) -> None:
    hot = [model.chat("Hello", overrides=Overrides(temperature=4.0, top_k=0, top_p=1.0, seed=s)).ids for s in (1, 1, 2, 3)]
    assert hot[0] == hot[1] and len(set(hot)) > 1


def test_a_tampered_package_is_not_loaded(exported: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    data = copy / "onnx" / "vision_encoder.onnx_data_1"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))
    with pytest.raises(PackageError, match=r"content: onnx/vision_encoder\.onnx_data_1"):
        runtime_py.load(copy)
    runtime_py.load(copy, verify="size").close()
    assert main(["verify", "-p", str(copy)]) == 7


def test_both_tokenizer_forms_give_the_demo_equal_ids(tmp_path: Path) -> None:
    from export.package.tokenizer_files import ensure_tokenizer_json

    ours = tokenizer.load(CHECKPOINT)
    theirs = tokenizer.read_json(ensure_tokenizer_json(CHECKPOINT, tmp_path / "tokenizer.json"))
    for text in ("<用户>What colour is it?<AI>", "图中有几个图形？", "\n 3 <image></image>", "龘😀"):
        assert ours.encode(text) == theirs.encode(text)


def test_verbs_print_json(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(exported / "selftest" / "image.png")
    assert main(["chat", "-p", str(exported), "--image", image, "--prompt", "What colour?", "--json", "--threads", "1"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["ids"] and row["finish"] in {"stop", "length"} and row["timing"]["prompt_tokens"] > 16
    assert main(["verify", "-p", str(exported), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == len(package.read(exported).files)
    assert main(["info", "-p", str(exported), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "minicpm-v"
    flags = ["--runs", "2", "--prompt-tokens", "16", "--new-tokens", "4", "--json", "--threads", "1"]
    assert main(["bench", "-p", str(exported), *flags]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["decode_tokens_per_second"]["low"] > 0 and figures["peak_resident_bytes"] > 10_000_000
    assert figures["prefill_tokens_per_second"]["low"] <= figures["prefill_tokens_per_second"]["median"]


def test_bad_pictures_end_with_one_clear_error(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    assert main(["chat", "-p", str(exported), "--image", str(empty), "--prompt", "x"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "0 bytes" in captured.err and "Traceback" not in captured.err


def test_a_drawn_seed_is_told_and_can_be_given_again(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["chat", "-p", str(exported), "--prompt", "What colour is it?", "--temperature", "5", "--verify", "off"]
    assert main([*asked, "--seed", "-1"]) == 0
    first = capsys.readouterr()
    seed = first.err.partition("--seed ")[2].split()[0]
    assert main([*asked, "--seed", seed]) == 0
    assert capsys.readouterr() == (first.out, "")
    assert main([*asked, "--seed", "-2"]) == 2
    assert "--seed -2" in capsys.readouterr().err


def test_running_a_package_imports_no_exporter(exported: Path) -> None:
    code = (
        "import sys, runtime_py\n"
        "runtime_py.load(sys.argv[1], threads=1).chat('Hello')\n"
        "print([name for name in ('torch', 'onnx', 'transformers', 'export', 'calibrate', 'parity_tests') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, exported], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom runtime_py.command.cli import VERBS\n[verb.load().parser('x').format_help() for verb in VERBS]\n"
        "print([name for name in ('numpy', 'PIL', 'tokenizers', 'sentencepiece', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
