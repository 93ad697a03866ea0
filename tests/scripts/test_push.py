"""scripts/push.py: what every kind of model becomes on a hub, and that its card's code loads it from there."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from conftest import ROOT, write_jsonl
from hf_recipes.publishing.model_card import model_card
from hub_server import TOKEN, point_to

TARGETS = pytest.mark.parametrize("target", ["hf", "modelscope"])
QUICK = ["--report_to", "none", "--max_steps", 1, "--learning_rate", "1e-2", "--bf16", "False"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def train(script, model_dir, pairs, tmp_path, shelf):
    """``train("sft.py", *flags)`` → a copy of the folder of a short run."""

    def run(name, *flags):
        kept = shelf / "".join([name, *flags])
        if not kept.is_dir():
            kept = shutil.copytree(run_once(name, *flags), kept)
            shutil.rmtree(tmp_path / "run")
        return shutil.copytree(kept, tmp_path / "run")

    def run_once(name, *flags):
        data = {"sft.py": pairs / "train.json", "reward.py": ROOT / "datasets" / "preference" / "reviews.jsonl"}
        data["pretrain.py"] = write_jsonl(tmp_path / "texts.jsonl", [{"text": "今天天气很好。" * 9}] * 8)
        block = ["--block_size", 32] if name == "pretrain.py" else []
        where = ["--model_name_or_path", model_dir, "--train_file", data[name], "--output_dir", tmp_path / "run"]
        code, _, err = script(name, *where, *QUICK, *block, *flags)
        assert code == 0, err
        return tmp_path / "run"

    return run


def make_merged(model_dir, adapter: Path, folder: Path, weight: float = 1.0) -> Path:
    """What scripts/merge_adapter.py leaves, without a card."""
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)
    for path in adapter.glob("*token*"):
        shutil.copy(path, folder)
    shutil.copy(adapter / "chat_template.jinja", folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    record = {
        "base": {"name": str(model_dir), "revision": "main"},
        "adapters": [{"name": str(adapter), "weight": weight, "files": {"adapter_model.safetensors": "0f"}}],
        "quantized_in_training": "4 bits",
        "dtype": "float32",
        "parity": {"logits": 3.5e-7, "greedy_tokens": {"same": 32, "of": 32}},
        "request": {"base": {str(folder): "1"}},
        "files": {"config.json": "0f"},
    }
    (folder / "merge.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def make(train, model_dir, tmp_path):
    """A folder of a kind → its path, and the model in it."""

    def run(kind: str):
        if kind == "adapter":
            folder = train("sft.py", "--system_prompt", "判断类别。")
            return folder, PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), folder)
        if kind == "adapter with new tokens":
            folder = train("sft.py", "--chat_template", "glm")
            base = AutoModelForCausalLM.from_pretrained(model_dir)
            base.resize_token_embeddings(base.config.vocab_size + 5)
            return folder, PeftModel.from_pretrained(base, folder)
        if kind == "merged":
            folder = make_merged(model_dir, train("sft.py"), tmp_path / "merged")
            return folder, AutoModelForCausalLM.from_pretrained(folder)
        if kind == "whole":
            folder = train("sft.py", "--use_lora", "False")
            return folder, AutoModelForCausalLM.from_pretrained(folder)
        if kind == "pretrained":
            folder = train("pretrain.py")
            return folder, AutoModelForCausalLM.from_pretrained(folder)
        if kind == "reward adapter":
            folder = train("reward.py")
            base = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=1, pad_token_id=0)
            return folder, PeftModel.from_pretrained(base, folder)
        folder = train("reward.py", "--use_lora", "False")
        return folder, AutoModelForSequenceClassification.from_pretrained(folder)

    return run


KINDS = {
    "adapter": ("adapter", "peft", "text-generation"),
    "adapter with new tokens": ("adapter", "peft", "text-generation"),
    "merged": ("finetune", "transformers", "text-generation"),
    "whole": ("finetune", "transformers", "text-generation"),
    "pretrained": ("finetune", "transformers", "text-generation"),
    "reward adapter": ("adapter", "peft", "text-classification"),
    "reward model": ("finetune", "transformers", "text-classification"),
}


@TARGETS
@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_the_card_loads_what_was_pushed(hub, script, make, model_dir, tmp_path, kind, target, capfd):
    folder, original = make(kind)
    hub.add("me/base", {path.name: path.read_bytes() for path in Path(model_dir).iterdir()})
    flags = ["--hub_model_id", "me/it", "--target", target, "--base_model_name", "me/base", "--license", "mit"]
    code, out, err = script("push.py", "--folder", folder, *flags)
    assert code == 0 and "others cannot fetch the base" not in out, out + err
    pushed = hub.repos["me/it"]
    for name, content in pushed.items():
        for private in (TOKEN, str(tmp_path), str(Path(model_dir).parent), "`tiny`", "train.json:"):
            assert private.encode() not in content, (name, private)

    card = pushed["README.md"].decode()
    relation, library, task = KINDS[kind]
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["base_model"] == "me/base" and header["base_model_relation"] == relation
    assert (header["library_name"], header["pipeline_tag"], header["license"]) == (library, task, "mit")
    assert header["language"] == ["zh", "en"] and "`me/base`" in card and "hf_recipes" in header["tags"]
    assert re.search("[a-z]{4} .*hf_recipes", card) and re.search("[\u4e00-\u9fff]{2}.*hf_recipes|由 hf_recipes", card)

    scope = run_code(card, target)
    assert re.search(r"/me/it/resolve/|/me/it/repo\?", " ".join(path for _, path, _ in hub.requests))
    ids = torch.tensor([[5, 9, 30, 41, 7]])
    with torch.no_grad():
        assert torch.equal(scope["model"](ids).logits, original.eval()(ids).logits)
    assert scope["tokenizer"].chat_template
    printed = capfd.readouterr().out.strip().splitlines()[-1:]
    if "reward" in kind:
        messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好，请问有什么可以帮你？"}]
        write_jsonl(tmp_path / "rows.jsonl", [{"messages": messages}])
        where = ["--model_name_or_path", model_dir, "--peft_path", folder]
        where = where if kind == "reward adapter" else ["--model_name_or_path", folder]
        files = ["--input_file", tmp_path / "rows.jsonl", "--output_file", tmp_path / "scored.jsonl"]
        assert script("score.py", *where, *files, "--dtype", "float32")[0] == 0
        assert json.loads((tmp_path / "scored.jsonl").read_text())["score"] == pytest.approx(
            float(printed[0]), abs=1e-6
        )


def run_code(card: str, target: str) -> dict:
    """Execute the card's one block of Python, the repositories being those of the hub that the clients talk to."""
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert code.count('"me/it"') == (1 if target == "modelscope" else 2) and "FOLDER" not in code
    assert code.startswith("from modelscope import snapshot_download\n") is (target == "modelscope")
    scope: dict = {}
    exec(code, scope)
    return scope


