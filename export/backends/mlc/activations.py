"""Bytes of the buffers that a library's memory plan needs, by formula from shapes.

A plan lays buffers that live at different times into shared storage, so these are not sums over operators. A decoder's is a
formula that follows what apache-tvm's planner makes of our blocks; a picture's is planned here (`storage_plan`), since which
buffers share depends on every size. A test holds both against the planner.
"""

from __future__ import annotations

from export.backends.mlc.storage_plan import Storage, StoragePlan
from export.backends.mlc.support import score_blocks
from export.modules.connectors.specs import ResamplerSpec
from export.specs import DecoderSpec, ModelSpec


def decoder_activations(decoder: DecoderSpec, tokens: int, item: int) -> int:
    """Prefill of ``tokens``: the residual stream, a norm, and the widest buffers of a layer that live together.

    Adapted rows whose number is not bounded (image rows of an open grid) are not planned and not counted.
    """
    qkv = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    wide = max(qkv + decoder.heads * decoder.head_dim, 3 * decoder.mlp_width)
    return tokens * (3 * decoder.hidden + wide) * item * decoder.layer_kind.row_buffers


def image_activations(spec: ModelSpec, item: int) -> int:
    """``image_embed``: the tower's buffers in the order in which they are made, and the storage that they share.

    Sizes are those of the overview, the one picture whose size the library knows. A connector finds room in what the tower
    leaves, but for a resampler's keys and values and for the rows that it returns.
    """
    tower, connector = _Tower(spec, item), spec.connector
    rows = tower.embedded()
    for _ in range(spec.vision.layers):
        rows = tower.block(rows)
    if isinstance(connector, ResamplerSpec):
        tower.resampled(rows, connector)
    return tower.plan.nbytes + connector_rows(spec, tower.patches) * connector.width * item


class _Tower:
    """The buffers of a vision encoder, whose functions give the storage of the rows that they end with."""

    def __init__(self, spec: ModelSpec, item: int) -> None:
        vision = spec.vision
        self.plan, self.vision, self.structure, self.item = StoragePlan(), vision, vision.structure, item
        self.patches = (spec.image.overview // spec.image.patch) ** 2
        self.tokens = self.patches + self.structure.special_tokens
        self.blocks = score_blocks(vision.heads, self.tokens, self.tokens)

    def rows(self, width: int, count: int | None = None) -> Storage:
        """A buffer of the model dtype; ``count`` rows, or as many as there are tokens."""
        return self.plan.take((self.tokens if count is None else count) * width * self.item, f"float{8 * self.item}")

    def embedded(self) -> Storage:
        """Pixels of patches, their embedding, and what is put in front of or around it."""
        width, structure = self.vision.width, self.structure
        pixels = self.rows(structure.patch_values, self.patches)
        rows = self.rows(width, self.patches)
        self.plan.give(pixels)
        if structure.special_tokens:
            first = self.rows(width, structure.special_tokens)
            rows = self.instead(rows, width)
            self.plan.give(first)
        return self.instead(rows, width) if structure.input_norm else rows

    def instead(self, old: Storage, width: int) -> Storage:
        """What is made of rows that nothing else reads."""
        made = self.rows(width)
        self.plan.give(old)
        return made

    def block(self, rows: Storage) -> Storage:
        """One layer; its normalisations are kernels of their own only where they come first."""
        vision, plan, branch = self.vision, self.plan, self.structure.branch_norms
        qkv = self.rows(3 * vision.width) if branch else self.instead(self.rows(vision.width), 3 * vision.width)
        if self.structure.changed_heads:
            qkv = self.instead(qkv, 3 * vision.width)
        attended = self.attention(qkv)
        if branch:
            attended = self.instead(attended, vision.width)
        joined = self.instead(attended, vision.width)
        plan.give(rows)
        wide = self.rows(vision.mlp_width) if branch else self.instead(self.rows(vision.width), vision.mlp_width)
        narrow = self.instead(wide, vision.width)
        made = self.instead(narrow, vision.width) if branch else narrow
        plan.give(joined)
        return made

    def attention(self, qkv: Storage) -> Storage:
        """float32 scores of a block of queries, their softmax, and the rows that it mixes."""
        heads, width, plan = self.vision.heads, self.vision.width, self.plan
        count = -(-self.tokens // self.blocks)
        mixed = []
        for _ in range(self.blocks):
            queries = [self.rows(width, count)] if self.blocks > 1 else []
            scores = plan.take(4 * heads * count * self.tokens, "float32")
            plan.give(*queries)
            shares = self.rows(heads * self.tokens, count)
            plan.give(scores)
            mixed.append(self.rows(width, count))
            plan.give(shares)
        plan.give(qkv)
        if self.blocks == 1:
            return mixed[0]
        whole = self.rows(width)
        plan.give(*mixed)
        return whole

    def resampled(self, rows: Storage, connector: ResamplerSpec) -> None:
        """Vision rows at the connector's width, normalised, and with their positions added; then keys and values."""
        if self.structure.final_norm:
            rows = self.instead(rows, self.vision.width)
        normed = self.instead(self.instead(rows, connector.width), connector.width)
        keys = self.instead(self.rows(connector.width), connector.width)
        values = self.rows(connector.width)
        self.plan.give(normed, keys, values)


def connector_rows(spec: ModelSpec, patches: int) -> int:
    """Rows that the connector makes of the overview's patches."""
    joined = spec.connector.patches_per_row
    if joined is not None:
        return patches // joined
    side = spec.image.overview // spec.image.patch
    return spec.connector.rows_of((side, side))
