"""What the trackers hold after a run, read back from their own files."""

import json
import struct
import threading

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from wandb.proto import wandb_internal_pb2

from hf_recipes.trainer.reports import trackers

SECRETS = {"WANDB_API_KEY": "w" * 40, "SWANLAB_API_KEY": "s" * 21, "HF_TOKEN": "hf_" + "e" * 20}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in ("SWANLAB_MODE", "WANDB_MODE", "TENSORBOARD_LOGGING_DIR", *SECRETS):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "SWANLAB_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.fixture
def run(sft, model_dir, pairs, tmp_path):
    """Run scripts/sft.py for four steps with an evaluation after each two."""

    def start(*more):
        return sft(
            *["--model_name_or_path", model_dir, "--train_file", pairs / "train.json", "--max_target_length", 8],
            *["--validation_file", pairs / "dev.json", "--output_dir", tmp_path / "run", "--learning_rate", "1e-2"],
            *["--max_steps", 4, "--eval_steps", 2, "--save_steps", 2, "--logging_steps", 1, *more],
        )

    return start


def losses(output) -> dict[int, float]:
    history = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def events(output) -> EventAccumulator:
    return EventAccumulator(str(output / "tensorboard")).Reload()


def wandb_records(path) -> list:
    """A .wandb file: 7 bytes of header, then records in the log format of LevelDB, in blocks of 32 KiB."""
    data, at, parts, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def wandb_history(path) -> list[dict]:
    rows = [record.history for record in wandb_records(path) if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in r.item} for r in rows]


def swanlab_scalars(folder) -> list[dict[int, float]]:
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("logs/*/1000.log")]
    return [{entry["index"]: entry["data"] for entry in entries} for entries in rows if len(entries) > 1]


