"""A demo's package asked the way the phone's app asks it: the engine's own steps over the library's stock functions alone.

`PhoneEngine` states what mlc-ai/mlc-llm at 79d603f does with a message: the prompt of `engine_prompt`
(cpp/json_ffi/conv_template.cc), pictures from data URLs viewed without resizing (image_utils.cc), rows counted by integer
division, embeddings side by side in chunks that never split a picture (cpp/serve/engine_actions/batch_prefill_base.cc),
``prefill`` and ``decode`` over the cache (cpp/serve/model.cc), no repetition penalty and no top-k (cpp/serve/config.cc).
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.backends.mlc.conversation_template_test import engine_prompt
from export.checkpoint.opened import open_folder
from export.demo.samples import FOLDER as SAMPLES
from export.pipeline import export
from export.request import ExportRequest
from export.source.hub import DEMO_FOLDER
from runtime_py.backends.mlc import PAGE, SPARE_POSITIONS, MlcBackend
from runtime_py.backends.stock_engine import SentPicture, StockEngine, Use
from runtime_py.generation.generate import Overrides
from runtime_py.model import load

tvm = pytest.importorskip("tvm")
tvm_ffi = pytest.importorskip("tvm_ffi")

CREATE = "vm.builtin.paged_attention_kv_cache_create"
QUESTION = "What do you see?"
STEPS = 12
Part = str | bytes
"""A text, or a picture as the bytes of a file."""


class PhoneEngine:
    """One model loaded by the engine."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.block = self.manifest["backends"]["mlc"]
        weights = folder / self.block["weights"]
        self.chat = json.loads((weights / "mlc-chat-config.json").read_text())
        self.words = Tokenizer.from_file(str(weights / "tokenizer.json"))
        self.library = MlcBackend(folder, self.manifest)
        shape = tvm.runtime.ShapeTuple
        sizes = (1, self.chat["context_window_size"], self.chat["prefill_chunk_size"], PAGE, 0)
        self.cache = self.library._machine["create_tir_paged_kv_cache"](*(shape([size]) for size in sizes))

    def answer(self, messages: Sequence[Mapping[str, Any]], steps: int) -> list[int]:
        """Greedy tokens up to a stop id of the template."""
        add, remove = (tvm.get_global_func(f"vm.builtin.kv_state_{word}_sequence") for word in ("add", "remove"))
        add(self.cache, 0)
        for chunk in self._chunks(messages):
            logits = self._run("prefill", chunk)
        tokens: list[int] = []
        while len(tokens) < steps:
            token = int(logits[0, -1].argmax())
            if token in self.chat["conv_template"]["stop_token_ids"]:
                break
            tokens.append(token)
            logits = self._run("decode", self._embedded([token]))
        remove(self.cache, 0)
        return tokens

    def _chunks(self, messages: Sequence[Mapping[str, Any]]) -> Iterator[np.ndarray]:
        """Rows for ``prefill``: text may be cut anywhere, a picture nowhere."""
        size, waiting = self.chat["prefill_chunk_size"], np.empty((0, self.chat["model_config"]["hidden_size"]), np.float32)
        for run in engine_prompt(self.chat["conv_template"], messages):
            rows = self._picture(run) if isinstance(run, bytes) else self._embedded(self._ids(run))
            assert not isinstance(run, bytes) or len(rows) <= size, "append_length > 0"
            if isinstance(run, bytes) and len(waiting) + len(rows) > size:
                yield waiting
                waiting = waiting[:0]
            waiting = np.concatenate([waiting, rows])
            while len(waiting) > size:
                yield waiting[:size]
                waiting = waiting[size:]
        yield waiting

    def _ids(self, run: Any) -> list[int]:
        return list(run) if isinstance(run, list) else self.words.encode(run, add_special_tokens=False).ids

    def _embedded(self, ids: list[int]) -> np.ndarray:
        return self.library._call("embed", np.asarray(ids, np.int32))

    def _picture(self, file: bytes) -> np.ndarray:
        config = self.chat["model_config"].get("vision_config")
        assert config, "Vision config is required for image input"
        side, patch = config["image_size"], config["patch_size"]
        url = "data:image/png;base64," + base64.b64encode(file).decode()
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))
        rows = self.library.image_embed(pixels.reshape(-1)[: side * side * 3].reshape(side, side, 3))
        assert len(rows) == side * side // (patch * patch)
        return rows

    def _run(self, name: str, rows: np.ndarray) -> np.ndarray:
        shape, call = tvm.runtime.ShapeTuple, tvm.get_global_func
        call("vm.builtin.kv_state_begin_forward")(self.cache, shape([0]), shape([len(rows)]))
        logits = self.library._call(name, np.ascontiguousarray(rows[None], self.library.dtype), self.cache)
        call("vm.builtin.kv_state_end_forward")(self.cache)
        return logits


