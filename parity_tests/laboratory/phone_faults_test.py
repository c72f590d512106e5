"""Deliberate faults in a phone's package: in its weight files and in its library, each caught and named."""

from __future__ import annotations

import pytest
from tvm.ir import IRModule

from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.laboratory.break_package import NO_PLACE, outcomes
from parity_tests.laboratory.early_append import EarlyAppend
from parity_tests.reference.checkpoint_side import open_checkpoint
from runtime_py.errors import MachineError

PLACES = {
    "swapped norm": "stage vision_encoder, block blocks.1",
    "transposed projection": "stage decoder, block layers.1",
    "dropped scale (int4 layer)": "stage decoder, block layers.0",
    "dropped scale (one int4 block)": "stage decoder, block layers.1",
    "wrong sign of a projection": "stage decoder, block layers.1",
    "off-by-one cache": "stage decoder, answer step 1",
    "off-by-one cache behind a chunk": "stage decoder, answer step 1",
    "dropped scale (embedding)": "stage embed_tokens",
    "rotary base 1 % off": "stage decoder",
}


def test_a_tvm_with_another_kernel_is_not_a_package_without_a_place():
    decoder = open_checkpoint(GOLDENS / "minicpm-v").spec.decoder
    with pytest.raises(MachineError, match="kv_cache_transpose_append"):
        EarlyAppend(decoder, "float16", several=False)(IRModule({}))
    assert not issubclass(MachineError, NO_PLACE)


@pytest.mark.slow
@pytest.mark.parametrize("fault", PLACES)
def test_a_fault_in_a_phones_package_is_named(fault: str, exported: ExportedPackage):
    package, checkpoint = exported("minicpm-v", "android", "int4"), open_checkpoint(GOLDENS / "minicpm-v")
    (outcome,) = outcomes(package, checkpoint, 1, fault)
    assert outcome.result is not None
    divergence = outcome.result.judgement.run.divergence
    assert outcome.caught and outcome.named
    assert divergence is not None and divergence.place == PLACES[fault]
