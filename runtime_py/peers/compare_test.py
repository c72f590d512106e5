from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from runtime_py.command.cli import main
from runtime_py.errors import PackageError, UsageError
from runtime_py.files import schema
from runtime_py.package import trust
from runtime_py.package.package_test import FILES, write
from runtime_py.package.trust_test import MLC
from runtime_py.peers import history
from runtime_py.peers.compare import Comparison, Worker, lines
from runtime_py.peers.engine import Job
from runtime_py.peers.machine import READ_BYTES, ReadBandwidth, buffer_bytes, cache_bytes, describe, joules
from runtime_py.peers.own import Own
from runtime_py.peers.plot import svg
from runtime_py.peers.shape import DecoderShape, shape_of

SHAPE = DecoderShape(64, 96, 3, 4, 2, 500)


def spread(value: float) -> dict[str, float]:
    return {"median": value, "low": value * 0.9, "high": value * 1.1}


def told(rate: float = 20.0) -> dict[str, Any]:
    def engine(name: str, rate: float, ratio: float) -> dict[str, Any]:
        figure = {
            "tokens_per_second": spread(rate), "processor_seconds_per_token": 0.1, "joules_per_token": None,
            "ours_over_this": spread(ratio),
        }  # fmt: skip
        figures = {"prefill 512": figure, "decode at 64": {**figure, "read_share": spread(0.9) if ratio == 1.0 else None}}
        return {
            "name": name, "status": "run", "version": "1", "load_seconds": 1.0, "peak_resident_bytes": 10**9,
            "figures": figures,
        }  # fmt: skip

    return {
        "schema": 1,
        "machine": {**describe(), "threads": 2, "read_bytes_per_second": spread(2e10)},
        "shape": {**SHAPE.to_json(), "weights_read_per_token": SHAPE.weights},
        "rounds": 3,
        "new_tokens": 8,
        "engines": [engine("edgeproof", rate, 1.0), engine("pytorch & <co>", 10.0, rate / 10),
                    {"name": "llama.cpp", "status": "not run", "reason": "llama-cpp-python is not installed"}],
    }  # fmt: skip


def test_the_sizes_are_those_of_the_config(tmp_path: Path) -> None:
    stated = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 500,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"text_config": stated}), encoding="utf-8")
    assert shape_of(tmp_path) == SHAPE
    assert SHAPE.weights == 3 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 96 * 64) + 500 * 64
    job = Job(tmp_path, tmp_path, SHAPE, 2, 64)
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="does not state hidden_size"):
        shape_of(tmp_path)


def test_table_plot_and_history_say_the_same_figures(tmp_path: Path) -> None:
    assert schema.load("bench").problems(told()) == []
    table = "\n".join(lines(told()))
    assert "pytorch & <co> 1  10.0 (ours 2.00)" in table and "llama.cpp: not run: llama-cpp-python" in table
    assert "decode at 64 read, of what memory gave beside it: edgeproof 0.90\n" in table
    drawn = ElementTree.fromstring(svg(told()))
    assert "pytorch & <co>" in [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}rect"))) == 1 + 4
    file = tmp_path / "history.jsonl"
    history.append(file, told(20.0), "one")
    history.append(file, told(18.0), "two")
    oldest, newest = (json.loads(row) for row in file.read_text(encoding="utf-8").splitlines())
    assert (oldest["label"], newest["label"]) == ("one", "two")
    ours = newest["engines"]["edgeproof"]
    assert ours["decode at 64"]["tokens_per_second"] == 18.0 and ours["decode at 64"]["read_share"] == 0.9
    assert (
        "read_share" not in ours["prefill 512"] and "read_share" not in newest["engines"]["pytorch & <co>"]["decode at 64"]
    )
    assert history.against(told(18.0), told(20.0)) == {"prefill 512": 0.9, "decode at 64": 0.9}


def test_memory_is_read_by_some_threads() -> None:
    assert 1e8 < ReadBandwidth(2).measure(0.02) < 1e12


