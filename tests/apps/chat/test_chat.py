"""The chat: its engine and sessions in this process, its terminal, and its page as people use it in Chromium."""

import json
import shutil
import socket
import threading
import time

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from chatting import at_each_step, scripted
from conftest import CHATML, build_tokenizer, tiny_model
from hf_recipes.apps.chat import engine as chat_engine
from hf_recipes.apps.chat.arguments import ChatArguments, is_loopback
from hf_recipes.apps.chat.engine import Engine
from hf_recipes.apps.chat.loading import open_engine
from hf_recipes.apps.chat.models import BASE, Answer, model_names
from hf_recipes.apps.chat.session import Exchange, Session, Settings
from hf_recipes.apps.chat.terminal import Terminal
from hf_recipes.apps.chat.texts import Texts
from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.prompts import PromptReader
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.schemas.registry import Columns, detect_schema
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import Continuation, Step

pytest_plugins = ["chatting"]
GREEDY = Decoding(max_new_tokens=12)
QUESTION = [{"role": "user", "content": "你好"}]


def whole(engine: Engine, model: str, decoding: Decoding = GREEDY, messages=QUESTION, **options):
    *_, answer = engine.answer(model, engine.prompt(model, messages, decoding), decoding, **options)
    return answer


def by_hand(model, tokenizer, messages=QUESTION) -> str:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        out = model.eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).rstrip("\ufffd").strip()


def test_answers_are_those_of_generate_with_and_without_each_adapter(engine, base, adapters, tokenizer):
    expected = {BASE: by_hand(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tokenizer)}
    for path in adapters:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        expected[path[-5:]] = by_hand(PeftModel.from_pretrained(model, path), tokenizer)
    assert list(engine.chat_models) == ["one.1", "one.2", BASE]
    assert len(set(expected.values())) == 3 and all(expected.values())
    for name in ("one.2", BASE, "one.1", BASE, "one.2"):
        assert whole(engine, name).text == expected[name]


def test_a_draw_is_repeated_by_its_seed_and_key_alone(engine):
    draws = Decoding(max_new_tokens=12, do_sample=True, temperature=1.5, seed=7)
    one, same, other = (whole(engine, BASE, draws, key=key).text for key in (1, 1, 2))
    assert one == same != other


def test_a_character_of_several_tokens_appears_whole(monkeypatch):
    monkeypatch.setattr(chat_engine, "_newest", lambda news: news.get())  # a reader who is never late
    engine, text = scripted("龘🎉é。"), "龘🎉é。"
    size = len(engine.chat_models[BASE].tokenizer(text)["input_ids"])
    decoding = Decoding(max_new_tokens=size)
    texts = [answer.text for answer in engine.answer(BASE, engine.prompt(BASE, QUESTION, decoding), decoding)]
    assert len(texts) == size + 1 > 8
    assert list(dict.fromkeys(texts)) == ["", "龘", "龘🎉", "龘🎉é", "龘🎉é。"]


def test_stop_ends_within_two_tokens(engine):
    asked = []

    def stopped() -> bool:
        asked.append(True)
        return len(asked) >= 3

    answer = whole(engine, BASE, Decoding(max_new_tokens=200), stopped=stopped)
    assert answer.end == "stop" and answer.tokens == 3


def test_who_goes_away_ends_the_generation(engine):
    steps = []
    with at_each_step(engine, lambda: (steps.append(1), time.sleep(0.01))):
        answers = engine.answer(BASE, engine.prompt(BASE, QUESTION, GREEDY), Decoding(max_new_tokens=300))
        next(answers)
        answers.close()
        next(engine.answer(BASE, engine.prompt(BASE, QUESTION, GREEDY), GREEDY))  # the next one's turn comes
    assert 0 < len(steps) < 50


def test_the_end_of_an_answer_is_told(engine):
    assert whole(engine, BASE).end == "length"
    said = scripted("好<|im_end|>")
    answer = whole(said, BASE)
    assert (answer.text, answer.end, answer.tokens) == ("好", "end", 1)
    assert said.chat_models[BASE].decode(answer).endswith("<|im_start|>assistant\n好<|im_end|>")


def test_what_the_model_read_is_shown_as_it_was(engine, tokenizer):
    messages = [{"role": "system", "content": "简短"}, *QUESTION]
    answer = whole(engine, BASE, messages=messages)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert engine.chat_models[BASE].decode(answer).startswith(text)


def test_long_input_is_cut_with_a_notice(engine, tokenizer):
    chat_model = engine.chat_models[BASE]
    history = [{"role": "user", "content": "第一问" * 5}, {"role": "assistant", "content": "第一答"}, *QUESTION]
    prompt = chat_model.prompt(history, 30)
    assert (prompt.turns_dropped, prompt.question_cut) == (True, False)
    assert "第一" not in tokenizer.decode(prompt.ids) and "你好" in tokenizer.decode(prompt.ids)
    assert prompt.full_length > 30 >= len(prompt.ids)
    prompt = chat_model.prompt([{"role": "user", "content": "甲" * 50 + "乙"}], 30)
    assert (prompt.turns_dropped, prompt.question_cut) == (False, True)
    assert "乙" in tokenizer.decode(prompt.ids) and len(prompt.ids) <= 30
    answer = Answer(prompt)
    assert f"读入 {prompt.full_length} 个词元中的 {len(prompt.ids)} 个" in Texts("zh").notes(answer)
    with pytest.raises(UserError, match="system turn alone"):
        chat_model.prompt([{"role": "system", "content": "长" * 60}, *QUESTION], 30)


