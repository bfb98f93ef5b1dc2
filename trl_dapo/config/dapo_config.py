"""Configuration of the `DAPOTrainer`."""

from dataclasses import dataclass, field

from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available
from trl import GRPOConfig

from trl_dapo.sampling.generation_end import GenerationEnd

from .batch_shape import BatchShape
from .derived_fields import deriving
from .field_types import check_batch_shape, check_field_types
from .loss_types import TOKEN_NORMALIZED_LOSSES
from .overlap_checks import check_overlap
from .renamed_fields import rename_deprecated_fields
from .secrets import PickledWithoutToken
from .selective_checks import check_selective_fields
from .server_address import server_addresses
from .trl_values import check_trl_values
from .vllm_options import check_engine_kwargs, check_resumable, check_speculation, known_engine_options


_ON_EXHAUSTED = ("partial", "error")
_SURPLUS = ("requeue", "carry")
_REFILL = ("rounds", "stream")
# Enough to see every verdict, and at 16 completions of 3,000 tokens some 10 MB a batch before compression.
GROUPS_TO_LOG = 64
_ADAPTER_SYNC = ("merged", "adapter")
_LOSS_NORMALIZATION = ("batch", "group", "generation_batch")


@dataclass
class DAPOConfig(PickledWithoutToken, GRPOConfig):
    r"""
    Configuration of the [`DAPOTrainer`]: a [`~trl.GRPOConfig`] with the defaults of
    [DAPO](https://huggingface.co/papers/2503.14476) and the fields of dynamic sampling.

    TRL's own fields `epsilon=0.2`, `loss_type="dapo"`, `beta=0.0`, `scale_rewards="group"` and `temperature=1.0`
    already have the paper's values. `epsilon_high` has it here. The paper takes 16 optimizer steps per generation batch:
    set `steps_per_generation`, since with one step the ratio is 1 and no clipping can bind.

    Where no bfloat16 accelerator is found, `bf16` is `False` unless it is set.

    With `load_best_model_at_end` or `save_strategy="best"`, `metric_for_best_model` is `"eval_avg@k"` unless it is set: the
    highest accuracy by the filter reward, without penalties. The loss, which transformers takes, is noise around 0 here.

    Parameters:
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Turn dropout off, that of the model and that of LoRA. With dropout the policy that samples is not the one that
            trains: the ratio is not 1 where the weights are the same. `False`: as TRL.
        epsilon_high (`float` or `None`, *optional*, defaults to `0.28`):
            Upper bound of Clip-Higher: the ratio is clipped to [1 - epsilon, 1 + epsilon_high]. `None`: `epsilon`.
        dynamic_sampling (`bool`, *optional*, defaults to `True`):
            Keep sampling prompts until every group of the generation batch is informative, that is until its completions
            differ in the filter reward (DAPO Eq. 11). `False`: batches are drawn as in `GRPOTrainer`.
        filter_reward (`str` or `list[str]`, *optional*):
            Name of the reward function that decides whether a group is informative; never the weighted sum. Of several, the
            first that scored the group decides: one reward for each task, each `None` outside its own. `None`: all reward
            functions in their order, so the first one wherever it returns a number.
        filter_range (`tuple[float, float]`, *optional*):
            Keep only groups whose mean filter reward lies strictly between these two values. `None`: no such limit.
        max_generation_rounds (`int`, *optional*, defaults to `10`):
            Generation rounds that one batch may use, the first included.
        max_prompts_per_round (`int`, *optional*):
            Most prompts sampled in one round. `None`: 4 generation batches.
        on_exhausted (`str`, *optional*, defaults to `"partial"`):
            What happens when the rounds are spent and the batch is not full. `"partial"`: train on the groups found, the
            rest of the batch carries no weight. `"error"`: raise [`RefillExhaustedError`] with the counts.
        refill_confidence (`float` or `None`, *optional*, defaults to `0.9`):
            A round samples the fewest prompts that fill the batch with this probability, at the acceptance rate
            estimated so far. In (0, 1). `None`: as many as give the least expected time to a full batch, by the measured
            costs of beginning a round and of each prompt in it.
        refill (`str`, *optional*, defaults to `"rounds"`):
            How the batch is refilled. `"rounds"`: in rounds of sampling, each as long as its longest completion.
            `"stream"`: groups are started, graded and given up one by one, with vLLM in the same process or on servers; the
            batch is the same, the first informative groups in stream order, and a batch may start
            `max_generation_rounds * max_prompts_per_round` prompts. With `surplus="carry"`, completions that are still being
            decoded when the batch is decided go on in the next one.
        overlap (`bool`, *optional*, defaults to `False`):
            Whether the next batch is sampled while one trains, with the weights before its first optimizer step. With
            `vllm_mode="server"` and `refill="stream"`. A batch is then as many optimizer steps old as one batch takes when it
            begins to train. With `vllm_importance_sampling_correction=False` ratio and clip are against the policy that
            sampled it; with `True` and `vllm_importance_sampling_mode="token_truncate"` they are against the policy that
            begins to train, and each token is weighted by its probability then over that when it was sampled.
        surplus (`str`, *optional*, defaults to `"requeue"`):
            What happens to informative groups beyond the batch. `"requeue"`: their completions are dropped and their
            prompts given back to the stream. `"carry"`: they train in the next batch, against the log-probabilities of
            the policy that sampled them.
        max_off_policy_steps (`int` or `None`, *optional*):
            How many optimizer steps old a carried group may be when its batch begins to train; older ones are dropped.
            With `overlap`, how old anything may be that trains. `None`: the steps of one generation batch; of two with both.
        selective_rollout (`bool`, *optional*, defaults to `False`):
            Pass over prompts whose groups would hardly teach. The past groups of each prompt predict its next one: a prompt
            is sampled with a probability that grows with its chance of an informative group, twice as fast with that of
            few correct completions. Saves completions from the second pass over the data on, and in the first one with
            `pass_rate_column` or `label_column`.
        exploration_share (`float`, *optional*, defaults to `0.1`):
            With `selective_rollout`, the lowest probability that a prompt is sampled when its turn comes, in (0, 1].
            Higher finds again sooner what the policy has learnt or lost, and costs completions.
        evict_above (`float`, *optional*):
            With `selective_rollout`, a prompt whose past completions are correct to this share or more is not drawn any
            more, in (0, 1]; 0.9 in [ScaleRL](https://huggingface.co/papers/2510.13786). `None`: none is left out.
        pass_rate_column (`str`, *optional*):
            With `selective_rollout`, column of the training dataset with a known pass rate of each prompt, in [0, 1], of
            another model or of an earlier run; None or NaN where it is not known. The first guess of the first pass.
        label_column (`str`, *optional*):
            With `selective_rollout`, column with a source or a level: prompts of one label are taken to be alike until
            they were sampled. At most 8,192 labels, 481 with `pass_rate_column`.
        loss_normalization (`str`, *optional*):
            What a token-level loss (`loss_type` `"dapo"`, `"cispo"`, `"vespo"`) divides by. `"batch"`: the tokens of the
            optimizer step over all ranks and micro-batches (DAPO Eq. 12, verl). `"group"`: the tokens of each group, and
            then the mean over the groups of the optimizer step (DAPO Eq. 8 to the letter). `"generation_batch"`: as TRL,
            the tokens of the generation batch divided by its optimizer steps, which is right on average only. `None`:
            `"batch"`, or `"generation_batch"` where sampling is off and optimizer steps train on two generation batches;
            TRL's other loss types divide by what they always do, and take no other value.
        truncated_in_statistics (`bool`, *optional*, defaults to `True`):
            With `mask_truncated_completions`, whether the truncated completions, which carry no loss, count in the mean
            and standard deviation of their group all the same. `False`: advantages are over the other completions alone,
            and a group in which those are all alike is not informative.
        soft_punish_cache (`int`, *optional*):
            L_cache of the soft overlong punishment (DAPO Eq. 13), in tokens: completions longer than
            `max_completion_length - soft_punish_cache` lose up to 1. `None`: 20 % of `max_completion_length`. `0`: off.
        overlong_penalty_factor (`float`, *optional*, defaults to `1.0`):
            Scales the soft overlong punishment.
        max_non_finite_steps (`int` or `None`, *optional*, defaults to `5`):
            An optimizer step whose gradients are NaN or infinite is skipped, since it would make every weight NaN, and its
            batch is written to `<output_dir>/_non_finite/`. After so many consecutive ones the run stops with
            [`NonFiniteGradientError`]. `None`: such a step is taken, as in TRL.
        reward_timeout (`float` or `None`, *optional*, defaults to `1500.0`):
            Most wall seconds that one call of a reward function may take, for all completions of a process in a round.
            Then the stacks of all threads are printed and [`RewardTimeoutError`] is raised, on the other processes
            [`RankFailedError`]; a function that cannot be interrupted ends its process. On several processes it has to be
            below `ddp_timeout` (30 minutes), after which those that wait for the rewards give up with an error that names
            no reward. `None`: no limit.
        env_timeout (`float` or `None`, *optional*, defaults to `1500.0`):
            With dynamic sampling: most wall seconds of one call of a tool, of the `reset` of an environment, or of a rollout
            function. A tool or a reset that takes longer is interrupted, and its completion has no reward; a rollout function
            ends the run with [`EnvTimeoutError`]. What cannot be interrupted ends its process. On several processes it has to
            be below `ddp_timeout`. `None`: no limit.
        num_groups_to_log (`int`, *optional*):
            Groups of each generation batch, chosen at random among all that were sampled, trained or not, to write to
            `<output_dir>/rollouts` with prompt, completions, verdict, rewards and advantage. `None`: 64 with
            `log_completions`, else 0. `0`: none.
        restart_stream (`bool`, *optional*, defaults to `False`):
            Whether a run that resumes from a checkpoint begins the prompt stream anew, as other data, another seed or
            another order need. Weights, optimizer, schedule and step stay; carried groups, a half-trained batch and the pass
            rates of `selective_rollout` are dropped. It holds for each resume: set it for one.
        vllm_engine_kwargs (`dict[str, Any]`, *optional*):
            Options of the colocated vLLM engine that TRL has no field for: any of vLLM's `EngineArgs`, as
            `{"enforce_eager": True, "dtype": "float32"}`. `max_num_seqs` and `max_num_batched_tokens` may be set here too, and
            `speculative_config` with the methods `"ngram"` and `"suffix"`.
            `None`: `max_num_seqs` is the completions of the largest refill round that the engine samples, up to the 512 for
            which vLLM records CUDA graphs, and never fewer than those of one generation batch.
        vllm_request_seeds (`bool`, *optional*):
            Whether each training completion of vLLM has a random seed of its own, from `seed`, the position of its prompt in
            the stream and its number in the group. Then what is sampled does not depend on the size of rounds, on which
            process or server samples it, nor on whether the run was resumed. `None`: wherever vLLM draws for all requests at
            once, and on a CPU. Its older model runner (before 0.29, and for some models) loops over requests with seeds, 8 to
            10 ms a step with 1,024 of them: there a resumed run samples other completions, unless this is `True`. With tensor
            parallelism in the same process each request has a seed in any case, as the processes have to draw the same.
        vllm_weight_folder (`str`, *optional*):
            With `vllm_mode="server"`, a folder through which the servers get the weights, on a disk that trainer and servers
            share. `None`: over NCCL, as TRL does, where there is CUDA, one server and no sharding of the model; else through
            shared memory, for servers on this machine.
        vllm_adapter_sync (`str`, *optional*, defaults to `"merged"`):
            What a weight sync brings to a colocated engine when a LoRA adapter trains. `"merged"`: all weights, the adapter
            merged into them. `"adapter"`: all weights once, from then on only the adapter, which the engine computes beside
            them. With sleep mode the engine drops all weights, so that each time it wakes it gets all of them again.
        vllm_check_interval (`int`, *optional*, defaults to `10`):
            After the first weight sync and every so many from then on, the log-probabilities of a few sampled tokens
            are compared between vLLM and the trained model, at the cost of one small forward pass. `0`: never.
        vllm_max_logp_gap (`float` or `None`, *optional*, defaults to `0.25`):
            Mean absolute difference of these log-probabilities, in nats per token, from which on the run stops with
            [`StaleEngineError`]: the engine samples from other weights than those that train. Rounding makes a
            difference of 0.01 to 0.05 in bfloat16, and more when vLLM quantizes. `None`: the difference is only logged.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "vllm_engine_kwargs"]

    disable_dropout: bool = field(
        default=True,
        metadata={"help": "Turn dropout off, LoRA's too: the ratio of an unchanged policy is 1 only without it."},
    )
    epsilon_high: float | None = field(
        default=0.28,
        metadata={"help": "Upper bound of Clip-Higher (verl: clip_ratio_high). None uses `epsilon`."},
    )
    dynamic_sampling: bool = field(
        default=True,
        metadata={
            "help": "Keep sampling prompts until every group of the batch is informative (verl: filter_groups)."
        },
    )
    # In this order, the command-line parser reads texts; `nargs` makes it read several.
    filter_reward: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Name of the reward function that decides whether a group is informative (verl: "
            "filter_groups.metric). Of several, the first that scored the group decides. None uses all in their order.",
            "nargs": "+",
        },
    )
    # Annotated as a list for the command-line parser, which knows no tuples; it is a tuple after `__post_init__`.
    filter_range: list[float] | None = field(
        default=None,
        metadata={"help": "Two bounds: keep only groups whose mean filter reward lies strictly between them."},
    )
    max_generation_rounds: int = field(
        default=10,
        metadata={"help": "Generation rounds that one batch may use, the first included (verl: max_num_gen_batches)."},
    )
    max_prompts_per_round: int | None = field(
        default=None,
        metadata={"help": "Most prompts sampled in one round. None allows 4 generation batches."},
    )
    on_exhausted: str = field(
        default="partial",
        metadata={
            "help": "When the rounds are spent and the batch is not full: train on the groups found, or raise.",
            "choices": list(_ON_EXHAUSTED),
        },
    )
    refill_confidence: float | None = field(
        default=0.9,
        metadata={
            "help": "Probability with which one round fills what the batch lacks, in (0, 1). "
            "None takes the round size with the least expected time."
        },
    )
    refill: str = field(
        default="rounds",
        metadata={
            "help": "Refill the batch in rounds of sampling, or group by group (vLLM, colocated or servers).",
            "choices": list(_REFILL),
        },
    )
    overlap: bool = field(
        default=False,
        metadata={
            "help": "Sample the next batch on vLLM servers while one trains: it is one batch late, and the loss knows it."
        },
    )
    surplus: str = field(
        default="requeue",
        metadata={
            "help": "Informative groups beyond the batch: give their prompts back, or train them in the next batch.",
            "choices": list(_SURPLUS),
        },
    )
    max_off_policy_steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps that a carried group, or one sampled ahead, may be old. None: those of a batch."
        },
    )
    selective_rollout: bool = field(
        default=False,
        metadata={"help": "Pass over prompts whose past groups predict that the next one would hardly teach."},
    )
    exploration_share: float = field(
        default=0.1,
        metadata={
            "help": "Lowest probability that `selective_rollout` samples a prompt when its turn comes, in (0, 1]."
        },
    )
    evict_above: float | None = field(
        default=None,
        metadata={
            "help": "With `selective_rollout`, prompts solved to this share or more are not drawn any more, in (0, 1]. "
            "None leaves none out."
        },
    )
    pass_rate_column: str | None = field(
        default=None,
        metadata={"help": "With `selective_rollout`, column with a known pass rate of each prompt, in [0, 1]."},
    )
    label_column: str | None = field(
        default=None,
        metadata={"help": "With `selective_rollout`, column with a source or level: prompts of one label are alike."},
    )
    loss_normalization: str | None = field(
        default=None,
        metadata={
            "help": "Divide the token-level loss by the tokens of the optimizer step (verl: token-mean), by those of each "
            "group, or as TRL by the average over the steps of the generation batch. None takes the first.",
            "choices": list(_LOSS_NORMALIZATION),
        },
    )
    truncated_in_statistics: bool = field(
        default=True,
        metadata={"help": "Whether truncated completions that carry no loss count in their group's mean and std."},
    )
    soft_punish_cache: int | None = field(
        default=None,
        metadata={
            "help": "L_cache of the soft overlong punishment in tokens (verl: overlong_buffer.len). "
            "None takes one fifth of `max_completion_length`, 0 turns it off."
        },
    )
    overlong_penalty_factor: float = field(
        default=1.0,
        metadata={"help": "Scales the soft overlong punishment (verl: overlong_buffer.penalty_factor)."},
    )
    max_non_finite_steps: int | None = field(
        default=5,
        metadata={
            "help": "Consecutive optimizer steps with NaN or infinite gradients that are skipped before the run stops. "
            "None takes such steps, as TRL does."
        },
    )
    reward_timeout: float | None = field(
        default=1500.0,
        metadata={
            "help": "Most wall seconds of one call of a reward function; below `ddp_timeout`. Then the run ends with an "
            "error that names it. None sets no limit."
        },
    )
    env_timeout: float | None = field(
        default=1500.0,
        metadata={
            "help": "Most wall seconds of one call of a tool, of the `reset` of an environment, or of a rollout function; below "
            "`ddp_timeout`. None sets no limit."
        },
    )
    num_groups_to_log: int | None = field(
        default=None,
        metadata={
            "help": "Sampled groups of each generation batch to write to `<output_dir>/rollouts`, trained or not. None "
            "takes 64 with `log_completions`, else 0."
        },
    )
    restart_stream: bool = field(
        default=False,
        metadata={
            "help": "Begin the prompt stream anew on resume, as other data or another seed need. Weights, optimizer and "
            "step stay."
        },
    )
    vllm_engine_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Options of the colocated vLLM engine that TRL has no field for, by their names in vLLM's EngineArgs "
            "(verl: rollout.engine_kwargs.vllm). JSON on the command line."
        },
    )
    vllm_request_seeds: bool | None = field(
        default=None,
        metadata={
            "help": "Seed each training completion of vLLM by `seed`, stream position and number in its group. None does it "
            "where it costs no time."
        },
    )
    vllm_weight_folder: str | None = field(
        default=None,
        metadata={
            "help": "Folder through which vLLM servers get the weights, on a disk that all machines share. None takes NCCL, or "
            "shared memory on this machine."
        },
    )
    vllm_adapter_sync: str = field(
        default="merged",
        metadata={
            "help": "What a weight sync of a LoRA run brings to a colocated engine: `merged` (all weights) or `adapter` (only "
            "the adapter, after the first sync)."
        },
    )
    vllm_check_interval: int = field(
        default=10,
        metadata={
            "help": "Weight syncs from one comparison of vLLM's log-probabilities with the trained model's to the next. "
            "0 never compares."
        },
    )
    vllm_max_logp_gap: float | None = field(
        default=0.25,
        metadata={
            "help": "Mean absolute difference of these log-probabilities, in nats, beyond which the run stops. None only "
            "logs it."
        },
    )

    def __post_init__(self) -> None:
        with deriving(self):
            self._set_and_check()

    def _set_and_check(self) -> None:
        own = set(self.__dataclass_fields__) - set(GRPOConfig.__dataclass_fields__)
        check_field_types(self, own - {"vllm_engine_kwargs"})
        check_batch_shape(self)
        has_bf16 = is_torch_bf16_gpu_available() or is_torch_xla_available()
        if self.bf16 is None and not self.use_cpu and not has_bf16:
            # TRL would choose bfloat16, and transformers refuse it.
            self.bf16 = False
        if self.metric_for_best_model is None and (self.load_best_model_at_end or self.save_strategy == "best"):
            # The loss is noise around 0 here. This one is accuracy by the filter reward, without penalties.
            self.metric_for_best_model = f"eval_avg@{self.num_generations_eval or self.num_generations}"
        rename_deprecated_fields(self)
        super().__post_init__()
        check_trl_values(self)
        if self.num_groups_to_log is None:
            self.num_groups_to_log = GROUPS_TO_LOG if self.log_completions else 0
        if self.num_groups_to_log < 0:
            raise ValueError(
                f"num_groups_to_log is {self.num_groups_to_log}, but must be 0 (none) or more groups a batch. Use 64."
            )
        if self.restart_stream and not self.dynamic_sampling:
            raise ValueError(
                "restart_stream is True, but dynamic_sampling is False: there is no prompt stream, TRL's dataloader gives the "
                "prompts. Set restart_stream=False, or dynamic_sampling=True."
            )
        self._check_overlong_fields()
        self._check_loss_normalization()
        if not self.truncated_in_statistics and not self.mask_truncated_completions:
            raise ValueError(
                "truncated_in_statistics is False, but mask_truncated_completions is False too, so that truncated "
                "completions carry loss and need an advantage. Set mask_truncated_completions=True."
            )
        if self.max_non_finite_steps is not None and self.max_non_finite_steps < 1:
            raise ValueError(
                f"max_non_finite_steps is {self.max_non_finite_steps}, but must be 1 or more, or None to take steps with NaN "
                "gradients as TRL does. Use 5."
            )
        self._check_timeouts()
        self._check_vllm_fields()
        check_overlap(self)
        if self.dynamic_sampling:
            self._check_sampling_fields()
            self._check_combinations()

    @property
    def num_groups_per_batch(self) -> int:
        """Prompts of one generation batch."""
        return _resolved(self.generation_batch_size) // _resolved(self.num_generations)

    @property
    def num_updates_per_batch(self) -> int:
        """Optimizer steps on one generation batch."""
        num_micro_batches = _resolved(self.steps_per_generation) * self.num_iterations
        return max(1, num_micro_batches // self.gradient_accumulation_steps)

    @property
    def num_steps_ahead(self) -> int:
        """Optimizer steps between the policy that samples a batch and the one that begins to train on it."""
        return self.num_updates_per_batch if self.overlap else 0

    @property
    def least_off_policy_steps(self) -> int:
        """How many optimizer steps old the groups of a batch have to be allowed to be, if it is to have any use."""
        is_carried = self.surplus == "carry" or not self.overlap
        return self.num_steps_ahead + self.num_updates_per_batch * is_carried

    @property
    def shape(self) -> BatchShape:
        """The numbers that shape a generation batch."""
        return BatchShape(
            num_generations=_resolved(self.num_generations),
            num_groups=self.num_groups_per_batch,
            num_slices=_resolved(self.steps_per_generation),
            num_updates=self.num_updates_per_batch,
            max_rounds=self.max_generation_rounds,
            max_prompts_per_round=self.max_prompts_per_round or 4 * self.num_groups_per_batch,
            keeps_surplus=self.surplus == "carry",
            max_off_policy_steps=(self.max_off_policy_steps or self.least_off_policy_steps) - self.num_steps_ahead,
        )

    @property
    def trl_computes_old_logps(self) -> bool:
        """Whether TRL computes old log-probabilities, first of all; else it takes the ratio to be 1."""
        num_micro_batches = _resolved(self.steps_per_generation) * self.num_iterations
        is_aligned = self.gradient_accumulation_steps % num_micro_batches == 0
        return not is_aligned or bool(self.use_vllm and self.vllm_importance_sampling_correction)

    @property
    def generation_end(self) -> GenerationEnd:
        """What ends a completion, by the fields and by `generation_kwargs`."""
        return GenerationEnd.read(
            self.generation_kwargs,  # type: ignore[arg-type]  # a string before it was parsed
            self.max_completion_length,
            self.use_vllm,
            self.vllm_max_model_length if self.use_vllm else None,
        )

    @property
    def default_punish_cache(self) -> int | None:
        """`soft_punish_cache` where it is left out: 20 % of the longest completion. `None` without a length limit."""
        limit = self.generation_end.max_completion_length
        return None if limit is None else limit // 5

    @property
    def filter_bounds(self) -> tuple[float, float] | None:
        """`filter_range` as a pair."""
        return None if self.filter_range is None else (self.filter_range[0], self.filter_range[1])

    @property
    def free_length(self) -> int | None:
        """
        Longest completion that is not overlong, L_max - L_cache in tokens.

        With the punishment off, 80 % of `max_completion_length`; `None` without a length limit.
        """
        limit = self.generation_end.max_completion_length
        return None if limit is None else limit - (self.soft_punish_cache or limit // 5)

    def _check_overlong_fields(self) -> None:
        if self.overlong_penalty_factor < 0:
            raise ValueError(
                f"overlong_penalty_factor is {self.overlong_penalty_factor}, but must be 0 or more: it scales a penalty. "
                "Set soft_punish_cache=0 to turn the penalty off."
            )
        limit = self.generation_end.max_completion_length
        if self.soft_punish_cache is None:
            if limit is None:
                raise ValueError(
                    "soft_punish_cache is None, which means 20 % of max_completion_length, but that is None too. Set "
                    "max_completion_length, or soft_punish_cache=0 to turn the soft overlong punishment off."
                )
            self.soft_punish_cache = limit // 5
        if self.soft_punish_cache < 0 or (limit is not None and self.soft_punish_cache > limit):
            raise ValueError(
                f"soft_punish_cache is {self.soft_punish_cache}, but must be between 0 (off) and max_completion_length "
                f"({limit}). The paper uses 20 % of the length limit."
            )
        if self.soft_punish_cache and limit is None:
            raise ValueError(
                f"soft_punish_cache is {self.soft_punish_cache}, but max_completion_length is None. Set a length limit, "
                "or soft_punish_cache=0 to turn the soft overlong punishment off."
            )

    def _check_timeouts(self) -> None:
        awaited = {"reward_timeout": ("rewards", "reward"), "env_timeout": ("completions", "environment")}
        for name, (what, culprit) in awaited.items():
            seconds = getattr(self, name)
            if seconds is None:
                continue
            if seconds <= 0:
                raise ValueError(f"{name} is {seconds}, but must be above 0 seconds, or None for no limit. Use 1500.")
            if self.world_size > 1 and seconds >= self.ddp_timeout:
                raise ValueError(
                    f"{name} is {seconds:g}, but must be below ddp_timeout ({self.ddp_timeout} seconds): then the other "
                    f"processes give up waiting for the {what}, with an error that names no {culprit}. Set "
                    f"{name}={self.ddp_timeout * 5 / 6:g}, or raise ddp_timeout."
                )

    def _check_vllm_fields(self) -> None:
        if self.vllm_check_interval < 0:
            raise ValueError(
                f"vllm_check_interval is {self.vllm_check_interval}, but must be 0 (never) or more weight syncs. Use 10."
            )
        if self.vllm_max_logp_gap is not None and self.vllm_max_logp_gap <= 0:
            raise ValueError(
                f"vllm_max_logp_gap is {self.vllm_max_logp_gap}, but must be above 0, or None to only log the gap. "
                "Rounding alone makes one of 0.01 to 0.05 in bfloat16."
            )
        if self.vllm_adapter_sync not in _ADAPTER_SYNC:
            raise ValueError(
                f"vllm_adapter_sync is {self.vllm_adapter_sync!r}, but must be one of {', '.join(map(repr, _ADAPTER_SYNC))}."
            )
        if self.vllm_adapter_sync == "adapter" and not (self.use_vllm and self.vllm_mode == "colocate"):
            raise ValueError(
                f"vllm_adapter_sync is 'adapter', but use_vllm is {self.use_vllm} and vllm_mode is {self.vllm_mode!r}: only a "
                'colocated engine takes an adapter. Set use_vllm=True and vllm_mode="colocate", or leave it "merged".'
            )
        if self.use_vllm:
            check_engine_kwargs(self.vllm_engine_kwargs, self.vllm_mode, known_engine_options())
            check_speculation(self.vllm_engine_kwargs, self.generation_kwargs, self.min_p, self.vllm_request_seeds)
        if self.use_vllm and self.vllm_mode == "server":
            server_addresses(self.vllm_server_base_url, self.vllm_server_host, self.vllm_server_port)
        elif self.vllm_weight_folder is not None:
            raise ValueError(
                f"vllm_weight_folder is {self.vllm_weight_folder!r}, but use_vllm is {self.use_vllm} and vllm_mode is "
                f'{self.vllm_mode!r}: there is no server to get weights. Set use_vllm=True and vllm_mode="server", or leave it None.'
            )

    def _check_loss_normalization(self) -> None:
        if self.loss_normalization not in (None, *_LOSS_NORMALIZATION):
            raise ValueError(
                f"loss_normalization is {self.loss_normalization!r}, but must be None or one of "
                f"{', '.join(map(repr, _LOSS_NORMALIZATION))}."
            )
        if self.loss_type not in TOKEN_NORMALIZED_LOSSES:
            if self.loss_normalization is not None:
                raise ValueError(
                    f"loss_normalization is {self.loss_normalization!r}, but loss_type={self.loss_type!r} has a "
                    f"denominator of its own and would ignore it. Leave it None, or use loss_type="
                    f"{' or '.join(map(repr, TOKEN_NORMALIZED_LOSSES))}."
                )
            return
        ragged = self._describe_ragged_steps()
        if self.loss_normalization is None:
            # Where optimizer steps train on two generation batches, TRL's own denominator is the one that can be known.
            self.loss_normalization = "generation_batch" if ragged and not self.dynamic_sampling else "batch"
        elif ragged and self.loss_normalization != "generation_batch":
            way_out = "dynamic_sampling=False and loss_normalization=None"
            raise ValueError(f"{ragged}, or {way_out if self.dynamic_sampling else 'leave loss_normalization None'}.")
        if self.loss_normalization == "group":
            self._check_group_normalization(self.per_device_train_batch_size * self.gradient_accumulation_steps)

    def _check_group_normalization(self, rows_per_step: int) -> None:
        if self.beta:
            raise ValueError(
                f'beta is {self.beta}, but must be 0 with loss_normalization="group": groups are weighted through their '
                'advantages, which a KL term has not. Set beta=0.0 (DAPO), or loss_normalization="batch".'
            )
        is_split = _resolved(self.steps_per_generation) > self.gradient_accumulation_steps
        if is_split and rows_per_step % _resolved(self.num_generations):
            raise ValueError(
                f'loss_normalization is "group", but the {rows_per_step} completions of a process in an optimizer step '
                f"(per_device_train_batch_size * gradient_accumulation_steps) are no multiple of num_generations "
                f"({self.num_generations}), so that groups would be split over optimizer steps. Make them one, take one "
                'optimizer step per generation batch, or set loss_normalization="batch".'
            )

    def _check_sampling_fields(self) -> None:
        if self.on_exhausted not in _ON_EXHAUSTED:
            raise ValueError(
                f"on_exhausted is {self.on_exhausted!r}, but must be one of {', '.join(map(repr, _ON_EXHAUSTED))}."
            )
        if self.max_generation_rounds < 1:
            raise ValueError(
                f"max_generation_rounds is {self.max_generation_rounds}, but must be 1 or more: the first round counts."
            )
        if self.surplus not in _SURPLUS:
            raise ValueError(f"surplus is {self.surplus!r}, but must be one of {', '.join(map(repr, _SURPLUS))}.")
        self._check_refill()
        check_selective_fields(self)
        if self.max_off_policy_steps is None:
            self.max_off_policy_steps = self.least_off_policy_steps
        if self.overlap and self.max_off_policy_steps < self.least_off_policy_steps:
            raise ValueError(
                f"max_off_policy_steps is {self.max_off_policy_steps}, but must be {self.least_off_policy_steps} or more with "
                f"overlap=True and surplus={self.surplus!r}: a batch takes {self.num_updates_per_batch} optimizer steps, and is "
                "sampled one batch ahead. Leave it None, or set overlap=False."
            )
        if self.max_off_policy_steps < 1:
            raise ValueError(
                f"max_off_policy_steps is {self.max_off_policy_steps}, but must be 1 or more: a carried group is at least "
                'one batch old. Leave it None; surplus="requeue" trains on fresh groups only.'
            )
        if self.refill_confidence is not None and not 0.0 < self.refill_confidence < 1.0:
            raise ValueError(
                f"refill_confidence is {self.refill_confidence}, but must lie strictly between 0 and 1. Use 0.9, or less "
                "to waste fewer completions and take more rounds."
            )
        if self.max_prompts_per_round is None:
            self.max_prompts_per_round = 4 * self.num_groups_per_batch
        if self.max_prompts_per_round < 1:
            raise ValueError(f"max_prompts_per_round is {self.max_prompts_per_round}, but must be 1 or more.")
        if self.filter_range is not None:
            bounds = tuple(self.filter_range)
            if len(bounds) != 2 or not bounds[0] < bounds[1]:
                raise ValueError(
                    f"filter_range is {bounds}, but must be two values, the lower one first, for example (0.1, 0.9)."
                )
            self.filter_range = bounds  # type: ignore[assignment]

    def _check_refill(self) -> None:
        if self.refill not in _REFILL:
            raise ValueError(f"refill is {self.refill!r}, but must be one of {', '.join(map(repr, _REFILL))}.")
        if self.refill == "rounds":
            return
        if not self.use_vllm:
            raise ValueError(
                f'refill is "stream", but use_vllm is {self.use_vllm}: it needs an engine that takes single requests. Set '
                'use_vllm=True, or refill="rounds".'
            )
        if self.vllm_mode == "colocate" and self.vllm_tensor_parallel_size != 1:
            raise ValueError(
                f'refill is "stream", but vllm_tensor_parallel_size is {self.vllm_tensor_parallel_size}: the processes of '
                'one engine would have to take each step together. Set it to 1, use servers, or set refill="rounds".'
            )
        if self.surplus == "carry":
            check_resumable(self.generation_kwargs, self.vllm_structured_outputs_regex)

    def _check_combinations(self) -> None:
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns is True, but reward functions read the columns beside the prompt, and evaluation would "
                "be without them. Set remove_unused_columns=False."
            )
        ragged = self._describe_ragged_steps()
        if ragged:
            raise ValueError(f"{ragged}, or dynamic_sampling=False.")

    def _describe_ragged_steps(self) -> str:
        """Returns what to do where optimizer steps train on two generation batches; "" where none does."""
        steps, accumulation = _resolved(self.steps_per_generation), self.gradient_accumulation_steps
        if steps % accumulation == 0:
            return ""
        rows = self.per_device_train_batch_size * self.world_size
        fitting = -(-steps // accumulation) * accumulation
        while fitting * rows % _resolved(self.num_generations):
            fitting += accumulation
        return (
            f"steps_per_generation is {steps}, but must be a multiple of gradient_accumulation_steps ({accumulation}), so "
            f"that every optimizer step trains on one generation batch. Set steps_per_generation={fitting} (or "
            f"generation_batch_size={fitting * rows})"
        )


def _resolved(value: int | None) -> int:
    """Returns a field that TRL types as optional, and that its `__post_init__` has set."""
    assert value is not None
    return value
