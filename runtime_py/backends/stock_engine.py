"""What an app's own engine can do with a package: a record in the manifest, worked out from the model at export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from runtime_py.errors import PackageError

KEY = "stock_engine"
"""Its key in a backend's block of manifest.json."""


class Use(StrEnum):
    """The most that can be asked, each including those before it."""

    NOTHING = "nothing"
    TEXT = "text"
    PICTURE = "one picture"  # a message with a picture is one array of pixels
    TILES = "tiles as pictures"  # a view of the whole and every tile, each sent as a picture of its own


@dataclass(frozen=True)
class SentPicture:
    """The one form of picture that the engine takes.

    Attributes:
        image_size: side of the square that an app sends, in pixels.
        picture_size: side of the picture in its upper left corner; the margin on the right and below is cropped.
        patch_size: from which the engine counts the rows: image_size² / patch_size², rounded down.
        rows: rows of features in the prompt, each a position of the cache.
        views: pictures of this form that one picture of the model is at most.
        held: how many of them the package's context holds beside a question and an answer.
    """

    image_size: int
    picture_size: int
    patch_size: int
    rows: int
    views: int = 1
    held: int = 1


@dataclass(frozen=True)
class StockEngine:
    """What one engine, unmodified but for the edits that the target's page lists, does with a package.

    Attributes:
        engine: its name.
        use: the most that can be asked.
        picture: None where no picture can be sent.
        reasons: why it is no more, a sentence each; and what of a picture, or of a conversation, does not arrive.
        sampling: defaults of the model that the engine does not know, with their values.
    """

    engine: str
    use: Use
    picture: SentPicture | None
    reasons: tuple[str, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object under `KEY`."""
        return {
            "engine": self.engine,
            "use": str(self.use),
            "picture": None if self.picture is None else asdict(self.picture),
            "reasons": list(self.reasons),
            "unknown_sampling": dict(self.sampling),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StockEngine:
        """Read what `to_json` wrote.

        Raises:
            PackageError: a field is missing or of another form.
        """
        try:
            picture = value["picture"]
            return cls(
                str(value["engine"]),
                Use(value["use"]),
                None if picture is None else SentPicture(**{name: int(size) for name, size in picture.items()}),
                tuple(map(str, value["reasons"])),
                {str(name): float(number) for name, number in value["unknown_sampling"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PackageError(
                f"manifest.json describes the app's engine in another form: {error!r}",
                f"the fields of runtime_py.backends.stock_engine.StockEngine under {KEY}",
                "update edgeproof, or export the package again",
            ) from error

    def lines(self) -> Iterator[str]:
        """The record for people."""
        yield f"{self.engine}: {self.use}{self._sent()}"
        yield from self.reasons
        if self.sampling:
            told = ", ".join(f"{name} {number:g}" for name, number in self.sampling.items())
            judged = "judge answers without them by `edgeproof parity --package DIR --sampling engine`"
            yield f"defaults it does not know: {told}; {judged}"

    def _sent(self) -> str:
        sent = self.picture
        if sent is None:
            return ""
        margin = sent.image_size - sent.picture_size
        inside = f" with the picture of {sent.picture_size} in the upper left corner" if margin else ""
        views = f", {sent.held} of at most {sent.views} views" if sent.views > 1 else ""
        return f", {sent.image_size} x {sent.image_size} pixels{inside}, {sent.rows} rows{views}"


def stored_engines(manifest: Mapping[str, Any]) -> list[StockEngine]:
    """The records of all backends in a manifest; packages made before there were any have none."""
    blocks = manifest.get("backends", {}).values()
    return [StockEngine.from_json(block[KEY]) for block in blocks if isinstance(block, Mapping) and KEY in block]
