"""What is installed beside this package: the extras that it lacks, and a package of the same import name."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "proven-vit"
# another project, whose import name is ours
OTHER = "vit-pytorch"


def install_command(extra: str) -> str:
    """Return how to install what an extra of this package needs."""
    return f"pip install -e '.[{extra}]' in a checkout, or pip install '{DISTRIBUTION}[{extra}]'"


def other_package() -> str | None:
    """Return the version of the other package of this import name, if it is installed, too."""
    try:
        found = version(OTHER)
    except PackageNotFoundError:
        return None
    # this package had that name once, in version 0.1
    return None if found.startswith("0.1.") else found
