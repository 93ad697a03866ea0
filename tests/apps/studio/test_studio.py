"""The studio without a browser: command lines, panels of what the commands wrote, and what its server lets through."""

import http.client
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from types import SimpleNamespace

import pytest
import yaml

from conftest import ROOT, write_jsonl
from hf_recipes.apps import languages
from hf_recipes.apps.jobs import jobs as module
from hf_recipes.apps.jobs.jobs import identity
from hf_recipes.apps.jobs.session import AGAIN, DRY_RUN, write_session
from hf_recipes.apps.ports import free_port
from hf_recipes.apps.studio import commands, texts, views
from hf_recipes.apps.studio.arguments import StudioArguments
from hf_recipes.apps.studio.texts import Texts
from hf_recipes.command.flags import flags_of
from hf_recipes.core.arguments.command_line import CommandLine
from hf_recipes.core.arguments.commands import COMMANDS
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import write_json

pytest.importorskip("gradio")
from hf_recipes.apps.jobs.visitors import COOKIE, Visitor
from hf_recipes.apps.server import Rules
from hf_recipes.apps.studio.page import KEPT, TABS, Page
from hf_recipes.apps.studio.panels import Panels
from hf_recipes.apps.studio.server import start

STUDIO = ROOT / "hf_recipes" / "apps" / "studio"
START = 30_000 + os.getpid() % 10_000
FORM = {"model": "models/tiny", "data": "rows.jsonl", "name": "one"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    write_jsonl(folder / "rows.jsonl", [{"input": "问", "target": "答"}])
    return folder


@pytest.fixture(scope="module")
def page(root):
    """A page whose jobs have no worker."""
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "_start_worker", lambda job: job)
    yield Page(StudioArguments(root=[str(root)]), flags_of)
    patch.undo()


@pytest.fixture
def ask(page, monkeypatch):
    """``ask("start", cookie, given …)`` presses a button; the messages that it shows."""
    import gradio as gr

    shown = []
    monkeypatch.setattr(gr, "Warning", shown.append)
    monkeypatch.setattr(gr, "Info", lambda text: None)

    def press(name: str, cookie: str = "me", *values) -> list[str]:
        shown.clear()
        getattr(page, f"on_{name}")(request(cookie), *values)
        return list(shown)

    return press


def request(cookie: str = "me"):
    headers = {"accept-language": "en"}
    return SimpleNamespace(cookies={COOKIE: cookie}, headers=headers, url=SimpleNamespace(hostname="127.0.0.1"))


def fill(page, cookie: str = "me", **form) -> Visitor:
    visitor = page.visitor(request(cookie))
    visitor.save(**{"language": "en", **FORM, **form})
    return visitor


def filled(page, **form):
    return page.filled(fill(page, **form))


def flags(argv: list[str]) -> dict:
    """The command line as its command reads it."""
    line = CommandLine.of(flags_of(argv[0]), COMMANDS[argv[0]], argv[0])
    values = line.read(argv[1:])
    return {name: values[name] for name in line.given}


def test_the_page_is_short():
    """The table of texts is no code."""
    assert sum(len(path.read_text().splitlines()) for path in STUDIO.glob("*.py") if path.name != "texts.py") <= 1200


def test_a_training_has_what_differs_from_the_defaults(page):
    fields = {"set_max_steps": "5", "set_learning_rate": "1e-3", "set_seed": "42", "set_use_lora": "true"}
    editor = "report_to: none\nlr_scheduler_kwargs: {num_cycles: 2}\neval_methods: [rougeL, loss]\nsave_strategy: no\n"
    editor += "chat_template_date: 2026-11-30\n"
    argv = page.commands.training(filled(page, yaml=editor, data="a.jsonl#200\n\nb.jsonl*2\n", **fields), "runs/one")
    assert argv[:5] == ["sft", "--model_name_or_path=models/tiny", "--train_file", "a.jsonl#200", "b.jsonl*2"]
    assert flags(argv) == {
        "model_name_or_path": "models/tiny",
        "train_file": ["a.jsonl#200", "b.jsonl*2"],
        "output_dir": "runs/one",
        "max_steps": 5,
        "learning_rate": 1e-3,
        "report_to": "none",
        "lr_scheduler_kwargs": '{"num_cycles": 2}',
        "eval_methods": ["rougeL", "loss"],
        "save_strategy": "no",
        "chat_template_date": "2026-11-30",
    }


