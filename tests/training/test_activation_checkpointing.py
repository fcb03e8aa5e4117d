"""Blocks that are computed again in the backward pass: the losses are the same, whatever else is on."""

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.training.toy import ToyImages, train, vit_task
from vit_pytorch.training.task import Classifier

COMPILE = torch.compile


def attention_calls(task: Classifier) -> list[bool]:
    """Note each call of the first block's attention, and whether gradients were on."""
    calls: list[bool] = []
    task.model.blocks[0].attention.register_forward_hook(  # type: ignore[union-attr,index]
        lambda *_: calls.append(torch.is_grad_enabled())
    )
    return calls


@pytest.mark.parametrize("ema", [None, 0.9])
def test_losses_are_the_same(tmp_path: Path, ema: float | None) -> None:
    kept, recomputed = vit_task(), vit_task()
    calls, more_calls = attention_calls(kept), attention_calls(recomputed)
    options = {"data": ToyImages(), "epochs": 2, "ema": ema, "accumulate": 2}
    losses = train(tmp_path / "kept", task=kept, **options)
    again = train(tmp_path / "again", task=recomputed, activation_checkpointing=True, **options)
    assert again.train == pytest.approx(losses.train, abs=1e-6, rel=0)
    assert again.val == pytest.approx(losses.val, abs=1e-6, rel=0)
    # twice in training, once in validation
    assert sum(calls) == 12
    assert sum(more_calls) == 24
    assert len(more_calls) - sum(more_calls) == len(calls) - sum(calls) == 4


def test_with_compilation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend="aot_eager"))
    torch.compiler.reset()
    options = {"data": ToyImages(), "epochs": 1, "activation_checkpointing": True}
    # compiled code draws other random numbers
    losses = train(tmp_path / "eager", task=vit_task(noise=0.0), **options)
    compiled = train(tmp_path / "compiled", task=vit_task(noise=0.0), compiled=True, **options)
    assert compiled.train == pytest.approx(losses.train, abs=1e-6, rel=0)


def test_a_model_without_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ToyModel has no layers whose activations can be recomputed"):
        train(tmp_path, activation_checkpointing=True)
