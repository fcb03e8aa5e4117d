import logging
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.training.toy import At, ShuffledLoader, ToyData, make_loop, toy_task, train
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.checkpoints import checkpoint_weights, list_checkpoints, read_checkpoint
from vit_pytorch.training.keeper import Checkpoints
from vit_pytorch.training.loop import Loop
from vit_pytorch.training.losses import NonFiniteError
from vit_pytorch.training.problems import check_targets
from vit_pytorch.training.resume import fit
from vit_pytorch.training.task import Batch, Classifier


class Constant(nn.Module):
    """Logits that are the images themselves."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scale = nn.Parameter(torch.ones(1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale


def measure(
    folder: Path, logits: Tensor, labels: Tensor, batch_size: int, **settings: Any
) -> dict[str, float]:
    """Validate a model that gives these logits."""
    data = ToyData()
    data.val_dataloader = lambda: DataLoader(TensorDataset(logits, labels), batch_size)  # type: ignore[method-assign]
    task = Classifier(Constant(logits.shape[1]), **settings)
    return make_loop(folder, task, data, epochs=5).validate()


def test_measures_of_a_known_model(tmp_path: Path) -> None:
    logits = torch.eye(7).roll(1, 1) * 3 + torch.eye(7) * 2
    labels = torch.tensor([0, 1, 2, 4, 5, 6, -100])
    measured = measure(tmp_path, logits, labels, 7)

    assert measured["val/loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
    assert measured["val/objective"] == measured["val/loss"]
    assert measured["val/accuracy"] == pytest.approx(3 / 6)
    assert measured["val/accuracy_top5"] == 1.0


def test_validation_loss_is_the_mean_over_labels_that_count(tmp_path: Path) -> None:
    logits, labels = torch.randn(10, 4), torch.tensor([0, 1, 2, 3, 0, -100, -100, -100, 1, 2])
    measured = measure(tmp_path, logits, labels, 4, label_smoothing=0.3)
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


class SoftLoader(ShuffledLoader):
    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        for images, labels in super()._batches():
            mixed = (nn.functional.one_hot(part, 4).float() for part in (labels, labels.flip(0)))
            yield images, 0.75 * next(mixed) + 0.25 * next(mixed)


class SoftData(ToyData):
    def train_dataloader(self) -> ShuffledLoader:
        return SoftLoader(self.train_set, 8, self.noise)


def test_soft_targets_train(tmp_path: Path) -> None:
    losses = train(tmp_path, data=SoftData())
    assert all(math.isfinite(loss) for loss in losses.train.values())
    assert losses.val["3.5"] < losses.val["0.5"]


class Norms(Callback):
    """Norms of the gradients before each step."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_step_start(self, loop: Loop) -> None:
        gradients = [p.grad for p in loop.task.parameters() if p.grad is not None]
        self.norms.append(float(nn.utils.get_total_norm(gradients)))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_gradients_are_clipped(tmp_path: Path, precision: str) -> None:
    norms = Norms()
    train(tmp_path, norms, epochs=1, clip=1e-3, precision=precision)
    assert norms.norms == pytest.approx([1e-3] * 6, rel=1e-2)


@pytest.mark.parametrize("clip", [0.5, None])
def test_training_under_a_gradient_scaler(tmp_path: Path, clip: float | None) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    half = MixedPrecision("16-mixed", "cpu", scaler)
    losses = train(tmp_path / "whole", epochs=3, clip=clip, plugins=[half])
    assert losses.val["2.5"] < losses.val["0.5"]
    # the scale is a part of the checkpoint
    fresh = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=1))
    resumed = train(
        tmp_path / "again", epochs=3, clip=clip, plugins=[fresh], resume=tmp_path / "whole" / "epoch-0002"
    )
    assert resumed.train == {when: losses.train[when] for when in resumed.train}
    assert fresh.scaler is not None
    assert fresh.scaler.get_growth_interval() == scaler.get_growth_interval()
    assert fresh.scaler.get_scale() == scaler.get_scale() == 256.0


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_averages_in_every_precision(tmp_path: Path, precision: str) -> None:
    """The average is kept in at least single precision: in bf16 it would not move."""
    losses = train(tmp_path / "whole", precision=precision, ema=0.998, keep=9)
    assert losses.val["3.5"] < losses.val["0.5"]
    saved = read_checkpoint(tmp_path / "whole" / "last")
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]
    assert {value.dtype for value in saved["current_model_state"].values()} == {dtype}
    assert {value.dtype for value in saved["state_dict"].values()} == {
        torch.promote_types(dtype, torch.float32)
    }
    checkpoint = tmp_path / "whole" / "epoch-0002"
    resumed = train(tmp_path / "again", precision=precision, ema=0.998, resume=checkpoint)
    assert len(resumed.val) == 2
    assert resumed.val == {when: losses.val[when] for when in resumed.val}
    assert resumed.train == {when: losses.train[when] for when in resumed.train}


