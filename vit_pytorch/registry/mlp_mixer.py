"""MLP-Mixer's models (Tolstikhin et al. 2021, table 1), as timm names them."""

from vit_pytorch.mlp_mixer import MLPMixer
from vit_pytorch.registry.entry import NO_ATTENTION, ModelEntry

# dim, depth, token_dim, mlp_dim
SIZES = {"s": (512, 8, 256, 2048), "b": (768, 12, 384, 3072), "l": (1024, 24, 512, 4096)}
PARAMETERS = {
    ("s", 32): 19_104_624,
    ("s", 16): 18_528_264,
    ("b", 32): 60_293_428,
    ("b", 16): 59_880_472,
    ("l", 32): 206_939_264,
    ("l", 16): 208_196_168,
}
# those that the authors published
PUBLISHED = ("mixer_b16_224", "mixer_l16_224")
PREPARE = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 0.875}
TINY = {
    "image_size": 32,
    "patch_size": 4,
    "num_classes": 7,
    "dim": 24,
    "depth": 2,
    "token_dim": 20,
    "mlp_dim": 48,
}


def _entry(size: str, patch_size: int) -> ModelEntry:
    name = f"mixer_{size}{patch_size}_224"
    sizes = zip(("dim", "depth", "token_dim", "mlp_dim"), SIZES[size], strict=True)
    return ModelEntry(
        name=name,
        architecture=MLPMixer,
        config={"image_size": 224, "patch_size": patch_size, "num_classes": 1000, **dict(sizes)},
        parameters=PARAMETERS[size, patch_size],
        tiny=TINY,
        default_cfg=PREPARE,
        hub_id=f"timm/{name}.goog_in21k_ft_in1k" if name in PUBLISHED else None,
        exceptions={
            **NO_ATTENTION,
            "input_size": "layers across the patches belong to their number",
            "smaller_inputs": "patches are mixed by place, as many as the model was built for",
        },
    )


ENTRIES = [_entry(*model) for model in PARAMETERS]
