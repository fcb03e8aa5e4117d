"""Newer systems of the public package: its call, its outputs on its weights, saving, gradients, errors."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import group_parameters
from torch import Tensor

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, randomise
from vit_pytorch import load_pretrained, vit_nd_masking
from vit_pytorch.base import VisionModel
from vit_pytorch.create import UNNAMED, load_model
from vit_pytorch.jet_vit import LinearAttention
from vit_pytorch.layers.attention import BlockInputs, ExplicitAttention
from vit_pytorch.looped_vit import (
    adaptive_exit_targets,
    deep_supervision_loss,
    deep_supervision_weights,
)
from vit_pytorch.max_vit import MaxViT as PlainMaxViT
from vit_pytorch.pretrained import to_format
from vit_pytorch.simple_vit_with_relative_proj_pos_bias import RelativeProjPositionalBias
from vit_pytorch.vit_nd_masking import (
    create_nd_block_mask,
    flex_attention_supported,
    get_nd_causal_mask_fn,
    nd_attention,
)
from vit_pytorch.vit_with_decorr import DecorrelationLoss
from vit_pytorch.vivit_with_moss import MOSS
from vit_pytorch.wwt import AutoencodingHead

SMALL = {"num_classes": 5, "dim": 24, "depth": 3, "heads": 2, "dim_head": 8, "mlp_dim": 32}
IMAGES = {**SMALL, "image_size": (24, 32), "patch_size": 4}
VIDEOS = {
    **SMALL,
    "image_size": 16,
    "image_patch_size": 4,
    "frames": 4,
    "frame_patch_size": 2,
}


@dataclass(frozen=True)
class System:
    """A module of the public package.

    Args:
        module: where it is.
        name: the class.
        shape: of the input, without the batch.
        golden: fixtures whose weights load with equal outputs.
        config: arguments where there is no fixture.
        options: arguments of ours in addition to the fixture's.
        wrong: arguments that are refused, and what the error says.
    """

    module: str
    name: str
    shape: tuple[int, ...]
    golden: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    wrong: tuple[dict[str, Any], str] = ({"dim": 0}, "dim must be")

    def build(self, **overrides: Any) -> VisionModel:
        config = read_golden(self.golden[0])[0] if self.golden else self.config
        torch.manual_seed(0)
        return getattr(import_module(f"vit_pytorch.{self.module}"), self.name)(**{**config, **overrides})

    def inputs(self) -> Tensor:
        return torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(1))


def system(module: str, name: str = "SimpleViT", **options: Any) -> System:
    """Describe a module whose fixture has its name."""
    return System(module, name, **{"shape": (3, 24, 32), "golden": (f"public_{module}",), **options})


DROPOUT = ({"patch_dropout": 1.0}, r"patch_dropout must be a number in \[0, 1\)")
SYSTEMS = {
    found.module: found
    for found in (
        system("simple_vit_with_patch_dropout", wrong=DROPOUT),
        system("vit_with_patch_dropout", "ViT", wrong=DROPOUT),
        system("simple_vit_with_register_tokens", wrong=({"num_register_tokens": -1}, "num_register_tokens")),
        system("simple_vit_with_qk_norm", wrong=({"heads": 0}, "heads must be")),
        system("simple_vit_with_value_residual", wrong=({"depth": 1}, "a depth of at least 2")),
        system(
            "simple_vit_1d",
            shape=(3, 96),
            golden=("public_simple_vit_1d_24_patches",),
            wrong=({"seq_len": 95}, "multiple of patch size"),
        ),
        system("simple_flash_attn_vit", wrong=({"use_flash": 1}, "use_flash must be True or False")),
        system(
            "simple_vit_with_hyper_connections", wrong=({"num_residual_streams": 0}, "num_residual_streams")
        ),
        system("vit_with_keel_post_ln", "ViT", wrong=({"keel_residual_scale": 0.0}, "keel_residual_scale")),
        system(
            "vit_5",
            "ViT",
            shape=(3, 32, 32),
            golden=("vit_5",),
            wrong=({"num_registers": 3}, "must be a square number, got 3"),
        ),
        system(
            "simple_vit_orthog_residual_update",
            golden=(
                "public_simple_vit_orthog_residual_update",
                "public_simple_vit_orthog_residual_update_learned",
            ),
            wrong=({"orthog_residual_update_kwargs": {"dim": 24}}, "has no setting dim"),
        ),
        system("simple_uvit", "SimpleUViT", golden=(), config=IMAGES),
        system("simple_vit_with_fft", wrong=({"freq_patch_size": 5}, "multiple of patch size")),
        system(
            "simple_vit_with_specialized_cls",
            wrong=({"specialize_qkv_depth": 4}, "must be at most depth, got 4 and 3"),
        ),
        system("vit_nd", "ViTND", shape=(3, 2, 4, 4, 8), wrong=({"ndim": 3}, "must have 3 axes")),
        system(
            "vit_nd_rotary",
            "ViTND",
            shape=(3, 2, 4, 4, 8),
            wrong=({"causal_dims": 4}, r"causal_dims must be in \[0, 3\], got \(4,\)"),
        ),
        system(
            "vit_nd_pope",
            "ViTND",
            shape=(3, 2, 4, 4, 8),
            wrong=({"pope_p_zero_freqs": 1.5}, "pope_p_zero_freqs"),
        ),
        system("vit_detpool", "ViTDetPool", wrong=({"use_cls_token": 1}, "must be True or False")),
        system("simple_vit_attn_residual", "SimpleViTAttnResidual", golden=(), config=IMAGES),
        system(
            "rvt",
            "RvT",
            shape=(3, 32, 32),
            golden=("public_rvt", "public_rvt_plain"),
            wrong=({"dim_head": 3}, "at least 4"),
        ),
        system(
            "max_vit_with_registers",
            "MaxViT",
            shape=(3, 32, 32),
            golden=(),
            config={
                "num_classes": 5,
                "dim": 16,
                "depth": (1, 1),
                "dim_head": 8,
                "window_size": 2,
                "dropout": 0.0,
            },
            wrong=({"num_register_tokens": 0}, "num_register_tokens must be"),
        ),
        system(
            "simple_vit_with_sparse_gating",
            "SimpleViTWithSparseGating",
            wrong=({"sparsity_loss_type": "l2"}, "one of l1, thresholded_l1; got 'l2'"),
        ),
        system(
            "simple_vit_with_relative_proj_pos_bias",
            wrong=({"max_dist": 0}, "max_dist must be"),
        ),
        system(
            "vit_with_decorr",
            "ViT",
            golden=(
                "public_vit_with_decorr",
                "public_vit_with_decorr_subspace",
                "public_vit_with_decorr_depth",
            ),
            wrong=({"decorr_use_subspace": True}, "dim_subspace must be less than dim, got 64 and 24"),
        ),
        system(
            "attn_residual_with_dca_simple_vit",
            golden=(
                "public_attn_residual_with_dca_simple_vit",
                "public_attn_residual_with_dca_simple_vit_groups",
            ),
            wrong=({"head_groups": 3}, "head_groups must divide heads, got 3 and 2"),
        ),
        system(
            "na_vit_nested_tensor_3d",
            "NaViT",
            shape=(3, 4, 24, 24),
            wrong=({"max_frames": 3}, "patch"),
        ),
        system(
            "levjepa",
            "VideoTransformer",
            shape=(3, 3, 16, 24),
            wrong=({"dim_head": 5}, "dim_head must be at least 6 for 3 axes, got 5"),
        ),
        system(
            "levjepa_nd",
            "NDTransformer",
            shape=(3, 2, 4, 4, 8),
            wrong=({"causal_dims": 4}, r"causal_dims must be in \[0, 3\], got \(4,\)"),
        ),
        system(
            "vivit_with_moss",
            "ViViT",
            shape=(3, 6, 16, 16),
            golden=("public_vivit_with_moss", "public_vivit_with_moss_causal"),
            wrong=({"moss_local_height": 2}, r"must be odd, got \(3, 2, 5\)"),
        ),
        system(
            "jet_vit",
            "JetViT",
            shape=(3, 16, 24),
            wrong=({"attn_layers": ["FA", "LA", "SA"]}, "'SA'"),
        ),
        system(
            "wwt",
            "WWT",
            shape=(3, 16, 24),
            golden=("public_wwt", "public_wwt_two", "public_wwt_joined"),
            wrong=({"num_slots": (4, 4)}, r"must fall from level to level, got \(4, 4\)"),
        ),
        system("looped_vit", "LoopedViT", wrong=({"image_size": None}, "must be given")),
        system("simple_flash_attn_vit_3d", shape=(3, 4, 16, 16), golden=(), config=VIDEOS),
    )
}
# Encoders, whose `forward` returns all tokens.
ENCODERS = {"levjepa", "levjepa_nd"}
# Systems whose `forward` returns a loss in addition.
TUPLES = {"vit_with_decorr", "wwt"}
# Outputs of ours that the public package's equal; a classifier is not among them where it has none.
FEATURES = {"simple_vit_with_qk_norm"}
# As the public package's pages and the ends of its files have them.
LARGE = {
    "image_size": 256,
    "patch_size": 32,
    "num_classes": 1000,
    "dim": 1024,
    "depth": 6,
    "heads": 16,
    "mlp_dim": 2048,
}
DROPOUTS = {"dropout": 0.1, "emb_dropout": 0.1}
VIDEO = {"image_patch_size": 16, "frames": 16, "frame_patch_size": 2}
ARRAY = {
    **DROPOUTS,
    "num_classes": 1000,
    "dim": 512,
    "depth": 6,
    "heads": 8,
    "mlp_dim": 2048,
    "causal_dims": (0,),
}
DOCUMENTED = {
    "simple_vit_with_relative_proj_pos_bias": {**LARGE, "depth": 2, "heads": 8},
    "levjepa": {
        "image_size": 96,
        "patch_size": 16,
        "frames": 8,
        "dim": 256,
        "depth": 3,
        "heads": 8,
        "mlp_dim": 512,
    },
    "levjepa_nd": {
        "ndim": 4,
        "input_shape": (8, 16, 32, 32),
        "patch_size": (1, 4, 8, 8),
        "dim": 128,
        "depth": 2,
        "heads": 4,
        "mlp_dim": 256,
    },
    "wwt": {
        "image_size": 256,
        "patch_size": 32,
        "num_classes": 1000,
        "dim": 256,
        "depth": 2,
        "num_slots": (64, 32, 16),
        "interactions": ((0, 1), (0, 2), (1, 2), (2, 3)),
        "heads": 4,
        "mlp_dim": 512,
    },
    "jet_vit": {**LARGE, "dim": 512, "depth": 3, "patch_size": 16, "attn_layers": ("WA", "LA", ("LA", "FA"))},
    "vivit_with_moss": {
        "dim": 512,
        "spatial_depth": 2,
        "temporal_depth": 2,
        "heads": 4,
        "mlp_dim": 2048,
        "image_size": 256,
        "image_patch_size": 32,
        "frames": 8,
        "frame_patch_size": 2,
        "num_classes": 1000,
        "moss_causal": True,
    },
    "vit_with_decorr": {**LARGE, **DROPOUTS, "decorr_sample_frac": 0.25},
    "attn_residual_with_dca_simple_vit": {**LARGE, "head_groups": 2, "ffn_heads": 4},
    "na_vit_nested_tensor_3d": {
        **LARGE,
        "max_frames": 8,
        "frame_patch_size": 2,
        "dropout": 0.0,
        "emb_dropout": 0.0,
        "token_dropout_prob": 0.1,
    },
    "simple_vit_with_patch_dropout": {**LARGE, "patch_dropout": 0.25},
    "vit_with_patch_dropout": {**LARGE, **DROPOUTS, "patch_dropout": 0.25},
    "simple_vit_with_register_tokens": LARGE,
    "simple_vit_with_qk_norm": LARGE,
    "simple_vit_with_value_residual": {**LARGE, "patch_size": 8, "heads": 8},
    "simple_vit_1d": {**LARGE, "seq_len": 256, "patch_size": 8, "image_size": None},
    "simple_flash_attn_vit": LARGE,
    "looped_vit": {
        "image_size": 256,
        "patch_size": 16,
        "num_classes": 1000,
        "dim": 512,
        "heads": 8,
        "dim_head": 64,
        "mlp_dim": 2048,
        "pre_loop_depth": 6,
        "num_looped_blocks": 5,
        "post_loop_depth": 6,
        "loop_depth": 4,
        "deep_supervision_weighting": "final_mean",
        "adaptive_loop": True,
    },
    "simple_vit_with_sparse_gating": {**LARGE, "num_register_tokens": 4, "dim_mask": 4},
    "max_vit_with_registers": {
        "num_classes": 1000,
        "dim": 64,
        "dim_conv_stem": 64,
        "dim_head": 32,
        "depth": (2, 2, 5, 2),
        "window_size": 7,
        "num_register_tokens": 4,
    },
    "rvt": {**LARGE, **DROPOUTS},
    "simple_vit_attn_residual": LARGE,
    "vit_detpool": {**LARGE, **DROPOUTS},
    "vit_nd_pope": {**ARRAY, "ndim": 5, "input_shape": (4, 8, 16, 32, 64), "patch_size": (2, 2, 4, 4, 8)},
    "simple_vit_with_specialized_cls": LARGE,
    "vit_nd": {**ARRAY, "ndim": 4, "input_shape": (8, 16, 32, 64), "patch_size": (2, 4, 4, 8)},
    "vit_nd_rotary": {**ARRAY, "ndim": 5, "input_shape": (4, 8, 16, 32, 64), "patch_size": (2, 2, 4, 4, 8)},
    "simple_vit_with_hyper_connections": {**LARGE, "patch_size": 8, "depth": 12, "num_residual_streams": 8},
    "vit_with_keel_post_ln": {**LARGE, **DROPOUTS},
    "vit_5": {**LARGE, **DROPOUTS},
    "simple_vit_orthog_residual_update": {**LARGE, "orthog_residual_update_kwargs": {"learned": True}},
    "simple_uvit": {**LARGE, "depth": 7},
    "simple_vit_with_fft": {**LARGE, "patch_size": 8, "freq_patch_size": 8},
    "simple_flash_attn_vit_3d": {**LARGE, **VIDEO, "image_size": 128, "patch_size": None},
}
by_system = pytest.mark.parametrize("found", SYSTEMS.values(), ids=SYSTEMS)


@pytest.mark.parametrize("name", [name for found in SYSTEMS.values() for name in found.golden])
@torch.inference_mode()
def test_outputs_equal_the_public_packages(name: str) -> None:
    found = next(found for found in SYSTEMS.values() if name in found.golden)
    config, state, golden = read_golden(name)
    model = found.build(**config).eval()
    if found.module in FEATURES:
        with pytest.warns(UserWarning, match="initial values"):
            report = load_pretrained(model, state, grid="model")
        assert report.kept == ("head.weight", "head.bias")
        pooled = model.forward_head(model.forward_features(golden["input"]), pre_logits=True)
        norm = (state["linear_head.weight"], state["linear_head.bias"])
        output = torch.nn.functional.layer_norm(pooled, pooled.shape[1:], *norm)
    else:
        report = load_pretrained(model, state, strict=True, grid="model")
        # What is computed here, and what is there twice.
        computed = (".freqs", "pos_emb.scales", "rotary_emb.scales", "polar_emb.learned_bias")
        assert [key for key in report.dropped if not key.endswith(computed)] == []
        state = {key: value for key, value in state.items() if key not in report.dropped}
        images = golden.get("input", [value for key, value in sorted(golden.items()) if key[:6] == "input/"])
        output = classified(found, model(images))
        written = to_format(model, report.format)
        assert written.keys() == state.keys()
        assert [key for key, value in state.items() if not written[key].view_as(value).equal(value)] == []
    assert report.format.startswith("vit-pytorch ") or found.module == "vit_5"
    assert difference(output, golden["output"]) < TOLERANCE


def classified(found: System, output: Any) -> Tensor:
    """Return the logits in what a model returns."""
    while found.module in TUPLES and isinstance(output, tuple):
        output = output[0]
    return output


def test_every_module_is_known() -> None:
    assert SYSTEMS.keys() == UNNAMED.keys() - {"memory_vit", "tome"}


@by_system
def test_saved_models_come_back(found: System, tmp_path: Path) -> None:
    model = randomise(found.build())
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert type(again) is type(model)
    assert again.config == model.config
    with torch.inference_mode():
        outputs = (classified(found, part(found.inputs())) for part in (again, model))
        assert next(outputs).equal(next(outputs))
    assert load_pretrained(found.build(), model.state_dict(), grid="model").format == "vit_pytorch"


@by_system
def test_every_parameter_learns(found: System) -> None:
    learns = {"looped_vit": {"return_exit_benefits": True}}
    model = randomise(found.build()).train()
    output = model(found.inputs(), **learns.get(found.module, {}))
    parts = output if isinstance(output, tuple) else (output,)
    sum(part.square().sum() for part in parts).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Of what the last block computes, the class token alone is classified there.
    unused = {
        "simple_vit_with_specialized_cls": ("blocks.2.norm2.patches.", "norm.patches."),
        "rvt": ("blocks.2.attention.conv.", "blocks.2.attention.to_q."),
        # What the last block hands on to no other.
        "wwt": tuple(f"blocks.2.attentions.{pair}.mask_" for pair in range(3)),
    }
    assert [name for name in still if not name.startswith(unused.get(found.module, ()))] == []


@by_system
def test_wrong_arguments_are_refused(found: System) -> None:
    wrong, message = found.wrong
    with pytest.raises(ValueError, match=message):
        found.build(**wrong)


@pytest.mark.parametrize(
    ("module", "argument"),
    [("simple_flash_attn_vit", "use_flash"), ("simple_flash_attn_vit_3d", "use_flash_attn")],
)
def test_explicit_attention_computes_the_same(module: str, argument: str) -> None:
    found = SYSTEMS[module]
    fused, explicit = randomise(found.build()), randomise(found.build(**{argument: False}))
    assert all(isinstance(block.attention.kernel, ExplicitAttention) for block in explicit.blocks)
    with torch.inference_mode():
        assert difference(explicit(found.inputs()), fused(found.inputs())) < TOLERANCE


@pytest.mark.parametrize(
    ("module", "stay"), [("simple_vit_with_patch_dropout", 24), ("vit_with_patch_dropout", 1 + 36)]
)
def test_patches_are_dropped_in_training_only(module: str, stay: int) -> None:
    model = SYSTEMS[module].build()
    images = SYSTEMS[module].inputs()
    assert model.train().forward_features(images).shape[1] == stay
    assert model.eval().forward_features(images).shape[1] == 48 + model.num_prefix_tokens


@by_system
def test_documented_calls_run(found: System) -> None:
    """Without values: such models are large."""
    config = {name: value for name, value in DOCUMENTED[found.module].items() if value is not None}
    with torch.device("meta"):
        model = getattr(import_module(f"vit_pytorch.{found.module}"), found.name)(**config)
        images = torch.empty(2, 3, *model.image_size)
    output = classified(found, model.eval()(images))
    if found.module in ENCODERS:
        assert output.shape == (2, 1 + model.grid.num_patches, config["dim"])
    else:
        assert output.shape == (2, config["num_classes"])


@torch.inference_mode()
@pytest.mark.parametrize(("depth", "blocks"), [(3, 3), (4, 5)])
def test_long_skips_pass_on_outputs_from_the_outside_in(depth: int, blocks: int) -> None:
    found = SYSTEMS["simple_uvit"]
    model = randomise(found.build(depth=depth))
    assert len(model.blocks) == blocks
    x = model.embed(found.inputs())
    outputs = [x]
    for index, block in enumerate(model.blocks):
        if index > blocks // 2:
            x = block.merge(torch.cat([x, outputs[blocks - index]], dim=-1))
        x = x + block.attention(block.norm1(x))
        x = x + block.feedforward(block.norm2(x))
        outputs.append(x)
    assert x.shape[1] == 4 + 48
    logits = model.head(model.norm(x)[:, 4:].mean(dim=1))
    assert difference(model(found.inputs()), logits) < TOLERANCE


def test_the_spectrum_is_that_of_whole_images() -> None:
    model = SYSTEMS["simple_vit_with_fft"].build()
    with pytest.raises(ValueError, match=r"image size must be \(24, 32\), got \(16, 32\)"):
        model(torch.zeros(1, 3, 16, 32))


def test_registers_turn_as_cells_of_a_grid_of_their_own() -> None:
    """Also where patches are missing."""
    model = SYSTEMS["vit_5"].build()
    rotation = model.block_inputs((8, 8)).rotation
    ids = torch.tensor([[3, 9], [0, 63]])
    some = model.block_inputs((8, 8), ids).rotation
    assert rotation.shape == (1 + 4 + 64, 4, 2)
    assert some.shape == (2, 1, 1 + 4 + 2, 4, 2)
    assert some[:, 0, :5].equal(rotation[:5].expand(2, -1, -1, -1))
    assert some[:, 0, 5:].equal(rotation[5:][ids])
    # x, then y; the base of 100 gives frequencies of 1 and 0.1.
    angles = torch.atan2(rotation[1:5, :, 1], rotation[1:5, :, 0])
    want = torch.tensor([[0, 0, 0, 0], [1, 0.1, 0, 0], [0, 0, 1, 0.1], [1, 0.1, 1, 0.1]])
    torch.testing.assert_close(angles, want)


@pytest.mark.parametrize("module", ["vit_nd", "vit_nd_rotary", "vit_nd_pope"])
@torch.inference_mode()
def test_patches_know_nothing_of_what_comes_after_them(module: str) -> None:
    found = SYSTEMS[module]
    model = randomise(found.build(causal_dims=(0, 3)))
    x = found.inputs()
    later = x.clone()
    later[..., 4:] += 1
    option = "return_nd_patches" if module == "vit_nd" else "return_embed"
    before, after = (model(images, **{option: True}) for images in (x, later))
    if module == "vit_nd":
        assert not torch.allclose(before[0], after[0], atol=1e-3)
        before, after = (patches.movedim(1, -1) for _, patches in (before, after))
    assert before.shape == (2, 2, 2, 2, 4, 24)
    torch.testing.assert_close(before[..., :2, :], after[..., :2, :])
    assert (before - after).abs().amax(dim=(0, 1, 2, 3, 5))[2:].min() > 0.01


@torch.inference_mode()
def test_rotary_patches_know_only_how_far_apart_they_are() -> None:
    """A pattern in another place of an array that is else constant has the same scores inside it."""
    model = SYSTEMS["vit_nd_rotary"].build()
    rotation = torch.view_as_complex(model.block_inputs((2, 2, 2, 4)).rotation).unflatten(1, (2, 2, 2, 4))
    turned = rotation[:, :, :, :, 1:] * rotation[:, :, :, :, :-1].conj()
    torch.testing.assert_close(turned, turned[:, :1, :1, :1, :1].expand_as(turned))
    assert turned.angle().abs().min() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("class_token", [True, False])
def test_what_is_outside_the_object_does_not_count(class_token: bool) -> None:
    found = SYSTEMS["vit_detpool"]
    model, x = randomise(found.build(use_cls_token=class_token)), found.inputs()
    mask = torch.zeros(2, 24, 32, dtype=torch.bool)
    mask[:, 5:9, 9:20] = True
    patches = torch.zeros(2, 6, 8, dtype=torch.bool)
    patches[:, 1:3, 2:5] = True
    changed = torch.where(patches.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None], x, -x)
    logits = model(x, mask)
    assert difference(model(changed, object_mask=mask), logits) < TOLERANCE
    assert difference(model(x, patches), logits) < TOLERANCE
    assert (model(x) - logits).abs().max() > 0.01
    assert difference(model(x, torch.ones_like(mask)), model(x)) < TOLERANCE
    model.mask_generator = torch.nn.Module()
    model.mask_generator.forward = lambda images: mask
    assert model(x).equal(logits)
    with pytest.raises(ValueError, match="an empty one"):
        model(x, torch.zeros_like(mask))
    with pytest.raises(ValueError, match=r"got shape \(2, 5\)"):
        model(x, mask[:, 0, :5])


@torch.inference_mode()
@pytest.mark.parametrize("learned_query", [True, False])
def test_layers_read_means_of_all_layers_before_them(learned_query: bool) -> None:
    found = SYSTEMS["simple_vit_attn_residual"]
    model, x = randomise(found.build(learned_query=learned_query)), found.inputs()

    def read(reader: torch.nn.Module, layers: list[Tensor]) -> Tensor:
        keys = [h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * reader.norm.weight for h in layers]
        query = reader.to_score.weight[0] if learned_query else keys[-1] @ reader.to_query.weight.T
        shares = torch.stack([(key * query).sum(-1) for key in keys]).softmax(dim=0)
        return sum(share[..., None] * h for share, h in zip(shares, layers, strict=True))

    layers = [model.embed(x)]
    for block in model.blocks:
        layers.append(block.attention(block.norm1(read(block.read1, layers) if block.read1 else layers[-1])))
        layers.append(block.feedforward(block.norm2(read(block.read2, layers))))
    logits = model.head(model.norm(read(model.read, layers)).mean(dim=1))
    found_logits, history = model(x, return_history=True)
    assert difference(found_logits, logits) < TOLERANCE
    assert len(history) == 7
    again, longer = model(x, history=history, return_history=True)
    assert len(longer) == 14
    assert (again - logits).abs().max() > 1e-3


def test_layers_start_by_reading_evenly() -> None:
    found = SYSTEMS["simple_vit_attn_residual"]
    layers = torch.randn(2, 5, 4, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.build().read(layers), layers.mean(dim=2))


@torch.inference_mode()
def test_registers_that_nobody_sees_change_nothing() -> None:
    found = SYSTEMS["max_vit_with_registers"]
    model = randomise(found.build())
    plain = PlainMaxViT(**found.config).eval()
    parts = {
        ".window.attention.attention.": ".window.attention.",
        ".grid.attention.attention.": ".grid.attention.",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        ours = name.replace(".block.", ".")
        for theirs, mine in parts.items():
            ours = ours.replace(mine, theirs)
        state[ours.replace("attention.attention.position.bias.patches.", "attention.bias.")] = tensor
    state = {name: state[name] for name in plain.state_dict()}
    plain.load_state_dict(state)
    x = found.inputs()
    seen, want = model(x), plain(x)
    for name, parameter in model.named_parameters():
        if name.endswith("position.bias.prefix"):
            # What patches add to the scores of prefix tokens.
            parameter[1] = -1e9
    assert difference(model(x), want) < TOLERANCE
    assert (seen - want).abs().max() > 1e-3


@torch.inference_mode()
def test_registers_bring_what_is_in_all_windows_to_each_grid() -> None:
    """Cells of one grid change with cells of another one, which they do not see."""
    block = randomise(SYSTEMS["max_vit_with_registers"].build()).stages[0].blocks[0]
    x = torch.randn(1, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    registers = block.registers
    other = x.clone()
    other[:, 1, 1] = -other[:, 1, 1]
    _, means = block.window(x, registers)
    _, changed = block.window(other, registers)
    assert (means - changed).abs().max() > 1e-3
    groups = block.window.partition.split(x)
    tokens = block.window.block(
        torch.cat([registers.expand(16, -1, -1), groups], dim=1), BlockInputs(num_prefix_tokens=4)
    )
    torch.testing.assert_close(means, tokens[:, :4].mean(dim=0, keepdim=True))


@torch.inference_mode()
def test_gates_cost_what_they_let_through() -> None:
    found = SYSTEMS["simple_vit_with_sparse_gating"]
    model, x = randomise(found.build(sparsity_threshold=0.4)), found.inputs()
    tokens, opened = model.embed(x), []
    for block in model.blocks:
        q, k = (
            part.unflatten(-1, (2, 4)) for part in block.attention.to_gates(block.norm1(tokens)).chunk(2, -1)
        )
        for image in range(2):
            for head in range(2):
                scores = q[image, :, head] @ k[image, 4:, head].T / 2
                opened.append((image, torch.sigmoid(scores).mean().item()))
        tokens = block(tokens)
    means = [sum(p for i, p in opened if i == image) / 6 for image in range(2)]
    logits, loss = model(x, return_loss=True)
    assert logits.equal(model(x))
    assert min(means) > 0.4
    assert loss.item() == pytest.approx(sum(means) / 2 - 0.4, abs=1e-6)
    sums = randomise(found.build(sparsity_loss_type="l1"))(x, return_loss=True)[1]
    assert sums.item() == pytest.approx(sum(means) / 2, abs=1e-6)


@torch.inference_mode()
def test_loops_are_chosen_at_each_call() -> None:
    found = SYSTEMS["looped_vit"]
    model, x = randomise(found.build()), found.inputs()
    logits, gains = model(x, return_all_logits=True, return_exit_benefits=True)
    assert logits.shape == (3, 2, 5)
    assert gains.shape == (2, 2)
    for loops in (1, 2, 3):
        assert difference(model(x, loop_depth=loops), logits[loops - 1]) < TOLERANCE
    assert (logits[0] - logits[2]).abs().max() > 0.01
    largest = [gain.max().item() for gain in gains]
    stops = next((loop for loop, gain in enumerate(largest) if gain <= largest[1]), 2)
    assert difference(model(x, adaptive_exit=True, exit_threshold=largest[1]), logits[stops]) < TOLERANCE
    assert difference(model(x, adaptive_exit=True, exit_threshold=max(largest)), logits[0]) < TOLERANCE
    with pytest.raises(ValueError, match="at least 2, got 1"):
        model(x, loop_depth=1, adaptive_exit=True)
    with pytest.raises(ValueError, match="adaptive_loop=True"):
        found.build(adaptive_loop=False)(x, adaptive_exit=True)


def test_losses_and_targets_of_loops() -> None:
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]], [[5.0, 0.0]]])
    labels = torch.tensor([0])
    losses = [math.log1p(math.exp(-margin)) for margin in (2.0, -1.0, 5.0)]
    weights = {
        "final": (0, 0, 1),
        "exponential": (0.25, 0.5, 1),
        "final_mean": (0.5, 0.5, 1),
        (3.0, 0.0, 2.0): (3, 0, 2),
    }
    for weighting, each in weights.items():
        want = sum(weight * loss for weight, loss in zip(each, losses, strict=True))
        assert deep_supervision_loss(logits, labels, weighting).item() == pytest.approx(want, rel=1e-5)
    targets = adaptive_exit_targets(logits, labels)
    want = [max(0, losses[0] - losses[1], (losses[0] - losses[2]) / 2), max(0, losses[1] - losses[2])]
    assert targets[:, 0].tolist() == pytest.approx(want, rel=1e-5)
    with pytest.raises(ValueError, match="each of 3 loops"):
        deep_supervision_weights(3, (1.0, 2.0))


@by_system
def test_parameters_are_sorted_by_depth(found: System) -> None:
    """By timm's tool: what embeds comes first, what classifies last, and each layer has a rate of its own."""
    model = found.build()
    groups = group_parameters(model, group_matcher=model.group_matcher())
    first, last = groups[0], groups[max(groups)]
    assert {name for name in first if name.startswith(("head.", "blocks.", "stages.", "norm."))} == set()
    assert any(name.startswith(("patch_embed.", "stem.")) for name in first)
    assert found.module in ENCODERS or any(name.startswith("head.") for name in last)
    late = {
        name for name in last if name.startswith(("patch_embed.", "frequency_embed.", "phase", "prefix."))
    }
    assert late == set()


