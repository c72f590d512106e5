"""What PyTorch holding the same dequantised weights says to a case's inputs."""

from __future__ import annotations

import numpy as np

from parity_tests.laboratory.mlc_ladder.case import Case
from parity_tests.laboratory.mlc_ladder.run_case import picked
from parity_tests.reference.reference import TorchBackend
from runtime_py.contracts import CONNECTOR, EMBED, VISION


def reference_outputs(case: Case, host: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The float arrays of run_case from the reference, fed the candidate's own greedy tokens."""
    backend = TorchBackend(case.parts.spec, case.reference)
    with np.load(case.folder / "inputs.npz") as stored:
        inputs = dict(stored)
    result: dict[str, np.ndarray] = {}
    features = []
    for piece in range(int(inputs["pieces"])):
        vision = backend.run(VISION, picked(inputs, f"{VISION}.{piece}."))["vision_features"]
        result[f"vision_{piece}"] = vision
        sides = picked(inputs, f"{CONNECTOR}.{piece}.")
        features.append(backend.run(CONNECTOR, {"vision_features": vision, **sides})["image_features"])
    result["connector"] = np.concatenate(features)
    if "image_embed_slice" in host:
        result["image_embed_slice"] = result["connector"][0]
    result["image_embed"] = _square(backend, case, inputs["square"])
    embeds = backend.run(EMBED, {"input_ids": inputs["input_ids"]})["inputs_embeds"].copy()
    embeds[0, inputs["image_rows"]] = result["connector"].reshape(-1, embeds.shape[-1])
    result["inputs_embeds"] = embeds
    tokens = embeds.shape[1]
    state = backend.start(tokens + len(host["greedy_ids"]))
    positions = np.arange(tokens, dtype=np.int64)[None]
    logits = backend.forward(state, {"inputs_embeds": embeds, "position_ids": positions}, np.arange(tokens))
    result["prefill_logits"] = logits
    steps, chosen = [], [int(logits[0, -1].argmax())]
    for token in host["greedy_ids"]:
        step = backend.run(EMBED, {"input_ids": np.array([[token]])})["inputs_embeds"]
        position = np.array([[state.length]], dtype=np.int64)
        steps.append(backend.forward(state, {"inputs_embeds": step, "position_ids": position}, np.array([-1]))[:, 0])
        chosen.append(int(steps[-1].argmax()))
    result["greedy_ids"] = np.array(chosen[:-1])
    result["step_logits"] = np.stack(steps, axis=1)
    return result | edited_logits(logits[0, -2:])


def _square(backend: TorchBackend, case: Case, sent: np.ndarray) -> np.ndarray:
    side = case.parts.spec.image.overview
    picture = sent[:side, :side]
    pixels = ((picture.astype(np.float32) / 255.0 - 0.5) / 0.5).transpose(2, 0, 1)[None]
    sides = case.parts.overview.sides
    wanted = {stage: [t.name for t in backend.contracts[stage].inputs[1:]] for stage in (VISION, CONNECTOR)}
    vision = {name: sides[name].astype(np.float32) for name in wanted[VISION]}
    features = backend.run(VISION, {"pixel_values": np.ascontiguousarray(pixels), **vision})["vision_features"]
    connector = {name: sides[name].astype(np.float32) for name in wanted[CONNECTOR]}
    return backend.run(CONNECTOR, {"vision_features": features, **connector})["image_features"][0]


def edited_logits(rows: np.ndarray) -> dict[str, np.ndarray]:
    """The sampling kernels' results on two rows of logits, from their definitions in NumPy float64."""
    wide = rows.astype(np.float64)
    hot = np.exp((wide[0] - wide[0].max()) / np.float64(np.float32(0.7)))
    cold = (wide[1] == wide[1].max()).astype(np.float64)
    softmax = np.stack([hot / hot.sum(), cold / cold.sum()])[:, None].astype(np.float32)
    for row, token, bias in ((0, 3, 1.0), (1, 4, -2.0), (1, 5, 3.0)):
        wide[row, token] += bias
    for row, token, count, (presence, frequency, repetition) in (
        (0, 7, 2, (0.5, 0.25, 1.2)),
        (1, 8, 3, (0.1, 0.2, 0.8)),
    ):
        value = wide[row, token] - (presence + count * frequency)
        wide[row, token] = value * repetition if value < 0 else value / repetition
    wide[:, np.arange(wide.shape[1]) % 32 == 0] = -1e3  # the mask -2 forbids every 32nd token
    return {"softmax": softmax, "edited_logits": wide.astype(np.float32)}
