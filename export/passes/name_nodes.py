"""Names nodes after the module that they come from and what they do: ``/layers.0/attention/qkv/MatMulNBits``.

The exporter notes the modules around every node (``pkg.torch.onnx.name_scopes`` of its metadata: pytorch/pytorch,
torch/onnx/_internal/exporter/_core.py), so this stands before `export.passes.clear_notes`.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

from export.passes.base import GraphPass, Part

SCOPES = "pkg.torch.onnx.name_scopes"


class NameNodes(GraphPass):
    """Gives every node such a name; the second of a kind in one module ends in ``_1``.

    Args:
        prefix: what the exporter puts before each module's path.
    """

    changes = frozenset({Part.NODE_NAMES})

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def rewrite(self, model: ir.Model) -> int:
        taken: Counter[str] = Counter()
        places: dict[ir.Node, str] = {}
        for node in model.graph:
            places[node] = self._place(node, places)
            name = f"{places[node]}/{node.op_type}"
            taken[name] += 1
            node.name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
        return len(taken)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError when two nodes have one name."""
        super().ensures(model)
        twice = [name for name, count in Counter(node.name for node in model.graph).items() if count > 1]
        if twice:
            raise ir.passes.PostconditionError(f"{self}: two nodes are called {twice[0]}")

    def _place(self, node: ir.Node, places: dict[ir.Node, str]) -> str:
        """The modules around a node as ``/a/b``; of one that the exporter says nothing about, those of what it reads."""
        noted = node.metadata_props.get(SCOPES)
        if noted is None:
            makers = [value.producer() for value in node.inputs if value is not None]
            return next((places[maker] for maker in makers if maker in places), "")
        place = before = ""
        for path in ast.literal_eval(noted)[:-1]:
            if not str(path).startswith(self.prefix):
                continue
            inner = str(path).removeprefix(self.prefix)
            # a module that several hold has a path of its own, and is called after the one it is used in
            step = inner.removeprefix(f"{before}.") if before and inner.startswith(f"{before}.") else inner
            place, before = f"{place}/{step}", inner
        return place