@pytest.mark.parametrize("name", ["", "_subspace", "_depth"])
def test_the_loss_of_correlations_is_the_public_packages(name: str) -> None:
    config, state, golden = read_golden(f"public_vit_with_decorr{name}")
    model = SYSTEMS["vit_with_decorr"].build(**config)
    load_pretrained(model, state, strict=True, grid="model")
    for part in (model.train(), model.eval()):
        logits, loss = part(golden["input"], return_decorr_aux_loss=True)
        torch.testing.assert_close(loss, golden["loss"])
    assert model(golden["input"])[1] == 0
    assert model(golden["input"])[0].equal(logits)
    assert model.train()(golden["input"])[1] == loss
    loss.backward()
    assert model.blocks[0].attention.to_qkv.weight.grad.any()


def test_correlations_are_those_of_the_tokens_that_are_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    hiddens = torch.randn(6, 2, 512, 16, generator=generator)
    assert DecorrelationLoss(0.1)(hiddens[0]).ndim == 0
    whole = DecorrelationLoss()(hiddens)
    some = torch.stack([DecorrelationLoss(0.9)(hiddens) for _ in range(4)]).mean()
    assert whole < some < 2 * whole
    same = hiddens[..., :1].expand(-1, -1, -1, 16)
    assert DecorrelationLoss(0.5)(same) > 100 * whole
    assert DecorrelationLoss(0.001, soft_validate_num_sampled=True)(hiddens) == 0
    with pytest.raises(ValueError, match=r"at least 2 of 512 tokens, got 0\.001"):
        DecorrelationLoss(0.001)(hiddens)


