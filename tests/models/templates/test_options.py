"""Variables of a chat template: set at its top, found for --thinking, saved with the tokenizer."""

import json
import shutil
from importlib.resources import files

import pytest
from transformers import AutoTokenizer

from conftest import ROOT, build_tokenizer, conversation, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.models.templates.options import thinking_options, with_options
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TAIL = "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
CLOSED = "<think>\n\n</think>\n\n"
KEPT = "{% if m.reasoning_content and (loop.last or KEEP) %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
EARLIER = KEPT.replace("KEEP", "preserve_thinking is defined and preserve_thinking")
CLEARED = KEPT.replace("KEEP", "clear_thinking is defined and not clear_thinking")
# Switches of different kinds, as templates of today have them.
QWEN3 = (
    HEAD + TAIL + "{% if enable_thinking is defined and enable_thinking is false %}" + CLOSED + "{% endif %}{% endif %}"
)
OPENS = (
    HEAD + EARLIER + TAIL + "{% if enable_thinking is defined and not enable_thinking %}" + CLOSED
    + "{% else %}<think>\n{% endif %}{% endif %}"
)  # fmt: skip
ASKED = HEAD + TAIL + "{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
EFFORT = HEAD + CLEARED + TAIL + "{% if reasoning_effort == 'none' %}" + CLOSED + "{% endif %}{% endif %}"
SYSTEM = "{% if enable_thinking %}<|im_start|>system\nthink<|im_end|>\n{% endif %}" + HEAD + TAIL + "{% endif %}"
BRACKETS = HEAD + TAIL + "{% if thinking %}[THINK]{% else %}[THINK][/THINK]{% endif %}{% endif %}"
BUDGET = HEAD + TAIL + "{% set thinking_budget = thinking_budget | default(-1) %}"
BUDGET += "{% if thinking_budget != -1 %}{{ thinking_budget }}{% endif %}{% endif %}"
PRINTED = HEAD + TAIL + "{% if thinking_budget is defined %}Budget: {{ thinking_budget }}{% endif %}{% endif %}"
CHAT = [{"role": "user", "content": "问"}]


def trl_template(name: str) -> str:
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture
def save(tmp_path):
    """``save(template)`` → a folder of a tokenizer with it, or with several by name."""

    def saved(template) -> str:
        tokenizer = build_tokenizer()
        tokenizer.chat_template = template
        shutil.rmtree(tmp_path / "tokenizer", ignore_errors=True)
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        return str(tmp_path / "tokenizer")

    return saved


@pytest.mark.parametrize(
    ("template", "thinking", "expected"),
    [
        (QWEN3, "on", {"enable_thinking": True}),
        (QWEN3, "off", {"enable_thinking": False}),
        (OPENS, "on", {"enable_thinking": True}),
        (OPENS, "off", {"enable_thinking": False}),
        (OPENS, "keep", {"enable_thinking": True, "preserve_thinking": True}),
        (ASKED, "on", {"thinking": True}),
        (ASKED, "off", {"thinking": False}),
        (EFFORT, "off", {"reasoning_effort": "none"}),
        (EFFORT, "keep", {"clear_thinking": False}),
        (SYSTEM, "on", {"enable_thinking": True}),
        (SYSTEM, "off", {"enable_thinking": False}),
        (BRACKETS, "on", {"thinking": True}),
        (BRACKETS, "off", {"thinking": False}),
        (BUDGET, "on", {}),
        (BUDGET, "off", {}),
        (PRINTED, "on", {}),
        (HEAD + TAIL + "{% endif %}", "off", {}),
    ],
)
def test_the_switch_of_thinking_is_found(save, template, thinking, expected):
    assert thinking_options(load_tokenizer(save(template))[0], thinking) == expected


