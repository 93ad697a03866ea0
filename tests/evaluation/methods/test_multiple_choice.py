import math
import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from chat_templates import tokenizer_of
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from conftest import build_tokenizer, tiny_model, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.evaluation.method import first_not_finite, run_method
from hf_recipes.evaluation.methods.multiple_choice import SingleChoice
from hf_recipes.evaluation.methods.questions import read_question, read_rows
from hf_recipes.metrics.intervals import wilson_interval
from hf_recipes.models.inference import forward
from hf_recipes.models.inference.batch_options import BatchOptions

ROWS = [
    {"question": f"{stem}？\nA. 甲\nB. {stem}\nC. 丙\nD. 丁\n答案：", "answer": answer, "source": source}
    for stem, answer, source in [
        ("年龄", "A", "医"),
        ("疾病和药物，还有睡眠", "B", "医"),
        ("今天天气很好，我们去公园散步吧", "C", "常识"),
        ("The quick brown fox", "D", "常识"),
        ("性别", "A", "医"),
    ]
]
SHOTS = [
    {"question": f"例{number}：哺乳期？\nA. 是\nB. 否\n答案：", "answer": "AB"[number % 2], "source": "例"}
    for number in range(4)
]


def placed(rows, file="data.jsonl"):
    return [{**row, "location": f"{file}:{number}"} for number, row in enumerate(rows, 1)]


@pytest.fixture
def shots(tmp_path):
    return str(write_jsonl(tmp_path / "shots.jsonl", SHOTS))


def question(text, answer="A"):
    return read_question({"question": text, "answer": answer, "location": "x.jsonl:7"})


def build(name, vocabulary):
    torch.manual_seed(1)
    size = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4))
    if name == "sliding":
        return MistralForCausalLM(MistralConfig(**size, **heads, sliding_window=12))
    if name == "mamba":
        return MambaForCausalLM(MambaConfig(**size, state_size=4))
    if name == "hybrid":
        mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4}
        return FalconH1ForCausalLM(FalconH1Config(**size, **heads, **mamba))
    return tiny_model(vocabulary)


def test_options_are_read_as_they_are_written():
    assert question("问\nA. 一\nB. 二").text == "问\nA. 一\nB. 二\n答案："
    assert question("问\nA. 一\nB. 二\n请回答: ").text == "问\nA. 一\nB. 二\n请回答: "
    for form in ("{}．", "{}、", "{}：", "{})", "({})", "（{}）", " {},"):
        text = "问" + "".join(f"\n{form.format(letter)}项" for letter in "ABC")
        assert question(text, "C").letters == "ABC", form
    literal = question(r"若$\nu \neq 0$，则\nA. 1\nB. 2\nC. 3\n答案：", "b.")
    assert (literal.text, literal.letters, literal.answer) == (
        "若$\\nu \\neq 0$，则\nA. 1\nB. 2\nC. 3\n答案：",
        "ABC",
        "B",
    )
    assert question("A：你去吗？\nB：不去。\nB的意思是\nA. 去\nB. 不去\nC. 不知道", "C").letters == "ABC"


def test_ceval_and_cmmlu_files(tmp_path):
    """Columns as the two sets have them; the source is the file's name without its split."""
    (tmp_path / "law_val.csv").write_text(
        'id,question,A,B,C,D,answer,explanation\n0,"宪法,是",母法,子法,私法,公法,A,\n', encoding="utf-8"
    )
    (tmp_path / "nutrition.csv").write_text(
        ",Question,A,B,C,D,Answer\n0,哪个含铁,米,猪肝,糖,水,B\n1,是非题,对,错,,,A\n", encoding="utf-8"
    )
    law, iron, two = (read_question(row) for row in read_rows([str(tmp_path)]))
    assert law.text == "宪法,是\nA. 母法\nB. 子法\nC. 私法\nD. 公法\n答案："
    assert (law.source, law.answer, law.location) == ("law", "A", f"{tmp_path}/law_val.csv:2")
    assert (iron.source, iron.answer, iron.letters) == ("nutrition", "B", "ABCD")
    assert (two.text, two.letters) == ("是非题\nA. 对\nB. 错\n答案：", "AB")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "问\nA. 一\nB. 二"}, "x.jsonl:7: no answer to compare with"),
        ({"question": "问\nA. 一\nB. 二", "answer": " "}, "x.jsonl:7: no answer to compare with"),
        ({"question": "问\nA. 一\nB. 二", "answer": "C"}, "x.jsonl:7: the answer 'C' is not among the options A, B"),
        ({"question": "问 A. 一 B. 二", "answer": "A"}, "x.jsonl:7: no options found"),
        ({"question": "问\nA. 一\nC. 二", "answer": "A"}, "x.jsonl:7: the options are A, C; expected A, B"),
        ({"Question": "问", "A": "一", "B": "", "C": "三", "Answer": "A"}, "x.jsonl:7: the options are A, C"),
        ({"text": "问"}, "x.jsonl:7: no question"),
    ],
)
def test_rows_that_cannot_be_used_are_named(row, said, tokenizer):
    with pytest.raises(UserError, match=re.escape(said)):
        SingleChoice([{**row, "location": "x.jsonl:7"}], tokenizer)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "sliding", "bloom", "mamba", "hybrid"])
