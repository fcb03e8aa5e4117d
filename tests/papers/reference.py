"""What parity tests share: random weights that hide nothing, and the comparison."""

from __future__ import annotations

from torch import Tensor

from benchmarks.references import images, randomise

__all__ = ["TOLERANCE", "difference", "images", "randomise"]

TOLERANCE = 1e-5


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Give the largest difference, of outputs that are not trivial."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05
    return (ours - theirs).abs().max().item()
