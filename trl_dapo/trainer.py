"""The trainer: TRL's `GRPOTrainer` with dynamic sampling and the soft overlong punishment of DAPO."""

import functools
import math
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from trl.trainer.grpo_trainer import RewardFunc

from .checkpoints.pacing import pacing_dataloader
from .checkpoints.resumable_trainer import ResumableTrainer
from .config.dapo_config import DAPOConfig
from .config.dataset_checks import check_single_turn, check_train_dataset, find_filter_column
from .config.loss_types import CLIPPED_LOSSES, ROW_NORMALIZED_LOSSES
from .guards.empty_updates import EmptyUpdateGuard
from .guards.non_finite import NonFiniteGuard
from .guards.reward_calls import RewardCalls
from .loss.diagnostics import LossDiagnostics
from .loss.normalization import STEP_TOKENS, group_columns, live_tokens, normalize, whole_groups
from .publishing.published_trainer import PublishedTrainer
from .ranks.rollout import with_placeholders
from .refill.assembly import CollectedBatch
from .refill.dynamic_sampling import DynamicSampler
from .refill.image_prompts import check_image_dataset
from .refill.policy_scorer import PolicyScorer, restore_old_logps
from .refill.rollout_sampler import RolloutSampler
from .report.batch_metrics import BatchReporter
from .report.callbacks import RunAnnouncement, RunRecord
from .report.evaluation_metrics import EvalFigures
from .report.group_table import printing_plainly
from .report.recorder import RolloutRecorder
from .rewards import SoftOverlongPunishment
from .sampling.group_metrics import completion_figures
from .sampling.groups import GroupJudge, RowFacts
from .sampling.prompt_stream import Draw
from .sampling.truncation import TruncationRule
from .streaming.stream_refill import StreamRefill
from .vllm_engine.canary import WeightCanary
from .vllm_engine.generation import DAPOVLLMGeneration, engine_of


