import evaluate
import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.metrics import text as metrics
from hf_recipes.metrics.modules import MODULES, load

PREDICTIONS = ["今天天气很好。", "", "我爱北京", "年龄", "我不知道"]
REFERENCES = ["今天天气不错。", "空的", "我爱北京", "年龄", "性别"]
CHOICES = [None, None, None, ["年龄", "性别"], ["年龄", "性别"]]


def expected() -> dict[str, float]:
    pair = PREDICTIONS, REFERENCES
    single = {
        name: getattr(metrics, name)(*pair) for name in ("bleu4", "chrf", "exact_match", "length_ratio", "macro_f1")
    }
    return metrics.rouge(*pair) | metrics.distinct(PREDICTIONS) | single | {"accuracy": 0.5}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))


def test_combined_modules_equal_the_functions():
    combined = evaluate.combine([load(name) for name in MODULES])
    assert combined.compute(predictions=PREDICTIONS, references=REFERENCES, choices=CHOICES) == expected()
    combined.add_batch(predictions=PREDICTIONS[:2], references=REFERENCES[:2], choices=CHOICES[:2])
    combined.add_batch(predictions=PREDICTIONS[2:], references=REFERENCES[2:], choices=CHOICES[2:])
    assert combined.compute() == expected()


def test_modules_one_by_one():
    rouge = load("rouge")
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        rouge.add(prediction=prediction, reference=reference)
    assert rouge.compute() == metrics.rouge(PREDICTIONS, REFERENCES)
    assert load("distinct").compute(predictions=PREDICTIONS) == metrics.distinct(PREDICTIONS)
    assert load("choice_accuracy").compute(predictions=["一"], references=["一"], choices=[None]) == {}
    assert rouge.compute(predictions=[], references=[]) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    with pytest.raises(ValueError, match="choices"):
        load("choice_accuracy").compute(predictions=["一"], references=["一"])


def test_an_unknown_name_is_named():
    with pytest.raises(UserError, match=r"there is no metric 'rogue' \(did you mean rouge\?\)"):
        load("rogue")
    with pytest.raises(UserError, match="choose from rouge, bleu"):
        load("perplexity")


OFFLINE = """
import os, socket, sys, time

def refuse(*args):
    raise OSError("the network was asked for")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import evaluate
from hf_recipes.metrics.modules import MODULES, load

rank, shared = int(os.environ["RANK"]), sys.argv[1]
combined = evaluate.combine([load(name, cache_dir=shared, experiment_id=str(rank)) for name in MODULES])
prediction = ["我爱北京", ""][rank]
combined.add_batch(predictions=[prediction, "年龄"], references=["我爱北京", "年龄"], choices=[None, ["年龄", "性别"]])
open(f"{shared}/added-{rank}", "w").close()
while not os.path.exists(f"{shared}/added-{1 - rank}"):
    time.sleep(0.02)
found = combined.compute()
print(found["rouge1"], found["exact_match"], found["accuracy"])
"""


def test_processes_without_a_network_do_not_meet(forks, tmp_path):
    """Two processes add to the same metrics in one cache folder before either computes."""
    script, shared = tmp_path / "offline.py", tmp_path / "shared"
    script.write_text(OFFLINE, encoding="utf-8")
    shared.mkdir()
    run = forks.run(shared, script=str(script), world=2)
    assert run.code == 0, run.err
    assert not list(shared.rglob("*.arrow*"))
    first, second = ([float(x) for x in line.split()] for line in run.out.splitlines())
    assert first == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)
    assert second == pytest.approx([0.5, 0.5, 1.0], abs=1e-6)
