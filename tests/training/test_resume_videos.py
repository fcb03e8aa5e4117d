from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import seed_everything

from tests.training.films import drifting, write_film
from tests.training.toy import Losses, make_loop
from vit_pytorch.data import Augmentation, ImageData, Splits, VideoConfig, open_data
from vit_pytorch.training.checkpoints import list_checkpoints
from vit_pytorch.training.optim import OptimizerConfig, ScheduleConfig
from vit_pytorch.training.resume import fit
from vit_pytorch.training.task import Classifier
from vit_pytorch.vit_3d import ViT3D


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    folder = tmp_path_factory.mktemp("films")
    for i in range(16):
        write_film(folder / ("left", "right")[i % 2] / f"{i:02}.mp4", drifting(i % 2, seed=i))
    return open_data(f"video:{folder}", val_fraction=0.2, test_fraction=0)


def train_films(folder: Path, splits: Splits, resume: Path | None = None, workers: int = 0) -> Losses:
    data = ImageData(
        splits,
        image_size=16,
        frames=4,
        video=VideoConfig(stride=2),
        batch_size=4,
        workers=workers,
        augmentation=Augmentation(crop_scale=(0.7, 1.0), mixup=0.2, cutmix=1.0, random_erasing=0.25),
    )
    torch.manual_seed(3)
    model = ViT3D(
        image_size=16,
        frames=4,
        image_patch_size=4,
        frame_patch_size=2,
        num_classes=2,
        dim=16,
        depth=1,
        heads=2,
        mlp_dim=32,
        dropout=0.1,
    )
    task = Classifier(model, optimizer=OptimizerConfig(), schedule=ScheduleConfig(warmup_epochs=1))
    losses = Losses()
    options: dict[str, Any] = {"every_n_steps": 2, "keep": 100, "ema": 0.9}
    loop = make_loop(folder, task, data, epochs=3, callbacks=[losses], **options)
    seed_everything(5, verbose=False)
    fit(loop, resume)
    return losses


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_with_augmentation_and_mixing_resume_exactly(
    tmp_path: Path, films: Splits, workers: int
) -> None:
    whole = train_films(tmp_path / "whole", films)
    names = [path.name for path in list_checkpoints(tmp_path / "whole")]
    assert {"epoch-0001", "epoch-0001-batch-000002"} <= set(names)
    for name in ("epoch-0001", "epoch-0001-batch-000002"):
        checkpoint = tmp_path / "whole" / name
        resumed = train_films(tmp_path / f"again-{name}", films, checkpoint, workers=workers)
        assert 0 < len(resumed.train) < len(whole.train)
        assert resumed.train == {when: whole.train[when] for when in list(whole.train)[-len(resumed.train) :]}
        assert resumed.val == {when: whole.val[when] for when in list(whole.val)[-len(resumed.val) :]}
