"""Golden arrays beyond the common probes: stored tables, outputs of single modules, what routing decides, other prompts.

Each is worked out anew on the side that is asked, through its own graphs or modules and its own processor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from parity_tests.backends.examiner import NotShown
from parity_tests.check.candidate import Candidate
from parity_tests.golden.case import GoldenArray, GoldenCase
from parity_tests.golden.inside import AskedOnce
from parity_tests.golden.routing import routing_array
from parity_tests.judging.metrics import Kind
from parity_tests.judging.probes import PREPROCESS, Question
from parity_tests.localize.localize import candidate_blocks
from parity_tests.reference.checkpoint_side import Checkpoint
from runtime_py.contracts import CONNECTOR, DECODER, VISION


@dataclass(frozen=True)
class Extra:
    """What a side says to a golden array. ``further`` are metrics that the two arrays alone do not give."""

    stage: str
    kind: Kind
    values: np.ndarray
    further: Mapping[str, float] = field(default_factory=dict)


TABLES = {"vision_pos_embed": "vision_encoder.positions", "resampler_key_pos": "connector.key_positions"}
"""Golden name to canonical parameter. What is compared is the table that went into the package, as its rule makes it."""

_HIDDEN = re.compile(r"hidden_after_layer_(\d+)")
_PAST = re.compile(r"past_(key|value)_layer_?(\d+)")


def extra_array(
    case: GoldenCase, array: GoldenArray, side: Candidate, checkpoint: Checkpoint, asked: Question | None
) -> Extra | None:
    """The values behind a golden array's name, or None when it is nothing that is looked at here.

    Raises:
        KeyError: the checkpoint has no such parameter (its tables are inputs, not constants).
        NotShown: the backend shows nothing inside this stage.
    """
    if array.rest in TABLES:
        return _table(TABLES[array.rest], checkpoint)
    if array.rest == "batch_vision":
        return _batch_vision(case, side, case.outputs[array.name])
    if asked is None:
        return None
    once = AskedOnce(side, asked)
    extra = _of_stages(array.rest, case.outputs[array.name], once)
    if extra is None:
        routed = routing_array(case, array, once, checkpoint)
        extra = None if routed is None else Extra(*routed)
    return extra


def _of_stages(name: str, expected: np.ndarray, once: AskedOnce) -> Extra | None:
    """What is a stage's output or a value inside one."""
    extra = None
    hidden, past = _HIDDEN.fullmatch(name), _PAST.fullmatch(name)
    if hidden:
        extra = Extra(DECODER, Kind.FEATURES, _block(once, f"layers.{int(hidden[1])}"))
    elif past:
        (values,) = once.values(DECODER, f"present.{int(past[2])}.{past[1]}")
        extra = Extra(DECODER, Kind.FEATURES, values[..., : expected.shape[-1]])
    elif name in OTHERS:
        extra = OTHERS[name](once)
    elif once.images and name == "image_features":
        extra = Extra(CONNECTOR, Kind.FEATURES, np.concatenate(once.features))
    elif once.images and name in INSIDE:
        stage, path, arrange = INSIDE[name]
        extra = Extra(stage, Kind.FEATURES, arrange(np.concatenate(once.values(stage, path)), expected))
    return extra


def _as_stored(values: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return values


def _channels_first(rows: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(images, cells, channels) rows of a square grid to the golden's (images, channels, rows, columns)."""
    return rows.transpose(0, 2, 1).reshape(expected.shape) if rows.size == expected.size else rows


def _unfolded(windows: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(1, cells, k * k * width) windows of a grid back to the padded grid (1, rows, columns, width)."""
    if windows.size != expected.size:
        return windows
    _, rows, columns, width = expected.shape
    side = round((windows.shape[-1] / width) ** 0.5)
    cells = windows.reshape(rows // side, columns // side, side, side, width)
    return cells.transpose(0, 2, 1, 3, 4).reshape(expected.shape)


Arrangement = Callable[[np.ndarray, np.ndarray], np.ndarray]

INSIDE: Mapping[str, tuple[str, str, Arrangement]] = {
    "vision_with_cls": (VISION, "norm", _as_stored),
    "vit_embed": (VISION, "blocks.input", _as_stored),
    "vision_ln": (CONNECTOR, "norm", _as_stored),
    "conv_out": (CONNECTOR, "conv", _channels_first),
    "downsample_input": (CONNECTOR, "conv.input", _unfolded),
    "downsample_grid": (CONNECTOR, "proj", _as_stored),
}
"""Golden name to stage, path of the value inside it, and how the golden lays it out."""


def _without_deltas(once: AskedOnce) -> Extra:
    """Last-position logits with the partial LoRA left off on every row: the wrong answer, which switching it off gives."""
    decoder = dict(once.layout.decoder)
    decoder["image_mask"] = np.zeros_like(decoder["image_mask"])
    return Extra(DECODER, Kind.LOGITS, once.session.prefill(once.merged, replace(once.layout, decoder=decoder))[0, -1])


def _token_grid(once: AskedOnce) -> Extra:
    """Rows and columns of connector cells, from the padded picture."""
    settings = once.side.manifest["runtime"]
    step = settings["patch_size"] * settings["kernel"]
    height, width = once.images[0].vision["pixel_values"].shape[2:]
    return Extra(PREPROCESS, Kind.EXACT, np.array([-(-height // step), -(-width // step)], np.int64))


OTHERS: Mapping[str, Callable[[AskedOnce], Extra]] = {
    "prefill_logits_no_plora_last": _without_deltas,
    "token_grid_hw": _token_grid,
}


def _table(parameter: str, checkpoint: Checkpoint) -> Extra:
    weights = checkpoint.weights
    if parameter not in weights.rules:
        raise KeyError(f"the checkpoint's {parameter} is an input of the stage, not a constant")
    values = weights.tensor(parameter).float().numpy()
    first = "vision_encoder.class_position"
    if parameter == TABLES["vision_pos_embed"]:
        if first in weights.rules:
            values = np.concatenate([weights.tensor(first).float().numpy(), values])
        return Extra(VISION, Kind.TABLE, values)
    return Extra(CONNECTOR, Kind.TABLE, values)


def _batch_vision(case: GoldenCase, side: Candidate, expected: np.ndarray) -> Extra:
    """Pictures that upstream pads to one batch, each on its own here: their valid patches, zeros elsewhere."""
    shortest, longest = (int(edge) for edge in case.inputs["batch_size_edges"])
    settings = {**side.manifest["runtime"], "shortest_edge": shortest, "longest_edge": longest}
    processor = type(side.processor)(settings, None)  # type: ignore[call-arg]
    filled = np.zeros_like(expected)
    masks = case.inputs["batch_patch_attention_mask"]
    for index, mask in enumerate(masks):
        (image,) = processor.images((case.inputs[f"batch_image_{index}"],))
        values = side.backend.run(VISION, image.vision)["vision_features"]
        filled[index, mask.reshape(-1)] = values[0]
    return Extra(VISION, Kind.FEATURES, filled)


def _block(once: AskedOnce, block: str) -> np.ndarray:
    """One decoder block's output for the whole prompt."""
    (inputs,) = once.stage_calls(DECODER)
    blocks = candidate_blocks(once.side, DECODER, inputs)
    if block not in blocks:
        raise NotShown(f"backend {once.side.name} gives no output of block {block}; compared on the reference")
    return blocks[block]
