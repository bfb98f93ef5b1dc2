"""
Sampling beside training: while a batch trains, a thread samples the next one.

Once batch k is collected, and before its first optimizer step, the servers get the weights as they are, and a thread begins to
sample batch k+1. When batch k has trained, the main thread waits for what is left, and takes it. So a batch is sampled exactly
one batch ahead, whatever takes how long.

What the thread does is local to its rank, or an exchange in a process group of its own. All else belongs to the main thread:
the weights, the collectives of the trainer, what is raised on all ranks, and what TRL notes. Whoever needs the sampler at rest
(a checkpoint, an evaluation, the end) drains it first.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from trl_dapo.ranks.rollout import Rollout
from trl_dapo.refill.assembly import GenerationBatch, RefillResult
from trl_dapo.refill.dynamic_sampling import DynamicSampler
from trl_dapo.refill.progress import SamplingProgress
from trl_dapo.sampling.judge import Location, SampledGroup
from trl_dapo.sampling.prompt_stream import Draw
from trl_dapo.sampling.refill_ledger import RefillLedger
from trl_dapo.sampling.refill_planner import RoundPlan

from .stream_refill import StreamRefill


# Seconds that a thread has to end when it is told to. It looks between two steps of its engine.
_SECONDS_TO_STOP = 10.0


@dataclass
class _Ahead:
    """
    A batch that is sampled ahead.

    Attributes:
        ledger (`RefillLedger`):
            Its groups.
        first_position (`int`):
            Stream position at which it begins to draw.
        trains_at (`int`):
            Optimizer steps that the policy will have taken when it trains.
        is_sampled (`threading.Event`):
            Set when the thread has nothing to do any more.
        error (`BaseException`, *optional*):
            What the thread ended with, which no rank expects.
        failure (`Exception`, *optional*):
            What went wrong on this rank or another one. All ranks have one then.
        result (`RefillResult`, *optional*):
            What was sampled, once all ranks know it.
        sampled_at (`float`):
            When the thread ended, by `time.perf_counter`.
        seconds_waited (`float`):
            Seconds that the main thread spent on it: those of the weights on their way, and of waiting.
    """

    ledger: RefillLedger
    first_position: int
    trains_at: int
    is_sampled: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    failure: Exception | None = None
    result: RefillResult | None = None
    sampled_at: float = 0.0
    seconds_waited: float = 0.0

    @property
    def is_drained(self) -> bool:
        """Whether it is known on all ranks what became of it."""
        return self.result is not None or self.failure is not None


class OverlappedSampler(DynamicSampler):
    """
    A [`DynamicSampler`] that samples each batch but the first while the one before it trains.

    Its refill is a [`StreamRefill`] on servers, and what the refill does in `sample` may run in any thread.
    """

    refill: StreamRefill

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # In the background nothing is shown.
        self.refill.progress = SamplingProgress()
        self._ahead: _Ahead | None = None

    def begin_next(self, policy_step: int) -> None:
        """
        Begins to sample the next batch, with the weights as they are. A collective.

        Args:
            policy_step (`int`):
                Optimizer steps that the policy has taken.
        """
        self._begin(policy_step, policy_step + self.shape.num_updates)

    def _begin(self, policy_step: int, trains_at: int) -> None:
        ahead = _Ahead(self._new_ledger(policy_step), self.source.position, trains_at)
        start = time.perf_counter()
        self.refill.begin(ahead.ledger, policy_step)
        ahead.seconds_waited = time.perf_counter() - start
        self._ahead = ahead

        def sample() -> None:
            try:
                self.refill.sample()
            except BaseException as error:
                ahead.error = error
            ahead.sampled_at = time.perf_counter()
            ahead.is_sampled.set()

        # A daemon: the process may end without it.
        threading.Thread(target=sample, name="sampling", daemon=True).start()

    def drain(self) -> None:
        """
        Waits until the batch that is sampled ahead is decided, and has all ranks know it. A collective.

        What went wrong is raised by `collect`, when its batch is due. The state is then that before the batch.
        """
        ahead = self._ahead
        if ahead is None or ahead.is_drained:
            return
        self._wait_for(ahead)
        if ahead.error is not None:
            # The other ranks know nothing of it: they notice that this one is gone.
            raise ahead.error
        try:
            ahead.result = self.refill.settle(ahead.ledger)
        except Exception as failure:
            ahead.failure = failure
            self.source.seek(ahead.first_position)

    def cancel(self, is_orderly: bool) -> None:
        """
        Gives up the batch that is sampled ahead, as if it had not been begun.

        Args:
            is_orderly (`bool`):
                Whether all ranks do it together. `False`: this one ends, and waits for no other.
        """
        ahead = self._ahead
        if ahead is None:
            return
        if not ahead.is_drained:
            # Ranks that go on together stop at the same exchange.
            if not is_orderly or self.refill.ranks.num_ranks == 1:
                self.refill.stop()
            ahead.is_sampled.wait(None if is_orderly else _SECONDS_TO_STOP)
        self._ahead = None
        if ahead.is_sampled.is_set():
            self.refill.undo()
            self.source.seek(ahead.first_position)

    def collect(self, policy_step: int, raises_if_exhausted: bool = False) -> GenerationBatch:
        """
        Takes the batch that was sampled ahead; the first one, and one that has none before it, is sampled now. A collective;
        see [`DynamicSampler.collect`].
        """
        if self._ahead is None:
            self._begin(policy_step, policy_step)
        needed_at = time.perf_counter()
        ahead = self._ahead
        assert ahead is not None
        self.drain()
        self._ahead = None
        if ahead.result is None:
            assert ahead.failure is not None
            raise ahead.failure
        batch = self._finish(ahead.ledger, ahead.first_position, ahead.result, raises_if_exhausted)
        metrics = overlap_metrics(ahead, needed_at) | staleness(batch.ledger.accepted, policy_step)
        return replace(batch, refill=replace(batch.refill, metrics=batch.refill.metrics | metrics))

    def _wait_for(self, ahead: _Ahead) -> None:
        if ahead.is_sampled.is_set():
            return
        start = time.perf_counter()
        self.progress.begin(ahead.trains_at + 1, self.shape.num_groups)
        silent, self.refill.progress = self.refill.progress, self.progress
        try:
            ahead.is_sampled.wait()
        finally:
            self.refill.progress = silent
            self.progress.end()
            ahead.seconds_waited += time.perf_counter() - start

    def _keep_logps(self, new: Sequence[Location], result: RefillResult) -> None:
        """Nothing: the policy that sampled is gone. The loss weighs each token by what the engine said when it sampled it."""

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """As of [`DynamicSampler`], before the batch that is sampled ahead. A collective."""
        self.drain()
        return super().state_dict()

    def carried_state_dict(self) -> dict[str, Any]:
        """As of [`DynamicSampler`], with the batch that is sampled ahead: it is decided before it is saved. A collective."""
        self.drain()
        state, ahead = super().carried_state_dict(), self._ahead
        if ahead is None or ahead.result is None:
            return state
        saved = {
            "policy_step": ahead.ledger.policy_step,
            "first_position": ahead.first_position,
            "trains_at": ahead.trains_at,
            "next_position": ahead.ledger.next_position,
            "num_aborted_tokens": ahead.ledger.num_aborted_tokens,
            "groups": [group.state_dict() for group in ahead.ledger.sampled],
            "result": self._state_of_result(ahead.result, ahead.ledger.sampled),
            "refill": state["refill"],
        }
        return state | {"refill": self.refill.state_before(), "ahead": saved}

    def _state_of_result(self, result: RefillResult, groups: Sequence[SampledGroup]) -> dict[str, Any]:
        """Returns what was sampled, for a checkpoint. Which completions go on, the refill's own state says."""
        spare = None
        if result.spare is not None:
            draw, rollout = result.spare
            spare = [[draw.position, draw.index], rollout.state_dict(self.source.row(draw))]
        return {
            "kept": self._state_of(result.kept, groups),
            "spare": spare,
            "seconds": result.seconds,
            "plan": None if result.plan is None else asdict(result.plan),
            "metrics": dict(result.metrics),
            "num_uncounted_tokens": result.num_uncounted_tokens,
            "first_suspended": result.first_suspended,
        }

    def load_state_dict(self, state: Mapping[str, Any], restart_stream: bool = False) -> None:
        """As of [`DynamicSampler`]; nothing is ahead then."""
        self.cancel(is_orderly=True)
        super().load_state_dict(state, restart_stream)

    def load_carried_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what was carried, and the batch that was sampled ahead."""
        super().load_carried_state_dict(state)
        saved = state.get("ahead")
        if saved is None:
            return
        self.refill.load_state_after(saved["refill"])
        ahead = _Ahead(self._new_ledger(saved["policy_step"]), saved["first_position"], saved["trains_at"])
        groups = [SampledGroup.from_state_dict(group) for group in saved["groups"]]
        kept = self._rollouts_of(saved["result"]["kept"], groups)
        ahead.result = _result_of(saved["result"], kept, self.source.row)
        ahead.ledger.settle(groups, saved["next_position"], ahead.result.seconds, saved["num_aborted_tokens"])
        ahead.is_sampled.set()
        self._ahead = ahead


def overlap_metrics(ahead: _Ahead, needed_at: float) -> dict[str, float]:
    """
    Returns how much of the sampling of a batch was hidden behind training.

    Args:
        ahead (`_Ahead`):
            The batch.
        needed_at (`float`):
            When training needed it, by `time.perf_counter`.
    """
    assert ahead.result is not None
    seconds = ahead.result.seconds
    metrics = {"overlap/wait_seconds": ahead.seconds_waited}
    if ahead.sampled_at:
        metrics["overlap/idle_seconds"] = max(0.0, needed_at - ahead.sampled_at)
    if seconds:
        metrics["overlap/hidden"] = max(0.0, 1.0 - ahead.seconds_waited / seconds)
    return metrics


def staleness(groups: Sequence[SampledGroup], step: int) -> dict[str, float]:
    """
    Returns how old the tokens of a batch are when it begins to train, in optimizer steps.

    Of a group that went on from an earlier batch all tokens count as old as its first one.

    Args:
        groups (`Sequence[SampledGroup]`):
            The groups that train.
        step (`int`):
            Optimizer steps that the policy has taken.
    """
    num_tokens = sum(group.num_tokens for group in groups)
    if not num_tokens:
        return {}
    ages = [step - group.policy_step for group in groups]
    mean = sum(age * group.num_tokens for age, group in zip(ages, groups, strict=True)) / num_tokens
    return {"overlap/staleness_mean": mean, "overlap/staleness_max": float(max(ages))}


def _result_of(
    state: Mapping[str, Any], kept: dict[Location, Rollout], row_of: Callable[[Draw], Mapping[str, Any]]
) -> RefillResult:
    """Inverse of `_state_of_result`, with the rollouts that were kept."""
    spare = None
    if state["spare"] is not None:
        draw = Draw(*state["spare"][0])
        spare = draw, Rollout.from_state_dict(state["spare"][1], partial(row_of, draw))
    return RefillResult(
        kept=kept,
        spare=spare,
        seconds=state["seconds"],
        plan=None if state["plan"] is None else RoundPlan(**state["plan"]),
        metrics=state["metrics"],
        num_uncounted_tokens=state["num_uncounted_tokens"],
        first_suspended=state["first_suspended"],
    )
