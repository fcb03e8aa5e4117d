"""LeJEPA: SIGReg as its authors' and in plain loops, the loss, the public package's calls, and learning."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.papers.golden import read_golden
from tests.papers.learning import digits
from tests.papers.reference import TOLERANCE, difference
from tests.papers.test_dino_learning import VIEWS, VIT, embed
from tests.ssl.digits import SIZE, knn_on_digits
from vit_pytorch import ViT
from vit_pytorch.lejepa import LeJEPA, sigreg_loss
from vit_pytorch.levit import LeViT
from vit_pytorch.ssl.collapse import feature_spread
from vit_pytorch.ssl.schedules import CosineSchedule, LinearSchedule
from vit_pytorch.ssl.sigreg import epps_pulley
from vit_pytorch.ssl.views import MultiCrop

SMALL = {"image_size": 64, "projection_hidden_size": 32, "projection_layers": 2, "num_classes_K": 16}


def make_vit() -> ViT:
    return ViT(image_size=64, patch_size=8, num_classes=10, dim=64, depth=2, heads=4, mlp_dim=128)


def test_the_statistic_is_the_authors():
    """Theirs integrates over half the domain, of an integrand that is even."""
    config, _, found = read_golden("lejepa_sigreg")
    whole = {
        "domain": (-float(config["t_max"]), float(config["t_max"])),
        "num_knots": 2 * config["n_points"] - 1,
    }
    projected = (found["x"] @ found["slices"].T).requires_grad_()
    statistic = epps_pulley(projected, **whole)
    assert difference(statistic, found["authors"]) < TOLERANCE
    statistic.sum().backward()
    assert difference(projected.grad, found["authors_grad"]) < TOLERANCE


def test_the_loss_is_the_public_packages(monkeypatch: pytest.MonkeyPatch):
    """Which leaves out the factor of the number of samples; in `levjepa` it does not."""
    config, _, found = read_golden("lejepa_sigreg")
    monkeypatch.setattr(torch, "randn", lambda *_, **__: found["slices"])
    loss = sigreg_loss(found["x"], config["num_slices"])
    torch.testing.assert_close(loss / len(found["x"]), found["public"])
    loss = sigreg_loss(found["x"], config["num_slices"], (-3.0, 3.0), 33)
    torch.testing.assert_close(loss, found["public_video"])


def test_the_statistic_in_plain_loops():
    x = torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    knots = [-2 + 4 * i / 8 for i in range(9)]
    values = []
    for t in knots:
        mean = sum(complex(math.cos(t * s), math.sin(t * s)) for s in x[:, 0].tolist()) / len(x)
        normal = math.exp(-t * t / 2)
        values.append(abs(mean - normal) ** 2 * normal)
    area = sum((one + other) / 2 * 0.5 for one, other in pairwise(values))
    assert epps_pulley(x, (-2.0, 2.0), 9).item() == pytest.approx(5 * area, rel=1e-5)


def test_gaussian_embeddings_have_the_least_loss():
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(512, 8, generator=generator)
    losses = [
        sigreg_loss(x, 64, generator=torch.Generator().manual_seed(1)).item()
        for x in (
            gaussian,
            2 * gaussian,
            gaussian + 1,
            torch.zeros_like(gaussian),
            gaussian[:, :1].expand(-1, 8),
        )
    ]
    assert min(losses[1:]) > 10 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"domain": (3.0, -3.0)}, "must be .least, greatest."), ({"num_knots": 1}, "must be at least 2, got 1")],
)
def test_what_the_statistic_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        sigreg_loss(torch.randn(4, 2), 3, **options)


def gather_in_a_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    both = torch.load(f"{folder}/x.pt")
    mine = both[rank * 4 : rank * 4 + 4].clone().requires_grad_()
    # directions are those of the first process
    loss = sigreg_loss(mine, 16, generator=torch.Generator().manual_seed(rank), gather=True)
    loss.backward()
    torch.save((loss.detach(), mine.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_samples_of_all_processes_count(tmp_path: Path):
    """The mean of the processes' gradients, which DDP takes, is that of one process with all samples."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.save(x.detach(), tmp_path / "x.pt")
    torch.multiprocessing.spawn(gather_in_a_process, (str(tmp_path),), nprocs=2)
    loss = sigreg_loss(x, 16, generator=torch.Generator().manual_seed(0))
    loss.backward()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for value, _ in found:
        torch.testing.assert_close(value, loss.detach())
    assert difference(torch.cat([grad for _, grad in found]) / 2, x.grad) < TOLERANCE


def test_the_loss_of_views():
    torch.manual_seed(0)
    learner = LeJEPA(make_vit(), **SMALL, sigreg_loss_kwargs={"num_slices": 8}, num_local_crops=2).eval()
    crops = [torch.randn(4, 3, size, size) for size in (64, 64, 32, 32)]
    found = learner(crops, torch.Generator().manual_seed(1))
    projected = [learner.encoder([crop])[0] for crop in crops]
    centre = (projected[0] + projected[1]) / 2
    prediction = sum((centre - z).square().mean() for z in projected) / 4
    sigreg = sum(sigreg_loss(z, 8, generator=torch.Generator().manual_seed(1)) for z in projected) / 4
    torch.testing.assert_close(found, 0.95 * prediction + 0.05 * sigreg)


