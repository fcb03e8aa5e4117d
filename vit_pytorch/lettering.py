"""Names in pictures, in any script: by the installed fonts that have their letters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence


def letter(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the fonts that texts are drawn in, and the texts as matplotlib draws them.

    Dollar signs begin no formula. Letters that no installed font has are written by their numbers, such as
    `\\u65e5`, of which a warning tells; matplotlib has the same box for all of them.

    Args:
        texts: Names, such as those of classes.

    Returns:
        Families for matplotlib's `font.family`, its own first; and the texts.
    """
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    missing = {letter for text in texts for letter in text if letter > " " and not letter.isspace()}
    missing -= set(map(chr, get_font(findfont(FontProperties())).get_charmap()))
    families = list(rcParams["font.family"])
    # a font of the last resort has a box for each script
    fonts = [font for font in fontManager.ttflist if "lastresort" not in font.name.replace(" ", "").lower()]
    for font in fonts:
        if not missing:
            break
        if found := missing.intersection(map(chr, get_font(font.fname).get_charmap())):
            families.append(font.name)
            missing -= found
    if missing:
        warnings.warn(
            f"no installed font has {', '.join(sorted(missing)[:5])}: pictures show letters by their numbers",
            stacklevel=3,
        )
    numbers = {ord(letter): letter.encode("unicode_escape").decode() for letter in missing}
    return families, [text.translate({**numbers, ord("$"): r"\$"}) for text in texts]
