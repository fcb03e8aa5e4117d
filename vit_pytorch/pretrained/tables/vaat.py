"""Checkpoints of the public package's policy that reads a model of images and one of sounds."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.vat_siglip import DECODER, FRAMES, LAYER, VIEWS, attention
from vit_pytorch.pretrained.tables.vit import PATCHES, ROWS


def _encoder(name: str, patches: str) -> tuple[Rule, ...]:
    """Return the rules of an encoder, whose patch embedding is a sequence of so named."""
    block, theirs = f"{name}.encoder.blocks.{{i}}", f"{name}.transformer.layers.{{i}}"
    return (
        Rule(f"{name}.patch_embed.norm_in.{{p}}", f"{name}.{patches}.1.{{p}}"),
        Rule(f"{name}.patch_embed.proj.weight", f"{name}.{patches}.2.weight", PATCHES),
        Rule(f"{name}.patch_embed.proj.bias", f"{name}.{patches}.2.bias"),
        Rule(f"{name}.patch_embed.norm_out.{{p}}", f"{name}.{patches}.3.{{p}}"),
        Rule(f"{name}.registers", f"{name}.register_tokens"),
        *attention(f"{block}.self_attention", f"{block}.self_norm", f"{theirs}.0"),
        Rule(f"{block}.norm2.{{p}}", f"{theirs}.1.net.0.{{p}}"),
        Rule(f"{block}.feedforward.to_hidden.{{p}}", f"{theirs}.1.net.1.{{p}}"),
        Rule(f"{block}.feedforward.to_out.{{p}}", f"{theirs}.1.net.4.{{p}}"),
        Rule(f"{name}.encoder.norm.0.{{p}}", f"{name}.transformer.norm.{{p}}"),
        Rule(f"{name}.encoder.norm.1.{{p}}", f"{name}.final_norm.{{p}}"),
        Rule(f"{name}.head.{{p}}", f"{name}.mlp_head.{{p}}"),
    )


def _reading(number: int, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of the attention to an encoder."""
    return attention(
        f"{LAYER}.attentions.{number}",
        f"{LAYER}.norms.{number}",
        theirs,
        (f"{LAYER}.context_norms.{number}", "context_norm"),
    )


OURS = own_format("decoder.blocks.0.norms.1.weight")
PUBLIC = Format(
    name="vit-pytorch VAAT",
    marks=("layers.0.3.to_out_gates.0.weight",),
    # Hann's window, which follows from its length.
    unused=("ast.spec.window",),
    rules=(
        *_encoder("vit", "to_patch_embedding"),
        Rule("vit.positions.table", "vit.pos_embedding", ROWS),
        Rule("vit.class_token", "vit.cls_token"),
        *_encoder("ast", "to_patch_tokens"),
        Rule("scene.view_embed", "image_view_emb", VIEWS),
        Rule("scene.frame_embed", "time_pos_emb", FRAMES),
        Rule("sounds.view_embed", "audio_view_emb", VIEWS),
        *DECODER,
        *attention(f"{LAYER}.self_attention", f"{LAYER}.self_norm", "layers.{i}.1"),
        *_reading(0, "layers.{i}.2"),
        *_reading(1, "layers.{i}.3"),
        Rule(f"{LAYER}.norm2.{{p}}", "layers.{i}.4.net.0.{p}"),
        Rule(f"{LAYER}.feedforward.to_hidden.{{p}}", "layers.{i}.4.net.1.{p}"),
        Rule(f"{LAYER}.feedforward.to_out.{{p}}", "layers.{i}.4.net.4.{p}"),
    ),
)
FORMATS = (OURS, PUBLIC)
