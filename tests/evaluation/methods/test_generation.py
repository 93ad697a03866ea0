import json
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from conftest import build_tokenizer, conversation, tiny_model, write_jsonl
from hf_recipes.data.chat.prompts import PromptReader, read_prompts
from hf_recipes.data.chat.templates.template import thought_marks
from hf_recipes.evaluation.methods.generation import GenerationMethod
from hf_recipes.models.inference.batch_options import BatchOptions
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import continue_batches, plan_batches

DECODINGS = {
    "greedy": Decoding(12),
    "penalty": Decoding(12, repetition_penalty=1.5),
    "beams": Decoding(12, num_beams=3),
    "beams with penalty": Decoding(12, num_beams=2, repetition_penalty=1.5),
    "sampling": Decoding(12, do_sample=True),
    "narrow sampling": Decoding(12, do_sample=True, temperature=0.7, top_p=0.9, top_k=50, repetition_penalty=1.2),
}


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 2.0, "min_new_tokens": 5},
        {"num_beams": 4, "no_repeat_ngram_size": 1},
        {"do_sample": True, "temperature": 5.0},
    ],
)
def test_greedy_is_greedy_whatever_the_models_own_settings(tokenizer, settings, adapted):
    model = tiny_model(len(tokenizer))
    if adapted:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    prompts = [tokenizer(text)["input_ids"] for text in ("你好年龄性别", "药物")]

    def answers():
        return [text.text for text in continued(model, tokenizer, prompts, Decoding(20), 2)]

    plain = answers()
    assert all(plain)
    base = model.get_base_model() if adapted else model
    own = GenerationConfig(eos_token_id=2, **settings)
    base.generation_config = own
    assert answers() == plain
    assert base.generation_config is own and model.generation_config is own
    model.generation_config = GenerationConfig(eos_token_id=2, suppress_tokens=[5, 6, 7], **settings)  # a wrapper's
    assert answers() == plain


@pytest.fixture(scope="module")
def model(tokenizer):
    """Weights so large that the next token depends on all before it."""
    model = tiny_model(len(tokenizer)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.25)
    return model


def continued(model, tokenizer, prompts, decoding, batch_size, **kwargs) -> list:
    found = [None] * len(prompts)
    batches = plan_batches(prompts, batch_size)
    for batch, texts in continue_batches(model, tokenizer, prompts, batches, decoding, **kwargs):
        for index, text in zip(batch, texts, strict=True):
            found[index] = text
    return found


@pytest.mark.parametrize("decoding", DECODINGS.values(), ids=DECODINGS)
def test_a_text_does_not_depend_on_its_batch(tokenizer, model, decoding):
    draw = random.Random(0)
    prompts = [[draw.randrange(3, len(tokenizer)) for _ in range(length)] for length in (1, 2, 300, 7, 40, 41, 90)]
    alone = [continued(model, tokenizer, [prompt], decoding, 1, keys=[key])[0] for key, prompt in enumerate(prompts)]
    assert len({text.text for text in alone}) == len(prompts)
    for size in (2, 3, 7):
        assert continued(model, tokenizer, prompts, decoding, size) == alone


def test_a_penalty_counts_the_tokens_of_the_prompt_and_not_its_padding(tokenizer, model):
    """The text is transformers' own of a prompt that is not padded, though it holds the token that pads."""
    prompts = [tokenizer("你好")["input_ids"], tokenizer("请问这条标准属于哪一类？" * 3)["input_ids"]]
    config = GenerationConfig(max_new_tokens=12, do_sample=False, repetition_penalty=1.5, eos_token_id=2)
    new = model.generate(torch.tensor(prompts[:1]), generation_config=config)[0, len(prompts[0]) :]
    padding = build_tokenizer(pad_token=tokenizer.convert_ids_to_tokens(int(new[4])))
    texts = continued(model, padding, prompts, Decoding(12, repetition_penalty=1.5), 2)
    assert padding.decode(new, skip_special_tokens=True) == texts[0].text


