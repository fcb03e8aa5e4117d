"""Figures of what the functions of this package return.

Pictures are images as they are drawn, with values in [0, 1] (see `to_pictures`). Of videos and volumes, whose
first axis is time or depth, some frames are drawn side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_pytorch.lettering import letter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_FRAMES = 8
SIDE = 2.2


def plot_rollout(heat: Float[Tensor, " b *size"], pictures: Float[Tensor, "b c *size"]) -> Figure:
    """Draw what `rollout` gives over each picture.

    Args:
        heat: weights on the image.
        pictures: the same images, in [0, 1].
    """
    return _plot_heat([heat], pictures, ["attention rollout"])


def plot_class_relevance(
    heat: Float[Tensor, " b *size"], pictures: Float[Tensor, "b c *size"], classes: Sequence[str] = ()
) -> Figure:
    """Draw what `class_relevance` gives over each picture.

    Args:
        heat: relevance on the image.
        pictures: the same images, in [0, 1].
        classes: name of the class that was explained, for each image; none at all for no names.

    Raises:
        ValueError: where there are some names, but not one for each image.
    """
    if len(classes) not in (0, len(pictures)):
        raise ValueError(f"expected a class for each of {len(pictures)} images, got {len(classes)}")
    from matplotlib import rc_context

    families, names = letter(classes)
    titles = [f"relevance for {name}" for name in names] or ["relevance"] * len(pictures)
    with rc_context({"font.family": families}):
        return _plot_heat([heat], pictures, titles, by_image=True)


def plot_class_attention(maps: Float[Tensor, "b h *size"], pictures: Float[Tensor, "b c *size"]) -> Figure:
    """Draw what `class_attention` gives over each picture, head by head.

    Args:
        maps: weights on the image, by head.
        pictures: the same images, in [0, 1].
    """
    return _plot_heat(list(maps.unbind(1)), pictures, [f"head {head}" for head in range(maps.shape[1])])


def plot_attention_distance(distance: Float[Tensor, "layers h"]) -> Figure:
    """Draw what `attention_distance` gives: a dot for each head, by layer (ViT, figure 7 right).

    Args:
        distance: distances in pixels.
    """
    figure = _figure(5.5, 3.6)
    axes = figure.subplots()
    layers, heads = distance.shape
    numbers = torch.arange(layers)[:, None].expand(-1, heads).flatten()
    axes.scatter(
        numbers.tolist(), distance.flatten().tolist(), c=list(range(heads)) * layers, cmap="tab20", s=18
    )
    axes.plot(distance.mean(dim=1).tolist(), color="0.6", zorder=0, label="mean of the heads")
    axes.set(
        xlabel="layer", ylabel="mean attention distance (pixels)", xticks=range(0, layers, 1 + layers // 16)
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_position_similarity(similarity: Float[Tensor, "*grid_and_grid"], frame: int = 0) -> Figure:
    """Draw what `position_similarity` gives: for each patch, a map of its similarity to all (ViT, figure 7).

    Args:
        similarity: cosines, with the axes of the grid twice.
        frame: which place on the first axis of a 3-D grid is drawn, on itself.

    Raises:
        ValueError: where the grid does not have 1 to 3 axes.
    """
    rank = similarity.ndim // 2
    if rank not in (1, 2, 3) or similarity.shape[:rank] != similarity.shape[rank:]:
        raise ValueError(
            f"expected the axes of a grid of rank 1 to 3 twice, got shape {tuple(similarity.shape)}"
        )
    if rank == 3:
        similarity = similarity[frame, :, :, frame]
    figure = _figure(5.6, 4.8)
    axes = figure.subplots()
    if rank == 1:
        tiles = similarity
        axes.set(xlabel="patch", ylabel="patch")
    else:
        rows, columns = similarity.shape[:2]
        tiles = similarity.new_full((rows, rows + 1, columns, columns + 1), torch.nan)
        tiles[:, :rows, :, :columns] = similarity.transpose(1, 2)
        tiles = tiles.reshape(rows * (rows + 1), -1)[:-1, :-1]
        axes.set(xlabel="column of the patch", ylabel="row of the patch")
        for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
            shown = range(0, count, 1 + count // 10)
            axis.set_ticks([i * (count + 1) + (count - 1) / 2 for i in shown], [str(i) for i in shown])
    drawn = axes.imshow(tiles.numpy(force=True), vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
    figure.colorbar(drawn, ax=axes, label="cosine similarity", shrink=0.85)
    return figure


def plot_embedding_filters(filters: Float[Tensor, "k c *patch"], columns: int = 7, frame: int = 0) -> Figure:
    """Draw what `embedding_filters` gives, each in its own range (ViT, figure 7 left).

    Args:
        filters: components of the size of a patch.
        columns: how many stand side by side.
        frame: which place on the first axis of a 3-D patch is drawn.

    Raises:
        ValueError: where a patch is neither 2-D nor 3-D.
    """
    if filters.ndim not in (4, 5):
        raise ValueError(f"expected filters of 2-D or 3-D patches, got shape {tuple(filters.shape)}")
    if filters.ndim == 5:
        filters = filters[:, :, frame]
    columns = min(columns, len(filters))
    rows = -(-len(filters) // columns)
    figure = _figure(0.8 * columns, 0.8 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, component in zip(grid.flat, filters, strict=False):
        _show(axes, _scale(component))
    return figure


def plot_layer_similarity(
    similarity: Float[Tensor, "layers others"], labels: tuple[str, str] = ("layer", "layer")
) -> Figure:
    """Draw what `layer_similarity` gives, the first layers at the bottom left.

    Args:
        similarity: CKA of each pair of layers.
        labels: what the rows and the columns are.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(4.8, 4.0)
    axes = figure.subplots()
    drawn = axes.imshow(similarity.numpy(force=True), origin="lower", vmin=0, vmax=1, cmap="magma")
    axes.set(ylabel=labels[0], xlabel=labels[1])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(drawn, ax=axes, label="CKA")
    return figure


