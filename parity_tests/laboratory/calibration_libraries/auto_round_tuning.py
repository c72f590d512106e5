"""AutoRound's own wrapper, quantiser and optimiser, one layer at a time.

The loop is that of auto_round/algorithms/quantization/sign_round/quantizer.py, quantize_block: 200 turns, learning rate
1 / 200 falling to zero, batches of 8 samples, the parameters of the least batch loss. AutoRound itself takes whole models of
transformers; here a block is the one layer, so that every library gets the same problem.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parity_tests.laboratory.calibration_libraries.problem import Captured

if TYPE_CHECKING:
    from torch import Tensor

DISTRIBUTION = "auto-round"
INSTALL = "pip install auto-round"
TURNS, BATCH = 200, 8


def tuned(layer: Captured) -> Tensor:
    """Rounding offsets and clips by signed gradient descent."""
    import torch
    from auto_round.algorithms.quantization.sign_round.sign_sgd import SignSGD
    from auto_round.wrapper import WrapperLinear

    linear = layer.linear()
    scheme = {"bits": 4, "group_size": layer.block, "sym": True, "data_type": "int", "scale_dtype": torch.float16}
    for name, value in (scheme | {"act_bits": 16, "act_data_type": "float"}).items():
        setattr(linear, name, value)
    wrapper = WrapperLinear(linear, device="cpu", enable_torch_compile=False, iters=TURNS)
    optimiser = SignSGD(list(wrapper.params.values()), lr=torch.tensor(1 / TURNS), weight_decay=0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=1.0, end_factor=0.0, total_iters=TURNS)
    generator = torch.Generator().manual_seed(0)
    least, best = float("inf"), {}
    queue: list[int] = []
    for _ in range(TURNS):
        if len(queue) < min(BATCH, len(layer.inputs)):
            queue = torch.randperm(len(layer.inputs), generator=generator).tolist()
        taken, queue = queue[:BATCH], queue[BATCH:]
        x = torch.cat([layer.inputs[index] for index in taken])
        loss = torch.nn.functional.mse_loss(wrapper(x), x @ layer.weight.T)
        if float(loss.detach()) < least:
            least, best = float(loss.detach()), {name: value.detach().clone() for name, value in wrapper.params.items()}
        (loss * 1000).backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    with torch.no_grad():
        weight: Tensor = wrapper.unwrapper(best).weight.data
    return weight


METHODS = {"AutoRound": tuned}