def test_a_merged_model_tells_what_it_was_merged_from(hub, script, train, model_dir, tmp_path):
    folder = make_merged(model_dir, train("sft.py"), tmp_path / "merged", weight=0.5)
    flags = ["--folder", folder, "--hub_model_id", "me/it"]
    assert script("push.py", *flags)[0] == 0
    pushed = hub.repos["me/it"]
    record = json.loads(pushed["merge.json"])
    assert record.keys() == {"base", "adapters", "quantized_in_training", "dtype", "parity"}
    assert record["base"]["name"] == "tiny"
    assert record["adapters"] == [{"name": "run", "weight": 0.5, "files": {"adapter_model.safetensors": "0f"}}]
    card = pushed["README.md"].decode()
    assert "`tiny` with the LoRA adapter `run` × 0.5 merged into its weights" in card and "base_model" not in card
    assert "trained on the base in 4 bits" in card and "适配器训练时基座为 4 bits" in card
    assert "Weights in float32. Against base and adapter, computed in float32, " in card
    assert "logits differ by at most 3.5e-07, and 32 of 32 greedy tokens are the same" in card
    assert "logits 最多相差 3.5e-07，32 个贪心词元中 32 个相同" in card
    assert str(tmp_path).encode() not in b"".join(pushed.values())

    written = model_card(folder, merge=json.loads((folder / "merge.json").read_text()) | {"base": {"name": "tiny"}})
    (folder / "README.md").write_text(f"{written}\nA line of mine.\n")
    assert script("push.py", *flags, "--base_model_name", "me/base", "--target", "modelscope")[0] == 0
    card = hub.repos["me/it"]["README.md"].decode()
    assert 'folder = snapshot_download("me/it")' in card and "`me/base` with the LoRA adapter" in card
    assert "FOLDER" not in card and card.endswith("\nA line of mine.\n")

    (folder / "README.md").write_text('Mine, of `tiny`: load("FOLDER")')
    assert script("push.py", *flags, "--base_model_name", "me/base")[0] == 0
    card = hub.repos["me/it"]["README.md"].decode()
    assert card.endswith('Mine, of `me/base`: load("me/it")') and "base_model: me/base\n" in card


