"""The estimate of a run's memory: exact where it counts, close to what is measured where it guesses."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
)

from conftest import ROOT, TEXT, tiny_model, write_jsonl
from hf_recipes.dry_run import peak_memory, simulate
from hf_recipes.dry_run.memory import Memory, estimate, optimizer_bytes
from hf_recipes.dry_run.peak_memory import PeakMemory, describe
from hf_recipes.dry_run.repeated_layers import repeated_layers
from hf_recipes.dry_run.simulate import Batch, meta_model, pass_memory, step_memory
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference import forward
from hf_recipes.models.inference.batch_options import ForwardPass
from hf_recipes.models.inference.forward import PIECE, scored_pass
from hf_recipes.stages.sft import SFTArguments
from hf_recipes.trainer.sharding import Sharding


@pytest.fixture
def make(tokenizer, tmp_path):
    """The estimate for the tiny model under some flags; `model=` are fields of ModelArguments."""

    def build(batch=None, model=None, keeps_reference=False, passes=(), **flags):
        args = SFTArguments(output_dir=str(tmp_path / "run"), report_to="none", **{"bf16": False, **flags})
        model_args = ModelArguments("tiny", dtype="float32", **(model or {}))
        bare = meta_model(model_args, tiny_model(len(tokenizer)).config, tokenizer, [], bf16=bool(args.bf16))
        return estimate(bare, batch or Batch(2, 16, 4), args, keeps_reference=keeps_reference, passes=passes)

    return build


def test_weights_gradients_and_states_are_counted_by_tensor(make, tokenizer):
    total = tiny_model(len(tokenizer)).num_parameters()
    whole = make(model={"use_lora": False}, gradient_accumulation_steps=2)
    buffers = 8 // 2 * 4 * 2  # inverse frequencies of a head of 8, as they are and as they were
    assert (whole.trained, whole.total) == (total, total)
    assert whole.parts["weights"] == total * 4 + buffers
    assert whole.parts["gradients"] >= total * 4
    assert whole.parts["optimizer"] == total * 8
    assert whole.checkpoint == total * 12
    adapter = make()
    # Rank 8 on q, k, v, o, gate, up and down of two layers; the width is 32, keys have 16, the middle 64.
    lora = 2 * 8 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 64))
    assert adapter.trained == lora and adapter.parts["optimizer"] == lora * 8
    assert make(save_only_model=True).checkpoint == lora * 4


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3MoeConfig, GPT2Config])
def test_layers_that_are_alike_are_run_once_with_the_same_result(kind, tokenizer):
    sizes = {"hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 160, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = kind(
        vocab_size=len(tokenizer), **({"n_embd": 64, "n_layer": 5, "n_head": 4} if kind is GPT2Config else sizes)
    )

    def counted(use_lora: bool, checkpointing: bool) -> list[dict]:
        model = meta_model(ModelArguments("tiny", use_lora=use_lora), config, tokenizer, [], bf16=True)
        batch = Batch(2, 64, 100, packed=checkpointing)
        options = {"autocast": torch.bfloat16, "checkpointing": checkpointing, "accumulates": checkpointing}
        answers = pass_memory(model, ForwardPass(2, 64, new_tokens=20), autocast=torch.bfloat16)
        return [answers, step_memory(model, batch, **options)]

    for case in ((True, False), (False, True)):
        with patch.object(simulate, "repeated_layers", return_value=None) as whole:
            expected = counted(*case)
        assert whole.call_count == 2 and repeated_layers(make_tiny(config)) is not None
        assert counted(*case) == expected


def test_layers_that_differ_are_all_run(tokenizer):
    config = Gemma2Config(num_hidden_layers=6, hidden_size=32, intermediate_size=64, num_attention_heads=2)
    assert repeated_layers(make_tiny(config)) is None


def make_tiny(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_a_reference_is_a_copy_of_what_is_trained(make, tokenizer):
    for model in ({"use_lora": False}, {}):
        alone, held = (make(model=model, keeps_reference=keeps) for keeps in (False, True))
        assert held.parts["weights"] - alone.parts["weights"] == alone.trained * 4
        assert held.parts["optimizer"] == alone.parts["optimizer"] and held.checkpoint == alone.checkpoint


def test_more_tokens_more_activations_and_fewer_with_checkpointing(make):
    one, two = (make(Batch(2, length, 80)).parts for length in (64, 128))
    assert 1.5 < two["activations"] / one["activations"] < 3
    assert one["logits"] == two["logits"] > 0
    assert make(Batch(2, 64, 120)).parts["logits"] == pytest.approx(1.5 * one["logits"], rel=0.02)
    assert make(Batch(2, 128, 80), gradient_checkpointing=True).parts["activations"] < 0.7 * two["activations"]


def test_the_simulated_step_holds_what_autograd_saves(tokenizer):
    """Of an embedding and a head: logits, their log-probabilities and the gradient of one of them, at once."""

    class Head(torch.nn.Module):
        config = Qwen3Config(num_hidden_layers=0)

        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(50, 30, device="meta")
            self.linear = torch.nn.Linear(30, 50, bias=False, device="meta")

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, input_ids, attention_mask, use_cache):
            return type("Output", (), {"logits": self.linear(self.embedding(input_ids))})()

    head = Head()
    head.embedding.requires_grad_(False)
    found = step_memory(head, Batch(4, 10, 40), autocast=None, checkpointing=False, accumulates=False)
    assert found["logits"] == 4 * 10 * 50 * 4 * 3


def test_evaluations_are_counted_and_flat(make, tokenizer):
    """The moment is an evaluation's where that takes more than a step; logits come in pieces of one size."""
    step = Batch(1, 16, 4)
    written, scored = ForwardPass(16, 1000, new_tokens=1000), scored_pass(64, 2048)
    alone, with_both = make(step), make(step, passes=[written, scored])
    assert not alone.evaluates and with_both.evaluates and with_both.batch == written
    assert make(Batch(64, 2048, 64 * 2048), passes=[scored]).batch.rows == 64  # a step of as many keeps everything
    cache = 16 * 2000 * 2 * 2 * 2 * 8 * 4  # rows, tokens, keys and values, layers, heads, of 8 float32 each
    assert with_both.parts["activations"] >= cache and with_both.parts["optimizer"] == alone.parts["optimizer"]
    bare = meta_model(ModelArguments("tiny"), tiny_model(len(tokenizer)).config, tokenizer, [], bf16=False)
    taken = [pass_memory(bare, scored_pass(rows, 2048), autocast=None) for rows in (4, 64)]
    assert taken[0] == taken[1]
    assert sum(taken[1][name] for name in ("activations", "logits")) < 4 * 4 * PIECE