def test_samples_follow_the_distribution_and_the_seed(tokenizer):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5])
    count = 20_000
    scores = logits.repeat(count, 1)
    mask = torch.ones(count, 1, dtype=torch.long)

    def shares(**settings):
        drawn = scores
        for step in Decoding(do_sample=True, **settings).processors(mask, range(count)):
            drawn = step(mask, drawn)
        assert ((drawn == 0).sum(-1) == 1).all()
        return np.bincount(drawn.argmax(-1), minlength=5) / count

    assert np.allclose(shares(), logits.softmax(-1), atol=0.015)
    assert np.allclose(shares(temperature=0.5), (logits * 2).softmax(-1), atol=0.015)
    narrow = shares(top_k=2)
    assert narrow[[1, 2, 3]].tolist() == [0, 0, 0]
    assert np.allclose(narrow[[0, 4]], logits[[0, 4]].softmax(-1), atol=0.015)
    assert (shares(top_p=0.7) > 0).tolist() == [True, False, False, False, True]
    assert shares().tolist() == shares().tolist() != shares(seed=1).tolist()


def test_sampling_leaves_the_random_state_alone(tokenizer, model):
    prompts = [tokenizer("你好")["input_ids"]] * 3
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    decoding = Decoding(12, do_sample=True)
    first = continued(model, tokenizer, prompts, decoding, 3)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert (np.random.get_state()[1] == states[1]).all()
    torch.manual_seed(99)
    assert continued(model, tokenizer, prompts, decoding, 2) == first
    assert len({text.text for text in first}) == 3  # equal prompts, numbers of their own
    assert continued(model, tokenizer, prompts, Decoding(12, do_sample=True, seed=7), 3) != first


def test_texts_come_batch_by_batch_and_the_model_is_restored(tokenizer, model):
    prompts = [tokenizer(text)["input_ids"] for text in ("你好", "请问这条标准属于哪一类？", "a")]
    own = model.generation_config
    model.train()
    started = []
    batches = plan_batches(prompts, 1)
    assert batches == [[1], [0], [2]]
    run = continue_batches(
        model, tokenizer, prompts, batches, Decoding(4), stop_ids=[7], before_batch=lambda: started.append(1)
    )
    batch, [text] = next(run)
    assert batch == [1] and len(started) == 1 and not model.training
    assert text.finished or text.tokens == 4
    run.close()
    assert model.training and model.generation_config is own and not model.lm_head._forward_pre_hooks
    model.eval()


def test_a_text_that_ended_itself_is_finished(tokenizer, model):
    prompt = tokenizer("你好")["input_ids"]
    [text] = continued(model, tokenizer, [prompt], Decoding(6), 1)
    assert not text.finished and text.tokens == 6
    with torch.no_grad():
        third = model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False)[0, -1].item()
    [cut] = continued(model, tokenizer, [prompt], Decoding(6), 1, stop_ids=[third])
    assert cut.finished and cut.tokens <= 2 and text.text.startswith(cut.text)


def test_evaluation_by_generation(tokenizer, model, tmp_path):
    rows = [
        {"messages": conversation("早", "早安", f"问{number}", "答"), "answer_choices": ["答", "不"]}
        for number in range(5)
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows, {"messages": conversation("问")}])
    reader = PromptReader([str(path)], tokenizer)
    prompts, _ = read_prompts(reader)
    for decoding in (Decoding(8), Decoding(8, do_sample=True)):
        method = GenerationMethod(prompts, tokenizer, decoding, reader.stop_ids)
        assert len(method) == 6 and method.name == "generation"
        records = method.compute(model, range(6), BatchOptions(batch_size=4))
        assert json.loads(json.dumps(records)) == records
        assert [record["location"] for record in records] == [f"{path}:{line}" for line in range(1, 7)]
        assert [record["reference"] for record in records] == ["答"] * 5 + [None]
        assert records[2]["question"] == "问2" and records[2]["choices"] == ["答", "不"]
        # Units are the same whichever process computes them, and in whichever batch.
        assert method.compute(model, [4, 1], BatchOptions(batch_size=1)) == [records[4], records[1]]


