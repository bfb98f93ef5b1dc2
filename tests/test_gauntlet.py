"""Hostile completions: every one gets a grade, in bounded time and memory, and its neighbours get theirs."""

import asyncio
import resource
import threading
import time
from collections.abc import Callable

import pytest
from hostile import GOLD, HOSTILE, nested

from trl_dapo.grading.equivalence import Grade, GradedAnswer, grade, grade_async
from trl_dapo.grading.pool import MEMORY_BYTES, GradingPool


NUM_WORKERS = 2
# A right and a wrong neighbour of the hostile completions, neither decided by the exact path.
NEIGHBOURS = [(r"\boxed{\frac{2}{\sqrt{2}}}", Grade.CORRECT), (r"\boxed{\frac{3}{\sqrt{2}}}", Grade.WRONG)]


def in_this_thread(golds: list[str], completions: list[str], pool: GradingPool) -> list[GradedAnswer]:
    return grade(golds, completions, pool)


def in_another_thread(golds: list[str], completions: list[str], pool: GradingPool) -> list[GradedAnswer]:
    graded: list[GradedAnswer] = []
    thread = threading.Thread(target=lambda: graded.extend(grade(golds, completions, pool)))
    thread.start()
    thread.join()
    return graded


def in_an_event_loop(golds: list[str], completions: list[str], pool: GradingPool) -> list[GradedAnswer]:
    async def main() -> list[GradedAnswer]:
        grading = asyncio.create_task(grade_async(golds, completions, pool))
        num_ticks = 0
        while not grading.done():
            await asyncio.sleep(0.01)
            num_ticks += 1
        assert num_ticks > 10  # the loop went on while the workers worked
        return await grading

    return asyncio.run(main())


def check_gauntlet(
    cpu_seconds: float, grade_all: Callable[..., list[GradedAnswer]], hostile: dict[str, str] = HOSTILE
) -> None:
    """Grades hostile completions between their neighbours."""
    completions = [text for nasty in hostile.values() for text in (NEIGHBOURS[0][0], nasty, NEIGHBOURS[1][0])]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with GradingPool(NUM_WORKERS, cpu_seconds) as pool:
        graded = grade_all([GOLD] * len(completions), completions, pool)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the workers, which have ended, and of their forks

    assert len(graded) == 3 * len(hostile)
    grades = {name: result.grade for name, result in zip(hostile, graded[1::3], strict=True)}
    assert Grade.CORRECT not in grades.values(), grades
    assert Grade.UNPARSEABLE_GOLD not in grades.values(), grades
    assert {result.grade for result in graded[0::3]} == {NEIGHBOURS[0][1]}
    assert {result.grade for result in graded[2::3]} == {NEIGHBOURS[1][1]}
    assert pool.num_restarts <= len(hostile)
    # One limit per hostile completion, and what it takes to start two workers and fork them anew (a tenth of a second).
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < len(hostile) * (cpu_seconds + 0.1) + NUM_WORKERS * 10
    # Wall time only shows that it did not hang: the machine may have a lot else to do.
    assert time.monotonic() - start < 60 + 20 * len(hostile) * cpu_seconds
    # In KiB: no process had more than its imports and its limit, or than a training had that an earlier test started.
    assert after.ru_maxrss < max(MEMORY_BYTES / 1024 + 300_000, before.ru_maxrss + 1)


def test_hostile_completions_are_graded_and_their_neighbours_graded_right():
    assert len(HOSTILE) >= 40
    check_gauntlet(0.15, in_this_thread)


@pytest.mark.parametrize("grade_all", [in_another_thread, in_an_event_loop])
def test_another_thread_and_an_event_loop_grade_hostile_completions_too(grade_all: Callable[..., list[GradedAnswer]]):
    check_gauntlet(0.15, grade_all, dict(list(HOSTILE.items())[::8]))


@pytest.mark.slow
@pytest.mark.parametrize("grade_all", [in_this_thread, in_another_thread, in_an_event_loop])
def test_the_whole_gauntlet_stays_within_the_default_limits(grade_all: Callable[..., list[GradedAnswer]]):
    check_gauntlet(2.0, grade_all)


def test_a_hostile_gold_costs_one_limit_and_not_one_per_completion():
    gold = nested(r"\sqrt{2+", "2", "}", 100)  # takes longer to read than the limit allows
    with GradingPool(NUM_WORKERS, cpu_seconds=0.05) as pool:
        graded = grade([gold] * 200, [rf"\boxed{{{n}\pi}}" for n in range(200)], pool)
    assert {result.grade for result in graded} == {Grade.UNPARSEABLE_GOLD}
    assert pool.num_restarts <= NUM_WORKERS  # each worker may have been at it when the other found out


def test_the_cost_of_a_completion_hardly_grows_with_its_length():
    # Forty times the text for about twice the time: what is left of the length are a few searches for fixed words.
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
    assert long < 5 * short