def test_every_group_has_its_rate(tmp_path: Path) -> None:
    """Relative to the schedule's; a resumed run takes the rate that its settings say."""
    task = toy_task()
    loop = make_loop(tmp_path, task, ToyData(), epochs=2)
    fit(loop)
    rates = {group["lr"] for group in loop.optimizer.param_groups}
    assert rates == {0.01 * 0.9**layer * loop.schedule(11) for layer in (0, 1, 2, 3)}
    slower = toy_task()
    slower.optimizer_config = replace(slower.optimizer_config, lr=0.005, weight_decay=0.3)
    resumed = make_loop(tmp_path, slower, ToyData(), epochs=3)
    fit(resumed, tmp_path / "last")
    groups = resumed.optimizer.param_groups
    assert max(group["lr"] for group in groups) == 0.005 * resumed.schedule(17)
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}


def test_best_and_last_are_kept(tmp_path: Path) -> None:
    losses = train(tmp_path, epochs=6, dropout=0.0, monitor="val/accuracy", mode="max")
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
    train(tmp_path, epochs=2, ema=0.9)
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
    with caplog.at_level(logging.WARNING, logger="vit_pytorch.training.nan_guard"):
        losses = train(tmp_path, *changes, data=data, on_nonfinite="skip")
    assert math.isnan(losses.train[f"{epoch}.{batch}"])
    bad = [when for when, loss in losses.train.items() if not math.isfinite(loss)]
    assert len(bad) == 2
    assert f"epoch {epoch}: the loss of batch {batch} is nan; the step is left out (1 so far)" in caplog.text
    assert all(torch.isfinite(weight).all() for weight in checkpoint_weights(tmp_path / "last").values())
    assert read_checkpoint(tmp_path / "last")["callbacks"]["FiniteGuard"] == {"skipped": 2, "in_a_row": 0}


def test_a_skipped_step_changes_nothing(tmp_path: Path) -> None:
    """Neither weights nor moments nor their average; the schedule goes on."""
    loop = make_loop(tmp_path, toy_task(), ToyData(), epochs=1, ema=0.9, on_nonfinite="skip")
    before = {name: value.clone() for name, value in loop.task.state_dict().items()}
    for parameter in loop.task.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    loop.guard.note(0, torch.tensor(1.0))
    loop.take_step()
    assert (loop.guard.skipped, loop.step) == (1, 1)
    assert all(torch.equal(value, before[name]) for name, value in loop.task.state_dict().items())
    assert not loop.optimizer.state
    assert loop.average is not None
    assert loop.average.steps == 0
    assert all(parameter.grad is None for parameter in loop.task.parameters())


def test_skipping_has_an_end(tmp_path: Path) -> None:
    data = ToyData()
    data.train_set.tensors[0].fill_(math.nan)
    with pytest.raises(NonFiniteError, match="step 10, epoch 1"):
        train(tmp_path, data=data, on_nonfinite="skip")


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    class Ruin(Callback):
        def on_batch_end(self, loop: Loop, batch: Batch, metrics: dict[str, Any]) -> None:
            if loop.step == 12:
                loop.task.model.head.weight.data[0, 0] = math.inf

    with pytest.raises(NonFiniteError, match=r"weights are not finite after step 12 .*model\.head\.weight"):
        train(tmp_path, Ruin())
    assert [path.name for path in list_checkpoints(tmp_path)] == ["epoch-0001"]


@pytest.mark.parametrize("arguments", [{"mode": "up"}, {"keep": 0}, {"every_n_steps": 0}])
def test_impossible_checkpoints(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Checkpoints(tmp_path, **arguments)


def test_resuming_from_an_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a folder on a local disk, got the address"):
        train(tmp_path, resume="https://example.org/last.ckpt")  # type: ignore[arg-type]


def test_a_run_resumes_after_its_leftovers(tmp_path: Path) -> None:
    train(tmp_path, epochs=2)
    (tmp_path / ".epoch-0003.tmp").mkdir()
    shutil.rmtree(tmp_path / "epoch-0001")
    train(tmp_path, epochs=4, resume=tmp_path / "last")
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "last").resolve().name == "epoch-0004"
