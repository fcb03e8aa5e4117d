from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from vit_pytorch.data import Augmentation, Preprocessing, eval_transform, train_transform
from vit_pytorch.data.batched import DRAWS, BatchAugment
from vit_pytorch.data.recolor import FASTER, RandAugment
from vit_pytorch.data.seeding import derive_seed, seeded
from vit_pytorch.data.transforms import Preparation, mix_transform
from vit_pytorch.preprocessing import Normalize

RAW = Preprocessing(image_size=(12, 16), channels=3, mean=(0.0,), std=(1.0,))


def images(count: int = 4, size: tuple[int, int] = (12, 16)) -> Tensor:
    return torch.randint(
        0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def draws(**columns: float) -> Tensor:
    """Neutral random numbers, but for the columns named."""
    names = ["area", "ratio", "x", "y", "flip", "angle", "scale", "move_x", "move_y", "erase", "erase_area"]
    names += ["shear", "erase_ratio", "erase_y", "erase_x"]
    assert len(names) == DRAWS
    return torch.tensor([[columns.get(name, 0.5) for name in names]] * 4)


@pytest.mark.parametrize(
    ("size", "target", "crop_pct", "resized"),
    [
        ((40, 60), (20, 20), 1.0, (20, 30)),
        ((60, 40), (20, 20), 0.5, (60, 40)),
        ((40, 60), (20, 10), 1.0, (20, 30)),
        ((30, 40), (24, 48), 0.8, (45, 60)),
        ((5, 7), (10, 10), 1.0, (10, 14)),
    ],
)
def test_evaluation_resizes_without_distortion_and_crops_the_centre(
    size: tuple[int, int], target: tuple[int, int], crop_pct: float, resized: tuple[int, int]
) -> None:
    prep = Preprocessing(image_size=target, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), crop_pct=crop_pct)
    image = images(1, size)[0]
    expected = F.center_crop(F.resize(image, list(resized), antialias=True), list(target)).float() / 255
    expected = (expected - torch.tensor(prep.mean).view(3, 1, 1)) / torch.tensor(prep.std).view(3, 1, 1)
    assert torch.allclose(eval_transform(prep)(image), expected, atol=1e-6)
    assert torch.allclose(eval_transform(prep)(image[None])[0], expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_agrees_with_pillow(mode: Any) -> None:
    prep = Preprocessing(image_size=(20, 20), mean=(0.0,), std=(1.0,), interpolation=mode)
    image = images(1, (53, 53))[0]
    resample = Image.Resampling.BILINEAR if mode == "bilinear" else Image.Resampling.BICUBIC
    reference = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((20, 20), resample)
    ours = eval_transform(prep)(image).permute(1, 2, 0).numpy() * 255
    assert np.abs(ours - np.asarray(reference)).max() <= 1.01


def test_without_augmentation_training_is_evaluation() -> None:
    expected = eval_transform(RAW)(images())
    assert torch.equal(BatchAugment(RAW, Augmentation())(images(), draws()), expected)
    assert torch.equal(
        torch.stack([train_transform(RAW, Augmentation())(image) for image in images()]), expected
    )


def test_batch_is_unchanged_by_neutral_draws() -> None:
    augmentation = Augmentation(
        shift=2, flip=0.4, degrees=20, shear=9, translate=0.2, scale=(0.5, 1.5), random_erasing=0.4
    )
    expected = eval_transform(RAW)(images())
    assert torch.allclose(BatchAugment(RAW, augmentation)(images(), draws()), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("augmentation", "columns", "affine"),
    [
        (Augmentation(degrees=30), {"angle": 1.0}, {"angle": 30.0}),
        (Augmentation(degrees=30), {"angle": 0.25}, {"angle": -15.0}),
        (Augmentation(shear=20), {"shear": 1.0}, {"shear": [20.0, 0.0]}),
        (
            Augmentation(degrees=30, shear=20, scale=(0.5, 1.5)),
            {"angle": 1.0, "shear": 0.25, "scale": 0.8},
            {"angle": 30.0, "shear": [-10.0, 0.0], "scale": 1.3},
        ),
        (Augmentation(scale=(0.5, 1.5)), {"scale": 1.0}, {"scale": 1.5}),
        (Augmentation(translate=0.25), {"move_x": 1.0, "move_y": 0.0}, {"translate": [4, -3]}),
        (
            Augmentation(degrees=30, scale=(0.5, 1.5), translate=0.25),
            {"angle": 1.0, "scale": 0.8, "move_x": 0.0, "move_y": 1.0},
            {"angle": 30.0, "scale": 1.3, "translate": [-4, 3]},
        ),
        (Augmentation(shift=3), {"x": 0.999, "y": 0.0}, {"translate": [-3, 3]}),
    ],
)
def test_batched_movement_agrees_with_torchvision(
    augmentation: Augmentation, columns: dict[str, float], affine: dict[str, Any]
) -> None:
    settings = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **affine}
    reference = F.affine(images().float() / 255, interpolation=InterpolationMode.BILINEAR, **settings)
    ours = BatchAugment(RAW, augmentation)(images(), draws(**columns))
    assert torch.allclose(ours, reference, atol=1e-4)
    assert not torch.allclose(ours, images() / 255, atol=0.1)


