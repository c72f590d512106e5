"""Speculative decoding: draft tokens of `runtime_py.generation.prompt_lookup` are verified in one decoder call.

Every token is chosen as in a single step, from the logits behind all tokens before it, so that penalties, constraints, stop
tokens and limits count as ever: where a decoder gives a row among others as it gives the row alone, the answer is the same.
A decoder library does. ONNX Runtime's GroupQueryAttention over a float cache takes another kernel for a row alone, whose
sums differ in their last bits, and which of two tokens as good as equal is best can change with them
(docs/results/decode.md).
"""

from __future__ import annotations

from runtime_py.engine.running import Running


def draft_tokens(running: Running) -> list[int]:
    """What to feed behind the answer's newest token; empty where it is to be fed alone."""
    lookup, slot = running.lookup, running.slot
    if lookup is None or slot is None or not slot.session.can_draft:
        return []
    left = running.wish.settings.max_new_tokens - len(running.choosing.ids)
    most = min(slot.session.room, left, slot.session.limits.prefill_chunk) - 1
    return list(lookup.draft(most))


def step_speculatively(running: Running, draft: list[int]) -> None:
    """Feed the newest token and the draft, accept draft tokens up to the first that is not chosen, and reject the others."""
    assert running.slot is not None and running.lookup is not None and running.waiting is not None
    session = running.slot.session
    accepted = 0
    for place, row in enumerate(session.verify_draft([running.waiting, *draft])[0]):
        session.accept_draft_token()
        running.choose(session.stepped(row[None, None])[0, 0])
        if running.over or place == len(draft) or running.waiting != draft[place]:
            break
        accepted += 1
        running.accepted += 1
    session.reject_draft()
    running.lookup.record(len(draft), accepted)
