"""Downloading and publishing with the real clients, against hubs on the loopback interface."""

import errno
import json
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from conftest import ROOT, same, weights, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import remove_abandoned
from hf_recipes.hub.download import download
from hf_recipes.publishing import collect_files, push_callback
from hf_recipes.publishing.redact import hub_names, public_ledger, public_name, public_settings, public_values
from hf_recipes.trainer.checkpoints.whole import what_is_missing
from hub_server import SHA, TOKEN, point_to, serve

SECRET_ROW = "青霉素过敏者张三"
SOURCES = pytest.mark.parametrize("source", ["hf", "modelscope"])


def clean_environment(**variables) -> dict[str, str]:
    """This process's environment without what conftest.py and the user set for hubs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MODELSCOPE"))}
    return {**kept, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), **variables}


@pytest.fixture
def script(monkeypatch, capfd):
    """Run a script in this process: ``script("push.py", "--flag", value, …)`` → (exit code, stdout, stderr)."""

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        assert "Traceback" not in err and TOKEN not in out + err
        return code, out, err

    return run


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


# Downloading


@SOURCES
def test_a_download_is_a_model_folder_without_duplicates(hub, source, model_dir, tmp_path, script):
    files = files_of(model_dir)
    extra = {"pytorch_model.bin": b"a pickle", "model.onnx": b"x", "onnx/model.onnx": b"x", "model.Q4.gguf": b"x"}
    hub.add("Qwen/tiny", {**files, **extra, "original/consolidated.safetensors": b"x"})
    target = tmp_path / "model"
    code, out, err = script("download.py", "--model", "Qwen/tiny", "--source", source, "--output_dir", target)
    assert code == 0, err
    assert out.splitlines()[-1] == f"model in {target}: --model_name_or_path {target}"
    record = json.loads((target / "download.json").read_text())
    assert record == {"source": source, "model": "Qwen/tiny", "revision": SHA if source == "hf" else None}
    found = files_of(target)
    found.pop("download.json")
    assert found == files and {path.name for path in tmp_path.iterdir()} >= {"model"}
    assert not list(tmp_path.glob("*.partial"))
    one, other = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (model_dir, target))
    assert all(torch.equal(one[key], other[key]) for key in one)

    hub.requests.clear()
    assert download("Qwen/tiny", source, output_dir=str(target)) == target
    assert not hub.asked("resolve") and not hub.asked("FilePath")
    (target / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config.json: 2 bytes, the server has .*; delete .* to download it again"):
        download("Qwen/tiny", source, output_dir=str(target))


@SOURCES
def test_a_broken_download_goes_on_where_it_stopped(hub, source, tmp_path):
    # huggingface_hub writes pieces of 10 MiB.
    content = random.Random(0).randbytes(12_000_000)
    hub.add("Qwen/tiny", {"config.json": b"{}", "model.safetensors": content})
    hub.cut["model.safetensors"] = 11_000_000
    target = tmp_path / "model"
    with pytest.raises(UserError, match="the same command resumes where this one stopped"):
        download("Qwen/tiny", source, output_dir=str(target))
    assert not target.exists()
    hub.cut.clear()
    hub.deny.clear()
    hub.requests.clear()
    download("Qwen/tiny", source, output_dir=str(target))
    assert {name: data for name, data in files_of(target).items() if name != "download.json"} == {
        "config.json": b"{}",
        "model.safetensors": content,
    }
    [(_, _, asked)] = hub.asked("model.safetensors")
    assert int(asked.removeprefix("bytes=").removesuffix("-")) >= 10 * 2**20
    assert not hub.asked("resolve/main/config.json") and not hub.asked("FilePath=config.json")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("model")] == ["model"]


@SOURCES
def test_two_downloads_into_one_folder_both_end_well(hub, source, tmp_path, capfd):
    content = random.Random(0).randbytes(300_000)
    hub.add("Qwen/tiny", {"config.json": b"{}", "model.safetensors": content})
    hub.slow["model.safetensors"] = 1.0
    target = tmp_path / "models" / "tiny"
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(download, "Qwen/tiny", source, output_dir=str(target)) for _ in range(2)]
    assert [one.result() for one in both] == [target, target]
    assert (target / "model.safetensors").read_bytes() == content
    assert len(hub.asked("model.safetensors")) == 1
    out = capfd.readouterr().out
    # The clients' own lines may come between, and within: a thread's line and its end are two writes.
    assert f"{target}: another process is fetching it; waiting for its end" in out
    assert f"{target} is complete already" in out
    # The lock that stays is no model, and makes no folder one that is in use.
    shutil.rmtree(target)
    hub.slow.clear()
    assert download("Qwen/tiny", source, output_dir=str(tmp_path / "models")) == tmp_path / "models"
    assert (tmp_path / "models" / "config.json").is_file()


@SOURCES
def test_a_damaged_file_is_named(hub, source, tmp_path, monkeypatch):
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
    hub.add("Qwen/tiny", {"config.json": b"{}", "model.safetensors": b"damaged!"})
    hub.stated["model.safetensors"] = b"pristine"
    with pytest.raises(UserError, match=r"model\.safetensors"):
        download("Qwen/tiny", source, output_dir=str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "model.partial" / "model.safetensors").exists()
    hub.stated.clear()
    download("Qwen/tiny", source, output_dir=str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == b"damaged!"


def test_small_files_are_checked_too(hub, tmp_path):
    hub.add("Qwen/tiny", {"config.json": b'{"a": 2}', "model.safetensors": b"x"})
    hub.stated["config.json"] = b'{"a": 1}'
    with pytest.raises(UserError, match=r"config\.json: damaged, its sha1 is not the server's; it has been deleted"):
        download("Qwen/tiny", "hf", output_dir=str(tmp_path / "model"))


def test_a_full_disk_is_noticed_before_anything_is_fetched(hub, tmp_path, monkeypatch):
    hub.add("Qwen/tiny", {"config.json": b"{}", "model.safetensors": bytes(5_000_000)})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 4_000_000))
    with pytest.raises(UserError, match=r"model: 5 MB are missing, 4 MB are free on the disk"):
        download("Qwen/tiny", "hf", output_dir=str(tmp_path / "model"))
    assert not hub.asked("resolve")


@SOURCES
def test_what_is_wrong_is_said(hub, source, tmp_path, monkeypatch, script):
    def fails(message, model, *flags):
        code, _, err = script(
            "download.py", "--model", model, "--source", source, "--output_dir", tmp_path / "out", *flags
        )
        assert code == 1 and err.count("error: ") == 1, err
        assert message in err

    fails("Qwen/none on ", "Qwen/none")
    fails("no such repository, or a private one; check the name, or log in", "Qwen/none")
    hub.add("Qwen/bare", {"model.gguf": b"x"})
    fails("Qwen/bare: no config.json in it", "Qwen/bare")
    hub.add("Qwen/evil", {"config.json": b"{}", "../../evil": b"x"})
    fails("the server names a file outside of the folder (../../evil)", "Qwen/evil")
    hub.add("meta/gated", {"config.json": b"{}"})
    hub.gated.add("meta/gated")
    if source == "hf":
        fails("accept the licence on its page, then log in (hf auth login) or set HF_TOKEN", "meta/gated")
        fails("no such revision", "Qwen/bare", "--revision", "none")
    hub.deny["meta/gated"] = 403
    fails("accept the licence on its page", "meta/gated")
    point_to("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
    fails("no connection", "Qwen/tiny")
    other = {"hf": "HF_ENDPOINT=https://hf-mirror.com or use --source modelscope", "modelscope": "use --source hf"}
    fails(other[source], "Qwen/tiny")


def test_the_client_of_modelscope_is_optional(monkeypatch, tmp_path):
    monkeypatch.setattr("hf_recipes.hub.clients.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install modelscope"):
        download("Qwen/tiny", "modelscope", output_dir=str(tmp_path / "model"))


# What may be seen


def test_names_in_place_of_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, record in {
        "fetched": '{"source": "hf", "model": "Qwen/Qwen3-0.6B"}',
        "models/other": '{"by": "me"}',
    }.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "download.json").write_text(record)
    data = {"train_file": ["clients/acme", "me/rows", "me/rows:extra"], "validation_file": "fetched"}
    (tmp_path / "clients" / "acme").mkdir(parents=True)
    names = hub_names({"model_name_or_path": "fetched", "peft_path": "models/other", **data})
    names |= hub_names({"model_name_or_path": "Qwen/Qwen2.5-0.5B", "validation_file": "me/rows"})
    for value, shown in {
        "Qwen/Qwen2.5-0.5B": "Qwen/Qwen2.5-0.5B",
        "fetched": "Qwen/Qwen3-0.6B",
        "models/other": "other",
        "clients/acme": "acme",
        "not/asked": "asked",
        "me/rows:extra": "me/rows:extra",
        "me/rows/train": "me/rows/train",
        "me/rows/extra": "me/rows/extra",
        "me/rows/validation": "me/rows/validation",
        str(tmp_path): tmp_path.name,
        "/home/me/models/llama": "llama",
        r"C:\Users\me\data.json": "data.json",
        "data/train.json": "train.json",
        "../secret/folder": "folder",
        "~/data/*.jsonl": "*.jsonl",
        "chatml": "chatml",
    }.items():
        assert public_name(value, names) == shown
    assert "fetched" not in hub_names({"model_name_or_path": "x", **data})


def test_settings_lose_paths_and_secrets():
    text = (
        "# Repeat this run\n# versions\n\nmodel_name_or_path: /home/me/qwen\ntrain_file: [/home/me/a.json, b/c.csv]\n"
        "system_prompt: 你/您 好\noutput_dir: runs/x\nhub_token: hf_x\n\n# Defaults\ncache_dir: /tmp/c\nseed: 42\n"
        "some_list: [/etc/x]\n"
    )
    assert public_settings(text, {}) == (
        "# Repeat this run\n# versions\n\nmodel_name_or_path: qwen\ntrain_file:\n- a.json\n- c.csv\n"
        "system_prompt: 你/您 好\n\n# Defaults\nseed: 42\nsome_list:\n- x\n"
    )


def test_nothing_that_may_be_a_path_is_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clients" / "acme 公司").mkdir(parents=True)
    (tmp_path / "clients" / "acme 公司" / "rows.json").touch()
    (tmp_path / "clients" / "fetched").mkdir()
    (tmp_path / "clients" / "fetched" / "download.json").write_text('{"source": "hf", "model": "Qwen/Reward"}')
    settings = {
        "model_name_or_path": "Qwen/Qwen3-0.6B",
        "reward_model": "clients/fetched",
        "reward_base": "./clients/acme 公司/base",
        "rewards": ["clients/acme/rewards.py:politeness=0.5", "../../home/x.py=2:f", "format:a/b=c", "accuracy"],
        "train_file": ["wiki=me/wiki", "news=clients/acme 公司/rows.json", r"clients\acme\13812345678.json"],
        "eval_files": ["exam=clients/acme/exam.csv", "ceval=someone/ceval"],
        "lora_config": '{"r": 8, "modules_from": "clients/acme/modules.json", "alpha": null}',
        "bnb_config": {"clients/acme/key": {"deep": ["clients/acme/deep.json", 1, None]}},
        "chat_template": "clients/acme/chat.jinja",
        "some_new_setting": "clients/acme/of a later version",
        "system_prompt": "/no_think/男/女",
        "chat_template_kwargs": '{"style": "/no_think"}',
        "eos_token": "</s>",
        "history_column": "clients/acme 公司/rows.json",
        "prompt_column": "问/题",
        "hub_model_id": "me/it",
        "learning_rate": 1e-4,
    }
    text = public_settings(yaml.safe_dump(settings), hub_names(settings))
    assert yaml.safe_load(text) == {
        "model_name_or_path": "Qwen/Qwen3-0.6B",
        "reward_model": "Qwen/Reward",
        "reward_base": "base",
        "rewards": ["rewards.py:politeness=0.5", "x.py=2:f", "format:a/b=c", "accuracy"],
        "train_file": ["wiki=me/wiki", "news=rows.json", "<手机号>.json"],
        "eval_files": ["exam=exam.csv", "ceval=someone/ceval"],
        "lora_config": '{"r": 8, "modules_from": "modules.json", "alpha": null}',
        "bnb_config": {"key": {"deep": ["deep.json", 1, None]}},
        "chat_template": "chat.jinja",
        "some_new_setting": "of a later version",
        "system_prompt": settings["system_prompt"],
        "chat_template_kwargs": settings["chat_template_kwargs"],
        "eos_token": "</s>",
        "history_column": "rows.json",
        "prompt_column": "问/题",
        "hub_model_id": "me/it",
        "learning_rate": 1e-4,
    }
    metrics = public_values({"settings": settings, "after": {"rewards/x": 1.0}}, hub_names(settings))
    assert metrics == {"settings": yaml.safe_load(text), "after": {"rewards/x": 1.0}}
    files = {"exam": {"clients/acme/exam.csv": "1"}}
    assert public_values({"settings": {"eval_files": files, "chat_template": "{{ a }}</s>"}}, {}) == {
        "settings": {"eval_files": {"exam": {"exam.csv": "1"}}, "chat_template": "{{ a }}</s>"}
    }


def test_a_configuration_keeps_its_tokens():
    values = {"added_tokens": {"7": {"content": "/think"}, "8": {"content": "/km/h/"}}, "id2label": {"0": "正面/负面"}}
    assert public_values(values, {}) == values
    assert public_values({"x": "/home/me/x", "y": "C:\\me\\y"}, {}) == {"x": "x", "y": "y"}


def test_a_template_in_a_configuration_stays():
    values = {"chat_template": "{{ bos_token }}</s>", "name_or_path": "/home/me/qwen", "eos_token": "</s>"}
    assert public_values(values, {}) == {**values, "name_or_path": "qwen"}


def test_a_ledger_loses_places_and_what_rows_say():
    counts = {"read": 3, "kept": 1, "dropped": 2}
    reasons = [
        {"source": "/home/me/a.json", "status": f"dropped: unknown role '{role}'", "count": 1, "first": ["a.json:1"]}
        for role in ("张三", "李四")
    ]
    ledger = {"train": {"total": counts, "sources": {"/home/me/a.json": counts}, "reasons": reasons}}
    assert public_ledger(ledger, {}) == {
        "train": {
            "total": counts,
            "sources": {"a.json": counts},
            "reasons": [{"source": "a.json", "status": "dropped: unknown role …", "count": 2}],
        }
    }


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"unknown role {'它' * 3 + chr(39) + chr(34) + SECRET_ROW!r} here", "unknown role … here"),
        (f"unknown role {'a: ' + SECRET_ROW!r}", "unknown role …"),
        (f"unknown role {[SECRET_ROW, 'x']!r}", "unknown role […, …]"),
        (f"unknown role '{SECRET_ROW}", "unknown role …"),
        ("unknown role 13800000000", "unknown role …"),
        ("2 fields than the header's 4", "2 fields than the header's 4"),
        (f"the chat template refuses it: {SECRET_ROW}", "the chat template refuses it"),
    ],
)
def test_a_reason_keeps_nothing_of_a_row(said, shown):
    reason = {"source": "x", "status": f"dropped: {said}", "count": 1, "first": []}
    [public] = public_ledger({"train": {"total": {}, "sources": {}, "reasons": [reason]}}, {})["train"]["reasons"]
    assert public["status"] == f"dropped: {shown}"


# Publishing


@pytest.fixture
def training(model_dir, pairs, tmp_path):
    """Flags of a short run whose data has a row that must not be seen anywhere but in the run's own folder."""
    lines = (pairs / "train.json").read_text().splitlines()
    rows = [*map(json.loads, lines), {"input": SECRET_ROW, "target": ""}, {"input": SECRET_ROW, "target": "是"}]
    write_jsonl(pairs / "train.json", rows)
    flags = ["--model_name_or_path", model_dir, "--train_file", pairs / "train.json", "--max_drop_ratio", "0.1"]
    flags += ["--validation_file", pairs / "dev.json", "--max_new_tokens", "4", "--per_device_train_batch_size", "4"]
    flags += ["--seed", "42"]
    return [*flags, "--max_steps", "4", "--output_dir", tmp_path / "run"]


