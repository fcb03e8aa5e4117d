"""All that loading is measured with."""

from __future__ import annotations

from collections.abc import Iterator

import loading_plain as plain
import loading_staged as staged
import loading_variants as variants
from loading_case import Case

FAMILIES = (
    plain.vit,
    plain.distilled,
    variants.deepvit,
    variants.cait,
    variants.t2t,
    variants.cct,
    variants.small_datasets,
    variants.ats,
    variants.merger,
    variants.parallel,
    variants.na_vit,
    variants.xcit,
    staged.cross_vit,
    staged.pit,
    staged.levit,
    staged.cvt,
    staged.twins,
    staged.staged,
    staged.scalable,
    staged.max_vit,
    staged.nest,
    staged.mobile_vit,
)


def cases() -> Iterator[Case]:
    """Build one case after the other."""
    for family in FAMILIES:
        yield from family()
