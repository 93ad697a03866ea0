"""Which methods are used on which files, and what is said of files that cannot be used before a model is loaded."""

import pytest

from conftest import ROOT, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.evaluation.registry import EvaluationArguments, build_methods, form_of
from hf_recipes.evaluation.reports.tables import shown
from hf_recipes.models.inference.decoding import Decoding

SAMPLES = ROOT / "datasets"
FORMS = {
    "eval/single_choice.jsonl": "choice",
    "eval/generation.jsonl": "content",
    "preference/train.jsonl": "preference",
    "pretrain/wiki.jsonl": "text",
    "promptcblue/dev.json": "messages",
    "alpaca/train.json": "messages",
}


def build(tokenizer, files, methods=None, **settings):
    named = [f"{name}={path}" for name, path in files.items()]
    arguments = EvaluationArguments(eval_methods=methods, eval_files=named, **settings)
    return build_methods(arguments, tokenizer, decoding=Decoding(max_new_tokens=4), max_length=4096)


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_files(name):
    assert form_of(str(SAMPLES / name)) == FORMS[name]


def test_each_method_is_used_on_the_files_that_it_fits(tokenizer):
    files = {name.split("/")[0] + str(index): SAMPLES / name for index, name in enumerate(FORMS)}
    found = {name: method.name for name, method in build(tokenizer, files).items()}
    assert found == {
        "eval0": "single_choice",
        "eval1": "generation",
        "preference2": "pair_accuracy",
        "pretrain3": "nll",
        "promptcblue4": "generation",
        "alpaca5": "generation",
    }
    methods = build(tokenizer, {"dev": SAMPLES / "promptcblue" / "dev.json"}, ["rouge", "accuracy", "nll"])
    assert {name: method.name for name, method in methods.items()} == {"dev_answers": "generation", "dev_nll": "nll"}
    assert methods["dev_answers"].scores == ("rouge", "accuracy")


def test_the_benchmarks_score_and_the_lenient_one_are_reported(tokenizer):
    [method] = build(tokenizer, {"dev": SAMPLES / "promptcblue" / "dev.json"}, ["promptcblue"]).values()
    records = [
        {"location": p.location, "prediction": p.reference, "reference": p.reference, "choices": None, "meta": p.meta}
        for p in method.prompts
    ]
    for record in records:
        record["prediction"] += "。"  # which `parse` takes for nothing, and the benchmark for another class
    found = method.summarise(records)
    assert found == {
        "promptcblue": 0,
        "promptcblue_lenient": 1,
        "promptcblue/CHIP-CTC": 0,
        "promptcblue_lenient/CHIP-CTC": 1,
    }
    assert [shown(f"dev_{name}") for name in found][:2] == [("dev", "promptcblue"), ("dev", "promptcblue_lenient")]


@pytest.mark.parametrize(
    ("methods", "rows", "message"),
    [
        (["rouge"], [{"content": "春天"}], "its rows are of the form content, for generation; add one of these to"),
        (["rouge", "single_choice"], [{"input": "问", "target": "答"}], "single_choice: none of --eval_files has rows"),
        (["rouge"], [{"input": "问", "target": ""}], "no reference to compare answers with, which rouge needs"),
        (["accuracy"], [{"input": "问", "target": "答"}], "no answer_choices, over which accuracy is counted"),
        (
            ["accuracy"],
            [{"input": "问", "target": "答", "answer_choices": ["甲", "乙"]}],
            "rows.jsonl:1: the reference is not among the answer_choices",
        ),
        (None, [{"question": "哪个？", "answer": "A"}], "rows.jsonl:1: no options found; write each on a line"),
        (None, [{"question": "哪个？\nA. 甲\nB. 乙", "answer": "C"}], "the answer 'C' is not among the options A, B"),
        (["promptcblue"], [{"input": "问", "target": "答"}], "rows without task_dataset"),
    ],
)
def test_files_that_cannot_be_used(tokenizer, tmp_path, methods, rows, message):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError) as raised:
        build(tokenizer, {"dev": path}, methods)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_methods": ["rogue"]}, "--eval_methods rogue: no such method (did you mean rouge?)"),
        ({"eval_files": ["dev.json"]}, "--eval_files dev.json: expected name=path"),
        ({"eval_files": ["a/b=dev.json"]}, "expected name=path"),
        ({"eval_files": ["a=1.json", "a=2.json"]}, "the name a is given twice"),
        ({"few_shot": -1}, "--few_shot -1"),
    ],
)
def test_flags_that_cannot_be_used(settings, message):
    with pytest.raises(ValueError) as raised:
        EvaluationArguments(**settings)
    assert message in str(raised.value)


def test_few_shot_examples_without_choice_questions(tokenizer):
    with pytest.raises(UserError, match="of which --eval_files has none"):
        build(tokenizer, {"wiki": SAMPLES / "pretrain" / "wiki.jsonl"}, few_shot_file="examples.jsonl")


def test_a_prefix_goes_to_every_text_that_nll_scores(tokenizer, capsys):
    wiki = {"wiki": SAMPLES / "pretrain" / "wiki.jsonl"}
    plain, prefixed = (build(tokenizer, wiki, **more)["wiki"] for more in ({}, {"nll_prefix_token": "eos"}))
    assert len(plain) == len(prefixed) and prefixed.note.startswith("every token of a text is counted")
    assert "wiki: the first token of each text is not counted" in capsys.readouterr().out
    with pytest.raises(UserError, match="--nll_prefix_token is put before texts that nll scores, of which"):
        build(tokenizer, {"pairs": SAMPLES / "preference" / "train.jsonl"}, nll_prefix_token="eos")
