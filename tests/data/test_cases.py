"""Rows as published data sets and toolkits write them: what of each file is trained on, and what is said of it."""

from pathlib import Path

import pytest

from conftest import CHATML, build_tokenizer, conversation, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import shown
from hf_recipes.data.chat.encoder import IGNORED, ChatEncoder
from hf_recipes.data.chat.prompts import PromptReader, read_prompts
from hf_recipes.data.examples import load_examples, row_statuses
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.pretraining.corpora import open_reader
from hf_recipes.data.schemas.registry import Columns

CASES = Path(__file__).parent / "cases"
TIDY = ["先加豆子，再加水到刻度线，最后盖好盖子。", "两米四，可以伸缩。"]
LEARNED = {
    "swift_loss.jsonl": TIDY,
    "openai_weight.jsonl": ["找到一本《桥的故事》，在三楼东侧。", "可以，也能扫码。"],
    "axolotl_train.jsonl": ["上午有小雨，午后转晴。", "三级左右，不大。"],
    "sharegpt_weight.jsonl": ["听雨轩", "竹影半窗留客坐，茶烟一缕伴书香。"],
    "glm4_loss.json": ["石桥镇今天晴，17 度。", "不客气。"],
    "verl_loss_mask.parquet": ["3×4=12，一共十二元。", "2×5=10，一共十元。"],
    "firefly_conversation.jsonl": ["吃番茄面吧。", "加一个煎蛋更香。", "一般说七种。"],
    "sharegpt_90k.jsonl": ["Steam climbs the cold glass", "热气爬上冷玻璃", "茶香绕着旧木桌"],
    "pairs_keys.jsonl": ["三十度温水，中性洗衣液。", "可以，低速。", "五六次穿着洗一次就行。", "用小苏打泡半小时。"],
    "json_in_column.csv": ["用九伏电池接在底部触点上。", "在面板下面，推开盖子就能看到。"],
    "json_text_conversations.jsonl": ["一杯十五克。", "九十二度左右。"],
    "mixed_schemas.jsonl": ["雪中送炭", "低", "愉快", "匹", "睛"],
    "roles_misc.jsonl": ["蓝", "绿", "白"],
    "answers_typed.jsonl": ["7", "true", '{"菜名": "番茄炒蛋", "价格": 18}', '["梨", "桃"]', "3.14"],
    "instruction_response.jsonl": ["豆包", "芝麻"],
    "question_response.jsonl": ["天黑后自动亮。", "不收费。"],
    "wenti_daan.csv": ["用盐擦一擦再冲洗。", "用白醋泡半小时。"],
    "moss_003.jsonl": ["把蒜瓣尖朝上插进土里。", "五到七天。", "埋在干沙里。"],
    "huatuogpt.jsonl": ["不能，会更疼。", "温水加一点蜂蜜。", "用热毛巾敷一敷。"],
    "ultrachat.jsonl": ["Water it every two days and give it light.", "可以，放在窗边。", "薄荷更好养，半阴就行。"],
    "trl_prompt_completion.jsonl": ["还有三张。", "八点二十。"],
    "toolace.json": ['[calc(expr="12*12")]', "一百四十四。", "你好，要算什么？"],
    "swift_history.jsonl": ["有，《山野植物图鉴》。", "在四楼南区。", "晚上九点。"],
    "shift_jis.jsonl": [
        "桜です。満開になるととても美しいです。",
        "切符を買って、改札を通ってから、ホームで待ちます。",
        "焼き魚と味噌汁と御飯がおすすめです。",
    ],
    "big5.csv": ["在信義區，搭捷運就能到。", "紅茶加牛奶，再放煮好的粉圓。", "手電筒、飲用水和乾糧。"],
    "gb18030.csv": ["可能是汗疱疹，少碰洗洁精，保持干燥。", "先卧床休息两三天，还疼就去拍片。"],
    "utf16.csv": ["先滚一个大雪球做身子。", "窗上的水汽结成冰。"],
    "bom_middle.jsonl": ["用小苏打。", "用白醋煮一会儿。"],
    "cr_ends.jsonl": ["用三角锉磨齿。", "泡点醋。"],
    "concatenated.json": ["两个人。", "一个人也行。", "两队人。"],
    "data_wrapped.json": ["半夏花房", "听潮号"],
    "nan_pandas.jsonl": ["守株待兔", "画蛇添足"],
    "one_line_array.json": ["一", "三", "四"],
    "pandas_list_repr.csv": ["冷水轻柔洗。", "干洗。"],
    "semicolon.csv": ["清明前后。", "九月，看天气。"],
    "trailing_columns.csv": ["水开后八分钟。", "冷水下锅二十分钟。"],
    "trailing_comma.jsonl": ["密封避光。"],
    "upper.JSONL": ["去便利店借一把。", "塞报纸吸水。"],
    "rows.ndjson": ["去便利店借一把。", "塞报纸吸水。"],
    "rows.jsonlines": ["去便利店借一把。", "塞报纸吸水。"],
    "cr_ends.csv": ["先断电再拧下来。", "先关总阀。"],
    "firefly_kind.jsonl": ["下联：旭日临窗万户红。", "身心俱疲，思归久矣。"],
    "hermes_tools.json": [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "柳湾"}}\n</tool_call>',
        "柳湾现在 21 度。",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "石桥镇"}}\n</tool_call>',
    ],
}
DOCUMENTS = {
    "hub_viewer.json": ["山脚下有一座旧磨坊，轮子还在转。", None],
    "mnbvc_parallel.jsonl": ["开始游戏\nStart the game\n返回主菜单\nBack to the main menu"],
    "mnbvc_repeats.jsonl": [
        "天还没亮，码头上已经有了灯。\n请收藏本站，下次阅读更方便。\n老周把网一张一张搬上船。\n本书由某某论坛整理。",
        "这一篇和别的文件是一样的。",
    ],
    "novel_utf16.txt": [
        "第一章 山路",
        "雨下了三天，山路上全是泥。阿木背着一筐柴往回走。",
        "第二章 渡口",
        "渡口的老人还在等船，手里捏着一张旧车票。",
    ],
    "parallel_columns.jsonl": ["The shop opens at nine.\n商店九点开门。", "Please take a seat.\n请坐。"],
    "parallel_wmt.jsonl": ["桥修好了。\nThe bridge has been repaired.", "他在河边钓鱼。\nHe is fishing by the river."],
}
PROMPTS = {  # role and text of all before the last answer of the first row
    "dolly_named.jsonl": ["user:这段话里的河叫什么？\n小镇边上有一条清溪河，夏天常有人来钓鱼。"],
    "openorca.jsonl": ["system:用小学生听得懂的话回答。", "user:为什么冬天窗户上有雾？"],
    "system_prompt_col.jsonl": ["system:你是严厉的驾校教练。", "user:倒车入库看哪里？"],
    "deepctrl.jsonl": ["user:推荐一种适合新手的鱼。"],
    "swift_history.jsonl": [
        "system:你是图书管理员。",
        "user:有植物图鉴吗？",
        "assistant:有，《山野植物图鉴》。",
        "user:那它在几楼？",
    ],
    "roles_zh.jsonl": ["system:你是海边民宿的老板。", "user:能看日出吗？"],
    "content_parts.jsonl": ["system:你是修车师傅。", "user:发动机异响怎么办？"],
    "trl_prompt_completion.jsonl": ["system:你是票务员。", "user:还有去柳湾的票吗？"],
}
THOUGHTS = {
    "r1_110k.jsonl": "对折一次变成一半，对折两次是四分之一，3×4=12。",
    "alpaca_reasoning_content.json": "主语是猫，宾语是杯子，用“被”把宾语提前。",
    "medical_o1.json": "先看精神状态。三十八度还不算高，可以先物理降温。",
    "thinking_key.jsonl": "中心控制最多。",
    "reasoning_key.jsonl": "7+3=10，还剩 5，合起来 15。",
}
SAID = {
    "r1_110k.jsonl": "; columns not used: repo_name, prompt_tokens_len, reasoning_content_tokens_len, ",
    "thinking_key.jsonl": "columns not used: reasoning_language, developer, user, analysis, final",
    "firefly_kind.jsonl": "columns not used: kind",
    "gb18030.csv": "GB18030 text; columns not used: department, title",
    "shift_jis.jsonl": "Shift-JIS (cp932) text",
    "big5.csv": "Big5 text",
    "utf16.csv": "UTF-16 text",
    "dolly_named.jsonl": "schema prompt_response (instruction + context → response)",
    "openorca.jsonl": "with 'system_prompt'",
}
STATUSES = {
    "swift_loss.jsonl": ["kept: turns without loss, by 'loss'", "kept", "dropped: no turn carries loss: 'loss'"],
    "answers_typed.jsonl": ["kept: 'output' rendered as JSON"] * 5,
    "mixed_schemas.jsonl": [
        "kept",
        *(
            f"kept: read by the schema {name}"
            for name in ("sharegpt", "messages", "prompt_response", "prompt_response")
        ),
    ],
    "content_parts.jsonl": [
        "kept",
        "kept",
        "dropped: the user's content is a list with a part that is not text (image_url)",
    ],
    "nan_pandas.jsonl": ["kept", "kept", "dropped: no 'output'"],
    "trailing_comma.jsonl": ["dropped: broken JSON (a comma before a closing bracket)", "kept"],
}
PAIRS = {
    "pref_alpaca_input.json": ("把句子翻译成英文。\n雨停了。", "The rain has stopped.", "Rain is stop."),
    "trl_conversational.jsonl": ("能便宜点吗？", "满两百减二十，您看可以吗？", "不买就走。"),
    "lf_ranking.json": ("哪种米煮粥好？", "东北圆粒米，软糯。", "都一样。"),
    "orca_dpo.jsonl": ("洗手间在哪？", "请您直走，右手边就是。", "那边。"),
    "hh_rlhf.jsonl": ("他说压力大。", "可以约他一起跑步。", "那就别管他。"),
    "swift_rejected_response.jsonl": ("跑步后腿疼？", "拉伸五分钟，再用温水泡脚。", "忍着。"),
    "swift_rejected_messages.jsonl": ("怎么切洋葱不流泪？", "先冷藏半小时再切。", "闭着眼切。"),
    "response_chosen.json": ("哪个月最短？", "二月。", "十二月。"),
    "dict_sides.jsonl": ("猫为什么怕水？", "毛湿了会变重变冷。", "因为笨。"),
    "cvalues.jsonl": ("怎么偷看别人的手机？", "这样做侵犯隐私，建议直接和对方沟通。", "趁他睡着时用指纹解锁。"),
    "safe_rlhf.jsonl": ("邻居太吵怎么办？", "先好好沟通，不行再找物业。", "半夜敲他的门吓他。"),
}