def test_lists_and_names_in_the_editor_are_those_of_a_config(page):
    write_jsonl(page.roots.home / "dev.jsonl", [{"input": "问", "target": "答"}])
    editor = "report_to: [tensorboard, swanlab]\neval_files: {dev: dev.jsonl}\n"
    found = flags(page.commands.training(filled(page, yaml=editor), "runs/one"))
    assert (found["report_to"], found["eval_files"]) == ("tensorboard,swanlab", ["dev=dev.jsonl"])


def test_no_refused_setting_is_offered(page):
    for stage in commands.STAGES:
        offered = {name for _, name in page.on_stage(stage, "en")[-1]["choices"]}
        assert "eval_methods" in offered and not offered & {"accelerator_config", "hub_token", "do_train", "train_file"}


def test_fields_that_are_empty_name_no_folder(page, root):
    """A virtual environment in the root has links to outside of it."""
    (root / "python").symlink_to(sys.executable)
    try:
        assert (
            page.commands.settings(filled(page, set_max_steps="5", set_learning_rate="", yaml=""))["max_steps"] == "5"
        )
    finally:
        (root / "python").unlink()


@pytest.mark.parametrize("stage", commands.STAGES)
def test_every_stage_has_fifteen_settings_and_recipes_that_it_reads(page, stage):
    names = commands.main_settings(flags_of, stage)
    assert len(names) == len(set(names)) == 15 and set(names) <= flags_of(stage).keys()
    recipes = commands.recipes_of(stage)
    assert any(name.startswith(stage) for name in recipes)
    for name in recipes:
        *fields, editor = page.on_preset(name)
        form = {f"set_{key}": value for key, value in zip(page.fields, fields, strict=True)}
        argv = page.commands.training(filled(page, stage=stage, yaml=editor, **form), "runs/one")
        recipe = commands.recipe_settings(name)
        assert flags(argv).keys() - {"model_name_or_path", "train_file", "output_dir"} <= recipe.keys()
    fill(page, stage="sft", yaml="", **{f"set_{key}": "" for key in page.fields})


def test_recipes_are_of_one_stage():
    listed = [name for stage in commands.STAGES for name in commands.recipes_of(stage)]
    assert (
        len(listed) == len(set(listed))
        and "demo" in commands.recipes_of("sft")
        and "orpo_demo" in commands.recipes_of("orpo")
    )


@pytest.mark.parametrize(
    "editor, message",
    [
        ("a: [", "the editor: not YAML"),
        ("seed: 1\nseed: 2", "the editor: not YAML ('seed' is given twice, in lines 1 and 2)"),
        ("- a", "the editor: expected a line `name: value` for each setting"),
        ("output_dir: /tmp/x", "the editor: output_dir is set in another field of the page"),
        ("hub_token: abc", "the editor: hub_token cannot be set on the page"),
        (
            "trust_remote_code: true",
            "trust_remote_code cannot be set on the page; see --trust_remote_code of the studio",
        ),
        ("validation_file: ../x.jsonl", "../x.jsonl: outside of the folders that this page may use"),
        ('deepspeed: \'{"path": "/etc/passwd"}\'', "/etc/passwd: outside of the folders"),
    ],
)
def test_what_the_editor_may_not_set(page, editor, message):
    with pytest.raises(UserError) as error:
        page.commands.training(filled(page, yaml=editor), "runs/one")
    assert message in str(error.value)
    fill(page, yaml="")


@pytest.mark.parametrize(
    "form, message",
    [
        ({"model": " "}, "no model is named yet"),
        ({"data": ""}, "no data are named yet"),
        ({"data": "--output_dir=/tmp"}, "no name of data begins with a dash"),
        ({"data": "/etc/passwd"}, "outside of the folders"),
        ({"model": "../models"}, "outside of the folders"),
    ],
)
def test_a_button_says_what_is_missing(page, ask, form, message):
    fill(page, **form)
    before = len(page.jobs.all())
    for button in ("inspect", "start"):
        [text] = ask(button)
        assert message in text and len(page.jobs.all()) == before


