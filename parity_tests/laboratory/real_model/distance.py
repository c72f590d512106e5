"""How far other weights are from full precision at every token of a text, with the full-precision logits kept on the disk.

One run of the decoder each, a window of tokens at a time: what differs between two methods is their weights alone, read back
into the same float32 model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrate.samples.data import Prompt
from calibrate.samples.prompts import processor_of
from calibrate.samples.text import text_prompts
from calibrate.statistics.capture import answer_calls
from export.quantisation.codes import WeightProvider
from runtime_py.contracts import DECODER

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from export.checkpoint.opened import OpenedCheckpoint


class Distances:
    """Of weights from a checkpoint's own, at ``tokens`` tokens of a text.

    Args:
        kept: file of the full-precision logits, float32 (positions, vocabulary); made where it is not there.
    """

    def __init__(self, checkpoint: OpenedCheckpoint, text: Path, tokens: int, kept: Path) -> None:
        assert checkpoint.weights is not None
        self.checkpoint = checkpoint
        self.weights: WeightProvider = checkpoint.weights
        self.processor, tokenizer = processor_of(checkpoint)
        self.prompts = text_prompts([text], tokens, self.processor, tokenizer)
        if not kept.is_file():
            self._keep(kept, checkpoint.weights)
        self.expected = np.load(kept, mmap_mode="r")

    def of(self, weights: WeightProvider) -> dict[str, float]:
        """Perplexity; KL in nats: mean, median, 99th percentile; the share of positions with the same first token."""
        import torch

        nats, same, told, at = [], [], [], 0
        for prompt, logits in self._logits(weights):
            wanted = torch.from_numpy(np.array(self.expected[at : at + len(logits)]))
            at += len(logits)
            full, other = wanted.log_softmax(-1), logits.log_softmax(-1)
            nats.append((full.exp() * (full - other)).sum(-1, dtype=torch.float64))
            same.append(full.argmax(-1) == other.argmax(-1))
            following = torch.from_numpy(prompt.layout.input_ids[0][1:])
            told.append(-other[:-1].gather(1, following[:, None])[:, 0].double())
        kl = torch.cat(nats)
        return {
            "perplexity": math.exp(float(torch.cat(told).mean())),
            "kl": float(kl.mean()),
            "median_kl": float(kl.median()),
            "p99_kl": float(kl.quantile(0.99, interpolation="higher")),
            "same": float(torch.cat(same).double().mean()),
        }

    def _keep(self, path: Path, weights: WeightProvider) -> None:
        positions = sum(prompt.layout.input_ids.shape[1] for prompt in self.prompts)
        shape = (positions, self.checkpoint.spec.decoder.vocabulary)
        unfinished, at = path.with_suffix(".unfinished"), 0
        kept: Any = np.lib.format.open_memmap(unfinished, "w+", np.float32, shape)
        for _, logits in self._logits(weights):
            kept[at : at + len(logits)] = logits.numpy()
            at += len(logits)
        kept.flush()
        unfinished.replace(path)

    def watch(self, layers: str, see: Callable[[str, Tensor], None]) -> None:
        """Show the input (1, tokens, columns) of every layer of the decoder whose name matches, window by window."""
        module = self._decoder()
        for name, layer in module.named_modules():
            if re.fullmatch(layers, name):
                layer.register_forward_pre_hook(lambda _, given, name=name: see(name, given[0].detach()))
        for _ in self._logits(self.weights, module):
            pass

    def _decoder(self) -> Module:
        import torch

        from export.modules.build import build_stage
        from export.modules.kernels import Kernels

        with torch.device("meta"):
            return build_stage(self.checkpoint.spec, DECODER, Kernels()).eval()

    def _logits(self, weights: WeightProvider, module: Module | None = None) -> Iterator[tuple[Prompt, Tensor]]:
        """Every window with its logits (tokens, vocabulary)."""
        import torch

        spec, module = self.checkpoint.spec, module or self._decoder()
        names = [name for name, _ in module.named_parameters()]
        parameters = {name: weights.tensor(f"{DECODER}.{name}").float() for name in names}
        calls = answer_calls(spec, weights, self.prompts, self.processor)
        for prompt, call in zip(self.prompts, calls, strict=True):
            with torch.no_grad():
                yield prompt, torch.func.functional_call(module, parameters, (), call)[0][0]
