"""Codes on disk: one safetensors file per block of a stage, and a manifest that says where they come from.

    scales/
      manifest.json
      <backend>/<block>.safetensors       e.g. onnx/decoder.layers.0.safetensors; under tuned/ where scales were tuned
      <backend>/cache_scales.safetensors  of a cache in bytes, where one was asked for (export.quantisation.cache_scales)

Keys of a file: ``<layer>.codes`` (packed as export.quantisation.pack does), ``<layer>.scales``,
``<layer>.zero_points`` where the
grid has them, and the overlay's ``<parameter>:rows`` and ``<parameter>:columns``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.package.aside import written_aside
from export.quantisation.cache_scales import CacheScales, read_scales
from export.quantisation.codes import Codes, RoundToNearest, WeightProvider
from export.quantisation.grids import GRIDS, Grid
from export.quantisation.overlay import OverlaidWeights, Overlay
from export.quantisation.pack import pack_unsigned, unpack_unsigned
from export.quantisation.spec import Assignment
from export.source.links import leads_inside
from export.source.problems import listed
from runtime_py.errors import PackageError, UsageError
from runtime_py.files.json_file import read_json
from runtime_py.files.schema import Schema
from runtime_py.package import MANIFEST, MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    from torch import Tensor

DIGEST = "manifest_sha256"
"""Key of a package's calibration block."""

ROWS = Schema(
    {
        "type": "object",
        "required": ["files"],
        "properties": {
            "files": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["path", "bytes", "sha256"],
                    "properties": {"path": {"type": "string"}, "bytes": {"type": "integer"}, "sha256": {"type": "string"}},
                },
            }
        },
    }
)
SCHEMA = 1
CACHE = "cache"
"""In a backend's block of the manifest: the file with the scales of a cache in bytes, and how they were chosen."""

SAMPLE_ROWS, LEAST_SIMILARITY = 8, 0.9
"""Rows of every layer that are read back to see that codes and checkpoint belong together; unrelated ones give about 0."""


def write_block(path: Path, layers: Mapping[str, tuple[Codes, Grid]], overlay: Overlay) -> None:
    """Write a block's file through a temporary name; equal codes give equal bytes."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = dict(overlay.tensors())
    for name, (codes, grid) in layers.items():
        tensors[f"{name}.codes"] = pack_unsigned(codes.codes, grid.bits)
        tensors[f"{name}.scales"] = codes.scales
        if codes.zero_points is not None:
            tensors[f"{name}.zero_points"] = codes.zero_points
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, aside)


def read_overlay(path: Path) -> Overlay:
    """The overlay's part of a block's file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return Overlay.from_tensors({key: file.get_tensor(key) for key in sorted(file.keys()) if ":" in key})


def read_codes(path: Path, layer: str, grid: Grid, start: int, stop: int) -> Codes:
    """Rows ``start`` to ``stop`` of a layer in a block's file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        scales = file.get_slice(f"{layer}.scales")[start:stop]
        packed = file.get_slice(f"{layer}.codes")[start:stop]
        zeros = file.get_slice(f"{layer}.zero_points")[start:stop] if grid.zero_points else None
    # a last group is stored padded out; a row that is one group is as long as its bytes say
    width = grid.group * scales.shape[1] if grid.group else packed.shape[1] * 8 // grid.bits
    return Codes(unpack_unsigned(packed, grid.bits, width), scales, zeros)


@dataclass(frozen=True)
class StoredLayer:
    """Where a layer's codes lie, and its shape when they were made."""

    file: Path
    grid: str
    rows: int
    columns: int