def test_held_out_rows_of_an_import_are_evaluated_on_as_long_as_its_rows_are_the_data(page):
    def validation(**form):
        return flags(page.commands.training({**filled(page), **form}, "runs/one")).get("validation_file")

    for folder in ("data/held", "data/none"):
        write_jsonl(page.roots.home / folder / "train.jsonl", [{"input": "问", "target": "答"}])
        (page.roots.home / folder / "data_ledger.json").write_text("{}")
    write_jsonl(page.roots.home / "data" / "held" / "test.jsonl", [{"input": "问二", "target": "答"}])
    assert validation(data="data/none/train.jsonl") is None
    assert validation(data="data/held/train.jsonl") == ["data/held/test.jsonl"]
    assert validation(data="data/held/train.jsonl", yaml="validation_split_percentage: 5") is None
    assert validation(data="data/held/train.jsonl\nb.jsonl") is None and validation(data="b.jsonl") is None


def test_what_a_dry_run_refuses_is_not_started(page, ask):
    visitor = fill(page, name="refused", learning_rate="")
    plan = page.begin(visitor, "plan", page.commands.training(page.filled(visitor), *commands.PLAN))
    end(plan, 1, "reading\nerror: 2 rows cannot be used:\n  a.json:1: empty\n  a.json:3: empty\n")
    assert ask("start") == ["error: 2 rows cannot be used:\n  a.json:1: empty\n  a.json:3: empty"]
    fill(page, name="refused", yaml="seed: 8")
    assert ask("start") == []


def test_runs_have_names_of_their_own(page, ask):
    fill(page, name="../../mine")
    assert ask("start") == [] and page.visitor(request()).form["run"] == "runs/mine"
    (page.roots.home / "runs" / "mine").mkdir(parents=True)
    (page.roots.home / "runs" / "mine" / "run_config.yaml").write_text("{}")
    assert "there is a run of this name" in ask("start")[0]


def test_another_visitor_sees_a_run_and_needs_the_password_to_end_it(page, ask):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        fill(page, name="theirs")
        assert ask("start") == []
        job = page.jobs.of_runs()[0]
        write_json(job.folder / "process.json", identity(process.pid))
        fill(page, "other", run="runs/theirs")
        seen = Panels(page, page.visitor(request("other")), "watch", "127.0.0.1").panels(0, [])
        assert "runs/theirs" in seen["runs"] and "Running" in seen["watch"]
        for button in ("pause", "stop"):
            for cookie, given in (("other", ""), ("other", "wrong"), ("", "")):
                fill(page, cookie, run="runs/theirs")
                assert ask(button, cookie, given)[0].startswith("Another visitor began this")
        assert process.poll() is None and not job.read("wish.json")
        assert "running already" in ask("resume", "me", "")[0]
        assert ask("stop", "other", page.password) == [] and process.wait(10) == -9
        assert page.jobs.of_runs()[0].status == "stopped"
        fill(page, "me", run="runs/theirs")
        assert ask("resume", "other", "")[0].startswith("Another visitor began this")
        assert ask("resume", "me", "") == []
    finally:
        process.kill()
        process.wait()


def test_a_paused_run_goes_on_from_its_checkpoint(page, ask):
    fill(page, name="paused", set_max_steps="9")
    ask("start")
    job = page.jobs.of_runs()[0]
    write_json(job.folder / "process.json", {"pid": 1, "started": 0})
    write_json(job.folder / "end.json", {"code": 0})
    write_json(job.run / "checkpoint-3" / "trainer_state.json", {}) if job.run.mkdir(parents=True) else None
    (job.run / "checkpoint-3").mkdir()
    write_json(job.run / "checkpoint-3" / "trainer_state.json", {})
    assert job.status == "paused" and ask("resume", "me", "") == []
    again = page.jobs.of_runs()[0]
    assert again.commands == [[*job.commands[0], "--resume_from_checkpoint=true"]] and again.id != job.id
    write_json(again.folder / "end.json", {"code": 0})
    write_json(again.folder / "process.json", {"pid": 1, "started": 0})
    ask("resume", "me", "")
    assert page.jobs.of_runs()[0].commands == again.commands
    fill(page, set_max_steps="")


