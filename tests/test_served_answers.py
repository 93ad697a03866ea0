"""A tiny model that has learned its rows by heart gives all answers to whoever asks, with thoughts and calls too."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from chat_templates import tokenizer_of
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from conftest import write_jsonl
from hf_recipes.apps.chat.loading import open_engine
from hf_recipes.apps.chat.models import BASE
from hf_recipes.apps.serve.arguments import ServeArguments
from hf_recipes.apps.serve.request import ServedModel
from hf_recipes.apps.serve.server import Server
from hf_recipes.core.arguments.settings import Parser
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import Decoding

TEMPLATES = Path(str(files("trl"))) / "chat_templates"
TOOL = {"name": "get_weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": TOOL}]
SIGNS = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉"
WORDS = [first + second for first in "东西南北" for second in "山海风云水"]
SHORT = ("--max_new_tokens", "40", "--batch_size", "10", "--dtype", "float32")
# The templates of models that do not think, that open thoughts, that write empty ones, and that call tools.
CASES = ["qwen2_5", "deepseek_r1_distill", "qwen3_5_think", "qwen3", "qwen3_instruct_2507"]


def row_of(number: int, name: str) -> dict:
    question, answer = {"role": "user", "content": SIGNS[number]}, {"role": "assistant", "content": WORDS[number]}
    if name == "qwen3_instruct_2507":
        function = {"name": "get_weather", "arguments": {"city": WORDS[number]}}
        answer |= {"content": "", "tool_calls": [{"type": "function", "function": function}]}
        return {"messages": [question, answer], "tools": TOOLS}
    thinks = name in ("deepseek_r1_distill", "qwen3_5_think") and number % 2
    return {"messages": [question, answer | ({"reasoning_content": f"想{number}"} if thinks else {})]}


@pytest.fixture(params=[10, pytest.param(20, marks=pytest.mark.slow)])
def learned(request, script, tmp_path, name):
    """The rows, their file and the folder of a model that was trained on them."""
    rows = [row_of(number, name) for number in range(request.param)]
    file, base, run = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "base", tmp_path / "run"
    tokenizer = tokenizer_of(TEMPLATES / f"{name}.jinja")
    rendered = [tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False) for row in rows]
    tokenizer = tokenizer_of(TEMPLATES / f"{name}.jinja", rendered)
    tokenizer.save_pretrained(base)
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **sizes, **heads)).save_pretrained(base)
    code, _, err = script(
        *("sft.py", "--model_name_or_path", base, "--train_file", file, "--output_dir", run, "--use_lora", "False"),
        *("--per_device_train_batch_size", request.param, "--max_steps", 12 * request.param, "--learning_rate", "3e-3"),
        *("--lr_scheduler_type", "cosine", "--save_strategy", "no", "--report_to", "none"),
    )
    assert code == 0, err
    return rows, file, run


@pytest.mark.parametrize("name", CASES)
def test_all_answers_are_given_to_whoever_asks(learned, script, tmp_path, name):
    rows, file, run = learned
    calls, words = "tools" in rows[0], WORDS[: len(rows)]

    def answers(texts):
        if calls:
            read = [json.loads(text.replace("<tool_call>", "").replace("</tool_call>", "")) for text in texts]
            return [call["arguments"]["city"] for call in read]
        return [text.rpartition("</think>")[2].strip() for text in texts]

    # Plain transformers
    tokenizer, model = AutoTokenizer.from_pretrained(run), AutoModelForCausalLM.from_pretrained(run)
    texts = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            row["messages"][:1],
            tools=row.get("tools"),
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        ids = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(ids, skip_special_tokens=True))
    assert answers(texts) == words

    output = tmp_path / "out.jsonl"
    code, _, err = script(
        "predict.py", "--model_name_or_path", run, "--input_file", file, "--output_file", output, *SHORT
    )
    assert code == 0, err
    predicted = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert answers(row["prediction"] for row in predicted) == words
    thoughts = [row["messages"][1].get("reasoning_content") for row in rows]
    assert [row.get("prediction_reasoning_content") or None for row in predicted] == thoughts

    more = ("--eval_files", f"rows={file}", "--eval_methods", "rouge", "--output_dir", tmp_path / "evaluated")
    code, _, err = script("evaluate.py", "--model_name_or_path", run, *more, *SHORT)
    assert code == 0, err
    metrics = json.loads((tmp_path / "evaluated" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["model"]["rows"]["exact_match"] == 1

    engine = open_engine(ModelArguments(str(run), dtype="float32"), [], max_new_tokens=40, device_map="cpu")
    if calls:  # for which the chat's page has no field, and its engine's API has one
        settings = ["--model_name_or_path", str(run), "--max_new_tokens", "40", "--temperature", "0"]
        arguments = Parser([ServeArguments]).parse(settings)[0]
        server = Server(engine, {BASE: ServedModel(engine.chat_models[BASE], arguments)}, arguments)
        client = TestClient(server.app(), base_url="http://127.0.0.1:8000")
        cities = []
        for row in rows:
            question = {"model": BASE, "messages": row["messages"][:1], "tools": row["tools"]}
            message = client.post("/v1/chat/completions", json=question).json()["choices"][0]["message"]
            cities += [json.loads(call["function"]["arguments"])["city"] for call in message["tool_calls"]]
        assert cities == words
    else:
        decoding, texts = Decoding(max_new_tokens=40), []
        for row in rows:
            *_, answer = engine.answer(BASE, engine.prompt(BASE, row["messages"][:1], decoding), decoding)
            texts.append(answer.text)
        assert answers(texts) == words