def test_the_summary_of_an_evaluation(tokenizer, tmp_path):
    rows = [{"messages": conversation("问", answer), "answer_choices": ["年龄", "性别"]} for answer in ("年龄", "性别")]
    prompts, _ = read_prompts(PromptReader([str(write_jsonl(tmp_path / "rows.jsonl", rows))], tokenizer))
    base = {"question": "", "location": "", "meta": None}
    records = [
        {**base, "prediction": "年龄", "reference": "年龄", "choices": ["年龄", "性别"], "tokens": 2, "finished": True},
        {**base, "prediction": "年龄", "reference": "性别", "choices": ["年龄", "性别"], "tokens": 4, "finished": True},
        {**base, "prediction": "甲乙", "reference": None, "choices": None, "tokens": 9, "finished": False},
    ]
    method = GenerationMethod(prompts, tokenizer, scores=["accuracy", "generation"])
    metrics = method.summarise(records)
    assert metrics["accuracy"] == 0.5 and metrics["rougeL"] == pytest.approx(0.5)
    assert metrics["new_tokens"] == 5 and metrics["finished"] == pytest.approx(2 / 3)
    assert method.summarise(records[2:]) == {"new_tokens": 9, "finished": 0}
    assert method.summarise([]) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "--max_new_tokens 0: expected at least 1"),
        ({"do_sample": True, "temperature": 0.0}, "leave --do_sample out"),
        ({"do_sample": True, "top_p": 1.5}, "--top_p 1.5: expected 0 to 1"),
        ({"temperature": 0.7}, "--temperature 0.7 has no effect without --do_sample"),
        ({"do_sample": True, "num_beams": 2}, "choose one"),
        ({"repetition_penalty": float("nan")}, "--repetition_penalty nan: expected more than 0"),
    ],
)
def test_decodings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**settings)


def test_a_text_that_was_interrupted_is_continued_as_if_it_had_not_been(tokenizer, model):
    prompts = [tokenizer(text)["input_ids"] for text in ("你好", "请问这条标准属于哪一类？", "a")]
    settings = {"do_sample": True, "repetition_penalty": 1.2, "seed": 5}
    decodings = [Decoding(12), Decoding(20, temperature=1.5, **settings), Decoding(16, top_p=0.9, **settings)]
    for marks in (None, thought_marks(tokenizer)):
        alone = [
            continued(model, tokenizer, [prompt], decoding, 1, keys=[key], marks=marks)[0]
            for key, (prompt, decoding) in enumerate(zip(prompts, decodings, strict=True))
        ]
        assert continued(model, tokenizer, prompts, decodings, 3, marks=marks) == alone
        begun = [one.ids[:count] for one, count in zip(alone, (5, 0, 9), strict=True)]
        assert continued(model, tokenizer, prompts, decodings, 3, marks=marks, begun=begun) == alone


def test_a_row_is_watched_and_ended_by_itself(tokenizer, model):
    prompts = [tokenizer(text)["input_ids"] for text in ("你好", "a")]
    whole, steps = continued(model, tokenizer, prompts, Decoding(9), 2), []

    def watch(step) -> bool:
        steps.append((step.index, list(step.ids), step.is_last, step.logits.argmax().item(), step.read()))
        return step.index == 1 and len(step.ids) == 4

    continued(model, tokenizer, prompts, Decoding(9), 2, watch=watch)
    for index, count in ((0, 9), (1, 4)):
        seen = [step for step in steps if step[0] == index]
        assert [ids for _, ids, *_ in seen] == [whole[index].ids[:size] for size in range(1, count + 1)]
        assert [is_last for _, _, is_last, *_ in seen] == [index == 0 and size == 9 for size in range(1, count + 1)]
        assert all(ids[-1] == token for _, ids, _, token, _ in seen)
    assert steps[-1][-1] == whole[0]