def test_thoughts_are_shown_in_one_form_and_cut_ones_are_noted(engine, monkeypatch):
    continuation = Continuation("答", 9, True, [], thoughts="想", cut_while_thinking=True)

    def continued(*args, watch, **options):
        watch(Step(0, [3], None, True, lambda: continuation))
        return []

    monkeypatch.setattr(chat_engine, "continue_batches", continued)
    answer = whole(engine, BASE)
    assert answer.text == "<think>\n想\n</think>\n\n答" and answer.cut_while_thinking
    assert "thoughts were cut" in Texts("en").notes(answer)


def ask(session: Session, engine: Engine, question: str, *models: str, system: str = "", at: int | None = None) -> None:
    for _ in session.ask(engine, question, Settings(models, GREEDY, system), at):
        pass


def test_two_columns_answer_the_same_question_each_with_its_own_past(engine):
    session = Session()
    ask(session, engine, "你好", "one.1", BASE)
    ask(session, engine, "年龄？", "one.1", BASE)
    for column, model in zip(session.columns, ("one.1", BASE), strict=True):
        first = whole(engine, model).text
        past = [*QUESTION, {"role": "assistant", "content": first}, {"role": "user", "content": "年龄？"}]
        assert [exchange.answer for exchange in column] == [first, whole(engine, model, messages=past).text]
        assert {exchange.model for exchange in column} == {model}


def test_an_earlier_question_is_edited_and_what_followed_goes(engine):
    session = Session()
    for question in ("一", "二", "三"):
        ask(session, engine, question, "one.1")
    ask(session, engine, "二改", BASE, at=1)
    assert [(e.question, e.model) for e in session.columns[0]] == [("一", "one.1"), ("二改", BASE)]
    ask(session, engine, "四", BASE, "one.2")  # the new column goes on from the first
    assert [[e.question for e in column] for column in session.columns] == [["一", "二改", "四"]] * 2
    assert session.columns[1][1] == session.columns[0][1]


def test_what_is_saved_is_data_of_the_schema_messages(engine, tmp_path, tokenizer):
    session = Session()
    ask(session, engine, "你好", "one.1", BASE, system="简短")
    session.columns[0].append(Exchange("没有回答的问题"))
    assert all(column[0].answer for column in session.columns)
    path = tmp_path / "chat.jsonl"
    path.write_text(session.to_jsonl(), encoding="utf-8")
    [source] = find_sources([str(path)], "train")
    rows = [record.value for record in read_records(source)]
    schema = detect_schema(rows[0], Columns(), str(path))
    assert schema.name == "messages"
    for row, model in zip(rows, ("one.1", BASE), strict=True):
        answer = {"role": "assistant", "content": whole(engine, model, messages=[SYSTEM, *QUESTION]).text}
        assert schema.to_example(row) == {"messages": [SYSTEM, *QUESTION, answer]}
        assert row["answered_by"] == [model]
    statuses = [(prompt.question, status) for _, prompt, status in PromptReader([str(path)], tokenizer)]
    assert statuses == [("你好", "kept")] * 2


SYSTEM = {"role": "system", "content": "简短"}


def test_an_empty_answer_is_neither_saved_nor_read():
    engine, session = scripted("<|im_end|>"), Session()
    ask(session, engine, "一", BASE)
    ask(session, engine, "二", BASE)
    assert [exchange.answer for exchange in session.columns[0]] == ["", ""]
    assert session.rows() == []
    assert "一" not in engine.chat_models[BASE].decode(session.answers[0])


def test_names_tell_adapters_apart():
    assert model_names(["runs/a", "runs/b/"]) == ["a", "b"]
    assert model_names(["a/checkpoint-1", "b/checkpoint-1", "c/base"]) == ["a/checkpoint-1", "b/checkpoint-1", "c/base"]
    with pytest.raises(UserError, match="given twice"):
        model_names(["runs/a", "runs/a/"])


def test_a_base_without_a_template_is_asked_as_its_adapter_is(base, adapters, tmp_path):
    mute, adapter = shutil.copytree(base, tmp_path / "base"), shutil.copytree(adapters[0], tmp_path / "adapter")
    (mute / "chat_template.jinja").unlink()
    arguments = ModelArguments(str(mute), dtype="float32")
    plain = open_engine(arguments, [], max_new_tokens=4)
    assert "<|im_start|>" not in plain.chat_models[BASE].decode(whole(plain, BASE))
    build_tokenizer().save_pretrained(adapter)
    both = open_engine(arguments, [str(adapter)], max_new_tokens=4)
    assert both.chat_models[BASE].tokenizer.chat_template == CHATML


