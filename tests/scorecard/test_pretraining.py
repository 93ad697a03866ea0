"""Rows 5 to 7 of the reliability scorecard: pretraining that is killed and goes on, from shards and from streams."""

import json
import os
import random
import signal

import numpy as np
import pytest

from conftest import same, weights, write_jsonl

SCRIPT = "scripts/pretrain.py"
# Writes down the first tokens of each document that a step learned from, by step, and may end the process at one.
WATCH = """
import json, os, signal
from hf_recipes.stages import pretrain
from hf_recipes.data.pretraining import document_stream, streamed_blocks
document_stream.CHUNK_BYTES, streamed_blocks.WINDOW_TOKENS = 3000, 512
step = pretrain.PretrainTrainer.training_step
def watched(self, model, inputs, *args, **kwargs):
    rows = [[int(s), i.tolist()] for s, i, t in zip(inputs["source"], inputs["input_ids"], inputs["tokens"]) if t]
    with open("{log}", "a") as file:
        file.write(json.dumps([self.state.global_step, rows]) + chr(10))
    if self.state.global_step == {kill}:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, model, inputs, *args, **kwargs)
pretrain.PretrainTrainer.training_step = watched
"""


def watch(log, kill=-1) -> str:
    return WATCH.replace("{log}", str(log)).replace("{kill}", str(kill))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two sources; each document begins with a number of its own."""
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for source, count in (("news", 120), ("wiki", 60)):
        for part in range(3):
            rows = [
                {"text": f"第{source}{part}-{number}篇：" + "今天天气很好，我们去公园散步吧！" * draw.randint(1, 8)}
                for number in range(count // 3)
            ]
            write_jsonl(folder / source / f"part-{part}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def dropout_model(tokenizer, tmp_path_factory):
    """A model whose weights depend on the random state as well."""
    from conftest import tiny_model

    folder = tmp_path_factory.mktemp("models") / "dropout"
    model = tiny_model(len(tokenizer))
    model.config.attention_dropout = 0.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(model, corpus, **more):
    values = {
        "model_name_or_path": model,
        "train_file": corpus,
        "report_to": "none",
        "block_size": 64,
        "per_device_train_batch_size": 2,
        "save_steps": 5,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "bf16": False,
        "cache_dir": corpus.parent / "cache",
        **more,
    }
    return [word for name, value in values.items() for word in (f"--{name}", value)]


WAYS = {"stored": {"max_steps": 60}, "streamed": {"max_steps": 60, "streaming": True}}


CASES = [(way, workers, world) for way in WAYS for workers in (0, 2) for world in (1, 2)]
USUAL = [("stored", 2, 1), ("streamed", 0, 1), ("streamed", 2, 2)]  # the others with make check-slow


@pytest.mark.parametrize(
    ("way", "workers", "world"),
    [pytest.param(*case, marks=[] if case in USUAL else pytest.mark.slow) for case in CASES],
)
def test_row_05_killed_and_resumed_in_a_later_epoch(forks, dropout_model, corpus, tmp_path, way, workers, world):
    """One epoch of wiki is about twenty steps: the kill is in its second or third."""
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"news": 0.4, "wiki": 0.6}))
    argv = settings(dropout_model, corpus, mixture=policy, dataloader_num_workers=workers, **WAYS[way])
    argv[argv.index("--max_steps") + 1] = 60 // world
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run = forks.run(*argv, "--output_dir", whole, script=SCRIPT, world=world, before=watch(tmp_path / "w"))
    assert run.code == 0, run.err
    at = random.Random(f"{way}{workers}{world}").randint(40 // world, 58 // world)
    run = forks.run(*argv, "--output_dir", cut, script=SCRIPT, world=world, before=watch(tmp_path / "c", at))
    assert run.code != 0
    argv += ["--output_dir", cut, "--resume_from_checkpoint", "true"]
    run = forks.run(*argv, script=SCRIPT, world=world, before=watch(tmp_path / "r"))
    assert run.code == 0 and "resuming from" in run.out, run.err
    assert same(weights(whole), weights(cut))
    figures = [json.loads((folder / "metrics.json").read_text())["train"] for folder in (whole, cut)]
    for name in ("loss", "tokens", "epoch", "sources"):
        assert figures[0][name] == figures[1][name]
    assert figures[0]["sources"]["wiki"]["epochs"] > 2


def labelled(log, until=None) -> list:
    """The blocks that were learned from in the steps before `until`, in order."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [row for step, rows in lines if until is None or step < until for row in rows]


