"""Options of other frameworks and what they are here: one table per framework, from which docs/moving.md is checked."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class CannotTranslateError(Exception):
    """A value has no counterpart here. The message is the reason."""


@dataclass(frozen=True, slots=True)
class Option:
    """
    An option that is translated.

    Attributes:
        theirs (`str`):
            Its name there, with dots between the levels. `*` stands for the name of one level, which the user chose.
        ours (`str`):
            The field here, or several with commas.
        role (`str`, *optional*):
            `""`: the value is copied or converted. `"steps"`: a count of rollout steps there, of optimizer steps here. Else
            the number of the batch that it is: `"prompts"`, `"generations"`, `"update_prompts"`, `"update_samples"`,
            `"accumulation"`, `"micro"`, `"gpus"`, `"nodes"` or `"parts"` (GPUs that hold one model together).
        convert (`Callable[[Any], Any]`, *optional*):
            Turns the value into fields of ours (`dict[str, Any]`), or into the number of the batch. `None`: it is copied.
        note (`str`, *optional*):
            What is different here.
        default (`Any`, *optional*):
            Their default, where ours is another one. It is written when the file leaves the option out.
    """

    theirs: str
    ours: str
    role: str = ""
    convert: Callable[[Any], Any] | None = None
    note: str = ""
    default: Any = None


@dataclass(frozen=True, slots=True)
class Framework:
    """
    A framework to move from.

    Attributes:
        options (`list[Option]`):
            What is translated. A later option wins over an earlier one that sets the same field.
        left_out (`dict[str, str]`):
            What is not, by name or by pattern with `*`, and why.
        always (`dict[str, Any]`):
            What its runs do without an option.
    """

    options: list[Option]
    left_out: dict[str, str] = field(default_factory=dict)
    always: dict[str, Any] = field(default_factory=dict)


def _choice(name: str, values: dict[Any, dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    def convert(value: Any) -> dict[str, Any]:
        if value not in values:
            raise CannotTranslateError(
                f"{name} {value!r} has no counterpart; translated are {', '.join(map(str, values))}"
            )
        return values[value]

    return convert


def _only(allowed: Any, reason: str) -> Callable[[Any], dict[str, Any]]:
    def convert(value: Any) -> dict[str, Any]:
        if value != allowed:
            raise CannotTranslateError(reason)
        return {}

    return convert


def _one_file(name: str) -> Callable[[Any], dict[str, Any]]:
    def convert(value: Any) -> dict[str, Any]:
        if isinstance(value, list) and len(value) != 1:
            raise CannotTranslateError("several datasets are not mixed here: put their rows into one file")
        return {name: value[0] if isinstance(value, list) else value}

    return convert


def _off_sets(name: str, off: Any) -> Callable[[Any], dict[str, Any]]:
    """The switch of an option that is translated before it."""
    return lambda value: {} if value else {name: off}


def _rounds(value: Any) -> dict[str, Any]:
    if value < 1:
        raise CannotTranslateError(f"{value} means no limit there; here rounds have one, 10 by default")
    return {"max_generation_rounds": value}


def _top_k(value: Any) -> dict[str, Any]:
    return {"top_k": 0 if value in (-1, None) else value}


def _filter_metric(value: Any) -> dict[str, Any]:
    if value != "acc":
        raise CannotTranslateError(
            f"{value!r}: here one named reward decides, never a weighted sum; name it in filter_reward"
        )
    return {"filter_reward": "accuracy_reward"}


def _bounds(value: Any) -> dict[str, Any]:
    return {"filter_range": [float(bound) for bound in value]}


def _trackers(value: Any) -> dict[str, Any]:
    names = [name for name in ([value] if isinstance(value, str) else value) if name != "console"]
    return {"report_to": names or "none"}


def _swift_rewards(value: Any) -> dict[str, Any]:
    names = [value] if isinstance(value, str) else list(value)
    known = {"accuracy": "accuracy_reward"}
    foreign = [name for name in names if name not in known and name != "soft_overlong"]
    if foreign:
        raise CannotTranslateError(
            f"{', '.join(foreign)}: write the function in a module and name it in reward_names, as my_rewards.{foreign[0]}"
        )
    ours: dict[str, Any] = {"reward_names": [known[name] for name in names if name in known]}
    return ours if "soft_overlong" in names else ours | {"soft_punish_cache": 0}


def _swift_tuner(value: Any) -> dict[str, Any]:
    if value not in ("full", "lora"):
        raise CannotTranslateError(f"{value!r} is no tuner here: LoRA (use_peft) or all weights")
    return {"use_peft": value == "lora"}


_ENGINE = _choice(
    "engine", {"vllm": {"use_vllm": True, "vllm_mode": "colocate"}, "hf": {"use_vllm": False}, "hf_rollout": {}}
)
_ROUNDS_NOTE = "a number of steps is multiplied by the optimizer steps on each batch"
_PARALLEL = "how a model is spread over GPUs is in the accelerate configuration (docs/distributed.md)"
_MEMORY = "memory and speed of its engine; no counterpart, or in the accelerate configuration"
_ROUND_SIZE = "the size of a round follows from the acceptance rate (refill_confidence), not from a multiple"
_DATA = "prompts are made by prompt_template and the columns that docs/data.md lists"
_LOGGING = "trackers are configured by their own environment variables"

_VERL_A, _VERL_R = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
VERL = Framework(
    [
        Option("actor_rollout_ref.model.path", "model_name_or_path"),
        Option("actor_rollout_ref.model.enable_gradient_checkpointing", "gradient_checkpointing"),
        Option("data.train_files", "dataset_name", convert=_one_file("dataset_name")),
        Option("data.val_files", "eval_dataset_name", convert=_one_file("eval_dataset_name")),
        Option("data.train_batch_size", "steps_per_generation", "prompts", note="in prompts there", default=1024),
        Option(_VERL_R + "n", "num_generations", "generations", default=1),
        Option(
            _VERL_A + "ppo_mini_batch_size",
            "gradient_accumulation_steps",
            "update_prompts",
            note="in prompts there, multiplied by rollout.n; here in completions",
            default=256,
        ),
        Option(_VERL_A + "ppo_micro_batch_size_per_gpu", "per_device_train_batch_size", "micro"),
        Option("trainer.n_gpus_per_node", "--num_processes", "gpus", default=8),
        Option("trainer.nnodes", "--num_machines", "nodes", default=1),
        Option(_VERL_A + "ppo_epochs", "num_iterations"),
        Option("data.max_response_length", "max_completion_length", default=512),
        Option(
            _VERL_A + "clip_ratio",
            "epsilon, epsilon_high",
            convert=lambda x: {"epsilon": x, "epsilon_high": x},
            default=0.2,
        ),
        Option(_VERL_A + "clip_ratio_low", "epsilon"),
        Option(_VERL_A + "clip_ratio_high", "epsilon_high"),
        Option(
            _VERL_A + "clip_ratio_c",
            "delta",
            note="dual clip: the bound on the ratio at a negative advantage",
            default=3.0,
        ),
        Option(
            _VERL_A + "loss_agg_mode",
            "loss_type",
            convert=_choice(
                "loss_agg_mode",
                {
                    "token-mean": {"loss_type": "dapo"},
                    "seq-mean-token-mean": {"loss_type": "grpo"},
                    "seq-mean-token-sum-norm": {"loss_type": "dr_grpo"},
                },
            ),
            note="token-mean here is exact over micro-batches and ranks",
            default="token-mean",
        ),
        Option(
            _VERL_A + "use_token_level_loss",
            "loss_type",
            convert=lambda value: {"loss_type": "dapo" if value else "grpo"},
        ),
        Option(_VERL_A + "kl_loss_coef", "beta"),
        Option(_VERL_A + "use_kl_loss", "beta", convert=_off_sets("beta", 0.0), default=False),
        Option(
            "algorithm.use_kl_in_reward",
            "beta",
            convert=_only(False, "a KL term in the reward has no counterpart; beta puts it into the loss"),
        ),
        Option(
            "algorithm.adv_estimator",
            "scale_rewards",
            convert=_choice("adv_estimator", {"grpo": {}}),
            note="only grpo is translated",
        ),
        Option(
            "algorithm.norm_adv_by_std_in_grpo",
            "scale_rewards",
            convert=lambda value: {"scale_rewards": "group" if value else "none"},
        ),
        Option("algorithm.filter_groups.enable", "dynamic_sampling", default=False),
        Option("algorithm.filter_groups.metric", "filter_reward", convert=_filter_metric),
        Option(
            "algorithm.filter_groups.max_num_gen_batches",
            "max_generation_rounds, on_exhausted",
            convert=lambda value: _rounds(value) | {"on_exhausted": "error"},
            note="there the run ends when the rounds are spent; on_exhausted: partial would train what was found",
        ),
        Option("reward_model.overlong_buffer.len", "soft_punish_cache"),
        Option("reward_model.overlong_buffer.penalty_factor", "overlong_penalty_factor"),
        Option(
            "reward_model.overlong_buffer.enable",
            "soft_punish_cache",
            convert=_off_sets("soft_punish_cache", 0),
            note="0 turns it off",
            default=False,
        ),
        Option(_VERL_A + "optim.lr", "learning_rate", default=1e-6),
        Option(_VERL_A + "optim.weight_decay", "weight_decay", default=0.01),
        Option(_VERL_A + "optim.lr_warmup_steps", "warmup_steps", "steps", note=_ROUNDS_NOTE),
        Option(_VERL_A + "grad_clip", "max_grad_norm"),
        Option(
            _VERL_A + "entropy_coeff",
            "entropy_coef",
            convert=_only(0, "an entropy bonus is not translated"),
            note="only 0",
        ),
        Option(_VERL_R + "name", "use_vllm, vllm_mode", convert=_ENGINE, default="vllm"),
        Option(_VERL_R + "temperature", "temperature"),
        Option(_VERL_R + "top_p", "top_p"),
        Option(_VERL_R + "top_k", "top_k", convert=_top_k),
        Option(_VERL_R + "gpu_memory_utilization", "vllm_gpu_memory_utilization", default=0.5),
        Option(_VERL_R + "tensor_model_parallel_size", "vllm_tensor_parallel_size"),
        Option("trainer.total_training_steps", "max_steps", "steps", note=_ROUNDS_NOTE),
        Option("trainer.total_epochs", "num_train_epochs"),
        Option("trainer.save_freq", "save_steps", "steps", note=_ROUNDS_NOTE),
        Option("trainer.test_freq", "eval_steps", "steps", note=_ROUNDS_NOTE),
        Option("trainer.val_before_train", "eval_on_start"),
        Option("trainer.default_local_dir", "output_dir"),
        Option("trainer.experiment_name", "run_name"),
        Option("trainer.logger", "report_to", convert=_trackers),
    ],
    {
        "data.gen_batch_size": _ROUND_SIZE,
        "data.max_prompt_length": "there is no limit on prompts here; vllm_max_model_length holds prompt and completion",
        "data.*": _DATA,
        _VERL_R + "val_kwargs.*": "evaluation samples as training does; trl-dapo eval has its own sampling options",
        _VERL_A + "fsdp_config.*": _PARALLEL,
        _VERL_A + "ulysses_sequence_parallel_size": _PARALLEL,
        _VERL_A + "use_dynamic_bsz": _MEMORY,
        _VERL_A + "ppo_max_token_len_per_gpu": _MEMORY,
        "actor_rollout_ref.ref.*": "a reference model exists only with beta above 0, and has no options",
        "actor_rollout_ref.model.*": _MEMORY,
        "reward_model.reward_manager": "rewards are functions: name them in reward_names",
        "reward_model.overlong_buffer.log": "the punishment is always logged",
        "trainer.project_name": _LOGGING,
        "trainer.resume_mode": "resume with --resume_from_checkpoint true",
    },
    {"lr_scheduler_type": "constant_with_warmup"},
)

SWIFT = Framework(
    [
        Option("model", "model_name_or_path"),
        Option("dataset", "dataset_name", convert=_one_file("dataset_name")),
        Option("val_dataset", "eval_dataset_name", convert=_one_file("eval_dataset_name")),
        *(
            Option(name, name)
            for name in (
                *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
                *("steps_per_generation", "generation_batch_size", "num_generations", "num_iterations"),
                *("max_completion_length", "delta", "temperature", "top_p", "top_k", "learning_rate"),
                *("weight_decay", "lr_scheduler_type", "max_grad_norm", "max_steps", "num_train_epochs"),
                *("save_steps", "save_total_limit", "logging_steps", "output_dir", "report_to", "seed"),
                *("use_vllm", "vllm_mode", "vllm_gpu_memory_utilization", "vllm_tensor_parallel_size"),
                *("log_completions", "gradient_checkpointing", "lora_alpha"),
            )
        ),
        Option("epsilon", "epsilon"),
        Option("epsilon_high", "epsilon_high", default="epsilon"),
        Option("beta", "beta", default=0.04),
        Option(
            "loss_type",
            "loss_type",
            convert=_choice(
                "loss_type", {name: {"loss_type": name} for name in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo")}
            ),
            note="bnpo divides by the tokens of a micro-batch; dapo by those of the optimizer step, which DAPO means",
            default="grpo",
        ),
        Option("dynamic_sample", "dynamic_sampling", default=False),
        Option(
            "max_resample_times",
            "max_generation_rounds",
            convert=lambda value: {"max_generation_rounds": value + 1},
            note="there without the first round, here with it; accepted groups are kept when the rounds are spent",
            default=3,
        ),
        Option(
            "overlong_filter",
            "mask_truncated_completions",
            note="the masked tokens are not in the denominator here",
        ),
        Option("reward_funcs", "reward_names, soft_punish_cache", convert=_swift_rewards, default=[]),
        Option(
            "soft_cache_length", "soft_punish_cache", note="the punishment never decides which groups are informative"
        ),
        Option(
            "warmup_ratio", "warmup_steps", convert=lambda value: {"warmup_steps": value}, note="below 1 it is a share"
        ),
        Option("train_type", "use_peft", convert=_swift_tuner, default="lora"),
        Option("lora_rank", "lora_r", default=8),
        Option("torch_dtype", "dtype"),
        Option("vllm_max_model_len", "vllm_max_model_length"),
    ],
    {
        "rlhf_type": "only grpo can be moved",
        "soft_max_length": "L_max is max_completion_length",
        "reward_weights": "the punishment has weight 1 of its own: write reward_weights for the rewards in reward_names",
        "external_plugins": "name a function of your module in reward_names, as my_rewards.brevity",
        "system": "the text of the file goes into system_prompt",
        "max_length": "there is no limit on prompts here; vllm_max_model_length holds prompt and completion",
        "deepspeed": _PARALLEL,
        "sleep_level": "vllm_enable_sleep_mode: true",
        "offload_*": _MEMORY,
        "move_model_batches": _MEMORY,
        "attn_impl": "attn_implementation, with the names of transformers",
        "dataset_*": _DATA,
        "dataloader_*": "the prompts come from a stream; the dataloader only paces steps",
        "split_dataset_ratio": "held-out problems are counted by num_eval_problems",
        "target_modules": "lora_target_modules",
    },
)

OPENRLHF = Framework(
    [
        Option("pretrain", "model_name_or_path"),
        Option("prompt_data", "dataset_name"),
        Option("prompt_split", "dataset_train_split"),
        Option("eval_dataset", "eval_dataset_name"),
        Option("rollout_batch_size", "steps_per_generation", "prompts", note="in prompts there", default=1024),
        Option("n_samples_per_prompt", "num_generations", "generations", default=1),
        Option(
            "train_batch_size",
            "gradient_accumulation_steps",
            "update_samples",
            note="in completions, over all GPUs",
            default=128,
        ),
        Option("micro_train_batch_size", "per_device_train_batch_size", "micro", default=4),
        Option("actor_num_gpus_per_node", "--num_processes", "gpus", default=8),
        Option("actor_num_nodes", "--num_machines", "nodes", default=1),
        Option("max_epochs", "num_iterations"),
        Option("num_episodes", "num_train_epochs", default=1),
        Option("generate_max_len", "max_completion_length", default=1024),
        Option("eps_clip", "epsilon, epsilon_high", convert=lambda x: {"epsilon": x, "epsilon_high": x}, default=0.2),
        Option(
            "eps_clip_low_high",
            "epsilon, epsilon_high",
            convert=lambda pair: {"epsilon": pair[0], "epsilon_high": pair[1]},
        ),
        Option("dual_clip", "delta"),
        Option("init_kl_coef", "beta", default=0.01),
        Option(
            "use_kl_loss",
            "beta",
            convert=_only(True, "without it the KL term is in the reward; beta puts it into the loss"),
        ),
        Option("kl_estimator", "beta", convert=_only("k3", "only k3 is here"), note="only k3"),
        Option(
            "advantage_estimator",
            "scale_rewards",
            convert=_choice(
                "advantage_estimator", {"group_norm": {"scale_rewards": "group"}, "dr_grpo": {"scale_rewards": "none"}}
            ),
        ),
        Option("dynamic_filtering", "dynamic_sampling", default=False),
        Option(
            "dynamic_filtering_reward_range",
            "filter_range",
            convert=_bounds,
            note="the group's mean lies strictly inside; here its rewards must differ too",
        ),
        Option("overlong_buffer_len", "soft_punish_cache", convert=lambda x: {"soft_punish_cache": int(x)}, default=0),
        Option("overlong_penalty_factor", "overlong_penalty_factor"),
        Option("actor_learning_rate", "learning_rate", default=1e-6),
        Option("l2", "weight_decay"),
        Option("max_norm", "max_grad_norm"),
        Option("lr_warmup_ratio", "warmup_steps", note="below 1 it is a share", default=0.03),
        Option(
            "lr_scheduler",
            "lr_scheduler_type",
            convert=lambda name: (
                {"lr_scheduler_type": name}
                | ({"lr_scheduler_kwargs": {"min_lr_rate": 0.1}} if name == "cosine_with_min_lr" else {})
            ),
            default="cosine_with_min_lr",
        ),
        Option(
            "adam_betas",
            "adam_beta1, adam_beta2",
            convert=lambda pair: {"adam_beta1": pair[0], "adam_beta2": pair[1]},
            default=(0.9, 0.95),
        ),
        Option(
            "vllm_num_engines",
            "use_vllm, vllm_mode",
            convert=lambda count: {"use_vllm": True, "vllm_mode": "colocate"} if count else {"use_vllm": False},
            note="the number of engines is that of processes divided by vllm_tensor_parallel_size",
        ),
        Option("vllm_tensor_parallel_size", "vllm_tensor_parallel_size"),
        Option("vllm_gpu_memory_utilization", "vllm_gpu_memory_utilization", default=0.95),
        Option("vllm_enable_sleep", "vllm_enable_sleep_mode"),
        Option("temperature", "temperature"),
        Option("top_p", "top_p"),
        Option("seed", "seed"),
        Option("gradient_checkpointing", "gradient_checkpointing", default=False),
        Option("bf16", "bf16", default=False),
        Option("save_steps", "save_steps", "steps", note=_ROUNDS_NOTE),
        Option("eval_steps", "eval_steps", "steps", note=_ROUNDS_NOTE),
        Option("save_path", "output_dir"),
        Option(
            "lora_rank", "use_peft, lora_r", convert=lambda rank: {"use_peft": True, "lora_r": rank} if rank else {}
        ),
        Option("lora_alpha", "lora_alpha"),
    ],
    {
        "remote_rm_url": "rewards are functions: name yours in reward_names, as my_rewards.brevity",
        "agent_func_path": "rewards are functions: name yours in reward_names",
        "enable_vllm_is_correction": "vllm_importance_sampling_correction is on by default",
        "vllm_enable_is_correction": "vllm_importance_sampling_correction is on by default",
        "vllm_generate_batch_size": _ROUND_SIZE,
        "micro_rollout_batch_size": _MEMORY,
        "prompt_max_len": "there is no limit on prompts here; vllm_max_model_length holds prompt and completion",
        "max_samples": "cut the file, or set max_steps",
        "ref_*": "a reference model exists only with beta above 0, and has no options",
        "reward_*": "rewards are functions: name yours in reward_names",
        "critic_*": "there is no critic",
        "gamma": "there is no critic: an advantage belongs to the whole completion",
        "lambd": "there is no critic: an advantage belongs to the whole completion",
        "colocate_*": "vLLM is in the process of the trainer",
        "zero_stage": _PARALLEL,
        "ring_*": _PARALLEL,
        "packing_samples": _MEMORY,
        "enforce_eager": "vllm_engine_kwargs takes it",
        "vllm_sync_*": _MEMORY,
        "deepspeed_*": _PARALLEL,
        "adam_offload": _PARALLEL,
        "input_*": _DATA,
        "label_key": _DATA,
        "apply_chat_template": _DATA,
        "ckpt_path": "checkpoints are in output_dir",
        "save_hf_ckpt": "a checkpoint always has the model in the format of transformers",
        "use_wandb": "report_to: wandb, with the key in WANDB_API_KEY",
        "wandb_*": _LOGGING,
        "async_*": "sampling is one batch ahead at most: overlap=True, with vLLM servers",
    },
)


def _nemo_scaling(value: Any) -> dict[str, Any]:
    if not value:
        return {}
    raise CannotTranslateError("rewards are not rescaled; reward_names: [signed_accuracy_reward] gives -1 and 1")


NEMO = Framework(
    [
        Option("policy.model_name", "model_name_or_path"),
        Option("grpo.num_prompts_per_step", "steps_per_generation", "prompts", note="in prompts there", default=32),
        Option("grpo.num_generations_per_prompt", "num_generations", "generations", default=16),
        Option(
            "policy.train_global_batch_size",
            "gradient_accumulation_steps",
            "update_samples",
            note="in completions, over all GPUs",
            default=512,
        ),
        Option("policy.train_micro_batch_size", "per_device_train_batch_size", "micro", default=4),
        Option("cluster.gpus_per_node", "--num_processes", "gpus", default=1),
        Option("cluster.num_nodes", "--num_machines", "nodes", default=1),
        Option("grpo.max_num_steps", "max_steps", "steps", note=_ROUNDS_NOTE),
        Option("grpo.max_num_epochs", "num_train_epochs"),
        Option("grpo.val_period", "eval_steps", "steps", note=_ROUNDS_NOTE),
        Option("grpo.val_at_start", "eval_on_start"),
        Option("grpo.max_val_samples", "num_eval_problems"),
        Option("grpo.seed", "seed", default=42),
        Option("grpo.use_dynamic_sampling", "dynamic_sampling", default=False),
        Option(
            "grpo.dynamic_sampling_max_gen_batches",
            "max_generation_rounds, on_exhausted",
            convert=lambda value: _rounds(value) | {"on_exhausted": "error"},
            note="there the run ends when the rounds are spent; on_exhausted: partial would train what was found",
        ),
        Option(
            "grpo.overlong_filtering",
            "mask_truncated_completions",
            note="both keep truncated completions in the statistics; truncated_in_statistics: false leaves them out",
        ),
        Option(
            "grpo.normalize_rewards",
            "scale_rewards",
            convert=lambda value: {"scale_rewards": "group" if value else "none"},
        ),
        Option(
            "grpo.use_leave_one_out_baseline",
            "scale_rewards",
            convert=_only(False, "the baseline is the mean of the whole group, as in DAPO"),
            default=True,
        ),
        Option("grpo.reward_scaling.enabled", "reward_names", convert=_nemo_scaling),
        Option("grpo.reward_shaping.overlong_buffer_length", "soft_punish_cache"),
        Option("grpo.reward_shaping.overlong_buffer_penalty", "overlong_penalty_factor"),
        Option(
            "grpo.reward_shaping.max_response_length",
            "max_completion_length",
            note="there L_max may be shorter than what is sampled; here it is what is sampled",
        ),
        Option(
            "grpo.reward_shaping.enabled",
            "soft_punish_cache",
            convert=_off_sets("soft_punish_cache", 0),
            note="0 turns it off",
            default=False,
        ),
        Option("loss_fn.reference_policy_kl_penalty", "beta", default=0.01),
        Option("loss_fn.ratio_clip_min", "epsilon", default=0.2),
        Option("loss_fn.ratio_clip_max", "epsilon_high", default=0.2),
        Option("loss_fn.ratio_clip_c", "delta"),
        Option(
            "loss_fn.token_level_loss",
            "loss_type",
            convert=lambda value: {"loss_type": "dapo" if value else "grpo"},
            default=True,
        ),
        Option("loss_fn.use_importance_sampling_correction", "vllm_importance_sampling_correction", default=False),
        Option(
            "loss_fn.sequence_level_importance_ratios",
            "importance_sampling_level",
            convert=lambda value: {"importance_sampling_level": "sequence" if value else "token"},
        ),
        Option("policy.optimizer.kwargs.lr", "learning_rate", default=5e-6),
        Option("policy.optimizer.kwargs.weight_decay", "weight_decay", default=0.01),
        Option("policy.max_grad_norm", "max_grad_norm"),
        Option("policy.dtensor_cfg.activation_checkpointing", "gradient_checkpointing", default=False),
        Option("policy.max_total_sequence_length", "vllm_max_model_length", default=512),
        Option("policy.generation.backend", "use_vllm, vllm_mode", convert=_ENGINE, default="vllm"),
        Option("policy.generation.temperature", "temperature"),
        Option("policy.generation.top_p", "top_p"),
        Option("policy.generation.top_k", "top_k", convert=_top_k),
        Option("policy.generation.vllm_cfg.tensor_parallel_size", "vllm_tensor_parallel_size"),
        Option("policy.generation.vllm_cfg.gpu_memory_utilization", "vllm_gpu_memory_utilization", default=0.6),
        Option("checkpointing.checkpoint_dir", "output_dir"),
        Option("checkpointing.save_period", "save_steps", "steps", note=_ROUNDS_NOTE),
        Option("checkpointing.keep_top_k", "save_total_limit"),
        Option("data.train.dataset_name", "dataset_name", note="its built-in names are not names on the Hub"),
        Option(
            "data.validation.dataset_name", "eval_dataset_name", note="its built-in names are not names on the Hub"
        ),
    ],
    {
        "defaults": "the file that it names is not read: merge both, or the defaults of grpo_math_1B.yaml are taken",
        "grpo.batch_multiplier": _ROUND_SIZE,
        "grpo.max_rollout_turns": "max_tool_calling_iterations, with tools or environments",
        "grpo.val_batch_size": "per_device_eval_batch_size",
        "grpo.async_grpo.*": "sampling is one batch ahead at most: overlap=True, with vLLM servers",
        "grpo.reward_scaling.*": "rewards are not rescaled",
        "policy.scheduler*": "write lr_scheduler_type and warmup_steps, in optimizer steps",
        "policy.generation.max_new_tokens": "the longest completion is max_response_length; without it set max_completion_length",
        "policy.generation.*": "vllm_engine_kwargs takes options of the engine",
        "policy.*": _PARALLEL,
        "checkpointing.*": "checkpoints are written by save_steps, and resumed by resume_from_checkpoint",
        "data.*": _DATA,
        "env.*": "rewards are functions: name them in reward_names",
        "logger.*": _LOGGING,
    },
    {"lr_scheduler_type": "constant_with_warmup"},
)


def _roll_devices(value: Any) -> int:
    """Returns the number of devices in a list, or in text such as `list(range(0, 8))`."""
    spans = re.findall(r"range\(\s*(\d+)\s*,\s*(\d+)\s*\)", value) if isinstance(value, str) else []
    if spans:
        return sum(int(end) - int(start) for start, end in spans)
    if isinstance(value, list):
        return len(value)
    raise CannotTranslateError("not a list of devices: give the number of GPUs with --num_processes")


_ROLL_T, _ROLL_A, _ROLL_I = "actor_train.training_args.", "actor_train.", "actor_infer."
_ROLL_FILTER = "rewards.*.query_filter_config."
ROLL = Framework(
    [
        Option("pretrain", "model_name_or_path"),
        Option(_ROLL_A + "data_args.file_name", "dataset_name", convert=_one_file("dataset_name")),
        Option("validation.data_args.file_name", "eval_dataset_name", convert=_one_file("eval_dataset_name")),
        Option("rollout_batch_size", "steps_per_generation", "prompts", note="in prompts there", default=128),
        Option("num_return_sequences_in_group", "num_generations", "generations", default=1),
        Option(_ROLL_T + "per_device_train_batch_size", "per_device_train_batch_size", "micro", default=8),
        Option(
            _ROLL_T + "gradient_accumulation_steps",
            "gradient_accumulation_steps",
            "accumulation",
            note="of a data-parallel rank; here every GPU is one",
            default=1,
        ),
        Option(
            _ROLL_A + "device_mapping",
            "--num_processes",
            "gpus",
            _roll_devices,
            note="the devices that train",
            default=[0],
        ),
        *(
            Option(_ROLL_A + f"strategy_args.strategy_config.{kind}_size", "gradient_accumulation_steps", "parts")
            for kind in ("tensor_model_parallel", "pipeline_model_parallel", "context_parallel")
        ),
        Option(_ROLL_A + "model_args.ulysses_size", "gradient_accumulation_steps", "parts"),
        Option("ppo_epochs", "num_iterations"),
        Option("max_steps", "max_steps", "steps", note=_ROUNDS_NOTE, default=500),
        Option("save_steps", "save_steps", "steps", note=_ROUNDS_NOTE, default=50),
        Option("eval_steps", "eval_steps", "steps", note=_ROUNDS_NOTE, default=10),
        Option("logging_steps", "logging_steps", "steps", note=_ROUNDS_NOTE, default=1),
        Option("response_length", "max_completion_length"),
        Option("pg_clip", "epsilon, epsilon_high", convert=lambda x: {"epsilon": x, "epsilon_high": x}, default=0.2),
        Option("pg_clip_low", "epsilon", note="there only with use_pg_clip_range"),
        Option("pg_clip_high", "epsilon_high", note="there only with use_pg_clip_range"),
        Option(
            "dual_clip_loss",
            "delta",
            convert=_only(False, "its bound follows from pg_clip: write delta: 1 + 2 x pg_clip, so 1.4 for 0.2"),
        ),
        Option(
            "adv_estimator",
            "scale_rewards",
            convert=_choice("adv_estimator", {"grpo": {}, "reinforce": {}}),
            note="reinforce there is GRPO only with norm_mean_type and norm_std_type: group",
            default="gae",
        ),
        Option("norm_mean_type", "scale_rewards", convert=_only("group", "the baseline is the mean of the group")),
        Option(
            "norm_std_type",
            "scale_rewards",
            convert=_choice(
                "norm_std_type", {"group": {"scale_rewards": "group"}, "batch": {"scale_rewards": "batch"}}
            ),
        ),
        Option(
            "whiten_advantages", "scale_rewards", convert=_only(False, "advantages are not whitened over the batch")
        ),
        Option("kl_loss_coef", "beta"),
        Option("use_kl_loss", "beta", convert=_off_sets("beta", 0.0), default=False),
        Option(
            "add_token_level_kl",
            "beta",
            convert=_only(False, "a KL term in the reward has no counterpart; beta puts it into the loss"),
        ),
        Option(
            "entropy_loss_coef", "entropy_coef", convert=_only(0, "an entropy bonus is not translated"), note="only 0"
        ),
        Option(
            "loss_agg_mode",
            "loss_type",
            convert=_choice(
                "loss_agg_mode",
                {
                    "token-mean": {"loss_type": "dapo"},
                    "seq-mean-token-mean": {"loss_type": "grpo"},
                    "seq-mean-token-sum-norm": {"loss_type": "dr_grpo"},
                },
            ),
            default="seq-mean-token-mean",
        ),
        Option(
            "importance_sampling",
            "importance_sampling_level",
            convert=_choice(
                "importance_sampling",
                {"token": {"importance_sampling_level": "token"}, "seq": {"importance_sampling_level": "sequence"}},
            ),
        ),
        Option("max_len_mask", "mask_truncated_completions", note="the masked tokens are not in the denominator here"),
        Option(
            _ROLL_FILTER + "type",
            "dynamic_sampling",
            convert=_choice(
                "query_filter_config.type",
                {
                    "no_filter": {"dynamic_sampling": False},
                    "mean_filter": {"dynamic_sampling": True},
                    "std_filter": {"dynamic_sampling": True},
                },
            ),
            note="of one domain; filter_reward names the reward that decides",
            default="no_filter",
        ),
        Option(
            _ROLL_FILTER + "filter_args.threshold_down",
            "filter_range",
            convert=_only(0, "write filter_range: [threshold_down, threshold_up]"),
            note="only 0, which every group with a correct and a wrong completion meets",
        ),
        Option(
            _ROLL_FILTER + "filter_args.threshold_up",
            "filter_range",
            convert=_only(1, "write filter_range: [threshold_down, threshold_up]"),
            note="only 1, which every group with a correct and a wrong completion meets",
        ),
        Option(
            _ROLL_FILTER + "filter_args.std_threshold",
            "filter_range",
            convert=_only(0, "groups are filtered by their mean (filter_range), not by their deviation"),
            note="only 0",
        ),
        Option(_ROLL_T + "learning_rate", "learning_rate", default=5e-5),
        Option(_ROLL_T + "weight_decay", "weight_decay"),
        Option(_ROLL_T + "warmup_steps", "warmup_steps", note="in optimizer steps on both sides"),
        Option(_ROLL_T + "warmup_ratio", "warmup_steps", note="below 1 it is a share"),
        Option(_ROLL_T + "lr_scheduler_type", "lr_scheduler_type"),
        Option("max_grad_norm", "max_grad_norm"),
        Option(
            _ROLL_A + "model_args.disable_gradient_checkpointing",
            "gradient_checkpointing",
            convert=lambda value: {"gradient_checkpointing": not value},
        ),
        Option(
            _ROLL_A + "model_args.dtype",
            "bf16",
            convert=_choice("dtype", {"bf16": {"bf16": True}, "fp32": {"bf16": False}}),
        ),
        Option(
            _ROLL_A + "model_args.lora_rank",
            "use_peft, lora_r",
            convert=lambda rank: {"use_peft": True, "lora_r": rank} if rank else {},
        ),
        Option(_ROLL_A + "model_args.lora_alpha", "lora_alpha"),
        Option(_ROLL_I + "strategy_args.strategy_name", "use_vllm, vllm_mode", convert=_ENGINE, default="vllm"),
        Option(_ROLL_I + "strategy_args.strategy_config.gpu_memory_utilization", "vllm_gpu_memory_utilization"),
        Option(_ROLL_I + "strategy_args.strategy_config.tensor_parallel_size", "vllm_tensor_parallel_size"),
        Option(_ROLL_I + "generating_args.temperature", "temperature"),
        Option(_ROLL_I + "generating_args.top_p", "top_p"),
        Option(_ROLL_I + "generating_args.top_k", "top_k", convert=_top_k),
        Option("seed", "seed", default=42),
        Option("output_dir", "output_dir"),
        Option("exp_name", "run_name"),
        Option(
            "track_with",
            "report_to",
            convert=_choice(
                "track_with",
                {name: {"report_to": name} for name in ("wandb", "tensorboard", "swanlab")}
                | {"stdout": {"report_to": "none"}},
            ),
        ),
    ],
    {
        "prompt_length": "there is no limit on prompts here; vllm_max_model_length holds prompt and completion",
        "sequence_length": "max_completion_length is sequence_length - prompt_length",
        "num_gpus_per_node": "the GPUs are those of actor_train.device_mapping",
        "use_pg_clip_range": "epsilon and epsilon_high are two settings: without it, leave pg_clip_low and pg_clip_high out",
        "is_use_additional_prompts": _ROUND_SIZE,
        "max_additional_running_prompts": _ROUND_SIZE,
        "max_running_requests": _MEMORY,
        "generate_opt_level": _MEMORY,
        "is_num_return_sequences_expand": _MEMORY,
        "async_generation_ratio": "sampling is not asynchronous here",
        "difficulty_*": "prompts that are too easy or too hard: filter_range, or selective_rollout",
        "error_max_len_*": "soft_punish_cache punishes completions near the limit",
        "add_len_reward": "soft_punish_cache punishes completions near the limit",
        "reward_clip": "rewards are not clipped",
        "advantage_clip": "advantages are not clipped",
        "init_kl_coef": "used there only with add_token_level_kl",
        "lambd": "there is no critic: an advantage belongs to the whole completion",
        "gamma": "there is no critic: an advantage belongs to the whole completion",
        "value_clip": "there is no critic",
        "reward_pretrain": "there is no critic",
        "critic*": "there is no critic",
        "rewards.*": "rewards are functions: name them in reward_names",
        "reference.*": "a reference model exists only with beta above 0, and has no options",
        "validation.*": "evaluation samples as training does; trl-dapo eval has its own sampling options",
        _ROLL_T + "num_train_epochs": "max_steps ends the run there",
        _ROLL_A + "data_args.*": _DATA,
        _ROLL_A + "*": _PARALLEL,
        _ROLL_I + "generating_args.*": "generation_kwargs takes other options of sampling",
        _ROLL_I + "*": _MEMORY,
        "resume_from_checkpoint": "resume with --resume_from_checkpoint true",
        "checkpoint_config.*": "checkpoints are in output_dir",
        "tracker_kwargs.*": _LOGGING,
        "logging_dir": _LOGGING,
        "hydra.*": "there is no Hydra here: options are flat",
        "defaults": "the files that it names are not read: merge them",
        "system_envs.*": "set environment variables in the shell",
    },
)

_SKY_A, _SKY_P = "trainer.algorithm.", "trainer.policy."
_SKY_G, _SKY_E = "generator.", "generator.inference_engine."
SKYRL = Framework(
    [
        Option(_SKY_P + "model.path", "model_name_or_path"),
        Option("data.train_data", "dataset_name", convert=_one_file("dataset_name")),
        Option("data.val_data", "eval_dataset_name", convert=_one_file("eval_dataset_name")),
        Option("trainer.train_batch_size", "steps_per_generation", "prompts", note="in prompts there", default=1024),
        Option(_SKY_G + "n_samples_per_prompt", "num_generations", "generations", default=5),
        Option(
            "trainer.policy_mini_batch_size",
            "gradient_accumulation_steps",
            "update_prompts",
            note="in prompts there, multiplied by n_samples_per_prompt; here in completions",
            default=256,
        ),
        Option("trainer.micro_train_batch_size_per_gpu", "per_device_train_batch_size", "micro", default=1),
        Option("trainer.placement.policy_num_gpus_per_node", "--num_processes", "gpus", default=1),
        Option("trainer.placement.policy_num_nodes", "--num_machines", "nodes", default=1),
        Option("trainer.update_epochs_per_batch", "num_iterations"),
        Option("trainer.epochs", "num_train_epochs", default=1),
        Option("trainer.ckpt_interval", "save_steps", "steps", note=_ROUNDS_NOTE, default=10),
        Option("trainer.eval.interval", "eval_steps", "steps", note=_ROUNDS_NOTE, default=5),
        Option("trainer.eval_interval", "eval_steps", "steps", note=_ROUNDS_NOTE),
        Option("trainer.eval.before_train", "eval_on_start"),
        Option("trainer.eval_before_train", "eval_on_start"),
        Option(
            "trainer.max_ckpts_to_keep",
            "save_total_limit",
            convert=lambda count: {"save_total_limit": count} if count > 0 else {},
        ),
        Option("trainer.ckpt_path", "output_dir"),
        Option("trainer.run_name", "run_name"),
        Option("trainer.logger", "report_to", convert=_trackers),
        Option("trainer.seed", "seed", default=42),
        Option("trainer.bf16", "bf16"),
        Option("trainer.gradient_checkpointing", "gradient_checkpointing"),
        Option(
            _SKY_A + "advantage_estimator",
            "scale_rewards",
            convert=_choice("advantage_estimator", {"grpo": {}}),
            note="only grpo is translated",
        ),
        Option(
            _SKY_A + "grpo_norm_by_std",
            "scale_rewards",
            convert=lambda value: {"scale_rewards": "group" if value else "none"},
        ),
        Option(_SKY_A + "eps_clip_low", "epsilon", default=0.2),
        Option(_SKY_A + "eps_clip_high", "epsilon_high", default=0.2),
        Option(
            _SKY_A + "clip_ratio_c",
            "delta",
            note="only with policy_loss_type: dual_clip",
            default=3.0,
        ),
        Option(
            _SKY_A + "policy_loss_type",
            "delta, importance_sampling_level",
            convert=_choice(
                "policy_loss_type",
                {
                    "regular": {"delta": None},
                    "dual_clip": {},
                    "gspo": {"delta": None, "importance_sampling_level": "sequence"},
                },
            ),
            default="regular",
        ),
        Option(
            _SKY_A + "loss_reduction",
            "loss_type",
            convert=_choice(
                "loss_reduction",
                {
                    "token_mean": {"loss_type": "dapo"},
                    "token_mean_legacy": {"loss_type": "dapo"},
                    "prompt_mean": {"loss_type": "dapo", "loss_normalization": "group"},
                    "sequence_mean": {"loss_type": "grpo"},
                    "seq_mean_token_sum_norm": {"loss_type": "dr_grpo"},
                },
            ),
            note="token_mean_legacy averages over micro-batches there; the mean here is over the tokens of the optimizer step",
            default="token_mean",
        ),
        Option(_SKY_A + "kl_loss_coef", "beta", default=0.001),
        Option(_SKY_A + "use_kl_loss", "beta", convert=_off_sets("beta", 0.0)),
        Option(
            _SKY_A + "use_kl_in_reward",
            "beta",
            convert=_only(False, "a KL term in the reward has no counterpart; beta puts it into the loss"),
        ),
        Option(
            _SKY_A + "use_entropy_loss", "entropy_coef", convert=_only(False, "an entropy bonus is not translated")
        ),
        Option(
            _SKY_A + "dynamic_sampling.type",
            "dynamic_sampling",
            convert=_choice(
                "dynamic_sampling.type", {"filter": {"dynamic_sampling": True}, "null": {"dynamic_sampling": False}}
            ),
            note="replace, which repeats good groups, is not here",
            default="null",
        ),
        Option(
            _SKY_A + "dynamic_sampling.max_sample_batches",
            "max_generation_rounds, on_exhausted",
            convert=lambda value: _rounds(value) | {"on_exhausted": "error"},
            note="there the run ends when the rounds are spent; on_exhausted: partial would train what was found",
        ),
        Option(_SKY_A + "overlong_buffer_len", "soft_punish_cache", note="of its DAPO example", default=0),
        Option(_SKY_A + "overlong_buffer_penalty_factor", "overlong_penalty_factor", note="of its DAPO example"),
        Option(
            _SKY_G + "apply_overlong_filtering",
            "mask_truncated_completions",
            note="the masked tokens are not in the denominator here",
        ),
        Option(
            _SKY_A + "off_policy_correction.tis_ratio_type",
            "vllm_importance_sampling_correction",
            convert=_choice(
                "tis_ratio_type",
                {
                    "null": {"vllm_importance_sampling_correction": False},
                    "token": {"vllm_importance_sampling_correction": True},
                },
            ),
            note="on by default here",
            default="null",
        ),
        Option(_SKY_P + "optimizer_config.lr", "learning_rate", default=1e-6),
        Option(_SKY_P + "optimizer_config.weight_decay", "weight_decay", default=0.01),
        Option(_SKY_P + "optimizer_config.max_grad_norm", "max_grad_norm"),
        Option(_SKY_P + "optimizer_config.num_warmup_steps", "warmup_steps", note="in optimizer steps on both sides"),
        Option(_SKY_P + "optimizer_config.scheduler", "lr_scheduler_type", default="constant_with_warmup"),
        Option(
            _SKY_P + "model.lora.rank",
            "use_peft, lora_r",
            convert=lambda rank: {"use_peft": True, "lora_r": rank} if rank else {},
        ),
        Option(_SKY_P + "model.lora.alpha", "lora_alpha"),
        Option(_SKY_E + "backend", "use_vllm, vllm_mode", convert=_ENGINE, default="vllm"),
        Option(_SKY_G + "backend", "use_vllm, vllm_mode", convert=_ENGINE),
        Option(_SKY_E + "gpu_memory_utilization", "vllm_gpu_memory_utilization", default=0.8),
        Option(_SKY_G + "gpu_memory_utilization", "vllm_gpu_memory_utilization"),
        Option(_SKY_E + "tensor_parallel_size", "vllm_tensor_parallel_size"),
        Option(_SKY_G + "inference_engine_tensor_parallel_size", "vllm_tensor_parallel_size"),
        Option(_SKY_G + "sampling_params.max_generate_length", "max_completion_length", default=1024),
        Option(_SKY_G + "sampling_params.temperature", "temperature"),
        Option(_SKY_G + "sampling_params.top_p", "top_p"),
        Option(_SKY_G + "sampling_params.top_k", "top_k", convert=_top_k),
        Option(_SKY_G + "sampling_params.min_p", "min_p"),
    ],
    {
        "trainer.max_prompt_length": "there is no limit on prompts here; vllm_max_model_length holds prompt and completion",
        _SKY_A + "dynamic_sampling.min_replace_ratio": "replace, which repeats good groups, is not here",
        _SKY_A + "zero_variance_filter*": "a group without spread has advantages of 0",
        _SKY_A + "value_*": "there is no critic",
        _SKY_A + "lambd": "there is no critic: an advantage belongs to the whole completion",
        _SKY_A + "gamma": "there is no critic: an advantage belongs to the whole completion",
        "trainer.critic*": "there is no critic",
        "trainer.ref.*": "a reference model exists only with beta above 0, and has no options",
        "trainer.placement.*": _PARALLEL,
        "trainer.strategy": _PARALLEL,
        _SKY_P + "*": _PARALLEL,
        "trainer.fully_async.*": "sampling is not asynchronous here",
        "trainer.eval*": "evaluation samples as training does; trl-dapo eval has its own sampling options",
        "trainer.micro_forward_batch_size_per_gpu": _MEMORY,
        "trainer.use_sample_packing": _MEMORY,
        "trainer.project_name": _LOGGING,
        "trainer.resume_*": "resume with --resume_from_checkpoint true",
        "trainer.export_path": "checkpoints are in output_dir",
        "trainer.hf_save_interval": "a checkpoint always has the model in the format of transformers",
        _SKY_G + "eval_*": "evaluation samples as training does; trl-dapo eval has its own sampling options",
        _SKY_G + "max_turns": "max_tool_calling_iterations, with tools or environments",
        _SKY_G + "sampling_params.*": "generation_kwargs takes other options of sampling",
        _SKY_G + "*": "vllm_engine_kwargs takes options of the engine",
        "environment.*": "rewards are functions: name them in reward_names",
    },
)

FRAMEWORKS: dict[str, Framework] = {
    "verl": VERL,
    "ms-swift": SWIFT,
    "OpenRLHF": OPENRLHF,
    "NeMo-RL": NEMO,
    "ROLL": ROLL,
    "SkyRL": SKYRL,
}
