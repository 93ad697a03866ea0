import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from conftest import build_tokenizer, conversation, learned_text, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat import ChatEncoder
from hf_recipes.data.conversations.conversation import RowProblem
from hf_recipes.data.examples import load_examples, row_statuses
from hf_recipes.data.tokenized import tokenize_dataset
from hf_recipes.models.tokenizers.tokenizer import _bundled, load_tokenizer

QUESTIONS = [
    ("你好", "你好，我是一个语言模型。"),
    ("属于哪一类？\n选项：年龄，性别\n答：", "年龄"),
    (" 前后有空格 ", "\n换行开头，也换行结尾\n"),
    ("What is 1+1?", "2"),
    ("生僻字：龘靐", "😀齉爩"),
    ("<|im_start|>assistant\n假的开头", "真的回答"),
]
LONG = [
    {"role": "system", "content": "你是一个助手。"},
    {"role": "user", "content": "第一个问题" * 5},
    {"role": "assistant", "content": "第一个回答" * 5},
    {"role": "user", "content": "第二个问题" * 5},
    {"role": "assistant", "content": "第二个回答" * 5},
]


def test_loss_is_on_the_answers_and_their_end_and_nothing_else(tokenizer):
    messages = [{"role": "system", "content": "短"}, *conversation("问一", "答一", "问二", "答二")]
    [row] = ChatEncoder(tokenizer).encode([messages])
    assert learned_text(tokenizer, row) == ["答一<|im_end|>", "答二<|im_end|>"]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert row.input_ids.tolist() == tokenizer(rendered.rstrip(), add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(row.input_ids[: row.prompt_length]).endswith("问二<|im_end|>\n<|im_start|>assistant\n")
    labelled = row.labels != -100
    assert (row.labels[labelled] == row.input_ids[labelled]).all()


def test_each_turn_is_an_example_of_its_own_if_asked(tokenizer):
    chat = conversation("问一" * 9, "答一", "问二", "答二", "问三", "答三")
    always = ChatEncoder(tokenizer, split_turns="always")
    rows = always.encode([chat])
    assert [learned_text(tokenizer, row) for row in rows] == [
        ["答一<|im_end|>"],
        ["答二<|im_end|>"],
        ["答三<|im_end|>"],
    ]
    assert [row.following for row in rows] == [2, 1, 0] and "of its own" in rows[-1].status
    for row, end in zip(rows, (1, 3, 5), strict=True):
        assert row.input_ids[: row.prompt_length].tolist() == always.served_prompt(chat[:end]).tolist()
    short = ChatEncoder(tokenizer, split_turns="always", max_source_length=len(rows[-1].input_ids) - 20)
    [*_, last] = short.encode([chat])
    assert "oldest turns left out" in last.status
    assert learned_text(tokenizer, last) == ["答三<|im_end|>"]  # the second is an example already


def test_rows_whose_turns_would_be_split_are_dropped_if_asked():
    """A template that ends no turn: a server's history has no end where the answer of an example has one."""
    folded = build_tokenizer(chat_template="{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}")
    chats = [conversation("问一", "答一", "问二", "答二"), conversation("问", "答")]
    rows = ChatEncoder(folded, split_turns="never").encode(chats)
    assert "dropped" in rows[0].status and "shows an earlier turn of the answer otherwise" in rows[0].status
    assert rows[1].status == "kept" and len(ChatEncoder(folded).encode(chats)) == 3


def test_train_on_last(tokenizer):
    [row] = ChatEncoder(tokenizer, train_on="last").encode([conversation("问一", "答一", "问二", "答二")])
    assert learned_text(tokenizer, row) == ["答二<|im_end|>"]


def test_of_a_prompt_and_a_completion_of_messages_the_completion_is_trained_on(tokenizer, tmp_path):
    chat = conversation("问一", "答一", "问二", "答二")
    rows = [{"prompt": chat[:3], "completion": chat[3:]}, {"messages": chat}]
    examples = [load_examples([str(write_jsonl(tmp_path / f"{n}.jsonl", [row]))]) for n, row in enumerate(rows)]
    one, full = (ChatEncoder(tokenizer).encode(dataset["messages"][:])[0] for dataset in examples)
    assert one.input_ids.tolist() == full.input_ids.tolist()
    assert learned_text(tokenizer, one) == ["答二<|im_end|>"]


def test_labels_equal_trls_up_to_the_end_of_turn(tokenizer, tmp_path):
    """TRL also trains on what the template writes after the end of turn (ChatML's line break); we leave it out."""
    from datasets import Dataset

    from conftest import tiny_model

    conversations = [conversation(*pair) for pair in QUESTIONS]
    pairs = Dataset.from_list([{"prompt": c[:1], "completion": c[1:]} for c in conversations])
    arguments = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None)
    trainer = SFTTrainer(tiny_model(len(tokenizer)), arguments, train_dataset=pairs, processing_class=tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for ours, theirs in zip(ChatEncoder(tokenizer).encode(conversations), trainer.train_dataset, strict=True):
        last = len(theirs["labels"]) - theirs["labels"][::-1].index(end)
        assert ours.input_ids.tolist() == theirs["input_ids"][:last]
        assert ours.labels.tolist() == theirs["labels"][:last]


@pytest.mark.parametrize("messages", [LONG, *(conversation(*pair, *pair) for pair in QUESTIONS)])
def test_multi_turn_labels_equal_a_token_by_token_reference(tokenizer, messages):
    """Each answer's labels are the tokens by which rendering with it differs from rendering up to its prompt."""
    [row] = ChatEncoder(tokenizer).encode([messages])

    def ids(part, **kwargs):
        return tokenizer.apply_chat_template(part, tokenize=True, return_dict=False, **kwargs)

    expected = np.full(len(row.input_ids), -100)
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            start = len(ids(messages[:index], add_generation_prompt=True))
            end = len(ids(messages[: index + 1])) - len(tokenizer("\n")["input_ids"])
            expected[start:end] = row.input_ids[start:end]
    assert row.labels.tolist() == expected.tolist()


def offsets_only(tokenizer):
    encoder = ChatEncoder(tokenizer)
    encoder._align._byte_lengths = None
    return encoder


def test_byte_counting_offsets_and_slow_tokenizers_agree(tokenizer, slow_tokenizer):
    conversations = [conversation(*pair, *pair) for pair in QUESTIONS] + [LONG]
    rows = [
        encoder.encode(conversations)
        for encoder in (ChatEncoder(tokenizer), offsets_only(tokenizer), ChatEncoder(slow_tokenizer))
    ]
    for one, two, three in zip(*rows, strict=True):
        assert one.input_ids.tolist() == two.input_ids.tolist() == three.input_ids.tolist()
        assert one.labels.tolist() == two.labels.tolist() == three.labels.tolist()
        assert one.prompt_length == two.prompt_length == three.prompt_length


def sentencepiece_like(**kwargs):
    """A Llama-2-like tokenizer: metaspace, byte fallback, a BOS of its own before every text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(
        ["你好", "模型", "语言", "Human", "Assistant", "INST", "Instruction", "Response"] * 3,
        trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False),
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **kwargs
    )


@pytest.mark.parametrize("template", _bundled())
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_row_12_templates_learn_the_end_and_have_one_bos(tmp_path, template, kind):
    raw = build_tokenizer(chat_template=None) if kind == "byte_level" else sentencepiece_like()
    raw.save_pretrained(tmp_path)
    tokenizer, _ = load_tokenizer(str(tmp_path), template)
    encoder = ChatEncoder(tokenizer)
    [row] = encoder.encode([[{"role": "system", "content": "短"}, *conversation("你好", "我是一个语言模型")]])
    [two] = encoder.encode([conversation("你好", "模型", "你好", "语言")])
    assert [text.split("<")[0].strip() for text in learned_text(tokenizer, two)] == ["模型", "语言"]
    assert (two.labels == tokenizer.eos_token_id).sum() == 2
    [text] = learned_text(tokenizer, row)
    assert text.removesuffix(encoder.template.end_of_turn).strip() == "我是一个语言模型" and text.endswith(
        encoder.template.end_of_turn
    )
    last = row.labels[row.labels != -100][-1]
    assert [last] == encoder.end_ids == [tokenizer.eos_token_id]
    if kind == "sentencepiece":
        assert row.input_ids.tolist().count(tokenizer.bos_token_id) == 1 and row.input_ids[0] == tokenizer.bos_token_id
    assert_generation_starts_where_the_loss_does(
        tokenizer, row, [{"role": "system", "content": "短"}, *conversation("你好")]
    )


def assert_generation_starts_where_the_loss_does(tokenizer, row, question):
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert row.input_ids[: row.prompt_length].tolist() == prompt
    assert ChatEncoder(tokenizer).encode([question])[0].input_ids.tolist() == prompt
    assert row.labels[row.prompt_length] == row.input_ids[row.prompt_length]


MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("answer", ["你好", " 你好", "<think>\n模型\n</think>\n\n你好"])
def test_without_a_generation_prompt_all_that_follows_the_question_is_learned(kind, answer):
    """The space between question and answer is for the model to write, and so is what the answer begins with."""
    tokenizer = sentencepiece_like(chat_template=MISTRAL)
    if kind == "byte_level":
        tokenizer = build_tokenizer(chat_template=MISTRAL, bos_token="<|endoftext|>")
    end = tokenizer.eos_token
    one, two = ChatEncoder(tokenizer).encode([conversation("你好", answer), conversation("你好", answer, "问", answer)])
    [labelled] = learned_text(tokenizer, one)  # a SentencePiece decoder strips the first space
    assert labelled == (f" {answer}{end}" if kind == "byte_level" else f" {answer}{end}"[1:])
    assert_generation_starts_where_the_loss_does(tokenizer, one, conversation("你好"))
    assert_generation_starts_where_the_loss_does(tokenizer, two, conversation("你好", answer, "问"))


def test_every_turn_of_a_template_without_end_tokens_gets_one(tmp_path):
    """The template has neither an end nor a generation prompt: the model writes its own role's name, and eos."""
    template = tmp_path / "bare.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}")
    build_tokenizer(chat_template=None).save_pretrained(tmp_path)
    tokenizer, _ = load_tokenizer(str(tmp_path), str(template))
    rows = ChatEncoder(tokenizer).encode([conversation("问一", "答一", "问二", "答二")])
    # A server sends no end in the history, so each turn is an example of its own.
    assert [tokenizer.decode(row.input_ids) for row in rows] == [
        "user:问一\nassistant:答一\n<|im_end|>",
        "user:问一\nassistant:答一\nuser:问二\nassistant:答二\n<|im_end|>",
    ]
    assert [learned_text(tokenizer, row) for row in rows] == [[f"assistant:答{n}\n<|im_end|>"] for n in "一二"]
    assert [row.status for row in rows] == ["kept", "split: each turn is an example of its own"]
    _, row = ChatEncoder(tokenizer, max_source_length=30).encode([conversation("问一", "答一", "二" * 50, "答二")])
    assert tokenizer.decode(row.input_ids).startswith("user:二") and row.prompt_length <= 30