def test_the_switches_of_the_page_on_thinking(save):
    """Those of docs/en/thinking_and_tools.md and its twin, in the templates that TRL has."""
    think, pages = "enable_thinking", (ROOT / "docs").glob("*/thinking_and_tools.md")
    pages = [page.read_text(encoding="utf-8") for page in pages]
    kept = {"qwen3": {}, "qwen3_6": {"preserve_thinking": True}, "qwen3_8": {}, "glm4moe": {}}
    kept |= {"nemotron_3_nano": {"truncate_history_thinking": False}}
    for name, more in kept.items():
        tokenizer, _ = load_tokenizer(save(trl_template(name)))
        assert thinking_options(tokenizer, "off") == {think: False}, name
        assert thinking_options(tokenizer, "on") == {think: True}, name
        assert thinking_options(tokenizer, "keep") == {think: True, **more}, name
        assert len(pages) == 2 and all(option in page for option in (think, *more) for page in pages)
    for name in ("deepseek_r1_distill", "gptoss"):
        tokenizer, _ = load_tokenizer(save(trl_template(name)))
        assert [thinking_options(tokenizer, how) for how in ("off", "on", "keep")] == [{}] * 3, name


def test_what_is_chosen_is_saved_and_is_what_plain_transformers_sends(save, tmp_path, capsys):
    tokenizer, _ = load_tokenizer(save(OPENS), thinking="off")
    assert "--thinking off: the chat template's enable_thinking false" in capsys.readouterr().out
    tokenizer.save_pretrained(tmp_path / "saved")
    plain = AutoTokenizer.from_pretrained(tmp_path / "saved")
    sent = plain.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert sent.endswith("assistant\n" + CLOSED)
    assert plain.decode(ChatEncoder(tokenizer).served_prompt(CHAT)) == sent
    # Whoever asks for something else gets it, and a later choice replaces an earlier one.
    asked = plain.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert asked.endswith("<think>\n")
    again, _ = load_tokenizer(str(tmp_path / "saved"), template_options={"enable_thinking": True})
    assert again.chat_template.count("set enable_thinking") == 1
    assert again.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True).endswith("<think>\n")


def test_tool_use_is_for_rows_with_tools(save, tmp_path, capsys):
    """As `apply_chat_template` chooses, and the same from what is saved."""
    default = HEAD + TAIL + "{% if enable_thinking is false %}" + CLOSED + "{% endif %}{% endif %}\n"
    tool_use = "{% for tool in tools %}{{ tool.function.name }}\n{% endfor %}" + default
    folder = save({"default": default, "tool_use": tool_use})
    tokenizer, _ = load_tokenizer(folder, template_options={"enable_thinking": False})
    assert "default is used, for rows with tools tool_use" in capsys.readouterr().out
    tokenizer.save_pretrained(tmp_path / "saved")
    several, saved = (AutoTokenizer.from_pretrained(name) for name in (folder, tmp_path / "saved"))
    tools = [{"type": "function", "function": {"name": "查", "description": "", "parameters": {}}}]
    for some in (None, tools):
        options = {"tokenize": False, "add_generation_prompt": True, "tools": some}
        expected = several.apply_chat_template(CHAT, enable_thinking=False, **options)
        assert saved.apply_chat_template(CHAT, **options) == expected
        assert tokenizer.decode(ChatEncoder(tokenizer).served_prompt(CHAT, some)) == expected
        assert ("查" in expected) == bool(some) and expected.endswith(CLOSED)


@pytest.mark.parametrize("value", [True, None, 3, 0.5, 'a "b" {{ 好\n', ["x", {"y": False}]])
def test_any_value_of_json(tokenizer, value):
    template = with_options("{{ messages[0].content }}{{ v | tojson(ensure_ascii=False) }}", {"v": value})
    text = tokenizer.apply_chat_template(CHAT, chat_template=template, tokenize=False)
    assert json.loads(text.removeprefix("问")) == value


