"""Thoughts have a budget of their own, are told apart by the template's marks, and are counted where they are cut."""

import pytest
import torch
from tokenizers import AddedToken

from conftest import build_tokenizer, conversation, tiny_model
from hf_recipes.data.chat.prompts import Prompt
from hf_recipes.data.chat.templates.template import thought_marks
from hf_recipes.data.conversations.thoughts import TAGS
from hf_recipes.evaluation.methods.generation import GenerationMethod
from hf_recipes.models.inference.batch_options import BatchOptions
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import continue_batches
from hf_recipes.models.inference.thinking import split_ids

HEAD = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
BODY = "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
PLAIN = HEAD + BODY + "{% endif %}"
OPENS = HEAD + BODY + "<think>\n{% endif %}{# </think> #}"
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking %}{{ '<|start|>assistant" + ANALYSIS + "' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant" + FINAL + "' + m.content + '<|return|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
QUESTION = conversation("你好")


def channels():
    tokenizer = build_tokenizer(chat_template=CHANNELS, eos_token="<|endoftext|>")
    names = ("start", "channel", "message", "end", "return")
    tokens = [AddedToken(f"<|{name}|>", special=True) for name in names]
    tokenizer.add_tokens(tokens, special_tokens=True)
    return tokenizer


class Scripted:
    """A model's forward that writes given texts, one for each row, whatever it reads."""

    def __init__(self, tokenizer, texts):
        self.model = tiny_model(len(tokenizer)).eval()
        self.texts = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        forward, position = self.model.forward, [0]

        def scripted(input_ids, **kwargs):
            output = forward(input_ids=input_ids, **kwargs)
            position[0] = position[0] + 1 if input_ids.shape[1] == 1 else 0
            output.logits[:] = 0.0
            for row, ids in enumerate(self.texts):
                output.logits[row, -1, ids[min(position[0], len(ids) - 1)]] = 1.0
            return output

        self.model.forward = scripted


def spread_model(tokenizer):
    """Weights so large that the next token depends on all before it."""
    model = tiny_model(len(tokenizer)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.25) if weight.ndim == 2 else None
    return model


def written(tokenizer, texts, decoding, prompt=None):
    """What is read of `texts` as answers to one question."""
    ids = prompt or tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    model = Scripted(tokenizer, texts).model
    batches = continue_batches(
        model, tokenizer, [ids] * len(texts), [range(len(texts))], decoding, marks=thought_marks(tokenizer)
    )
    [(_, continuations)] = batches
    return continuations


def test_an_answer_has_its_tokens_after_the_thoughts():
    tokenizer = build_tokenizer(chat_template=PLAIN)
    long = "好" * 20
    thoughts, plain = written(
        tokenizer,
        [f"<think>\n{long}\n</think>\n\n年龄<|im_end|>", "年龄" * 20],
        Decoding(20, max_thinking_tokens=99),
    )
    assert (thoughts.thoughts, thoughts.text, thoughts.finished) == (long, "年龄", True)
    assert not thoughts.cut_while_thinking and thoughts.ids[-1] == tokenizer.eos_token_id
    # A row without thoughts ends after the tokens of an answer, though another one is still thinking.
    assert plain.tokens == len(plain.ids) == 20 and not plain.finished and plain.thoughts == ""


@pytest.mark.parametrize("opens", [False, True])
def test_thoughts_without_an_end_are_closed_at_their_budget_and_counted(opens):
    tokenizer = build_tokenizer(chat_template=OPENS if opens else PLAIN)
    close = tokenizer.encode(TAGS.close, add_special_tokens=False)
    [one] = written(tokenizer, [("" if opens else "<think>") + "好" * 200], Decoding(12, max_thinking_tokens=40))
    assert one.ids[40 : 40 + len(close)] == close
    assert one.tokens == 40 + len(close) + 12 and not one.finished
    assert one.cut_while_thinking and set(one.thoughts.rstrip("\ufffd")) == {"好"} and one.text.strip("\ufffd")


def test_beams_are_closed_too():
    tokenizer = build_tokenizer(chat_template=OPENS)
    close = tokenizer.encode(TAGS.close, add_special_tokens=False)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    decoding = Decoding(12, max_thinking_tokens=10, num_beams=2)
    model = spread_model(tokenizer)
    [(_, [one])] = list(continue_batches(model, tokenizer, [ids], [[0]], decoding, marks=thought_marks(tokenizer)))
    assert one.cut_while_thinking and one.ids[10 : 10 + len(close)] == close
    assert one.tokens <= 10 + len(close) + 12


def test_without_a_budget_or_without_room_thoughts_and_answer_share_the_tokens():
    tokenizer = build_tokenizer(chat_template=OPENS)
    [one] = written(tokenizer, ["好" * 200], Decoding(30, max_thinking_tokens=None))
    assert (one.tokens, one.text, one.finished, one.cut_while_thinking) == (30, "", False, True)
    context = tiny_model(len(tokenizer)).config.max_position_embeddings
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    full = [5] * (context - 30 - len(prompt)) + prompt
    [one] = written(tokenizer, ["好" * 200], Decoding(30), full)
    assert (one.tokens, one.cut_while_thinking) == (30, True)


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        (f"{FINAL}年龄<|return|>", "", "年龄"),
        (f"{ANALYSIS}想一想<|end|><|start|>assistant{FINAL}年龄<|return|>", "想一想", "年龄"),
        (f"{ANALYSIS}想一想", "想一想", None),
        (f"{ANALYSIS}想<|end|><|start|>assistant<|channel|>", "想<|end|><|start|>assistant<|channel|>", None),
        (
            f"{ANALYSIS}想<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{{}}",
            "想",
            "commentary to=functions.f{}",
        ),
    ],
)
def test_marks_may_be_special_tokens(text, thoughts, answer):
    tokenizer = channels()
    marks = thought_marks(tokenizer)
    assert (marks.start, marks.direct) == (ANALYSIS, FINAL)
    found = split_ids(tokenizer, marks, tokenizer.encode(text, add_special_tokens=False), False)
    assert found[:2] == (thoughts, answer or "") and (found[2] is None) is (answer is None)


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("答", False, ("", "答")),
        (" 答 ", False, ("", " 答 ")),
        ("<think>\n想\n</think>\n\n答", False, ("想", "答")),
        ("想\n</think>\n\n答", False, ("想", "答")),
        ("想\n</think>\n\n答", True, ("想", "答")),
        ("<think>\n\n</think>\n\n答", False, ("", "答")),
        ("<think>想", False, ("想", "")),
        ("想", True, ("想", "")),
        ("<think>写 <think> 吗</think>答</think>", False, ("写 <think> 吗", "答</think>")),
        ("标签 <think>x</think> 是这样", False, ("", "标签 <think>x</think> 是这样")),
        # Without an opening tag, a tag within a sentence is only mentioned.
        ("用 </think> 结束标签", False, ("", "用 </think> 结束标签")),
        ("用</think>结束标签", False, ("", "用</think>结束标签")),
        ("结束标签是 </think>", False, ("", "结束标签是 </think>")),
        ("结束标签是 </think>\n\n例如", False, ("", "结束标签是 </think>\n\n例如")),
        ("写 `</think>`\n\n即可", False, ("", "写 `</think>`\n\n即可")),
        ("</think> 是结束标签", False, ("", "</think> 是结束标签")),
        ("是四。</think>\n\n四", False, ("是四。", "四")),
        ("是四\n</think>四", False, ("是四", "四")),
        ("用 </think> 结束。\n</think>\n\n四", False, ("用 </think> 结束。", "四")),
        ("想\n</think>", False, ("想", "")),
        ("</think>\n\n四", False, ("", "四")),
        ("用 </think> 结束标签", True, ("用", "结束标签")),  # what a model writes in thoughts ends them
    ],
)
def test_thoughts_are_what_a_text_begins_with(text, opened, expected):
    assert TAGS.split(text, opened) == expected


