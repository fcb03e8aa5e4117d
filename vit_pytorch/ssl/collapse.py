"""Whether a method that learns without labels has collapsed: measures that say so while it trains."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def feature_spread(features: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Measure how far embeddings differ: 0 where all have one direction, near 1 where they have all.

    The standard deviation over the batch of the normalised embeddings, a mean over their d dimensions, times
    the root of d (Chen and He 2020, arXiv:2011.10566, section 4.1).

    Raises:
        ValueError: for less than two embeddings.
    """
    _check_batch(features)
    unit = F.normalize(features.float(), dim=1)
    return unit.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5


def prediction_entropy(logits: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Return the mean entropy of the distributions, in nats; ln K for a collapse to the uniform one.

    Of a DINO teacher, `logits` are centred and divided by its temperature (arXiv:2104.14294, section 5.3).
    """
    return _entropy(logits.float().log_softmax(dim=1)).mean()


def usage_entropy(logits: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """Return the entropy of the mean distribution, in nats; 0 for a collapse to one dimension.

    Raises:
        ValueError: for less than two distributions.
    """
    _check_batch(logits)
    return entropy_of(logits.float().softmax(dim=1).mean(dim=0))


def entropy_of(distribution: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
    """Return the entropy of distributions, in nats."""
    return _entropy(distribution.clamp_min(1e-30).log())


def _check_batch(rows: Tensor) -> None:
    if len(rows) < 2:
        raise ValueError(f"at least 2 rows show whether they differ, got {len(rows)}")


def _entropy(log_probabilities: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