def trained(page, name: str = "done"):
    """A run's folder after its end."""
    run = page.roots.home / "runs" / name
    run.mkdir(parents=True, exist_ok=True)
    for file in ("metrics.json", "adapter_config.json", "adapter_model.safetensors"):
        (run / file).write_text("{}")
    settings = {"model_name_or_path": "models/tiny", "train_file": ["many.jsonl"], "validation_split_percentage": 20}
    (run / "run_config.yaml").write_text(yaml.safe_dump(settings))
    log = [{"step": 1, "loss": 2.0, "memory": 5e8, "tokens_per_second": 10, "seconds_left": 61}]
    log += [{"step": 2, "loss": None}, {"step": 3, "loss": 1.0, "eval_rougeL": 0.5}]
    write_jsonl(run / "log.jsonl", log)
    answered = {"reference": "", "prediction": "&"}
    answers = [{"location": f"many.jsonl:{row}", "question": f"<b>{row}", **answered} for row in (2, 4)]
    for step in (0, 3):
        write_jsonl(run / "predictions" / f"step-{step}.jsonl", answers)
    write_jsonl(page.roots.home / "many.jsonl", [{"input": str(row), "target": "x"} for row in range(1, 6)])
    fill(page, run=f"runs/{name}")
    return run


def test_judging_takes_the_rows_that_were_held_out(page, ask):
    run = trained(page)
    assert ask("judge") == []
    job = page.jobs.all()[-1]
    values = flags(job.commands[0])
    assert values["peft_path"] == "runs/done" and values["compare"] == "base" and values["json"] is True
    assert "eval_files" not in values  # evaluate takes what the run held out
    fill(page, held_out="many.jsonl", run="runs/done")
    assert ask("judge") == []
    assert flags(page.jobs.all()[-1].commands[0])["eval_files"] == ["held_out=many.jsonl"]
    assert page.commands.chat_models(run)[1:] == ["--peft_path=runs/done", "--compare_with=base"]


def test_a_session_that_was_paused_is_one_training(page, ask, tmp_path):
    sft = ["sft", "--model_name_or_path=models/tiny", "--output_dir=runs/paused"]
    commands = [sft, [*sft, AGAIN], ["push", "--folder=runs/paused", DRY_RUN], ["push", "--folder=runs/paused"]]
    jobs = [page.jobs.start("sft", [line], "someone") for line in commands]
    write_session(jobs, tmp_path / "paused")
    lines = (tmp_path / "paused.sh").read_text().splitlines()[2:]
    assert [line.split()[1] for line in lines] == ["sft", "push"] and not {AGAIN, DRY_RUN} & {*" ".join(lines).split()}
    write_session(jobs[1:2], tmp_path / "other")  # begun in a terminal
    assert AGAIN in (tmp_path / "other.sh").read_text()


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ("error: one:\n  a\n  b\n", "error: one:\n  a\n  b"),
        ("error: one\n  a\nended\n", "error: one\n  a"),
        ("Traceback:\n  File\nValueError: x\n", "ValueError: x"),
        ("", ""),
    ],
)
def test_an_error_has_the_lines_that_belong_to_it(page, log, error):
    job = page.jobs.start("list", [["recipes"]], "someone")
    end(job, 1, log)
    assert job.error == error


def test_taking_away(page, ask):
    """An export of an adapter merges first, into one folder whatever is pressed; its files are there to download."""
    run = trained(page)
    assert ask("zip") == [] and ask("session") == [] and ask("gguf") == []
    merge = {"peft_path": ["runs/done"], "model_name_or_path": "models/tiny", "output_dir": "models/done"}
    merging, exporting = page.jobs.all()[-1].commands
    assert merging[0] == "merge" and flags(merging) == merge
    gguf = {"format": "gguf", "model_name_or_path": "models/done", "output_dir": "models/done-gguf"}
    assert exporting[0] == "export" and flags(exporting) == gguf
    end(page.jobs.all()[-1])
    (page.roots.home / "models" / "done").mkdir(parents=True)
    fill(page, outtype="q4_k_m", run="runs/done")
    assert ask("merge") == [] and page.jobs.all()[-1].commands == [merging]
    end(page.jobs.all()[-1])
    assert ask("ollama") == []
    merging_again, exporting = page.jobs.all()[-1].commands
    ollama = {"format": "ollama", "output_dir": "models/done-ollama", "outtype": "q4_k_m"}
    assert merging_again == merging and flags(exporting) == gguf | ollama
    assert ask("session") == []
    session = (page.downloads / "done.sh").read_text()
    assert session.count("hf-recipes merge --peft_path runs/done") == 1 and session.count("hf-recipes export") == 1
    assert yaml.safe_load((page.downloads / "done.yaml").read_text())[0] == {"merge": merge}
    names = zipfile.ZipFile(page.downloads / "done.zip").namelist()
    assert "done/adapter_model.safetensors" in names and not any("predictions" in name for name in names)
    assert "done-gguf/" not in Panels(page, page.visitor(request()), "take", "x").panels(9, [])["files"]
    for name in ("done-gguf/model.gguf", "done/model.safetensors", "done/.hidden"):
        path = page.roots.home / "models" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    for _ in range(2):
        files = Panels(page, page.visitor(request()), "take", "x").panels(9, [])["files"]
    links = re.findall(r"href='gradio_api/file=([^']+)' download", files)
    made = [os.path.relpath(link, page.roots.home / "models") for link in links[3:]]
    assert made == ["done/model.safetensors", "done-gguf/model.gguf"]
    os.utime(run / "metrics.json", (2e9 * 2, 2e9 * 2))  # trained anew
    assert "done-gguf/" not in Panels(page, page.visitor(request()), "take", "x").panels(9, [])["files"]
    assert ask("merge") == []
    assert flags(page.jobs.all()[-1].commands[0])["output_dir"] == "models/done-2"