def test_an_evaluation_counts_what_was_cut_and_scores_the_answer(capsys):
    tokenizer = build_tokenizer(chat_template=OPENS)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    meta = {"answer_choices": ["年龄", "性别"]}
    prompts = [Prompt(f"a:{n}", ids, "你好", "年龄", meta, is_chat=True) for n in (1, 2)]
    method = GenerationMethod(prompts, tokenizer, Decoding(12, max_thinking_tokens=30), scores=["accuracy"])
    model = Scripted(tokenizer, ["想\n</think>\n\n年龄<|im_end|>", "好" * 200]).model
    records = method.compute(model, [0, 1], BatchOptions(2))
    assert records[0]["prediction"] == "年龄" and records[0]["reasoning_content"] == "想"
    assert [record["cut_while_thinking"] for record in records] == [False, True]
    summary = method.summarise(records)
    assert (summary["accuracy"], summary["thinking"], summary["cut_while_thinking"]) == (0.5, 2, 1)
    assert "cut while thinking: 1 of 2 answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    "decoding",
    [Decoding(12), Decoding(12, do_sample=True), Decoding(12, num_beams=2)],
    ids=["greedy", "sample", "beams"],
)
def test_a_budget_changes_nothing_where_nothing_is_thought(decoding):
    tokenizer = build_tokenizer(chat_template=PLAIN)
    prompts = [tokenizer.encode(text) for text in ("你好", "请问这条标准属于哪一类？")]
    model = spread_model(tokenizer)
    found = []
    for marks in (None, thought_marks(tokenizer)):
        [(_, continuations)] = list(continue_batches(model, tokenizer, prompts, [[0, 1]], decoding, marks=marks))
        found.append(continuations)
    assert found[0] == found[1] and all(one.tokens for one in found[0])


@pytest.mark.parametrize("text", ["<think>\n好好\n</think>\n\n年龄年龄年龄", "<think>" + "好" * 60, "年龄" * 20])
def test_thoughts_that_were_interrupted_go_on(text):
    tokenizer = build_tokenizer(chat_template=PLAIN)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    decoding, options = Decoding(8, max_thinking_tokens=12), {"marks": thought_marks(tokenizer)}
    [one] = written(tokenizer, [text], decoding)
    for count in range(1, len(one.ids), 4):
        rest = tokenizer.encode(text, add_special_tokens=False)[count:] or [5]
        model = Scripted(tokenizer, [tokenizer.decode(rest)]).model
        model.config.eos_token_id = None
        begun = [one.ids[:count]]
        [(_, [again])] = continue_batches(model, tokenizer, [ids], [[0]], decoding, begun=begun, **options)
        assert (again.tokens, again.ids[:count]) == (one.tokens, one.ids[:count])
        assert again.cut_while_thinking == one.cut_while_thinking
