"""With a tenth of the labels, a student learns more from a teacher than from the labels alone."""

import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import nn

from tests.papers.learning import accuracy, digits, learn
from vit_pytorch.distill import DistillableViT, DistillWrapper

SIZE = 20
STUDENT = {"patch_size": 4, "dim": 64, "depth": 2, "heads": 4, "dim_head": 16, "mlp_dim": 128, "channels": 1}


def convolution(dim: int, out_dim: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, out_dim, 3, padding=1), nn.BatchNorm2d(out_dim), nn.ReLU(), *after)


def compare(seed: int, epochs: int = 150) -> dict[str, float]:
    """Give the test accuracies of a convolutional teacher, of the student alone and of the taught one.

    The teacher and the student alone see the images with labels; the taught student sees the other images of
    the training part, too, of which it is told what the teacher says.
    """
    torch.manual_seed(seed)
    images, labels, *test = digits(SIZE)
    few, _ = train_test_split(range(len(labels)), train_size=0.1, stratify=labels, random_state=seed)
    teacher = nn.Sequential(
        convolution(1, 16, nn.MaxPool2d(2)),
        convolution(16, 32, nn.MaxPool2d(2)),
        convolution(32, 64, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(64, 10),
    )
    settings = {"images": images[few], "labels": labels[few], "batch": 36, "seed": seed}
    learn(teacher, lambda x, y: F.cross_entropy(teacher(x), y), epochs=60, **settings)
    found = {"teacher": accuracy(teacher, *test)}
    for name in ("alone", "taught"):
        torch.manual_seed(seed)
        student = DistillableViT(image_size=SIZE, num_classes=10, **STUDENT)
        wrapper = DistillWrapper(student=student, teacher=teacher, temperature=2.0)
        others = torch.Generator().manual_seed(seed)

        def loss(
            x, y, taught=name == "taught", student=student, wrapper=wrapper, others=others
        ) -> torch.Tensor:
            if not taught:
                return F.cross_entropy(student(x), y)
            more = images[torch.randint(len(images), (len(x),), generator=others)]
            return wrapper(x, y) + wrapper(more, torch.zeros_like(y), alpha=1.0)

        learn(student, loss, epochs=epochs, **settings)
        found[name] = accuracy(student, *test)
    return found


def test_a_student_learns_more_from_a_teacher():
    found = compare(seed=0, epochs=80)
    assert found["taught"] > found["alone"] + 0.02


if __name__ == "__main__":
    for seed in range(3):
        print(seed, compare(seed))
