"""Arguments of models under the names that timm and transformers give them."""

from __future__ import annotations

import json
import re
from importlib import import_module

import pytest
import torch
from timm import create_model as create_theirs
from torch import Tensor, nn

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.backbone import Backbone
from vit_pytorch.levjepa import LeVJEPA, VideoTransformer
from vit_pytorch.registry import entries
from vit_pytorch.registry.words import ANSWERS, ANSWERS_BY_ARGUMENT, SYNONYMS, UnknownArgumentError
from vit_pytorch.vaat import VAAT
from vit_pytorch.vit_with_decorr import DecorrelatedViT

NAME = "vit_tiny_patch16_224"
CLIPS = {"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "image_size": 16, "patch_size": 8, "frames": 2}


def test_words_of_timm():
    model = create_model(
        NAME, img_size=96, in_chans=1, num_layers=2, num_labels=7, drop_path_rate=0.1, init_values=0.1,
        reg_tokens=2,
    )  # fmt: skip
    same = create_model(
        NAME, image_size=96, channels=1, depth=2, num_classes=7, drop_path=0.1, layer_scale=0.1,
        num_registers=2,
    )  # fmt: skip
    assert model.config == same.config
    assert model.in_chans == 1


def test_mean_of_patches_is_normed_as_in_timm():
    theirs = create_theirs(NAME, depth=2, global_pool="avg").eval()
    ours = create_model(NAME, depth=2, global_pool="avg").eval()
    assert not load_pretrained(ours, theirs.state_dict()).kept
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
    swin = "swin_tiny_patch4_window7_224"
    assert create_model(swin, global_pool="avg").pool == "mean"
    with pytest.raises(ValueError, match="SwinTransformer pools by 'mean' only; pooling cannot be 'token'"):
        create_model(swin, global_pool="token")


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (NAME, {"global_pool": "map"}),
        (NAME, {"global_pool": "avg", "fc_norm": False}),
        ("vit_relpos_medium_patch16_cls_224", {"global_pool": "avg"}),
        ("vit_relpos_small_patch16_224", {"global_pool": "", "num_classes": 0}),
        ("vit_small_patch16_dinov3", {"global_pool": "avg"}),
        ("vit_small_patch16_dinov3", {"global_pool": "map"}),
        ("beit_base_patch16_224", {"global_pool": "token"}),
        ("convit_tiny", {"global_pool": "avg", "depth": 2, "local_up_to_layer": 1}),
        ("naflexvit_base_patch16_gap", {"global_pool": "map"}),
    ],
)
def test_pooling_as_in_timm(name: str, arguments: dict):
    arguments = {"depth": 1, "img_size": 80, **arguments}
    theirs, ours = randomise(create_theirs(name, **arguments)), create_model(name, **arguments).eval()
    assert not load_pretrained(ours, theirs.state_dict(), grid="model").kept
    x = images(80, 80)
    assert difference(ours(x), theirs(x)) < TOLERANCE


# words of timm beside a model's name, each of which changes the function
OF_TIMM = [
    ("pit_ti_224", {"patch_size": 8, "depth": (1, 1, 1)}),
    ("pit_b_224", {"patch_size": 7, "img_size": 112, "depth": (1, 1, 1)}),
    ("crossvit_tiny_240", {"img_size": 120}),
    ("swinv2_cr_tiny_ns_224", {"img_size": 96, "depths": (2, 1, 1, 1)}),
    ("swinv2_cr_tiny_ns_224", {"img_size": 64, "patch_size": 2, "depths": (2, 1, 1, 1)}),
    ("efficientformerv2_s0", {"norm_eps": 1e-3}),
    ("efficientformerv2_s0", {"num_vit": 1, "layer_scale_init_value": 0.1, "distillation": False}),
    ("xcit_nano_12_p16_224", {"img_size": 64, "depth": 2, "drop_path_rate": 0.1, "cls_attn_layers": 1}),
    ("cait_xxs24_224", {"img_size": 64, "depth": 2, "drop_path_rate": 0.1, "depth_token_only": 1}),
    ("davit_tiny", {"num_heads": (6, 6, 12, 12)}),
    ("tiny_vit_5m_224", {"mbconv_expand_ratio": 2.0}),
    ("pvt_v2_b0", {"sr_ratios": (4, 2, 2, 1), "mlp_ratios": (4, 4, 2, 2), "num_heads": (1, 1, 2, 4)}),
    ("coat_lite_tiny", {"img_size": 64, "serial_depths": (1, 1, 1, 1), "mlp_ratios": (4, 4, 2, 2)}),
    ("volo_d1_224", {"img_size": 64, "stem_hidden_dim": 32}),
    ("convit_tiny", {"img_size": 64, "depth": 2, "local_up_to_layer": 1}),
]


