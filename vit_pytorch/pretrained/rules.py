"""Translation between state dicts as data: rules of names, each with a reversible transform."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vit_pytorch.weights import check_values

PLACEHOLDERS = {"i": r"\d+", "j": r"\d+", "k": r"\d+", "p": "weight|bias", "name": ".+"}


@dataclass(frozen=True)
class Transform:
    """How tensors of another format become one of ours, and back.

    Args:
        read: from their tensors and our module that takes the result.
        write: from our tensor, or our tensors where there are several, and the module that it is in.
    """

    read: Callable[[Sequence[Tensor], Any], Tensor | Sequence[Tensor]]
    write: Callable[[Any, Any], Sequence[Tensor]]


SAME = Transform(lambda parts, module: parts[0], lambda tensor, module: (tensor,))


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    In names, `{i}`, `{j}` and `{k}` stand for numbers, `{p}` for `weight` or `bias`, `{name}` for anything.

    Args:
        ours: our name, or the names of several that are made of theirs.
        theirs: their name, or the names of several that are one of ours. A leading `/` says that the
            name does not carry the format's prefix.
        transform: what happens to the tensors. The module that it is given is two names up: for
            `patch_embed.proj.weight` it is `patch_embed`.
    """

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    transform: Transform = SAME

    @property
    def names(self) -> tuple[str, ...]:
        """Our names, also where it is one."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def parts(self) -> tuple[str, ...]:
        """Their names, also where it is one."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass(frozen=True, kw_only=True)
