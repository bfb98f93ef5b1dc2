"""The groups of one rank while they are sampled: decoded, graded, and reported to the other ranks."""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from trl_dapo.vllm_engine.sequence_engine import SequenceEngine

from .group_grader import GroupGrader
from .streamed_group import StreamedGroup


# Seconds between two looks at the grader, while the engine has nothing to do.
_PATIENCE = 0.01


class LocalGroups:
    """
    Groups that this rank samples, until all ranks know their verdicts.

    A failure is kept, and reported to the other ranks before it is raised: otherwise they would wait for this rank.

    Args:
        engine (`SequenceEngine`):
            Decodes completions.
        grader (`GroupGrader`):
            Grades groups whose completions are finished.
        tokenize (`Callable[[list[dict]], list[list[int]]]`):
            Returns the prompts of dataset rows in tokens.

    Attributes:
        by_position (`dict[int, StreamedGroup]`):
            The groups, by their positions in the prompt stream.
        failure (`Exception` or `None`):
            What went wrong. Nothing is done any more from then on.
        num_aborted_tokens (`int`):
            Tokens of groups that were given up since the batch began.
    """

    def __init__(
        self,
        engine: SequenceEngine,
        grader: GroupGrader,
        tokenize: Callable[[list[dict[str, Any]]], list[list[int]]],
    ):
        self.engine = engine
        self.grader = grader
        self.tokenize = tokenize
        self.by_position: dict[int, StreamedGroup] = {}
        self.failure: Exception | None = None
        self.num_aborted_tokens = 0
        self._news: deque[StreamedGroup] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do until other ranks bring news."""
        return self.failure is not None or (not self.engine.num_unfinished and self.grader.is_idle)

    @property
    def num_idle_slots(self) -> int:
        """Completions that the engine could decode beside those it has."""
        return max(0, self.engine.num_slots - self.engine.num_unfinished)

    def attempt(self, work: Callable[[], object]) -> None:
        """Does something that may fail, unless something did."""
        if self.failure is None:
            try:
                work()
            except Exception as error:
                self.failure = error

    def begin(self) -> None:
        """Begins a batch, with the groups that went on from the last one. A collective."""
        self.num_aborted_tokens = 0
        self.attempt(self.engine.begin)
        for group in self.by_position.values():
            self.attempt(partial(self._submit, group))

    def start(self, group: StreamedGroup) -> None:
        """Takes a new group."""
        self.by_position[group.draw.position] = group
        self._submit(group)

    def work(self) -> None:
        """Decodes a little, and collects what was graded."""
        if self.engine.num_unfinished:
            for key, decoded in self.engine.step().items():
                group = self.by_position[key.position]
                group.extend(key.sample, decoded, is_finished=True)
                if not group.unfinished:
                    self.grader.submit(group)
        else:
            self.grader.wait(_PATIENCE)
        # One that was given up may have been begun anew meanwhile.
        self._news.extend(group for group in self.grader.poll() if self.by_position.get(group.draw.position) is group)

    def take_news(self, most: int) -> list[StreamedGroup]:
        """Returns at most `most` groups that were graded and not yet reported."""
        return [self._news.popleft() for _ in range(min(most, len(self._news)))]

    def give_up(self, positions: Iterable[int]) -> None:
        """Drops those of the groups that are this rank's."""
        groups = [self.by_position.pop(position) for position in positions if position in self.by_position]
        self._withdraw(groups)
        self.num_aborted_tokens += sum(group.num_tokens for group in groups)
        self._news = deque(group for group in self._news if group.draw.position in self.by_position)

    def suspend(self) -> None:
        """Ends the batch: the groups keep what was decoded of them, and go on in the next one."""
        # They can no longer change the batch. If grading one fails, the next batch says so.
        self.attempt(self.grader.drain)
        self._withdraw(self.by_position.values())
        self._news.clear()

    def reset(self) -> Exception | None:
        """Drops everything, and returns the failure."""
        failure, self.failure = self.failure, None
        self._withdraw(self.by_position.values())
        self.by_position, self._news = {}, deque()
        return failure

    def _submit(self, group: StreamedGroup) -> None:
        if group.is_graded:
            self._news.append(group)
        elif not group.unfinished:
            self.grader.submit(group)
        for key in group.keys:
            self.engine.submit(key, group.prompt_ids.tolist(), group.token_ids[key.sample].tolist())

    def _withdraw(self, groups: Iterable[StreamedGroup]) -> None:
        by_key = {key: group for group in groups for key in group.keys}
        for key, decoded in self.engine.withdraw(by_key).items():
            by_key[key].extend(key.sample, decoded, decoded.is_finished)
