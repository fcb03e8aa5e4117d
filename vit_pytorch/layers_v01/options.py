"""Options that are given by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Hold an option against its known values.

    Raises:
        ValueError: where it is none of them.
    """
    known = list(known)
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}; got {value!r}")


def per_stage(name: str, value: int | Sequence[int], stages: int, *, growth: int = 2) -> tuple[int, ...]:
    """Give a size for every stage of a model.

    Args:
        name: what the size is called.
        value: one number for each stage, or that of the first stage.
        stages: number of stages.
        growth: by what a number that is given for the first stage grows from stage to stage.

    Raises:
        ValueError: where there are more or fewer numbers than stages.
    """
    if isinstance(value, int):
        return tuple(value * growth**stage for stage in range(stages))
    if len(value) != stages:
        raise ValueError(f"{name} is one number or one for each of {stages} stages, got {tuple(value)}")
    return tuple(value)