@pytest.mark.parametrize("space", ["\n\n", "  ", "\n\t", ""])
def test_white_space_at_the_beginning_of_a_template_stays(tokenizer, space):
    template = space + "{{ messages[0].content }}{{ a }}{{ b }}"
    changed = with_options(with_options(template, {"a": 1, "b": 2}), {"a": 3})
    assert changed.count("set a") == changed.count("set b") == 1
    expected = tokenizer.apply_chat_template(CHAT, chat_template=template, tokenize=False, a=3, b=2)
    assert expected.startswith(space)
    assert tokenizer.apply_chat_template(CHAT, chat_template=changed, tokenize=False) == expected


def test_one_of_several_templates(save, capsys):
    folder = save({"default": HEAD + TAIL + "{% endif %}", "rag": HEAD + "T" + TAIL + "{% endif %}"})
    assert "T" not in load_tokenizer(folder)[0].chat_template
    assert "the one named default is used (" in capsys.readouterr().out
    folder = save({"default": HEAD + TAIL + "{% endif %}", "tool_use": HEAD + "T" + TAIL + "{% endif %}"})
    assert "T" in load_tokenizer(folder, template_name="tool_use")[0].chat_template
    with pytest.raises(UserError, match=r"--chat_template_name rag: .* default, tool_use"):
        load_tokenizer(folder, template_name="rag")
    other = save({"rag": HEAD + TAIL + "{% endif %}", "tool_use": HEAD + "T" + TAIL + "{% endif %}"})
    with pytest.raises(UserError, match="rag, tool_use; name one"):
        load_tokenizer(other)
    assert "im_start" in load_tokenizer(other, "chatml")[0].chat_template
    with pytest.raises(UserError, match="contradict"):
        load_tokenizer(other, "chatml", template_name="rag")


def test_the_adapter_asks_as_it_was_trained_to(forks, model_dir, tmp_path):
    """The choice is in what is saved, so that predict needs no flag; its prompts are those of the training."""
    template = tmp_path / "opens.jinja"
    template.write_text(OPENS, encoding="utf-8")
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"messages": conversation(f"问{n}", f"答{n}")} for n in range(4)])
    how = ["--chat_template", template, "--thinking", "off", "--chat_template_kwargs", '{"preserve_thinking": true}']
    argv = ["--model_name_or_path", model_dir, "--train_file", rows, *how, "--max_steps", 1, "--report_to", "none"]
    done = forks.run(*argv, "--output_dir", tmp_path / "run", script="scripts/sft.py")
    assert done.code == 0, done.err
    assert "--thinking off: the chat template's enable_thinking false" in done.out
    saved = (tmp_path / "run" / "chat_template.jinja").read_text(encoding="utf-8")
    assert "set enable_thinking" in saved and "set preserve_thinking" in saved
    argv = ["--model_name_or_path", model_dir, "--peft_path", tmp_path / "run", "--input_file", rows]
    done = forks.run(
        *argv, "--output_file", tmp_path / "out" / "o.jsonl", "--max_new_tokens", 1, script="scripts/predict.py"
    )
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["chat_template"] == saved
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    [trained] = ChatEncoder(tokenizer).encode([conversation("问0", "答0")])
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text.endswith(CLOSED) and CLOSED in tokenizer.decode(trained.input_ids[: trained.prompt_length])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--chat_template_kwargs", "{"], "--chat_template_kwargs {: not JSON"),
        (["--chat_template_kwargs", '{"x": NaN}'], "not JSON (NaN is none of its numbers)"),
        (["--chat_template_kwargs", "[1]"], "expected a JSON object"),
        (["--chat_template_kwargs", '{"messages": 1}'], "messages is no variable that can be set"),
        (["--chat_template_kwargs", '{"massages": 1}'], "kwargs: massages: the chat template has no such variable"),
        (["--chat_template_name", "rag"], "has one chat template, without a name"),
    ],
)
def test_wrong_options_are_named(forks, model_dir, tmp_path, flags, message):
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"messages": conversation("问", "答")}])
    argv = ["--model_name_or_path", model_dir, "--train_file", rows, "--output_dir", tmp_path / "run", *flags]
    done = forks.run(*argv, script="scripts/sft.py")
    assert done.code == 1 and message in done.err and "Traceback" not in done.err
