"""What a run says of the batches that dynamic sampling collected."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.logging import get_logger

from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.refill.assembly import CollectedBatch
from trl_dapo.refill.dynamic_sampling import DynamicSampler
from trl_dapo.sampling.group_filter import GroupVerdict
from trl_dapo.sampling.group_metrics import group_figures, overlong_figures
from trl_dapo.sampling.groups import SampledGroup
from trl_dapo.sampling.refill_ledger import BatchCollection


logger = get_logger(__name__)

# Wholly empty generation batches after which a run stops: it would spend its time on nothing.
_MAX_EMPTY_BATCHES = 5


class BatchReporter:
    """
    Turns collected batches into figures, and what is wrong with them into warnings, each once.

    Args:
        args (`DAPOConfig`):
            The trainer's configuration.
        overlong_column (`int` or `None`):
            Column of the rewards that holds the soft overlong punishment.
    """

    def __init__(self, args: DAPOConfig, overlong_column: int | None):
        self.args = args
        self.overlong_column = overlong_column
        self._num_empty_batches = 0
        self._has_warned: set[str] = set()

    def figures(self, batch: CollectedBatch, sampler: DynamicSampler) -> dict[str, float]:
        """Returns the figures of a collected batch, by their names below `dapo/`."""
        collection = batch.collection
        figures = collection.metrics() | self._overlong_figures(collection.sampled)
        figures["data_passes"] = sampler.stream.num_passes
        figures["seconds_sampling"] = sampler.refill.seconds
        figures |= sampler.refill.figures
        figures["moved_bytes"] = 4.0 * batch.num_moved_words
        if sampler.refill.last_plan is not None:
            figures["acceptance_estimate"] = sampler.refill.last_plan.acceptance_rate
        return figures

    def plain_figures(self, groups: Sequence[SampledGroup]) -> dict[str, float]:
        """Returns the figures of a batch that was drawn without dynamic sampling."""
        return group_figures(groups) | self._overlong_figures(groups)

    def warn(self, collection: BatchCollection) -> bool:
        """Warns of a batch that is not full or has unreadable golds; returns whether the run should stop."""
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
        self._num_empty_batches = 0 if collection.accepted else self._num_empty_batches + 1
        if self._num_empty_batches < _MAX_EMPTY_BATCHES:
            return False
        logger.error(
            f"{_MAX_EMPTY_BATCHES} generation batches in a row had nothing to learn from; training stops and saves a "
            "checkpoint.\n" + collection.describe_exhaustion()
        )
        return True

    def state_dict(self) -> dict[str, Any]:
        """Returns what the run has been warned of, and how many batches in a row were empty."""
        return {"has_warned": sorted(self._has_warned), "num_empty_batches": self._num_empty_batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state."""
        self._has_warned = set(state["has_warned"])
        self._num_empty_batches = state["num_empty_batches"]

    def _overlong_figures(self, groups: Sequence[SampledGroup]) -> dict[str, float]:
        if self.overlong_column is None:
            return {}
        return overlong_figures(groups, self.args.free_length, self.overlong_column)

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._has_warned:
            self._has_warned.add(topic)
            logger.warning(message)