@torch.inference_mode()
def test_relative_biases_in_plain_loops() -> None:
    """On one, two and three axes, some of them longer than the curves; and of patches that are there."""
    generator = torch.Generator().manual_seed(0)
    for grid in ((5,), (2, 5), (2, 3, 4)):
        bias = randomise(RelativeProjPositionalBias(12, 2, len(grid), num_distance_basis=3, max_dist=3))
        x = torch.randn(2, *grid, 12, generator=generator)
        found = bias(x)
        tokens = x.flatten(1, -2)
        places = torch.cartesian_prod(*(torch.arange(extent) for extent in grid)).view(-1, len(grid))
        weights = bias.to_distance_weights(tokens).view(2, len(places), len(grid), 2, 3)
        for n, query in enumerate(places.tolist()):
            for m, key in enumerate(places.tolist()):
                apart = [a - b for a, b in zip(query, key, strict=True)]
                wanted = torch.zeros(2, 2)
                if max(map(abs, apart)) < 3:
                    for axis, distance in enumerate(apart):
                        wanted += weights[:, n, axis] @ bias.distance_banks[axis, :, distance + 2]
                torch.testing.assert_close(found[:, :, n, m], wanted)
        ids = torch.tensor([[4, 0, 2], [1, 3, 4]])
        some = bias.of_tokens(torch.stack([one[i] for one, i in zip(tokens, ids, strict=True)]), grid, ids)
        for one, whole, i in zip(some, found, ids, strict=True):
            torch.testing.assert_close(one, whole[:, i][:, :, i])
        with pytest.raises(ValueError, match=f"a grid of {len(grid)} axes"):
            bias(x[:, None])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@torch.inference_mode()
