"""What a kind of decoder layer says of itself, so that nothing else asks which adapter a decoder has.

A kind is a frozen dataclass under `AdapterSpec`, which a family may have in its own folder.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from export.modules.kind import Kind
from export.quantisation.folds import Fold
from runtime_py.contracts import TensorContract

if TYPE_CHECKING:
    from export.specs import DecoderSpec


COMMON_AXES = ("batch", "tokens")
"""Axes of every decoder's inputs that those of a kind may have too."""


@dataclass(frozen=True)
class AdapterSpec(Kind, ABC):
    """What makes rows or requests use other weights than those of a plain layer, or more of them.

    Which parameters there are, their shapes, and which layers are quantised, is said by the module: its linear layers are
    quantised by their role, ``Role.DECODER`` as a decoder's own and ``Role.ADAPTER`` as small ones.

    Attributes:
        module: see `Kind`; a `export.modules.decoders.llama.DecoderLayers`, called as ``Class(decoder, kernels)`` with the
            whole `DecoderSpec`. Its ``forward`` takes `inputs` between a decoder's positions and ``logit_positions``.
        block: see `Kind`; what makes the parts of a layer (``LayerParts`` of the Relax blocks), called as
            ``Class(decoder, layers)``. Parts are called with `inputs` by name; without those that tell rows of a picture,
            or without any, all rows are text.
        every_token: what tokens of text go through too, in words, where they cannot be run without the `inputs`. An engine
            that knows rows and positions alone, as that of stock apps, cannot run such a model at all.
        picture_rows: what rows of a picture go through, in words; such an engine can be asked about text alone.
        own_positions: positions do not count the rows, so that a cache must not turn keys by its own count.
        reads_embedding: the `inputs` are made of token embeddings and choose by them, so that an embedding rounded to
            integers may choose otherwise.
        rounded_gates: modules ``layers.N.gates.NAME`` that choose by logits rounded to float16, each with the methods of
            `export.modules.decoders.low_rank.Gate`; what they read is the input ``gate_input``.
        layer_rows: part of a layer's name to the one of the `inputs` that holds the indices of the rows that it gets; other
            layers get all rows.
        row_buffers: how many times the buffers of a plain layer a layer needs while it reads a prompt: 2 where whole rows of
            deltas stand beside the rows.
    """

    every_token: ClassVar[str] = ""
    picture_rows: ClassVar[str] = ""
    own_positions: ClassVar[bool] = False
    reads_embedding: ClassVar[bool] = False
    rounded_gates: ClassVar[tuple[str, ...]] = ()
    layer_rows: ClassVar[Mapping[str, str]] = {}
    row_buffers: ClassVar[int] = 1

    def inputs(self, decoder: DecoderSpec) -> tuple[TensorContract, ...]:
        """The decoder's inputs behind ``position_ids``, in the order in which ``forward`` takes them.

        An axis of theirs is a number, ``batch``, ``tokens``, or the first and of a name of its own, for rows that are picked
        out; an input with such an axis must be among the `row_inputs`.
        """
        return ()

    def own_axes(self, decoder: DecoderSpec) -> dict[str, int]:
        """Axes of the `inputs` that no other kind has, and their sizes in a call of one token of text."""
        text = self.row_inputs([False])
        picked = [tensor for tensor in self.inputs(decoder) if isinstance(tensor.shape[0], str)]
        named = [tensor for tensor in picked if tensor.shape[0] not in COMMON_AXES]
        missing = [tensor.name for tensor in named if tensor.name not in text]
        if missing:
            raise NotImplementedError(f"{type(self).__name__} picks out rows and has no row_inputs for {', '.join(missing)}")
        return {str(tensor.shape[0]): len(text[tensor.name]) for tensor in named}

    def row_inputs(self, pictures: Sequence[bool]) -> dict[str, Any]:
        """Those of the `inputs` that tell rows of a picture from rows of text, as nested lists.

        Args:
            pictures: of every row of one sequence's call whether it is a picture's.
        """
        return {}

    def folds(self, decoder: DecoderSpec, block: str) -> list[Fold]:
        """Where factors on the columns of a layer's matrices can be undone, for a calibration that scales channels.

        None where a kind does not say: then no factor is put there, and the layer is rounded as it is. What reads one
        activation must be in one fold, all of it; `export.quantisation.folds` has the parts.

        Args:
            block: canonical name of the layer, ``decoder.layers.N``.
        """
        return []