class Demo:
    """A demo's package, opened by the engine and by our own runtime."""

    def __init__(self, name: str, folder: Path) -> None:
        asked = ExportRequest(
            name, "android", weights="demo", precision="q4f32_1", output=folder / name, skip_verify=True, host_only=True
        )
        self.folder = export(asked, None)
        self.image = open_folder(DEMO_FOLDER / name).spec.image
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        self.block = self.manifest["backends"]["mlc"]
        self.record = StockEngine.from_json(self.block["stock_engine"])

    def ours(self, talk: list[dict[str, Any]], pictures: Sequence[Image.Image] = ()) -> list[int]:
        """What our runtime says with the engine's sampling, made greedy."""
        told = Overrides(max_new_tokens=STEPS, temperature=0.0, repetition_penalty=1.0)
        with load(self.folder) as model:
            return [token.id for token in model.generate(talk, pictures, told)]

    def theirs(self, talk: list[dict[str, Any]]) -> list[int]:
        """What the engine says."""
        return PhoneEngine(self.folder).answer(talk, STEPS)

    def message(self, files: Sequence[bytes], question: str) -> list[Part]:
        """Parts of one message as manifest.json says them; the views of a picture stand where the picture stands."""
        parts: list[Part] = []
        for part in self.block["stock_app_prompt"]["picture_message"]:
            parts += files if part == "{picture}" else [part.replace("{question}", question)]
        return parts

    def files(self, picture: Image.Image) -> list[bytes]:
        """What an app sends of a picture: every view in the upper left corner of the engine's square, as a PNG."""
        sent = self.record.picture
        assert sent is not None
        with load(self.folder) as model:
            pieces = model.session.encode_images([np.asarray(picture)])[0]
        files = []
        for view in np.concatenate([piece.vision["pixel_values"] for piece in pieces]):
            pixels = (view.transpose(1, 2, 0) * self.image.deviation + self.image.mean) * 255.0
            square = np.full((sent.image_size, sent.image_size, 3), 127, np.uint8)
            square[: sent.picture_size, : sent.picture_size] = np.round(pixels)
            file = io.BytesIO()
            Image.fromarray(square).save(file, "PNG")
            files.append(file.getvalue())
        return files


