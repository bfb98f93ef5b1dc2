"""How one rank tokenizes and scores the groups that it samples by itself."""

from collections.abc import Callable
from typing import Any

from trl_dapo.guards.reward_deadline import RewardCalls
from trl_dapo.ranks.rollout import rollouts_of, with_placeholders
from trl_dapo.refill.completion_decoder import decode_completion
from trl_dapo.refill.image_prompts import prepared_prompts
from trl_dapo.sampling.judge import RowFacts, TruncationRule
from trl_dapo.trl_seams import TrainerSeams

from .streamed_group import StreamedGroup


class GroupScorer:
    """
    Scores finished groups of this rank. No collective.

    Args:
        seams (`TrainerSeams`):
            Owns the tokenizer.
        rewards (`RewardCalls`):
            Computes the rewards.
        truncation_rule (`TruncationRule`):
            Tells which completions ran into a length limit.
        check_images (`Callable[[], None]`):
            Called when prompts have images.
    """

    def __init__(
        self,
        seams: TrainerSeams,
        rewards: RewardCalls,
        truncation_rule: TruncationRule,
        check_images: Callable[[], None],
    ):
        self.seams = seams
        self.rewards = rewards
        self.truncation_rule = truncation_rule
        self.check_images = check_images

    def tokenize(self, rows: list[dict[str, Any]]) -> list[list[int]]:
        """Returns the prompts of dataset rows in tokens."""
        return self.seams.tokenize(prepared_prompts(rows, self.check_images))

    def score(self, groups: list[StreamedGroup]) -> None:
        """Notes rewards, facts and rollouts in groups whose completions are finished. From any thread."""
        tokenizer = self.seams.tokenizer
        rows = [(group, sample) for group in groups for sample in range(len(group.token_ids))]
        prompts = [group.row["prompt"] for group, _ in rows]
        # Reward functions read lists, which are gone when this returns.
        prompt_ids = [group.prompt_ids.tolist() for group, _ in rows]
        completion_ids = [group.token_ids[sample].tolist() for group, sample in rows]
        whole_ids, _ = with_placeholders(completion_ids, None, tokenizer.pad_token_id)
        completions = [
            decode_completion(tokenizer, prompt_tokens, tokens, not isinstance(prompt, str))
            for prompt, prompt_tokens, tokens in zip(prompts, prompt_ids, whole_ids, strict=True)
        ]
        # Groups are finished at any time, while the other ranks do something else.
        rewards = self.rewards.compute_alone([dict(group.row) for group, _ in rows], prompts, completions, whole_ids)
        rollouts = rollouts_of(
            [group.prompt_ids for group, _ in rows],
            [group.token_ids[sample] for group, sample in rows],
            [group.logps[sample] for group, sample in rows],
            completions,
            self.seams.take_logged_columns(len(rows)),
            rows=[group.row for group, _ in rows],
        )
        for (group, sample), ids, rollout, reward in zip(
            rows, completion_ids, rollouts, rewards.tolist(), strict=True
        ):
            is_truncated = bool(ids) and self.truncation_rule.is_truncated(len(group.prompt_ids), ids)
            group.facts.append(RowFacts(len(group.prompt_ids), len(ids), is_truncated))
            group.rollouts.append(rollout.with_old_logps(group.old_logps[sample]))
            group.rewards.append(reward)
