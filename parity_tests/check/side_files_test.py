"""Files beside graphs and weights that somebody changed, their hashes renewed, fail a package's check by file and field."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from export import pipeline
from export.backends.base import Step
from export.backends.onnx import backend as onnx_backend
from export.request import ExportRequest
from export.source.hub import DEMO_FOLDER
from parity_tests.check.candidate import Candidate, open_candidate
from parity_tests.check.package_check import CheckOptions, check
from parity_tests.check.side_files import not_compared, other_manifest, other_side_files
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.judging.results import Divergence
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint
from runtime_py.package.conftest import edit
from targets.registry import targets

SMALL = re.compile(
    r"tokenizer|mlc configuration|mlc params.*|mlc weight index|.* files of the target|side files|chat template|self-test.*"
)
DEMOS = sorted(path.name for path in DEMO_FOLDER.iterdir() if path.is_dir())

Shell = Callable[..., tuple[Path, Checkpoint]]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A function (demo, target, **of the request) -> a package without graphs and libraries, and its checkpoint."""
    whole = pipeline.steps_of

    def small(*arguments: Any) -> list[Step]:
        return [step for step in whole(*arguments) if SMALL.fullmatch(step.name)]

    monkeypatch.setattr(pipeline, "steps_of", small)
    monkeypatch.setattr(onnx_backend, "block_outputs", lambda graph: {})
    monkeypatch.setattr(onnx_backend, "graphs_again", lambda *_: [])
    for name in ("parse", "read", "write_model"):
        monkeypatch.setattr(pipeline, name, lambda *_: None)
    monkeypatch.setattr(pipeline.trust, "remember", lambda package: None)

    def make(demo: str, target: str, **asked: Any) -> tuple[Path, Checkpoint]:
        output = tmp_path / f"{demo}-{target}-{'-'.join(map(str, asked.values()))}"
        request = ExportRequest(demo, target, weights="demo", output=output, skip_verify=True, **asked)
        return pipeline.export(request, None), open_checkpoint(DEMO_FOLDER / demo)

    return make


@pytest.fixture(scope="module")
def opened(exported: ExportedPackage) -> Iterator[Candidate]:
    """Some candidate, whose folder and manifest others take the place of."""
    candidate = open_candidate(exported("minicpm-v", "cpu", "fp32"))
    yield candidate
    candidate.backend.close()


def notes(candidate: Candidate, package: Path, checkpoint: Checkpoint) -> str:
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    limits = replace(candidate.limits, **{key: manifest["limits"][key] for key in ("context", "prefill_chunk", "batch")})
    side = replace(candidate, folder=package, manifest=manifest, limits=limits)
    assert not not_compared(side)
    found = [look(side, checkpoint) for look in (other_manifest, other_side_files)]
    places: list[Divergence] = [each[1] for each in found if each is not None]
    return "; ".join(place.note for place in places)


@pytest.mark.parametrize("demo", DEMOS)
def test_what_an_export_wrote_is_what_it_would_write(shell: Shell, opened: Candidate, demo: str) -> None:
    for target in targets().values():
        for precision in target.precisions:
            assert notes(opened, *shell(demo, target.name, precision=precision)) == "", (target.name, precision)


@pytest.mark.parametrize(
    ("demo", "target", "asked"),
    [
        ("minicpm-v", "cpu", {"context": 512, "prefill_chunk": 64}),
        ("cogvlm2", "android", {"context": 900, "batch": 4}),
        ("minicpm-v", "ios", {"precision": "q4f32_1", "vision_precision": "int4"}),
        ("wemm", "server-gpu", {"batch": 4}),
        ("omnilmm-12b", "cpu", {"block_size": "auto", "head_precision": "int8", "asymmetric": True}),
        ("cogvlm2", "server-cpu", {"options": {"preset": "mixed"}}),
        ("minicpm-v", "cpu", {"options": {"cache": "float32", "prefill_precision": "int8", "decoder_library": True}}),
        ("awaker2.5-vl", "cpu", {"embed_precision": "int8"}),
        ("awaker2.5-vl", "android", {"batch": 2, "host_only": True}),
    ],
)
def test_what_was_chosen_is_no_difference(
    shell: Shell, opened: Candidate, demo: str, target: str, asked: dict[str, Any]
) -> None:
    assert notes(opened, *shell(demo, target, **asked)) == ""


def put(*place: str | int, value: Any) -> Callable[[Path], None]:
    """Another value at a place of a JSON file; without one the place goes."""

    def change(path: Path) -> None:
        whole = inside = json.loads(path.read_text(encoding="utf-8"))
        for key in place[:-1]:
            inside = inside[key]
        assert inside.get(place[-1], "missing") != value
        inside[place[-1]] = value
        path.write_text(json.dumps(whole), encoding="utf-8")

    return change


