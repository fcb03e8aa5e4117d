"""Checks of constructors' arguments against their annotations, before anything is built.

An argument's annotation says its type, its name the range of its numbers (`INTEGERS`, `NUMBERS`): a part
that counts, measures or scales has the same name in every model. What depends on several arguments is
checked where it matters.
"""

from __future__ import annotations

import re
from collections import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from inspect import signature
from math import inf, isfinite
from numbers import Integral
from os import PathLike
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, Union, get_args, get_origin, get_type_hints

from torch import nn
from typing_extensions import is_protocol

P = ParamSpec("P")


@dataclass(frozen=True)
class Range:
    """The finite numbers from `least` to `most`.

    Args:
        least: the smallest.
        most: the largest.
        ends: "(" before if `least` is itself outside, ")" after if `most` is.
    """

    least: int | float
    most: int | float
    ends: str = "[]"

    def __contains__(self, value: int | float) -> bool:
        outside = [end for end, mark in zip((self.least, self.most), self.ends, strict=True) if mark in "()"]
        return isfinite(value) and self.least <= value <= self.most and value not in outside

    def __str__(self) -> str:
        return f"{self.ends[0]}{self.least:.9g}, {self.most:.9g}{self.ends[1]}"


# Largest sizes are far above any model's, and small enough that building one ends.
INTEGERS: Mapping[str, Range] = {
    r"num_classes": Range(0, 2**24),
    r"causal_dims|output_pos_add_pos_emb|interactions|pathways|patch_pathway_id|global_depth": Range(0, 1024),
    r"attending_dim": Range(0, 2**16),
    r"num_register_(tokens|slots)|num_advantage_bins|spec_pad": Range(0, 2**16),
    r"num_registers|num_memories_per_layer|num_local_crops|freeze_last_layer|merged|(.*_)?padding": Range(
        0, 2**16
    ),
    r"ats_layers|patch_merge_layer|reattn_layers|value_residual|cls_depth|(vit|ast)_layer_indices": Range(
        0, 1024
    ),
    r"(global|local)_layers": Range(0, 1023),
    r"hidden_layer": Range(-1024, 1023),
    r"seq_len|max_tokens.*": Range(1, 2**24),
    r"(.*_)?(depths?|layers|repeats|stages|branches|hierarchies)": Range(1, 1024),
    r".*": Range(1, 2**16),
}
NUMBERS: Mapping[str, Range] = {
    r".*drop.*": Range(0, 1, "[)"),
    r"layer_scale|deep_supervision_weighting|exit_threshold|(.*_)?std": Range(0, 1e3),
    r"masking_ratio|mask_prob": Range(0, 1, "()"),
    r"sample_frac": Range(0, 1, "(]"),
    r"offset": Range(0, 2**16),
    r".*_prob|(rope|pope)_p_zero_freqs|(.*_)?decay|alpha|kappa|region_weight": Range(0, 1),
    r"mean": Range(-1e6, 1e6),
    r"temperature": Range(1e-30, 1e6),
    # of widths, and as far from those of any model as the largest integers are
    r"(.*_)?(ratio|expansion|expansion_rate|shrinkage_rate)|width": Range(0, 1024, "(]"),
    r".*": Range(0, 1e6, "(]"),
}
# sequences of what a model may have none of
MAY_BE_EMPTY = ("ats_layers", "causal_dims", "global_layers", "resnet_depths", "task_heads")
NAMED: dict[Any, str] = {
    str: "string",
    PathLike: "path",
    abc.Mapping: "mapping",
    abc.Callable: "function",
}


@dataclass(frozen=True)
class Expected:
    """What an argument may be.

    Args:
        text: names one, for errors.
        several: names several.
        fits: whether a value is it.
    """

    text: str
    several: str
    fits: Callable[[Any], bool]


def find_range(name: str, ranges: Mapping[str, Range]) -> Range:
    """Return the range of the first pattern that a name matches."""
    return next(found for pattern, found in ranges.items() if re.fullmatch(pattern, name))


def expected(name: str, hint: Any) -> Expected | None:
    """Return what an annotation says of an argument; None for what is not checked here."""
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return either([expected(name, member) for member in members])
    if origin is Literal:
        text = f"one of {', '.join(map(str, members))}"
        return Expected(text, text, lambda value: value in members)
    if origin is Sequence:
        return sequence(expected(name, members[0]), least=0 if name in MAY_BE_EMPTY else 1)
    if hint is bool:
        return Expected("True or False", "booleans", lambda value: isinstance(value, bool))
    if hint is int:
        return number("integer", int, find_range(name, INTEGERS))
    if hint is float:
        return number("number", (int, float), find_range(name, NUMBERS))
    if hint is NoneType:
        return Expected("None", "None", lambda value: value is None)
    if origin is tuple and Ellipsis not in members:
        return several_of(expected(name, members[0]), len(members))
    # from Python 3.11 on, Any is a class
    if hint is not Any and isinstance(hint, type) and not is_protocol(hint):
        if issubclass(hint, nn.Module):
            # which kind it must be is said better where it is used
            return Expected("a module", "modules", lambda value: isinstance(value, nn.Module))
        kind = NAMED.get(hint, hint.__name__)
        article = "an" if kind[0] in "AEIOU" else "a"
        return Expected(f"{article} {kind}", f"{kind}s", lambda value: isinstance(value, hint))
    if origin in NAMED:
        return Expected(f"a {NAMED[origin]}", f"{NAMED[origin]}s", lambda value: isinstance(value, origin))
    return None


