"""Maps of attention, read on the image: class attention, rollout, mean attention distance."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.analysis.flow import normalise_rows, read_out, rollout_of_maps
from vit_pytorch.analysis.layout import Map, TokenLayout, in_single, upsample
from vit_pytorch.layers.attention import CrossCovariance
from vit_pytorch.layers.wrapper import eval_mode
from vit_pytorch.recorder import Recorder


@torch.no_grad()
def record_maps(model: nn.Module, images: Float[Tensor, "b c *size"]) -> list[Map]:
    """Record the maps of every attention of a model in the order in which it runs, in eval."""
    recorder = Recorder(model)
    try:
        with eval_mode(model):
            return recorder.maps(images)
    finally:
        recorder.eject()


def token_maps(model: nn.Module, images: Float[Tensor, "b c *size"]) -> list[Map]:
    """Record the maps of a model whose attention all mixes tokens (see `record_maps`).

    Raises:
        ValueError: where some of it mixes channels.
    """
    check_mixes_tokens(model)
    return record_maps(model, images)


def check_mixes_tokens(model: nn.Module) -> None:
    """Hold a model against the need that its attention mixes tokens.

    Raises:
        ValueError: where some of it mixes channels.
    """
    if any(isinstance(module, CrossCovariance) for module in model.modules()):
        raise ValueError(
            f"expected attention between tokens in all layers, got a {type(model).__name__}, whose "
            "cross-covariance mixes channels"
        )


def rollout(
    model: nn.Module,
    images: Float[Tensor, "b c *size"],
    *,
    fuse: str = "mean",
    identity: float = 0.5,
    mode: str = "linear",
) -> Float[Tensor, " b *size"]:
    """Return how much of each place of the image reaches the classifier by attention (see `rollout_of_maps`).

    Read for the class token or the attention pool, or else averaged over the patches.

    Args:
        model: a model of one sequence of tokens.
        images: as the model takes them.
        fuse: over heads: "mean", "max" or "min".
        identity: weight of the residual, in [0, 1].
        mode: how the patches are enlarged to pixels: "linear" or "nearest".

    Returns:
        Weights; on the grid of patches they sum to 1, less what prefix tokens hold.

    Raises:
        ValueError: where the model has no single grid, or tokens are dropped, merged or not what is mixed.
    """
    layout = TokenLayout.of(model, images)
    flow = rollout_of_maps(token_maps(model, images), fuse=fuse, identity=identity)
    return upsample(read_out(flow, layout), images.shape[2:], mode)


def class_attention_of_map(
    attention: Float[Tensor, "b h q k"], layout: TokenLayout
) -> Float[Tensor, "b h *grid"]:
    """Return what the class token takes from each patch in one layer, by head.

    Args:
        attention: map of the layer; that of a single query is its row, be it a class token's that attends
            alone (CaiT, XCiT) or an attention pool's.
        layout: where the tokens lie.

    Raises:
        ValueError: where there is no class token, or the keys are not the tokens of the grid.
    """
    queries, keys = attention.shape[2:]
    if queries != 1 and not layout.class_token:
        raise ValueError(
            f"expected a map of a class token or of one query, got a map of {queries} queries from a model "
            "that does not classify a class token"
        )
    if queries != 1 and keys != layout.num_patches + layout.prefix:
        raise ValueError(
            f"expected {layout.prefix} prefix tokens and the {layout.num_patches} patches of a grid of "
            f"{layout.grid} as keys, got {keys}"
        )
    return layout.on_grid(attention[:, :, 0])


def class_attention(
    model: nn.Module, images: Float[Tensor, "b c *size"], *, layer: int = -1, mode: str = "linear"
) -> Float[Tensor, "b h *size"]:
    """Return what the class token takes from each place of the image in one layer, by head.

    Args:
        model: a model with a class token, or with an attention pool as its last layer.
        images: as the model takes them.
        layer: index of the attention in the order in which the model runs; negative from the end.
        mode: how the patches are enlarged to pixels: "linear" or "nearest".

    Returns:
        Weights of attention: on the grid of patches a head's sum to 1, less what it takes from prefix tokens.

    Raises:
        ValueError: where there is no such layer, no class token or no single grid.
    """
    layout = TokenLayout.of(model, images)
    maps = record_maps(model, images)
    if not -len(maps) <= layer < len(maps):
        raise ValueError(f"layers are {-len(maps)} to {len(maps) - 1}, got {layer}")
    return upsample(class_attention_of_map(maps[layer], layout), images.shape[2:], mode)


def distance_of_map(
    attention: Float[Tensor, "b h q k"], layout: TokenLayout, *, renormalise: bool = True
) -> Float[Tensor, "b h"]:
    """Compute the mean attention distance of one layer, by head (ViT, appendix D.7, figures 7 right and 11).

    The distance in pixels between the centres of query and key, weighted by attention, averaged over the
    queries. Prefix tokens, which lie nowhere, are left out on both sides.

    Args:
        attention: map of the layer.
        layout: where the tokens lie.
        renormalise: whether what is left of a row is divided by its sum, so that the distance is a mean;
            without, what goes to prefix tokens counts as distance 0.

    Raises:
        ValueError: where the map is not one of the grid's tokens on themselves.
    """
    queries, keys = attention.shape[2:]
    patches = layout.num_patches
    if queries != keys or keys not in (patches, patches + layout.prefix):
        raise ValueError(
            f"expected a map of {patches} patches and at most {layout.prefix} prefix tokens on themselves, "
            f"got {queries} queries and {keys} keys"
        )
    weights = in_single(attention[:, :, keys - patches :, keys - patches :])
    if renormalise:
        weights = normalise_rows(weights)
    return (weights * patch_distances(layout).to(weights)).sum(dim=3).mean(dim=2)


def patch_distances(layout: TokenLayout) -> Float[Tensor, "n n"]:
    """Compute the distances between the centres of all patches, in pixels (frames along time count alike)."""
    axes = [torch.arange(g, dtype=torch.float64) * p for g, p in zip(layout.grid, layout.patch, strict=True)]
    places = torch.cartesian_prod(*axes).view(layout.num_patches, -1)
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").float()


def attention_distance(
    model: nn.Module, images: Float[Tensor, "b c *size"], *, renormalise: bool = True
) -> Float[Tensor, "layers h"]:
    """Compute the mean attention distance by layer and head, averaged over images (see `distance_of_map`).

    Layers in which one query attends alone have no distance and are left out.

    Args:
        model: a model of one sequence of tokens.
        images: as the model takes them; the paper averages over 128.
        renormalise: whether attention to prefix tokens is left out of the mean or counts as distance 0.

    Returns:
        Distances in pixels.

    Raises:
        ValueError: where the model has no single grid, or its layers differ in their numbers of heads.
    """
    layout = TokenLayout.of(model, images)
    square = [layer for layer in token_maps(model, images) if layer.shape[2] > 1]
    distances = [distance_of_map(layer, layout, renormalise=renormalise).mean(dim=0) for layer in square]
    if len({len(layer) for layer in distances}) != 1:
        raise ValueError(
            f"expected layers of equal numbers of heads, got {[len(layer) for layer in distances]}"
        )
    return torch.stack(distances)
