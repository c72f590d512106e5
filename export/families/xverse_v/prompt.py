r"""The prompt of XVERSE-V-13B: "Human: " and "Assistant: ", one picture in front of a question.

    [instructions \n] { Human: [<ImageHere> \n] text \n Assistant: answer <|endoftext|> } Assistant:

The published text is cut at <ImageHere> and the pieces are encoded apart. Sources: xverse-ai/XVERSE-V-13B at 989da86,
vxverse/conversation/conversation.py (``CONV_VISION_XVERSE``; an empty message has no separator) and eval_vqa.py, which
empties the system sentence and takes the line end before "Human" off, as is done here unless the conversation brings
instructions.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime_py.prompt.format import ByRole, Order, PictureMarks, Place, PromptFormat, SystemTurn

SEPARATOR = ": "
"""Between a role and what it says, in the published template."""


def prompt(template: str, end: str, marks: Mapping[str, int]) -> PromptFormat:
    """The prompt as ``prompt_template``, with {} in place of the question, and ``end_sym`` of the settings have it.

    Args:
        marks: its ids by their text.
    """
    user, _, rest = template.partition("{}")
    line, line_break, assistant = rest.rpartition("\n")
    separator = SEPARATOR if user.endswith(SEPARATOR) and assistant.endswith(SEPARATOR) else ""
    return PromptFormat(
        name="xverse_v",
        system=SystemTurn("", "\n"),
        roles=ByRole(user.removesuffix(separator), assistant.removesuffix(separator)),
        after_role=separator,
        ends=ByRole(line + line_break, end),
        before_answer=separator,
        join="\n",
        order=Order.ALTERNATING,
        picture=PictureMarks(before="", row="<ImageHere>", after="", place=Place.FRONT, spliced=True, most=1),
        ends_empty_turns=False,
        stop=("<|endoftext|>", "<|startoftext|>"),
        marks=marks,
    )
