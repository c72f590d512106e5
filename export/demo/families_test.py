"""Every delivered demo checkpoint, by whichever path a user takes: recognised, checked, asked through the one pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.demo.accuracy import Case, held_out, score
from export.demo.dialogues import UNLABELLED
from export.demo.model import MemorySource, Stages, initial_tensors
from export.demo.pictures import COLOURS, KINDS, Item, Scene, draw
from export.demo.published import write_checkpoint
from export.demo.questions import Question
from export.demo.recipes.base import Recipe
from export.demo.reference import Reference, processor_of, recipe_of
from export.demo.routing import gate_whole_batches
from export.demo.samples import SAMPLES
from export.families.registry import families, recognise
from export.modules.build import parameter_shapes
from export.modules.decoders.low_rank import Gate
from export.modules.decoders.specs import RoutedLora
from export.modules.kernels import Kernels
from parity_tests.laboratory.demo_training.batches import own_cells, place_targets
from parity_tests.laboratory.demo_training.transfer import start_from
from parity_tests.reference.checkpoint_side import open_checkpoint, reference
from runtime_py import tokenizer as tokenizers
from runtime_py.generation.session import Limits, Session
from runtime_py.preprocess.base import Message

CHECKPOINTS = Path(__file__).parent / "checkpoints"
OTHERS = ("awaker2.5-vl", "cogvlm2", "omnilmm-12b", "wemm", "xverse-v")
DELIVERED = ("awaker2.5-vl", "cogvlm2", "omnilmm-12b", "wemm", "xverse-v")
"""Awaker2.5-VL's recipe runs; it has no trained checkpoint yet."""
WANTED = 0.9
"""Floor on a few pictures, below what docs/demo.md reports on many and far above guessing (about 0.15)."""

LARGEST = 3_000_000


def cases(recipe: Recipe, pictures: int) -> list[Case]:
    return held_out(pictures, recipe.side, digits=recipe.digits)


def asked(chosen: list[Case]) -> list[tuple[np.ndarray, str]]:
    return [(case.picture, case.question.text) for case in chosen]


@pytest.mark.parametrize("name", DELIVERED)
def test_the_folder_is_what_the_script_writes(name: str) -> None:
    recipe, folder = recipe_of(name), CHECKPOINTS / name
    side = recipe.side_files()
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert sum(path.stat().st_size for path in there.values()) < LARGEST
    assert {path for path in there if not path.endswith((".safetensors", ".bin"))} == set(side)
    assert all(there[path].read_bytes() == content for path, content in side.items())
    assert recognise(folder).name == name
    assert {info.dtype for info in open_checkpoint(folder).weights.source.infos.values()} == {"bfloat16"}


@pytest.mark.parametrize("name", DELIVERED)
def test_held_out_questions_are_answered(name: str) -> None:
    model = Reference.load(CHECKPOINTS / name)
    chosen = cases(model.recipe, 24)
    assert score(chosen, model.answers(asked(chosen))).share() >= WANTED


@pytest.mark.parametrize("name", DELIVERED)
def test_the_samples_without_digits_are_answered(name: str) -> None:
    model = Reference.load(CHECKPOINTS / name)
    chosen = [sample for sample in SAMPLES if sample.scene.digit is None]
    turns = [(draw(sample.scene, *sample.size), *turn) for sample in chosen for turn in sample.dialogue]
    answers = model.answers([(picture, question) for picture, question, _ in turns])
    assert [answer.strip() for answer in answers] == [answer for _, _, answer in turns]
    assert len(turns) == 6


@pytest.mark.parametrize("name", DELIVERED)
def test_the_session_gives_the_answers_that_the_trainer_measures(name: str) -> None:
    folder = CHECKPOINTS / name
    opened = open_checkpoint(folder)
    words = tokenizers.load(folder)
    processor = opened.processor(words)
    session = Session(reference(opened.spec, opened.weights), processor, Limits(512, 512))
    stops = set(opened.spec.generation["stop_ids"])
    model = Reference.load(folder)
    chosen = cases(model.recipe, 3)[::2]

    def answer(picture: np.ndarray, text: str) -> str:
        images, features = session.encode_images([picture])
        layout = processor.layout(processor.encode([Message("user", text, (0,))], images), images)
        session.reset()
        logits = session.prefill(session.merge(layout, features), layout, "last")
        ids: list[int] = []
        while (token := int(np.argmax(logits[0, -1]))) not in stops and len(ids) < 48:
            ids.append(token)
            logits = session.step(token)
        return words.decode(ids)

    assert [answer(*pair) for pair in asked(chosen)] == model.answers(asked(chosen))


