"""Answer equivalence: is the final answer of a completion the gold one?

What is cheap is decided here and now (see [`exact`]); the rest goes to a pool of worker processes, in which the
operating system bounds the CPU time and the memory of each grading. So no text hangs a caller, in whatever thread.
"""

import asyncio
from collections.abc import Sequence

from .exact import Question, grade_cheaply
from .grades import Grade, GradedAnswer
from .pool import GradingPool, shared_pool


__all__ = ["Grade", "GradedAnswer", "grade", "grade_async", "is_equivalent"]


def is_equivalent(gold: str, completion: str) -> GradedAnswer:
    r"""
    Grade the final answer of a completion against a gold solution. See [`grade`] for many at once.

    Two rational numbers are equal if they are the same, if one is a percentage and the other, without the sign, is its
    number or its hundredth, or if one is written as a decimal and both round to the same six places.

    Args:
        gold (`str`):
            A number, a LaTeX expression, a text, or a solution that ends in `\boxed{...}` or `#### n`.
        completion (`str`):
            The text of the completion.

    Returns:
        `GradedAnswer`: The grade, with the two answers that were compared.

    Raises:
        `ImportError`: If sympy is needed and not installed. No text raises anything.

    Example:

    >>> is_equivalent("18", r"It is \boxed{18}.").grade
    <Grade.CORRECT: 'correct'>
    >>> is_equivalent(r"9\pi", r"I first thought $9\pi$, but the answer is 9.")
    GradedAnswer(grade=<Grade.WRONG: 'wrong'>, gold='9\\pi', extracted='9')
    """
    return grade([gold], [completion])[0]


def grade(golds: Sequence[str], completions: Sequence[str], pool: GradingPool | None = None) -> list[GradedAnswer]:
    r"""
    Grade the final answers of completions against their gold solutions, in bounded time and memory.

    Args:
        golds (`list[str]`):
            The gold solution of each completion.
        completions (`list[str]`):
            The texts of the completions, as many.
        pool (`GradingPool`, *optional*):
            Who answers what is not cheap; `None` for the pool that all rewards of the process share. It starts with the
            first such question.

    Returns:
        `list[GradedAnswer]`: One per completion, in order.

    Raises:
        `ValueError`: If there are not as many golds as completions.
        `ImportError`: If sympy is needed and not installed.
        `RuntimeError`: If the pool is closed, or the machine does not let its workers start.

    Example:

    >>> [result.grade.value for result in grade(["18", "Monday"], [r"\boxed{18.0}", "It was on a day."])]
    ['correct', 'no_answer']
    """
    results = [grade_cheaply(gold, completion) for gold, completion in zip(golds, completions, strict=True)]
    questions = [result for result in results if isinstance(result, Question)]
    if not questions:
        return [result for result in results if isinstance(result, GradedAnswer)]
    pool = shared_pool() if pool is None else pool
    comparisons = iter(pool.compare([(question.gold, question.answer) for question in questions]))
    return [result.settle(next(comparisons)) if isinstance(result, Question) else result for result in results]


async def grade_async(
    golds: Sequence[str], completions: Sequence[str], pool: GradingPool | None = None
) -> list[GradedAnswer]:
    """[`grade`] without blocking the event loop."""
    return await asyncio.to_thread(grade, golds, completions, pool)
