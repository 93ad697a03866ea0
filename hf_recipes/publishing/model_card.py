"""The model card: what a model is, how it is loaded, and how it came about, in English and Chinese."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from hf_recipes.core.settings import DEFAULTS
from hf_recipes.evaluation.reports import tables as report
from hf_recipes.publishing.redact import public_ledger, public_name, public_settings
from hf_recipes.publishing.usage_code import usage


@dataclass(frozen=True)
class CardWords:
    """What a stage's models are tagged with, the rows that they learned from in English and Chinese, and what they do:
    answer, score, or continue a text.
    """

    tag: str = "sft"
    rows: tuple[str, str] = ("rows", "条数据")
    does: Literal["answers", "scores", "continues"] = "answers"


def _ledger_table(ledgers: Mapping[str, Mapping]) -> list[str]:
    columns = ["read", "kept", "truncated", "split", "repaired", "dropped"]
    columns = columns[:2] + [c for c in columns[2:] if any(ledger["total"].get(c) for ledger in ledgers.values())]
    lines = [f"| rows | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name, ledger in ledgers.items():
        for label, counts in ((f"**{name}**", ledger["total"]), *ledger["sources"].items()):
            lines.append(f"| {label} | {' | '.join(f'{counts.get(c, 0):,}' for c in columns)} |")
    reasons = [f"- {name}: {r['count']:,} {r['status']}" for name, part in ledgers.items() for r in part["reasons"]]
    return [*lines, "", *reasons, ""] if reasons else [*lines, ""]


def _course(log_history: Sequence[Mapping]) -> list[str]:
    """How the training went: where rewards are learned from, by these; the loss is then about 0 throughout."""
    train = [entry for entry in log_history if entry.get("reward") is not None]
    if train:
        first, last = train[0]["reward"], train[-1]["reward"]
        kl = (f"; KL from the start {train[-1]['kl']:.4f}", f"，与起点的 KL {train[-1]['kl']:.4f}")
        kl = kl if "kl" in train[-1] else ("", "")
        return [
            f"Mean reward of the answers: {first:.4f} at first, {last:.4f} at last{kl[0]}\n",
            f"回答的平均奖励：开始 {first:.4f}，最后 {last:.4f}{kl[1]}\n",
        ]
    values = [entry["loss"] for entry in log_history if entry.get("loss") is not None]
    found = (
        ("Mean", "平均训练损失", report.mean_loss(log_history)),
        ("Last", "最后的训练损失", values[-1] if values else None),
    )
    return [f"{one} training loss: {v:.4f} · {other}：{v:.4f}\n" for one, other, v in found if v is not None]


def _chosen(best: Mapping[str, Any]) -> list[str]:
    name, value = report.title(best["metric"]), report.as_text(best["metric"], best["value"])
    return [
        f"The weights are those of step {best['step']} of {best['of']}, the best by {name} ({value}).\n",
        f"权重取自 {best['of']} 步中的第 {best['step']} 步，其 {name} 最佳（{value}）。\n",
    ]


def _what(
    settings: Mapping[str, Any], base: str | None, is_adapter: bool, names: Mapping[str, str], does: str
) -> tuple[str, str]:
    """What a run made of its base, in English and Chinese."""
    if is_adapter:
        what = f"LoRA adapter of `{base}`", f"`{base}` 的 LoRA 适配器"
    elif not base:
        shape = public_name(settings["config_name"], names)
        what = f"Pretrained as a new model ({shape})", f"从头预训练的新模型（{shape}）"
    elif does == "continues":
        what = f"Pretrained further from `{base}`", f"在 `{base}` 上继续预训练的模型"
    else:
        what = f"Fine-tuned from `{base}`", f"由 `{base}` 微调的模型"
    if does == "scores":
        one = what[0] if is_adapter else what[0][0].lower() + what[0][1:]
        what = f"Reward model: {one}", f"奖励模型：{what[1]}"
    return what


def model_card(
    folder: str | os.PathLike,
    settings: Mapping[str, Any],
    names: Mapping[str, str],
    ledgers: Mapping[str, Mapping],
    log_history: Sequence[Mapping],
    steps: int,
    words: CardWords,
    best: Mapping[str, Any] | None = None,
) -> str:
    """README.md in English and Chinese: base model, how to load it, data, metrics and settings, with nothing in it that
    may not be published.

    Args:
        folder: what the weights are in; with `run_config.yaml` in it or in the folder above (of a checkpoint).
        settings: as the parser has them.
        names: `hub_names`.
        ledgers: `Ledger.to_dict` by data set.
        log_history: the trainer's; the last evaluation is shown, against the one before training if there was one.
        steps: of the weights.
        words: of the stage.
        best: `step`, `of` how many, and the `metric` whose `value` was the best, where these are not the last weights.
    """
    folder = Path(folder)
    home = folder if (folder / "run_config.yaml").is_file() else folder.parent
    base = settings["model_name_or_path"] and public_name(settings["model_name_or_path"], names)
    is_adapter = (folder / "adapter_config.json").is_file()
    what, public = _what(settings, base, is_adapter, names, words.does), public_ledger(ledgers, names)
    rows, count = words.rows, public["train"]["total"].get("kept", 0)
    sources = list(public["train"]["sources"])
    template = settings.get("chat_template")
    code = usage(
        base=base if is_adapter else None,
        does=words.does,
        grows=is_adapter and _trains_tokens(folder / "adapter_config.json"),
        ends_with_eos=is_adapter and template not in (None, "glm"),  # whose turns end with the next one's role
        system_prompt=settings.get("system_prompt"),
    )
    library, relation = ("peft", "adapter") if is_adapter else ("transformers", "finetune")
    tags = settings.get("algorithm", words.tag) + ", lora" * is_adapter
    lines = [
        *_header(library, base, relation, words.does, tags),
        f"\n# {home.resolve().name}\n",
        f"{what[0]}, trained with hf_recipes: {steps} steps on {count:,} {rows[0]} of {', '.join(sources)}.\n",
        f"{what[1]}，用 hf_recipes 训练 {steps} 步，数据为 {'、'.join(sources)} 的 {count:,} {rows[1]}。\n",
        *(_chosen(best) if best else ()),
        "## How to load it · 使用\n",
        f"```python\n{code}\n```\n",
        "## Data · 数据\n",
        *_ledger_table(public),
        "## Metrics · 指标\n",
    ]
    by_step = {step: found for step, found in report.evaluations(log_history).items() if step <= steps}
    if steps and by_step:
        before, after = by_step.get(0), by_step[max(by_step)]
        count = public.get("validation", {}).get("total", {}).get("kept")
        where = f"On {count:,} held-out {rows[0]} after step {max(by_step)}:" if count else "Evaluation:"
        lines += [where, f"第 {max(by_step)} 步后，留出的 {count:,} {rows[1]}：\n" if count else "评测：\n"]
        lines += ["```", report.comparison(before if max(by_step) else None, after), "```\n"]
    lines += _course(log_history)
    config = public_settings((home / "run_config.yaml").read_text(encoding="utf-8"), names)
    changed, _, defaults = config.partition(DEFAULTS)
    lines += ["## Settings · 设置\n", "```yaml", changed.strip(), "```\n"]
    lines += ["<details>\n<summary>All the others, as they are by default · 其余设置均为默认值</summary>\n"]
    lines += ["```yaml", defaults.strip(), "```\n", "</details>"]
    return "\n".join(lines) + "\n"


def _header(library: str, base: str | None, relation: str, does: str, tags: str) -> list[str]:
    header = ["---", f"library_name: {library}", "language: [zh, en]"]
    if base and "/" in base:  # the hubs take nothing but an id here
        header += [f"base_model: {base}", f"base_model_relation: {relation}"]
    task = "text-classification" if does == "scores" else "text-generation"
    return [*header, f"pipeline_tag: {task}", f"tags: [hf_recipes, {tags}]", "---"]


def _trains_tokens(path: Path) -> bool:
    """Whether an adapter has embeddings of its own, as it has where tokens were added."""
    config = json.loads(path.read_text(encoding="utf-8"))
    saved = config.get("modules_to_save") or ()
    return bool(config.get("trainable_token_indices")) or any("embed" in name for name in saved)


def merged_card(folder: str | os.PathLike, record: Mapping[str, Any]) -> str:
    """README.md of a merged model in English and Chinese, from its `merge.json`."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    scores = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())
    does, base, adapters = "scores" if scores else "answers", record["base"]["name"], record["adapters"]
    if not (scores or has_chat_template(folder)):
        does = "continues"
    shown = [f"`{one['name']}`" + (f" × {one['weight']:g}" if one["weight"] != 1 else "") for one in adapters]
    several, trained = len(adapters) > 1, record.get("quantized_in_training")
    quantized = (
        f"The adapter was trained on the base in {trained}; here it is in the base's full weights.\n",
        f"适配器训练时基座为 {trained}；这里并入的是基座的全精度权重。\n",
    )
    lines = [
        *_header("transformers", base, "merge" if several else "finetune", does, "merge, lora"),
        f"\n# {folder.resolve().name}\n",
        f"`{base}` with the LoRA adapter{'s' * several} {', '.join(shown)} merged into its weights by hf_recipes.\n",
        f"由 hf_recipes 把 LoRA 适配器 {'、'.join(shown)} 并入 `{base}` 的权重而成。\n",
        *(quantized if trained else ()),
        "## How to load it · 使用\n",
        f"```python\n{usage(does=does)}\n```",
    ]
    return "\n".join([*lines, *_parity(record.get("parity") or {}, scores)]) + "\n"


