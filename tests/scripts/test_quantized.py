"""QLoRA: bases in four and eight bits, in training and, apart from it, in inference."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen3Config, Qwen3ForCausalLM

from conftest import ROOT, same, weights
from hf_recipes.core.errors import UserError
from hf_recipes.models.adapters.saved_adapter import load_adapter
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.loading import load_model
from hf_recipes.models.quantization.settings import read_bnb_config
from hf_recipes.models.tokenizers.tokenizer import load_tokenizer
from hf_recipes.run.model import build_model
from hf_recipes.stages.sft import SFTArguments

FORMS = {
    "--load_in_4bit": {"load_in_4bit": True},
    "--load_in_8bit": {"load_in_8bit": True},
    "bnb_nf4.json": {"bnb_config": str(ROOT / "configs" / "bnb_nf4.json")},
}
KEYS = {
    "load_in_8bit": True,
    "load_in_4bit": True,
    "llm_int8_threshold": 4.0,
    "llm_int8_skip_modules": ["lm_head", "down_proj"],
    "llm_int8_enable_fp32_cpu_offload": True,
    "llm_int8_has_fp16_weight": True,
    "bnb_4bit_compute_dtype": "float16",
    "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_quant_storage": "bfloat16",
}
IDS = torch.arange(5, 25)[None]


def build(model_dir, tmp_path, form, **kwargs):
    args = SFTArguments(output_dir=str(tmp_path / "run"), report_to="none", bf16=False, **kwargs)
    tokenizer, added = load_tokenizer(model_dir)
    return build_model(ModelArguments(model_dir, **form), args, tokenizer, added)


def loss_of(model) -> torch.Tensor:
    return model(IDS, labels=IDS).loss


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_base_is_frozen_and_the_adapter_learns(model_dir, tmp_path, form):
    model = build(model_dir, tmp_path, form)
    layer = model.base_model.model.model.layers[0]
    assert layer.self_attn.q_proj.base_layer.weight.dtype in (torch.uint8, torch.int8)
    assert layer.input_layernorm.weight.dtype == torch.float32
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if torch.is_tensor(tensor)}
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], 1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(loss_of(model))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    for name, tensor in model.state_dict().items():
        if torch.is_tensor(tensor) and not name.endswith(("SCB", "weight_format")):
            assert torch.equal(tensor, before[name]) is (name not in trained), name


@pytest.mark.parametrize("form", [FORMS["--load_in_4bit"], FORMS["--load_in_8bit"]], ids=["4 bits", "8 bits"])
def test_checkpointing_gives_the_adapter_the_same_gradients(model_dir, tmp_path, form):
    """Every module below the first adapter is frozen: without gradients of its inputs nothing would be learned."""
    found = []
    for checkpointing in (False, True):
        model = build(model_dir, tmp_path, form).train()
        torch.manual_seed(1)
        for name, weight in model.named_parameters():  # B starts at zero, which would leave A without a gradient
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss_of(model).backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    assert all(gradient.abs().sum() > 0 for gradient in found[0].values())
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])


def test_an_evaluation_in_between_changes_nothing(tokenizer, tmp_path):
    """bitsandbytes repacks 4-bit weights at the first evaluation on some CPUs, and then gives no gradient."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = tmp_path / "wide"
    config = Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=64, **sizes)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = []
    for evaluated in (False, True):
        model = build(str(folder), tmp_path, {"load_in_4bit": True})
        if evaluated:
            with torch.no_grad():
                model.eval()(IDS)
        loss_of(model.train()).backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert all(gradient.abs().sum() > 0 for name, gradient in found[1].items() if "lora_B" in name)


@pytest.mark.parametrize("form", FORMS, ids=FORMS)
def test_a_run_saves_an_adapter_that_fits_any_form_of_the_base(forks, model_dir, pairs, tmp_path, form):
    output = tmp_path / "run"
    flags = ["--bnb_config", f"configs/{form}"] if form.endswith(".json") else [form]
    argv = ["--model_name_or_path", model_dir, "--train_file", pairs / "train.json", "--output_dir", output]
    argv += ["--validation_file", pairs / "dev.json", "--report_to", "none", "--learning_rate", "1e-2"]
    argv += ["--bf16", "False", "--gradient_checkpointing", "True", "--max_steps", "6", "--save_steps", "3", *flags]
    run = forks.run(*argv)
    assert run.code == 0, run.err
    own = weights(output)
    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == model_dir
    assert all("lora_" in name for name in own) and not (output / "config.json").exists()
    assert all(tensor.abs().sum() > 0 for tensor in own.values())  # lora_B began at zero

    in_plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), output).eval()
    with torch.no_grad():
        expected = in_plain(IDS).logits
        for other in ({"load_in_4bit": True}, {"load_in_8bit": True}):
            base = load_model(ModelArguments(model_dir, **other), trains_all=False, bf16=False)
            model = load_adapter(base, str(output)).eval()
            # Four bits keep about a tenth of a weight's precision, eight a hundredth.
            error = (model(IDS).logits - expected).norm() / expected.norm()
            assert 0 < error < (0.3 if "load_in_4bit" in other else 0.03)
            assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape == (1, 23)

    shutil.rmtree(output / "checkpoint-6")
    run = forks.run(*argv, "--resume_from_checkpoint", "true")
    assert run.code == 0 and "checkpoint-3" in run.out, run.err
    assert same(weights(output), own)


