"""What models are timed with: turns, ratios and their spread, the processes."""

import io
import json
import sys

import pytest
import torch

from vit_pytorch.export.bench_worker import count_flops
from vit_pytorch.export.timing import Cell, Ratio, make_step, ratio, serve, spread, time_in_turn
from vit_pytorch.registry import find_entry


class Recorded:
    """A worker whose answers are known."""

    def __init__(self, name: str, seconds: list[float], log: list[str]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def ask(self, **request):
        self.log.append(self.name)
        return {"seconds": [self.seconds.pop(0), 9.0][: request["steps"]], "peak_mib": 1.0}


def test_turns_go_forwards_and_backwards():
    log: list[str] = []
    workers = {"a": Recorded("a", [7.0, 1.0, 2.0], log), "b": Recorded("b", [7.0, 3.0, 4.0], log)}
    times, answers = time_in_turn(workers, Cell("forward", "float32", 8), rounds=2)
    assert times == {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    assert log == ["a", "b", "a", "b", "b", "a"]
    assert answers["a"]["peak_mib"] == 1.0


def test_ratios_are_of_rounds():
    found = ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.0])
    assert found == Ratio(2.0, pytest.approx(0.1), rounds=3)
    assert found.is_clear
    assert not Ratio(1.05, 0.06, rounds=3).is_clear
    assert Ratio(0.9, 0.05, rounds=3).is_clear
    assert not ratio([2.0], [1.0]).is_clear
    assert spread([5.0]) == 0.0
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_steps(mode):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
    before = model[1].weight.clone()
    make_step(model, Cell(mode, "bfloat16", 2), (3, 2, 2))()
    assert model[1].weight.dtype == torch.bfloat16
    assert model[1].weight.equal(before.bfloat16()) == (mode == "forward")


def test_requests_are_answered_line_by_line(monkeypatch):
    calls: list[Cell] = []

    def prepare(cell: Cell):
        calls.append(cell)
        return lambda: None

    cell = Cell("forward", "float32", 1)
    requests = [cell.request, {**cell.request, "steps": 2}, {**cell.request, "batch": 4}]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, requests))))
    answers = io.StringIO()
    serve(prepare, answers, parameters=12)
    lines = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [len(line["seconds"]) for line in lines] == [5, 2, 5]
    assert all(line["parameters"] == 12 and line["peak_mib"] > 1 for line in lines)
    assert calls == [cell, Cell("forward", "float32", 4)]


def test_operations_of_a_transformer_are_all_counted():
    """Linear layers, the two products of attention, and the patches, at two operations each."""
    dim, depth, hidden, tokens, patches = 16, 2, 32, 26, 25
    model = find_entry("vit_tiny_patch16_224").build(
        image_size=40, patch_size=8, dim=dim, depth=depth, heads=2, dim_head=8, mlp_dim=hidden, num_classes=10
    )
    block = tokens * (4 * dim * dim + 2 * dim * hidden) + 2 * tokens * tokens * dim
    assert count_flops(model.eval(), (3, 40, 40)) == 2 * (depth * block + patches * 192 * dim + dim * 10)


def test_operations_of_a_model_with_a_learned_query():
    """The counter hooks gradients of inputs, and the query is a view of a parameter."""
    entry = find_entry("navit_tiny_patch16")
    model = entry.build(**entry.tiny).eval()
    assert count_flops(model, model.default_cfg["input_size"]) > 0
    assert all(parameter.requires_grad for parameter in model.parameters())
