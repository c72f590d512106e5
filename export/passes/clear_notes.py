"""Takes out what the exporter wrote for people: module paths, source lines, its own version."""

from __future__ import annotations

import onnx_ir as ir

from export.passes.base import GraphPass, Part


class ClearNotes(GraphPass):
    """Equal modules give equal files, wherever they were traced and whichever release of the exporter did it."""

    changes = frozenset({Part.NOTES})

    def rewrite(self, model: ir.Model) -> int:
        model.producer_version = model.graph.doc_string = ""
        model.metadata_props.clear()
        model.graph.metadata_props.clear()
        model.functions.clear()
        for node in model.graph:
            node.metadata_props.clear()
            node.doc_string = ""
        return 1