def test_videos_of_any_size_are_packed() -> None:
    found = SYSTEMS["na_vit_nested_tensor_3d"]
    model = randomise(found.build()).eval()
    generator = torch.Generator().manual_seed(0)
    videos = [torch.randn(3, *size, generator=generator) for size in ((4, 8, 24), (2, 16, 8), (4, 24, 24))]
    logits = model(videos)
    for one, video in zip(logits, videos, strict=True):
        torch.testing.assert_close(model(video[None])[0], one, atol=1e-5, rtol=1e-4)
    assert model(torch.nested.as_nested_tensor(videos, layout=torch.strided)).equal(logits)
    with pytest.raises(ValueError, match="channels, frames, height, width"):
        model([videos[0][0]])
    dropping = found.build(token_dropout_prob=lambda frames, height, width: 0.5).train()
    assert [len(one) for one in dropping.forward_features(videos)] == [3 + 12, 3 + 4, 3 + 36]


@pytest.mark.parametrize("has_cls", [False, True])
def test_masks_of_causal_axes(has_cls: bool) -> None:
    """And attention by them, as the dense mask says."""
    grid, axes = (2, 3, 4), (0, 2)
    sees = get_nd_causal_mask_fn(grid, axes, has_cls=has_cls)
    index = torch.arange(24 + has_cls)
    seen = sees(0, 0, index[:, None], index[None])
    places = torch.cartesian_prod(*(torch.arange(extent) for extent in grid))[:, list(axes)]
    patches = seen[1:, 1:] if has_cls else seen
    assert patches.equal((places[:, None] >= places[None]).all(dim=-1))
    assert not has_cls or (seen[0].all() and seen[:, 0].all())
    q, k, v = torch.randn(3, 2, 4, len(index), 8, generator=torch.Generator().manual_seed(0)).unbind()
    weights = (q @ k.mT / 2).masked_fill(~seen, -torch.inf).softmax(dim=-1)
    torch.testing.assert_close(nd_attention(q, k, v, sees, scale=0.5), weights @ v)
    torch.testing.assert_close(nd_attention(q, k, v, scale=0.5), (q @ k.mT / 2).softmax(dim=-1) @ v)
    assert get_nd_causal_mask_fn(grid, None) is None
    with pytest.raises(ValueError, match=r"causal_dims must be in \[0, 2\], got \(3,\)"):
        get_nd_causal_mask_fn(grid, 3)
    if flex_attention_supported("cpu"):
        block_mask = create_nd_block_mask(sees, 4, len(index), "cpu")
        assert block_mask.shape[-2:] == seen.shape
    assert not flex_attention_supported("meta")


