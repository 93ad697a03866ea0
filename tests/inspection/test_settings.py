"""Which stage an inspection is for."""

import pytest

from conftest import ROOT, write_jsonl
from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError
from hf_recipes.inspection.settings import read_settings

RECIPES = {
    "bilibili_demo": "sft",
    "demo": "sft",
    "dpo": "dpo",
    "dpo_demo": "dpo",
    "grpo": "grpo",
    "grpo_demo": "grpo",
    "kto": "kto",
    "orpo_demo": "orpo",
    "pretrain_demo": "pretrain",
    "pretrain_continue": "pretrain",
    "pretrain_reviews": "pretrain",
    "pretrain_scratch": "pretrain",
    "reward": "reward",
    "reward_demo": "reward",
    "reward_long": "reward",
    "reviews_demo": "sft",
    "sft_full_zero3": "sft",
    "sft_lora": "sft",
    "sft_qlora_8gb": "sft",
}
TALK = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]


@pytest.fixture
def rows(tmp_path):
    """Where recipes name files that a demo downloads or makes, or that are yours."""
    pairs = [{"prompt": "问", "chosen": "好", "rejected": "坏"}] * 2
    found = dict.fromkeys(("train", "test", "long_train", "long_test"), pairs)
    found["reviews"] = [{"prompt": "问", "response": "答"}] * 2
    found["continuations"] = found["long_texts"] = [{"text": "春天"}] * 2
    paths = {f".cache/reviews/{name}.jsonl": own for name, own in found.items()}
    paths |= {f"runs/bilibili-data/{name}.jsonl": [{"messages": TALK}] for name in ("train", "test")}
    paths |= {"pairs.jsonl": pairs, "train.jsonl": [{"messages": TALK}], "corpus": [{"text": "春天"}]}
    paths["rated.jsonl"] = [{"messages": TALK, "like_count": likes} for likes in (1, 20)]
    paths["prompts.jsonl"] = [{"prompt": "问"}] * 2
    return {name: write_jsonl(tmp_path / name.replace("/", "-"), own) for name, own in paths.items()}


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (ROOT / "configs" / "recipes").iterdir()))
def test_each_recipe_is_of_its_stage(recipe, rows):
    path = ROOT / "configs" / "recipes" / f"{recipe}.yaml"
    named = "--tokenizer_name" if RECIPES[recipe] == "pretrain" else "--model_name_or_path"
    flags = ["--config", str(path), named, "M"]
    flags += ["--reward_model", "R"] if recipe == "grpo_demo" else []
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(": ")
        if key in ("train_file", "validation_file") and value in rows:
            flags += [f"--{key}", str(rows[value])]
    is_named = RECIPES[recipe] == "orpo"  # whose settings and rows are DPO's too
    settings = read_settings([*flags, *(["--stage", "orpo"] if is_named else [])])
    assert settings.stage.name == RECIPES[recipe] and settings.reason.startswith("guessed from ") is not is_named


@pytest.mark.parametrize(
    ("row", "flags", "stage"),
    [
        ({"messages": TALK}, [], "sft"),
        ({"input": "问", "target": "答"}, [], "sft"),
        ({"q": "问", "a": "答"}, ["--prompt_column", "q", "--response_column", "a"], "sft"),
        ({"input": "问", "target": "答"}, ["--num_generations", "4"], "grpo"),
        ({"prompt": "问"}, [], "grpo"),
        ({"prompt": "问", "chosen": "好", "rejected": "坏"}, [], "dpo"),
        ({"prompt": "问", "chosen": "好", "rejected": "坏"}, ["--center_rewards_coefficient", "0.1"], "reward"),
        ({"prompt": "问", "completion": "答", "label": True}, [], "kto"),
        (
            {"prompt": "问", "completion": "答", "likes": 3},
            ["--label_column", "likes", "--label_threshold", "2"],
            "kto",
        ),
        ({"text": "文章"}, [], "pretrain"),
        ({"title": "题", "content": "文章"}, [], "pretrain"),
        ({"段落": [{"内容": "文章"}]}, [], "pretrain"),
        ({"input": "问", "target": "答"}, ["--block_size", "64"], "pretrain"),
    ],
)
def test_the_rows_or_the_settings_tell(row, flags, stage, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    settings = read_settings(["--train_file", str(path), "--model_name_or_path", "M", *flags])
    assert settings.stage.name == stage
    named = read_settings(["--train_file", str(path), "--model_name_or_path", "M", "--stage", stage, *flags])
    assert (named.stage.name, named.reason) == (stage, "named by --stage")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_target_len", "3"], "unknown flag --max_target_len (did you mean --max_target_length?)"),
        (["--max_target_length", "3", "--block_size", "64"], "unknown flag --"),
        (["--stage", "sft", "--block_size", "64"], "unknown flag --block_size"),
        (["--stage", "sfd"], "argument --stage: invalid choice: 'sfd'"),
        (["--examples", "-1"], "--examples -1: expected at least 0"),
        (["--html", "none/report.html"], "--html none/report.html: there is no folder none"),
        (["--html", "datasets"], "--html datasets: this is a folder; name a file in it"),
        (["--train_file", "none.jsonl"], "none.jsonl: no such file, folder or glob"),
        (["--train_file", "datasets/pretrain", "--max_length", "9"], "schema text, for pretrain or grpo, but the"),
    ],
)
def test_mistakes(flags, message):
    with pytest.raises(UserError) as raised:
        read_settings(["--train_file", "datasets/promptcblue/dev.json", "--model_name_or_path", "M", *flags])
    assert message in str(raised.value)


def test_a_recipe_for_other_machines_can_be_looked_at(tmp_path):
    recipe = tmp_path / "run.yaml"
    keys = ["fp16: true", "deepspeed: configs/deepspeed/zero3.json", "push_to_hub: true", "hub_model_id: me/it"]
    keys += ["report_to: wandb", "num_generations: 6", "per_device_train_batch_size: 1", "use_vllm: true"]
    recipe.write_text("\n".join([*keys, "train_file: datasets/promptcblue/dev.json"]), encoding="utf-8")
    settings = read_settings(["--config", str(recipe), "--model_name_or_path", "M"])
    assert settings.stage.name == "grpo" and settings.args.deepspeed is None and not settings.args.push_to_hub


def test_names_of_settings(tmp_path):
    recipe = tmp_path / "run.yaml"
    recipe.write_text("seed: 1\ntrain_file: a", encoding="utf-8")
    flags = ["--config", str(recipe), "--max-length", "3", "--packing=true"]
    assert Parser.names(flags) == {"seed", "train_file", "max_length", "packing"}
