"""The parts of a decoder layer that an adapter replaces, in Relax; a kind of adapter derives from `LayerParts`.

The counterpart of export.modules.decoders.llama.
"""

from __future__ import annotations

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from export.backends.mlc.blocks.linear import Layers
from export.specs import DecoderSpec

Sides = dict[str, Tensor]
"""Further decoder inputs by contract name; empty for the stock functions."""


class Routed(nn.Module):
    """A module whose weights depend on the row or the request: called as ``module(x, sides)``, without sides for text."""


def route(module: nn.Module, x: Tensor, sides: Sides | None) -> Tensor:
    """Call a projection, with the sides if it wants them."""
    return module(x, sides or {}) if isinstance(module, Routed) else module(x)


class GatedMlp(Routed):
    """down(silu(gate(x)) * up(x)); either projection may be routed."""

    def __init__(self, gate_up: nn.Module, down: nn.Module) -> None:
        self.gate_up, self.down = gate_up, down

    def forward(self, x: Tensor, sides: Sides | None = None) -> Tensor:
        gate, up = op.split(route(self.gate_up, x, sides), 2, axis=-1)
        return route(self.down, op.silu(gate) * up, sides)


class LayerParts:
    """Makes the projections of a layer, with the parameter names of export.modules; this one makes plain ones."""

    def __init__(self, spec: DecoderSpec, layers: Layers) -> None:
        self.spec, self.layers = spec, layers
        self.query_width = spec.heads * spec.head_dim
        self.qkv_width = self.query_width + 2 * spec.kv_heads * spec.head_dim

    def qkv(self, name: str) -> nn.Module:
        return self.layers.linear(name, self.spec.hidden, self.qkv_width, self.spec.qkv_bias)

    def out(self, name: str) -> nn.Module:
        return self.layers.linear(name, self.query_width, self.spec.hidden, False)

    def mlp(self, name: str) -> nn.Module:
        width, hidden = self.spec.mlp_width, self.spec.hidden
        gate_up = self.layers.linear(f"{name}.gate_up", hidden, 2 * width, False)
        return GatedMlp(gate_up, self.layers.linear(f"{name}.down", width, hidden, False))

    def gates(self, name: str) -> nn.Module | None:
        """What turns the decoder's sides into the layer's, ``module(sides)``, if layers differ."""
        return None
