"""The random sample that a vocabulary is learned from."""

import json
import random

import pytest

from conftest import write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.vocabulary.arguments import TextArguments
from hf_recipes.vocabulary.sample import Reservoir, read_sample


def sources(folder) -> list[str]:
    for name, count in (("a", 400), ("b", 100)):
        write_jsonl(folder / f"{name}.jsonl", [{"text": f"{name}文本{i:04d}" * 10} for i in range(count)])
    return [str(folder / "a.jsonl"), f"second={folder / 'b.jsonl'}"]


def test_a_reservoir_holds_those_with_the_smallest_keys():
    rng = random.Random(0)
    keyed = [(rng.random(), f"{i:03d}") for i in range(500)]
    reservoir = Reservoir(30)
    for key, text in keyed:
        reservoir.add(key, "s", text)
    assert set(reservoir.by_source()["s"]) == {text for _, text in sorted(keyed)[:10]}
    assert reservoir.by_source()["s"] == sorted(reservoir.by_source()["s"]) and reservoir.size == 30
    assert reservoir.dropped == 490 * 3


def test_one_text_larger_than_the_limit_is_held():
    reservoir = Reservoir(3)
    reservoir.add(0.5, "s", "four")
    assert reservoir.by_source() == {"s": ["four"]}


def test_sources_are_sampled_by_their_size(tmp_path):
    sample = read_sample(TextArguments(train_file=sources(tmp_path), max_bytes=20_000, held_out_share=0.0))
    counts = {name: len(texts) for name, texts in sample.train.items()}
    assert sum(counts.values()) == 20_000 // 110 and 2.5 < counts["a"] / counts["second"] < 6
    assert not sample.held_out


def test_sources_are_sampled_by_a_mixture(tmp_path):
    policy = tmp_path / "mixture.json"
    policy.write_text(json.dumps({"by": "bytes", "sources": {"a": 0.25, "second": 0.75}}), encoding="utf-8")
    settings = {"train_file": sources(tmp_path), "max_bytes": 8800, "held_out_share": 0.0}
    sample = read_sample(TextArguments(mixture=str(policy), **settings))
    assert {name: len(texts) for name, texts in sample.train.items()} == {"a": 20, "second": 60}
    policy.write_text('{"a": 1.0}', encoding="utf-8")
    with pytest.raises(UserError, match='"by": "bytes"'):
        read_sample(TextArguments(mixture=str(policy), **settings))


def test_held_out_texts_are_not_learned_from(tmp_path):
    sample = read_sample(TextArguments(train_file=sources(tmp_path), held_out_share=0.2))
    for name, texts in sample.held_out.items():
        assert not set(texts) & set(sample.train[name])
    assert 60 < sum(map(len, sample.held_out.values())) < 140
    again = read_sample(TextArguments(train_file=sources(tmp_path), held_out_share=0.2))
    assert again == sample


def test_another_language_is_warned_of(tmp_path, capsys):
    write_jsonl(
        tmp_path / "en.jsonl", [{"text": "this is a text of English words alone"}] * 9 + [{"text": "中文文本一行"}]
    )
    read_sample(TextArguments(train_file=[str(tmp_path / "en.jsonl")]))
    assert "warning: most of these texts are not Chinese (Latin script 90%, Chinese 10%)" in capsys.readouterr().out


def test_token_shards_are_no_texts(tmp_path):
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="tokens of another tokenizer"):
        read_sample(TextArguments(train_file=[str(tmp_path)]))
