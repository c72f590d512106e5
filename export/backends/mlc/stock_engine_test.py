"""What the phone's engine can do: worked out from single facts, for every published checkpoint, and as the docs say it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.backends.mlc.backend import tvm_commit
from export.backends.mlc.overview import overview_sides
from export.backends.mlc.stock_engine import countable, stock_engine, unknown_sampling
from export.backends.mlc.support import overview_rows
from export.families.published import variants
from export.families.registry import families
from export.modules.connectors.specs import GluConnectorSpec, ResamplerSpec
from export.modules.decoders.specs import PartialLora, RoutedLora, VisualExperts
from export.plan.footprint import Footprint, footprints
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec, RopeSpec, SizeRule
from export.stages import contracts
from runtime_py.backends.stock_engine import SentPicture, StockEngine, Use
from runtime_py.contracts import CONNECTOR
from runtime_py.errors import PackageError
from targets.android import TARGET
from targets.base import Limits
from targets.registry import target_named

LIMITS = TARGET.limits
PAGE = Path(__file__).parents[3] / "docs" / "targets" / "android.md"


def published(family: str, checkpoint: str = "") -> ModelSpec:
    record = families()[family]
    return record.spec(record.published_config(checkpoint, "full"), EmptySource())


@pytest.fixture(scope="module")
def whole() -> ModelSpec:
    """A model of which the engine shows everything."""
    return published("minicpm-v", "openbmb/MiniCPM-V")


@pytest.mark.parametrize(
    ("picture_size", "rows", "patch", "sent"),
    [
        (448, 64, 14, SentPicture(448, 448, 56, 64)),
        (224, 256, 14, SentPicture(224, 224, 14, 256)),
        (112, 9, 14, SentPicture(112, 112, 37, 9)),  # the demo: 112² / 37² = 9.16
        (448, 96, 14, SentPicture(451, 448, 46, 96)),
        (448, 258, 14, SentPicture(450, 448, 28, 258)),
        (224, 66, 14, SentPicture(228, 224, 28, 66)),
        (1344, 2306, 14, None),
    ],
)
def test_squares_that_the_engine_counts_right(picture_size: int, rows: int, patch: int, sent: SentPicture | None) -> None:
    assert countable(picture_size, rows, patch) == sent


@given(st.integers(8, 1400), st.integers(1, 2500), st.integers(1, 32))
def test_what_is_counted_is_the_number_of_rows(picture_size: int, rows: int, patch: int) -> None:
    sent = countable(picture_size, rows, patch)
    if sent is not None:
        assert sent.image_size**2 // sent.patch_size**2 == rows
        assert picture_size <= sent.image_size < picture_size + patch


def test_every_fact_that_takes_something_away(whole: ModelSpec) -> None:
    """One fact changed at a time, and no family's name."""
    decoder = whole.decoder

    def said(spec: ModelSpec, limits: Limits = LIMITS) -> tuple[Use, str]:
        record = stock_engine(spec, limits)
        assert (record.picture is None) is (record.use in (Use.NOTHING, Use.TEXT))
        return record.use, "; ".join(record.reasons)

    assert said(whole) == (Use.PICTURE, "")
    routed = replace(decoder, adapter=RoutedLora(8, 4, 2.0, 1e-6))
    assert said(replace(whole, decoder=routed))[0] is Use.NOTHING
    for changed, reason in (
        (replace(decoder, adapter=VisualExperts()), "visual experts"),
        (replace(decoder, adapter=PartialLora(8)), "LoRA"),
        (replace(decoder, rope=RopeSpec(1e6, decoder.head_dim, (16, 24, 24))), "3 axes"),
    ):
        use, why = said(replace(whole, decoder=changed))
        assert use is Use.TEXT and reason in why, reason
    use, why = said(whole, Limits(2048, 63))
    assert use is Use.TEXT and "64 rows cannot be split" in why
    assert isinstance(whole.connector, ResamplerSpec)
    use, why = said(replace(whole, connector=replace(whole.connector, queries=2306)), Limits(4096, 4096))
    assert use is Use.TEXT and "cannot count the 2306 rows" in why
    cut = replace(whole, image=replace(whole.image, pieces=10, rule=SizeRule.SLICES))
    assert said(cut) == (Use.PICTURE, "the view of the whole alone: up to 9 further pieces are of other shapes")
    tiles = replace(whole, image=replace(whole.image, pieces=10, rule=SizeRule.TILES))
    assert said(tiles) == (
        Use.PICTURE,
        "the view of the whole alone: up to 9 further pieces stand between marks, which the engine puts nowhere",
    )
    opens = {**whole.runtime["prompt"], "picture": {**whole.runtime["prompt"]["picture"], "after_role": "#"}}
    use, why = said(replace(whole, runtime={**whole.runtime, "prompt": opens}))
    assert use is Use.TEXT and "opens otherwise where a picture comes first" in why
    start = {**whole.runtime["prompt"], "picture": {**whole.runtime["prompt"]["picture"], "place": "start"}}
    use, why = said(replace(whole, runtime={**whole.runtime, "prompt": start}))
    assert use is Use.TEXT and "in front of all turns" in why


