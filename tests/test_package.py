"""The package as it is built and laid out."""

import ast
import configparser
import graphlib
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT

PACKAGE = ROOT / "hf_recipes"
MOST_FILES = 14  # of a folder
# The rooms: each may import from those before it, and from itself.
ROOMS = (
    "core",
    "hub",
    "data",
    "privacy",
    "corpus",
    "importers",
    "models",
    "metrics",
    "rewards",
    "evaluation",
    "vocabulary",
    "trainer",
    "publishing",
    "export",
    "dry_run",
    "run",
    "stages",
    "inspection",
    "apps",
)


def imported(tree: ast.Module) -> set[str]:
    """Dotted names that a file imports wherever in it, but for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_run_one_way_and_in_no_circle():
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    graph, wrong = {}, []
    for module, path in files.items():
        names = imported(ast.parse(path.read_text(encoding="utf-8")))
        graph[module] = {name if name in files else name.rpartition(".")[0] for name in names} & files.keys() - {module}
        roots = {name.split(".")[0] for name in names}
        # Locks are `core.files.locked`, on file systems and machines of every kind.
        forbidden = {"scripts", "fcntl"} | (
            {"trl", "torch", "peft"} if module.startswith("hf_recipes.data.") else set()
        )
        wrong += [f"{module} imports {root}" for root in roots & forbidden]
        if module != "hf_recipes.__init__":
            rank = ROOMS.index(module.split(".")[1])
            wrong += [f"{module} imports {other}" for other in graph[module] if ROOMS.index(other.split(".")[1]) > rank]
    assert not wrong
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(f"a circle of imports: {' -> '.join(error.args[1])}") from None


def test_what_contributing_names_is_there():
    text = (ROOT / "docs" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:hf_recipes|tests|configs|\w+)/[\w./]*)`", text))
    missing = [name for name in names if not ((ROOT / name).exists() or (PACKAGE / name).exists())]
    assert len(names) > 20 and not missing
    rooms = [room for row in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE) for room in re.findall(r"`(\w+)`", row)]
    assert sorted(rooms) == sorted(ROOMS)


def test_a_folder_can_be_taken_in_at_a_glance():
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_FILES, folder


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 100


def test_the_samples_do_not_shadow_the_datasets_package():
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_a_built_wheel_works_away_from_the_checkout(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(PACKAGE, source / "hf_recipes", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        source,
    ]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    names = {path.relative_to(installed) for path in installed.rglob("*") if "dist-info" not in str(path)}
    packaged = {path.relative_to(source) for path in (source / "hf_recipes").rglob("*")}
    assert {path for path in packaged if path.suffix == ".py"} <= names
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import hf_recipes\n"
        "from hf_recipes.models.tokenizer import _bundled\n"
        "print(hf_recipes.__file__, *_bundled())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    location, *templates = done.stdout.split()
    assert Path(location).is_relative_to(installed)
    bundled = "alpaca baichuan chatglm2 chatglm3 chatml glm llama2 minicpm plain roles vicuna"
    assert templates == bundled.split()


def test_the_lock_names_every_package_that_the_environment_is_built_of():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = [config["options.extras_require"][name] for name in ("gguf", "tensorboard", "test")]
    wanted = {line for text in (config["options"]["install_requires"], *extras) for line in text.split("\n") if line}
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
                continue
            seen.add((name, extra))
            assert name in locked
            for line in metadata.requires(name) or ():
                dependency = Requirement(line)
                if dependency.marker is None or dependency.marker.evaluate({"extra": extra}):
                    dependency.marker = None
                    wanted.add(str(dependency))
    assert len(seen) > 100
