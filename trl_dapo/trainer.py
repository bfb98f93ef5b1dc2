"""
The trainer: TRL's `GRPOTrainer` with dynamic sampling and the soft overlong punishment of DAPO.

Six things differ from `GRPOTrainer`:

1. Dynamic sampling (DAPO Eq. 11): prompts are sampled until every group of the generation batch has both correct and
   wrong completions (`refill/`, `streaming/`; `sampling/judge.py` decides).
2. Soft overlong punishment (Eq. 13): one more column of the rewards (`rewards/overlong.py`), never part of the filter.
3. The loss divides by the tokens of the optimizer step, exactly (Eq. 12; `loss/normalization.py`).
4. A carried rollout keeps the log-probabilities of the policy that sampled it (`refill/policy_scorer.py`).
5. Truncation is decided by how generation ended, not by the last token (`sampling/truncation.py`).
6. Metrics: accuracy over all sampled completions, cost by cause, clipped tokens (`report/`, `loss/diagnostics.py`).

The data of a step:

    PromptSource -- draws --> RoundRefill or StreamRefill -- groups --> RefillLedger
                                     |  generate, score, judge              |
                                     v                                      v
                                 rollouts of this rank ----> BatchAssembler: GenerationBatch
                                                                    |
        TRL's _generate_and_score_completions <-- replayed by _generate and _calculate_rewards
                                     |
                                     v
        TRL's padded batch --> normalize --> TRL's compute_loss --> optimizer step
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from trl.trainer.grpo_trainer import RewardFunc

from .checkpoints.files import last_whole_checkpoint
from .checkpoints.pacing import pacing_dataloader
from .checkpoints.resumable_trainer import ResumableTrainer
from .config.dapo_config import DAPOConfig
from .config.dataset_checks import (
    check_best_metric,
    check_columns,
    check_evaluation_shape,
    check_train_dataset,
    check_turns,
    find_filter_columns,
    has_turns,
    numbered_names,
    seeded_tasks,
)
from .config.departures import describe_run
from .config.loss_types import CLIPPED_LOSSES, ROW_NORMALIZED_LOSSES
from .config.reward_model_checks import check_reward_models
from .config.row_checks import (
    PromptCheck,
    check_rows,
    datasets_by_name,
    describe_template,
    find_empty_texts,
    is_read_ahead,
    refuse_rows,
)
from .config.selective_checks import check_selective_columns
from .config.trl_values import check_use_cpu
from .data.context_length import ContextLimit
from .errors import RankFailedError, RefillExhaustedError, VLLMServerError
from .guards.optimizer_steps import EmptyUpdateGuard, NonFiniteGuard, check_trainable
from .guards.reward_deadline import RewardCalls
from .loss.diagnostics import LossDiagnostics, count_truncated
from .loss.dropout import disable_attention_dropout, has_dropout
from .loss.normalization import STEP_TOKENS, group_columns, live_tokens, normalize, whole_groups
from .loss.positions import number_from_first_token
from .publishing.published_trainer import PublishedTrainer
from .ranks.rollout import with_placeholders
from .refill.assembly import GenerationBatch
from .refill.completion_decoder import decode_completion
from .refill.dynamic_sampling import DynamicSampler
from .refill.image_prompts import check_image_dataset, check_image_options
from .refill.policy_scorer import PolicyScorer, restore_old_logps
from .refill.rounds import RolloutSampler, SampleRound
from .report.batch_metrics import (
    BatchReporter,
    completion_metrics,
    drop_without_value,
    environment_metrics,
    tool_metrics,
    without_value,
)
from .report.callbacks import RunAnnouncement, RunRecord, progress_of_run, shorten_log_lines
from .report.completion_table import columns_in_step, level_columns
from .report.evaluation_metrics import EvaluationMetrics
from .report.group_sample import GroupSample
from .report.group_table import printing_plainly
from .report.overlap_balance import OverlapBalance
from .report.recorder import RewardColumns, RolloutRecorder
from .rewards import SoftOverlongPunishment, find_rewards
from .rewards.overlong import check_single_length_punishment
from .sampling.judge import GroupJudge, RowFacts, TruncationRule
from .sampling.prompt_stream import Draw
from .streaming.dynamic_sampler import make_dynamic_sampler
from .streaming.group_grader import GroupGrader
from .streaming.group_scorer import GroupScorer
from .streaming.local_groups import LocalGroups
from .trl_seams import AddedReward, AsideSeams, Generated, TrainerSeams, as_list, texts_apart
from .turns.environments import Environments
from .turns.episode import is_unanswered
from .turns.tool_loop import ToolLoop
from .vllm_engine.canary import WeightCanary
from .vllm_engine.generation import DAPOVLLMGeneration
from .vllm_engine.requests import VLLMRequests
from .vllm_engine.sampled_logps import unknown_as_none
from .vllm_engine.sequence_engine import SequenceEngine
from .vllm_server.generation import ServerGeneration, engine_of
from .vllm_server.server_canary import ServerCanary


@dataclass
class _DrawnBatch:
    """
    A batch of rows that TRL's dataloader drew: TRL generates and scores them while it is noted what came out.

    Attributes:
        facts (`list[RowFacts]`):
            Lengths and truncation of the B completions of this rank, once they are generated.
    """

    facts: list[RowFacts] = field(default_factory=list)


@dataclass
class _Forward:
    """What the forward pass of the loss computed, each of shape `(B, T)`."""

    logps: torch.Tensor
    entropies: torch.Tensor


class DAPOTrainer(PublishedTrainer, ResumableTrainer):
    """
    Trainer for [DAPO](https://huggingface.co/papers/2503.14476): a [`~trl.GRPOTrainer`] that trains only on groups with a
    learning signal, that is with both correct and wrong completions.

    With `dynamic_sampling` the prompts come from an endless seeded stream over `train_dataset`, and the dataloader only
    paces the steps: `num_train_epochs` counts batches as if no group were rejected, the metric `dapo/data_passes` says
    how often the data were really seen. Evaluation is that of `GRPOTrainer`, on unshaped rewards.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            As in `GRPOTrainer`.
        reward_funcs (`Callable` or `list[Callable]`):
            As in `GRPOTrainer`, or names of [`~trl_dapo.rewards.REWARDS`]. The soft overlong punishment is added to the
            rewards, with weight 1, and not to this list.
        args ([`DAPOConfig`], *optional*):
            Configuration. `None`: the defaults, in the folder `<model>-DAPO`.
        train_dataset ([`~datasets.Dataset`]):
            Dataset with a `prompt` column and whatever columns the reward functions ask for (`solution`).
        **kwargs:
            Everything else that `GRPOTrainer` takes: `eval_dataset`, `processing_class`, `peft_config`, `callbacks`, ...

    Raises:
        `ValueError`: when a column is missing, the dataset is smaller than one generation batch, a filter reward is
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
    # TRL types these as optional, or without what may be added.
    model: Any
    num_generations: int
    num_generations_eval: int
    reward_funcs: list[Any]
    reward_processing_classes: list[Any]

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: DAPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        **kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config.name_or_path or ""
            args = DAPOConfig(f"{name.rstrip('/').split('/')[-1] or 'model'}-DAPO")
        if not isinstance(args, DAPOConfig):
            raise TypeError(
                f"`args` must be a `DAPOConfig`, got `{type(args).__name__}`. It takes all of GRPOConfig's fields."
            )
        check_use_cpu(args)
        reward_funcs = find_rewards(reward_funcs)
        # Of these the prompts are not, or not all, in the dataset.
        self._reads_prompts = not (kwargs.get("environment_factory") or kwargs.get("rollout_func"))
        invents_tasks = args.dynamic_sampling and train_dataset is None and bool(kwargs.get("environment_factory"))
        if invents_tasks:
            train_dataset = seeded_tasks(kwargs, args)
        if args.dynamic_sampling:
            check_turns(kwargs, args)
            self._check_sampled(train_dataset, reward_funcs, args)
            check_selective_columns(train_dataset, args)
        eval_datasets = datasets_by_name("eval_dataset", kwargs.get("eval_dataset"))
        if self._reads_prompts:
            for name, rows in {"train_dataset": train_dataset, **eval_datasets}.items():
                check_columns(name, rows, reward_funcs, bool(args.remove_unused_columns))
                check_rows(name, rows)
        check_reward_models(reward_funcs, args)
        check_single_length_punishment(reward_funcs, args.soft_punish_cache)
        check_image_dataset(train_dataset, args, has_turns(kwargs))
        check_evaluation_shape(args, kwargs.get("eval_dataset"))
        check_best_metric(args, kwargs.get("eval_dataset"))
        with engine_of(args):
            super().__init__(model=model, reward_funcs=reward_funcs, args=args, train_dataset=train_dataset, **kwargs)
        if args.disable_dropout:
            disable_attention_dropout(self.model)
        if args.dynamic_sampling:
            number_from_first_token(self.model)
            if self.ref_model is not None:
                number_from_first_token(self.ref_model)
        # Truncated completions are masked here, by how their generation ended; TRL decides by their last token.
        self.mask_truncated_completions = False
        # What TRL generates and scores now: a collected batch is replayed, a drawn one observed.
        self._batch: GenerationBatch | _DrawnBatch = _DrawnBatch()
        self._awaits_old_logps = False
        self._forward: _Forward | None = None
        self.shape = args.shape
        self.seams = TrainerSeams(self)
        self.tool_loop = ToolLoop(self.seams, self.ranks)
        self.environments_of_rounds = Environments(
            self.seams, self.ranks, args.env_timeout, args.generation_end.max_completion_length
        )
        if args.dynamic_sampling:
            self.environments_of_rounds.hide_closing()
        if invents_tasks:
            self.environments_of_rounds.check_seeded()
        measures = self._reads_prompts and not self.seams.is_multimodal
        self.context_limit = ContextLimit(self.model, args, self.seams.tokenize if measures else None)
        if self._reads_prompts:
            for name, rows in {"train_dataset": train_dataset, **eval_datasets}.items():
                self._check_prompts(name, rows)
        self.reward_func_names = numbered_names(self.reward_func_names)
        filter_columns = find_filter_columns(args.filter_reward, self.reward_func_names)
        self.filter_names = [self.reward_func_names[column] for column in filter_columns]
        self.punishment = AddedReward(self, self._overlong_punishment())
        penalty_column = None if self.punishment.function is None else len(self.reward_func_names)
        self.truncation_rule = TruncationRule.of_generation(
            args.generation_end, self.eos_token_ids, self._tokenizer.decode
        )
        # TRL cuts what `generate` returns behind the first of these; what follows is padding.
        self.eos_token_ids = args.generation_end.end_tokens(self.eos_token_ids)
        self.group_judge = GroupJudge(
            filter_columns, args.filter_bounds, args.mask_truncated_completions, args.truncated_in_statistics
        )
        self.reporter = BatchReporter(args, penalty_column, self.ranks.num_ranks, self.seams.has_turns)
        self.diagnostics = LossDiagnostics(
            self.epsilon_low, self.epsilon_high, args.free_length, self.loss_type in CLIPPED_LOSSES
        )
        self.evaluation_metrics = EvaluationMetrics(self.num_generations_eval)
        self.aside: AsideSeams | None = None
        self.overlap_balance = OverlapBalance()
        self.reward_calls = self._reward_calls(self.seams)
        self.policy_scorer = PolicyScorer(self.seams, args.per_device_train_batch_size)
        self.canary = (
            WeightCanary(args, self.ranks, self.policy_scorer.score, lambda: self.vllm_generation.num_syncs)
            if args.use_vllm
            else None
        )
        self.server_canary = self._watch_servers()
        self.recorder = self._make_recorder(filter_columns)
        self.dynamic_sampler = self._make_sampler(train_dataset) if args.dynamic_sampling else None
        # The dataset whose prompts the sampler draws.
        self._sampled_dataset: Any = self.train_dataset
        self._add_guards_and_state()

    def _overlong_punishment(self) -> SoftOverlongPunishment | None:
        """Returns the soft overlong punishment; `None`: it is off."""
        args = self.args
        limit = args.generation_end.max_completion_length
        if not args.soft_punish_cache or limit is None:
            return None
        return SoftOverlongPunishment(limit, args.soft_punish_cache, args.overlong_penalty_factor)

    def _reward_calls(self, seams: TrainerSeams) -> RewardCalls:
        return RewardCalls(
            seams,
            self.ranks,
            self.args.reward_timeout,
            self.punishment.function,
            lambda: last_whole_checkpoint(str(self.args.output_dir))[0],
        )

    def _make_recorder(self, filter_columns: list[int]) -> RolloutRecorder | None:
        if not self.args.num_groups_to_log:
            return None
        rewards = RewardColumns(self.punishment.names, self.punishment.weights.tolist(), filter_columns)
        sample = GroupSample(self.args.num_groups_to_log, self.args.seed)
        decode = functools.partial(decode_completion, self.seams.tokenizer)
        return RolloutRecorder(
            self.shape, self.ranks, sample, rewards, str(self.args.output_dir), decode, self.seams.has_turns
        )

    def _check_prompts(self, name: str, dataset: Any) -> None:
        """Refuses prompts that the tokenizer, or the context of the model, has nothing for."""
        refuse_rows(name, find_empty_texts(dataset, self.seams.tokenize))
        self.context_limit.refuse(name, dataset)

    def _check_sampled(self, dataset: Any, reward_funcs: Any, args: DAPOConfig) -> None:
        """Refuses datasets from which dynamic sampling could not draw."""
        check_train_dataset(
            dataset,
            reward_funcs,
            args.num_groups_per_batch,
            args.selective_rollout,
            self._reads_prompts,
            not self._reads_prompts,
        )

    @property
    def _prompt_check(self) -> PromptCheck:
        """Judges the prompts that are not read before they are drawn."""
        limit = self.context_limit
        return PromptCheck(self.seams.tokenize, limit.most_sampled_tokens, limit.limits)

    def _make_sampler(self, train_dataset: Dataset | IterableDataset) -> DynamicSampler:
        seams, reward_calls = self.seams, self.reward_calls
        if self.args.overlap:
            # What runs beside training shares nothing with it.
            seams = self.aside = AsideSeams(self)
            reward_calls = self._reward_calls(seams)
        scoring = seams, reward_calls, self.truncation_rule
        check_images = functools.partial(check_image_options, self.args)
        sampling: SampleRound | LocalGroups
        if self.args.refill == "stream":
            scorer = GroupScorer(*scoring, check_images)
            grader = GroupGrader(scorer.score, self.seams.device)
            reward_calls.watch.tell = grader.abandon
            sampling = LocalGroups(self._sequence_engine(), grader, scorer.tokenize)
        else:
            sampling = RolloutSampler(
                *scoring, self.canary, check_images, self.tool_loop, self.environments_of_rounds
            ).sample
        return make_dynamic_sampler(
            self.args,
            self.ranks,
            train_dataset,
            sampling,
            self.group_judge,
            num_rewards=len(self.punishment.names),
            has_sampling_logps=self.use_vllm or self.rollout_func is not None,
            score=self.policy_scorer.score,
            observe=None if self.recorder is None else self.recorder.observe,
            keep_awake=self._keep_awake(self.args.refill == "stream"),
            reward_names=self.reward_func_names,
            progress=progress_of_run(self.accelerator.is_main_process, bool(self.args.disable_tqdm)),
            row_fault=None if is_read_ahead(train_dataset) or not self._reads_prompts else self._prompt_check,
        )

    def _sequence_engine(self) -> SequenceEngine:
        generation = self.vllm_generation
        if isinstance(generation, ServerGeneration):
            generation.requests.load_weights = self._begin_on_servers
            return generation.requests
        return VLLMRequests(generation, self.seams.bring_weights)

    def _begin_on_servers(self) -> None:
        """Brings the weights to the servers, for a batch that may be sampled beside training."""
        if self.aside is not None:
            self.aside.refresh()
        self.seams.bring_weights()

    def _keep_awake(self, scores_beside: bool) -> Callable[[], AbstractContextManager[None]]:
        """
        Returns what keeps an engine awake that sleeps while the model trains: not where reward models want its memory.

        Args:
            scores_beside (`bool`):
                Whether completions are scored while it decodes others.
        """
        has_models = any(isinstance(function, torch.nn.Module) for function in self.reward_funcs)
        is_kept = self.args.use_vllm and (scores_beside or not has_models)
        return self.vllm_generation.kept_awake if is_kept else nullcontext

    def _watch_servers(self) -> ServerCanary | None:
        """Has the servers compared with the trained model after each weight sync; `None`: there are none."""
        generation = self.vllm_generation if self.args.use_vllm else None
        if not isinstance(generation, ServerGeneration):
            return None
        generation.ranks = self.ranks
        canary = ServerCanary(self.args, generation, self.policy_scorer.score)
        generation.after_sync = lambda: self._log_train(canary.check())
        # Before the first batch they are asked about prompts, then about texts of the last batch.
        if isinstance(self.train_dataset, Dataset) and self._reads_prompts and not self.seams.is_multimodal:
            canary.watch(self.seams.tokenize(self.train_dataset[:2]["prompt"]))
        return canary

    def _add_sampler_state(self, sampler: DynamicSampler) -> None:
        load = functools.partial(sampler.load_state_dict, restart_stream=self.args.restart_stream)
        self.run_state.add("sampler", sampler.state_dict, load)
        self.run_state.add("carried", sampler.carried_state_dict, sampler.load_carried_state_dict, needs_layout=True)
        if self.aside is not None:
            # What reward functions logged of a batch that was sampled ahead.
            self.run_state.add("aside", self.aside.state_dict, self.aside.load_state_dict, needs_layout=True)
        if self.recorder is not None:
            # Its groups wait for the batches that are in the parts before.
            record, row_of = self.recorder, sampler.source.row
            self.run_state.add(
                "record",
                functools.partial(record.state_dict, row_of),
                functools.partial(record.load_state_dict, row_of=row_of),
                needs_layout=True,
            )

    def _sample_from(self, dataset: Dataset | IterableDataset) -> None:
        """Begins a stream over another dataset. The measured acceptance rate and costs stay, as a first guess."""
        assert self.dynamic_sampler is not None
        self._check_sampled(dataset, self.reward_funcs, self.args)
        if self._reads_prompts:
            check_rows("train_dataset", dataset)
            self._check_prompts("train_dataset", dataset)
        check_selective_columns(dataset, self.args)
        check_image_dataset(dataset, self.args, self.seams.has_turns)
        planner = self.dynamic_sampler.refill.planner.state_dict()
        self.dynamic_sampler = self._make_sampler(dataset)
        self.dynamic_sampler.refill.planner.load_state_dict(planner)
        self._add_sampler_state(self.dynamic_sampler)
        # What is left of the last generation batch is of the other dataset.
        self._step, self._buffered_inputs = 0, None
        self._sampled_dataset = dataset

    def _rewards_of_groups(self) -> dict[str, Any]:
        """Returns what the rewards and verdicts of carried groups depend on, as JSON."""
        args = self.args
        is_punished = self.reporter.penalty_column is not None
        punishment = [args.generation_end.max_completion_length, args.soft_punish_cache, args.overlong_penalty_factor]
        return {
            "reward_names": self.punishment.names,
            "filter_reward": list(self.filter_names),
            "filter_range": None if args.filter_bounds is None else list(args.filter_bounds),
            "soft_overlong_punishment": punishment if is_punished else None,
        }

    def _add_guards_and_state(self) -> None:
        self.run_state.layout |= self._rewards_of_groups()
        if self.dynamic_sampler is not None:
            self._add_sampler_state(self.dynamic_sampler)
            self.add_callback(EmptyUpdateGuard(self._step_has_tokens))
        guard = NonFiniteGuard(self.seams, self.ranks, self.args.max_non_finite_steps, self._log_train)
        self.run_state.add("non_finite", guard.state_dict, guard.load_state_dict)
        self.add_callback(guard)
        shorten_log_lines(self.callback_handler.callbacks)
        self.add_callback(RunAnnouncement(self._describe_run))
        if self.recorder is not None:
            self.add_callback(RunRecord(self.recorder))
        load_diagnostics = functools.partial(self.diagnostics.load_state_dict, device=self.accelerator.device)
        self.run_state.add("diagnostics", self.diagnostics.state_dict, load_diagnostics, needs_layout=True)
        self.run_state.add("reporter", self.reporter.state_dict, self.reporter.load_state_dict)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """
        Trains, as in `GRPOTrainer`.

        Args:
            *args, **kwargs:
                `resume_from_checkpoint` and what else `Trainer.train` takes.

        Raises:
            `ValueError`: the model has no trainable parameter, or there is no checkpoint to resume from.
            `TrainingStoppedError`: a guard stopped the run. A checkpoint is saved, and the card says it.
        """
        check_trainable(self.model)
        has_ended = False
        try:
            output = super().train(*args, **kwargs)
            has_ended = True
            return output
        except (VLLMServerError, RankFailedError) as error:
            self._save_without_servers(error)
            raise
        finally:
            if self.dynamic_sampler is not None:
                self.dynamic_sampler.cancel(is_orderly=has_ended)
            self.environments_of_rounds.close()

    def _save_without_servers(self, error: Exception) -> None:
        """Saves what is trained, if it was servers that ended the run, and nothing else."""
        failures = self.ranks.failures
        if not failures or not all(f"{VLLMServerError.__name__}: " in cause for _, cause in failures):
            return
        step, folder = self.state.global_step, str(self.args.output_dir)
        last = self.ranks.from_first(lambda: last_whole_checkpoint(folder)[0])
        if step and (last is None or last.name != f"checkpoint-{step}"):
            self._save_checkpoint(self.model, trial=None)
            self._finalization.wait()
            last = self.ranks.from_first(lambda: last_whole_checkpoint(folder)[0])
        resume = "No step was trained" if last is None else f"The run can be resumed from {last}"
        error.add_note(f"{resume}.")

    # Generation-batch refilling

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.dynamic_sampler is None or not self.model.training:
            drawn = _DrawnBatch()
            with self._replaying(drawn):
                output = self._scoring(super()._generate_and_score_completions)(inputs)
            self._mark_without_value()
            return self._finish_batch(output, drawn.facts, torch.zeros(len(drawn.facts), dtype=torch.bool))
        # The dataloader's `inputs` only pace the steps.
        batch = self._collect_batch(self.dynamic_sampler)
        has_carried = batch.ledger.num_carried > 0
        for row in batch.inputs:
            # As TRL does it where an environment says everything.
            row.setdefault("prompt", [{"role": "user", "content": ""}])
        with (
            self.seams.without_environments() if self.seams.has_environments else nullcontext(),
            self._replaying(batch, awaits_old_logps=has_carried and self.args.trl_computes_old_logps),
        ):
            output = self._scoring(super()._generate_and_score_completions)(batch.inputs)
        if self.args.overlap and self.vllm_importance_sampling_correction:
            self._log_weights(output)
        elif self.args.overlap:
            # The batch is late, and the ratio is against the policy that sampled it.
            output["old_per_token_logps"] = self._sampled_logps(output)
        elif has_carried and not self.args.trl_computes_old_logps:
            output["old_per_token_logps"] = restore_old_logps(self.seams.score(output), batch.rollouts)
        ledger = batch.ledger
        if ledger.num_missing and self.loss_type in ROW_NORMALIZED_LOSSES and ledger.accepted:
            # These take the mean over rows, and count those that stand in for groups that were not found.
            output["advantages"] *= ledger.num_groups / len(ledger.accepted)
        # TRL takes the mean over all groups of the batch, those that were not found included.
        zero_std = self._metrics["train"]["frac_reward_zero_std"]
        zero_std[-1] *= ledger.num_groups / len(ledger.accepted) if ledger.accepted else math.nan
        return self._finish_batch(output, batch.facts, batch.is_filler, batch)

    def _sampled_logps(self, output: dict[str, Any]) -> torch.Tensor:
        """Returns the log-probabilities of the policy that sampled; where the engine gave none, those of the present one."""
        logps: torch.Tensor = output["sampling_per_token_logps"]
        is_unknown = logps.isnan()
        if self.ranks.gather_rows([[int(is_unknown.any())]]) == [[0]] * self.ranks.num_ranks:
            return logps
        # With some wrappers a forward pass is of all ranks.
        return torch.where(is_unknown, self.seams.score(output), logps)

    def _log_weights(self, output: dict[str, Any]) -> None:
        """Logs the share of tokens whose importance weight is cut; TRL logs the weights themselves."""
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        logps = output["old_per_token_logps"], output["sampling_per_token_logps"]
        counts = count_truncated(*logps, mask, self.vllm_importance_sampling_clip_max or math.inf)
        num_truncated, num_tokens = map(sum, zip(*self.ranks.gather_rows([counts]), strict=True))
        self._log_train({"overlap/frac_truncated": num_truncated / num_tokens if num_tokens else math.nan})

    def _mark_without_value(self) -> None:
        """Takes out of TRL's metrics of a drawn batch what is computed over no rewards."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        if math.isnan(metrics["reward"][-1]):
            metrics["frac_reward_zero_std"][-1] = math.nan

    @contextmanager
    def _replaying(self, batch: GenerationBatch | _DrawnBatch, awaits_old_logps: bool = False) -> Iterator[None]:
        """Inside it, TRL generates and scores this batch."""
        self._batch, self._awaits_old_logps = batch, awaits_old_logps
        try:
            with self.punishment.shown(), columns_in_step(self._logs) if self.log_completions else nullcontext():
                yield
        finally:
            self._batch, self._awaits_old_logps = _DrawnBatch(), False

    def _scoring(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a method of TRL with which texts go to the rank that writes them; to none where none does."""
        if self.ranks.num_ranks == 1:
            return method
        return texts_apart(
            method, functools.partial(self.ranks.gather_on, 0) if self.log_completions else lambda _: []
        )

    def _collect_batch(self, sampler: DynamicSampler) -> GenerationBatch:
        metrics = self._metrics["train"]
        num_logged = {name: len(values) for name, values in metrics.items()}
        calls_before = self.tool_loop.num_calls, self.tool_loop.num_failed_calls
        try:
            batch = sampler.collect(self.state.global_step, self.args.on_exhausted == "error")
        except RefillExhaustedError:
            if self.recorder is not None:
                self.recorder.close(self.state.global_step)
            raise
        if self.aside is not None:
            self.aside.give_metrics()
        # In rounds TRL has counted them.
        self.state.num_input_tokens_seen += batch.refill.num_uncounted_tokens
        metrics["num_tokens"] = [self.state.num_input_tokens_seen]
        is_of_this_policy = batch.ledger.policy_step == self.state.global_step
        if self.canary is not None and batch.refill.unchecked is not None and is_of_this_policy:
            self._log_train(self.canary.check_rollouts(batch.refill.unchecked))
        if self.args.use_vllm and self.vllm_generation.load is not None:
            self._log_train(self.vllm_generation.load.metrics(self.ranks, self.args.vllm_tensor_parallel_size))
        # TRL logged the lengths of each round by itself: one value over all completions replaces them.
        merged = completion_metrics(batch.ledger.sampled) | self._tool_metrics(batch, *calls_before)
        for name, value in merged.items():
            metrics[name][num_logged.get(name, 0) :] = [value]
        logged = self.reporter.metrics(batch)
        self._log_train(logged)
        if self.aside is not None:
            self._say(self.overlap_balance.observe(logged))
        if self.seams.has_environments and self.seams.chooses_environments and isinstance(self.train_dataset, Dataset):
            # Rows of a stream are not kept so long.
            rows = sampler.source.rows([group.draw for group in batch.ledger.sampled])
            self._log_train(environment_metrics(batch.ledger.sampled, [row["environment"] for row in rows]))
        self.stop_reason = self.reporter.warn(batch.ledger)
        if self.stop_reason is not None:
            self.control.should_save = self.control.should_training_stop = True
        self._pending_extra_logs.update(batch.logged_columns())
        if self.server_canary is not None:
            self.server_canary.watch(
                [*rollout.prompt_ids.tolist(), *rollout.completion_ids.tolist()] for rollout in batch.rollouts
            )
        if self.args.overlap and self._needs_next_batch():
            sampler.begin_next(self.state.global_step)
        return batch

    def _say(self, line: str | None) -> None:
        if line and self.accelerator.is_main_process:
            print(line, flush=True)

    def _needs_next_batch(self) -> bool:
        """Whether the run trains on another batch after the one that begins."""
        is_last = self.state.global_step + self.shape.num_updates >= self.state.max_steps
        return not (is_last or self.control.should_training_stop)

    def _tool_metrics(self, batch: GenerationBatch, num_calls: int, num_failed_calls: int) -> dict[str, float]:
        """Returns TRL's metrics of the calls since there were so many of them, over all completions sampled for a batch."""
        if not self.seams.has_tools:
            return {}
        calls = [self.tool_loop.num_calls - num_calls, self.tool_loop.num_failed_calls - num_failed_calls]
        return tool_metrics(self.ranks.gather_rows([calls]), len(batch.ledger.sampled) * self.num_generations)

    def _finish_batch(
        self,
        output: dict[str, Any],
        facts: list[RowFacts],
        is_filler: torch.Tensor,
        batch: GenerationBatch | None = None,
    ) -> dict[str, Any]:
        """Takes rows that carry no loss out of it, and adds what loss normalization and diagnostics need."""
        lengths = torch.tensor([row.completion_length for row in facts])
        is_truncated = torch.tensor([row.is_truncated for row in facts])
        is_masked = is_filler | (lengths == 0) | (is_truncated & self.args.mask_truncated_completions)
        device = self.accelerator.device
        output["completion_mask"] = output["completion_mask"].masked_fill(is_masked.to(device).unsqueeze(1), 0)
        counts = live_tokens(output)
        output["num_items_in_batch"] = self.accelerator.gather(counts.sum()).sum()
        if self.model.training:
            if self.recorder is not None:
                ledger = None if batch is None else batch.ledger
                self.recorder.write(ledger, self._logs["advantages"], self.state.global_step)
            self.diagnostics.observe_rows(output["advantages"], lengths.to(device), ~is_filler.to(device))
            if self.args.loss_normalization == "group":
                output |= group_columns(
                    counts, self.accelerator.gather(counts), self.accelerator.process_index, self.num_generations
                )
        return output

    # What TRL generates and scores with

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        if isinstance(self._batch, GenerationBatch):
            return self._batch.as_generated(
                self._tokenizer,
                prompts,
                self.seams.is_multimodal,
                self.seams.has_turns,
                has_engine=bool(self.use_vllm),
                # TRL keeps the texts for its table of completions.
                has_texts=bool(self.log_completions),
            )
        generated = Generated(*super()._generate(prompts))
        # As TRL has them from here on; a placeholder stays what it is.
        whole = [ids.tolist() if isinstance(ids, np.ndarray) else ids for ids in generated.completion_ids]
        generated = generated._replace(completion_ids=whole)
        if self.canary is not None and self.model.training:
            self._log_train(self.canary.check(generated))
        self._batch.facts = self.truncation_rule.facts(
            generated.prompt_ids,
            generated.completion_ids,
            generated.tool_mask,
            [is_unanswered(completion) for completion in generated.completions] if generated.tool_mask else None,
        )
        return generated

    def _generate_single_turn(
        self,
        prompt_ids: list[Any],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[list[Any], list[Any] | None]:
        def sample(prompt_ids: list[Any]) -> Any:
            return self._sample_turn(prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs)

        if self.tool_loop.is_running:
            # TRL takes a turn without a token as it is: the completion has others.
            return self.tool_loop.sample(sample, prompt_ids)
        completion_ids, logps = sample(prompt_ids)
        if self.seams.has_rollout_function:
            # It called this method, and does with an empty completion what it wants.
            return completion_ids, logps
        return with_placeholders(completion_ids, logps, self._tokenizer.pad_token_id)

    def _sample_turn(
        self,
        prompt_ids: list[Any],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[list[Any], list[Any] | None]:
        """Samples a turn for each prompt, in parts that `generate` can hold."""
        part = self.seams.rows_at_once(len(prompt_ids))
        completion_ids: list[Any] = []
        with self.vllm_generation.as_arrays() if self.use_vllm else nullcontext() as logps_of:
            for start in range(0, len(prompt_ids), part):
                part_ids, logps = super()._generate_single_turn(
                    prompt_ids[start : start + part], images, multimodal_fields, num_generations, *args, **kwargs
                )
                completion_ids.extend(part_ids)
        if logps_of:
            logps = [logps_of[id(ids)] for ids in completion_ids]
            if self.seams.has_turns:
                # Then others read them too.
                completion_ids, logps = [*map(as_list, completion_ids)], [*map(unknown_as_none, logps)]
        return completion_ids, logps

    def _tool_call_loop(self, prompts: list[Any], prompt_ids: list[Any], *args: Any) -> tuple[Any, ...]:
        def sample_filler(prompt_ids: list[Any]) -> Any:
            return self._sample_turn(prompt_ids, None, {}, 1)

        return self.tool_loop.run(super()._tool_call_loop, prompts, prompt_ids, *args, sample_filler=sample_filler)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        if isinstance(self._batch, GenerationBatch):
            return self._batch.rewards.to(self.accelerator.device)
        with self.punishment.hidden():
            rewards = self.reward_calls.compute(inputs, prompts, completions, completion_ids_list)
        if not self.model.training:
            filter_rewards = self.group_judge.filter_rewards(rewards.tolist(), self.num_generations_eval)
            self.evaluation_metrics.observe(rewards.new_tensor(filter_rewards), self._pending_extra_logs)
            return rewards
        facts = [RowFacts(*row) for row in self.ranks.gather_rows(self._batch.facts)]
        draws = [Draw(number, -1) for number in range(len(facts) // self.num_generations)]
        groups = self.group_judge.judge(draws, rewards.tolist(), facts)
        self._log_train(self.reporter.drawn_metrics(groups))
        if self.recorder is not None:
            self.recorder.observe_plain(groups, inputs, completions, self._pending_extra_logs)
        if self.args.truncated_in_statistics:
            return rewards
        return rewards.new_tensor([row for group in groups for row in group.rewards_in_statistics()])

    # Loss

    def _normalized(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns a micro-batch with the denominator of its optimizer step; at the first one of a batch, all of them get theirs."""
        num_slices, accumulation = self.shape.num_slices, self.args.gradient_accumulation_steps
        if not self.model.training or num_slices % accumulation:
            return inputs
        normalization = self.args.loss_normalization
        batch: Any = self._buffered_inputs
        if STEP_TOKENS not in batch[0]:
            if normalization == "group" and self.shape.num_updates > self.num_iterations:
                batch = whole_groups(batch, self.num_generations)
            sum_over_ranks = functools.partial(self.accelerator.reduce, reduction="sum")
            normalize(batch, sum_over_ranks, accumulation, normalization, self.num_generations)
            self._buffered_inputs = batch
        normalized: dict[str, Any] = batch[self._step % num_slices]
        return normalized

    def _step_has_tokens(self) -> bool:
        """Whether the optimizer step that is about to be taken has a token that carries loss."""
        batch: Any = self._buffered_inputs
        return bool(batch[(self._step - 1) % self.shape.num_slices][STEP_TOKENS].item())

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        logps, entropies, *rest = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._awaits_old_logps and isinstance(self._batch, GenerationBatch):
            # The first pass of the replay. So TRL's importance-sampling ratio starts from the right policy too.
            self._awaits_old_logps = False
            logps = restore_old_logps(logps, self._batch.rollouts)
        if kwargs.get("compute_entropy"):
            self._forward = _Forward(logps, entropies)
        return logps, entropies, *rest

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the loss of a micro-batch, a scalar: TRL's, with the denominator of the optimizer step (Eq. 8 of the paper)."""
        num_logged = {name: len(values) for name, values in self._metrics["train"].items()}
        inputs = self._normalized(inputs)
        loss: torch.Tensor = super().compute_loss(model, inputs, *args, **kwargs)
        forward, self._forward = self._forward, None  # it holds the graph
        if not self.model.training:
            return loss
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        if not self.accelerator.gather(mask.sum()).any():
            without_value(self._metrics["train"], num_logged)
        if forward is not None:
            is_sequence_ratio = self.importance_sampling_level == "sequence"
            old_logps, advantages = inputs.get("old_per_token_logps"), inputs["advantages"]
            self.diagnostics.observe_tokens(
                forward.logps, old_logps, forward.entropies, advantages, mask, is_sequence_ratio
            )
        return loss

    # Dataloader and reporting

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns TRL's dataloader, or one that only paces the steps where the prompts come from the stream."""
        if self.dynamic_sampler is None:
            return super().get_train_dataloader()
        if self.train_dataset is not self._sampled_dataset:
            self._sample_from(self.train_dataset)
        return pacing_dataloader(
            self.train_dataset, self.shape.num_groups, self.shape.num_slices * self.num_iterations
        )

    def _describe_run(self, num_steps: int) -> str:
        plan = None
        if self.dynamic_sampler is not None:
            plan = self.dynamic_sampler.refill.planner.plan(self.shape.num_groups)
        num_rows = len(self.train_dataset) if isinstance(self.train_dataset, Dataset) else None
        lines = [describe_run(self.args, num_steps, num_rows, plan, self.punishment.names, self.filter_names)]
        if self.args.use_vllm and isinstance(self.vllm_generation, ServerGeneration):
            lines.append(self.vllm_generation.describe())
        if not self.args.disable_dropout and has_dropout(self.model):
            lines.append(
                "  ! The model has dropout: the policy that samples is not the one that trains, and the ratio is not 1 where "
                "the weights are the same. Set disable_dropout=True."
            )
        if self.dynamic_sampler is not None and self.args.dataloader_num_workers:
            lines.append(
                f"  ! dataloader_num_workers is {self.args.dataloader_num_workers}, but the prompts of dynamic sampling are read "
                "without workers: they are for evaluation alone."
            )
        datasets = {"train_dataset": self.train_dataset, **datasets_by_name("eval_dataset", self.eval_dataset)}
        beyond = set(filter(None, (self.context_limit.describe(name, rows) for name, rows in datasets.items())))
        seeds = self.vllm_generation.describe_seeds() if self.args.use_vllm and self.args.dynamic_sampling else None
        template = describe_template(self.train_dataset, self.seams.tokenizer) if self._reads_prompts else None
        lines += [f"  ! {line}" for line in (seeds, template, *sorted(beyond)) if line]
        for name, count in self.shared_prompts().items():
            lines.append(
                f"  ! {count} prompts of the evaluation dataset{f' {name!r}' if name else ''} are in the training data "
                "too: its metrics are no held-out accuracy. Leave these rows out of train_dataset."
            )
        return "\n".join(lines)

    def _log_train(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            # What has no value in this step is not logged: trackers warn of it or draw a gap.
            if not math.isnan(value):
                self._metrics["train"][f"dapo/{name}"].append(value)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates, as in `GRPOTrainer`, and forgets what `predict` or an evaluation that failed has left."""
        self.evaluation_metrics.clear()
        self._metrics["eval"].clear()
        if self.dynamic_sampler is not None:
            # The servers get other weights now.
            self.dynamic_sampler.drain()
        try:
            with self._keep_awake(scores_beside=False)():
                return super().evaluation_loop(*args, **kwargs)
        except BaseException:
            # What the reward functions logged of the batch that failed.
            self._pending_extra_logs.clear()
            self._pending_metrics.clear()
            raise

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs TRL's metrics, and the diagnostics of the tokens trained since the last line, over all ranks."""
        if self.model.training:
            self._log_train(self.diagnostics.flush(self.accelerator.gather))
            if self.dynamic_sampler is not None:
                self.reporter.drop_always_zero(self._metrics["train"])
        else:
            logs |= self.evaluation_metrics.flush(logs, self._metrics["eval"])
        drop_without_value(self._metrics["train" if self.model.training else "eval"])
        if self.log_completions:
            level_columns(self._logs)
            self._logged_table = {"step": self.state.global_step, "rewards": list(self._logs["rewards"])}
        with printing_plainly() if self.log_completions else nullcontext():
            super().log(logs, start_time)
