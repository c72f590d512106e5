"""Every part that can be asked, in the order of the pipeline, and asking them."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from parity_tests.judging.judge import Verdict
from parity_tests.second_opinion import decoders, image_processors, token_ids, towers, whole_model
from parity_tests.second_opinion.opinion import Opinion, Part
from parity_tests.second_opinion.subject import Subject

if TYPE_CHECKING:
    from parity_tests.judging.standards import Table

PARTS: tuple[Part, ...] = (token_ids.PART, image_processors.PART, towers.PART, decoders.PART, whole_model.PART)

LIBRARY = "transformers"

log = logging.getLogger(__name__)


def second_opinion(folder: Path, table: Table | None = None) -> list[Opinion]:
    """Every part's opinion of a checkpoint folder.

    Raises:
        CheckpointError, UnsupportedModelError: the checkpoint cannot be opened.
    """
    from export.checkpoint.opened import open_folder

    return opinions(Subject(open_folder(folder)), table)


def opinions(subject: Subject, table: Table | None = None) -> list[Opinion]:
    """Every part's opinion of an opened checkpoint."""
    if importlib.util.find_spec(LIBRARY) is None:
        return [part._not_run("", f"{LIBRARY} is not installed; the extra dev brings it") for part in PARTS]
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    said = []
    for part in PARTS:
        log.info("asking about %s", part.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers about layouts that it reads all the same
            said += part.ask(subject, table)
    return said


def verdict_of(said: list[Opinion]) -> Verdict:
    """Fail where any does; not run where nothing was compared."""
    verdicts = {opinion.verdict for opinion in said}
    return next((one for one in (Verdict.FAIL, Verdict.PASS) if one in verdicts), Verdict.NOT_RUN)
