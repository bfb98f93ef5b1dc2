"""
One rank of many: the product's own code runs on it, and what the other ranks would bring is foretold.

So the work that each rank does for a batch, and the bytes that it sends and gets, can be measured for 1,024 ranks in one
process. Nothing is generated: lengths and verdicts come from `streaming_engines.Outcomes`. What crosses the ranks has the
sizes that it has in earnest, and the contents where a decision depends on them.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from streaming_engines import Outcomes, Setting

from trl_dapo import DAPOConfig
from trl_dapo.ranks.collectives import PendingRows, Ranks
from trl_dapo.ranks.rollout import Rollout
from trl_dapo.refill.rounds import Sampled
from trl_dapo.report.batch_metrics import completion_metrics, ledger_metrics, overlong_metrics
from trl_dapo.sampling.judge import GroupJudge, RowFacts
from trl_dapo.sampling.placement import deal_prompts
from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.streaming.dynamic_sampler import make_dynamic_sampler
from trl_dapo.streaming.group_grader import GroupGrader
from trl_dapo.streaming.local_groups import LocalGroups
from trl_dapo.vllm_engine.sequence_engine import Decoded


PROMPT_TOKENS = 300
NUM_ROWS = 17_398  # of DAPO-Math-17k
TOKENS_PER_EXCHANGE = 200  # for each sequence: an engine decodes fewer, and there are more exchanges
NUM_REWARDS = 2  # correctness and the overlong punishment


class LoneRank(Ranks):
    """
    Rank 0 of W, with the others foretold.

    Attributes:
        others (`Callable[[torch.Tensor], torch.Tensor]`):
            Given what this rank brings to a gather, returns what all ranks bring, rank-major.
        sent, received (`Counter`):
            Bytes of this rank by operation, and under `<operation>s` how often.
    """

    def __init__(self, num_ranks: int):
        self.rank, self.num_ranks, self.device = 0, num_ranks, torch.device("cpu")
        self.others: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor.repeat(num_ranks, 1)
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()

    def gather_objects(self, objects: list[Any]) -> list[Any]:
        """Fails: in a batch none are gathered, unless logged columns or the record of groups are asked for."""
        raise AssertionError("objects crossed the ranks")

    def _gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._count("gather", tensor)

    def _begin_gather(self, tensor: torch.Tensor) -> tuple[Callable[[], bool], Callable[[], torch.Tensor]]:
        gathered = self._count("exchange", tensor)
        return lambda: True, lambda: gathered

    def _all_to_all(self, send: torch.Tensor, send_sizes: list[int], receive_sizes: list[int]) -> torch.Tensor:
        # A rank keeps what it has for itself: there is nothing of that.
        assert send_sizes[0] == receive_sizes[0] == 0
        self.sent["move"] += send.nbytes
        self.received["move"] += 4 * sum(receive_sizes)
        return torch.zeros(sum(receive_sizes), dtype=torch.int32)

    def _count(self, operation: str, tensor: torch.Tensor) -> torch.Tensor:
        gathered = self.others(tensor)
        assert len(gathered) == self.num_ranks * len(tensor)
        self.sent[operation] += tensor.nbytes * (self.num_ranks - 1)
        self.received[operation] += gathered.nbytes - tensor.nbytes
        self.sent[f"{operation}s"] += 1
        return gathered


class Stopwatch:
    """CPU seconds of this thread by part of the work. A part inside another one counts for itself."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._open: list[str] = []
        self._last = time.thread_time()

    @contextmanager
    def part(self, name: str) -> Any:
        """Counts what is done inside for a part."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Counts a method of an object for a part."""
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return method(*args, **kwargs)

        setattr(owner, name, timed)

    def _switch(self) -> None:
        now = time.thread_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._last
        self._last = now


