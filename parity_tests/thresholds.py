"""The one place for thresholds: how far is too far, for every kind of array and every sort of comparison, with reasons.

A `Standard` names a sort of comparison (`parity_tests.judging.standards`). Absolute limits hold where both sides are
float32 and the scale is known (the goldens); everything else is judged relative to the largest reference value, because
real checkpoints have activations of any size.

The figures "observed" below are of PyTorch alone, with no package involved: trained demo checkpoints on 40 held-out
pictures each and a decoder that is a real trained LLM (SmolLM2-135M, docs/results/real_model.md) on general samples
(`python -m parity_tests.laboratory.observe_rounding`, docs/results/rounding.md), and fresh random weights of the goldens'
shapes (`python -m parity_tests.laboratory.golden_rounding`, docs/results/matrix.md); float32 against the same modules in
float16, against int8 inputs in groups of 32, and against dequantised int4 weights. Where packages of the real LLM are
further off, which have a float16 cache too, longer groups, or sums in float16, their figures are (docs/results/rounding.md).
A limit is about three times the worst of them where faults are still caught by something tighter (a package that rounds
inputs has a copy that does not, held to `STORED_FLOAT32`; the bytes of a phone's are compared, `--mlc-golden`), and one and
a half to twice the worst where it is the only one; for cosines that is said of the distance from 1.

Where both sides differ in the order of float32 sums alone, every row of text is held to the same limits by its worst
value. Where rounding is expected, the rows that are read (the prompt's last, every answer step's) are held to a worst
value and a mean; the rest of the prompt's text to a mean, since nobody reads it and one unsure position makes the worst.
Picture rows, where no next token was ever trained, may stand where a decoder switches one of its massive activations (Sun
et al., arXiv 2402.17762) on or off, which makes 30 to 60 times as much of any rounding in that row
(`python -m parity_tests.laboratory.picture_rows`, docs/results/rounding.md): there the median row is held to what all
others are in float32 and the worst to more, and where rounding is expected rows are held to a median.
"""

from __future__ import annotations

from collections.abc import Mapping

from parity_tests.judging.metrics import LOGITS, Kind
from parity_tests.judging.standards import Limit, Limits, Standard, Table

_EXACT = (Limit("mismatches", 0, "integers do not round"),)
_PIXELS = (Limit("max_abs", 1e-6, "both sides call PIL's resize; only the float32 scaling may differ in the last bit"),)


def _relative(bound: float, row_cosine: float, reason: str) -> Limits:
    return (Limit("relative_max", bound, reason), Limit("worst_row_cosine", row_cosine, reason))


def _decoded(bound: float, row_cosine: float, divergence: float, reason: str) -> Limits:
    tie = "a token may change only where the reference's two best are closer than twice the permitted error"
    return (
        *_relative(bound, row_cosine, reason),
        Limit("kl_max", divergence, reason),
        Limit("flipped_relative", 2 * bound, tie),
    )


def _means(row_cosine: float, divergence: float, reason: str) -> Limits:
    return (Limit("mean_row_cosine", row_cosine, reason), Limit("kl_mean", divergence, reason))


def _medians(row_cosine: float, divergence: float, reason: str) -> Limits:
    return (Limit("median_row_cosine", row_cosine, reason), Limit("kl_median", divergence, reason))


def _float32() -> dict[Kind, Limits]:
    """Sides that differ in the order of float32 sums; the worst picture row may be further off than a row of text."""
    pictures = (*_decoded(1.2e-3, 0.999999, 1e-5, _SWITCH), Limit("relative_median", 1e-4, _ROUNDING))
    rows = _decoded(1e-4, 0.999999, 1e-6, _ROUNDING)
    return _standard(_relative(1e-4, 0.999999, _ROUNDING), rows, _ties(1e-4), pictures=pictures)


def _cached() -> dict[Kind, Limits]:
    """Sides that differ in the order of float32 sums, and in a key or value that rounds to the next byte."""
    rows = _decoded(6e-2, 0.997, 2e-2, _BYTES)
    return _standard(_relative(1e-4, 0.999999, _ROUNDING), rows, _ties(6e-2), pictures=_medians(0.998, 4e-3, _BYTES))


