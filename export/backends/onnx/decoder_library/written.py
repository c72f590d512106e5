"""The decoder libraries of a package: their files, and which models have none."""

from __future__ import annotations

from export.backends.onnx.choices import OnnxChoices
from export.backends.onnx.compiled_files import CompiledFiles, require_compiler
from export.specs import ModelSpec, RoutedLora
from runtime_py.backends.processor import VARIANTS
from runtime_py.errors import UsageError

FLAG = "--decoder-library"
EIGHT_BITS = 4
"""The accuracy level of layers that round their inputs as the kernels do."""

FILES = CompiledFiles("decoder_library", tuple(VARIANTS), "export.backends.onnx.decoder_library.library:compile_decoder")


SLOW_ADAPTERS = (
    f"answers are slow without {FLAG}: every token goes through adapters of eight bits, which ONNX Runtime unpacks anew "
    "in every call (2 layers of the published width: 588 ms a token, 11 with it)"
)


def slow_without(spec: ModelSpec, chosen: OnnxChoices) -> tuple[str, ...]:
    """What a plan says of an ``int4`` package for the processor alone that has no library and suffers from it."""
    return (SLOW_ADAPTERS,) if isinstance(spec.decoder.adapter, RoutedLora) and not chosen.decoder_library else ()


def refuse(spec: ModelSpec, chosen: OnnxChoices) -> None:
    """Raise before any work where no library can be made.

    Raises:
        UsageError: its layers have zero points, or do not round their inputs.
        MachineError: TVM is not installed.
    """
    if not chosen.symmetric or chosen.accuracy_level != EIGHT_BITS:
        raise UsageError(
            f"{FLAG} with zero points of their own for blocks, or inputs that are not rounded",
            "symmetric blocks and the default accuracy",
            "leave --asymmetric and --preset mixed out, or this flag",
        )
    require_compiler(FLAG)
