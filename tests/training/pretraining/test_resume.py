"""A pretraining that was interrupted goes on as if nothing had happened; steps are counted right."""

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.training.pretraining.small import METHODS, few_digits, pretrain, settings
from tests.training.toy import At
from vit_pytorch.data import Splits
from vit_pytorch.training.checkpoints import checkpoint_weights
from vit_pytorch.training.pretraining.methods import centre_of, forget_step
from vit_pytorch.training.pretraining.run import build
from vit_pytorch.training.pretraining.task import Pretrainer


@pytest.fixture(scope="module")
def splits() -> Splits:
    return few_digits()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mae", {}),
        ("mae", {"precision": "bf16-mixed", "accumulate": 2, "batch_size": 32}),
        ("dino", {}),
        ("dino", {"precision": "bf16-mixed", "accumulate": 2, "batch_size": 32}),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, splits, method, options):
    """Losses and all weights, bit for bit: decoder, heads, teacher and centre among them."""
    precision = {"precision": options.pop("precision", "32-true")}
    config = settings(method, **options)
    whole, weights, _ = pretrain(tmp_path / "whole", config, splits=splits, **precision)
    stop = At(1, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        pretrain(tmp_path / "run", config, stop, splits=splits, **precision)
    assert left.value.code == 143
    last = tmp_path / "run" / "last"
    batch = 4 if config.accumulate == 2 else 3
    assert last.resolve().name == f"epoch-0001-batch-{batch:06}"
    resumed, again, _ = pretrain(
        tmp_path / "again", config, resume=last.resolve(), splits=splits, **precision
    )
    assert len(resumed.train) == 12 - batch
    assert resumed.train == {when: whole.train[when] for when in resumed.train}
    assert resumed.val == {when: whole.val[when] for when in resumed.val}
    assert again.keys() == weights.keys()
    assert all(value.equal(again[name]) for name, value in weights.items())
    saved = checkpoint_weights(tmp_path / "again" / "epoch-0003")
    assert all(value.equal(saved[name]) for name, value in weights.items())


@pytest.mark.parametrize("method", ["mae", "dino"])
def test_resumed_with_an_anchor(tmp_path: Path, splits, method):
    """The model that training starts from is read again, and the rest is equal bit for bit."""
    torch.manual_seed(5)
    build(settings(method), splits)[0].save_pretrained(tmp_path / "start")
    config = settings(method, weights=str(tmp_path / "start"), anchor=0.5)
    whole, weights, _ = pretrain(tmp_path / "whole", config, splits=splits)
    stop = At(1, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        pretrain(tmp_path / "run", config, stop, splits=splits)
    resumed, again, _ = pretrain(
        tmp_path / "again", config, resume=(tmp_path / "run" / "last").resolve(), splits=splits
    )
    assert resumed.train == {when: whole.train[when] for when in resumed.train}
    assert all(value.equal(again[name]) for name, value in weights.items())
    assert weights.keys() == checkpoint_weights(tmp_path / "again" / "epoch-0003").keys()


def test_masks_do_not_depend_on_what_else_is_random(tmp_path: Path, splits):
    """Another draw from the global generator in between changes dropout, which is off here, and no mask."""
    config = settings("mae", model={**settings("mae").model, "dropout": 0.0})
    draw = At(0, 2, lambda: torch.rand(3))
    first, *_ = pretrain(tmp_path / "first", config, splits=splits)
    second, *_ = pretrain(tmp_path / "second", config, draw, splits=splits)
    assert first.train == second.train
    assert len(set(first.train.values())) == len(first.train)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_teacher_moves_once_a_step(tmp_path: Path, splits, accumulate, monkeypatch):
    moves = []
    plain = METHODS["dino"]
    config = settings("dino", accumulate=accumulate, batch_size=16 * accumulate, epochs=2)
    assert config.method is plain

    def count(self, taken):
        before = int(self.model.steps)
        after_step(self, taken)
        moves.append(int(self.model.steps) - before)

    after_step = Pretrainer.after_step
    monkeypatch.setattr(Pretrainer, "after_step", count)
    _, _, loop = pretrain(tmp_path, config, splits=splits)
    # six batches an epoch, of which the last ones may be fewer than a step has
    per_epoch = -(-6 // accumulate)
    assert moves == [1] * (2 * per_epoch)
    assert int(loop.task.model.steps) == loop.step == 2 * per_epoch


def test_schedules_end_where_they_should(tmp_path: Path, splits):
    """Weight decay, momentum and temperature move with the step; what has no decay never gets any."""
    config = settings("dino", epochs=3)
    _, _, loop = pretrain(tmp_path, config, splits=splits)
    task, method = loop.task, loop.task.model
    assert method.teacher_temp(0) == 0.04
    assert method.teacher_temp(12) == method.teacher_temp(18) == pytest.approx(0.07)
    assert method.decay(0) == 0.9
    assert method.decay(18) == 1.0
    assert method.freeze_last_layer == 3
    assert task.weight_decay(0) == pytest.approx(0.05)
    assert task.weight_decay(18) == pytest.approx(0.4)
    decays = {group["weight_decay"] for group in loop.optimizer.param_groups}
    assert decays == {0.0, task.weight_decay(17)}
    free = {
        id(parameter)
        for group in loop.optimizer.param_groups
        if not group["weight_decay"]
        for parameter in group["params"]
    }
    net = method.student.net
    assert {id(net.positions.table), id(net.prefix.class_token)} <= free
    assert id(net.patch_embed.proj.weight) not in free


def test_a_step_that_is_left_out_leaves_no_trace(tmp_path: Path, splits, caplog):
    """Neither in the teacher nor in the centre, which has noted logits that are no numbers."""

    class Spoil(At):
        def on_batch_start(self, loop, batch):
            if (batch.epoch, batch.batch_idx) == self.when:
                batch.images.fill_(float("nan"))

    seen = {}

    class Look(At):
        def on_batch_start(self, loop, batch):
            if batch.epoch == 0 and batch.batch_idx in (2, 3):
                state = loop.task.model.state_dict()
                seen[batch.batch_idx] = {
                    name: value.clone() for name, value in state.items() if name != "steps"
                }

    nothing = lambda: None  # noqa: E731
    config = settings("dino", epochs=1, schedule=settings("dino").schedule)
    _, weights, loop = pretrain(
        tmp_path, config, Look(0, 0, nothing), Spoil(0, 2, nothing), splits=splits, on_nonfinite="skip"
    )
    assert "the step is left out (1 so far)" in caplog.text
    assert all(value.equal(seen[3][name]) for name, value in seen[2].items())
    assert all(value.isfinite().all() for value in weights.values())
    assert int(loop.task.model.steps) == 6
    assert centre_of(loop.task.model).total.sum() == 0


def test_forgetting_a_step_empties_both_centres_of_esvit():
    from vit_pytorch.training.pretraining.run import build

    _, _, method = build(settings("esvit"), few_digits())
    method.train()
    method(torch.rand(4, 1, 12, 12)).backward()
    assert method.criterion.region_centre.total.any()
    forget_step(method)
    assert not method.criterion.region_centre.total.any()
    assert not centre_of(method).total.any()
    assert int(method.steps) == 1
