"""Models of one sequence of tokens that change the plain ViT."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from typing import Any

from loading_case import (
    VIT,
    VIT_OURS,
    VIT_TIMM,
    Build,
    Case,
    against,
    config_of,
    golden,
    ours,
    theirs,
    through_timms_reader,
)
from references import images, read_golden
from torch import Tensor, nn


def deepvit() -> Iterator[Case]:
    def from_config(facts: dict[str, Any]) -> Build:
        dim_head = facts["embed_dim"] // facts["num_heads"]
        return ours(
            "DeepViT",
            image_size=facts["img_size"],
            patch_size=facts["patch_size"],
            num_classes=facts["num_classes"],
            dim=facts["embed_dim"],
            depth=len(facts["depth"]),
            heads=facts["num_heads"],
            mlp_dim=facts["embed_dim"] * facts["mlp_ratio"],
            dim_head=dim_head,
            reattn_layers=sum(facts["apply_transform"]),
            reattn_scale=dim_head**-0.5 if facts["transform_scale"] else 1.0,
            scale_adjustment=facts["scale_adjustment"],
            stem="conv" if facts["use_cnn_embed"] else "linear",
        )

    yield golden("DeepViT", "zhoudaquan/dvit_repo", "deepvit", from_config)


def cait() -> Iterator[Case]:
    build = ours("CaiT", **VIT, cls_depth=2, mlp_dim=192)
    yield against("timm", "timm `Cait`", build, theirs("timm.models.cait", "Cait", **VIT_TIMM), 48, 48)


def t2t() -> Iterator[Case]:
    def from_config(facts: dict[str, Any]) -> Build:
        return ours(
            "T2TViT",
            dim=facts["embed_dim"],
            image_size=facts["img_size"],
            heads=facts["num_heads"],
            mlp_dim=int(facts["embed_dim"] * facts["mlp_ratio"]),
            dim_head=facts["embed_dim"] // facts["num_heads"],
            **{key: facts[key] for key in ("depth", "num_classes", "token_dim", "tokens_type", "qk_scale")},
        )

    for kind in ("transformer", "performer"):
        yield golden(f"T2T-ViT {kind}", "yitu-opensource/T2T-ViT", f"t2t_vit_{kind}", from_config)


def cct() -> Iterator[Case]:
    def from_config(config: dict[str, Any]) -> Build:
        theirs = {"channels": "n_input_channels", "drop_path": "stochastic_depth"}
        names = {**theirs, "attn_dropout": "attention_dropout"}
        arguments = {mine: config.pop(other) for mine, other in names.items()}
        return ours("CCT", **config, **arguments)

    yield golden("Compact-Transformers", "SHI-Labs/Compact-Transformers", "cct", from_config)


def small_datasets() -> Iterator[Case]:
    def from_config(config: dict[str, Any]) -> Build:
        same = ("patch_size", "num_classes", "dim", "depth", "heads", "channels", "dim_head")
        return ours(
            "SLViT",
            image_size=config["img_size"],
            mlp_dim=config["dim"] * config["mlp_dim_ratio"],
            stem="shifted" if config["is_SPT"] else "linear",
            attention="locality" if config["is_LSA"] else "plain",
            **{key: config[key] for key in same},
        )

    for name in ("spt_lsa_vit", "spt_vit", "lsa_vit"):
        yield golden("SPT_LSA_ViT", f"aanna0701/SPT_LSA_ViT, `{name}`", name, from_config)


def ats() -> Iterator[Case]:
    def from_config(facts: dict[str, Any]) -> Build:
        return ours(
            "ATSViT",
            image_size=facts["img_size"],
            patch_size=facts["patch_size"],
            num_classes=facts["num_classes"],
            dim=facts["embed_dim"],
            depth=facts["depth"],
            max_tokens_per_depth=[tokens - 1 for tokens in facts["num_tokens"]],
            heads=facts["num_heads"],
            mlp_dim=int(facts["mlp_ratio"] * facts["embed_dim"]),
            dim_head=facts["embed_dim"] // facts["num_heads"],
            ats_layers=facts["ats_blocks"],
        )

    yield golden("timm", "adaptivetokensampling/ATS (timm's names)", "ats_vit_padded", from_config)


def merger() -> Iterator[Case]:
    yield golden(
        "vit-pytorch PatchMerger",
        "vit-pytorch 1.26.11 `vit_with_patch_merger.ViT`",
        "public_patch_merger",
        lambda facts: ours(
            "PatchMergerViT",
            **facts,
            scale=facts["dim"] ** -0.5,
            qkv_bias=False,
            patch_norm=True,
            norm_eps=1e-5,
        ),
    )


def parallel() -> Iterator[Case]:
    block = import_module("timm.models.vision_transformer").ParallelThingsBlock
    model = theirs("timm.models.vision_transformer", "VisionTransformer", **VIT_TIMM, block_fn=block)
    yield against("timm", "timm `ParallelThingsBlock`", ours("ParallelViT", **VIT_OURS), model, 48, 48)
    yield golden(
        "deit",
        "facebookresearch/deit `vit_models`",
        "parallel_vit_deit",
        lambda facts: ours("ParallelViT", **facts),
    )
    yield golden(
        "vit-pytorch parallel ViT",
        "vit-pytorch 1.26.11 `parallel_vit.ViT`",
        "public_parallel_vit",
        lambda facts: ours("ParallelViT", **facts, qkv_bias=False, norm_eps=1e-5),
    )


def na_vit() -> Iterator[Case]:
    cfg = import_module("timm.models.naflexvit").NaFlexVitCfg(
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        pos_embed="factorized",
        pos_embed_grid_size=(6, 8),
        global_pool="map",
        init_values=1e-5,
        reg_tokens=4,
        fc_norm=False,
    )
    plain = {"qk_norm": "none", "qkv_bias": True, "norm_bias": True, "layer_scale": 1e-5, "num_registers": 4}
    build = ours("NaViT", **{**VIT_OURS, "image_size": (48, 64)}, **plain, pos_type="frac")
    model = theirs("timm.models.naflexvit", "NaFlexVit", cfg, num_classes=7)
    yield against("timm", "timm `NaFlexVit`", build, model, 40, 56)
    cfg = replace(cfg, pos_embed="learned", pos_embed_interp_mode="bilinear", pos_embed_ar_preserving=True)
    table = {"kind": "table", "mode": "bilinear", "keep_aspect": True}
    build = ours("NaViT", **{**VIT_OURS, "image_size": (48, 64)}, **plain, pos_type=table)
    model = theirs("timm.models.naflexvit", "NaFlexVit", cfg, num_classes=7)
    yield against("timm", "timm `NaFlexVit`, a table of positions", build, model, 40, 56)
    form = {"patch_norm": True, "pool": "query", "out_bias": False, "head_bias": False, "norm_eps": 1e-5}
    public: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("vit-pytorch NaViT", "na_vit", "public_na_vit", {"qk_norm": "rms"}),
        (
            "vit-pytorch nested NaViT",
            "na_vit_nested_tensor",
            "public_na_vit_nested",
            {"qk_norm": "layer", "pool": {"kind": "query", "residual": False}},
        ),
    )
    for format, module, name, options in public:
        facts, weights, tensors = read_golden(name)
        yield Case(
            format=format,
            reference=f"vit-pytorch 1.26.11 `{module}.NaViT`",
            build=ours("NaViT", **{**facts, **form, **options}),
            checkpoint=weights,
            inputs=[tensors[f"input/{i}"] for i in range(5)],
            outputs=tensors["output"],
        )


def xcit() -> Iterator[Case]:
    build = ours("XCiT", **VIT, cls_depth=2, mlp_dim=192)
    model = theirs("timm.models.xcit", "Xcit", **VIT_TIMM, tokens_norm=True)
    yield against("timm", "timm `Xcit`", build, model, 48, 48)
    yield through_timms_reader("xcit", "timm's reader of the authors' files", build, model, 48)


def sam_vit() -> Iterator[Case]:
    sizes: dict[str, Any] = {"depth": 2, "window_size": 3, "num_classes": 7}
    shape: dict[str, Any] = {"image_size": 32, "patch_size": 4, "dim": 24, "heads": 2, "mlp_dim": 48}
    own: dict[str, Any] = {**sizes, **shape, "global_layers": (1,), "neck_dim": 16, "norm_eps": 1e-5}
    build, bare = ours("SAMViT", **own), ours("SAMViT", **{**own, "num_classes": 0})
    timm_shape = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "num_heads": 2, "mlp_ratio": 2.0}
    model = theirs(
        "timm.models.vision_transformer_sam",
        "VisionTransformerSAM",
        **sizes,
        **timm_shape,
        global_attn_indexes=(1,),
        use_rel_pos=True,
        neck_chans=16,
    )
    yield against("timm", "timm `VisionTransformerSAM`", build, model, 32, 32)
    headless: Any = deepcopy(model)
    headless.reset_classifier(0)
    yield through_timms_reader("segment_anything", "segment-anything", bare, headless, 32)
    config = config_of(
        "SamVisionConfig",
        hidden_size=24,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=4,
        mlp_dim=48,
        window_size=3,
        global_attn_indexes=[1],
        layer_norm_eps=1e-5,
    )
    other = theirs("transformers", "SamVisionModel", config)
    x = images(32, 32)
    yield Case(
        format="transformers",
        reference="transformers `SamVisionModel`",
        build=bare,
        checkpoint=other.state_dict(),
        inputs=x,
        outputs=mean_embedding(other, x),
        other=other,
        call_other=mean_embedding,
    )


def mean_embedding(encoder: nn.Module, x: Tensor) -> Tensor:
    """Return the mean of the embedding that an encoder of transformers computes of images."""
    return encoder(x).last_hidden_state.mean(dim=(2, 3))
