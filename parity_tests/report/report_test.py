"""The written reports: one page that stands alone, JUnit that readers take, and the same facts in all of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from parity_tests.check.answers import picture_data
from parity_tests.cli import main
from parity_tests.judging import results, run_details
from parity_tests.judging.compare import compare_arrays
from parity_tests.judging.judge import Judgement, judge
from parity_tests.judging.metrics import Kind
from parity_tests.judging.results import Comparison, Divergence, Measurement, Run
from parity_tests.judging.run_details import Answer, Details, LayerCost, Similarity, StageError
from parity_tests.judging.standards import Standard
from parity_tests.report import html_report, json_report, junit_report, markdown_report, svg
from runtime_py.errors import UsageError

HOSTILE = '<script>alert("x")</script> & | \x01'


def sample_run(error: float = 0.0) -> Run:
    """A small int4 run of one question; ``error`` is added to one logit of the package."""
    rng = np.random.default_rng(5)
    logits, ids = rng.normal(size=(1, 6, 11)), np.array([[3, 4, 5]])
    actual = logits.copy()
    actual[0, 4, 2] += error
    vision = rng.normal(size=(1, 4, 8))
    rows = (
        compare_arrays("vision", vision, vision),
        compare_arrays("prefill_logits", logits, actual),
        compare_arrays("greedy_ids", ids, np.array([[3, 4, 9]]), step_logits=logits[:, :3]),
        Measurement("pixel_values", "preprocess", Kind.PIXELS, (1, 3, 2, 2), not_probed="no picture"),
    )
    loss = (compare_arrays("prefill_logits", logits, logits * 1.01),)
    picture = picture_data(np.full((300, 500, 3), 90, np.uint8))
    details = Details(
        (Answer("wide", HOSTILE, picture, (500, 300), "red 红", HOSTILE, (3, 4, 5), (3, 4, 9), 2),),
        (Similarity("wide", 0.991, 0.987, 0.995, 0.01, 0.008, 0.04, 0.05, 0.9, 2, 3),),
        (StageError("implementation", "decoder", 0.5, (("layers.0", 0.0), ("layers.1", float("inf")))),),
        (
            LayerCost("decoder.layers.0.mlp.down", "int4", "g", 0.1, 0.002),
            LayerCost("decoder.head", "int4", "g", 0.3, 0.001),
        ),
        waivers=(("skip-verify", "the package was not compared"),),
    )
    return Run(
        "case", "minicpm-v", "1.0", "cpu", "int4", "ort",
        (
            Comparison("implementation", Standard.STORED_FLOAT32, "stored reference", "ort", rows, "wide"),
            Comparison("loss", Standard.INT4_LOSS, "full", "stored reference", loss, "wide"),
        ),
        (("TensorRT engines", "no GPU"),), Divergence("decoder", "layers.1", step=2), {"python": "3"}, "parity", {}, details,
    )  # fmt: skip


def judged(error: float = 1.0) -> Judgement:
    return judge(sample_run(error))


class Page(HTMLParser):
    """What of a page would be loaded, and whether its tags close."""

    VOID = frozenset({"meta", "link", "img", "line", "rect", "circle", "polyline", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    assert page.open == []
    return page


def test_the_page_stands_alone_and_says_where_it_parts():
    text = html_report.html(judged())
    page = parsed(text)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "iframe", "object", "embed"} & set(tags)
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.findall(r"@import|url\(|https?://", text)
    assert "alert(&quot;x&quot;)" in text
    top = text[: text.index("<main>")]
    assert "fail" in top
    assert "stage decoder, block layers.1, answer step 2" in top
    for said in (
        "not measured: run with --task N",
        "KL 0.01 nats, cosine 0.9950",
        "TensorRT engines",
        "skip-verify",
        "red 红",
        "no picture",
    ):
        assert said in text
    reason = judged().comparisons[0].probes[0].limits[0].reason
    assert reason in text


def test_every_plot_and_picture_says_what_it_shows():
    page = parsed(html_report.html(judged()))
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) >= 5
    assert all(attributes.get("role") == "img" and attributes.get("aria-label") for attributes in drawings)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    tables = [tag for tag, _ in page.tags if tag in ("table", "caption")]
    assert tables.count("table") == tables.count("caption")


@pytest.mark.parametrize("details", [Details(), Details(unmeasured="the reference is streamed")])
def test_a_run_without_details_says_so(details: Details):
    run = replace(sample_run(), details=details, comparisons=(), divergence=None)
    text = html_report.html(judge(run))
    parsed(text)
    assert "not run" in text
    assert "No answers were recorded" in text
    assert details.unmeasured in text


def test_task_accuracy_stands_beside_similarity():
    run = replace(
        sample_run(),
        accuracy={"task: all five": 0.97, "full precision: task: all five": 0.98, "task: questions asked": 40.0},
    )
    for text in (html_report.html(judge(run)), markdown_report.markdown(judge(run))):
        assert "97.0 % right" in text
        assert "difference -1.0 points" in text
        assert "KL 0.01 nats, cosine 0.9950" in text
        assert "--task" not in text


def test_junit_has_a_case_for_every_limit_and_counts_them():
    judgement = judged()
    root = ElementTree.fromstring(junit_report.junit(judgement))
    assert root.tag == "testsuites"
    limits = sum(len(p.limits) if p.measurement.metrics else 1 for c in judgement.comparisons for p in c.probes)
    assert sum(len(list(suite.iter("testcase"))) for suite in list(root)[:2]) == limits
    broken = sum(len(p.broken) for c in judgement.comparisons for p in c.probes)
    assert broken > 0
    assert int(root.get("failures", "")) == len(list(root.iter("failure"))) == broken + 1, "and the implementation's case"
    for suite in root:
        cases = list(suite.iter("testcase"))
        assert int(suite.get("tests", "")) == len(cases)
        assert int(suite.get("failures", "")) == sum(case.find("failure") is not None for case in cases)
        assert int(suite.get("skipped", "")) == sum(case.find("skipped") is not None for case in cases)
        assert all(case.get("classname") and case.get("name") and case.get("time") for case in cases)
        assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases)
    assert all(failure.get("message") and "limit" in (failure.text or "") for failure in root.iter("failure"))
    skipped = {
        case.get("name"): case.find("skipped").get("message")
        for case in root.iter("testcase")
        if case.find("skipped") is not None
    }
    assert skipped["TensorRT engines"] == "no GPU"
    assert "run with --task" in (skipped["task accuracy"] or "")


def test_a_passing_run_has_no_failure_in_junit():
    run = replace(sample_run(), divergence=None)
    clean = replace(run, comparisons=tuple(replace(c, measurements=c.measurements[:2]) for c in run.comparisons))
    assert "<failure" not in junit_report.junit(judge(clean))


def test_report_json_keeps_its_keys_and_adds_details():
    value = json_report.report(judged())
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    before = {"case", "family", "variant", "target", "precision", "backend", "verdict", "first_failure", "divergence",
              "comparisons", "not_run", "accuracy", "environment", "command"}  # fmt: skip
    assert before <= set(value)
    assert value["schema"] == 1
    assert "picture" not in value["answers"][0]
    assert [layer["layer"] for layer in value["layers"]] == ["decoder.layers.0.mlp.down", "decoder.head"]
    assert value["stages"][0]["blocks"][1] == {"block": "layers.1", "error": "inf"}


def test_a_stored_run_gives_the_same_reports_again(tmp_path: Path):
    run = sample_run(0.3)
    json_report.write_run(tmp_path / "run.json", judge(run))
    again = results.read(tmp_path)
    assert again == run
    code = main(["judge", str(tmp_path), "--report-dir", str(tmp_path / "again")])
    assert code == 5
    assert (tmp_path / "again" / "report.html").read_text(encoding="utf-8") == html_report.html(judge(run))
    assert (tmp_path / "again" / "junit.xml").is_file()


@pytest.mark.parametrize("schema", [1, 2])
def test_runs_whose_figures_of_logits_are_others_are_refused_by_name(tmp_path: Path, schema: int):
    (tmp_path / "run.json").write_text(json.dumps(results.to_json(sample_run()) | {"schema": schema}), encoding="utf-8")
    with pytest.raises(UsageError, match=f"schema {schema}") as refused:
        results.read(tmp_path)
    assert "run the comparison again" in refused.value.next_step


def test_runs_from_before_there_were_two_decoders_are_read(tmp_path: Path):
    written = results.to_json(sample_run()) | {"schema": 3}
    for comparison in written["comparisons"]:
        del comparison["decoder"]
    (tmp_path / "run.json").write_text(json.dumps(written), encoding="utf-8")
    assert results.read(tmp_path) == sample_run()


def test_limits_from_a_toml_file_turn_a_stored_pass_into_a_fail_and_name_the_block(tmp_path: Path):
    run = replace(
        sample_run(),
        divergence=None,
        details=Details(stages=(StageError("implementation", "decoder", 3e-5, (("layers.0", 1e-6), ("layers.1", 4e-5))),)),
    )
    small = sample_run(1e-4).comparisons[0].measurements[1]
    comparison = replace(run.comparisons[0], measurements=(small,))
    json_report.write_run(tmp_path / "run.json", judge(replace(run, comparisons=(comparison,))))
    assert main(["judge", str(tmp_path)]) == 0
    (tmp_path / "mine.toml").write_text("[implementation-float32.logits]\nrelative_max = 2e-5\n", encoding="utf-8")
    given = ["judge", str(tmp_path), "--thresholds", str(tmp_path / "mine.toml"), "--json-file", str(tmp_path / "out.json")]
    assert main(given) == 5
    value = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert value["divergence"]["block"] == "layers.1"
    limits = value["comparisons"][0]["probes"][0]["limits"]
    assert limits["relative_max"] == 2e-5
    assert "kl_max" in limits


def test_details_come_back_equal():
    details = sample_run().details
    assert run_details.from_json(json.loads(json.dumps(run_details.to_json(details), allow_nan=False))) == details


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [float("inf"), 1.0], [1e-30, 1e30], [0.5] * 5000, []])
def test_plots_take_any_figures(values: list[float]):
    line = svg.lines("KL", [svg.Line("a", values, "one", [0] if values else [])], "said", split=1)
    bars = svg.bars("errors", [svg.Bar("b" * 60, value, "one", 1e-4) for value in values[:9]], "said")
    for drawing in (line, bars):
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing
        assert all(-1 <= float(x) <= svg.WIDTH + 1 for x in re.findall(r'x[12]?="([-\d.]+)"', drawing))
