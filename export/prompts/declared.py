"""The prompt that a model's family declares."""

from __future__ import annotations

from export.specs import ModelSpec
from runtime_py.errors import PackageError, UnsupportedModelError
from runtime_py.prompt.format import PromptFormat, prompt_of


def declared_prompt(spec: ModelSpec) -> PromptFormat:
    """The prompt of a model; no package is made without one.

    Raises:
        UnsupportedModelError: the family declares none, or in another form.
    """
    try:
        return prompt_of(spec.runtime)
    except PackageError as error:
        raise UnsupportedModelError(
            f"{spec.family} declares no prompt: {error.what}",
            "a PromptFormat under ModelSpec.runtime['prompt'], which processor and templates are made of",
            "write the family's prompt.py, see docs/adding_a_family.md",
        ) from error