# The terminal.


def test_in_the_terminal(engine, monkeypatch, capsys, tmp_path):
    path = tmp_path / "chat.jsonl"
    lines = ["你好", "/model base", "/retry", "/set temperature 0", "/set max_new_tokens 3", "/system 简短", "/read"]
    lines += [f"/save {path}", f"/save {path}", "/clear", "/retry", "/nonsense", "/set top_p 7", "/exit"]
    typed = iter(lines)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    Terminal(engine, GREEDY, "en").run()
    out = capsys.readouterr().out
    assert whole(engine, "one.1").text in out and whole(engine, BASE).text in out
    assert "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n" in out
    [row] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert row["answered_by"] == [BASE] and row["messages"][1]["content"] == whole(engine, BASE).text
    assert f"Saved: {path}" in out and "is there already" in out
    assert "There is no question to answer again." in out and "--top_p 7: expected 0 to 1" in out


def test_ctrl_c_stops_an_answer_in_the_terminal(engine, monkeypatch, capsys):
    import signal

    lines = iter(["你好", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    steps = []

    def interrupt() -> None:
        steps.append(1)
        if len(steps) == 3:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.01 if len(steps) < 3 else 0.1)  # until the terminal stops it

    with at_each_step(engine, interrupt):
        Terminal(engine, Decoding(max_new_tokens=300), "en").run()
    assert "Stopped." in capsys.readouterr().out and len(steps) < 100


# What is wrong with a command.


def parse(*flags: str) -> ChatArguments:
    return Parser([ChatArguments]).parse(["--model_name_or_path", "M", *flags])[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--share"], "--share lets anybody in; add --auth user:password"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets the network in; add --auth user:password"),
        (["--auth", "secretword"], "--auth: expected user:password"),
        (["--auth", "user:", "secretword"], "stray argument after --auth"),
        (["--load_in_8bit", "--load_in_4bit"], "choose one"),
        (["--gpus", "first"], "--gpus first: expected numbers"),
        (["--temperature", "-1"], "--temperature -1: expected 0 to 2"),
        (["--max_new_tokens", "0"], "--max_new_tokens 0: expected at least 1"),
        (["--port", "70000"], "--port 70000: expected 1 to 65535"),
    ],
)
def test_flags_that_cannot_be(flags, message):
    with pytest.raises(UserError) as error:
        parse(*flags)
    assert message in str(error.value) and "secretword" not in str(error.value)


def test_who_may_be_let_in():
    assert parse("--share", "--auth", "me:a:b").auth == "me:a:b"
    assert parse("--host", "0.0.0.0", "--insecure").insecure
    assert parse().host == "127.0.0.1" and not parse().share
    assert [
        is_loopback(host) for host in ("localhost", "localhost.", "127.8.0.1", "::1", "0.0.0.0", "example.org")
    ] == [True] * 4 + [False] * 2


@pytest.fixture
def fails(script, model_dir):
    def run(message: str, *flags, model=model_dir) -> None:
        code, out, err = script("chat.py", "--model_name_or_path", model, *flags)
        assert code == 1 and "Traceback" not in err, (out, err)
        assert message in err.splitlines()[-1], err

    return run


def test_commands_that_fail(fails, model_dir, adapters, judge, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fails(f"--port {port}: in use; the next free one is", "--port", port)
    fails("expected a folder with adapter_config.json; this one holds a whole model", "--peft_path", model_dir, "--cli")
    fails("it holds an adapter: give its base as --model_name_or_path", "--cli", model=adapters[0])
    (tmp_path / "hollow").mkdir()
    fails("this folder has no config.json", "--cli", model=tmp_path / "hollow")
    fails("a reward model, which scores answers and generates none", "--cli", model=judge)
    fails("--gpus 7: 0 of these 1 are here" if not torch.cuda.is_available() else "--gpus", "--gpus", "7", "--cli")
    wide = tiny_model(600)
    wide.config.hidden_size = 64
    other = tmp_path / "wide"
    type(wide)(wide.config).save_pretrained(other)
    build_tokenizer().save_pretrained(other)
    fails("an adapter for another base", "--peft_path", adapters[0], "--cli", model=other)
    biased = shutil.copytree(adapters[0], tmp_path / "biased")
    settings = json.loads((biased / "adapter_config.json").read_text()) | {"bias": "all"}
    (biased / "adapter_config.json").write_text(json.dumps(settings))
    fails("would stay in the answers of the other adapters", "--peft_path", adapters[1], biased, "--cli")
    fails("given twice", "--peft_path", adapters[0], adapters[0], "--cli")


def test_without_gradio_the_extra_is_named(fails, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else find(name, *rest)
    )
    import sys

    monkeypatch.delitem(sys.modules, "hf_recipes.apps.chat.launch")
    fails("pip install -e '.[chat]'")
