"""An answer's settings: a package's defaults, and what a caller sets apart from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime_py.errors import PackageError, UsageError
from runtime_py.generation.generate import Choosing, Finish, Overrides, Settings, settings_of
from runtime_py.generation.sampler import Sampling

DEFAULTS: dict[str, Any] = {
    "stop_ids": [2, 7],
    "max_new_tokens": 9,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.75,
    "repetition_penalty": 1.25,
}


def test_settings_are_the_packages_own_where_a_caller_sets_none() -> None:
    assert settings_of(DEFAULTS) == Settings((2, 7), 9, Sampling(0.5, 3, 0.75, 1.25))


def test_a_caller_sets_each_of_them_even_to_nothing() -> None:
    every = Overrides(
        max_new_tokens=1, temperature=0.0, top_k=0, top_p=0.5, repetition_penalty=1.5, seed=0, stop_ids=(), prompt_lookup=6
    )
    assert settings_of(DEFAULTS, every) == Settings((), 1, Sampling(0.0, 0, 0.5, 1.5, seed=0), prompt_lookup=6)


@pytest.mark.parametrize("missing", sorted(DEFAULTS))
def test_a_package_without_a_default_is_refused_unless_it_is_set(missing: str) -> None:
    rest = {name: value for name, value in DEFAULTS.items() if name != missing}
    with pytest.raises(PackageError, match=f"generation has no '{missing}'"):
        settings_of(rest)
    value: Any = tuple(DEFAULTS[missing]) if missing == "stop_ids" else DEFAULTS[missing]
    assert settings_of(rest, Overrides(**{missing: value})) == settings_of(DEFAULTS)


def test_an_answer_ends_at_a_stop_token_at_its_length_or_at_the_end_of_the_context() -> None:
    def chosen(token: int, room: int) -> Choosing:
        choosing = Choosing(Settings((2, 7), 2, Sampling()))
        for each in (3, token):
            if choosing.choose(np.eye(9)[each]) is not None:
                choosing.check_limits(room if each == token else 99)
        return choosing

    ends = [(7, 99, Finish.STOP, [3]), (4, 99, Finish.LENGTH, [3, 4]), (4, 0, Finish.LENGTH, [3, 4])]
    for token, room, finish, ids in ends:
        choosing = chosen(token, room)
        assert (choosing.finish, choosing.ids) == (finish, ids)
    cut = Choosing(Settings((2,), 2, Sampling()))
    cut.choose(np.eye(9)[3])
    cut.check_limits(1)
    assert cut.finish is None
    cut.check_limits(0)
    assert cut.finish is Finish.CONTEXT


def test_ends_are_told_in_the_words_of_the_documentation() -> None:
    assert [str(finish) for finish in Finish] == ["stop", "length", "context", "stopped"]


@pytest.mark.parametrize(
    ("asked", "said"), [(Overrides(max_new_tokens=0), "0 new"), (Overrides(prompt_lookup=-1), "-1 gue")]
)
def test_an_answer_of_no_tokens_is_refused_and_so_are_fewer_guesses_than_none(asked: Overrides, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        settings_of(DEFAULTS, asked)
    assert settings_of(DEFAULTS, Overrides(max_new_tokens=1, prompt_lookup=0)).max_new_tokens == 1


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "seed", "prompt_lookup", "stop_ids"])
@pytest.mark.parametrize("value", [True, "3", 1.5, [1.5]])
def test_a_value_of_another_kind_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        Overrides(**{name: value})
    with pytest.raises(UsageError, match="temperature"):
        Overrides(temperature="0.5")  # type: ignore[arg-type]
