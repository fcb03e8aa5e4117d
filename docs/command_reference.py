"""A directive for the reference of the `vit` command, from what its parsers print as help."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING
from unittest.mock import patch

from docutils import nodes
from page_nodes import inline, link, table
from sphinx.util.docutils import SphinxDirective

from vit_pytorch.cli import COMMANDS
from vit_pytorch.cli.aliases import ALIASES, ANSWERS
from vit_pytorch.training.pretraining.config import METHODS

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# commands of which `--help-all` is shown; those of the others are the options of `vit train`
WHOLE = ("train", "pretrain")
ENTRY = re.compile(r"^ {2}(\S.*?)(?: {2,}(\S.*))?$")
EXAMPLES = "examples"


@dataclass
class Group:
    """Options that stand together in a help page: their names with values, and what is said of each."""

    title: str
    entries: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class HelpPage:
    """A help page in parts.

    Args:
        usage: its first lines.
        paragraphs: texts between the groups.
        groups: its options.
    """

    usage: str
    paragraphs: list[str]
    groups: list[Group]


def help_text(command: str, *options: str) -> str:
    """Return what `vit COMMAND OPTIONS` prints, 100 columns wide, before it leaves."""
    printed = io.StringIO()
    module, _ = COMMANDS[command]
    run = getattr(import_module(f"vit_pytorch.cli.{module}"), command)
    with redirect_stdout(printed), patch.dict(os.environ, COLUMNS="100"):
        try:
            run(options)
        except SystemExit as left:
            if left.code:
                raise ValueError(f"vit {command} {' '.join(options)} left with status {left.code}") from left
    return printed.getvalue()


def read_help(text: str) -> HelpPage:
    """Take a help page apart."""
    page = HelpPage("", [], [])
    group: Group | None = None
    for block in re.split(r"\n[ \t]*\n", text.strip("\n")):
        lines = block.splitlines()
        if block.startswith("usage:"):
            page.usage = re.sub(r"\n +", "\n    ", block.removeprefix("usage:").strip())
            continue
        if (
            not lines[0].startswith(" ")
            and lines[0].endswith(":")
            and len(lines) > 1
            and lines[1][:2] == "  "
        ):
            group = Group(lines.pop(0).removesuffix(":"))
            page.groups.append(group)
        elif not lines[0].startswith(" "):
            page.paragraphs.append(" ".join(line.strip() for line in lines))
            continue
        if group is None:
            raise ValueError(f"options without a heading: {lines[0]}")
        for line in lines:
            entry = ENTRY.match(line)
            if entry:
                group.entries.append((entry[1], entry[2] or ""))
            else:
                name, said = group.entries[-1]
                group.entries[-1] = (name, f"{said} {line.strip()}".strip())
    return page


class CommandReference(SphinxDirective):
    """`{command-reference}` writes a section for each command, and the table of other programs' names."""

    def run(self) -> list[nodes.Node]:
        """Write the sections."""
        # the parsers come from all over the package
        self.env.note_reread()
        overview = [["command", "what it does"]]
        rows = [[link(f"`vit {name}`", f"#vit-{name}"), what] for name, (_, what) in COMMANDS.items()]
        return [table(overview + rows), *map(self.section_of, COMMANDS), self.other_names()]

    def section_of(self, command: str) -> nodes.section:
        """Write the section of a command."""
        section = self.section(f"vit-{command}", f"`vit {command}`")
        page = read_help(help_text(command, "--help"))
        section += _opening(page)
        if command == "pretrain":
            page.groups.pop(0)
            for method in METHODS:
                own = read_help(help_text(command, "--method", method, "--help")).groups[0]
                section += _groups([Group(f"with --method {method}", own.entries)], f"{command}-{method}")
        section += _groups(page.groups, command)
        if command in WHOLE:
            whole = self.section(f"vit-{command}-all", f"All settings of `vit {command}`")
            whole += nodes.paragraph("", "", *inline(f"What `vit {command} --help-all` lists."))
            whole += _folded(_groups(read_help(help_text(command, "--help-all")).groups, f"{command}-all"))
            section += whole
        return section

    def other_names(self) -> nodes.section:
        """Write the section of names that other programs give options."""
        section = self.section("other-names", "Names of other programs")
        rows = [["name", "here"]]
        rows += [
            [f"`{'-' if len(name) == 1 else '--'}{name}`", f"`--{right}`"] for name, right in ALIASES.items()
        ]
        rows += [[f"`--{name}`", f"refused; {answer}"] for name, answer in ANSWERS.items()]
        section += _folded([table(rows, classes=["options"])])
        return section

    def section(self, name: str, title: str) -> nodes.section:
        """Return an empty section under a title."""
        section = nodes.section("", nodes.title("", "", *inline(title)), ids=[name], names=[name])
        self.state.document.note_explicit_target(section)
        return section


def _opening(page: HelpPage) -> Iterator[nodes.Node]:
    """Write usage, description and examples."""
    for text in page.paragraphs:
        yield nodes.paragraph("", "", *inline(text))
    examples = [name for group in page.groups if group.title == EXAMPLES for name, _ in group.entries]
    code = "\n".join([page.usage, *examples])
    yield nodes.literal_block(code, code, language="sh")


def _groups(groups: Sequence[Group], prefix: str) -> Iterator[nodes.Node]:
    """Write options as tables under their headings; each name can be linked to."""
    for group in groups:
        if group.title == EXAMPLES or not group.entries:
            continue
        rows: list[list[str | nodes.Node]] = [["option", "what"]]
        for name, said in group.entries:
            code = nodes.literal(name, name, ids=[nodes.make_id(f"{prefix} {name.split(' ')[0]}")])
            rows.append([code, said])
        yield nodes.rubric("", "", *inline(group.title))
        yield table(rows, classes=["options"])


def _folded(inside: Sequence[nodes.Node] | Iterator[nodes.Node]) -> list[nodes.Node]:
    """Fold a long part of a page, in HTML."""
    opening = nodes.raw("", "<details><summary>Show</summary>", format="html")
    return [opening, *inside, nodes.raw("", "</details>", format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("command-reference", CommandReference)
    return {"parallel_read_safe": True}
