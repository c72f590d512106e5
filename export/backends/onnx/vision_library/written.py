"""The vision libraries of a package: their files, and which towers have none."""

from __future__ import annotations

from export.backends.onnx.choices import OnnxChoices
from export.backends.onnx.compiled_files import CompiledFiles, require_compiler
from export.modules.vision.base import TowerSpec
from export.modules.vision.specs import RotaryVisionSpec, VisionSpec
from export.specs import ModelSpec
from runtime_py.backends.vision_library import VISION_VARIANTS
from runtime_py.errors import MachineError, UnsupportedModelError, UsageError

FLAG = "--vision-library"
ROUNDED = "int8"
"""The precision of towers whose layers round their inputs, which the kernels multiply."""

LEAST_WIDTH, FOURS = 16, 4
"""Of a tower's rows, and what the widths of its layers are multiples of."""

FOLDER = "export.backends.onnx.vision_library"
FILES = CompiledFiles("vision_library", VISION_VARIANTS, f"{FOLDER}.library:compile_vision")
TOWERS: dict[type[TowerSpec], str] = {
    VisionSpec: f"{FOLDER}.tower:Tower",
    RotaryVisionSpec: f"{FOLDER}.rotary_tower:RotaryTower",
}
"""What writes the towers for which there are kernels."""


def refuse(spec: ModelSpec, chosen: OnnxChoices) -> None:
    """Raise before any work where no library can be made.

    Raises:
        UnsupportedModelError: the tower has positions or sizes for which there are no kernels.
        UsageError: its layers do not round their inputs.
        MachineError: TVM is not installed, or this machine is of another kind.
    """
    if chosen.vision_precision != ROUNDED:
        raise UsageError(
            f"{FLAG} with --vision-precision {chosen.vision_precision}",
            f"--vision-precision {ROUNDED}, the default of int4 packages for a processor",
            "leave one of them out",
        )
    reason = unsupported(spec)
    if reason:
        raise UnsupportedModelError(f"no vision library of {spec.family}: {reason}", "another tower", f"leave {FLAG} out")
    if not FILES.variants():
        raise MachineError(
            f"no vision library on this machine: {', '.join(VISION_VARIANTS)} alone has kernels of towers",
            "a machine of that kind",
            f"leave {FLAG} out, or export there",
        )
    require_compiler(FLAG)


def unsupported(spec: ModelSpec) -> str:
    """Why there are no kernels for a model's tower; empty where there are."""
    from export.processor.rounded_heads import WIDEST

    vision = spec.vision
    if type(vision) not in TOWERS:
        return f"there are no kernels for its vision tower, {type(vision).__name__}"
    widths = [vision.width, vision.mlp_width]
    if isinstance(vision, RotaryVisionSpec):
        widths.append(vision.patch_values)
    if any(width % FOURS for width in widths) or vision.width < LEAST_WIDTH:
        return f"its layers are {' and '.join(map(str, widths))} wide, no multiples of {FOURS}"
    if vision.head_dim % 2 or vision.head_dim > WIDEST:
        return f"its heads are {vision.head_dim} wide, no even number up to {WIDEST}"
    return ""
