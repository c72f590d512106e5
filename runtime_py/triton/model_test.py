"""The model behind ``model.py``: tensors in, responses out, exactly one of them the last, whatever is asked."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import runtime_py
from export.triton.layout import ModelFolder
from runtime_py.backends.records import ONNX, TENSORRT
from runtime_py.errors import PackageError, UsageError
from runtime_py.generation.generate import Overrides
from runtime_py.package import read
from runtime_py.triton.conftest import NAME, Request, TritonError, Utilities, arguments, parameters
from runtime_py.triton.model import Opening, TritonModel, ways
from runtime_py.triton.settings import ModelSettings, settings_of

TEN = {"max_tokens": 10, "temperature": 0, "repetition_penalty": 1.0, "ignore_eos": True}


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def request(text: str | None = "What colour?", *pictures: bytes, stream: bool = True, **more: Any) -> Request:
    given: dict[str, list[Any]] = {} if text is None else {"text_input": [text.encode()]}
    if pictures:
        given["image"] = list(pictures)
    sampling, beside = more.pop("sampling", TEN), more.pop("beside", None)
    given["sampling_parameters"] = [json.dumps(sampling).encode() if isinstance(sampling, dict) else sampling]
    given["stream"] = [stream]
    return Request(given | more, parameter_text="" if beside is None else json.dumps(beside))


def wait_for_idle(served: TritonModel) -> None:
    ends = time.monotonic() + 30
    while served._open or served.service.engine.busy:
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_answers_are_the_packages_own(served: TritonModel, exported: Path, picture: np.ndarray) -> None:
    wanted = Overrides(10, temperature=0.0, repetition_penalty=1.0, stop_ids=())
    with runtime_py.load(exported, threads=1) as model:
        alone = model.chat("What colour?", [picture], overrides=wanted)
    content = png(picture)
    url = b"data:image/png;base64," + base64.b64encode(content)
    parts = [{"type": "image_url", "image_url": {"url": url.decode()}}, {"type": "text", "text": "What colour?"}]
    messages = json.dumps([{"role": "user", "content": parts}]).encode()
    asked = [
        request("What colour?", content),
        request("What colour?", base64.b64encode(content), stream=False),
        request("What colour?", url, stream=False),
    ]
    for one in asked:
        served.execute([one])
        assert one.sender.text() == alone.text
    nothing = dict.fromkeys(("model", "stream", "logprobs", "no_such"))
    through_messages = request(None, stream=False, messages=[messages], sampling=TEN | nothing)
    served.execute([through_messages])
    assert through_messages.sender.text() == alone.text
    pieces = asked[0].sender.responses
    assert [token for piece in pieces for token in piece.get("token_ids")] == list(alone.ids)
    assert len(pieces) == 11 and pieces[-1].get("finish_reason") == [b"length"]
    assert json.loads(pieces[-1].get("usage")[0])["completion_tokens"] == 10
    assert len(asked[1].sender.responses) == 1


REFUSED = {
    "neither text nor messages": request(None),
    "both": request("a", messages=[b"[]"]),
    "a broken picture": request("a", b"\x89PNG\r\n"),
    "no base64": request("a", b"hello, world"),
    "a large picture": request("a", b"\xff" * (2 << 20)),
    "too many pictures": request("a", *[b"x"] * 3),
    "a local file": request(None, messages=[b'[{"role":"user","content":[{"type":"image_url","image_url":{"url":"file:///x"}}]}]']),
    "no UTF-8": request(None, text_input=[b"\xff"]),
    "no JSON": request("a", sampling=b"{"),
    "no object": request("a", sampling=b"[1]"),
    "an unknown field": request("a", sampling={"no_such": 1}),
    "a wrong type": request("a", sampling={"max_tokens": "many"}),
    "a field of its own": request("a", sampling={"messages": []}),
    "an unknown parameter": request("a", beside={"max_token": 3}),
    "a parameter that is there twice": request("a", beside={"max_tokens": 3}),
    "a parameter of its own": request("a", beside={"model": "b"}),
    "no parameters": Request({"text_input": [b"a"]}, parameter_text="{"),
    "logprobs": request("a", sampling={"logprobs": True}),
    "two texts": request(None, text_input=[b"a", b"b"]),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_request_is_refused_in_words(served: TritonModel, what: str) -> None:
    one = REFUSED[what]
    served.execute([one])
    error = one.sender.error
    assert error.code == TritonError.INVALID_ARG and len(str(error)) > 10
    assert len(one.sender.responses) == 1
    wait_for_idle(served)
    assert served._room.free == 1 << 30


names = st.sampled_from(["text_input", "messages", "image", "sampling_parameters"])
contents = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"{}", b"[]", b'{"max_tokens": 2}', b"a", b"P6 1 1 255\n\0\0\0"])
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, st.lists(contents, max_size=3)), st.booleans())
def test_whatever_is_asked_ends_once(served: TritonModel, given_strings: dict[str, list[bytes]], stream: bool) -> None:
    one = Request({**given_strings, "stream": [stream]})
    one.microseconds = 300_000
    served.execute([one])
    assert one.sender.last.wait(60)
    error = one.sender.responses[-1].error
    assert error is None or error.code in (TritonError.INVALID_ARG, TritonError.UNAVAILABLE), error


def test_fields_among_the_requests_own_parameters_are_obeyed(served: TritonModel) -> None:
    ours = {"max_tokens": 3, "temperature": 0, "ignore_eos": True}
    passed_over = {"id": "7", "triton_enable_empty_final_response": True, "x-request-id": "a", "traceparent": "00-1"}
    through, beside = request(sampling=ours), request(sampling={}, beside=ours | passed_over)
    served.execute([through, beside])
    assert through.sender.text() == beside.sender.text()
    assert json.loads(beside.sender.responses[-1].get("usage")[0])["completion_tokens"] == 3


def test_an_answer_is_whole_unless_a_stream_is_asked_for(served: TritonModel) -> None:
    one = request()
    served.execute([Request({name: row for name, row in one.given.items() if name != "stream"}, one.sender)])
    assert one.sender.text() and len(one.sender.responses) == 1


def test_inputs_that_cannot_be_read_are_refused(served: TritonModel) -> None:
    bad, good = request("a"), request("a")
    bad.inputs = lambda: [None]  # type: ignore[method-assign,assignment,list-item,return-value]
    served.execute([bad, good])
    assert bad.sender.error.code == TritonError.INVALID_ARG
    assert good.sender.text() is not None


def test_one_too_many_is_refused_and_the_others_are_answered(served: TritonModel) -> None:
    many = [request(f"question {number}") for number in range(8)]
    served.execute(many)
    refused = [one for one in many if one.sender.last.wait(60) and one.sender.responses[-1].error is not None]
    assert 0 < len(refused) <= 5  # two slots and one place to wait
    assert {one.sender.error.code for one in refused} == {TritonError.UNAVAILABLE}
    assert all(one.sender.text() for one in many if one not in refused)


def test_requests_that_are_still_being_read_count(served: TritonModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture is decoded before the engine knows of its request."""
    go_on, read_now = threading.Event(), served._reader.read

    def slow(*given: Any) -> Any:
        assert go_on.wait(60)
        return read_now(*given)

    monkeypatch.setattr(served._reader, "read", slow)
    many = [request(f"question {number}") for number in range(4)]
    try:
        served.execute(many)
        assert many[3].sender.error.code == TritonError.UNAVAILABLE, "two slots and one place to wait"
    finally:
        go_on.set()
    assert all(one.sender.text() for one in many[:3])


