r"""The prompt of OmniLMM-12B: Zephyr's template with a system turn of its own, one picture with the first question.

    <s> <|system|> \n instructions </s> \n { <|user|> \n content </s> \n } <|assistant|> \n

The picture stands in place of a literal <image> in the first question, or in front of it. Sources: OpenBMB/MiniCPM-V at
0dbb566d, chat.py (``expand_question_into_multimodal``) and omnilmm/train/train_utils.py (``omni_preprocess``), and the chat
template of Zephyr's tokenizer that the latter applies. It puts its own system turn in front unless there is one.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime_py.prompt.format import ByRole, Order, PictureMarks, Place, PromptFormat, SystemTurn

SYSTEM = (
    "You are an artificial intelligence assistant, "
    "which gives helpful, detailed, and polite answers to the human's questions."
)
PICTURE_MARKS = ("<im_patch>", "<im_start>", "<im_end>")
"""In the order in which chat.py adds them to the tokenizer."""

LIMIT = 2048
"""``model_max_length`` that chat.py gives the tokenizer."""


def prompt(marks: Mapping[str, int]) -> PromptFormat:
    """The prompt of the 12B model; ``marks`` are its ids by their text."""
    return PromptFormat(
        name="omnilmm_12b",
        begin="<s>",
        system=SystemTurn("<|system|>\n", "</s>\n", default=SYSTEM),
        roles=ByRole("<|user|>", "<|assistant|>"),
        after_role="\n",
        ends=ByRole("</s>\n", "</s>\n"),
        before_answer="\n",
        join="\n",
        order=Order.ALTERNATING,
        picture=PictureMarks(
            before="<im_start>",
            row="<im_patch>",
            after="<im_end>",
            place=Place.FRONT,
            most=1,
            first_question=True,
            stands_for="<image>",
            reserved=PICTURE_MARKS,
        ),
        limit=LIMIT,
        stop=("</s>",),
        marks=marks,
    )
