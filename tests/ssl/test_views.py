import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv

from vit_pytorch.ssl import views as views_module
from vit_pytorch.ssl.views import (
    MultiCrop,
    View,
    change_colours,
    crop_and_resize,
    dino_views,
    draw_boxes,
    gaussian_blur,
    join_by_size,
    luma,
)

PLAIN = {"flip": 0.0, "colour": 0.0, "grey": 0.0, "blur": 0.0}


def box(top: int, left: int, tall: int, wide: int, size: int) -> torch.Tensor:
    return torch.tensor([[top, left, tall, wide]]) / size


def test_the_whole_image_is_itself():
    images = torch.rand(3, 3, 20, 28)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, -1)
    torch.testing.assert_close(crop_and_resize(images, whole, (20, 28)), images, atol=1e-5, rtol=0)


def test_a_box_of_whole_pixels_is_a_slice():
    images = torch.rand(1, 3, 32, 32)
    cut = crop_and_resize(images, box(5, 9, 12, 16, 32), (12, 16))
    torch.testing.assert_close(cut, images[..., 5:17, 9:25], atol=1e-4, rtol=0)


def test_resizing_is_bicubic():
    images = 0.25 + torch.rand(1, 3, 32, 32) / 2
    cut = crop_and_resize(images, box(8, 8, 16, 16, 32), (40, 40))
    whole = F.interpolate(images, size=(80, 80), mode="bicubic")[..., 20:60, 20:60]
    torch.testing.assert_close(cut, whole.clamp(0, 1), atol=1e-4, rtol=0)


def test_every_image_has_a_crop_of_its_own():
    same = torch.rand(1, 3, 32, 32).expand(16, -1, -1, -1)
    view = View((16, 16), (0.05, 0.4), **PLAIN).draw(same)
    assert view.shape == (16, 3, 16, 16)
    apart = (view[:, None] - view[None]).abs().amax(dim=(2, 3, 4))
    assert (apart[~torch.eye(16, dtype=torch.bool)] > 0.05).all()


@pytest.fixture
def uncropped(monkeypatch):
    """Views whose crops are the whole image, so that only the distortions differ."""

    def whole(images, *_):
        return images.new_tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(images), -1)

    monkeypatch.setattr(views_module, "draw_boxes", whole)


@pytest.mark.parametrize("distortion", ["flip", "colour", "grey", "blur", "solarize"])
def test_every_image_is_distorted_for_itself(distortion, uncropped):
    same = torch.rand(1, 3, 16, 16).expand(64, -1, -1, -1)
    settings = {**PLAIN, distortion: 0.5}
    drawn = View((16, 16), (1.0, 1.0), **settings).draw(same)
    changed = (drawn - same).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert 16 < changed.sum() < 48
    if distortion in ("colour", "blur"):
        assert len(drawn[changed].flatten(1).mul(1e4).round().unique(dim=0)) == changed.sum()


@pytest.mark.parametrize("size", [(64, 64), (40, 80)])
def test_boxes_are_inside_and_of_the_area_asked_for(size):
    boxes = draw_boxes(torch.rand(4000, 1, *size), (0.2, 0.5))
    top, left, tall, wide = boxes.unbind(1)
    assert boxes.min() >= 0
    assert (top + tall).max() <= 1 + 1e-6
    assert (left + wide).max() <= 1 + 1e-6
    area = (tall * wide)[(tall < 1) & (wide < 1)]
    assert 0.2 <= area.min() < 0.21
    assert 0.49 < area.max() <= 0.5 + 1e-6
    ratio = (wide * size[1] / (tall * size[0]))[(tall < 1) & (wide < 1)]
    assert 3 / 4 - 1e-4 <= ratio.min() < 0.77
    assert ratio.max() <= 4 / 3 + 1e-4


def test_colours_change_as_in_torchvision():
    images = torch.rand(4, 3, 12, 12)
    by, none = torch.tensor([-0.4, -0.1, 0.2, 0.4]), torch.zeros(4)
    for place, adjust in enumerate((tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)):
        changes = [none] * 4
        changes[place] = by
        ours = change_colours(images, *changes)
        theirs = torch.stack([adjust(x, 1 + float(b)) for x, b in zip(images, by, strict=True)])
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


def test_hue_turns_the_chroma_alone():
    images = 0.4 + 0.2 * torch.rand(2, 3, 8, 8)
    none = torch.zeros(2)
    turned = change_colours(images, none, none, none, torch.tensor([0.1, -0.1]))
    torch.testing.assert_close(luma(turned), luma(images), atol=1e-4, rtol=0)
    assert (turned - images).abs().max() > 0.01
    back = change_colours(turned, none, none, none, torch.tensor([-0.1, 0.1]))
    torch.testing.assert_close(back, images, atol=1e-5, rtol=0)
    grey = luma(images).expand_as(images)
    torch.testing.assert_close(change_colours(grey, none, none, none, none + 0.1), grey, atol=1e-3, rtol=0)


