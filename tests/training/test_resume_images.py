from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import seed_everything

from tests.training.toy import Losses, make_loop
from vit_pytorch.data.datasets import Splits
from vit_pytorch.data.module import ImageData
from vit_pytorch.data.sources import open_data
from vit_pytorch.data.transforms import Augmentation
from vit_pytorch.training.checkpoints import list_checkpoints
from vit_pytorch.training.optim import OptimizerConfig, ScheduleConfig
from vit_pytorch.training.resume import fit
from vit_pytorch.training.task import Classifier
from vit_pytorch.vit import ViT


@pytest.fixture(scope="module")
def digits() -> Splits:
    return open_data("digits", seed=0, val_fraction=0.1, test_fraction=0.2)


def train_digits(folder: Path, splits: Splits, resume: Path | None = None, workers: int = 0) -> Losses:
    augmentation = Augmentation(crop_scale=(0.7, 1.0), mixup=0.2, cutmix=1.0, random_erasing=0.25)
    data = ImageData(splits, image_size=8, batch_size=400, workers=workers, augmentation=augmentation)
    torch.manual_seed(3)
    model = ViT(
        image_size=8,
        patch_size=1,
        num_classes=10,
        dim=16,
        depth=2,
        heads=2,
        mlp_dim=32,
        channels=1,
        dropout=0.1,
        emb_dropout=0.1,
    )
    task = Classifier(
        model,
        optimizer=OptimizerConfig(layer_decay=0.9),
        schedule=ScheduleConfig(warmup_epochs=1),
        label_smoothing=0.1,
    )
    losses = Losses()
    options: dict[str, Any] = {"every_n_steps": 2, "keep": 100, "ema": 0.9}
    loop = make_loop(folder, task, data, epochs=3, callbacks=[losses], **options)
    seed_everything(5, verbose=False)
    fit(loop, resume)
    return losses


@pytest.mark.parametrize("workers", [0, 2])
def test_images_with_augmentation_and_mixing_resume_exactly(
    tmp_path: Path, digits: Splits, workers: int
) -> None:
    whole = train_digits(tmp_path / "whole", digits)
    names = [path.name for path in list_checkpoints(tmp_path / "whole")]
    assert {"epoch-0001", "epoch-0001-batch-000002"} <= set(names)
    for name in ("epoch-0001", "epoch-0001-batch-000002"):
        checkpoint = tmp_path / "whole" / name
        resumed = train_digits(tmp_path / f"again-{name}", digits, checkpoint, workers=workers)
        assert 0 < len(resumed.train) < len(whole.train)
        assert resumed.train == {when: whole.train[when] for when in list(whole.train)[-len(resumed.train) :]}
        assert resumed.val == {when: whole.val[when] for when in list(whole.val)[-len(resumed.val) :]}
