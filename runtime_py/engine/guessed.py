"""A step of an answer whose next tokens are guessed (`runtime_py.generation.prompt_lookup`) and checked in one call.

Every token is chosen as in a single step, from the logits behind all tokens before it, so that penalties, constraints, stop
tokens and limits count as ever: where a decoder gives a row among others as it gives the row alone, the answer is the same.
ONNX Runtime's MatMulNBits does. Its GroupQueryAttention over a float cache takes another kernel for a row alone, whose sums
differ in their last bits, and which of two tokens as good as equal is best can change with them (docs/results/decode.md).
"""

from __future__ import annotations

from runtime_py.engine.running import Running


def guesses(running: Running) -> list[int]:
    """What to feed behind the answer's newest token; empty where it is to be fed alone."""
    lookup, slot = running.lookup, running.slot
    if lookup is None or slot is None or not slot.session.can_guess:
        return []
    left = running.wish.settings.max_new_tokens - len(running.choosing.ids)
    most = min(slot.session.room, left, slot.session.limits.prefill_chunk) - 1
    return list(lookup.guess(most))


def step_guessed(running: Running, guessed: list[int]) -> None:
    """Feed the newest token and the guesses, choose tokens as long as the guesses are right, and forget the others."""
    assert running.slot is not None and running.lookup is not None and running.waiting is not None
    session = running.slot.session
    right = 0
    for place, row in enumerate(session.step_guessed([running.waiting, *guessed])[0]):
        session.keep_guess()
        running.choose(session.stepped(row[None, None])[0, 0])
        if running.over or place == len(guessed) or running.waiting != guessed[place]:
            break
        right += 1
        running.guessed += 1
    session.drop_guesses()
    running.lookup.told(len(guessed), right)
