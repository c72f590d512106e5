"""What ONNX Runtime says where a graph fails while it runs, as one clear error; `ort_session` has those of loading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runtime_py.errors import MachineError, PackageError
from runtime_py.files.json_file import shortened

SHOWN = 240
"""Characters of what ONNX Runtime says; names of a graph's nodes, which strangers choose, can be of any length."""

MEMORY = ("allocate memory", "bad_alloc", "bad allocation", "out of memory", "out_of_memory", "failed to allocate")
DEVICE = ("cuda failure", "cuda error", "cudnn", "cublas", "device lost", "device is lost")
"""What messages say, in lower case, where memory or a device is to blame and not the graph."""


@contextmanager
def run_errors(stage: str) -> Iterator[None]:
    """Turn an exception of ONNX Runtime's into an error that names the stage; others pass.

    Raises:
        MachineError: memory or the device gave out.
        PackageError: the graph cannot compute what it was given.
    """
    try:
        yield
    except Exception as error:
        # a dozen classes that share no base; the same mistakes come as RuntimeError where an input is bound
        if not type(error).__module__.startswith("onnxruntime") and type(error) is not RuntimeError:
            raise
        plain = " ".join(str(error).split())
        said = f"ONNX Runtime said {shortened(plain, SHOWN)}"
        if any(words in plain.lower() for words in MEMORY):
            raise MachineError(
                f"the memory gave out while {stage} ran: {said}",
                "memory for the stage's values beside the weights",
                "ask about smaller pictures or with a shorter prompt, free memory, or export with a smaller --context",
            ) from error
        if any(words in plain.lower() for words in DEVICE):
            raise MachineError(
                f"the device failed while {stage} ran: {said}",
                "a device that computes, with a driver and libraries that fit",
                "try again; edgeproof devices says what is here, --provider CPUExecutionProvider does without it",
            ) from error
        raise PackageError(
            f"the graph of {stage} failed while it ran: {said}",
            "a graph written by the export, whole, which computes whatever its contract takes",
            "check the package's hashes (edgeproof verify) and export it again if they differ; if they do not, report this",
        ) from error
