"""Numbers that are not finite get into no statistics, no average, no checkpoint and no prediction."""

import json
import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.training.toy import At, ToyData, ToyModel, make_loop
from vit_pytorch.cli import main
from vit_pytorch.create import load_model
from vit_pytorch.data import BadImageError
from vit_pytorch.data.volumes import decode_volume
from vit_pytorch.preprocessing import Preprocessing, VolumeConfig
from vit_pytorch.training.checkpoints import checkpoint_weights, list_checkpoints, read_checkpoint
from vit_pytorch.training.history import History, read_rows
from vit_pytorch.training.losses import NonFiniteError, balanced_weights
from vit_pytorch.training.optim import ScheduleConfig
from vit_pytorch.training.problems import Classification, MultiLabel, Problem, Regression
from vit_pytorch.training.resume import fit
from vit_pytorch.training.task import Classifier
from vit_pytorch.weights import CHECKSUM


class Normed(ToyModel):
    """The toy with batch norm in front."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(8)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.batch_norm(images))


def task() -> Classifier:
    torch.manual_seed(7)
    return Classifier(Normed(), schedule=ScheduleConfig(warmup_epochs=0))


class Spoil(At):
    """Makes one batch infinite."""

    def __init__(self, epoch: int, batch: int) -> None:
        super().__init__(epoch, batch, lambda: None)

    def on_batch_start(self, loop: Any, batch: Any) -> None:
        if (batch.epoch, batch.batch_idx) == self.when:
            batch.images.fill_(math.inf)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"ema": 0.9}])
def test_a_skipped_step_leaves_statistics_and_average(options: dict[str, Any], tmp_path: Path) -> None:
    """A loss that is not finite, with `--on_nonfinite skip` and batch norm.

    Here: statistics, average and mean loss stay finite; the step counts nowhere
    Others: by default Lightning and transformers' `Trainer` train on with NaN, save it and end with status 0;
        `Trainer` logs a loss of 0.0
    """
    history = History(tmp_path)
    loop = make_loop(
        tmp_path / "checkpoints",
        task(),
        ToyData(),
        epochs=2,
        on_nonfinite="skip",
        callbacks=[Spoil(0, 2), history],
        **options,
    )
    fit(loop)
    assert loop.guard.skipped == 1
    for path in list_checkpoints(tmp_path / "checkpoints"):
        saved = read_checkpoint(path)
        for state in (saved["state_dict"], saved.get("current_model_state", {})):
            assert all(value.isfinite().all() for value in state.values())
    seen = int(checkpoint_weights(tmp_path / "checkpoints" / "last")["batch_norm.num_batches_tracked"])
    # the batches of the step that was left out do not count
    assert seen == 12 - options.get("accumulate", 1)
    assert all(math.isfinite(row["train/loss"]) for row in read_rows(tmp_path / "metrics.csv"))


def test_buffers_are_checked_before_a_checkpoint(tmp_path: Path) -> None:
    """Buffers that are not finite.

    Here: no checkpoint of them is written; they are named
    Others: Lightning writes a checkpoint with NaN
    """
    trained = task()

    def spoil() -> None:
        trained.model.batch_norm.running_var[0] = math.nan  # type: ignore[union-attr, index]

    loop = make_loop(tmp_path, trained, ToyData(), epochs=3, callbacks=[At(1, 5, spoil)])
    with pytest.raises(NonFiniteError, match=r"not finite after step 12 .*model\.batch_norm\.running_var"):
        fit(loop)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["epoch-0001"]


def spoiled(run: Path, change: Any) -> None:
    """Change the weights of the classifier, without a checksum to find it by."""
    file = run / "model" / "model.safetensors"
    state = load_file(file)
    state["head.weight"] = change(state["head.weight"])
    save_file(state, file)
    config = json.loads((run / "model" / "config.json").read_text())
    del config[CHECKSUM]
    (run / "model" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.fill_(math.nan), r"must be finite, they are not in head\.weight"),
        (lambda weight: weight.fill_(math.inf), r"must be finite, they are not in head\.weight"),
        (lambda weight: weight.to(torch.int8), r"got head\.weight \(torch\.int8\)"),
        (lambda weight: weight > 0, r"got head\.weight \(torch\.bool\)"),
    ],
)
def test_weights_that_are_no_finite_numbers(change: Any, message: str, run: Path) -> None:
    """Weights that are NaN, infinite, int8 or bool.

    Here: refused by name
    Others: timm, transformers, Lightning and the public vit-pytorch load NaN and int8 without a word,
        timm and transformers bool, too
    """
    spoiled(run, change)
    with pytest.raises(ValueError, match=message):
        load_model(run)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_outputs_that_are_not_finite(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outputs that are not finite.

    Here: `vit predict` and `vit evaluate` refuse to give a figure
    Others: a model of timm, transformers, Lightning or the public vit-pytorch returns NaN
    """
    spoiled(run, lambda weight: weight.sign() * 3e38)
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / "x.png")
    capsys.readouterr()
    assert main([command, str(run), *([str(tmp_path / "x.png")] if command == "predict" else [])]) == 7
    shown = capsys.readouterr()
    assert "the model's outputs are not finite" in shown.err
    assert "nan" not in shown.out


