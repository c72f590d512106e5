"""Decoder projections whose weights depend on the row or the request, in Relax.

The counterparts of export.modules.decoders.low_rank and visual_experts. Without routing (the functions of the stock
engine, and decode steps) a row is a text row: partial LoRA is off, visual experts take the language set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from export.backends.mlc.blocks.layer_parts import GatedMlp, LayerParts, Routed, Sides
from export.backends.mlc.blocks.linear import Layers
from export.backends.mlc.blocks.norms import RMSNorm
from export.modules.decoders.specs import PartialLora, RoutedLora


class LowRankLinear(Routed):
    """``base``, ``lora_a`` (parts side by side), ``lora_b.j`` per output part."""

    def __init__(self, name: str, inputs: int, outs: Sequence[int], rank: int, bias: bool, layers: Layers) -> None:
        self.parts, self.dtype = len(outs), layers.dtype
        self.base = layers.linear(f"{name}.base", inputs, sum(outs), bias)
        self.lora_a = layers.linear(f"{name}.lora_a", inputs, rank * len(outs), False)
        self.lora_b = nn.ModuleList([layers.linear(f"{name}.lora_b.{j}", rank, out, False) for j, out in enumerate(outs)])

    def low(self, x: Tensor) -> list[Tensor]:
        low = self.lora_a(x)
        return list(op.split(low, self.parts, axis=-1)) if self.parts > 1 else [low]

    def up(self, low: Sequence[Tensor]) -> Tensor:
        parts = [b(part) for b, part in zip(self.lora_b, low, strict=True)]
        return op.concat(parts, dim=-1) if len(parts) > 1 else parts[0]


class ImageRowLinear(LowRankLinear):
    """A delta on image rows: ``image_index`` (rows,) and ``delta_index`` (tokens,), whose value ``rows`` means none."""

    def forward(self, x: Tensor, sides: Sides) -> Tensor:
        y = self.base(x)
        if "image_index" not in sides:
            return y
        delta = self.up(self.low(op.take(x, sides["image_index"], axis=1)))
        return add_rows(y, delta, sides["delta_index"])


def add_rows(y: Tensor, delta: Tensor, index: Tensor) -> Tensor:
    """y (1, tokens, width) plus row ``index[t]`` of delta (1, rows, width), or plus nothing when that is ``rows``."""

    def compute(y: te.Tensor, delta: te.Tensor, index: te.Tensor) -> te.Tensor:
        rows = delta.shape[1]

        def value(b: tirx.Var, t: tirx.Var, n: tirx.Var) -> tirx.Expr:
            row = index[t].astype("int64")
            return tirx.if_then_else(row < rows, y[b, t, n] + delta[b, row, n], y[b, t, n])

        return te.compute(y.shape, value, name="add_rows")

    return op.tensor_expr_op(compute, "add_rows", [y, delta, index])


class RequestLinear(LowRankLinear):
    """A delta whose rank channels are weighted by the layer's gate ``slot``."""

    def __init__(self, name: str, inputs: int, outs: Sequence[int], rank: int, layers: Layers, slot: str) -> None:
        super().__init__(name, inputs, outs, rank, False, layers)
        self.slot = slot

    def forward(self, x: Tensor, sides: Sides) -> Tensor:
        weights = sides[self.slot].astype(self.dtype)
        return self.base(x) + self.up([part * weights for part in self.low(x)])


class Experts(Routed):
    """Language and vision weights; each token goes through one: ``language_index``, ``vision_index``, ``restore_index``."""

    def __init__(self, language: nn.Module, vision: nn.Module) -> None:
        self.language, self.vision = language, vision

    def forward(self, x: Tensor, sides: Sides) -> Tensor:
        if "language_index" not in sides:
            return self.language(x)
        rows = [
            module(op.take(x, sides[f"{name}_index"], axis=1))
            for name, module in (("language", self.language), ("vision", self.vision))
        ]
        return op.take(op.concat(rows, dim=1), sides["restore_index"], axis=1)


