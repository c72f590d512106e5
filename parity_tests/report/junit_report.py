"""JUnit XML for continuous integration: one test suite a comparison, one test case a probe and metric.

Written for the readers of GitLab, Jenkins and GitHub's report actions: ``testsuites`` and ``testsuite`` carry counts,
``testcase`` a class name and a time. An answer is timed as a whole: a suite carries its seconds, its cases equal shares.
Source: jenkinsci/xunit-plugin, src/main/resources/org/jenkinsci/plugins/xunit/types/model/xsd/junit-10.xsd.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from parity_tests.judging.judge import JudgedComparison, JudgedProbe, Judgement, Verdict
from parity_tests.report.headline import not_run
from parity_tests.report.meaning import meaning
from parity_tests.report.text_file import write as write_text

MEANING = "what the verdict means"

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(judgement: Judgement) -> str:
    """The whole document."""
    run = judgement.run
    root = ElementTree.Element("testsuites", name=f"edgeproof parity: {_clean(run.case)}")
    prefix = ".".join(re.sub(r"\W+", "_", part) for part in ("parity", run.family, run.target, run.precision))
    for judged in judgement.comparisons:
        _suite(root, judged, prefix, judgement)
    _not_run(root, judgement, prefix)
    _meaning(root, judgement, prefix)
    for suite in (root, *root):
        cases = list(suite.iter("testcase"))
        suite.set("tests", str(len(cases)))
        suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
        suite.set("errors", "0")
        if suite is not root:
            suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    _timed(root, judgement)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _meaning(root: ElementTree.Element, judgement: Judgement, prefix: str) -> None:
    """The verdict in words: whether the implementation is exact is judged here, what the precision costs is told."""
    told = meaning(judgement)
    suite = ElementTree.SubElement(root, "testsuite", name=MEANING)
    case = _case(suite, f"{prefix}.meaning", "implementation")
    if told.exact is False:
        failure = ElementTree.SubElement(case, "failure", message=_clean(told.implementation), type="parity")
        told_where = "every limit, its reason and the first divergence stand in the failing cases of the comparisons"
        failure.text = f"{_clean(judgement.first_failure)}\n{told_where}"
    elif told.exact is None:
        ElementTree.SubElement(case, "skipped", message=_clean(told.implementation))
    cost = _case(suite, f"{prefix}.meaning", f"what {told.precision} costs")
    if told.cost is None:
        ElementTree.SubElement(cost, "skipped", message=_clean(told.cost_words))
    for node, line in zip((case, cost), told.lines, strict=True):
        ElementTree.SubElement(node, "system-out").text = _clean(line)


def _timed(root: ElementTree.Element, judgement: Judgement) -> None:
    """Seconds of every suite, of the whole, and of cases in equal shares."""
    seconds = dict(zip(root.findall("testsuite"), (j.comparison.seconds for j in judgement.comparisons), strict=False))
    root.set("time", f"{sum(seconds.values()):.3f}")
    for suite in root.findall("testsuite"):
        cases = suite.findall("testcase")
        suite.set("time", f"{seconds.get(suite, 0.0):.3f}")
        for case in cases:
            case.set("time", f"{seconds.get(suite, 0.0) / len(cases):.3f}")


def _suite(root: ElementTree.Element, judged: JudgedComparison, prefix: str, judgement: Judgement) -> None:
    comparison = judged.comparison
    name = f"{comparison.title} {comparison.question}".strip()
    suite = ElementTree.SubElement(root, "testsuite", name=name)
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"standard": str(comparison.standard), "baseline": comparison.baseline, "candidate": comparison.candidate}
    waivers = {f"waiver: {waiver}": meaning for waiver, meaning in judgement.run.details.waivers}
    for key, value in {**facts, **waivers, **judgement.run.environment}.items():
        ElementTree.SubElement(properties, "property", name=_clean(key), value=_clean(value))
    classname = f"{prefix}.{'.'.join(re.sub(r'[^0-9A-Za-z_-]+', '_', part) for part in name.split())}"
    for probe in judged.probes:
        _cases(suite, classname, probe, judgement)


def _cases(suite: ElementTree.Element, classname: str, probe: JudgedProbe, judgement: Judgement) -> None:
    m = probe.measurement
    if not m.metrics or not probe.limits:
        case = _case(suite, classname, f"{m.stage or 'other'}: {m.probe}")
        if probe.verdict is Verdict.FAIL:
            _failure(case, probe.describe() or "nobody looked", judgement, probe)
        else:
            why = probe.describe() or "reported; no limit applies"
            ElementTree.SubElement(case, "skipped", message=_clean(why))
        return
    for limit in probe.limits:
        case = _case(suite, classname, f"{m.stage or 'other'}: {m.probe}: {limit.metric}")
        if limit in probe.broken:
            message = f"{limit.metric} {m.metrics.get(limit.metric, float('nan')):.3g} (limit {limit.bound:g})"
            _failure(case, message, judgement, probe, limit.reason)


def _case(suite: ElementTree.Element, classname: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=classname, name=_clean(name), time="0")


def _failure(case: ElementTree.Element, message: str, judgement: Judgement, probe: JudgedProbe, reason: str = "") -> None:
    failure = ElementTree.SubElement(case, "failure", message=_clean(message), type="parity")
    told = [f"probe {probe.measurement.probe}, stage {probe.measurement.stage}: {message}"]
    told += [f"limit: {reason}"] if reason else []
    place = judgement.run.divergence
    if place is not None and place.stage:
        told.append(f"first divergence: {place.place}" + (f" ({place.note})" if place.note else ""))
    failure.text = _clean("\n".join(told))


def _not_run(root: ElementTree.Element, judgement: Judgement, prefix: str) -> None:
    """What was not run, and task accuracy, as skipped cases of a suite of their own."""
    rows = not_run(judgement.run)
    if not rows:
        return
    suite = ElementTree.SubElement(root, "testsuite", name="not run")
    for what, why in rows:
        case = _case(suite, f"{prefix}.not_run", what)
        ElementTree.SubElement(case, "skipped", message=_clean(why))


def _clean(text: str) -> str:
    """Text without the characters that XML 1.0 does not allow."""
    return _NOT_XML.sub("?", text)


def write(folder: Path, judgement: Judgement) -> Path:
    """Write ``junit.xml`` into a folder through a temporary name; returns its path."""
    path = folder / "junit.xml"
    write_text(path, junit(judgement))
    return path
