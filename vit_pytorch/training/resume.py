"""What a checkpoint holds of a training, and how a training goes on from it, bit for bit."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vit_pytorch.training.checkpoints import Checkpoint, read_checkpoint, upgrade_checkpoint
from vit_pytorch.training.engine import gathered, load_optimizer, load_weights, process_states
from vit_pytorch.training.random_state import get_random_state
from vit_pytorch.training.shards import Place
from vit_pytorch.training.signals import Interrupted

if TYPE_CHECKING:
    from vit_pytorch.training.loop import Loop

logger = logging.getLogger(__name__)


def collect_state(loop: Loop) -> dict[str, Any]:
    """Collect what a checkpoint holds, sharded where the weights are; all processes take part."""
    live = loop.task.state_dict()
    state = {
        # the epoch that had begun last, from 0
        "epoch": loop.epoch if loop.batch else loop.epoch - 1,
        "global_step": loop.step,
        "batch": loop.batch,
        "epoch_done": not loop.batch,
        "state_dict": live,
        "optimizer_states": [loop.optimizer.state_dict()],
        "scaler": loop.fabric.strategy.precision.state_dict(),
        "loader": loop.train_loader.state_dict(),
        "callbacks": {type(part).__name__: part.state_dict() for part in _parts(loop)},
        "random_states": process_states(loop.fabric, get_random_state()),
    }
    if loop.average is None:
        return state
    averaged = {"state_dict": loop.average.state_dict(), "current_model_state": live}
    return {**state, **averaged, "averaging_state": {"n_averaged": loop.average.steps}}


def resume_from(loop: Loop, path: str | os.PathLike[str] | Checkpoint) -> None:
    """Go on from a checkpoint; what was verified already is not verified again.

    Raises:
        CheckpointError: if it is damaged or unsafe
        ValueError: if it stands in an epoch whose batches are others
    """
    saved = upgrade_checkpoint(read_checkpoint(path, like=_places(loop)))
    done = saved["epoch_done"]
    loop.epoch, loop.batch = saved["epoch"] + done, 0 if done else saved["batch"]
    loop.step = saved["global_step"]
    if loop.average is not None and "averaging_state" in saved:
        averaged = saved["state_dict"]
        if averaged.keys() != loop.task.state_dict().keys():
            # names of version 0.1, which the model translates
            load_weights(loop.task, averaged)
            averaged = gathered(loop.task.state_dict())
        loop.average.load_state_dict(averaged, int(saved["averaging_state"]["n_averaged"]))
    load_weights(loop.task, saved.get("current_model_state", saved["state_dict"]))
    load_optimizer(loop.optimizer, saved["optimizer_states"][0])
    if saved["scaler"]:
        loop.fabric.strategy.precision.load_state_dict(saved["scaler"])
    if ("averaging_state" in saved) != (loop.average is not None):
        what = "averages no weights" if loop.average is None else "begins a new average of the weights"
        logger.warning("the run that goes on %s, unlike the one that wrote the checkpoint", what)
    loop.train_loader.load_state_dict(saved["loader"])
    loop.resumed_states = saved["random_states"]
    for part in _parts(loop):
        if (state := saved["callbacks"].get(type(part).__name__)) is not None:
            part.load_state_dict(state)
    loop.checkpoints.resume_at(loop.step)


def _places(loop: Loop) -> Callable[[Place], Tensor | None]:
    """Return what finds the weight of a loop as which a tensor at some place in a checkpoint is cut."""
    weights = loop.task.state_dict()
    parameters = [p for group in loop.optimizer.param_groups for p in group["params"]]

    def find(place: Place) -> Tensor | None:
        if place[0] == "optimizer_states":
            # of the first optimizer, in its state, a parameter's number
            return parameters[int(place[3])] if int(place[3]) < len(parameters) else None
        return weights.get(str(place[1]))

    return find


def _parts(loop: Loop) -> list[Any]:
    """Return what has a state of its own in checkpoints."""
    return [*loop.callbacks, loop.guard, loop.checkpoints]


def fit(loop: Loop, resume: str | os.PathLike[str] | Checkpoint | None = None) -> None:
    """Train; stop with a checkpoint and the right exit status when a signal asks for it.

    On SIGTERM, SIGHUP or Ctrl-C the current step is finished (at the end of an epoch, or inside a validation,
    that validation too), a checkpoint is written, and the process leaves. A second signal acts at once.

    Args:
        loop: the training
        resume: the checkpoint to go on from, or its folder

    Raises:
        SystemExit: with status 143 after SIGTERM, 129 after SIGHUP, 130 after Ctrl-C
    """
    try:
        with loop.checkpoints.signals:
            if resume is not None:
                resume_from(loop, resume)
            loop.run()
    except Interrupted as stop:
        first = loop.fabric.is_global_zero
        if first:
            print(stop, file=sys.stderr)
        # Fabric kills the first process as soon as it sees another one leave with a failure
        raise SystemExit(stop.exit_status if first else 0) from None
    except KeyboardInterrupt:
        print(f"interrupted at once; of the checkpoints {loop.checkpoints.latest()}", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        loop.call("on_train_end")