def test_shared_prefix_and_batches_change_nothing(name, tokenizer, bloom_dir, shots, monkeypatch):
    """Each letter's log-probability is that of a forward pass of the whole prompt alone."""
    model = AutoModelForCausalLM.from_pretrained(bloom_dir) if name == "bloom" else build(name, len(tokenizer))
    recurrent = name in ("mamba", "hybrid")
    count = 1 if recurrent else 3
    method = SingleChoice(placed(ROWS), tokenizer, few_shot_file=shots, few_shot=count)
    prompt = "".join(row["question"] + row["answer"] + "\n\n" for row in SHOTS[:count])
    expected = []
    for row in ROWS:
        ids = tokenizer(prompt + row["question"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores = model.eval()(ids).logits[0, -1].log_softmax(-1)
        letters = torch.stack([scores[tokenizer.convert_tokens_to_ids(letter)] for letter in "ABCD"])
        expected.append([*letters.log_softmax(-1).tolist(), letters.exp().sum().item()])

    used, expanded = [], forward.expanded
    monkeypatch.setattr(forward, "expanded", lambda cache, rows: used.append(rows) or expanded(cache, rows))
    for size, synced in ((1, False), (2, False), (5, True)):
        used.clear()
        records = method.compute(model, range(5), BatchOptions(batch_size=size, synced=synced))
        found = [[*record["letters"].values(), record["mass"]] for record in records]
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)
        assert sum(used) == (0 if recurrent else 5)
        assert [record["location"] for record in records] == [f"data.jsonl:{number}" for number in range(1, 6)]


def test_as_many_batches_whatever_the_prefixes(tokenizer, tmp_path):
    """Two sources have examples of their own, so two prefixes; the calls and, where synced, the passes are as many."""
    rows = [{**row, "source": source} for source in ("医", "常识") for row in SHOTS]
    file = str(write_jsonl(tmp_path / "shots.jsonl", rows))
    method = SingleChoice(placed(ROWS), tokenizer, few_shot_file=file, few_shot=2)
    model, passes, calls = tiny_model(len(tokenizer)), [], []
    model.register_forward_hook(lambda *_: passes.append(1))
    counts, found = [], []
    for synced in (True, False):
        for units in ([0, 1, 4, 4], [2, 3, 0, 1]):
            passes.clear(), calls.clear()
            how = BatchOptions(batch_size=3, before_batch=lambda: calls.append(1), synced=synced)
            found.append(method.compute(model, units, how))
            counts.append((len(calls), len(passes) if synced else None))
    assert counts == [(2, 2), (2, 2), (2, None), (2, None)]
    for one, other in zip(found[0] + found[1], found[2] + found[3], strict=True):
        assert one["letters"] == pytest.approx(other["letters"], abs=1e-5)
    assert found[0][2]["letters"] == pytest.approx(found[0][3]["letters"], abs=1e-5)


def test_model_is_left_as_it_was(tokenizer, shots):
    base = tiny_model(len(tokenizer))
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], lora_dropout=0.5)).train()
    base.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    model.config.use_cache = False
    state = torch.get_rng_state()
    method = SingleChoice(placed(ROWS), tokenizer, few_shot_file=shots, few_shot=2)
    first = method.compute(model, range(5), BatchOptions())
    assert [module.training for module in model.modules()] == modes and model.config.use_cache is False
    assert torch.equal(torch.get_rng_state(), state)
    with model.disable_adapter():  # B is zero, so the adapter changes nothing; its dropout would
        assert method.compute(model, range(5), BatchOptions()) == first


def test_the_letter_is_tokenized_as_it_continues_the_prompt(tokenizer, slow_tokenizer, shots):
    method = SingleChoice(
        placed([{"question": "问\nA. 一\nB. 二\nAnswer: ", "answer": "A"}]), tokenizer, few_shot_file=shots, few_shot=0
    )
    ids = tokenizer("问\nA. 一\nB. 二\nAnswer: A")["input_ids"]
    assert [*method._contexts[0], method._letters[0][0]] == ids
    chat = SingleChoice(placed(ROWS[:1]), tokenizer, chat=True)
    asked = f"<|im_start|>user\n{ROWS[0]['question']}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(chat._contexts[0]) == asked

    ended = build_tokenizer()
    ended.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    plain, slow = (SingleChoice(placed(ROWS[:1]), own) for own in (tokenizer, slow_tokenizer))
    assert slow._contexts[0].tolist() == plain._contexts[0].tolist() and slow._letters == plain._letters
    assert SingleChoice(placed(ROWS[:1]), ended)._contexts[0].tolist() == [1, *plain._contexts[0]]


@pytest.mark.parametrize(("normalizer", "said"), [(None, "C shares its token"), ("AB", "A is not one token")])
def test_tokenizers_that_cannot_tell_letters_apart(normalizer, said):
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "A": 1, "B": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if normalizer:
        backend.normalizer = normalizers.Replace(Regex("A$"), normalizer)
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    with pytest.raises(UserError, match=f"data.jsonl:1: with this tokenizer the letter {said}"):
        SingleChoice(placed(ROWS[:1]), words)


