"""Trained models that ship with the package, a folder each: weights, configuration and card.

`create_model("cct_2_3x2_32.cifar10", pretrained=True)` loads one, without a network. The part of a name
before the point is that of the model, the part after it that of the data.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
CARD = "card.json"


@cache
def list_trained() -> tuple[str, ...]:
    """Return the names of the trained models, sorted."""
    return tuple(sorted(card.parent.name for card in FOLDER.glob(f"*/{CARD}")))


def trained_folder(name: str) -> Path:
    """Return the folder of a trained model.

    Raises:
        ValueError: if no trained model has that name
    """
    if name not in list_trained():
        raise ValueError(f"trained models are {', '.join(list_trained())}; got {name!r}")
    return FOLDER / name


def name_trained(name: str) -> str:
    """Return what to say of a model without published weights of which trained ones ship with the package."""
    shipped = [trained for trained in list_trained() if trained.partition(".")[0] == name]
    return f"; with trained weights it is {' or '.join(shipped)}" if shipped else ""


def read_card(name: str) -> dict[str, Any]:
    """Return the card of a trained model: data and their terms, command, accuracy, calibration, limits.

    Raises:
        ValueError: if no trained model has that name
    """
    return json.loads((trained_folder(name) / CARD).read_text(encoding="utf-8"))


def shown_accuracy(card: dict[str, Any]) -> str:
    """Return the accuracy of a card in per cent: the classifier's, or without one the nearest neighbours'."""
    return f"{card['accuracy']:.2%}" if card["classes"] else f"k-NN {card['knn_accuracy']:.2%}"