@TARGETS
def test_a_dry_run_sends_nothing(hub, script, train, target, monkeypatch):
    folder = train("sft.py")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    code, out, err = script("push.py", "--folder", folder, "--hub_model_id", "me/it", "--target", target, "--dry_run")
    assert code == 0, err
    assert not hub.requests and not hub.repos and not list(folder.glob(".publishing*"))
    size = (folder / "adapter_model.safetensors").stat().st_size
    assert f"  adapter_model.safetensors  {size / 1000:.0f} kB\n" in out and "  predictions" not in out
    assert "# run\n" in out and "`tiny` 的 LoRA 适配器" in out and "PeftModel.from_pretrained(model, " in out
    assert "others cannot fetch the base, tiny: --base_model_name OWNER/NAME says what it is called on the hub" in out
    where = {"hf": "the Hugging Face Hub", "modelscope": "ModelScope"}[target]
    assert re.fullmatch(rf"nothing is sent; \d+ files, .* would go to me/it on {where}, private", out.splitlines()[-1])


@TARGETS
def test_a_push_that_broke_off_goes_on(hub, script, train, target, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    flags = ["--folder", train("sft.py"), "--hub_model_id", "me/it", "--target", target]
    hub.deny["/commit/"] = 503
    code, _, err = script("push.py", *flags)
    assert code == 1 and err.splitlines()[-1].endswith("; the same command resumes"), err
    sent = len(hub.objects)
    assert sent
    hub.deny.clear()
    hub.requests.clear()
    code, _, err = script("push.py", *flags)
    assert code == 0, err
    assert len(hub.objects) == sent and not hub.asked("/put/") and not hub.asked("/parts/")
    assert "adapter_model.safetensors" in hub.repos["me/it"]


@TARGETS
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("no token", "me/it on HUB: not allowed (401); log in (LOGIN) or set TOKEN; the same command resumes"),
        ("wrong token", "me/it on HUB: not allowed (401); log in (LOGIN) or set TOKEN; the same command resumes"),
        ("no right", "not allowed (403): this login may not write to me; use your own name, or log in"),
        ("offline", "me/it on HUB: no connection ("),
    ],
)
def test_why_nothing_could_be_sent(hub, script, train, target, trouble, message, monkeypatch):
    folder = train("sft.py")
    variable = {"hf": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[target]
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    if trouble == "no token":
        monkeypatch.delenv(variable)
    elif trouble == "wrong token":
        monkeypatch.setenv(variable, "hf_wrong")
    elif trouble == "no right":
        hub.deny["/repos/create" if target == "hf" else "/api/v1/models"] = 403
    else:
        point_to("http://127.0.0.1:9", monkeypatch)
    code, _, err = script("push.py", "--folder", folder, "--hub_model_id", "me/it", "--target", target)
    words = {"HUB": {"hf": "the Hugging Face Hub", "modelscope": "ModelScope"}[target], "TOKEN": variable}
    words["LOGIN"] = {"hf": "hf auth login", "modelscope": "modelscope login"}[target]
    for word, value in words.items():
        message = message.replace(word, value) if word != "TOKEN" else message.replace("set TOKEN", f"set {value}")
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and message in line, err
    assert "Traceback" not in err and "hf_wrong" not in err and not hub.commits


def test_a_folder_without_a_whole_model(script, model_dir, tmp_path):
    def fails(folder, message, *flags):
        code, _, err = script("push.py", "--folder", folder, "--hub_model_id", "me/it", *flags)
        assert code == 1 and message in err, err

    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "no weights (*.safetensors) in it, so no model to publish: it is empty; expected is the")
    fails(ROOT / "datasets", "it holds README.md, alpaca, bilibili, eval, preference and ")
    (tmp_path / "bare").mkdir()
    shutil.copy(Path(model_dir) / "model.safetensors", tmp_path / "bare")
    fails(tmp_path / "bare", "weights, but no adapter_config.json or config.json next to them; copy it there")
    shutil.copytree(model_dir, tmp_path / "cut")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "cut" / "model.safetensors.index.json").write_text(json.dumps(index))
    fails(tmp_path / "cut", "model-00002-of-00002.safetensors is missing, which model.safetensors.index.json names")
    fails(tmp_path / "cut", "--base_model_name x: expected OWNER/NAME", "--base_model_name", "x")
