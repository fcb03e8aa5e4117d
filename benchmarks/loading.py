"""How close loaded models come to the programs that their checkpoints are of.

    python benchmarks/loading.py docs/measured/loading.json
    python benchmarks/loading.py docs/measured/loading.json --tables UViT NoisePredictor

With `--tables` the file keeps its rows of the others.
Each reference is small, with random weights of which none is trivially zero or one; where a program is not
installed, what it computed is in `tests/golden/`. The documentation's table is made from the file.
"""

from __future__ import annotations

import json
import logging
import tempfile
from functools import partial
from typing import Any

import torch
from loading_case import Build, Case
from loading_cases import FAMILIES, cases, read_arguments
from provenance import provenance
from references import images, randomise
from torch import nn

from vit_pytorch.create import architectures, create_model
from vit_pytorch.pretrained import load_pretrained, to_format
from vit_pytorch.pretrained.tables import tables as all_tables
from vit_pytorch.registry import entries
from vit_pytorch.registry.uvit import create_noise_predictor
from vit_pytorch.vaat import VAAT
from vit_pytorch.vat_siglip import SigLIPVAT

# Logits of references must differ from image to image, or equality says nothing.
SPREAD = 0.05


def measure(case: Case) -> dict[str, Any]:
    """Load a checkpoint and compare.

    Raises:
        ValueError: where another format is recognised, or the reference's outputs are trivial.
    """
    torch.manual_seed(1)
    model = case.build().eval()
    report = load_pretrained(model, case.checkpoint, grid="model")
    spread = case.outputs.std().item()
    if report.format != case.format or spread < SPREAD:
        raise ValueError(f"{case.reference}: format {report.format}, outputs of spread {spread:.3g}")
    found = case.call(model, case.inputs)
    return {
        "architecture": type(model).__name__,
        "table": table_of(model),
        "format": case.format,
        "reference": case.reference,
        "difference": (found - case.outputs).abs().max().item(),
        "written": goes_back(model, case),
        **provenance(),
    }


def goes_back(model: nn.Module, case: Case) -> bool:
    """Tell whether the format can be written, too, so that reading that gives the same model."""
    try:
        written = to_format(model, case.format)
    except ValueError:
        return False
    again = case.build().eval()
    load_pretrained(again, written, grid="model")
    return (case.call(again, case.inputs) - case.call(model, case.inputs)).abs().max().item() < 1e-6


def table_of(model: nn.Module) -> str:
    """Name the table of formats that a model's checkpoints are looked up in."""
    known = all_tables()
    own = next(known[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in known)
    return next(name for name, file in known.items() if file == own)


def own(table: str) -> dict[str, Any]:
    """Save a model of ours and load it again."""
    if table in STATES:
        return own_state(*STATES[table]())
    tiny = {e.architecture.__name__: {**e.config, **e.tiny} for e in reversed(entries().values())}
    # A table may be of what several architectures have in common.
    name, kind = next(
        (name, kind)
        for name, kind in architectures().items()
        if table in {parent.__name__ for parent in kind.__mro__}
    )
    torch.manual_seed(0)
    model = kind(**tiny["ViT" if table == "DistillableViT" else name])
    randomise(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = create_model(folder)
    inputs = images(*model.image_size)
    return {
        "architecture": name,
        "table": table,
        "format": "vit_pytorch",
        "reference": "a folder that `save_pretrained` wrote",
        "difference": (again(inputs) - model(inputs)).abs().max().item(),
        "written": True,
        **provenance(),
    }


def own_state(build: Build, inputs: Any) -> dict[str, Any]:
    """Load the state dict of a model that is not saved with its configuration."""
    torch.manual_seed(0)
    model = randomise(build())
    return measure(
        Case(
            format="vit_pytorch",
            reference="a state dict",
            build=build,
            checkpoint=model.state_dict(),
            inputs=inputs,
            outputs=model(*inputs),
            call=lambda model, inputs: model(*inputs),
        )
    )


def predictor_state() -> tuple[Build, Any]:
    """Return a small noise predictor and what it is given."""
    sizes: dict[str, Any] = {"image_size": 16, "dim": 32, "depth": 2, "heads": 4}
    build = partial(create_noise_predictor, "imagenet64_uvit_mid", **sizes)
    return build, (images(16, 16), torch.tensor([3.0, 712.5]), torch.tensor([4, 1]))


def policy_state() -> tuple[Build, Any]:
    """Return a small policy and what it sees."""
    tower: dict[str, Any] = {
        "siglip_image_size": 40,
        "siglip_patch_size": 8,
        "siglip_dim": 32,
        "siglip_depth": 2,
    }
    sizes: dict[str, Any] = {"dim": 24, "depth": 2, "heads": 2, "siglip_heads": 2, "siglip_mlp_dim": 48}
    return partial(SigLIPVAT, **tower, **sizes), (images(40, 40),)


def policy_with_sounds_state() -> tuple[Build, Any]:
    """Return a small policy, what it sees and what it hears."""
    sizes: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "mlp_dim": 48}
    vit = {**sizes, "image_size": 40, "patch_size": 8, "num_classes": 7}
    build = partial(VAAT, vit, {**sizes, "patch_size": 8}, **sizes, dim_head=16, dim_action=5)
    return build, (images(40, 40), images(400)[:, 0])


STATES = {
    "NoisePredictor": predictor_state,
    "SigLIPVAT": policy_state,
    "VAAT": policy_with_sounds_state,
}


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort rows by their tables, our own format last."""
    tables = list(all_tables())
    own_last = {False: list(dict.fromkeys([*FAMILIES, *tables])), True: tables}

    def place(row: dict[str, Any]) -> tuple[bool, int]:
        own = row["format"] == "vit_pytorch"
        return own, own_last[own].index(row["table"])

    return sorted(rows, key=place)


@torch.no_grad()
def main() -> None:
    """Measure everything and write it down."""
    arguments = read_arguments(__doc__)
    logging.disable(logging.WARNING)
    tables = arguments.tables or list(all_tables())
    rows = [measure(case) for case in cases(tables)] + [own(table) for table in tables]
    for row in rows:
        print(f"{row['architecture']:16} {row['format']:30} {row['difference']:.1e}  {row['reference']}")
    others = set(all_tables()).difference(tables)
    if others:
        old = json.loads(arguments.output.read_text(encoding="utf-8"))
        rows += [row for row in old if row["table"] in others]
    arguments.output.write_text(json.dumps(in_order(rows), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
