"""Every model of the registry answers, or says what was expected; what the documentation says works does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.contracts.conftest import cases, randomize_
from vit_pytorch import analysis
from vit_pytorch.base import VisionModel
from vit_pytorch.registry import ModelEntry

FUNCTIONS: dict[str, Callable[[VisionModel, Tensor], Tensor]] = {
    "class attention": analysis.class_attention,
    "rollout": analysis.rollout,
    "relevance": analysis.class_relevance,
    "distance": analysis.attention_distance,
    "positions": lambda model, images: analysis.position_similarity(model),
    "filters": lambda model, images: analysis.embedding_filters(model, 5),
    "layers": lambda model, images: analysis.layer_similarity(model, [images]),
    "tokens": lambda model, images: analysis.token_colours(model, images).colours,
}
ALL_TOKENS = {"rollout", "relevance", "distance"}
CANNOT = {
    "vit_tiny_patch14_224": set(),
    "simple_vit_tiny_patch14_224": {"class attention"},
    "navit_tiny_patch16": set(),
    "cait_xxs24_224": set(),
    "deepvit_S": {"filters"},
    "t2t_vit_7": {"filters"},
    "t2t_vit_t_14": ALL_TOKENS | {"filters"},
    "cct_2_3x2_32": {"filters"},
    "crossvit_tiny_240": ALL_TOKENS | {"class attention", "positions", "filters"},
    "pit_ti_224": ALL_TOKENS | {"class attention"},
    "xcit_nano_12_p16_224": ALL_TOKENS | {"filters"},
    "deit_small_patch16_224_ats": ALL_TOKENS,
    "vit_small_patch16_224_patch_merger": ALL_TOKENS | {"class attention"},
    "lookupvit_large_patch16_224_3x3": ALL_TOKENS | {"class attention"},
    "lsa_vit_patch4_32": set(),
    "deit_small_patch16_18x2_LS": set(),
    "localvit_tiny_mlp6_act1": set(),
    "uvit_small_patch2_32": {"class attention"},
    "jumbo_pico": {"class attention"},
}


@pytest.mark.parametrize("entry", cases(), ids=lambda entry: entry.name)
def test_every_model(entry: ModelEntry):
    torch.manual_seed(0)
    model = randomize_(entry.build(**entry.tiny)).eval()
    images = torch.randn(4, model.channels, *model.image_size)
    cannot = {}
    for name, function in FUNCTIONS.items():
        try:
            found = function(model, images)
        except ValueError as error:
            cannot[name] = str(error)
        else:
            assert found.isfinite().all(), name
            assert found.std() > 0, name
    assert all("expected " in said or "needs attention" in said for said in cannot.values())
    assert cannot.keys() == CANNOT.get(entry.name, cannot.keys())
    assert {"layers", "tokens"}.isdisjoint(cannot)


def test_the_models_listed_exist():
    assert CANNOT.keys() <= {entry.name for entry in cases()}
