"""The page of all flags, made while mkdocs builds the others: what every training stage takes, then each command."""

from collections.abc import Mapping, Sequence
from typing import Any

from mkdocs.structure.files import File, Files

from hf_recipes.command.flags import flags_of
from hf_recipes.core.arguments.commands import COMMANDS
from hf_recipes.stages.table import STAGES

WORDS = {
    "en": {
        "title": "All flags",
        "intro": "Each is a key of a `--config` file too; flags win over the file. Of a flag that a stage inherits and "
        "cannot use, what to do instead.",
        "shared": "Every training stage",
        "beside": "Beside what [every training stage](#every-training-stage) takes:",
        "inspect": "Beside those of the stage that is inspected:",
        "table": "| flag | default | meaning |",
        "required": "required",
    },
    "zh": {
        "title": "全部参数",
        "intro": "每个参数也是 `--config` 文件里的键；命令行优先于文件。某阶段继承而用不了的参数，写明改用什么。"
        "说明文字为英文，与 `--help` 相同。",
        "shared": "训练各阶段通用",
        "beside": "在[训练各阶段通用](#训练各阶段通用)的参数之外：",
        "inspect": "在所检查的阶段的参数之外：",
        "table": "| 参数 | 默认 | 含义 |",
        "required": "必需",
    },
}


def row(name: str, flag: Mapping[str, Any], words: Mapping[str, str]) -> str:
    text, default = flag["help"].replace("%%", "%"), flag.get("default", "")
    if "choices" in flag:
        text += f" One of {', '.join(f'`{choice}`' for choice in flag['choices'])}."
    default = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    shown = words["required"] if flag.get("required") else f"`{default}`" if default else ""
    return f"| `--{name}` | {shown} | {_in_a_cell(text)} |"


def _in_a_cell(text: str) -> str:
    """Text as Markdown of a table's cell, without HTML where it is no code."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(parts))


def page(language: str) -> str:
    words = WORDS[language]

    def table(flags: Mapping[str, Any], names: Sequence[str]) -> list[str]:
        return ["", words["table"], "| --- | --- | --- |", *(row(name, flags[name], words) for name in names)]

    of_stages = [flags_of(name) for name in STAGES]
    shared = [name for name, flag in flags_of("sft").items() if all(flags.get(name) == flag for flags in of_stages)]
    known = set().union(*of_stages)
    lines = [f"# {words['title']}", "", words["intro"], "", f"## {words['shared']}", *table(flags_of("sft"), shared)]
    for command in (*STAGES, *(name for name in COMMANDS if name not in STAGES)):
        flags = flags_of(command)
        lines += ["", f"## {command}"]
        names = list(flags)
        if command in STAGES:
            lines += ["", words["beside"]]
            names = [name for name in names if name not in shared]
        elif command == "inspect":
            lines += ["", words["inspect"]]
            names = [name for name in names if name not in known]
        lines += table(flags, names)
    return "\n".join(lines) + "\n"


def on_files(files: Files, config) -> Files:
    files.append(File.generated(config, "flags.md", content=page(config.theme["language"])))
    return files