def plot_token_colours(colours: Float[Tensor, "b *grid 3"], pictures: Float[Tensor, "b c *size"]) -> Figure:
    """Draw the colours that `token_colours` gives below each picture.

    Args:
        colours: red, green and blue of every patch, in [0, 1].
        pictures: the same images, in [0, 1].
    """
    tokens = colours.movedim(-1, 1)
    figure, grid = _grid(pictures, rows=2)
    for row, values in enumerate((pictures, tokens)):
        for axes, frame in zip(grid[row], _frames(values), strict=True):
            _show(axes, frame)
    return figure


def plot_reconstruction(parts: Sequence[Float[Tensor, "b c *size"]], titles: Sequence[str] = ()) -> Figure:
    """Draw what an autoencoder saw, predicted, and both put together, in a row each.

    Args:
        parts: pictures of one shape in [0, 1]: as a rule the images and what `MAE.reconstruct` gives of them,
            each through `to_pictures`. Values outside are cut.
        titles: of each row.

    Raises:
        ValueError: where the parts differ in shape, or there are titles for other rows.
    """
    shapes = [tuple(part.shape) for part in parts]
    if len(set(shapes)) != 1 or (titles and len(titles) != len(parts)):
        raise ValueError(f"expected pictures of one shape and a title each, got {shapes} and {list(titles)}")
    figure, grid = _grid(parts[0], rows=len(parts))
    for row, part in enumerate(parts):
        for axes, frame in zip(grid[row], _frames(part.clamp(0, 1)), strict=True):
            _show(axes, frame)
        if titles:
            grid[row, 0].set_title(titles[row], fontsize=9, loc="left")
    return figure


def _plot_heat(
    heats: Sequence[Float[Tensor, " b *size"]],
    pictures: Float[Tensor, "b c *size"],
    titles: Sequence[str],
    *,
    by_image: bool = False,
) -> Figure:
    """Draw pictures in the first row and maps over them below, each in its own range.

    Args:
        heats: maps on the images, a row of the figure each.
        pictures: the images.
        titles: of each row, or of each image.
        by_image: which of the two.

    Raises:
        ValueError: where the maps are not of the pictures' size and number.
    """
    expected = (len(pictures), *pictures.shape[2:])
    if any(tuple(heat.shape) != expected for heat in heats):
        raise ValueError(f"expected maps of the pictures' shape, {expected}, got {tuple(heats[0].shape)}")
    figure, grid = _grid(pictures, rows=1 + len(heats))
    frames = _frames(pictures)
    each = len(frames) // len(pictures)
    for axes, picture in zip(grid[0], frames, strict=True):
        _show(axes, picture)
    for row, heat in enumerate(heats, 1):
        scaled = torch.stack([_scale(one) for one in heat]).unsqueeze(1)
        for column, (picture, weights) in enumerate(zip(frames, _frames(scaled), strict=True)):
            axes = grid[row, column]
            _show(axes, picture.mean(dim=0, keepdim=True))
            axes.imshow(weights[0].numpy(force=True), cmap="inferno", vmin=0, vmax=1, alpha=0.6)
            if column % each == 0 and (by_image or column == 0):
                axes.set_title(titles[column // each if by_image else row - 1], fontsize=9, loc="left")
    return figure


def _figure(width: float, height: float) -> Figure:
    """Make a figure that belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _grid(pictures: Float[Tensor, "b c *size"], *, rows: int) -> tuple[Figure, Any]:
    """Make a figure with rows of a place for each frame of each picture."""
    columns = len(_frames(pictures))
    height, width = pictures.shape[-2:]
    figure = _figure(SIDE * columns, SIDE * rows * height / width + 0.2 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    return figure, grid


def _frames(values: Float[Tensor, "b c *size"]) -> list[Float[Tensor, "c h w"]]:
    """List what is drawn: images as they are, of videos and volumes up to eight frames each.

    Raises:
        ValueError: where it is neither.
    """
    if values.ndim == 4:
        return list(values)
    if values.ndim != 5:
        raise ValueError(f"expected images (b c h w) or videos (b c t h w), got shape {tuple(values.shape)}")
    count = values.shape[2]
    shown = torch.linspace(0, count - 1, min(count, MOST_FRAMES)).round().long()
    return [video[:, frame] for video in values for frame in shown]


def _scale(values: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Stretch values to [0, 1]."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)


def _show(axes: Axes, picture: Float[Tensor, "c h w"]) -> None:
    """Draw a picture: in colour where it has three channels, else the mean of its channels in grey."""
    if picture.shape[0] == 3:
        axes.imshow(picture.movedim(0, -1).clamp(0, 1).numpy(force=True))
    else:
        axes.imshow(picture.mean(dim=0).numpy(force=True), cmap="gray", vmin=0, vmax=1)
