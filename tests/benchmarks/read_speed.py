"""How fast rows of each schema become examples, beside the plain parsing of their JSON.

    python tests/benchmarks/read_speed.py [ROWS]

CPU seconds of this process, the best of three: of `load_examples` into an empty cache, and of `json.loads` of the same
lines. The last column is the ratio, which machines and their load change little.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

from hf_recipes.data.examples import load_examples
from hf_recipes.data.schemas.columns import Columns
from hf_recipes.data.schemas.registry import REGISTRY

QUESTION, ANSWER = "怎么在阳台上养好一盆薄荷？", "放在通风有光的地方，土干了再浇透水，每月剪一次枝条，冬天搬进屋里。"
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}] * 2
ROWS = {
    "prompt_response": ("messages", {"prompt": QUESTION, "response": ANSWER}),
    "alpaca": ("messages", {"instruction": QUESTION, "input": "家里朝北。", "output": ANSWER}),
    "messages": ("messages", {"messages": TURNS}),
    "sharegpt": (
        "messages",
        {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}] * 2},
    ),
    "promptcblue": (
        "messages",
        {"input": QUESTION, "target": ANSWER, "answer_choices": ["是", "否"], "task_type": "cls", "task_dataset": "X"},
    ),
    "preference": ("preference", {"prompt": QUESTION, "chosen": ANSWER, "rejected": "不知道。"}),
    "unpaired": ("unpaired", {"prompt": QUESTION, "completion": ANSWER, "label": True}),
    "turns": ("messages", {"dialog": [{"question": QUESTION, "answer": ANSWER}] * 2}),
    "xlam": (
        "messages",
        {
            "query": QUESTION,
            "answers": json.dumps([{"name": "search", "arguments": {"text": QUESTION}}], ensure_ascii=False),
            "tools": json.dumps([{"name": "search", "description": ANSWER, "parameters": {"text": {"type": "str"}}}]),
        },
    ),
    "text": ("text", {"text": ANSWER * 3}),
    "code": ("documents", {"code": "def add(a, b):\n    return a + b\n", "language": "python"}),
    "article": ("documents", {"title": QUESTION, "content": ANSWER * 3}),
    "baike": ("documents", {"title": "薄荷", "summary": ANSWER, "sections": [{"title": "栽培", "content": ANSWER}]}),
    "parallel": ("documents", {"zh_text": ANSWER, "en_text": "Water it once the soil is dry."}),
    "mnbvc": (
        "documents",
        {"文件名": "薄荷.txt", "段落": [{"行号": 0, "内容": QUESTION}, {"行号": 1, "内容": ANSWER}]},
    ),
}


def seconds(function, *args, **kwargs) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        function(*args, **kwargs)
        times.append(time.process_time() - start)
    return min(times)


def read(path: Path, name: str, form: str) -> None:
    columns = Columns(reads="documents") if form == "documents" else Columns()
    form = "text" if form == "documents" else form
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as cache, contextlib.redirect_stdout(said):
        assert len(load_examples([str(path)], columns, form, cache_dir=cache)) > 0
    assert f"schema {name}" in said.getvalue(), said.getvalue()


def parse(path: Path) -> None:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            json.loads(line)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    assert {schema.name for schema in REGISTRY} <= ROWS.keys()
    print(f"{'schema':16}{'examples':>12}{'json':>8}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name, (form, row) in ROWS.items():
            path = Path(folder, f"{name}.jsonl")
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps({**row, "id": number}, ensure_ascii=False) + "\n" for number in range(count))
            whole, plain = seconds(read, path, name, form), seconds(parse, path)
            print(f"{name:16}{whole:10.2f} s{plain:6.2f} s{whole / plain:8.1f}", flush=True)


if __name__ == "__main__":
    main()
