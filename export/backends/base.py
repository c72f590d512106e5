"""The small interface between the pipeline and a graph format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.quantisation.cache_scales import CacheScales
from export.quantisation.codes import CodeSource, WeightProvider
from export.quantisation.spec import Assignment
from export.specs import ModelSpec
from runtime_py.backends.stock_engine import StockEngine
from runtime_py.preprocess.base import Processor
from targets.base import Limits, Target

if TYPE_CHECKING:
    from export.checkpoint.opened import OpenedCheckpoint


@dataclass(frozen=True)
class BuildOptions:
    """What the user chose, resolved.

    Attributes:
        precision: ``fp32``, ``fp16`` or ``int4`` (or a backend's own name such as ``q4f16_1``).
        extra: backend options by name, e.g. ``{"vision_precision": "int8", "block_size": 32}``.
        compute_capability: of the device that was named, "" where none was or it is no GPU.
    """

    target: Target
    precision: str
    limits: Limits
    extra: Mapping[str, Any] = field(default_factory=dict)
    compute_capability: str = ""


@dataclass(frozen=True)
class Prediction:
    """What a build will cost and give, before it runs.

    Attributes:
        file_bytes: bytes in the package by stage name (plus ``other``).
        device_bytes: memory on the device by part: ``weights``, ``kv_cache``, ``activations``, ...
        export_peak: resident bytes of the export process at its highest step.
        peak_step: the name of that step.
    """

    file_bytes: Mapping[str, int]
    device_bytes: Mapping[str, int]
    export_peak: int
    peak_step: str


@dataclass(frozen=True)
class Build:
    """Everything a backend's steps read.

    Attributes:
        folder: the package being assembled; a step writes only below ``folder / <backend's folder>``.
        progress: called as progress(step, done_bytes, total_bytes).
        processor: the family's, with settings but no tokenizer; it turns pictures into what the stages take.
        cache_scales: of a cache in bytes, where the calibration has some.
    """

    spec: ModelSpec
    options: BuildOptions
    assignments: Mapping[str, Assignment]
    weights: WeightProvider
    codes: CodeSource
    checkpoint: OpenedCheckpoint
    folder: Path
    progress: Callable[[str, int, int], None]
    processor: Processor
    cache_scales: CacheScales | None = None


@dataclass(frozen=True)
class Step:
    """One resumable unit: run again from the start when it was cut off, skipped when its files are journalled.

    ``run`` returns the files it made, relative to the package folder, and writes each through a temporary name.

    Attributes:
        begin: called before the first of all steps still to be done; starts elsewhere what ``run`` waits for, and returns.
        end: called after the last of all steps, and after one that failed, where ``begin`` was.
    """

    name: str
    run: Callable[[], list[Path]]
    begin: Callable[[], None] | None = None
    end: Callable[[], None] | None = None


class ExportBackend(ABC):
    """A graph format. Constructing one imports nothing heavy."""

    name: ClassVar[str]

    @abstractmethod
    def assignments(self, spec: ModelSpec, options: BuildOptions) -> dict[str, Assignment]:
        """What every quantisable layer becomes, and why, from shapes alone."""

    def made_so(self, spec: ModelSpec, options: BuildOptions, block: Mapping[str, Any]) -> bool:
        """Whether a finished package's block of the manifest is of these options, in what no assignment shows."""
        return True

    def refuse(self, spec: ModelSpec, options: BuildOptions) -> None:  # noqa: B027  (most backends hold everything)
        """Say by name what this backend cannot hold, before any work.

        Raises:
            UnsupportedModelError: a stage it cannot build, with the reason.
        """

    def wants_cache_scales(self, options: BuildOptions) -> bool:
        """Whether the files hold scales of a cache in bytes, which only a calibration has (`Build.cache_scales`)."""
        return False

    def picture_rows(self, spec: ModelSpec) -> int:
        """Rows of a picture that one call of the decoder must take; 0 where they may be fed in any number of calls."""
        return 0

    def stock_engine(self, spec: ModelSpec, options: BuildOptions) -> StockEngine | None:
        """What an app's own engine can do with the package; None where packages are run by nothing but ours."""
        return None

    def notes(self, spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment]) -> tuple[str, ...]:
        """What a plan says beside its figures, e.g. what is left to another machine."""
        return ()

    @abstractmethod
    def predict(self, spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment]) -> Prediction:
        """Sizes and peaks from shapes alone, without importing the backend's library."""

    @abstractmethod
    def steps(self, build: Build) -> list[Step]:
        """The ordered work."""

    def tool_files(self, build: Build) -> list[Path]:
        """Write what other tools read at the package's root, where the checkpoint's side files are by then.

        A file that the checkpoint has too is replaced. Returns paths relative to the package.
        """
        return []

    def written_again(self, build: Build, block: Mapping[str, Any], package: Path) -> list[Path] | None:
        """Write once more what a finished package has for other tools beside graphs and weights, into ``build.folder``,
        where the checkpoint's side files and ``tokenizer.json`` are by then.

        Args:
            build: of the package's target, precision, limits and assignments; other options it does not hold.
            block: this backend's of the manifest.
            package: the finished package, of whose weight files sizes and hashes may be read.

        Returns:
            paths relative to the folder; None where the backend cannot tell them.
        """
        return None

    def stated_again(self, build: Build, block: Mapping[str, Any]) -> dict[str, Any]:
        """Those entries of a finished package's ``block`` that follow from the model and what `build` holds."""
        return {}

    @abstractmethod
    def manifest(self, build: Build) -> dict[str, Any]:
        """This backend's block of the manifest, ``manifest["backends"][name]``, once all steps are done.

        Empty where the package holds no files that run yet; then the manifest has no such block.
        """
