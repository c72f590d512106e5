"""Every reader against some strange files; ``python -m parity_tests.laboratory.fuzz --inputs 20000`` reads many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity_tests.laboratory.fuzz.package_subjects import SUBJECTS
from parity_tests.laboratory.fuzz.worker import Watch, run

EXAMPLES = int(os.environ.get("EDGEPROOF_EXAMPLES", "12"))


@pytest.mark.parametrize("name", SUBJECTS)
def test_strange_files_are_refused_or_read_right(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(st.integers(0, 2**32))
    def check(number: int) -> None:
        findings = run(SUBJECTS[name], 0, range(number, number + 1), tmp_path)
        assert findings.faults == 0, findings.examples

    check()


def test_foreign_code_is_noticed() -> None:
    watch = Watch()
    watch.on = True
    os.system("true")
    watch.on = False
    os.system("true")
    assert len(watch.calls) == 1 and watch.calls[0].startswith("os.system")
