"""Checkpoints of CoaT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vit_pytorch.pretrained.rules import Format, Reference, Rule, Transform, own_format

SCALES = range(4)
PARALLEL = "parallel.{i}"
THEIR_PARALLEL = "parallel_blocks.{i}"
# Modules of theirs that are one are saved under each of their names; by patterns, which one the rules have.
SAME = (
    (re.compile(r"^serial_blocks(\d)\.\d+\.cpe\."), r"cpe\1."),
    (re.compile(r"^serial_blocks(\d)\.\d+\.factoratt_crpe\.crpe\."), r"crpe\1."),
    (re.compile(r"^parallel_blocks\.\d+\.factoratt_crpe(\d)\.crpe\."), r"crpe\1."),
    (re.compile(r"^(parallel_blocks\.\d+)\.mlp[34]\."), r"\1.mlp2."),
)
# A convolution of one cell over three channels as the linear layer that it equals.
CONV = Transform(lambda parts, module: parts[0].flatten(1), lambda tensor, module: (tensor[:, :, None],))


class SharedFormat(Format):
    """A layout with several names for what is shared."""

    def read(self, state: Mapping[str, Tensor], model: Any) -> tuple[dict[str, Tensor], list[str]]:
        """Translate a state dict to our names; see `Format.read`.

        Raises:
            ValueError: where what is shared differs.
        """
        merged: dict[str, Tensor] = {}
        for name, tensor in state.items():
            one = name
            for pattern, shared in SAME:
                one = pattern.sub(shared, one)
            if one in merged and not merged[one].equal(tensor):
                raise ValueError(f"{name} is shared by blocks, and differs from that of another one")
            merged[one] = tensor
        # The authors' files have norms that CoaT-Lite does not use.
        idle = [] if model.parallel else [name for name in merged if name.startswith(("norm2.", "norm3."))]
        found, unused = super().read({n: t for n, t in merged.items() if n not in idle}, model)
        return found, [*unused, *idle]

    def write(self, state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Translate our state dict to this format; see `Format.write`."""
        written = super().write(state, model)
        copies = {}
        for theirs, one in shared_names(model).items():
            copies.update(
                {f"{theirs}{n.removeprefix(one)}": t for n, t in written.items() if n.startswith(one)}
            )
        return {**written, **copies}


def shared_names(model: Any) -> dict[str, str]:
    """Return what the names of modules that are shared begin with, and that which the rules have for each."""
    names = {}
    for k, stage in enumerate(model.stages, 1):
        for j in range(len(stage.blocks)):
            names[f"serial_blocks{k}.{j}.cpe."] = f"cpe{k}."
            names[f"serial_blocks{k}.{j}.factoratt_crpe.crpe."] = f"crpe{k}."
    for j in range(len(model.parallel)):
        for k in (2, 3, 4):
            names[f"parallel_blocks.{j}.factoratt_crpe{k}.crpe."] = f"crpe{k}."
        for k in (3, 4):
            names[f"parallel_blocks.{j}.mlp{k}."] = f"parallel_blocks.{j}.mlp2."
    return names


def _scale(index: int) -> tuple[Rule, ...]:
    """Return the rules of a scale, its part of the parallel blocks among them."""
    ours, block, k = f"stages.{index}", f"stages.{index}.blocks.{{i}}", index + 1
    theirs = f"serial_blocks{k}.{{i}}"
    return (
        Rule(f"{ours}.down.0.layers.0.{{p}}", f"patch_embed{k}.proj.{{p}}"),
        Rule(f"{ours}.down.1.{{p}}", f"patch_embed{k}.norm.{{p}}"),
        Rule(f"{ours}.prefix.class_token", f"cls_token{k}"),
        Rule(f"{ours}.shared.positions.conv.{{p}}", f"cpe{k}.proj.{{p}}"),
        Rule(f"{ours}.shared.relative.convs.{{i}}.{{p}}", f"crpe{k}.conv_list.{{i}}.{{p}}"),
        Rule(f"{block}.norm1.{{p}}", f"{theirs}.norm1.{{p}}"),
        Rule(f"{block}.norm2.{{p}}", f"{theirs}.norm2.{{p}}"),
        Rule(f"{block}.attention.to_qkv.{{p}}", f"{theirs}.factoratt_crpe.qkv.{{p}}"),
        Rule(f"{block}.attention.to_out.{{p}}", f"{theirs}.factoratt_crpe.proj.{{p}}"),
        Rule(f"{block}.feedforward.to_hidden.{{p}}", f"{theirs}.mlp.fc1.{{p}}"),
        Rule(f"{block}.feedforward.to_out.{{p}}", f"{theirs}.mlp.fc2.{{p}}"),
        Rule(f"{PARALLEL}.norms1.{index - 1}.{{p}}", f"{THEIR_PARALLEL}.norm1{k}.{{p}}"),
        Rule(f"{PARALLEL}.norms2.{index - 1}.{{p}}", f"{THEIR_PARALLEL}.norm2{k}.{{p}}"),
        Rule(
            f"{PARALLEL}.attentions.{index - 1}.to_qkv.{{p}}",
            f"{THEIR_PARALLEL}.factoratt_crpe{k}.qkv.{{p}}",
        ),
        Rule(
            f"{PARALLEL}.attentions.{index - 1}.to_out.{{p}}",
            f"{THEIR_PARALLEL}.factoratt_crpe{k}.proj.{{p}}",
        ),
        Rule(f"norms.{index}.{{p}}", f"norm{k}.{{p}}"),
    )


OURS = own_format("stages.0.shared.positions.conv.weight")
# timm has the authors' names.
TIMM = SharedFormat(
    name="timm",
    marks=("serial_blocks1.0.norm1.weight",),
    unused=("norm1.{p}",),
    rules=(
        Rule("norm.{p}", "norm4.{p}"),
        *(rule for index in SCALES for rule in _scale(index)),
        Rule(f"{PARALLEL}.feedforward.to_hidden.{{p}}", f"{THEIR_PARALLEL}.mlp2.fc1.{{p}}"),
        Rule(f"{PARALLEL}.feedforward.to_out.{{p}}", f"{THEIR_PARALLEL}.mlp2.fc2.{{p}}"),
        Rule("aggregate.weight", "aggregate.weight", CONV),
        Rule("aggregate.bias", "aggregate.bias"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
SIZES = {"patch_size": 4, "num_classes": 7}
SERIAL = (1, 2, 1, 1)
REFERENCES = tuple(
    Reference(
        format="timm",
        name="timm.models.coat.CoaT",
        theirs={
            **SIZES,
            "img_size": 32,
            "embed_dims": dims,
            "serial_depths": SERIAL,
            "parallel_depth": depth or 0,
        },
        ours={**SIZES, "image_size": 32, "dim": dims, "depth": SERIAL, "parallel_depth": depth},
    )
    for dims, depth in (((16, 24, 24, 24), 2), ((16, 24, 32, 40), None))
)
