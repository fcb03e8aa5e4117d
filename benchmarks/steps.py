"""How close models stay to their references when both are trained: gradients, then ten optimizer steps.

    python benchmarks/steps.py docs/measured/steps.json
    python benchmarks/steps.py docs/measured/steps.json --tables ConvMixer

Each reference that can be run here has a small model with random weights of which none is trivially zero
or one, and ours has the same weights. Gradients are compared in single precision. Both are then trained by
AdamW on the same batches in double precision: in single precision, rounding grows with every step of some
random models, and says nothing about the function. With `--tables` the file keeps its rows of the others. The
documentation's page of proof is made from the file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from math import nan
from typing import Any

import torch
from loading_case import Case
from loading_cases import FAMILIES, cases, read_arguments
from provenance import provenance
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vit_pytorch.pretrained import load_pretrained, to_format
from vit_pytorch.pretrained.tables import tables as all_tables

STEPS, LR, BATCH = 10, 1e-3, 8
# settings of dropout, stochastic depth and positions that are moved at random, with their values for none
NOISE = {
    **dict.fromkeys(("p", "drop_prob", "attn_drop"), 0.0),
    **dict.fromkeys(("shift_coords", "jitter_coords", "rescale_coords")),
}
# a gradient that is shorter than this share of all gradients is rounding alone, as that of a bias of keys
FLOOR = 1e-3


def measure(case: Case, other: nn.Module) -> dict[str, Any]:
    """Compare gradients and ten steps of AdamW; the reference is not changed."""
    torch.manual_seed(1)
    # through training, where references forget the biases that they keep for evaluation, without gradients
    ours, theirs = case.build().eval(), deepcopy(other).train().eval()
    load_pretrained(ours, case.checkpoint, grid="model")
    logits = case.call(ours, case.inputs), case.call_other(theirs, case.inputs)
    row = {
        "architecture": type(ours).__name__,
        "reference": case.reference,
        "logits": (logits[0] - logits[1]).abs().max().item(),
        **compare_gradients(case, ours, theirs, logits),
    }
    return {**row, **take_steps(case, ours, theirs), **provenance()}


def compare_gradients(
    case: Case, ours: nn.Module, theirs: nn.Module, logits: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Return the largest distance of two gradients of one parameter, relative to its length.

    Models of transformers have other names in memory than in files, which are those that we write; nothing is
    returned of them.
    """
    for output in logits:
        output.square().sum().backward()
    expected, mine = gradients(theirs), gradients(ours)
    carrier = case.build()
    carrier.load_state_dict(ours.state_dict())
    with torch.no_grad():
        for name, parameter in carrier.named_parameters():
            parameter.copy_(mine[name])
    found = to_format(carrier, case.format)
    if not expected.keys() <= found.keys():
        return {}
    least = FLOOR * torch.cat([gradient.flatten() for gradient in expected.values()]).norm().item()
    apart = {
        name: (found[name] - gradient).norm().item() / max(gradient.norm().item(), least)
        for name, gradient in expected.items()
    }
    return {"gradients": max(apart.values())}


def gradients(model: nn.Module) -> Mapping[str, Tensor]:
    """Return the gradients by name, zeros for a parameter that has none."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


def without_noise(model: nn.Module) -> nn.Module:
    """Switch off what is drawn at random in training, which each library does in an order of its own."""
    for module in model.modules():
        for name, value in NOISE.items():
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, value)
    return model


def take_steps(case: Case, ours: nn.Module, theirs: nn.Module) -> dict[str, float]:
    """Train both on the same batches; return the largest gap of the losses, and of the logits afterwards."""
    pairs = [
        (without_noise(model.double().train()), call)
        for model, call in ((ours, case.call), (theirs, case.call_other))
    ]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=LR) for model, _ in pairs]
    draw = torch.Generator().manual_seed(2)
    gaps = []
    for _ in range(STEPS):
        images = torch.randn(BATCH, *case.inputs.shape[1:], generator=draw, dtype=torch.float64)
        labels = torch.randint(7, (BATCH,), generator=draw)
        losses = []
        for (model, call), optimizer in zip(pairs, optimizers, strict=True):
            loss = cross_entropy(call(model, images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        gaps.append(abs(losses[0] - losses[1]))
    with torch.no_grad():
        mine, other = (call(model.eval(), case.inputs.double()) for model, call in pairs)
    return {"losses": max(gaps), "logits_after": (mine - other).abs().max().item()}


def main() -> None:
    """Measure everything and write it down."""
    arguments = read_arguments(__doc__)
    logging.disable(logging.WARNING)
    tables = list(dict.fromkeys([*FAMILIES, *all_tables()]))
    rows: list[dict[str, Any]] = []
    seen: list[nn.Module] = []
    for table in tables if arguments.tables is None else arguments.tables:
        with torch.no_grad():
            built = list(cases([table]))
        for case in built:
            # once for each reference, from the weights under its own names
            if case.other is None or not isinstance(case.checkpoint, Mapping):
                continue
            if case.checkpoint.keys() != case.other.state_dict().keys():
                continue
            if any(case.other is other for other in seen):
                continue
            seen.append(case.other)
            rows.append(row := {"table": table, **measure(case, case.other)})
            figures = [row.get(name, nan) for name in ("logits", "gradients", "losses", "logits_after")]
            print(f"{row['architecture']:18}", *(f"{value:.1e}" for value in figures), row["reference"])
    if arguments.tables is not None:
        old = json.loads(arguments.output.read_text(encoding="utf-8"))
        rows += [row for row in old if row["table"] not in arguments.tables]
    rows.sort(key=lambda row: tables.index(row["table"]))
    arguments.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
