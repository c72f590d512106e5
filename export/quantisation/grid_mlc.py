"""The int4 grids of MLC packages: symmetric groups of 32 along the input, constant zero point 7, codes 0 to 14.

For a weight cast to the model dtype T, every step rounded to T (ties to even):

    s = max|W over the group| / 7        q = clip(rint(W / s + 7), 0, 14)        dequantised = (q - 7) * s

A group of zeros gets the codes 0 (its dequantised value is (0 - 7) * 0). A last group that is not full takes its
maximum over what exists; codes beyond the matrix are 0. q4f32_1 rounds its codes with the float32 scale and stores
that scale as bfloat16. Source: mlc-ai/mlc-llm, python/mlc_llm/quantization/group_quantization.py; the float32 to
bfloat16 rounding is apache-tvm's tvm/contrib/tvmjs.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.quantisation.codes import Codes, GroupParameters
from export.quantisation.pieces import WHOLE, slices, write_codes
from runtime_py.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


GROUP = 32
LEVELS = 7
"""Largest code distance from the zero point; also the zero point itself."""


class MlcGrid:
    """One MLC grid; ``model_dtype`` (``float16`` or ``float32``) is the precision all its arithmetic is rounded to."""

    bits = 4
    group = GROUP
    highest = 2 * LEVELS
    zero_points = False
    negative_scales = False
    alike = frozenset({"q4f16_1", "q4f32_1"})
    """Both have the same codes; what differs is the dtype of scales and arithmetic."""

    def __init__(self, name: str, model_dtype: str) -> None:
        self.name = name
        self.model_dtype = model_dtype

    def quantise(self, rows: Tensor) -> Codes:
        """Codes and stored scales of float (rows, columns); scales are in the dtype of the file, widened to float32 for
        q4f32_1 (every one of them is a bfloat16 value).

        Raises:
            CheckpointError: a weight is not finite in the model dtype.
        """
        import torch

        dtype = getattr(torch, self.model_dtype)
        count, columns = rows.shape
        groups = -(-columns // GROUP)
        codes = torch.empty(count, groups, GROUP, dtype=torch.uint8)
        scales = torch.empty(count, groups, dtype=dtype)
        for piece in slices(count, columns):
            wide = rows[piece].float().to(dtype).float()
            if columns % GROUP:
                wide = torch.nn.functional.pad(wide, (0, groups * GROUP - columns))
            self._quantise(wide.view(-1, groups, GROUP), codes[piece], scales[piece])
        codes = codes.view(count, groups * GROUP)
        # as the converter pads; no kernel reads past the matrix
        codes[:, columns:] = 0
        return Codes(codes, self.stored_scales(scales).to(dtype))

    def _quantise(self, blocks: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Fill the codes and scales of some rows from their values (rows, groups, GROUP) in the model dtype, widened."""
        import torch

        largest = blocks.abs().amax(dim=2)
        # infinity and NaN are the largest magnitude of their group
        if not bool(torch.isfinite(largest).all()):
            raise CheckpointError(
                f"a weight is not finite in {self.model_dtype}",
                f"every weight of a {self.name} layer within the range of {self.model_dtype}",
                "choose q4f32_1, or check the checkpoint",
            )
        scales.copy_(largest / LEVELS)
        wide = scales.float()
        # rounded after every step as mlc_llm's converter rounds, so that a value on an edge falls to the same code
        values = (blocks / wide[..., None]).to(scales.dtype).add_(LEVELS).float().round_()
        # 0 / 0 in a group of zeros; code 0 is what published packages hold, and reads back as -7 * 0
        if not bool(wide.all()):
            values.nan_to_num_(nan=0.0)
        values.clamp_(0, 2 * LEVELS).add_(WHOLE)
        write_codes(codes, values)

    def stored_scales(self, scales: Tensor) -> Tensor:
        """Scales as the file holds them, widened to float32: float16, or float32 rounded to bfloat16."""
        import torch

        return scales.to(torch.float16 if self.model_dtype == "float16" else torch.bfloat16).float()

    def adopted(self, codes: Codes) -> Codes:
        """Codes of the other MLC grid, their scales rounded to what this one's file holds."""
        scales = self.stored_scales(codes.scales.float())
        return Codes(codes.codes, scales.half() if self.model_dtype == "float16" else scales, codes.zero_points)

    def dequantise(self, codes: Codes) -> Tensor:
        """float32 (rows, groups * group): (q - 7) * s, rounded to the model dtype as the compiled kernel does."""
        import torch

        dtype = getattr(torch, self.model_dtype)
        count, columns = codes.codes.shape
        centred = codes.codes.view(count, columns // GROUP, GROUP).float() - LEVELS
        return (centred * codes.scales.float()[..., None]).to(dtype).float().view(count, columns)

    def fit(self, blocks: Tensor, factor: Tensor | float = 1.0) -> GroupParameters:
        """Scales of groups (..., group) whose largest magnitude is ``factor`` times theirs; the zero point is always 7."""
        import torch

        dtype = getattr(torch, self.model_dtype)
        scales = self.stored_scales(blocks.to(dtype).float().abs().amax(-1) / LEVELS * factor)
        return GroupParameters(scales, torch.full_like(scales, LEVELS))

    def round(self, values: Tensor, parameters: GroupParameters) -> Tensor:
        """The nearest codes as float32; a scale of 0 gets code 0, as published packages have it."""
        import torch

        codes = (values / parameters.scales).round_().add_(LEVELS).clamp_(0, 2 * LEVELS)
        return torch.where(parameters.scales == 0, 0.0, codes)

    def read(self, codes: Tensor, parameters: GroupParameters) -> Tensor:
        """``(code - 7) * scale``, rounded to the model dtype."""
        import torch

        return ((codes - LEVELS) * parameters.scales).to(getattr(torch, self.model_dtype)).float()

    def codes(self, codes: Tensor, parameters: GroupParameters) -> Codes:
        """Codes (rows, columns) and scales as a package stores them; columns beyond the matrix get code 0."""
        import torch

        count, columns = codes.shape
        full = torch.zeros(count, parameters.scales.shape[1] * GROUP, dtype=torch.uint8)
        full[:, :columns] = codes.to(torch.uint8)
        scales = parameters.scales
        return Codes(full, scales.half() if self.model_dtype == "float16" else scales)
