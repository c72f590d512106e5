"""Values of a configuration: type, range, and where they stand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from export.families.config.section import Section
from runtime_py.errors import CheckpointError, UnsupportedModelError


@pytest.mark.parametrize("value", [True, "3", 2.5, [3], {}, 0, 11, math.nan, math.inf, -math.inf, 10**400])
def test_no_whole_number_in_range(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"a\.json: x is ") as told:
        Section({"x": value}, "a.json").integer("x", 1, 10)
    assert told.value.expected == "a whole number from 1 to 10"


def test_whole_numbers_and_defaults() -> None:
    assert Section({"x": 3}).integer("x", 1, 10) == 3
    assert Section({"x": 3.0}).integer("x", 1, 10) == 3
    assert Section({"x": None}).integer("x", 1, 10, 7) == 7
    with pytest.raises(CheckpointError, match="x is missing"):
        Section({"x": None}).integer("x", 1, 10)


@pytest.mark.parametrize("value", [False, "1e-5", math.nan, math.inf, -1, 2, 10**400, [], {"a": 1}])
def test_no_number_in_range(value: Any) -> None:
    with pytest.raises(CheckpointError, match="a number from 0 to 1"):
        Section({"x": value}).number("x", 0.0, 1.0)


@pytest.mark.parametrize("value", [-1, 10, True, "1", [1, None], [[1]], {"1": 1}, 1.0, math.nan])
def test_no_token_ids(value: Any) -> None:
    with pytest.raises(CheckpointError, match="a token id from 0 to 9"):
        Section({"eos": value}).ids("eos", 10)


def test_token_ids_are_one_or_several_or_none() -> None:
    listed = [Section({"eos": value}).ids("eos", 10) for value in (3, [3], [3, 1, 3], [], None)]
    assert listed == [(3,), (3,), (3, 1), (), ()]


def test_an_inner_section_names_its_place() -> None:
    section = Section({"a": {"b": {"x": "?"}}}, "config.json").section("a").section("b")
    with pytest.raises(CheckpointError, match=r"config\.json: a\.b\.x is '\?'"):
        section.integer("x", 0, 1)
    with pytest.raises(CheckpointError, match=r"config\.json: a is 5"):
        Section({"a": 5}).section("a")


def test_sections_laid_over_one_another_keep_their_places() -> None:
    both = Section({"x": 9}, "config.json", "text_config.").on_top_of(Section({"x": 1, "y": "?"}, "config.json"))
    assert both.integer("x", 0, 9) == 9
    with pytest.raises(CheckpointError, match=r"config\.json: y is"):
        both.integer("y", 0, 9)
    with pytest.raises(CheckpointError, match=r"config\.json: text_config\.x is"):
        both.integer("x", 0, 1)


def test_other_values_than_the_built_ones_are_refused_by_name() -> None:
    allowed = {"act": ("silu",), "bias": (False,), "scale": (1.0,)}
    Section({"act": "silu", "bias": False, "scale": 1, "more": 5}).only(allowed)
    Section({"act": None}).only(allowed)
    for key, value in {"act": "gelu", "bias": 0, "scale": True}.items():
        with pytest.raises(UnsupportedModelError, match=f"{key} is {value!r}"):
            Section({key: value}).only(allowed)


def test_a_long_value_is_cut_and_a_control_character_escaped() -> None:
    with pytest.raises(CheckpointError) as told:
        Section({"x": "\x1b[31m" + "y" * 9000}).integer("x", 0, 1)
    assert len(told.value.what) < 120
    assert "\x1b" not in told.value.what


def test_an_error_says_that_no_value_is_built() -> None:
    with pytest.raises(UnsupportedModelError, match="softcapping is 30") as told:
        Section({"final_logit_softcapping": 30}).only({"final_logit_softcapping": ()})
    assert told.value.expected == "no such value"
