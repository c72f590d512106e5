"""Kernels list their sizes in the order of the shapes they come from, whatever addresses the sizes have."""

from __future__ import annotations

from tvm import relax, te, tirx
from tvm.relax import utils

from export.compilation.size_order import FilledOrder, sizes_in_order

SIZES = ("one", "two", "three", "four", "five")


def sizes_of_a_kernel(moved: int) -> list[str]:
    """Names of the symbolic sizes that a kernel takes, its own objects ``moved`` places on in memory."""
    held = [tirx.Var("held", "int64") for _ in range(moved)]
    sizes = [tirx.Var(name, "int64") for name in SIZES]
    given = relax.Var("x", relax.TensorType([size * 2 for size in sizes], "float32"))
    function, _, _ = utils.gen_call_tir_inputs(
        lambda x: te.compute([size * 3 for size in sizes], lambda *at: x(*at) + 1.0), given
    )
    assert len(held) == moved
    return [parameter.name for parameter in function.params if parameter.name in SIZES]


def test_sizes_keep_their_order() -> None:
    with sizes_in_order():
        orders = {tuple(sizes_of_a_kernel(moved)) for moved in range(0, 60, 3)}
    assert orders == {(*SIZES, *SIZES)}
    assert "set" not in vars(utils), "TVM's own afterwards"


def test_a_filled_order_walks_in_the_order_of_insertion() -> None:
    letters = FilledOrder("cab")
    letters.add("d")
    letters.update("ae")
    assert list(letters) == list("cabde") and len(letters) == 5 and "e" in letters
    assert list(letters - FilledOrder("ad")) == list("cbe")
