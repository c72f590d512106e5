r"""The prompt of MiniCPM-Llama3-V 2.5: Llama-3's headers and end of turn, pictures wherever the user puts them.

    <|begin_of_text|> { <|start_header_id|> role <|end_header_id|> \n\n content <|eot_id|> } header of the answer

Texts and pictures of a turn are joined by newlines, and white space at the ends of the whole is taken off. Sources: ``chat``
of modeling_minicpmv.py and ``chat_template`` of tokenizer_config.json (openbmb/MiniCPM-Llama3-V-2_5, kept in
theonlyengine/VQA_Model). The template ends with the answer's header whether it is asked to or not. ``chat`` asserts the
roles user and assistant; a system turn in front is what the template says of one.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime_py.prompt.format import ByRole, Order, PictureMarks, Place, PromptFormat, SliceMarks, SystemTurn

HEADER, HEADER_END, END = "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"
LIMIT = 2048
"""``max_inp_length`` of ``chat``, which cuts from the right."""


def prompt(marks: Mapping[str, int]) -> PromptFormat:
    """The prompt of 2.5; ``marks`` are its ids by their text."""
    return PromptFormat(
        name="minicpm_llama3_v",
        begin="<|begin_of_text|>",
        system=SystemTurn(f"{HEADER}system{HEADER_END}", END),
        roles=ByRole(f"{HEADER}user", f"{HEADER}assistant"),
        after_role=HEADER_END,
        ends=ByRole(END, END),
        before_answer=HEADER_END,
        join="\n",
        order=Order.USER_FIRST,
        picture=PictureMarks(
            before="<image>",
            row="<unk>",
            after="</image>",
            place=Place.INLINE,
            slices=SliceMarks("<slice>", "\n", "</slice>"),
            reserved=("<image>", "</image>"),
        ),
        trims=True,
        always_asks=True,
        limit=LIMIT,
        cuts=True,
        stop=("<|end_of_text|>", END),
        marks=marks,
    )
