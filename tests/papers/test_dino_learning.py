"""DINO learns without labels: the loss falls, nothing collapses, and neighbours share their digit."""

import math

import torch
import torch.nn.functional as F

from tests.papers.learning import digits
from vit_pytorch import Dino, ViT
from vit_pytorch.learning.collapse import feature_spread, prediction_entropy, usage_entropy
from vit_pytorch.learning.schedules import CosineSchedule, LinearSchedule
from vit_pytorch.learning.views import MultiCrop, View

SIZE, LOCAL, CLASSES = 20, 12, 256
DISTORT = {"flip": 0.0, "colour": 0.5, "grey": 0.0, "blur": 0.1, "sigma": (0.1, 0.5)}
VIEWS = (*[View((SIZE, SIZE), (0.4, 1.0), **DISTORT)] * 2, *[View((LOCAL, LOCAL), (0.2, 0.5), **DISTORT)] * 2)


def neighbours(net, images, labels, test_images, test_labels, k=5):
    with torch.inference_mode():
        train, test = (
            F.normalize(net.forward_head(net.forward_features(x), pre_logits=True), dim=1)
            for x in (images, test_images)
        )
    votes = labels[(test @ train.T).topk(k).indices]
    return (votes.mode(dim=1).values == test_labels).float().mean().item()


def pretrain(seed, epochs=20, batch=64, lr=1e-3, temp=0.07, m=0.98, pool="cls", **settings):
    torch.manual_seed(seed)
    data = digits(SIZE)
    net = ViT(
        image_size=SIZE,
        patch_size=4,
        num_classes=0,
        dim=64,
        depth=2,
        heads=4,
        dim_head=16,
        mlp_dim=128,
        channels=1,
        pool=pool,
    )
    before = neighbours(net.eval(), *data)
    steps = epochs * (len(data[0]) // batch)
    dino = Dino(
        net.train(),
        image_size=SIZE,
        projection_hidden_size=128,
        bottleneck_dim=32,
        num_classes_K=CLASSES,
        teacher_temp=temp,
        moving_average_decay=CosineSchedule(m, 1.0, steps),
        views=MultiCrop(VIEWS),
        **settings,
    )
    optimizer = torch.optim.AdamW([p for p in dino.parameters() if p.requires_grad], lr=lr, weight_decay=0.04)
    warmup = LinearSchedule(0, lr, steps // 10)
    cosine = CosineSchedule(lr, 0, steps)
    losses = []
    step = 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(data[0]))[: len(data[0]) // batch * batch].split(batch):
            optimizer.param_groups[0]["lr"] = min(warmup(step), cosine(step))
            loss = dino(data[0][chosen])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(dino.parameters(), 3.0)
            optimizer.step()
            dino.update_moving_average()
            losses.append(loss.item())
            step += 1
    net.eval()
    dino.eval()
    with torch.inference_mode():
        logits = (dino.teacher([data[2]])[0] - dino.criterion.centre.value) / 0.07
        feats = net.forward_head(net.forward_features(data[2]), pre_logits=True)
    return dict(
        before=before,
        after=neighbours(net, *data),
        first=losses[0],
        curve=[round(sum(losses[i : i + 40]) / 40, 2) for i in range(0, len(losses) - 39, 40)],
        last=sum(losses[-10:]) / 10,
        spread=feature_spread(feats).item(),
        entropy=prediction_entropy(logits).item(),
        usage=usage_entropy(logits).item(),
    )


if __name__ == "__main__":
    import sys, time

    for seed in range(int(sys.argv[1])):
        t = time.perf_counter()
        print(seed, pretrain(seed, epochs=int(sys.argv[2]), lr=float(sys.argv[3])), time.perf_counter() - t)
