"""What a run keeps of the groups that it sampled, trained or not, for people to read."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate.logging import get_logger

from trl_dapo.config.batch_shape import BatchShape
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.ranks.rollout import Rollout
from trl_dapo.sampling.judge import Fate, GroupVerdict, Location, SampledGroup
from trl_dapo.sampling.placement import place_groups
from trl_dapo.sampling.prompt_stream import Draw
from trl_dapo.sampling.refill_ledger import RefillLedger

from .group_sample import GroupSample
from .shards import RolloutShards, as_text, completion_columns, turn_columns


logger = get_logger(__name__)

# Where datasets have the gold; the first is TRL's.
_SOLUTION_COLUMNS = ("solution", "answer", "ground_truth")


@dataclass(frozen=True, slots=True)
class RewardColumns:
    """
    The reward functions of a run.

    Attributes:
        names (`list[str]`):
            Their names, F of them.
        weights (`list[float]`):
            Their weights.
        filter_columns (`list[int]`):
            Which of them judge groups, the first of them most.
    """

    names: list[str]
    weights: list[float]
    filter_columns: list[int]


@dataclass(frozen=True, slots=True)
class _Kept:
    """
    A group that goes into the record.

    Attributes:
        group (`SampledGroup`):
            The group, as every rank knows it.
        texts (`list[tuple[int, Rollout]]`):
            Number and rollout of each completion that this rank generated.
        row (`Mapping`, *optional*):
            The dataset row, on the rank that generated the first completion.
    """

    group: SampledGroup
    texts: list[tuple[int, Rollout]]
    row: Mapping[str, Any] | None


class RolloutRecorder:
    """
    Keeps a random `num_groups_to_log` of the groups sampled for each generation batch, and writes them once it is known
    what became of them.

    The choice is a function of (seed, batch, stream position), so all ranks keep the same groups, whatever their verdict.
    The texts of the kept groups, and no others, go to the first rank, which writes them: every group stands in the record
    once, whole, also where it straddles ranks. A group that is carried waits until it trains or is too old.

    Args:
        shape (`BatchShape`):
            The shape of a generation batch.
        ranks (`Ranks`):
            The ranks of the run.
        sample (`GroupSample`):
            Chooses the groups.
        rewards (`RewardColumns`):
            The reward functions.
        output_dir (`str`):
            The run's folder.
        decode (`Callable[[list[int], list[int], bool], Any]`):
            Returns a completion from the tokens of prompt and completion, and whether it is a conversation: checkpoints have
            no texts of completions.
        has_turns (`bool`, *optional*, defaults to `False`):
            Whether tools, environments or a rollout function take part in completions.

    Attributes:
        latest (`list[dict]`):
            On the first rank, the completions of the batch that was written last.
        latest_facts (`dict`):
            What is known of that batch as a whole.
    """

    def __init__(
        self,
        shape: BatchShape,
        ranks: Ranks,
        sample: GroupSample,
        rewards: RewardColumns,
        output_dir: str,
        decode: Callable[[list[int], list[int], bool], Any],
        has_turns: bool = False,
    ):
        self.shape = shape
        self.ranks = ranks
        self.sample = sample
        self.rewards = rewards
        self.output_dir = output_dir
        self.decode = decode
        self.has_turns = has_turns
        self.filter_reward = rewards.names[rewards.filter_columns[0]]
        self._shards: RolloutShards | None = None
        self.latest: list[dict[str, Any]] = []
        self.latest_facts: dict[str, Any] = {}
        self._has_failed = False
        self._num_observed: Counter[str] = Counter()
        self._kept: dict[int, _Kept] = {}
        self._carried: dict[int, _Kept] = {}

    def observe(
        self,
        groups: Sequence[SampledGroup],
        rollout_at: Callable[[Location], Rollout],
        row_of: Callable[[Draw], Mapping[str, Any]],
    ) -> None:
        """
        Takes groups that were just judged. No exchange between ranks.

        Args:
            groups (`Sequence[SampledGroup]`):
                The groups, the same on all ranks.
            rollout_at (`Callable[[Location], Rollout]`):
                Returns a rollout of this rank.
            row_of (`Callable[[Draw], Mapping]`):
                Returns the dataset row of a draw; asked on the rank that generated its first completion.
        """
        for group in groups:
            self._num_observed[group.verdict.value] += 1
            position = group.draw.position
            is_chosen, dropped = self.sample.offer(position)
            if dropped is not None:
                del self._kept[dropped]
            if not is_chosen:
                continue
            mine = [
                (sample, rollout_at(at)) for sample, at in enumerate(group.locations) if at.rank == self.ranks.rank
            ]
            self._kept[position] = _Kept(
                group,
                [(sample, _shown(rollout)) for sample, rollout in mine],
                row_of(group.draw) if mine and mine[0][0] == 0 else None,
            )

    def observe_plain(
        self,
        groups: Sequence[SampledGroup],
        inputs: Sequence[Mapping[str, Any]],
        completions: Sequence[Any],
        logged: Mapping[str, Sequence[Any]],
    ) -> None:
        """
        Takes the groups of a batch that was drawn without dynamic sampling.

        Args:
            groups (`Sequence[SampledGroup]`):
                The groups of all ranks, without locations: group i has rows i * G to i * G + G - 1 of the batch.
            inputs (`Sequence[Mapping]`):
                The dataset rows of this rank.
            completions (`Sequence[Any]`):
                The completions of this rank.
            logged (`Mapping[str, Sequence]`):
                Columns that reward functions logged for them.
        """
        columns = {name: values for name, values in logged.items() if len(values) == len(completions)}
        size, nothing = self.shape.num_generations, torch.empty(0, dtype=torch.int32)

        def locations(number: int) -> list[Location]:
            rows = range(number * size, (number + 1) * size)
            return [Location(0, *divmod(row, len(completions))) for row in rows]

        def rollout_at(at: Location) -> Rollout:
            extra = {name: values[at.row] for name, values in columns.items()}
            return Rollout(nothing, nothing, extra_logs=extra, completion=completions[at.row])

        self.observe(
            [replace(group, locations=locations(number)) for number, group in enumerate(groups)],
            rollout_at,
            lambda draw: inputs[draw.position * size % len(completions)],
        )

    def write(self, ledger: RefillLedger | None, advantages: Iterable[float], step: int) -> None:
        """
        Writes the groups of a batch that is about to train. All ranks call it.

        Args:
            ledger (`RefillLedger`, *optional*):
                What became of the groups. `None`: the batch was drawn without dynamic sampling, and all of them train.
            advantages (`Iterable[float]`):
                Advantage of each row of the batch over all ranks, rank-major.
            step (`int`):
                Optimizer steps taken so far.
        """
        pending = self._take_pending()
        if ledger is None:
            fates = dict.fromkeys(pending, Fate.TRAINED)
            layout: list[tuple[int, int] | None] = [
                divmod(row, self.shape.num_generations)
                for row in range(self.shape.num_groups * self.shape.num_generations)
            ]
            waiting: set[int] = set()
        else:
            layout = self._layout(ledger)
            surplus = {group.draw.position for group in ledger.surplus}
            waiting = surplus if ledger.keeps_surplus else set()
            fates = dict.fromkeys(pending, Fate.FILTERED)
            fates |= {at: Fate.STALE for at, kept in pending.items() if kept.group.verdict is GroupVerdict.INFORMATIVE}
            fates |= dict.fromkeys(surplus, Fate.SURPLUS)
            fates |= {group.draw.position: Fate.TRAINED for group in ledger.accepted}
        self._carried = {at: kept for at, kept in pending.items() if at in waiting}
        advantage_of = dict(zip(layout, advantages, strict=True))
        num_carried = 0 if ledger is None else ledger.num_carried
        num_accepted = self._num_observed["informative"] if ledger is None else len(ledger.accepted)
        final = {at: kept for at, kept in pending.items() if at not in waiting}
        self._write(final, fates, advantage_of, step, num_accepted - num_carried)

    def close(self, step: int) -> None:
        """Writes what is left: groups that were kept for a batch which does not come. All ranks call it."""
        pending = self._take_pending()
        if pending:
            is_informative = {at: kept.group.verdict is GroupVerdict.INFORMATIVE for at, kept in pending.items()}
            fates = {at: Fate.SURPLUS if mixed else Fate.FILTERED for at, mixed in is_informative.items()}
            self._carried = {}
            self._write(pending, fates, {}, step, 0)

    def state_dict(self, row_of: Callable[[Draw], Mapping[str, Any]]) -> dict[str, Any]:
        """
        Returns what this rank keeps of groups that are not yet written: those sampled ahead, and those that wait.

        There is no text in it that a resumed run can read or decode: completions come from their tokens, prompt and gold from
        the dataset. A stream holds the rows of these groups too: it is read again from the first group on that goes on or waits.

        Args:
            row_of (`Callable[[Draw], Mapping]`):
                Returns the dataset row of a draw.
        """
        return {
            "kept": [_state_of(kept, row_of) for kept in self._kept.values()],
            "carried": [_state_of(kept, row_of) for kept in self._carried.values()],
            "num_observed": dict(self._num_observed),
            "sample": self.sample.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], row_of: Callable[[Draw], Mapping[str, Any]]) -> None:
        """
        Continues from a saved state.

        Args:
            state (`Mapping`):
                What `state_dict` returned.
            row_of (`Callable[[Draw], Mapping]`):
                Returns the dataset row of a draw.
        """
        kept, carried = ([self._kept_of(one, row_of) for one in state[name]] for name in ("kept", "carried"))
        self._kept = {one.group.draw.position: one for one in kept}
        self._carried = {one.group.draw.position: one for one in carried}
        self._num_observed = Counter(state["num_observed"])
        self.sample.load_state_dict(state["sample"])

    def log(self, logs: Mapping[str, Any]) -> None:
        """Adds an entry of `trainer.state.log_history` to the record."""
        self._on_disk(lambda shards: shards.add_logs(logs))

    def _take_pending(self) -> dict[int, _Kept]:
        pending, self._kept = self._carried | self._kept, {}
        self.sample.next_batch()
        return pending

    def _layout(self, ledger: RefillLedger) -> list[tuple[int, int] | None]:
        """Returns the group, by its stream position, and the number of the completion in each row of the batch."""
        moves = place_groups(
            [[at.rank for at in group.locations] for group in ledger.accepted],
            num_groups=ledger.num_groups,
            num_generations=self.shape.num_generations,
            num_ranks=self.ranks.num_ranks,
        )
        accepted = [group.draw.position for group in ledger.accepted]
        return [None if move.group is None else (accepted[move.group], move.sample) for move in moves]

    def _write(
        self,
        final: Mapping[int, _Kept],
        fates: Mapping[int, Fate],
        advantage_of: Mapping[tuple[int, int] | None, float],
        step: int,
        num_trained: int,
    ) -> None:
        counts, self._num_observed = self._num_observed, Counter()
        num_informative = counts.pop(GroupVerdict.INFORMATIVE.value, 0)
        texts = self.ranks.gather_on(
            0,
            [
                (
                    at,
                    sample,
                    self._texts(rollout),
                    *(_row_texts(kept.row) if sample == 0 else ()),
                )
                for at, kept in final.items()
                for sample, rollout in kept.texts
            ],
        )
        if self.ranks.rank:
            return
        rows = []
        prompt: str | None = None
        solution: str | None = None
        for at, sample, of_rollout, *row_texts in sorted(texts, key=lambda text: text[:2]):
            if row_texts:
                prompt, solution = row_texts
            columns = {"step": step, "fate": fates[at].value, "advantage": advantage_of.get((at, sample))}
            columns |= {"prompt": prompt, "solution": solution, **of_rollout}
            columns |= turn_columns(final[at].group, sample) if self.has_turns else {}
            rows.append(
                columns | completion_columns(final[at].group, sample, self.rewards.names, self.rewards.weights)
            )
        facts = {
            "step": step,
            "filter_reward": self.filter_reward,
            "num_generations": self.shape.num_generations,
            # Of all groups sampled for the batch, as `dapo/tokens/<fate>` counts them.
            "groups": {"trained": num_trained, "surplus": num_informative - num_trained, **counts},
        }
        self._on_disk(lambda shards: shards.add(rows, facts))
        self.latest, self.latest_facts = rows, facts

    def _texts(self, rollout: Rollout) -> dict[str, str | None]:
        """Returns the columns that are the text of a completion; the prompt where an environment added to it."""
        columns = {"completion": as_text(rollout.completion), "extra": _as_json(rollout.extra_logs)}
        if rollout.prompt is not None:
            columns["prompt"] = as_text(rollout.prompt)
        if self.has_turns and len(rollout.completion_ids):
            columns["stretches"] = json.dumps(rollout.stretches)
        return columns

    def _kept_of(self, state: Mapping[str, Any], row_of: Callable[[Draw], Mapping[str, Any]]) -> _Kept:
        """Inverse of `_state_of`."""
        group = SampledGroup.from_state_dict(state["group"])
        texts = []
        for sample, saved in state["texts"]:
            rollout = Rollout.from_state_dict(saved, partial(row_of, group.draw))
            if rollout.completion is None:
                ids = rollout.prompt_ids.tolist(), rollout.completion_ids.tolist()
                rollout = replace(rollout, completion=self.decode(*ids, state["is_conversational"]))
            texts.append((sample, rollout))
        row: Mapping[str, Any] | None = None
        if state.get("has_row"):
            row = row_of(group.draw)
        elif state.get("row") is not None:
            # Earlier releases saved the texts of the row.
            row = dict(zip(("prompt", _SOLUTION_COLUMNS[0]), state["row"], strict=True))
        return _Kept(group, texts, row)

    def _on_disk(self, write: Callable[[RolloutShards], object]) -> None:
        """Writes on the first rank. A full disk ends the record, not the run."""
        if self.ranks.rank or self._has_failed:
            return
        try:
            if self._shards is None:
                self._shards = RolloutShards(self.output_dir, self.rewards.names, self.has_turns)
            write(self._shards)
        except OSError as error:
            self._has_failed = True
            logger.warning(f"The record of rollout groups ends here, because it could not be written: {error}.")


def _shown(rollout: Rollout) -> Rollout:
    """Returns what the record keeps of a rollout until it is written: no log-probabilities."""
    return replace(rollout, sampling_logps=None, old_logps=None)


def _state_of(kept: _Kept, row_of: Callable[[Draw], Mapping[str, Any]]) -> dict[str, Any]:
    # Where this rank sampled none of the group, it has no text of it.
    row = row_of(kept.group.draw) if kept.texts else {}
    return {
        "group": kept.group.state_dict(),
        # With texts where neither tokens nor the dataset tell them: turns of tools, what an environment added to the prompt, and
        # what reward functions logged.
        "texts": [[sample, rollout.state_dict(row)] for sample, rollout in kept.texts],
        "is_conversational": any(isinstance(rollout.completion, list) for _, rollout in kept.texts),
        "has_row": kept.row is not None,
    }


def _row_texts(row: Mapping[str, Any] | None) -> tuple[str | None, str | None]:
    """Returns prompt and gold."""
    if row is None:
        return None, None
    solution = next((row[column] for column in _SOLUTION_COLUMNS if column in row), None)
    return as_text(row.get("prompt")), as_text(solution)


def _as_json(extra: Mapping[str, Any]) -> str | None:
    return json.dumps(extra, ensure_ascii=False, default=str) if extra else None
