"""What of an environment, a tool or a rollout function leaves completions without a reward."""

from enum import IntEnum


class EnvFault(IntEnum):
    """Why a completion has no reward though the model did nothing wrong."""

    NONE = 0
    RAISED = 1
    TIMED_OUT = 2
    NOT_RESET = 3


class EnvironmentFaults:
    """
    The faults in a round, by completion; the first of each counts.

    Example:

    >>> faults = EnvironmentFaults()
    >>> faults.note(1, EnvFault.TIMED_OUT)
    >>> faults.note(1, EnvFault.RAISED)
    >>> [faults.of(row).name for row in range(3)], faults.sound_rows(3)
    (['NONE', 'TIMED_OUT', 'NONE'], [0, 2])
    """

    def __init__(self) -> None:
        self._by_row: dict[int, EnvFault] = {}

    def note(self, row: int, fault: EnvFault) -> None:
        """
        Args:
            row (`int`):
                Number of the completion in the round of this rank.
            fault (`EnvFault`):
                What happened.
        """
        self._by_row.setdefault(row, fault)

    def of(self, row: int) -> EnvFault:
        """Returns the fault of a completion."""
        return self._by_row.get(row, EnvFault.NONE)

    def sound_rows(self, num_rows: int) -> list[int]:
        """Returns which of the first `num_rows` completions have none."""
        return [row for row in range(num_rows) if row not in self._by_row]