class StoredCodes:
    """A CodeSource over a calibration for one backend; layers without stored codes are rounded to nearest.

    Args:
        folder: what ``python -m calibrate`` wrote.
        backend: which backend's layers.
        weights: the checkpoint's; `weights` of this object are those with the calibration's overlay.
        assignments: what the export makes of every layer.

    Raises:
        UsageError: the folder is no calibration, holds none for this backend, or was made for other shapes or grids; every
            layer that differs is named. Codes of a grid with the same codes serve (`Grid.alike`: q4f16_1's for q4f32_1).
        PackageError: a file differs from its manifest.
    """

    def __init__(self, folder: Path, backend: str, weights: WeightProvider, assignments: Mapping[str, Assignment]) -> None:
        self.folder, self.backend, self.manifest = folder, backend, read_manifest(folder)
        if backend not in self.manifest["backends"]:
            made = ", ".join(self.manifest["backends"])
            raise UsageError(
                f"{folder} holds no codes for {backend}", f"a calibration for {backend}; this one is for {made}",
                "run python -m calibrate with the target of the export",
            )  # fmt: skip
        check_files(folder, self.manifest)
        block = self.manifest["backends"][backend]
        self.layers = {
            name: StoredLayer(folder / row["file"], row["grid"], row["rows"], row["columns"])
            for name, row in block["layers"].items()
        }
        check_shapes(self.layers, assignments)
        overlay = Overlay()
        for file in sorted({layer.file for layer in self.layers.values()}):
            overlay.update(read_overlay(file))
        self.weights: WeightProvider = OverlaidWeights(weights, overlay) if overlay else weights
        self.cache_scales = stored_cache_scales(folder, self.manifest, backend)
        self._rounding = RoundToNearest(self.weights, assignments, GRIDS)
        self._grids = {name: assignments[name].grid for name in self.layers}
        self._shares = {name: assignment.shares for name, assignment in assignments.items() if assignment.shares}
        self._check_weights()

    def rows(self, layer: str, start: int, stop: int) -> Codes:
        """Rows ``start`` to ``stop`` of a layer's codes: the calibration's, or rounded now where it has none."""
        name = self._shares.get(layer, layer)
        stored = self.layers.get(name)
        if stored is None:
            return self._rounding.rows(layer, start, stop)
        codes = read_codes(stored.file, name, GRIDS[stored.grid], start, stop)
        grid = self._grids[name]
        return codes if grid == stored.grid else GRIDS[grid].adopted(codes)

    def summary(self) -> dict[str, Any]:
        """What a package's manifest says of the calibration; ``choice`` and ``search`` where bits were searched for,
        ``scale_tuning`` where scales were tuned end to end, ``held_out`` where the codes were checked against plain rounding
        and some blocks may have gone back to it, ``cache`` where it has scales of a cache in bytes.
        """
        kept = {key: self.manifest[key] for key in ("method", "sequential", "samples")}
        searched = {key: self.manifest[key] for key in ("choice", "search") if self.manifest.get(key)}
        block = self.manifest["backends"][self.backend]
        tuned = {key: block[key] for key in ("scale_tuning", "held_out", CACHE) if key in block}
        return {**kept, **searched, **tuned, DIGEST: digest_of(self.folder)}

    def _check_weights(self) -> None:
        """Read a few rows of every layer back: codes of another checkpoint of the same shapes do not come close."""
        import torch

        for name, stored in self.layers.items():
            rows = min(SAMPLE_ROWS, stored.rows)
            wanted = self.weights.rows(f"{name}.weight", 0, rows).float()
            dequantised = GRIDS[self._grids[name]].dequantise(self.rows(name, 0, rows))[:, : stored.columns]
            similarity = float(torch.nn.functional.cosine_similarity(wanted.flatten(), dequantised.flatten(), dim=0))
            if similarity < LEAST_SIMILARITY and bool(wanted.any()):
                raise UsageError(
                    f"the stored codes are not of this checkpoint: {name} reads back with cosine {similarity:.3f}",
                    f"at least {LEAST_SIMILARITY} on its first {rows} rows",
                    "calibrate with the weights that are exported",
                )


def stored_cache_scales(folder: Path, manifest: Mapping[str, Any], backend: str) -> CacheScales | None:
    """Scales of a cache in bytes, of a calibration whose files were checked; None where it has none."""
    block = manifest["backends"].get(backend, {})
    return read_scales(folder / block[CACHE]["file"]) if CACHE in block else None


def digest_of(folder: Path) -> str:
    """SHA-256 of a calibration's manifest, by which a package says whose codes it holds (`DIGEST`)."""
    from export.package.journal import sha256_of

    return sha256_of(folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a calibration.

    Raises:
        UsageError: there is none, or it is of another kind or schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(
            f"{folder} is no finished calibration: it has no {MANIFEST}", "a folder from python -m calibrate",
            "run the calibration to its end, with --resume if it was cut off",
        )  # fmt: skip
    manifest = read_json(path, MAX_MANIFEST_BYTES, UsageError, "name another folder")
    if not isinstance(manifest, dict) or manifest.get("kind") != "calibration" or manifest.get("schema") != SCHEMA:
        raise UsageError(f"{path} is no calibration of schema {SCHEMA}", 'kind "calibration"', "name another folder")
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise PackageError unless every file is there with its recorded size and sha256."""
    from export.package.journal import sha256_of

    wrong = ROWS.problems(manifest)
    if wrong:
        raise PackageError(f"{folder / MANIFEST}: {wrong[0]}", "files with their hashes", "run the calibration again")
    for row in manifest["files"]:
        path = folder / row["path"]
        if (
            not leads_inside(path, folder)
            or not path.is_file()
            or path.stat().st_size != row["bytes"]
            or sha256_of(path) != row["sha256"]
        ):
            raise PackageError(
                f"{path} differs from the manifest", "the file as it was written", "run the calibration again"
            )


def check_shapes(layers: Mapping[str, StoredLayer], assignments: Mapping[str, Assignment]) -> None:
    """Raise UsageError naming every stored layer that the export has not, or wants in another shape or on another grid."""
    problems = []
    for name, stored in layers.items():
        wanted = assignments.get(name)
        if wanted is None:
            problems.append(f"{name} is no layer of this model")
        elif (wanted.layer.rows, wanted.layer.columns) != (stored.rows, stored.columns):
            shapes = f"[{stored.rows}, {stored.columns}] stored, [{wanted.layer.rows}, {wanted.layer.columns}] in the model"
            problems.append(f"{name}: {shapes}")
        elif wanted.grid != stored.grid and not (wanted.grid and stored.grid in GRIDS[wanted.grid].alike):
            problems.append(f"{name}: stored for {stored.grid}, the export wants {wanted.grid or wanted.storage}")
    if problems:
        raise UsageError(
            f"the stored codes do not fit the export: {len(problems)} layer(s)" + listed(problems),
            "codes made for this model, target, precision and block size",
            "calibrate with the flags of the export",
        )
