"""One object of a checkpoint's configuration, read value by value: type and range checked, file and key named.

A key that holds null counts as missing, as the published configuration classes have it. Nothing that a config says
reaches a `ModelSpec` but through here, so that whatever it says is either a size that can be built or one clear error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime_py.errors import CheckpointError, UnsupportedModelError

NULLABLE = frozenset({"sliding_window", "num_key_value_heads"})
"""Keys whose null says something else than their absence: no window, and as many key heads as heads, where the class has a
number by default (transformers 4.45, models/mistral/configuration_mistral.py; 5.24, models/qwen2_vl/)."""

SHOWN = 80
"""Characters of a strange value that an error shows."""


@dataclass(frozen=True)
class Section:
    """One JSON object.

    Attributes:
        file: the file it stands in, for messages.
        path: its own key in that file, with a dot behind; "" for the whole file.
        places: key to the file and path it really stands in, where sections were laid over one another.
    """

    values: Mapping[str, Any]
    file: str = "config.json"
    path: str = ""
    places: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def has(self, key: str) -> bool:
        """The key is there and not null."""
        return self.values.get(key) is not None

    def over(self, defaults: Mapping[str, Any]) -> Section:
        """This section with ``defaults`` where it is silent."""
        own = {key: value for key, value in self.values.items() if value is not None or key in NULLABLE}
        return Section({**defaults, **own}, self.file, self.path, self.places)

    def on_top_of(self, other: Section) -> Section:
        """This section's values first, then another's."""
        own = {key: value for key, value in self.values.items() if value is not None or key in NULLABLE}
        places = {**dict.fromkeys(other.values, (other.file, other.path)), **other.places}
        places |= {**dict.fromkeys(own, (self.file, self.path)), **self.places}
        return Section({**other.values, **own}, other.file, other.path, places)

    def without(self, keys: Sequence[str]) -> Section:
        """This section less some keys."""
        kept = {key: value for key, value in self.values.items() if key not in keys}
        return Section(kept, self.file, self.path, self.places)

    def section(self, key: str, file: str = "") -> Section:
        """The object under a key; an empty one where it is missing.

        Args:
            file: it was read from a file of its own.

        Raises:
            CheckpointError: something else stands there.
        """
        value = self.values.get(key)
        own_file, own_path = self.places.get(key, (self.file, self.path))
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.wrong(key, "a JSON object")
        return Section(value, file or own_file, "" if file else f"{own_path}{key}.")

    def integer(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """A whole number from ``least`` to ``most``.

        Raises:
            CheckpointError: it is missing without a default, no whole number, or out of range.
        """
        fits = default if default is not None and least <= default <= most else None
        value = self._value(key, fits, f"a whole number from {least} to {most}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        if not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return int(value)

    def number(self, key: str, least: float, most: float, default: float | None = None) -> float:
        """A finite number from ``least`` to ``most``.

        Raises:
            CheckpointError: it is missing without a default, no number, not finite, or out of range.
        """
        expected = f"a number from {least:g} to {most:g}"
        value = self._value(key, default, expected)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.wrong(key, expected)
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """true or false."""
        value = self._value(key, default, "true or false")
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text."""
        value = self._value(key, default, "a text")
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def choice(self, key: str, values: Sequence[str]) -> str:
        """One of some texts, the first by default.

        Raises:
            UnsupportedModelError: another text.
        """
        value = self.text(key, values[0])
        if value not in values:
            raise self.unsupported(key, " or ".join(values))
        return value

    def integers(self, key: str, count: int, least: int, most: int) -> tuple[int, ...]:
        """A list of ``count`` whole numbers from ``least`` to ``most``."""
        expected = f"a list of {count} whole numbers from {least} to {most}"
        return tuple(self._row(key, count, expected).integer(str(index), least, most) for index in range(count))

    def numbers(self, key: str, count: int, least: float, most: float, default: Sequence[float]) -> tuple[float, ...]:
        """A list of ``count`` numbers from ``least`` to ``most``."""
        if not self.has(key):
            return tuple(default)
        expected = f"a list of {count} numbers from {least:g} to {most:g}"
        return tuple(self._row(key, count, expected).number(str(index), least, most) for index in range(count))

    def _row(self, key: str, count: int, expected: str) -> Section:
        value = self._value(key, None, expected)
        if not isinstance(value, list) or len(value) != count:
            raise self.wrong(key, expected)
        file, path = self.places.get(key, (self.file, self.path))
        return Section({str(index): item for index, item in enumerate(value)}, file, f"{path}{key}.")

    def ids(self, key: str, vocabulary: int) -> tuple[int, ...]:
        """Token ids: one, a list of them, or none where the key is missing.

        Raises:
            CheckpointError: something else, or an id that the vocabulary has not.
        """
        value = self.values.get(key)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        expected = f"a token id from 0 to {vocabulary - 1}, or a list of them"
        for item in listed:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < vocabulary:
                raise self.wrong(key, expected)
        return tuple(dict.fromkeys(listed))

    def only(self, allowed: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse other values than those that are built; the first of each stands for a missing key.

        Raises:
            UnsupportedModelError: naming key and value.
        """
        for key, values in allowed.items():
            given = self.values.get(key)
            if given is None or any(_same(given, value) for value in values):
                continue
            raise self.unsupported(key, " or ".join(shown(value) for value in values) or "no such value")

    def wrong(self, key: str, expected: str) -> CheckpointError:
        """The error for a value that no model can have."""
        name = self._name(key)
        return CheckpointError(
            f"{name} is {shown(self.values.get(key))}", expected, "correct it, or download the published file again"
        )

    def unsupported(self, key: str, built: str) -> UnsupportedModelError:
        """The error for a value that other code may understand and that is not built here."""
        return UnsupportedModelError(
            f"{self._name(key)} is {shown(self.values.get(key))}, which is not built",
            built,
            "use a checkpoint without it; docs/checkpoints.md lists what is read",
        )

    def _value(self, key: str, default: Any, expected: str) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise CheckpointError(
                f"{self._name(key)} is missing", expected, "download the published file again; it holds this key"
            )
        return default

    def _name(self, key: str) -> str:
        file, path = self.places.get(key, (self.file, self.path))
        return f"{file}: {path}{key}"


def architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names that a config gives itself; none where it gives something else."""
    names = config.get("architectures")
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def _same(given: Any, value: Any) -> bool:
    """Equal in type too, but for the two kinds of number."""
    kinds = {type(given), type(value)}
    return bool(given == value) and (len(kinds) == 1 or kinds == {int, float})


def shown(value: Any) -> str:
    """A value as an error shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