def _half(reason: str) -> dict[Kind, Limits]:
    """Features, read logits, tokens, prompt and picture rows of float16 rounding."""
    means, features = _means(0.9997, 1.3e-3, reason), _relative(3e-2, 0.999, reason)
    pictures = (Limit("mean_row_cosine", 0.9994, _PICTURES), Limit("kl_median", 1.3e-3, _PICTURES))
    return _standard(features, (*_decoded(3e-2, 0.999, 3.5e-3, reason), *means), _ties(3e-2), means, pictures)


def _standard(
    features: Limits, logits: Limits, tokens: Limits, prompt: Limits | None = None, pictures: Limits | None = None
) -> dict[Kind, Limits]:
    """A standard's limits; rows of a prompt are held to those of ``logits`` where nothing else is said of them."""
    return {
        Kind.PROMPT_LOGITS: logits if prompt is None else prompt,
        Kind.PICTURE_LOGITS: logits if pictures is None else pictures,
        Kind.PIXELS: _PIXELS,
        Kind.TABLE: features,
        Kind.FEATURES: features,
        Kind.EMBEDS: features,
        Kind.LOGITS: logits,
        Kind.TOKENS: tokens,
        Kind.EXACT: _EXACT,
    }


def _ties(bound: float) -> Limits:
    return (Limit("split_relative", 2 * bound, "greedy answers may part only at a tie within the permitted logit error"),)


_CROSSED = (
    "Awaker golden's README: a gate logit across a float16 boundary moves a gate by about 2e-3 and logits by about 1e-2 at "
    "most; half a unit of that digit more. Held only where the moved gate input holds the ordinary limits"
)
_ROUNDING = (
    "float32 rounding over the longest chain (40 layers of 5760-term sums) stays under 1e-4; observed 2e-6 on demos, 3.8e-5 "
    "on a picture row of SmolLM2 (docs/results/real_model.md)"
)
_HALF = (
    "observed for PyTorch itself in float16: at most 0.7 % on logits that are read, KL 1.8e-4, 1.1 % on features, row "
    "cosine 0.9996; for kernels that add up in float16 too (SmolLM2's q4f16_1 library) 1.3 % on logits, KL 1.2e-3, mean "
    "4.2e-4"
)
_PICTURES = (
    "cosines of picture rows are twice as far off as those of a prompt's text (int8 inputs, SmolLM2: 0.9975 beside 0.9987); "
    "the median KL has the limit of the text's mean, observed 6.4e-5 in float16, 8.4e-5 of SmolLM2's q4f16_1 library"
)
_FLIPS = (
    "a rounding flip moves logits of range 7 by about 1e-2 (Awaker golden's README), 1.4e-3 of it; of 56 gates some may. "
    "Held only where the moved gate input holds the ordinary limits"
)
_INT8 = "not measured on its own; one unit of 255 may round the other way in a layer, so the limit is that of float16"
_BYTES = (
    "a key or value that float32 sums leave on a boundary goes to the next byte, 1/127 of its channel's largest size, and "
    "some rows of a trained model hang on a few of them; three times what SmolLM2-135M shows on three questions through "
    "both decoders: 2.2 % of the largest logit, KL 6.3e-3 at the worst row, 1.2e-3 at the median picture row "
    "(docs/results/decode.md); on the MiniCPM-V demo 1.7e-4. Scales are compared bit by bit (check/cache_scales.py)"
)
_INT8_FEATURES = (
    "towers whose inputs are rounded a scale a token, trained demos on 40 pictures each (observe_tower): at most 9.8 %, "
    "worst token 0.989, mean 0.99984. A copy that does not round is held to float32 rounding"
)
_INT8_TABLE = (
    "position tables and other constants, which no rounded input moves; the limit from before towers were rounded (int8 "
    "inputs behind the first layer of the goldens' shapes: at most 2.5 %, row cosine 0.999)"
)
_KERNELS = (
    "observed for int8 inputs in groups of 32: at most 4.2 % on logits that are read, row cosine 0.9983, KL 0.041 "
    "(CogVLM2 demo), of packages 5.4 % (SmolLM2 in blocks of 64) and 0.996 (of 32); of a prompt mean cosine 0.998, mean KL "
    "0.015 (that package)"
)
_KERNEL_PICTURES = (
    "observed of packages: median cosine 0.989 and median KL 0.061 behind a picture row that int8 inputs made a massive "
    "activation of, or none (SmolLM2 in WeMM's layout); a copy that does not round is held to float32 rounding there, and "
    "the text behind the pictures to its own limits"
)
_MOVED = (
    "three times as far as PyTorch with the inputs of the same layers rounded alike, on the same question: every limit of "
    "rounding allows about three times what PyTorch alone was seen to do; held only where the copy that does not round is "
    "exact"
)
_SWITCH = (
    "observed 5.7e-4, with a KL of 3.5e-6, on one of 6,000 picture rows of photographs (SmolLM2 in Qwen2-VL's layout), "
    "which stands where a massive activation is switched: PyTorch in float32 is 20 to 130 times as far from float64 on such "
    "rows as on the median one (parity_tests.laboratory.picture_rows); two to three times that. The median row is held to "
    "what text is, and a fault shows in the text behind the pictures"
)
_SAME_LIBRARY = (
    "the same operators of the same library in another order: observed at most 1.1e-6 on demos and goldens "
    "(--second-opinion); twenty times that for forty layers"
)
_FAINT = (
    "embeddings a hundredth as large: on a trained decoder of 30 layers (SmolLM2 in MiniCPM's layout) transformers and we "
    "are 4.0e-5 apart (docs/results/real_model.md); three times that. Another eps stays caught "
    "(parity_tests/second_opinion/faults_test.py)"
)
_SWITCHED = (
    "observed 4.4e-4 on one of 176 picture rows of SmolLM2 in Qwen2-VL's layout, where a massive activation is switched; "
    "the median is 1.7e-6, the text around the picture at most 5.4e-6 off (--second-opinion on the checkpoint of "
    "docs/results/real_model.md); twice that"
)
_LOSS = (
    "a floor against nonsense, not a promise: observed for int4 rounded to nearest, mean cosine 0.79 on logits and 0.895 "
    "behind the first layer (golden_rounding --case awaker2.5-vl: random weights, int4 embedding too), mean KL 1.7 "
    "over a question (trained CogVLM2); lost weights give a cosine near 0. Task accuracy is the promise"
)

