"""Rotary positions in both layouts: ``rope_theta`` and ``rope_scaling`` (transformers 4), ``rope_parameters`` (5).

What is built: the plain form, its three-axis form (``mrope_section``), and ``dynamic``, which is the plain form up to
``max_position_embeddings``, beyond which no package goes. Every other kind is refused by name. Which value comes first is
transformers 5.24, modeling_rope_utils.py, RotaryEmbeddingConfigMixin.convert_rope_params_to_dict.
"""

from __future__ import annotations

from collections.abc import Mapping

from export.families.config.section import Section
from export.specs import RopeSpec
from runtime_py.errors import CheckpointError

KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
KNOWN = frozenset({"type", "rope_type", "rope_theta", "factor", "mrope_section", "partial_rotary_factor"})
"""Keys of the inner object that are read; others change something that is not built."""

PLAIN = ("default", "linear", "dynamic")
"""Kinds that give the plain frequencies: ``linear`` with a factor of 1, ``dynamic`` within the trained positions."""

LEAST_THETA, MOST_THETA = 1.0, 1e12
LAYER_TYPES = ("full_attention", "sliding_attention")


def rope_of(text: Section, head_dim: int, axes: int = 1) -> RopeSpec:
    """The rotary positions of a decoder.

    Args:
        text: the decoder's configuration; a default theta is its ``rope_theta``.
        axes: position axes; with more than one, ``mrope_section`` says how the frequencies are shared out.

    Raises:
        UnsupportedModelError: a kind that is not built, by name.
        CheckpointError: values that no model can have.
    """
    text.only({"partial_rotary_factor": (1.0,), "rotary_pct": (1.0,)})
    inner = _inner(text)
    _check_kind(inner, axes)
    theta = inner.number("rope_theta", LEAST_THETA, MOST_THETA, text.number("rope_theta", LEAST_THETA, MOST_THETA))
    if axes == 1:
        return RopeSpec(theta, head_dim)
    sections = inner.integers("mrope_section", axes, 1, head_dim)
    if sum(sections) != head_dim // 2:
        raise inner.wrong("mrope_section", f"{axes} numbers that add up to {head_dim // 2}, half a head")
    return RopeSpec(theta, head_dim, sections)


def says_theta(values: Mapping[str, object]) -> bool:
    """Whether a configuration gives a rotary base of its own, in either layout."""
    inner = [values.get(key) for key in KEYS[1:]]
    own = [part.get("rope_theta") for part in inner if isinstance(part, Mapping)]
    return any(value is not None for value in (values.get("rope_theta"), *own))


def _inner(text: Section) -> Section:
    """The object that describes the rotary positions; of one per layer type, the one they all equal."""
    name = "rope_scaling" if text.values.get("rope_scaling") else "rope_parameters"
    inner = text.section(name)
    by_layer = [key for key in LAYER_TYPES if inner.has(key)]
    if not by_layer:
        return inner
    objects = [inner.section(key) for key in by_layer]
    if any(other.values != objects[0].values for other in objects):
        raise inner.unsupported(by_layer[-1], "equal rotary positions in all layers")
    return objects[0]


def _check_kind(inner: Section, axes: int) -> None:
    kind = "rope_type" if inner.has("rope_type") else "type"
    named = inner.text(kind, "default")
    factor = inner.number("factor", 1e-6, 1e6, 1.0)
    scaled = factor != 1.0 and named != "dynamic"
    if named not in (*PLAIN, "mrope") or (named == "mrope" and axes == 1) or (scaled and inner.has(kind)):
        raise inner.unsupported(kind, "rotary positions without scaling, or dynamic ones")
    if scaled:
        raise inner.unsupported("factor", "no scaling of positions")
    inner.only({"partial_rotary_factor": (1.0,)})
    if axes == 1 and inner.has("mrope_section"):
        raise inner.unsupported("mrope_section", "one position axis")
    for key in sorted(str(key) for key in inner.values.keys() - KNOWN):
        if inner.has(key):
            raise inner.unsupported(key, f"{', '.join(sorted(KNOWN))} in this object")


def plain_vision_rope(vision: Section, theta: float) -> None:
    """Refuse rotary positions of a tower that its fixed angles do not have.

    Raises:
        UnsupportedModelError, CheckpointError: see `rope_of`.
    """
    inner = vision.section("rope_parameters")
    inner.only({"rope_type": ("axial", "default"), "partial_rotary_factor": (1.0,)})
    if inner.number("rope_theta", LEAST_THETA, MOST_THETA, theta) != theta:
        raise CheckpointError(
            f"{inner.file}: {inner.path}rope_theta is {inner.values['rope_theta']!r}",
            f"{theta:g}, a literal of the published tower",
            "use a checkpoint whose tower was trained with it",
        )
