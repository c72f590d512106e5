"""An overlay changes the weights of a model, not what it computes, in every family."""

from dataclasses import replace

import torch

from calibrate.conftest import RandomWeights, decoder_call, run_decoder
from export.modules.build import layer_shapes
from export.quantisation.folds import decoder_folds
from export.quantisation.overlay import OverlaidWeights, Overlay
from export.specs import ModelSpec


def overlay_of(spec: ModelSpec, weights: RandomWeights) -> Overlay:
    """Random factors of 1/4 to 4 at every fold."""
    generator = torch.Generator().manual_seed(9)
    overlay = Overlay()
    for _, folds in decoder_folds(spec):
        for fold in folds:
            columns = weights.shape(f"{fold.layers[0]}.weight")[1]
            drawn = torch.exp2(4 * torch.rand(fold.heads, 1, columns // fold.heads // fold.share, generator=generator) - 2)
            overlay.add(fold, drawn.expand(-1, fold.share, -1).reshape(-1), weights)
    return overlay


def test_folding_preserves_the_function(spec: ModelSpec) -> None:
    weights = RandomWeights(spec)
    overlay = overlay_of(spec, weights)
    call = decoder_call(spec)
    wanted = run_decoder(spec, weights, call)
    actual = run_decoder(spec, OverlaidWeights(weights, overlay), call)
    assert float(wanted.std()) > 0.05
    assert float((wanted - actual).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_every_fold_changes_something_that_its_source_undoes(spec: ModelSpec) -> None:
    """Without the division at the source the result differs: no fold is idle."""
    weights, call = RandomWeights(spec), decoder_call(spec)
    wanted = run_decoder(spec, weights, call)
    for _, folds in decoder_folds(spec):
        for fold in folds:
            half = Overlay(
                columns={f"{name}.weight": torch.full((weights.shape(f"{name}.weight")[1],), 2.0) for name in fold.layers}
            )
            assert float((run_decoder(spec, OverlaidWeights(weights, half), call) - wanted).abs().max()) > 1e-3


def test_folds_cover_all_decoder_layers(spec: ModelSpec) -> None:
    folded = {name for _, folds in decoder_folds(spec) for fold in folds for name in fold.layers}
    layers = {layer.name for layer in layer_shapes(spec) if layer.role == "decoder"}
    assert layers <= folded


def test_a_head_of_its_own_is_scaled_and_one_that_is_the_embedding_is_not(spec: ModelSpec) -> None:
    for tied in (False, True):
        folds = dict(decoder_folds(replace(spec, decoder=replace(spec.decoder, tied_head=tied))))
        assert ("decoder.head" in folds) is not tied


def test_rows_of_an_overlay_are_rows_of_the_whole(spec: ModelSpec) -> None:
    weights = RandomWeights(spec)
    overlaid = OverlaidWeights(weights, overlay_of(spec, weights))
    for name in overlaid.overlay.tensors():
        target = name.rpartition(":")[0]
        assert torch.equal(overlaid.tensor(target)[3:7], overlaid.rows(target, 3, 7))
    again = Overlay.from_tensors(overlaid.overlay.tensors())
    assert {k: v.tolist() for k, v in again.tensors().items()} == {
        k: v.tolist() for k, v in overlaid.overlay.tensors().items()
    }
