"""One package's process: teaches the models it is asked for, and answers each request with a line of JSON."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from learning_cases import CASES, PLAIN, LearningCase
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

BATCH, LR = 32, 1e-3
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Teacher(nn.Module):
    """A small convolutional network, which distillation learns from."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(32 * (size // 4) ** 2, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.convs(images))


class Taught:
    """Images and labels as a case takes them, and how its model is called on them.

    Args:
        case: the case.
        path: file of `images`, `labels`, `test_images` and `test_labels`.
    """

    def __init__(self, case: LearningCase, path: str) -> None:
        data = torch.load(path)
        self.case = case
        self.images, self.test_images = (self.prepare(data[name]) for name in ("images", "test_images"))
        self.labels, self.test_labels = data["labels"], data["test_labels"]

    def prepare(self, images: Tensor) -> Tensor:
        """Resize the images, and make videos or sequences of them."""
        if self.case.kind == "sequence":
            return F.interpolate(images[:, :1], (8, 8), mode="area").flatten(2)
        size = (self.case.size, self.case.size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        images = images.expand(-1, 3, -1, -1).contiguous()
        if self.case.kind == "video":
            return torch.stack([images.roll(frame - 4, dims=3) for frame in range(8)], dim=2)
        return images

    def call(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return a model's logits."""
        given = list(images) if self.case.kind == "list" else images
        logits = model(given, **self.case.call)
        return logits[0] if isinstance(logits, tuple) else logits

    def classify(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy."""
        return F.cross_entropy(self.call(model, images), labels)

    def teach(self, model: nn.Module, loss: Loss, steps: int, order: torch.Generator) -> None:
        """Train what has gradients by AdamW with PyTorch's defaults, without schedule or augmentation."""
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
        model.train()
        for _ in range(steps):
            chosen = torch.randint(len(self.labels), (BATCH,), generator=order)
            value = loss(model, self.images[chosen], self.labels[chosen])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            vars(type(model)).get("update_moving_average", lambda _: None)(model)
        model.eval()

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Return the share of test images that a model classifies right."""
        pairs = zip(self.test_images.split(128), self.test_labels.split(128), strict=True)
        right = [self.call(model, images).argmax(dim=1) == labels for images, labels in pairs]
        return torch.cat(right).float().mean().item()

    def probe(self, encode: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """Return what features are worth to the 5 nearest neighbours and to a linear classifier."""
        with torch.no_grad():
            known, asked = (
                torch.cat([encode(part).flatten(1) for part in images.split(128)]).numpy()
                for images in (self.images, self.test_images)
            )
        nearest = KNeighborsClassifier(5).fit(known, self.labels)
        scaler = StandardScaler().fit(known)
        linear = LogisticRegression(max_iter=500).fit(scaler.transform(known), self.labels)
        return (
            float(nearest.score(asked, self.test_labels)),
            float(linear.score(scaler.transform(asked), self.test_labels)),
        )


def part(module: str, name: str) -> Any:
    """Import a class of the package in this process."""
    return getattr(import_module(f"vit_pytorch.{module}"), name)


def build(case: LearningCase, *, ours: bool) -> nn.Module:
    """Build the model of a case."""
    module, name, arguments = case.module, case.name, dict(case.arguments)
    if ours and case.ours is not None:
        module, name, arguments = case.ours[0], case.ours[1], dict(case.ours[2])
    if case.wrapper == "nystrom":
        from nystrom_attention import Nystromformer

        arguments["transformer"] = Nystromformer(dim=64, depth=4, heads=4, num_landmarks=16)
    if case.wrapper == "x-transformers":
        from x_transformers import Encoder

        arguments["transformer"] = Encoder(dim=64, depth=4, heads=4, ff_glu=True, residual_attn=True)
    return part(module, name)(**arguments)


def learn(name: str, data: str, *, seed: int, steps: int, ours: bool) -> dict[str, Any]:
    """Teach a model its labels and return its accuracy on the test images, and its class."""
    case = CASES[name]
    taught = Taught(case, data)
    torch.manual_seed(seed)
    model = build(case, ours=ours)
    order = torch.Generator().manual_seed(seed)
    if case.wrapper in ("soft", "hard"):
        teacher = Teacher(case.size)
        taught.teach(teacher, lambda m, x, y: F.cross_entropy(m(x), y), steps, order)
        settings = {"temperature": 3, "alpha": 0.5, "hard": case.wrapper == "hard"}
        learner = part("distill", "DistillWrapper")(
            student=model, teacher=teacher.requires_grad_(False), **settings
        )
        taught.teach(learner, lambda m, x, y: m(x, y), steps, order)
        model.eval()
    else:
        taught.teach(model, taught.classify, steps, order)
    if case.wrapper == "adapter":
        model = part("learnable_memory_vit", "Adapter")(vit=model, num_classes=10, num_memories_per_layer=5)
        taught.teach(model, taught.classify, steps, order)
    return {"accuracy": taught.accuracy(model), "architecture": type(model).__name__}


METHODS = ("MAE", "SimMIM", "MPP", "MP3", "DINO", "EsViT")
VIEWS = {
    "projection_hidden_size": 64,
    "projection_layers": 4,
    "num_classes_K": 256,
    "student_temp": 0.9,
    "teacher_temp": 0.04,
    "local_upper_crop_scale": 0.4,
    "global_lower_crop_scale": 0.5,
    "moving_average_decay": 0.9,
    "center_moving_average_decay": 0.9,
}


def wrap(method: str, model: nn.Module, size: int) -> nn.Module:
    """Put a documented method of learning without labels around a model."""
    if method == "MAE":
        return part("mae", "MAE")(encoder=model, masking_ratio=0.75, decoder_dim=64, decoder_depth=2)
    if method == "SimMIM":
        return part("simmim", "SimMIM")(encoder=model, masking_ratio=0.5)
    if method == "MPP":
        shares = {"mask_prob": 0.15, "random_patch_prob": 0.3, "replace_prob": 0.5}
        return part("mpp", "MPP")(transformer=model, patch_size=4, dim=64, **shares)
    if method == "MP3":
        return part("mp3", "MP3")(vit=model, masking_ratio=0.75)
    if method == "DINO":
        return part("dino", "Dino")(model, image_size=size, hidden_layer="to_latent", **VIEWS)
    return part("es_vit", "EsViTTrainer")(model, image_size=size, hidden_layer="layers", **VIEWS)


def encoder(model: nn.Module, *, ours: bool) -> Callable[[Tensor], Tensor]:
    """Return the function of a model that gives what its classifier would see."""
    if ours:
        features: Any = model
        return lambda images: features.forward_head(features.forward_features(images), pre_logits=True)
    name = next(name for name in ("mlp_head", "linear_head", "to_logits") if hasattr(model, name))
    head = getattr(model, name)
    bare = nn.Identity() if isinstance(head, nn.Linear) else nn.Sequential(*head[:-1])

    def encode(images: Tensor) -> Tensor:
        setattr(model, name, bare)
        try:
            return model(images)
        finally:
            setattr(model, name, head)

    return encode


def learn_without_labels(method: str, data: str, *, seed: int, steps: int, ours: bool) -> dict[str, float]:
    """Teach a model by a method, and return what its features are worth before and after."""
    case = (
        CASES["CvT"] if method == "EsViT" else LearningCase("mp3" if method == "MP3" else "vit", "ViT", PLAIN)
    )
    taught = Taught(case, data)
    torch.manual_seed(seed)
    model = build(case, ours=ours)
    learner = wrap(method, model, case.size)
    encode = encoder(model, ours=ours)
    knn, linear = taught.probe(encode)
    taught.teach(learner, lambda m, x, _: m(x), steps, torch.Generator().manual_seed(seed))
    model.eval()
    knn_after, linear_after = taught.probe(encode)
    return {"knn": knn, "knn after": knn_after, "linear": linear, "linear after": linear_after}


def main() -> None:
    """Answer requests on standard input until it closes."""
    package, data, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # Two of the public package's models run into denormal numbers, which cost them a factor of ten.
    torch.set_flush_denormal(True)
    for line in sys.stdin:
        request = json.loads(line)
        name = request["name"]
        teach = learn_without_labels if name in METHODS else learn
        try:
            found: dict[str, Any] = teach(
                name, data, seed=request["seed"], steps=steps, ours=package == "ours"
            )
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({**request, **found}), flush=True)


if __name__ == "__main__":
    main()