@torch.inference_mode()
@pytest.mark.parametrize(("name", "arguments"), OF_TIMM)
def test_words_mean_what_they_mean_in_timm(name: str, arguments: dict):
    theirs, ours = randomise(create_theirs(name, **arguments)), create_model(name, **arguments).eval()
    assert not load_pretrained(ours, theirs.state_dict(), grid="model").kept
    x = images(*ours.image_size, batch=1)
    expected = theirs(x)
    assert difference(ours(x), expected) < TOLERANCE * max(1, expected.abs().max())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 48}, "`dim` here, which the heads follow"),
        ("davit_tiny", {"embed_dims": (48, 96, 192, 384)}, "`dim` here, which the heads follow"),
        ("crossvit_tiny_240", {"embed_dim": (48, 96)}, "two arguments here, `sm_dim` and `lg_dim`"),
        ("crossvit_tiny_240", {"num_heads": (1, 1)}, "two arguments here, `sm_enc_heads` and `lg_enc_heads`"),
        ("xcit_nano_12_p16_224", {"num_heads": 2}, "`heads` here, beside which `dim_head` keeps"),
        ("hiera_tiny_224", {"norm_layer": "layernorm"}, "`norm_eps` is their epsilon"),
        ("pvt_v2_b0", {"proj_bias": False}, "PVTv2 has no argument proj_bias, only image_size"),
        ("pit_ti_224", {"patch_size": 4}, r"stride must be at most patch_size, got \(8, 8\) and \(4, 4\)"),
    ],
)
def test_answers_name_arguments_that_a_class_has(name: str, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        create_model(name, **arguments)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("crossvit_tiny_240", {}),
        ("crossvit_tiny_240", {"out_indices": 2}),
        ("crossvit_tiny_240", {"out_indices": (2, 3)}),
        ("volo_d1_224", {}),
    ],
)
def test_maps_of_branches_and_of_stages_of_one_stride(name: str, arguments: dict):
    theirs = create_theirs(name, features_only=True, **arguments)
    ours = create_model(name, features_only=True, **arguments)
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()
    x = images(*ours.model.image_size, batch=1)
    assert [found.shape for found in ours(x)] == [found.shape for found in theirs(x)]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("deit_tiny_distilled_patch16_224", {"img_size": 80, "depth": 1}),
        ("vit_small_patch16_224", {"img_size": 80, "depth": 1}),
        ("pit_ti_distilled_224", {"img_size": 80, "depth": (1, 1, 1)}),
    ],
)
def test_distilled_models_without_pooling(name: str, arguments: dict):
    model = create_model(name, **arguments, num_classes=0, global_pool="").eval()
    x = images(80, 80)
    assert model(x).equal(model.forward_features(x))


@torch.inference_mode()
def test_maps_without_pooling():
    entry = entries()["hiera_tiny_224"]
    model = randomise(entry.build(**entry.tiny))
    x = images(*model.image_size)
    maps = model.forward_features(x)
    model.reset_classifier(0, "")
    assert model(x).equal(model.fc_norm(maps.movedim(1, -1)).movedim(-1, 1))


def test_words_of_transformers():
    words = {
        "image_size": 96,
        "num_channels": 1,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_labels": 3,
    }
    config = create_model(NAME, **words, layer_norm_eps=1e-12, hidden_act="gelu").config
    expected = {"image_size": 96, "channels": 1, "depth": 2, "mlp_dim": 96, "act": "gelu", "norm_eps": 1e-12}
    assert {name: config[name] for name in expected} == expected


def test_classes_with_other_words_of_their_own():
    assert create_model("cct_2_3x2_32", image_size=28, depth=1).config["num_layers"] == 1
    assert create_model("cct_2_3x2_32", image_size=28).image_size == (28, 28)
    assert create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(2, 2, 2, 2)).image_size == (
        56,
        56,
    )


