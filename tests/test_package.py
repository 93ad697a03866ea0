"""The package as it is built and laid out."""

import ast
import configparser
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
# What each part may import of the others.
ALLOWED = {
    "core": {"core", "errors"},
    "data": {"core", "errors", "data"},
    "models": {"core", "errors", "hub", "models", "parsing", "processes", "__version__"},
    "evaluation": {"core", "parsing", "errors", "evaluation", "data", "models", "__version__"},
    "apps": {"core", "errors", "apps", "data", "evaluation", "models", "parsing"},
    "inspection": {"core", "inspection", "arguments", "data", "errors", "evaluation", "models", "parsing", "training"},
    "hub": {"core", "errors"},
    "samples": {"core", "errors"},
    "usage": set(),
    "download": {"core", "errors", "hub", "models"},
    "training": {
        "core",
        "errors",
        "hub",
        "usage",
        "training",
        "evaluation",
        "data",
        "models",
        "arguments",
        "parsing",
        "processes",
    },
    "parsing": {"core", "errors", "processes", "__version__"},
    "processes": {"core", "errors"},
    "arguments": {"core", "data", "hub", "inherited", "models", "parsing", "processes"},
    "inherited": {"models"},
    "errors": set(),
    "__init__": set(),
}


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    names = imported(path)
    own = {name.split(".")[1] for name in names if name.startswith("hf_recipes.")}
    assert own <= ALLOWED[part]
    roots = {name.split(".")[0] for name in names}
    assert "scripts" not in roots
    assert "fcntl" not in roots  # locks are `core.files.locked`, on file systems and machines of every kind
    if part == "data":
        assert not roots & {"trl", "torch", "peft"}


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
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import hf_recipes\n"
        "from hf_recipes.models.loading import _bundled\n"
        "from hf_recipes.stages.sft import build_trainer\n"
        "print(hf_recipes.__file__, *_bundled())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    place, *templates = done.stdout.split()
    assert Path(place).is_relative_to(installed)
    assert templates == ["alpaca", "baichuan", "chatml", "glm", "llama2", "plain", "vicuna"]


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
