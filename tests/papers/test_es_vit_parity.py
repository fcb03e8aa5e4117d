"""EsViT: the authors' losses, centres and gradients; regions of models in stages."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, randomise
from vit_pytorch import ViT
from vit_pytorch.cvt import CvT
from vit_pytorch.es_vit import EsViTLoss, EsViTTrainer, Regions, match_regions
from vit_pytorch.ssl.schedules import LinearSchedule
from vit_pytorch.twins_svt import TwinsSVT

TWINS = {
    "num_classes": 5,
    "image_size": 64,
    **{f"s{i}_emb_dim": 8 * i for i in range(1, 5)},
    **{f"s{i}_depth": 1 for i in range(1, 5)},
    **{f"s{i}_local_patch_size": 4 for i in range(1, 4)},
    **{f"s{i}_global_k": 2 for i in range(1, 4)},
    "s4_local_patch_size": 2,
    "s4_global_k": 2,
    "s1_patch_size": 2,
    "heads": (1, 2, 3, 4),
}
CVT = {"num_classes": 5, "image_size": 64, "s1_emb_dim": 8, "s2_emb_dim": 16, "s2_heads": 2, "s2_depth": 1}
CVT = {**CVT, "s3_emb_dim": 24, "s3_heads": 3, "s3_depth": 1}
VIT = {"image_size": 64, "patch_size": 8, "num_classes": 5, "dim": 24, "depth": 2, "heads": 2, "mlp_dim": 48}
SWIN = {"img_size": 64, "patch_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2)}
SMALL = {
    "image_size": 64,
    "projection_hidden_size": 32,
    "bottleneck_dim": 16,
    "num_classes_K": 40,
    "num_local_crops": 2,
}


def read_regions(found, part, call, crops, config) -> Regions:
    """Give the authors' flat tensors, crop by crop, as ours."""
    batch, patches = config["batch"], config["npatch"]
    sizes = [patches[0] if v < 2 else patches[1] for v in range(crops)]

    def split(name):
        parts = found[f"{part}.{name}"][call].split([batch * n for n in sizes])
        return [x.unflatten(0, (batch, -1)) for x in parts]

    views = found[f"{part}.cls"][call].unflatten(0, (crops, batch))
    return Regions(views=views, cells=split("region"), features=split("feature"))


