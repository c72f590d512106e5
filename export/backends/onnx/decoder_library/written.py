"""The decoder libraries of a package: their files, and which models have none."""

from __future__ import annotations

from export.backends.onnx.choices import OnnxChoices
from export.backends.onnx.compiled_files import CompiledFiles, require_compiler
from export.specs import ModelSpec
from runtime_py.backends.processor import VARIANTS
from runtime_py.errors import UnsupportedModelError, UsageError

FLAG = "--decoder-library"
EIGHT_BITS = 4
"""The accuracy level of layers that round their inputs as the kernels do."""

FILES = CompiledFiles("decoder_library", tuple(VARIANTS), "export.backends.onnx.decoder_library.library:compile_decoder")


def refuse(spec: ModelSpec, chosen: OnnxChoices) -> None:
    """Raise before any work where no library can be made.

    Raises:
        UsageError: its layers have zero points, or do not round their inputs.
        MachineError: TVM is not installed.
        UnsupportedModelError: its decoder takes inputs for which there are no kernels.
    """
    if not chosen.symmetric or chosen.accuracy_level != EIGHT_BITS:
        raise UsageError(
            f"{FLAG} with zero points of their own for blocks, or inputs that are not rounded",
            "symmetric blocks and the default accuracy",
            "leave --asymmetric and --preset mixed out, or this flag",
        )
    require_compiler(FLAG)
    from export.backends.onnx.decoder_library.token_routes import DELTAS, EXPERTS
    from export.backends.onnx.decoder_library.translation import REQUEST

    kind = spec.decoder.layer_kind
    names = [tensor.name for tensor in kind.inputs(spec.decoder)]
    if not any(known.issuperset(names) for known in (set(EXPERTS), set(DELTAS), {REQUEST})):
        raise UnsupportedModelError(
            f"no decoder library of {spec.family}: no kernels for its decoder's adapter, {type(kind).__name__}, which reads "
            + ", ".join(names),
            "adapters of kinds that families here share, or one without inputs of its own",
            f"leave {FLAG} out",
        )