def test_batched_flip() -> None:
    augment = BatchAugment(RAW, Augmentation(flip=0.5))
    expected = (images() / 255).flip(-1)
    assert torch.allclose(augment(images(), draws(flip=0.49)), expected, atol=1e-5)
    assert torch.allclose(augment(images(), draws(flip=0.51)), images() / 255, atol=1e-5)


def test_batched_random_crop_agrees_with_torchvision() -> None:
    prep = replace(RAW, image_size=(12, 12))
    augment = BatchAugment(prep, Augmentation(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0)))
    square = images(4, (12, 12))
    expected = F.resized_crop(square.float() / 255, 3, 3, 6, 6, [12, 12], antialias=False)
    inner = slice(1, -1)
    ours = augment(square, draws())
    assert torch.allclose(ours[..., inner, inner], expected[..., inner, inner], atol=1e-5)
    corner = F.resized_crop(square.float() / 255, 6, 0, 6, 6, [12, 12], antialias=False)
    ours = augment(square, draws(x=0.0, y=1.0))
    assert torch.allclose(ours[..., inner, inner], corner[..., inner, inner], atol=1e-5)


def test_batched_erasing_blanks_a_rectangle_of_the_chosen_images() -> None:
    prep = replace(RAW, mean=(0.5,), std=(0.5,))
    bright = torch.full((200, 3, 12, 16), 255, dtype=torch.uint8)
    chances = torch.rand(200, DRAWS, generator=torch.Generator().manual_seed(0))
    erased = BatchAugment(prep, Augmentation(random_erasing=0.3))(bright, chances)
    blank = (erased == 0).all(1)
    touched = blank.flatten(1).any(1)
    assert torch.equal(touched, chances[:, 9] < 0.3)
    area = blank[touched].float().mean((1, 2))
    assert area.min() > 0.01
    assert area.max() < 0.4
    box = blank[touched].any(1).sum(1) * blank[touched].any(2).sum(1)
    assert torch.equal(box, blank[touched].sum((1, 2)))


def test_batched_erasing_is_distributed_as_torchvisions() -> None:
    count, prep = 4000, replace(RAW, image_size=(20, 24), channels=1, mean=(0.5,), std=(0.5,))
    bright = torch.full((count, 1, 20, 24), 255, dtype=torch.uint8)
    augmentation = Augmentation(random_erasing=1.0)
    single = train_transform(prep, augmentation)
    theirs = torch.stack([single(image) for image in bright]) == 0
    ours = BatchAugment(prep, augmentation)(bright, torch.rand(count, DRAWS)) == 0
    for measure, tolerance in (
        (lambda blank: blank.float().mean((0, 1)), 0.05),  # how often each pixel is blank
        (lambda blank: blank.flatten(1).float().mean(1).sort().values, 0.05),  # areas
        (lambda blank: blank.any(3).float().mean(), 0.02),  # heights
        (lambda blank: blank.any(2).float().mean(), 0.02),  # widths
    ):
        assert torch.allclose(measure(ours), measure(theirs), atol=tolerance)


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop_scale=(0.2, 0.8), flip=0.5),
        Augmentation(shift=3),
        Augmentation(degrees=15, shear=10, translate=0.1, scale=(0.8, 1.2)),
        Augmentation(rand_augment=2),
        Augmentation(color_jitter=0.4),
        Augmentation(random_erasing=1.0),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_single_image_transform_is_a_function_of_the_seed(augmentation: Augmentation, channels: int) -> None:
    transform = train_transform(replace(RAW, channels=channels), augmentation)
    image = images(1, (20, 30))[0, :channels]
    with seeded(1, 2):
        first = transform(image)
    with seeded(1, 2):
        again = transform(image)
    others = []
    for i in range(5):
        with seeded(1, 3 + i):
            others.append(transform(image))
    assert first.shape == (channels, 12, 16)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert any(not torch.equal(first, other) for other in others)


