"""Recipes: settings of whole trainings as small YAML files, found by name or path."""

from pathlib import Path

FOLDER = Path(__file__).parent
# kinds of recipes, and where they are
TRAIN, PRETRAIN = ".", "pretrain"


def list_recipes(kind: str = TRAIN) -> list[str]:
    """Names of the recipes of a kind that come with the package."""
    return sorted(path.stem for path in (FOLDER / kind).glob("*.yaml"))


def find_recipe(name: str, kind: str = TRAIN) -> Path:
    """Return the file of a recipe.

    Args:
        name: One of `list_recipes(kind)`, or the path of a YAML file.
        kind: For what: `TRAIN` or `PRETRAIN`.

    Raises:
        ValueError: Where it is neither.
    """
    if name in list_recipes(kind):
        return FOLDER / kind / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    raise ValueError(f"a recipe is one of {', '.join(list_recipes(kind))} or a YAML file, got {name!r}")


def default_recipe(source: str, *, photographs: bool = False) -> str:
    """Name the recipe that suits a data source.

    Args:
        source: The data.
        photographs: Whether its images are larger than small pictures.
    """
    if source.startswith(("video:", "nifti:")):
        return "light_3d"
    return "digits" if source == "digits" else "photos" if photographs else "light"
