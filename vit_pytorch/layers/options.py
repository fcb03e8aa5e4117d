"""Options that are given by name or as an object.

An option that has settings of its own is a small frozen dataclass, registered under the string that is short
for it with its defaults: `positions="rope"` is `positions=Rotary()`, and `Rotary(theta=50.0)` says more. In
JSON and YAML an object is a mapping with its string as `kind`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from vit_pytorch.layers.arguments import check_arguments


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Check an option against its known values.

    Raises:
        ValueError: if it is none of them.
    """
    known = list(known)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")


N = TypeVar("N", int, float)


def per_stage(name: str, value: N | Sequence[N], stages: int, *, growth: int = 2) -> tuple[N, ...]:
    """Return a size or a factor for each stage of a model.

    Args:
        value: one number for each stage, or that of the first stage.
        stages: number of stages.
        growth: factor from stage to stage of a number that is given for the first stage.

    Raises:
        ValueError: if there are more or fewer numbers than stages.
    """
    if isinstance(value, (int, float)):
        return tuple(value * growth**stage for stage in range(stages))
    if len(value) != stages:
        raise ValueError(f"{name} must be one number or one for each of {stages} stages, got {tuple(value)}")
    return tuple(value)


@dataclass(frozen=True)
class Option:
    """Base class of options with settings of their own.

    Raises:
        ValueError: if a setting is of another type than annotated or outside its range.
    """

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        check_arguments(type(self).__init__, **vars(self))


O = TypeVar("O", bound=Option)  # noqa: E741
OptionLike = str | Option | Mapping[str, Any]


def read_option(name: str, value: OptionLike, kinds: Mapping[str, type[O] | O]) -> O:
    """Return the object that an option stands for.

    Args:
        value: a string, an object, or a mapping with `kind` and settings.
        kinds: the object, or the class whose defaults count, of each string.

    Raises:
        ValueError: if the kind or a setting is unknown.
    """
    if isinstance(value, Option):
        allowed = tuple({kind if isinstance(kind, type) else type(kind) for kind in kinds.values()})
        if not isinstance(value, allowed):
            names = ", ".join(sorted(kind.__name__ for kind in allowed))
            raise ValueError(f"{name} must be one of {', '.join(kinds)} or {names}; got {value!r}")
        return value
    settings = dict(value) if isinstance(value, Mapping) else {}
    kind = settings.pop("kind", None) if isinstance(value, Mapping) else value
    check_choice(name, kind, kinds)
    found = kinds[str(kind)]
    base = found() if isinstance(found, type) else found
    known = [field.name for field in fields(base)]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ValueError(
            f"{name}={kind!r} has no setting {', '.join(unknown)}; its settings: {', '.join(known) or 'none'}"
        )
    lists = {key: tuple(item) if isinstance(item, list) else item for key, item in settings.items()}
    return type(base)(**{**{key: getattr(base, key) for key in known}, **lists})


def to_json(value: Any) -> Any:
    """Return an argument as JSON can hold it; inverse of `read_option` for options."""
    if isinstance(value, Option):
        settings = {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
        return {"kind": value.kind, **settings}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value
