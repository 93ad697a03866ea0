"""The server as clients use it: the openai package and plain HTTP, against a server in this process."""

import json
import shlex
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest
import torch
import uvicorn
import yaml
from transformers import AutoModelForCausalLM

from chatting import at_each_step, scripted
from hf_recipes.apps.chat.models import BASE
from hf_recipes.apps.ports import free_port
from hf_recipes.apps.serve import vllm
from hf_recipes.apps.serve.arguments import KEY_VARIABLE, ServeArguments
from hf_recipes.apps.serve.launch import check, load
from hf_recipes.apps.serve.request import ServedModel
from hf_recipes.apps.serve.server import MAX_BYTES, Server
from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError
from hf_recipes.models.templates.options import TEMPLATES, TemplateArguments

pytest_plugins = ["chatting"]
QUESTION = [{"role": "user", "content": "你好"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "d", "parameters": {"properties": {"city": {"type": "string"}}}},
    }
]


@contextmanager
def running(server: Server):
    """The address of `server` while it runs in a thread."""
    config = uvicorn.Config(server.app(), port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    while not web.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
    finally:
        web.should_exit = True
        thread.join()


def server_of(engine, *flags: str) -> Server:
    arguments = Parser([ServeArguments]).parse(["--model_name_or_path", "org/model", *flags])[0]
    models = {name: ServedModel(model, arguments) for name, model in engine.chat_models.items()}
    return Server(engine, {**models, "org/model": models[BASE]}, arguments)


@pytest.fixture(scope="module")
def address(engine):
    with running(server_of(engine, "--max_new_tokens", "12", "--temperature", "0")) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return client_of(address)


def client_of(address: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def ask(client: openai.OpenAI, model: str = BASE, messages=QUESTION, **options):
    return client.chat.completions.create(model=model, messages=messages, **options)


def streamed(chunks) -> dict[str, str]:
    """What the chunks of a stream say together, and its `finish_reason`."""
    said = {"content": "", "reasoning_content": "", "calls": [], "finish_reason": None}
    for chunk in chunks:
        for choice in chunk.choices:
            said["content"] += choice.delta.content or ""
            said["reasoning_content"] += getattr(choice.delta, "reasoning_content", None) or ""
            said["calls"] += choice.delta.tool_calls or []
            said["finish_reason"] = choice.finish_reason or said["finish_reason"]
    return said


def whole(engine, model: str = BASE, messages=QUESTION, max_new_tokens: int = 12) -> str:
    """The chat's greedy answer."""
    from hf_recipes.models.inference.decoding import Decoding

    decoding = Decoding(max_new_tokens=max_new_tokens)
    *_, answer = engine.answer(model, engine.prompt(model, messages, decoding), decoding)
    return answer.text


def post(address: str, body, key: str | None = None, **headers: str) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{address}/v1/chat/completions", data=data, headers=headers)
    return sent(request)


def sent(request) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_models_are_listed_by_name(client):
    assert [model.id for model in client.models.list()] == ["one.1", "one.2", BASE]
    assert client.models.retrieve("one.2").id == "one.2"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("one.3")


def test_each_model_answers_as_in_the_chat_whole_and_streamed(client, engine):
    for name in ("one.1", BASE, "one.2"):
        expected = whole(engine, name)
        answer = ask(client, name)
        [choice] = answer.choices
        assert (choice.message.content, choice.finish_reason, answer.model) == (expected, "length", name)
        assert (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (12, 11)
        *chunks, last = ask(client, name, stream=True, stream_options={"include_usage": True})
        assert streamed(chunks) == {
            "content": expected,
            "reasoning_content": "",
            "calls": [],
            "finish_reason": "length",
        }
        assert last.choices == [] and last.usage == answer.usage and {chunk.usage for chunk in chunks} == {None}
        assert len(chunks) > 3
        assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert ask(client, "org/model").choices[0].message.content == whole(engine)


def test_what_is_said_about_lengths_and_roles(client, engine):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(client, **{name: 3})
        assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")
    parts = [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]
    assert ask(client, messages=[{"role": "user", "content": parts}]).choices[0].message.content == whole(engine)
    system = [{"role": "system", "content": "简短"}, *QUESTION]
    expected = whole(engine, messages=system)
    assert expected != whole(engine)
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "简短"}, *QUESTION]
        assert ask(client, messages=messages).choices[0].message.content == expected


TEXT = "今天天气很好，我们去公园散步吧！END。你好<|im_end|>"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("公园散", "今天天气很好，我们去"),
        (["没有", "天气", "今天天气很"], "今天"),
        ("ND。你", "今天天气很好，我们去公园散步吧！E"),
        ("无", None),
        (["今天", "天"], ""),
    ],
)
def test_a_stop_text_ends_the_answer_and_is_never_sent_in_part(stop, expected):
    reason = "stop"
    with running(server_of(scripted(TEXT))) as address:
        client = client_of(address)
        said = TEXT.removesuffix("<|im_end|>") if expected is None else expected
        answer = ask(client, stop=stop)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (said, reason)
    with running(server_of(scripted(TEXT))) as address:
        result = streamed(ask(client_of(address), stop=stop, stream=True))
        assert (result["content"], result["finish_reason"]) == (said, reason)


