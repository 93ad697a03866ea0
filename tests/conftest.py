"""Tiny tokenizers and models, built in process; nothing is fetched."""

import gc
import json
import os
import runpy
import signal
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from forks import Server
from light_runs import lighten

# A shell starts what it puts into the background with SIGINT ignored, and every process of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
TEXT = [
    "患者年龄在十八岁以上，性别不限，自愿签署知情同意书。",
    "孕妇或者哺乳期的妇女不能参加这个试验；对青霉素过敏者除外。",
    "请问这条标准属于哪一类？选项：年龄，性别，疾病，药物，睡眠\n答：年龄",
    "你好，我是一个语言模型。今天天气很好，我们去公园散步吧！",
    "The quick brown fox jumps over the lazy dog. Human: Assistant: system user",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _refuse_skip(report):
    """With NO_SKIPS set, as .ci/run sets it, a test that skips fails: what it needs is missing there."""
    if report.skipped and os.environ.get("NO_SKIPS"):
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return _refuse_skip((yield))


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """Data sets are cached in a folder of this test run, never in the user's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    monkeypatch.chdir(ROOT)


_modules_frozen = 0


@pytest.fixture(autouse=True)
def imports_are_no_garbage():
    """Each run collects all garbage when it begins, which takes 0.7 s where what the imports left is looked at too."""
    global _modules_frozen
    if len(sys.modules) > _modules_frozen + 100:
        gc.freeze()
        _modules_frozen = len(sys.modules)


def build_tokenizer(**kwargs) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML's tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT * 3, trainer)
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**settings, **kwargs})


class SlowTwin(PreTrainedTokenizer):
    """A tokenizer written in Python: the ids of `build_tokenizer`, without offsets."""

    def __init__(self, fast: PreTrainedTokenizerFast | None = None, **kwargs):
        self._fast = fast or build_tokenizer()
        added = {i: AddedToken(str(t), special=True) for i, t in self._fast.added_tokens_decoder.items()}
        super().__init__(added_tokens_decoder=added, **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self._fast)

    def get_vocab(self) -> dict[str, int]:
        return self._fast.get_vocab()

    def _tokenize(self, text, **kwargs):
        return self._fast.backend_tokenizer.encode(text, add_special_tokens=False).tokens

    def _convert_token_to_id(self, token):
        return self._fast.convert_tokens_to_ids(token)

    def _convert_id_to_token(self, index):
        return self._fast.convert_ids_to_tokens(index)

    def convert_tokens_to_string(self, tokens):
        return self._fast.convert_tokens_to_string(tokens)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="session")
def slow_tokenizer(tokenizer):
    return SlowTwin(tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML)


def tiny_model(vocab_size: int) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config)


@pytest.fixture(scope="session")
def model_dir(tokenizer, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tokens_only(tokenizer, tmp_path_factory) -> str:
    """A folder with a tokenizer and nothing else."""
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def judge(tmp_path_factory) -> Path:
    """A folder with a whole reward model, whose tokenizer is its own."""
    tokenizer = build_tokenizer(eos_token="<|endoftext|>")
    config = tiny_model(len(tokenizer)).config
    config.num_labels = 1
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("judge")
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bloom_dir(tokenizer, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "bloom"
    torch.manual_seed(0)
    BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def recurrent_dir(tokenizer, tmp_path_factory) -> str:
    """An LFM2, whose convolutions go on from one packed row into the next."""
    folder = tmp_path_factory.mktemp("models") / "lfm2"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Lfm2Config(vocab_size=len(tokenizer), layer_types=["conv", "full_attention"], num_hidden_layers=2, **sizes)
    Lfm2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def json_files(folder: Path) -> dict[Path, object]:
    """Every JSON file in `folder`, however deep, and every JSONL file's rows; NaN and Infinity, no JSON, are errors."""

    def refuse(word: str):
        raise AssertionError(f"{path}: {word}")

    found = {}
    for path in sorted(path for ending in ("json", "jsonl") for path in Path(folder).rglob(f"*.{ending}")):
        text = path.read_text(encoding="utf-8")
        parts = text.splitlines() if path.suffix == ".jsonl" else [text]
        values = [json.loads(part, parse_constant=refuse) for part in parts]
        found[path] = values if path.suffix == ".jsonl" else values[0]
    return found


def conversation(*texts) -> list[dict]:
    """Turns of user and assistant by turns."""
    roles = ["user", "assistant"] * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def learned_text(tokenizer, encoded) -> list[str]:
    """The runs of labelled tokens as text."""
    runs, current = [], []
    for label in [*encoded.labels.tolist(), -100]:
        if label != -100:
            current.append(label)
        elif current:
            runs.append(tokenizer.decode(current))
            current = []
    return runs


def write_pairs(folder: Path) -> Path:
    """A folder with train.json and dev.json: short questions with one of four answers."""
    answers = ["年龄", "性别", "疾病", "药物"]
    rows = [
        {"input": f"标准{i}：属于{answers[i % 4]}吗？\n答：", "target": answers[i % 4], "answer_choices": answers}
        for i in range(48)
    ]
    write_jsonl(folder / "train.json", rows[:40])
    write_jsonl(folder / "dev.json", rows[40:])
    return folder


@pytest.fixture
def pairs(tmp_path) -> Path:
    return write_pairs(tmp_path / "data")


@pytest.fixture
def script(monkeypatch, capfd):
    """Run a script in this process: ``script("sft.py", "--flag", value, …)`` → (exit code, stdout, stderr)."""

    def run(name, *flags, light=True):
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        if light and "--train_file" in flags:
            lighten(sys.argv, monkeypatch.setattr)
        monkeypatch.setattr(datasets, "disable_progress_bars", lambda: None)
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def sft(script):
    return partial(script, "sft.py")


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Starts runs in processes of their own; see `forks.Server`."""
    server = Server(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


@contextmanager
def _running_browser(folder: Path):
    """A `browser.Browser`; the test is skipped where there is no Chromium."""
    from browser import Browser, find_program

    program = find_program()
    if not program:
        pytest.skip("no Chromium or Chrome on the PATH")
    pytest.importorskip("websockets", reason="websockets is missing: pip install -e '.[test]'")
    running = Browser(program, folder)
    yield running
    running.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with _running_browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture
def other(tmp_path):
    """A second visitor's browser."""
    with _running_browser(tmp_path / "other") as running:
        yield running


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that this process's clients talk to, with a login."""
    from huggingface_hub import constants

    from hub_server import TOKEN, point_to, serve

    with serve() as server:
        point_to(server.url, monkeypatch)
        for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
            monkeypatch.setenv(name, TOKEN)
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "home" / "modelscope"))
        # Both clients read these when they are imported.
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_RETRY_TIMES", 0)
        yield server


def weights(folder) -> dict[str, torch.Tensor]:
    [path] = Path(folder).glob("*.safetensors")
    return load_file(path)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