def test_one_process_estimates_where_weights_are_sharded(monkeypatch, tokenizer):
    """The others do not: asking them how many passes they make would wait for ever."""
    monkeypatch.setattr(forward, "_sharded", lambda: True)
    bare = meta_model(ModelArguments("tiny"), tiny_model(len(tokenizer)).config, tokenizer, [], bf16=False)
    assert pass_memory(bare, scored_pass(4, 16), autocast=None)["logits"]


def test_states_of_each_optimizer():
    weights = [torch.empty(100, 200), torch.empty(7)]
    assert optimizer_bytes("adamw_torch_fused", weights) == 8 * 20007
    assert optimizer_bytes("sgd", weights) == 0
    assert optimizer_bytes("adafactor", weights) == 4 * (100 + 200 + 7)
    assert optimizer_bytes("paged_adamw_8bit", weights) == 2 * 20000 + 8 * 7
    assert optimizer_bytes("lion_8bit", weights) == 20000 + 4 * 7
    assert optimizer_bytes("adamw_torch", [weights[0].bfloat16()]) == 4 * 20000


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ({"stage": 2}, Sharding(2, 4)),
        ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, Sharding(2, 4, offloads_optimizer=True)),
        ({"stage": 3, "offload_param": {"device": "nvme"}}, Sharding(3, 4, offloads_weights=True)),
        ({"stage": 1, "offload_optimizer": {"device": "none"}}, Sharding(1, 4)),
    ],
)
def test_sharding_is_read_from_deepspeeds_settings(zero, expected):
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": zero})
    args = SimpleNamespace(deepspeed_plugin=plugin, fsdp=None, world_size=4, bf16=False, fp16=False)
    assert Sharding.of(args) == expected