def test_a_request_may_take_as_long_as_it_says(served: TritonModel) -> None:
    one = request(sampling={**TEN, "max_tokens": 2000})
    one.microseconds = 100_000
    served.execute([one])
    assert one.sender.error.code == TritonError.UNAVAILABLE and "longer" in str(one.sender.error)
    wait_for_idle(served)


def test_the_counters_tell_what_happened(served: TritonModel) -> None:
    before = Utilities.rows["edgeproof_generated_tokens", ""].value
    one = request("How many?", stream=False)
    served.execute([one])
    assert one.sender.text() is not None
    wait_for_idle(served)
    assert Utilities.rows["edgeproof_generated_tokens", ""].value == before + 10
    assert Utilities.rows["edgeproof_first_token_seconds", ""].observed
    assert Utilities.rows["edgeproof_slots", ""].value == 2
    assert Utilities.rows["edgeproof_cache_positions_used", ""].value > 0


def test_a_model_that_is_unloaded_lets_go_of_what_is_at_work(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime_py.triton.model.PATIENCE", 0.0)
    model = TritonModel(Utilities)
    model.initialize(arguments(repository, parameters(warm_up="false", verify="size")))
    one = request(sampling={**TEN, "max_tokens": 2000})
    model.execute([one])
    while not one.sender.responses:
        time.sleep(0.005)
    model.finalize()
    assert one.sender.error.code == TritonError.UNAVAILABLE


def test_a_model_does_not_load_with_a_changed_file(repository: Path, tmp_path: Path) -> None:
    copied = ModelFolder(tmp_path, NAME).package
    shutil.copytree(ModelFolder(repository, NAME).package, copied)
    changed = copied / read(copied).files[-1].path
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    with pytest.raises(PackageError, match=re.escape(changed.name)):
        TritonModel(Utilities).initialize(arguments(tmp_path, parameters()))


def test_an_instance_of_a_gpu_sees_that_one_and_opens_without_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "no-such-gpu-0,no-such-gpu-1")
    model = TritonModel(Utilities)
    given = arguments(repository, parameters(warm_up="false", verify="size"))
    model.initialize(given | {"model_instance_kind": "GPU", "model_instance_device_id": "1"})
    try:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "no-such-gpu-1"
        one = request()
        model.execute([one])
        assert one.sender.text()
    finally:
        model.finalize()


