"""Time and peak memory of prepare_bilibili.py over made-up comments, without and with the search for near duplicates.

    python tests/benchmarks/import_speed.py [--comments 1000000] [--flags=--privacy]

A video has about 300 comments, a third of them replies; of a hundred comments two are copies of a long one, with a
character or two changed. All examples are written.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = 200  # different texts that are copied
PER_VIDEO = 300


def write_crawl(folder: Path, count: int, seed: int = 0) -> None:
    draw = random.Random(seed)
    texts = [
        json.loads(line)["text"]
        for path in sorted((ROOT / "datasets" / "pretrain").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    characters = "".join(text.replace("\n", "") for text in texts)

    def words(least: int, most: int) -> str:
        pieces = []
        for _ in range(draw.randint(least, most) // 4):
            start = draw.randrange(len(characters) - 4)
            pieces.append(characters[start : start + 4])
        return "".join(pieces)

    copied = [words(60, 200) for _ in range(COPIED)]
    videos = [
        {"video_id": str(10**14 + n), "title": words(12, 30), "desc": words(20, 200)}
        for n in range(count // PER_VIDEO + 1)
    ]
    with open(folder / "search_contents.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(video, ensure_ascii=False) + "\n" for video in videos)
    with open(folder / "search_comments.json", "w", encoding="utf-8") as file:
        for number in range(count):
            parent, nickname = 0, words(8, 8)
            text = words(8, 80)
            if number % PER_VIDEO and number % 3 == 0:
                parent = 25 * 10**10 + draw.randrange(number - number % PER_VIDEO, number)
                text = f"回复 @{nickname} :{text}"
            if draw.random() < 0.02:
                text = draw.choice(copied)
                location = draw.randrange(len(text))
                text = text[:location] + draw.choice(characters) + text[location + 1 :]
            row = {
                "comment_id": str(25 * 10**10 + number),
                "parent_comment_id": str(parent),
                "create_time": 1736959931 + number,
                "video_id": videos[number // PER_VIDEO]["video_id"],
                "content": text,
                "user_id": str(draw.randrange(10**9)),
                "nickname": words(8, 8),
                "sex": "保密",
                "sign": "",
                "avatar": "https://i1.hdslb.com/bfs/face/0123456789abcdef0123456789abcdef01234567.jpg",
                "sub_comment_count": "0",
                "like_count": draw.randrange(100),
                "last_modify_ts": 1737212363101,
            }
            file.write(("[\n" if number == 0 else ",\n") + json.dumps(row, ensure_ascii=False, indent=4))
        file.write("\n]")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--comments", type=int, default=1_000_000)
    parser.add_argument("--flags", nargs="*", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        crawl = Path(folder, "crawl")
        crawl.mkdir()
        write_crawl(crawl, options.comments)
        print(f"{options.comments:,} comments, {sum(path.stat().st_size for path in crawl.iterdir()) / 1e6:,.0f} MB")
        for near in (False, True):
            command = [
                sys.executable,
                ROOT / "scripts" / "prepare_bilibili.py",
                "--input_dir",
                crawl,
                "--test_size",
                "0.01",
            ]
            command += ["--output_dir", Path(folder, f"out-{near}"), "--near_dedup", str(near), *options.flags]
            start = time.perf_counter()
            process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0
            seconds = time.perf_counter() - start
            name = "with near duplicates" if near else "without"
            work = usage.ru_utime + usage.ru_stime
            print(f"{name:22}{seconds:8.1f} s ({work:.1f} s of CPU){usage.ru_maxrss / 1024:10,.0f} MB", flush=True)


if __name__ == "__main__":
    main()
