"""SFT on this machine's CPU beside LLaMA-Factory, ms-swift and TRL: the same rows, model, batch, length and steps.

    python tests/benchmarks/peers.py --model_name_or_path MODEL [--steps 6] [--rounds 3] [--peers llama_factory trl]

Each is installed from the package index into an environment of its own under .cache/peers, once, hf_recipes without
extras, and run by its own command; what cannot be installed or run is said. LoRA r=8 on all linear layers, bfloat16
arithmetic, packed rows and padded ones, each round in another order. Every `training_step` of transformers' Trainer,
which all of them run, is timed and its tokens are counted, without padding; the first step is left out. Ratios are of
medians over the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from tokenize_speed import made_up_rows

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".cache" / "peers"
# To install one after the other, and to take out again: torchvision and torchaudio are of another torch.
PEERS = {
    "hf_recipes": (["torch==2.13.0", f"--constraint={ROOT / 'constraints.txt'} {ROOT}"], []),
    "llama_factory": (["torch==2.13.0", "llamafactory==0.9.5"], ["torchvision", "torchaudio"]),
    "ms_swift": (["torch==2.13.0", "ms-swift==4.6.0"], []),
    "trl": (["torch==2.13.0", "trl[peft]==1.16.0"], []),
}
# Imported by every Python of a run: it counts the tokens of each step of transformers' Trainer.
COUNTER = """
import importlib.abc, importlib.util, json, os, sys, time
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "transformers.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def loaded(module):
            load(module)
            count(module.Trainer)
        spec.loader.exec_module = loaded
        return spec
def count(trainer):
    step = trainer.training_step
    def counted(self, model, inputs, *args, **kwargs):
        mask, ids = inputs.get("attention_mask"), inputs["input_ids"]
        tokens = int((mask != 0).sum()) if mask is not None and mask.ndim == 2 else ids.numel()
        shape = list(ids.shape)
        start, cpu = time.time(), time.process_time()
        loss = step(self, model, inputs, *args, **kwargs)
        with open(os.environ["STEPS"], "a") as file:
            line = [start, time.time(), time.process_time() - cpu, tokens, shape, str(loss.device), self.args.bf16]
            file.write(json.dumps(line) + "\\n")
        return loss
    trainer.training_step = counted