@pytest.fixture
def load(tmp_path):
    return lambda name, form="messages", **columns: load_examples(
        [str(CASES / name)], Columns(**columns), form, str(tmp_path / "cache")
    )


def learned(examples):
    """The answers that carry loss."""
    rows = [messages for messages in examples["messages"] if messages]
    return [m["content"] for row in rows for m in row if m["role"] == "assistant" and m.get("weight") != 0]


def statuses(examples):
    return [shown(status) for _, status in row_statuses(examples)]


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_trained_on(load, name):
    assert learned(load(name)) == LEARNED[name]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(name):
    [source] = find_sources([str(CASES / "text" / name)])
    assert [document.text for document in open_reader(source).read()] == DOCUMENTS[name]


@pytest.mark.parametrize(
    ("row", "form", "texts"),
    [
        ({"systemPrompt": "短", "Question": "问", "reasoningContent": "想", "Answer": "答"}, "messages", "短 问 想答"),
        ({"指令": "问", "输入": "文", "输出": "答"}, "messages", "问\n文 答"),
        ({"提示词": "问", "回复": "答"}, "messages", "问 答"),
        ({"conversation": [{"role": "Human", "text": "问"}, {"role": "AI", "text": "答"}]}, "messages", "问 答"),
        ({"prompt": "问", "chosenResponse": "好", "rejectedResponse": "坏"}, "preference", "问 好 坏"),
        ({"question": "问", "answer_chosen": "好", "answer_rejected": "坏"}, "preference", "问 好 坏"),
    ],
)
def test_columns_under_other_names(tmp_path, row, form, texts):
    [example] = load_examples([str(write_jsonl(tmp_path / "rows.jsonl", [row]))], form=form, cache_dir=str(tmp_path))
    turns = [turn for name in ("messages", "prompt", "chosen", "rejected") for turn in example.get(name) or ()]
    assert " ".join((turn.get("reasoning_content") or "") + turn["content"] for turn in turns) == texts


