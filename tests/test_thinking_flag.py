"""--thinking on and off act in every stage: on what is trained on, saved, inspected, chatted with and in a card."""

import re

import pytest
from transformers import AutoTokenizer

from conftest import build_tokenizer, tiny_model, write_jsonl
from hf_recipes.apps.chat.loading import open_engine
from hf_recipes.apps.chat.models import BASE
from hf_recipes.inspection.inspect import inspect
from hf_recipes.inspection.settings import read_settings
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.templates.options import TemplateArguments, with_options

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ENDS = {"on": "<|im_start|>assistant\n<think>\n", "off": "<|im_start|>assistant\n<think>\n\n</think>\n\n"}
PAIR = {"prompt": "你好", "chosen": "早上好", "rejected": "走开"}
ROWS = {
    "dpo": [PAIR] * 4,
    "orpo": [PAIR] * 4,
    "reward": [PAIR] * 4,
    "kto": [{"prompt": "你好", "completion": "早上好", "label": label} for label in (True, False)] * 2,
    "grpo": [{"prompt": f"你好{number}"} for number in range(4)],
}
GRPO = ["--rewards", "chinese", "--num_generations", 2, "--max_completion_length", 4]


@pytest.fixture
def base(thinking, tmp_path):
    """A model whose template does the other thing by itself."""
    tokenizer = build_tokenizer(chat_template=with_options(TEMPLATE, {"enable_thinking": thinking == "off"}))
    tokenizer.save_pretrained(tmp_path / "base")
    tiny_model(len(tokenizer)).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.mark.parametrize(
    ("stage", "thinking"),
    [
        pytest.param(stage, thinking, marks=[] if often == thinking else [pytest.mark.slow])
        for stage, often in zip(ROWS, ("on", "off", "off", "on", "off"), strict=True)
        for thinking in ENDS
    ],
)
def test_a_run_trains_and_saves_what_the_flag_says(forks, base, tmp_path, stage, thinking):
    flags = ["--model_name_or_path", base, "--thinking", thinking, *(GRPO if stage == "grpo" else [])]
    flags += ["--train_file", write_jsonl(tmp_path / "rows.jsonl", ROWS[stage]), "--cache_dir", tmp_path / "cache"]

    report = inspect(read_settings(list(map(str, [*flags, "--stage", stage]))))
    [shown] = [block for block in report.sections[0].blocks if block.title == "The first of these prompts"]
    assert [name for name, _ in shown.rows] == ["trained, served_prompt, apply_chat_template"]  # all three are one
    assert all(text.replace("⏎\n", "\n").replace("⏎", "\n").endswith(ENDS[thinking]) for _, text in shown.rows), shown

    more = ["--max_steps", 1, "--per_device_train_batch_size", 4, "--report_to", "none", "--bf16", False]
    done = forks.run(*flags, *more, "--output_dir", tmp_path / "run", script=f"scripts/{stage}.py")
    assert done.code == 0, done.err
    assert f"--thinking {thinking}: the chat template's enable_thinking" in done.out

    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    question = [{"role": "user", "content": "你好"}]
    sent = saved.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert sent.endswith(ENDS[thinking])
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "apply_chat_template" in block
    )
    code = re.sub("^base = .*", f"base = {base!r}", code, flags=re.MULTILINE)
    code = code.replace('"FOLDER"', repr(str(tmp_path / "run"))).replace("max_new_tokens=256", "max_new_tokens=1")
    names: dict = {}
    exec(code, names)
    text = saved.decode(names["inputs"]["input_ids"][0])
    closed = {"on": "\n</think>\n\n", "off": ""}[thinking]  # before an answer without thoughts, as in training
    assert text == (f"{sent}{closed}你好，请问有什么可以帮你？<|im_end|>\n" if stage == "reward" else sent)


@pytest.mark.parametrize("thinking", ENDS)
def test_the_chat_sends_what_the_flag_says(base, thinking):
    template = TemplateArguments(thinking=thinking)
    engine = open_engine(
        ModelArguments(base, dtype="float32"), [], max_new_tokens=4, template=template, device_map="cpu"
    )
    prompt = engine.prompt(BASE, [{"role": "user", "content": "你好"}], Decoding(max_new_tokens=4))
    assert engine.chat_models[BASE].tokenizer.decode(prompt.ids).endswith(ENDS[thinking])
