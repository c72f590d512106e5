"""The part of JSON Schema (draft 2020-12) that edgeproof's own schemas use, checked without a library.

The schemas ship in ``runtime_py/files/schemas`` for everybody's tools; here they are what decides. A schema with a keyword
that is not in `KEYWORDS` is refused when it is loaded, so that nothing it says can be passed over. Stricter than the
standard in one place: a number with a fraction point is no integer, even 1.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "schemas"
MAX_PROBLEMS = 20
"""Problems that one check finds at most."""

THE_VALUE = "the value"
"""How a problem calls the whole of what is checked."""

_NULL = {"type": "null"}

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}

ANNOTATIONS = frozenset({"$schema", "$id", "$defs", "title", "description", "examples"})
KEYWORDS = ANNOTATIONS | {
    "$ref",
    "type",
    "const",
    "enum",
    "anyOf",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "minLength",
    "maxLength",
    "pattern",
    "items",
    "minItems",
    "maxItems",
    "properties",
    "required",
    "additionalProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
}


class Schema:
    """One schema file.

    Raises:
        ValueError: it uses a keyword that is not checked here.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        for place, schema in _subschemas(root, "#"):
            unknown = sorted(set(schema) - KEYWORDS)
            if unknown:
                raise ValueError(f"{place} uses {', '.join(unknown)}, which runtime_py.files.schema does not check")

    def problems(self, value: Any) -> list[str]:
        """What in ``value`` is not as the schema says, a line each, at most `MAX_PROBLEMS`; empty when all of it is."""
        lines: list[str] = []
        for problem in self._check(value, self.root, ""):
            lines.append(problem)
            if len(lines) == MAX_PROBLEMS:
                break
        return lines

    def _check(self, value: Any, schema: Mapping[str, Any] | bool, place: str) -> Iterator[str]:
        if isinstance(schema, bool):
            if not schema:
                yield f"{place or THE_VALUE}: not expected here"
            return
        if "$ref" in schema:
            yield from self._check(value, self._definition(schema["$ref"]), place)
        where = place or THE_VALUE
        kinds = schema.get("type")
        if kinds is not None and not any(_TYPES[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
            names = kinds if isinstance(kinds, str) else " or ".join(kinds)
            yield f"{where}: {_shown(value)} is no {names}"
            return
        if "const" in schema and not _equal(value, schema["const"]):
            yield f"{where}: {_shown(value)} is not {_shown(schema['const'])}"
        if "enum" in schema and not any(_equal(value, allowed) for allowed in schema["enum"]):
            yield f"{where}: {_shown(value)} is none of {', '.join(map(_word, schema['enum']))}"
        if "anyOf" in schema and all(next(self._check(value, form, place), None) for form in schema["anyOf"]):
            yield f"{where}: {_shown(value)} is not {schema.get('title', 'of any form that is known here')}"
        if isinstance(value, bool):
            return
        if isinstance(value, int | float):
            yield from _check_number(value, schema, where)
        elif isinstance(value, str):
            yield from _check_text(value, schema, where)
        elif isinstance(value, list):
            yield from self._check_list(value, schema, place)
        elif isinstance(value, dict):
            yield from self._check_object(value, schema, place)

    def _check_list(self, value: list[Any], schema: Mapping[str, Any], place: str) -> Iterator[str]:
        where = place or THE_VALUE
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{where}: {len(value)} items, not {_range(schema, 'minItems', 'maxItems')}"
            return
        if "items" in schema:
            for index, item in enumerate(value):
                yield from self._check(item, schema["items"], f"{place}[{index}]")

    def _check_object(self, value: dict[str, Any], schema: Mapping[str, Any], place: str) -> Iterator[str]:
        where = place or THE_VALUE
        if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
            yield f"{where}: {len(value)} keys, not {_range(schema, 'minProperties', 'maxProperties')}"
            return
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{where}: the key '{name}' is missing"
        known = schema.get("properties", {})
        for name, item in value.items():
            inside = f"{place}.{name[:60]}" if place else name[:60]
            if "propertyNames" in schema:
                yield from self._check(name, schema["propertyNames"], f"the key {inside}")
            rule = known.get(name, schema.get("additionalProperties", True))
            if name not in known and rule == _NULL and item is not None:
                rule = False  # what nobody knows is not wanted, and null is no value to ask for
            yield from self._check(item, rule, inside)

    def _definition(self, reference: str) -> Mapping[str, Any]:
        definition: Mapping[str, Any] = self.root["$defs"][reference.removeprefix("#/$defs/")]
        return definition


@cache
def load(name: str) -> Schema:
    """The schema ``runtime_py/files/schemas/NAME.schema.json``."""
    return Schema(json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8")))


def _subschemas(schema: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(schema, dict):
        return
    yield place, schema
    for key in ("items", "additionalProperties", "propertyNames"):
        yield from _subschemas(schema.get(key), f"{place}/{key}")
    for number, inner in enumerate(schema.get("anyOf", ())):
        yield from _subschemas(inner, f"{place}/anyOf/{number}")
    for key in ("properties", "$defs"):
        for name, inner in schema.get(key, {}).items():
            yield from _subschemas(inner, f"{place}/{key}/{name}")


def _check_number(value: int | float, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    least, most = schema.get("minimum", value), schema.get("maximum", value)
    if not least <= value <= most or value <= schema.get("exclusiveMinimum", float("-inf")):
        bounds = _range(schema, "minimum", "maximum")
        more = f", above {schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else ""
        yield f"{where}: {_shown(value)} is not {bounds}{more}"


def _check_text(value: str, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{where}: {len(value)} characters, not {_range(schema, 'minLength', 'maxLength')}"
    elif "pattern" in schema and not _matches(schema["pattern"], value):
        wanted = schema.get("title", f"of the form {schema['pattern']}")
        yield f"{where}: {_shown(value)} is not {wanted}"


def _matches(pattern: str, value: str) -> bool:
    """Whether a pattern is found; its ``$`` is the very end, as in the standard, and not before a last line feed."""
    exact = f"{pattern[:-1]}\\Z" if pattern.endswith("$") else pattern
    return re.search(exact, value) is not None


def _range(schema: Mapping[str, Any], least: str, most: str) -> str:
    if least in schema and most in schema:
        return f"{schema[least]:,} to {schema[most]:,}"
    return f"at least {schema[least]:,}" if least in schema else f"at most {schema.get(most, 'any')}"


def _equal(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _word(allowed: Any) -> str:
    """A value of an enum: texts as they are, others in JSON's words."""
    return allowed if isinstance(allowed, str) else json.dumps(allowed)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        kind = value.get("type")  # by which the forms of an object usually differ
        return f"an object of the type {_shown(kind)}" if isinstance(kind, str) else "an object"
    if isinstance(value, list):
        return "a list"
    text = repr(value[:60]) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 62 else text[:60] + "..."
