"""Runs on folders that have tokenizer.model alone: what is trained with is what is saved."""

import pytest
import torch
from old_checkpoints import appended, sentencepiece_model
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from conftest import write_jsonl
from hf_recipes.models.tokenizers.pretokenizers import mixed_texts

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LIGHT = ["--report_to", "none", "--max_steps", "1", "--max_target_length", "8"]


def write_model(folder, written: bytes) -> SentencePieceProcessor:
    torch.manual_seed(0)
    processor = SentencePieceProcessor(model_proto=written)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(processor), **SIZES)).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(written)
    return processor


@pytest.mark.parametrize("written", [sentencepiece_model(True, ()), appended()], ids=["fast", "slow"])
def test_sft_saves_the_tokenizer_that_it_trains_with(sft, pairs, tmp_path, written):
    original = write_model(tmp_path / "model", written)
    model = ["--model_name_or_path", tmp_path / "model", "--chat_template", "llama2"]
    files = ["--train_file", pairs / "train.json", "--validation_file", pairs / "dev.json"]
    code, out, err = sft(*model, *files, "--output_dir", tmp_path / "run", *LIGHT)
    assert code == 0, err
    assert "the tokenizer has no pad token; <unk> pads now" in out
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert saved(mixed_texts(), add_special_tokens=False)["input_ids"] == original.encode(mixed_texts())
    assert (saved.pad_token, saved.eos_token) == ("<unk>", "</s>")
    assert saved.apply_chat_template([{"role": "user", "content": "问"}])["input_ids"][0] == original.bos_id()


@pytest.mark.parametrize("name", ["sft.py", "pretrain.py"])
def test_without_an_end_token_a_flag_names_it(script, tmp_path, name):
    write_model(tmp_path / "model", sentencepiece_model(True, (), eos_id=-1, pad_id=2))
    form = {"text": "问答"} if name == "pretrain.py" else {"instruction": "问", "output": "答"}
    write_jsonl(tmp_path / "rows.jsonl", [form] * 80)
    flags = ["--model_name_or_path", tmp_path / "model", "--train_file", tmp_path / "rows.jsonl", "--report_to", "none"]
    flags += ["--max_steps", "1", "--output_dir", tmp_path / "run"]
    flags += ["--block_size", "16"] if name == "pretrain.py" else ["--chat_template", "plain"]
    code, _, err = script(name, *flags)
    assert code and ("give --eos_token" if name == "sft.py" else "name one with --document_end_token") in err
    code, out, err = script(name, *flags, "--eos_token", "<s>")
    assert code == 0, err
    assert AutoTokenizer.from_pretrained(tmp_path / "run").eos_token == "<s>" and "no end token" not in out
