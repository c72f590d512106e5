"""Our methods and other libraries' on the same model: the same samples, the same grid, the same tokens.

Every method gives weights read back to float32, which go into one float32 model (`distance`). Decoder layers have four bits
in groups of 32; the matrix that is embedding and head has ours in eight bits, once, whoever chose the rest, except in
llama.cpp's files, which bring their own.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from calibrate.run import plan
from export.checkpoint.opened import open_checkpoint
from export.plan.widths import Width, whole
from export.quantisation.codes import CodeSource, DequantisedWeights, RoundToNearest, WeightProvider
from export.quantisation.grids import GRIDS
from export.quantisation.stored import StoredCodes
from parity_tests.laboratory.real_model.distance import Distances
from parity_tests.laboratory.real_model.libraries import LIBRARIES, Library
from parity_tests.laboratory.real_model.shown import SAMPLES, calibration, conversations, ids, language_model
from parity_tests.laboratory.real_model.work import Work, environment, measured, passes, product, run
from runtime_py.errors import MachineError

if TYPE_CHECKING:
    from torch import Tensor

    from export.quantisation.spec import Assignment

OURS: Mapping[str, Mapping[str, Any]] = {
    "plain rounding": {},
    "gptq": {"method": "gptq"},
    "gptq, scales tuned, 8 steps": {"method": "gptq", "tune-scales": 8},
    "awq-gptq": {"method": "awq-gptq"},
    "gptq, zero points": {"method": "gptq", "asymmetric": True},
    "gptq, preset mixed": {"method": "gptq", "preset": "mixed"},
}
"""What ``python -m calibrate`` is given; no method for what an export does by itself."""

OF_A_RUN = ("method", "preset", "tune-scales")
"""Of these, what decides nothing about where codes lie and how wide they are."""

BUILDING = ("setuptools", "wheel")
"""What some of the libraries are built with where they are installed."""

TABLE, HEAD = "embed_tokens.table", "decoder.head"


class Comparison:
    """Measurements of one work folder, each kept."""

    def __init__(self, work: Work) -> None:
        self.work = work

    @cached_property
    def distances(self) -> Distances:
        """Of the model at the held-out tokens."""
        opened = open_checkpoint(calibration(self.work).export())
        return Distances(opened, self.work.text, self.work.tokens, self.work.folder / f"logits-{self.work.tokens}.npy")

    def rows(self, wanted: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
        """The figures of every method whose name is wanted; of a library that cannot be run here, its error's last line."""
        made: dict[str, dict[str, Any]] = {}
        for name, flags in OURS.items():
            if wanted(name):
                made[name] = self._kept(name, deciding(flags), partial(self.ours, name, flags))
        for name, library in LIBRARIES.items():
            if wanted(name):
                try:
                    made[name] = self._kept(name, library.settings, partial(self.theirs, name, library))
                except MachineError as error:  # not kept: another run tries again
                    made[name] = {"error": error.what.strip().splitlines()[-1][:200]}
        return made

    def _kept(self, name: str, settings: Any, measure: Callable[[], Any]) -> dict[str, Any]:
        kept: dict[str, Any] = self.work.kept(f"compared {name}", [settings, SAMPLES, self.work.tokens], measure)
        return kept

    def ours(self, name: str, flags: Mapping[str, Any]) -> dict[str, Any]:
        """One of our methods."""
        spent = 0.0
        if "method" in flags:
            made = partial(self._calibrated, name, flags)
            spent = self.work.kept(f"codes compared {name}", [deciding(flags), SAMPLES], made)["processor_seconds"]
        read, width = self._ours_read(name, flags)
        return {**self.distances.of(read), "bits": width.bits, "bytes": width.size, "processor_seconds": spent}

    def of(self, name: str) -> WeightProvider:
        """The weights of a method or library that has been run, read back to float32."""
        if name in OURS:
            return self._ours_read(name, OURS[name])[0]
        return self._theirs_read(name, LIBRARIES[name])[0]

    def _ours_read(self, name: str, flags: Mapping[str, Any]) -> tuple[WeightProvider, Width]:
        chosen = {key: value for key, value in flags.items() if key not in OF_A_RUN}
        options = {"preset": flags["preset"]} if "preset" in flags else {}
        asked = replace(calibration(self.work), options=options, **chosen)
        ((backend, assignments),) = plan(asked, self.distances.checkpoint).assignments.items()
        weights = self.distances.weights
        codes = cast(CodeSource, RoundToNearest(weights, assignments, GRIDS))
        if "method" in flags:
            stored = StoredCodes(self._codes(name), backend, weights, assignments)
            codes, weights = stored, stored.weights
        return DequantisedWeights(weights, codes, assignments, GRIDS), whole(_language(assignments))

    def _codes(self, name: str) -> Path:
        return self.work.package(f"codes compared {name}")

    def _calibrated(self, name: str, flags: Mapping[str, Any]) -> dict[str, Any]:
        """What a calibration took; whatever the number of tokens, it is run once."""
        given = [f"--{key}" if value is True else f"--{key}={value}" for key, value in flags.items()]
        samples = ["--calibration-data", str(conversations(self.work)), "--samples", str(SAMPLES), "--held-out", "0"]
        command = product("calibrate", "--model", "qwen2-vl", "--weights", self.work.checkpoint, "--target", "cpu")
        spent = measured([*command, *given, *samples, "-o", str(self._codes(name)), "--force"])
        if spent["code"]:
            raise MachineError(
                f"the calibration of {name} ended with {spent['code']}", "0", f"run it alone: {' '.join([*given, *samples])}"
            )
        return spent

    def theirs(self, name: str, library: Library) -> dict[str, Any]:
        """One run of another library."""
        said = self.work.kept(f"library {name}", [library.settings, SAMPLES], partial(self._quantised, name, library))
        weights, width = self._theirs_read(name, library)
        sizes = {"bits": said.get("bits", width.bits), "bytes": said.get("bytes", width.size)}
        return {**self.distances.of(weights), **sizes, "processor_seconds": said["processor_seconds"]}

    def _theirs_read(self, name: str, library: Library) -> tuple[WeightProvider, Width]:
        ((_, plain),) = plan(calibration(self.work), self.distances.checkpoint).assignments.items()
        tables = {} if library.own_table else {layer: plain[layer] for layer in (TABLE, HEAD)}
        read = Replaced(self.distances.weights, canonical(self._weights(name), library.own_table))
        return DequantisedWeights(read, RoundToNearest(read, tables, GRIDS), tables, GRIDS), whole(_language(plain))

    def _weights(self, name: str) -> Path:
        return self.work.folder / "libraries" / f"{name}.safetensors".replace(" ", "-").replace(",", "")

    def _quantised(self, name: str, library: Library) -> Any:
        """What a library's program says, its weights written; whatever the number of tokens, it is run once."""
        out = self._weights(name)
        out.parent.mkdir(parents=True, exist_ok=True)
        program = Path(__file__).with_name("libraries") / library.program
        given = [str(installed(self.work, library)), str(program), str(language_model(self.work)), str(ids(self.work))]
        variables = {"CUDA_VISIBLE_DEVICES": ""}
        return json.loads(run([*given, str(out), *library.options], variables=variables).splitlines()[-1])


