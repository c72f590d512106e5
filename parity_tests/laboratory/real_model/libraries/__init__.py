"""Programs that run in environments of their own, one a library: each quantises the same model from the same ids and writes
the weights read back, under the names that transformers gives them.

    python PROGRAM.py MODEL IDS.json OUT.safetensors [NAME=VALUE...]

They import nothing of the product. The last line of their output is JSON: processor seconds, and what else they know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Library:
    """One run of another library.

    Attributes:
        program: a file of this folder.
        beside, alone: distributions installed with and without what they require; torch is the product's.
        options: what the program is given.
        own_table: whether its file holds the embedding.
    """

    program: str
    beside: Sequence[str]
    alone: Sequence[str]
    options: Sequence[str] = ()
    own_table: bool = False

    @property
    def settings(self) -> list[list[str]]:
        """Everything that decides its outcome, as JSON has it."""
        return [list(self.options), list(self.beside), list(self.alone)]


COMPRESSOR = Library(
    "llm_compressor.py",
    ("datasets", "accelerate", "loguru", "frozendict", "pydantic", "httpx", "requests"),
    ("llmcompressor==0.14.0.1", "compressed-tensors==0.19.0", "transformers==5.17.0", "huggingface-hub<2"),
)
GPTQ_MODEL = Library(
    "gptqmodel_gptq.py",
    ("accelerate", "threadpoolctl", "requests", "setuptools", "wheel"),
    ("pypcre", "defuser", "device-smi", "logbar", "tokenicer", "random_word", "gptqmodel==7.6.0"),
)
AUTO_ROUND = Library("auto_round_tuned.py", ("datasets", "accelerate", "py-cpuinfo", "requests"), ("auto-round==0.16.1",))
LLAMA_CPP = Library("llama_cpp.py", ("gguf==0.19.0",), ("xllamacpp==2026.10.11549",), own_table=True)

LIBRARIES: Mapping[str, Library] = {
    "llm-compressor GPTQ": COMPRESSOR,
    "llm-compressor GPTQ, scales searched": replace(COMPRESSOR, options=("observer=memoryless_mse",)),
    "llm-compressor GPTQ, inputs of full precision": replace(COMPRESSOR, options=("inputs=full",)),
    "llm-compressor AWQ": replace(COMPRESSOR, options=("method=awq",)),
    "GPTQModel GPTQ": GPTQ_MODEL,
    "AutoRound, 20 turns": replace(AUTO_ROUND, options=("turns=20",)),
    "llama.cpp Q4_0": replace(LLAMA_CPP, options=("kind=q4_0",)),
    "llama.cpp Q4_0, imatrix": replace(LLAMA_CPP, options=("kind=q4_0", "imatrix=1")),
    "llama.cpp Q4_K_M": replace(LLAMA_CPP, options=("kind=q4_k_m",)),
}