@pytest.mark.parametrize(
    ("way", "before", "after"),
    [
        ("stored", 2, 1),
        ("streamed", 1, 2),
        pytest.param("stored", 1, 2, marks=pytest.mark.slow),
        pytest.param("streamed", 2, 1, marks=pytest.mark.slow),
    ],
)
def test_row_06_the_same_documents_at_another_width(forks, model_dir, corpus, tmp_path, way, before, after):
    """Killed, and going on with another number of processes: the same blocks as without, none lost and none twice."""
    argv = settings(model_dir, corpus, gradient_accumulation_steps=2)
    argv += ["--streaming", "True", "--max_steps", 24] if way == "streamed" else []
    run = forks.run(*argv, "--output_dir", tmp_path / "one", script=SCRIPT, before=watch(tmp_path / "whole"))
    assert run.code == 0, run.err
    argv += ["--output_dir", tmp_path / "cut"]
    run = forks.run(*argv, script=SCRIPT, world=before, before=watch(tmp_path / "cut.log", 7))
    assert run.code != 0
    argv += ["--resume_from_checkpoint", "true"] + ["--max_steps", 12] * (way == "streamed")
    run = forks.run(*argv, script=SCRIPT, world=after, before=watch(tmp_path / "rest"))
    assert run.code == 0, run.err
    assert f"{before} processes wrote checkpoint-5, and there are {after}" in run.out
    assert "not be equal bit for bit" in run.out
    found = labelled(tmp_path / "cut.log", until=5) + labelled(tmp_path / "rest")
    assert len(found) == 5 * 4 * before + 7 * 4 * after if way == "streamed" else len(labelled(tmp_path / "whole"))
    assert sorted(found) == sorted(labelled(tmp_path / "whole")[: len(found)])


def test_row_07_resuming_does_not_read_what_was_learned(tokenizer, tmp_path):
    """The first block after a resume takes as little work at the end of a long stream as at its beginning."""
    from hf_recipes.data.pretraining import streamed_blocks
    from hf_recipes.data.pretraining.corpora import find_corpora, open_reader
    from hf_recipes.data.pretraining.document_encoder import DocumentEncoder
    from hf_recipes.data.pretraining.packing import Blocking
    from hf_recipes.data.pretraining.parallel_tokenizer import Tokenization

    for part in range(20):
        write_jsonl(
            tmp_path / f"part-{part:02d}.jsonl", [{"text": f"{part} {n} 今天天气很好。" * 9} for n in range(200)]
        )
    [corpus] = find_corpora([f"all={tmp_path}"], sniff=True)
    readers = [open_reader(file) for file in corpus.files]
    encoder = DocumentEncoder(tokenizer)

    class Counted(Tokenization):
        texts = 0

        def submit(self, texts, turn):
            self.texts += len(texts)
            return super().submit(texts, turn)

    def stream():
        return streamed_blocks.StreamedBlocks("all", readers, Blocking(256), Counted(encoder), seed=1)

    one, states = stream(), []
    for _ in range(3000):
        states.append(json.dumps(one.state()))
        one.next()
    after = one.next()
    work = []
    for state in (states[5], states[-1], json.dumps({**one.state(), "given": one.state()["given"] - 1})):
        other = stream()
        other.start_at(json.loads(state))
        found = other.next()
        work.append(other.tokenization.texts)
    assert np.array_equal(found.ids, after.ids)
    assert max(work) <= 3 * min(work)  # at most the chunks of one window, wherever that is


@pytest.fixture(scope="module")
def alone(forks, model_dir, corpus, tmp_path_factory):
    """One process, batches of eight."""
    argv = settings(model_dir, corpus, per_device_train_batch_size=8, max_steps=8, save_steps=4)
    output = tmp_path_factory.mktemp("alone")
    run = forks.run(*argv, "--output_dir", output, "--overwrite_output_dir", script=SCRIPT)
    assert run.code == 0, run.err
    return output, run.losses()


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--gradient_accumulation_steps", 2, "--per_device_train_batch_size", 2], id="DDP, accumulated"),
        pytest.param(["--deepspeed", "configs/deepspeed/zero2.json"], id="ZeRO-2", marks=pytest.mark.slow),
        pytest.param(["--deepspeed", "configs/deepspeed/zero3.json", "--streaming", "True"], id="ZeRO-3, streamed"),
    ],
)
def test_row_17_two_processes_learn_what_one_does(forks, model_dir, corpus, alone, tmp_path, flags):
    """The same losses and weights; saved so that plain transformers loads them."""
    from transformers import AutoModelForCausalLM

    if "--streaming" in flags:  # has an order of its own: against one process that streams
        argv = settings(model_dir, corpus, per_device_train_batch_size=8, max_steps=8, streaming=True, save_steps=4)
        one = forks.run(*argv, "--output_dir", tmp_path / "one", script=SCRIPT)
        alone = tmp_path / "one", one.losses()
    argv = settings(model_dir, corpus, per_device_train_batch_size=4, max_steps=8, save_steps=4)
    run = forks.run(*argv, "--output_dir", tmp_path / "run", *flags, script=SCRIPT, world=2)
    assert run.code == 0, run.err
    assert run.losses() == pytest.approx(alone[1], abs=1e-3)
    own, expected = weights(tmp_path / "run"), weights(alone[0])
    assert all(np.allclose(own[name], expected[name], atol=2e-4) for name in expected)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").num_parameters() > 0


def test_row_08_a_signal_to_the_whole_group(forks, model_dir, corpus, tmp_path):
    """Slurm and timeout send SIGTERM to the workers that load data too."""
    argv = settings(model_dir, corpus, max_steps=2000, dataloader_num_workers=2, save_strategy="no")
    before = "import os; os.setpgrp()"
    run = forks.start(*argv, "--output_dir", tmp_path / "run", script=SCRIPT, before=before)
    run.wait_for("step 3/")
    os.killpg(run.pids[0], signal.SIGTERM)
    assert run.wait().code == 0, run.err
    assert "resume with the same command and --resume_from_checkpoint true" in run.out
    assert list((tmp_path / "run").glob("checkpoint-*"))