def test_a_model_does_not_load_with_an_unusable_setting(repository: Path) -> None:
    with pytest.raises(UsageError, match="slots"):
        TritonModel(Utilities).initialize(arguments(repository, parameters(slots="many")))
    with pytest.raises(UsageError, match="no_such"):
        TritonModel(Utilities).initialize(arguments(repository, parameters(backend="no_such")))


def test_a_gpu_runs_engines_first_and_the_processor_last() -> None:
    """A server-gpu package with engines, and one whose engines were not built yet."""
    graphs: dict[str, Any] = {ONNX.name: {}}
    engines: dict[str, Any] = {TENSORRT.name: {"stages": {}}}
    with_engines, without = {"backends": graphs | engines}, {"backends": graphs}
    cuda = Opening(ONNX.runtime_name, ONNX.gpu_providers)
    processor, trt = Opening(ONNX.runtime_name), Opening(TENSORRT.runtime_name)
    assert ways(with_engines, ModelSettings(), gpu=True) == [trt, cuda, processor]
    assert ways(without, ModelSettings(), gpu=True) == [cuda, processor]
    assert ways(with_engines, ModelSettings(), gpu=False) == [processor]
    assert ways(with_engines, ModelSettings(backend=ONNX.runtime_name), gpu=True) == [cuda, processor]


def test_settings_are_what_the_configuration_says() -> None:
    assert settings_of({}) == ModelSettings()
    texts = {name: {"string_value": text} for name, text in ModelSettings(slots=3, warm_up=False).texts().items()}
    assert settings_of({"parameters": texts}) == ModelSettings(slots=3, warm_up=False)
    for name, text in (("slots", "0"), ("queue", "-1"), ("warm_up", "yes"), ("verify", "no"), ("slots", "٣")):
        with pytest.raises(UsageError, match=name):
            settings_of({"parameters": {name: {"string_value": text}}})
