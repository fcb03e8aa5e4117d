"""What is taught at equal steps: the constructors that this package and the public one document, small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class LearningCase:
    """A model that both packages document.

    Args:
        module: the file that holds the class, in both packages.
        name: the class.
        arguments: its arguments.
        size: side of the images in pixels.
        kind: how images arrive: in a batch; in a list; as videos of eight frames in which the image drifts;
            or as sequences of its pixels.
        ours: module, class and arguments here, where they differ.
        call: further arguments of the model's call.
        wrapper: what the model is taught by, or what is put into it.
    """

    module: str
    name: str
    arguments: Arguments
    size: int = 24
    kind: Literal["images", "list", "video", "sequence"] = "images"
    ours: tuple[str, str, Arguments] | None = None
    call: Arguments = field(default_factory=dict)
    wrapper: Literal["soft", "hard", "adapter", "nystrom", "x-transformers"] | None = None


PLAIN: Arguments = {
    "image_size": 24,
    "patch_size": 4,
    "num_classes": 10,
    "dim": 64,
    "depth": 3,
    "heads": 2,
    "mlp_dim": 128,
}
DROP: Arguments = {"dropout": 0.1, "emb_dropout": 0.1}
VIT: Arguments = {**PLAIN, **DROP}
# around an encoder of another library
EXTERNAL: Arguments = {name: PLAIN[name] for name in ("dim", "image_size", "patch_size", "num_classes")}
SIGNAL: Arguments = {
    **{name: VIT[name] for name in VIT if name != "image_size"},
    "seq_len": 64,
    "channels": 1,
}
VIDEO: Arguments = {
    "image_size": 24,
    "frames": 8,
    "image_patch_size": 6,
    "frame_patch_size": 2,
    "num_classes": 10,
    "dim": 64,
    "heads": 2,
    "mlp_dim": 128,
}
FACTORISED: Arguments = {**VIDEO, "spatial_depth": 2, "temporal_depth": 2}
COMPACT: Arguments = {
    "img_size": 24,
    "embedding_dim": 64,
    "kernel_size": 3,
    "stride": 2,
    "padding": 1,
    "pooling_kernel_size": 3,
    "pooling_stride": 2,
    "pooling_padding": 1,
    "num_layers": 4,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "num_classes": 10,
}
CROSS: Arguments = {
    "image_size": 24,
    "num_classes": 10,
    "depth": 2,
    "sm_dim": 48,
    "sm_patch_size": 4,
    "sm_enc_depth": 1,
    "sm_enc_heads": 4,
    "sm_enc_mlp_dim": 96,
    "lg_dim": 64,
    "lg_patch_size": 8,
    "lg_enc_depth": 2,
    "lg_enc_heads": 4,
    "lg_enc_mlp_dim": 128,
    "cross_attn_depth": 1,
    "cross_attn_heads": 4,
}
LOOKUP: Arguments = {
    "dim": 64,
    "image_size": 32,
    "num_classes": 10,
    "depth": 3,
    "heads": 4,
    "dropout": 0.1,
}


def stages(**columns: tuple[Any, ...]) -> Arguments:
    """Name the arguments of each stage as CvT's and Twins' constructors do."""
    return {f"s{i}_{name}": value for name, column in columns.items() for i, value in enumerate(column, 1)}


CVT: Arguments = stages(
    emb_dim=(32, 64, 96),
    emb_kernel=(7, 3, 3),
    emb_stride=(4, 2, 2),
    proj_kernel=(3, 3, 3),
    kv_proj_stride=(2, 2, 2),
    heads=(1, 2, 4),
    depth=(1, 1, 2),
    mlp_mult=(4, 4, 4),
)
TWINS: Arguments = stages(
    emb_dim=(32, 64, 96, 128),
    patch_size=(2, 2, 2, 2),
    local_patch_size=(8, 8, 4, 2),
    global_k=(8, 8, 4, 2),
    depth=(1, 1, 1, 1),
)


def option(module: str, arguments: Arguments, **ours: Any) -> LearningCase:
    """Put a variant of SimpleViT, which is a file of the public package, beside the ViT with that option."""
    plain = {**PLAIN, "pool": "mean", "positions": "sincos", **ours}
    return LearningCase(module, "SimpleViT", {**PLAIN, **arguments}, ours=("vit", "ViT", plain))


CASES: Mapping[str, LearningCase] = {
    "ViT": LearningCase("vit", "ViT", VIT),
    "ViT, mean of patches": LearningCase("vit", "ViT", {**VIT, "pool": "mean"}),
    "SimpleViT": LearningCase("simple_vit", "SimpleViT", PLAIN),
    "NaViT": LearningCase(
        "na_vit",
        "NaViT",
        {**VIT, "token_dropout_prob": 0.1},
        kind="list",
        call={"group_images": True, "group_max_seq_len": 144},
    ),
    "NaViT, nested": LearningCase(
        "na_vit_nested_tensor", "NaViT", {**PLAIN, "token_dropout_prob": 0.1}, kind="list"
    ),
    "distillation, soft": LearningCase("distill", "DistillableViT", VIT, wrapper="soft"),
    "distillation, hard": LearningCase("distill", "DistillableViT", VIT, wrapper="hard"),
    "DeepViT": LearningCase("deepvit", "DeepViT", VIT),
    "CaiT": LearningCase("cait", "CaiT", {**VIT, "cls_depth": 2, "layer_dropout": 0.05}),
    "T2T-ViT": LearningCase(
        "t2t",
        "T2TViT",
        {
            "dim": 64,
            "image_size": 32,
            "depth": 4,
            "heads": 4,
            "mlp_dim": 128,
            "num_classes": 10,
            "t2t_layers": ((7, 4), (3, 2)),
        },
        size=32,
    ),
    "CCT": LearningCase("cct", "CCT", {**COMPACT, "n_conv_layers": 1, "positional_embedding": "learnable"}),
    "CCT, sine": LearningCase("cct", "CCT", {**COMPACT, "n_conv_layers": 1, "positional_embedding": "sine"}),
    "CrossViT": LearningCase("cross_vit", "CrossViT", {**CROSS, **DROP}),
    "PiT": LearningCase("pit", "PiT", {**VIT, "depth": (2, 2, 2), "heads": 4}),
    "LeViT": LearningCase(
        "levit",
        "LeViT",
        {
            "image_size": 64,
            "num_classes": 10,
            "stages": 2,
            "dim": (64, 96),
            "depth": 2,
            "heads": (4, 6),
            "mlp_mult": 2,
            "dropout": 0.1,
        },
        size=64,
    ),
    "CvT": LearningCase("cvt", "CvT", {**CVT, "num_classes": 10, "dropout": 0.0}, size=32),
    "Twins-SVT": LearningCase(
        "twins_svt", "TwinsSVT", {**TWINS, "num_classes": 10, "peg_kernel_size": 3}, size=32
    ),
    "RegionViT": LearningCase(
        "regionvit",
        "RegionViT",
        {
            "dim": (32, 64, 64, 128),
            "depth": (1, 1, 2, 1),
            "window_size": 2,
            "num_classes": 10,
            "tokenize_local_3_conv": False,
            "use_peg": False,
        },
        size=64,
    ),
    "CrossFormer": LearningCase(
        "crossformer",
        "CrossFormer",
        {
            "num_classes": 10,
            "dim": (32, 64, 64, 96),
            "depth": (1, 1, 2, 1),
            "global_window_size": (4, 2, 2, 1),
            "local_window_size": (4, 4, 2, 1),
        },
        size=32,
    ),
    "ScalableViT": LearningCase(
        "scalable_vit",
        "ScalableViT",
        {
            "num_classes": 10,
            "dim": 32,
            "heads": (2, 4, 4, 8),
            "depth": (1, 1, 2, 1),
            "ssa_dim_key": (16, 16, 16, 16),
            "reduction_factor": (4, 2, 1, 1),
            "window_size": (8, 4, None, None),
            "dropout": 0.1,
        },
        size=32,
    ),
    "SepViT": LearningCase(
        "sep_vit",
        "SepViT",
        {
            "num_classes": 10,
            "dim": 32,
            "dim_head": 32,
            "heads": (1, 2),
            "depth": (1, 1),
            "window_size": 7,
            "dropout": 0.1,
        },
        size=56,
    ),
    "MaxViT": LearningCase(
        "max_vit",
        "MaxViT",
        {
            "num_classes": 10,
            "dim_conv_stem": 32,
            "dim": 32,
            "dim_head": 32,
            "depth": (1, 1),
            "window_size": 4,
            "mbconv_expansion_rate": 4,
            "mbconv_shrinkage_rate": 0.25,
            "dropout": 0.1,
        },
        size=32,
    ),
    "NesT": LearningCase(
        "nest",
        "NesT",
        {
            "image_size": 32,
            "patch_size": 4,
            "dim": 32,
            "heads": 2,
            "num_hierarchies": 3,
            "block_repeats": (1, 1, 2),
            "num_classes": 10,
        },
        size=32,
    ),
    "MobileViT": LearningCase(
        "mobile_vit",
        "MobileViT",
        {
            "image_size": (64, 64),
            "dims": [48, 64, 80],
            "channels": [16, 16, 24, 24, 32, 32, 48, 48, 64, 64, 128],
            "num_classes": 10,
        },
        size=64,
    ),
    "XCiT": LearningCase(
        "xcit",
        "XCiT",
        {**VIT, "cls_depth": 2, "layer_dropout": 0.05, "local_patch_kernel_size": 3},
    ),
    "adaptive token sampling": LearningCase("ats_vit", "ViT", {**VIT, "max_tokens_per_depth": (37, 24, 12)}),
    "PatchMerger": LearningCase(
        "vit_with_patch_merger", "ViT", {**VIT, "patch_merge_layer": 1, "patch_merge_num_tokens": 8}
    ),
    "ViT for small data sets": LearningCase("vit_for_small_dataset", "ViT", VIT),
    "3-D ViT": LearningCase("vit_3d", "ViT", {**VIDEO, **DROP, "depth": 3}, kind="video"),
    "3-D SimpleViT": LearningCase("simple_vit_3d", "SimpleViT", {**VIDEO, "depth": 3}, kind="video"),
    "3-D CCT": LearningCase(
        "cct_3d",
        "CCT",
        {
            **COMPACT,
            "n_conv_layers": 2,
            "num_frames": 8,
            "frame_kernel_size": 3,
            "positional_embedding": "learnable",
        },
        kind="video",
    ),
    "ViViT, factorised encoder": LearningCase(
        "vivit", "ViViT", {**FACTORISED, "variant": "factorized_encoder"}, kind="video"
    ),
    "ViViT, factorised attention": LearningCase(
        "vivit", "ViViT", {**FACTORISED, "variant": "factorized_self_attention"}, kind="video"
    ),
    "parallel ViT": LearningCase("parallel_vit", "ViT", {**VIT, "num_parallel_branches": 2}),
    "learnable memory": LearningCase("learnable_memory_vit", "ViT", VIT),
    "learnable memory, adapter": LearningCase("learnable_memory_vit", "ViT", VIT, wrapper="adapter"),
    "Nystromformer": LearningCase(
        "efficient",
        "ViT",
        EXTERNAL,
        wrapper="nystrom",
    ),
    "x-transformers": LearningCase(
        "efficient",
        "ViT",
        EXTERNAL,
        wrapper="x-transformers",
    ),
    # The public LocalViT raises for images that are not 1 x 1 patch; its plain ViT stands there.
    "LocalViT": LearningCase("vit", "ViT", VIT, ours=("local_vit", "LocalViT", VIT)),
    "rotary positions": LearningCase("rvt", "RvT", VIT),
    "patch dropout": LearningCase(
        "vit_with_patch_dropout",
        "ViT",
        {**VIT, "patch_dropout": 0.25},
        ours=("vit", "ViT", {**VIT, "patch_dropout": 0.25}),
    ),
    "registers": option("simple_vit_with_register_tokens", {"num_register_tokens": 4}, num_registers=4),
    "value residual": option("simple_vit_with_value_residual", {}, value_residual=True),
    "hyper-connections": option(
        "simple_vit_with_hyper_connections", {"num_residual_streams": 4}, hyper_connections=4
    ),
    "query and key norm": option("simple_vit_with_qk_norm", {}, qk_norm=True),
    "LookupViT": LearningCase(
        "look_vit",
        "LookViT",
        {
            **LOOKUP,
            "patch_size": 8,
            "mlp_factor": 2,
            "highres_patch_size": 4,
            "highres_mlp_factor": 2,
            "cross_attn_heads": 4,
            "patch_conv_kernel_size": 1,
        },
        size=32,
        ours=(
            "look_vit",
            "LookupViT",
            {**LOOKUP, "patch_size": 4, "num_compressed": 16, "mlp_dim": 128, "lookup_mlp_dim": 128},
        ),
    ),
    "U-ViT": LearningCase("simple_uvit", "SimpleUViT", PLAIN, ours=("uvit", "UViT", PLAIN)),
    "nViT": LearningCase("normalized_vit", "nViT", PLAIN, ours=("normalized_vit", "NormalizedViT", PLAIN)),
    "1-D ViT": LearningCase("vit_1d", "ViT", SIGNAL, kind="sequence", ours=("vit_1d", "ViT1D", SIGNAL)),
}
