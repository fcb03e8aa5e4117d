import torch
from torch import Tensor

from vit_pytorch.base import VisionModel


def backward(model: VisionModel, images: Tensor) -> dict[str, Tensor]:
    """Compute gradients of a loss in which every logit has its own weight; random draws are the same."""
    torch.manual_seed(0)
    model.zero_grad()
    logits = model(images)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def saved_bytes(model: VisionModel, images: Tensor) -> int:
    """Measure what the forward pass keeps for the backward pass."""
    sizes = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    return sum(sizes)


def test_every_parameter_has_a_gradient(model: VisionModel, images: Tensor):
    gradients = backward(model.train(), images)
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_grad_checkpointing(model: VisionModel, images: Tensor):
    model.train()
    want, kept = backward(model, images), saved_bytes(model, images)
    model.set_grad_checkpointing()
    torch.testing.assert_close(backward(model, images), want)
    assert saved_bytes(model, images) < kept
    model.set_grad_checkpointing(False)
    assert saved_bytes(model, images) == kept


def test_no_weight_decay(model: VisionModel):
    parameters = dict(model.named_parameters())
    assert model.no_weight_decay() <= parameters.keys()
    assert all(parameters[name].ndim > 1 for name in model.no_weight_decay())
