"""What is foretold of a calibration grows with what it has to do, and is put right by what blocks took."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from calibrate.conftest import tiny_spec
from calibrate.methods.chunks import CHUNK_ELEMENTS
from calibrate.request import CalibrationRequest
from calibrate.run import plan
from calibrate.samples.prompts import prompts_of
from calibrate.statistics.forecast import BASE, SOLVING, Forecast, Load, Machine, Progress, duration, forecast, told
from export.quantisation.spec import Assignment, LayerShape, Storage

MACHINE = Machine(100e9, 100e9, 2)


def planned(output: Path, **changes: object):  # type: ignore[no-untyped-def]
    given = {"model": "minicpm-v", "weights": "demo", "target": "cpu", "method": "gptq", "samples": 6, **changes}
    request = CalibrationRequest(output=output, **given)  # type: ignore[arg-type]
    return request, plan(request)


def test_time_is_that_of_the_products(tmp_path: Path) -> None:
    _, made = planned(tmp_path / "codes")
    spec = made.checkpoint.spec

    def of(tokens: int, patches: int = 0, machine: Machine = MACHINE) -> Forecast:
        return forecast(spec, made.assignments["onnx"], made.wanted["onnx"], Load(tokens, patches), machine)

    few, many = of(1000), of(9000)
    assert list(few.blocks) == [f"decoder.layers.{index}" for index in range(spec.decoder.layers)] + ["decoder.head"]
    # what does not grow with the samples is the same in all of them
    assert many.seconds - of(5000).seconds == pytest.approx(of(5000).seconds - few.seconds)
    assert of(1000, 5000).other > few.other and of(1000, 5000).blocks == few.blocks
    slow = Machine(50e9, 50e9, 2)
    samples = many.seconds - few.seconds
    assert of(9000, machine=slow).seconds - of(1000, machine=slow).seconds == pytest.approx(2 * samples)
    assert few.memory < many.memory


@pytest.mark.parametrize(("rows", "times"), [(5760, 1), (122753, 4)], ids=["two chunks", "many chunks"])
def test_codes_are_divided_among_the_threads_that_their_chunks_keep_busy(rows: int, times: int) -> None:
    name = "decoder.layers.0.mlp.down"
    assignments = {name: Assignment(LayerShape(name, "decoder", rows, 2304), Storage.INT4, "ort_int4_b32")}
    few, many = (
        forecast(tiny_spec("minicpm-v"), assignments, [name], Load(0, 0), Machine(50e9 * threads, 50e9 * threads, threads))
        for threads in (2, 8)
    )
    assert few.seconds == pytest.approx(times * many.seconds)
    assert (many.memory > few.memory) == (times > 1)
    # two chunks of a small layer are not two of the largest that a thread may get
    assert few.memory < BASE + 4 * (2 * rows * 2304 + 5 * 2304**2 + 2 * SOLVING * CHUNK_ELEMENTS) + (1 << 20)


def test_layers_of_a_block_add_up_and_memory_holds_the_largest_block_twice() -> None:
    spec = tiny_spec("minicpm-v")

    def of(*places: str) -> Forecast:
        rows = {place: Assignment(LayerShape(place, "decoder", 64, 128), Storage.INT4, "ort_int4_b32") for place in places}
        return forecast(spec, rows, places, Load(100, 0), MACHINE)

    one = of("decoder.layers.0.mlp.down")
    block = of("decoder.layers.0.mlp.down", "decoder.layers.0.mlp.up")
    blocks = of("decoder.layers.0.mlp.down", "decoder.layers.1.mlp.down")
    assert block.memory == one.memory + 2 * 4 * 64 * 128
    assert blocks.memory == one.memory
    assert block.blocks == pytest.approx({"decoder.layers.0": 2 * one.seconds})
    assert blocks.seconds == pytest.approx(2 * one.seconds)


def test_rows_are_those_of_the_samples(tmp_path: Path) -> None:
    request, made = planned(tmp_path / "codes")
    spec = made.checkpoint.spec
    _, prompts = prompts_of(request, made.checkpoint)
    load = Load.of(spec, prompts)
    assert load.tokens == sum(prompt.layout.input_ids.shape[1] for prompt in prompts)
    pictures = sum(len(prompt.images) for prompt in prompts)
    assert spec.vision.grid is not None and load.patches == pictures * spec.vision.grid[0] * spec.vision.grid[1] > 0
    assert Load.typical(spec, 6, text_only=True).patches == 0


def test_the_plan_says_how_long(tmp_path: Path) -> None:
    expected = Forecast(60.0, {"decoder.layers.0": 600.0}, 3 << 30)
    assert told(expected, Load(1000, 0), longer=False).startswith("about 11 min for 1,000 tokens at the speed")
    assert told(expected, Load(1000, 20), longer=True).startswith("at least 11 min for 1,000 tokens and 20 patches")
    assert told(expected, Load(1000, 0), longer=False).endswith("3.0 GiB of memory")
    assert [duration(seconds) for seconds in (42, 95, 3600, 7500)] == ["42 s", "2 min", "60 min", "2 h 5 min"]


def test_what_is_left_follows_what_blocks_took(caplog: pytest.LogCaptureFixture) -> None:
    expected = Forecast(60.0, {f"decoder.layers.{index}": 60.0 for index in range(5)}, 0)
    now = [0.0]
    progress = Progress("onnx", expected, lambda: now[0])
    with caplog.at_level(logging.INFO, "edgeproof"):
        progress.passed("decoder.layers.0", earlier=True)
        now[0] = 5.0
        progress.passed("decoder.layers.1")
        now[0] = 185.0
        progress.passed("decoder.layers.2")
        progress.passed("decoder.layers.3")
        progress.passed("decoder.layers.4")
    assert caplog.messages[0] == "onnx: 1 of 5 blocks, about 4 min left"
    # 185 seconds for two blocks of 60 each
    assert caplog.messages[2] == "onnx: 3 of 5 blocks, about 3 min left"
    assert len(caplog.messages) == 4


def test_a_short_calibration_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("onnx", Forecast(0.0, {"decoder.layers.0": 1.0, "decoder.head": 1.0}, 0))
    with caplog.at_level(logging.INFO, "edgeproof"):
        progress.passed("decoder.layers.0")
    assert not caplog.messages