def deciding(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the outcome of one of our methods: its flags and, where samples pass, in what."""
    return {**flags, "passes": passes()} if "method" in flags else dict(flags)


def installed(work: Work, library: Library) -> Path:
    """The interpreter of a library's environment, which sees the product's own packages behind its own.

    Raises:
        MachineError: something cannot be installed here.
    """
    python = environment(work, Path(library.program).stem, BUILDING)
    (site,) = python.parent.parent.glob("lib/python*/site-packages")
    done = site / "installed.json"
    wanted = [*library.beside, *library.alone]
    if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != wanted:
        (site / "product.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        pip = [str(python), "-m", "pip", "install", "-q"]
        run([*pip, *library.beside])
        run([*pip, "--no-deps", "--no-build-isolation", *library.alone], variables={"BUILD_CUDA_EXT": "0"})
        done.write_text(json.dumps(wanted), encoding="utf-8")
    return python


class Replaced:
    """A WeightProvider with some parameters from elsewhere."""

    def __init__(self, weights: WeightProvider, changed: Mapping[str, Tensor]) -> None:
        self.weights, self.changed = weights, changed

    def shape(self, target: str) -> tuple[int, ...]:
        return self.weights.shape(target)

    def tensor(self, target: str) -> Tensor:
        return self.changed[target] if target in self.changed else self.weights.tensor(target)

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        return self.changed[target][start:stop] if target in self.changed else self.weights.rows(target, start, stop)


JOINED: Mapping[str, Sequence[str]] = {
    "input_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "post_norm": ("post_attention_layernorm",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
"""Our layers of a block to transformers', whose rows they hold one after the other."""


def canonical(path: Path, own_table: bool) -> dict[str, Tensor]:
    """A library's weights under our names, float32; norms where its file has them."""
    import torch
    from safetensors.torch import load_file

    tensors, changed = load_file(path), dict[str, torch.Tensor]()
    blocks = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    for block in blocks:
        for ours, theirs in JOINED.items():
            names = [f"model.layers.{block}.{one}.weight" for one in theirs]
            if all(name in tensors for name in names):
                changed[f"decoder.layers.{block}.{ours}.weight"] = torch.cat([tensors[name].float() for name in names])
    if own_table:
        table = tensors["model.embed_tokens.weight"].float()
        changed |= {f"{TABLE}.weight": table, f"{HEAD}.weight": table}
    return changed


def _language(assignments: Mapping[str, Assignment]) -> dict[str, Assignment]:
    """The matrices of the language model."""
    return {name: one for name, one in assignments.items() if name.startswith(("embed_tokens.", "decoder."))}


def lines(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The table, Markdown."""
    titles = "method", "bits/weight", "MB", "perplexity", "KL (nats)", "median KL", "99 % KL", "same token", "processor s"
    made = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, row in rows.items():
        if "error" in row:
            made.append(f"| {name} | not run: {row['error']} |" + " |" * (len(titles) - 2))
            continue
        figures = f"{row['perplexity']:.3f} | {row['kl']:.4f} | {row['median_kl']:.4f} | {row['p99_kl']:.3f}"
        size = f"{row['bits']:.2f} | {row['bytes'] / 1e6:.1f}"
        made.append(f"| {name} | {size} | {figures} | {100 * row['same']:.2f} % | {row['processor_seconds']:.0f} |")
    return made