def test_views_beside_a_question_and_an_answer() -> None:
    spec = published("xverse-v")
    short, long = stock_engine(spec, Limits(2048, 512)), stock_engine(spec, Limits(4096, 512))
    assert (short.use, long.use) == (Use.TILES, Use.TILES)
    assert [record.picture and (record.picture.held, record.picture.views) for record in (short, long)] == [
        (7, 10),
        (10, 10),
    ]


def test_defaults_that_the_engine_does_not_know() -> None:
    assert unknown_sampling({"temperature": 0.7, "top_k": 100, "repetition_penalty": 1.05, "top_p": 0.8}) == {
        "repetition_penalty": 1.05,
        "top_k": 100.0,
    }
    assert unknown_sampling({"temperature": 0.0, "top_k": 100, "repetition_penalty": 1.2}) == {"repetition_penalty": 1.2}
    assert unknown_sampling({"temperature": 0.0, "top_k": 1, "repetition_penalty": 1.0}) == {}


def test_rows_of_every_overview_are_those_of_the_processor() -> None:
    for family in families().values():
        for checkpoint in variants(family.published_table()):
            spec = published(family.name, checkpoint)
            overview_sides(spec, family.make_processor(spec), overview_rows(spec))
            stated = contracts(spec)[CONNECTOR].outputs[0].shape[1]
            assert stated in (overview_rows(spec), "image_rows"), checkpoint


def test_rows_are_the_contracts_own_where_a_grid_does_not_divide() -> None:
    spec = published("cogvlm2")
    assert isinstance(spec.connector, GluConnectorSpec)
    for grid in (4, 5, 7):
        odd = replace(spec, connector=replace(spec.connector, grid=grid))
        assert overview_rows(odd) == contracts(odd)[CONNECTOR].outputs[0].shape[1] == (grid // 2) ** 2 + 2


def test_the_record_goes_to_json_and_back(whole: ModelSpec) -> None:
    for spec in (whole, published("xverse-v"), published("awaker2.5-vl")):
        record = stock_engine(spec, LIMITS)
        assert StockEngine.from_json(record.to_json()) == record
    broken = {**stock_engine(whole, LIMITS).to_json(), "use": "everything"}
    with pytest.raises(PackageError, match="another form"):
        StockEngine.from_json(broken)


def row(footprint: Footprint) -> str:
    """One line of the table in docs/targets/android.md."""
    engine = footprint.engine
    assert engine is not None
    sent = engine.picture
    cells = ["-"] * 3
    if sent is not None:
        views = f", {sent.held} of {sent.views} views" if sent.views > 1 else ""
        margin = f" (the picture {sent.picture_size})" if sent.image_size > sent.picture_size else ""
        cells = [f"{sent.image_size}{margin}", str(sent.patch_size), f"{sent.rows}{views}"]
    unknown = ", ".join(f"{name} {number:g}" for name, number in engine.sampling.items()) or "-"
    reasons = "; ".join(reason.removeprefix("no pictures: ") for reason in engine.reasons) or "-"
    return f"| {footprint.checkpoint} | {engine.use} | {' | '.join(cells)} | {unknown} | {reasons} |"


def test_the_table_in_the_docs_is_what_is_worked_out() -> None:
    written = re.findall(r"^\| [\w.-]+/[\w.-]+ \|.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    expected = [row(footprint) for footprint in footprints(target_named("android"))]
    missing = [line for line in expected if line not in written]
    assert missing == [], f"put into {PAGE}, in the order of `python -m targets android`:\n" + "\n".join(missing)
    assert written == expected


def test_the_compilers_commit_is_known() -> None:
    pytest.importorskip("tvm")
    commit = tvm_commit()
    assert commit is not None and re.fullmatch(r"[0-9a-f]{7,40}", commit)
