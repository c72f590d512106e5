from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime_py.generation.prompt_lookup import FIRST, LENGTHS, LONGEST_REST, PromptLookup

WORDS = st.integers(0, 3)


def test_the_draft_is_what_followed_the_same_tokens_last() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 8, 9, 1, 2, 3], 8)
    assert list(lookup.draft(8)) == [8, 9, 1]
    assert list(lookup.draft(1)) == [8]
    assert not lookup.draft(0)


def test_a_longer_match_goes_before_a_newer_one() -> None:
    lookup = PromptLookup([5, 1, 2, 3, 4, 9, 1, 2, 3, 7, 5, 1, 2, 3], 8)
    assert list(lookup.draft(1)) == [4]


def test_drafts_grow_when_accepted_and_pause_when_rejected() -> None:
    lookup = PromptLookup(list(range(999)) + list(range(5)), 7)
    assert len(lookup.draft(99)) == FIRST
    lookup.record(FIRST, FIRST)
    assert len(lookup.draft(99)) == 2 * FIRST
    lookup.record(2 * FIRST, 2 * FIRST)
    assert len(lookup.draft(99)) == 7
    lookup.record(7, 2)
    assert len(lookup.draft(99)) == 3
    token, rests = 5, []
    for _ in range(8):
        lookup.record(1, 0)
        began = token
        while not lookup.draft(99) and token < 900:
            lookup.add(token)
            token += 1
        rests.append(token - began)
    assert rests == [1, 2, 4, 8, 16, LONGEST_REST, LONGEST_REST, LONGEST_REST]
    assert len(lookup.draft(99)) == 1, "the next draft is careful"
    lookup.record(1, 1)
    lookup.record(2, 0)
    assert not lookup.draft(99)
    lookup.add(token)
    assert lookup.draft(99), "an accepted draft ends the long rests"


def test_the_first_rest_is_of_one_token() -> None:
    lookup = PromptLookup([*range(9), *range(5)], 7)
    lookup.record(FIRST, 0)
    lookup.add(5)
    assert list(lookup.draft(9)) == [6]


@given(tokens=st.lists(WORDS, max_size=40), room=st.integers(0, 9), split=st.integers(0, 40))
def test_every_draft_followed_the_newest_tokens_before(tokens: list[int], room: int, split: int) -> None:
    lookup = PromptLookup(tokens[:split], 8)
    for token in tokens[split:]:
        lookup.add(token)
    draft = list(lookup.draft(room))
    assert len(draft) <= min(room, FIRST)
    tail = tokens[-LENGTHS[-1] :]
    behind = [tokens[place + len(tail) :][:room] for place in range(len(tokens) - len(tail))]
    alike = [rest for place, rest in enumerate(behind) if tokens[place : place + len(tail)] == tail]
    assert any(rest[: len(draft)] == draft for rest in alike) if draft else not alike or room == 0