def either(choices: Sequence[Expected | None]) -> Expected | None:
    """Return what is expected of one of several kinds."""
    known = [choice for choice in choices if choice is not None]
    if len(known) < len(choices):
        return None
    text, several = (join_words([getattr(choice, form) for choice in known]) for form in ("text", "several"))
    return Expected(text, several, lambda value: any(choice.fits(value) for choice in known))


def join_words(words: Sequence[str]) -> str:
    """Return alternatives as a sentence has them."""
    return " or ".join([*([", ".join(words[:-1])] if words[:-1] else []), words[-1]])


def sequence(each: Expected | None, *, least: int) -> Expected | None:
    """Return what is expected of a sequence of at least so many of something."""
    if each is None:
        return None

    def fits(value: Any) -> bool:
        return isinstance(value, (list, tuple, range)) and len(value) >= least and all(map(each.fits, value))

    return Expected(f"a sequence of {each.several}", f"sequences of {each.several}", fits)


def several_of(each: Expected | None, count: int) -> Expected | None:
    """Return what is expected of a sequence of so many of something."""
    if each is None:
        return None
    any_number = sequence(each, least=count)
    assert any_number is not None, "a sequence of what is known is known"
    text = f"{count} {each.several}"
    return Expected(text, text, lambda value: any_number.fits(value) and len(value) == count)


def number(word: str, kind: Any, values: Range) -> Expected:
    """Return what is expected of a number in a range; True and False are none, nor are NumPy's integers and
    fractions, which neither PyTorch nor a configuration file takes everywhere."""

    def fits(value: Any) -> bool:
        return isinstance(value, kind) and not isinstance(value, bool) and value in values

    article = "an" if word[0] in "aeiou" else "a"
    return Expected(f"{article} {word} in {values}", f"{word}s in {values}", fits)


@cache
def _expectations(function: Callable[..., Any]) -> dict[str, Expected | None]:
    hints = get_type_hints(function)
    return {name: expected(name, hints.get(name, Any)) for name in list(signature(function).parameters)}


def check_integer(name: str, value: Any, *, least: int = 1, most: int | float = inf) -> None:
    """Check an integer of a setting, such as a batch size; True and False are none.

    Args:
        name: what messages call it.
        value: the integer.
        least: the smallest that is allowed; default 1.
        most: the largest; default any.

    Raises:
        ValueError: if it is no integer, or out of range.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    if not least <= int(value) <= most:
        allowed = f"at least {least}" if most == inf else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be {allowed}, got {value}")


class UnknownArgumentError(TypeError, ValueError):
    """A constructor has no argument of that name."""


def check_arguments(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Check arguments of a method; unknown names are left to the call.

    Args:
        function: the method.
        args: its arguments by position, without the object.
        kwargs: its arguments by name.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    known = _expectations(function)
    given = {**dict(zip(list(known)[1:], args, strict=False)), **kwargs}
    for name, value in given.items():
        if name == "class_token" and value is None:
            # version 0.1's word for False, which configurations hold
            continue
        what = known.get(name)
        if what is not None and not what.fits(value):
            raise ValueError(
                f"{name} must be {what.text}{';' if 'one of' in what.text else ','} got {value!r}"
            )


def check_names(function: Callable[..., Any], names: Iterable[str], *, owner: str) -> None:
    """Check that a function has arguments of some names.

    Args:
        function: the function; a method's first argument is none that callers give.
        names: the names.
        owner: what messages call the function.

    Raises:
        UnknownArgumentError: where it has not; says which it has.
    """
    parameters = signature(function).parameters
    known = [name for name in parameters if name != "self"]
    unknown = [name for name in names if name not in known]
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise UnknownArgumentError(f"{owner} has no argument {unknown[0]}, only {', '.join(known)}")


def checks_arguments(function: Callable[P, None]) -> Callable[P, None]:
    """Check a constructor's arguments at each call; see `check_arguments` and `check_names`."""

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        check_names(function, kwargs, owner=type(args[0]).__name__)
        check_arguments(function, *args[1:], **kwargs)
        function(*args, **kwargs)

    return checked
