"""The outputs of every block inside a stage, from a library that is built for checking.

Block names are those of the reference in PyTorch, since both sides name their modules alike: direct children of a stage
(``patch``, ``norm``, ``head``), members of its module lists (``layers.0``), and what enters a list (``layers.input``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from export.backends.mlc.blocks.decoder import Attend
from export.backends.mlc.model import ModelLibrary
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION


class BlockOutputs:
    """Records what the blocks of a library return while one of its functions is traced.

    Attributes:
        names: block names by stage, in the order of the traced function's results.
    """

    def __init__(self, library: ModelLibrary) -> None:
        self.names: dict[str, list[str]] = {}
        self._seen: dict[str, Tensor] | None = None
        stages = {
            VISION: library.vision_encoder,
            CONNECTOR: library.connector,
            EMBED: library.embed_tokens,
            DECODER: library.decoder,
        }
        for stage in stages.values():
            self._listen(stage)
        if library.model.decoder.tied_head:
            table = library.embed_tokens.table
            object.__setattr__(table, "head", self._heard("head", table.head))

    def of(self, stage: str, run: Callable[..., Any]) -> Callable[..., list[Tensor]]:
        """``run`` with the outputs of the stage's blocks as its results, those of its last call where it has several."""

        def traced(*arguments: Any) -> list[Tensor]:
            self._seen = {}
            run(*arguments)
            seen, self._seen = self._seen, None
            self.names[stage] = list(seen)
            return list(seen.values())

        return traced

    def _listen(self, stage: nn.Module) -> None:
        for name, child in list(vars(stage).items()):
            if isinstance(child, nn.ModuleList):
                for index, member in enumerate(child):
                    entering = f"{name}.input" if index == 0 else ""
                    member.forward = self._heard(f"{name}.{index}", member.forward, entering)
            elif isinstance(child, nn.Module) and not isinstance(child, Attend):
                child.forward = self._heard(name, child.forward)

    def _heard(self, name: str, run: Callable[..., Tensor], entering: str = "") -> Callable[..., Tensor]:
        def forward(*arguments: Any) -> Tensor:
            if self._seen is not None and entering:
                self._seen[entering] = arguments[0]
            result = run(*arguments)
            if self._seen is not None:
                self._seen[name] = result
            return result

        return forward
