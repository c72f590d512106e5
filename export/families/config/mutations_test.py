"""Whatever a checkpoint's settings files say, the answer is a plan or one error that a person can act on.

Short in an ordinary run; ``EDGEPROOF_EXAMPLES=2000`` makes as many per family.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.families.base import Family
from export.families.registry import families, recognise
from export.pipeline import plan
from export.request import ExportRequest
from export.source.tensor_source import EmptySource
from runtime_py.errors import EdgeproofError, ExitCode

EXAMPLES = int(os.environ.get("EDGEPROOF_EXAMPLES", "20"))
SLOWEST = 20.0
"""Processor seconds that one plan may take, the imports of the first one with it."""

GENERATION = {"bos_token_id": 1, "eos_token_id": [2, 3], "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 40}

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 100_000, 10**12, 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), "", "silu", "12", "\ud800", "../..", "\x1b[31m", [], {}, [[]], [1], [-1, "a", None]),
    *([2, 3, 3], {"type": "linear", "factor": 4.0}, {"rope_type": "yarn"}, {"": {"": []}}, [["x"] * 9] * 9),
)
KEYS = (
    *(
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "text_config",
        "vision_config",
        "quantization_config",
        "sliding_window",
    ),
    *(
        "use_sliding_window",
        "layer_types",
        "head_dim",
        "num_key_value_heads",
        "tie_word_embeddings",
        "eos_token_id",
        "dtype",
    ),
    *(
        "version",
        "slice_mode",
        "timm_model_args",
        "preprocessor",
        "generation_config",
        "added_tokens",
        "moe",
        "attention_bias",
    ),
)
TARGETS = ("cpu", "android", "desktop-gpu", "ios")
BYTES = (
    b"",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"[",
    b'{"a":' * 2000,
    b"\x00",
    b"{}",
)


def files_of(family: Family) -> dict[str, Any]:
    """Every settings file of a small checkpoint of the family."""
    made = {name: dict(value) for name, value in family.config_files(family.published_config("", "tiny")).items()}
    areas = {} if "image_processor" in made["config.json"] else {"size": {"shortest_edge": 3136, "longest_edge": 12544}}
    pictures = {"do_resize": True, "image_mean": [0.5, 0.5, 0.5], **areas}
    size = made["config.json"].get("vocab_size", 300)
    marks = family.published_code().marks
    free = (size - 1 - place if index >= size else index for place, index in enumerate(marks.values()))
    table = {str(index): {"content": text} for text, index in zip(marks, free, strict=True)}
    tokens = {"added_tokens_decoder": table}
    others = {"generation_config.json": GENERATION, "preprocessor_config.json": pictures, "tokenizer_config.json": tokens}
    return {**others, "processor_config.json": {"image_processor": {}}, **made}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


@st.composite
def changed_files(draw: st.DrawFn, family: Family) -> dict[str, bytes]:
    """A family's settings files with one to three things changed in them."""
    documents = deepcopy(files_of(family))
    for _ in range(draw(st.integers(1, 3))):
        document = documents[draw(st.sampled_from([name for name, value in documents.items() if value]))]
        path = draw(st.sampled_from([*places(document), *((key,) for key in KEYS)]))
        outer = document
        for step in path[:-1]:
            outer = outer[step]
        if draw(st.integers(0, 5)) == 0 and isinstance(outer, dict):
            outer.pop(path[-1], None)
        else:
            outer[path[-1]] = deepcopy(draw(st.sampled_from(STRANGE)))
        if not document:
            document["x"] = 1
    contents = {name: json.dumps(value).encode("utf-8", "surrogatepass") for name, value in documents.items()}
    if draw(st.integers(0, 7)) == 0:
        name, content = draw(st.sampled_from(sorted(contents))), draw(st.sampled_from(BYTES))
        contents[name] = content + contents[name][: draw(st.integers(0, 40))]
    return contents


def check(contents: dict[str, bytes], target: str = "cpu") -> str:
    """Write the files and plan from them; returns what became of it. Anything but an error of ours is raised."""
    with tempfile.TemporaryDirectory() as name:
        for file, content in contents.items():
            (Path(name) / file).parent.mkdir(parents=True, exist_ok=True)
            (Path(name) / file).write_bytes(content)
        began = time.process_time()
        try:
            plan(ExportRequest(name, target), None)
        except EdgeproofError as error:
            assert error.exit_code in (ExitCode.USAGE, ExitCode.UNSUPPORTED, ExitCode.DOES_NOT_FIT), error
            assert len(str(error)) < 4000
            return type(error).__name__
        finally:
            assert time.process_time() - began < SLOWEST
        return "planned"


@pytest.mark.parametrize("family", families().values(), ids=lambda family: family.name)
def test_the_files_as_they_are_give_a_plan(family: Family) -> None:
    assert check({name: json.dumps(value).encode() for name, value in files_of(family).items()}) == "planned"


@pytest.mark.parametrize("family", families().values(), ids=lambda family: family.name)
def test_changed_settings_give_a_plan_or_one_error(family: Family) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES <= 20)
    @given(changed_files(family), st.sampled_from(TARGETS))
    def run(contents: dict[str, bytes], target: str) -> None:
        check(contents, target)

    run()


@pytest.mark.parametrize("value", [5, None, [5], {"a": 1}, "x", [None, "CogVLMForCausalLM"]])
def test_a_strange_name_of_the_architecture_breaks_no_other_family(tmp_path: Path, value: Any) -> None:
    config = {**families()["omnilmm-12b"].published_config("", "tiny"), "architectures": value}
    (tmp_path / "config.json").write_text(json.dumps({key: item for key, item in config.items() if key != "added_tokens"}))
    family = recognise(tmp_path)
    assert family.spec(family.load_config(tmp_path), EmptySource()).decoder.layers == 2