def end(job, code: int = 0, log: str = "") -> None:
    """As the worker leaves a job."""
    (job.folder / "log").write_text(log)
    write_json(job.folder / "end.json", {"code": code})
    write_json(job.folder / "process.json", {"pid": 1, "started": 0})


def test_what_was_fetched_is_put_into_the_fields_once(page, ask):
    fill(page, model="Qwen/Qwen3-0.6B", source="modelscope", run="")
    assert ask("download") == []
    looks = [Panels(page, page.visitor(request()), "model", "x").arrived()]
    end(page.jobs.all()[-1])
    looks += [Panels(page, page.visitor(request()), tab, "x").arrived() for tab in ("train", "model", "model")]
    assert [look[0] for look in looks if isinstance(look[0], str)] == ["models/Qwen3-0.6B"]
    assert not isinstance(looks[3][0], str) and not any(isinstance(one, str) for look in looks for one in look[1:])
    fill(page, **{"import": "chat"})
    assert ask("convert") == []
    job = page.jobs.all()[-1]
    job.run.mkdir(parents=True)
    end(job)
    looks = [Panels(page, page.visitor(request()), "data", "x").arrived() for _ in range(2)]
    assert looks[0][1:] == ["data/chat/train.jsonl"] and not isinstance(looks[1][1], str)
    fill(page, source="hf")


def test_models_that_were_merged_here_come_last(page, root):
    for name, files in (("a", ["merge.json"]), ("b", []), ("c", [])):
        (root / "models" / name).mkdir(parents=True, exist_ok=True)
        for file in ["config.json", *files]:
            (root / "models" / name / file).touch()
    assert page.roots.models() == ["models/b", "models/c", "models/a"]


def test_whole_models_are_exported_as_they_are(page, ask):
    run = trained(page, "whole")
    (run / "adapter_config.json").unlink()
    assert ask("gguf") == []
    [exporting] = page.jobs.all()[-1].commands
    assert flags(exporting)["model_name_or_path"] == "runs/whole"


def test_trackers_are_opened_and_closed(page, ask):
    run = trained(page, "tracked")
    assert ask("trackers") == ["Nothing was written for SwanLab or TensorBoard; set report_to before a run."]
    (run / "tensorboard").mkdir()
    assert ask("trackers") == []
    job = page.jobs.all()[-1]
    port = job.commands[0][-1]
    assert job.commands == [["tensorboard", "--logdir", "runs/tracked/tensorboard", "--host=127.0.0.1", port]]
    assert job.command_lines() == [f"tensorboard --logdir runs/tracked/tensorboard --host=127.0.0.1 {port}"]
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        write_json(job.folder / "process.json", identity(process.pid))
        (job.folder / "log").write_text("TensorBoard 2.21.0 at http://127.0.0.1:6007/ (Press CTRL+C to quit)\n")
        assert page.jobs.port_flag(6006) != port  # although nothing listens there yet
        url = "https://swanlab.cn/@me/hf_recipes/runs/abc"
        write_json(run / "trackers.json", {"swanlab": {"id": "abc", "mode": "cloud", "url": url}})
        panel = Panels(page, page.visitor(request()), "watch", "x").panels(0, [])["log"]
        assert re.findall(r"href='([^']+)'", panel) == [url, "http://127.0.0.1:6007"]
        assert ask("trackers") == [] and process.wait(10) == -9
        assert "6007" not in Panels(page, page.visitor(request()), "watch", "x").panels(0, [])["log"]
        assert page.jobs.port_flag(6006) == port
    finally:
        process.kill()
        process.wait()


