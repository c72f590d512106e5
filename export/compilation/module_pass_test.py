"""A pass over a Relax module is held to what it declares, leaves the module it was given, and a failure says where."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.relax.frontend import nn
from tvm.target import Target

from export.backends.mlc.attention_merge import SafeMerge
from export.backends.mlc.library import TARGETS
from export.backends.mlc.logit_kernels import AddLogitKernels
from export.backends.mlc.passes.attach_metadata import METADATA, AttachMetadata
from export.backends.mlc.passes.cpu_schedule import ScheduleForCpu
from export.backends.mlc.passes.runtime_functions import AddEmbeddingAllocator, NameSystemLibrary
from export.compilation.annotate_bounds import AnnotateBounds
from export.compilation.module_pass import ModulePass, Part, PassLog, changed, require_kernels


class Layer(nn.Module):
    def __init__(self) -> None:
        self.product = nn.Linear(4, 4, bias=False)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return self.product(x)


@pytest.fixture
def module() -> IRModule:
    """One Relax function and, since it is lowered, the kernels that it calls."""
    exported, _ = Layer().export_tvm(spec={"forward": {"x": nn.spec.Tensor([1, "seq_len", 4], "float32")}})
    return relax.transform.LegalizeOps()(exported)


def annotate(mod: IRModule) -> IRModule:
    mod["forward"] = mod["forward"].with_attr("seen", True)
    return mod


def add(mod: IRModule) -> IRModule:
    mod["again"] = mod["forward"].with_attr("global_symbol", "again")
    return mod


def rewrite_function(mod: IRModule) -> IRModule:
    function = mod["forward"]
    mod["forward"] = relax.Function(function.params, relax.ShapeExpr([1]), None, True, function.attrs)
    return mod


def touch_a_kernel(mod: IRModule) -> IRModule:
    variable = next(v for v, f in mod.functions_items() if not isinstance(f, relax.Function))
    mod[variable] = mod[variable].with_attr("seen", True)
    return mod


def name_the_library(mod: IRModule) -> IRModule:
    return mod.with_attr("system_lib_prefix", "x_")


CHANGES: dict[Callable[[IRModule], IRModule], Part] = {
    annotate: Part.ANNOTATIONS,
    add: Part.NAMES,
    rewrite_function: Part.FUNCTIONS,
    touch_a_kernel: Part.KERNELS,
    name_the_library: Part.MODULE,
}


def declared(change: Callable[[IRModule], IRModule], parts: frozenset[Part]) -> ModulePass:
    class Declared(ModulePass):
        changes = parts

        def rewrite(self, mod: IRModule) -> IRModule:
            return change(mod)

    return Declared()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_must_be_declared(change: Callable[[IRModule], IRModule], module: IRModule) -> None:
    part = CHANGES[change]
    before = module.clone()
    assert changed(module, declared(change, frozenset({part}))(module)) == [part]
    assert changed(before, module) == []
    with pytest.raises(AssertionError, match=f"Declared says that it changes .*; it changed {part}"):
        declared(change, frozenset(Part) - {part})(module)


@pytest.mark.parametrize(
    "one",
    [
        AnnotateBounds({"seq_len": 8}),
        ScheduleForCpu(Target(TARGETS["x86_64"])),
        AttachMetadata({"context_window_size": 8}),
        AddLogitKernels(device=False),
        AddEmbeddingAllocator(8, 4, "float32"),
        NameSystemLibrary("demo_"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_the_passes_keep_what_they_declare(one: ModulePass, module: IRModule) -> None:
    assert set(changed(module, one(module))) <= one.changes


def test_passes_refuse_a_module_that_they_do_not_know(module: IRModule) -> None:
    with pytest.raises(AssertionError, match="one kernel tir_attention_merge_state of four arguments"):
        SafeMerge("float32")(module)
    with pytest.raises(AssertionError, match=f"has a function {METADATA} already"):
        AttachMetadata({})(AttachMetadata({})(module))


def test_a_failure_names_the_pass_and_those_before_it(module: IRModule) -> None:
    undeclared = declared(annotate, frozenset())
    log = PassLog()
    with (
        pytest.raises(RuntimeError, match=r"pass Declared failed: .* the passes before it: FoldConstant, AddLogitKernels"),
        tvm.transform.PassContext(instruments=[log]),
        log.explained(),
    ):
        tvm.transform.Sequential(
            [relax.transform.FoldConstant(), AddLogitKernels(device=False).as_tvm(), undeclared.as_tvm()]
        )(module)


def test_a_failure_is_that_of_the_pass_that_was_at_work(module: IRModule) -> None:
    def fold_and_fail(mod: IRModule) -> IRModule:
        relax.transform.FoldConstant()(mod)
        raise ValueError("no such kernel")

    log = PassLog()
    with (
        pytest.raises(RuntimeError, match=r"pass Declared failed: .*no such kernel; the passes before it: FoldConstant"),
        tvm.transform.PassContext(instruments=[log]),
        log.explained(),
    ):
        declared(fold_and_fail, frozenset()).as_tvm()(module)


def test_an_error_of_no_pass_stays_what_it_is() -> None:
    with pytest.raises(KeyError, match="'no pass'"), PassLog().explained():
        raise KeyError("no pass")


def test_kernels_of_other_names_or_arguments_are_refused(module: IRModule) -> None:
    (kernel,) = (v.name_hint for v, f in module.functions_items() if v.name_hint == "matmul")
    count = len(module[kernel].params)
    require_kernels(module, {kernel: count})
    for expected in ({kernel: count, "multiply": count}, {kernel: count + 1, "forward": 1}):
        with pytest.raises(AssertionError, match="expected kernels with so many arguments"):
            require_kernels(module, expected)


def test_functions_are_told_how_large_a_size_can_be_and_kernels_are_not(module: IRModule) -> None:
    after = AnnotateBounds({"seq_len": 8})(module)
    for variable, function in after.functions_items():
        bounds = (function.attrs or {}).get("tir_var_upper_bound")
        assert dict(bounds or {}) == ({"seq_len": 8} if isinstance(function, relax.Function) else {}), variable
