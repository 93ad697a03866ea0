"""The recipes that come with the package."""

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.arguments.commands import recipes
from hf_recipes.core.errors import UserError


def print_recipes() -> None:
    """Each recipe with its first line of comment."""
    for name, path in recipes().items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        print(f"{name:20} {first.removeprefix('# ')}")


def print_recipe(name: str) -> None:
    """The text of a recipe, to be changed and run with ``--config``."""
    name = name.removesuffix(".yaml")
    if name not in recipes():
        raise UserError(f"no recipe is called {name}{nearest(name, recipes())}; hf-recipes recipes lists them")
    print(recipes()[name].read_text(encoding="utf-8"), end="")
