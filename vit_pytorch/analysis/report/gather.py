"""What a report shows of one image, computed: classes, maps, rollout, relevance, distances, colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vit_pytorch.analysis.attention import distance_of_map
from vit_pytorch.analysis.components import colours_of_tokens
from vit_pytorch.analysis.flow import rollout_of_maps
from vit_pytorch.analysis.layout import TokenLayout
from vit_pytorch.analysis.relevance import maps_and_gradients, read_relevance, relevance_of_maps
from vit_pytorch.analysis.report.places import Found, Layer, Places, find_layers, names_of_prefix
from vit_pytorch.base import VisionModel
from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.recorder import Recorder, Recording

CHEFER = "gradient-weighted attention (Chefer et al. 2021)"
GRADIENT = "gradient × input"
PROBABILITIES = partial(torch.softmax, dim=-1)


@dataclass(frozen=True)
class Relevance:
    """How much each place of the image counts for some classes.

    Args:
        method: how it was computed.
        maps: one for each class, at least 0.
    """

    method: str
    maps: Float[Tensor, "k rows columns"]


@dataclass(frozen=True)
class Explanation:
    """What there is to see of a model on one image.

    Args:
        name: of the image.
        picture: the part of the image that the model sees, at any resolution.
        scores: of all outputs, such as probabilities of classes.
        top: indices and scores of the highest of them, the highest first.
        relevance: for those classes, in their order.
        layers: attention between tokens that lie on the image, in the order of execution.
        rollout: attention followed through all layers, as one more layer of one head.
        distances: mean attention distance of each layer by head, in pixels; None for a layer that has none.
        uniform: the distance of each layer if it attended to all patches alike.
        colours: red, green and blue of each patch of the last features, by principal components.
        prefix: names of the tokens in front of the patches.
        pooled: whether no token but the mean of the patches is what is classified.
        notes: what could not be shown, and why.
    """

    name: str
    picture: UInt8[Tensor, "c h w"]
    scores: Float[Tensor, " k"]
    top: list[tuple[int, float]]
    relevance: Relevance
    layers: list[Layer] = field(default_factory=list)
    rollout: Layer | None = None
    distances: list[list[float] | None] = field(default_factory=list)
    uniform: list[float | None] = field(default_factory=list)
    colours: Float[Tensor, "rows columns 3"] | None = None
    prefix: list[str] = field(default_factory=list)
    pooled: bool = False
    notes: list[str] = field(default_factory=list)


def explain_image(
    model: VisionModel,
    image: Float[Tensor, "c h w"],
    *,
    name: str = "image",
    picture: UInt8[Tensor, "c h2 w2"],
    top: int = 5,
    scores: Callable[[Tensor], Tensor] = PROBABILITIES,
) -> Explanation:
    """Compute all that a report shows of one image.

    Args:
        model: in eval, with a classifier.
        image: as the model takes it.
        name: what the report calls it.
        picture: what the report shows: the same part of the image, at any resolution.
        top: number of classes.
        scores: gives probabilities of classes, or what else outputs stand for, from the model's outputs.

    Raises:
        ValueError: where the model has no classifier, is one of videos, volumes or signals, or does not take
            the image.
    """
    if len(model.image_size) != 2:
        raise ValueError(f"a report shows images, and the model takes inputs of size {model.image_size}")
    if model.num_classes < 1 or top < 1:
        raise ValueError(
            f"a report needs a model with a classifier and at least 1 class to show, got num_classes="
            f"{model.num_classes} and top={top}"
        )
    images = image.unsqueeze(0)
    features = _features(model, images)
    grids = list(dict.fromkeys((int(x.shape[2]), int(x.shape[3])) for x in features))
    recording, notes = _record(model, images)
    found = find_layers(model, recording, grids)
    found_scores = scores(recording.output)[0].cpu()
    probabilities, chosen = found_scores.topk(min(top, model.num_classes))
    classes = [int(index) for index in chosen]
    notes += found.notes
    rollout, relevance = None, None
    try:
        layout = _one_sequence(model, images, found)
        rollout = _rollout(found, layout)
        relevance = Relevance(CHEFER, relevance_by_attention(model, images, classes, layout))
    except ValueError as error:
        notes.append(f"Rollout is not shown, and relevance is {GRADIENT} here: {error}.")
    if relevance is None:
        relevance = Relevance(GRADIENT, relevance_by_input(model, images, classes, grids[-1]))
    distances = [_distances(layer, image.shape[1:]) for layer in found.layers]
    return Explanation(
        name=name,
        picture=picture,
        scores=found_scores,
        top=list(zip(classes, probabilities.tolist(), strict=True)),
        relevance=relevance,
        layers=found.layers,
        rollout=rollout,
        distances=[None if pair is None else pair[0] for pair in distances],
        uniform=[None if pair is None else pair[1] for pair in distances],
        colours=colours_of_tokens(features[-1].movedim(1, -1)).colours[0],
        prefix=names_of_prefix(model),
        pooled=isinstance(model, IsotropicModel) and model.pool == "mean",
        notes=notes,
    )


def relevance_by_attention(
    model: VisionModel, images: Float[Tensor, "1 c h w"], classes: Sequence[int], layout: TokenLayout
) -> Float[Tensor, "k rows columns"]:
    """Compute the relevance of each patch for some classes from the maps and their gradients.

    Args:
        model: a model of one sequence of tokens.
        images: one image.
        classes: indices of logits.
        layout: where the tokens lie.
    """
    found = []
    for index in classes:
        _, maps, gradients = maps_and_gradients(model, images, torch.tensor([index], device=images.device))
        found.append(read_relevance(relevance_of_maps(maps, gradients), layout)[0])
    return torch.stack(found)


def relevance_by_input(
    model: nn.Module, images: Float[Tensor, "1 c h w"], classes: Sequence[int], grid: tuple[int, int]
) -> Float[Tensor, "k rows columns"]:
    """Compute the positive part of gradient times input, summed over channels, averaged over cells of a grid.

    Args:
        model: gives logits from images.
        images: one image.
        classes: indices of logits.
        grid: rows and columns.
    """
    found = []
    for index in classes:
        pixels = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(model(pixels)[0, index], pixels)
        product = (gradient * images).sum(dim=1, keepdim=True).clamp(min=0)
        found.append(F.adaptive_avg_pool2d(product, grid)[0, 0])
    return torch.stack(found)


def _features(
    model: VisionModel, images: Float[Tensor, "1 c h w"]
) -> list[Float[Tensor, "1 d rows columns"]]:
    with torch.no_grad():
        features: Any = model.forward_intermediates(images, norm=False, intermediates_only=True)
    return list(features)


def _record(model: VisionModel, images: Float[Tensor, "1 c h w"]) -> tuple[Recording, list[str]]:
    """Record a model; one in which nothing can be recorded gives no maps and a note."""
    try:
        recorder = Recorder(model)
    except ValueError as error:
        with torch.no_grad():
            return Recording(model(images), [], []), [f"Attention is not shown: {error}."]
    try:
        with torch.no_grad():
            return recorder.record(images), []
    finally:
        recorder.eject()


def _one_sequence(model: VisionModel, images: Float[Tensor, "1 c h w"], found: Found) -> TokenLayout:
    """Return the layout of a model whose patches can be followed through all layers.

    Raises:
        ValueError: where they cannot.
    """
    if found.notes or not found.layers:
        raise ValueError("attention can be followed where it mixes patches, and keeps them, in all layers")
    return TokenLayout.of(model, images)


def _rollout(found: Found, layout: TokenLayout) -> Layer:
    flow = rollout_of_maps([layer.maps.unsqueeze(0) for layer in found.layers])
    prefix = flow.shape[2] - layout.num_patches
    keys = Places(prefix, *layout.grid)
    return Layer("rollout", flow, Places(1) if flow.shape[1] == 1 else keys, keys)


def _distances(layer: Layer, size: Sequence[int]) -> tuple[list[float], float] | None:
    """Return the mean attention distance of each head, and that of uniform attention; None without a grid."""
    if layer.queries != layer.keys:
        return None
    grid = (layer.keys.rows, layer.keys.columns)
    patch = tuple(max(1, round(s / g)) for s, g in zip(size, grid, strict=True))
    layout = TokenLayout(grid, patch, layer.keys.prefix)
    distances = distance_of_map(layer.maps.unsqueeze(0), layout)[0]
    uniform = distance_of_map(torch.full_like(layer.maps[:1], 1 / layer.keys.count).unsqueeze(0), layout)
    return [float(value) for value in distances], float(uniform)
