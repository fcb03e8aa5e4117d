"""DINO's projection head and loss against the authors', and what our centre promises."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, randomise
from vit_pytorch.ssl.center import Centre
from vit_pytorch.ssl.heads import NormedLinear, ProjectionHead


def load_official(head: ProjectionHead, weights: dict[str, torch.Tensor]) -> None:
    names = {"last_layer.weight_v": "last_layer.weight", "last_layer.weight_g": "last_layer.gain"}
    head.load_state_dict({names.get(name, name): tensor for name, tensor in weights.items()})


@pytest.mark.parametrize("name", ["dino_head", "dino_head_free_g"])
def test_the_authors_head(name):
    config, weights, found = read_golden(name)
    head = ProjectionHead(
        config["in_dim"],
        config["out_dim"],
        hidden_dim=config["hidden_dim"],
        bottleneck_dim=config["bottleneck_dim"],
        layers=config["nlayers"],
        use_bn=config["use_bn"],
        norm_last_layer=config["norm_last_layer"],
    ).eval()
    load_official(head, weights)
    assert difference(head(found["input"]), found["output"]) < TOLERANCE
    trainable = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
    assert ("last_layer.gain" in trainable) != config["norm_last_layer"]


def test_the_size_of_the_papers_head():
    with torch.device("meta"):
        head = ProjectionHead(384, 65536)
    assert sum(parameter.numel() for parameter in head.parameters()) == 22_352_128
    assert sum(p.numel() for p in head.parameters() if p.requires_grad) == 22_286_592


def test_rows_of_the_last_layer_have_length_one():
    layer = randomise(NormedLinear(8, 20))
    with torch.no_grad():
        layer.gain.fill_(1)
        layer.weight.mul_(7)
    x = torch.randn(5, 8)
    cosine = F.cosine_similarity(x[:, None], layer.weight[None], dim=2)
    torch.testing.assert_close(layer(F.normalize(x, dim=1)), cosine)
    assert not hasattr(layer, "bias")


def test_nothing_stands_between_the_last_linear_layer_and_the_sphere():
    head = ProjectionHead(8, 20, hidden_dim=16, bottleneck_dim=4, layers=3)
    kinds = [type(part).__name__ for part in head.mlp]
    assert kinds == ["Linear", "GELU", "Linear", "GELU", "Linear"]


def test_a_frozen_last_layer_passes_gradients_on_and_takes_none():
    head = ProjectionHead(8, 20, hidden_dim=16, bottleneck_dim=4)
    x = torch.randn(5, 8)
    assert torch.equal(head(x, freeze_last_layer=True), head(x))
    head(x, freeze_last_layer=True).square().sum().backward()
    assert head.last_layer.weight.grad is None
    assert head.mlp[0].weight.grad.abs().max() > 0


def test_a_head_has_a_layer():
    head = ProjectionHead(8, 20, bottleneck_dim=4, layers=1)
    assert [tuple(part.weight.shape) for part in head.mlp] == [(4, 8)]
    with pytest.raises(ValueError, match=r"layers must be an integer in .*, got 0"):
        ProjectionHead(8, 20, layers=0)


def test_a_centre_moves_at_updates_alone():
    centre = Centre(6, decay=0.75)
    first, second = torch.randn(4, 6), torch.randn(2, 3, 6)
    for logits in (first, second):
        said = centre(logits, 0.5)
        torch.testing.assert_close(said, (logits / 0.5).softmax(dim=-1))
    assert centre.value.abs().max() == 0
    centre.update()
    mean = torch.cat([first, second.flatten(0, 1)]).mean(dim=0)
    torch.testing.assert_close(centre.value, 0.25 * mean)
    centre.update()
    torch.testing.assert_close(centre.value, 0.25 * mean)
    torch.testing.assert_close(centre(first, 0.5), ((first - 0.25 * mean) / 0.5).softmax(dim=-1))


def test_a_centre_learns_nothing_in_eval():
    centre = Centre(6).eval()
    centre(torch.randn(4, 6), 1.0)
    centre.update()
    assert centre.value.abs().max() == 0


def test_a_centre_stays_in_full_precision():
    parent = torch.nn.ModuleDict({"centre": Centre(64)})
    centre = parent["centre"]
    centre.value.normal_()
    exact = centre.value.clone()
    parent.to(torch.bfloat16)
    assert torch.equal(centre.value, exact)
    logits = torch.randn(4, 64).bfloat16()
    assert centre(logits, 0.1).dtype == torch.float32
    assert list(parent.state_dict()) == ["centre.value"]


def test_a_centres_decay_is_a_part():
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 2.0"):
        Centre(6, decay=2.0)


def centre_of_a_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    centre = Centre(3, decay=0.5)
    centre(torch.full((1 + 2 * rank, 3), 4.0 * rank), 1.0)
    centre.update()
    torch.save(centre.value, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_a_centre_counts_the_logits_of_all_processes(tmp_path):
    torch.multiprocessing.spawn(centre_of_a_process, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), torch.full((3,), 0.5 * 12 / 4))
