"""The samples that a request asks for, as the checkpoint's own processor prepares them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from calibrate.evaluation.evaluate import demo_recipe, is_demo
from calibrate.evaluation.held_out import count_of
from calibrate.request import SAMPLES, CalibrationRequest
from calibrate.samples.data import Prompt, built_in, from_folder, prepare
from calibrate.samples.demo_samples import answer_cutter, own_samples
from calibrate.samples.machine import ENOUGH, TOKENS, machine_samples, passages

if TYPE_CHECKING:
    from export.checkpoint.opened import OpenedCheckpoint
    from runtime_py.preprocess.base import Processor
    from runtime_py.tokenizer import Tokenizer


log = logging.getLogger("edgeproof")

FAR = {
    "general": "calibrating on the general samples: drawn pictures and short answers, far from what people ask a model",
    "machine": "calibrating on texts and photographs of this machine: descriptions, licences and documentation",
}
"""What is said of samples that are not the user's own; `OWN` follows."""

OWN = "bring conversations of your own use with --calibration-data (docs/results/real_model.md has figures of all three)"


def processor_of(checkpoint: OpenedCheckpoint) -> tuple[Processor, Tokenizer]:
    """The family's processor and the tokenizer it is made with."""
    from runtime_py import tokenizer

    assert checkpoint.folder is not None
    tokens = tokenizer.load(checkpoint.folder)
    return checkpoint.family.make_processor(checkpoint.spec, tokens), tokens


def prompts_of(request: CalibrationRequest, checkpoint: OpenedCheckpoint) -> tuple[Processor, list[Prompt]]:
    """The family's processor, and the samples as it prepares them.

    Raises:
        UsageError: a demo's own questions are asked for and the checkpoint is no demo.
    """
    processor, words = processor_of(checkpoint)
    cut = None
    if request.data is not None:
        apart = count_of(request.held_out, checkpoint.spec)
        samples = from_folder(request.data, request.samples, request.seed, request.text_only, apart)
    elif sample_set_of(request, checkpoint) == "demo":
        recipe = demo_recipe(checkpoint)
        samples = list(own_samples(recipe, request.samples or SAMPLES, request.seed, request.text_only))
        cut = answer_cutter(recipe, processor, words)
    else:
        chosen, count, side = sample_set_of(request, checkpoint), request.samples or SAMPLES, checkpoint.spec.image.overview
        if not is_demo(checkpoint):
            log.warning("%s; %s", FAR[chosen], OWN)
        if chosen == "machine":
            tokens = min(TOKENS, checkpoint.spec.decoder.max_positions // 3)
            samples = list(machine_samples(count, request.seed, words, tokens, request.text_only, side))
        else:
            samples = list(built_in(count, request.seed, request.text_only, side))
    return processor, list(prepare(samples, processor, words, cut))


def looks_at_machine(request: CalibrationRequest, checkpoint: OpenedCheckpoint) -> bool:
    """Whether what is installed beside edgeproof decides the samples, or even which set they are of."""
    return request.data is None and (
        request.sample_set == "machine" or (request.sample_set is None and not is_demo(checkpoint))
    )


def sample_set_of(request: CalibrationRequest, checkpoint: OpenedCheckpoint) -> str:
    """Where samples come from: the name of the user's folder, or one of `SAMPLE_SETS`."""
    if request.data is not None:
        return request.data.name
    if request.sample_set is not None or is_demo(checkpoint):
        return request.sample_set or "demo"
    return "machine" if len(passages()) >= ENOUGH else "general"