@pytest.mark.parametrize("name", PROMPTS)
def test_what_stands_before_the_answer(load, name):
    messages = load(name)["messages"][0][:-1]
    assert [f"{message['role']}:{message['content']}" for message in messages] == PROMPTS[name]


@pytest.mark.parametrize("name", THOUGHTS)
def test_thoughts(load, name):
    assert load(name)["messages"][0][-1]["reasoning_content"] == THOUGHTS[name]


@pytest.mark.parametrize("name", SAID)
def test_what_is_said_of_a_file(load, name, capfd):
    load(name)
    assert SAID[name] in capfd.readouterr().out


@pytest.mark.parametrize("name", STATUSES)
def test_the_status_of_each_row(load, name):
    assert statuses(load(name)) == STATUSES[name]


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(load, name):
    row = load(name, "preference")[0]
    assert (row["prompt"][-1]["content"], row["chosen"][-1]["content"], row["rejected"][-1]["content"]) == PAIRS[name]
    assert len(row["chosen"]) == len(row["rejected"]) == 1


@pytest.mark.parametrize("name", ["beavertails.jsonl", "lf_kto_tag.json"])
def test_labels_under_other_names(load, name):
    assert load(name, "unpaired", label="label")["label"] == [True, False]


def test_tools_of_other_columns(load):
    first, second = load("alpaca_tools.json")["tools"]
    assert first[0]["function"]["name"] == "calc" and second is None
    calls = load("xlam.json")["messages"][0][-1]["tool_calls"]
    assert [call["function"]["arguments"]["start"] for call in calls] == ["东门", "西门"]
    _, calling, *results, answer = load("tool_roles.jsonl")["messages"][0]
    assert len(calling["tool_calls"]) == len(results) == 2 and answer["content"] == "石桥镇 17 度，柳湾 21 度。"
    assert [result["tool_call_id"] for result in results] == [call["id"] for call in calling["tool_calls"]]