def test_flex_attention_is_used_for_block_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is compiled by its caller."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(
        vit_nd_masking, "flex_attention", lambda *tensors, **options: calls.append(options) or tensors[2]
    )
    mask: Any = object()
    values = torch.ones(1, 2, 3, 4)
    assert nd_attention(values, values, values, block_mask=mask, scale=0.5) is values
    assert calls == [{"block_mask": mask, "scale": 0.5}]


@torch.inference_mode()
def test_similarities_in_plain_loops() -> None:
    x = torch.randn(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    for causal, first in ((False, -1), (True, -2)):
        found = MOSS(6, 3, 1, 3, causal=causal).similarities(x)
        for t, i, j in itertools.product(range(3), range(4), range(5)):
            for number, (dt, dj) in enumerate(itertools.product(range(first, first + 3), range(-1, 2))):
                inside = 0 <= t + dt < 3 and 0 <= j + dj < 5
                other = x[0, t + dt, i, j + dj] if inside else torch.zeros(6)
                wanted = torch.cosine_similarity(x[0, t, i, j], other, dim=0) if inside else torch.tensor(0.0)
                torch.testing.assert_close(found[0, t, i, j, number], wanted)
    assert MOSS(6)(x).shape == x.shape


@torch.inference_mode()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_videos_with_padding_are_as_short_ones(pool: str, causal: bool) -> None:
    """And with causal frames, those before a change stay, though the class token sees it."""
    found = SYSTEMS["vivit_with_moss"]
    model, x = randomise(found.build(pool=pool, moss_causal=causal)), found.inputs()
    mask = torch.arange(6).expand(2, -1) < 4
    assert difference(model(x, mask), model(x[:, :, :4])) < TOLERANCE
    later = torch.cat([x[:, :, :4], -x[:, :, 4:]], dim=2)
    assert (model(later) - model(x)).abs().max() > 1e-3
    change = (model.forward_features(later) - model.forward_features(x)).abs().amax(dim=(0, 2))
    frames = change[1:] if pool == "cls" else change
    assert (frames[:2].max() < 1e-5) == causal
    assert frames[2] > 1e-3


@torch.inference_mode()
def test_maps_of_blocks_over_space() -> None:
    found = SYSTEMS["vivit_with_moss"]
    model, x = randomise(found.build()), found.inputs()
    last, maps = model.forward_intermediates(x)
    assert [tuple(one.shape) for one in maps] == [(2, 24, 3, 4, 4)] * 2
    assert last.equal(model.forward_features(x))
    with pytest.raises(ValueError, match="need all patches"):
        model.encode(model.embed(x), (3, 4, 4), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="chosen at construction"):
        model.reset_classifier(5, "avg")


@torch.inference_mode()
def test_linear_attention_and_its_convolution_in_plain_loops() -> None:
    attention = randomise(LinearAttention(8, heads=2, dim_head=4)).eval()
    x = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = attention.project(x.flatten(1, 2))
    scores = q.relu() @ k.relu().mT
    attended = scores / scores.sum(dim=-1, keepdim=True).clamp_min(1e-6) @ v
    values = v.transpose(1, 2).reshape(2, 3, 4, 8)
    kernels = attention.to_kernels(values.mean(dim=(1, 2))).view(2, 8, 3, 3)
    padded = torch.nn.functional.pad(values, (0, 0, 1, 1, 1, 1))
    convolved = sum(
        padded[:, i : i + 3, j : j + 4] * kernels[:, None, None, :, i, j] for i in range(3) for j in range(3)
    )
    merged = attention.to_out(attended.transpose(1, 2).reshape(2, 3, 4, 8) + convolved)
    assert difference(attention(x), merged) < TOLERANCE


def test_layers_draw_their_attention_in_training() -> None:
    """In evaluation the first kind acts; weights of kinds that a layer has not are left out in loading."""
    found = SYSTEMS["jet_vit"]
    model, x = randomise(found.build(attn_layers=[("LA", "FA"), "WA", "FA"])), found.inputs()
    with torch.no_grad():
        torch.manual_seed(0)
        assert len({round(model.train()(x).sum().item(), 3) for _ in range(12)}) == 2
        assert model.eval()(x).equal(model(x))
        assert model(x[..., :12, :20]).isfinite().all()
    with pytest.raises(ValueError, match="needs the grid of the patches, and all of them"):
        model.encode(model.embed(x), (4, 6), torch.zeros(2, 24, dtype=torch.int64))
    with pytest.raises(ValueError, match="one for each of 3 layers, got 2"):
        found.build(attn_layers=["FA", "LA"])
    with pytest.raises(ValueError, match="dim must be a multiple of dim_head, got 24 and 5"):
        found.build(dim_head=5)
    config, state, golden = read_golden("public_jet_vit")
    other = {"transformer.layers.0.0.options.WA.norm.weight": torch.ones(24)}
    whole = found.build(**config).eval()
    report = load_pretrained(whole, {**state, **other}, strict=True, grid="model")
    assert report.dropped == tuple(other)
    assert difference(whole(golden["input"]), golden["output"]) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("name", ["", "_two", "_joined"])
def test_slots_tokens_and_scores_are_the_public_packages(name: str) -> None:
    config, state, golden = read_golden(f"public_wwt{name}")
    found = SYSTEMS["wwt"]
    path = ((2, 1, 0), (0, 1, 2))
    head = AutoencodingHead(image_size=(16, 24), patch_size=4, pathways=path)
    model = found.build(**config, task_heads=head).eval()
    load_pretrained(model, state, strict=True, grid="model")
    (slots, tokens), (to_patches, to_slots) = model(golden["input"])
    assert difference(slots, golden["output"]) < TOLERANCE
    assert difference(tokens, golden["tokens"]) < TOLERANCE
    assert difference(to_patches, golden["to_patches"]) < 10 * TOLERANCE
    assert difference(to_slots, golden["to_slots"]) < 10 * TOLERANCE
    assert to_patches.shape == (2, 4, 6, 24)
    features = model(golden["input"], return_embeddings=True)
    assert [tuple(part.shape) for part in features.slots] == [(2, 6, 24), (2, 4, 24)]
    groups = (2,) if name == "_two" else ()
    assert [mask.shape for mask in features.masks] == [
        (2, *groups, 2, n, s) for n, s in ((24, 6), (24, 4), (6, 4))
    ]
    first = AutoencodingHead(image_size=(16, 24), patch_size=4, channel_first=True)
    maps = first((features.tokens, *features.slots), features.masks, model.interactions)
    assert [one.shape for one in maps] == [(2, 24, 4, 6)] * 2
    # patches, in the output of each block
    _, maps = model.forward_intermediates(golden["input"])
    assert [tuple(one.shape) for one in maps] == [(2, 24, 4, 6)] * 3


def test_what_slots_refuse(tmp_path: Path) -> None:
    found = SYSTEMS["wwt"]
    for options, message in (
        ({"interactions": ((1, 0),)}, "the lower one first"),
        ({"num_register_slots": (1,)}, "one for each of 2 levels"),
    ):
        with pytest.raises(ValueError, match=message):
            found.build(**options)
    with pytest.raises(ValueError, match="must rise or fall"):
        AutoencodingHead(image_size=16, patch_size=4, pathways=((0, 2, 1),))
    head = AutoencodingHead(image_size=(16, 24), patch_size=4, pathways=((0, 1),))
    with pytest.raises(ValueError, match=r"levels \(0, 1\) of pathway \(0, 1\) do not interact"):
        found.build(interactions=((0, 2),), task_heads=head)(found.inputs())
    model = found.build(task_heads=head, sigreg_slots=(True, False))
    _, arrived, loss = model(found.inputs())
    assert arrived.shape == (2, 6, 24)
    assert loss.ndim == 0
    loss.backward()
    with pytest.warns(UserWarning, match="pass them again"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="returns slots"):
        model.encode(model.embed(found.inputs()))