def test_sharding_is_read_from_fsdps_settings(monkeypatch):
    args = SimpleNamespace(deepspeed_plugin=None, use_cpu=False, world_size=2)
    args.fsdp, args.fsdp_config = True, {"cpu_offload": True}
    assert Sharding.of(args) == Sharding(3, 2, offloads_optimizer=True, offloads_weights=True)
    args.fsdp = None
    assert Sharding.of(args) == Sharding(0, 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate launch does
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    assert Sharding.of(args) == Sharding(2, 2)
    args.use_cpu = True  # where accelerate leaves it out
    assert Sharding.of(args) == Sharding(0, 2)


def test_sharding_divides_what_it_parts(make, monkeypatch):
    def parts(*sharding):
        monkeypatch.setattr(Sharding, "of", lambda args: Sharding(*sharding))
        return make(model={"use_lora": False}, gradient_accumulation_steps=2).parts

    whole, second = parts(), parts(2, 4)
    assert second["optimizer"] == whole["optimizer"] // 4 and second["gradients"] == whole["gradients"] // 4
    assert second["weights"] == whole["weights"] and second["activations"] == whole["activations"]
    assert parts(2, 4, True)["optimizer"] == 0
    assert parts(0, 2)["gradients"] > whole["gradients"]  # DDP's buckets


# Width, layers, vocabulary, and flags.
RUNS = {
    "lora": (384, 10, 16000, []),
    "full": (512, 6, 24000, ["--use_lora", "0"]),
    "accumulated": (384, 6, 16000, ["--use_lora", "0", "--bf16", "0", "--gradient_accumulation_steps", "2"]),
    "packed": (384, 6, 16000, ["--packing", "--max_length", "512", "--bf16", "0"]),
    "evaluated": (256, 4, 40000, ["--bf16", "0", "--eval_files", "long={tmp}/long.jsonl"]),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("lora", "evaluated"))) for name in RUNS]
)
def test_the_estimate_is_within_a_quarter_of_the_peak(tokenizer, tmp_path, name):
    width, layers, vocabulary, flags = RUNS[name]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=48,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"input": TEXT[i % 5] * 5, "target": TEXT[(i + 1) % 5] * 4} for i in range(32)]
    data = write_jsonl(tmp_path / "train.jsonl", rows)
    command = [sys.executable, "scripts/sft.py", "--model_name_or_path", tmp_path / "model", "--train_file", data]
    command += ["--output_dir", tmp_path / "run", "--report_to", "none", "--per_device_train_batch_size", "4"]
    write_jsonl(tmp_path / "long.jsonl", [{"text": "".join(TEXT) * 40}] * 4)  # windows of 2,048 tokens, eight a batch
    command += ["--max_steps", "2", "--save_strategy", "no", *(flag.format(tmp=tmp_path) for flag in flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    memory = json.loads((tmp_path / "run" / "metrics.json").read_text())["memory"]
    assert memory["peak"] > 300e6
    assert abs(memory["error"]) < 0.25, memory
    line = re.search(r"^memory: estimated .*, peak .* \((.*)\)$", done.stdout, re.MULTILINE)
    assert line[1] in ("within", f"{memory['error'] * 100:+.0f} %")


def test_an_estimate_is_a_range_where_kernels_are_compiled_for_each_shape(make):
    few = make(Batch(1, 16, 4), use_cpu=True, bf16=True)
    assert few.most == few.peak + 1_000_000_000
    single = make(Batch(1, 16, 4), use_cpu=True, bf16=False)
    assert single.most == single.peak


@pytest.mark.parametrize(
    ("peak", "line"),
    [(500, "500 kB (within)"), (200, "200 kB (+50 %)"), (1000, "1 MB (-20 %)")],
)
def test_a_peak_beside_a_range(monkeypatch, peak, line):
    measured = PeakMemory(Memory({"weights": 300_000}, 1, 1, {}, 0, Batch(1, 1, 1), kernels=500_000))
    measured._readable, measured._before, measured._on_accelerator = True, 0, False
    monkeypatch.setattr(peak_memory, "_resident", lambda field: peak * 1000)
    assert describe(measured.read()) == f"memory: estimated 300 kB to 800 kB, peak {line}"