class DAPOTrainer(PublishedTrainer, ResumableTrainer):
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

    vllm_generation: DAPOVLLMGeneration

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
        check_image_dataset(train_dataset, args)
        with engine_of(args):
            super().__init__(model=model, reward_funcs=reward_funcs, args=args, train_dataset=train_dataset, **kwargs)
        # The truncated completions are masked here, by how their generation ended; TRL goes by their last token.
        self.mask_truncated_completions = False
        # While set, generation and scoring hand this batch back instead of making a new one.
        self._replay: CollectedBatch | None = None
        self._awaits_old_logps = False
        # Of the completions of this rank that were generated last.
        self._is_empty: list[bool] = []
        self.completion_facts: list[RowFacts] = []
        filter_column = find_filter_column(args.filter_reward, self.reward_func_names)
        self._add_overlong_punishment()
        self.truncation_rule = TruncationRule.of_generation(
            self.eos_token_ids,
            args.max_completion_length,
            args.vllm_max_model_length if args.use_vllm else None,
            args.generation_kwargs,  # type: ignore[arg-type]  # a string before it was parsed
            self._tokenizer.decode,
        )
        self.group_judge = GroupJudge(
            filter_column, args.filter_bounds, args.mask_truncated_completions, args.truncated_in_statistics
        )
        self.reporter = BatchReporter(args, self._overlong_column)
        self.diagnostics = LossDiagnostics(
            self.epsilon_low, self.epsilon_high, args.free_length, self.loss_type in CLIPPED_LOSSES
        )
        self.eval_figures = EvalFigures(self.num_generations_eval)
        self.reward_calls = RewardCalls(self.ranks, args.reward_timeout)
        self.policy_scorer = PolicyScorer(self)
        score = self.policy_scorer.score_rollouts
        self.recorder = RolloutRecorder(args, self.ranks, self.reward_func_names, self.reward_weights, filter_column)
        self.canary = (
            WeightCanary(args, self.ranks, score, lambda: self.vllm_generation.num_syncs) if args.use_vllm else None
        )
        self.dynamic_sampler: DynamicSampler | None = None
        sampler = RolloutSampler(self, self.truncation_rule)
        if args.dynamic_sampling:
            self.dynamic_sampler = DynamicSampler(
                args=args,
                ranks=self.ranks,
                dataset=train_dataset,
                sample=sampler.sample_round,
                compute_logps=score,
                num_rewards=len(self.reward_funcs),
                judge=self.group_judge,
                keep_awake=self.vllm_generation.kept_awake if args.use_vllm else nullcontext,
                sources=sampler.stream_sources() if args.refill == "stream" else None,
                observe=self.recorder.observe,
            )
            self.dynamic_sampler.add_to(self.run_state)
            self.add_callback(EmptyUpdateGuard(self._step_has_tokens))
        self.add_callback(NonFiniteGuard(self))
        self.add_callback(RunAnnouncement(self))
        self.add_callback(RunRecord(self.recorder))
        load_diagnostics = functools.partial(self.diagnostics.load_state_dict, device=self.accelerator.device)
        self.run_state.add("diagnostics", self.diagnostics.state_dict, load_diagnostics, needs_layout=True)
        self.run_state.add("reporter", self.reporter.state_dict, self.reporter.load_state_dict)

    # Reward postprocessing

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
        compute = functools.partial(super()._calculate_rewards, inputs, prompts, completions, completion_ids_list)
        rewards = self.reward_calls.compute(compute, len(prompts), self)
        column = self._overlong_column
        if column is not None:
            # A completion that nobody could score stays unscored, whatever its length; and evaluation is unshaped.
            is_unscored = rewards[:, :column].isnan().all(dim=1) | (not self.model.training)
            rewards[is_unscored, column] = torch.nan
        if not self.model.training:
            self.eval_figures.observe(rewards[:, self.group_judge.filter_column], self._pending_extra_logs)
        if self.model.training and self.dynamic_sampler is None:
            facts = [RowFacts(*row) for row in self.ranks.gather_rows(self.completion_facts)]
            draws = [Draw(number, -1) for number in range(len(facts) // self.num_generations)]
            groups = self.group_judge.judge(draws, rewards.tolist(), facts)
            self._log_train(self.reporter.plain_figures(groups))
            self.recorder.observe_plain(groups, inputs, completions, self._pending_extra_logs)
            if not self.args.truncated_in_statistics:
                samples = range(self.num_generations)
                rewards = rewards.new_tensor([group.rewards_in_statistics(row) for group in groups for row in samples])
        return rewards

    # Generation-batch refilling

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.dynamic_sampler is None or not self.model.training:
            output = super()._generate_and_score_completions(inputs)
            return self._finish_batch(output, torch.zeros(len(self.completion_facts), dtype=torch.bool))
        # The dataloader's `inputs` only pace the steps.
        self._replay = batch = self._collect_batch(self.dynamic_sampler)
        self.completion_facts = [
            RowFacts(len(rollout.prompt_ids), len(rollout.completion_ids), is_truncated)
            for rollout, is_truncated in zip(batch.rollouts, batch.is_truncated.tolist(), strict=True)
        ]
        has_carried = batch.collection.num_carried > 0
        trl_computes_old = self.args.trl_computes_old_logps
        try:
            self._awaits_old_logps = has_carried and trl_computes_old
            output = super()._generate_and_score_completions(batch.inputs)
        finally:
            self._replay, self._awaits_old_logps = None, False
        if has_carried and not trl_computes_old:
            output["old_per_token_logps"] = restore_old_logps(self.policy_scorer.score_batch(output), batch.rollouts)
        if batch.collection.num_missing and self.loss_type in ROW_NORMALIZED_LOSSES and batch.collection.accepted:
            # These take the mean over rows, and count those that stand in for groups that were not found.
            output["advantages"] *= batch.collection.num_groups / len(batch.collection.accepted)
        return self._finish_batch(output, batch.is_filler)

    def _finish_batch(self, output: dict[str, Any], is_filler: torch.Tensor) -> dict[str, Any]:
        """Takes rows that carry no loss out of it, and adds what loss normalization and diagnostics need."""
        lengths = torch.tensor([facts.completion_length for facts in self.completion_facts])
        is_truncated = torch.tensor([facts.is_truncated for facts in self.completion_facts])
        is_masked = is_filler | (lengths == 0) | (is_truncated & self.args.mask_truncated_completions)
        device = self.accelerator.device
        output["completion_mask"] = output["completion_mask"].masked_fill(is_masked.to(device).unsqueeze(1), 0)
        counts = live_tokens(output)
        output["num_items_in_batch"] = self.accelerator.gather(counts.sum()).sum()
        if self.model.training:
            self.recorder.write(self._logs["advantages"], self.state.global_step)
            self.diagnostics.observe_rows(output["advantages"], lengths.to(device), ~is_filler.to(device))
            if self.args.loss_normalization == "group":
                output |= group_columns(
                    counts, self.accelerator.gather(counts), self.accelerator.process_index, self.num_generations
                )
        return output

    def _collect_batch(self, sampler: DynamicSampler) -> CollectedBatch:
        metrics = self._metrics["train"]
        num_logged = {name: len(values) for name, values in metrics.items()}
        batch = self.recorder.collect(sampler.collect, self.state.global_step)
        if isinstance(sampler.refill, StreamRefill):
            # In rounds TRL does the one, and `_generate` the other.
            self.state.num_input_tokens_seen += batch.collection.num_input_tokens
            metrics["num_tokens"] = [self.state.num_input_tokens_seen]
            self._log_train(self.canary.check_rollouts(sampler.refill.fresh_rollouts))
        # TRL logged the lengths of each round for itself: one figure over all completions replaces them.
        for name, value in completion_figures(batch.collection.sampled).items():
            metrics[name][num_logged.get(name, 0) :] = [value]
        self._log_train(self.reporter.figures(batch, sampler))
        if self.reporter.warn(batch.collection):
            self.control.should_save = self.control.should_training_stop = True
        self._pending_extra_logs.update(batch.extra_logs())
        return batch

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        if self._replay is not None:
            return self._replay.as_generated(self._tokenizer, prompts)
        self._is_empty = []
        generated: tuple[Any, ...] = super()._generate(prompts)
        prompt_ids, completion_ids, *_ = generated
        if self.canary is not None and self.model.training:
            self._log_train(self.canary.check(generated))
        is_empty = self._is_empty if len(self._is_empty) == len(completion_ids) else [False] * len(completion_ids)
        self.completion_facts = [
            RowFacts(
                len(prompt),
                0 if empty else len(ids),
                not empty and self.truncation_rule.is_truncated(len(prompt), ids),
            )
            for prompt, ids, empty in zip(prompt_ids, completion_ids, is_empty, strict=True)
        ]
        return generated

    def _rows_at_once(self, num_rows: int) -> int:
        """
        Returns into parts of how many rows a round is cut.

        A refill round may be larger than the generation batch. `model.generate` holds the cache of all its rows at once, so
        it gets at most as many as TRL would give it; vLLM and continuous batching queue by themselves. Equal parts: their
        number depends on the row count alone, which is the same on all ranks.
        """
        most = self.args.per_device_train_batch_size * self.args.steps_per_generation
        queues = self.use_vllm or self.use_transformers_continuous_batching
        is_whole = not self.model.training or queues or num_rows <= most
        return num_rows if is_whole else math.ceil(num_rows / math.ceil(num_rows / most))

    def _generate_single_turn(
        self,
        prompt_ids: list[Any],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[list[list[int]], list[list[float | None]] | None]:
        part = self._rows_at_once(len(prompt_ids))
        completion_ids: list[list[int]] = []
        for start in range(0, len(prompt_ids), part):
            part_ids, logps = super()._generate_single_turn(
                prompt_ids[start : start + part], images, multimodal_fields, num_generations, *args, **kwargs
            )
            completion_ids.extend(part_ids)
        self._is_empty = [not ids for ids in completion_ids]
        return with_placeholders(completion_ids, logps, self._tokenizer.pad_token_id)

    # Loss

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        accumulation, normalization = self.args.gradient_accumulation_steps, self.args.loss_normalization
        if not self.model.training or self.args.steps_per_generation % accumulation:
            return inputs
        batch: Any = self._buffered_inputs
        if STEP_TOKENS not in batch[0]:
            if normalization == "group" and self.args.num_updates_per_batch > self.num_iterations:
                batch = whole_groups(batch, self.num_generations)
            sum_over_ranks = functools.partial(self.accelerator.reduce, reduction="sum")
            normalize(batch, sum_over_ranks, accumulation, normalization, self.num_generations)
            self._buffered_inputs = batch
        normalized: dict[str, Any] = batch[self._step % self.args.steps_per_generation]
        return normalized

    def _step_has_tokens(self) -> bool:
        """Whether the optimizer step that is about to be taken has a token that carries loss."""
        batch: Any = self._buffered_inputs
        return bool(batch[(self._step - 1) % self.args.steps_per_generation][STEP_TOKENS].item())

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        logps, entropies, *rest = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._awaits_old_logps:
            # The first pass of the replay. So TRL's importance-sampling ratio starts from the right policy too.
            self._awaits_old_logps = False
            logps = restore_old_logps(logps, self._replay.rollouts)
        if kwargs.get("compute_entropy"):
            self._loss_pass = logps, entropies
        return logps, entropies, *rest

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        logps, entropies = self._loss_pass
        del self._loss_pass  # it holds on to the graph
        if self.model.training:
            mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
            is_sequence_ratio = self.importance_sampling_level == "sequence"
            old_logps, advantages = inputs.get("old_per_token_logps"), inputs["advantages"]
            self.diagnostics.observe_tokens(logps, old_logps, entropies, advantages, mask, is_sequence_ratio)
        return loss

    # Dataloader and reporting

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns TRL's dataloader, or one that only paces the steps where the prompts come from the stream."""
        if self.dynamic_sampler is None:
            return super().get_train_dataloader()
        num_micro_batches = self.args.steps_per_generation * self.num_iterations
        return pacing_dataloader(self.train_dataset, self.args.num_groups_per_batch, num_micro_batches)

    def _log_train(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            # What has no value in this step is not logged: trackers warn of it or draw a gap.
            if not math.isnan(value):
                self._metrics["train"][f"dapo/{name}"].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs TRL's metrics, and the diagnostics of the tokens trained since the last line, over all ranks."""
        if self.model.training:
            self._log_train(self.diagnostics.flush(self.accelerator.gather))
        logs |= self.eval_figures.flush(logs, self._metrics["eval"])
        with printing_plainly():
            super().log(logs, start_time)
