"""Exports whose values are of other types than their formats say: no crash, and nothing is lost in silence."""

import json
import random
import shutil
from pathlib import Path

import pytest

from conftest import ROOT
from hf_recipes.importers.chat_logs.export_file import ExportFile
from hf_recipes.importers.chat_logs.formats.registry import detect
from hf_recipes.importers.chat_logs.members import Members

CASES = ROOT / "tests" / "data" / "cases" / "chats"
OTHERS = ("users.json", "avatars.json", "manifest.json")
FILES = sorted(path for path in CASES.rglob("private/**/*.json") if path.name not in OTHERS)


def damaged(value, rng: random.Random):
    """`value` with some of the scalars in it replaced by values of other types."""
    if isinstance(value, dict):
        return {key: damaged(item, rng) for key, item in value.items()}
    if isinstance(value, list):
        return [damaged(item, rng) for item in value]
    return rng.choice([None, 5, 1.5, True, "x", [], {}, ["a"], {"a": None}]) if rng.random() < 0.1 else value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CASES)).split("/")[0])
@pytest.mark.parametrize("seed", range(5))
def test_values_of_other_types(path: Path, seed, tmp_path):
    source = tmp_path / "in"
    shutil.copytree(path.parent, source)
    value = json.loads(path.read_text("utf-8"))
    read = detect(ExportFile(str(path))).read
    messages = damaged(value if isinstance(value, list) else value["messages"], random.Random(seed))
    value = messages if isinstance(value, list) else value | {"messages": messages}
    (source / path.name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    chats = list(read(ExportFile(str(source / path.name)), Members()))
    assert sum(len(chat.messages) for chat in chats) == len(messages)
