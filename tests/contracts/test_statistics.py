"""Running statistics of batch norm under gradient checkpointing, in every model that has them."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tests.contracts.test_gradients import backward
from vit_pytorch.base import VisionModel


def test_a_batch_counts_once(model: VisionModel, images: Tensor):
    """Though its activations, and with them its statistics, are computed twice."""
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        pytest.skip("no batch norm")
    again = copy.deepcopy(model.train())
    again.set_grad_checkpointing()
    before = copy.deepcopy(dict(model.named_buffers()))
    backward(model, images)
    backward(again, images)
    buffers = dict(again.named_buffers())
    torch.testing.assert_close(buffers, dict(model.named_buffers()), rtol=0, atol=0)
    moved = {name.rpartition(".")[2] for name, buffer in buffers.items() if not buffer.equal(before[name])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}