class LoneRun:
    """
    Batches on rank 0 of W, by `DynamicSampler`, in rounds or (`refill="stream"`) group by group.

    Args:
        setting (`Setting`):
            Batch, ranks, and what the prompts give.
        ranks (`Ranks`, *optional*):
            A rank that really has others, to compare with.
        **options:
            Fields of `DAPOConfig`.
    """

    def __init__(self, setting: Setting, ranks: Any = None, **options: Any):
        self.setting, self.outcomes = setting, Outcomes(setting)
        self.ranks, self.watch = ranks or LoneRank(setting.num_ranks), Stopwatch()
        # Of groups of other ranks, by position: tokens to come of the longest completion. And those done, by rank.
        self._left: dict[int, int] = {}
        self._judged: dict[int, list[int]] = {}
        rows = setting.num_groups * setting.num_generations
        args = DAPOConfig(
            output_dir="unused",
            per_device_train_batch_size=rows,
            num_generations=setting.num_generations,
            max_completion_length=setting.max_tokens,
            use_cpu=True,
            bf16=False,
            report_to="none",
            **options,
        )
        judge = GroupJudge(filter_columns=[0])
        self.sampler = make_dynamic_sampler(
            args,
            self.ranks,
            [{"prompt": "?"}] * NUM_ROWS,  # type: ignore[arg-type]
            self._groups() if args.refill == "stream" else self._sample,
            judge,
            num_rewards=NUM_REWARDS,
            score=lambda rollouts: [torch.zeros(len(rollout.completion_ids)) for rollout in rollouts],
        )
        self.free_length = args.free_length
        self._draws: list[int] = []
        source = self.sampler.source
        draw = source.draw

        def note(num_prompts: int) -> list[Any]:
            draws = draw(num_prompts)
            self._draws = [one.position for one in draws]
            return draws

        source.draw = note  # type: ignore[method-assign]
        refill: Any = self.sampler.refill
        self.watch.wrap(source, "draw", "draw prompts")
        self.watch.wrap(judge, "judge", "judge groups")
        self.watch.wrap(refill.planner, "plan", "plan")
        self.watch.wrap(refill.planner, "groups_in_flight", "plan")
        self.watch.wrap(self.sampler.assembler, "assemble", "lay out and move")
        self.watch.wrap(self.sampler, "_carry", "carry")
        if args.refill == "stream":
            self.watch.wrap(refill, "_tell", "exchanges")
            self.watch.wrap(refill, "_learn", "exchanges")
            self.watch.wrap(refill, "_adjust", "start and give up")
            begin = self.ranks.begin_gather_rows

            def begin_timed(rows: Sequence[Sequence[int]]) -> PendingRows:
                pending = begin(rows)

                def wait() -> list[list[int]]:
                    with self.watch.part("exchanges"):
                        return pending.wait()

                return PendingRows(pending.is_done, wait)

            self.ranks.begin_gather_rows = begin_timed  # type: ignore[method-assign]

    def next_batch(self, policy_step: int) -> Any:
        """Collects a batch and makes its figures, and returns its collection."""
        with self.watch.part("collect"):
            self.batch = self.sampler.collect(policy_step)
            collection = self.batch.ledger
            with self.watch.part("figures"):
                ledger_metrics(collection)
                completion_metrics(collection.sampled)
                overlong_metrics(collection.sampled, self.free_length, penalty_column=1)
        return collection

    def rewards(self, position: int) -> list[list[float]]:
        """Returns the rewards of a group, shape `(G, F)`: half right, or all wrong."""
        good = self.outcomes.is_informative(position)
        return [[float(good and sample % 2), 0.0] for sample in range(self.setting.num_generations)]

    def rollout(self, position: int, sample: int) -> Rollout:
        """Returns a rollout of the length that is foretold, as an engine gives it."""
        length = self.outcomes.lengths(position)[sample]
        return Rollout(
            torch.zeros(PROMPT_TOKENS, dtype=torch.int32), torch.ones(length, dtype=torch.int32), torch.zeros(length)
        )

    def _sample(self, inputs: Sequence[Any], keys: list[SequenceKey]) -> Sampled:
        with self.watch.part("not ours"):
            order = deal_prompts(len(self._draws), self.setting.num_ranks)
            positions = [self._draws[number] for number in order]
            lengths = [length for position in positions for length in self.outcomes.lengths(position)]
            facts = torch.tensor([[*RowFacts(PROMPT_TOKENS, length, 0), 10**6] for length in lengths])
            self.ranks.others = lambda mine: facts
            rewards = torch.tensor([reward for position in positions for reward in self.rewards(position)])
            rollouts = [self.rollout(*key) for key in keys]
            local = [RowFacts(PROMPT_TOKENS, len(rollout.completion_ids), 0) for rollout in rollouts]
        return Sampled(rollouts, rewards.tolist(), local)

    # Group by group

    def _groups(self) -> LocalGroups:
        self.engine = ForetoldEngine(self)
        self.ranks.others = self._tell_of_others
        grader = GroupGrader(self._grade, self.ranks.device)
        return LocalGroups(self.engine, grader, lambda rows: [[0] * PROMPT_TOKENS] * len(rows))

    def _grade(self, groups: list[Any]) -> None:
        for group in groups:
            group.rewards = self.rewards(group.draw.position)
            for sample in range(self.setting.num_generations):
                rollout = self.rollout(group.draw.position, sample)
                group.rollouts.append(rollout)
                group.facts.append(RowFacts(PROMPT_TOKENS, len(rollout.completion_ids), 0))

    def _tell_of_others(self, mine: torch.Tensor) -> torch.Tensor:
        with self.watch.part("not ours"):
            gathered = mine.new_full((self.setting.num_ranks, *mine.shape), -1)
            gathered[0] = mine
            (self._tell_news if mine.shape[1] == 2 else self._tell_groups)(gathered)
            return gathered.flatten(0, 1)

    def _tell_news(self, gathered: torch.Tensor) -> None:
        """Lets the groups of the other ranks come nearer to their ends, and says which are there."""
        setting, in_flight = self.setting, self.sampler.refill._flow.in_flight
        busy, most = Counter(in_flight.values()), gathered.shape[1] - 1
        idle = [max(0, setting.num_slots - setting.num_generations * busy[rank]) for rank in range(setting.num_ranks)]
        gathered[1:, 0, 0] = 0
        gathered[1:, 0, 1] = torch.tensor(idle[1:])
        gathered[1:, 1:, 1] = 0
        told: Counter[int] = Counter()
        for position, rank in in_flight.items():
            if rank:
                left = self._left.setdefault(position, max(self.outcomes.lengths(position))) - TOKENS_PER_EXCHANGE
                self._left[position] = left
                if left <= 0 and told[rank] < most:
                    told[rank] += 1
                    is_good = self.outcomes.is_informative(position)
                    gathered[rank, told[rank]] = torch.tensor([position, is_good])
                    self._judged.setdefault(rank, []).append(position)

    def _tell_groups(self, gathered: torch.Tensor) -> None:
        gathered[1:, 0] = 0
        gathered[1:, 0, 2] = 10**6
        for rank, positions in self._judged.items():
            for place, position in enumerate(positions, start=1):
                lengths = self.outcomes.lengths(position)
                facts = [number for length in lengths for number in RowFacts(PROMPT_TOKENS, length, 0)]
                rewards = torch.tensor(self.rewards(position), dtype=torch.float64).flatten().view(torch.int64)
                step = self.sampler.refill._policy_step
                gathered[rank, place] = torch.cat([torch.tensor([position, step, *facts]), rewards])
        self._judged = {}


