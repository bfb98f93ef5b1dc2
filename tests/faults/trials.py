"""One trial: a run is killed, resumed, and compared with the one that was never killed."""

import random

from doomed_training import PHASES
from processes import batches, draw_death, outcome, run, said, trained


def survive(folder, reference, options, seed=0, num_ranks=1, phases=PHASES, doom=None, **kwargs):
    """
    Kills a run once or twice, lets it end, and compares batches, trained rows, weights and log with the reference.

    Args:
        folder: of the run.
        reference: folder of the run of the same options that was never killed.
        options: of the training.
        seed: of the points at which it dies.
        phases: that it may die in.
        doom: phase and number of the point at which the first rank dies, once; `None`: drawn.
        **kwargs: passed on to `run`.

    Returns:
        `list[tuple[str, int, int]]`: phase, number and rank of each death.
    """
    chance = random.Random(seed)
    counts = [outcome(reference, rank)["counts"] for rank in range(num_ranks)]
    num_deaths = chance.choice([1, 1, 2] if len(phases) > 1 else [1])
    deaths = []
    for due, rank in [(doom, 0)] if doom else [draw_death(chance, counts, phases) for _ in range(num_deaths)]:
        codes = run(folder, options, num_ranks, doom=due, doomed_rank=rank, **kwargs)
        # A second death may not come: there is less left to do.
        if codes != [0] * num_ranks:
            assert codes[rank] == -9, said(folder, rank)
            # The others end by themselves, with an error.
            assert 0 not in codes, codes
            deaths.append((*due, rank))
    assert run(folder, options, num_ranks, doom=(), **kwargs) == [0] * num_ranks, said(folder)
    for rank in range(num_ranks):
        mine, its = outcome(folder, rank), outcome(reference, rank)
        where = f"seed {seed}, killed at {deaths}, resumed from step {mine['first_step']}"
        assert batches(folder, rank) == batches(reference, rank), where
        assert trained(folder, rank) == trained(reference, rank), where
        assert mine["weights"] == its["weights"], where
        assert mine["log"] == its["log"], where
    assert deaths
    return deaths
