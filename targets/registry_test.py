"""Targets and devices: complete, named once, with sources."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from runtime_py.backends.record import Ability
from runtime_py.backends.records import BUILT_IN
from runtime_py.errors import UsageError
from targets import registry
from targets.__main__ import main
from targets.base import ANSWER_ROOM, WHOLE_CHUNK, WHOLE_CONTEXT, Limits
from targets.devices import device_named, devices, devices_of
from targets.registry import target_named, targets


def test_the_folder_scan_finds_every_target_and_nothing_else() -> None:
    assert set(targets()) == {"android", "cpu", "desktop-gpu", "ios", "server-cpu", "server-gpu"}
    modules = {path.stem for path in Path(registry.__file__).parent.glob("*.py") if not path.stem.endswith("_test")}
    assert {target.name.replace("-", "_") for target in targets().values()} == modules - registry._NO_TARGET


def test_every_target_is_complete() -> None:
    for target in targets().values():
        assert set(target.backends) <= set(BUILT_IN)
        assert target.runs in target.backends
        assert target.backend_names == tuple(backend.name for backend in target.backends)
        assert target.contains
        assert target.needs
        assert target.limits.prefill_chunk <= target.limits.context
        assert devices_of(target.name)
        assert set(target.precision_aliases.values()) <= set(target.precisions)
        assert not set(target.precision_aliases) & set(target.precisions)


def test_devices_have_a_source_and_less_usable_than_memory() -> None:
    for device in devices().values():
        assert 0 < device.usable < device.memory
        assert device.usable_source
        assert set(device.targets) <= set(targets())
        if device.compute_capability:
            assert device.facts_source and device.bandwidth > 10**11
        assert bool(device.bandwidth) == bool(device.read_share) == bool(device.read_share_source)
        assert 0 <= device.read_share < 1 and (device.facts_source or not device.bandwidth)


def test_a_device_has_every_fact_of_its_row() -> None:
    factors = {"memory": 1 << 20, "usable": 1 << 20, "bandwidth": 10**9}
    rows = tomllib.loads((Path(registry.__file__).parent / "devices.toml").read_text(encoding="utf-8"))["device"]
    for row in rows:
        for key, value in row.items():
            told = getattr(devices()[row["name"]], key)
            assert told == (round(value * factors[key]) if key in factors else tuple(value) if key == "targets" else value)
    assert all(card.compute_capability for card in devices_of("server-gpu"))


@pytest.mark.parametrize("batch", [1, 4])
def test_limits_are_raised_to_hold_a_picture_and_no_further(batch: int) -> None:
    limits = Limits(1024, 512, batch)
    for rows in (1, 512, 513, 1024 - ANSWER_ROOM, 1025 - ANSWER_ROOM, 2600):
        raised = limits.holding(rows)
        assert raised.context >= rows + ANSWER_ROOM and raised.prefill_chunk >= rows and raised.batch == batch
        assert raised.context == limits.context or raised.context - WHOLE_CONTEXT < rows + ANSWER_ROOM
        assert raised.prefill_chunk == limits.prefill_chunk or raised.prefill_chunk - WHOLE_CHUNK < rows
        assert (raised.context == limits.context) == (rows + ANSWER_ROOM <= limits.context)
        assert (raised.prefill_chunk == limits.prefill_chunk) == (rows <= limits.prefill_chunk)
    assert limits.capped(100) == Limits(100, 100, batch)
    assert limits.capped(600) == Limits(600, 512, batch)
    assert limits.capped(4096) == limits


def test_a_precision_is_the_first_or_has_its_name_or_another_word_for_it() -> None:
    android, cpu = target_named("android"), target_named("cpu")
    assert [android.precision(word) for word in (None, "fp16", "q4f16_1", "q0f32")] == ["int4", "fp16", "int4", "fp32"]
    assert android.precision("int3") is None and cpu.precision("q4f16_1") is None


def test_a_target_can_what_any_of_its_backends_can() -> None:
    desktop, android = target_named("desktop-gpu"), target_named("android")
    assert desktop.can(Ability.PROVIDERS) and not desktop.runs.can(Ability.PROVIDERS), "the graphs beside the engines"
    assert not android.can(Ability.PROVIDERS)


def test_a_device_of_another_target_is_refused() -> None:
    assert device_named("iphone_15_pro", "ios").name == "iphone-15-pro"
    with pytest.raises(UsageError, match="does not run on it"):
        device_named("iphone-15-pro", "android")
    with pytest.raises(UsageError, match="no such device"):
        device_named("nokia-3310", "android")
    assert target_named("desktop_gpu").name == "desktop-gpu"


def test_the_listing_says_what_fits_and_more_of_targets_that_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q"]) == 0
    short = capsys.readouterr().out
    assert all(f"\n{name}: " in f"\n{short}" for name in targets())
    assert "4.00 GiB for one app\n" in short and "rule:" not in short and "wider" not in short
    assert "openbmb/MiniCPM-V at int4: 3.24 GiB, fits android-8gb (up to 15 tokens/s), android-12gb\n" in short
    assert main(["-q", "--brief"]) == 0
    assert "holds" not in capsys.readouterr().out
    assert main(["android"]) == 0
    full = capsys.readouterr().out
    assert "openbmb/MiniCPM-V at int4" in full and "rule:" in full and "\ncpu: " not in full
    assert main(["androit"]) == 2
    said = capsys.readouterr().err
    assert "androit: there is no such target" in said and "did you mean android?" in said
    assert "--target" not in said, "no such flag was given"


def test_the_listing_is_json_and_imports_no_torch() -> None:
    script = (
        "import sys\nfrom targets.__main__ import main\n"
        "code = main(['--json', '--brief'])\nassert 'torch' not in sys.modules\nsys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    listed = json.loads(result.stdout)["targets"]
    assert [row["name"] for row in listed] == list(targets())
