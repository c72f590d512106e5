"""A family's prompt as plain data: what stands around turns and pictures, and what a conversation may hold.

A family declares one `PromptFormat` (``export/families/NAME/prompt.py``); the manifest carries it under
``runtime["prompt"]``. Three things are made of it: token ids (`runtime_py.prompt.encoder`), ``chat_template.jinja``
(`export.prompts.chat_template`) and the phone's ``conv_template`` (`export.backends.mlc.conversation_template`).

    <begin> <system turn> { <role> <after_role> <content> <end> } <assistant's role> <before_answer>
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from runtime_py.errors import PackageError


class Order(StrEnum):
    """Which roles may follow which, behind the system turn."""

    ALTERNATING = "alternating"  # user, assistant, user ...; the user last
    USER_FIRST = "user-first"  # the user first, then either
    FREE = "free"  # any role, `PromptFormat.other_role` around those without a name of their own


class Place(StrEnum):
    """Where a picture stands."""

    INLINE = "inline"  # where it is given, between the texts of its turn
    FRONT = "front"  # before the text of its turn
    START = "start"  # right behind `PromptFormat.begin`, whichever turn brings it


@dataclass(frozen=True)
class ByRole:
    """One text of the user's turns and one of the assistant's."""

    user: str
    assistant: str


@dataclass(frozen=True)
class SystemTurn:
    """What stands around instructions in front of the first turn.

    Attributes:
        default: said when the conversation has no system turn; "" says nothing then, not even the marks.
    """

    before: str
    after: str
    default: str = ""


@dataclass(frozen=True)
class SliceMarks:
    """Around the cells of a picture that is cut up, behind its overview; ``row`` stands between two rows of cells."""

    before: str
    row: str
    after: str


@dataclass(frozen=True)
class PictureMarks:
    """How pictures stand in a prompt.

    Attributes:
        before, row, after: the marks of one picture (or of one piece of it); ``row`` once for every row of features.
        spliced: the picture is the single id `runtime_py.preprocess.spliced.IMAGE`, and the texts on both sides of it are
            encoded apart; published text writes it as ``row``.
        place: where it stands in its turn.
        most: pictures in a conversation; 0 for any number.
        first_question: only the first question may bring one.
        any_role: turns of other roles than the user's may bring one.
        slices: where pictures are cut up.
        clip_row: ``row`` of a video where that has a mark of its own.
        after_role: between a role and a content that begins with a picture; None where `PromptFormat.after_role` stands
            there too.
        stands_for: a text in the first question that its picture takes the place of, instead of standing in front.
        reserved: marks that no text may hold, because the model would take them for pictures.
    """

    before: str
    row: str
    after: str
    place: Place
    spliced: bool = False
    most: int = 0
    first_question: bool = False
    any_role: bool = False
    slices: SliceMarks | None = None
    clip_row: str = ""
    stands_for: str = ""
    reserved: tuple[str, ...] = ()
    after_role: str | None = None


@dataclass(frozen=True)
class PromptFormat:
    """The prompt of one model.

    Attributes:
        name: of the format, e.g. the family's; the phone's template is called so.
        roles: what opens a turn, without what separates it from the content.
        after_role: between a role and the content.
        ends: behind the content.
        before_answer: behind the assistant's role at the end of the prompt, where the answer begins.
        join: between two parts (texts or pictures) of one turn.
        order: of roles.
        picture: its marks.
        begin: mark that comes first, as an id of its own; "" for none.
        system: the system turn; None where the model has none.
        other_role: what opens a turn of any other role, ``{role}`` in place of its name; "" refuses other roles.
        trims: white space at both ends of a content is taken off.
        ends_empty_turns: an empty content has its end too.
        keeps_history: turns before the last are part of the prompt.
        always_asks: ``chat_template.jinja`` ends with the assistant's role whether it is asked to or not.
        limit: tokens of a prompt, 0 for what the context holds; a longer one is cut from the right where ``cuts`` and
            refused otherwise.
        stop: marks that end an answer.
        marks: mark to token id, as the checkpoint's tokenizer or its config numbers them.
    """

    name: str
    roles: ByRole
    after_role: str
    ends: ByRole
    before_answer: str
    join: str
    order: Order
    picture: PictureMarks
    begin: str = ""
    system: SystemTurn | None = None
    other_role: str = ""
    trims: bool = False
    ends_empty_turns: bool = True
    keeps_history: bool = True
    always_asks: bool = False
    limit: int = 0
    cuts: bool = False
    stop: tuple[str, ...] = ()
    marks: Mapping[str, int] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """What the prompt ends with."""
        return self.roles.assistant + self.before_answer

    def stop_ids(self) -> list[int]:
        """Ids of the marks that end an answer, as far as they are known."""
        return [self.marks[text] for text in self.stop if text in self.marks]

    def to_json(self) -> dict[str, Any]:
        """The object under ``runtime["prompt"]`` of a manifest: every field by its name, those of `LATER` where used."""
        value: dict[str, Any] = _plain(dataclasses.asdict(self))
        value["picture"] = {name: said for name, said in value["picture"].items() if name not in LATER or said is not None}
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PromptFormat:
        """Read what `to_json` wrote.

        Raises:
            PackageError: a field is missing, unknown, or of another form.
        """
        try:
            picture = dict(value["picture"])
            slices, system = picture["slices"], value["system"]
            picture |= {"place": Place(picture["place"]), "reserved": tuple(picture["reserved"])}
            picture |= {"slices": None if slices is None else SliceMarks(**slices)}
            rest = dict(value) | {
                "roles": ByRole(**value["roles"]),
                "ends": ByRole(**value["ends"]),
                "order": Order(value["order"]),
                "picture": PictureMarks(**picture),
                "system": None if system is None else SystemTurn(**system),
                "stop": tuple(value["stop"]),
                "marks": {str(text): int(token) for text, token in value["marks"].items()},
            }
            return cls(**rest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PackageError(
                f"manifest.json describes the prompt in another form: {error!r}",
                "the fields of runtime_py.prompt.format.PromptFormat under runtime.prompt",
                "update edgeproof, or export the package again",
            ) from error


LATER = ("after_role",)
"""Fields of a picture's marks that manifests did not always have: left out where they say nothing, so that a package of a
model without them is what it was, and older runtimes read it."""


def prompt_of(settings: Mapping[str, Any]) -> PromptFormat:
    """The prompt in a processor's settings.

    Raises:
        PackageError: the settings hold none.
    """
    if "prompt" not in settings:
        raise PackageError(
            "the processor's settings hold no prompt",
            "runtime.prompt in manifest.json: roles, separators and marks as the family declares them",
            "export the package again",
        )
    return PromptFormat.from_json(settings["prompt"])


def _plain(value: Any) -> Any:
    """Tuples as lists and enums as their texts, as a JSON file gives them back."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, StrEnum) else value
