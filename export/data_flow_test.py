"""What an export works out it works out once: counted over one whole export of a demo, its check at the end included."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from export.checkpoint.opened import OpenedCheckpoint
from export.families.registry import families
from export.modules import build
from export.modules.decoders import llama
from export.pipeline import export
from export.request import ExportRequest
from export.source.hub import DEMO_FOLDER
from parity_tests.check.verifier import PackageVerifier

CONFIG = DEMO_FOLDER / "minicpm-v" / "config.json"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Recognitions, openings of the demo's config.json, and decoders built, by the device they are built on."""
    counts: Counter[str] = Counter()
    asked_first = type(next(iter(families().values())))
    recognises, decoder = asked_first.recognises, llama.Decoder

    def recognising(*given: Any) -> bool:
        counts["recognised"] += 1
        return recognises(*given)

    def building(*given: Any) -> nn.Module:
        made = decoder(*given)
        parameter = next(made.parameters())
        fake = isinstance(parameter, torch._subclasses.FakeTensor)
        counts["built on fake tensors" if fake else f"built on {parameter.device}"] += 1
        return made

    def opening(event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(given[0], str | Path) and Path(given[0]) == CONFIG and not done:
            counts["config.json opened"] += 1

    done: list[bool] = []
    monkeypatch.setattr(asked_first, "recognises", recognising)
    monkeypatch.setattr(llama, "Decoder", building)
    build._module_shapes.cache_clear()
    sys.addaudithook(opening)  # it cannot be taken away again, only told to stop
    yield counts
    done.append(True)


class Watching(PackageVerifier):
    """The check, which first looks at the counts so far."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.before: Counter[str] = Counter()

    def check(self, package: Path, checkpoint: OpenedCheckpoint, calibration: Path | None) -> dict[str, Any]:
        self.before = Counter(self.counts)
        return super().check(package, checkpoint, calibration)


def test_one_export_recognises_reads_and_builds_once(tmp_path: Path, counted: Counter[str]) -> None:
    request = ExportRequest(model="minicpm-v", weights="demo", target="cpu", precision="int4", output=tmp_path / "package")
    verifier = Watching(counted)
    export(request, verifier)
    assert verifier.before == {
        "recognised": 1,
        "config.json opened": 3,  # read once; its bytes are copied and hashed, once where nothing has written to it since
        "built on meta": 1,  # for names and shapes, which the checkpoint's check, the plan and the prediction share
        # and for the trace once more, in a process of its own (export.graphs.apart)
    }
    assert counted - verifier.before == {
        "built on meta": 2,  # the reference, with the published and the stored weights
        "config.json opened": 1,  # to write once more what other tools read
    }
