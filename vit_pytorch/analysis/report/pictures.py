"""Pictures of a report: as files beside it, and as text inside it."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_pytorch.analysis.layout import upsample
from vit_pytorch.analysis.report.gather import Explanation
from vit_pytorch.analysis.report.places import Layer
from vit_pytorch.lettering import letter
from vit_pytorch.storage import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

SMALL = 128
STRENGTH = 0.6


def as_url(picture: UInt8[Tensor, "c h w"]) -> str:
    """Write a picture as a data URL: JPEG, or PNG where it is so small that every pixel counts."""
    kind = "PNG" if max(picture.shape[1:]) < SMALL else "JPEG"
    buffer = BytesIO()
    to_image(picture).save(buffer, kind, **({} if kind == "PNG" else {"quality": 88}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def to_image(picture: UInt8[Tensor, "c h w"]) -> Image:
    """Return a picture of one channel or three to Pillow; of others the first one is shown."""
    from PIL import Image

    array = picture.movedim(0, -1).numpy(force=True)
    return Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0]).convert("RGB")


def write_pictures(shown: Explanation, folder: Path, stem: str) -> list[Path]:
    """Write what a report shows of an image as PNG files.

    Args:
        shown: what is known of the image.
        folder: where to.
        stem: of the files' names.

    Returns:
        The files: the picture; relevance for the most probable class; where there are, rollout, and the
        attention of each layer.
    """
    files = {"original": to_image(shown.picture)}
    files["relevance"] = _overlay(shown.picture, shown.relevance.maps[0])
    if shown.rollout is not None:
        files["rollout"] = _overlay(shown.picture, mean_attention(shown.rollout, pooled=shown.pooled))
    paths = []
    for kind, image in files.items():
        paths.append(folder / f"{stem}-{kind}.png")
        with replacing(paths[-1]) as file:
            image.save(file)
    if shown.layers:
        paths.append(folder / f"{stem}-layers.png")
        with replacing(paths[-1]) as file:
            _draw_layers(shown).savefig(file, dpi=100)
    return paths


def mean_attention(layer: Layer, *, pooled: bool) -> Float[Tensor, "rows columns"]:
    """Return what the first token takes from each patch, or the patches on average; the mean over heads.

    Args:
        layer: the layer.
        pooled: whether the mean of the patches is what is classified.
    """
    maps = layer.maps.mean(dim=0)
    lone = layer.queries.prefix and not (pooled and layer.queries.rows)
    row = maps[0] if lone else maps[layer.queries.prefix :].mean(dim=0)
    return row[layer.keys.prefix :].unflatten(0, (layer.keys.rows, layer.keys.columns))


def _overlay(picture: UInt8[Tensor, "c h w"], heat: Float[Tensor, "rows columns"]) -> Image:
    """Lay a map over a picture: from 0 to the map's largest value."""
    from matplotlib import colormaps
    from PIL import Image

    base = np.asarray(to_image(picture), dtype=np.float32)
    base = base.mean(axis=2, keepdims=True)
    large = upsample(heat.float(), picture.shape[1:]).numpy(force=True)
    colours = colormaps["inferno"](large / max(float(large.max()), 1e-30))[..., :3] * 255
    mixed: npt.NDArray[Any] = (1 - STRENGTH) * base + STRENGTH * colours
    return Image.fromarray(mixed.round().astype(np.uint8))


def _draw_layers(shown: Explanation) -> Any:
    """Draw the attention of every layer, small."""
    from matplotlib.figure import Figure

    count = len(shown.layers)
    columns = min(count, 8 if count > 12 else 6)
    rows = -(-count // columns)
    height, width = shown.picture.shape[1:]
    figure = Figure(
        figsize=(1.5 * columns, (1.5 * height / width + 0.25) * rows + 0.35), layout="constrained"
    )
    seen = "on average" if shown.pooled or not shown.prefix else f"from the {shown.prefix[0]}"
    families, (name,) = letter([shown.name])
    figure.suptitle(f"{name}: attention seen {seen}, mean of the heads", fontsize=10, family=families)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for index, (axes, layer) in enumerate(zip(grid.flat, shown.layers, strict=False), 1):
        axes.imshow(_overlay(shown.picture, mean_attention(layer, pooled=shown.pooled)))
        axes.set_title(f"layer {index}", fontsize=8)
    return figure
