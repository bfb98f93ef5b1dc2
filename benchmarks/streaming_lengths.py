"""
Which lengths train: by stream order, and where the first groups to finish are taken.

An answer that is done early is a short one. So a batch of the first informative groups to finish holds the short ones among
those that were started, and the more of them are given up, the shorter.
"""

from typing import Any

import numpy as np
from streaming_engines import Engines, Outcomes, Setting
from streaming_simulation import CONFIDENCE, MAX_BATCHES_PER_ROUND, POLICIES

from trl_dapo.sampling.refill_planner import RefillPlanner


def first_finished(setting: Setting, outcomes: Outcomes, num_batches: int) -> list[int]:
    """
    Returns what trains where the first N informative groups *to finish* are taken, as in a queue of finished groups.

    As many groups are in flight as streaming has at its beginning, and each that ends is followed by the next. Those that a
    batch leaves unfinished are given up, and their prompts are lost.
    """
    engines = Engines(setting)
    left: dict[int, set[int]] = {}
    planner = RefillPlanner(setting.num_groups, CONFIDENCE, MAX_BATCHES_PER_ROUND * setting.num_groups)
    position, trained = 0, []
    for _ in range(num_batches):
        found: list[int] = []
        target = planner.groups_in_flight(setting.num_groups).num_prompts
        while len(found) < setting.num_groups:
            while len(left) < target:
                left[position] = set(range(setting.num_generations))
                lengths = enumerate(outcomes.lengths(position))
                sequences = [((position, sample), num_tokens) for sample, num_tokens in lengths]
                engines.submit(position % setting.num_ranks, sequences)
                position += 1
            for at, sample in engines.advance(engines.next_end):
                left[at].remove(sample)
                if not left[at]:
                    del left[at]
                    planner.observe(outcomes.is_informative(at), 1)
                    found += [at] if outcomes.is_informative(at) else []
        trained += found[: setting.num_groups]
        for at, samples in left.items():
            engines.withdraw(at % setting.num_ranks, [(at, sample) for sample in samples])
        left = {}
    return trained


def length_bias(setting: Setting, num_batches: int) -> dict[str, Any]:
    """Returns the lengths of the completions that train under three policies, and of all informative groups of the stream."""
    outcomes = Outcomes(setting)
    trained = {"first finished": first_finished(setting, outcomes, num_batches)}
    for name in ("rounds", "stream"):
        run = POLICIES[name](setting, outcomes)
        trained[name] = [position for _ in range(num_batches) for position in run.next_batch().trained]
    assert trained["rounds"] == trained["stream"]
    # As far as the longest of them went, and some more.
    everything = range(2 * max(map(max, trained.values())))
    trained["all informative groups"] = [position for position in everything if outcomes.is_informative(position)]
    edges = np.geomspace(32, setting.max_tokens, 29)
    result: dict[str, Any] = {"edges": edges.round(1).tolist()}
    for name, positions in trained.items():
        lengths = np.array([outcomes.lengths(position) for position in positions]).ravel()
        counts, _ = np.histogram(lengths.clip(edges[0], edges[-1]), edges)
        result[name] = {
            "mean": round(float(lengths.mean()), 1),
            "median": float(np.median(lengths)),
            "frac_long": round(float((lengths > setting.max_tokens / 2).mean()), 4),
            "num_completions": len(lengths),
            "counts": counts.tolist(),
        }
    return result
