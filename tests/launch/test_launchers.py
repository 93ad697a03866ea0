"""What people start several processes with, as it is: torchrun, accelerate, deepspeed, the file for Slurm."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT, weights, write_jsonl, write_pairs
from hf_recipes.stages.table import STAGES as TABLE

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
DIES_ONCE = """
import os, runpy, signal, sys
from hf_recipes.trainer.base import RunMixin
step = RunMixin.training_step
def deadly(self, *args, **kwargs):
    if self.state.global_step == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
RunMixin.training_step = deadly
sys.argv[0] = "SCRIPT"
runpy.run_path("SCRIPT", run_name="__main__")
"""


def text_flags(model, folder) -> list:
    rows = [{"text": f"第{number}篇：今天天气很好。" * 4} for number in range(40)]
    corpus = write_jsonl(folder / "text.jsonl", rows)
    return f"""--model_name_or_path {model} --train_file {corpus} --report_to none --logging_steps 1 --bf16 False
    --max_steps 12 --learning_rate 1e-3 --save_steps 4 --block_size 32 --cache_dir {folder}/cache""".split()


def chat_flags(model, folder) -> list:
    data = write_pairs(folder)
    return f"""--model_name_or_path {model} --train_file {data}/train.json --validation_file {data}/dev.json
    --max_target_length 16 --report_to none --logging_steps 1 --bf16 False --num_train_epochs 2 --learning_rate 1e-2
    --save_steps 4 --per_device_eval_batch_size 2""".split()


def preference_flags(model, sample, rate) -> list:
    return f"""--model_name_or_path {model} --train_file {ROOT}/datasets/preference/{sample}.jsonl --report_to none
    --logging_steps 1 --bf16 False --max_steps 12 --learning_rate {rate} --save_steps 4""".split()


def reward_flags(model, folder) -> list:
    rows = [{"prompt": f"标准{number}：属于年龄还是性别？", "response": "年龄"} for number in range(24)]
    asked = write_jsonl(folder / "asked.jsonl", rows)
    return f"""--model_name_or_path {model} --train_file {asked} --rewards chinese length:2-8=0.5 rouge --report_to none
    --logging_steps 1 --bf16 False --max_steps 12 --learning_rate 1e-4 --save_steps 4 --num_generations 2
    --max_completion_length 8""".split()


STAGES = {
    "scripts/sft.py": chat_flags,
    "scripts/pretrain.py": text_flags,
    "scripts/reward.py": lambda model, folder: preference_flags(model, "reviews", 1e-3),
    "scripts/dpo.py": lambda model, folder: preference_flags(model, "reviews", 1e-2),
    "scripts/kto.py": lambda model, folder: preference_flags(model, "comments", 1e-2),
    "scripts/orpo.py": lambda model, folder: preference_flags(model, "reviews", 1e-2),
    "scripts/grpo.py": reward_flags,
}
SLOW = [pytest.param(script, marks=pytest.mark.slow) for script in STAGES if script != "scripts/sft.py"]


@pytest.fixture(scope="module", params=["scripts/sft.py", *SLOW])
def script(request):
    return request.param


@pytest.fixture(scope="module")
def settings(script, model_dir, tmp_path_factory):
    return STAGES[script](model_dir, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(forks, script, settings, tmp_path_factory):
    """One process, batches of eight: its folder and losses."""
    output = tmp_path_factory.mktemp("alone")
    argv = [*settings, "--output_dir", output, "--overwrite_output_dir", "--per_device_train_batch_size", 8]
    run = forks.run(*argv, script=script)
    assert run.code == 0, run.err
    return output, run.losses()


def test_every_stage_is_launched():
    assert {Path(script).stem for script in STAGES} == TABLE.keys()


@pytest.mark.slow
def test_torchrun(script, settings, alone, tmp_path):
    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 4]
    printed = launch(["torchrun", "--standalone", "--nproc_per_node", 2, script, *argv])
    check_same_result(alone, tmp_path / "run", printed)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(*commands: list) -> str:
    """Run the commands side by side, one for each node; all must end well. Their output."""
    running = [
        subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    outputs = [process.communicate(timeout=600)[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output[-5000:]
    return "".join(outputs)


def check_same_result(alone, output: Path, printed: str) -> None:
    lines = [line.split() for line in printed.splitlines() if line.startswith("step ")]
    losses = [float(words[words.index("loss") + 1]) for words in lines if "loss" in words]
    assert losses == pytest.approx(alone[1], abs=1e-4)
    own, expected = weights(output), weights(alone[0])
    assert own.keys() == expected.keys()
    assert all(torch.allclose(own[key], expected[key], atol=1e-4) for key in own)


@pytest.mark.slow
def test_torchrun_restarts_and_the_run_goes_on_by_itself(script, settings, alone, tmp_path):
    deadly = tmp_path / "dies_once.py"
    deadly.write_text(DIES_ONCE.replace("SCRIPT", script))
    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 4]
    launcher = ["torchrun", "--standalone", "--nproc_per_node", 2, "--max_restarts", 2, "--monitor_interval", 0.2]
    printed = launch([*launcher, deadly, *argv])
    assert f"resuming from {tmp_path}/run/checkpoint-4" in printed
    own, expected = weights(tmp_path / "run"), weights(alone[0])
    assert all(torch.allclose(own[key], expected[key], atol=1e-4) for key in expected)


def nodes(*script_and_flags, restarts: int = 0) -> list[list]:
    """Two torchrun agents, one at 127.0.0.2 and one at 127.0.0.3, that meet at a rendezvous."""
    meet = ["--nnodes", 2, "--nproc_per_node", 1, "--rdzv_id", "job", "--rdzv_backend", "c10d"]
    meet += ["--rdzv_endpoint", f"127.0.0.2:{free_port()}", "--max_restarts", restarts, "--monitor_interval", 0.2]
    # Which of them keeps the rendezvous is told by the host's name, which both have here.
    return [
        ["torchrun", *meet, "--rdzv_conf", f"is_host={host}", "--local_addr", address, *script_and_flags]
        for host, address in ((1, "127.0.0.2"), (0, "127.0.0.3"))
    ]


@pytest.mark.slow
def test_two_nodes_with_addresses_of_their_own_train_together(script, settings, alone, tmp_path):
    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 4]
    check_same_result(alone, tmp_path / "run", launch(*nodes(script, *argv)))


@pytest.mark.slow
def test_a_process_of_the_second_node_dies_and_both_go_on(script, settings, alone, tmp_path):
    """torchrun counts the restart on the second node alone."""
    deadly = tmp_path / "dies_once.py"
    deadly.write_text(DIES_ONCE.replace("SCRIPT", script))
    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 4]
    printed = launch(*nodes(deadly, *argv, restarts=2))
    assert f"resuming from {tmp_path}/run/checkpoint-4" in printed
    own, expected = weights(tmp_path / "run"), weights(alone[0])
    assert all(torch.allclose(own[key], expected[key], atol=1e-4) for key in expected)


ACCELERATE = {
    "cpu": ([], 8),
    "one_gpu": ([], 8),
    "multi_gpu": (["--num_processes", 2], 4),
    "ds_stage1": (["--num_processes", 2], 4),
    "ds_stage2": (["--num_processes", 2], 4),
    "ds_stage3": (["--num_processes", 2], 4),
    "ds_stage3_offload": ([], 8),
    "fsdp": (["--num_processes", 2], 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_launch(script, settings, alone, tmp_path, name):
    flags, batch = ACCELERATE[name]
    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", batch]
    file = f"configs/accelerate/{name}.yaml"
    launcher = ["accelerate", "launch", "--config_file", file, *flags, "--main_process_port", free_port()]
    check_same_result(alone, tmp_path / "run", launch([*launcher, script, *argv]))


@pytest.mark.slow
def test_accelerate_launch_on_two_nodes(script, settings, alone, tmp_path):
    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 4]
    launcher = ["accelerate", "launch", "--config_file", "configs/accelerate/multi_node.yaml", "--num_processes", 2]
    launcher += ["--main_process_ip", "127.0.0.1", "--main_process_port", free_port()]
    commands = [[*launcher, "--machine_rank", rank, script, *argv] for rank in (0, 1)]
    check_same_result(alone, tmp_path / "run", launch(*commands))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_deepspeed_launcher(script, settings, alone, tmp_path, name):
    """It puts --local_rank before the script's own flags."""
    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 8]
    launcher = ["deepspeed", "--num_gpus", 1, "--master_port", free_port(), script]
    printed = launch([*launcher, *argv, "--deepspeed", f"configs/deepspeed/{name}.json"])
    check_same_result(alone, tmp_path / "run", printed)


