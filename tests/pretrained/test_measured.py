"""What the documentation says of loading is close, and complete but for tables that came since."""

import json
from pathlib import Path

import pytest

from vit_pytorch.create import UNNAMED
from vit_pytorch.pretrained.tables import formats_of, references_of, tables

TABLES = tables()
ROWS = json.loads((Path(__file__).parents[2] / "docs" / "measured" / "loading.json").read_text())


# Those without named models, but one, are held to golden files in tests/papers/test_public_systems.py.
MEASURED = [
    name
    for name in TABLES
    if (name == "MemoryViT" or name not in UNNAMED.values()) and not references_of(name)
]


@pytest.mark.parametrize("table", MEASURED)
def test_every_format_is_measured(table: str) -> None:
    """A format that a table shares with the plain ViT's counts as measured there.

    Models of one table are measured as one.
    """
    formats = {layout.name for layout in formats_of(table)}
    measured = {row["format"] for row in ROWS if TABLES[row["table"]] == TABLES[table]}
    shared = {layout.name for layout in formats_of("ViT") if layout in formats_of(table)}
    assert "vit_pytorch" in measured
    assert len(measured) > 1 or formats == {"vit_pytorch"}
    assert measured <= formats
    if TABLES[table] == TABLES["ViT"]:
        assert measured == formats
    assert formats - measured <= shared - {"vit_pytorch"}


def test_plain_vits_that_are_published_are_measured() -> None:
    references = " ".join(row["reference"] for row in ROWS if row["table"] == "ViT")
    for word in ("augreg_in21k", "deit_", "dinov2.", "reg4_dinov2", "clip", "siglip", "mae", "ViTMAE", "npz"):
        assert word in references


def test_differences_are_those_of_rounding() -> None:
    assert max(row["difference"] for row in ROWS) < 1e-5


def test_every_format_is_written_but_the_backbone_of_noise_predictors() -> None:
    """A classifier has no place for the time."""
    read_only = {(row["table"], row["format"]) for row in ROWS if not row["written"]}
    assert read_only == {("UViT", "U-ViT")}