def untrained_words(recipe: Recipe, folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a recipe, from its side files."""
    for path, content in recipe.side_files().items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
    return tokenizers.load(folder)


@pytest.fixture(scope="module", params=OTHERS)
def untrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    recipe = recipe_of(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    untrained_words(recipe, folder)
    family = families()[recipe.family]
    spec, tensors = initial_tensors(recipe, family, 3)
    stages = Stages(spec, family.weight_map(spec, MemorySource(tensors)).rules)
    with torch.no_grad():
        stages.derive(tensors)
    return Reference(recipe, stages, folder)


def test_parameters_are_those_the_exporter_reads(untrained: Reference) -> None:
    family = families()[untrained.recipe.family]
    spec, tensors = initial_tensors(untrained.recipe, family, 3)
    weights = family.weight_map(spec, MemorySource(tensors))
    weights.check(parameter_shapes(spec))
    for target in weights.rules:
        stage, _, path = target.partition(".")
        assert torch.allclose(untrained.stages.parameters[stage][path], weights.tensor(target).float(), atol=1e-6), target


def test_labels_spell_the_answers_in_every_prompt_format(untrained: Reference) -> None:
    picture = np.zeros((90, 130, 3), np.uint8)
    images = untrained.processor.images([picture])
    turns = [Question("colour", "en", "What color is the star?", "red"), Question("position", "zh", "它在哪里？", "左上角")]
    dialogue = untrained.writer.write(turns, images)
    labels, ids = dialogue.labels, dialogue.ids
    last = labels[dialogue.prompt - 1 :].tolist()
    assert untrained.tokenizer.decode(last[:-1]).strip() == "左上角"
    assert last[-1] == untrained.writer.stop
    assert ids[dialogue.prompt :].tolist() == last[:-1]
    assert int(dialogue.image_rows.sum()) == sum(piece.rows for piece in images)
    assert (labels[: np.flatnonzero(dialogue.image_rows)[-1]] == UNLABELLED).all()


def test_batched_answers_are_those_one_by_one(untrained: Reference) -> None:
    chosen = cases(untrained.recipe, 2)[:6]
    assert untrained.answers(asked(chosen)) == [untrained.answer(*pair) for pair in asked(chosen)]


def test_a_batched_gate_is_the_gate_row_by_row() -> None:
    torch.manual_seed(0)
    gates = [Gate(RoutedLora(2, 4, 2.0, 1e-6), 32, Kernels()) for _ in range(2)]
    values = {name: torch.randn_like(value) for name, value in gates[0].named_parameters()}
    for gate in gates:
        gate.load_state_dict(values)
    gate_whole_batches(torch.nn.Sequential(gates[1]))
    rows = torch.randn(5, 3, 32)
    with torch.no_grad():
        batched = gates[1](rows)
        assert len({int(row.argmax()) for row in batched.reshape(-1, 10)}) > 1
        for i in range(5):
            for j in range(3):
                assert torch.allclose(batched[i, j], gates[0](rows[i, j][None]), atol=1e-6)


@pytest.mark.parametrize("name", ["wemm", "xverse-v", "awaker2.5-vl"])
def test_places_lie_where_the_processor_puts_the_pixels(name: str, tmp_path: Path) -> None:
    """Patches that a lone black thing is said to lie in hold its dark pixels."""
    recipe = recipe_of(name)
    assert recipe.places is not None and recipe.shape_of is not None
    family = families()[recipe.family]
    spec = family.spec(recipe.config, MemorySource({}))
    processor = processor_of(name, spec, untrained_words(recipe, tmp_path))
    item = Item("square", "black", (0, 0, 0), 0.25, 0.7, 0.2, 0.0)
    scene, size = Scene((item,), (255, 255, 255), 0.0, 0), (150, 110)
    (inputs,) = processor.images([draw(scene, *size)])
    places = recipe.places(inputs, size)
    assert recipe.shape_of(*size)[0] == inputs.rows == len(places.image)
    pixels = inputs.vision["pixel_values"]
    if pixels.ndim == 4:
        patch = recipe.side // recipe.patches[0]
        count, channels, height, width = pixels.shape
        cut = pixels.reshape(count, channels, height // patch, patch, width // patch, patch)
        pixels = cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, channels * patch * patch)
    ink = (pixels.reshape(len(places.vision), -1).min(1) < 0.0).astype(int)
    targets = place_targets(scene, size, places.vision)
    assert (targets[:, 0] > 0).sum() >= 2
    assert (targets[ink == 0, 0] == 0).all()
    assert set(targets[targets[:, 0] > 0].reshape(-1).tolist()) == {
        KINDS.index("square") + 1,
        list(COLOURS).index("black") + 1,
    }
    assert own_cells(places.image, recipe.rows).max() < np.prod(recipe.rows)


def test_a_decoder_started_from_another_family_thinks_the_same(untrained: Reference, tmp_path: Path) -> None:
    """Started from its own checkpoint under other tensors, a family's plain linear layers are the given ones."""
    recipe = untrained.recipe
    family = families()[recipe.family]
    spec, tensors = initial_tensors(recipe, family, 3)
    write_checkpoint(tmp_path / "given", recipe, tensors)
    _, others = initial_tensors(recipe, family, 4)
    rules = family.weight_map(spec, MemorySource(others)).rules
    start_from(tmp_path / "given", "decoder", others, spec, rules, tokenizers.load(tmp_path / "given"))
    given = family.weight_map(spec, MemorySource(tensors))
    mine = family.weight_map(spec, MemorySource(others))
    linear = [t for t in rules if t.startswith("decoder.layers.1") and "lora_" not in t and "gates" not in t]
    assert len(linear) >= 6
    for target in linear:
        assert torch.allclose(mine.tensor(target).float(), given.tensor(target).float(), atol=0.03), target