DEFAULT: Table = {
    Standard.GOLDEN: _standard(
        (Limit("max_abs", 2e-5, "goldens' READMEs: another fp32 implementation stays within 2e-5"),),
        (Limit("max_abs", 1e-4, "goldens' READMEs: within 1e-4 on logits of range about 7"),),
        (Limit("mismatches", 0, "goldens' READMEs: the smallest gap of the two best logits is far above 1e-4"),),
    ),
    Standard.GOLDEN_FLIPPED: _standard(
        (Limit("max_abs", 2.5e-3, _CROSSED),),
        (Limit("max_abs", 1.5e-2, _CROSSED),),
        (Limit("mismatches", 0, "Awaker golden's README: the smallest gap of the two best logits is above that"),),
    ),
    Standard.FLIPPED: _standard(_relative(1e-2, 0.9999, _FLIPS), _decoded(1e-2, 0.9999, 1e-3, _FLIPS), _ties(1e-2)),
    Standard.FP32: _float32(),
    Standard.FP16: _half(_HALF),
    Standard.STORED_FLOAT32: _float32(),
    Standard.STORED_FLOAT16: _half(_HALF),
    Standard.STORED_INT8: _half(_INT8),
    Standard.CACHE_INT8: _cached(),
    Standard.KERNELS_INT8: _standard(
        (*_relative(0.15, 0.978, _INT8_FEATURES), Limit("mean_row_cosine", 0.9995, _INT8_FEATURES)),
        (*_decoded(0.15, 0.988, 0.125, _KERNELS), *_means(0.996, 3e-2, _KERNELS)),
        _ties(0.15),
        prompt=_means(0.996, 3e-2, _KERNELS),
        pictures=_medians(0.975, 0.15, _KERNEL_PICTURES),
    )
    | {Kind.TABLE: _relative(4e-2, 0.998, _INT8_TABLE)},
    Standard.MOVED: dict.fromkeys(Kind, (Limit("moved_ratio", 3, _MOVED),)),
    Standard.SECOND_OPINION: _standard(
        (Limit("relative_max", 2e-5, _SAME_LIBRARY),),
        (Limit("relative_max", 2e-5, _SAME_LIBRARY),),
        _EXACT,
        prompt=(Limit("relative_max", 1.2e-4, _FAINT),),
        pictures=(Limit("relative_max", 1e-3, _SWITCHED), Limit("relative_median", 2e-5, _SAME_LIBRARY)),
    ),
    # no limits on picture rows: nobody reads them, and SmolLM2's mean cosine of 0.58 there (docs/results/rounding.md)
    # leaves no room above lost weights
    Standard.INT4_LOSS: _standard((Limit("cosine", 0.8, _LOSS),), _means(0.75, 5.0, _LOSS), (), pictures=()),
}
"""Limits of every family; no limits (tokens and picture rows under int4 loss) means that figures are told and not judged."""

