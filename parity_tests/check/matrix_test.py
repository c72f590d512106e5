"""The matrix: real cells, and the three ways in which a cell is not run, not built or fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.cluster import flags as cluster
from export.cluster.jobs import Died, Job
from parity_tests.check import matrix
from parity_tests.check.matrix import Cell, Status, checkpoints, markdown, run_cell, to_json
from parity_tests.cli import main
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.golden.case import read_case


def test_a_cell_passes_and_its_damaged_golden_fails(tmp_path: Path):
    good = run_cell("omnilmm-12b", "omnilmm-12b", GOLDENS / "omnilmm-12b", "cpu", "fp32")
    assert (good.status, good.detail) == (Status.PASS, "")
    folder = Path(shutil.copytree(GOLDENS / "omnilmm-12b", tmp_path / "case"))
    arrays = dict(read_case(folder).outputs)
    arrays["connector"] = arrays["connector"] + 1e-3
    np.savez(folder / "outputs.npz", allow_pickle=False, **arrays)
    bad = run_cell("omnilmm-12b", "case", folder, "cpu", "fp32")
    assert bad.status is Status.FAIL
    assert "connector" in bad.detail
    assert json.loads(to_json([good, bad]))["verdict"] == "fail"
    assert json.loads(to_json([good]))["verdict"] == "pass"
    lacking = [replace(good, status=status) for status in (Status.NOT_RUN, Status.NOT_BUILT)]
    assert json.loads(to_json(lacking))["verdict"] == "not run"
    assert json.loads(to_json([good, *lacking]))["verdict"] == "pass"


def test_a_part_that_cannot_run_here_makes_a_cell_not_run_and_never_passed(
    exported: ExportedPackage, monkeypatch: pytest.MonkeyPatch
):
    from parity_tests.golden import golden

    whole = golden.compare_case

    def without_engines(*given):
        return replace(whole(*given), not_run=(("TensorRT engines", "no NVIDIA driver was found"),))

    package = exported("omnilmm-12b", "cpu", "fp32")
    monkeypatch.setattr(golden, "compare_case", without_engines)
    monkeypatch.setattr(golden, "export_case", lambda *_, **__: package)
    cell = run_cell("omnilmm-12b", "omnilmm-12b", GOLDENS / "omnilmm-12b", "cpu", "fp32")
    assert cell.status is Status.NOT_RUN
    assert "what runs here passes (backend ort); not run: TensorRT engines: no NVIDIA driver" in cell.detail


def test_every_family_has_a_small_checkpoint():
    from export.families.registry import families

    bare = [family for family in families() if not checkpoints(family)]
    assert bare == [], f"run the published code on a small checkpoint of each and put it into {GOLDENS}/NAME"


def test_a_precision_that_the_target_lacks_is_not_built():
    from targets.registry import target_named

    assert target_named("android").precision("fp16") is None or target_named("desktop-gpu").precision("fp32") is None
    target, precision = ("android", "fp16") if target_named("android").precision("fp16") is None else ("desktop-gpu", "fp32")
    cell = run_cell("wemm", "wemm", GOLDENS / "wemm", target, precision)
    assert cell.status is Status.NOT_BUILT
    assert precision in cell.detail


def test_the_table_has_a_cell_for_every_column():
    cells = [Cell("wemm", "demo", "cpu", "fp32", Status.PASS), Cell("wemm", "demo", "cpu", "int4", Status.FAIL, "why")]
    lines = markdown(cells).splitlines()
    assert lines[0] == "| family | checkpoint | cpu fp32 | cpu int4 |"
    assert lines[2] == "| wemm | demo | pass | fail |"
    assert lines[-1] == "- wemm (demo), cpu int4, fail: why"


class _Elsewhere:
    """An executor that ends jobs in another order, one of them without a result."""

    def __call__(self, jobs: Sequence[Job[Cell]]) -> Iterator[tuple[Job[Cell], Cell | Died]]:
        first, *others = jobs
        yield from ((job, job.task(job.given)) for job in reversed(others))
        yield first, Died("OutOfMemoryError at each of 3 tries: Task was killed")


def test_the_report_has_one_order_and_a_dead_worker_fails_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def done(family: str, name: str, folder: Path, target: str, precision: str) -> Cell:
        return Cell(family, name, target, precision, Status.PASS)

    monkeypatch.setattr(matrix, "run_cell", done)
    written = tmp_path / "matrix.json"
    asked = ["--matrix", "--families", "wemm,minicpm-v", "--targets", "cpu", "--json-file", str(written)]
    kept = ["--results", str(tmp_path / "results")]
    assert main(asked) == 0
    local = json.loads(written.read_text())["cells"]
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "executor_of", lambda _: _Elsewhere())
        assert main([*asked, *kept]) == 5
    there = json.loads(written.read_text())["cells"]
    assert there[0]["status"] == "fail"
    assert there[0]["detail"].startswith("OutOfMemoryError at each of 3 tries")
    assert there[1:] == local[1:]
    monkeypatch.setattr(matrix, "run_cell", lambda *place: replace(done(*place), detail="again"))
    assert main([*asked, *kept]) == 0
    assert [cell["detail"] for cell in json.loads(written.read_text())["cells"]] == ["again", *[""] * (len(local) - 1)]


@pytest.mark.parametrize("flags", [["--families", "nobody"], ["--targets", "toaster"], ["--precisions", "int3"]])
def test_an_unknown_name_is_refused(flags: list[str]):
    assert main(["--matrix", *flags]) == 2
