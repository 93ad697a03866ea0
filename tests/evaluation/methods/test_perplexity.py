import math
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import processors

from conftest import TEXT, build_tokenizer, conversation, tiny_model, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.examples import load_examples
from hf_recipes.evaluation.methods.perplexity import NLL
from hf_recipes.models.inference.batch_options import BatchOptions


def texts(folder, rows, name="texts.jsonl"):
    return load_examples([str(write_jsonl(folder / name, rows))], form="text")


def chats(folder, conversations):
    rows = [{"messages": messages} for messages in conversations]
    return load_examples([str(write_jsonl(folder / "chats.jsonl", rows))])


def token_nats(model, ids, context):
    """The reference: each token but the first by a forward pass of its own over the `context(i)` tokens before it."""
    found = {}
    with torch.no_grad():
        for i in range(1, len(ids)):
            before = ids[i - context(i) : i]
            found[i] = -model.eval()(torch.tensor([before])).logits[0, -1].log_softmax(-1)[ids[i]].item()
    return found


def everything(method, model, size=8):
    return method.compute(model, range(len(method)), BatchOptions(batch_size=size))


@pytest.mark.parametrize(("length", "stride"), [(16, 8), (16, 15), (10, 1), (7, 3), (500, None)])
def test_windows_count_every_token_once_with_the_context_they_say(tokenizer, tmp_path, length, stride):
    model = tiny_model(len(tokenizer))
    method = NLL(texts(tmp_path, [{"text": text} for text in TEXT[:3]]), tokenizer, max_length=length, stride=stride)
    stride = stride or 250

    def context(i):
        """All tokens in the first window; then from where the first window that holds the token begins."""
        return i if i < length else i - (i - length) // stride * stride - stride

    nats = tokens = 0
    for text in TEXT[:3]:
        ids = tokenizer(text)["input_ids"]
        reference = token_nats(model, ids, context)
        assert all(length - stride <= context(i) < length for i in reference if i >= length)
        nats, tokens = nats + sum(reference.values()), tokens + len(reference)
    for size in (1, 3, 64):
        summary = method.summarise(everything(method, model, size))
        assert summary["tokens"] == tokens
        assert summary["loss"] == pytest.approx(nats / tokens, abs=1e-5)
        assert summary["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)


@pytest.mark.parametrize("length", [500, 16])
def test_a_prefix_makes_every_token_count(tokenizer, tmp_path, length):
    """As lm-eval's loglikelihood_rolling: the sum of log p(token | prefix, tokens before), from the first token on."""
    model = tiny_model(len(tokenizer))
    rows = texts(tmp_path, [{"text": text} for text in [*TEXT[:3], "药物"]])
    plain = NLL(rows, tokenizer, max_length=length, max_drop_ratio=0.5)
    assert "the first token of each text is not counted" in plain.note
    for name, token in (("eos", 2), ("<|endoftext|>", 0)):
        nats = tokens = 0
        for text in [*TEXT[:3], "药物"]:
            ids = [token, *tokenizer(text)["input_ids"]]
            half = length // 2
            found = token_nats(
                model, ids, lambda i, half=half: i if i < length else i - (i - length) // half * half - half
            )
            nats, tokens = nats + sum(found.values()), tokens + len(ids) - 1
        method = NLL(rows, tokenizer, max_length=length, prefix_token=name)
        summary = method.summarise(everything(method, model))
        assert summary["tokens"] == tokens and summary["loss"] == pytest.approx(nats / tokens, abs=1e-5)
        assert summary["characters"] == sum(map(len, [*TEXT[:3], "药物"]))
        bits = nats / math.log(2) / summary["characters"]
        assert summary["bits_per_character"] == pytest.approx(bits, rel=1e-5)
        assert f"the first after {tokenizer.decode([token])}" in method.note
    for name in ("bos", "<|none|>"):
        with pytest.raises(UserError, match=rf"--nll_prefix_token {re.escape(name)}: the tokenizer has no such token"):
            NLL(rows, tokenizer, prefix_token=name)


def test_a_prefix_takes_the_place_of_the_tokenizers_own(tmp_path):
    own = build_tokenizer(bos_token="<|im_start|>")
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    rows, model = texts(tmp_path, [{"text": TEXT[0]}]), tiny_model(len(own))
    losses = [
        (method := NLL(rows, own, prefix_token=name)).summarise(everything(method, model))
        for name in (None, "bos", "eos")
    ]
    assert losses[0] == losses[1] and losses[0]["tokens"] == losses[2]["tokens"] != 0
    ids = [2, *own(TEXT[0], add_special_tokens=False)["input_ids"]]
    assert losses[2]["loss"] * (len(ids) - 1) == pytest.approx(
        sum(token_nats(model, ids, lambda i: i).values()), abs=1e-4
    )


def test_characters_are_those_of_the_counted_tokens(tokenizer, slow_tokenizer, tmp_path):
    """Without a BOS the first token is not counted, nor are its characters; with one, all are."""
    rows = [{"text": text} for text in (*TEXT, " 空 格", "𠮷野家")]
    bos = build_tokenizer()
    bos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    whole = sum(len(row["text"]) for row in rows)
    firsts = [tokenizer.decode(tokenizer(row["text"])["input_ids"][:1]).rstrip("\ufffd") for row in rows]
    assert firsts[-1] == "" and any(firsts)
    for own, expected in ((bos, whole), *((t, whole - sum(map(len, firsts))) for t in (tokenizer, slow_tokenizer))):
        method = NLL(texts(tmp_path, rows), own, max_length=12, stride=5)
        windows = method._windows
        assert sum(window.characters for window in windows) == expected
        assert all(window.characters >= 0 for window in windows)
        ids = sum(len(tokenizer(row["text"])["input_ids"]) for row in rows)
        counted = sum(window.end - window.scored for window in windows)
        assert counted == (ids if own is bos else ids - len(rows))

    model = tiny_model(len(tokenizer))
    summary = NLL(texts(tmp_path, rows), bos).summarise(records := everything(NLL(texts(tmp_path, rows), bos), model))
    assert summary["characters"] == whole
    assert summary["bits_per_character"] == pytest.approx(sum(r["nats"] for r in records) / math.log(2) / whole)


def test_answers_count_as_training_masks_them(tokenizer, tmp_path):
    model = tiny_model(len(tokenizer))
    talks = [conversation("你好", "年龄"), conversation("性别？", "女", "那药物呢？", "没有，不过敏")]
    for train_on in ("all", "last"):
        method = NLL(chats(tmp_path, talks), tokenizer, train_on=train_on)
        expected, counts, characters = [], [], []
        for talk in talks:
            ids, labelled, answers = [], [], []
            for message in talk:
                head = tokenizer(f"<|im_start|>{message['role']}\n")["input_ids"]
                body = tokenizer(f"{message['content']}<|im_end|>")["input_ids"]
                if message["role"] == "assistant":
                    labelled.append(range(len(ids) + len(head), len(ids) + len(head) + len(body)))
                    answers.append(message["content"])
                ids += [*head, *body, *tokenizer("\n")["input_ids"]]
            keep = slice(None) if train_on == "all" else slice(-1, None)
            reference = token_nats(model, ids, lambda i: i)
            positions = [i for turn in labelled[keep] for i in turn]
            expected.append(sum(reference[i] for i in positions))
            counts.append(len(positions))
            characters.append(sum(map(len, answers[keep])))
        for size in (1, 2):
            records = everything(method, model, size)
            assert [record["nats"] for record in records] == pytest.approx(expected, abs=1e-4)
            assert [record["tokens"] for record in records] == counts
            assert [record["characters"] for record in records] == characters


def test_sums_by_file_and_source(tokenizer, tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": "年龄性别", "source": "甲"}, {"text": TEXT[0], "source": "乙"}])
    two = write_jsonl(tmp_path / "two.jsonl", [{"text": TEXT[1], "source": "甲"}, {"text": TEXT[2]}])
    method = NLL(load_examples([str(one), str(two)], form="text"), tokenizer, max_length=16)
    records = everything(method, tiny_model(len(tokenizer)))
    summary = method.summarise(records)

    def loss(*locations):
        own = [record for record in records if record["location"] in locations]
        return sum(record["nats"] for record in own) / sum(record["tokens"] for record in own)

    assert summary["loss/甲"] == pytest.approx(loss(f"{one}:1", f"{two}:1"))
    assert summary["loss/one.jsonl"] == pytest.approx(loss(f"{one}:1", f"{one}:2"))
    assert summary["loss/two.jsonl"] == pytest.approx(loss(f"{two}:1", f"{two}:2"))
    assert {key for key in summary if key.startswith("loss/")} == {
        f"loss/{n}" for n in ("甲", "乙", "one.jsonl", "two.jsonl")
    }


def test_rows_that_cannot_be_scored_are_in_the_ledger(tokenizer, tmp_path):
    rows = [{"text": TEXT[0]}, {"text": "a"}, {"text": " "}]
    method = NLL(texts(tmp_path, rows), tokenizer, max_drop_ratio=1)
    assert dict(method.ledger.totals) == {"read": 3, "kept": 1, "dropped": 2}
    assert {status for _, status in method.ledger.reasons} == {
        "dropped: no token has another before it",
        "dropped: empty text",
    }
    with pytest.raises(UserError, match="2 of 3 rows cannot be used"):
        NLL(texts(tmp_path, rows), tokenizer)
    with pytest.raises(UserError, match="stride 8: expected 1 to 7"):
        NLL(texts(tmp_path, rows[:1]), tokenizer, max_length=8, stride=8)
    talks = [conversation("你好", "年龄"), conversation("你好", "a" * 40)]
    method = NLL(chats(tmp_path, talks), tokenizer, max_length=30, max_drop_ratio=0.5)
    assert len(method) == 1 and [status for _, status in method.ledger.reasons] == ["dropped: longer than 30 tokens"]


def test_adapter_and_mode(tokenizer, tmp_path):
    base = tiny_model(len(tokenizer))
    method = NLL(texts(tmp_path, [{"text": text} for text in TEXT]), tokenizer, max_length=16)
    plain = everything(method, base.eval())
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], lora_dropout=0.5)).train()
    state = torch.get_rng_state()
    assert everything(method, model) == plain
    assert model.training and torch.equal(torch.get_rng_state(), state)