FAMILIES: Mapping[str, Mapping[Standard, Mapping[Kind, Limits]]] = {
    "wemm": {
        Standard.GOLDEN: {
            Kind.PIXELS: (
                Limit("max_abs", 1e-5, "golden's README: resize, rescale and normalise are separate float steps"),
            ),
            Kind.LOGITS: (Limit("max_abs", 2e-4, "golden's README: partial LoRA adds a second product to every sum"),),
        }
    },
    "xverse-v": {
        Standard.GOLDEN: {
            Kind.PIXELS: (Limit("max_abs", 1e-5, "golden's README: division by CLIP's deviations"),),
            Kind.LOGITS: (
                Limit("max_abs", 2e-4, "golden's README: LoRA folded or apart differs by 1.3e-5 in PyTorch itself"),
            ),
        }
    },
    "awaker2.5-vl": {
        Standard.GOLDEN: {
            Kind.PIXELS: (Limit("max_abs", 1e-5, "golden's README"),),
            Kind.FEATURES: (Limit("max_abs", 1e-4, "golden's README gives 1e-4 for every array"),),
            Kind.EMBEDS: (Limit("max_abs", 1e-4, "golden's README gives 1e-4 for every array"),),
        }
    },
    "cogvlm2": {
        Standard.GOLDEN: {
            Kind.PIXELS: (Limit("max_abs", 1e-5, "golden's README"),),
            Kind.FEATURES: (Limit("max_abs", 1e-4, "golden's README gives 1e-4 for every array"),),
            Kind.EMBEDS: (Limit("max_abs", 1e-4, "golden's README gives 1e-4 for every array"),),
        }
    },
}
"""What a family's goldens say differently; everything not named here is the default."""


def limits(standard: Standard, kind: Kind, family: str = "", table: Table | None = None) -> Limits:
    """The limits of one comparison of one kind of array; those that ``table`` names go before the family's.

    Args:
        table: a user's own (`parity_tests.judging.own_limits`).

    A family's goldens say one thing of all logits; what ``table`` says of ``logits`` holds for a prompt's text as well,
    unless it names ``prompt_logits`` too.
    """
    own = FAMILIES.get(family, {}).get(standard, {})
    if kind in LOGITS:
        own = {kind: own.get(kind, own[Kind.LOGITS])} if Kind.LOGITS in own else own
    built_in = own.get(kind, DEFAULT[standard][kind])
    rows = {} if table is None else table.get(standard, {})
    named = Kind.LOGITS if kind is Kind.PROMPT_LOGITS and kind not in rows else kind
    given = {limit.metric: limit for limit in rows.get(named, ())}
    kept = tuple(given.pop(limit.metric, limit) for limit in built_in)
    return (*kept, *given.values())
