"""Pictures of what a model that learns without labels makes of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from lightning.fabric.loggers import Logger, TensorBoardLogger
from torch import Tensor, nn

from vit_pytorch.analysis.attention import class_attention
from vit_pytorch.base import VisionModel
from vit_pytorch.data import ImageData, eval_transform
from vit_pytorch.data.seeding import generator_for
from vit_pytorch.dino import Dino
from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.wrapper import eval_mode
from vit_pytorch.mae import MAE
from vit_pytorch.preprocessing import Normalize
from vit_pytorch.simmim import SimMIM
from vit_pytorch.ssl.probes import extract
from vit_pytorch.storage import replacing
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.pictures import as_rgb_or_grey
from vit_pytorch.training.pretraining.config import MonitorConfig
from vit_pytorch.training.pretraining.methods import backbone_of
from vit_pytorch.training.pretraining.monitor import due
from vit_pytorch.training.probing import spread_over

if TYPE_CHECKING:
    from vit_pytorch.training.loop import Loop

FOLDER = "pictures"


class Pictures(Callback):
    """Draws the same validation images at intervals, into PNG files and for TensorBoard.

    Of MAE and SimMIM a column an image: itself, what the model saw of it, and what was made of that, with the
    visible patches pasted in; the masks are the same every time. Of a teacher: the image, and where its class
    token looks in the last layer, by head; of models without class token the three principal components of
    the features of the last map, as colours. Other methods have no pictures.

    Args:
        config: How often, and how many images.
        data: The images of the training.
        folder: The run's folder.
        loggers: Those of TensorBoard take the pictures, too.
    """

    def __init__(
        self, config: MonitorConfig, data: ImageData, folder: Path, loggers: Sequence[Logger] = ()
    ) -> None:
        self.config = config
        self.loggers = loggers
        self.folder = folder / FOLDER
        self._images = spread_over(data.opened.val, config.pictures)
        self._prep = data.preprocessing

    def on_validation_end(self, loop: Loop, metrics: dict[str, float]) -> None:
        """Draw, if it is time."""
        if loop.fabric.is_global_zero and due(self.config.pictures_every, loop):
            self.draw(loop)

    def draw(self, loop: Loop) -> None:
        """Write the pictures of an epoch; nothing where the method has none."""
        method = loop.task.model
        images = self._read().to(loop.fabric.device, next(method.parameters()).dtype)
        with loop.fabric.autocast():
            rows = picture_rows(method, images, Normalize(self._prep).invert)
        if not rows:
            return
        sheet = make_sheet(rows)
        _write_png(sheet, self.folder / f"epoch-{loop.epoch + 1:04d}.png")
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("pictures", sheet, loop.step)

    def _read(self) -> Float[Tensor, "b c h w"]:
        transform, images = eval_transform(self._prep), self._images
        return torch.stack(
            [transform(images.read(number, self._prep.channels)) for number in range(len(images))]
        )


def picture_rows(method: nn.Module, images: Float[Tensor, "b c h w"], pixels: Any) -> list[Tensor]:
    """Return the rows of a sheet, each a picture of every image in [0, 1]; none for methods without pictures.

    Args:
        method: What learns; in eval meanwhile.
        images: As the model takes them.
        pixels: Gives values in [0, 1] from such images.
    """
    if isinstance(method, MAE):
        with eval_mode(method), torch.no_grad():
            _, mask = method.predict(images, generator=generator_for(0))
            made = method.reconstruct(images, generator=generator_for(0))
        return [pixels(images), _seen(method, mask, images, pixels), pixels(made.pasted)]
    if isinstance(method, SimMIM):
        with eval_mode(method), torch.no_grad():
            mask = method.draw_mask(images, generator_for(0))
            predicted = method.predict(images, mask)
        grid = method.encoder.grid
        patches = method.encoder.patchify(images).to(predicted)
        pasted = grid.unpatchify(torch.where(mask[..., None], predicted, patches), grid.fit(images.shape[2:]))
        return [pixels(images), _seen(method, mask, images, pixels), pixels(pasted)]
    if isinstance(method, Dino):
        model = backbone_of(method)
        return [pixels(images), *(attention_rows(model, images) or component_rows(model, images))]
    return []


def _seen(method: MAE | SimMIM, mask: Tensor, images: Float[Tensor, "b c h w"], pixels: Any) -> Tensor:
    """Return images with grey where patches are hidden."""
    encoder = method.encoder
    hidden = mask[..., None].expand_as(encoder.patchify(images)).to(images.dtype)
    shown = encoder.grid.unpatchify(hidden, encoder.grid.fit(images.shape[2:])) > 0.5
    return pixels(images).masked_fill(shown.cpu(), 0.5)


def attention_rows(model: VisionModel, images: Float[Tensor, "b c h w"]) -> list[Tensor]:
    """Return where the class token looks, a row a head, each picture between its least and greatest value."""
    if not isinstance(model, IsotropicModel) or model.pool != "cls" or not model.num_prefix_tokens:
        return []
    maps = class_attention(model, images, mode="nearest").float().cpu()
    return [_stretch(head[:, None]) for head in maps.unbind(dim=1)]


@torch.no_grad()
def component_rows(model: VisionModel, images: Float[Tensor, "b c h w"]) -> list[Tensor]:
    """Return the three principal components of the last map's cells as red, green and blue."""

    def cells(part: Tensor) -> Tensor:
        maps = model.forward_intermediates(part, indices=1, intermediates_only=True)
        assert isinstance(maps, list)
        assert isinstance(maps[0], Tensor)
        return maps[0]

    with eval_mode(model):
        maps = extract(cells, images).float().cpu()
    flat = maps.flatten(2).transpose(1, 2).flatten(0, 1)
    flat = flat - flat.mean(dim=0)
    _, _, axes = torch.linalg.svd(flat, full_matrices=False)
    shown = torch.zeros(len(flat), 3)
    found = flat @ axes[:3].T
    shown[:, : found.shape[1]] = found
    colours = shown.unflatten(0, (len(maps), -1)).transpose(1, 2).unflatten(2, maps.shape[2:])
    return [nn.functional.interpolate(_stretch(colours), images.shape[2:], mode="nearest")]


def make_sheet(rows: list[Tensor]) -> Float[Tensor, "3 h w"]:
    """Put rows of pictures under each other, images beside each other, with a white line between."""
    coloured = [as_rgb_or_grey(row).expand(-1, 3, -1, -1) for row in rows]
    framed = [nn.functional.pad(row, (1, 1, 1, 1), value=1.0) for row in coloured]
    return torch.cat([torch.cat(list(row), dim=2) for row in framed], dim=1)


def _stretch(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Bring each picture's channels to the range from 0 to 1."""
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)


def _write_png(sheet: Float[Tensor, "3 h w"], path: Path) -> None:
    """Write a picture, enlarged in whole steps until it can be looked at."""
    from PIL import Image

    pixels = (sheet * 255).round().to(torch.uint8).movedim(0, -1)
    factor = max(1, 1200 // max(pixels.shape[:2]))
    pixels = pixels.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1)
    with replacing(path) as file:
        Image.fromarray(pixels.numpy()).save(file)
