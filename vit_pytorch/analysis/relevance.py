"""Why this class: maps of attention weighted by the gradient of the class's logit.

H. Chefer, S. Gur, L. Wolf 2021, arXiv:2103.15679 (Generic Attention-model Explainability), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_pytorch.analysis.attention import check_mixes_tokens
from vit_pytorch.analysis.flow import compose, read_out
from vit_pytorch.analysis.layout import Map, TokenLayout, in_single, upsample
from vit_pytorch.base import VisionModel
from vit_pytorch.layers.wrapper import eval_mode
from vit_pytorch.recorder import Recorder


def relevance_of_maps(maps: Sequence[Map], gradients: Sequence[Map]) -> Float[Tensor, "b q n"]:
    """Follow relevance through all layers, from the tokens that entered the first one.

    R starts as the identity; each layer adds A R to it, where A is the mean over heads of the positive part
    of gradient times map (equations 5 and 6). Late class tokens, poolings by one query and branches run in
    parallel are read as in `rollout_of_maps`.

    Args:
        maps: of all layers in their order.
        gradients: of the chosen logit with respect to each map.

    Returns:
        How relevant each token that entered is for each that leaves the last layer, at least 0.

    Raises:
        ValueError: where maps and gradients differ in number or shape, or sizes do not follow from layer
            to layer.
    """
    shapes, others = ([tuple(x.shape) for x in xs] for xs in (maps, gradients))
    if shapes != others:
        raise ValueError(f"expected a gradient of each map's shape, {shapes}, got {others}")
    pairs = zip(map(in_single, maps), map(in_single, gradients), strict=True)
    mixed = [(g * a).clamp(min=0).mean(dim=1) for a, g in pairs]

    def step(matrix: Tensor) -> Tensor:
        return matrix + torch.eye(matrix.shape[-1], device=matrix.device, dtype=matrix.dtype)

    return compose(mixed, step, rest=0.0)


def maps_and_gradients(
    model: VisionModel, images: Float[Tensor, "b c *size"], classes: Int[Tensor, " b"] | None = None
) -> tuple[Float[Tensor, "b k"], list[Map], list[Map]]:
    """Compute logits, the maps of every attention, and the gradients of one logit of each image by them.

    Parameters get no gradients. A map that the logit does not depend on has the gradient 0.

    Args:
        model: a model with a classifier.
        images: as the model takes them.
        classes: the logit of each image; the highest unless told.

    Raises:
        ValueError: where the model gives no logits, or a class is none of them.
    """
    recorder = Recorder(model)
    try:
        with eval_mode(model), torch.enable_grad():
            recording = recorder.record(images, keep_graph=True)
            logits, maps = recording.output, recording.maps
            chosen = check_classes(logits, classes, model.num_classes)
            picked = logits.gather(1, chosen.unsqueeze(1)).sum()
            gradients = torch.autograd.grad(picked, maps, materialize_grads=True)
    finally:
        recorder.eject()
    return logits.detach(), [layer.detach() for layer in maps], list(gradients)


def check_classes(
    logits: Float[Tensor, "b k"], classes: Int[Tensor, " b"] | None, num_classes: int
) -> Int[Tensor, " b"]:
    """Return the class of each image: as told, or that of the highest logit.

    Raises:
        ValueError: where there are no logits, or a class is none of them.
    """
    if num_classes == 0:
        raise ValueError("expected a model with a classifier, got one of num_classes=0")
    if classes is None:
        return logits.argmax(dim=1)
    if tuple(classes.shape) != (len(logits),) or bool(((classes < 0) | (classes >= num_classes)).any()):
        raise ValueError(
            f"expected a class from 0 to {num_classes - 1} for each of {len(logits)} images, "
            f"got {classes.tolist()}"
        )
    return classes.to(logits.device)


def class_relevance(
    model: VisionModel,
    images: Float[Tensor, "b c *size"],
    classes: Int[Tensor, " b"] | None = None,
    *,
    mode: str = "linear",
) -> Float[Tensor, " b *size"]:
    """Return how relevant each place of the image is for a class's logit (see `relevance_of_maps`).

    Args:
        model: a model of one sequence of tokens, with a classifier.
        images: as the model takes them.
        classes: a class for each image; that of the highest logit unless told.
        mode: how the patches are enlarged to pixels: "linear" or "nearest".

    Returns:
        Relevance, at least 0; comparable within an image.

    Raises:
        ValueError: where the model has no single grid or no classifier, tokens are dropped, merged or not
            what is mixed, or a class does not exist.
    """
    layout = TokenLayout.of(model, images)
    check_mixes_tokens(model)
    _, maps, gradients = maps_and_gradients(model, images, classes)
    return upsample(read_relevance(relevance_of_maps(maps, gradients), layout), images.shape[2:], mode)


def read_relevance(flow: Float[Tensor, "b q n"], layout: TokenLayout) -> Float[Tensor, " b *grid"]:
    """Take the patches' relevance for what the classifier sees, less the identity that R started as."""
    if flow.shape[1] == flow.shape[2]:
        flow = flow - torch.eye(flow.shape[1], device=flow.device, dtype=flow.dtype)
    return read_out(flow, layout)
