"""An MLC package's weight files, held byte by byte against what an export of the same checkpoint and codes writes.

Float16 arithmetic hides a small fault in them: one block of hundreds without its scale moves the logits of a real model by
a third of a per cent, and its roundings by one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from export.backends.mlc.overview import WithOverview, make_overview
from export.backends.mlc.package_parts import declared_parameters
from export.backends.mlc.parameters import ParameterBytes
from export.backends.mlc.schemes import scheme_of
from export.backends.mlc.stock_engine import stock_engine
from parity_tests.check.candidate import Candidate
from parity_tests.reference.checkpoint_side import Checkpoint, codes_of
from runtime_py.backends.tensor_cache import read_tensor_cache
from targets.base import Limits

if TYPE_CHECKING:
    from export.backends.mlc.shards import StoredTensor


def other_parameters(side: Candidate, checkpoint: Checkpoint) -> list[str]:
    """Names of the parameters whose bytes are others than an export's, in the library's order.

    Raises:
        PackageError: the index of the weight files is damaged.
    """
    folder = side.folder / side.block["weights"]
    there = read_tensor_cache(side.folder, side.manifest, side.block["weights"])
    scheme, spec = scheme_of(side.block["quantization"]), checkpoint.spec
    overview = make_overview(spec, side.processor, stock_engine(spec, Limits(**side.manifest["limits"])).picture)
    weights, codes, assignments = codes_of(checkpoint, side.assignments(), side.examiner.record_name)
    expected = ParameterBytes(WithOverview(weights, overview), codes, scheme)
    wrong = []
    for tensor in expected.stored(declared_parameters(spec, assignments, scheme, overview)):
        place = there.get(tensor.name)
        if place is None or not _equal(tensor, folder / place.shard, place.offset, place.nbytes):
            wrong.append(tensor.name)
    return wrong


def _equal(tensor: StoredTensor, file: Path, offset: int, count: int) -> bool:
    """Whether a tensor's bytes stand in a file; all of them are made, since what is made next may depend on it."""
    same, read = True, 0
    with file.open("rb") as content:
        content.seek(offset)
        for chunk in tensor.chunks():
            same = same and content.read(len(chunk)) == bytes(chunk)
            read += len(chunk)
    return same and read == count
