"""Sketched isotropic Gaussian regularisation (SIGReg; LeJEPA, arXiv:2511.08544)."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor
from torch.distributed.nn.functional import all_reduce


def epps_pulley(
    x: Float[Tensor, "*v n m"],
    domain: tuple[float, float] = (-5.0, 5.0),
    num_knots: int = 17,
    *,
    gather: bool = False,
) -> Float[Tensor, "*v m"]:
    """Compute the Epps-Pulley statistic of samples against the standard normal distribution.

    That is `n` times the integral over `t` of the squared distance between the empirical characteristic
    function and `exp(-t^2 / 2)`, weighted by `exp(-t^2 / 2)`, by the trapezoidal rule.

    Args:
        x: `n` samples of each of `m` variables.
        domain: least and greatest `t`.
        num_knots: knots of the trapezoidal rule, at least 2.
        gather: whether the samples of all processes count.

    Raises:
        ValueError: if the domain is empty or there are less than two knots.
    """
    low, high = domain
    if not low < high:
        raise ValueError(f"domain must be (least, greatest), got {domain}")
    if num_knots < 2:
        raise ValueError(f"num_knots must be at least 2, got {num_knots}")
    t = torch.linspace(low, high, num_knots, device=x.device)
    normal = (-t.square() / 2).exp()
    # half precision has too few digits for differences of means
    angles = x.float()[..., None] * t
    real, imaginary = angles.cos().mean(dim=-3), angles.sin().mean(dim=-3)
    count = x.shape[-2]
    if gather and dist.is_available() and dist.is_initialized():
        # differentiable, unlike `dist.all_reduce`; processes have equally many samples
        both = all_reduce(torch.stack([real, imaginary])) / dist.get_world_size()
        real, imaginary = both.unbind()
        count *= dist.get_world_size()
    distance = (real - normal).square() + imaginary.square()
    return count * torch.trapezoid(distance * normal, t, dim=-1)


def sigreg_loss(
    x: Float[Tensor, "*v n d"],
    num_slices: int = 1024,
    domain: tuple[float, float] = (-5.0, 5.0),
    num_knots: int = 17,
    *,
    generator: Generator | None = None,
    gather: bool = False,
) -> Float[Tensor, ""]:
    """Compute how far embeddings are from an isotropic Gaussian: `epps_pulley` on random slices, averaged.

    Args:
        x: `n` embeddings of each of `v` views; the mean over the views is returned.
        num_slices: number of directions, drawn anew in each call, on which embeddings are projected.
        domain: see `epps_pulley`.
        num_knots: see `epps_pulley`.
        generator: random numbers of the directions; default torch's.
        gather: whether the embeddings of all processes count; directions are those of the first process.
    """
    with torch.autocast(x.device.type, enabled=False):
        device = x.device if generator is None else generator.device
        drawn = torch.randn(num_slices, x.shape[-1], generator=generator, device=device)
        slices = F.normalize(drawn.to(x.device), dim=-1)
        if gather and dist.is_available() and dist.is_initialized():
            dist.broadcast(slices, 0)
        return epps_pulley(x.float() @ slices.T, domain, num_knots, gather=gather).mean()