def test_the_class_is_the_papers():
    learner = LeJEPA(make_vit(), image_size=64)
    linears = [tuple(part.weight.shape) for part in learner.encoder.head if isinstance(part, nn.Linear)]
    assert linears == [(2048, 64), (2048, 2048), (128, 2048)]
    first, second, *local = learner.views.views
    assert first == second
    assert (first.size, first.scale, first.solarize) == ((64, 64), (0.3, 1.0), 0.2)
    assert [(view.size, view.scale) for view in local] == [((24, 24), (0.05, 0.3))] * 6


def test_settings_choose_what_prevents_collapse():
    def chosen(**options) -> tuple[bool, bool, bool]:
        learner = LeJEPA(make_vit(), **SMALL, **options)
        assert (learner.target_encoder is not None) == learner.use_ema
        return learner.use_ema, learner.use_sigreg, learner.has_sigreg_loss

    assert chosen() == (False, True, True)
    assert chosen(moving_average_decay=0.95) == (True, False, False)
    assert chosen(use_sigreg=False) == (True, False, False)
    assert chosen(use_ema=True, use_sigreg=True) == (True, True, True)
    with pytest.raises(ValueError, match="embeddings collapse without"):
        chosen(use_ema=False, use_sigreg=False)
    with pytest.raises(ValueError, match=r"needs use_ema, got 0\.9"):
        chosen(use_ema=False, moving_average_decay=0.9)


def test_the_average_gives_targets_without_gradients():
    torch.manual_seed(0)
    learner = LeJEPA(make_vit(), **SMALL, hidden_layer="to_latent", use_ema=True, moving_average_decay=0.9)
    learner(torch.randn(2, 3, 64, 64)).backward()
    assert any(parameter.grad is not None for parameter in learner.encoder.parameters())
    assert all(parameter.grad is None for parameter in learner.target_encoder.parameters())
    before = [parameter.clone() for parameter in learner.target_encoder.parameters()]
    torch.optim.Adam(learner.parameters(), lr=3e-4).step()
    learner.update_moving_average()
    for old, now, new in zip(
        before, learner.target_encoder.parameters(), learner.encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * new)
    with pytest.raises(ValueError, match="no moving average"):
        LeJEPA(make_vit(), **SMALL).update_moving_average()


def test_embeddings_and_projections():
    learner = LeJEPA(make_vit(), **SMALL).eval()
    images = torch.randn(2, 3, 64, 64)
    projected, embedded = learner(images, return_embedding=True)
    assert (projected.shape, embedded.shape) == ((2, 16), (2, 64))
    assert torch.equal(learner(images, return_embedding=True, return_projection=False), embedded)
    for crops, options in (([images], {}), ([images] * 2, {"return_embedding": True})):
        with pytest.raises(ValueError, match=f"got {len(crops)}"):
            learner(crops, **options)


def test_randomness_is_torchs():
    learner = LeJEPA(make_vit(), **SMALL).eval()
    images = torch.rand(2, 3, 64, 64)
    first, second, third = (learner(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first == second != third


def test_autocast_keeps_the_statistic_in_single_precision():
    learner = LeJEPA(make_vit(), **SMALL).eval()
    crops = [torch.randn(8, 3, 64, 64)] * 2
    exact = learner(crops, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = learner(crops, torch.Generator().manual_seed(0))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=2e-2, atol=1e-2)


def test_a_model_in_stages_is_taught():
    net = LeViT(image_size=64, num_classes=0, stages=2, dim=(32, 48), depth=1, heads=(2, 3), mlp_mult=2)
    learner = LeJEPA(net, **SMALL, num_local_crops=0)
    assert learner(torch.randn(2, 3, 64, 64)).isfinite()


def pretrain(net: nn.Module, *, epochs: int = 10, batch: int = 64, lr: float = 2e-3) -> dict[str, float]:
    """Pretrain a small model on the digits; say what it is worth before and after, and how near collapse."""
    data: tuple[Tensor, ...] = digits(SIZE)
    found = {"untrained": knn_on_digits(partial(embed, net.eval()))}
    steps = epochs * (len(data[0]) // batch)
    learner = LeJEPA(
        net,
        image_size=SIZE,
        projection_hidden_size=128,
        num_classes_K=16,
        sigreg_loss_kwargs={"num_slices": 64},
        views=MultiCrop(VIEWS),
    ).train()
    optimizer = torch.optim.AdamW(learner.parameters(), weight_decay=0.05, fused=True)
    warmup, cosine = LinearSchedule(0.0, lr, steps // 10), CosineSchedule(lr, 0.0, steps)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = min(warmup(step), cosine(step))
        loss = learner(data[0][torch.randint(len(data[0]), (batch,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    found["first"], found["last"] = sum(losses[:20]) / 20, sum(losses[-20:]) / 20
    with torch.inference_mode():
        found["spread"] = feature_spread(embed(net.eval(), data[2])).item()
    found["trained"] = knn_on_digits(partial(embed, net))
    return found


def test_neighbours_share_their_digit():
    torch.manual_seed(0)
    found = pretrain(ViT(**VIT))
    assert found["trained"] > found["untrained"] + 0.04
    assert found["last"] < 0.7 * found["first"]
    assert found["spread"] > 0.4
