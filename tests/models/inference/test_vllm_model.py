"""vLLM in the place of transformers writes the same texts. Its part is played by transformers, called as vLLM is."""

import sys
from argparse import ArgumentParser
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from conftest import build_tokenizer, conversation, tiny_model, write_jsonl
from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.templates.template import thought_marks
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference import vllm_model
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import continue_batches, plan_batches
from hf_recipes.models.inference.loading import load_for_inference
from hf_recipes.models.inference.vllm_model import AnswerArguments, VllmModel, check_adapter, check_vllm, lora_rank

OPENS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}{# </think> #}"
)


class Llm:
    """`vllm.LLM` as far as it is used."""

    made: ClassVar[list[dict]] = []

    def __init__(self, model, dtype, **options):
        self.made.append({"model": model, "dtype": dtype, **options})
        self.base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.adapted = None

    def generate(self, prompts, sampling_params, lora_request, use_tqdm):
        model = self.base
        if lora_request is not None:
            self.adapted = self.adapted or PeftModel.from_pretrained(self.base, lora_request.lora_path).eval()
            model = self.adapted
        elif self.adapted is not None:
            with self.adapted.disable_adapter():
                return [self._continue(self.adapted, *one) for one in zip(prompts, sampling_params, strict=True)]
        return [self._continue(model, *one) for one in zip(prompts, sampling_params, strict=True)]

    def _continue(self, model, prompt, parameters):
        assert parameters.max_tokens > 0 and parameters.ignore_eos and not parameters.detokenize
        ids, options = torch.tensor([prompt["prompt_token_ids"]]), {}
        if parameters.temperature:
            torch.manual_seed(parameters.seed)
            options = {"do_sample": True, "temperature": parameters.temperature, "top_p": parameters.top_p}
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=parameters.max_tokens,
            eos_token_id=parameters.stop_token_ids,
            repetition_penalty=parameters.repetition_penalty,
            pad_token_id=0,
            **{"do_sample": False, **options},
        )
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(output[0, ids.shape[1] :].tolist()))])


class EngineArgs(SimpleNamespace):
    """`vllm.engine.arg_utils.EngineArgs` with the arguments that are used."""

    @staticmethod
    def add_cli_args(parser):
        for name in ("model", "revision", "dtype", "download-dir", "generation-config", "quantization"):
            parser.add_argument(f"--{name}")
        for name in ("trust-remote-code", "skip-tokenizer-init", "enable-prefix-caching", "enable-lora"):
            parser.add_argument(f"--{name}", action="store_true")
        parser.add_argument("--max-lora-rank", type=int)
        parser.add_argument("--gpu-memory-utilization", type=float, default=0.92)
        return parser

    @classmethod
    def from_cli_args(cls, args):
        return cls(**vars(args))


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    names = ("vllm", "vllm.lora", "vllm.lora.request", "vllm.engine", "vllm.engine.arg_utils")
    names += ("vllm.utils", "vllm.utils.argparse_utils")
    modules = {name: ModuleType(name) for name in names}
    modules["vllm"].LLM, modules["vllm"].SamplingParams = Llm, SimpleNamespace
    modules["vllm.lora.request"].LoRARequest = lambda name, number, path: SimpleNamespace(lora_path=path)
    modules["vllm.engine.arg_utils"].EngineArgs = EngineArgs
    modules["vllm.utils.argparse_utils"].FlexibleArgumentParser = ArgumentParser
    for module in modules.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Llm, "made", [])
    monkeypatch.setattr(vllm_model, "find_spec", lambda name: True)


def spread(model):
    """Weights so large that the next token depends on all before it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.25) if weight.ndim == 2 else None
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model that opens thoughts, and an adapter of it."""
    folder, tokenizer = tmp_path_factory.mktemp("vllm"), build_tokenizer(chat_template=OPENS)
    model = spread(tiny_model(len(tokenizer)))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    spread(adapted.base_model.model.model.layers)
    adapted.save_pretrained(folder / "adapter")
    base = str(folder / "base")
    return tokenizer, ModelArguments(base, peft_path=str(folder / "adapter"), dtype="float32")


def prompts_of(tokenizer, count=7):
    texts = [conversation("请问" * number + "年龄") for number in range(count)]
    return [tokenizer.apply_chat_template(text, add_generation_prompt=True, return_dict=False) for text in texts]


def written(model, tokenizer, decoding, marks):
    prompts, texts = prompts_of(tokenizer), {}
    options = {"marks": marks, "stop_ids": [7], "keys": range(10, 17)}
    for batch, continuations in continue_batches(
        model, tokenizer, prompts, plan_batches(prompts, 2), decoding, **options
    ):
        texts |= zip(batch, continuations, strict=True)
    return [texts[number] for number in range(len(prompts))]


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("budget", [None, 0, 5])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_its_texts_are_those_of_transformers(saved, monkeypatch, thinks, budget, penalty):
    monkeypatch.setattr("hf_recipes.models.inference.generate.AT_ONCE", 4)
    tokenizer, arguments = saved
    marks = thought_marks(tokenizer) if thinks else None
    decoding = Decoding(9, max_thinking_tokens=budget, repetition_penalty=penalty)
    plain = load_for_inference(arguments, tokenizer)
    theirs = VllmModel(arguments, plain.config)
    adapted = written(plain, tokenizer, decoding, marks)
    assert written(theirs, tokenizer, decoding, marks) == adapted
    with plain.disable_adapter(), theirs.disable_adapter():
        base = written(plain, tokenizer, decoding, marks)
        assert written(theirs, tokenizer, decoding, marks) == base != adapted
    assert written(theirs, tokenizer, decoding, marks) == adapted
    [made] = Llm.made
    assert made["model"] == arguments.model_name_or_path and made["dtype"] == "float32"
    assert made["enable_lora"] and made["max_lora_rank"] == 8
    assert any(one.cut_while_thinking for one in adapted) is thinks


