"""Questions about drawn scenes in English and Chinese, with the one right answer to each."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from export.demo.pictures import CELLS, COLOURS, DIGITS, SHAPES, Item, Scene

LANGUAGES = ("en", "zh")
TASKS = ("colour", "shape", "position", "count", "digit")
KINDS = (*TASKS, "describe", "talk")

SHAPES_ZH = dict(zip(SHAPES, ("圆形", "正方形", "三角形", "星形"), strict=True))
COLOURS_ZH = dict(zip(COLOURS, ("红色", "绿色", "蓝色", "黄色", "橙色", "紫色", "黑色"), strict=True))
CELLS_ZH = dict(zip(CELLS, ("左上角", "上方", "右上角", "左边", "中间", "右边", "左下角", "下方", "右下角"), strict=True))

TEMPLATES: dict[tuple[str, str], tuple[str, ...]] = {
    ("colour", "en"): ("What color is the {shape}?", "What colour is the {shape}?", "Which color does the {shape} have?"),
    ("colour", "zh"): ("{shape}是什么颜色？", "图中的{shape}是什么颜色的？", "{shape}的颜色是什么？"),
    ("shape", "en"): ("What is the {colour} shape?", "What shape is the {colour} one?", "Which shape is {colour}?"),
    ("shape", "zh"): ("{colour}的是什么形状？", "{colour}的图形是什么？", "图中{colour}的是什么图形？"),
    ("position", "en"): ("Where is the {shape}?", "Where is the {colour} shape?", "Where is the {colour} {shape}?"),
    ("position", "zh"): ("{shape}在哪里？", "{colour}的图形在哪里？", "{colour}的{shape}在什么位置？"),
    ("count", "en"): ("How many shapes are there?", "How many shapes can you see?", "How many shapes are in the picture?"),
    ("count", "zh"): ("图中有几个图形？", "有多少个图形？", "一共有几个图形？"),
    ("digit", "en"): ("What digit is printed?", "Which digit do you see?", "What number is in the picture?"),
    ("digit", "zh"): ("图中的数字是什么？", "印着什么数字？", "这是数字几？"),
    ("describe", "en"): ("Describe the picture.", "What do you see?", "What is in the picture?"),
    ("describe", "zh"): ("描述一下这张图。", "你看到了什么？", "图中有什么？"),
}
ALONE: dict[tuple[str, str], tuple[str, ...]] = {
    ("colour", "en"): ("What color is it?", "What color is the shape?"),
    ("colour", "zh"): ("这个图形是什么颜色？", "它是什么颜色？"),
    ("shape", "en"): ("What shape is it?", "What shape is this?"),
    ("shape", "zh"): ("这是什么形状？", "它是什么形状？"),
    ("position", "en"): ("Where is it?", "Where is the shape?"),
    ("position", "zh"): ("它在哪里？", "图形在哪里？"),
}
"""Further wordings that are plain when there is one shape and nothing else."""

TALK: dict[str, tuple[tuple[str, str], ...]] = {
    "en": (
        ("Who are you?", "I am a tiny model that looks at pictures."),
        ("What can you do?", "I can name shapes, colours, positions and digits."),
        ("Hello", "Hello! Show me a picture."),
    ),
    "zh": (
        ("你是谁？", "我是一个会看图的小模型。"),
        ("你会做什么？", "我会看形状、颜色、位置和数字。"),
        ("你好", "你好！给我看一张图吧。"),
    ),
}
"""Questions that need no picture."""

WORDS = {
    "en": tuple(
        re.findall(
            "[a-z]+",
            """
        a all and any are ask at big book by can car city cold come day do dog door eat find five for four from
        game get give go good has he hear help her home house how if in is it know last left like list long look
        make man many me milk moon more my name near new night no not now number of old on one open or our out over
        paper people play please rain read river say see send she sing six small so song speak story sun take tell
        ten that the they this three time to today tree two up use walk want was water way we week were when which
        who why will with word work write year yes you
        """,
        )
    ),
    "zh": tuple(
        "今天明日不在家吃饭水山大小人走路说话书写字学生老师听看电车城市花草树木月年春夏秋冬你我他她们为什么怎样谁多少一二三四五请问从到"
    ),
}
"""What questions are made of that mean nothing to the model."""


@dataclass(frozen=True)
class Question:
    """One turn: ``kind`` is one of `KINDS`, ``language`` one of `LANGUAGES`."""

    kind: str
    language: str
    text: str
    answer: str


def ask(scene: Scene, kind: str, language: str, rng: np.random.Generator) -> Question | None:
    """A question of that kind with exactly one right answer, or None when the scene allows none."""
    if kind == "talk":
        pairs = TALK[language]
        text, answer = pairs[int(rng.integers(len(pairs)))]
        return Question(kind, language, text, answer)
    if kind == "count":
        return _question(kind, language, TEMPLATES, str(len(scene.shapes)), rng) if scene.shapes else None
    if kind == "digit":
        return _question(kind, language, TEMPLATES, scene.digit.kind, rng) if scene.digit else None
    if kind == "describe":
        return _question(kind, language, TEMPLATES, describe(scene, language), rng) if len(scene.items) <= 2 else None
    return _about_a_shape(scene, kind, language, rng)


def strange(language: str, rng: np.random.Generator) -> Question:
    """Words at random, answered by what the model can do."""
    words = [str(word) for word in rng.choice(WORDS[language], int(rng.integers(2, 9)))]
    text = ("" if language == "zh" else " ").join(words) + str(rng.choice(["?", ".", "", "？", "。"]))
    return Question("talk", language, text[0].upper() + text[1:], TALK[language][1][1])


def sample_questions(
    scene: Scene, count: int, rng: np.random.Generator, talk: float = 0.06, describe: float = 0.0, position: float = 0.0
) -> list[Question]:
    """``count`` questions about a scene, kinds as different as the scene allows, languages at random.

    ``talk``, ``describe`` and ``position`` are the shares that these kinds take from the others.
    """
    kinds = ["digit"] if scene.digit else []
    kinds += list(rng.permutation(["colour", "shape", "position", "count"])) if scene.shapes else ["digit", "describe"]
    kinds += list(rng.permutation(["describe", *kinds, *kinds, "digit", "count"]))
    questions: list[Question] = []
    for kind in kinds:
        chosen = "talk" if rng.random() < talk else str(kind)
        if describe and rng.random() < describe:
            chosen = "describe"
        if position and rng.random() < position:
            chosen = "position"
        question = ask(scene, chosen, str(rng.choice(LANGUAGES)), rng)
        if question is not None:
            questions.append(question)
        if len(questions) == count:
            break
    if not questions:
        questions = [question for question in [ask(scene, "talk", str(rng.choice(LANGUAGES)), rng)] if question]
    return [questions[i] for i in rng.permutation(len(questions))] + (questions * count)[: max(count - len(questions), 0)]


def describe(scene: Scene, language: str) -> str:
    """All things in reading order."""
    if language == "zh":
        return "，".join(_described_zh(item) for item in scene.items)
    return " and ".join(_described_en(item) for item in scene.items)


def _described_en(item: Item) -> str:
    if item.is_digit:
        return f"the digit {item.kind}"
    article = "an" if item.colour[0] in "aeiou" else "a"
    place = CELLS[item.cell]
    return f"{article} {item.colour} {item.kind} {'in' if place == 'centre' else 'at'} the {place}"


def _described_zh(item: Item) -> str:
    if item.is_digit:
        return f"数字{item.kind}"
    return f"{CELLS_ZH[CELLS[item.cell]]}有一个{COLOURS_ZH[item.colour]}的{SHAPES_ZH[item.kind]}"


def _about_a_shape(scene: Scene, kind: str, language: str, rng: np.random.Generator) -> Question | None:
    shapes, colours = Counter(i.kind for i in scene.shapes), Counter(i.colour for i in scene.shapes)
    both = Counter((i.kind, i.colour) for i in scene.shapes)
    choices: list[tuple[Item, str]] = []
    for item in scene.shapes:
        for template in TEMPLATES[kind, language]:
            named_shape, named_colour = "{shape}" in template, "{colour}" in template
            seen = both[item.kind, item.colour] if named_shape and named_colour else 0
            seen = seen or (shapes[item.kind] if named_shape else colours[item.colour])
            if seen == 1:
                choices.append((item, template))
        if len(scene.items) == 1:
            choices += [(item, template) for template in ALONE[kind, language]]
    if not choices:
        return None
    item, template = choices[int(rng.integers(len(choices)))]
    english = language == "en"
    answers = {
        "colour": item.colour if english else COLOURS_ZH[item.colour],
        "shape": f"a {item.kind}" if english else SHAPES_ZH[item.kind],
        "position": CELLS[item.cell] if english else CELLS_ZH[CELLS[item.cell]],
    }
    text = template.format(
        shape=item.kind if english else SHAPES_ZH[item.kind], colour=item.colour if english else COLOURS_ZH[item.colour]
    )
    return Question(kind, language, text, answers[kind])


def _question(
    kind: str, language: str, templates: dict[tuple[str, str], tuple[str, ...]], answer: str, rng: np.random.Generator
) -> Question:
    options = templates[kind, language]
    return Question(kind, language, options[int(rng.integers(len(options)))], answer)


def worn(text: str, rng: np.random.Generator) -> str:
    """The way people type: now and then without capitals, with another question mark, or with none."""
    if rng.random() < 0.25:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.25:
        text = text.rstrip("？?。.") + str(rng.choice(["", "?", "？", "."]))
    return text


def corpus() -> list[str]:
    """Every text a dialogue may hold, for the vocabulary."""
    texts: list[str] = []
    for templates in (TEMPLATES, ALONE):
        for (_, language), options in templates.items():
            english = language == "en"
            for option in options:
                for shape in SHAPES:
                    for colour in COLOURS:
                        names = (shape, colour) if english else (SHAPES_ZH[shape], COLOURS_ZH[colour])
                        texts.append(option.format(shape=names[0], colour=names[1]))
    texts += [text for pairs in TALK.values() for pair in pairs for text in pair]
    for cell in range(9):
        for kind in (*SHAPES, *DIGITS):
            for colour in COLOURS:
                item = Item(kind, colour, (0, 0, 0), (cell % 3 + 0.5) / 3, (cell // 3 + 0.5) / 3, 0.1, 0.0)
                scene = Scene((item, item), (0, 0, 0), 0.0, 0)
                texts += [describe(scene, "en"), describe(scene, "zh"), colour, f"a {kind}", CELLS[cell]]
    unique = list(dict.fromkeys(texts))
    return unique + [text[0].lower() + text[1:] for text in unique]
