"""What is timed: named models, each beside the same model in other libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import Tensor, nn

PUBLIC = "public vit-pytorch"
Builder = Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A named model of ours and the same architecture, at the same size, in other libraries.

    A library is imported when its model is built, since one of them lives under this package's own
    import name and each runs in a process of its own.

    Args:
        overrides: arguments in which our model shall differ from the named one.
        timm: timm's name of the model, where timm has it.
        public: where the public vit-pytorch has it, its module, its class and the arguments.
        others: builders of further libraries' models, by library.
        image_size: (channels, height, width) of the input, with frames in front of the height for videos.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    timm: str | None = None
    public: tuple[str, str, Mapping[str, Any]] | None = None
    others: Mapping[str, Builder] = field(default_factory=dict)
    image_size: tuple[int, ...] = (3, 224, 224)

    @property
    def libraries(self) -> list[str]:
        """Names of the libraries that have the model, ours first."""
        timm = ["timm"] if self.timm else []
        public = [PUBLIC] if self.public else []
        return ["ours", *timm, *self.others, *public]

    def build(self, name: str, library: str) -> nn.Module:
        """Build the model of this name as a library does."""
        if library == "ours":
            return import_module("vit_pytorch").create_model(name, **self.overrides)
        if library == "timm":
            return import_module("timm").create_model(self.timm)
        if library == PUBLIC:
            assert self.public is not None
            module, architecture, arguments = self.public
            return getattr(import_module(f"vit_pytorch.{module}"), architecture)(**arguments)
        return self.others[library]()


def _torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536
    )


def _timm_deit() -> nn.Module:
    from timm import create_model

    model: nn.Module = create_model("deit_small_patch16_224")
    return model


IMAGENET = {"image_size": 224, "num_classes": 1000}
SMALL = {"dim": 384, "depth": 12, "heads": 6, "dim_head": 64, "mlp_dim": 1536}
ATS = (196, 196, 196, 160, 128, 96, 80, 64, 48, 40, 32, 24)
CCT_7X2 = {"img_size": 224, "n_conv_layers": 2, "kernel_size": 7, "positional_embedding": "learnable"}
SL_VIT = {"patch_size": 8, "dim": 192, "depth": 9, "heads": 12, "dim_head": 16, "mlp_dim": 384}
LOOKUP = {
    **{name: SMALL[name] for name in ("dim", "depth", "heads", "dim_head")},
    "patch_size": 32,
    "highres_patch_size": 16,
    "highres_mlp_factor": 0.5,
    "cross_attn_heads": 6,
    "patch_conv_kernel_size": 1,
    "dropout": 0.0,
}
CAIT = {"dim": 192, "depth": 24, "cls_depth": 2, "heads": 4, "dim_head": 48, "mlp_dim": 768}
# The public package does not resize the image for the large branch, which has 15 x 15 patches there.
CROSSVIT = {
    "depth": 3,
    "sm_dim": 128,
    "sm_patch_size": 12,
    "sm_enc_depth": 1,
    "sm_enc_heads": 4,
    "sm_enc_dim_head": 32,
    "sm_enc_mlp_dim": 384,
    "lg_dim": 256,
    "lg_patch_size": 16,
    "lg_enc_depth": 3,
    "lg_enc_heads": 4,
    "lg_enc_dim_head": 64,
    "lg_enc_mlp_dim": 768,
    "cross_attn_depth": 1,
    "cross_attn_heads": 4,
}
# Its depth counts pairs of blocks.
SCALABLE_VIT = {
    "num_classes": 1000,
    "dim": 64,
    "heads": (2, 4, 8, 16),
    "depth": (1, 1, 10, 1),
    "ssa_dim_key": (40, 40, 40, 32),
    "reduction_factor": (8, 4, 2, 1),
    "window_size": (7, 7, 7, 7),
}


def _torchvision_maxvit() -> nn.Module:
    from torchvision.models import maxvit_t

    model: nn.Module = maxvit_t()
    return model


class Logits(nn.Module):
    """A classifier of transformers, which gives its logits alone.

    Args:
        model: the classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits."""
        logits: Tensor = self.model(images).logits
        return logits


def _transformers_mobilevit() -> nn.Module:
    from transformers import MobileViTConfig, MobileViTForImageClassification

    config = MobileViTConfig(hidden_dropout_prob=0.0, classifier_dropout_prob=0.0)
    config.num_labels = 1000
    return Logits(MobileViTForImageClassification(config))


def _transformers_cvt() -> nn.Module:
    from transformers import CvtConfig, CvtForImageClassification

    return Logits(CvtForImageClassification(CvtConfig(id2label=dict(enumerate(map(str, range(1000)))))))


class FramesFirst(Logits):
    """A classifier of videos whose input is (batch, frames, channels, height, width)."""

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits."""
        return super().forward(images.transpose(1, 2))


