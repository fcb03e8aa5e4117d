from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from vit_pytorch.data import Augmentation, ImageData, Splits

# Lightning 2.6 asks for a class that torch 2.15 is about to drop.
pytestmark = pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning")

AUGMENTATION = Augmentation(shift=1, flip=0.5, mixup=0.3)


class Watcher(L.LightningModule):
    """Trains a linear layer and keeps every batch it is given."""

    def __init__(self, *, asks_for_steps: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 2)
        self.asks_for_steps = asks_for_steps
        self.seen: list[tuple[int, Tensor, Tensor]] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.seen.append((batch_idx, images, labels))
        return nn.functional.cross_entropy(self.layer(images.flatten(1)), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validated.append(batch[1])

    def configure_optimizers(self) -> Any:
        if self.asks_for_steps:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Saving(L.Callback):
    """Saves after one step, in one of the hooks in which ``ModelCheckpoint`` saves."""

    def __init__(self, folder: Path, step: int, hook: str) -> None:
        setattr(self, hook, self.save)
        self.path = folder / "stopped.ckpt"
        self.step = step

    def save(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def trainer(folder: Path, **options: Any) -> L.Trainer:
    return L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 3, "enable_checkpointing": False, **options},
    )


def data(splits: Splits, workers: int = 0) -> ImageData:
    return ImageData(splits, image_size=6, batch_size=8, workers=workers, augmentation=AUGMENTATION, seed=4)


@pytest.mark.parametrize("asks_for_steps", [False, True])
@pytest.mark.parametrize(
    ("workers", "stop", "hook"),
    [
        (0, 3, "on_train_batch_end"),
        (0, 5, "on_train_batch_end"),
        (0, 5, "on_validation_end"),
        (0, 5, "on_train_epoch_end"),
        (0, 10, "on_train_epoch_end"),
        (0, 7, "on_train_batch_end"),
        (2, 7, "on_train_batch_end"),
    ],
)
def test_interrupted_run_sees_the_batches_of_the_whole_one(
    tmp_path: Path, splits: Splits, workers: int, stop: int, hook: str, asks_for_steps: bool
) -> None:
    whole, before, after = (Watcher(asks_for_steps=asks_for_steps) for _ in range(3))
    trainer(tmp_path).fit(whole, data(splits))
    assert [number for number, _, _ in whole.seen] == [0, 1, 2, 3, 4] * 3

    trainer(tmp_path, max_steps=stop, callbacks=[Saving(tmp_path, stop, hook)]).fit(
        before, data(splits, workers)
    )
    trainer(tmp_path).fit(
        after, data(splits, workers), ckpt_path=str(tmp_path / "stopped.ckpt"), weights_only=True
    )

    seen = before.seen + after.seen
    assert len(before.seen) == stop
    assert len(seen) == len(whole.seen)
    for (number, images, labels), (other_number, other_images, other_labels) in zip(
        seen, whole.seen, strict=True
    ):
        assert number == other_number
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_each_validation_image_is_seen_once(tmp_path: Path, splits: Splits) -> None:
    module = Watcher()
    trainer(tmp_path).validate(module, data(splits), verbose=False)
    assert torch.equal(torch.cat(module.validated), splits.val.labels)


@pytest.mark.parametrize("use_distributed_sampler", [False, True])
def test_two_ranks_take_the_halves_of_one_process(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch, use_distributed_sampler: bool
) -> None:
    plain = {"image_size": 6, "augmentation": Augmentation(flip=0.5)}
    alone = list(ImageData(splits, batch_size=8, **plain).train_dataloader())
    halves = []
    for rank in range(2):
        module = ImageData(splits, batch_size=4, **plain)
        module.trainer = trainer(tmp_path, use_distributed_sampler=use_distributed_sampler)
        monkeypatch.setattr(type(module.trainer), "world_size", 2)
        monkeypatch.setattr(type(module.trainer), "global_rank", rank)
        halves.append(list(module.train_dataloader()))
    for (images, labels), left, right in zip(alone, *halves, strict=True):
        assert torch.equal(images, torch.cat([left[0], right[0]]))
        assert torch.equal(labels, torch.cat([left[1], right[1]]))


def test_attributes(splits: Splits) -> None:
    module = ImageData(splits, image_size=(6, 12))
    module.setup("fit")
    assert module.classes == ["even", "odd"]
    assert module.num_classes == 2
    assert module.channels == 1
    assert module.sizes == {"train": 40, "val": 5, "test": 7}
    assert module.preprocessing.image_size == (6, 12)
    assert ImageData(splits, channels=3).channels == 3
    images, _ = next(iter(module.test_dataloader()))
    assert images.shape == (7, 1, 6, 12)


def test_digits_by_name() -> None:
    module = ImageData("digits", image_size=8, batch_size=100, val_fraction=0.2)
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (100, 1, 8, 8)
    assert labels.dtype == torch.long
    assert abs(module.sizes["val"] - 0.2 * 0.8 * 1797) < 6


def test_no_test_split(splits: Splits) -> None:
    module = ImageData(Splits(splits.classes, splits.train, splits.val), image_size=6)
    with pytest.raises(ValueError, match="the data has no test split; it has train, val"):
        module.test_dataloader()


def test_skipped_images_are_reported(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    make_folder(tmp_path / "train", cat=4, dog=4)
    make_folder(tmp_path / "val", cat=4, dog=4)
    bad = [tmp_path / "train" / "cat" / "001.png", tmp_path / "val" / "dog" / "002.png"]
    for path in bad:
        path.write_bytes(b"")
    module = ImageData(str(tmp_path), image_size=6, on_bad="skip")
    with pytest.warns(UserWarning, match="skipped bad image"):
        counts = [
            sum(len(images) for images, _ in loader)
            for loader in (module.train_dataloader(), module.val_dataloader())
        ]
    assert counts == [7, 7]
    assert module.bad == {str(path): "the file is empty" for path in bad}


def test_images_are_not_shifted_out_of_sight() -> None:
    with pytest.raises(ValueError, match="shift must be below the image's sides 8 x 12, got 8"):
        ImageData("digits", image_size=(8, 12), augmentation=Augmentation(shift=8))


def test_unknown_choice_for_bad_images() -> None:
    with pytest.raises(ValueError, match="on_bad must be 'stop' or 'skip', got 'ignore'"):
        ImageData(on_bad="ignore")  # type: ignore[arg-type]
