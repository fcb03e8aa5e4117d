"""Checkpoints of MLP-Mixer."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Reference, Rule, own_format

OURS = own_format("blocks.0.mix_tokens.to_hidden.weight")
TIMM = Format(
    name="timm",
    marks=("blocks.0.mlp_tokens.fc1.weight",),
    rules=(
        Rule("patch_embed.proj.{p}", "stem.proj.{p}"),
        Rule("blocks.{i}.norm1.{p}", "blocks.{i}.norm1.{p}"),
        Rule("blocks.{i}.mix_tokens.to_hidden.{p}", "blocks.{i}.mlp_tokens.fc1.{p}"),
        Rule("blocks.{i}.mix_tokens.to_out.{p}", "blocks.{i}.mlp_tokens.fc2.{p}"),
        Rule("blocks.{i}.norm2.{p}", "blocks.{i}.norm2.{p}"),
        Rule("blocks.{i}.mix_features.to_hidden.{p}", "blocks.{i}.mlp_channels.fc1.{p}"),
        Rule("blocks.{i}.mix_features.to_out.{p}", "blocks.{i}.mlp_channels.fc2.{p}"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
SIZES = {"patch_size": 8, "num_classes": 7}
REFERENCES = (
    Reference(
        format="timm",
        name="timm.models.mlp_mixer.MlpMixer",
        theirs={**SIZES, "img_size": (32, 48), "embed_dim": 40, "num_blocks": 2},
        ours={**SIZES, "image_size": (32, 48), "dim": 40, "depth": 2, "token_dim": 20, "mlp_dim": 160},
    ),
)