@pytest.mark.slow
def test_deepspeed_launcher_on_two_nodes(script, settings, alone, tmp_path):
    argv = [*settings, "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 4]
    hosts = tmp_path / "hostfile"
    hosts.write_text("127.0.0.2 slots=1\n127.0.0.3 slots=1\n")
    launcher = ["deepspeed", "--hostfile", hosts, "--no_ssh", "--master_addr", "127.0.0.2"]
    launcher += ["--master_port", free_port()]
    stage = ["--deepspeed", "configs/deepspeed/zero2.json"]
    commands = [[*launcher, "--node_rank", rank, script, *argv, *stage] for rank in (0, 1)]
    check_same_result(alone, tmp_path / "run", launch(*commands))


SRUN = """#!/bin/bash
# As Slurm's: the command once for each task, SIGTERM passed on.
shift
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=0 SLURM_NODEID=$task "$@" &
    tasks+=($!)
done
trap 'kill -TERM "${tasks[@]}"' TERM
code=0
for task in "${tasks[@]}"; do
    wait "$task"; found=$?
    while kill -0 "$task" 2>/dev/null; do wait "$task"; found=$?; done
    ((found)) && code=$found
done
exit $code
"""
SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "requeued $2"; else echo 127.0.0.1; echo node2; fi
"""


@pytest.mark.slow
def test_the_slurm_file_stops_queues_itself_again_and_ends(script, settings, alone, tmp_path):
    """Slurm's own commands are stood in for; what they start is real."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    job = {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "1"}
    environment = ENVIRONMENT | job | {"PATH": f"{tools}{os.pathsep}{ENVIRONMENT['PATH']}"}
    output = tmp_path / "run"
    command = ["bash", "configs/slurm/train.slurm", script, output, *settings]
    command += ["--per_device_train_batch_size", "4"]
    log = tmp_path / "log"
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True)
    while "step 3/" not in log.read_text():
        time.sleep(0.05)
        assert process.poll() is None, log.read_text()
    workers = subprocess.run(["pgrep", "-s", str(process.pid), "-f", script], capture_output=True, text=True)
    for pid in workers.stdout.split():
        if Path(f"/proc/{pid}/comm").read_text().startswith("python"):
            os.kill(int(pid), signal.SIGTERM)
    assert process.wait(200) == 0
    assert "stopped by SIGTERM" in log.read_text() and "requeued 4711" in log.read_text()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "resuming from" in done.stdout and "requeued" not in done.stdout
    own, expected = weights(output), weights(alone[0])
    assert all(torch.allclose(own[key], expected[key], atol=1e-4) for key in expected)
