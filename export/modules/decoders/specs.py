"""The kinds of decoder layer that families here share; one with a kind of its own has it in its folder (`AdapterSpec`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from export.modules.decoders.base import AdapterSpec
from export.quantisation.folds import Fold, Source, around, delta_rows, projected, up_rows, value_rows
from runtime_py.contracts import TensorContract

if TYPE_CHECKING:
    from export.specs import DecoderSpec

FOLDER = "export.modules.decoders"


@dataclass(frozen=True)
class Unadapted(AdapterSpec):
    """Layers without an adapter."""

    module = f"{FOLDER}.llama:Decoder"

    def folds(self, decoder: DecoderSpec, block: str) -> list[Fold]:
        qkv, out, gate_up, down = projected(block)
        around_both = around(decoder, block, (qkv,), (out,), (gate_up,), value_rows(decoder, qkv, decoder.qkv_bias))
        return [*around_both, Fold((down,), up_rows(decoder, gate_up))]


UNADAPTED = Unadapted()


@dataclass(frozen=True)
class PartialLora(AdapterSpec):
    """Low-rank deltas on every linear of a layer, for image rows only (WeMM): y = W x + [row is image] B A x."""

    rank: int

    module = f"{FOLDER}.low_rank:PartialLoraDecoder"
    picture_rows = "LoRA weights"
    layer_rows: ClassVar[Mapping[str, str]] = {"lora_a": "image_index", "lora_b": "image_index"}

    def inputs(self, decoder: DecoderSpec) -> tuple[TensorContract, ...]:
        return (
            TensorContract("image_index", "int64", ("image_rows",)),
            TensorContract("delta_index", "int64", ("tokens",)),
        )

    def row_inputs(self, pictures: Sequence[bool]) -> dict[str, Any]:
        rows = [row for row, picture in enumerate(pictures) if picture]
        return {
            "image_index": rows,
            "delta_index": [rows.index(row) if picture else len(rows) for row, picture in enumerate(pictures)],
        }

    def folds(self, decoder: DecoderSpec, block: str) -> list[Fold]:
        qkv, *rest = projected(block)
        values = value_rows(decoder, f"{qkv}.base", decoder.qkv_bias) + value_rows(decoder, f"{qkv}.lora_b.0", False)
        return _low_rank(decoder, block, _pair(qkv), rest, values)


@dataclass(frozen=True)
class RoutedLora(AdapterSpec):
    """Low-rank experts on the out, gate, up and down projections, one chosen per layer and request (Awaker).

    With the gate's top weight w: y = W x + w^2 scale B_e A_e x + (1 - w) scale B_g A_g x; the shared expert g is always on.
    """

    rank: int
    experts: int
    scale: float
    norm_eps: float

    module = f"{FOLDER}.low_rank:RoutedLoraDecoder"
    every_token = "an expert that is chosen for each request"
    reads_embedding = True
    rounded_gates = ("out", "mlp")
    row_buffers = 2

    def inputs(self, decoder: DecoderSpec) -> tuple[TensorContract, ...]:
        return (TensorContract("gate_input", "float32", (1, decoder.hidden)),)

    def folds(self, decoder: DecoderSpec, block: str) -> list[Fold]:
        qkv, *rest = projected(block)
        return _low_rank(decoder, block, (qkv,), rest, value_rows(decoder, qkv, decoder.qkv_bias))


@dataclass(frozen=True)
class VisualExperts(AdapterSpec):
    """A second set of attention and MLP weights for vision tokens (CogVLM2); only its qkv has a bias."""

    module = f"{FOLDER}.visual_experts:VisualExpertDecoder"
    picture_rows = "visual experts"
    own_positions = True
    layer_rows: ClassVar[Mapping[str, str]] = {"language": "language_index", "vision": "vision_index"}

    def inputs(self, decoder: DecoderSpec) -> tuple[TensorContract, ...]:
        return (
            TensorContract("language_index", "int64", ("language_rows",)),
            TensorContract("vision_index", "int64", ("vision_rows",)),
            TensorContract("restore_index", "int64", ("tokens",)),
        )

    def row_inputs(self, pictures: Sequence[bool]) -> dict[str, Any]:
        language, vision = ([row for row, picture in enumerate(pictures) if picture is kind] for kind in (False, True))
        order = language + vision
        return {
            "language_index": language,
            "vision_index": vision,
            "restore_index": [order.index(row) for row in range(len(pictures))],
        }

    def folds(self, decoder: DecoderSpec, block: str) -> list[Fold]:
        qkv, out, _, _ = projected(block)
        both, mlp = ("language", "vision"), f"{block}.mlp"
        qkvs, outs = (tuple(f"{name}.{one}" for one in both) for name in (qkv, out))
        gate_ups = tuple(f"{mlp}.{one}.gate_up" for one in both)
        values = value_rows(decoder, qkvs[0], False) + value_rows(decoder, qkvs[1], True)
        around_both = around(decoder, block, qkvs, outs, gate_ups, values)
        return [*around_both, *(Fold((f"{mlp}.{one}.down",), up_rows(decoder, f"{mlp}.{one}.gate_up")) for one in both)]


def _pair(name: str) -> tuple[str, str]:
    """The layers of a projection with a low-rank delta that read its input."""
    return f"{name}.base", f"{name}.lora_a"


def _low_rank(
    decoder: DecoderSpec, block: str, qkv: tuple[str, ...], rest: Sequence[str], values: tuple[Source, ...]
) -> list[Fold]:
    """The folds of a layer whose out, gate_up and down (``rest``) have low-rank deltas."""
    out, gate_up, down = rest
    around_both = around(decoder, block, qkv, _pair(out), _pair(gate_up), values)
    ups = up_rows(decoder, f"{gate_up}.base") + delta_rows(f"{gate_up}.lora_b.1", decoder.mlp_width)
    return [*around_both, Fold(_pair(down), ups)]
