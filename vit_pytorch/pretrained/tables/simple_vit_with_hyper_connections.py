"""Checkpoints of the SimpleViT with hyper-connections."""

from __future__ import annotations

import torch

from vit_pytorch.pretrained.rules import Rule, Transform
from vit_pytorch.pretrained.tables.blocks import UNBIASED
from vit_pytorch.pretrained.tables.vit import BLOCK, OURS, public_simple_vit

# (width, streams + 1) and (width,) as one linear layer.
CONNECTIONS = Transform(
    lambda parts, module: torch.cat([parts[0].mT, parts[1][None]]),
    lambda tensor, module: (tensor[:-1].mT, tensor[-1]),
)
NUMBER = Transform(lambda parts, module: parts[0].reshape(1), lambda tensor, module: (tensor.squeeze(0),))


def _connection(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{ours}.alpha", f"{theirs}.static_alpha"),
        Rule(f"{ours}.beta", f"{theirs}.static_beta"),
        Rule((f"{ours}.norm.weight", f"{ours}.norm.bias"), f"{theirs}.norm.weight", UNBIASED),
        Rule(
            f"{ours}.to_alpha_beta.weight",
            (f"{theirs}.dynamic_alpha_fn", f"{theirs}.dynamic_beta_fn"),
            CONNECTIONS,
        ),
        Rule(f"{ours}.alpha_scale", f"{theirs}.dynamic_alpha_scale", NUMBER),
        Rule(f"{ours}.beta_scale", f"{theirs}.dynamic_beta_scale", NUMBER),
    )


FORMATS = (
    OURS,
    public_simple_vit(
        "SimpleViT with hyper-connections",
        *_connection(f"{BLOCK}.connect1", "transformer.layers.{i}.0"),
        *_connection(f"{BLOCK}.connect2", "transformer.layers.{i}.2"),
        attention="transformer.layers.{i}.1",
        feedforward="transformer.layers.{i}.3.net",
    ),
)