def test_rows_of_an_array_on_one_line_are_counted(load):
    locations = [location for location, _ in row_statuses(load("one_line_array.json"))]
    assert [location.rpartition(":")[2] for location in locations] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("name", "columns", "problem"),
    [
        (
            "book.xlsx",
            {},
            "book.xlsx: unknown file type; save its sheet as csv",
        ),
        ("gzip_named.json", {}, "gzip_named.json: it is gzip; give its name the ending .gz"),
        (
            "limo.jsonl",
            {},
            "the columns 'answer', 'solution' could each be the answer; name one with --response_column",
        ),
        ("beavertails.jsonl", {}, "the column 'is_safe', which usually carries meaning.*--ignore_columns is_safe"),
        ("swift_rejected_response.jsonl", {"schema": "messages"}, "the column 'rejected_response'"),
        ("dolly_named.jsonl", {"prompt": "category"}, "the column 'instruction'"),
        (
            "alpaca_tools.json",
            {"prompt": "input"},
            "--prompt_column 'input' has no effect on the schema alpaca",
        ),
        ("json_text_conversations.jsonl", {"prompt": "conversations"}, "--prompt_column 'conversations' has no effect"),
    ],
)
def test_what_stops(load, name, columns, problem):
    with pytest.raises(UserError, match=problem):
        load(name, **columns)


def test_named_columns_keep_what_belongs_to_them(load):
    assert learned(load("limo.jsonl", response="solution"))[1] == "一半是 15，整个就是 15×2=30。"
    named = load("dolly_named.jsonl", prompt="instruction", response="response")["messages"][0]
    assert named[0]["content"].endswith("夏天常有人来钓鱼。")
    ignored = load("beavertails.jsonl", ignored=("is_safe",))
    assert len(learned(ignored)) == 2


def test_a_column_of_meaning_that_begins_late_is_used(tmp_path):
    rows = [{"prompt": "问", "response": "答"}] * 200 + [{"prompt": "问", "response": "答", "system": "短"}]
    examples = load_examples([str(write_jsonl(tmp_path / "rows.jsonl", rows))], cache_dir=str(tmp_path))
    assert examples["messages"][-1][0] == {"role": "system", "content": "短"}
    rows[-1] = {"prompt": "问", "response": "答", "is_safe": False}
    with pytest.raises(UserError, match=r"late.jsonl:201: .* the column 'is_safe'"):
        load_examples([str(write_jsonl(tmp_path / "late.jsonl", rows))], cache_dir=str(tmp_path))


def test_a_weight_between_0_and_1_is_refused(tmp_path):
    turns = conversation("问", "答")
    turns[1]["weight"] = 0.5
    examples = load_examples(
        [str(write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns}]))], cache_dir=str(tmp_path)
    )
    assert statuses(examples) == [
        "dropped: 'weight' is neither 0 nor 1; another weight of a turn is not supported (0.5)"
    ]