def test_the_authors_loss():
    config, _, found = read_golden("esvit_ddino_loss")
    loss = EsViTLoss(config["out_dim"], student_temp=0.1, center_decay=config["center_momentum"])
    loss.views.centre.value.copy_(found["centre_before"][0])
    loss.region_centre.value.copy_(found["centre_grid_before"][0])
    temperature = LinearSchedule(0.04, 0.07, config["warmup_teacher_temp_epochs"] - 1)
    for call, epoch in enumerate(config["epochs"]):
        temp = temperature(epoch)
        assert temp == pytest.approx(found["teacher_temp"][call].item())
        for name in ("cls", "region"):
            found[f"student.{name}"].requires_grad_().grad = None
        student = read_regions(found, "student", call, config["ncrops"], config)
        teacher = read_regions(found, "teacher", call, 2, config)
        value = loss(student, teacher, temp)
        value.backward()
        torch.testing.assert_close(value, found["loss"][call], atol=TOLERANCE, rtol=TOLERANCE)
        for name in ("cls", "region"):
            grad, expected = found[f"student.{name}"].grad[call], found[f"student_grad.{name}"][call]
            assert expected.abs().max() > 1e-3
            torch.testing.assert_close(grad, expected, atol=1e-6, rtol=TOLERANCE)
        parts = copy.deepcopy(loss).eval()
        views = parts.views(student.views, teacher.views, temp)
        torch.testing.assert_close(views, found["loss_view"][call], atol=TOLERANCE, rtol=TOLERANCE)
        regions = parts.compare_regions(student, teacher, temp)
        torch.testing.assert_close(regions, found["loss_region"][call], atol=TOLERANCE, rtol=TOLERANCE)
        loss.update_centre()
        for centre, name in ((loss.views.centre, "centre"), (loss.region_centre, "centre_grid")):
            expected = found[f"{name}_after"][call, 0]
            torch.testing.assert_close(centre.value, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_regions_are_matched_by_cosine():
    student = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    teacher = torch.tensor([[[0.1, 0.01], [9.0, 9.0], [-1.0, 1.0], [0.0, 0.001]]])
    assert match_regions(student, teacher).tolist() == [[0, 3]]
    products = (student @ teacher.transpose(1, 2)).argmax(dim=2)
    assert products.tolist() == [[1, 1]]


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    kinds = {"cvt": lambda: CvT(**CVT), "twins": lambda: TwinsSVT(**TWINS), "vit": lambda: ViT(**VIT)}
    if name == "swin":
        return SwinTransformer(**SWIN, window_size=2, num_classes=3, strict_img_size=False)
    return kinds[name]()


@pytest.mark.parametrize("name", ["cvt", "twins", "vit", "swin"])
def test_embedding_and_cells_are_the_models(name):
    net = randomise(make(name))
    trainer = EsViTTrainer(net, **SMALL, hidden_layer="layers")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        view, cells = trainer.student.embed(images)
        torch.testing.assert_close(view, net.forward_head(net.forward_features(images), pre_logits=True))
        maps = net.forward_intermediates(images, indices=[len(net.feature_info) - 1], norm=True)[1][0]
    torch.testing.assert_close(cells, maps.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("name", ["cvt", "twins", "vit", "swin"])
def test_every_part_of_the_model_learns(name):
    net = randomise(make(name)).train()
    trainer = EsViTTrainer(net, **SMALL, local_image_size=32)
    assert trainer.student.net is net
    trainer(torch.randn(3, 3, 64, 64)).backward()
    trainer.update_moving_average()
    idle = {part for part, p in trainer.student.named_parameters() if p.requires_grad and p.grad is None}
    assert idle == {part for part, _ in trainer.student.named_parameters() if part.startswith("net.head.")}
    for centre in (trainer.criterion.views.centre, trainer.criterion.region_centre):
        assert centre.value.abs().max() > 0


def test_cells_of_each_crop_stay_together():
    trainer = EsViTTrainer(randomise(make("twins")), **SMALL).eval()
    crops = [torch.randn(3, 3, size, size) for size in (64, 64, 32, 32)]
    with torch.no_grad():
        together = trainer.student(crops)
        for v, crop in enumerate(crops):
            alone = trainer.student([crop])
            torch.testing.assert_close(together.views[v], alone.views[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(together.cells[v], alone.cells[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(together.features[v], alone.features[0], atol=1e-4, rtol=1e-4)


def test_a_stage_can_be_the_hidden_layer():
    net = randomise(make("twins"))
    images = torch.randn(2, 3, 64, 64)
    maps = net.forward_intermediates(images, [1], intermediates_only=True)[0]
    for layer in (1, "stages.1", net.stages[1]):
        view, cells = EsViTTrainer(net, **SMALL, hidden_layer=layer).student.embed(images)
        torch.testing.assert_close(cells, maps.flatten(2).transpose(1, 2))
        torch.testing.assert_close(view, maps.mean(dim=(2, 3)))
    with pytest.raises(ValueError, match=r"layers that give a map are stages.0, .*; got norm"):
        EsViTTrainer(net, **SMALL, hidden_layer="norm")


def test_region_head_norms_channels():
    trainer = EsViTTrainer(randomise(make("cvt")), **SMALL).eval()
    norms = []
    trainer.student.region_head.last_layer.register_forward_pre_hook(
        lambda _, inputs: norms.append(inputs[0].norm(dim=-1))
    )
    with torch.no_grad():
        trainer.student([torch.randn(2, 3, 64, 64)])
    torch.testing.assert_close(norms[0], torch.ones(2 * 4 * 4))


def test_weights_of_views_and_regions():
    config, _, found = read_golden("esvit_ddino_loss")
    student = read_regions(found, "student", 0, config["ncrops"], config)
    teacher = read_regions(found, "teacher", 0, 2, config)
    views, regions, both = (
        EsViTLoss(config["out_dim"], region_weight=weight)(student, teacher, 0.04)
        for weight in (0.0, 1.0, 0.25)
    )
    torch.testing.assert_close(both, 0.75 * views + 0.25 * regions)
    with pytest.raises(ValueError, match=r"region_weight must be a number in .*, got 1.5"):
        EsViTLoss(8, region_weight=1.5)


def test_everything_is_in_the_state():
    trainer = EsViTTrainer(make("cvt"), **SMALL)
    names = set(trainer.state_dict())
    assert {"criterion.views.centre.value", "criterion.region_centre.value", "steps"} <= names
    assert {"student.region_head.last_layer.weight", "teacher.model.region_head.last_layer.weight"} <= names


def test_the_loss_is_that_of_all_pairs_of_cells():
    loss = EsViTLoss(6).eval()
    cells = [torch.randn(2, n, 6) for n in (4, 4, 2)]
    features = [torch.randn(2, n, 5) for n in (4, 4, 2)]
    student = Regions(torch.randn(3, 2, 6), cells, features)
    teacher = Regions(torch.randn(2, 2, 6), [torch.randn(2, 4, 6) for _ in range(2)], features[1::-1])
    pairs = []
    for q in range(2):
        for v in range(3):
            if v == q:
                continue
            found = []
            for b in range(2):
                for n in range(cells[v].shape[1]):
                    alike = F.cosine_similarity(features[v][b, n], teacher.features[q][b], dim=-1)
                    said = (teacher.cells[q][b, alike.argmax()] / 0.04).softmax(dim=0)
                    found.append(-(said * (cells[v][b, n] / 0.1).log_softmax(dim=0)).sum())
            pairs.append(torch.stack(found).mean())
    torch.testing.assert_close(loss.compare_regions(student, teacher, 0.04), torch.stack(pairs).mean())
