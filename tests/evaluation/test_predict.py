import json

import pytest

from conftest import write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.prompts import PromptReader
from hf_recipes.evaluation import over_file, predict
from hf_recipes.evaluation.resumable_output import Results
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import Continuation


@pytest.mark.parametrize("done", [1, 7, 33, 40])
def test_what_is_left_is_computed_in_the_batches_of_a_whole_run(tokenizer, tmp_path, monkeypatch, done):
    """So that not even rounding differs; and what is drawn for a row depends on its place in the file."""
    rows = [{"input": "问" * (1 + i * 7 % 13), "target": "" if i % 9 else "答"} for i in range(50)]
    rows[5]["input"] = ""
    reader = PromptReader([str(write_jsonl(tmp_path / "rows.jsonl", rows))], tokenizer)
    formed: list[list[int]] = []

    def answer(model, tokenizer, prompts, batches, decoding, *, stop_ids, marks, keys):
        for batch in batches:
            assert all(len(prompts[location]) > len(rows[keys[location]]["input"]) for location in batch)
            formed.append([keys[location] for location in batch])
            yield batch, [Continuation(f" {keys[location]} ", 1, True, []) for location in batch]

    monkeypatch.setattr(predict, "continue_batches", answer)
    monkeypatch.setattr(over_file, "WINDOW", 4)

    def run(path) -> list[list[int]]:
        formed.clear()
        with Results(path, {}, {}) as results:
            over_file.write_rows(None, reader, predict.Predict(reader, Decoding(), 4, "said"), results, 4, 50)
            assert results.count == 50
        return list(formed)

    whole = run(tmp_path / "whole.jsonl")
    problem = f"{tmp_path / 'rows.jsonl'}:6: empty prompt"
    assert sorted(i for batch in whole for i in batch) == [i for i in range(50) if i != 5]
    lines = (tmp_path / "whole.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    added = [{"said": str(i)} for i in range(50)]
    added[5] = {"said": None, "said_problem": problem}
    assert [json.loads(line) for line in lines] == [{**row, **more} for row, more in zip(rows, added, strict=True)]
    (tmp_path / "broken").mkdir()
    path = tmp_path / "broken" / "rows.jsonl"
    path.write_text("".join(lines[:done]), encoding="utf-8")
    (path.parent / "generation_config.json").write_text('{"output_file": "rows.jsonl"}')
    left = run(path)
    assert left == [batch for batch in whole if max(batch) >= done]
    assert path.read_text(encoding="utf-8") == "".join(lines)


def test_what_follows_a_broken_line_is_written_again(tmp_path, capfd):
    path = tmp_path / "rows.jsonl"
    with Results(path, {"seed": 1}, {}) as results:
        results.append([{"a": 1}, {"a": 2}, {"a": 3}])
    path.write_bytes(path.read_bytes().replace(b'{"a": 2}', b"\0\0\0\0\0\0\0\0"))
    with Results(path, {"seed": 1}, {}) as results:
        assert results.count == 1
        results.append([{"a": "二"}])
    assert "rows.jsonl:2: this line was cut short" in capfd.readouterr().out
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n{"a": "二"}\n'


def test_a_full_disk_is_told_in_one_sentence(tmp_path):
    path = tmp_path / "rows.jsonl"
    message = r"rows\.jsonl: cannot be written \(No space left on device\)"
    with pytest.raises(UserError, match=message), Results(path, {}, {}) as results:
        results._file.close()
        results._file = open("/dev/full", "wb")  # noqa: SIM115
        results.append([{"a": 1}])


def test_thoughts_have_columns_of_their_own_and_cut_ones_are_counted(tokenizer, tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"input": "问"}, {"input": "再问"}, {"input": "又问"}])
    reader = PromptReader([str(path)], tokenizer)
    written = [
        Continuation("答", 9, True, [], thoughts="想"),
        Continuation("", 9, False, [], thoughts="一直想", cut_while_thinking=True),
        Continuation("直接答", 3, True, []),
    ]

    def answer(model, tokenizer, prompts, batches, decoding, *, stop_ids, marks, keys):
        assert marks == reader.marks
        yield from ((batch, [written[keys[index]] for index in batch]) for batch in batches)

    monkeypatch.setattr(predict, "continue_batches", answer)
    output = tmp_path / "out.jsonl"
    with Results(output, {}, {}) as results:
        over_file.write_rows(None, reader, predict.Predict(reader, Decoding(), 4, "said"), results, 4, 3)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"input": "问", "said": "答", "said_reasoning_content": "想", "said_cut_while_thinking": False},
        {"input": "再问", "said": "", "said_reasoning_content": "一直想", "said_cut_while_thinking": True},
        {"input": "又问", "said": "直接答"},
    ]
    assert predict.count_cut(output, "said") == (1, 3)
    target = predict.write_submission(output, "said").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in target] == [
        {"input": "问", "target": "答"},
        {"input": "再问", "target": ""},
        {"input": "又问", "target": "直接答"},
    ]