def test_logprobs_are_those_of_the_model(client, base, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(base)  # not the engine's, whose thread may still end another test's
    options = {"logprobs": True, "top_logprobs": 3, "max_tokens": 4, "n": 2}
    answer = ask(client, **options)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    for choice in answer.choices:
        read = list(ids)
        for token in choice.logprobs.content:
            with torch.no_grad():
                expected = model(torch.tensor([read])).logits[0, -1].log_softmax(-1)
            value, likeliest = expected.max(-1)
            assert token.logprob == pytest.approx(value.item(), abs=1e-4)
            assert token.token == tokenizer.decode([likeliest]) and token.top_logprobs[0].token == token.token
            assert len(token.top_logprobs) == 3
            read.append(likeliest.item())
        assert len(choice.logprobs.content) == 4
    chunks = list(ask(client, stream=True, **options))
    ends = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(ends) == [0, 1]
    content = [choice.logprobs.content for chunk in chunks for choice in chunk.choices if choice.logprobs]
    for one, other in zip(content, (choice.logprobs.content for choice in answer.choices), strict=True):
        assert [token.token for token in one] == [token.token for token in other]
        assert [token.logprob for token in one] == pytest.approx([token.logprob for token in other], abs=1e-4)


def test_a_seed_gives_the_same_whatever_else_is_answered(client):
    options = {"temperature": 1.5, "top_p": 0.95, "seed": 7, "n": 2, "max_tokens": 12}
    alone = [choice.message.content for choice in ask(client, **options).choices]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(ask, client, name, max_tokens=30, temperature=1) for name in (BASE, "one.1") * 3]
        same = pool.submit(ask, client, **options)
        assert [choice.message.content for choice in same.result().choices] == alone
        assert len({other.result().choices[0].message.content for other in others}) == 6
    assert [choice.message.content for choice in ask(client, **options | {"seed": 8}).choices] != alone


def test_eight_clients_go_through_one_batch_and_models_take_turns(client, engine):
    questions = [[{"role": "user", "content": f"问题{number}" * number}] for number in range(1, 9)]
    expected = [whole(engine, messages=messages, max_new_tokens=30) for messages in questions]
    other = whole(engine, "one.2", max_new_tokens=30)
    steps = []
    with at_each_step(engine, lambda: steps.append(1)), ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(ask, client, messages=messages, max_tokens=30) for messages in questions]
        adapted = pool.submit(ask, client, "one.2", max_tokens=30)
        assert [answer.result().choices[0].message.content for answer in answers] == expected
        assert adapted.result().choices[0].message.content == other
    assert len(steps) < 9 * 30 / 2


