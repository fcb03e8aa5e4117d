"""Options that are given by name."""

from __future__ import annotations

from collections.abc import Iterable


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Hold an option against its known values.

    Raises:
        ValueError: where it is none of them.
    """
    known = list(known)
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}; got {value!r}")
