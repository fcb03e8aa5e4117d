"""ViT-5: Vision Transformers for The Mid-2020s.

F. Wang, S. Ren, T. Zhang, P. Neskovic, A. Bhattad, C. Xie, A. Yuille 2026, arXiv:2602.08071.

A ViT of parts that proved themselves since: RMS norm, LayerScale, normed queries and keys, no biases of
queries, keys and values, learned and rotary positions, and registers, which are rotated as cells of a small
grid of their own.

Family: plain
Differs from the paper: nothing. The public vit-pytorch package gives the class token and the registers
learned positions, rotates registers along one axis, and has another base, so that its weights do not load;
the authors' do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt

import torch
from jaxtyping import Int
from torch import Tensor

from vit_pytorch.layers.attention import BlockInputs
from vit_pytorch.layers.positions import Learned
from vit_pytorch.layers.rotary import AxialRotary, Rotary
from vit_pytorch.vit import ViT as PlainViT


class ViT5(PlainViT):
    """ViT-5.

    Args:
        num_registers: number of register tokens, a square number.

    Raises:
        ValueError: if the number of registers is not a square.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        num_registers: int = 4,
    ) -> None:
        side = isqrt(num_registers)
        if side**2 != num_registers:
            raise ValueError(f"num_registers must be a square number, got {num_registers}")
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            channels=channels,
            dim_head=dim_head,
            dropout=dropout,
            attn_dropout=dropout,
            emb_dropout=emb_dropout,
            num_registers=num_registers,
            positions=[Learned(class_token=False), Rotary(theta=10_000.0)],
            qkv_bias=False,
            qk_norm=True,
            layer_scale=1e-4,
            norm="rms",
        )
        # High frequencies tell few cells apart (section 3.4).
        self.register_rotary = AxialRotary((side, side), dim_head, theta=100.0) if side else None

    def block_inputs(self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None) -> BlockInputs:
        """Return the extra inputs of each block: rotations, those of the registers included."""
        inputs = super().block_inputs(grid, ids_keep)
        if self.register_rotary is None or inputs.rotation is None:
            return inputs
        registers = self.register_rotary(self.register_rotary.grid)
        token, _, patches = inputs.rotation.split(
            [1, len(registers), inputs.rotation.shape[-3] - 1 - len(registers)], dim=-3
        )
        registers = registers.expand(*token.shape[:-3], -1, -1, -1)
        return replace(inputs, rotation=torch.cat([token, registers, patches], dim=-3))


ViT = ViT5
