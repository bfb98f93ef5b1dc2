"""Which groups of a generation batch to start, to wait for and to give up, when they are sampled without rounds."""


class RefillFlow:
    """
    The groups of one batch while they are being sampled, each by its position in the prompt stream.

    The batch is the first N informative groups in stream order. So a group that is done late is waited for, and never
    replaced by a later one that was done early: answers that finish first are short ones. A group can be given up as soon
    as N informative ones stand before it.

    With `num_kept`, groups beyond the batch are kept for the next one, done or not: the first so many in stream order that
    are informative or still being sampled. What lies behind them goes back to the stream.

    Every rank has a copy and tells it the same in the same order, so that all copies decide alike.

    Args:
        num_groups (`int`):
            Groups N of a full batch.
        max_started (`int`):
            Groups that the batch may start.
        num_kept (`int`, *optional*, defaults to `0`):
            Groups beyond the batch that may be kept.
        num_ranks (`int`, *optional*, defaults to `1`):
            Ranks that sample.

    Example:

    >>> flow = RefillFlow(num_groups=1, max_started=10)
    >>> ranks = [flow.start(position) for position in range(3)]
    >>> flow.resolve(1, is_informative=True)
    >>> flow.is_decided, flow.unneeded()
    (False, [2])
    >>> flow.resolve(0, is_informative=False)
    >>> flow.is_decided, flow.cutoff
    (True, 1)
    """

    def __init__(self, num_groups: int, max_started: int, num_kept: int = 0, num_ranks: int = 1):
        self.num_groups = num_groups
        self.max_started = max_started
        self.num_kept = num_kept
        self.num_ranks = num_ranks
        self.num_started = 0
        self.in_flight: dict[int, int] = {}
        self._informative: set[int] = set()
        self._first_given_up: int | None = None

    def hold(self, position: int) -> None:
        """Takes a group that an earlier batch sampled and found informative."""
        self._informative.add(position)

    def resume(self, position: int, rank: int) -> None:
        """Takes a group that an earlier batch began, and that `rank` goes on with."""
        self.in_flight[position] = rank

    def start(self, position: int) -> int:
        """Starts a group, behind all others in the stream, and returns the rank that samples it: the least busy one."""
        groups_of = [0] * self.num_ranks
        for rank in self.in_flight.values():
            groups_of[rank] += 1
        rank = min(range(self.num_ranks), key=groups_of.__getitem__)
        self.in_flight[position] = rank
        self.num_started += 1
        return rank

    def resolve(self, position: int, is_informative: bool) -> None:
        """Takes the verdict on a group. One that was given up meanwhile has no verdict any more."""
        if self.in_flight.pop(position, None) is not None and is_informative:
            self._informative.add(position)

    @property
    def num_missing(self) -> int:
        """Informative groups still to be found, wherever in the stream."""
        return max(0, self.num_groups - len(self._informative))

    @property
    def cutoff(self) -> int | None:
        """Position of the N-th informative group as far as is known; it only moves to earlier ones. `None`: there are fewer."""
        if self.num_missing:
            return None
        return sorted(self._informative)[self.num_groups - 1]

    @property
    def is_decided(self) -> bool:
        """Whether the batch can no longer change: every group before the cutoff has its verdict, or all groups have theirs."""
        cutoff = self.cutoff
        if cutoff is None:
            return not self.in_flight and self.num_started >= self.max_started
        return all(position > cutoff for position in self.in_flight)

    def num_to_start(self, target: int, num_idle_slots: int, num_generations: int) -> int:
        """
        Returns how many groups to start now.

        Args:
            target (`int`):
                Groups that should be in flight for what is missing.
            num_idle_slots (`int`):
                Completions that the engines could decode at once beside those they have.
            num_generations (`int`):
                Completions of a group.
        """
        if self._first_given_up is not None:
            return 0  # it would lie behind a gap
        number = target - len(self.in_flight) if self.num_missing else 0
        if self.num_kept:
            # What is kept costs nothing, so that no slot has to be idle.
            room = self.num_groups + self.num_kept - len(self._informative) - len(self.in_flight)
            number = max(number, min(room, -(-num_idle_slots // num_generations)))
        return max(0, min(number, self.max_started - self.num_started))

    def unneeded(self) -> list[int]:
        """Returns the groups in flight that can be of no use any more, in stream order; they are given up with that."""
        cutoff = self.cutoff
        if cutoff is None:
            return []
        kept = set(self.kept())
        given_up = sorted(position for position in self.in_flight if position > cutoff and position not in kept)
        for position in given_up:
            del self.in_flight[position]
        if given_up:
            self._first_given_up = (
                given_up[0] if self._first_given_up is None else min(given_up[0], self._first_given_up)
            )
        return given_up

    def kept(self) -> list[int]:
        """Returns the groups beyond the batch that stay for the next one, informative or in flight, in stream order."""
        cutoff = self.cutoff
        if cutoff is None or not self.num_kept:
            return []
        beyond = sorted(position for position in {*self._informative, *self.in_flight} if position > cutoff)
        end = self._first_given_up
        return [position for position in beyond if end is None or position < end][: self.num_kept]

    def next_position(self, stream_position: int) -> int:
        """Returns where the next batch begins to draw, given where this one stopped: before all that is not kept."""
        cutoff = self.cutoff
        if cutoff is None:
            return stream_position
        if not self.num_kept:
            return cutoff + 1
        kept = set(self.kept())
        dropped = [position for position in {*self._informative, *self.in_flight} if position > cutoff]
        dropped = [position for position in dropped if position not in kept]
        if self._first_given_up is not None:
            dropped.append(self._first_given_up)
        return min(dropped, default=stream_position)