def test_a_batch_that_memory_does_not_hold_is_halved(client, engine):
    def fail(module, args, kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError

    expected, size = whole(engine, "one.1"), engine.batch_size
    hook = engine.model.get_base_model().register_forward_pre_hook(fail, with_kwargs=True)
    try:
        assert {choice.message.content for choice in ask(client, "one.1", n=5).choices} == {expected}
        assert engine.batch_size in (1, 2)
    finally:
        hook.remove()
        engine.batch_size = size


def test_a_client_that_leaves_makes_room(client, engine):
    steps = []
    with at_each_step(engine, lambda: (steps.append(1), time.sleep(0.01))):
        stream = ask(client, stream=True, max_tokens=3000)
        next(stream)
        stream.close()
        with pytest.raises(openai.APITimeoutError):
            ask(client, max_tokens=3000, timeout=0.3)
        ask(client, max_tokens=2)
    time.sleep(0.1)
    assert engine.waiting == 0 and len(steps) < 200


def chatml(text: str):
    tokens = ["<tool", "_call>", '{"name": "', "weather", '", "arg', 'uments": {"city": "', '"}}', "</think>"]
    return scripted(text, tokens, chat_template=(TEMPLATES / "chatml.jinja").read_text(encoding="utf-8"))


CALL = '<tool_call>{"name": "weather", "arguments": {"city": "北京"}}</tool_call>'


def test_calls_of_tools_are_parsed_back():
    with running(server_of(chatml(f"先查。{CALL}\n{CALL}<|im_end|>"))) as address:
        client = client_of(address)
        [choice] = ask(client, tools=TOOLS, tool_choice="auto").choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "先查。")
        first, second = choice.message.tool_calls
        assert first.id != second.id and first.function.name == second.function.name == "weather"
        assert json.loads(first.function.arguments) == {"city": "北京"}
        result = streamed(ask(client, tools=TOOLS, stream=True))
        assert (result["finish_reason"], result["content"]) == ("tool_calls", "先查。")
        assert [(call.index, call.function.arguments) for call in result["calls"]] == [
            (0, first.function.arguments),
            (1, first.function.arguments),
        ]
        history = [*QUESTION, choice.message.model_dump(), {"role": "tool", "tool_call_id": first.id, "content": "晴"}]
        history.append({"role": "tool", "tool_call_id": second.id, "content": "雨"})
        assert ask(client, messages=history, tools=TOOLS).choices[0].finish_reason == "tool_calls"
        # Without tools it is text.
        [choice] = ask(client, tools=TOOLS, tool_choice="none").choices
        assert choice.finish_reason == "stop" and choice.message.content == f"先查。{CALL}\n{CALL}"
    broken = '<tool_call>{"name": "weather", "argu'
    with running(server_of(chatml(f"{broken}<|im_end|>"))) as address:
        assert streamed(ask(client_of(address), tools=TOOLS, stream=True))["content"] == broken


def test_thoughts_are_reasoning_content():
    with running(server_of(chatml("<think>\n想一想\n</think>\n\n答案。<|im_end|>"))) as address:
        client = client_of(address)
        [choice] = ask(client).choices
        assert (choice.message.content, choice.message.reasoning_content) == ("答案。", "想一想")
        result = streamed(ask(client, stream=True))
        assert (result["content"], result["reasoning_content"], result["finish_reason"]) == ("答案。", "想一想", "stop")
        assert ask(client, max_tokens=5).usage.completion_tokens == 5


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0]",
        ),
        ({"messages": [{"role": "judge", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "name": "甲"}]}, "messages[0]"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "x"}]}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"chunk": 1}}, "stream_options.chunk"),
        ({"stream": "yes"}, "stream"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS}, "tools"),  # which this template does not show
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": []}, "functions"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"guided_json": {}}, "guided_json"),
        ({"model": None}, "model"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_would_change_the_answer_is_refused_by_name(address, changes, param):
    status, body = post(address, {"model": BASE, "messages": QUESTION, **changes})
    assert (status, body["error"]["param"]) == (400, param), body
    assert param.partition("[")[0].rpartition(".")[2] in body["error"]["message"]


def test_what_changes_nothing_is_accepted(address):
    neutral = {"user": "u", "metadata": {"a": "b"}, "frequency_penalty": 0, "logit_bias": {}, "seed": None, "n": None}
    neutral |= {"response_format": {"type": "text"}, "tool_choice": "auto", "parallel_tool_calls": True}
    assert post(address, {"model": BASE, "messages": QUESTION, "max_tokens": 1, **neutral})[0] == 200


def test_errors_have_the_form_of_openais(address, engine, client):
    with pytest.raises(openai.NotFoundError, match="'other' does not exist; there are"):
        ask(client, "other")
    assert post(address, b"{bad")[0] == 400 and post(address, b"[]")[0] == 400 and post(address, b'"\\ud800"')[0] == 400
    assert post(address, b" " * (MAX_BYTES + 1))[0] == 413
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, messages=[{"role": "user", "content": "长" * engine.context}])
    length = len(engine.chat_models[BASE].whole_prompt([{"role": "user", "content": "长" * engine.context}]))
    assert f"{engine.context} tokens" in str(refused.value) and str(length) in str(refused.value)
    assert refused.value.code == "context_length_exceeded"
    for path in ("/v1/completions", "/v1/embeddings", "/"):
        status, body = sent(urllib.request.Request(address + path, data=b"{}"))
        assert status == 404 and "/v1/chat/completions" in body["error"]["message"]
    assert post(address, {"model": BASE, "messages": QUESTION}, Host="rebound.example.org")[0] == 400
    assert sent(f"{address}/health") == (200, {"status": "ok"})