def test_seeding_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(0, 1, 2):
        torch.rand(7)
    assert torch.equal(torch.rand(3), expected)


def test_derived_seeds_differ_with_every_key_and_their_order() -> None:
    keys = [(a, b, c) for a in range(6) for b in range(6) for c in range(6)]
    seeds = {derive_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


@pytest.mark.parametrize("augmentation", [Augmentation(mixup=0.4), Augmentation(cutmix=1.0)])
def test_mixing_gives_probabilities(augmentation: Augmentation) -> None:
    mix = mix_transform(augmentation, 5)
    assert mix is not None
    batch, labels = (
        torch.stack([torch.full((3, 8, 8), float(i)) for i in range(4)]),
        torch.tensor([0, 1, 2, 4]),
    )
    with seeded(0, 0):
        mixed, soft = mix(batch, labels)
    assert soft.shape == (4, 5)
    assert torch.allclose(soft.sum(1), torch.ones(4))
    weight = soft[torch.arange(4), labels]
    assert torch.allclose(
        mixed.mean((1, 2, 3)), weight * torch.arange(4) + (1 - weight) * torch.tensor([3, 0, 1, 2])
    )


def test_no_mixing_unless_asked_for() -> None:
    assert mix_transform(Augmentation(flip=0.5), 5) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip must be between 0 and 1, got 1.5"),
        ({"random_erasing": -0.1}, "random_erasing must be between 0 and 1, got -0.1"),
        ({"mixup": -1.0}, r"mixup must be in \[0, 100\], got -1.0"),
        ({"shear": 90.0}, r"shear must be in \[0, 80\], got 90.0"),
        ({"crop_scale": (1e-9, 1.0)}, r"crop_scale must be a range .*got \(1e-09, 1.0\)"),
        ({"rand_augment": 2, "rand_augment_magnitude": 31}, "must be 0 to 30, got 31"),
        ({"scale": (1.2, 0.8)}, r"scale must be a range .*got \(1.2, 0.8\)"),
        ({"crop_scale": (0.1, 1.1)}, "crop_scale must end at 1"),
        ({"crop_scale": (0.1, 1.0), "shift": 2}, "shift must be 0 together with crop_scale, got 2"),
    ],
)
def test_augmentation_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (0, 8)}, r"image_size must be positive, got \(0, 8\)"),
        ({"crop_pct": 0.0}, "crop_pct must be above 0 and at most 1, got 0.0"),
        ({"mean": (0.5, 0.5)}, "mean must have 1 or 3 values, got 2"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be positive"),
    ],
)
def test_preprocessing_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{"image_size": (8, 8), **options})


