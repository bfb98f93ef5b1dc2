"""Which of the answers to a problem are the same answer, and what they and their correctness come to."""

from collections.abc import Hashable, Sequence
from fractions import Fraction

from trl_dapo.grading.equivalence import Grade, grade
from trl_dapo.grading.rationals import parse_rational

from .k_metrics import avg_at_k, maj_at_k, pass_at_k


CORRECT: Hashable = ("correct",)
"""The class of all answers that were graded as correct; no text and no number."""


def answer_classes(
    answers: Sequence[Sequence[str | None]], is_correct: Sequence[Sequence[bool]]
) -> list[list[Hashable]]:
    """
    Sorts the answers of each problem into classes.

    Correct answers are one class. Of the others, two are the same if they are the same rational number, the same text
    but for blanks, or the same as the grader finds. A completion without an answer has the class `None`: it does not vote.

    Args:
        answers (`Sequence[Sequence[str | None]]`):
            For each problem the answers that were read from its completions.
        is_correct (`Sequence[Sequence[bool]]`):
            Whether each is correct.

    Returns:
        `list[list[Hashable]]`: The class of each answer. Classes of different problems have nothing to do with each other.

    Example:

    >>> answer_classes([["7", "7.0", None, "8", "Monday"]], [[False, False, False, True, False]])
    [[Fraction(7, 1), Fraction(7, 1), None, ('correct',), 'Monday']]
    """
    keys = [
        [_key(answer, correct) for answer, correct in zip(texts, marks, strict=True)]
        for texts, marks in zip(answers, is_correct, strict=True)
    ]
    # One call of the grader for all pairs of all problems, as what is not cheap goes to worker processes.
    texts_of = [
        {key: text for key, text in zip(row, texts, strict=True) if key not in (None, CORRECT) and text is not None}
        for row, texts in zip(keys, answers, strict=True)
    ]
    pairs = [
        (problem, first, second)
        for problem, texts in enumerate(texts_of)
        for place, second in enumerate(texts)
        for first in list(texts)[:place]
        if not (isinstance(first, Fraction) and isinstance(second, Fraction))
    ]
    graded = grade(
        [texts_of[problem][first] for problem, first, _ in pairs],
        [f"\\boxed{{{texts_of[problem][second]}}}" for problem, _, second in pairs],
    )
    leader: dict[tuple[int, Hashable], Hashable] = {}
    for (problem, first, second), result in zip(pairs, graded, strict=True):
        # The pairs of an answer come in order, so the first that leads a class of its own wins.
        if result.grade is Grade.CORRECT and (problem, first) not in leader:
            leader.setdefault((problem, second), first)
    return [[leader.get((problem, key), key) for key in row] for problem, row in enumerate(keys)]


def _key(answer: str | None, correct: bool) -> Hashable:
    if correct:
        return CORRECT
    if answer is None:
        return None
    value = parse_rational(answer)
    return value if value is not None else "".join(answer.split())


def problem_figures(
    answers: Sequence[Sequence[str | None]], is_correct: Sequence[Sequence[bool]]
) -> list[dict[str, float]]:
    """
    Returns what grading says of each problem: `avg@k`, and `maj@k` and `pass@k` for k and the powers of 2 below it.

    Args:
        answers (`Sequence[Sequence[str | None]]`):
            For each problem the answers that were read from its completions.
        is_correct (`Sequence[Sequence[bool]]`):
            Whether each is correct.

    Example:

    >>> problem_figures([["7", "7", "8"]], [[False, False, True]])[0]["maj@3"]
    0.0
    """
    figures = []
    for votes, marks in zip(answer_classes(answers, is_correct), is_correct, strict=True):
        num_samples = len(marks)
        values = {f"avg@{num_samples}": avg_at_k(marks)}
        for k in sorted({num_samples, *(2**power for power in range(1, num_samples.bit_length()))}):
            if k <= num_samples:
                values[f"maj@{k}"] = maj_at_k(votes, CORRECT, k)
                values[f"pass@{k}"] = pass_at_k(num_samples, sum(marks), k)
        figures.append(values)
    return figures
