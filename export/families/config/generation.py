"""When an answer stops and how its tokens are chosen: config.json, generation_config.json, and a family's own defaults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from export.families.config.section import Section
from runtime_py.errors import CheckpointError

LEAST, MOST_TEMPERATURE, MOST_PENALTY, MOST_TOKENS = 1e-6, 100.0, 100.0, 1 << 20


LIKELIEST = 50
"""Tokens that transformers draws from where nothing says how many (``top_k``)."""


@dataclass(frozen=True)
class GenerationDefaults:
    """How a family's published code chooses tokens.

    Attributes:
        top_k: of an answer that is drawn, by the published code or because the caller asks for a temperature.
        from_file: that code leaves it to generation_config.json, whose values come first; else it names them itself.
        sampled: the file's values hold where it does not say ``do_sample``; else its silence means greedy choice, as in
            transformers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = LIKELIEST
    repetition_penalty: float = 1.0
    max_new_tokens: int = 1024
    from_file: bool = False
    sampled: bool = False


DRAWN = GenerationDefaults(temperature=1.0)
"""What transformers takes where ``do_sample`` is true and nothing else is said (transformers 5.24,
generation/configuration_utils.py, ``_get_default_generation_params``; 4.45 has the same numbers in the class)."""


def stop_ids(sections: Iterable[Section], vocabulary: int, own: Sequence[int], default: int | None = None) -> list[int]:
    """Every id that ends an answer: ``eos_token_id`` of each section, one or several, then the family's own and the
    tokenizer's, which published ``chat`` functions ask for (``tokenizer.eos_token_id``).

    Args:
        default: what the published class takes where no section names any.

    Raises:
        CheckpointError: an id that is none, or that the vocabulary has not; or no id at all.
    """
    stated = [token for section in sections for token in section.ids("eos_token_id", vocabulary)]
    if not stated and default is not None:
        stated = [default]
    ends = list(dict.fromkeys((*stated, *own)))
    if not ends:
        raise CheckpointError(
            "no file of the checkpoint says what ends an answer",
            "eos_token_id in config.json or generation_config.json",
            "download both again",
        )
    return ends


def generation_of(file: Section, defaults: GenerationDefaults, stops: Sequence[int]) -> dict[str, Any]:
    """The defaults of generation for the manifest.

    Args:
        file: generation_config.json. Its ``do_sample`` false means greedy choice in every family; true, where it is heard,
            leaves what else it does not say to `DRAWN`.

    Raises:
        CheckpointError: a value out of range.
    """
    stated = file if defaults.from_file else Section({})
    asked = file.flag("do_sample", defaults.sampled or not defaults.from_file)
    silent = DRAWN if asked and stated.has("do_sample") else defaults
    return {
        "stop_ids": list(stops),
        "temperature": stated.number("temperature", 0.0, MOST_TEMPERATURE, silent.temperature) if asked else 0.0,
        "top_p": stated.number("top_p", LEAST, 1.0, silent.top_p),
        "top_k": stated.integer("top_k", 0, 1 << 22, silent.top_k),
        "repetition_penalty": stated.number("repetition_penalty", LEAST, MOST_PENALTY, silent.repetition_penalty),
        "max_new_tokens": stated.integer("max_new_tokens", 1, MOST_TOKENS, defaults.max_new_tokens),
    }
