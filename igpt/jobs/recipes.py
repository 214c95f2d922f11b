"""Finding a recipe: a path as given, then the folder of its noun here, then the packaged copies.

The nouns are `jobs`, `clusters` and `sweeps`. In a wheel the copies are inside the package; in an
editable install they are the folders of the checkout. A recipe is a YAML file in its noun's folder;
what lies deeper goes along with the recipes (`clusters/grafana/`, a dashboard for Grafana).
"""

import shutil
from pathlib import Path

from igpt.config import nearest
from igpt.errors import UserError

NOUNS = ("jobs", "clusters", "sweeps")


def packaged(noun: str) -> Path:
    """The folder of the recipes that came with the package."""
    package = Path(__file__).parent.parent
    inside = package / "_recipes" / noun
    return inside if inside.is_dir() else package.parent / noun


def find_recipe(noun: str, name: str, folder: Path) -> Path:
    """The file of recipe `name`, with or without `.yaml`. Raises UserError, naming the nearest."""
    places = [folder, folder / noun, packaged(noun)]
    for place in places:
        for candidate in (name, f"{name}.yaml"):
            path = place / candidate
            if path.suffix in (".yaml", ".yml") and _is_file(path):
                return path
    known = recipe_names(noun, folder)
    hint = nearest(name.removesuffix(".yaml"), known)
    others = [other for other in NOUNS if other != noun and name in recipe_names(other, folder)]
    verbs = {"jobs": "submit", "sweeps": "sweep", "clusters": "submit JOB --cluster"}
    if others:
        hint = f"; igpt-jobs {verbs[others[0]]} {name} takes one of {others[0]}/"
    raise UserError(
        f"there is no {noun.removesuffix('s')} {name!r}{hint}",
        expected=f"a path, or one of {', '.join(known)}",
        mend=f"igpt-jobs init writes the recipes to ./{noun}/",
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def recipe_names(noun: str, folder: Path) -> list[str]:
    """The names of the recipes that can be given without a path."""
    found = {
        path.stem for place in (folder / noun, packaged(noun)) for path in place.glob("*.yaml")
    }
    return sorted(found)


def write_recipes(folder: Path, *, force: bool = False) -> tuple[list[Path], list[Path]]:
    """Writes all that is packaged into `folder`: (written, left alone because it was there)."""
    written, kept = [], []
    for noun in NOUNS:
        for source in sorted(packaged(noun).rglob("*")):
            target = folder / noun / source.relative_to(packaged(noun))
            if source.suffix not in (".yaml", ".md", ".json"):
                continue
            try:
                if target.exists() and not force:
                    kept.append(target)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            except OSError as error:
                raise UserError(
                    f"{target} cannot be written: {error.strerror}",
                    expected="a folder that can be written, or a name for a new one",
                ) from None
            written.append(target)
    return written, kept