def test_every_word_is_of_one_group_and_of_some_model():
    words = [word for group in SYNONYMS for word in group]
    assert len(words) == len(set(words))
    known = {name for entry in entries().values() for name in entry.architecture._hub_mixin_init_parameters}
    assert all(group[0] in known for group in SYNONYMS)
    # classes that have such an argument themselves take it
    assert not known & ANSWERS.keys()
    arguments = {about for answers in ANSWERS_BY_ARGUMENT.values() for about, _ in answers}
    assert arguments <= known


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"drop_rate": 0.1}, TypeError, "no argument drop_rate: it is timm's dropout before the classifier"),
        ({"mlp_ratio": 4}, TypeError, "`mlp_dim` here"),
        ({"embed_dim": 48}, TypeError, "`dim` here, beside which `mlp_dim` and `dim_head` keep"),
        ({"num_heads": 6}, TypeError, "`heads` here, beside which `dim_head` keeps"),
        ({"output_stride": 8}, TypeError, "transformers keep their strides"),
        ({"pos_embed": "none"}, TypeError, "it is `positions` here"),
        ({"dynamic_img_size": True}, TypeError, r"`Learned\(dynamic_img_size=True\)`"),
        ({"scale_attn_norm": True}, TypeError, r"`Norm\(sub='both'\)`"),
        ({"weight_init": "jax"}, TypeError, "initial values of their papers"),
        ({"pach_size": 8}, TypeError, "ViT has no argument pach_size; close to it: patch_size"),
        ({"pach_size": 8}, ValueError, "pach_size"),
        (
            {"img_size": 32, "image_size": 32},
            ValueError,
            "takes image_size once, got it as img_size and image_size",
        ),
        (
            {"features_only": True, "feature_cls": "hook"},
            ValueError,
            "feature_cls must be 'getter', got 'hook'",
        ),
        ({"out_indices": (0,)}, ValueError, "are of features_only=True"),
        ({"global_pool": ""}, ValueError, "a classifier needs pooled features, got 1000 classes"),
    ],
)
def test_what_is_refused(arguments: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        create_model(NAME, **arguments)


def test_unknown_arguments_are_type_errors_and_value_errors():
    assert issubclass(UnknownArgumentError, TypeError)
    assert issubclass(UnknownArgumentError, ValueError)


def test_without_pooling(tmp_path):
    images = torch.randn(2, 3, 96, 96)
    model = create_model(NAME, image_size=96, depth=1, num_classes=0, global_pool="")
    assert model(images).equal(model.forward_features(images))
    with pytest.raises(ValueError, match="pooling was removed"):
        model.save_pretrained(tmp_path / "model")
    model.reset_classifier(4)
    assert model(images).shape == (2, 4)


def test_where_and_in_which_precision():
    model = create_model(NAME, depth=1, device="meta", dtype=torch.bfloat16)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}


def maps(model: object, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return model(images)  # type: ignore[operator]


def state_of(features: nn.Module, whole: nn.Module) -> dict[str, Tensor]:
    """Return the weights of timm's model of features, and of the whole model where that has no such ones."""
    state = whole.state_dict()
    names = {
        re.sub(r"^layers_(\d+)", r"layers.\1", key.removeprefix("model.")): key
        for key in features.state_dict()
    }
    assert len(set(names) & set(state)) == len(names)
    return {key: features.state_dict()[names[key]] if key in names else value for key, value in state.items()}


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "xcit_nano_12_p16_224"]
)
def test_features_only_as_timm(name: str):
    torch.manual_seed(0)
    theirs = create_theirs(name, features_only=True).eval()
    whole = create_theirs(name).eval()
    # the maps are a model's whose later layers are gone, which the whole one has by chance
    whole.load_state_dict(state_of(theirs, whole), strict=True)
    ours = create_model(name)
    load_pretrained(ours, whole.state_dict())
    backbone = Backbone(ours.eval())
    channels, strides = theirs.feature_info.channels(), theirs.feature_info.reduction()
    assert backbone.feature_info.channels() == channels
    assert backbone.feature_info.reduction() == strides
    assert [each["index"] for each in backbone.feature_info.get_dicts()] == list(
        theirs.feature_info.out_indices
    )
    images = torch.randn(1, 3, 224, 224)
    for found, expected in zip(maps(backbone, images), maps(theirs, images), strict=True):
        if getattr(theirs, "output_fmt", "NCHW") == "NHWC":
            expected = expected.permute(0, 3, 1, 2)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_names_with_published_weights():
    known = list_models(pretrained=True)
    assert NAME in known
    assert len(known) < len(list_models())
    assert all(entries()[name].hub_id for name in known)


