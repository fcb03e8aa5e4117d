"""Models of other libraries that stand beside a table: their weights load and go back, logits are equal."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch.create import architectures
from vit_pytorch.pretrained import load_pretrained, to_format
from vit_pytorch.pretrained.rules import Reference
from vit_pytorch.pretrained.tables import formats_of, references_of, tables

CASES = [
    pytest.param(name, reference, id=f"{name}-{reference.format}-{index}")
    for name in tables()
    for index, reference in enumerate(references_of(name))
]


@pytest.mark.parametrize(("architecture", "reference"), CASES)
@torch.inference_mode()
def test_weights_of_the_reference(architecture: str, reference: Reference) -> None:
    module, _, name = reference.name.rpartition(".")
    theirs = randomise(getattr(import_module(module), name)(**reference.theirs))
    ours = architectures()[architecture](**reference.ours).eval()
    assert load_pretrained(ours, theirs.state_dict(), grid="model").format == reference.format
    x = images(*ours.image_size)
    assert difference(ours(x), theirs(x)) < TOLERANCE
    written = to_format(ours, reference.format)
    assert written.keys() == theirs.state_dict().keys()
    assert all(written[key].equal(tensor) for key, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("architecture", [name for name in tables() if references_of(name)])
def test_every_format_beside_references_has_one(architecture: str) -> None:
    formats = {layout.name for layout in formats_of(architecture)} - {"vit_pytorch"}
    assert formats == {reference.format for reference in references_of(architecture)}