PUBLISHED = {
    *("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "README.md", "run_config.yaml", "data_ledger.json", "metrics.json", "curves.png"),
}
PUSH = ["--push_to_hub", "--hub_model_id", "me/reviews"]


@SOURCES
def test_a_run_is_published_without_paths_rows_or_tokens(hub, source, sft, training, tmp_path, monkeypatch, model_dir):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    more = ["--report_to", "none", "--logging_steps", "2", "--hub_target", source, "--hub_token", TOKEN]
    code, out, err = sft(*training, *PUSH, *more)
    assert code == 0, err
    files = hub.repos["me/reviews"]
    assert files.keys() == PUBLISHED and hub.private["me/reviews"] is True
    assert [commit.split(" (")[0] for commit in hub.commits] == ["End of training"]
    page = f"{hub.url}/me/reviews" if source == "hf" else f"{hub.url}/models/me/reviews"
    assert f"pushed: {page}\n" in out
    assert same(weights(tmp_path / "run"), load(files["adapter_model.safetensors"]))
    for name, content in files.items():
        for private in (TOKEN, str(tmp_path), str(Path(model_dir).parent), "/home/", "train.json:", SECRET_ROW):
            assert private.encode() not in content, (name, private)
    assert_no_token_in(tmp_path / "run")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert modes["adapter_model.safetensors"] == modes["adapter_config.json"] != 0o600
    assert TOKEN not in out + err and not list((tmp_path / "run").glob(".publishing*"))

    card = files["README.md"].decode()
    where = 'from_pretrained(model, "me/reviews")' if source == "hf" else 'folder = snapshot_download("me/reviews")'
    assert where in card and "LoRA adapter of `tiny`" in card
    assert "| **train** | 42 | 41 | 1 |" in card and "- train: 1 dropped: empty answer" in card
    assert "On 8 held-out rows after step 4:" in card and "Mean training loss: " in card
    changed, folded = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", card, re.DOTALL))
    assert card.index("max_steps: 4") < card.index("<details>") < card.index("weight_decay")
    assert changed["train_file"] == ["train.json"] and len(changed) < 15 < 100 < len(folded)
    assert not changed.keys() & folded.keys() and "seed" in folded and "per_device_train_batch_size" in changed
    assert json.loads(files["data_ledger.json"])["train"]["total"] == {"read": 42, "kept": 41, "dropped": 1}
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "tiny"


def assert_no_token_in(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


def load(content: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(content)


def test_checkpoints_go_along_the_way_and_can_be_resumed_from(hub, sft, training, tmp_path):
    more = ["--hub_strategy", "all_checkpoints", "--hub_always_push", "True", "--save_steps", "2"]
    flags = ["--report_to", "none", "--eval_strategy", "steps", "--eval_steps", "2", "--load_best_model_at_end", "True"]
    code, out, err = sft(*training, *PUSH, *more, *flags, "--hub_private_repo", "false")
    assert code == 0, err
    assert hub.commits == ["Step 2", "Step 4", "End of training"] and hub.private["me/reviews"] is False
    assert f"step 2 pushed: {hub.url}/me/reviews" in out
    files = hub.repos["me/reviews"]
    for name, content in files.items():
        assert str(tmp_path).encode() not in content and SECRET_ROW.encode() not in content, name
    assert not any(name.endswith(("training_args.bin", "checkpoint-2/README.md")) for name in files)
    fetched = tmp_path / "fetched"
    for name, content in files.items():
        if name.startswith("checkpoint-2/"):
            (fetched / name).parent.mkdir(parents=True, exist_ok=True)
            (fetched / name).write_bytes(content)
    assert what_is_missing(fetched / "checkpoint-2") is None
    assert json.loads(files["checkpoint-2/trainer_state.json"])["global_step"] == 2


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("create", "500"),
        ("commit", "503"),
        ("login", "not allowed (401); log in"),
        ("network", "no connection"),
        ("silence", "no connection (timed out)"),
    ],
)
def test_a_failed_push_leaves_the_run_whole_and_says_how_to_push_later(
    hub, sft, script, training, tmp_path, monkeypatch, broken, reason
):
    url = hub.url
    if broken == "login":
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    elif broken == "network":
        point_to("http://127.0.0.1:9", monkeypatch)
    elif broken == "silence":
        monkeypatch.setattr("hf_recipes.hub.clients.TIMEOUT", 0.5)
        hub.silent = True
    else:
        hub.deny["/repos/create" if broken == "create" else "/commit/"] = 500 if broken == "create" else 503
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    code, out, err = sft(*training, *PUSH, "--report_to", "none")
    assert code == 0, err
    assert "Traceback" not in out + err
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} >= PUBLISHED and not list(run.glob(".publishing*"))
    [line] = [line for line in out.splitlines()[-1:] if line.startswith("not pushed, the run is not affected")]
    assert reason in line
    command = f"python scripts/push.py --folder {run} --hub_model_id me/reviews"
    assert line.endswith(f"Push later: {command}")

    hub.deny.clear()
    hub.silent = False
    point_to(url, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, out, err = script(*[Path(part).name if "push.py" in part else part for part in shlex.split(command)[1:]])
    assert code == 0, err
    assert hub.repos["me/reviews"].keys() == PUBLISHED
    size = len(hub.repos["me/reviews"]["adapter_config.json"])
    assert f"  adapter_config.json  {size / 1000:.0f} kB" in out
    assert out.splitlines()[-1] == f"pushed: {url}/me/reviews"


def test_a_public_repository_is_not_taken_for_a_private_one(hub, script, finished_run):
    hub.add("me/known", {})
    code, out, _ = script("push.py", "--folder", finished_run, "--hub_model_id", "me/known")
    assert code == 0 and f"{hub.url}/me/known is there already and public; it stays public" in out


@pytest.fixture
def finished_run(model_dir, tmp_path) -> Path:
    run = tmp_path / "finished"
    shutil.copytree(model_dir, run)
    (run / "run_config.yaml").write_text("model_name_or_path: Qwen/Qwen3-0.6B\n# Defaults\n")
    (run / "README.md").write_text('load("FOLDER")')
    (run / "training_args.bin").write_bytes(b"pickle")
    (run / "notes.txt").write_text("mine")
    return run


def test_only_what_belongs_to_a_result_is_pushed(hub, script, finished_run):
    code, _, err = script("push.py", "--folder", finished_run, "--hub_model_id", "me/x", "--revision", "v2")
    assert code == 0, err
    pushed = hub.repos["me/x"]
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= pushed.keys()
    assert not pushed.keys() & {"training_args.bin", "notes.txt"}
    assert pushed["README.md"] == b'load("me/x")'
    assert hub.asked("/branch/v2") and hub.asked("/commit/v2")


def test_what_cannot_be_pushed(hub, script, finished_run, tmp_path, sft, training):
    def fails(message, *flags):
        code, _, err = script("push.py", *flags)
        assert code == 1 and message in err, err

    fails("no weights (*.safetensors) in it", "--folder", ROOT / "configs", "--hub_model_id", "me/x")
    fails("none: no such folder", "--folder", tmp_path / "none", "--hub_model_id", "me/x")
    fails("--hub_model_id x: expected OWNER/NAME", "--folder", finished_run, "--hub_model_id", "x")
    (finished_run / "README.md").write_text(f"my token is {TOKEN}")
    fails("README.md: a token or key stands in it", "--folder", finished_run, "--hub_model_id", "me/x")
    assert not hub.asked("/commit/")
    for flags, message in (
        (["--push_to_hub"], "give --hub_model_id OWNER/NAME"),
        (["--hub_model_id", "me/x"], "--hub_model_id has no effect without --push_to_hub"),
    ):
        code, _, err = sft(*training, *flags)
        assert code == 1 and message in err


def test_a_mirror_takes_nothing_but_its_address(training, tmp_path):
    """In HF_ENDPOINT: the base comes from it, and the adapter goes to it."""
    with serve() as server:
        server.add("me/base", files_of(training[1]))
        # swanlab keeps the command line of a run.
        flags = [training[0], "me/base", *training[2:], *PUSH, "--report_to", "swanlab", "--hub_token", TOKEN]
        environment = clean_environment(HF_ENDPOINT=server.url, HF_HOME=str(tmp_path / "home"), OMP_NUM_THREADS="1")
        done = subprocess.run(
            [sys.executable, "scripts/sft.py", *map(str, flags)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert server.commits == ["End of training"] and server.repos["me/reviews"].keys() == PUBLISHED
        assert TOKEN not in done.stdout + done.stderr
        assert_no_token_in(tmp_path / "run")
        [snapshot] = (tmp_path / "home").rglob("model.safetensors")
        assert same(load(snapshot.read_bytes()), weights(training[1]))


# Has a forked process talk to the hub at an address.
POINT = """
import os, pytest
from huggingface_hub import constants
from hub_server import point_to
patch = pytest.MonkeyPatch()
point_to("URL", patch)
for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
    patch.setattr(constants, name, value)
"""


def test_of_two_processes_one_pushes(forks, training, tmp_path):
    """And the other one does not wait for it in vain."""
    with serve() as server:
        flags = [*training, *PUSH, "--report_to", "none", "--hub_token", TOKEN]
        run = forks.run(*flags, world=2, before=POINT.replace("URL", server.url))
        assert run.codes == [0, 0], run.err
        assert server.commits == ["End of training"] and server.repos["me/reviews"].keys() == PUBLISHED
        assert TOKEN not in run.out + run.err


# Pushing along the way


def wait_for(condition) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_training_does_not_wait_for_a_push(hub, sft, training, tmp_path, monkeypatch):
    upload = push_callback.upload

    def slow(*args, message, **kwargs):
        if message.startswith("Step"):
            wait_for((tmp_path / "run" / "checkpoint-4").is_dir)
        upload(*args, message=message, **kwargs)

    hub.add("me/reviews", {})
    monkeypatch.setattr("hf_recipes.publishing.push_callback.upload", slow)
    flags = [*training, *PUSH, "--report_to", "none", "--save_steps", "1", "--hub_strategy", "every_save"]
    code, out, err = sft(*flags, "--hub_always_push", "True", "--save_total_limit", "1")
    assert code == 0 and "not pushed" not in out, out + err
    assert hub.commits == [*(f"Step {n}" for n in range(1, 5)), "End of training"]
    assert same(load(hub.repos["me/reviews"]["adapter_model.safetensors"]), weights(tmp_path / "run"))
    assert out.count("is there already and public") == 1

    code, out, err = sft(*flags, "--overwrite_output_dir")
    assert code == 0 and "is not pushed: an earlier push is still running" in out, out + err


@pytest.fixture
def stopped(sft, training, tmp_path, monkeypatch):
    """Flags → the output of a run that SIGTERM ends after two steps."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("hf_recipes.trainer.reports.progress.CurvesCallback.on_step_end", on_step_end, raising=False)

    def run(*flags):
        code, out, err = sft(*training, *PUSH, "--report_to", "none", *flags)
        assert code == 0 and "stopped by SIGTERM after step 2" in out, out + err
        return out

    return run


def test_a_stopped_run_pushes_its_last_checkpoint(hub, stopped):
    out = stopped("--save_steps", "1000", "--hub_strategy", "checkpoint")
    assert hub.commits == ["Step 2"] and f"step 2 pushed: {hub.url}/me/reviews" in out
    files = hub.repos["me/reviews"]
    assert {"README.md", "adapter_model.safetensors", "last-checkpoint/optimizer.pt"} <= files.keys()
    assert not [name for name in files if name.endswith((".run", ".lock", "run.json"))]  # of this machine
    assert stopped("--overwrite_output_dir") and hub.commits == ["Step 2"]


def test_a_stopped_run_does_not_wait_for_ever(hub, stopped, script, tmp_path, monkeypatch):
    asked, upload = Event(), push_callback.upload
    monkeypatch.setattr(push_callback, "PATIENCE", 0.3)
    monkeypatch.setattr("hf_recipes.publishing.push_callback.upload", lambda *args, **kwargs: asked.wait(20))
    out = stopped("--save_steps", "1", "--hub_strategy", "all_checkpoints")
    asked.set()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    command = f"python scripts/push.py --folder {checkpoint} --hub_model_id me/reviews"
    assert out.splitlines()[-1] == f"checkpoint-2 is not pushed after 0.3 seconds. Push later: {command}"

    monkeypatch.setattr("hf_recipes.publishing.push_callback.upload", upload)
    code, _, err = script("push.py", *shlex.split(command)[2:])
    assert code == 0, err
    files = hub.repos["me/reviews"]
    assert files.keys() == PUBLISHED - {"metrics.json"}
    assert same(load(files["adapter_model.safetensors"]), weights(checkpoint))
    card = files["README.md"].decode()
    assert "2 steps on 41 rows of train.json" in card and 'from_pretrained("me/reviews")' in card
    assert "max_steps: 4" in files["run_config.yaml"].decode()
    for content in files.values():
        assert str(tmp_path).encode() not in content

    code, _, err = script("push.py", "--folder", tmp_path / "run", "--hub_model_id", "me/reviews")
    assert code == 1 and f"a checkpoint can be published too: --folder {checkpoint}" in err


@SOURCES
def test_what_an_earlier_push_left_is_deleted(hub, source, script, finished_run):
    stale = {
        "adapter_model.safetensors",
        "adapter_config.json",
        "model-00001-of-00002.safetensors",
        "last-checkpoint/b",
    }
    kept = {"demo.png", "checkpoint-2/model.safetensors", "best/config.json", "me.safetensors", "last-checkpoint.txt"}
    hub.add("me/x", dict.fromkeys([*stale, *kept, "model.safetensors"], b"old"))
    with collect_files.upload_folder(finished_run, collect_files.Address("me/x")) as folder:
        (folder / "last-checkpoint").mkdir()
        (folder / "last-checkpoint" / "a").write_text("new")
        push_callback.upload(folder, "me/x", source, replaces=push_callback.REPLACED, revision=None, message="x")
    files = hub.repos["me/x"]
    assert not files.keys() & stale and kept <= files.keys() and files["last-checkpoint/a"] == b"new"
    assert files["model.safetensors"] == (finished_run / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", b'{"a": '),
        ("run_config.yaml", b"a: [b\n"),
        ("run_config.yaml", b"- a\n"),
        ("data_ledger.json", b'{"train": []}'),
        ("README.md", "中文".encode("gb18030")),
    ],
)
def test_a_damaged_file_is_not_published(hub, script, finished_run, name, content):
    (finished_run / name).write_bytes(content)
    code, _, err = script("push.py", "--folder", finished_run, "--hub_model_id", "me/x")
    assert code == 1 and f"error: {finished_run / name}: damaged, so nothing is published" in err
    assert not hub.commits


def test_text_in_any_encoding_is_searched_for_tokens(hub, script, finished_run, monkeypatch):
    (finished_run / "vocab.txt").write_bytes("中文".encode("gb18030"))
    flags = ["--folder", finished_run, "--hub_model_id", "me/x"]
    assert script("push.py", *flags)[0] == 0
    monkeypatch.setenv("SWANLAB_API_KEY", "a-key-of-swanlab")
    (finished_run / "vocab.txt").write_bytes("中文 a-key-of-swanlab".encode("gb18030"))
    code, _, err = script("push.py", *flags)
    assert code == 1 and "vocab.txt: a token or key stands in it" in err


def test_a_full_disk_is_named(hub, script, finished_run, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    code, _, err = script("push.py", "--folder", finished_run, "--hub_model_id", "me/x")
    assert code == 1 and "No space left on device, so nothing is published" in err


def test_what_killed_pushes_left_is_removed(finished_run):
    done = subprocess.Popen(["true"])
    done.wait()
    host = socket.gethostname()
    [dead, alive, elsewhere] = [
        f".publishing.partial-{host}-{done.pid}-x",
        f".publishing.partial-{host}-1-x",
        f".publishing.partial-{host}-2-{done.pid}-x",
    ]
    for name in (dead, alive, elsewhere):
        (finished_run / name).mkdir()
    with collect_files.upload_folder(finished_run, collect_files.Address("me/x")) as folder:
        assert folder.parent == finished_run
        remove_abandoned(finished_run / collect_files.UPLOAD)
        assert folder.is_dir()
    assert {path.name for path in finished_run.glob(".publishing*")} == {alive, elsewhere}


def test_passwords_of_a_mirror_are_not_shown(hub, script, finished_run, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    point_to(hub.url.replace("//", "//bob:s3cret%21pw@"), monkeypatch)
    flags = ["push.py", "--folder", finished_run, "--hub_model_id", "me/x"]
    hub.deny["/repos/create"] = 500
    code, out, err = script(*flags)
    assert code == 1 and "500" in err and "s3cret" not in out + err
    hub.deny.clear()
    hub.add("me/x", {})
    assert push_callback.ensure_repository("me/x", "modelscope", private=True) == f"{hub.url}/models/me/x"
    (finished_run / "README.md").write_text("HF_ENDPOINT had s3cret!pw")
    code, _, err = script(*flags)
    assert code == 1 and "a token or key stands in it" in err


def test_a_login_of_modelscope_is_a_secret(monkeypatch, tmp_path):
    from modelscope_hub import HubConfig

    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path))
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    HubConfig().save_token("ms-correctHorse")
    assert "ms-correctHorse" in push_callback.hub.secrets()


# Places on the disk


@SOURCES
def test_a_folder_that_cannot_be_used_is_named(hub, source, script, tmp_path, monkeypatch):
    hub.add("a/b", {"config.json": b"{}", "model.safetensors": b"xx"})
    (tmp_path / "file").write_text("x")
    (tmp_path / "models" / "other").mkdir(parents=True)
    for location, message in {
        "file": "file: this is a file; name a folder with --output_dir",
        "file/x": "file); name another folder",
        "models": "models: the folder is not empty; name another with --output_dir",
    }.items():
        code, _, err = script("download.py", "--model", "a/b", "--source", source, "--output_dir", tmp_path / location)
        assert code == 1 and message in err and "no connection" not in err and "delete" not in err, err
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert download("a/b", source, output_dir=".") == tmp_path / "empty"
    assert (tmp_path / "empty" / "model.safetensors").read_bytes() == b"xx"


def test_an_adapter_says_which_flag_takes_it(hub, script, tmp_path):
    hub.add("a/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"xx"})
    code, out, _ = script("download.py", "--model", "a/lora", "--output_dir", tmp_path / "lora")
    assert code == 0 and out.splitlines()[-1] == f"adapter in {tmp_path / 'lora'}: --peft_path {tmp_path / 'lora'}"


def test_the_demo_leaves_another_folder_alone(script, tmp_path):
    for content in ({}, {"config.json": "{}"}):
        for name, text in {"notes.txt": "mine", **content}.items():
            (tmp_path / name).write_text(text)
        code, _, err = script("download.py", "--source", "demo", "--output_dir", tmp_path)
        assert code == 1 and f"{tmp_path}: the folder is not empty; name another with --output_dir" in err
        assert not (tmp_path / "download.json").exists()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("download.py", "the same command resumes where this one stopped"),
        ("push.py", "the same command resumes: files that are there are not sent again"),
    ],
)
def test_ctrl_c(script, finished_run, monkeypatch, name, advice):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    for module in ("clients", "upload"):
        monkeypatch.setattr(f"hf_recipes.hub.{module}.hf_api", interrupt)
    flags = ["--model", "a/b"] if name == "download.py" else ["--folder", finished_run, "--hub_model_id", "me/x"]
    code, out, _ = script(name, *flags)
    assert code == 130 and out.splitlines()[-1] == f"interrupted; {advice}"


def test_a_slip_does_not_show_a_token(script, finished_run):
    code, _, err = script("push.py", "--folder", finished_run, "--hub_model_id", "me/x", "--hub_token=", TOKEN)
    assert code == 1 and "error: stray argument after --hub_token\n" in err


def test_a_link_that_leaves_the_folder_is_refused(finished_run, tmp_path):
    (tmp_path / "id_rsa").write_text("secret")
    (finished_run / "merges.txt").write_text("a b")
    (finished_run / "vocab.txt").symlink_to(finished_run / "merges.txt")
    address = collect_files.Address("me/x")
    with collect_files.upload_folder(finished_run, address) as folder:
        assert (folder / "vocab.txt").read_text() == "a b"
    (tmp_path / "private.jinja").write_text("secret")
    for name, target in (("vocab.json", "id_rsa"), ("README.md", "id_rsa"), ("additional_chat_templates", "")):
        (finished_run / name).unlink(missing_ok=True)
        (finished_run / name).symlink_to(tmp_path / target)
        with (
            pytest.raises(UserError, match=f"{name}.*: a link to a file outside of"),
            collect_files.upload_folder(finished_run, address),
        ):
            pass
        (finished_run / name).unlink()


def test_the_cache_of_the_hub_is_links_to_its_blobs(finished_run, tmp_path):
    cache = tmp_path / "models--me--x"
    snapshot = shutil.copytree(finished_run, cache / "snapshots" / "0abc")
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.glob("*"))):
        if path.is_file():
            (snapshot / path.name).rename(cache / "blobs" / str(number))
            path.symlink_to(Path("..", "..", "blobs", str(number)))
    with collect_files.upload_folder(snapshot, collect_files.Address("me/x")) as folder:
        assert "model.safetensors" in {path.name for path in folder.iterdir()}


def test_templates_and_code_of_a_model_go_along(finished_run):
    for name in ("additional_chat_templates/tool_use.jinja", "modeling_own.py", "layers.py"):
        (finished_run / name).parent.mkdir(exist_ok=True)
        (finished_run / name).write_text("from .layers import x" if name == "modeling_own.py" else "x = 1")
    (finished_run / "notes.py").write_text("mine = 1")
    config = json.loads((finished_run / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own", "AutoConfig": "someone/else--configuration.Own"}
    (finished_run / "config.json").write_text(json.dumps(config))
    with collect_files.upload_folder(finished_run, collect_files.Address("me/x")) as folder:
        assert {path.name for path in folder.glob("*.py")} == {"layers.py", "modeling_own.py"}
        assert (folder / "additional_chat_templates" / "tool_use.jinja").read_text() == "x = 1"