def evaluated(problem: Problem, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    images = torch.zeros(len(outputs), 1, 2, 2)
    grey = Preprocessing((2, 2), 1, mean=(0.0,), std=(1.0,))
    return problem.evaluate([(outputs, targets, images)], grey).as_dict()


def test_figures_beyond_single_precision() -> None:
    """Outputs or true values in evaluation whose squares or differences are beyond single precision, as 1e38.

    Here: the figures are finite, and right
    Others: PyTorch's `cross_entropy` and torchmetrics' `mean_squared_error`: infinite
    """
    values = Regression(("x",), mean=(0.0,), std=(1.0,))
    found = evaluated(values, torch.zeros(2, 1), torch.tensor([[2e38], [-2e38]]))
    assert found["loss"] == pytest.approx(4e76)
    assert found["values"]["x"]["rmse"] == pytest.approx(2e38)
    logits = torch.tensor([[3e38, -3e38], [3e38, -3e38]])
    found = evaluated(Classification(("a", "b")), logits, torch.tensor([0, 1]))
    assert (found["loss"], found["accuracy"]) == (pytest.approx(3e38), 0.5)
    found = evaluated(MultiLabel(("a", "b")), logits, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert found["loss"] == pytest.approx(3e38)


@pytest.mark.parametrize(
    "logits",
    [
        [[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]],  # all right: the surer, the better
        [[-2.0, 0.0], [0.0, -1.0], [-3.0, 0.0]],  # all wrong: the less sure, the better
        [[0.0, 0.0]] * 3,
    ],
)
def test_a_temperature_that_validation_images_do_not_tell(logits: list[list[float]]) -> None:
    """Validation images, such as three, of which the probabilities cannot be calibrated.

    Here: the model has no temperature, and `--calibrated` is refused
    Others: no counterpart
    """
    batch = torch.tensor(logits)
    problem = Classification(("a", "b")).fitted([(batch, torch.tensor([0, 1, 0]), batch)])
    assert "temperature" not in problem.settings()
    with pytest.raises(ValueError, match="the model has no temperature"):
        problem.calibrated()


def test_a_label_that_all_images_have() -> None:
    """`--class_weights balanced` with a label that all training images have, which would weigh 0.

    Here: it weighs 1, and is learned
    Others: no counterpart
    """
    rows = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert balanced_weights(rows, 3).tolist() == [1.0, 1.0, 2.0]


def test_a_volume_beyond_single_precision(tmp_path: Path) -> None:
    """A volume with values from -3e38 to 3e38, whose difference is infinite in single precision.

    Here: a bad volume, named, instead of a loss that is NaN
    Others: no counterpart
    """
    voxels = np.linspace(-3e38, 3e38, 64, dtype=np.float32).reshape(4, 4, 4)
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "x.nii")
    with pytest.raises(BadImageError, match="further apart than single precision holds"):
        decode_volume(tmp_path / "x.nii", VolumeConfig(percentiles=(0, 100)), (4, 4, 4))
