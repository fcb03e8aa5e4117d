"""Models in stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

from loading_case import (
    Build,
    Case,
    against,
    config_of,
    golden,
    named,
    ours,
    renamed,
    saved,
    theirs,
    through_timms_reader,
)
from references import images, randomise, read_golden, settle
from torch import nn
from torch.nn.functional import layer_norm

from vit_pytorch.pretrained import load_pretrained, to_format
from vit_pytorch.registry.twins_svt import stages


def cross_vit() -> Iterator[Case]:
    sizes: dict[str, Any] = {"image_size": 60, "num_classes": 7, "depth": 3, "lg_image_size": 48}
    for kind, dim, patch, depth in (("sm", 32, 6, 1), ("lg", 48, 8, 2)):
        sizes |= {f"{kind}_dim": dim, f"{kind}_patch_size": patch, f"{kind}_enc_depth": depth}
        sizes |= {f"{kind}_enc_heads": 4, f"{kind}_enc_mlp_dim": 96}
    build = ours("CrossViT", **sizes, cross_attn_heads=4)
    model = theirs(
        "timm.models.crossvit",
        "CrossVit",
        img_size=60,
        img_scale=(1.0, 48 / 60),
        patch_size=(6, 8),
        num_classes=7,
        embed_dim=(32, 48),
        depth=((1, 2, 0),) * 3,
        num_heads=(4, 4),
        mlp_ratio=(3, 2, 1),
    )
    yield against("timm", "timm `CrossVit`", build, model, 60, 60)
    yield renamed("IBM CrossViT", "timm `CrossVit`, under the authors' names", build, model, 60)


def tnt() -> Iterator[Case]:
    sizes: dict[str, Any] = {"patch_size": 8, "num_classes": 7, "depth": 2, "inner_dim": 12}
    outer = {"image_size": 32, "dim": 48, "heads": 3, "mlp_dim": 96}
    inner = {"inner_heads": 2, "inner_mlp_dim": 48}
    options = {"img_size": 32, "embed_dim": 48, "num_heads_outer": 3, "mlp_ratio": 2, "num_heads_inner": 2}
    build = ours("TNT", **sizes, **outer, **inner)
    model = theirs("timm.models.tnt", "TNT", **sizes, **options)
    yield against("timm", "timm `TNT`", build, model, 32, 32)
    yield through_timms_reader("tnt", "huawei-noah/Efficient-AI-Backbones", build, model, 32)
    build = ours("TNT", **sizes, **outer, **inner, variant="timm")
    model = theirs("timm.models.tnt", "TNT", **sizes, **options, legacy=True)
    yield against("timm", "timm `TNT`, its first version", build, model, 32, 32)


def pit() -> Iterator[Case]:
    sizes = {"image_size": 48, "patch_size": 8, "num_classes": 7, "dim": 24, "depth": (1, 2, 1)}
    build = ours("PiT", **sizes, heads=2, mlp_dim=96, distilled=True)
    sizes = {"img_size": 48, "patch_size": 8, "stride": 4, "num_classes": 7, "depth": (1, 2, 1)}
    model = theirs(
        "timm.models.pit",
        "PoolingVisionTransformer",
        **sizes,
        base_dims=(12,) * 3,
        heads=(2, 4, 8),
        distilled=True,
    )
    yield against("timm", "timm `PoolingVisionTransformer`", build, model, 48, 48)
    yield through_timms_reader("pit", "timm's reader of the authors' files", build, model, 48)


def levit() -> Iterator[Case]:
    sizes = {"num_classes": 7, "depth": (1, 2, 1)}
    build = ours(
        "LeViT",
        **sizes,
        image_size=64,
        dim=(16, 24, 32),
        heads=(2, 3, 2),
        mlp_mult=2,
        dim_key=8,
        distilled=True,
    )
    model = theirs(
        "timm.models.levit",
        "LevitDistilled",
        **sizes,
        img_size=64,
        embed_dim=(16, 24, 32),
        num_heads=(2, 3, 2),
        key_dim=8,
    )
    yield against("timm", "timm `LevitDistilled`", build, model, 64, 64)
    conv = "timm `LevitDistilled`, of convolutions"
    yield renamed("timm, convolutions", conv, build, model, 64)
    yield renamed("LeViT", "timm `LevitDistilled`, under the authors' names", build, model, 64)
    config = config_of(
        "LevitConfig",
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 3, 2],
        depths=[1, 2, 1],
        key_dim=[8, 8, 8],
        mlp_ratio=[2, 2, 2],
        attention_ratio=[2, 2, 2],
        num_labels=7,
    )
    other = theirs("transformers", "LevitForImageClassificationWithTeacher", config)
    yield against(
        "transformers", "transformers `LevitForImageClassificationWithTeacher`", build, other, 64, 64
    )


def efficientformer() -> Iterator[Case]:
    dims, depths = (8, 16, 24), (1, 2, 3)
    # timm's attention is for maps of 7 x 7 cells
    sizes: dict[str, Any] = {"image_size": 112, "num_classes": 7, "dim": dims, "depth": depths}
    build = ours("EfficientFormer", **sizes, attention_depth=2, distilled=True)
    options: dict[str, Any] = {"num_classes": 7, "embed_dims": dims, "depths": depths, "num_vit": 2}
    model = theirs("timm.models.efficientformer", "EfficientFormer", **options)
    yield against("timm", "timm `EfficientFormer`", build, model, 112, 112)
    # a new one, since timm's keeps the biases of a call
    model = theirs("timm.models.efficientformer", "EfficientFormer", **options)
    yield through_timms_reader("EfficientFormer", "snap-research/EfficientFormer", build, model, 112)


def efficientformer_v2() -> Iterator[Case]:
    dims, depths = (8, 16, 24, 32), (1, 1, 2, 2)
    sizes: dict[str, Any] = {"image_size": (64, 96), "num_classes": 7, "dim": dims, "depth": depths}
    options: dict[str, Any] = {"img_size": (64, 96), "num_classes": 7, "embed_dims": dims, "depths": depths}
    build = ours("EfficientFormerV2", **sizes, attention_depth=1, distilled=True)
    model = theirs("timm.models.efficientformer_v2", "EfficientFormerV2", **options, num_vit=1)
    settle(model, images(64, 96, batch=4, seed=5))
    yield against("timm", "timm `EfficientFormerV2`", build, model, 64, 96)


def efficientvit() -> Iterator[Case]:
    dims, depths, heads, kernels = (16, 24, 32), (1, 2, 1), (2, 3, 2), (5, 3, 1)
    sizes: dict[str, Any] = {"image_size": 96, "num_classes": 7, "dim": dims, "depth": depths, "heads": heads}
    build = ours("EfficientViT", **sizes, dim_key=4, kernel_sizes=kernels, window_size=3)
    options: dict[str, Any] = {"img_size": 96, "num_classes": 7, "embed_dim": dims, "depth": depths}
    options |= {"num_heads": heads, "key_dim": (4,) * 3, "kernels": kernels, "window_size": (3,) * 3}
    model = theirs("timm.models.efficientvit_msra", "EfficientVitMsra", **options)
    settle(model, images(96, 96, batch=16, seed=5))
    yield against("timm", "timm `EfficientVitMsra`", build, model, 96, 96)


def metaformer() -> Iterator[Case]:
    dims, depths = (16, 24, 32, 64), (1, 2, 1, 1)
    sizes: dict[str, Any] = {"num_classes": 7, "image_size": 64, "dim": dims, "depth": depths}
    module = import_module("timm.models.metaformer")
    conv, attention, plain = module.SepConv, module.Attention, module.LayerNorm2dNoBias
    kinds: dict[str, dict[str, Any]] = {
        "poolformer_s12": {
            "downsample_norm": None,
            "mlp_act": nn.GELU,
            "mlp_bias": True,
            "norm_layers": module.GroupNorm1,
            "layer_scale_init_values": 1e-5,
            "res_scale_init_values": None,
            "use_mlp_head": False,
        },
        "poolformerv2_s12": {"norm_layers": module.GroupNorm1NoBias, "use_mlp_head": False},
        "convformer_s18": {"token_mixers": conv, "norm_layers": plain},
        "caformer_s18": {
            "token_mixers": [conv, conv, attention, attention],
            "norm_layers": [plain] * 2 + [module.LayerNormNoBias] * 2,
        },
    }
    for name, options in kinds.items():
        build = named(name, **sizes)
        model = theirs(module.__name__, "MetaFormer", num_classes=7, dims=dims, depths=depths, **options)
        label = f"timm `MetaFormer`, {name.partition('_')[0]}"
        yield against("timm", label, build, model, 64, 64)
        if name != "poolformer_s12":
            yield through_timms_reader("metaformer", f"sail-sg/metaformer, {name}", build, model, 64)
    config = config_of("PoolFormerConfig", hidden_sizes=dims, depths=depths, num_labels=7)
    model = theirs("transformers", "PoolFormerForImageClassification", config)
    build = named("poolformer_s12", **sizes, map_norm=True)
    reference = "transformers `PoolFormerForImageClassification`"
    yield against("transformers", reference, build, model, 64, 64)
    yield renamed("poolformer", f"{reference}, under the authors' names", build, model, 64)


def visformer() -> Iterator[Case]:
    sizes: dict[str, Any] = {"num_classes": 7, "depth": (1, 2, 1), "mlp_ratio": 3}
    build = ours("Visformer", **sizes, image_size=64, dim=16, heads=2, stem_dim=8, conv_groups=4)
    options: dict[str, Any] = {"norm_layer": nn.BatchNorm2d, "embed_norm": nn.BatchNorm2d, "group": 4}
    options |= {"img_size": 64, "init_channels": 8, "embed_dim": 32, "num_heads": 2}
    model = theirs(
        "timm.models.visformer", "Visformer", **sizes, **options, attn_stage="011", spatial_conv="100"
    )
    settle(model, images(64, 64, batch=8, seed=5))
    yield against("timm", "timm `Visformer`", build, model, 64, 64)


def cvt() -> Iterator[Case]:
    sizes: dict[str, Any] = {"num_classes": 7, "image_size": 64, "variant": "transformers"}
    for stage, (dim, heads, depth) in enumerate(((16, 1, 1), (24, 2, 2), (32, 4, 3)), start=1):
        sizes |= {f"s{stage}_emb_dim": dim, f"s{stage}_heads": heads, f"s{stage}_depth": depth}
    config = config_of(
        "CvtConfig", num_labels=7, embed_dim=[16, 24, 32], num_heads=[1, 2, 4], depth=[1, 2, 3]
    )
    model = theirs("transformers", "CvtForImageClassification", config)
    yield against(
        "transformers", "transformers `CvtForImageClassification`", ours("CvT", **sizes), model, 64, 64
    )

    def from_config(config: dict[str, Any]) -> Build:
        spec = config["spec"]
        arguments = {"num_classes": config["num_classes"], "image_size": 64}
        variant = {"kind": "authors", "class_token": spec["CLS_TOKEN"], "norm_eps": config["norm_eps"]}
        names = {
            "emb_dim": "DIM_EMBED",
            "emb_kernel": "PATCH_SIZE",
            "emb_stride": "PATCH_STRIDE",
            "proj_kernel": "KERNEL_QKV",
            "kv_proj_stride": "STRIDE_KV",
            "heads": "NUM_HEADS",
            "depth": "DEPTH",
            "mlp_mult": "MLP_RATIO",
        }
        for stage in range(3):
            for mine, other in names.items():
                arguments[f"s{stage + 1}_{mine}"] = int(spec[other][stage])
        return ours("CvT", **arguments, variant=variant)

    yield golden("CvT", "microsoft/CvT", "cvt_quickgelu", from_config)


def pvt_v2() -> Iterator[Case]:
    dims, depths, heads, ratios = (16, 24, 32, 40), (1, 2, 1, 2), (1, 2, 4, 5), (3, 2, 2, 2)
    sizes: dict[str, Any] = {"image_size": 64, "num_classes": 7, "dim": dims, "depth": depths, "heads": heads}
    options = {"num_classes": 7, "embed_dims": dims, "depths": depths, "num_heads": heads}
    for kind, mine, linear in (("", {}, False), (", linear attention", {"reduction": None}, True)):
        build = ours("PVTv2", **sizes, mlp_ratio=ratios, **mine)
        model = theirs(
            "timm.models.pvt_v2", "PyramidVisionTransformerV2", **options, mlp_ratios=ratios, linear=linear
        )
        yield against("timm", f"timm `PyramidVisionTransformerV2`{kind}", build, model, 64, 64)
        yield through_timms_reader("PVT", f"whai362/PVT{kind}", build, model, 64)
        # which has one epsilon for all norms
        config = config_of(
            "PvtV2Config",
            num_labels=7,
            hidden_sizes=dims,
            depths=depths,
            num_attention_heads=heads,
            mlp_ratios=ratios,
            linear_attention=linear,
            layer_norm_eps=1e-5,
        )
        model = theirs("transformers", "PvtV2ForImageClassification", config)
        reference = f"transformers `PvtV2ForImageClassification`{kind}"
        build = ours("PVTv2", **sizes, mlp_ratio=ratios, **mine, norm_eps=1e-5)
        yield against("transformers", reference, build, model, 64, 64)


def twins() -> Iterator[Case]:
    sizes = stages(
        emb_dim=(16, 24, 32, 40), depth=(1, 1, 2, 1), local_patch_size=(4, 4, 2, 2), global_k=(8, 4, 2, 1)
    )
    model = theirs(
        "timm.models.twins",
        "Twins",
        img_size=64,
        num_classes=7,
        embed_dims=(16, 24, 32, 40),
        depths=(2, 2, 4, 2),
        num_heads=(2, 3, 4, 5),
        wss=(4, 4, 2, 2),
        sr_ratios=(8, 4, 2, 1),
    )
    build = ours("TwinsSVT", image_size=64, num_classes=7, heads=(2, 3, 4, 5), **sizes)
    yield against("timm", "timm `Twins` (the authors' names are the same)", build, model, 64, 64)


def region_vit() -> Iterator[Case]:
    yield golden(
        "regionvit",
        "IBM/RegionViT",
        "regionvit",
        lambda _: ours(
            "RegionViT",
            dim=(12, 24, 48, 96),
            depth=(1, 2, 2, 2),
            window_size=3,
            num_classes=10,
            tokenize_local_3_conv=True,
            use_peg=True,
            image_size=96,
            heads=(2, 4, 8, 16),
            mlp_ratio=3,
        ),
    )


def _swins(
    ours_name: str, module: str, timms: str, transformers: tuple[str, str], **options: Any
) -> Iterator[Case]:
    sizes: dict[str, Any] = {"image_size": 64, "window_size": 4}
    build = ours(ours_name, **sizes, num_classes=7, dim=24, depth=(2, 2, 2), heads=(2, 3, 4))
    depths: dict[str, Any] = {"embed_dim": 24, "depths": (2, 2, 2), "num_heads": (2, 3, 4), "window_size": 4}
    model = theirs(f"timm.models.{module}", timms, img_size=64, num_classes=7, **depths, **options)
    yield against("timm", f"timm `{timms}`", build, model, 64, 64)
    yield renamed("microsoft", f"timm `{timms}`, under the authors' names", build, model, 64)
    config = config_of(transformers[0], image_size=64, num_labels=7, **depths)
    model = theirs("transformers", transformers[1], config)
    yield against("transformers", f"transformers `{transformers[1]}`", build, model, 64, 64)
    if ours_name == "SwinTransformer":
        yield saved("transformers-files", f"file of transformers' `{transformers[1]}`", build, model, 64)


def swin() -> Iterator[Case]:
    names = ("SwinConfig", "SwinForImageClassification")
    yield from _swins("SwinTransformer", "swin_transformer", "SwinTransformer", names)


def swin_v2() -> Iterator[Case]:
    names = ("Swinv2Config", "Swinv2ForImageClassification")
    windows = {"pretrained_window_sizes": (0, 0, 0)}
    yield from _swins("SwinTransformerV2", "swin_transformer_v2", "SwinTransformerV2", names, **windows)


def hiera() -> Iterator[Case]:
    sizes: dict[str, Any] = {"image_size": 64, "num_classes": 7, "dim": 16, "depth": (1, 2, 2, 1)}
    stages: dict[str, Any] = {"img_size": (64, 64), "num_classes": 7, "embed_dim": 16, "stages": (1, 2, 2, 1)}
    build = ours("Hiera", **sizes)
    model = theirs("timm.models.hiera", "Hiera", **stages)
    yield against("timm", "timm `Hiera`", build, model, 64, 64)
    yield through_timms_reader("facebookresearch", "facebookresearch/hiera", build, model, 64)
    windowed = theirs("timm.models.hiera", "Hiera", **stages, abs_win_pos_embed=True, global_pos_size=(5, 5))
    build_windowed = ours("Hiera", **sizes, position_grid=5)
    yield against("timm", "timm `Hiera`, absolute window positions", build_windowed, windowed, 64, 64)
    config = config_of(
        "HieraConfig",
        image_size=[64, 64],
        embed_dim=16,
        depths=[1, 2, 2, 1],
        num_heads=[1, 2, 4, 8],
        num_labels=7,
    )
    model = theirs("transformers", "HieraForImageClassification", config)
    yield against("transformers", "transformers `HieraForImageClassification`", build, model, 64, 64)


def sam2_hiera() -> Iterator[Case]:
    windows = (8, 4, 6, 3)
    sizes: dict[str, Any] = {"image_size": 64, "dim": 16, "depth": (1, 1, 2, 2), "window_size": windows}
    own: dict[str, Any] = {**sizes, "global_layers": (3,), "position_grid": 5}
    build = ours("SAM2Hiera", **own, num_classes=7)
    model = theirs(
        "timm.models.hieradet_sam2",
        "HieraDet",
        num_classes=7,
        embed_dim=16,
        stages=(1, 1, 2, 2),
        window_spec=windows,
        global_att_blocks=(3,),
        global_pos_size=(5, 5),
    )
    yield against("timm", "timm `HieraDet`", build, model, 64, 64)
    reference = "timm `HieraDet`, under the authors' names"
    yield renamed("facebookresearch", reference, build, model, 64)
    config = config_of(
        "Sam2HieraDetConfig",
        hidden_size=16,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 2],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[*windows],
        window_positional_embedding_background_size=[5, 5],
        global_attention_blocks=[3],
    )
    model = theirs("transformers.models.sam2.modeling_sam2", "Sam2HieraDetModel", config)
    x = images(64, 64)
    yield Case(
        format="transformers",
        reference="transformers `Sam2HieraDetModel`, its mean normed",
        build=ours("SAM2Hiera", **own, num_classes=0),
        checkpoint=model.state_dict(),
        inputs=x,
        outputs=layer_norm(model(x).last_hidden_state.mean(dim=(1, 2)), (128,), eps=1e-6),
    )


def mvit_v2() -> Iterator[Case]:
    module = import_module("timm.models.mvitv2")
    sizes: dict[str, Any] = {"image_size": 64, "num_classes": 7, "dim": 16, "heads": 2, "depth": (1, 2, 2, 2)}
    depths: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "depths": (1, 2, 2, 2)}
    for more, mine, its in (
        ("", {}, {}),
        (", a class token", {"class_token": True}, {"use_cls_token": True}),
        (", wider feed-forwards", {"widen": "feedforward"}, {"expand_attn": False}),
    ):
        cfg = module.MultiScaleVitCfg(**depths, **its)
        model = theirs("timm.models.mvitv2", "MultiScaleVit", cfg, img_size=64, num_classes=7)
        build = ours("MViTv2", **sizes, **mine)
        yield against("timm", f"timm `MultiScaleVit`{more}", build, model, 64, 64)
        if not more:
            yield through_timms_reader("facebookresearch", "facebookresearch/mvit", build, model, 64)


def crossformer() -> Iterator[Case]:
    yield golden(
        "crossformer",
        "cheerss/CrossFormer",
        "crossformer",
        lambda _: ours(
            "CrossFormer",
            num_classes=10,
            dim=(48, 96),
            depth=(2, 2),
            global_window_size=(2, 1),
            local_window_size=(4, 8),
            image_size=64,
            cross_embed_kernel_sizes=((4, 8, 16, 32), (2, 4)),
            cross_embed_strides=(4, 2),
            heads=(2, 4),
            mlp_ratio=3,
        ),
    )


def sep_vit() -> Iterator[Case]:
    yield golden(
        "sepvit",
        "liwei109/SepViT",
        "sepvit",
        lambda config: ours(
            "SepViT",
            num_classes=config["num_classes"],
            dim=config["embed_dims"],
            dim_head=config["embed_dims"][0] // config["num_heads"][0],
            heads=config["num_heads"],
            depth=config["depths"],
            window_size=config["ws"],
            mlp_ratio=config["mlp_ratios"][0],
        ),
    )


def scalable() -> Iterator[Case]:
    def from_config(config: dict[str, Any], **options: Any) -> Build:
        heads = config["num_heads"]
        ratios = zip(config["embed_dims"], heads, config["c_ratios"], strict=True)
        return ours(
            "ScalableViT",
            num_classes=config["num_classes"],
            dim=config["embed_dims"],
            heads=heads,
            depth=config["depths"],
            ssa_dim_key=[int(dim * ratio) // h for dim, h, ratio in ratios],
            reduction_factor=config["sr_ratios"],
            window_size=config["wss"],
            image_size=config["img_size"],
            qkv_bias=config["qkv_bias"],
            **{"representation_size": 4096, **options},
        )

    reference = "Yangr116/ScalableViT"
    yield golden("ScalableViT", reference, "scalablevit", from_config)
    config, weights, tensors = read_golden("scalablevit")
    head = nn.Linear(tensors["features"].shape[1], config["num_classes"])
    randomise(head)
    bare = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    yield Case(
        format="ScalableViT with a plain head",
        reference=f"{reference}, its pooled features under one linear layer",
        build=from_config(config, representation_size=None),
        checkpoint={**bare, **{f"head.{name}": tensor for name, tensor in head.state_dict().items()}},
        inputs=tensors["input"],
        outputs=head(tensors["features"]),
    )


def coatnet() -> Iterator[Case]:
    for name in ("coatnet_nano_rw_224", "coatnext_nano_rw_224"):
        model = theirs("timm", "create_model", name, img_size=64, num_classes=7)
        build = named(name, image_size=64, num_classes=7)
        yield against("timm", f"timm `{name}.sw_in1k`", build, model, 64, 64)


def davit() -> Iterator[Case]:
    sizes: dict[str, Any] = {"image_size": 64, "dim": (24, 32, 48), "depth": (1, 2, 1), "heads": (2, 4, 3)}
    pyramid: dict[str, Any] = {"embed_dims": (24, 32, 48), "depths": (1, 2, 1), "num_heads": (2, 4, 3)}
    build = ours("DaViT", **sizes, num_classes=7, window_size=3)
    model = theirs("timm.models.davit", "DaVit", **pyramid, num_classes=7, window_size=3)
    yield against("timm", "timm `DaVit`", build, model, 64, 64)
    yield through_timms_reader("davit", "dingmyu/davit", build, model, 64)
    florence: dict[str, Any] = {"down_kernel_size": 3, "channel_scale": "tokens", "window_size": 3}
    build = ours("DaViT", **sizes, num_classes=7, **florence)
    options = {"down_kernel_size": 3, "channel_attn_v2": True, "named_blocks": True, "window_size": 3}
    model = theirs("timm.models.davit", "DaVit", **pyramid, num_classes=7, **options)
    yield against("timm Florence-2", "timm `DaVit`, options of Florence-2", build, model, 64, 64)
    config = config_of(
        "Florence2VisionConfig",
        embed_dim=(24, 32, 48),
        depths=(1, 2, 1),
        num_heads=(2, 4, 3),
        num_groups=(2, 4, 3),
        window_size=3,
        patch_size=(7, 3, 3),
        patch_stride=(4, 2, 2),
        patch_padding=(3, 1, 1),
        patch_prenorm=(False, True, True),
    )
    model = theirs("transformers.models.florence2.modeling_florence2", "Florence2VisionBackbone", config)
    inputs = images(64, 64)
    case = Case(
        format="transformers Florence-2",
        reference="transformers `Florence2VisionBackbone`, its mean normed",
        build=ours("DaViT", **sizes, num_classes=0, **florence),
        checkpoint={f"model.vision_tower.{name}": tensor for name, tensor in model.state_dict().items()},
        inputs=inputs,
        outputs=layer_norm(model(inputs).last_hidden_state.mean(dim=(2, 3)), (48,)),
    )
    yield case
    encoder = case.build()
    load_pretrained(encoder, case.checkpoint)
    yield replace(case, format="Florence-2", checkpoint=to_format(encoder, "Florence-2"))


def max_vit() -> Iterator[Case]:
    maxxvit = import_module("timm.models.maxxvit")
    cfg = maxxvit.MaxxVitCfg(
        embed_dim=(16, 32),
        depths=(1, 2),
        block_type=("M", "M"),
        stem_width=12,
        stem_bias=True,
        head_hidden_size=32,
        **maxxvit._tf_cfg(),
    )
    options = {"img_size": 32, "num_classes": 7, "transformer_dim_head": 8, "transformer_window_size": (4, 4)}
    sizes = {
        "num_classes": 7,
        "dim": 16,
        "depth": (1, 2),
        "dim_conv_stem": 12,
        "dim_head": 8,
        "window_size": 4,
    }
    model = theirs("timm.models.maxxvit", "MaxxVit", cfg, **options)
    yield against("timm", "timm `MaxxVit`", ours("MaxViT", **sizes), model, 32, 32)
    name = "maxvit_rmlp_nano_rw_256"
    model = theirs("timm", "create_model", name, img_size=96, num_classes=7)
    build = named(name, image_size=96, window_size=3, num_classes=7)
    yield against("timm, its own variants", f"timm `{name}.sw_in1k`", build, model, 96, 96)
    name = "maxvit_tiny_pm_256"
    model = theirs("timm", "create_model", name, img_size=96, num_classes=7)
    build = named(name, image_size=96, window_size=3, num_classes=7)
    yield against("timm, attention side by side", f"timm `{name}`", build, model, 96, 96)
    model = theirs(
        "torchvision.models.maxvit",
        "MaxVit",
        input_size=(64, 64),
        stem_channels=12,
        partition_size=4,
        block_channels=[16, 32],
        block_layers=[1, 2],
        head_dim=8,
        stochastic_depth_prob=0.0,
        num_classes=7,
    )
    form = {"act": "gelu", "padding": "symmetric", "project_shortcuts": True, "scale_by": "dim"}
    build = ours("MaxViT", **sizes, **form, stem_bias=False, head_bias=False, image_size=64)
    yield against("torchvision", "torchvision `MaxVit`", build, model, 64, 64)


def nest() -> Iterator[Case]:
    sizes = {"image_size": 32, "patch_size": 2, "dim": 24, "heads": 2, "num_hierarchies": 3, "num_classes": 7}
    model = theirs(
        "timm.models.nest",
        "Nest",
        img_size=32,
        patch_size=2,
        embed_dims=(24, 48, 96),
        num_heads=(2, 4, 8),
        num_levels=3,
        depths=(1, 2, 2),
        num_classes=7,
        pad_type="same",
    )
    yield against("timm", "timm `Nest`", ours("NesT", **sizes, block_repeats=(1, 2, 2)), model, 32, 32)


def mobile_vit() -> Iterator[Case]:
    widths = (8, 16, 24, 24, 32, 32, 40, 40, 48, 48, 56)
    sizes = {"image_size": 64, "dims": (16, 20, 24), "widths": widths, "num_classes": 7}
    mobilevit, byobnet = import_module("timm.models.mobilevit"), import_module("timm.models.byobnet")
    cfg = byobnet.ByoModelCfg(
        blocks=(
            mobilevit._inverted_residual_block(d=1, c=16, s=1),
            mobilevit._inverted_residual_block(d=3, c=24, s=2),
            *(
                mobilevit._mobilevit_block(
                    1, c, 2, transformer_dim=dim, transformer_depth=depth, patch_size=2
                )
                for c, dim, depth in ((32, 16, 1), (40, 20, 2), (48, 24, 1))
            ),
        ),
        stem_chs=8,
        stem_type="3x3",
        stem_pool="",
        downsample="",
        act_layer="silu",
        num_features=56,
    )
    model = theirs("timm.models.byobnet", "ByobNet", cfg, num_classes=7)
    yield against("timm", "timm `ByobNet`", ours("MobileViT", **sizes, depths=(1, 2, 1)), model, 64, 64)
    config = config_of(
        "MobileViTConfig",
        hidden_sizes=[16, 20, 24],
        neck_hidden_sizes=[widths[i] for i in (0, 1, 3, 5, 7, 9, 10)],
        num_labels=7,
    )
    model = theirs("transformers", "MobileViTForImageClassification", config)
    reference = "transformers `MobileViTForImageClassification`"
    yield against("transformers", reference, ours("MobileViT", **sizes, depths=(2, 4, 3)), model, 64, 64)


def mobile_vit_v2() -> Iterator[Case]:
    build = ours("MobileViTV2", image_size=64, width=0.5, num_classes=7)
    model = theirs("timm", "create_model", "mobilevitv2_050", num_classes=7)
    yield against("timm", "timm `mobilevitv2_050`", build, model, 64, 64)
    config = config_of("MobileViTV2Config", width_multiplier=0.5, num_labels=7)
    model = theirs("transformers", "MobileViTV2ForImageClassification", config)
    reference = "transformers `MobileViTV2ForImageClassification`"
    yield against("transformers", reference, build, model, 64, 64)


def tiny_vit() -> Iterator[Case]:
    sizes: dict[str, Any] = {"image_size": 64, "dim": (16, 24, 32), "depth": (1, 1, 2), "heads": (2, 4)}
    pyramid: dict[str, Any] = {"embed_dims": (16, 24, 32), "depths": (1, 1, 2), "num_heads": (1, 2, 4)}
    build = ours("TinyViT", **sizes, num_classes=7, window_size=(4, 3))
    model = theirs("timm.models.tiny_vit", "TinyVit", **pyramid, num_classes=7, window_sizes=(4, 4, 3))
    yield against("timm", "timm `TinyVit`", build, model, 64, 64)
    yield renamed("microsoft", "timm `TinyVit`, under the authors' names", build, model, 64)


def edgenext() -> Iterator[Case]:
    own: dict[str, Any] = {"image_size": 64, "dim": (8, 16, 32, 64), "heads": (1, 2, 4, 4)}
    their: dict[str, Any] = {"num_classes": 7, "dims": (8, 16, 32, 64), "heads": (1, 2, 4, 4)}
    build = ours("EdgeNeXt", **own, num_classes=7, depth=(1, 2, 1, 2))
    model = theirs("timm.models.edgenext", "EdgeNeXt", **their, depths=(1, 2, 1, 2))
    yield against("timm", "timm `EdgeNeXt`", build, model, 64, 64)
    yield renamed("edgenext", "timm `EdgeNeXt`, under the authors' names", build, model, 64)
    rw: dict[str, Any] = {"stem_type": "overlap", "downsample_block": True, "conv_bias": False}
    model = theirs("timm.models.edgenext", "EdgeNeXt", **their, **rw, depths=(1, 2, 2, 2))
    options: dict[str, Any] = {"stem": "overlap", "down": "depthwise", "conv_bias": False}
    build = ours("EdgeNeXt", **own, **options, num_classes=7, depth=(1, 2, 2, 2))
    yield against("timm", "timm `EdgeNeXt`, as in `edgenext_small_rw`", build, model, 64, 64)


def swiftformer() -> Iterator[Case]:
    widths, depths = (8, 16, 24), (1, 2, 2)
    own: dict[str, Any] = {"image_size": 64, "num_classes": 7, "dim": widths, "depth": depths}
    build = ours("SwiftFormer", **own, distilled=True)
    their: dict[str, Any] = {"num_classes": 7, "embed_dims": widths, "layers": depths}
    model = theirs("timm.models.swiftformer", "SwiftFormer", **their, downsamples=(False, True, True))
    settle(model, images(64, 64, batch=8, seed=5))
    yield against("timm", "timm `SwiftFormer`", build, model, 64, 64)
    yield renamed("SwiftFormer", "timm `SwiftFormer`, under the authors' names", build, model, 64)


def shvit() -> Iterator[Case]:
    sizes: dict[str, Any] = {"num_classes": 7, "depth": (1, 2, 1)}
    own: dict[str, Any] = {"image_size": 96, "dim": (16, 20, 24), "attending_dim": (0, 6, 7)}
    build = ours("SHViT", **sizes, **own, dim_key=4)
    their: dict[str, Any] = {"embed_dim": (16, 20, 24), "partial_dim": (5, 6, 7), "qk_dim": (4, 4, 4)}
    model = theirs("timm.models.shvit", "SHViT", **sizes, **their, types=("i", "s", "s"))
    settle(model, images(96, 96, batch=16, seed=5))
    yield against("timm", "timm `SHViT`", build, model, 96, 96)
