"""A checkpoint's whole configuration, as a family's spec reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from export.families.config.decoder import decoder_of, language_of
from export.families.config.generation import generation_of, stop_ids
from export.families.config.rope import says_theta
from export.families.config.section import Section
from export.families.config.settings import CLIPS, GENERATION, PICTURES, SETTINGS
from export.families.config.unapplied_generation import tell_unapplied
from export.families.config.vocabulary import end_of, marks_of
from export.families.published import PublishedCode
from export.modules.connectors.specs import ResamplerSpec
from export.modules.vision.specs import VisionSpec
from export.specs import DecoderSpec

RESAMPLER_HEAD = 128
"""Channels of a resampler's head, a literal of the published code."""


@dataclass(frozen=True)
class CheckpointConfig:
    """The parts of a configuration.

    Attributes:
        whole: config.json.
        text: the decoder's part of it over the defaults of the published class.
        stated: the decoder's part as it stands.
        generation, pictures, clips: generation_config.json, preprocessor_config.json and video_preprocessor_config.json;
            empty where there is none.
        code: defaults of the published code.
    """

    whole: Section
    text: Section
    stated: Section
    generation: Section
    pictures: Section
    clips: Section
    code: PublishedCode

    @classmethod
    def of(cls, config: Mapping[str, Any], code: PublishedCode, text_file: str = "") -> CheckpointConfig:
        """The parts of what a family's ``load_config`` gave.

        Args:
            text_file: the file of its own that the decoder's part, ``text_config``, was read from.

        Raises:
            CheckpointError: a part is no JSON object.
        """
        whole = Section(config)
        stated = whole.section("text_config", text_file) if text_file else language_of(whole)
        generation, pictures, clips = (whole.section(key, SETTINGS[key]) for key in (GENERATION, PICTURES, CLIPS))
        return cls(whole, stated.over(code.class_defaults), stated, generation, pictures, clips, code)

    def decoder(self, vocabulary: int | None = None, axes: int = 1, kv_heads: str = "num_key_value_heads") -> DecoderSpec:
        """The language model as the checkpoint and its code's defaults describe it; ``axes`` of its rotary positions."""
        return decoder_of(self.text, vocabulary, axes, kv_heads)

    def resampler(self, vision: VisionSpec, decoder: DecoderSpec, queries_key: str) -> ResamplerSpec:
        """The resampler between a tower and a decoder; its key positions are stored where the tower's grid is fixed."""
        if decoder.hidden % RESAMPLER_HEAD:
            raise self.text.wrong("hidden_size", f"a multiple of {RESAMPLER_HEAD}, the heads of the resampler")
        return ResamplerSpec(
            vision_width=vision.width,
            width=decoder.hidden,
            queries=self.text.integer(queries_key, 1, 4096),
            heads=decoder.hidden // RESAMPLER_HEAD,
            norm_eps=1e-6,
            fixed_positions=None if vision.grid is None else vision.grid[0] * vision.grid[1],
            project_vision=vision.width != decoder.hidden,
        )

    def marks(self, vocabulary: int, stated: Mapping[str, int] | None = None) -> dict[str, int]:
        """Ids of the prompt's marks by their text; see `export.families.config.vocabulary.marks_of`."""
        return marks_of(self.whole, self.code.marks, vocabulary, stated)

    def token(self, key: str, vocabulary: int, default: int | None = None) -> int:
        """One token's id."""
        return self.text.integer(key, 0, vocabulary - 1, default)

    def answers(
        self, vocabulary: int, own: Sequence[int] = (), default: int | None = None, name: str = "chat"
    ) -> dict[str, Any]:
        """The defaults of generation for the manifest, as the published code's ``name`` has them; see `generation_of`."""
        ends = (*own, *end_of(self.whole, self.code.marks, vocabulary))
        stops = stop_ids((self.stated, self.generation), vocabulary, ends, default)
        defaults = self.code.answers[name]
        tell_unapplied(self.generation, self.stated, defaults.from_file)
        return generation_of(self.generation, defaults, stops)

    def defaulted(self) -> list[str]:
        """The keys that were taken from the class, by name."""
        silent = [key for key in self.code.class_defaults if not self.stated.has(key)]
        return sorted(key for key in silent if key != "rope_theta" or not says_theta(self.stated.values))
