"""What a checkpoint says about choosing tokens that is not built: said by name, never dropped in silence.

A package chooses one token after the other, greedily or at random among the likeliest. Beams, penalties of other kinds,
suppressed tokens and their like change an answer under transformers and cannot be had here; what keeps its neutral value, or
has nothing to do with the choice, is passed over. Source of names and neutral values: transformers 5.24,
generation/configuration_utils.py.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from export.families.config.section import Section, shown

READ = frozenset({"do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "eos_token_id"})
"""Keys that `export.families.config.generation` reads."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "num_return_sequences": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "min_p": (0.0,),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "renormalize_logits": (False,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "decoder_start_token_id": (),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "token_healing": (False,),
    "guidance_scale": (1.0,),
    "watermarking_config": (),
    "stop_strings": ([],),
    "max_time": (),
}
"""Keys that change an answer, with the values that do not; null never does."""

SILENT = frozenset(
    {
        *("max_length", "max_cache_len", "use_cache", "cache_implementation", "cache_config", "low_memory"),
        *("prefill_chunk_size", "compile_config", "disable_compile", "continuous_batching_config", "use_mtp"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        *(
            "early_stopping",
            "length_penalty",
            "remove_invalid_values",
            "pad_token_id",
            "bos_token_id",
            "transformers_version",
        ),
        *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
        *("target_lookbehind", "assistant_ensemble_weight", "speculation_type"),
    }
)
"""Keys that change no chosen token by themselves: memory, speed, what is returned, beams' own settings, and lengths, which
the package's context bounds. Names that begin with an underscore are notes of the library's own."""

log = logging.getLogger(__name__)


def tell_unapplied(file: Section, config: Section, from_file: bool) -> None:
    """Warn of every stated key that an answer of the package will not follow.

    Args:
        file: generation_config.json.
        config: config.json, where transformers looks for the same keys when that file is missing.
        from_file: the family's published code leaves sampling to these files.
    """
    if file.values:
        names = _unapplied(file, [key for key in file.values if key not in READ])
    else:
        names = _unapplied(config, [*NEUTRAL, *(READ - {"eos_token_id"} if from_file else ())])
    if names:
        _tell(file.file if file.values else config.file, ", ".join(names))


def _unapplied(section: Section, keys: Collection[str]) -> list[str]:
    return [
        f"{shown(key).strip(chr(39))} {shown(section.values[key])}"
        for key in keys
        if section.has(key)
        and key not in SILENT
        and not key.startswith("_")
        and not any(_is(section.values[key], value) for value in NEUTRAL.get(key, ()))
    ]


def _is(given: Any, value: Any) -> bool:
    return bool(given == value) and isinstance(given, bool) == isinstance(value, bool)


@lru_cache(maxsize=256)
def _tell(file: str, names: str) -> None:
    """Once for each file name and list of keys: a process that reads several checkpoints hears of equal lists once."""
    log.warning("%s: not applied by packages, whose answers may differ from transformers' for it: %s", file, names)
