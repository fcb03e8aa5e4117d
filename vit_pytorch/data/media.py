"""Videos and volumes in files, as data sets."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_pytorch.data import video, volumes
from vit_pytorch.data.arrays import scale
from vit_pytorch.data.clips import choose_frames
from vit_pytorch.data.datasets import FileImages, convert_channels
from vit_pytorch.preprocessing import Preprocessing, VolumeConfig


class VideoFiles(FileImages):
    """Videos in files, of which clips are decoded when they are read."""

    kind = "video"
    axes = 3
    extensions = video.EXTENSIONS
    varies = True
    own_channels = 3
    is_known = None

    def read(
        self, index: int, channels: int, window: tuple[float, float] | None = None
    ) -> UInt8[Tensor, "t c h w"]:
        """Return all frames of one video, values 0 to 255, in grey or RGB."""
        with video.VideoReader(self.paths[index]) as reader:
            return convert_channels(scale(reader.read(range(reader.count)), window), channels)

    def look(
        self, index: int, prep: Preprocessing, generator: torch.Generator | None = None
    ) -> UInt8[Tensor, "t c h w"]:
        """Return a clip of one video: a random one where there is a generator."""
        assert prep.frames is not None, "models of videos take frames"
        with video.VideoReader(self.paths[index]) as reader:
            chosen = choose_frames(reader.count, prep.frames, prep.video, generator)
            return convert_channels(reader.read(chosen), prep.channels)


class VolumeFiles(FileImages):
    """Volumes in NIfTI files, as stacks of slices."""

    kind = "volume"
    axes = 3
    extensions = volumes.EXTENSIONS
    own_channels = 1
    is_known = None

    def read(
        self, index: int, channels: int, window: tuple[float, float] | None = None
    ) -> Float[Tensor, "t c h w"]:
        """Return one volume with as many slices as it has, values 0 to 1."""
        config = VolumeConfig(window=window)
        return convert_channels(volumes.decode_volume(self.paths[index], config), channels)

    def look(
        self, index: int, prep: Preprocessing, generator: torch.Generator | None = None
    ) -> Float[Tensor, "t c h w"]:
        """Return one volume with as many slices as the model takes, values 0 to 1."""
        assert prep.frames is not None, "models of volumes take frames"
        size = prep.frames, *prep.image_size
        return convert_channels(volumes.decode_volume(self.paths[index], prep.volume, size), prep.channels)
