r"""The prompt of MiniCPM-V 1.0 and 2.0: turns without separators, one picture in front of the first question.

    <s> <用户> <image> <unk> x rows </image> [<slice> cells </slice>] \n question <AI> answer <用户> question <AI>

Sources: ``chat`` of modeling_minicpmv.py of the 1.0 hub files (dubai03nsr/multimodal-contrastive-decoding) and of the 2.0
ones (bokesyo/minicpm-v-embedding-model, Research/vision/modeling_minicpmv), whose ``get_grid_placeholder`` sets the slices.
It asserts the roles user and assistant and knows no system turn.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime_py.prompt.format import ByRole, Order, PictureMarks, Place, PromptFormat, SliceMarks

LIMIT = 2048
"""``max_inp_length`` of ``chat``, which cuts from the right."""


def prompt(marks: Mapping[str, int], sliced: bool) -> PromptFormat:
    """The prompt of 1.0, or of 2.0 where pictures are ``sliced``; ``marks`` are its ids by their text."""
    return PromptFormat(
        name="minicpm_v",
        begin="<s>",
        roles=ByRole("<用户>", "<AI>"),
        after_role="",
        ends=ByRole("", ""),
        before_answer="",
        join="\n",
        order=Order.ALTERNATING,
        picture=PictureMarks(
            before="<image>",
            row="<unk>",
            after="</image>",
            place=Place.FRONT,
            most=1,
            first_question=True,
            slices=SliceMarks("<slice>", "\n", "</slice>") if sliced else None,
            reserved=("<image>", "</image>"),
        ),
        limit=LIMIT,
        cuts=True,
        stop=("</s>",),
        marks=marks,
    )
