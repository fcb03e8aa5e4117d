"""`--help` of the commands that train: the options that people use, on one page."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentParser

from vit_pytorch.cli.aliases import ALIASES
from vit_pytorch.cli.layers import SHORT

WIDTH = 100
# where descriptions begin
COLUMN = 24
GROUPS = {
    "what and where": ("data", "recipe", "config", "weights", "output", "resume", "print_config"),
    "model": ("model", "img_size", "drop_path"),
    "training": (
        *("task", "loss", "class_weights", "sampler"),
        *("epochs", "budget", "batch_size", "lr", "weight_decay", "warmup_epochs", "label_smoothing"),
        *("select", "patience", "seed", "monitor.knn_every"),
    ),
    "images": ("hflip", "mixup", "data.val_fraction"),
    "machine": ("workers", "devices", "accelerator", "precision"),
}
EXAMPLES = {
    "vit train": ("vit train --data photos/ --epochs 20", "vit train --resume"),
    "vit finetune": ("vit finetune --from vit_small_patch16_224.augreg_in21k --data photos/ --lr 1e-4",),
    "vit distill": ("vit distill --teacher RUN --student deit_tiny_distilled_patch16_224 --data photos/",),
    "vit pretrain": ("vit pretrain --data photos/ --epochs 50", "vit finetune --from RUN --data labelled/"),
}


def help_page(parser: ArgumentParser, texts: Mapping[str, str | None], own: Mapping[str, str]) -> str:
    """Return one page of help, with the defaults that the parser has now.

    Args:
        parser: The parser of a command.
        texts: What it says of each of its options.
        own: The command's own names of options, and what they stand for; they come first.
    """
    defaults = parser.get_defaults()
    names = {**ALIASES, **{name: f"{name}.{full}" for name, full in SHORT.items()}, **own}
    command = parser.prog.removeprefix("vit ")
    paragraphs = inspect.cleandoc(parser.description or "").split("\n\n")
    blocks = [f"usage: {parser.prog} [options]", *(textwrap.fill(text, WIDTH) for text in paragraphs)]
    shown: set[str] = set()
    for title, options in {f"of {command}": tuple(own), **GROUPS}.items():
        lines = []
        for option in options:
            dest = names.get(option, option)
            if dest in texts and dest not in shown:
                shown.add(dest)
                lines.append(_entry(option, texts[dest], defaults.get(dest)))
        blocks += ["\n".join([f"{title}:", *lines])] if lines else []
    examples = "\n".join(f"  {example}" for example in EXAMPLES[parser.prog])
    last = (
        f"{parser.prog} --help-all lists all options, those of the model's class and of the data, too. "
        "Dashes and underscores are equal; names that timm, Ultralytics and the Trainer give options "
        "(--imgsz, --wd, -j …) are understood."
    )
    return "\n\n".join([*blocks, f"examples:\n{examples}", textwrap.fill(last, WIDTH)])


def _entry(option: str, text: str | None, default: Any) -> str:
    """Return the lines of one option: its name, the first sentence about it, and its default."""
    sentence = " ".join((text or "").split()).partition(". ")[0].rstrip(".")
    if default is not None and default is not False:
        sentence += f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"
    head, pad = f"  --{option}", " " * COLUMN
    body = textwrap.fill(sentence, WIDTH, initial_indent=pad, subsequent_indent=pad)
    return f"{head}{body[len(head) :]}" if len(head) < COLUMN - 1 else f"{head}\n{body}"
