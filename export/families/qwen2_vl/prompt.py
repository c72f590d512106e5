r"""The prompt of Qwen2-VL and Awaker2.5-VL: ChatML with a system turn, pictures and clips wherever they are given.

    <|im_start|>system \n instructions <|im_end|> \n
    { <|im_start|> role \n content <|im_end|> \n } <|im_start|>assistant \n

Parts of a turn are joined by nothing, roles are free, and a conversation without a system turn gets the default one. Source:
chat_template.json of Qwen/Qwen2-VL-7B-Instruct, which the README.md of MetabrainAGI/Awaker uses unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime_py.prompt.format import ByRole, Order, PictureMarks, Place, PromptFormat, SystemTurn

SYSTEM = "You are a helpful assistant."
START, END = "<|im_start|>", "<|im_end|>"
STATED = {
    "<|endoftext|>": "bos_token_id",
    "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id",
    "<|image_pad|>": "image_token_id",
    "<|video_pad|>": "video_token_id",
}
"""Marks that config.json numbers, by its keys."""


def prompt(marks: Mapping[str, int]) -> PromptFormat:
    """The prompt of the base and of what builds on it; ``marks`` are its ids by their text."""
    return PromptFormat(
        name="qwen2_vl",
        system=SystemTurn(f"{START}system\n", f"{END}\n", default=SYSTEM),
        roles=ByRole(f"{START}user", f"{START}assistant"),
        other_role=START + "{role}",
        after_role="\n",
        ends=ByRole(f"{END}\n", f"{END}\n"),
        before_answer="\n",
        join="",
        order=Order.FREE,
        picture=PictureMarks(
            before="<|vision_start|>",
            row="<|image_pad|>",
            after="<|vision_end|>",
            place=Place.INLINE,
            any_role=True,
            clip_row="<|video_pad|>",
            reserved=("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
        ),
        stop=(END, "<|endoftext|>"),
        marks=marks,
    )