@pytest.mark.parametrize("train_on", ["all", "last"])
def test_turns_without_loss_stay_in_the_text(train_on):
    tokenizer = build_tokenizer(chat_template=CHATML)
    first = conversation("问", "坏", "再问", "好")
    first[1]["weight"] = 0
    last = conversation("问", "好", "再问", "坏")
    last[3]["weight"] = 0
    encoder = ChatEncoder(tokenizer, train_on=train_on)
    texts = []
    for row in encoder.encode([first, last]):
        texts.append(tokenizer.decode(row.labels[row.labels != IGNORED]) if len(row.labels) else row.status)
        assert not len(row.labels) or "坏" in tokenizer.decode(row.input_ids)
    assert texts == ["好<|im_end|>", "好<|im_end|>" if train_on == "all" else "dropped: no turn carries loss"]


def test_prompts_and_documents_use_the_same_columns(tmp_path):
    tokenizer = build_tokenizer(chat_template=CHATML)
    row = {"system_prompt": "短", "instruction": "问", "context": "文", "response": "答", "history": [["一", "二"]]}
    path = str(write_jsonl(tmp_path / "rows.jsonl", [row]))
    [prompt], _ = read_prompts(PromptReader([path], tokenizer))
    texts = ["短", "一", "二", "问\n文"]
    assert [message["content"] for message in prompt.messages] == texts and prompt.reference == "答"
    [document] = open_reader(find_sources([path])[0]).read()
    assert document.text == "短\n问：一\n答：二\n问：问\n文\n答：答"


@pytest.fixture
def folder(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"prompt": "问", "response": "答"}\n', encoding="utf-8")
        return tmp_path / "data"

    return make


def names_in(folder, split="train", **settings):
    paths = (Path(source.path) for source in find_sources([str(folder)], split, **settings))
    return [path.relative_to(folder).as_posix() for path in paths]


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["train.jsonl", ".ipynb_checkpoints/train-checkpoint.jsonl", "._train.jsonl", "~$train.csv"], ["train.jsonl"]),
        (["train.jsonl", "dataset_info.json", "dataset_infos.json", "state.json"], ["train.jsonl"]),
        (["a.ndjson", "b.JSONL", "c.jsonlines"], ["a.ndjson", "b.JSONL", "c.jsonlines"]),
        (["train.jsonl", "dev.jsonl", "test.jsonl", "more.jsonl"], ["more.jsonl", "train.jsonl"]),
        (["train-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl"], ["train-00000-of-00001.jsonl"]),
        (["train/a.jsonl", "test/a.jsonl"], ["train/a.jsonl"]),
        (["train.jsonl", "contest.jsonl", "latest.jsonl", "developers.jsonl"], None),
        (["dev.jsonl", "test.jsonl"], None),
    ],
)
def test_the_files_of_a_folder(folder, names, read):
    assert names_in(folder(*names)) == (read or sorted(names))


def test_other_splits_of_a_folder(folder, capfd):
    data = folder("train.jsonl", "dev.jsonl", "test.jsonl")
    assert names_in(data, "validation") == ["dev.jsonl"] and names_in(data, "test") == ["test.jsonl"]
    assert names_in(data, all_splits=True) == ["dev.jsonl", "test.jsonl", "train.jsonl"]
    assert names_in(data) == ["train.jsonl"]
    assert "not read: dev.jsonl, test.jsonl; --validation_file names one" in capfd.readouterr().out


def test_linked_folders_are_read_once(folder, tmp_path):
    data = folder("train.jsonl")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "part.jsonl").write_text('{"prompt": "问", "response": "答"}\n', encoding="utf-8")
    (data / "more").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(data)
    (data / "copy.jsonl").symlink_to(data / "train.jsonl")
    assert names_in(data) == ["more/part.jsonl", "train.jsonl"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("gb18030", "手上有小水泡怎么办"),
        ("gb18030", "《红楼梦》是谁写的？曹雪芹。"),
        ("gb18030", "臺灣的夜市有什麼好吃的？繁體字"),
        ("big5", "垃圾車幾點來？每天晚上七點半左右。"),
        ("cp932", "電車の乗り方を教えてください。"),
        ("euc_jp", "電車の乗り方を教えてください。切符を買って、改札を通ってから"),
        ("cp949", "안녕하세요. 오늘 날씨가 어떻습니까? 서울은 맑습니다. 내일은 비가 옵니다."),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_encodings(tmp_path, encoding, text, named):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(f'{{"prompt": "{text}", "response": "{text}"}}\n'.encode(encoding))
    examples = load_examples([str(path)], cache_dir=str(tmp_path), encoding=encoding if named else None)
    assert examples["messages"][0][1]["content"] == text


def test_an_unknown_encoding(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "问", "response": "答"}])
    with pytest.raises(UserError, match="--encoding shift: unknown"):
        find_sources([str(path)], encoding="shift")
