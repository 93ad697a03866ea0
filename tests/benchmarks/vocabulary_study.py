"""Bits per character of an extended model beside its base, over the same seconds of training.

    python tests/benchmarks/vocabulary_study.py --model_name_or_path MODEL --train_file zh.jsonl --held_out held.jsonl \
        --arms base 8000:mean 8000:random --minutes 4 --seeds 0 --output_dir runs/vocabulary

An arm is ``base``, or ``TOKENS:INITIALIZATION``, or that with ``:embeddings``: the embeddings alone in the first
quarter of the time, at ten times the learning rate. All arms see the same texts in the same order, in steps of as many
tokens. Seconds are steps by the tokens a second of each arm, which are measured first, in turn: what else the machine
does during the training changes nothing. results.json and curves.png are written after each arm, and a rate or an arm
that is in results.json already is not measured again: those of the docs are results/vocabulary_study.json and, of an
hour an arm, vocabulary_study_hour.json. After a kill the same command goes on at the last evaluation.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path

from hf_recipes.core.files import write_json

SCRIPTS = Path(__file__).parents[2] / "scripts"
LOG = "trainer_state.json"
FIRST, FASTER = 0.25, 10  # of an arm with embeddings first: their share of the time, and their learning rate's factor
EVALUATIONS = 8


@dataclass
class Arm:
    """`seconds` of training and `bits` per character at each evaluation."""

    name: str
    seed: int
    seconds: list[float] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--held_out", required=True)
    parser.add_argument("--arms", nargs="+", default=["base", "8000:mean", "8000:random"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--steps", type=int, help="optimizer steps of every arm, in place of --minutes")
    parser.add_argument("--tokens_per_second", type=float, help="of every arm, in place of measuring it")
    parser.add_argument("--block_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    path = args.output_dir / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rates": {}, "arms": []}
    rates, arms = results["rates"], [Arm(**arm) for arm in results["arms"]]
    for name in args.arms:
        rates[name] = rates.get(name) or rate(args, name)
    for seed, name in product(args.seeds, args.arms):
        if not any(arm.name == name and arm.seed == seed for arm in arms):
            arms.append(run_arm(args, name, seed, rates[name]))
            write_json(path, {"rates": rates, "arms": [vars(arm) for arm in arms]})
            draw(arms, args.output_dir / "curves.png")
    summary = [summarise(arm, [other for other in arms if other.name == "base"]) for arm in arms]
    print(f"{'arm':24} {'seed':>4} {'at once':>9} {'at the end':>11} {'seconds':>8}  below its base from")
    for row in summary:
        crossed = "never" if row["crossed"] is None else f"{row['crossed']:,.0f} s on"
        last = "" if row["arm"] == "base" else crossed
        print(f"{row['arm']:24} {row['seed']:4} {row['first']:9.4f} {row['last']:11.4f} {row['seconds']:8,.0f}  {last}")
    print(f"picture: {args.output_dir / 'curves.png'}")


def script(name: str, *flags: object) -> None:
    done = subprocess.run([sys.executable, str(SCRIPTS / name), *map(str, flags)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + f"\n{name} ended with {done.returncode}")


def run_arm(args: argparse.Namespace, name: str, seed: int, tokens_per_second: float) -> Arm:
    """Train one arm, in one run or two."""
    model, folder = extended(args, name), args.output_dir / name.replace(":", "-") / f"seed{seed}"
    seconds_per_step = args.batch_size * args.block_size / tokens_per_second
    steps = args.steps or round(args.minutes * 60 / seconds_per_step)
    phases = [(steps, args.learning_rate, [])]
    if name.endswith(":embeddings"):
        first = max(1, round(steps * FIRST))
        alone = (first, args.learning_rate * FASTER, ["--train_only", "embeddings"])
        phases = [alone, (steps - first, args.learning_rate, [])]
    arm = Arm(name, seed)
    for number, (count, learning_rate, flags) in enumerate(phases):
        run = folder / f"phase{number}"
        every = max(1, count // EVALUATIONS)
        settings = [*flags, "--learning_rate", learning_rate, "--eval_strategy", "steps", "--eval_steps", every]
        settings += [
            "--eval_on_start",
            number == 0,
            "--logging_steps",
            every,
            "--save_steps",
            every,
            "--seed",
            42 + seed,
        ]
        train(args, model, run, count, settings)
        read_curve(arm, run, seconds_per_step)
        model = run
    return arm


def train(args: argparse.Namespace, model: object, run: Path, steps: int, flags: list) -> None:
    if (run / LOG).is_file() and json.loads((run / LOG).read_text(encoding="utf-8"))["global_step"] == steps:
        return
    settings = ["--model_name_or_path", model, "--train_file", args.train_file, "--output_dir", run]
    settings += ["--validation_file", f"held={args.held_out}" if "=" not in args.held_out else args.held_out]
    settings += ["--use_lora", "false", "--block_size", args.block_size, "--max_steps", steps, "--report_to", "none"]
    settings += ["--per_device_train_batch_size", args.batch_size, "--per_device_eval_batch_size", args.batch_size]
    again = ["--resume_from_checkpoint", "true"] if any(run.glob("checkpoint-*")) else ["--overwrite_output_dir"]
    script("pretrain.py", *settings, "--warmup_steps", 0.05, "--save_total_limit", 1, *again, *flags)
    checkpoint = run / f"checkpoint-{steps}"  # of three times the weights' size
    shutil.copyfile(checkpoint / LOG, run / LOG)
    shutil.rmtree(checkpoint)


def rate(args: argparse.Namespace, name: str) -> float:
    """Tokens a second, of the fastest pair of steps in a short run: other work can only slow the others."""
    if args.tokens_per_second:
        return args.tokens_per_second
    run = args.output_dir / name.replace(":", "-") / "rate"
    train(args, extended(args, name), run, 10, ["--eval_strategy", "no", "--logging_steps", 2])
    return max(entry["tokens_per_second"] for entry in history(run) if "tokens_per_second" in entry)


def extended(args: argparse.Namespace, name: str) -> object:
    """The folder of the model that an arm begins with."""
    if name == "base":
        return args.model_name_or_path
    tokens, initialization = name.split(":")[:2]
    tokenizer = args.output_dir / f"tokenizer-{tokens}"
    model = args.output_dir / f"model-{tokens}-{initialization}"
    if not tokenizer.is_dir():
        flags = ["--tokenizer_name", args.model_name_or_path, "--train_file", args.train_file]
        script("extend_tokenizer.py", *flags, "--num_new_tokens", tokens, "--output_dir", tokenizer)
    if not model.is_dir():
        flags = ["--model_name_or_path", args.model_name_or_path, "--tokenizer_name", tokenizer]
        script("extend_model.py", *flags, "--initialization", initialization, "--output_dir", model)
    return model


def history(run: Path) -> list[dict]:
    return json.loads((run / LOG).read_text(encoding="utf-8"))["log_history"]


def read_curve(arm: Arm, run: Path, seconds_per_step: float) -> None:
    begun = arm.seconds[-1] if arm.seconds else 0.0
    for entry in history(run):
        for key, value in entry.items():
            if key.endswith("bits_per_character"):
                arm.seconds.append(begun + entry["step"] * seconds_per_step)
                arm.bits.append(value)


def summarise(arm: Arm, bases: list[Arm]) -> dict:
    base = next((base for base in bases if base.seed == arm.seed), None)
    below = [s for s, bits in zip(arm.seconds, arm.bits, strict=True) if base and bits < at(base, s)]
    figures = {"first": arm.bits[0], "last": arm.bits[-1], "seconds": arm.seconds[-1]}
    return {"arm": arm.name, "seed": arm.seed, **figures, "crossed": below[0] if below else None}


def at(arm: Arm, seconds: float) -> float:
    """Bits per character of `arm` after so many seconds, on straight lines between its evaluations."""
    for (a, left), (b, right) in pairwise(zip(arm.seconds, arm.bits, strict=True)):
        if a <= seconds <= b and b > a:
            return left + (right - left) * (seconds - a) / (b - a)
    return arm.bits[0] if seconds < arm.seconds[0] else arm.bits[-1]


def draw(arms: list[Arm], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(7, 4), dpi=120)
    colours = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(arm.name for arm in arms))}
    for arm in arms:
        label = arm.name if arm.seed == 0 else None
        panel.plot(arm.seconds, arm.bits, marker=".", color=colours[arm.name], label=label)
    panel.set(xlabel="seconds of training", ylabel="bits per character, held-out Chinese")
    panel.legend()
    panel.grid(alpha=0.3)
    figure.tight_layout()
    os.makedirs(path.parent, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
