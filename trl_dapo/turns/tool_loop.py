"""
The turns after the first one: TRL calls the tools that a completion asked for, and has the model go on.

Ranks take different numbers of turns. Where they can only generate together, those that are done take part in the turns of
the others with rows that nobody reads; and where tools fail on one rank, it tells the others, which would wait for its numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any

from trl_dapo.errors import RankFailedError
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.trl_seams import TrainerSeams


# Samples a turn for each prompt: token ids of the turns, and their log-probabilities by the engine.
SampleTurn = Callable[[list[list[int]]], tuple[list[list[int]], list[list[float | None]] | None]]

_HAS_FAILED = -1


class _NumberedIds(list[int]):
    """The tokens of a prompt, which keep the number of its row when TRL adds those of its turns."""

    number: int

    def __add__(self, others: Any) -> Any:
        longer = _NumberedIds(super().__add__(others))
        longer.number = self.number
        return longer


class ToolLoop:
    """
    Runs TRL's loop of tool calls.

    Args:
        seams (`TrainerSeams`):
            Owns generation.
        ranks (`Ranks`):
            The ranks of the run.

    Attributes:
        keys (`Sequence[SequenceKey]`):
            Names of the completions that are sampled next, from which a vLLM engine derives their seeds. Empty: none have any.
        takes_images (`bool`):
            Whether tools may return images.
        is_running (`bool`):
            Whether a turn that is sampled now is one after a call of a tool.
        is_collective (`bool`):
            Whether the ranks can only generate together.
        num_calls (`int`), num_failed_calls (`int`):
            Calls of tools on this rank since the run began, and those that TRL answered with an error.
    """

    def __init__(self, seams: TrainerSeams, ranks: Ranks):
        self.seams = seams
        self.ranks = ranks
        self.keys: Sequence[SequenceKey] = ()
        self.takes_images = True
        self.is_running = False
        self.num_calls = self.num_failed_calls = 0
        # Of a row with images there is no filler.
        generates_together = seams.shares_engine or seams.generates_sharded
        self.is_collective = ranks.num_ranks > 1 and generates_together and not seams.is_multimodal
        self._lengths: list[int] = []

    def run(
        self,
        loop: Callable[..., tuple[Any, ...]],
        prompts: list[Any],
        prompt_ids: list[list[int]],
        *rest: Any,
        sample_filler: SampleTurn,
    ) -> tuple[Any, ...]:
        """
        Runs TRL's loop. A collective.

        Args:
            loop (`Callable`):
                TRL's `_tool_call_loop`.
            prompts (`list`), prompt_ids (`list[list[int]]`), *rest:
                Its arguments.
            sample_filler (`Callable`):
                Samples turns that nobody reads.

        Raises:
            `RankFailedError`: on another rank a tool or the generation failed. A rank that failed itself raises its own failure.
            `ValueError`: a tool returned an image that has no place.
        """
        plain = list(prompt_ids)
        self._lengths = list(map(len, plain))
        prompt_ids[:] = map(_numbered, plain, range(len(plain)))
        looped: tuple[Any, ...] = ()
        failure: Exception | None = None
        self.is_running = True
        try:
            looped = loop(prompts, prompt_ids, *rest)
            if not self.takes_images and any(looped[6]):
                raise ValueError(
                    "A tool returned an image, but with dynamic sampling a completion is kept as its tokens alone. Have the tool "
                    "return text, or set dynamic_sampling=False."
                )
        except RankFailedError:
            raise
        except Exception as error:
            if self.ranks.num_ranks == 1:
                raise
            failure = error
        finally:
            self.is_running = False
            prompt_ids[:] = plain
        if self.ranks.num_ranks > 1:
            self._take_part(failure, plain[0], sample_filler)
        num_calls, num_failed_calls = looped[4:6]
        self.num_calls += num_calls
        self.num_failed_calls += num_failed_calls
        return looped

    def sample(self, sample: SampleTurn, prompt_ids: list[list[int]]) -> tuple[Any, Any]:
        """
        Samples a turn inside the loop. Where the ranks can only generate together, a collective.

        Args:
            sample (`Callable`):
                Samples a turn for each prompt.
            prompt_ids (`list[list[int]]`):
                Prompt, turns and answers of tools so far, of the rows that go on.
        """
        rows = [ids.number for ids in prompt_ids if isinstance(ids, _NumberedIds)]
        turns = [list(ids) for ids in prompt_ids]
        if self.keys:
            lengths = [len(ids) - self._lengths[row] for ids, row in zip(turns, rows, strict=True)]
            self.seams.name_requests([self.keys[row] for row in rows], lengths)
        num_rows = (
            self._num_rows_at_once(len(turns), self._most_rows(len(turns))) if self.is_collective else len(turns)
        )
        ids, logps = sample(turns + turns[:1] * (num_rows - len(turns)))
        return ids[: len(turns)], None if logps is None else logps[: len(turns)]

    def _take_part(self, failure: Exception | None, prompt_ids: list[int], sample_filler: SampleTurn) -> None:
        """Waits until all ranks have taken their turns."""
        while most := self._most_rows(0 if failure is None else _HAS_FAILED, failure):
            sample_filler([prompt_ids] * self._num_rows_at_once(0, most))

    def _num_rows_at_once(self, num_rows: int, most: int) -> int:
        """Returns with how many rows this rank takes part in a turn, if it has `num_rows` and another one has `most`."""
        # Else as few as possible: TRL samples with as many random numbers as it has rows.
        is_one_call = not self.seams.shares_engine and self.seams.rows_at_once(most) == most
        return max(1, num_rows) if is_one_call else most

    def _most_rows(self, num_rows: int, failure: Exception | None = None) -> int:
        """Returns the rows of the rank that goes on with most of them."""
        counts = [row[0] for row in self.ranks.gather_rows([[num_rows]])]
        if _HAS_FAILED in counts:
            self.ranks.raise_failure(failure)
        return max(counts)


def _numbered(ids: Sequence[int], number: int) -> _NumberedIds:
    numbered = _NumberedIds(ids)
    numbered.number = number
    return numbered
