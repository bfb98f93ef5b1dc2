"""The trainer: TRL's `GRPOTrainer` with dynamic sampling and the soft overlong punishment of DAPO."""

import math
import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.grpo_trainer import RewardFunc

from .assembly import CollectedBatch
from .callbacks import EmptyUpdateGuard
from .carried_logps import compute_logps, restore_old_logps
from .collectives import Ranks
from .config import DAPOConfig
from .dynamic_sampling import DynamicSampler, RoundOutput
from .loss_normalization import TOKEN_NORMALIZED_LOSSES, num_live_tokens, window_denominators
from .rewards import SoftOverlongPunishment
from .rollouts import Rollout
from .run_checks import check_single_turn, check_train_dataset
from .sampling.collection import BatchCollection
from .sampling.group_filter import GroupVerdict


logger = get_logger(__name__)

# Wholly empty generation batches after which a run stops: it would spend its time on nothing.
_MAX_EMPTY_BATCHES = 5


class DAPOTrainer(GRPOTrainer):
    """
    Trainer for [DAPO](https://huggingface.co/papers/2503.14476): a [`~trl.GRPOTrainer`] whose every trained group has
    both correct and wrong completions.

    With `dynamic_sampling` the prompts come from an endless seeded stream over `train_dataset`, and the dataloader only
    paces the steps: `num_train_epochs` counts batches as if no group were rejected, the metric `dapo/data_passes` says
    how often the data were really seen. Evaluation is that of `GRPOTrainer`, on unshaped rewards.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            As in `GRPOTrainer`.
        reward_funcs (`Callable` or `list[Callable]`):
            As in `GRPOTrainer`. The soft overlong punishment is added by the trainer, with weight 1.
        args ([`DAPOConfig`], *optional*):
            Configuration. `None`: the defaults, in the folder `<model>-DAPO`.
        train_dataset ([`~datasets.Dataset`]):
            Dataset with a `prompt` column and whatever columns the reward functions ask for (`solution`).
        **kwargs:
            Everything else that `GRPOTrainer` takes: `eval_dataset`, `processing_class`, `peft_config`, `callbacks`, ...

    Raises:
        `ValueError`: when a column is missing, the dataset is smaller than one generation batch, the filter reward is
        not among the reward functions, or a combination is not supported.

    Example:

    ```python
    from trl_dapo import DAPOConfig, DAPOTrainer
    from trl_dapo.rewards import accuracy_reward

    trainer = DAPOTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        args=DAPOConfig(output_dir="out"),
        reward_funcs=accuracy_reward,
        train_dataset=dataset,
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "dapo"]
    _name = "DAPO"
    _paper = {
        "title": "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
        "id": "2503.14476",
        "citation": textwrap.dedent("""\
            @article{yu2025dapo,
                title        = {{DAPO: An Open-Source LLM Reinforcement Learning System at Scale}},
                author       = {Qiying Yu and Zheng Zhang and Ruofei Zhu and Yufeng Yuan and Xiaochen Zuo and others},
                year         = 2025,
                eprint       = {arXiv:2503.14476},
            }"""),
    }

    args: DAPOConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: DAPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        **kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config.name_or_path
            args = DAPOConfig(f"{name.rstrip('/').split('/')[-1] or 'model'}-DAPO")
        if not isinstance(args, DAPOConfig):
            raise TypeError(
                f"`args` must be a `DAPOConfig`, got `{type(args).__name__}`. It takes all of GRPOConfig's fields."
            )
        if args.dynamic_sampling:
            check_train_dataset(train_dataset, reward_funcs, args.num_groups_per_batch, args.selective_rollout)
            check_single_turn(kwargs)
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, train_dataset=train_dataset, **kwargs)
        # While set, generation and scoring hand this batch back instead of making a new one.
        self._replay: CollectedBatch | None = None
        self._awaits_old_logps = False
        self._stamped_batch: list[dict[str, Any]] | None = None
        self._num_empty_batches = 0
        self._has_warned: set[str] = set()
        filter_column = self._find_filter_column()
        self._add_overlong_punishment()
        self.dynamic_sampler: DynamicSampler | None = None
        if args.dynamic_sampling:
            self.dynamic_sampler = DynamicSampler(
                args=args,
                ranks=Ranks(self.accelerator),
                dataset=train_dataset,
                sample=self._sample_and_score,
                compute_logps=self._compute_logps,
                num_rewards=len(self.reward_funcs),
                filter_column=filter_column,
                end_token_ids=[*self.eos_token_ids, self._tokenizer.pad_token_id],
            )
            self.add_callback(EmptyUpdateGuard(self._step_has_tokens))

    # Reward postprocessing

    def _find_filter_column(self) -> int:
        name = self.args.filter_reward
        if name is None:
            return 0
        if name not in self.reward_func_names:
            raise ValueError(
                f"filter_reward is {name!r}, but must be one of the reward functions: "
                f"{', '.join(map(repr, self.reward_func_names))}. Leave it None to use the first."
            )
        return self.reward_func_names.index(name)

    def _add_overlong_punishment(self) -> None:
        self._overlong_column: int | None = None
        if not self.args.soft_punish_cache:
            return
        punishment = SoftOverlongPunishment(
            self.args.max_completion_length, self.args.soft_punish_cache, self.args.overlong_penalty_factor
        )
        # New lists: the caller's list of reward functions is theirs.
        self._overlong_column = len(self.reward_funcs)
        self.reward_funcs = [*self.reward_funcs, punishment]
        self.reward_func_names = [*self.reward_func_names, punishment.__name__]
        self.reward_processing_classes = [*self.reward_processing_classes, None]
        self.reward_weights = torch.cat([self.reward_weights, torch.ones(1)])

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        if self._replay is not None:
            return self._replay.rewards.to(self.accelerator.device)
        rewards: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        column = self._overlong_column
        if column is not None:
            # A completion that nobody could score stays unscored, whatever its length; and evaluation is unshaped.
            is_unscored = rewards[:, :column].isnan().all(dim=1) | (not self.model.training)
            rewards[is_unscored, column] = torch.nan
        return rewards

    # Generation-batch refilling

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            output = super()._generate_and_score_completions(inputs)
            if self._overlong_column is not None:
                name = self.reward_func_names[self._overlong_column]
                for statistic in ("mean", "std"):  # NaN by construction: see `_calculate_rewards`
                    self._metrics["eval"].pop(f"rewards/{name}/{statistic}")
            return output
        if self.dynamic_sampler is None:
            return super()._generate_and_score_completions(inputs)
        # The dataloader's `inputs` only pace the steps.
        self._replay = self._collect_batch(self.dynamic_sampler)
        has_carried = self._replay.collection.num_carried > 0
        # TRL computes old log-probabilities itself, first of all, unless it takes the ratio to be 1.
        is_aligned = (
            self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations) == 0
        )
        trl_computes_old = not is_aligned or (self.use_vllm and self.vllm_importance_sampling_correction)
        try:
            self._awaits_old_logps = has_carried and trl_computes_old
            output = super()._generate_and_score_completions(self._replay.inputs)
            if has_carried and not trl_computes_old:
                output["old_per_token_logps"] = self._old_logps_of(output)
            if self._replay.collection.num_missing:
                self._mask_fillers(output, self._replay.is_filler.to(self.accelerator.device))
        finally:
            self._replay, self._awaits_old_logps = None, False
        return output

    def _collect_batch(self, sampler: DynamicSampler) -> CollectedBatch:
        metrics = self._metrics["train"]
        num_logged = {name: len(values) for name, values in metrics.items()}
        batch = sampler.collect(self.state.global_step)
        collection = batch.collection
        # TRL logged the lengths of each round for itself: one figure over all completions replaces them.
        for name, value in collection.length_metrics().items():
            metrics[name][num_logged.get(name, 0) :] = [value]
        figures = collection.metrics()
        if self._overlong_column is not None:
            free_length = self.args.max_completion_length - self.args.soft_punish_cache
            figures |= collection.overlong_metrics(free_length, self._overlong_column)
        for name, value in figures.items():
            metrics[f"dapo/{name}"].append(value)
        metrics["dapo/data_passes"].append(sampler.stream.num_passes)
        metrics["dapo/seconds_sampling"].append(sampler.seconds_sampling)
        metrics["dapo/moved_bytes"].append(4.0 * batch.num_moved_words)
        if sampler.last_plan is not None:
            metrics["dapo/acceptance_estimate"].append(sampler.last_plan.acceptance_rate)
        self._stop_when_empty(collection)
        if collection.num_missing:
            self._warn_once(
                "exhausted",
                collection.describe_exhaustion()
                + "\nThe batch trains on what was found (`on_exhausted='partial'`); `dapo/exhausted` counts such batches.",
            )
        unscorable = [group for group in collection.sampled if group.verdict is GroupVerdict.UNSCORABLE]
        if unscorable:
            rows = sorted({group.draw.index for group in unscorable})[:5]
            self._warn_once(
                "unscorable",
                f"No completion of dataset rows {rows} got a reward: the gold answer could not be read, or every reward "
                "function returned None. Such prompts are skipped; `dapo/frac_unscorable` counts them.",
            )
        self._pending_extra_logs.update(batch.extra_logs())
        return batch

    def _sample_and_score(self, inputs: list[dict[str, Any]]) -> RoundOutput:
        prompts = [row["prompt"] for row in inputs]
        prompt_ids, completion_ids, _, completions, logps, *_ = super()._generate(prompts)
        rewards = self._calculate_rewards(inputs, prompts, completions, completion_ids)
        # Only columns with one value per completion can follow their completions into the batch.
        logged = {column: values for column, values in self._pending_extra_logs.items() if len(values) == len(inputs)}
        self._pending_extra_logs.clear()
        rollouts = [
            Rollout.from_lists(
                prompt,
                completion,
                None if logps is None else logps[row],
                {column: values[row] for column, values in logged.items()},
            )
            for row, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids, strict=True))
        ]
        return RoundOutput(rollouts, rewards.tolist())

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        if self._replay is None:
            return super()._generate(prompts)
        rollouts = self._replay.rollouts
        completion_ids = [rollout.completion_ids.tolist() for rollout in rollouts]
        completions = self._tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        if not isinstance(prompts[0], str):
            completions = [[{"role": "assistant", "content": content}] for content in completions]
        logps = [rollout.sampling_logps.tolist() for rollout in rollouts if rollout.sampling_logps is not None]
        return (
            [r.prompt_ids.tolist() for r in rollouts],
            completion_ids,
            None,
            completions,
            logps or None,
            {},
            None,
            [],
        )

    def _generate_single_turn(
        self,
        prompt_ids: list[Any],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        # A refill round may be larger than the generation batch. `model.generate` holds the cache of all its rows at
        # once, so it gets at most as many as TRL would give it; vLLM and continuous batching queue by themselves.
        most = self.args.per_device_train_batch_size * self.args.steps_per_generation
        queues = self.use_vllm or self.use_transformers_continuous_batching
        if not self.model.training or queues or len(prompt_ids) <= most:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs
            )
        # Equal parts: their number depends on the row count alone, which is the same on all ranks.
        part = math.ceil(len(prompt_ids) / math.ceil(len(prompt_ids) / most))
        completion_ids: list[list[int]] = []
        for start in range(0, len(prompt_ids), part):
            part_ids, _ = super()._generate_single_turn(
                prompt_ids[start : start + part], images, multimodal_fields, num_generations, *args, **kwargs
            )
            completion_ids.extend(part_ids)
        return completion_ids, None

    # Loss normalization

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        batch: Any = self._buffered_inputs
        is_exact = self.args.loss_normalization == "batch" and self.loss_type in TOKEN_NORMALIZED_LOSSES
        if self.model.training and is_exact and batch is not self._stamped_batch:
            num_tokens = self.accelerator.reduce(torch.stack([num_live_tokens(part) for part in batch]), "sum")
            denominators = window_denominators(num_tokens, self.args.gradient_accumulation_steps)
            for part, denominator in zip(batch, denominators, strict=True):
                part["num_items_in_batch"] = denominator
            self._stamped_batch = batch
        return inputs

    def _step_has_tokens(self) -> bool:
        """Whether the optimizer step that is about to be taken has a token that carries loss."""
        batch: Any = self._buffered_inputs
        return bool(batch[(self._step - 1) % self.args.steps_per_generation]["num_items_in_batch"].item())

    def _mask_fillers(self, output: dict[str, Any], is_filler: torch.Tensor) -> None:
        output["completion_mask"] = output["completion_mask"].masked_fill(is_filler.unsqueeze(1), 0)
        output["advantages"] = output["advantages"].masked_fill(is_filler, 0.0)
        output["num_items_in_batch"] = self.accelerator.gather(output["completion_mask"].sum()).sum()

    # Carried rollouts

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        """No gradients and no checkpointing, as when TRL computes old log-probabilities."""
        model: Any = self.model
        kwargs: Any = self.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(model, kwargs):
            yield

    def _compute_logps(self, rollouts: list[Rollout]) -> list[torch.Tensor]:
        def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, width: int) -> torch.Tensor:
            logps: torch.Tensor = super(DAPOTrainer, self)._get_per_token_logps_and_entropies(
                self.model, input_ids, attention_mask, width
            )[0]
            return logps

        size = self.args.per_device_train_batch_size
        with self._scoring():
            return compute_logps(forward, rollouts, size, self._tokenizer.pad_token_id, self.accelerator.device)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        logps, *rest = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._awaits_old_logps:
            # The first pass of the replay. So TRL's importance-sampling ratio starts from the right policy too.
            self._awaits_old_logps = False
            logps = restore_old_logps(logps, self._replay.rollouts)
        return logps, *rest

    def _old_logps_of(self, output: dict[str, Any]) -> torch.Tensor:
        self._awaits_old_logps = True
        parts = [[output[f"{part}_{name}"] for part in ("prompt", "completion")] for name in ("ids", "mask")]
        input_ids, attention_mask = (torch.cat(part, dim=1) for part in parts)
        width, size = output["completion_ids"].size(1), self.args.per_device_train_batch_size
        with self._scoring():
            logps: torch.Tensor = self._get_per_token_logps_and_entropies(
                self.model, input_ids, attention_mask, width, batch_size=size
            )[0]
        return logps

    # Reporting and state

    def _stop_when_empty(self, collection: BatchCollection) -> None:
        self._num_empty_batches = 0 if collection.accepted else self._num_empty_batches + 1
        if self._num_empty_batches == _MAX_EMPTY_BATCHES:
            logger.error(
                f"{_MAX_EMPTY_BATCHES} generation batches in a row had nothing to learn from; training stops and saves a "
                "checkpoint.\n" + collection.describe_exhaustion()
            )
            self.control.should_save = self.control.should_training_stop = True

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._has_warned:
            self._has_warned.add(topic)
            logger.warning(message)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.dynamic_sampler is not None and self.args.should_save:
            folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self.dynamic_sampler.save(os.path.join(self._get_output_dir(trial=trial), folder))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.dynamic_sampler is not None and checkpoint is not None:
            self.dynamic_sampler.load(checkpoint)