def text(before: str, after: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = path.read_text(encoding="utf-8")
        assert before in content
        path.write_text(content.replace(before, after), encoding="utf-8")

    return change


def made(content: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(content, encoding="utf-8")

    return change


MLC = "mlc/*-MLC/"
PHONE, CPU = ("cogvlm2", "android"), ("minicpm-v", "cpu")


@pytest.mark.parametrize(
    ("case", "name", "change", "note"),
    [
        (CPU, "config.json", put("text_config", "head_dim", value=7), "config.json: text_config.head_dim is 7"),
        (CPU, "config.json", put("transformers.js_config", "dtype", value={}), "dtype.vision_encoder is missing"),
        (CPU, "genai_config.json", put("search", "top_p", value=0.5), "genai_config.json: search.top_p is 0.5"),
        (CPU, "genai_config.json", put("model", "eos_token_id", value=[9]), "model.eos_token_id[0] is 9"),
        (CPU, "genai_config.json", Path.unlink, "genai_config.json is not there, and an export writes it"),
        (CPU, "generation_config.json", put("eos_token_id", value=True), "generation_config.json: eos_token_id is True"),
        (CPU, "preprocessor_config.json", put("image_mean", value=[0, 0, 0]), "preprocessor_config.json: image_mean[0] is"),
        (CPU, "processor_config.json", put("patch_size", value=3), "processor_config.json: patch_size is 3"),
        (CPU, "tokenizer_config.json", put("eos_token", value="x"), "tokenizer_config.json: eos_token is 'x'"),
        (CPU, "chat_template.jinja", text("<用户>", "<user>"), "chat_template.jinja: line "),
        (CPU, "chat_template.json", made("{}"), "chat_template.json is there, and an export writes no such file"),
        (CPU, "selftest/sample.json", put("prompt", value="Hi"), "selftest/sample.json: prompt is 'Hi'"),
        (CPU, "config.json", made("{"), "config.json"),
        (CPU, "LICENSE", made("none"), "LICENSE: line 1 is 'none'"),
        (PHONE, MLC + "mlc-chat-config.json", put("conv_template", "seps", value=["x"]), "conv_template.seps"),
        (PHONE, MLC + "mlc-chat-config.json", put("context_window_size", value=9), "context_window_size is 9"),
        (PHONE, MLC + "tokenizer.json", text('"decoder"', '"decode"'), "-MLC/tokenizer.json: decode is "),
        (PHONE, MLC + "ndarray-cache.json", put("records", value=[]), "-MLC/ndarray-cache.json: records is []"),
        (PHONE, MLC + "added_tokens.json", made("{}"), "added_tokens.json is there, and an export writes no such file"),
        (PHONE, "mlc/mlc-app-config.json", put("model_list", value=[]), "mlc/mlc-app-config.json: model_list is []"),
        (PHONE, "manifest.json", put("limits", "context", value=512), "backends.mlc.model_lib is"),
        (CPU, "manifest.json", put("limits", "context", value=1 << 20), "limits.context is 1048576, and the model has "),
        (CPU, "manifest.json", put("limits", "context", value=700), "genai_config.json: model.context_length is"),
        (CPU, "manifest.json", put("limits", "batch", value=4), "limits.batch is 4"),
        (CPU, "manifest.json", put("runtime", "image_size", value=448), "manifest.json: runtime.image_size is 448"),
        (CPU, "manifest.json", put("contracts", "decoder", "outputs", value=[]), "contracts.decoder.outputs is []"),
        (CPU, "manifest.json", put("pictures", "upright", value=False), "pictures.upright is False"),
        (CPU, "manifest.json", put("licence", "name", value="MIT"), "licence.name is 'MIT'"),
        (CPU, "manifest.json", put("backends", "onnx", "opset", value=9), "backends.onnx.opset is 9"),
    ],
)  # fmt: skip
def test_a_changed_file_is_named_by_its_field(
    shell: Shell,
    opened: Candidate,
    case: tuple[str, str],
    name: str,
    change: Callable[[Path], None],
    note: str,
) -> None:
    package, checkpoint = shell(*case)
    folder = next(package.parent.glob(str(Path(package.name, name).parent)))
    change(folder / Path(name).name)
    edit(package, lambda manifest: None)
    assert note in notes(opened, package, checkpoint)


def test_licences_that_a_hub_renewed_are_no_difference(shell: Shell, opened: Candidate, tmp_path: Path) -> None:
    package, _ = shell("minicpm-v", "cpu")
    other = Path(shutil.copytree(DEMO_FOLDER / "minicpm-v", tmp_path / "checkpoint"))
    (other / "LICENSE").write_text("of this year", encoding="utf-8")
    (package / "checkpoint.README.md").write_text("a card that this copy does not have", encoding="utf-8")
    edit(package, lambda manifest: None)
    assert notes(opened, package, open_checkpoint(other)) == ""


def test_a_check_tells_it_in_its_divergence(copied: ExportedPackage) -> None:
    package = copied("minicpm-v", "cpu", "fp32")
    put("model", "vocab_size", value=7)(package / "genai_config.json")
    edit(package, lambda manifest: None)
    judged = check(package, GOLDENS / "minicpm-v", CheckOptions(steps=2)).judgement
    assert judged.first_failure.startswith("settings: side files (stage preprocess, block side files)")
    assert judged.run.divergence is not None
    assert judged.run.divergence.note.startswith("genai_config.json: model.vocab_size is 7, and an export writes ")


def test_a_package_of_another_version_is_said_not_to_be_compared(copied: ExportedPackage) -> None:
    package = copied("minicpm-v", "cpu", "fp32")
    edit(package, lambda manifest: manifest.update(edgeproof="0.0.9"))
    judged = check(package, GOLDENS / "minicpm-v", CheckOptions(steps=2)).judgement
    assert not judged.first_failure
    assert any("edgeproof 0.0.9 wrote them" in why for _, why in judged.run.not_run)


def test_graphs_of_other_tools_are_made_of_the_stages_once_more(copied: ExportedPackage, opened: Candidate) -> None:
    package, checkpoint = copied("minicpm-v", "cpu", "fp32"), open_checkpoint(GOLDENS / "minicpm-v")
    assert notes(opened, package, checkpoint) == ""
    path = package / "onnx" / "genai_embed_tokens.onnx"
    model = onnx.load(str(path), load_external_data=False)
    inputs = model.graph.node[-1].input
    inputs[0], inputs[1] = inputs[1], inputs[0]
    onnx.save(model, str(path))
    edit(package, lambda manifest: None)
    expected = "onnx/genai_embed_tokens.onnx is another graph than an export makes of the package's stages"
    assert notes(opened, package, checkpoint) == expected