class ForetoldEngine:
    """The engine of this rank: all its sequences get as many tokens at each step."""

    def __init__(self, run: LoneRun):
        self.run, self.num_slots = run, run.setting.num_slots
        self._left: dict[SequenceKey, tuple[int, int]] = {}

    @property
    def num_unfinished(self) -> int:
        """Sequences that were submitted and are not done."""
        return len(self._left)

    def begin(self) -> None:
        """There are no weights to load."""

    def submit(self, key: SequenceKey, prompt_ids: list[int], prefix: list[int]) -> None:
        """Takes a sequence, with what it has already."""
        self._left[key] = 0, self.run.outcomes.lengths(key.position)[key.sample] - len(prefix)

    def step(self) -> dict[SequenceKey, Decoded]:
        """Decodes, and returns the sequences that are done."""
        with self.run.watch.part("not ours"):
            finished = []
            for key, (decoded, left) in self._left.items():
                more = min(TOKENS_PER_EXCHANGE, left)
                self._left[key] = decoded + more, left - more
                finished += [key] if left == more else []
            return self.withdraw(finished)

    def withdraw(self, keys: Iterable[SequenceKey]) -> dict[SequenceKey, Decoded]:
        """Stops sequences, and returns what they got."""
        numbers = {key: self._left.pop(key)[0] for key in list(keys) if key in self._left}
        return {key: Decoded([1] * number, [-0.5] * number) for key, number in numbers.items()}