sys.meta_path.insert(0, Finder())
"""


def install(name: str) -> str | None:
    """Make the environment of a peer; what went wrong, if anything."""
    folder = ENVIRONMENTS / name
    packages, without = PEERS[name]
    done, python = folder / ".installed", folder / "bin" / "python"
    if done.exists():
        return None
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    commands = [
        [sys.executable, "-m", "venv", folder],
        *([*pip, "install", "--quiet", *one.split()] for one in packages),
    ]
    if without:
        commands += [[*pip, "uninstall", "--quiet", "-y", *without]]
        commands += [[*pip, "install", "--quiet", "--no-deps", packages[0]]]
    for command in commands:
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if result.returncode:
            return f"{command[-1]} cannot be installed: {result.stderr.strip().splitlines()[-1]}"
    done.touch()
    return None


def versions(python: Path) -> str:
    code = (
        "from importlib.metadata import version, PackageNotFoundError\n"
        "for name in ('llamafactory', 'ms_swift', 'trl', 'transformers', 'peft', 'torch'):\n"
        "    try: print(name, version(name), end=', ')\n"
        "    except PackageNotFoundError: pass"
    )
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True).stdout.strip(", \n")


def command_of(name: str, options: argparse.Namespace, folder: Path, packing: bool) -> list[str]:
    """The command line of hf_recipes or a peer, over `rows.json` and its like in `folder`."""
    model, steps = str(Path(options.model_name_or_path).resolve()), options.steps
    common = {
        "per_device_train_batch_size": options.batch,
        "max_steps": steps,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": folder / "run",
    }
    binaries = ENVIRONMENTS / name / "bin"
    if name == "hf_recipes":
        mine = {"model_name_or_path": model, "train_file": folder / "alpaca.json", "max_length": options.length}
        mine |= {"packing": packing, "use_lora": True, "cache_dir": folder / "cache", "save_only_model": True}
        return flags([binaries / "hf-recipes", "sft"], {**common, **mine})
    if name == "llama_factory":
        mine = {"model_name_or_path": model, "stage": "sft", "do_train": True, "finetuning_type": "lora"}
        mine |= {"lora_rank": 8, "lora_alpha": 16, "lora_target": "all", "dataset": "rows", "dataset_dir": folder}
        mine |= {"template": "default", "cutoff_len": options.length, "bf16": True, "use_cpu": True}
        mine |= {"overwrite_cache": True}
        mine |= {"packing": packing, "neat_packing": packing, "gradient_accumulation_steps": 1}
        mine |= {"overwrite_output_dir": True, "disable_gradient_checkpointing": True}
        return flags([binaries / "llamafactory-cli", "train"], {**common, **mine})
    if name == "ms_swift":
        mine = {"model": model, "model_type": "llama", "template": "chatml", "dataset": folder / "messages.jsonl"}
        mine |= {"tuner_type": "lora", "lora_rank": 8, "lora_alpha": 16, "target_modules": "all-linear"}
        mine |= {"torch_dtype": "bfloat16", "max_length": options.length, "packing": packing, "use_hf": True}
        mine |= {"gradient_accumulation_steps": 1, "gradient_checkpointing": False, "load_from_cache_file": False}
        return flags([binaries / "swift", "sft"], {**common, **mine})
    mine = {"model_name_or_path": model, "dataset_name": folder / "trl", "max_length": options.length}
    mine |= {"use_peft": True, "lora_r": 8, "lora_alpha": 16, "lora_target_modules": "all-linear", "bf16": True}
    mine |= {"packing": packing, "gradient_checkpointing": False, "use_cpu": True, "dtype": "bfloat16"}
    return flags([binaries / "trl", "sft"], {**common, **mine})


def flags(start: list, values: dict) -> list[str]:
    return [*map(str, start), *(item for key, value in values.items() for item in (f"--{key}", str(value)))]


def write_rows(folder: Path, count: int) -> None:
    """The same rows in the form that each command reads."""
    rows = made_up_rows(count)
    talks = [
        [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        for row in rows
    ]
    alpaca = [{"instruction": row["instruction"], "input": "", "output": row["output"]} for row in rows]
    (folder / "alpaca.json").write_text(json.dumps(alpaca, ensure_ascii=False), encoding="utf-8")
    described = {"rows": {"file_name": "alpaca.json"}}
    (folder / "dataset_info.json").write_text(json.dumps(described), encoding="utf-8")
    lines = "".join(json.dumps({"messages": talk}, ensure_ascii=False) + "\n" for talk in talks)
    (folder / "messages.jsonl").write_text(lines, encoding="utf-8")
    (folder / "trl").mkdir()
    pairs = ({"prompt": talk[:1], "completion": talk[1:]} for talk in talks)
    lines = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
    (folder / "trl" / "train.jsonl").write_text(lines, encoding="utf-8")
    (folder / "llama_factory").mkdir()
    (folder / "llama_factory" / "torchaudio.py").touch()  # it imports it, and uses it for sound alone
    (folder / "counter").mkdir()
    (folder / "counter" / "sitecustomize.py").write_text(COUNTER, encoding="utf-8")


def run(name: str, options: argparse.Namespace, folder: Path, packing: bool) -> dict | str:
    """Speed, start and memory of one run; in words why there are none."""
    steps, log = folder / "steps", folder / f"{name}.log"
    steps.unlink(missing_ok=True)
    subprocess.run(["rm", "-rf", folder / "run", folder / "cache"], check=True)
    paths = [folder / "counter", ROOT if name == "hf_recipes" else folder / name]
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "STEPS": str(steps)}
    settings |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    begin, peak = time.time(), 0
    with log.open("w") as output:
        process = psutil.Popen(
            command_of(name, options, folder, packing), stdout=output, stderr=output, env=settings, cwd=folder
        )
        while process.poll() is None:
            try:
                family = [process, *process.children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in family))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.2)
    lines = [json.loads(line) for line in steps.read_text().splitlines()] if steps.exists() else []
    if len(lines) < 2:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return f"no step: {last[-1][:200] if last else process.returncode}"
    tokens, cpu = sum(line[3] for line in lines[1:]), sum(line[2] for line in lines[1:])
    return {
        "tokens/s": tokens / (lines[-1][1] - lines[0][1]),
        "tokens/s of CPU": tokens / cpu,
        "start, s": lines[0][1] - begin,
        "peak, MB": peak / 1e6,
        "shapes": sorted({tuple(line[4]) for line in lines})[-2:],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS)[1:], default=list(PEERS)[1:])
    parser.add_argument("--shapes", nargs="*", choices=("packed", "padded"), default=["packed", "padded"])
    options = parser.parse_args()
    names = []
    for name in ("hf_recipes", *options.peers):
        problem = install(name)
        print(f"{name}: {problem or versions(ENVIRONMENTS / name / 'bin' / 'python')}", flush=True)
        names += [] if problem else [name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_rows(folder, options.rows)
        for shape in options.shapes:
            results: dict[str, list[dict]] = {}
            for number in range(options.rounds):
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    result = run(name, options, folder, shape == "packed")
                    print(f"{shape}, round {number + 1}, {name}: {result}", flush=True)
                    if isinstance(result, dict):
                        results.setdefault(name, []).append(result)
            print_table(shape, results)


def print_table(shape: str, results: dict[str, list[dict]]) -> None:
    columns = ("tokens/s", "tokens/s of CPU", "start, s", "peak, MB")
    print(f"\n{shape + ', medians':20}" + "".join(f"{column:>17}" for column in columns) + "   hf_recipes is")
    medians = {
        name: {column: statistics.median(run[column] for run in runs) for column in columns}
        for name, runs in results.items()
    }
    for name, values in medians.items():
        ratios = [medians["hf_recipes"][column] / values[column] for column in columns[:2]]
        print(f"{name:20}" + "".join(f"{values[column]:17,.1f}" for column in columns), end="")
        print(f"   {ratios[0]:.2f} × by the clock, {ratios[1]:.2f} × by CPU time", flush=True)


if __name__ == "__main__":
    main()