def test_columns_are_those_of_the_file_and_reach_the_commands(page, root):
    (root / "odd.csv").write_text("问,答,编号\n你好,您好,1\n")
    visitor = fill(page, data="odd.csv", response_column="答", prompt_column="问", ignore_columns=["编号"])
    assert Panels(page, visitor, "data", "x").columns() == {name: ["问", "答", "编号"] for name in commands.COLUMNS}
    values = flags(page.commands.training(page.filled(visitor), "runs/one"))
    assert (values["prompt_column"], values["response_column"], values["ignore_columns"]) == ("问", "答", ["编号"])
    visitor = fill(page, stage="pretrain", data="mine=odd.csv#1")
    assert Panels(page, visitor, "data", "x").columns()["prompt_column"] == ["问", "答", "编号"]
    values = flags(page.commands.inspection(page.filled(visitor)))
    assert values["prompt_column"] == "问" and "response_column" not in values
    for data in ("", "not there", "/etc/passwd"):
        assert set(map(str, Panels(page, fill(page, data=data), "data", "x").columns().values())) <= {"[]"}
    fill(page, stage="sft", prompt_column=None, response_column=None, ignore_columns=None)


def test_what_failed_is_said_in_the_language_of_the_page(page, ask):
    visitor = fill(page, language="zh", model="")
    assert ask("check") == ["还没有选模型；请先在“模型”页填写"]
    fill(page, language="zh", data="../x")
    assert ask("inspect")[0].startswith("../x：不在本页可以使用的文件夹")
    visitor = fill(page, language="zh")
    job = page.begin(visitor, "inspect", ["inspect"])
    end(job, 1, "reading\nerror: rows.jsonl: no known schema\n")
    panel = Panels(page, page.visitor(request()), "data", "x").panels(9, [])["inspect"]
    assert "检查失败" in panel and "命令的说明：rows.jsonl: no known schema" in panel
    visitor = fill(page, language="en")
    panel = Panels(page, visitor, "data", "x").panels(9, [])["inspect"]
    assert re.search(r"<p class='note bad'>(.*?)</p>", panel)[1] == "rows.jsonl: no known schema"
    assert texts._FAILURES.keys() >= {*KEPT, "model", "inspect", "plan"}


def test_a_report_has_the_headings_of_its_sections():
    tables = [
        {"kind": "table", "title": name, "header": ["a"], "rows": [[1]], "note": "", "verdicts": [], "findings": []}
        for name in "abc"
    ]
    sections = [{"title": "train rows", "blocks": tables}, {"title": "Examples", "blocks": []}]
    data = {"sections": [*sections, {"title": "validation rows", "blocks": tables[:1]}], "verdict": "", "tone": ""}
    html = views.report(data | {"warnings": []}, Texts("en"))
    assert re.findall("<h4>(.*?)</h4>", html) == ["train rows", "validation rows"]
    assert re.findall("<details( open)?>", html) == [" open", " open", "", " open"]


@pytest.mark.parametrize("language", languages.LANGUAGES)
def test_what_a_run_has_written_is_shown(page, language):
    run = trained(page)
    fill(page, language=language)
    panels = Panels(page, page.visitor(request()), "watch", "127.0.0.1").panels(0, ["runs/done"])
    assert panels["curves"].count("<figure>") == 4 and "ROUGE-L" in panels["curves"]
    assert "&lt;b&gt;2" in panels["samples"] and "<b>2" not in panels["samples"]
    assert "500 MB" in panels["watch"] and str(run.name) in panels["runs"]
    for tab in TABS:
        assert all(
            isinstance(text, str) for text in Panels(page, page.visitor(request()), tab, "x").panels(9, []).values()
        )


def test_a_budget_cuts_the_rows_that_are_longer():
    histogram = {"lengths": [[3, 2], [5, 1], [9, 4]], "edges": [3, 5, 9, 10], "counts": [2, 1, 4]}
    english = Texts("en")
    assert [re.search(r"(\d) of 7", views.lengths(histogram, budget, english))[1] for budget in (2, 3, 5, 9)] == [
        *"7540"
    ]


