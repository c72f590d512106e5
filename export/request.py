"""What the user asked for: one frozen record that checks itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from export.backends.options import check_options
from export.triton.layout import ModelFolder
from runtime_py.backends.record import Ability
from runtime_py.errors import UsageError
from targets.base import ANSWER_ROOM, Limits, Target
from targets.devices import Device, device_named
from targets.registry import target_named, targets

DEMO = "demo"

BEYOND_TRAINED = "beyond-trained"
"""Of a waiver: the context that was asked for was not held against the model's own positions."""

MOST_SEQUENCES = 16
"""Of ``--batch``: what a decoder call takes of the sequences of a package that is built for a number of them."""


@dataclass(frozen=True)
class ExportRequest:
    """One export, as asked.

    Attributes:
        model: family alias, hub id, or path of a checkpoint folder.
        weights: ``demo``, a folder with the weights of ``model``, or None for what ``model`` says.
        precision: one of the target's precisions; None for its default.
        output: package folder, or model repository where the target is a server; None for
            ``<model>-<target>-<precision>`` in the working folder.
        context, prefill_chunk, batch: limits; None for the target's.
        beyond_trained: accept a context longer than the model was trained for, as published code does (goldens only).
        vision_precision, block_size, embed_precision, head_precision: how layers of one role are stored, and columns that
            share an int4 scale, where a backend of the target leaves it to the user; None for the backend's default.
        asymmetric: int4 blocks store a zero point of their own.
        options: choices that backends from outside declare (export.backends.record.BackendOption), by name.
        calibration: folder of a calibration (python -m calibrate) whose int4 codes are used; None for round to nearest.
        choice: a file of `calibrate search` or `calibrate vision`: layers that get more than the plan gives them.
        skip_verify: leave out the check at the end; recorded in the package as a waiver.
        host_only: leave the phone's library out of an android or ios package; for checks here, recorded as a waiver.
        without_tokenizer: accept a checkpoint that holds no tokenizer, whose package cannot chat; recorded as a waiver.

    Raises:
        UsageError: on construction, for a value that no export could use.
    """

    model: str
    target: str
    weights: str | None = None
    precision: str | None = None
    output: Path | None = None
    context: int | None = None
    prefill_chunk: int | None = None
    batch: int | None = None
    device: str | None = None
    vision_precision: str | None = None
    block_size: int | str | None = None
    embed_precision: str | None = None
    head_precision: str | None = None
    asymmetric: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    revision: str | None = None
    calibration: Path | None = None
    choice: Path | None = None
    resume: bool = False
    force: bool = False
    skip_verify: bool = False
    without_tokenizer: bool = False
    host_only: bool = False
    beyond_trained: bool = False
    _target: Target = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise UsageError("--model is empty", "a family alias, a hub id or a folder", "name one, e.g. --model minicpm-v")
        object.__setattr__(self, "_target", target_named(self.target))
        if self._target.precision(self.precision) is None:
            offered = ", ".join((*self._target.precisions, *self._target.precision_aliases))
            raise UsageError(
                f"--precision {self.precision} is not offered by target {self._target.name}",
                f"one of {offered}",
                "leave the flag out for the first of these, or choose another target",
            )
        _at_least("--context", self.context, 1)
        _at_least("--prefill-chunk", self.prefill_chunk, 1)
        self._check_batch()
        check_options(self._target, self.precision_name(), self.chosen())
        if self.resume and self.force:
            raise UsageError(
                "--resume and --force exclude each other",
                "--resume to go on with an unfinished export, or --force to start it over",
                "leave one of them out",
            )
        if self.device is not None:
            device_named(self.device, self._target.name)

    def _check_batch(self) -> None:
        if self.batch is None:
            return
        if not self._target.can(Ability.PLANNED_BATCH):
            places = ", ".join(name for name, target in targets().items() if target.can(Ability.PLANNED_BATCH))
            raise UsageError(
                f"--batch with --target {self._target.name}, whose packages are not built for a number of sequences",
                f"--target, one of {places}",
                "leave the flag out; serve --slots says how many sequences run at a time",
            )
        if not 1 <= self.batch <= MOST_SEQUENCES:
            raise UsageError(f"--batch {self.batch}", f"a whole number from 1 to {MOST_SEQUENCES}", "correct the number")

    def chosen(self) -> dict[str, object]:
        """What was chosen of the options that backends declare, by name; what was not given is absent."""
        given: dict[str, object] = {
            "vision_precision": self.vision_precision,
            "block_size": self.block_size,
            "embed_precision": self.embed_precision,
            "head_precision": self.head_precision,
            "symmetric": False if self.asymmetric else None,
            **self.options,
        }
        return {name: value for name, value in given.items() if value is not None}

    def target_record(self) -> Target:
        return self._target

    def precision_name(self) -> str:
        """The precision under the name the target's backends use."""
        name = self._target.precision(self.precision)
        assert name is not None, "checked on construction"
        return name

    def device_record(self) -> Device | None:
        return None if self.device is None else device_named(self.device, self._target.name)

    def limits(self, max_positions: int, picture_rows: int = 0) -> Limits:
        """The limits to build for: what was asked, else the target's, never beyond the model's own positions.

        Args:
            picture_rows: rows of a picture that one call must take, which the target's limits are raised to hold.

        Raises:
            UsageError: the asked context exceeds what the model was trained for, or does not hold a picture, or the chunk
                exceeds the context.
        """
        default = self._target.limits.holding(picture_rows)
        if self.context is not None and self.context > max_positions and not self.beyond_trained:
            raise UsageError(
                f"--context {self.context} exceeds the model's {max_positions} positions",
                f"at most {max_positions}",
                f"use --context {max_positions} or less",
            )
        context = self.context or min(default.context, max_positions)
        if self.context is None and context <= picture_rows:
            raise UsageError(
                f"the model's {max_positions} positions do not hold one picture, which takes {picture_rows}",
                f"at least {picture_rows + ANSWER_ROOM}, for a question and an answer too",
                "use a target that takes pictures in parts (cpu), or a checkpoint of smaller pictures (its "
                "preprocessor_config.json) or more positions",
            )
        if context <= picture_rows:
            raise UsageError(
                f"a context of {context} positions does not hold one picture, which takes {picture_rows}",
                f"at least {picture_rows + ANSWER_ROOM}, for a question and an answer too",
                "use a larger --context, or leave the flag out",
            )
        if self.prefill_chunk is not None and self.prefill_chunk > context:
            raise UsageError(
                f"--prefill-chunk {self.prefill_chunk} exceeds the context of {context}",
                f"at most {context}",
                "use a smaller chunk or a larger --context",
            )
        return Limits(context, self.prefill_chunk or min(default.prefill_chunk, context), self.batch or default.batch)

    def backend_options(self) -> dict[str, object]:
        """Everything that only some backends know, by name; what was not given is absent."""
        return {**self.chosen(), **({"host_only": True} if self.host_only else {})}

    def waivers(self) -> list[dict[str, str]]:
        """The named exceptions, as the manifest records them."""
        named = {
            "skip-verify": (self.skip_verify, "the package was not compared with the reference"),
            "host-only": (self.host_only, "the phone's library was not built; the package runs on this machine only"),
            BEYOND_TRAINED: (
                self.beyond_trained and self.context is not None,
                "the context may be longer than the model was trained for",
            ),
            "without-tokenizer": (self.without_tokenizer, "the package may hold no tokenizer and then cannot chat"),
        }
        return [{"name": name, "meaning": meaning} for name, (given, meaning) in named.items() if given]

    def output_folder(self) -> Path:
        """Of the package; where the target is a server, at the model's place in the repository that ``output`` names."""
        stem = Path(self.model).resolve().name if Path(self.model).exists() else self.model.rsplit("/", 1)[-1]
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "model"
        output = self.output or Path(f"{stem}-{self._target.name}-{self.precision_name()}")
        return output if self._target.server is None else ModelFolder(output, stem).package


def _at_least(flag: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UsageError(f"{flag} {value}", f"a whole number of at least {least}", "correct the number")
