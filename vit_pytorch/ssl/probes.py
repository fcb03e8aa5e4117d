"""What frozen features are worth: nearest neighbours and a linear classifier."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.layers.wrapper import eval_mode


@torch.no_grad()
def extract(
    features: Callable[[Tensor], Tensor], images: Float[Tensor, "b ..."], *, batch: int = 256
) -> Float[Tensor, "b d"]:
    """Compute features of many images, batch by batch, without gradients.

    A module is in eval meanwhile, and afterwards what it was.

    Args:
        features: gives vectors (b, d) from images.
        batch: images at a time.
    """
    with eval_mode(features) if isinstance(features, nn.Module) else nullcontext():
        return torch.cat([features(part) for part in images.split(batch)])


@torch.no_grad()
def nearest_neighbours(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    queries: Float[Tensor, "q d"],
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
    batch: int = 1024,
) -> Float[Tensor, "q k"]:
    """Classify each query by the votes of its nearest neighbours by cosine.

    A vote weighs exp(cosine / temperature) (Wu et al. 2018, arXiv:1805.01978, section 3.4; DINO's protocol).

    Args:
        features: of the images with labels.
        labels: their classes, from 0 on.
        queries: features of the images to classify.
        neighbours: how many vote.
        temperature: how quickly votes lose weight with distance; positive.
        batch: queries at a time.

    Returns:
        The sum of the votes for each class, relative to that of a vote with cosine 1.

    Raises:
        ValueError: where there are fewer images than neighbours, or the temperature is not positive.
    """
    if not 0 < neighbours <= len(features):
        raise ValueError(f"neighbours are between 1 and the {len(features)} images, got {neighbours}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    votes = F.one_hot(labels).to(features.dtype)
    known = F.normalize(features, dim=-1)
    found = []
    for part in queries.split(batch):
        cosine, nearest = (F.normalize(part, dim=-1) @ known.T).topk(neighbours, dim=-1)
        weight = ((cosine - 1) / temperature).exp()
        found.append((weight[..., None] * votes[nearest]).sum(dim=1))
    return torch.cat(found)


def knn_accuracy(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    queries: Float[Tensor, "q d"],
    answers: Int[Tensor, " q"],
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> float:
    """Measure how often `nearest_neighbours` are right.

    Returns:
        The share of queries whose class is that of `answers`, in [0, 1].
    """
    votes = nearest_neighbours(features, labels, queries, neighbours=neighbours, temperature=temperature)
    return (votes.argmax(dim=-1) == answers).float().mean().item()


def fit_linear(
    features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, penalty: float = 1e-3, steps: int = 100
) -> nn.Linear:
    """Fit a linear classifier of frozen features: multinomial logistic regression, by L-BFGS from zero.

    Features are standardised for the fit, and the classifier returned has that folded in.

    Args:
        features: of the images with labels.
        labels: their classes, from 0 on.
        penalty: factor on half the squared weights of standardised features; not negative.
        steps: at most so many iterations.

    Raises:
        ValueError: where the penalty is negative.
    """
    if penalty < 0:
        raise ValueError(f"penalty is at least 0, got {penalty}")
    features = features.detach().float()
    spread, mean = torch.std_mean(features, dim=0, correction=0)
    # A feature that never changes tells nothing, whatever its scale.
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    inputs = (features - mean) / spread
    probe = nn.Linear(features.shape[1], int(labels.max()) + 1, device=features.device)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(probe(inputs), labels) + penalty / 2 * probe.weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    with torch.no_grad():
        probe.weight.div_(spread)
        probe.bias.sub_(probe.weight @ mean)
    return probe.requires_grad_(False)


def linear_accuracy(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    queries: Float[Tensor, "q d"],
    answers: Int[Tensor, " q"],
    *,
    penalty: float = 1e-3,
    steps: int = 100,
) -> float:
    """Measure how often a linear classifier of frozen features is right; see `fit_linear`.

    Returns:
        The share of queries whose class is that of `answers`, in [0, 1].
    """
    probe = fit_linear(features, labels, penalty=penalty, steps=steps)
    return (probe(queries.float()).argmax(dim=-1) == answers).float().mean().item()
