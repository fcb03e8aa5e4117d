"""Tolerances of comparisons, from the precision and from what was computed.

Two correct kernels disagree by what they round, and which kernel runs is up to the processor, the library
and the PyTorch version: they sum in another order, or keep an intermediate result in another precision. A
test that compares results of floating-point arithmetic states here how far two correct results may be apart;
a number that happens to fit the machine at hand is not a tolerance.

The error is relative to the scale of the values that were summed, not to each result: a sum of terms near 1
that cancel to 0.001 is as uncertain as one that adds up to 3. Hence `atol` follows the largest expected
value, and `rtol` is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Outputs of two implementations of one float32 model, of order 1 and through a few layers, differ by less.
PARITY = 1e-5
# A whole model in bfloat16 or under autocast, as `relative_error`. Tiny models with random weights measured
# 0.007 in the median and 0.042 at most, over the registry and three seeds; another kernel may double that.
BF16_MODEL = 0.1


def unit_roundoff(dtype: torch.dtype) -> float:
    """Return the largest relative error of one rounding to `dtype`."""
    return torch.finfo(dtype).eps / 2


def tolerance(
    expected: Tensor, *, terms: int = 1, roundings: int = 1, scale: float | None = None
) -> dict[str, float]:
    """Return `rtol` and `atol` for results of one computation by two kernels or in two orders.

    Args:
        expected: one of the two results; its precision and its largest finite value set the tolerance
        terms: number of products or values summed per element; the longest sum if there are several
        roundings: number of intermediate results, the output included, that a kernel may round to the
            precision of `expected`; 5 for attention (scaled queries, scores, masked scores, weights, output)
        scale: scale of what is summed, if it is larger than the largest expected value: an average of many
            values is smaller than they are
    """
    if scale is None:
        scale = expected.detach().abs().nan_to_num(0, 0, 0).max().item()
    # Half precision is summed in single precision by every kernel in use; only what is stored is rounded.
    summed = min(unit_roundoff(expected.dtype), unit_roundoff(torch.float32))
    # Rounding errors of a sum grow like the root of the number of terms; four standard deviations of that.
    each = roundings * unit_roundoff(expected.dtype) + 4 * terms**0.5 * summed
    floor = PARITY if expected.dtype == torch.float32 else 0.0
    # Either kernel has its own error, hence twice.
    return {"rtol": 0.0, "atol": max(2 * each * scale, floor)}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the difference over that of the expected values.

    For results of many layers, whose largest difference depends on chance and whose mean hardly does.
    """
    assert actual.shape == expected.shape
    expected = expected.detach().float()
    return ((actual.detach().float() - expected).norm() / expected.norm()).item()
