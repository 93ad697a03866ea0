"""What LLaMA-Factory, ms-swift, axolotl, TRL, transformers' examples and alpaca-lora call the settings here."""

import re
from collections.abc import Collection

LORA = "in the JSON file of {lora_config}"
# What to say, with the settings that a script has to have for it, and the other names. The first that fits is taken.
OTHER_NAMES = {
    "the script itself: sft.py, pretrain.py, reward.py, dpo.py, orpo.py, kto.py or grpo.py": "stage rlhf_type rl",
    "torchrun in front of the script": "nproc_per_node nnodes world_size num_gpus n_gpus",
    # Models and adapters
    "{model_name_or_path}": """model model_name model_path model_id model_id_or_path base_model base_model_name_or_path
        pretrained_model_name_or_path""",
    "{model_revision}": "revision",
    "{tokenizer_name}": "tokenizer tokenizer_path tokenizer_name_or_path",
    "{dtype}": "torch_dtype model_dtype infer_dtype",
    "{bf16}": "use_bf16 pure_bf16 bfloat16",
    "{fp16}": "use_fp16 float16 half",
    "{dtype} float32": "fp32 float32 use_fp32",
    "{attn_implementation}": """flash_attn flash_attention use_flash_attn use_flash_attention use_flash_attention_2
        attn attn_impl attn_type""",
    "{use_lora}, with {load_in_4bit} for QLoRA": """finetuning_type train_type tuner_type sft_type peft_type qlora
        use_peft use_qlora""",
    "{use_lora}, or {peft_path} for one that was trained before": "adapter lora",
    "{load_in_4bit} or {load_in_8bit}": "quantization_bit quant_bits quantization bits",
    "{load_in_4bit}": "load_4bit use_4bit",
    "{load_in_8bit}": "load_8bit use_8bit",
    "{bnb_config}": """bnb_4bit_quant_type bnb_4bit_compute_dtype bnb_4bit_use_double_quant double_quantization
        quant_method quantization_method""",
    "{peft_path}": """adapter lora adapters adapter_path adapter_name_or_path lora_path lora_weights lora_model
        lora_model_dir peft_model peft_model_path""",
    f'"lora_r" {LORA}': "lora_r lora_rank lora_dim r rank",
    f'"lora_alpha" {LORA}': "lora_alpha alpha",
    f'"lora_dropout" {LORA}': "lora_dropout",
    f'"lora_target_modules" {LORA}': "lora_target lora_target_modules lora_target_linear lora_modules target_modules",
    f'"modules_to_save" {LORA}': "modules_to_save lora_modules_to_save additional_target",
    f'"use_dora" {LORA}': "use_dora peft_use_dora",
    f'"use_rslora" {LORA}': "use_rslora peft_use_rslora",
    f'"init_lora_weights" {LORA}': "init_lora_weights init_weights pissa_init",
    "{add_special_tokens}": "new_special_tokens special_tokens add_tokens",
    # Data
    "{train_file}, which takes files, folders and Hub ids": """datasets dataset_name dataset_path data data_dir
        data_file data_files data_path train_data train_dataset training_data training_file""",
    "{input_files}": "dataset datasets dataset_dir data data_dir data_files data_path input inputs train_file",
    "{input_file}": "dataset data data_file data_path input train_file",
    "{validation_file}": """eval_dataset val_dataset validation_dataset eval_data eval_file eval_path val_data val_file
        valid_file dev_file test_file test_datasets""",
    "{validation_split_percentage}, in percent": """val_size val_set_size split_dataset_ratio dataset_test_ratio
        validation_split validation_ratio eval_ratio test_size test_split""",
    "{validation_file}, a file or a folder of its own": """val_size val_set_size split_dataset_ratio dataset_test_ratio
        validation_split validation_ratio eval_ratio test_size test_split validation_split_percentage""",
    "{eval_files}, each as name=path": """dataset datasets dataset_dir data data_file data_files data_path input_file
        input_files test_data test_file test_dataset eval_dataset eval_data eval_file eval_path""",
    "{max_train_samples}": "max_samples num_samples max_train_rows train_samples",
    "{max_eval_samples}": "eval_samples max_eval_rows num_eval_samples max_validation_samples",
    "{prompt_column}": "prompt_key input_column instruction_column query_column question_column text_column text_field",
    "{response_column}": "response_key answer_column completion_column output_column target_column",
    "{preprocessing_num_workers}": "num_proc num_workers dataset_processes",
    "{cache_dir}": "cache cache_path dataset_prepared_path tokenized_path",
    "{chat_template}": "template prompt_template prompt_template_name conv_template conversation_template",
    "{system_prompt}": "system default_system system_message",
    "{thinking}": "enable_thinking enable_think",
    "{train_on}, the turns that carry loss": """mask_history mask_prompt loss_scale roles_to_train
        train_on_eos train_on_input train_on_inputs train_on_prompt train_on_last_turn""",
    "{truncation}": "truncation_strategy",
    "{packing}": "sample_packing neat_packing",
    "{max_length}": """cutoff_len cutoff_length max_len max_seq_len max_seq_length max_sequence_length model_max_length
        seq_len seq_length sequence_len context_length""",
    "{block_size}": """cutoff_len cutoff_length max_len max_length max_seq_len max_seq_length max_sequence_length
        model_max_length seq_len seq_length sequence_len context_length""",
    "{max_source_length} and {max_completion_length}": """cutoff_len cutoff_length max_len max_length max_seq_len
        max_seq_length max_sequence_length model_max_length seq_len seq_length sequence_len context_length""",
    "{max_source_length}, of a prompt": """cutoff_len cutoff_length max_len max_length max_seq_len max_seq_length
        max_sequence_length model_max_length seq_len seq_length sequence_len context_length""",
    "{max_source_length}": "max_prompt_length max_prompt_len max_input_length source_max_len",
    "{max_target_length}": "max_response_length max_answer_length max_completion_length target_max_len",
    "{max_completion_length}": "max_response_length response_length max_answer_length max_target_length target_max_len",
    "{mixture}": "mix_strategy interleave_probs interleave_probabilities",
    # Optimization
    "{learning_rate}": "lr base_lr max_lr init_lr",
    "{min_lr_ratio}": "min_lr min_learning_rate cosine_min_lr_ratio",
    "{lr_scheduler_type} cosine_with_min_lr, with {lr_scheduler_kwargs}": """min_lr min_learning_rate
        cosine_min_lr_ratio""",
    "{lr_scheduler_type}": "scheduler lr_scheduler lr_schedule lr_decay_style",
    "{lr_scheduler_kwargs}": "lr_scheduler_args",
    "{warmup_steps}, of which a value below 1 is a share": """warmup warmup_ratio warmup_fraction warmup_proportion
        lr_warmup_fraction""",
    "{warmup_steps}": "num_warmup_steps lr_warmup_steps warmup_iters",
    "{num_train_epochs}": "epoch epochs num_epoch num_epochs max_epochs n_epochs total_epochs train_epochs",
    "{max_steps}": """steps max_iters num_steps total_steps train_iters max_train_steps num_train_steps
        num_training_steps""",
    "{per_device_train_batch_size}": """batch_size micro_batch_size train_batch_size per_device_batch_size
        per_gpu_train_batch_size bs""",
    "{per_device_train_batch_size} and {gradient_accumulation_steps}": "global_batch_size effective_batch_size",
    "{per_device_eval_batch_size}": "batch_size eval_batch_size max_batch_size per_gpu_eval_batch_size bs",
    "{batch_size}": "max_batch_size eval_batch_size per_device_eval_batch_size per_device_batch_size bs",
    "{gradient_accumulation_steps}": """gradient_accumulation grad_accum grad_accum_steps grad_acc_steps accum_steps
        accumulation_steps accumulate_grad_batches""",
    "{max_grad_norm}": "clip_grad clip_grad_norm grad_clip gradient_clipping gradient_clip_val",
    "{optim} galore_adamw": "use_galore galore",
    "{optim}": "optimizer optimizer_type",
    "{gradient_checkpointing}": "gradient_ckpt grad_checkpoint recompute use_gradient_checkpointing",
    "{gradient_checkpointing} false": "disable_gradient_checkpointing",
    "{train_sampling_strategy} group_by_length": "group_by_length length_grouped_sampling",
    "{neftune_noise_alpha}": "neftune_alpha noise_alpha",
    "{use_liger_kernel}": "enable_liger_kernel liger_kernel use_liger",
    "{deepspeed}": "deepspeed_config ds_config",
    "{use_cpu}": "no_cuda cpu device device_type",
    "{seed}": "random_seed random_state manual_seed",
    # Preferences and rewards
    "{beta}": "pref_beta dpo_beta kto_beta orpo_alpha orpo_beta kl_coef kl_beta init_kl_coef rl_beta",
    "{loss_type}": "pref_loss preference_loss dpo_loss_type",
    "{desirable_weight}": "kto_chosen_weight",
    "{undesirable_weight}": "kto_rejected_weight",
    "{num_generations}": "rollout_n group_size n_samples num_rollouts",
    "{rewards}": "reward_funcs reward_func reward_function reward_functions",
    "{reward_model}": "reward_models reward_model_path reward_model_name_or_path rm_path",
    # A run's course and results
    "{early_stopping_patience}": """early_stopping early_stopping_steps early_stop early_stop_interval
        early_stop_patience early_stopping_rounds patience""",
    "{early_stopping_threshold}": "early_stopping_delta early_stopping_min_delta early_stop_threshold min_delta",
    "{metric_for_best_model}": "best_metric early_stopping_metric",
    "{load_best_model_at_end}": "load_best_model save_best_model",
    "{eval_strategy}": "evaluation_strategy",
    "{eval_steps}": "eval_interval eval_every eval_freq evals_per_epoch evaluation_steps",
    "{eval_methods}": """metric metrics compute_metrics compute_accuracy eval_metric eval_metrics
        predict_with_generate""",
    "{save_steps}": "save_interval save_every save_freq saves_per_epoch checkpoint_steps",
    "{logging_steps}": "log_every log_freq log_interval log_steps logging_interval",
    "{output_dir}": "output output_path output_folder out_dir save_dir save_path export_dir",
    "{max_shard_size}": "export_size",
    "{overwrite_output_dir}": "overwrite overwrite_output",
    "{resume_from_checkpoint}": "resume resume_from resume_path resume_training auto_resume_from_checkpoints",
    "{report_to}": "use_swanlab use_wandb wandb swanlab tracker",
    "{project}": "wandb_project swanlab_project project_name",
    "{run_name}": "exp_name experiment_name swanlab_run_name wandb_name wandb_run_name",
    "{hub_model_id}": "repo_id hub_repo export_hub_model_id",
    # Answers
    "{max_new_tokens}": "max_tokens max_output_tokens max_length max_gen_len max_gen_length",
    "{temperature}": "temp",
}


def name_here(name: str, known: Collection[str], prefix: str = "") -> str:
    """How a script with the settings `known` says what others call `name`, as the end of a message; empty if unknown.

    Args:
        prefix: of settings in the message, "--" for flags.
    """
    for text, others in OTHER_NAMES.items():
        settings = re.findall(r"\{(\w+)\}", text)
        if name in others.split() and all(setting in known for setting in settings):
            words = text.format(**{setting: f"{prefix}{setting}" for setting in settings})
            return f" (did you mean {words}?)" if re.fullmatch(r"\{\w+\}", text) else f"; here it is {words}"
    return ""


def is_others(name: str) -> bool:
    """Whether others call a setting `name`, so that it is no misspelling."""
    return any(name in others.split() for others in OTHER_NAMES.values())
