"""The numbers that shape a generation batch, resolved once from the configuration."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchShape:
    """
    How large a generation batch is, and how it may be filled.

    Attributes:
        num_generations (`int`):
            Completions per group G.
        num_groups (`int`):
            Groups of a generation batch N.
        num_slices (`int`):
            Micro-batches into which a rank cuts its part of a generation batch, TRL's `steps_per_generation`.
        num_updates (`int`):
            Optimizer steps on one generation batch.
        max_rounds (`int`):
            Generation rounds that one batch may use.
        max_prompts_per_round (`int`):
            Most prompts of one round.
        keeps_surplus (`bool`):
            Whether informative groups beyond the batch train in the next one.
        max_off_policy_steps (`int`):
            How many optimizer steps old such a group may be.
    """

    num_generations: int
    num_groups: int
    num_slices: int = 1
    num_updates: int = 1
    max_rounds: int = 10
    max_prompts_per_round: int = 1
    keeps_surplus: bool = False
    max_off_policy_steps: int = 1

    @property
    def num_completions(self) -> int:
        """Completions of a generation batch, over all ranks."""
        return self.num_groups * self.num_generations

    @property
    def max_prompts(self) -> int:
        """Most prompts that may be sampled for one batch."""
        return self.max_rounds * self.max_prompts_per_round
