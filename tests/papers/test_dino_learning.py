"""DINO and EsViT learn without labels: losses fall, nothing collapses, and neighbours share their digit."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from tests.papers.learning import digits
from tests.ssl.digits import SIZE, knn_on_digits
from vit_pytorch import Dino, ViT
from vit_pytorch.es_vit import EsViTTrainer, Regions
from vit_pytorch.ssl.collapse import feature_spread, prediction_entropy, usage_entropy
from vit_pytorch.ssl.schedules import CosineSchedule, LinearSchedule
from vit_pytorch.ssl.views import MultiCrop, View
from vit_pytorch.twins_svt import TwinsSVT

LOCAL, CLASSES, TEMPERATURE = 12, 64, 0.04
DISTORTIONS = {"flip": 0.0, "grey": 0.0, "colour": 0.5, "blur": 0.1, "sigma": (0.1, 0.5)}
VIEWS = (
    *[View((SIZE, SIZE), (0.6, 1.0), **DISTORTIONS)] * 2,
    *[View((LOCAL, LOCAL), (0.4, 0.7), **DISTORTIONS)] * 2,
)


def embed(net: nn.Module, images: Tensor) -> Tensor:
    return net.forward_head(net.forward_features(images), pre_logits=True)


VIT = {
    "image_size": SIZE,
    "patch_size": 4,
    "num_classes": 0,
    "dim": 64,
    "depth": 2,
    "heads": 4,
    "dim_head": 16,
    "mlp_dim": 128,
    "channels": 1,
    "pool": "mean",
}


TWINS = {"num_classes": 0, "channels": 1}
for stage, (dim, patch) in enumerate(((32, 2), (64, 2), (64, 1), (64, 1)), start=1):
    TWINS |= {f"s{stage}_emb_dim": dim, f"s{stage}_patch_size": patch, f"s{stage}_local_patch_size": 5}
    TWINS |= {f"s{stage}_global_k": 2, f"s{stage}_depth": 1}


def pretrain(
    net: nn.Module, kind: type[Dino] = Dino, *, epochs: int = 22, batch: int = 64, lr: float = 5e-3
) -> dict[str, float]:
    """Pretrain a small model on the digits; say what it is worth before and after, and how near collapse."""
    data = digits(SIZE)
    found = {"untrained": knn_on_digits(partial(embed, net.eval()))}
    steps = epochs * (len(data[0]) // batch)
    learner = kind(
        net,
        image_size=SIZE,
        projection_hidden_size=128,
        bottleneck_dim=32,
        num_classes_K=CLASSES,
        teacher_temp=TEMPERATURE,
        moving_average_decay=CosineSchedule(0.98, 1.0, steps),
        views=MultiCrop(VIEWS),
    ).train()
    optimizer = torch.optim.AdamW(learner.parameters(), weight_decay=0.04, fused=True)
    warmup, cosine = LinearSchedule(0.0, lr, steps // 10), CosineSchedule(lr, 0.0, steps)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = min(warmup(step), cosine(step))
        loss = learner(data[0][torch.randint(len(data[0]), (batch,))])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 3.0)
        optimizer.step()
        learner.update_moving_average()
        losses.append(loss.item())
    learner.eval()
    with torch.inference_mode():
        said, loss = learner.teacher([data[2]]), learner.criterion
        if isinstance(said, Regions):
            said, loss = said.views, loss.views
        said = (said[0] - loss.centre.value) / TEMPERATURE
        found["spread"] = feature_spread(embed(net, data[2])).item()
    found["prediction"], found["usage"] = prediction_entropy(said).item(), usage_entropy(said).item()
    # the loss rises until the centre has settled
    settled = steps // 3
    found["settled"] = sum(losses[settled : settled + 20]) / 20
    found["last"] = sum(losses[-20:]) / 20
    found["trained"] = knn_on_digits(partial(embed, net))
    return found


def test_neighbours_share_their_digit():
    torch.manual_seed(0)
    found = pretrain(ViT(**VIT))
    assert found["trained"] > found["untrained"] + 0.05
    assert found["last"] < found["settled"] - 0.3 < math.log(CLASSES) - 0.3
    assert found["spread"] > 0.4
    assert found["prediction"] < 0.8 * math.log(CLASSES) < found["usage"]


def test_a_model_in_stages_learns_views_and_regions():
    torch.manual_seed(0)
    found = pretrain(TwinsSVT(**TWINS), EsViTTrainer, epochs=12, lr=2e-3)
    assert found["trained"] > found["untrained"] + 0.02
    assert found["last"] < found["settled"] < math.log(CLASSES)
    assert found["spread"] > 0.4
    assert found["prediction"] < found["usage"] - 0.2


if __name__ == "__main__":
    for seed in range(3):
        torch.manual_seed(seed)
        print(seed, {name: round(value, 3) for name, value in pretrain(ViT(**VIT)).items()})