def test_no_cache_holds_what_is_read(tmp_path: Path) -> None:
    def cache(core: int, index: int, level: int, size: str, cores: str) -> None:
        folder = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, value in (("level", str(level)), ("size", size), ("shared_cpu_list", cores)):
            (folder / name).write_text(f"{value}\n", encoding="ascii")

    assert cache_bytes(tmp_path) == 0
    for core in range(4):
        cache(core, 0, 1, "48K", str(core))
        cache(core, 3, 3, "98304K", "0-1" if core < 2 else "2-3")
    assert cache_bytes(tmp_path) == 2 * 96 << 20
    large, gigabyte = 12 * 96 << 20, 1 << 30
    assert buffer_bytes(0, None) == buffer_bytes(32 << 20, gigabyte << 4) == READ_BYTES
    assert buffer_bytes(large, None) == buffer_bytes(large, 100 * gigabyte) == 8 * large
    assert buffer_bytes(large, 8 * gigabyte) == 2 * gigabyte
    assert buffer_bytes(large, gigabyte >> 1) == READ_BYTES
    assert buffer_bytes(large, 8 * gigabyte + 13) % 8 == 0
    (tmp_path / "cpu0" / "cache" / "index3" / "size").write_text("large\n", encoding="ascii")
    assert cache_bytes(tmp_path) == 0


def test_energy_is_the_sum_over_packages_where_the_machine_tells_it(tmp_path: Path) -> None:
    assert joules(tmp_path) is None
    for number, micro in enumerate((1_500_000, 500_000)):
        zone = tmp_path / f"intel-rapl:{number}"
        zone.mkdir()
        (zone / "energy_uj").write_text(f"{micro}\n", encoding="ascii")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a core's share of package 0
    assert joules(tmp_path) == 2.0


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="peers vllm"):
        Comparison(tmp_path, ("vllm",), 1, 1, 8, (4,), 4)
    with pytest.raises(UsageError, match="below 1"):
        Comparison(tmp_path, (), 1, 1, 8, (0,), 4)


def test_a_package_is_measured_beside_what_is_here(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--peers", "openvino-genai", "--threads", "1", "--runs", "1", "--prompt-tokens", "16", "--lengths", "8"]
    before = tmp_path / "before.json"
    before.write_text(json.dumps(told()), encoding="utf-8")
    files = ["--plot", str(tmp_path / "bench.svg"), "--history", str(tmp_path / "h.jsonl"), "--against", str(before)]
    assert main(["bench", "-p", str(exported), *flags, "--new-tokens", "2", *files, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert schema.load("bench").problems(figures) == []
    ours, openvino = figures["engines"]
    assert set(ours["figures"]) == {"prefill 16", "decode at 8"} and figures["against"] == {}
    assert ours["figures"]["decode at 8"]["ours_over_this"]["median"] == 1.0
    share, read = ours["figures"]["decode at 8"]["read_share"], figures["machine"]["read_bytes_per_second"]
    assert 0 < share["low"] <= share["median"] <= share["high"] < 1.5
    assert 1e8 < read["low"] <= read["median"] <= read["high"]
    assert openvino["status"] == "not run"
    assert (tmp_path / "bench.svg").read_text(encoding="utf-8").startswith("<svg")
    kept = json.loads((tmp_path / "h.jsonl").read_text(encoding="utf-8"))
    assert set(kept["engines"]["edgeproof"]) == {"version", "prefill 16", "decode at 8"}


def test_code_that_a_package_needs_does_not_run_untrusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trust.VARIABLE, str(tmp_path / "trusted"))
    folder = write(tmp_path / "p", FILES, **MLC)
    with pytest.raises(PackageError, match="brings code"):
        Own(Job(folder, tmp_path, SHAPE, 1, 64))


def test_a_library_that_nobody_trusts_is_told_of(
    library_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(trust.VARIABLE, str(tmp_path / "trusted"))
    monkeypatch.setattr(logging.getLogger("edgeproof"), "propagate", True)
    job = Job(library_package, tmp_path, shape_of(library_package), 1, 64)
    for given, told_of in ((False, 1), (True, 0)):
        caplog.clear()
        worker = Worker("edgeproof", replace(job, trust=given), sys.executable)
        worker.close()
        assert worker.missing == ""
        texts = [record.getMessage() for record in caplog.records]
        assert len(texts) == told_of and all("decoder library" in text and "nobody trusts" in text for text in texts)


def test_a_peer_whose_process_ends_says_its_last_words(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho 'a library speaks' >&2\necho 'ImportError: no symbol' >&2\nexit 3\n", encoding="utf-8"
    )
    python.chmod(0o755)
    worker = Worker("llama.cpp", Job(tmp_path, tmp_path, SHAPE, 2, 64), str(python))
    assert worker.missing == "its process ended with 3: ImportError: no symbol"
    worker.close()
