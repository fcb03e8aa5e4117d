"""Checkpoints of the ViT with a PatchMerger."""

import torch.nn.functional as F

from vit_pytorch.pretrained.rules import Format, Rule, Transform
from vit_pytorch.pretrained.tables.vit import OURS, PUBLIC_VIT

# The public package scales the scores by 1 / sqrt(dim); where the model does not, its queries are scaled.
QUERIES = Transform(
    lambda parts, merger: parts[0] * (parts[0].shape[1] ** -0.5 / merger.scale),
    lambda tensor, merger: (tensor * (merger.scale / tensor.shape[1] ** -0.5),),
)
# Its table has a last row that is never read.
POSITIONS = Transform(
    lambda parts, module: parts[0][:, :-1],
    lambda tensor, module: (F.pad(tensor, (0, 0, 0, 1)),),
)

PUBLIC_MERGER = Format(
    name="vit-pytorch PatchMerger",
    marks=("transformer.patch_merger.queries",),
    rules=(
        Rule("positions.table", "pos_embedding", POSITIONS),
        Rule("merger.queries", "transformer.patch_merger.queries", QUERIES),
        Rule("merger.norm.{p}", "transformer.patch_merger.norm.{p}"),
        Rule("head.{p}", "mlp_head.1.{p}"),
        *PUBLIC_VIT.rules,
    ),
)

FORMATS = (OURS, PUBLIC_MERGER)
