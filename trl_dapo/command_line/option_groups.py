"""The order in which options are explained, on the command line and in the documentation."""

# The fields of `DAPOConfig` by what they are for. A test holds that each is in one group.
DAPO_GROUPS = {
    "Dynamic sampling": (
        "dynamic_sampling",
        "filter_reward",
        "filter_range",
        "max_generation_rounds",
        "max_prompts_per_round",
        "on_exhausted",
        "refill",
        "refill_confidence",
        "overlap",
        "surplus",
        "max_off_policy_steps",
    ),
    "Selective rollout (many passes over the data)": (
        "selective_rollout",
        "exploration_share",
        "evict_above",
        "pass_rate_column",
        "label_column",
    ),
    "Loss and length": (
        "epsilon_high",
        "loss_normalization",
        "disable_dropout",
        "soft_punish_cache",
        "overlong_penalty_factor",
        "truncated_in_statistics",
    ),
    "Guards, records, resuming": (
        "max_non_finite_steps",
        "reward_timeout",
        "env_timeout",
        "num_groups_to_log",
        "restart_stream",
    ),
    "vLLM": (
        "vllm_engine_kwargs",
        "vllm_request_seeds",
        "vllm_adapter_sync",
        "vllm_check_interval",
        "vllm_max_logp_gap",
        "vllm_weight_folder",
    ),
}
# Those of TRL and transformers that most runs set.
OFTEN_SET = {
    "Model": ("model_name_or_path", "dtype", "use_peft", "lora_r"),
    "Batch and steps (TRL, transformers)": (
        "output_dir",
        "num_generations",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "steps_per_generation",
        "max_completion_length",
        "max_steps",
        "learning_rate",
        "temperature",
        "mask_truncated_completions",
        "use_vllm",
        "use_cpu",
        "seed",
    ),
    "Evaluation, checkpoints, tracking (transformers)": (
        "eval_on_start",
        "eval_strategy",
        "eval_steps",
        "save_steps",
        "resume_from_checkpoint",
        "logging_steps",
        "report_to",
        "push_to_hub",
        "hub_model_id",
    ),
}
# Titles of what is left, by the class that defines it. "" leaves it out.
REST = {
    "ModelConfig": "Model (TRL's ModelConfig)",
    "GRPOConfig": "GRPO (TRL's GRPOConfig)",
    "_BaseConfig": "GRPO (TRL's GRPOConfig)",
    "TrainingArguments": "Training (transformers' TrainingArguments)",
    "ScriptArguments": "",
}
LAUNCH_GROUP = "Several processes"
DATA_GROUP = "Data, prompts and rewards"
# TRL's script options that choose the data. The others have no effect here.
DATA_OPTIONS = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split")