def test_long_prompts_lose_examples_and_never_the_question(tokenizer, shots, capfd):
    def lengths(**settings):
        method = SingleChoice(placed(ROWS), tokenizer, few_shot_file=shots, few_shot=3, **settings)
        return method, [len(ids) for ids in method._contexts]

    _, full = lengths()
    limit = sorted(full)[2]
    method, cut = lengths(max_length=limit)
    assert [a == b for a, b in zip(full, cut, strict=True)] == [length <= limit for length in full]
    assert max(cut) <= limit and method.shortened == 2
    assert (
        f"2 of 5 prompts have fewer than 3 examples: they would be longer than {limit} tokens" in capfd.readouterr().out
    )
    longest = full.index(max(full))
    text = tokenizer.decode(method._contexts[longest])
    assert text.startswith(("例1", "例2", ROWS[longest]["question"]))
    assert text.endswith(ROWS[longest]["question"])
    with pytest.raises(UserError, match=r"data.jsonl:1: the question alone has .* more than the 5 that fit"):
        lengths(max_length=5)


def test_a_question_is_not_shown_its_own_answer(tokenizer, tmp_path):
    file = str(write_jsonl(tmp_path / "data.jsonl", SHOTS))
    method = SingleChoice(placed(SHOTS), tokenizer, few_shot_file=file, few_shot=2)
    starts = [re.findall("例(.)", tokenizer.decode(ids)) for ids in method._contexts]
    assert starts == [["1", "2", "0"], ["0", "2", "1"], ["0", "1", "2"], ["0", "1", "3"]]
    with pytest.raises(UserError, match="4 examples, and --few_shot asks for 5"):
        SingleChoice(placed(ROWS), tokenizer, few_shot_file=file)


def test_summary_by_hand(tokenizer):
    method = SingleChoice(placed(ROWS), tokenizer)
    records = [
        {"source": source, "answer": answer, "prediction": guess, "letters": dict.fromkeys("ABCD", 0.0), "mass": mass}
        for source, answer, guess, mass in [
            ("医", "A", "A", 0.5),
            ("医", "B", "A", 0.3),
            ("常识", "C", "C", 0.4),
        ]
    ]
    summary = method.summarise(records)
    assert summary["accuracy"] == pytest.approx(2 / 3)
    assert (summary["accuracy/医"], summary["accuracy/常识"], summary["accuracy_macro"]) == (0.5, 1.0, 0.75)
    assert (summary["share_A"], summary["answers_A"], summary["share_B"], summary["answers_B"]) == pytest.approx(
        (2 / 3, 1 / 3, 0, 1 / 3)
    )
    assert (summary["mass"], summary["chance"], summary["questions"]) == pytest.approx((0.4, 0.25, 3))
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 10)[0] == 0.0 and math.isclose(wilson_interval(10, 10)[1], 1.0)


def test_probabilities_that_are_no_numbers(tokenizer):
    model = tiny_model(len(tokenizer))
    model.model.norm.weight.data.fill_(float("nan"))
    method = SingleChoice(placed(ROWS[:1]), tokenizer)
    records, metrics = run_method(method, model, BatchOptions())
    assert records[0]["is_finite"] is False and first_not_finite(records).endswith("data.jsonl:1")
    assert metrics.keys() == method.directions().keys() and all(map(math.isnan, metrics.values()))


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("deepseek_r1_distill", "\n</think>\n\n"),
        ("qwen3_8", "\n</think>\n\n"),
        ("qwen3", "<think>\n\n</think>\n\n"),
        ("gptoss", "<|channel|>final<|message|>"),
        ("qwen2_5", ""),
    ],
)
def test_letters_of_a_chat_are_compared_after_closed_thoughts(name, before, capsys):
    """As an answer without thoughts is trained, after the served prompt."""
    tokenizer = tokenizer_of(Path(str(files("trl"))) / "chat_templates" / f"{name}.jinja")
    method = SingleChoice(placed(ROWS), tokenizer, chat=True)
    question = {"role": "user", "content": ROWS[0]["question"]}
    served = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(method._contexts[0]) == served + before
    assert tokenizer.convert_ids_to_tokens(method._letters[0]) == list("ABCD")
    said = f"the letters are compared after {before!r}, as it stands before an answer without thoughts\n"
    assert capsys.readouterr().out == (said if before else "")


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"option": {"A": "甲", "B": "乙", "C": ""}}, "B"),  # CMB
        ({"Choices": ["甲", "乙"]}, 1),  # MMLU
        ({"choice": ["甲", "乙"]}, "乙"),  # C3
        ({"options": '["甲", "乙"]'}, "b"),
        ({"choices": {"text": ["甲", "乙"], "label": ["A", "B"]}}, "B"),  # ARC
    ],
)
def test_options_in_one_column(options, answer):
    question = read_question({"question": "哪个？", **options, "answer": answer, "location": "x.jsonl:7"})
    assert (question.text, question.answer) == ("哪个？\nA. 甲\nB. 乙\n答案：", "B")