def _parity(found: Mapping[str, Any], scores: bool) -> list[str]:
    """How near a merged model is to its base with the adapters."""
    if "logits" not in found:
        return []
    what, tokens = ("scores", "得分") if scores else ("logits", "logits"), found.get("greedy_tokens") or {}
    same, of = tokens.get("same"), tokens.get("of")
    alike = (f", and {same} of {of} greedy tokens are the same", f"，{of} 个贪心词元中 {same} 个相同")
    alike = alike if of else ("", "")
    return [
        f"\nAgainst base and adapter, {what[0]} differ by at most {found['logits']:.2g}{alike[0]}.\n",
        f"与“基座加适配器”相比，{what[1]} 最多相差 {found['logits']:.2g}{alike[1]}。",
    ]


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer saved in `folder` has one."""
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (
        config.is_file() and "chat_template" in json.loads(config.read_text(encoding="utf-8"))
    )


def with_header(card: str, **values: str) -> str:
    """`card` with `values` in its YAML header."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    header = (yaml.safe_load(found[1]) or {}) if found else {}
    text = yaml.safe_dump({**header, **values}, allow_unicode=True, sort_keys=False)
    return f"---\n{text}---\n{card[found.end() if found else 0 :]}"


def with_base(card: str, shown: str, name: str) -> str:
    """`card` with the base's `name` on a hub in place of what it was `shown` as."""
    library = re.search(r"^library_name: (\w+)", card, re.MULTILINE)
    relation = "adapter" if library and library[1] == "peft" else "finetune"
    relation = re.search(r"^base_model_relation: (\w+)", card, re.MULTILINE) or (None, relation)
    card = re.sub(rf'^base = "{re.escape(shown)}".*$', f'base = "{name}"', card, flags=re.MULTILINE)
    card = card.replace(f"`{shown}`", f"`{name}`")
    return with_header(card, base_model=name, base_model_relation=relation[1])
