r"""The prompts of CogVLM2: questions and answers in words, the picture or the frames of a clip in front of everything.

    chat    <|begin_of_text|> pictures { Question: text Answer: answer \n } Question: text Answer:
    vqa     the same with "Short answer:"
    base    <|begin_of_text|> pictures text

Sources: ``_history_to_prompt`` and ``build_conversation_input_ids`` of modeling_cogvlm.py (THUDM/cogvlm2-llama3-chat-19B,
kept in Niky-san/cogvlm2_surce; base takes the last question alone), THUDM/CogVLM2 basic_demo/openai_api_demo.py (texts of a
turn joined by a space, the picture apart from them, roles user and assistant).
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime_py.prompt.format import ByRole, Order, PictureMarks, Place, PromptFormat

BEGIN, PLACEHOLDER = "<|begin_of_text|>", "<|reserved_special_token_0|>"

ANSWERS = {"chat": "Answer:", "vqa": "Short answer:", "base": ""}
"""What opens an answer, by ``template_version``."""


def prompt(template: str, marks: Mapping[str, int]) -> PromptFormat:
    """The prompt of a ``template_version``; ``marks`` are its ids by their text."""
    base = template == "base"
    return PromptFormat(
        name=f"cogvlm2_{template}",
        begin=BEGIN,
        roles=ByRole("" if base else "Question:", ANSWERS[template]),
        after_role="" if base else " ",
        ends=ByRole("" if base else " ", "" if base else "\n"),
        before_answer="",
        join=" ",
        order=Order.ALTERNATING,
        picture=PictureMarks(before="", row=PLACEHOLDER, after="", place=Place.START, most=1),
        keeps_history=not base,
        stop=("<|end_of_text|>",),
        marks=marks,
    )
