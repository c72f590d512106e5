"""Run one case over a library: on this machine, on PoCL, or as the system library inside qemu.

Imports NumPy and runtime_py alone, because it also runs in an arm64 sysroot that has nothing else:

    python -m parity_tests.laboratory.mlc_ladder.run_case FOLDER host|opencl|aarch64
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.mlc import MlcBackend
from runtime_py.backends.records import HOST_KERNELS, MLC
from runtime_py.contracts import CONNECTOR, EMBED, VISION
from runtime_py.package.files import rows_of

STEPS = 6
LOGIT_KERNELS = ("softmax_with_temperature", "apply_logit_bias_inplace", "apply_penalty_inplace", "apply_bitmask_inplace")


class SystemLibraryBackend(MlcBackend):
    """Loads the library as the phone does: linked into the process, found by its symbol prefix."""

    prefix = ""

    def _load(self, library: Path, kernels: Path | None) -> Any:
        import tvm_ffi

        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        machine = tvm_ffi.system_lib(self.prefix)["vm_load_executable"]()
        machine["vm_initialization"](1, 0, 2, 1, 0, 2)
        return machine


def run(backend: MlcBackend, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every function the phone calls, once: pictures, prompt, prefill in two chunks, decode steps, logit kernels."""
    outputs: dict[str, np.ndarray] = {}
    features = []
    for piece in range(int(inputs["pieces"])):
        vision = picked(inputs, f"{VISION}.{piece}.")
        outputs[f"vision_{piece}"] = backend.run(VISION, vision)["vision_features"]
        sides = picked(inputs, f"{CONNECTOR}.{piece}.")
        features.append(backend.run(CONNECTOR, {"vision_features": outputs[f"vision_{piece}"], **sides})["image_features"])
    outputs["connector"] = np.concatenate(features)
    outputs["image_embed"] = backend.image_embed(inputs["square"])
    if picked(inputs, f"{CONNECTOR}.0."):
        outputs["image_embed_slice"] = whole_slice(backend, inputs)
    ids, rows = inputs["input_ids"], inputs["image_rows"]
    embeds = backend.run(EMBED, {"input_ids": ids})["inputs_embeds"].copy()
    embeds[0, rows] = outputs["connector"].reshape(-1, embeds.shape[-1])
    outputs["inputs_embeds"] = embeds
    tokens = embeds.shape[1]
    state = backend.start(tokens + STEPS + 1)
    first = tokens // 2
    parts = [
        backend.forward(state, {"inputs_embeds": part}, np.arange(part.shape[1]))
        for part in (embeds[:, :first], embeds[:, first:])
    ]
    outputs["prefill_logits"] = np.concatenate(parts, axis=1)
    row, chosen, steps = outputs["prefill_logits"][:, -1], [], []
    for _ in range(STEPS):
        chosen.append(int(row.argmax()))
        step = backend.run(EMBED, {"input_ids": np.array([[chosen[-1]]])})["inputs_embeds"]
        row = backend.forward(state, {"inputs_embeds": step}, np.array([-1]))[:, 0]
        steps.append(row)
    outputs["greedy_ids"] = np.array(chosen)
    outputs["step_logits"] = np.stack(steps, axis=1)
    return outputs | logit_kernels(backend, outputs["prefill_logits"][0, -2:])


def whole_slice(backend: MlcBackend, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first piece through the function that takes raw pixels of any grid."""
    vision = picked(inputs, f"{VISION}.0.")
    pixels = np.round((vision.pop("pixel_values")[0].transpose(1, 2, 0) * 0.5 + 0.5) * 255.0).astype(np.uint8)
    return backend.image_embed_slice(pixels, vision, picked(inputs, f"{CONNECTOR}.0."))


def logit_kernels(backend: MlcBackend, logits: np.ndarray) -> dict[str, np.ndarray]:
    """The kernels around sampling, on two rows of logits: the second has temperature 0.

    Probabilities are asked for row by row, since the library's buffers are planned for its own batch.
    """
    tensor = backend._tvm.runtime.tensor
    machine = {name: backend._machine.get_function(name, query_imports=True) for name in LOGIT_KERNELS}
    rows = np.ascontiguousarray(logits, np.float32)
    hot = [
        machine["softmax_with_temperature"](tensor(row[None, None]), tensor(np.array([temperature], np.float32))).numpy()
        for row, temperature in zip(rows, (0.7, 0.0), strict=True)
    ]

    def integers(*values: int) -> Any:
        return tensor(np.array(values, np.int32))

    edited = tensor(rows)
    machine["apply_logit_bias_inplace"](
        edited, integers(0, 1, 1), integers(3, 4, 5), tensor(np.array([1, -2, 3], np.float32))
    )
    penalties = tensor(np.array([[0.5, 0.25, 1.2], [0.1, 0.2, 0.8]], np.float32))
    machine["apply_penalty_inplace"](edited, integers(0, 1), integers(0, 1), integers(7, 8), integers(2, 3), penalties)
    mask = np.full((2, -(-rows.shape[1] // 32)), -2, np.int32)
    machine["apply_bitmask_inplace"](edited, integers(0, 1), tensor(mask))
    return {"softmax": np.concatenate(hot), "edited_logits": np.maximum(edited.numpy(), -1e3)}


def picked(inputs: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in inputs.items() if name.startswith(prefix)}


def main(folder: Path, mode: str) -> None:
    """Read manifest.json and inputs.npz of a case folder, write outputs-<mode>.npz."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = rows_of(folder)
    block = manifest["backends"][MLC.name]
    block["host_library"] = block["libraries"][mode]
    if mode != "host":
        block.pop(HOST_KERNELS, None)
    kind = MlcBackend
    if mode == "opencl":
        from parity_tests.laboratory.mlc_ladder.pocl import install_kernels

        install_kernels()
    if mode == "aarch64":
        kind = SystemLibraryBackend
        kind.prefix = block["model_lib"] + "_"
    with np.load(folder / "inputs.npz") as stored:
        outputs = run(kind(folder, manifest), dict(stored))
    np.savez(folder / f"outputs-{mode}.npz", allow_pickle=False, **outputs)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