@pytest.mark.parametrize("key", KEYS)
def test_any_key_of_bitsandbytes_can_be_in_the_file(tmp_path, key):
    width = "load_in_8bit" if key in ("llm_int8_threshold", "llm_int8_has_fp16_weight") else "load_in_4bit"
    settings = {key: KEYS[key]} if key.startswith("load_in") else {width: True, key: KEYS[key]}
    path = tmp_path / "bnb.json"
    path.write_text(json.dumps(settings))
    assert getattr(read_bnb_config(str(path)), key) == getattr(BitsAndBytesConfig(**settings), key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"load_in_4bit": true, "bnb_4bit_quant_typ": 1}', "unknown key 'bnb_4bit_quant_typ' (did you mean bnb_4bit"),
        ('{"llm_int8_threshold": 6.0}', "neither of load_in_4bit and load_in_8bit"),
        ('{"load_in_4bit": true, "load_in_8bit": true}', "both of load_in_4bit and load_in_8bit"),
        ('{"load_in_8bit": true, "llm_int8_threshold": "high"}', "llm_int8_threshold must be a float"),
        ('{"load_in_4bit": true, "bnb_4bit_compute_dtype": "int4x"}', "int4x"),
        ('{"load_in_4bit": "false"}', "load_in_4bit is 'false'; expected true or false, without quotes"),
        ('{"load_in_4bit": true, "load_in_8bit": 0}', "load_in_8bit is 0; expected true or false"),
        ('{"load_in_8bit": true, "bnb_4bit_quant_type": "nf4"}', "bnb_4bit_quant_type has no effect with load_in_8bit"),
        ('{"load_in_4bit": true, "llm_int8_threshold": 3.0}', "llm_int8_threshold has no effect with load_in_4bit"),
        ("[1]", "expected a JSON object, found a list"),
        ("{", "not JSON"),
    ],
)
def test_mistakes_in_the_file(tmp_path, text, message):
    path = tmp_path / "bnb.json"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        read_bnb_config(str(path))
    assert str(path) in str(raised.value) and message in str(raised.value)


def test_defaults_of_the_other_width_may_stand_in_the_file(tmp_path):
    path = tmp_path / "bnb.json"
    path.write_text('{"load_in_8bit": true, "load_in_4bit": false, "bnb_4bit_quant_type": "fp4"}')
    assert read_bnb_config(str(path)).load_in_8bit


def test_a_quantized_base_and_zero_3_are_refused_before_the_model_is_loaded(forks, model_dir, pairs, tmp_path):
    argv = ["--model_name_or_path", model_dir, "--train_file", pairs / "train.json", "--output_dir", tmp_path / "run"]
    argv += ["--report_to", "none", "--load_in_4bit", "--deepspeed", "configs/deepspeed/zero3.json"]
    never = "import transformers\ntransformers.AutoModelForCausalLM.from_pretrained = None"
    run = forks.run(*argv, before=never)
    assert run.code == 1 and "Traceback" not in run.err
    assert "cannot be sharded over processes by DeepSpeed's stage 3: take --deepspeed configs/" in run.err
    assert not (tmp_path / "run").exists()


def test_all_weights_of_a_quantized_base_cannot_be_trained(sft, model_dir, pairs, tmp_path):
    more = ["--output_dir", tmp_path / "run", "--load_in_8bit", "--use_lora", "False"]
    code, _, err = sft("--model_name_or_path", model_dir, "--train_file", pairs / "train.json", *more)
    assert code == 1 and "--load_in_8bit: quantized weights cannot be trained" in err


def test_answers_are_written_in_half_precision_too(sft, model_dir, pairs, tmp_path):
    """As the recipe for one 8 GB card computes, on any device."""
    argv = ["--model_name_or_path", model_dir, "--train_file", pairs / "train.json", "--output_dir", tmp_path / "run"]
    argv += ["--validation_file", pairs / "dev.json", "--report_to", "none", "--max_steps", 1, "--eval_steps", 1]
    code, out, err = sft(*argv, "--load_in_4bit", "true", "--bf16", "true", "--max_new_tokens", 4)
    assert code == 0, err
    assert "eval_rougeL" in out
