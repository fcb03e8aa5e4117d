"""`vit bench`: latency, throughput, memory and operations of models, all in turn."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal

import vit_pytorch
from vit_pytorch.cli.functions import call
from vit_pytorch.cli.layers import UsageError
from vit_pytorch.cli.tables import print_json, table
from vit_pytorch.create import is_named, model_folder, read_config
from vit_pytorch.data.loader import usable_cores
from vit_pytorch.export.bench_worker import COMPILE, EAGER, PRECISIONS, Subject
from vit_pytorch.export.deploy import read_report
from vit_pytorch.export.formats import FORMATS, find_format
from vit_pytorch.export.job import RefusedError
from vit_pytorch.export.timing import Cell, Worker, ratio, spread, time_in_turn
from vit_pytorch.layers.arguments import check_integer
from vit_pytorch.registry import find_entry

MODES = ("forward", "train")
HEADER = (
    *("model", "form", "mode", "precision", "batch", "ms", "+-", "images/s"),
    *("MiB", "M params", "GFLOPs", "ratio"),
)
DTYPES = {precision: dtype for dtype, precision in PRECISIONS.items()}


def bench(arguments: Sequence[str]) -> None:
    """Parse the options of `vit bench` and run it."""
    call(print_bench, "bench", arguments, positional=["models"], several="models")


def print_bench(
    models: list[str],
    form: str = "eager",
    precision: str = "fp32",
    batch: str = "1,8",
    mode: str = "forward",
    merge_tokens: str = "0",
    peer: Literal["timm"] | None = None,
    threads: int = usable_cores(),
    rounds: int = 11,
    as_json: bool = False,
) -> None:
    """Time models beside each other on the processor: each in a process of its own, a step of each in turn.

    Times are medians over rounds, with the distance between the quartiles. A ratio says how many times as
    fast a row is as the peer's model of its name, or else as the first row; it stands only where the
    difference is larger than its spread, which takes two rounds or more. Operations count a multiplication
    and its addition as two, for one image.

    Args:
        models: Names of models, folders of runs or models, and files that `vit export` wrote.
        form: `eager`, `compile`, or formats of `vit export`, with commas between; files have their own.
        precision: `fp32`, `bf16` or `fp16`, with commas between; files have their own. `int8` of formats of
            `vit export` is calibrated on noise, for the time alone.
        batch: Images at once, with commas between.
        mode: `forward`, or `train` for a training step (forward, cross-entropy, backward, AdamW), or both
            with a comma between.
        merge_tokens: Number of patches by which each block of a plain ViT has fewer, those that are most
            alike becoming one; several with commas between, 0 for the model as it is.
        peer: Time another library's eager models of the same names, too.
        threads: Number of threads.
        rounds: How often the turn goes round.
        as_json: Print JSON instead of a table.

    Raises:
        ValueError: Where there is no such model, form or precision.
    """
    check_integer("threads", threads)
    check_integer("rounds", rounds)
    batches = _integers("batch", batch, least=1)
    forms = _choices("form", form, (EAGER, COMPILE, *FORMATS))
    precisions = _choices("precision", precision, tuple(DTYPES))
    modes = _choices("mode", mode, MODES)
    merged = _integers("merge_tokens", merge_tokens, least=0)
    subjects = _subjects(models, forms, peer, threads, merged)
    names = [_name(subject) for subject in subjects]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"each model and form is timed once, got several times: {', '.join(twice)}")
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for chosen_mode, chosen_precision, size in product(modes, precisions, batches):
        timed = []
        for subject in subjects:
            if Path(subject.model).is_file() and chosen_precision != precisions[0]:
                # timed once, in the precision that it has
                continue
            reason = _unavailable(subject, chosen_mode, chosen_precision)
            if reason is None:
                timed.append(subject)
            else:
                left_out.append(f"{_name(subject)}, {chosen_mode} {chosen_precision}: {reason}")
        if timed:
            rows += _measure(timed, Cell(chosen_mode, DTYPES[chosen_precision], size), rounds)
    left_out = list(dict.fromkeys(left_out))
    if not rows:
        raise UsageError(f"nothing can be timed: {'; '.join(left_out)}")
    if as_json:
        print_json({"threads": threads, "rounds": rounds, "rows": rows, "left_out": left_out})
        return
    print(table(HEADER, [_cells(row) for row in rows], right=range(4, len(HEADER))))
    for line in left_out:
        print(f"left out: {line}")


def _integers(option: str, text: str, *, least: int) -> list[int]:
    """Split the integers of an option.

    Raises:
        UsageError: if one is none, or too small.
    """
    values = [int(value) if value.isdecimal() else -1 for value in text.split(",")]
    if min(values) < least:
        raise UsageError(f"--{option} takes integers of at least {least}, with commas between, got {text}")
    return values


def _choices(option: str, text: str, known: Sequence[str]) -> list[str]:
    """Split the values of an option.

    Raises:
        UsageError: if one is unknown.
    """
    chosen = text.split(",")
    unknown = [value for value in chosen if value not in known]
    if unknown:
        raise UsageError(f"--{option} takes {', '.join(known)}, got {', '.join(unknown)}")
    return chosen


def _subjects(
    models: Sequence[str],
    forms: Sequence[str],
    peer: Literal["timm"] | None,
    threads: int,
    merged: Sequence[int],
) -> list[Subject]:
    """List what is timed, a peer's models first.

    Raises:
        ValueError: if a model does not exist; if a peer is asked for and is not installed, or a model has no
            name.
    """
    if peer is not None and find_spec(peer) is None:
        raise UsageError(f"--peer {peer} needs one more package: pip install {peer}")
    found: list[Subject] = []
    for model in models:
        saved = Path(model).exists()
        if not saved and not is_named(model):
            find_entry(model)
        if Path(model).is_dir():
            read_config(model_folder(model))
        if Path(model).is_file():
            if not Path(f"{model}.json").is_file():
                raise ValueError(f"{model} has no report {model}.json, which `vit export` writes beside it")
            read_report(model)
        if peer is not None and not saved:
            found.append(Subject(model, EAGER, peer, threads))
        if Path(model).is_file():
            found.append(Subject(model, Path(model).suffix.removeprefix("."), "ours", threads))
            continue
        found += [Subject(model, form, "ours", threads, count) for form, count in product(forms, merged)]
    if peer is not None and all(subject.library == "ours" for subject in found):
        raise UsageError(f"--peer {peer} needs names of models, got {', '.join(models)}")
    return found


def _unavailable(subject: Subject, mode: str, precision: str) -> str | None:
    """Say why something is not timed; None where it is."""
    if subject.form in (EAGER, COMPILE):
        return "int8 is of exported formats" if precision == "int8" else None
    if mode != "forward":
        return "an exported file is not trained"
    if Path(subject.model).is_file():
        return None
    kind = find_format(subject.form)
    if not kind.runs_here:
        return f"the format runs on {kind.platform} only"
    if subject.merge_tokens and not kind.merges_tokens:
        return "the format cannot merge tokens"
    return None if precision in kind.precisions else kind.refusals[precision]


def _measure(subjects: Sequence[Subject], cell: Cell, rounds: int) -> list[dict[str, Any]]:
    """Time one cell of all subjects in fresh processes."""
    path = Path(vit_pytorch.__file__).parents[1]
    workers = {
        _name(subject): Worker(
            "-m", "vit_pytorch.export.bench_worker", json.dumps(asdict(subject)), path=path
        )
        for subject in subjects
    }
    try:
        times, answers = time_in_turn(workers, cell, rounds)
    except RuntimeError as error:
        raise RefusedError(f"a model cannot be timed: {error}") from error
    finally:
        for worker in workers.values():
            worker.close()
    rows = []
    for subject in subjects:
        name = _name(subject)
        peers = [other for other in subjects if other.library != "ours" and other.model == subject.model]
        first = _name((peers or subjects)[0])
        compared = ratio(times[first], times[name])
        # a file has its own, whatever is asked for
        precision = answers[name].get("precision", PRECISIONS[cell.dtype])
        rows.append(
            {
                "model": subject.model if subject.library == "ours" else f"{subject.library} {subject.model}",
                "form": subject.form,
                "merge_tokens": subject.merge_tokens,
                "mode": cell.mode,
                "precision": precision,
                "batch": cell.batch,
                "ms": 1000 * median(times[name]),
                "spread_ms": 1000 * spread(times[name]),
                "images_per_second": cell.batch / median(times[name]),
                "peak_mib": answers[name]["peak_mib"],
                "parameters": answers[name]["parameters"],
                "flops": answers[name]["flops"],
                "ratio": compared.value if name != first and compared.is_clear else None,
                "ratio_to": first,
            }
        )
    return rows


def _name(subject: Subject) -> str:
    return f"{subject.library} {subject.model} {_form(subject.form, subject.merge_tokens)}"


def _form(form: str, merged: int) -> str:
    return f"{form}, merging {merged}" if merged else form


def _cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    return [
        row["model"],
        _form(row["form"], row["merge_tokens"]),
        row["mode"],
        row["precision"],
        str(row["batch"]),
        f"{row['ms']:.2f}",
        f"{row['spread_ms']:.2f}",
        f"{row['images_per_second']:.1f}",
        "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
        f"{row['parameters'] / 1e6:.2f}",
        "" if row["flops"] is None else f"{row['flops'] / 1e9:.2f}",
        "" if row["ratio"] is None else f"{row['ratio']:.2f}",
    ]