def test_one_channel_has_no_colours_to_change():
    images = torch.rand(2, 1, 8, 8)
    none = torch.zeros(2)
    assert torch.equal(change_colours(images, none, none, none + 0.2, none + 0.1), images)


def test_blur_is_as_in_torchvision():
    images, sigma = torch.rand(2, 3, 24, 24), torch.tensor([0.5, 2.0])
    ours = gaussian_blur(images, sigma)
    theirs = torch.stack(
        [tv.gaussian_blur(x, [13, 13], [float(s)] * 2) for x, s in zip(images, sigma, strict=True)]
    )
    inner = (..., slice(6, -6), slice(6, -6))
    torch.testing.assert_close(ours[inner], theirs[inner], atol=1e-5, rtol=0)
    flat = torch.full((1, 3, 9, 9), 0.3)
    torch.testing.assert_close(gaussian_blur(flat, torch.tensor([2.0])), flat)


def test_solarizing_inverts_the_bright_half(uncropped):
    images = torch.tensor([0.1, 0.4, 0.6, 0.9]).view(1, 1, 2, 2)
    drawn = View((2, 2), (1.0, 1.0), **PLAIN, solarize=1.0).draw(images)
    torch.testing.assert_close(drawn.flatten(), torch.tensor([0.1, 0.4, 0.4, 0.1]))


def test_views_are_drawn_from_the_generator():
    crops = MultiCrop(dino_views((32, 32), (16, 16), num_local=3))
    images = torch.randn(2, 3, 32, 32)
    state = torch.get_rng_state()
    first = crops(images, torch.Generator().manual_seed(3))
    again = crops(images, torch.Generator().manual_seed(3))
    other = crops(images, torch.Generator().manual_seed(4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    torch.manual_seed(5)
    first = crops(images)
    torch.manual_seed(5)
    assert all(map(torch.equal, first, crops(images)))


def test_images_come_and_leave_normalised():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.rand(2, 3, 16, 16)
    images = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    views = (View((16, 16), (1.0, 1.0)), View((8, 8), (0.2, 0.4)))
    drawn = MultiCrop(views, mean, std)(images, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    for view, normalised in zip(views, drawn, strict=True):
        back = normalised * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        torch.testing.assert_close(back, view.draw(pixels, generator), atol=1e-4, rtol=0)
        assert back.min() > -1e-5
        assert back.max() < 1 + 1e-5
    half = MultiCrop(views)(torch.randn(2, 3, 16, 16).bfloat16())
    assert [x.dtype for x in half] == [torch.bfloat16] * 2


def test_normalisation_belongs_to_the_channels():
    crops = MultiCrop((View((8, 8), (0.5, 1.0)),), (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    with pytest.raises(ValueError, match="3 means and 3 deviations, the images 1 channels"):
        crops(torch.randn(2, 1, 8, 8))


def test_the_papers_views():
    views = dino_views((224, 224), (96, 96), num_local=8)
    assert [view.size[0] for view in views] == [224] * 2 + [96] * 8
    assert [view.scale for view in views] == [(0.4, 1.0)] * 2 + [(0.05, 0.4)] * 8
    assert [view.blur for view in views] == [1.0, 0.1] + [0.5] * 8
    assert [view.solarize for view in views] == [0.0, 0.2] + [0.0] * 8
    assert {(view.flip, view.colour, view.grey) for view in views} == {(0.5, 0.8, 0.2)}


def test_crops_are_joined_by_size():
    crops = [torch.randn(2, 3, *size) for size in ((8, 8), (8, 8), (4, 4), (4, 4), (4, 4))]
    large, small = join_by_size(crops)
    assert torch.equal(large, torch.cat(crops[:2]))
    assert torch.equal(small, torch.cat(crops[2:]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"scale": (0.5, 0.4)}, "range in"),
        ({"scale": (0.0, 0.4)}, "range in"),
        ({"scale": (0.4, 1.1)}, "range in"),
        ({"sigma": (0.0, 1.0)}, "positive"),
        ({"blur": 1.5}, "blur is a probability, got 1.5"),
        ({"flip": math.nan}, "flip is a probability"),
    ],
)
def test_wrong_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        View(**{"size": (8, 8), "scale": (0.4, 1.0), **setting})