class Format:
    """A layout of checkpoints.

    Args:
        name: what the format is called.
        marks: names of which one tells the format; what stands before it is the prefix of all names.
        rules: the table. The first rule for a name of ours is the one used for writing; of several for a name
            of theirs, the first whose names the model has is the one used for reading, else the first.
        unused: their names that play no role in the model.
        prefix: what is put before names in writing.
        fixed_positions: whether files hold position embeddings that are not learned, too.
        rotary: what rotates queries and keys in every model of this format, which no tensor tells, and the
            `positions` that build it; None where models differ.
        theta: base of the frequencies in every model of this format; None where models differ.
    """

    name: str
    marks: tuple[str, ...]
    rules: tuple[Rule, ...]
    unused: tuple[str, ...] = ()
    prefix: str = ""
    fixed_positions: bool = False
    rotary: tuple[type[nn.Module], str] | None = None
    theta: float | None = None

    def strip_prefix(self, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the state dict under this format's bare names, or None where it is another format.

        Raises:
            ValueError: where there are two models under different prefixes.
        """
        prefixes = {name.removesuffix(mark) for mark in self.marks for name in state if name.endswith(mark)}
        prefixes = {prefix for prefix in prefixes if not prefix or prefix[-1] in "./"}
        if not prefixes:
            return None
        if len(prefixes) > 1:
            raise ValueError(
                f"more than one model in the checkpoint: {', '.join(sorted(map(repr, prefixes)))} "
                "stand before its names; pass one of them as key="
            )
        (prefix,) = prefixes
        return {
            name.removeprefix(prefix) if name.startswith(prefix) else f"/{name}": tensor
            for name, tensor in state.items()
        }

    def read(self, state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
        """Translate a state dict to our names.

        Args:
            state: tensors under bare names, as `strip_prefix` gives them.
            model: what will take them; asked for sizes that their shapes do not tell.

        Returns:
            Tensors by our names, those without a rule by their own; and names that play no role.

        Raises:
            ValueError: where a tensor cannot have the role that its name says, or the model rotates queries
                and keys otherwise.
        """
        self._check_rotary(model)
        found: dict[tuple[str, ...], tuple[Rule, dict[int, tuple[str, Tensor]]]] = {}
        left: dict[str, Tensor] = {}
        unused = []
        known = model.state_dict().keys()
        for name, tensor in state.items():
            if not tensor.numel() or any(_match(pattern, name) is not None for pattern in self.unused):
                unused.append(name)
                continue
            hit = self._find(name, known)
            if hit is None:
                left[name] = tensor
                continue
            rule, index, ours = hit
            parts = found.setdefault(ours, (rule, {}))[1]
            if index in parts or found[ours][0] is not rule:
                left[name] = tensor
            else:
                parts[index] = (name, tensor)
        for ours, (rule, parts) in found.items():
            if len(parts) < len(rule.parts):
                left.update(parts.values())
            else:
                made = self._transform(rule, ours, [parts[i] for i in sorted(parts)], model)
                left.update(zip(ours, made, strict=True))
        return left, unused

    def _check_rotary(self, model: nn.Module) -> None:
        rotary = getattr(model, "rotary", None)
        if self.rotary is not None and type(rotary) is not self.rotary[0]:
            raise ValueError(
                f"queries and keys of {self.name} are rotated by their positions, which no tensor tells: "
                f"build {type(model).__name__} with positions={self.rotary[1]!r}"
            )
        if self.theta is not None and getattr(rotary, "theta", None) != self.theta:
            raise ValueError(
                f"rotations of {self.name} have frequencies of base {self.theta:g}, which no tensor tells; "
                f"the model's have {getattr(rotary, 'theta', None)}"
            )

    def write(self, state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Translate our state dict to this format.

        Raises:
            ValueError: where the format has no place for a tensor, or its models rotate queries and keys
                otherwise.
        """
        self._check_rotary(model)
        written: dict[str, Tensor] = {}
        for name in state:
            hit = next(
                ((r, m) for r in self.rules for n in r.names if (m := _match(n, name)) is not None), None
            )
            ours = [] if hit is None else [pattern.format(**hit[1]) for pattern in hit[0].names]
            if hit is None or any(other not in state for other in ours):
                raise ValueError(f"the format of {self.name} has no place for {name}")
            rule, groups = hit
            tensors = [state[other] for other in ours]
            parts = rule.transform.write(
                tensors[0] if isinstance(rule.ours, str) else tensors, _module(model, name)
            )
            for theirs, part in zip(rule.parts, parts, strict=True):
                full = theirs[1:] if theirs.startswith("/") else self.prefix + theirs
                written[full.format(**groups)] = part.contiguous()
        return written

    def _find(self, name: str, known: Set[str]) -> tuple[Rule, int, tuple[str, ...]] | None:
        hits = [
            (rule, index, tuple(ours.format(**groups) for ours in rule.names))
            for rule in self.rules
            for index, theirs in enumerate(rule.parts)
            if (groups := _match(theirs, name)) is not None
        ]
        return next((hit for hit in hits if known >= {*hit[2]}), hits[0] if hits else None)

    def _transform(
        self, rule: Rule, ours: tuple[str, ...], parts: Sequence[tuple[str, Tensor]], model: nn.Module
    ) -> Sequence[Tensor]:
        # Concatenated with floating-point numbers, integers would become such.
        if len(parts) > 1:
            check_values(dict(parts), "the checkpoint")
        module = _module(model, ours[0])
        try:
            made = rule.transform.read([tensor for _, tensor in parts], module)
        except (RuntimeError, IndexError, AttributeError) as error:
            # A layer of another kind lacks what the transform asks of it; all else is a fault of the table.
            absent = module is None or (isinstance(error, AttributeError) and error.obj is module)
            if isinstance(error, AttributeError) and not absent:
                raise
            theirs = ", ".join(f"{name} of shape {tuple(tensor.shape)}" for name, tensor in parts)
            why = "the model has no such layer" if absent else str(error).splitlines()[0]
            raise ValueError(f"{theirs} cannot be {', '.join(ours)}: {why}") from error
        return (made,) if isinstance(made, Tensor) else made


@dataclass(frozen=True, kw_only=True)
class NumberedFormat(Format, ABC):
    """A layout that numbers layers in its own way, which depends on the model; the rules have one for all."""

    @abstractmethod
    def places(self, model: Any) -> dict[str, str]:
        """Give, by the beginning of their names of a layer, that of its names in the rules."""

    def read(self, state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
        """Translate a state dict to our names; see `Format.read`."""
        places = self.places(model)
        found, unused = super().read(_rename(state, places), model)
        # What has no role is told by its own name.
        back = {place: theirs for theirs, place in places.items()}
        return _rename(found, back), list(_rename(dict.fromkeys(unused, torch.empty(0)), back))

    def write(self, state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Translate our state dict to this format; see `Format.write`."""
        places = {self.prefix + place: self.prefix + theirs for theirs, place in self.places(model).items()}
        return _rename(super().write(state, model), places)


def _rename(state: Mapping[str, Tensor], places: Mapping[str, str]) -> dict[str, Tensor]:
    """Put another beginning to the names that begin with one of these."""
    renamed = {}
    for name, tensor in state.items():
        theirs = next((place for place in places if name.startswith(place)), "")
        renamed[places.get(theirs, "") + name.removeprefix(theirs)] = tensor
    return renamed


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A small model of another library beside one of ours: how a format is tested, and loading measured.

    Args:
        format: the format that the other model's weights are in.
        name: where the other class is, `timm.models.pit.PoolingVisionTransformer`.
        theirs: its arguments.
        ours: those of our architecture, for the same function.
    """

    format: str
    name: str
    theirs: Mapping[str, Any]
    ours: Mapping[str, Any]


def stack(count: int) -> Transform:
    """Several matrices or vectors of theirs are one of ours, one after the other."""
    return Transform(lambda parts, module: torch.cat(list(parts)), lambda tensor, module: tensor.chunk(count))


def _match(pattern: str, name: str) -> dict[str, str] | None:
    found = _compile(pattern).fullmatch(name)
    return None if found is None else found.groupdict()


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", pattern)
    for index, piece in enumerate(pieces):
        pieces[index] = f"(?P<{piece}>{PLACEHOLDERS[piece]})" if index % 2 else re.escape(piece)
    return re.compile("".join(pieces))


def _module(model: nn.Module, name: str) -> nn.Module | None:
    """Find the module two names up; None where the model does not have it."""
    module: Any = model
    for part in name.split(".")[:-2] or name.split(".")[:-1]:
        module = getattr(module, part, None)
    return module


def own_format(mark: str) -> Format:
    """Describe our own checkpoints, whose names are the model's.

    Args:
        mark: a name that tells them from others'.
    """
    return Format(name="vit_pytorch", marks=(mark,), rules=(Rule("{name}", "{name}"),))