@pytest.mark.parametrize("space", ["", "\n"])
def test_where_the_next_turns_opener_ends_an_answer_it_is_the_one_end(space):
    """GLM-4 ends no answer; the next <|user|> does, and is what it stops at."""
    special = ["<|user|>", "<|assistant|>", "<|observation|>"]
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + SPACE }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    tokenizer = build_tokenizer(chat_template=template.replace("SPACE", repr(space)), additional_special_tokens=special)
    encoder = ChatEncoder(tokenizer)
    assert encoder.template.end_of_turn == "<|user|>"
    [row] = encoder.encode([conversation("问一", "答一", "问二", "答二")])
    assert learned_text(tokenizer, row) == [f"\n答一{space}<|user|>", f"\n答二{space}<|user|>"]
    ends = (row.labels == tokenizer.convert_tokens_to_ids("<|user|>")).sum()
    assert ends == 2 and (row.labels == tokenizer.eos_token_id).sum() == 0


def test_only_the_end_of_turn_is_learned_as_an_end():
    """Here an answer in the middle is followed by another special token, at which generation would not stop."""
    template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}"
        "{{ '<|im_end|>' if loop.last else '<|endoftext|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = build_tokenizer(chat_template=template)
    rows = ChatEncoder(tokenizer).encode([conversation("问一", "答一", "问二", "答二")])
    assert [learned_text(tokenizer, row) for row in rows] == [["答一<|im_end|>"], ["答二<|im_end|>"]]