def test_a_key_is_asked_for(engine, tmp_path, monkeypatch, capfd):
    (tmp_path / "key").write_text("sesame\n", encoding="utf-8-sig")  # as editors of Windows write it
    monkeypatch.setenv(KEY_VARIABLE, "of-the-environment")
    by_file, origin = ["--api_key_file", str(tmp_path / "key")], ["--allow_origin", "https://chat.example.org"]
    for flags, key in (([*by_file, *origin], "sesame"), (origin, "of-the-environment")):
        with running(server_of(engine, *flags)) as address:
            assert len(list(client_of(address, key).models.list())) == 3
            for wrong in (None, "sesam", key + "x", "schlüssel"):
                status, body = post(address, {}, wrong and wrong.encode().decode("latin-1"))
                assert (status, body["error"]["code"]) == (401, "invalid_api_key")
            headers = {"Origin": "https://chat.example.org", "Access-Control-Request-Method": "POST"}
            headers["Access-Control-Request-Headers"] = "authorization"
            request = urllib.request.Request(f"{address}/v1/chat/completions", headers=headers, method="OPTIONS")
            with urllib.request.urlopen(request) as reply:
                assert reply.headers["Access-Control-Allow-Origin"] == "https://chat.example.org"
    assert not {"sesame", "of-the-environment"} & set(" ".join(capfd.readouterr()).split())


def parse(*flags: str) -> ServeArguments:
    return Parser([ServeArguments]).parse(["--model_name_or_path", "M", *flags])[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], f"--host 0.0.0.0 lets the network in; give a key by {KEY_VARIABLE}"),
        (["--api_key", "a", "--api_key_file", "b"], "--api_key and --api_key_file: choose one"),
        (["--api_key_file", "missing"], "--api_key_file missing: cannot be read"),
        (["--api_key", "secret word"], "--api_key: expected a key of ASCII characters without a space"),
        (["--peft_path", "x=runs/a", "x=runs/b"], "--peft_path: x is the name of several models"),
        (["--peft_path", "base=runs/a"], "--peft_path: base is the name of several models"),
        (["--vllm_args", "x"], "--vllm_args: has no effect without --engine vllm"),
        (["--temperature", "3"], "--temperature 3: expected 0 to 2"),
    ],
)
def test_flags_that_cannot_be(flags, message):
    with pytest.raises(UserError) as error:
        check(parse(*flags))
    assert message in str(error.value) and "secret" not in str(error.value)


def test_commands_that_fail(script, model_dir, judge, tmp_path):
    def fails(message: str, *flags, model=model_dir) -> None:
        code, out, err = script("serve.py", "--model_name_or_path", model, "--port", free_port(18000), *flags)
        assert code == 1 and message in err.splitlines()[-1] and "Traceback" not in err, (out, err)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = script("serve.py", "--model_name_or_path", model_dir, "--port", port)
        assert code == 1 and f"--port {port}: in use; the next free one is" in err
    fails("expected a folder with adapter_config.json; this one holds a whole model", "--peft_path", f"x={model_dir}")
    fails("a reward model, which scores answers and generates none", model=judge)
    fails("--max_new_tokens 99999: the model's context is", "--max_new_tokens", "99999")


