r"""The prompt of the WeMM Chat models: ChatML without line ends between turns, one picture in front of a question.

    <s> { <|im_start|> role \n [<image> \n] text <|im_end|> } <|im_start|>assistant \n

The published text is cut at <image> and the pieces are encoded apart. Source: Ascend/MindIE-LLM
examples/atb_models/atb_llm/models/wemm. The published call takes one question; further turns and a system turn are inferred
from the language model's ChatML (docs/families/wemm.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime_py.prompt.format import ByRole, Order, PictureMarks, Place, PromptFormat, SystemTurn

START, END = "<|im_start|>", "<|im_end|>"


def prompt(marks: Mapping[str, int]) -> PromptFormat:
    """The prompt of both Chat models; ``marks`` are its ids by their text."""
    return PromptFormat(
        name="wemm",
        begin="<s>",
        system=SystemTurn(f"{START}system\n", END),
        roles=ByRole(f"{START}user", f"{START}assistant"),
        after_role="\n",
        ends=ByRole(END, END),
        before_answer="\n",
        join="\n",
        order=Order.USER_FIRST,
        picture=PictureMarks(before="", row="<image>", after="", place=Place.FRONT, spliced=True, most=1),
        stop=("</s>", END),
        marks=marks,
    )
