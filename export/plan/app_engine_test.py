"""What a plan, an export's end and ``info`` say of the app's engine, and limits that hold one picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from export.__main__ import main
from export.pipeline import plan
from export.plan.report import engine_lines, to_json, to_text
from export.request import ExportRequest
from runtime_py.backends.stock_engine import KEY, SentPicture, StockEngine, Use, stored_engines
from runtime_py.command.info import ENGINES, lines
from runtime_py.errors import UsageError
from targets.base import ANSWER_ROOM, Limits
from targets.devices import Device
from targets.fitting.fit import nearest_fit


def test_the_plan_says_what_the_engine_does_with_a_picture() -> None:
    made = plan(ExportRequest("minicpm-v", "android"), None)
    text = to_text(made)
    assert "in the app           stock mlc-llm engine: one picture, 448 x 448 pixels, 64 rows" in text
    assert "defaults it does not know: repetition_penalty 1.2" in text
    (told,) = to_json(made)["stock_engines"].values()
    assert told["picture"]["patch_size"] == 56
    assert to_json(plan(ExportRequest("minicpm-v", "cpu"), None))["stock_engines"] == {}


def test_limits_hold_one_picture_by_default() -> None:
    """CogVLM2's picture takes 2,306 rows; a phone's limits are 2048 and 512."""
    for target in ("android", "ios"):
        made = plan(ExportRequest("cogvlm2", target), None)
        assert (made.options.limits.context, made.options.limits.prefill_chunk) == (3072, 2368)
        assert "picture rows go through visual experts" in to_text(made)
    assert plan(ExportRequest("minicpm-v", "android"), None).options.limits == Limits(2048, 512)
    assert plan(ExportRequest("cogvlm2", "cpu"), None).options.limits.prefill_chunk == 512
    assert Limits(2048, 512).holding(1227) == Limits(2048, 1280)


def test_a_context_without_room_for_a_picture_is_refused() -> None:
    with pytest.raises(UsageError, match="--context 2048 holds no question about a picture") as caught:
        plan(ExportRequest("cogvlm2", "android", context=2048), None)
    assert "2306 rows of the smallest picture" in caught.value.expected
    assert int(re.findall(r"--context (\d+)", caught.value.next_step)[0]) >= 2306 + ANSWER_ROOM


def test_positions_without_room_for_a_picture_are_no_fault_of_a_flag() -> None:
    with pytest.raises(UsageError, match="the model's 512 positions do not hold one picture, which takes 1369") as caught:
        ExportRequest("qwen2-vl", "android").limits(512, 1369)
    assert "--context" not in caught.value.next_step and "preprocessor_config.json" in caught.value.next_step
    assert ExportRequest("qwen2-vl", "android").limits(1370, 1369).context == 1370


def test_a_chunk_below_one_picture_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "minicpm-v", "--target", "android", "--prefill-chunk", "32", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "stock mlc-llm engine: text" in said
    assert "no pictures: its 64 rows cannot be split and exceed the prefill chunk of 32" in said


def test_the_nearest_setting_holds_a_picture_too() -> None:
    device = Device("d", "D", ("cpu",), 4000, 2000, "test")

    def needed(precision: str, limits: Limits) -> dict[str, int]:
        return {"kv_cache": limits.context}

    nearest = nearest_fit(device, "int4", Limits(4096, 2368), ["int4"], needed, 1500)
    assert nearest is not None and nearest.limits.context >= 1500 + ANSWER_ROOM
    assert nearest_fit(device, "int4", Limits(4096, 2368), ["int4"], needed, 1900) is None


def test_the_end_of_an_export_and_info_tell_the_record() -> None:
    record = StockEngine(
        "engine", Use.TILES, SentPicture(228, 224, 28, 66, 10, 7), ("a reason",), {"repetition_penalty": 1.2}
    )
    manifest = json.loads(json.dumps({"backends": {"mlc": {KEY: record.to_json()}, "onnx": {}}}))
    assert stored_engines(manifest) == [record]
    first, *rest = engine_lines(stored_engines(manifest))
    told = "engine: tiles as pictures, 228 x 228 pixels with the picture of 224 in the upper left corner, 66 rows, "
    assert first == f"in the app           {told}7 of at most 10 views"
    assert rest[0] == "  a reason" and "repetition_penalty 1.2" in rest[1]
    shown = lines({"family": "x", ENGINES: [record.to_json()]})
    assert [" ".join(line.split()) for line in shown[1:]] == [" ".join(line.split()) for line in (first, *rest)]


def test_every_target_page_is_named_where_an_app_is_needed() -> None:
    from targets.registry import targets

    pages = [need for name in ("android", "ios") for need in targets()[name].needs if "docs/targets/" in need]
    root = Path(__file__).parents[2]
    assert len(pages) == 2
    assert all((root / need[need.index("docs/") :].split()[0]).is_file() for need in pages)