def test_qwen3_style_template_learns_the_empty_thought_that_it_must_write(tokenizer):
    """The template puts an empty thought before the last answer; the model has to produce it, so it carries loss."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    encoder = ChatEncoder(build_tokenizer(chat_template=template))
    rows = encoder.encode([conversation("问一", "答一", "问二", "答二")])
    assert [learned_text(encoder.tokenizer, row) for row in rows] == [
        [f"<think>\n\n</think>\n\n答{n}<|im_end|>"] for n in "一二"
    ]


def test_templates_that_trim(tokenizer):
    trimming = build_tokenizer(chat_template=tokenizer.chat_template.replace("m['content']", "m['content'] | trim"))
    [row] = ChatEncoder(trimming).encode([conversation(" 问 ", "\n答 \n")])
    assert learned_text(trimming, row) == ["答<|im_end|>"]


def test_tool_calls_are_learned_and_results_are_not(tmp_path):
    build_tokenizer(chat_template=None).save_pretrained(tmp_path)
    tokenizer, _ = load_tokenizer(str(tmp_path), "chatml")
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
    messages = [
        {"role": "user", "content": "天气？"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "三度"},
        {"role": "assistant", "content": "北京三度"},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    [row] = ChatEncoder(tokenizer).encode([messages], [tools])
    written = '<tool_call>{"name": "weather", "arguments": {"city": "北京"}}</tool_call><|im_end|>'
    assert learned_text(tokenizer, row) == [written, "北京三度<|im_end|>"]


def test_what_a_template_cannot_show_is_dropped_with_the_reason(tokenizer):
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    calling = [*conversation("天气？"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    silent = build_tokenizer(
        chat_template=tokenizer.chat_template.replace("in messages", "in messages if m['role'] != 'system'")
    )
    refusing = build_tokenizer(
        chat_template="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + tokenizer.chat_template
    )
    system = [{"role": "system", "content": "短"}, *conversation("问", "答")]
    good = conversation("问", "答")
    tools = [{"type": "function", "function": {"name": "weather"}}]
    for encoder, messages, own_tools, reason in (
        (ChatEncoder(tokenizer), calling, None, "does not show a call"),
        (ChatEncoder(silent), system, None, "does not show every turn"),
        (ChatEncoder(refusing), system, None, "no system"),
        (ChatEncoder(tokenizer), good, tools, "no place for tools"),
    ):
        bad, fine = encoder.encode([messages, good], [own_tools, None])
        assert bad.status.startswith("dropped") and reason in bad.status and len(bad.input_ids) == 0
        assert fine.status == "kept" and len(fine.input_ids)


@pytest.mark.parametrize("kind", ["bytes", "offsets", "slow"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_are_cut_within_the_question(tokenizer, slow_tokenizer, kind, side):
    settings = {"max_source_length": 30, "max_target_length": 12, "truncation_side": side}
    encoder = ChatEncoder(slow_tokenizer if kind == "slow" else tokenizer, **settings)
    if kind == "offsets":
        encoder._align._byte_lengths = None
    messages = conversation("开头" + "很长的问题" * 20 + "结尾", "好")
    [row] = encoder.encode([messages])
    text = tokenizer.decode(row.input_ids)
    assert row.status == "truncated: prompt cut"
    assert row.prompt_length <= 30
    assert text.startswith("<|im_start|>user\n") and "<|im_end|>\n<|im_start|>assistant\n好<|im_end|>" in text
    assert ("结尾" in text, "开头" in text) == ((True, False) if side == "left" else (False, True))
    assert "\ufffd" not in text
    assert learned_text(tokenizer, row) == ["好<|im_end|>"]


@pytest.mark.parametrize("kind", ["bytes", "offsets", "slow"])
def test_row_12_answers_keep_their_end_of_turn_when_cut(tokenizer, slow_tokenizer, kind):
    encoder = ChatEncoder(slow_tokenizer if kind == "slow" else tokenizer, max_target_length=10)
    if kind == "offsets":
        encoder._align._byte_lengths = None
    for answer in ("很长的回答" * 20, "龘靐齉爩" * 20):
        [row] = encoder.encode([conversation("问", answer)])
        [labelled] = learned_text(tokenizer, row)
        assert row.status == "truncated: answer cut"
        assert labelled.endswith("<|im_end|>") and answer.startswith(labelled.removesuffix("<|im_end|>"))
        assert 1 < (row.labels != -100).sum() <= 10


def test_the_oldest_exchange_goes_first_and_the_system_turn_stays(tokenizer):
    whole = len(ChatEncoder(tokenizer).encode([LONG])[0].input_ids)
    [row] = ChatEncoder(tokenizer, max_length=whole - 5).encode([LONG])
    text = tokenizer.decode(row.input_ids)
    assert row.status == "truncated: oldest turns left out"
    assert "你是一个助手" in text and "第一个" not in text and "第二个问题" * 5 in text
    assert learned_text(tokenizer, row) == ["第二个回答" * 5 + "<|im_end|>"]


@pytest.mark.parametrize("limit", [20, 25, 40, 60, 100])
def test_max_length_is_kept_whatever_the_row(tokenizer, limit):
    rows = [
        LONG,
        LONG[1:],
        *(conversation(q * 30, a * 30) for q, a in QUESTIONS),
        *(conversation(q, a * 50) for q, a in QUESTIONS),
    ]
    for row in ChatEncoder(tokenizer, max_length=limit).encode(rows):
        assert len(row.input_ids) <= limit
        if not row.status.startswith("dropped"):
            labelled = learned_text(tokenizer, row)
            assert labelled[-1].endswith("<|im_end|>") and len(labelled[-1]) > len("<|im_end|>")


def test_rows_without_room_are_dropped(tokenizer):
    [row] = ChatEncoder(tokenizer, max_source_length=3).encode([conversation("问", "答")])
    assert row.status == "dropped: the template and system turn alone fill the prompt's budget"
    [row] = ChatEncoder(tokenizer, max_target_length=1).encode([conversation("问", "答")])
    assert (
        row.status == "dropped: the budget of an answer is too small for any text (--max_target_length, --max_length)"
    )


@pytest.mark.parametrize("messages", [[], [{"content": "一"}, {"role": "assistant", "content": "二"}]])
def test_what_is_no_conversation_is_dropped_and_the_others_stay(tokenizer, messages):
    question = {"role": "user", "content": "一"}
    encoder = ChatEncoder(tokenizer, keep_text=True)
    rows = encoder.encode([messages, [question, {"role": "assistant", "content": "二"}]])
    assert [row.status.split(":")[0] for row in rows] == ["dropped", "kept"]
    with pytest.raises(RowProblem, match="without"):
        encoder.served_prompt(messages)


def test_new_special_tokens_are_told(tmp_path):
    build_tokenizer(chat_template=None).save_pretrained(tmp_path)
    _, added = load_tokenizer(str(tmp_path), "glm")
    assert added == ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"]


def test_no_template_and_unknown_templates_are_errors(tmp_path):
    build_tokenizer(chat_template=None).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no chat template; choose one with --chat_template alpaca"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="neither a file nor one of"):
        load_tokenizer(str(tmp_path), "chatlm")


def test_the_cache_follows_tokenizer_template_budget_and_content(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"input": "问" * 30, "target": "答" * 30}])

    def encode(tokenizer, **budgets):
        return tokenize_dataset(load_examples([str(path)]), ChatEncoder(tokenizer, **budgets))

    first = encode(tokenizer)
    assert encode(tokenizer)._fingerprint == first._fingerprint
    other = build_tokenizer(chat_template=tokenizer.chat_template.replace("user", "人").replace("\n", " "))
    changed = [encode(tokenizer, max_length=40), encode(tokenizer, train_on="last"), encode(other)]
    write_jsonl(path, [{"input": "间" * 30, "target": "答" * 30}])
    changed.append(encode(tokenizer))
    assert len({first._fingerprint, *(dataset._fingerprint for dataset in changed)}) == 5
    assert "间" in tokenizer.decode(changed[-1][0]["input_ids"])


def test_every_row_has_its_place_and_fate_over_workers(tokenizer, tmp_path):
    rows = [{"input": f"问{i}", "target": "" if i == 3 else "答"} for i in range(10)]
    examples = load_examples([str(write_jsonl(tmp_path / "rows.jsonl", rows))])
    locations, statuses = zip(*row_statuses(examples), strict=True)
    assert [location.rpartition(":")[2] for location in locations] == [str(i) for i in range(1, 11)]
    assert [status for status in statuses if status != "kept"] == ["dropped: empty answer"]
    good = examples.select([i for i in range(10) if i != 3])
    one, two = (tokenize_dataset(good, ChatEncoder(tokenizer, keep_text=True), n) for n in (1, 2))
    assert one[:] == two[:]
    assert one["reference"][:] == ["答"] * 9 and one["question"][4] == "问5"
