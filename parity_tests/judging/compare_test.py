"""Two recordings to measurements: what stands beside the figures, and what is said where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from parity_tests.judging.compare import compare_arrays, compare_recordings
from parity_tests.judging.judge import all_hold
from parity_tests.judging.metrics import kl_divergence
from parity_tests.judging.probes import Recording
from parity_tests.judging.results import Comparison
from parity_tests.judging.standards import Standard


def test_a_prompt_of_another_length_is_a_failure_and_not_cut_into_pictures_and_text() -> None:
    logits, pictures = np.random.default_rng(0).normal(size=(1, 6, 5)), np.arange(6) < 2
    reference = Recording("", arrays={"prefill_logits": logits}, picture_rows=pictures)
    rows = {row.probe: row for row in compare_recordings(reference, Recording("", arrays={"prefill_logits": logits[:, 1:]}))}
    assert rows["prefill_logits"].problem == "shape [1, 5, 5] instead of [1, 4, 5]"
    assert not all_hold(Comparison("package", Standard.FP32, "", "", tuple(rows.values())), "minicpm-v")


@pytest.mark.parametrize("pictures", [np.zeros(6, bool), np.ones(6, bool)], ids=["text alone", "pictures alone"])
def test_a_prompt_of_one_kind_of_rows_stays_whole(pictures: np.ndarray) -> None:
    recording = Recording("", arrays={"prefill_logits": np.ones((1, 6, 5))}, picture_rows=pictures)
    (row,) = compare_recordings(recording, recording)
    assert (row.probe, row.shape) == ("prefill_logits", (1, 6, 5))


def test_why_an_array_is_missing_is_said_of_every_piece_of_it() -> None:
    vision, embeds = [np.ones((1, 2)), np.ones((1, 3))], np.ones((1, 2))
    reference = Recording("", pieces={"vision": vision}, arrays={"inputs_embeds": embeds})
    rows = compare_recordings(reference, Recording("", absent={"vision": "it is fused with the connector"}))
    fused, silent = "it is fused with the connector", "the candidate gave no such array"
    assert [(row.probe, row.not_probed) for row in rows] == [
        ("vision_0", fused), ("vision_1", fused), ("inputs_embeds", silent)
    ]  # fmt: skip
    assert all(row.required for row in rows)


def test_every_position_of_logits_has_its_divergence_and_whether_the_first_token_is_the_same() -> None:
    expected, actual = np.array([[[0.0, 2.0], [3.0, 0.0], [0.0, 1.0]]]), np.array([[[0.0, 2.0], [0.0, 1.0], [0.0, 4.0]]])
    series = compare_arrays("step_logits", expected, actual).series
    assert series["top1"] == (1.0, 0.0, 1.0)
    assert series["kl"] == pytest.approx(kl_divergence(expected, actual)[0], rel=1e-3)
    assert series["kl"][1] != pytest.approx(kl_divergence(actual, expected)[0, 1], rel=0.1), "of the reference, not from it"


def test_tokens_of_both_sides_are_kept() -> None:
    series = compare_arrays("greedy_ids", np.array([[7, 8]]), np.array([[7, 9]])).series
    assert series == {"reference": (7.0, 8.0), "candidate": (7.0, 9.0)}