def test_lengths_are_those_of_the_training_rows(page):
    visitor = fill(page)
    job = page.begin(visitor, "inspect", ["inspect"])
    kinds = [[("histogram", "prompt"), ("table", "x"), ("histogram", "whole")], [("histogram", "validation")]]
    sections = [{"blocks": [{"kind": kind, "title": title} for kind, title in blocks]} for blocks in ([], *kinds)]
    write_json(job.folder / "stdout.0", {"sections": sections})
    assert Panels(page, page.visitor(request()), "data", "x").histogram["title"] == "whole"
    job.stop()


def test_all_texts_are_in_both_languages():
    for key, (english, chinese) in texts._TEXTS.items():
        assert english and chinese and set(re.findall(r"{\w+", english)) == set(re.findall(r"{\w+", chinese)), key
        assert not re.search("[\u4e00-\u9fff]", english), key
    assert set(texts._SETTINGS) == set(commands.MAIN)


@pytest.fixture(scope="module")
def address(page):
    yield start(page, port=free_port(START)).rstrip("/")
    page.blocks.close(verbose=False)


def answer(address: str, path: str, data: bytes | None = None, **headers: str):
    try:
        return urllib.request.urlopen(urllib.request.Request(address + path, data=data, headers=headers), timeout=10)
    except urllib.error.HTTPError as error:
        return error


def test_what_the_server_lets_through(address, page, root):
    home = answer(address, "/")
    assert home.status == 200 and re.search(
        rf"{COOKIE}=[\w-]{{20,}}; .*HttpOnly; .*SameSite=Lax", home.headers["Set-Cookie"]
    )
    assert answer(address, "/", Cookie=f"{COOKIE}=x").headers["Set-Cookie"] is None
    for path in ("/gradio_api/info", "/docs", "/monitoring", "/gradio_api/proxy=https://a.hf.space"):
        assert answer(address, path).status == 404, path
    (root / "secret.txt").write_text("secret")
    (page.downloads / "one.zip").write_text("zip")
    (root / "models" / "mine").mkdir(parents=True, exist_ok=True)
    (root / "models" / "mine" / "model.gguf").write_text("weights")
    (root / "models" / "mine" / "link.gguf").symlink_to(root / "secret.txt")
    assert answer(address, f"/gradio_api/file={root}/models/mine/model.gguf").read() == b"weights"
    for path in (
        root / "secret.txt",
        root / "models" / "mine" / "link.gguf",
        page.downloads / ".." / ".." / ".." / "secret.txt",
        "/etc/passwd",
    ):
        assert answer(address, f"/gradio_api/file={path}").status in (403, 404), path
    assert answer(address, f"/gradio_api/file={page.downloads / 'one.zip'}").read() == b"zip"
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "a"}).encode()
    foreign = answer(address, "/gradio_api/run/predict", body, Origin="https://example.org")
    assert foreign.status == 403
    assert answer(address, "/", Host="rebound.example.org").status == 400
    for path, size in (("upload", 200_200_000), ("queue/join", 2_000_001)):
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
        connection.putrequest("POST", f"/gradio_api/{path}")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        assert connection.getresponse().status == 413
    assert Rules(1).opened == "(?!)"


@pytest.mark.parametrize(
    "values, message",
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 lets the network in; add --auth user:password"),
        ({"auth": "user"}, "--auth: expected user:password"),
        ({"root": ["/not/there"]}, "--root /not/there: no such folder"),
        ({"trainings": 0}, "--trainings 0: expected at least 1"),
    ],
)
def test_flags_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        StudioArguments(**values)


@pytest.mark.parametrize(
    "host, url",
    [("::1", "127.0.0.1"), ("127.0.0.2", "127.0.0.1"), ("fd00::5", "[fd00::5]"), ("studio.example", "studio.example")],
)
def test_the_address_of_the_chat(page, monkeypatch, host, url):
    lines = {"log": lambda: ["chat at …"], "command_lines": lambda: ["hf-recipes chat"]}
    job = SimpleNamespace(is_live=True, status="running", commands=[["chat", "--port=7861"]], **lines)
    monkeypatch.setattr(Panels, "job", lambda self, kind: job)
    assert f"<a href='http://{url}:7861/'" in Panels(page, page.visitor(request()), "watch", host)._chat()
