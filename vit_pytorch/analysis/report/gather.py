"""What a report shows of one image, computed: classes, maps, rollout, relevance, distances, colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_pytorch.analysis.attention import distance_of_map
from vit_pytorch.analysis.components import colours_of_tokens
from vit_pytorch.analysis.flow import rollout_of_maps
from vit_pytorch.analysis.layout import TokenLayout
from vit_pytorch.analysis.relevance import maps_and_gradients, relevance_of_maps
from vit_pytorch.analysis.report.places import Layer, find_layers, names_of_prefix
from vit_pytorch.model import VisionModel
from vit_pytorch.recorder import Recorder, Recording

CHEFER = "gradient-weighted attention (Chefer et al. 2021)"
GRADIENT = "gradient × input"


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
        top: indices and probabilities of classes, the most probable first.
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
) -> Explanation:
    """Compute all that a report shows of one image.

    Args:
        model: in eval, with a classifier.
        image: as the model takes it.
        name: what the report calls it.
        picture: what the report shows: the same part of the image, at any resolution.
        top: number of classes.

    Raises:
        ValueError: where the model has no classifier, or does not take the image.
    """
    if model.num_classes < 1 or top < 1:
        raise ValueError(
            f"a report needs a model with a classifier and at least 1 class to show, got num_classes="
            f"{model.num_classes} and top={top}"
        )
    images = image.unsqueeze(0)
    recording, notes = _record(model, images)
    with torch.no_grad():
        features = model.forward_intermediates(images, intermediates_only=True)
    grids = list(dict.fromkeys((int(x.shape[2]), int(x.shape[3])) for x in features))
    found = find_layers(model, recording, grids)
    probabilities, chosen = recording.output[0].softmax(0).topk(min(top, model.num_classes))
    classes = [int(index) for index in chosen]
    whole = _whole_layout(model, images, recording, found.layers)
    rollout = None
    if whole is not None:
        flow = rollout_of_maps(recording.maps)[0].unsqueeze(0)
        queries = found.layers[-1].queries if flow.shape[1] == 1 else found.layers[0].keys
        rollout = Layer("rollout", flow, queries, _tokens_of(whole))
        relevance = Relevance(CHEFER, _relevance_by_attention(model, images, classes, whole))
    else:
        relevance = Relevance(GRADIENT, relevance_by_input(model, images, classes, grids[-1]))
    distances = [_distances(layer, image.shape[1:]) for layer in found.layers]
    return Explanation(
        name=name,
        picture=picture,
        top=list(zip(classes, probabilities.tolist(), strict=True)),
        relevance=relevance,
        layers=found.layers,
        rollout=rollout,
        distances=[None if pair is None else pair[0] for pair in distances],
        uniform=[None if pair is None else pair[1] for pair in distances],
        colours=None,
        prefix=names_of_prefix(model),
        notes=[*notes, *found.notes],
    )
