"""Licences and tags of the published weights of named models, as timm's configurations name them.

    python benchmarks/licences.py docs/measured/licences.json

The documentation's table of models is made from the file. Weights that timm does not know have none there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg, list_pretrained

from vit_pytorch.registry import entries
from vit_pytorch.registry.entry import ModelEntry


def licence(hub_id: str) -> str | None:
    """Return the licence of the weights in a repository of the Hub; None where timm does not know them."""
    cfg = get_pretrained_cfg(hub_id.partition("/")[2], allow_unregistered=True)
    return None if cfg is None or cfg.hf_hub_id is None else cfg.license


def measure(entry: ModelEntry) -> dict[str, Any]:
    """Return the licence of a model's own weights, and the tags of all that timm publishes under its name."""
    tags = [name.partition(".")[2] for name in list_pretrained(f"{entry.name}.*")]
    return {
        "name": entry.name,
        "hub_id": entry.hub_id,
        "license": licence(entry.hub_id) if entry.hub_id else None,
        "tags": tags,
    }


def main() -> None:
    """Write the rows of models that have weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    rows = [row for row in map(measure, entries().values()) if row["hub_id"] or row["tags"]]
    lines = ",\n".join(json.dumps(row) for row in rows)
    text = f'{{"timm": "{timm.__version__}", "models": [\n{lines}\n]}}\n'
    parser.parse_args().file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
