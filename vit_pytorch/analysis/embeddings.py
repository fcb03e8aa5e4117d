"""What a model learned about its input: similarity of positions, filters of the patch embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.analysis.components import principal_components
from vit_pytorch.layers.patches import Conv, PatchEmbed
from vit_pytorch.layers.positions import Positions


@torch.no_grad()
def position_similarity(
    model: nn.Module, grid: Sequence[int] | None = None
) -> Float[Tensor, "*grid_and_grid"]:
    """Compute the cosine similarity of the position embeddings of all patches (ViT, figure 7 centre).

    Args:
        model: a model with `positions` that are added to its tokens, or such `Positions` themselves: learned,
            fixed or factorised.
        grid: patches along each axis; those of the largest input unless told.

    Returns:
        Values in [-1, 1] with the axes of the grid twice: `similarity[row, column]` is the map of the
        patch's similarity to all patches.

    Raises:
        ValueError: where the model has no such positions.
    """
    positions = model if isinstance(model, Positions) else getattr(model, "positions", None)
    if not isinstance(positions, Positions):
        raise ValueError(
            f"expected a model whose `positions` are added to the tokens of one grid, got a "
            f"{type(model).__name__} without"
        )
    grid = positions.grid if grid is None else tuple(grid)
    return similarity_of_table(positions.table_for(grid), grid)


def similarity_of_table(
    table: Float[Tensor, "1 n d"], grid: Sequence[int]
) -> Float[Tensor, "*grid_and_grid"]:
    """Compute the cosine similarity of the rows of a table of positions, without prefix tokens, on a grid."""
    unit = F.normalize(table[0].float(), dim=1)
    return (unit @ unit.mT).unflatten(1, tuple(grid)).unflatten(0, tuple(grid))


@torch.no_grad()
def embedding_filters(model: nn.Module, count: int = 28) -> Float[Tensor, "k c *patch"]:
    """Compute the principal components of the patch embedding's filters (ViT, figure 7 left, which shows 28).

    Each row of the linear projection is a filter of the size of a patch; their components say what of a
    patch the embedding looks at.

    Args:
        model: a model whose patches are embedded by one linear layer.
        count: number of components, the strongest first.

    Returns:
        Components of length 1, each with its largest entry positive.

    Raises:
        ValueError: where the patches are not embedded by one linear layer, or there are fewer components.
    """
    embed = getattr(model, "patch_embed", None)
    conv = embed.proj if isinstance(embed, PatchEmbed) else embed
    if not isinstance(conv, Conv):
        raise ValueError(
            f"expected a model with a linear patch embedding, a PatchEmbed or one convolution, got a "
            f"{type(model).__name__} with {'none' if embed is None else 'a ' + type(embed).__name__}"
        )
    weight = conv.weight
    return principal_components(weight.flatten(1), count).axes.to(weight).unflatten(1, weight.shape[1:])