def test_each_tracker_gets_metrics_settings_answers_and_curves(run, tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    output = tmp_path / "run"
    code, out, err = run("--report_to", "swanlab,wandb,tensorboard", "--hub_token", "hf_secret_of_the_flag")
    assert code == 0, err
    assert "swanlab:" not in out + err  # its greetings, beside our lines
    expected = losses(output)
    assert set(expected) == {1, 2, 3, 4}
    answer = json.loads((output / "predictions" / "step-4.jsonl").read_text().splitlines()[0])
    question = answer["question"].strip()

    board = events(output)
    assert {e.step: e.value for e in board.Scalars("train/loss")} == pytest.approx(expected, abs=1e-5)
    assert [e.step for e in board.Scalars("eval/rougeL")] == [2, 4]
    assert [e.step for e in board.Images("curves")] == [4]
    texts = board.Tensors("eval/samples/text_summary")
    assert [e.step for e in texts] == [2, 4]
    text = texts[-1].tensor_proto.string_val[0].decode()
    assert question in text and text.count("reference: ") == 5
    [table] = board.Tensors("eval/table/text_summary")
    assert table.step == 4 and "\n    ROUGE-L" in table.tensor_proto.string_val[0].decode()
    assert "learning_rate: 0.01" in board.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()

    [offline] = output.glob("wandb/offline-run-*")
    history = wandb_history(next(offline.glob("run-*.wandb")))
    logged = {row["train/global_step"]: row["train/loss"] for row in history if "train/loss" in row}
    assert logged == pytest.approx(expected)
    assert [row["train/global_step"] for row in history if "eval/rougeL" in row] == [2, 4]
    paths = [row["eval/samples/path"] for row in history if "eval/samples/path" in row]
    shown = [(offline / "files" / path).read_text() for path in paths]
    assert len(shown) == 2 and question in shown[1] and answer["reference"] in shown[1]
    [curves] = [offline / "files" / row["curves/path"] for row in history if "curves/path" in row]
    assert curves.read_bytes()[:4] == b"\x89PNG"
    [first] = [record.run for record in wandb_records(next(offline.glob("run-*.wandb"))) if record.HasField("run")]
    config = {item.key: json.loads(item.value_json) for item in first.config.update}
    assert config["learning_rate"] == 0.01 and "hub_token" not in config

    [local] = output.glob("swanlog/run-*")
    assert any(scalars == pytest.approx(expected) for scalars in swanlab_scalars(local))
    assert yaml.safe_load((local / "files" / "config.yaml").read_text())["learning_rate"]["value"] == 0.01
    shown = [path.read_text() for path in local.glob("media/text/004-*.txt")]
    assert len(shown) == 6 and any(question in text for text in shown)
    assert sum("ROUGE-L" in text and "adapted" in text for text in shown) == 1
    assert len(list(local.glob("media/image/*.png"))) == 1
    assert "command" not in json.loads((local / "files" / "swanlab-metadata.json").read_text())

    for path in output.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(secret.encode() in data for secret in (*SECRETS.values(), "hf_secret_of_the_flag")), path
    assert "swanlog" in out and "tensorboard" in out


def test_a_resumed_run_has_the_whole_curve_in_each_tracker(run, tmp_path):
    output = tmp_path / "run"
    assert run("--report_to", "swanlab,wandb,tensorboard")[0] == 0
    former = json.loads((output / "trackers.json").read_text())
    code, out, err = run(
        "--report_to", "swanlab,wandb,tensorboard", "--resume_from_checkpoint", output / "checkpoint-2"
    )
    assert code == 0, err
    assert "swanlab (local): its files cannot be opened again; a new run begins with the curves" in out
    expected = losses(output)
    board = events(output)
    assert [e.step for e in board.Scalars("train/loss")] == [1, 2, 3, 4]
    now = json.loads((output / "trackers.json").read_text())
    assert now["tensorboard"] == former["tensorboard"] and now["wandb"]["id"] != former["wandb"]["id"]
    [offline] = output.glob(f"wandb/offline-run-*-{now['wandb']['id']}")
    history = wandb_history(next(offline.glob("run-*.wandb")))
    assert {row["train/global_step"]: row["train/loss"] for row in history if "train/loss" in row} == expected
    [local] = output.glob(f"swanlog/run-*-{now['swanlab']['id']}")
    assert any(scalars == pytest.approx(expected) for scalars in swanlab_scalars(local))


def test_the_cloud_without_a_login_costs_a_line(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    # wandb keeps a key that another test showed it for as long as the process lives.
    monkeypatch.setattr("wandb.login", lambda prompt: prompt)
    code, out, err = run("--report_to", "swanlab,wandb", "--swanlab_mode", "cloud")
    assert code == 0, err
    assert "swanlab cannot start and is left out from here on" in out and "no API key was provided" in out
    assert "wandb cannot start and is left out from here on (WANDB_MODE=online without a login" in out
    assert (tmp_path / "run" / "adapter_config.json").is_file()


def test_no_tracker_and_a_disabled_one_leave_no_files(run, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(trackers.Worker, "put", lambda self, *_: started.append(self.tracker.name))
    assert run("--report_to", "none")[0] == 0
    assert started == [] and not (tmp_path / "run" / "trackers.json").exists()
    monkeypatch.undo()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    code, _, err = run("--report_to", "swanlab,wandb", "--swanlab_mode", "disabled", "--overwrite_output_dir")
    assert code == 0, err
    assert not any((tmp_path / "run" / name).exists() for name in ("swanlog", "wandb"))


class Stub:
    """A tracker that keeps what it is sent, and does at `moment` what `act` does."""

    name, mode, can_resume = "tensorboard", "files", True

    def __init__(self, args, moment, act):
        self.steps, self.moment, self.act = [], moment, act

    def start(self, *_):
        return self._do("start", "id")

    def log(self, metrics, step):
        self.steps.append(step)
        self._do("log")

    def finish(self):
        self._do("finish")

    def texts(self, *_):
        pass

    image = texts

    def _do(self, moment, value=None):
        if moment == self.moment:
            self.act()
        return value


def test_one_of_transformers_own_trackers_that_fails_does_not_touch_the_training(run, tmp_path, monkeypatch):
    class Away(TrainerCallback):
        def on_log(self, *args, **kwargs):
            raise ConnectionError("no route to the server")

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "dagshub", Away)
    code, out, err = run("--report_to", "dagshub")
    assert code == 0, err
    assert out.count("Away fails and is left out from here on (no route to the server)") == 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 4


def _fail():
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("moment", "act", "message"),
    [
        ("log", _fail, "tensorboard cannot record and is left out from here on ([Errno 28] No space left on device)"),
        ("start", threading.Event().wait, "tensorboard has not taken everything after 0 seconds"),
        ("log", threading.Event().wait, "tensorboard has not taken everything after 0 seconds"),
    ],
    ids=["full disk", "never starts", "server away in the middle"],
)
def test_a_tracker_that_fails_or_hangs_does_not_touch_the_training(run, tmp_path, monkeypatch, moment, act, message):
    made = []

    def build(args):
        made.append(Stub(args, moment, act))
        return made[-1]

    build.name = "tensorboard"
    monkeypatch.setattr(trackers, "KINDS", (build,))
    monkeypatch.setattr(trackers, "PATIENCE", 0.2)
    monkeypatch.setattr(trackers, "GRACE", 0.0)
    workers = 1 if moment == "start" else 0  # which are forked: not while a library is being loaded
    code, out, err = run("--report_to", "tensorboard", "--dataloader_num_workers", str(workers))
    assert code == 0, err
    assert out.count(message) == 1
    assert out.count("tensorboard has not started after 0 seconds") == workers
    assert len(made) == 1 and made[0].steps == ([1] if moment == "log" else [])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 4