def test_what_is_sampled_depends_on_seed_and_row_alone(saved):
    tokenizer, arguments = saved
    model = VllmModel(arguments, load_for_inference(arguments, tokenizer).config)
    marks = thought_marks(tokenizer)

    def sampled(seed):
        decoding = Decoding(9, do_sample=True, temperature=1.5, top_p=0.9, seed=seed, max_thinking_tokens=5)
        return written(model, tokenizer, decoding, marks)

    assert sampled(1) == sampled(1) != sampled(2)


def test_what_it_cannot_run_is_said_before_it_is_loaded(saved, monkeypatch, tmp_path):
    tokenizer, arguments = saved
    config = load_for_inference(arguments, tokenizer).config
    base = arguments.model_name_or_path
    with pytest.raises(UserError, match="--num_beams 2: --engine vllm has no beam search"):
        check_vllm(arguments, tokenizer, config, Decoding(num_beams=2))
    with pytest.raises(UserError, match="--load_in_8bit: --engine vllm has nothing like it"):
        check_vllm(ModelArguments(base, load_in_8bit=True), tokenizer, config, Decoding())
    more = build_tokenizer(chat_template=OPENS)
    more.add_tokens(["药物治疗"])
    with pytest.raises(UserError, match=r"the tokenizer has \d+ tokens and the model \d+ rows for them; merge"):
        check_vllm(arguments, more, config, Decoding())
    (tmp_path / "adapter_model.safetensors").touch()
    for name, value, what in (
        ("use_dora", True, "DoRA"),
        ("modules_to_save", ["lm_head"], "whole modules"),
        ("trainable_token_indices", [3], "rows of embeddings"),
    ):
        LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **{name: value}).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=f"it has {what}, which vLLM does not load; merge it first"):
            check_adapter(str(tmp_path))
    for words, what in (
        ("--gpu-memory-utilisation 0.5", "unrecognized arguments: --gpu-memory-utilisation 0.5"),
        ("'half", "No closing quotation"),
        ("--model other", "the model is the one of --model_name_or_path; leave --model out"),
        ("--gpu-memory-utilization half", "argument --gpu-memory-utilization: invalid float value: 'half'"),
    ):
        with pytest.raises(UserError, match=f"--vllm_args {words}: {what}"):
            check_vllm(arguments, tokenizer, config, Decoding(), words)
    for secret in ("--hf-token hf_secret", "--hf_token=hf_secret", "--api-key hf_secret"):
        with pytest.raises(UserError, match="--vllm_args is printed and recorded") as raised:
            check_vllm(arguments, tokenizer, config, Decoding(), secret)
        assert "hf_secret" not in str(raised.value)
    with pytest.raises(ValueError, match="--vllm_args: has no effect without --engine vllm"):
        AnswerArguments(vllm_args="--enforce-eager")
    monkeypatch.setattr(vllm_model, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--engine vllm: vLLM is not installed here"):
        check_vllm(arguments, tokenizer, config, Decoding())
    assert [lora_rank([rank]) for rank in (1, 8, 9, 600)] == [8, 8, 16, 600]


def test_where_it_does_not_start_its_settings_are_named(saved, monkeypatch):
    tokenizer, arguments = saved
    config = load_for_inference(arguments, tokenizer).config

    def fail(self, **options):
        raise RuntimeError("Engine core initialization failed. See root cause above.")

    monkeypatch.setattr(Llm, "__init__", fail)
    with pytest.raises(UserError, match=r"vLLM did not start \(Engine core initialization failed.*--vllm_args takes"):
        VllmModel(arguments, config)


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_the_scripts_take_it(saved, script, tmp_path, name):
    _, arguments = saved
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"input": "请问" * n + "年龄", "target": "药物"} for n in range(5)])
    flags = ["--model_name_or_path", arguments.model_name_or_path, "--peft_path", arguments.peft_path]
    flags += ["--dtype", "float32", "--max_new_tokens", 6, "--max_thinking_tokens", 4]
    if name == "evaluate":
        flags += ["--compare", "base", "--eval_files", f"dev={rows}", "--language", "en"]
    else:
        flags += ["--input_file", rows]

    def run(engine, *more):
        out = tmp_path / engine if name == "evaluate" else tmp_path / f"{engine}.jsonl"
        where = ["--output_dir" if name == "evaluate" else "--output_file", out]
        code, _, err = script(f"{name}.py", *flags, *where, "--engine", engine, *more)
        return code, err, [path.read_text() for path in sorted(out.glob("*.jsonl"))] if out.is_dir() else out

    code, err, theirs = run("vllm", "--vllm_args", "--gpu-memory-utilization 0.5")
    assert code == 0, err
    assert [made["gpu_memory_utilization"] for made in Llm.made] == [0.5]
    code, err, plain = run("transformers")
    assert code == 0, err
    assert plain and (plain == theirs if name == "evaluate" else plain.read_text() == theirs.read_text())
    if name == "evaluate":
        code, err, _ = run("vllm", "--eval_methods", "nll", "--overwrite_output_dir")
        assert code == 1 and "--engine vllm writes answers, and gives no nll; choose --eval_methods" in err


def test_weights_that_are_not_numbers_are_refused(saved, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(saved[1].model_name_or_path)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="NaN or infinite"):
        VllmModel(ModelArguments(str(tmp_path), dtype="float32"), model.config)
