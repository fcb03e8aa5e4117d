"""Images of other sizes than a ViT's own: positions are interpolated, as in timm."""

from typing import Any

import pytest
import timm
import torch

from tests.contracts.conftest import randomize_
from vit_pytorch import ViT, create_model, load_pretrained
from vit_pytorch.layers.positions import Learned

SIZES: dict[str, Any] = {"patch_size": 8, "depth": 2}
# positions as the named models have them
DYNAMIC = {
    "vit_tiny_patch16_224": Learned(dynamic_img_size=True),
    "vit_small_patch14_reg4_dinov2": Learned(class_token=False, dynamic_img_size=True),
    "vit_base_patch16_clip_224": Learned(dynamic_img_size=True),
    "deit_tiny_distilled_patch16_224": Learned(dynamic_img_size=True),
}


@pytest.mark.parametrize("size", [(64, 64), (48, 48), (96, 96), (40, 72), (72, 32), (120, 128)])
@pytest.mark.parametrize("name", DYNAMIC)
def test_timm(name, size):
    theirs = timm.create_model(name, img_size=64, dynamic_img_size=True, num_classes=5, **SIZES)
    randomize_(theirs).eval()
    ours = create_model(name, image_size=64, positions=DYNAMIC[name], num_classes=5, **SIZES).eval()
    load_pretrained(ours, theirs.state_dict(), grid=(8, 8))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        want = theirs(images)
        torch.testing.assert_close(ours(images), want, rtol=1e-4, atol=1e-4)
        fixed = create_model(name, image_size=64, num_classes=5, **SIZES).eval()
        fixed.load_state_dict(ours.state_dict())
        if max(size) > 64:
            with pytest.raises(ValueError, match=r"at most \(64, 64\).*Learned\(dynamic_img_size=True\)"):
                fixed(images)
        else:
            assert torch.allclose(fixed(images), want, atol=1e-4) == (size == (64, 64))


@pytest.mark.parametrize("size", [(48, 48), (96, 96), (40, 72), (120, 32)])
@pytest.mark.parametrize("name", DYNAMIC)
def test_another_input_size_for_good(name, size):
    """Parameters whose shape stays are the same objects, so that an optimizer goes on with them."""
    theirs = timm.create_model(name, img_size=64, num_classes=5, **SIZES)
    randomize_(theirs).eval()
    ours = create_model(name, image_size=64, num_classes=5, **SIZES).eval()
    load_pretrained(ours, theirs.state_dict(), grid=(8, 8))
    before = dict(ours.named_parameters())
    theirs.set_input_size(size)
    ours.set_input_size(size)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    changed = {name for name, parameter in ours.named_parameters() if before[name] is not parameter}
    assert changed == {"positions.table"}
    assert ours.image_size == size == ours.config["image_size"]


def test_settings_that_were_changed_stay():
    model = build()
    model.dropout.p = 0.3
    model.set_grad_checkpointing()
    model.set_input_size(64)
    assert model.dropout.p == 0.3
    assert model.blocks[0].grad_checkpointing


def test_a_model_that_was_changed_keeps_its_size():
    model = build(dim_head=16)
    model.blocks[0].attention.to_out = torch.nn.Identity()
    images = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        logits = model(images)
        with pytest.raises(ValueError, match=r"another blocks\.0\.attention\.to_out: Linear.* Identity"):
            model.set_input_size(64)
        with pytest.raises(ValueError, match="multiple of patch size"):
            model.set_input_size(45)
        assert torch.equal(model(images), logits)


def build(**options: Any) -> ViT:
    return ViT(
        image_size=40,
        patch_size=8,
        num_classes=5,
        dim=32,
        depth=1,
        heads=2,
        mlp_dim=32,
        **options,
    ).eval()


@pytest.mark.parametrize("kind", ["learned", "learned_2d"])
def test_the_option_is_saved(tmp_path, kind):
    model = build(positions={"kind": kind, "dynamic_img_size": True})
    model.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 96, 40)
    with torch.no_grad():
        assert torch.equal(create_model(tmp_path)(images), model(images))


def test_a_patch_divides_the_image():
    model = build(positions=Learned(dynamic_img_size=True))
    with pytest.raises(ValueError, match=r"multiple of patch size \(8, 8\), got \(100, 64\)"):
        model(torch.randn(1, 3, 100, 64))


def test_positions_inside_attention_are_not_interpolated():
    with pytest.raises(ValueError, match=r"alone or beside rotations, got 'relative' inside attention"):
        build(positions=[Learned(dynamic_img_size=True), "relative"])
