"""Compiled networks train; what cannot be compiled as a whole is compiled block by block, with a notice."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.toy import ToyData, make_loop, toy_task, train
from vit_pytorch.training.resume import fit

COMPILE = torch.compile


def use_backend(monkeypatch: pytest.MonkeyPatch, largest: int) -> list[int]:
    """Compile by tracing alone, and refuse graphs of more nodes; gives the sizes of the others."""
    sizes: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        if len(graph.graph.nodes) > largest:
            raise RuntimeError("too large")
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend=backend))
    torch.compiler.reset()
    return sizes


def test_the_whole_network_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = use_backend(monkeypatch, 10_000)
    plain = train(tmp_path / "plain", dropout=0.0, ema=0.9, epochs=2)
    assert not sizes
    compiled = train(tmp_path / "compiled", dropout=0.0, ema=0.9, epochs=2, compiled=True)
    assert len(sizes) == 1
    assert compiled.train == pytest.approx(plain.train, abs=1e-5)
    assert compiled.val == pytest.approx(plain.val, abs=1e-5)


# torch, while it traces
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_blocks_are_compiled_where_the_whole_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = use_backend(monkeypatch, 6)
    plain = train(tmp_path / "plain", dropout=0.0, epochs=1)
    loop = make_loop(tmp_path / "run", toy_task(0.0), ToyData(), epochs=1, compiled=True)
    torch.manual_seed(99)
    keys = set(loop.task.state_dict())
    fit(loop)
    assert sizes
    assert max(sizes) <= 6
    assert "the model cannot be compiled as a whole, its blocks are: " in caplog.text
    assert "too large" in caplog.text
    assert set(loop.task.state_dict()) == keys
    assert loop.validate()["val/loss"] == pytest.approx(plain.val["0.5"], abs=1e-5)
