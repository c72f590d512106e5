"""Convert a plain Llama checkpoint with the production writer and compare with a package made by MLC's own converter.

A golden folder holds ``checkpoint/`` and one folder per quantisation (``q4f16_1/``, ...); see
parity_tests/goldens/mlc-llama/README.md. What only the person who made the golden could choose (conversation template,
batch limit) is taken from its mlc-chat-config.json; everything else is derived from the checkpoint and compared.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.errors import CheckpointError, UsageError


@dataclass(frozen=True)
class GoldenResult:
    """One comparison. ``status`` is ``pass`` or ``fail``; ``detail`` says what was expected and found."""

    name: str
    status: str
    detail: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def check(directory: Path) -> list[GoldenResult]:
    """Compare every quantisation folder of a golden: tensors by name, shape, dtype and bytes, shards by md5, JSON files.

    Raises:
        UsageError: the folder holds no checkpoint or no package.
    """
    checkpoint = directory / "checkpoint"
    packages = sorted(path.parent for path in directory.glob("*/tensor-cache.json"))
    if not checkpoint.is_dir() or not packages:
        raise UsageError(
            f"{directory} is no MLC golden",
            "checkpoint/ and at least one folder with tensor-cache.json",
            "name another folder",
        )
    results: list[GoldenResult] = []
    for expected in packages:
        with tempfile.TemporaryDirectory(prefix="mlc-golden-") as scratch:
            try:
                convert(checkpoint, expected, Path(scratch))
            except (CheckpointError, UsageError) as error:
                results.append(GoldenResult(f"{expected.name}/convert", "fail", str(error)))
                continue
            results += compare(expected, Path(scratch))
    return results


def convert(checkpoint: Path, expected: Path, out: Path) -> None:
    """Write the package that corresponds to ``expected`` (its folder name is the quantisation) into ``out``."""
    from export.backends.mlc import chat_config, parameters, shards, tokenizer_files, upstream_llama
    from export.backends.mlc.schemes import SCHEMES
    from export.modules.decoders.llama_weights import ROTARY_BUFFERS, llama_rules
    from export.quantisation.codes import RoundToNearest
    from export.quantisation.grids import GRIDS
    from export.quantisation.spec import Assignment, LayerShape, Storage
    from export.source.checkpoint import open_checkpoint
    from export.source.weight_map import WeightMap
    from targets.base import Limits

    chosen = json.loads((expected / "mlc-chat-config.json").read_text(encoding="utf-8"))
    if chosen["quantization"] not in SCHEMES:
        raise UsageError(f"quantisation {chosen['quantization']}", ", ".join(SCHEMES), "compare another golden")
    scheme = SCHEMES[chosen["quantization"]]
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    decoder = upstream_llama.decoder_spec(config)
    source = open_checkpoint(checkpoint)
    weights = WeightMap(llama_rules(decoder), source, ignored=[ROTARY_BUFFERS])
    weights.check()
    order = upstream_llama.loading_order(weights, upstream_llama.stored_order(checkpoint, source), decoder.tied_head)
    assignments = {}
    for target in order:
        shape = weights.shape(target)
        role = upstream_llama.role(target)
        if len(shape) == 2 and scheme.grid and role not in scheme.whole:
            layer = LayerShape(target.removesuffix(".weight"), role, *shape)
            assignments[layer.name] = Assignment(layer, Storage.INT4, scheme.grid)
    shapes = {target: weights.shape(target) for target in order}
    listed = parameters.parameter_list(shapes, assignments, scheme, upstream_llama.published_name)
    reader = parameters.ParameterBytes(weights, RoundToNearest(weights, assignments, GRIDS), scheme)
    plan = shards.plan_shards(reader.stored(listed, halve=True))
    for shard in plan:
        shards.write_shard(out, shard)
    used = {name for target in order for name in weights.rules[target].sources}
    elements = sum(int(np.prod(source.infos[name].shape)) for name in used)
    shards.write_index(out, shards.index(out, plan, elements), old_name=False)

    context = config.get("max_position_embeddings") or config["max_sequence_length"]
    limits = Limits(context, min(context, 8192), chosen["model_config"].get("max_batch_size", 1))
    generation = {**config, **upstream_llama.read_json(checkpoint / "generation_config.json")}
    files = tokenizer_files.copy_tokenizer(checkpoint, out)
    request = chat_config.ChatRequest(
        model_type=config["model_type"],
        quantization=scheme.name,
        limits=limits,
        generation={key: generation.get(key) for key in chat_config.GENERATION_DEFAULTS},
        conversation=chosen["conv_template"],
        tokenizer_files=tuple(files),
        tokenizer_info=tokenizer_files.tokenizer_info(out),
        active_vocabulary=tokenizer_files.active_vocabulary(out, decoder.vocabulary),
        extra={},
    )
    shards.write_json(out / "mlc-chat-config.json", chat_config.chat_config(decoder, request))


def compare(expected: Path, actual: Path) -> list[GoldenResult]:
    """Every file of ``expected`` against ``actual``: JSON by content and key order, shards by md5 and tensor by tensor."""
    name = expected.name
    results = [
        _result(f"{name}/files", sorted(p.name for p in expected.iterdir()), sorted(p.name for p in actual.iterdir()))
    ]
    for path in sorted(expected.glob("*.json")):
        theirs, ours = _read(path), _read(actual / path.name)
        if path.name == "mlc-chat-config.json" and isinstance(ours, dict):
            results.append(_result(f"{name}/{path.name}/keys", list(theirs), list(ours)))
            results += [_result(f"{name}/{path.name}/{key}", theirs[key], ours.get(key)) for key in theirs]
        results.append(_text_result(f"{name}/{path.name}", path, actual / path.name))
    theirs, ours = _tensors(expected), _tensors(actual)
    results.append(_result(f"{name}/tensor order", list(theirs), list(ours)))
    results += [_tensor_result(f"{name}/{tensor}", theirs[tensor], ours.get(tensor)) for tensor in theirs]
    ours_md5 = _digests(actual)
    results += [_result(f"{name}/{file}/md5", digest, ours_md5.get(file)) for file, digest in _digests(expected).items()]
    return results


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _digests(folder: Path) -> dict[str, str]:
    return {
        shard["dataPath"]: shard["md5sum"] for shard in (_read(folder / "tensor-cache.json") or {"records": []})["records"]
    }


def _tensors(folder: Path) -> dict[str, tuple[Mapping[str, Any], bytes]]:
    tensors = {}
    for shard in (_read(folder / "tensor-cache.json") or {"records": []})["records"]:
        data = (folder / shard["dataPath"]).read_bytes()
        for record in shard["records"]:
            tensors[record["name"]] = (record, data[record["byteOffset"] : record["byteOffset"] + record["nbytes"]])
    return tensors


def _result(name: str, expected: Any, actual: Any) -> GoldenResult:
    if json.dumps(expected) == json.dumps(actual):
        return GoldenResult(name, "pass", "equal")
    return GoldenResult(name, "fail", f"expected {_short(expected)}, found {_short(actual)}")


def _text_result(name: str, expected: Path, actual: Path) -> GoldenResult:
    same = actual.is_file() and expected.read_bytes() == actual.read_bytes()
    return GoldenResult(name, "pass" if same else "fail", "equal bytes" if same else "the text differs")


def _tensor_result(
    name: str, expected: tuple[Mapping[str, Any], bytes], actual: tuple[Mapping[str, Any], bytes] | None
) -> GoldenResult:
    if actual is None:
        return GoldenResult(name, "fail", "missing")

    def fields(record: Mapping[str, Any]) -> list[Any]:
        return [record[key] for key in ("shape", "dtype", "format")]

    if fields(expected[0]) != fields(actual[0]):
        return GoldenResult(name, "fail", f"expected {fields(expected[0])}, found {fields(actual[0])}")
    theirs, ours = (np.frombuffer(data, np.uint8) for data in (expected[1], actual[1]))
    if theirs.size != ours.size:
        return GoldenResult(name, "fail", f"expected {theirs.size} bytes, found {ours.size}")
    wrong = int((theirs != ours).sum())
    return GoldenResult(
        name, "fail" if wrong else "pass", f"{wrong} of {theirs.size} bytes differ" if wrong else "equal bytes"
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."