class Gate(nn.Module):
    """One routing gate: gate_input float32 (1, 1, hidden) to channel weights ((experts + 1) * rank,), shared expert last.

    Of several sequences, gate_input (1, sequences, hidden), it gives (1, sequences, (experts + 1) * rank).
    """

    def __init__(self, spec: RoutedLora, hidden: int, layers: Layers) -> None:
        self.spec, self.hidden, self.dtype = spec, hidden, layers.dtype
        self.norm = RMSNorm(hidden, spec.norm_eps, layers.dtype)
        self.weight = nn.Parameter((spec.experts, hidden), layers.dtype)
        self.bias = nn.Parameter((spec.experts,), layers.dtype)

    def forward(self, gate_input: Tensor) -> Tensor:
        x = self.norm(gate_input.astype(self.dtype))
        return op.tensor_expr_op(self._channel_weights, "gate_weights", [x, self.weight, self.bias])

    def _channel_weights(self, x: te.Tensor, weight: te.Tensor, bias: te.Tensor) -> te.Tensor:
        experts, rank, sequences = self.spec.experts, self.spec.rank, x.shape[1]
        one = isinstance(sequences, tirx.IntImm)

        def each(count: int, value: Callable[..., tirx.Expr], name: str) -> te.Tensor:
            """``value(place, *sequence)`` of so many places, for each sequence where there may be several."""
            if one:
                return te.compute((count,), value, name=name)
            return te.compute((1, sequences, count), lambda b, s, e: value(e, b, s), name=name)

        k = te.reduce_axis((0, self.hidden), name="k")

        def product_of(e: tirx.Var, *at: tirx.Var) -> tirx.Expr:
            return te.sum(x[(*(at or (0, 0)), k)].astype("float32") * weight[e, k].astype("float32"), axis=k)

        product = each(experts, product_of, "logits")

        # the published gate computes in float16, and near a tie the rounding decides which expert is taken
        def rounded(value: tirx.Expr) -> tirx.Expr:
            return value.astype("float16").astype("float32")

        def half_logit(e: tirx.Var, *at: tirx.Var) -> tirx.Expr:
            return rounded(product[(*at, e)] + bias[e].astype("float32"))

        logits = each(experts, half_logit, "half_logits")

        def share(e: tirx.Var, *at: tirx.Var) -> tirx.Expr:
            total = sum((tirx.exp(logits[(*at, j)] - logits[(*at, e)]) for j in range(experts)), tirx.const(0.0, "float32"))
            return rounded(tirx.const(1.0, "float32") / total)

        shares = each(experts, share, "shares")

        def channel(c: tirx.Var, *at: tirx.Var) -> tirx.Expr:
            share_of = [shares[(*at, j)] for j in range(experts)]
            top = share_of[0]
            for j in range(1, experts):
                top = tirx.Max(top, share_of[j])
            value = rounded(tirx.const(1.0, "float32") - top)
            for j in range(experts):
                # of equal shares the first expert, as argmax has it
                first = tirx.const(True, "bool")
                for earlier in range(j):
                    first = tirx.And(first, share_of[earlier] < top)
                chosen = tirx.Select(tirx.And(first, share_of[j] == top), top * top, tirx.const(0.0, "float32"))
                value = tirx.Select(c // rank == j, chosen, value)
            return value * tirx.const(self.spec.scale, "float32")

        return each((experts + 1) * rank, channel, "channel_weights")


class LayerGates(nn.Module):
    """The two gates of a layer, by the slot its projections read."""

    def __init__(self, spec: RoutedLora, hidden: int, layers: Layers) -> None:
        self.out = Gate(spec, hidden, layers)
        self.mlp = Gate(spec, hidden, layers)

    def forward(self, sides: Sides) -> Sides:
        gate_input = sides["gate_input"]
        wide = op.reshape(gate_input, (1, *gate_input.shape))
        return {"gate_out": self.out(wide), "gate_mlp": self.mlp(wide)}


class PartialLoraParts(LayerParts):
    """Every projection with a delta on image rows."""

    def linear(self, name: str, inputs: int, outs: list[int], bias: bool = False) -> nn.Module:
        adapter = self.spec.adapter
        assert isinstance(adapter, PartialLora)
        return ImageRowLinear(name, inputs, outs, adapter.rank, bias, self.layers)

    def qkv(self, name: str) -> nn.Module:
        return self.linear(name, self.spec.hidden, [self.qkv_width], self.spec.qkv_bias)

    def out(self, name: str) -> nn.Module:
        return self.linear(name, self.query_width, [self.spec.hidden])

    def mlp(self, name: str) -> nn.Module:
        width, hidden = self.spec.mlp_width, self.spec.hidden
        gate_up = self.linear(f"{name}.gate_up", hidden, [width, width])
        return GatedMlp(gate_up, self.linear(f"{name}.down", width, [hidden]))


class RoutedLoraParts(LayerParts):
    """Plain q, k, v (their deltas are folded in); routed out, gate, up and down."""

    def linear(self, name: str, inputs: int, outs: list[int], slot: str) -> nn.Module:
        adapter = self.spec.adapter
        assert isinstance(adapter, RoutedLora)
        return RequestLinear(name, inputs, outs, adapter.rank * (adapter.experts + 1), self.layers, slot)

    def out(self, name: str) -> nn.Module:
        return self.linear(name, self.query_width, [self.spec.hidden], "gate_out")

    def mlp(self, name: str) -> nn.Module:
        width, hidden = self.spec.mlp_width, self.spec.hidden
        gate_up = self.linear(f"{name}.gate_up", hidden, [width, width], "gate_mlp")
        return GatedMlp(gate_up, self.linear(f"{name}.down", width, [hidden], "gate_mlp"))

    def gates(self, name: str) -> nn.Module:
        assert isinstance(self.spec.adapter, RoutedLora)
        return LayerGates(self.spec.adapter, self.spec.hidden, self.layers)


class VisualExpertParts(LayerParts):
    """Every projection twice; only the vision qkv has a bias."""

    def qkv(self, name: str) -> nn.Module:
        hidden, width = self.spec.hidden, self.qkv_width
        return Experts(*(self.layers.linear(f"{name}.{kind}", hidden, width, kind == "vision") for kind in KINDS))

    def out(self, name: str) -> nn.Module:
        return Experts(*(self.layers.linear(f"{name}.{kind}", self.query_width, self.spec.hidden, False) for kind in KINDS))

    def mlp(self, name: str) -> nn.Module:
        return Experts(*(super(VisualExpertParts, self).mlp(f"{name}.{kind}") for kind in KINDS))


KINDS = ("language", "vision")
