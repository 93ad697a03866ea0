"""The tokens that end answers and calls are what generation stops at."""

from importlib.resources import files
from pathlib import Path

import pytest
from chat_templates import tokenizer_of

from conftest import build_tokenizer, conversation, tiny_model, write_jsonl
from hf_recipes.apps.chat.models import ChatModel
from hf_recipes.data.chat import ChatEncoder
from hf_recipes.data.chat.prompts import PromptReader
from hf_recipes.models.inference.generation_settings import stop_at_ends
from hf_recipes.publishing.usage_code import Usage

TEMPLATES = Path(str(files("trl"))) / "chat_templates"
STOPS = {
    "gptoss": ["<|call|>", "<|return|>"],
    "glm4moe": ["<|observation|>", "<|user|>"],
    "gemma4": ["<turn|>", "<|tool_response>"],
    "cohere2": ["<|END_OF_TURN_TOKEN|>"],
    "deepseekv3": ["<｜end▁of▁sentence｜>"],
    "llama3_1": ["<|eot_id|>"],
    "qwen3": ["<|im_end|>"],
    "phi3_5": ["<|end|>"],  # shows no calls
}
AFTER_EACH_CALL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m.get('tool_calls') or () %}"
    "{{ c['function']['name'] ~ c['function']['arguments'] | tojson }}<call>{% endfor %}"
    "{{ m['content'] or '' }}{% if not m.get('tool_calls') %}<|im_end|>\n{% endif %}{% endfor %}"
    "{{ tools and '' }}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("name", STOPS)
def test_answers_and_calls_end_everywhere_at_the_same_tokens(name, tmp_path):
    tokenizer = tokenizer_of(TEMPLATES / f"{name}.jinja")
    stops = sorted(tokenizer.convert_tokens_to_ids(STOPS[name]))
    assert ChatEncoder(tokenizer).stop_ids == stops
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"messages": conversation("问", "答")}])
    assert PromptReader([str(rows)], tokenizer).stop_ids == stops
    assert ChatModel("base", tokenizer).stop_ids == stops
    model = tiny_model(len(tokenizer))  # as a run saves it
    stop_at_ends(model, tokenizer)
    assert {*stops, tokenizer.eos_token_id} <= set(model.generation_config.eos_token_id)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    code = Usage.of(tmp_path, "answers", "base", {}).code()
    for stop in STOPS[name]:
        assert f'"{stop}"' in code


def test_a_mark_after_each_of_several_calls_ends_none():
    tokenizer = build_tokenizer(chat_template=AFTER_EACH_CALL)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<call>"]})
    # The turn of calls has no end; what comes next, the opener of the results, ends it.
    assert ChatEncoder(tokenizer).stop_ids == tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
