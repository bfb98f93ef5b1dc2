"""Whether each server has the weights that train: what it says of a few texts, right after they came."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch

from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.errors import StaleEngineError
from trl_dapo.ranks.rollout import Rollout
from trl_dapo.vllm_engine.canary import Comparison, as_integers

from .connection import NoAnswerError
from .generation import ServerGeneration


_NUM_TEXTS = 2
_NUM_TOKENS = 64


class ServerCanary:
    """
    Compares the log-probabilities that each server gives to the tokens of a few texts with the trained model's.

    It asks all servers, and before anything is sampled: a batch of tokens says nothing of a server that sampled none of them.

    Args:
        args (`DAPOConfig`):
            The trainer's configuration: `vllm_check_interval` and `vllm_max_logp_gap`. At another temperature than 1 it
            compares nothing: the trained model's log-probabilities are after temperature, and these are before.
        generation (`ServerGeneration`):
            Owns the servers.
        score (`Callable[[list[Rollout]], list[torch.Tensor]]`):
            Returns the log-probabilities of completions under the trained model. Called on all ranks at once, with equally
            many rollouts.
    """

    def __init__(
        self,
        args: DAPOConfig,
        generation: ServerGeneration,
        score: Callable[[list[Rollout]], list[torch.Tensor]],
    ):
        self.interval = args.vllm_check_interval if args.temperature == 1.0 else 0
        self.limit = args.vllm_max_logp_gap
        self.generation = generation
        self.score = score
        self.texts: list[list[int]] = []
        self._next_check = 1

    def watch(self, texts: Iterable[Sequence[int]]) -> None:
        """Takes these texts, in tokens, for the next comparison: the beginnings of the first few."""
        self.texts = [list(text[: _NUM_TOKENS + 1]) for text in itertools.islice(texts, _NUM_TEXTS)]

    def check(self) -> dict[str, float]:
        """
        Compares, if it is due. A collective.

        Returns:
            `dict[str, float]`: the mean gap in nats of the server where it is largest. Empty: it was not due, or there was
            nothing to compare.

        Raises:
            `StaleEngineError`: on all ranks, when the gap of a server is beyond the limit.
            `VLLMServerError`, `RankFailedError`: a server does not say.
        """
        generation = self.generation
        if not self.interval or generation.num_syncs < self._next_check:
            return {}
        ranks, servers = generation.ranks, generation.servers.all
        # Each server is asked by one rank.
        num_each = -(-len(servers) // ranks.num_ranks)
        numbers = [ranks.rank + turn * ranks.num_ranks for turn in range(num_each)]
        nothing = Rollout.from_lists([0], [], [])
        rollouts = [nothing] * (num_each * _NUM_TEXTS)

        def ask() -> None:
            for turn, number in enumerate(numbers):
                if number < len(servers) and not servers[number].is_lost:
                    for place, text in enumerate(self.texts):
                        rollouts[turn * _NUM_TEXTS + place] = self._ask(number, text) or nothing

        ranks.together(ask)
        scored = self.score(rollouts)
        rows = []
        for turn, number in enumerate(numbers):
            of_server = slice(turn * _NUM_TEXTS, (turn + 1) * _NUM_TEXTS)
            engine = [logps for rollout in rollouts[of_server] if (logps := rollout.sampling_logps) is not None]
            rows.append([number, *as_integers(torch.cat(engine).double(), torch.cat(scored[of_server]).double())])
        compared = [Comparison(*row) for row in ranks.gather_rows(rows) if row[1]]
        if not compared:
            return {}
        self._next_check = generation.num_syncs + self.interval
        worst = max(compared, key=lambda comparison: comparison.severity)
        if self.limit is not None and worst.severity > self.limit:
            raise StaleEngineError(
                worst.engine_logp,
                worst.trainer_logp,
                worst.gap,
                self.limit,
                worst.num_compared,
                engine=f"server at {servers[worst.rank].address}",
            )
        return {"vllm/server_logp_gap": worst.gap} if worst.num_compared else {}

    def _ask(self, number: int, text: Sequence[int]) -> Rollout | None:
        if len(text) < 2:
            return None
        try:
            logps = self.generation.prompt_logps(number, text)
        except NoAnswerError:
            return None  # whether it is lost, the requests find out
        return Rollout.from_lists(text[:1], text[1:], logps[1:])