def test_configuration_names_what_timm_tools_look_for(tmp_path):
    crossvit = create_model("crossvit_tiny_240")
    cfg, weights = crossvit.default_cfg, crossvit.state_dict()
    assert len(cfg["first_conv"]) == len(cfg["classifier"]) == 2
    assert all(f"{name}.weight" in weights for name in (*cfg["first_conv"], *cfg["classifier"]))
    assert cfg["fixed_input_size"]
    levit = create_model("levit_128s")
    assert levit.default_cfg["pool_size"] == (4, 4)
    levit.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["default_cfg"]["pool_size"] == [4, 4]
    mobilevit = create_model("mobilevit_xxs")
    assert not mobilevit.default_cfg["fixed_input_size"]


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("cct.CCT", {"n_input_channels": 1}, "CCT has no argument n_input_channels: it is `channels` here"),
        ("cct.CCT", {"stochastic_depth_rate": 0.1}, "it is `drop_path` here"),
        ("sep_vit.SepViT", {"ff_mult": 4}, "SepViT has no argument ff_mult: it is `mlp_ratio` here"),
        ("nest.NesT", {"mlp_mult": 4}, "it is `mlp_ratio` here"),
        ("nest.NesT", {"dim_head": 8}, "NesT has no argument dim_head: .* the heads share the dimension"),
        ("nest.NesT", {"dimm": 8}, "NesT has no argument dimm, only image_size, patch_size, dim"),
        ("vat.VAT", {"depth": 3}, "VAT has no argument depth, only vit, action_dim"),
        ("levjepa.LeVJEPA", {"projector_dim": 3}, "LeVJEPA has no argument projector_dim, only encoder"),
        ("crossformer.CrossFormer", {"ff_dropout": 0.1}, "it is `dropout` here"),
        ("na_vit_nested_tensor.NaViT", {"qk_rmsnorm": True}, "it is `qk_norm` here"),
        ("levit.LeViT", {"num_distill_classes": 7}, "it is `distilled=True` here"),
        ("cross_vit.CrossViT", {"sm_enc_dim_head": 8}, "the heads share the dimension"),
        ("jumbo_vit.JumboViT", {"jumbo_cls_k": 2}, "it is `jumbo_pieces` here"),
    ],
)
def test_words_of_the_public_package(module: str, arguments: dict, message: str):
    file, _, name = module.partition(".")
    architecture = getattr(import_module(f"vit_pytorch.{file}"), name)
    first = {"vat": {"vit": None}, "levjepa": {"encoder": VideoTransformer(**CLIPS), "image_size": 16}}
    with pytest.raises(TypeError, match=message):
        architecture(**first.get(file, {"num_classes": 7}), **arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"encoder": nn.Linear(2, 2)}, "encoder must be a model of tokens with `num_features`, got Linear"),
        ({"sigreg_loss_kwargs": {"knot": 3}}, "sigreg_loss has no argument knot, only x, num_proj, knots"),
    ],
)
def test_encoders_and_settings_of_levjepa(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        LeVJEPA(**{"encoder": VideoTransformer(**CLIPS), "image_size": 16, **wrong})


def test_encoders_of_vaat():
    with pytest.raises(ValueError, match=r"vit must be a `vaat.ViT` or its arguments, got torch.*Linear"):
        VAAT(nn.Linear(2, 2), nn.Linear(2, 2), dim=16, depth=1, heads=2, dim_head=8, dim_action=3, mlp_dim=8)


@torch.inference_mode()
def test_mean_of_all_tokens_of_the_public_package():
    """The decorrelated ViT averages its class token, too, as the public one does."""
    sizes = {"image_size": 48, "patch_size": 8, "num_classes": 7, "dim": 48, "depth": 1, "heads": 3}
    model = randomise(DecorrelatedViT(**sizes, mlp_dim=96, pool="mean"))
    x = images(48, 48)
    assert difference(model(x)[0], model.head(model.forward_features(x).mean(dim=1))) < TOLERANCE
