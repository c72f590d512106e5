"""The ``parameters`` of config.pbtxt: how much a model takes at a time, and what a request may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from runtime_py.errors import UsageError
from runtime_py.generation.limits import SLOTS, slots_for
from runtime_py.package import Depth

AUTO = "auto"
"""In place of a backend's name."""


@dataclass(frozen=True)
class ModelSettings:
    """What an operator may change; the defaults are written into config.pbtxt.

    Attributes:
        slots: answers at a time; queue: requests that may wait beside them; prefill_chunk: tokens of a prompt that are read
            between two tokens of the others.
        threads: computing threads; 0 leaves it to the backend.
        backend: a runtime name of the package's backends; ``auto`` takes the first that opens on this machine.
        max_images, max_image_mb, max_megapixels, max_request_mb: of one request; megapixels of all its pictures together.
        timeout_s: from a request's arrival to the end of its answer.
        warm_up: whether the package's own sample is asked, and its answer compared, before the model is ready.
        verify: how the package's files are compared with its manifest: ``full``, ``size`` or ``off``.
    """

    slots: int = SLOTS
    queue: int = 64
    prefill_chunk: int = 128
    threads: int = 0
    backend: str = AUTO
    max_images: int = 16
    max_image_mb: int = 20
    max_megapixels: int = 64
    max_request_mb: int = 64
    timeout_s: int = 600
    warm_up: bool = True
    verify: Depth = "full"

    def texts(self) -> dict[str, str]:
        """Every value as config.pbtxt has it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}


def default_settings(planned: int) -> ModelSettings:
    """As many slots as a decoder call of the package was planned for, where that is more than one."""
    return ModelSettings(slots=slots_for(planned))


LEAST = {"queue": 0, "threads": 0, "max_images": 0}
WORDS: Mapping[str, tuple[str, ...]] = {"verify": get_args(Depth)}


def settings_of(config: Mapping[str, Any]) -> ModelSettings:
    """The settings of a model's configuration, as Triton hands it over; what is missing has its default.

    Raises:
        UsageError: a value that no model can have.
    """
    rows: Mapping[str, Any] = config.get("parameters") or {}
    given = {name: str(row.get("string_value", "")) for name, row in rows.items()}
    values: dict[str, Any] = {}
    for field in fields(ModelSettings):
        if field.name in given:
            values[field.name] = _value(field.name, field.default, given[field.name])
    return ModelSettings(**values)


def _value(name: str, default: object, text: str) -> object:
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise _refusal(name, text, "true or false")
        return text == "true"
    if isinstance(default, int):
        least = LEAST.get(name, 1)
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise _refusal(name, text, f"a whole number of at least {least}")
        return int(text)
    allowed = WORDS.get(name)
    if allowed is not None and text not in allowed:
        raise _refusal(name, text, ", ".join(allowed))
    return text


def _refusal(name: str, text: str, wanted: str) -> UsageError:
    return UsageError(f"parameter {name} of config.pbtxt is {text!r}", wanted, "correct it and load the model again")