def test_batches_do_not_recolour() -> None:
    with pytest.raises(ValueError, match="colour jitter is not done by the batch"):
        BatchAugment(RAW, Augmentation(color_jitter=0.1))


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_of_a_batch_is_that_of_its_images(channels: int) -> None:
    """Each image gets its own operations, with the pixels of torchvision's; all of them occur."""
    batch = torch.randint(256, (200, channels, 20, 24), dtype=torch.uint8)
    ours = RandAugment(2, 9, interpolation=InterpolationMode.BILINEAR)
    numbers = torch.rand(200, 4)
    before = batch.clone()
    found = ours.batch(batch, numbers)
    assert torch.equal(batch, before)
    theirs = v2.RandAugment(2, 9, interpolation=InterpolationMode.BILINEAR)
    names = list(theirs._AUGMENTATION_SPACE)
    used = set()
    for image, row, expected in zip(batch, numbers.tolist(), found, strict=True):
        for turn in range(2):
            name = names[int(row[turn] * 14)]
            make, signed = theirs._AUGMENTATION_SPACE[name]
            values = make(31, 20, 24)
            magnitude = 0.0 if values is None else float(values[9])
            magnitude *= -1 if signed and row[2 + turn] < 0.5 else 1
            given = (name, magnitude, InterpolationMode.BILINEAR, {})
            image = theirs._apply_image_or_video_transform(image, *given)
            used.add((name, magnitude < 0))
        assert torch.equal(image, expected)
    assert len(used) == 14 + 9


def test_batches_apply_rand_augment_after_changes_of_geometry() -> None:
    flipped = Augmentation(flip=1.0, rand_augment=2)
    augment = BatchAugment(RAW, flipped)
    numbers = torch.rand(4, augment.draws)
    expected = augment.recolor.batch(images().flip(3), numbers[:, DRAWS:]).float() / 255
    assert torch.allclose(augment(images(), numbers), expected, atol=1e-6)


MAGNITUDES = {"Solarize": (0.0, 0.27, 0.9, 1.0)} | dict.fromkeys(
    ("TranslateX", "TranslateY"), (-60.0, -9.0, -3.7, 0.4, 2.0, 8.2, 49.0, 50.0)
)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(2, 9), (3, 3), (37, 50)])
@pytest.mark.parametrize("operation", FASTER)
def test_faster_operations_are_those_of_torchvision(
    operation: str, size: tuple[int, int], channels: int
) -> None:
    """To the bit, for images in either order of memory, of their whole range, a part of it, and one value."""
    ours, theirs = RandAugment(), v2.RandAugment()
    whole = torch.randint(256, (channels, *size), dtype=torch.uint8)
    last = torch.randint(256, (*size, channels), dtype=torch.uint8).permute(2, 0, 1)
    part = whole // 3 + 40
    for image in (whole, last, part, torch.full_like(whole, 77)):
        for magnitude in MAGNITUDES.get(operation, (-0.9, -0.27, 0.0, 0.5, 0.9)):
            given = (operation, magnitude, InterpolationMode.BILINEAR, {})
            before = image.clone()
            found = ours._apply_image_or_video_transform(image, *given)
            assert torch.equal(found, theirs._apply_image_or_video_transform(image, *given))
            assert torch.equal(image, before)


def test_rand_augment_is_torchvisions() -> None:
    """The same draws, and the same pixels; that the faster operations are used is seen, too."""
    image = torch.randint(256, (3, 20, 20), dtype=torch.uint8)
    used: list[str] = []

    class Noted(RandAugment):
        def _apply_image_or_video_transform(
            self, image: Any, transform_id: str, *args: Any, **options: Any
        ) -> Any:
            used.append(transform_id)
            return super()._apply_image_or_video_transform(image, transform_id, *args, **options)

    for seed in range(60):
        torch.manual_seed(seed)
        found = Noted(2, 9)(image)
        torch.manual_seed(seed)
        assert torch.equal(found, v2.RandAugment(2, 9)(image))
    assert FASTER.keys() <= set(used)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_normalized_into_a_batch_to_the_bit(channels: int) -> None:
    """In either order of memory; pixels of the batch have their channels beside each other."""
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    prep = Preprocessing(image_size=(9, 14), channels=channels, mean=mean, std=std)
    first = torch.randint(256, (channels, 9, 14), dtype=torch.uint8)
    last = torch.randint(256, (9, 14, channels), dtype=torch.uint8).permute(2, 0, 1)
    batch = Preparation(prep, None).collate([first, last])
    assert torch.equal(batch, Normalize(prep)(torch.stack([first, last])))
    assert batch.permute(0, 2, 3, 1).is_contiguous()
