"""docs/en/families.md and its Chinese twin say of each family what its tiny model was tested for."""

import json
import re

from models.tiny_families import FAMILIES

from conftest import ROOT


def test_the_table_is_what_is_tested():
    for language in ("en", "zh"):
        text = (ROOT / "docs" / language / "families.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| `lora_(\w+)\.json` \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
        apart, yes = ("apart", "yes") if language == "en" else ("互不可见", "有")
        assert {name: (lora, packs == apart, rewards == yes) for name, lora, packs, rewards in rows} == {
            name: (family.lora, family.packs, family.rewards) for name, family in FAMILIES.items()
        }


def test_the_modules_are_those_of_the_files():
    files = {f"lora_{family.lora}.json" for family in FAMILIES.values()}
    settings = {name: json.loads((ROOT / "configs" / name).read_text(encoding="utf-8")) for name in files}
    for language in ("en", "zh"):
        text = (ROOT / "docs" / language / "families.md").read_text(encoding="utf-8")
        rows = [
            [re.findall("`([^`]+)`", cell) for cell in row.split("|")[1:3]]
            for row in text.splitlines()
            if row.count("|") == 3
        ]
        named = {f"lora_{name}.json": modules for names, modules in filter(all, rows) for name in names}
        for name in files:
            modules = settings[name]["lora_target_modules"]
            assert named[name] == (modules if isinstance(modules, list) else [modules])
