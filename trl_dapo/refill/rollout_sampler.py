"""What the trainer samples and grades with: TRL's own methods, by rounds for all ranks or by groups for one."""

from typing import Any

from trl import GRPOTrainer
from trl.extras.profiling import profiling_context

from trl_dapo.ranks.rollout import Rollout, with_placeholders
from trl_dapo.sampling.groups import RowFacts
from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.sampling.truncation import TruncationRule
from trl_dapo.streaming.group_grader import GroupGrader
from trl_dapo.streaming.local_groups import StreamSources
from trl_dapo.streaming.streamed_group import StreamedGroup
from trl_dapo.trl_seams import replaced
from trl_dapo.vllm_engine.requests import VLLMRequests

from .completion_decoder import decode_completion
from .image_prompts import check_image_options, images_of, with_images
from .rounds import RoundOutput


class RolloutSampler:
    """
    Samples rounds, and tokenizes and grades groups.

    Args:
        trainer (`GRPOTrainer`):
            Owns generation and reward functions.
        truncation_rule (`TruncationRule`):
            Tells which completions ran into a length limit.
    """

    def __init__(self, trainer: GRPOTrainer, truncation_rule: TruncationRule):
        self.trainer: Any = trainer
        self.truncation_rule = truncation_rule

    def sample_round(self, inputs: list[dict[str, Any]], keys: list[SequenceKey]) -> RoundOutput:
        """Samples a completion for each row, and scores it. A collective."""
        trainer, prompts = self.trainer, self._prompts(inputs)
        engine = getattr(trainer, "vllm_generation", None)
        if engine is not None:
            engine.name_requests(keys)
        prompt_ids, completion_ids, completions, logps, facts = self._generate(prompts)
        rewards = trainer._calculate_rewards(inputs, prompts, completions, completion_ids)
        rollouts = self._rollouts(prompt_ids, _cut(completion_ids, facts), _cut(logps, facts), completions)
        return RoundOutput(rollouts, rewards.tolist(), facts)

    def tokenize(self, rows: list[dict[str, Any]]) -> list[list[int]]:
        """Returns the prompts of dataset rows in tokens."""
        prompt_ids, _, _ = self.trainer._tokenize_prompts(self._prompts(rows))
        return [list(ids) for ids in prompt_ids]

    def grade(self, groups: list[StreamedGroup]) -> None:
        """Notes rewards, facts and rollouts in groups of this rank whose completions are done. No collective."""
        trainer, tokenizer = self.trainer, self.trainer._tokenizer
        rows = [(group, sample) for group in groups for sample in range(len(group.token_ids))]
        prompts = [group.row["prompt"] for group, _ in rows]
        prompt_ids = [group.prompt_ids for group, _ in rows]
        completion_ids = [group.token_ids[sample] for group, sample in rows]
        whole_ids, _ = with_placeholders(completion_ids, None, tokenizer.pad_token_id)
        completions = [
            decode_completion(tokenizer, prompt_tokens, tokens, not isinstance(prompt, str))
            for prompt, prompt_tokens, tokens in zip(prompts, prompt_ids, whole_ids, strict=True)
        ]
        # Whenever they are done: the other ranks are doing something else.
        with replaced(trainer.reward_calls, "is_alone", True):
            rewards = trainer._calculate_rewards(
                [dict(group.row) for group, _ in rows], prompts, completions, whole_ids
            ).tolist()
        rollouts = self._rollouts(
            prompt_ids, completion_ids, [group.logps[sample] for group, sample in rows], completions
        )
        for (group, sample), rollout, reward in zip(rows, rollouts, rewards, strict=True):
            length = len(group.token_ids[sample])
            is_truncated = length > 0 and self.truncation_rule.is_truncated(
                len(group.prompt_ids), group.token_ids[sample]
            )
            group.facts.append(RowFacts(len(group.prompt_ids), length, is_truncated))
            group.rollouts.append(rollout.with_old_logps(group.old_logps[sample]))
            group.rewards.append(reward)

    def stream_sources(self) -> StreamSources:
        """Returns what this rank streams with."""
        trainer = self.trainer

        def load_weights() -> None:
            if trainer.state.global_step != trainer._last_loaded_step:
                with profiling_context(trainer, "sync_weights"):
                    trainer.vllm_generation.sync_weights()
                trainer._last_loaded_step = trainer.state.global_step

        grader = GroupGrader(self.grade, trainer.accelerator.device)
        trainer.reward_calls.watch.tell = grader.abandon
        return StreamSources(VLLMRequests(trainer.vllm_generation, load_weights), self.tokenize, grader)

    def _prompts(self, rows: list[dict[str, Any]]) -> list[Any]:
        prompts = with_images(rows)
        if images_of(prompts) is not None:
            # Not known before, where the dataset is a stream.
            check_image_options(self.trainer.args)
        return prompts

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        """Returns token ids of prompts and completions, completions, the engine's log-probabilities, and facts."""
        trainer = self.trainer
        # Above TRL's tokenizer prompts with images can still be cut; below it the pixels of all rows are one tensor.
        part = trainer._rows_at_once(len(prompts)) if trainer._is_vlm else len(prompts)
        columns: tuple[list[Any], ...] = ([], [], [], [], [])
        for start in range(0, len(prompts), part):
            prompt_ids, completion_ids, _, completions, logps, *_ = trainer._generate(prompts[start : start + part])
            generated = prompt_ids, completion_ids, completions, logps or [], trainer.completion_facts
            for column, values in zip(columns, generated, strict=True):
                column.extend(values)
        prompt_ids, completion_ids, completions, logps, facts = columns
        return prompt_ids, completion_ids, completions, logps or None, facts

    def _rollouts(self, prompt_ids: Any, completion_ids: Any, logps: Any, completions: Any) -> list[Rollout]:
        pending = self.trainer._pending_extra_logs
        # Only columns with one value per completion can follow their completions into the batch.
        logged = {column: values for column, values in pending.items() if len(values) == len(completions)}
        pending.clear()
        return [
            Rollout.from_lists(
                prompt_ids[row],
                completion_ids[row],
                None if logps is None else logps[row],
                {column: values[row] for column, values in logged.items()},
                completions[row],
            )
            for row in range(len(completions))
        ]


def _cut(rows: Any, facts: list[RowFacts]) -> Any:
    """Takes the placeholders out of empty completions."""
    return rows and [row[: fact.completion_length] for row, fact in zip(rows, facts, strict=True)]
