"""What mlc-llm's own engine, as the stock apps call it, can do with a model's package: from its spec, never from its name.

The engine runs ``prefill`` and ``decode`` on rows and positions alone; sends every picture as one square of
``vision_config.image_size`` pixels to ``image_embed``; counts the rows of one by integer division; puts them inside a turn;
and feeds them in one prefill. What a model needs beyond that, the engine leaves out without a word, so the library does
not offer the function then. Source: mlc-ai/mlc-llm at 79d603f, cpp/json_ffi/conv_template.cc (``CreatePrompt``),
cpp/serve/model.cc (``ImageEmbed``, ``BatchPrefill``) and cpp/serve/config.cc (``GetDefaultFromModelConfig``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from export.backends.mlc.conversation_template import picture_message
from export.backends.mlc.support import decoder_sides, overview_rows
from export.prompts.declared import declared_prompt
from export.specs import ModelSpec, SizeRule
from runtime_py.backends.stock_engine import SentPicture, StockEngine, Use
from runtime_py.prompt.format import Place
from targets.base import ANSWER_ROOM, Limits

ENGINE = "stock mlc-llm engine"

NEUTRAL = {"repetition_penalty": 1.0, "top_k": 0}
"""Defaults that the engine reads from no file and a request cannot bring, with the values that change nothing."""


def stock_engine(spec: ModelSpec, limits: Limits) -> StockEngine:
    """The record of a package of ``spec`` with ``limits``."""
    nothing = _against_text(spec)
    if nothing:
        return StockEngine(ENGINE, Use.NOTHING, None, tuple(nothing))
    sampling = unknown_sampling(spec.generation)
    said = _about_turns(spec)
    rows = overview_rows(spec)
    sent = countable(spec.image.overview, rows, spec.image.patch)
    against = _against_pictures(spec, rows, limits)
    if sent is None:
        against.append(f"the engine cannot count the {rows} rows of a {spec.image.overview}-pixel picture")
    if against or sent is None:
        return StockEngine(ENGINE, Use.TEXT, None, tuple(f"no pictures: {reason}" for reason in against) + said, sampling)
    use, pieces = _pieces(spec)
    if use is Use.TILES:
        held = min(spec.image.pieces, (limits.context - ANSWER_ROOM) // rows)
        sent = replace(sent, views=spec.image.pieces, held=max(1, held))
    return StockEngine(ENGINE, use, sent, pieces + said, sampling)


def unknown_sampling(generation: Mapping[str, Any]) -> dict[str, float]:
    """Those of a model's sampling defaults that matter to its answers and that the engine does not know."""
    greedy = not generation.get("temperature")
    return {
        name: float(generation[name])
        for name, neutral in NEUTRAL.items()
        if generation.get(name, neutral) != neutral and not (greedy and name == "top_k")
    }


def countable(picture_size: int, rows: int, patch: int) -> SentPicture | None:
    """The square to send so that the engine counts ``rows``: without a margin, else with the smallest, below one patch.

    Args:
        picture_size: side of the picture, in pixels.
        patch: side of the vision tower's patch; a wider margin would be more than a rounding.

    Returns:
        None when no such square gives the count.
    """
    for side in range(picture_size, picture_size + patch):
        for size in range(side, 0, -1):
            counted = side * side // (size * size)
            if counted == rows:
                return SentPicture(side, picture_size, size, rows)
            if counted > rows:
                break
    return None


def _against_text(spec: ModelSpec) -> list[str]:
    """Why not even text can be asked."""
    through = spec.decoder.layer_kind.every_token
    return [f"every token goes through {through}; stock prefill and decode choose none"] if through else []


def _against_pictures(spec: ModelSpec, rows: int, limits: Limits) -> list[str]:
    """Why no picture can be sent, all reasons but its count."""
    decoder = spec.decoder
    reasons = []
    through = decoder.layer_kind.picture_rows
    if through:
        reasons.append(f"picture rows go through {through}, which stock prefill ignores")
    if decoder.rope.sections:
        reasons.append(f"picture rows have positions on {len(decoder.rope.sections)} axes; stock prefill has one")
    if not reasons and any(tensor.name != "position_ids" for tensor in decoder_sides(spec)):
        names = ", ".join(tensor.name for tensor in decoder_sides(spec))
        reasons.append(f"the decoder reads {names}, which stock prefill does not have")
    form = declared_prompt(spec)
    if form.picture.place is Place.START:
        reasons.append("a picture stands in front of all turns, and the engine puts it inside one")
    elif picture_message(form) is None:
        reasons.append("a turn opens otherwise where a picture comes first, and the engine opens all alike")
    if rows > limits.prefill_chunk:
        reasons.append(f"its {rows} rows cannot be split and exceed the prefill chunk of {limits.prefill_chunk}")
    if rows >= limits.context:
        reasons.append(f"its {rows} rows leave nothing of the context of {limits.context}")
    return reasons


def _pieces(spec: ModelSpec) -> tuple[Use, tuple[str, ...]]:
    """Whether a picture arrives whole, as tiles, or only as a view of the whole; and what does not arrive."""
    marks = declared_prompt(spec).picture
    if spec.image.pieces == 1:
        return Use.PICTURE, ()
    if spec.image.rule is SizeRule.TILES and not (marks.before or marks.after or marks.slices):
        return Use.TILES, ()
    tiles = spec.image.rule is SizeRule.TILES
    why = "stand between marks, which the engine puts nowhere" if tiles else "are of other shapes"
    lost = f"the view of the whole alone: up to {spec.image.pieces - 1} further pieces {why}"
    return Use.PICTURE, (lost,)


def _about_turns(spec: ModelSpec) -> tuple[str, ...]:
    """What of a conversation the engine gets wrong."""
    if declared_prompt(spec).keeps_history:
        return ()
    return ("one question at a time: the engine repeats earlier turns, which this model does not read",)
