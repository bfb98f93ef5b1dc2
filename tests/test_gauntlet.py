"""Hostile completions: every one gets a verdict, in bounded time and memory, and its neighbours get theirs."""

import asyncio
import resource
import threading
import time
from collections.abc import Callable

import pytest
from hostile import GOLD, HOSTILE

from trl_dapo.rewards.equivalence import Grading, Verdict, grade, grade_async
from trl_dapo.rewards.pool import MEMORY_BYTES, GradingPool


NUM_WORKERS = 2
# A right and a wrong neighbour of the hostile completions, neither decided by the exact path.
NEIGHBOURS = [(r"\boxed{\frac{2}{\sqrt{2}}}", Verdict.CORRECT), (r"\boxed{\frac{3}{\sqrt{2}}}", Verdict.WRONG)]


def in_this_thread(golds: list[str], completions: list[str], pool: GradingPool) -> list[Grading]:
    return grade(golds, completions, pool)


def in_another_thread(golds: list[str], completions: list[str], pool: GradingPool) -> list[Grading]:
    gradings: list[Grading] = []
    thread = threading.Thread(target=lambda: gradings.extend(grade(golds, completions, pool)))
    thread.start()
    thread.join()
    return gradings


def in_an_event_loop(golds: list[str], completions: list[str], pool: GradingPool) -> list[Grading]:
    async def main() -> list[Grading]:
        grading = asyncio.create_task(grade_async(golds, completions, pool))
        num_ticks = 0
        while not grading.done():
            await asyncio.sleep(0.01)
            num_ticks += 1
        assert num_ticks > 10  # the loop went on while the workers worked
        return await grading

    return asyncio.run(main())


def run_gauntlet(cpu_seconds: float, grade_all: Callable[..., list[Grading]]) -> tuple[list[Grading], float, int]:
    """Grades all hostile completions between their neighbours; returns also wall seconds and forks lost."""
    completions = [text for hostile in HOSTILE.values() for text in (NEIGHBOURS[0][0], hostile, NEIGHBOURS[1][0])]
    with GradingPool(NUM_WORKERS, cpu_seconds) as pool:
        assert grade([GOLD], [r"\boxed{x}"], pool)[0].verdict is Verdict.WRONG  # the workers are there
        start = time.monotonic()
        gradings = grade_all([GOLD] * len(completions), completions, pool)
        return gradings, time.monotonic() - start, pool.num_restarts


def check_gauntlet(gradings: list[Grading], seconds: float, num_restarts: int, cpu_seconds: float) -> None:
    assert len(gradings) == 3 * len(HOSTILE)
    verdicts = {name: grading.verdict for name, grading in zip(HOSTILE, gradings[1::3], strict=True)}
    assert Verdict.CORRECT not in verdicts.values(), verdicts
    assert Verdict.UNPARSEABLE_GOLD not in verdicts.values(), verdicts
    assert {grading.verdict for grading in gradings[0::3]} == {NEIGHBOURS[0][1]}
    assert {grading.verdict for grading in gradings[2::3]} == {NEIGHBOURS[1][1]}
    # The bound in CPU time is one limit per hostile completion, shared by the workers. Wall time is up to eight times
    # that on a busy machine, with a second for each worker that has to start anew.
    assert seconds < 8 * len(HOSTILE) * cpu_seconds / NUM_WORKERS + num_restarts + 10
    assert num_restarts <= len(HOSTILE)
    # In KiB: no process that the pool ended had more than its imports and its limit.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < MEMORY_BYTES / 1024 + 300_000


@pytest.mark.parametrize("grade_all", [in_this_thread, in_another_thread, in_an_event_loop])
def test_hostile_completions_are_graded_and_their_neighbours_graded_right(grade_all: Callable[..., list[Grading]]):
    cpu_seconds = 0.15
    check_gauntlet(*run_gauntlet(cpu_seconds, grade_all), cpu_seconds=cpu_seconds)


@pytest.mark.slow
def test_hostile_completions_are_graded_within_the_default_limits():
    check_gauntlet(*run_gauntlet(2.0, in_this_thread), cpu_seconds=2.0)


def test_hostile_golds_say_nothing_about_the_completion():
    golds = [HOSTILE[name] for name in ("quotient of huge powers", "memory: giant power", "factorial")]
    with GradingPool(NUM_WORKERS, cpu_seconds=0.25) as pool:
        # The second completion of a group must not wait for the limit again.
        start = time.monotonic()
        gradings = grade([gold for gold in golds for _ in range(50)], [r"\boxed{\sqrt{3}}"] * 150, pool)
        assert time.monotonic() - start < 60
    assert {grading.verdict for grading in gradings[:50]} <= {Verdict.UNPARSEABLE_GOLD, Verdict.GAVE_UP}
    assert Verdict.CORRECT not in {grading.verdict for grading in gradings}


def test_a_hundred_thousand_characters_cost_no_more_than_a_thousand():
    # Both lengths have all that extraction looks at; only what it must not look at differs.
    def seconds_for(num_characters: int) -> float:
        text = "we see that {x} is no more than $y$, so \\frac{1}{2} of it. " * (num_characters // 59)
        completions = [text + r"Hence \boxed{17}.", text + "Answer: 17", text + "#### 17", text]
        best = float("inf")
        for _ in range(7):
            start = time.process_time()
            for _ in range(20):
                grade(["17"] * len(completions), completions)
            best = min(best, time.process_time() - start)
        return best

    short, long = seconds_for(2_500), seconds_for(100_000)
    assert long < 2 * short