def _transformers_vivit() -> nn.Module:
    from transformers import VivitConfig, VivitForVideoClassification

    config = VivitConfig()
    config.num_labels = 400
    return FramesFirst(VivitForVideoClassification(config))


def _transformers_videomae() -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    config = VideoMAEConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    config.num_labels = 400
    return FramesFirst(VideoMAEForVideoClassification(config))


DIMS_96 = (96, 192, 384, 768)
# How the public package cuts videos.
TUBELETS = {"image_size": 224, "image_patch_size": 16, "frame_patch_size": 2}
BASE = {"dim": 768, "heads": 12, "mlp_dim": 3072}


CASES = {
    "vit_small_patch16_224": Case(
        timm="vit_small_patch16_224",
        others={"torchvision": _torchvision_vit},
        public=("vit", "ViT", {**IMAGENET, **SMALL, "patch_size": 16}),
    ),
    "vit_base_patch16_224": Case(timm="vit_base_patch16_224"),
    "vit_large_patch16_224": Case(timm="vit_large_patch16_224"),
    "vit_small_patch16_rope_224": Case(timm="vit_small_patch16_rope_224"),
    "vit_small_patch16_rope_mixed_224": Case(timm="vit_small_patch16_rope_mixed_224"),
    "vit_small_r26_s32_224": Case(timm="vit_small_r26_s32_224"),
    "simple_vit_small_patch16_224": Case(
        public=("simple_vit", "SimpleViT", {**IMAGENET, **SMALL, "patch_size": 16}),
    ),
    # The public DeepViT normalises over heads by LayerNorm and has no biases in the mix.
    "deepvit_patch16_224_re_attn_16b": Case(
        public=(
            "deepvit",
            "DeepViT",
            {
                **IMAGENET,
                "patch_size": 16,
                "dim": 384,
                "depth": 16,
                "heads": 12,
                "dim_head": 32,
                "mlp_dim": 1152,
            },
        ),
    ),
    "cait_xxs24_224": Case(
        timm="cait_xxs24_224",
        public=("cait", "CaiT", {**IMAGENET, **CAIT, "patch_size": 16}),
    ),
    # The public T2TViT has tokens of 147 and 1323 channels where the paper has 64.
    "t2t_vit_t_14": Case(
        public=("t2t", "T2TViT", {**IMAGENET, "dim": 384, "depth": 14, "heads": 6, "mlp_dim": 1152}),
    ),
    "cct_14_7x2_224": Case(public=("cct", "cct_14", CCT_7X2)),
    "crossvit_9_240": Case(
        timm="crossvit_9_240",
        public=("cross_vit", "CrossViT", {**CROSSVIT, "image_size": 240, "num_classes": 1000}),
        image_size=(3, 240, 240),
    ),
    "pit_s_224": Case(
        timm="pit_s_224",
        public=(
            "pit",
            "PiT",
            {
                **IMAGENET,
                "patch_size": 16,
                "dim": 144,
                "depth": (2, 6, 4),
                "heads": (3, 6, 12),
                "dim_head": 48,
                "mlp_dim": 1152,
            },
        ),
    ),
    # The public LeViT has neither batch norm nor activations in its stem, and other heads between stages.
    "levit_256": Case(
        timm="levit_256",
        public=(
            "levit",
            "LeViT",
            {**IMAGENET, "dim": (256, 384, 512), "depth": 4, "heads": (4, 6, 8), "mlp_mult": 2},
        ),
    ),
    # The public CvT has no class token; transformers' activation is GELU, not its quick approximation.
    "cvt_13": Case(
        others={"transformers": _transformers_cvt},
        public=("cvt", "CvT", {"num_classes": 1000, "s3_heads": 6}),
    ),
    # The public TwinsSVT has eight heads of 64 in every stage, and no windows in the last.
    "twins_svt_small": Case(
        timm="twins_svt_small",
        public=(
            "twins_svt",
            "TwinsSVT",
            {
                "num_classes": 1000,
                "s1_global_k": 8,
                "s2_global_k": 4,
                "s3_global_k": 2,
                "s4_global_k": 1,
                "s1_depth": 0,
                "s2_depth": 0,
                "s3_depth": 4,
                "s4_depth": 3,
            },
        ),
    ),
    # The public RegionViT has four heads of 32 channels in every stage; two more blocks make up for them.
    "regionvit_small_224": Case(
        public=(
            "regionvit",
            "RegionViT",
            {"dim": DIMS_96, "depth": (2, 2, 10, 2), "num_classes": 1000, "tokenize_local_3_conv": True},
        ),
    ),
    # The public CrossFormer counts pairs of blocks, and its groups of far cells are smaller.
    "crossformer_small_patch4_group7_224": Case(
        public=("crossformer", "CrossFormer", {"dim": DIMS_96, "depth": (1, 1, 3, 1), "num_classes": 1000}),
    ),
    # The public ScalableViT has dense convolutions, and half of its feed-forwards follow each other.
    "scalable_vit_small": Case(public=("scalable_vit", "ScalableViT", SCALABLE_VIT)),
    # The public SepViT does not alternate windows of 7 and 14 cells.
    "sepvit_lite": Case(
        public=(
            "sep_vit",
            "SepViT",
            {"num_classes": 1000, "dim": 32, "heads": (1, 2, 4, 8), "depth": (1, 2, 6, 2)},
        ),
    ),
    # The public package has no norm in front of its convolutions, and no shortcuts around those that halve.
    "maxvit_tiny_tf_224": Case(
        timm="maxvit_tiny_tf_224",
        others={"torchvision": _torchvision_maxvit},
        public=(
            "max_vit",
            "MaxViT",
            {"num_classes": 1000, "dim": 64, "dim_conv_stem": 64, "depth": (2, 2, 5, 2), "dropout": 0.0},
        ),
    ),
    "nest_tiny": Case(
        timm="nest_tiny",
        public=(
            "nest",
            "NesT",
            {
                **IMAGENET,
                "patch_size": 4,
                "dim": 96,
                "heads": 3,
                "num_hierarchies": 3,
                "block_repeats": (2, 2, 8),
            },
        ),
    ),
    # The public package's transformers have heads of 8 channels and no norm behind them.
    "mobilevit_s": Case(
        timm="mobilevit_s",
        others={"transformers": _transformers_mobilevit},
        public=(
            "mobile_vit",
            "MobileViT",
            {
                "image_size": (256, 256),
                "dims": (144, 192, 240),
                "channels": (16, 32, 64, 64, 96, 96, 128, 128, 160, 160, 640),
                "num_classes": 1000,
            },
        ),
        image_size=(3, 256, 256),
    ),
    "xcit_small_12_p16_224": Case(
        timm="xcit_small_12_p16_224",
        public=(
            "xcit",
            "XCiT",
            {**IMAGENET, **SMALL, "patch_size": 16, "heads": 8, "dim_head": 48, "cls_depth": 2},
        ),
    ),
    # The public package samples at random, up to the same numbers of tokens.
    "deit_small_patch16_224_ats": Case(
        overrides={"max_tokens_per_depth": ATS, "ats_layers": None},
        others={"timm without sampling": _timm_deit},
        public=("ats_vit", "ViT", {**IMAGENET, **SMALL, "patch_size": 16, "max_tokens_per_depth": ATS}),
    ),
    "vit_small_patch16_224_patch_merger": Case(
        public=(
            "vit_with_patch_merger",
            "ViT",
            {**IMAGENET, **SMALL, "patch_size": 16, "patch_merge_layer": 6, "patch_merge_num_tokens": 8},
        ),
    ),
    # The public package's way back is another, its patches are normed.
    "lookupvit_base_patch16_224_7x7": Case(
        overrides=SMALL,
        public=("look_vit", "LookViT", {**IMAGENET, **LOOKUP}),
    ),
    "sl_vit_patch8_64": Case(
        public=("vit_for_small_dataset", "ViT", {"num_classes": 200, "image_size": 64, **SL_VIT}),
        image_size=(3, 64, 64),
    ),
    "vit_small_patch16_18x2_224": Case(
        timm="vit_small_patch16_18x2_224",
        public=("parallel_vit", "ViT", {**IMAGENET, **SMALL, "patch_size": 16, "depth": 18}),
    ),
    "vit_small_patch16_36x1_224": Case(
        timm="vit_small_patch16_36x1_224",
        public=("vit", "ViT", {**IMAGENET, **SMALL, "patch_size": 16, "depth": 36}),
    ),
    # The public package takes two thirds of this width.
    "nvit_small_patch16_224": Case(
        public=("normalized_vit", "nViT", {**IMAGENET, **SMALL, "patch_size": 16, "mlp_dim": 2304}),
    ),
    # The public SimpleUViT has one block less, fixed positions and four registers.
    "uvit_small_patch2_32": Case(
        public=(
            "simple_uvit",
            "SimpleUViT",
            {
                "image_size": 32,
                "patch_size": 2,
                "num_classes": 1000,
                "dim": 512,
                "depth": 12,
                "heads": 8,
                "mlp_dim": 2048,
            },
        ),
        image_size=(3, 32, 32),
    ),
    # The public JumboViT counts widths in multiples; its token is classified by the mean of its pieces.
    "jumbo_tiny": Case(
        public=(
            "jumbo_vit",
            "JumboViT",
            {
                **IMAGENET,
                "patch_size": 16,
                "dim": 192,
                "depth": 12,
                "heads": 3,
                "mlp_dim": 4,
                "jumbo_cls_k": 6,
                # Of this product with the token's width the whole part is taken, 4, and that is the multiple.
                "jumbo_ff_mult": 4.5 / (6 * 192),
            },
        ),
    ),
    # On images of mixed sizes, its reason to be, NaViT has a benchmark of its own: navit.py.
    "naflexvit_base_patch16_parfac_gap": Case(
        timm="naflexvit_base_patch16_parfac_gap", image_size=(3, 256, 256)
    ),
    # The public model has a class token.
    "videomae_small_patch16_224": Case(
        others={"transformers": _transformers_videomae},
        public=("vit_3d", "ViT", {**TUBELETS, **SMALL, "frames": 16, "num_classes": 400}),
        image_size=(3, 16, 224, 224),
    ),
    "simple_vit_3d_small_16x2": Case(
        public=("simple_vit_3d", "SimpleViT", {**TUBELETS, **SMALL, "frames": 16, "num_classes": 1000}),
        image_size=(3, 16, 224, 224),
    ),
    "vivit_b_16x2": Case(others={"transformers": _transformers_vivit}, image_size=(3, 32, 224, 224)),
    "vivit_b_16x2_fe": Case(
        public=(
            "vivit",
            "ViViT",
            {**TUBELETS, **BASE, "frames": 32, "spatial_depth": 12, "temporal_depth": 4, "num_classes": 400},
        ),
        image_size=(3, 32, 224, 224),
    ),
    "vivit_b_16x2_fsa": Case(
        public=(
            "vivit",
            "ViViT",
            {
                **TUBELETS,
                **BASE,
                "frames": 32,
                "spatial_depth": 12,
                "temporal_depth": 12,
                "num_classes": 400,
                "variant": "factorized_self_attention",
            },
        ),
        image_size=(3, 32, 224, 224),
    ),
    "cct_3d_14_7x2_8x224": Case(
        public=("cct_3d", "cct_14", {**CCT_7X2, "num_frames": 8, "num_classes": 1000}),
        image_size=(3, 8, 224, 224),
    ),
    "vit_1d_small_patch16_1024": Case(
        public=("vit_1d", "ViT", {**SMALL, "seq_len": 1024, "patch_size": 16, "num_classes": 1000}),
        image_size=(3, 1024),
    ),
}
