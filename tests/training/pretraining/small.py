"""Small pretrainings on few digits, by the parts of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric import seed_everything
from torch import Tensor

from tests.training.toy import Losses, make_loop
from vit_pytorch.data import Augmentation, Splits, open_data
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.config import DataConfig
from vit_pytorch.training.loop import Loop
from vit_pytorch.training.optim import OptimizerConfig, ScheduleConfig
from vit_pytorch.training.pretraining.config import (
    DinoConfig,
    EsViTConfig,
    LeJEPAConfig,
    MAEConfig,
    MethodConfig,
    MonitorConfig,
    MP3Config,
    MPPConfig,
    PretrainConfig,
    SimMIMConfig,
)
from vit_pytorch.training.pretraining.monitor import Monitor
from vit_pytorch.training.pretraining.run import build, make_task
from vit_pytorch.training.resume import fit

HEADS: dict[str, Any] = {
    "num_logits": 24,
    "hidden_dim": 16,
    "bottleneck_dim": 8,
    "num_local_crops": 1,
    "local_size": 6,
    "freeze_last_layer_epochs": 0.5,
    "warmup_teacher_temp_epochs": 2,
    "momentum": 0.9,
}
METHODS: dict[str, MethodConfig] = {
    "mae": MAEConfig(decoder_dim=16, decoder_depth=1, decoder_heads=2),
    "simmim": SimMIMConfig(mask_patch_size=2),
    "mpp": MPPConfig(),
    "mp3": MP3Config(masking_ratio=0.5),
    "dino": DinoConfig(**HEADS),
    "esvit": EsViTConfig(**HEADS),
    "lejepa": LeJEPAConfig(
        embedding_dim=8, hidden_dim=16, projection_layers=2, num_slices=16, num_local_crops=1, local_size=6
    ),
}
VIT = {
    "name": "vit_tiny_patch16_224",
    "image_size": 12,
    "patch_size": 2,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "dim_head": 8,
    "mlp_dim": 32,
    "dropout": 0.1,
}


def few_digits(train: int = 96) -> Splits:
    whole = open_data("digits", seed=0, val_fraction=0.1, test_fraction=0.2)
    few = {"train": whole.train.subset(torch.arange(train)), "val": whole.val.subset(torch.arange(40))}
    return Splits(classes=whole.classes, **few)


def settings(method: str | MethodConfig, **options: Any) -> PretrainConfig:
    given: dict[str, Any] = {
        "model": VIT,
        "method": METHODS[method] if isinstance(method, str) else method,
        "data": DataConfig(interpolation="bilinear"),
        "augmentation": Augmentation(shift=1),
        "optimizer": OptimizerConfig(lr=0.003),
        "schedule": ScheduleConfig(warmup_epochs=1),
        "epochs": 3,
        "batch_size": 16,
        **options,
    }
    return PretrainConfig(**given)


def pretrain(
    folder: Path,
    config: PretrainConfig,
    *extra: Callback,
    resume: Path | None = None,
    splits: Splits | None = None,
    **options: Any,
) -> tuple[Losses, dict[str, Tensor], Loop]:
    """Train; give the losses of every step, the weights of everything that learned, and the loop."""
    splits = few_digits() if splits is None else splits
    seed_everything(5, verbose=False)
    _, data, method = build(config, splits)
    losses = Losses()
    loop = make_loop(
        folder,
        make_task(config, method, splits),
        data,
        epochs=config.epochs,
        monitor=None,
        callbacks=[losses, Monitor(config.monitor, data), *extra],
        accumulate=config.accumulate,
        clip=config.clip,
        keep=100,
        **options,
    )
    fit(loop, resume)
    return losses, {name: value.clone() for name, value in method.state_dict().items()}, loop


WATCHED = MonitorConfig(knn_every=1, neighbours=5)
