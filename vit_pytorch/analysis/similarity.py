"""How alike layers represent images: centred kernel alignment (CKA).

S. Kornblith, M. Norouzi, H. Lee, G. Hinton 2019, arXiv:1905.00414, section 3; in minibatches, with the
unbiased estimator of Song et al. 2012, T. Nguyen, M. Raghu, S. Kornblith 2020, arXiv:2010.15327, section 3;
on Vision Transformers, M. Raghu, T. Unterthiner, S. Kornblith et al. 2021, arXiv:2108.08810.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_pytorch.base import VisionModel
from vit_pytorch.layers.wrapper import eval_mode


def gram_matrix(features: Float[Tensor, "n ..."]) -> Float[Tensor, "n n"]:
    """Compute the products of the features of all pairs of images, in float64."""
    x = features.detach().flatten(1).double()
    return x @ x.mT


def hsic(
    first: Float[Tensor, "l n n"], second: Float[Tensor, "m n n"], *, unbiased: bool
) -> Float[Tensor, "l m"]:
    """Compute the Hilbert-Schmidt independence criterion of each pair of Gram matrices.

    Args:
        first: some Gram matrices.
        second: others, of the same images.
        unbiased: whether the unbiased estimator is taken (arXiv:2010.15327, section 3), or the one that
            centres the matrices (arXiv:1905.00414, section 3).

    Raises:
        ValueError: where the images are too few.
    """
    n, least = first.shape[1], 4 if unbiased else 2
    if n < least:
        raise ValueError(f"{'unbiased ' * unbiased}HSIC needs at least {least} images at a time, got {n}")
    if not unbiased:
        first, second = _centre(first), _centre(second)
        return first.flatten(1) @ second.flatten(1).mT / (n - 1) ** 2
    off = 1 - torch.eye(n, dtype=first.dtype, device=first.device)
    first, second = first * off, second * off
    rows, others = first.sum(dim=2), second.sum(dim=2)
    trace = first.flatten(1) @ second.flatten(1).mT
    sums = rows.sum(dim=1)[:, None] * others.sum(dim=1) / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * (rows @ others.mT)) / (n * (n - 3))


def _centre(gram: Float[Tensor, "l n n"]) -> Float[Tensor, "l n n"]:
    """Subtract the means of rows and columns."""
    gram = gram - gram.mean(dim=1, keepdim=True)
    return gram - gram.mean(dim=2, keepdim=True)


def linear_cka(
    first: Float[Tensor, "n ..."], second: Float[Tensor, "n ..."], *, unbiased: bool = False
) -> float:
    """Compute the linear CKA of two representations of the same images.

    It does not change where a representation is rotated, moved or scaled as a whole.

    Args:
        first: features of each image; their further axes are flattened.
        second: others, of any width.
        unbiased: whether HSIC is estimated without bias, which does not grow where images are few.

    Returns:
        1 where the two are equal up to the above; with `unbiased`, about 0 where they are independent, and
        possibly below.

    Raises:
        ValueError: where the numbers of images differ or are too small.
    """
    if len(first) != len(second):
        raise ValueError(f"expected features of the same images, got {len(first)} and {len(second)}")
    x, y = gram_matrix(first)[None], gram_matrix(second)[None]
    cross, own, other = (hsic(a, b, unbiased=unbiased).squeeze() for a, b in ((x, y), (x, x), (y, y)))
    return float(cross / (own * other).sqrt())


@torch.no_grad()
def layer_similarity(
    model: VisionModel,
    batches: Iterable[Float[Tensor, "b c *size"]],
    other: VisionModel | None = None,
    *,
    unbiased: bool = True,
) -> Float[Tensor, "layers others"]:
    """Compute the linear CKA between the features behind all layers, of one model or of two.

    Features are those of `forward_intermediates`, patches flattened, prefix tokens left out. HSIC is averaged
    over the batches, so that any number of images can be compared (arXiv:2010.15327, section 3).

    Args:
        model: gives the rows.
        batches: images as the models take them, at least 4 in each batch where unbiased.
        other: gives the columns; the same model unless told.
        unbiased: whether HSIC is estimated without bias; else its value depends on the size of a batch.

    Returns:
        Values as those of `linear_cka`; NaN for a layer that gives all images the same features.

    Raises:
        ValueError: where there is no batch, or a batch is too small.
    """
    totals: list[Tensor] = []
    count = 0
    with eval_mode(model):
        for images in batches:
            rows = _grams(model, images)
            columns = rows
            if other is not None:
                with eval_mode(other):
                    columns = _grams(other, images)
            values = [
                hsic(rows, columns, unbiased=unbiased),
                *(
                    torch.stack([hsic(gram[None], gram[None], unbiased=unbiased)[0, 0] for gram in grams])
                    for grams in (rows, columns)
                ),
            ]
            totals = [a + b for a, b in zip(totals, values, strict=True)] if totals else values
            count += 1
    if not count:
        raise ValueError("expected at least 1 batch of images, got 0")
    cross, own, others = totals
    return (cross / (own[:, None] * others).sqrt()).float()


def _grams(model: VisionModel, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "layers b b"]:
    """Compute the Gram matrices of the features behind all layers."""
    features: Any = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    return torch.stack([gram_matrix(layer) for layer in features])
