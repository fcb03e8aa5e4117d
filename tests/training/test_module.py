import logging
import math
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.training.toy import QUIET, At, Losses, ToyData, toy_module, train
from vit_pytorch.training.callbacks import Checkpoints
from vit_pytorch.training.checkpoints import checkpoint_weights, list_checkpoints, read_checkpoint
from vit_pytorch.training.finite import FiniteGuard, NonFiniteError
from vit_pytorch.training.module import Classifier, check_targets
from vit_pytorch.training.trainer import fit, make_trainer


class Constant(nn.Module):
    """Logits that are the images themselves."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scale = nn.Parameter(torch.ones(1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale


def test_measures_of_a_known_model() -> None:
    logits = torch.eye(7).roll(1, 1) * 3 + torch.eye(7) * 2
    labels = torch.tensor([0, 1, 2, 4, 5, 6, -100])
    trainer = L.Trainer(logger=False, **QUIET)
    loader = DataLoader(TensorDataset(logits, labels), batch_size=7)
    (measured,) = trainer.validate(Classifier(Constant(7)), loader, verbose=False)

    assert measured["val/loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
    assert measured["val/objective"] == measured["val/loss"]
    assert measured["val/accuracy"] == pytest.approx(3 / 6)
    assert measured["val/accuracy_top5"] == 1.0


def test_validation_loss_is_the_mean_over_labels_that_count() -> None:
    logits, labels = torch.randn(10, 4), torch.tensor([0, 1, 2, 3, 0, -100, -100, -100, 1, 2])
    trainer = L.Trainer(logger=False, **QUIET)
    loader = DataLoader(TensorDataset(logits, labels), batch_size=4)
    (measured,) = trainer.validate(Classifier(Constant(4), label_smoothing=0.3), loader, verbose=False)
    assert measured["val/loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-6)
    smoothed = nn.functional.cross_entropy(logits, labels, label_smoothing=0.3)
    assert measured["val/objective"] == pytest.approx(float(smoothed), rel=1e-6)
    assert "val/accuracy_top5" not in measured


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 3, 4]), r"labels must be in 0\.\.3 or -100 \(ignored\), got 4"),
        (torch.tensor([0, -1, 3]), r"labels must be in 0\.\.3 or -100 \(ignored\), got -1"),
        (torch.full((5,), -100), r"all 5 are -100 \(ignored\)"),
        (torch.zeros(5, 1, dtype=torch.long), r"labels have the shape \(batch,\).*got \(5, 1\)"),
        (torch.zeros(0, dtype=torch.long), r"at least one of them, got \(0,\)"),
        (torch.zeros(5, 3), r"\(batch, 4\), got \(5, 3\)"),
    ],
)
def test_impossible_targets(targets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_targets(targets, 4)


def test_targets_that_count() -> None:
    assert check_targets(torch.tensor([0, -100, 3]), 4) == 2
    assert check_targets(torch.tensor([0, 1], dtype=torch.int32), 4) == 2
    assert check_targets(torch.full((3, 4), 0.25), 4) == 3


def test_a_label_out_of_range_stops_the_training(tmp_path: Path) -> None:
    def edit(images: Tensor, labels: Tensor) -> None:
        labels[40] = 9

    with pytest.raises(ValueError, match=r"labels must be in 0\.\.3 .* got 9"):
        train(tmp_path, data=ToyData(edit=edit))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": Constant(1)}, "at least 2 classes, the model has 1"),
        ({"model": Constant(3), "label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_classifiers(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(**arguments)


class SoftData(ToyData):
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        images, labels = batch
        if self.trainer.training:
            labels = nn.functional.one_hot(labels, 4) * 0.75 + nn.functional.one_hot(labels.flip(0), 4) * 0.25
        return images, labels


def test_soft_targets_train(tmp_path: Path) -> None:
    losses = train(tmp_path, data=SoftData())
    assert all(math.isfinite(loss) for loss in losses.train.values())
    assert losses.val["3.5"] < losses.val["0.5"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped(precision: str) -> None:
    norms: list[float] = []

    class Norms(L.Callback):
        def on_before_zero_grad(self, *_: Any) -> None:
            norms.append(
                float(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))
            )

    module = toy_module()
    options = {**QUIET, "max_epochs": 1, "gradient_clip_val": 1e-3, "enable_checkpointing": False}
    L.Trainer(logger=False, callbacks=[Norms()], precision=precision, **options).fit(module, ToyData())  # type: ignore[arg-type]
    assert norms[1:] == pytest.approx([1e-3] * 5, rel=1e-2)


def test_clipping_under_a_gradient_scaler() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    half = MixedPrecision("16-mixed", "cpu", scaler)
    options = {**QUIET, "max_epochs": 2, "gradient_clip_val": 0.5, "enable_checkpointing": False}
    losses, module = Losses(), toy_module()
    L.Trainer(logger=False, plugins=[half], callbacks=[losses], **options).fit(module, ToyData())
    assert losses.val["1.5"] < losses.val["0.5"]


def test_best_and_last_are_kept(tmp_path: Path) -> None:
    losses = train(tmp_path, max_epochs=6, dropout=0.0, monitor="val/accuracy", mode="max")
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names[-2:] == ["epoch-0005", "epoch-0006"]
    assert (tmp_path / "last").resolve().name == "epoch-0006"
    state = read_checkpoint(tmp_path / "last")["callbacks"]["Checkpoints"]
    assert state["best"] == (tmp_path / "best").resolve().name
    assert set(names) == {"epoch-0005", "epoch-0006", state["best"]}
    assert len(losses.val) == 6


def test_a_monitor_that_is_not_logged_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"chosen by 'val/f1', but validation logged .*val/accuracy"):
        train(tmp_path, monitor="val/f1")


def test_averaged_weights_are_those_that_are_saved(tmp_path: Path) -> None:
    train(tmp_path, max_epochs=2, ema_decay=0.9)
    saved, checkpoint = checkpoint_weights(tmp_path / "last"), read_checkpoint(tmp_path / "last")
    current = checkpoint["current_model_state"]
    assert saved.keys() == {name.removeprefix("model.") for name in current}
    assert any(not torch.equal(saved[name], current[f"model.{name}"]) for name in saved)


def where_spoiled() -> tuple[int, int]:
    """Epoch and batch in which the spoiled sample comes first."""
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1001)).tolist()
    return 1, order.index(45) // 8


def spoiled() -> tuple[ToyData, list[At]]:
    """Data of which one sample is not a number in epoch 1 and early in epoch 2, and what makes it so."""
    data = ToyData(noise=0.0)
    images = data.train_set.tensors[0]
    clean = images[45].clone()

    def set_to(value: Any) -> Any:
        return lambda: images[45].copy_(value)

    return data, [At(1, 0, set_to(torch.tensor(math.nan))), At(2, 5, set_to(clean))]


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    data, changes = spoiled()
    epoch, batch = where_spoiled()
    message = rf"step {6 + batch}, epoch {epoch}: the loss of batch {batch} is nan; the step was not taken"
    with pytest.raises(NonFiniteError, match=message):
        train(tmp_path, *changes, data=data)
    for path in list_checkpoints(tmp_path):
        assert all(torch.isfinite(weight).all() for weight in checkpoint_weights(path).values())
    assert (tmp_path / "last").resolve().name == "epoch-0001"


def test_a_loss_that_is_not_finite_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, changes = spoiled()
    epoch, batch = where_spoiled()
    with caplog.at_level(logging.WARNING, logger="vit_pytorch.training.finite"):
        losses = train(tmp_path, *changes, data=data, on_nonfinite="skip")
    assert math.isnan(losses.train[f"{epoch}.{batch}"])
    bad = [when for when, loss in losses.train.items() if not math.isfinite(loss)]
    assert len(bad) == 2
    assert f"epoch {epoch}: the loss of batch {batch} is nan; the step is left out (1 so far)" in caplog.text
    assert all(torch.isfinite(weight).all() for weight in checkpoint_weights(tmp_path / "last").values())
    assert read_checkpoint(tmp_path / "last")["callbacks"]["FiniteGuard"] == {"skipped": 2, "in_a_row": 0}


def test_a_skipped_step_changes_nothing() -> None:
    module = toy_module()
    trainer = L.Trainer(logger=False, **QUIET)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    guard = FiniteGuard("skip")
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    guard.on_before_optimizer_step(trainer, module, optimizer)
    optimizer.step()
    assert guard.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not optimizer.state


def test_skipping_has_an_end(tmp_path: Path) -> None:
    data = ToyData()
    data.train_set.tensors[0].fill_(math.nan)
    with pytest.raises(NonFiniteError, match="step 10, epoch 1"):
        train(tmp_path, data=data, on_nonfinite="skip", num_sanity_val_steps=0)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    class Ruin(At):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            if trainer.global_step == 12:
                module.model.head.weight.data[0, 0] = math.inf  # type: ignore[union-attr, operator, index]

    with pytest.raises(NonFiniteError, match=r"weights are not finite after step 12 .*model\.head\.weight"):
        train(tmp_path, Ruin(0, 0, lambda: None))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["epoch-0001"]


def test_fit_wants_its_own_trainer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a trainer from make_trainer"):
        fit(L.Trainer(logger=False, **QUIET), toy_module(), ToyData())
    with pytest.raises(ValueError, match="max_steps is 5"):
        fit(make_trainer(tmp_path, max_epochs=2, max_steps=5, **QUIET), toy_module(), ToyData())


@pytest.mark.parametrize("arguments", [{"mode": "up"}, {"keep": 0}, {"every_n_steps": 0}])
def test_impossible_checkpoints(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Checkpoints(tmp_path, **arguments)


def test_resuming_from_an_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a folder on a local disk, got the address"):
        train(tmp_path, ckpt_path="https://example.org/last.ckpt")  # type: ignore[arg-type]


def test_a_run_resumes_after_its_leftovers(tmp_path: Path) -> None:
    train(tmp_path, max_epochs=2)
    (tmp_path / ".epoch-0003.tmp").mkdir()
    shutil.rmtree(tmp_path / "epoch-0001")
    train(tmp_path, max_epochs=4, ckpt_path=tmp_path / "last")
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "last").resolve().name == "epoch-0004"
