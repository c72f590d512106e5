"""What is kept and with which settings, how near to a limit, and the decoder in other layouts, on one small layer."""

from __future__ import annotations

import datetime
import math
from pathlib import Path

import numpy as np
import pytest

from export.cluster.product import ROOT
from parity_tests.laboratory.phone_faults import dequantised, quantised
from parity_tests.laboratory.real_model import work
from parity_tests.laboratory.real_model.comparison import deciding
from parity_tests.laboratory.real_model.material import MODULES, docstrings
from parity_tests.laboratory.real_model.measure import broken, largest, share_of
from parity_tests.laboratory.real_model.page import PASSES, Measured, page
from parity_tests.laboratory.real_model.shells import SHELLS, WIDE, widened
from parity_tests.laboratory.real_model.shown import OTHER_MODULES
from parity_tests.laboratory.real_model.work import Work
from runtime_py.errors import MachineError


def test_what_was_measured_with_other_settings_is_measured_anew(tmp_path: Path) -> None:
    older, made = Work(tmp_path, 16, 100, {"torch": "1"}), []

    def measure(value: int) -> int:
        made.append(value)
        return value

    assert older.kept("a b", [16], lambda: measure(1)) == 1
    assert older.kept("a b", [16], lambda: measure(2)) == 1, "the same settings"
    assert older.kept("a b", [32], lambda: measure(3)) == 3, "others"
    newer = Work(tmp_path, 16, 100, {"torch": "2"})
    assert newer.kept("a b", [32], lambda: measure(4)) == 4, "another version"
    (tmp_path / "results" / "a-b.json").write_text('{"code": 0}', encoding="utf-8")
    assert newer.kept("a b", [32], lambda: measure(5)) == 5, "a file of before there were keys"
    assert made == [1, 3, 4, 5]


def test_a_figure_that_is_no_number_is_the_worst() -> None:
    assert share_of("relative_max", 0.5, 1.0) == 0.5
    assert share_of("mean_row_cosine", 0.98, 0.9) == pytest.approx(0.2)
    assert share_of("kl_max", math.nan, 1.0) == math.inf
    assert (share_of("mismatches", 0, 0), share_of("mismatches", 1, 0)) == (0.0, math.inf)
    row = {"comparison": "kernels", "question": "wide", "name": "logits"}
    bad = {**row, "metrics": {"kl_max": "nan"}, "limits": {"kl_max": 0.5}}
    good = {**row, "metrics": {"kl_max": 0.4}, "limits": {"kl_max": 0.5}}
    assert largest([bad, good])["kernels"][0] == math.inf
    assert largest([good])["kernels"][0] == pytest.approx(0.8)


def test_a_package_that_is_not_there_is_not_called_free_of_places(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="android-int4 holds no package"):
        broken(Work(tmp_path, 16, 100), "android int4", 17, "swapped norm")


def test_methods_see_no_module_that_they_are_compared_on() -> None:
    assert set(OTHER_MODULES).isdisjoint(MODULES)


def test_docstrings_are_those_of_the_module_and_what_it_defines() -> None:
    told = dict(docstrings("textwrap"))
    assert told[""] == "Text wrapping and filling."
    assert told["dedent"].startswith("Remove any common leading whitespace") and "re" not in told
    with pytest.raises(ImportError):
        docstrings("no_such_module")


@pytest.mark.parametrize("dtype", PASSES)
def test_a_calibration_is_kept_by_what_its_samples_passed_in(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "has_bfloat16", lambda: dtype == "bfloat16")
    assert deciding({"method": "gptq"}) == {"method": "gptq", "passes": dtype}
    assert deciding({}) == {}, "plain rounding passes no sample"


def test_the_page_that_is_kept_begins_as_a_new_one_would() -> None:
    kept = (ROOT / "docs" / "results" / "real_model.md").read_text(encoding="utf-8")
    begun = [page(Measured({}, dtype, 64, 20_000, {}, [], {}), datetime.date(2026, 11, 29)) for dtype in PASSES]
    assert any(kept.startswith(one.removesuffix("2026-11-29; .\n")) for one in begun)
    assert begun[0] != begun[1]


def test_the_page_tells_what_was_measured() -> None:
    row = [math.inf, "wide picture_logits", "kl_max", math.nan, 0.5]
    package = {
        "code": 5, "verdict": "fail", "bits_per_weight": {"onnx": 5.21}, "predicted_peak": 2 << 30, "peak": 2 << 30,
        "processor_seconds": 61.2, "largest": {"kernels": row},
    }  # fmt: skip
    opinion = {"verdict": "pass", "first_failure": None, "logits": {"logits of text": [1.94e-6, 2e-5]}}
    photographs = {
        "files": ["china.jpg"], "verdict": "pass",
        "largest": {"rounded inputs": [0.2, "china.jpg step_logits", "kl_mean", 0.26, 5]},
        "opinions": [
            {"part": "pixels", "what": "china", "against": "X", "metric": "max_abs", "error": 0, "verdict": "pass"}
        ],
    }  # fmt: skip
    whole = page(
        Measured(
            {"torch": "2.13"}, "float32", 16, 4096, {"cpu int4": package}, [],
            {"android int4": ["| swapped norm | caught | | |"]},
            {"wemm, dithered": {"opinion": opinion, "packages": {"int4": package}}},
            None,
            photographs,
            demos={"wemm, cpu int4": package},
        ),
        datetime.date(2026, 11, 28),
    )  # fmt: skip
    assert "| cpu int4 | fail | 5.21 | 2.00 GiB | 2.00 GiB | +0 % | 61 |" in whole
    nearest = "inf %: kernels, wide picture_logits, kl_max nan of 0.5"
    assert f"| wemm, cpu int4 | fail | {nearest} |" in whole
    assert f"| wemm, dithered | of text 1.9e-06: pass |  | fail | 5.21 | {nearest} |" in whole
    assert "swapped norm" in whole and "china against X: max_abs 0, pass" in whole
    assert "20 %: rounded inputs, china.jpg step_logits" in whole
    assert "the furthest is china.jpg step_logits, kl_mean 0.26" in whole


def test_words_and_scales_of_a_phone_go_there_and_back() -> None:
    values = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    words, scales = quantised(values)
    back = dequantised(words, scales)
    assert words.shape == (6, 8) and scales.shape == (6, 2)
    assert np.abs(back - values).max() <= scales.max() / 2 * (1 + 1e-6)
    again = quantised(back)
    np.testing.assert_array_equal(again[0], words)


def test_dead_channels_and_heads_change_nothing() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shared = {"intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 96, "max_position_embeddings": 64}
    hidden, heads, kv_heads = SHELLS["wemm"].width

    def model(width: int, count: int, keys: int, eps: float):
        sizes = {"hidden_size": width, "num_attention_heads": count, "num_key_value_heads": keys, "rms_norm_eps": eps}
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shared, **sizes)).eval()

    torch.manual_seed(0)
    small, wide = model(hidden, heads, kv_heads, 1e-2), model(*WIDE, 1e-2 * hidden / WIDE[0])
    tensors = {name: value.numpy() for name, value in small.state_dict().items()}
    wide.load_state_dict({name: torch.from_numpy(value) for name, value in widened(tensors, heads, kv_heads).items()})
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        np.testing.assert_allclose(wide(ids).logits.numpy(), small(ids).logits.numpy(), atol=2e-6)