def test_adapters_have_names(tmp_path):
    assert parse("--peft_path", "x=runs/a", "runs/b").adapters == {"x": "runs/a", "b": "runs/b"}
    assert parse("--host", "0.0.0.0", "--api_key", "k").key == "k"


def test_each_model_has_the_settings_of_its_run(base, adapters, tmp_path):
    paths = [shutil.copytree(path, tmp_path / path[-5:]) for path in adapters]
    for path, prompt in zip(paths, ("一", "二"), strict=True):
        (path / "run_config.yaml").write_text(yaml.safe_dump({"system_prompt": prompt, "max_thinking_tokens": 9}))
    flags = ["--model_name_or_path", base, "--peft_path", f"x={paths[0]}", str(paths[1]), "--dtype", "float32"]
    parser = Parser([ServeArguments, TemplateArguments])
    server = load(*parser.parse([*flags, "--gpus", "cpu", "--top_p", "0.5"]), parser.given)
    assert list(server.models) == [BASE, "x", "one.2", base]
    settings = {name: model.arguments for name, model in server.models.items()}
    assert [settings[name].system_prompt for name in ("x", "one.2", BASE)] == ["一", "二", ""]
    assert settings["x"].max_thinking_tokens == 9 and settings["x"].top_p == 0.5
    with running(server) as address:
        client = client_of(address)
        answers = [ask(client, name, temperature=0, max_tokens=5).usage.prompt_tokens for name in ("x", BASE)]
        assert answers[0] > answers[1] == 11


def test_the_end_of_the_server_ends_what_runs(base):
    engine = scripted("好")
    with running(server_of(engine)) as address, at_each_step(engine, lambda: time.sleep(0.01)):
        stream = ask(client_of(address), stream=True)
        next(stream)
        assert engine.close(5)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert post(address, {"model": BASE, "messages": QUESTION})[0] == 503


def test_the_script_ends_by_sigterm_in_an_answer(forks, base):
    port = free_port(18000)
    run = forks.start("--model_name_or_path", base, "--port", port, "--gpus", "cpu", script="scripts/serve.py")
    run.wait_for(f"base at http://127.0.0.1:{port}/v1 (Ctrl-C ends it)")
    stream = ask(client_of(f"http://127.0.0.1:{port}"), stream=True, max_tokens=3000)
    next(stream)
    begun = time.monotonic()
    run.signal(signal.SIGTERM)
    with pytest.raises(openai.APIError):
        list(stream)
    assert run.code == 0 and "Traceback" not in run.err and time.monotonic() - begun < 10


def test_vllm_gets_the_same_settings(model_dir, adapters, monkeypatch, capsys):
    flags = ["--model_name_or_path", model_dir, "--peft_path", f"x={adapters[0]}", "--engine", "vllm"]
    flags += ["--api_key", "sesame", "--vllm_args", "--tool-call-parser hermes", "--temperature", "0.3"]
    parser = Parser([ServeArguments, TemplateArguments])
    arguments, template = parser.parse(flags)
    monkeypatch.setattr(vllm.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(UserError, match="vLLM is not installed here"):
        vllm.start(arguments, template, parser.given)
    started = []
    monkeypatch.setattr(vllm.shutil, "which", lambda *args, **kwargs: "/bin/vllm")
    monkeypatch.setattr(vllm.os, "execve", lambda *args: started.append(args))
    vllm.start(arguments, template, parser.given)
    [(program, command, environment)] = started
    line = shlex.join(command)
    assert program == "/bin/vllm" and command[1:3] == ["serve", model_dir] and environment["VLLM_API_KEY"] == "sesame"
    for part in (
        f"--lora-modules x={adapters[0]}",
        "--max-lora-rank 8",
        "--host 127.0.0.1",
        "--tool-call-parser hermes",
    ):
        assert part in line
    assert '"temperature": 0.3' in line and "sesame" not in line + capsys.readouterr().out
