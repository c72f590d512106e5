"""What bench prints for people: units, and medians with their range."""

from __future__ import annotations

from runtime_py.command.bench import lines


def test_figures_have_units_and_stand_in_one_column() -> None:
    rate = {"median": 1345.6, "low": 1109.4, "high": 1581.8}
    shown = lines(
        {"threads": 0, "runs": 5, "a_long_name_seconds": 0.28, "decode_rate": rate, "peak_resident_bytes": 99_602_432}
    )
    assert [line[:21].strip() for line in shown[2:]] == ["a long name seconds", "decode rate", "peak resident bytes"]
    assert [line[21:] for line in shown] == [
        "the backend's choice (--threads 0)",
        "5, of which medians are shown (lowest to highest)",
        "0.280",
        "1,346 (1,109 to 1,582)",
        "95.0 MiB",
    ]
