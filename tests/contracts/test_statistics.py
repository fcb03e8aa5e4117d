"""Running statistics of batch norm under gradient checkpointing, in every model that has them."""

import copy

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from tests.contracts.conftest import cases, randomize_
from tests.contracts.test_gradients import backward
from vit_pytorch.registry import ModelEntry


def normed() -> list[ModelEntry]:
    with torch.device("meta"):
        return [
            entry
            for entry in cases()
            if any(isinstance(module, _BatchNorm) for module in entry.build(**entry.tiny).modules())
        ]


@pytest.mark.parametrize("case", normed(), ids=lambda entry: entry.name)
def test_a_batch_counts_once(case: ModelEntry):
    """Though its activations, and with them its statistics, are computed twice."""
    torch.manual_seed(0)
    model = randomize_(case.build(**case.tiny)).train()
    again = copy.deepcopy(model)
    again.set_grad_checkpointing()
    images = torch.randn(3, model.channels, *model.image_size)
    before = copy.deepcopy(dict(model.named_buffers()))
    backward(model, images)
    backward(again, images)
    buffers = dict(again.named_buffers())
    torch.testing.assert_close(buffers, dict(model.named_buffers()), rtol=0, atol=0)
    moved = {name.rpartition(".")[2] for name, buffer in buffers.items() if not buffer.equal(before[name])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}
