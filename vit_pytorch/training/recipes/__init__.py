"""Recipes: settings of whole trainings as small YAML files, found by name or path."""

from pathlib import Path

FOLDER = Path(__file__).parent


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """Give the file of a recipe.

    Args:
        name: One of `list_recipes()`, or the path of a YAML file.

    Raises:
        ValueError: Where it is neither.
    """
    if name in list_recipes():
        return FOLDER / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    raise ValueError(f"a recipe is one of {', '.join(list_recipes())} or a YAML file, got {name!r}")


def default_recipe(source: str) -> str:
    """Name the recipe that suits a data source."""
    if source.startswith(("video:", "nifti:")):
        return "light_3d"
    return "digits" if source == "digits" else "light"
