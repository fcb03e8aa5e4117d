"""The moving average of weights and of batch norm's statistics, and that it is what is used."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.toy import Losses, ToyData, make_loop
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.checkpoints import checkpoint_weights, read_checkpoint
from vit_pytorch.training.ema import average
from vit_pytorch.training.loop import Loop
from vit_pytorch.training.optim import OptimizerConfig, ScheduleConfig
from vit_pytorch.training.resume import fit
from vit_pytorch.training.task import Batch, Classifier

DECAY = 0.8


class Normed(nn.Module):
    """A model with statistics, a counter and a constant among its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 4
        # No bias: batch norm removes it, so that its gradient is rounding noise, which Adam scales up.
        self.layer = nn.Linear(8, 16, bias=False)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 4)
        self.register_buffer("constant", torch.tensor([0.1, 1 / 3]), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(images)).relu()) * self.constant.sum()


class Live(Callback):
    """The state of the model that is trained after each step."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_batch_end(self, loop: Loop, batch: Batch, metrics: dict[str, Any]) -> None:
        self.states.append({name: value.clone() for name, value in loop.task.model.state_dict().items()})


def train(folder: Path, live: Live | None = None, resume: Path | None = None) -> Losses:
    torch.manual_seed(7)
    task = Classifier(Normed(), optimizer=OptimizerConfig(lr=0.05), schedule=ScheduleConfig(warmup_epochs=0))
    losses = Losses()
    callbacks = [losses, *([live] if live is not None else [])]
    fit(make_loop(folder, task, ToyData(), epochs=3, keep=9, ema=DECAY, callbacks=callbacks), resume)
    return losses


def test_the_average_follows_fast_at_first_and_has_its_decay_later() -> None:
    for steps, expected in ((0, 0.9), (10_000, 0.01)):
        averaged = [torch.zeros(2), torch.zeros(1)]
        average(averaged, [torch.ones(2), torch.ones(1)], steps, decay=0.99)
        assert [value.tolist() for value in averaged] == [
            pytest.approx([expected] * 2),
            pytest.approx([expected]),
        ]


def test_integers_are_not_averaged() -> None:
    averaged = [torch.tensor(3), torch.tensor([5, 7])]
    average(averaged, [torch.tensor(4), torch.tensor([9, 7])], 100, decay=0.99)
    assert [value.tolist() for value in averaged] == [4, [9, 7]]


def test_weights_and_statistics_are_averaged_over_the_steps(tmp_path: Path) -> None:
    live = Live()
    train(tmp_path, live)
    saved, last = checkpoint_weights(tmp_path / "last"), live.states[-1]
    expected = {name: value.double() for name, value in live.states[0].items()}
    for seen, state in enumerate(live.states[1:], start=1):
        decay = min(DECAY, (1 + seen) / (10 + seen))
        expected = {name: decay * mean + (1 - decay) * state[name] for name, mean in expected.items()}
    assert len(live.states) == 18
    assert saved.pop("norm.num_batches_tracked") == last["norm.num_batches_tracked"] == 18
    assert {"norm.running_mean", "norm.running_var", "norm.weight", "layer.weight"} <= saved.keys()
    for name, value in saved.items():
        assert torch.allclose(value.double(), expected[name], atol=1e-6), name
        assert not torch.allclose(value, last[name], atol=1e-3), name


def test_validation_uses_the_averaged_statistics_and_training_does_not(tmp_path: Path) -> None:
    live = Live()
    losses = train(tmp_path, live)
    images, labels = (tensor[:16] for tensor in ToyData().train_set.tensors)

    def loss(state: dict[str, Tensor]) -> float:
        model = Normed().eval()
        model.load_state_dict(state)
        return nn.functional.cross_entropy(model(images), labels).item()

    apart = []
    for epoch in range(3):
        averaged = checkpoint_weights(tmp_path / f"epoch-{epoch + 1:04}")
        current = live.states[6 * epoch + 5]
        assert losses.val[f"{epoch}.5"] == pytest.approx(loss(averaged), rel=1e-5)
        mixed = {name: current[name] if "running" in name else value for name, value in averaged.items()}
        apart.append(abs(loss(mixed) / losses.val[f"{epoch}.5"] - 1))
        kept = read_checkpoint(tmp_path / f"epoch-{epoch + 1:04}")["current_model_state"]
        assert all(torch.equal(kept[f"model.{name}"], value) for name, value in current.items())
    # In one epoch two losses may be equal by chance, but not in all of them.
    assert max(apart) > 1e-3


def test_a_resumed_average_goes_on_exactly(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    resumed = train(tmp_path / "again", resume=tmp_path / "whole" / "epoch-0002")
    assert resumed.val == {"2.5": whole.val["2.5"]}
    weights, again = (checkpoint_weights(tmp_path / name / "epoch-0003") for name in ("whole", "again"))
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
