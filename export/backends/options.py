"""The choices that backends leave to the user: what a target's backends take, and what of it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from export.backends.record import BackendOption
from export.backends.registry import backend_named, backends
from runtime_py.errors import UsageError
from targets.base import Target
from targets.registry import targets


def check_options(target: Target, precision: str, asked: Mapping[str, object]) -> None:
    """Refuse a choice that no backend of the target knows at this precision, or a value that one of them does not take.

    Args:
        asked: option name to value, of those that were given.

    Raises:
        UsageError: names the flags.
    """
    refused = []
    for name, value in asked.items():
        options = _options(target, name)
        common = _common(options)
        if options and value not in common:
            offered = "one of " + ", ".join(map(str, common))
            raise UsageError(f"{options[0].flag} {value}", offered, "choose one of these")
        if not any(not option.precisions or precision in option.precisions for option in options):
            refused.append(name)
    if refused:
        flags = ", ".join(_flag(name) for name in refused)
        raise UsageError(
            f"{flags} with --target {target.name}, precision {precision}",
            _where_known(refused[0]),
            "leave the flag out, or choose that target and precision",
        )


@dataclass(frozen=True)
class OptionFlag:
    """An option as command lines offer it, whatever backends declare it.

    Attributes:
        name: of the option.
        kind: makes the value from its text; None for a flag without a value, which stands for ``given``.
        letter: what --help calls the value.
        meaning: one line, with the values and where each is taken.
    """

    name: str
    flag: str
    kind: Callable[[str], str | int] | None
    meaning: str
    given: object = None
    letter: str = "P"


def option_flags() -> list[OptionFlag]:
    """Every option that any backend declares, once, in the order of the backends."""
    names = dict.fromkeys(option.name for backend in backends().values() for option in backend.options)
    return [_option_flag(name) for name in names]


def _option_flag(name: str) -> OptionFlag:
    where: dict[tuple[object, ...], list[str]] = {}
    for target in targets().values():
        common = _common(_options(target, name))
        if common:
            where.setdefault(common, []).append(target.name)
    option = next(known for backend in backends().values() if (known := backend.option(name)) is not None)
    meaning = option.meaning + (f", at --precision {' or '.join(option.precisions)}" if option.precisions else "")
    if isinstance(option.values[0], bool):
        places = ", ".join(dict.fromkeys(place for group in where.values() for place in group))
        return OptionFlag(name, option.flag, None, f"{meaning} ({places})", option.values[1])
    taken = "; ".join(f"{', '.join(map(str, values))} ({', '.join(places)})" for values, places in where.items())
    if not isinstance(option.values[0], int):
        return OptionFlag(name, option.flag, str, f"{meaning}: {taken}")
    kind = int if all(isinstance(value, int) for value in option.values) else number_or_word
    return OptionFlag(name, option.flag, kind, f"{meaning}: {taken}", letter="N")


def number_or_word(text: str) -> str | int:
    """The value of an option that takes whole numbers and words."""
    return int(text) if text.isdigit() else text


def _common(options: Sequence[BackendOption]) -> tuple[str | int | bool, ...]:
    """The values that all of a target's backends take which have the option."""
    return tuple(one for one in options[0].values if all(one in other.values for other in options)) if options else ()


def _options(target: Target, name: str) -> list[BackendOption]:
    names = target.backend_names
    listed = (backend_named(backend).option(name) for backend in names)
    return [option for option in listed if option is not None and (len(names) == 1 or not option.alone)]


def _flag(name: str) -> str:
    known = (backend.option(name) for backend in backends().values())
    return next((option.flag for option in known if option is not None), f"option {name}")


def _where_known(name: str) -> str:
    """The targets and precisions at which an option means something."""
    places = [target.name for target in targets().values() if _options(target, name)]
    precisions = dict.fromkeys(
        precision for target in targets().values() for option in _options(target, name) for precision in option.precisions
    )
    if not places:
        return "an option that a backend declares"
    with_precision = f" with --precision {' or '.join(precisions)}" if precisions else ""
    return f"--target {' or '.join(places)}{with_precision}, whose files can be stored so"