def turn(content: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": content}


def shown(question: str) -> list[dict[str, Any]]:
    """A question about one picture as our runtime takes it."""
    return [turn([{"type": "image"}, {"type": "text", "text": question}])]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo("minicpm-v", tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(SAMPLES / "shapes.png").convert("RGB")


def test_the_cache_is_created_with_five_numbers(demo: Demo) -> None:
    """What every TVM that a revision of mlc-llm pins asks for: ``TVM_FFI_ICHECK_EQ(cache_config.size(), 5)``."""
    given: list[list[int]] = []
    create = tvm.get_global_func(CREATE)

    def spy(*arguments: Any) -> Any:
        given.append(list(arguments[0]))
        return create(*arguments)

    tvm_ffi.register_global_func(CREATE, spy, override=True)
    try:
        engine = PhoneEngine(demo.folder)
        context, chunk = engine.chat["context_window_size"], engine.chat["prefill_chunk_size"]
        assert given == [[1, context + SPARE_POSITIONS, chunk, PAGE, 0]]
    finally:
        tvm_ffi.register_global_func(CREATE, create, override=True)


def test_ten_pages_are_free_when_the_context_is_full(demo: Demo) -> None:
    """Fewer, and the engine throws the answer out at every token."""
    engine = PhoneEngine(demo.folder)
    context, chunk = engine.chat["context_window_size"], engine.chat["prefill_chunk_size"]
    tvm.get_global_func("vm.builtin.kv_state_add_sequence")(engine.cache, 0)
    row = engine._embedded([1])
    for start in range(0, context, chunk):
        engine._run("prefill", np.repeat(row, min(chunk, context - start), axis=0))
    free = tvm.get_global_func("vm.builtin.attention_kv_cache_get_num_available_pages")(engine.cache)
    assert free >= 10


def test_the_demo_answers_text_and_two_turns(demo: Demo) -> None:
    talk = [turn("Hello!")]
    first = demo.ours(talk)
    assert demo.theirs(talk) == first
    talk += [turn("I see a red circle.", "assistant"), turn(QUESTION)]
    assert demo.theirs(talk) == demo.ours(talk)


def test_the_demo_shows_a_picture_in_the_app(demo: Demo, picture: Image.Image) -> None:
    """Nine rows of 112 pixels, counted from a patch of 37."""
    assert demo.record.picture == SentPicture(112, 112, 37, 9)
    expected = demo.ours(shown(QUESTION), [picture])
    assert demo.theirs([turn(demo.message(demo.files(picture), QUESTION))]) == expected
    assert expected != demo.ours([turn(QUESTION)])
    later = [turn("A red circle.", "assistant"), turn("Why?")]
    sent = [turn(demo.message(demo.files(picture), QUESTION)), *later]
    assert demo.theirs(sent) == demo.ours([*shown(QUESTION), *later], [picture])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "use"),
    [("omnilmm-12b", Use.PICTURE), ("xverse-v", Use.TILES), ("wemm", Use.TEXT), ("cogvlm2", Use.TEXT)],
)
def test_every_other_demo_does_what_its_record_says(name: str, use: Use, picture: Image.Image, tmp_path: Path) -> None:
    demo = Demo(name, tmp_path)
    assert demo.record.use is use
    assert demo.theirs([turn("Hello!")]) == demo.ours([turn("Hello!")])
    if demo.record.picture is None:
        assert "vision_config" not in PhoneEngine(demo.folder).chat["model_config"]
        assert demo.block["stock_app_prompt"]["picture_message"] is None
        with pytest.raises(AttributeError, match="image_embed"):
            PhoneEngine(demo.folder).library._machine.get_function("image_embed", query_imports=True)
        return
    files = demo.files(picture)
    assert (len(files) > 1) is (use is Use.TILES)
    assert demo.theirs([turn(demo.message(files, QUESTION))]) == demo.ours(shown(QUESTION), [picture])


@pytest.mark.slow
def test_the_margin_of_a_square_is_cropped(picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MiniCPM-Llama3-V's published size needs one: 115² / 38² = 9.16, and the picture is 112 pixels of the 115."""
    sent = SentPicture(115, 112, 38, 9)
    monkeypatch.setattr("export.backends.mlc.stock_engine.countable", lambda *_: sent)
    demo = Demo("minicpm-v", tmp_path)
    assert demo.record.picture == sent
    files = demo.files(picture)
    assert Image.open(io.BytesIO(files[0])).size == (115, 115)
    assert demo.theirs([turn(demo.message(files, QUESTION))]) == demo.ours(shown(QUESTION), [picture])
