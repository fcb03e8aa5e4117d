"""Patches Are All You Need?

A. Trockman, J. Z. Kolter 2022, arXiv:2201.09792.

A convolutional network that looks like a ViT: patches are embedded and keep one size and width from the first
block to the last. A depth-wise convolution with a large kernel mixes places, a linear layer mixes channels;
an activation and batch norm follow each.

Family: plain
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel
from vit_pytorch.layers.blocks import DropPath, activation, drop_path_rate, layer
from vit_pytorch.layers.conv import OnMap
from vit_pytorch.layers.patches import pair


class ConvMixer(HierarchicalModel):
    """The ConvMixer. Each block is a stage, whose map is as large as all others; images may have any size.

    Args:
        kernel_size: side of the depth-wise convolutions' kernel, in patches.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        kernel_size: int = 9,
        channels: int = 3,
        drop_path: float = 0.0,
        act: str = "gelu",
    ) -> None:
        patch = pair(patch_size)
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=[dim] * depth,
            strides=[max(patch)] * depth,
            channels=channels,
            size_multiple=patch,
            min_size=patch,
        )
        self.patch = patch
        self.stem = OnMap(nn.Conv2d(channels, dim, patch, patch), activation(act), nn.BatchNorm2d(dim))
        for index in range(depth):
            rate = drop_path_rate(drop_path, index, depth)
            self.stages.append(ConvMixerBlock(dim, kernel_size, act=act, drop_path=rate))
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map, its channels first."""
        x = self.embed(images)
        for block in self.stages:
            x = block(x)
        return x.permute(0, 3, 1, 2)


class ConvMixerBlock(nn.Module):
    """Mix places, then channels (section 2, equations 2 and 3)."""

    def __init__(self, dim: int, kernel_size: int, *, act: str = "gelu", drop_path: float = 0.0) -> None:
        super().__init__()
        conv = nn.Conv2d(dim, dim, kernel_size, groups=dim, padding="same")
        self.mix_places = OnMap(conv, activation(act), nn.BatchNorm2d(dim))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.mix_channels = nn.Linear(dim, dim)
        self.norm = OnMap(activation(act), nn.BatchNorm2d(dim))

    @layer
    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Transform the map; only the mixing of places is a residual branch."""
        x = x + self.drop_path(self.mix_places(x))
        return self.norm(self.mix_channels(x))
