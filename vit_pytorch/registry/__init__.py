"""Named models as data, one file a family."""

from __future__ import annotations

import re
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from itertools import product
from pkgutil import iter_modules

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.retired import current_name

# Families that come first, in this order, where models are listed; those that it does not name follow.
FAMILIES = (
    "vit plain smallest beit eva02 simple_vit na_vit deit dinov2 dinov3 sapiens2 registers "
    "rope hybrid towers language_towers perception_encoder beit3 aimv2 deepvit cait t2t cct "
    "cross_vit pit levit cvt swin swin_v2 twins_svt regionvit crossformer scalable_vit sep_vit max_vit "
    "coatnet nest mobile_vit xcit ats_vit vit_with_patch_merger vit_for_small_dataset parallel_vit "
    "normalized_vit vit_3d simple_vit_3d vivit cct_3d vit_1d local_vit uvit jumbo_vit look_vit"
)

# What papers and their tables call a model that has a longer name here.
ALIASES = {
    "deepvit_s": "deepvit_S",
    "deepvit_l": "deepvit_L",
    **{
        f"crossformer_{size}": f"crossformer_{size}_patch4_group7_224"
        for size in ("tiny", "small", "base", "large")
    },
    "localvit_tiny": "localvit_tiny_mlp4_act3_r192",
}

# What papers and torchvision call models, in lower case, with underscores, as `ViT-B/16` is `vit_b_16`.
ELSEWHERE = {
    **{
        f"vit_{size[0]}_{patch}": f"vit_{size}_patch{patch}_224"
        for size, patch in product(("tiny", "small", "base", "large"), (16, 32))
        if (size, patch) != ("tiny", 32)
    },
    "vit_h_14": "vit_huge_patch14_224",
    **{f"swin_{size[0]}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")},
    **{f"swin_v2_{size[0]}": f"swinv2_{size}_window8_256" for size in ("tiny", "small", "base")},
}


def families() -> list[str]:
    """Return the files of the registry, each with the models of a family."""
    found = {info.name for info in iter_modules(__path__)} - {"entry", "retired", "words"}
    return [*FAMILIES.split(), *sorted(found.difference(FAMILIES.split()))]


@cache
def entries() -> dict[str, ModelEntry]:
    """Return every named model by its name, in the order of `families`."""
    found: dict[str, ModelEntry] = {}
    for family in families():
        for entry in import_module(f"vit_pytorch.registry.{family}").ENTRIES:
            if entry.name in found:
                raise ValueError(f"two models are named {entry.name}")
            found[entry.name] = entry
    return found


def find_entry(name: str) -> ModelEntry:
    """Look a named model up, by its name or one of `ALIASES`.

    Raises:
        ValueError: where there is none of that name; suggests those closest to it.
    """
    name = ALIASES.get(name, name)
    if name not in entries():
        if (now := renamed(name)) is not None:
            raise ValueError(f"no model is named {name!r}: timm calls it {now} now")
        plain = re.sub(r"[-/ ]", "_", name.lower())
        if plain in ELSEWHERE:
            raise ValueError(f"no model is named {name!r}: here it is {ELSEWHERE[plain]}")
        close = ", ".join(get_close_matches(name, entries(), n=3))
        raise ValueError(
            f"no model is named {name!r}; "
            + (f"close to it: {close}" if close else "`list_models()` and `vit models` list the names")
        )
    return entries()[name]


def renamed(name: str) -> str | None:
    """Return what a named model is called whose name timm has retired, with its tag; None for other names."""
    now = current_name(name)
    return now if now is not None and now.partition(".")[0] in entries() else None


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """List the named models.

    Args:
        pattern: shell-style wildcard that a name matches, such as `vit_*_patch16_*`.
        pretrained: only those of which published weights are known.
    """
    return [
        name
        for name, entry in entries().items()
        if fnmatchcase(name, pattern) and (entry.hub_id is not None or not pretrained)
    ]
