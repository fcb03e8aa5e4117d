"""Time a training step of MAE and of DINO at ViT-S/16, beside other libraries, all in turn in one process.

    pip install --no-deps --target FOLDER lightly lightly-utils
    PYTHONPATH=FOLDER python benchmarks/learning_speed.py

A step is the loss, its gradients, AdamW, and for DINO the moving average. A ratio is the other library's time
by ours, a median over rounds: above 1, ours is faster. Crops are given, so that no augmentation is timed.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_pytorch import MAE, Dino, create_model

MODEL = "vit_small_patch16_224"
LOGITS, LOCALS, LOCAL_SIZE = 65536, 8, 96
Step = Callable[[], None]


def make_step(
    parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor], after: Step = lambda: None
) -> Step:
    """Make a step of training from what computes the loss."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        after()

    return step


def our_mae(images: Tensor) -> Step:
    """Make a step of ours: an encoder of the visible quarter, and the published decoder of 8 blocks."""
    learner = MAE(encoder=create_model(MODEL, num_classes=0), norm_pix_loss=True).train()
    return make_step(learner.parameters(), lambda: learner(images))


def transformers_mae(images: Tensor) -> Step:
    """Make a step of transformers'."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, norm_pix_loss=True, image_size=224
    )
    learner: Any = ViTMAEForPreTraining(config).train()
    return make_step(learner.parameters(), lambda: learner(pixel_values=images).loss)


def lightly_mae(images: Tensor) -> Step:
    """Make a step of lightly's, as its example does, with timm's ViT."""
    import timm
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

    encoder = MaskedVisionTransformerTIMM(vit=timm.create_model(MODEL, num_classes=0))
    decoder = MAEDecoderTIMM(
        num_patches=196,
        patch_size=16,
        embed_dim=384,
        decoder_embed_dim=512,
        decoder_depth=8,
        decoder_num_heads=16,
        mlp_ratio=4.0,
        proj_drop_rate=0.0,
        attn_drop_rate=0.0,
    )

    def loss() -> Tensor:
        size = (len(images), encoder.sequence_length)
        keep, mask = utils.random_token_mask(size=size, mask_ratio=0.75, device=images.device)
        x = decoder.embed(encoder.encode(images=images, idx_keep=keep))
        masked = utils.repeat_token(decoder.mask_token, size)
        masked = utils.set_at_index(masked, keep, x.type_as(masked))
        predicted = decoder.predict(utils.get_at_index(decoder.decode(masked), mask))
        target = utils.get_at_index(utils.patchify(images, 16), mask - 1)
        return F.mse_loss(predicted, utils.normalize_mean_var(target, dim=-1))

    return make_step([*encoder.parameters(), *decoder.parameters()], loss)


def our_dino(crops: list[Tensor]) -> Step:
    """Make a step of ours."""
    net = create_model(MODEL, num_classes=0)
    learner = Dino(net, image_size=224, num_classes_K=LOGITS, num_local_crops=LOCALS).train()
    return make_step(learner.parameters(), lambda: learner(crops), learner.update_moving_average)


def lightly_dino(crops: list[Tensor]) -> Step:
    """Make a step of lightly's, as its example does, with timm's ViT."""
    import timm
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    student = timm.create_model(MODEL, num_classes=0, dynamic_img_size=True)
    head = DINOProjectionHead(384, 2048, 256, LOGITS, freeze_last_layer=0)
    teacher, teacher_head = copy.deepcopy(student), DINOProjectionHead(384, 2048, 256, LOGITS)
    deactivate_requires_grad(teacher)
    deactivate_requires_grad(teacher_head)
    criterion = DINOLoss(output_dim=LOGITS)

    def loss() -> Tensor:
        with torch.no_grad():
            said = [teacher_head(teacher(crop)) for crop in crops[:2]]
        heard = [head(student(crop)) for crop in crops]
        value: Tensor = criterion(said, heard, epoch=0)
        return value

    def follow() -> None:
        update_momentum(student, teacher, m=0.996)
        update_momentum(head, teacher_head, m=0.996)

    return make_step([*student.parameters(), *head.parameters()], loss, follow)


def compare(name: str, steps: dict[str, Step], rounds: int) -> None:
    """Time the steps in turn, and print ratios."""
    times: dict[str, list[float]] = {library: [] for library in steps}
    for step in steps.values():
        step()
        step()
    for turn in range(rounds):
        order = list(steps) if turn % 2 == 0 else list(steps)[::-1]
        for library in order:
            start = perf_counter()
            steps[library]()
            times[library].append(perf_counter() - start)
    ours = times.pop("ours")
    ratios = [
        f"{library} {median(a / b for a, b in zip(theirs, ours, strict=True)):.2f}"
        for library, theirs in times.items()
    ]
    print(f"{name}: ours {1000 * median(ours):.0f} ms, ratios: {', '.join(ratios)}", flush=True)


def main() -> None:
    """Compare both methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--methods", nargs="+", default=["MAE", "DINO"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    images = torch.randn(given.batch, 3, 224, 224)
    if "MAE" in given.methods:
        makers = {"ours": our_mae, "transformers": transformers_mae, "lightly": lightly_mae}
        compare("MAE", {library: make(images) for library, make in makers.items()}, given.rounds)
    if "DINO" in given.methods:
        local = torch.randn(LOCALS, given.batch, 3, LOCAL_SIZE, LOCAL_SIZE)
        crops = [images, images.flip(3), *local]
        compare("DINO", {"ours": our_dino(crops), "lightly": lightly_dino(crops)}, given.rounds)


if __name__ == "__main__":
    main()
