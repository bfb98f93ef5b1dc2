"""Sampling and scoring with TRL's own methods, for one round of all ranks."""

from collections.abc import Callable
from typing import Any

from trl_dapo.guards.reward_calls import RewardCalls
from trl_dapo.ranks.rollout import rollouts_of
from trl_dapo.sampling.judge import RowFacts
from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.sampling.truncation import TruncationRule
from trl_dapo.trl_seams import TrainerSeams
from trl_dapo.vllm_engine.canary import WeightCanary

from .image_prompts import prepared_prompts
from .rounds import Sampled


class RolloutSampler:
    """
    Samples a completion for each row of a round, and scores it.

    Args:
        seams (`TrainerSeams`):
            Owns generation.
        rewards (`RewardCalls`):
            Computes the rewards.
        truncation_rule (`TruncationRule`):
            Tells which completions ran into a length limit.
        canary (`WeightCanary`, *optional*):
            Compares the engine with the trained model. `None`: the trained model generates.
        check_images (`Callable[[], None]`):
            Called when prompts have images.
    """

    def __init__(
        self,
        seams: TrainerSeams,
        rewards: RewardCalls,
        truncation_rule: TruncationRule,
        canary: WeightCanary | None,
        check_images: Callable[[], None],
    ):
        self.seams = seams
        self.rewards = rewards
        self.truncation_rule = truncation_rule
        self.canary = canary
        self.check_images = check_images

    def sample(self, inputs: list[dict[str, Any]], keys: list[SequenceKey]) -> Sampled:
        """Samples a completion for each row, named by the keys, and scores it. A collective."""
        prompts = prepared_prompts(inputs, self.check_images)
        # Above TRL's tokenizer prompts with images can still be cut; below it the pixels of all rows are one tensor.
        part = self.seams.rows_at_once(len(prompts)) if self.seams.is_multimodal else len(prompts)
        prompt_ids: list[list[int]] = []
        completion_ids: list[list[int]] = []
        completions: list[Any] = []
        logps: list[list[float | None]] = []
        facts: list[RowFacts] = []
        metrics: dict[str, float] = {}
        for start in range(0, len(prompts), part):
            rows = slice(start, start + part)
            generated = self.seams.generate(prompts[rows], keys[rows])
            if self.canary is not None:
                metrics |= self.canary.check(generated)
            prompt_ids += generated.prompt_ids
            completion_ids += generated.completion_ids
            completions += generated.completions
            logps += generated.logps or []
            facts += self.truncation_rule.facts(generated.prompt_ids, generated.completion_ids)
        rewards = self.rewards.compute(inputs, prompts, completions, completion_ids)
        # Placeholders of empty completions are no tokens.
        lengths = [row.completion_length for row in facts]
        rollouts = rollouts_of(
            prompt_ids,
            [ids[:length] for ids, length in zip(completion_ids, lengths, strict=True)],
            [row[:length] for row, length in zip(logps, lengths, strict=True)] if logps else None,
            completions,
            # Only columns with one value a completion can follow their completions into the batch.
            self.seams.take_logged_columns(len(completions)),
        )
        return Sampled(rollouts, rewards.tolist(), facts, metrics)
