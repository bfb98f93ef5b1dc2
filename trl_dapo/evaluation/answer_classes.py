"""Which answers to a problem are equivalent, and the metrics of each problem that follow from it."""

from collections.abc import Hashable, Sequence
from fractions import Fraction

from trl_dapo.grading.equivalence import Grade, grade
from trl_dapo.grading.rationals import parse_rational

from .k_metrics import avg_at_k, maj_at_k, pass_at_k


CORRECT: Hashable = ("correct",)
"""The class of all answers that were graded as correct. It differs from the class of every other answer."""


def answer_classes(
    answers: Sequence[Sequence[str | None]], is_correct: Sequence[Sequence[bool]]
) -> list[list[Hashable]]:
    """
    Groups the answers of each problem into classes of equivalent answers.

    All correct answers are one class. Two other answers are equivalent if they are the same rational number, if their texts
    are the same apart from blanks, or if the grader finds them equivalent. A completion without an answer has the class
    `None`: it does not vote.

    Args:
        answers (`Sequence[Sequence[str | None]]`):
            For each problem, the answers that were read from its completions.
        is_correct (`Sequence[Sequence[bool]]`):
            Whether each answer is correct.

    Returns:
        `list[list[Hashable]]`: The class of each answer. Only classes of the same problem can be compared.

    Example:

    >>> answer_classes([["7", "7.0", None, "8", "Monday"]], [[False, False, False, True, False]])
    [[Fraction(7, 1), Fraction(7, 1), None, ('correct',), 'Monday']]
    """
    keys = [
        [_key(answer, correct) for answer, correct in zip(texts, marks, strict=True)]
        for texts, marks in zip(answers, is_correct, strict=True)
    ]
    # One call for all pairs of all problems: the grader spreads the expensive pairs over its worker processes.
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
    # The first answer of a class stands for the class. Maps every later answer to it.
    first_of: dict[tuple[int, Hashable], Hashable] = {}
    for (problem, first, second), result in zip(pairs, graded, strict=True):
        if result.grade is Grade.CORRECT and (problem, first) not in first_of:
            first_of.setdefault((problem, second), first)
    return [[first_of.get((problem, key), key) for key in row] for problem, row in enumerate(keys)]


def _key(answer: str | None, correct: bool) -> Hashable:
    if correct:
        return CORRECT
    if answer is None:
        return None
    value = parse_rational(answer)
    return value if value is not None else "".join(answer.split())


def problem_metrics(
    answers: Sequence[Sequence[str | None]], is_correct: Sequence[Sequence[bool]]
) -> list[dict[str, float]]:
    """
    Returns the metrics of each problem: `avg@k`, and `maj@k` and `pass@k` for k and the powers of 2 below it.

    Args:
        answers (`Sequence[Sequence[str | None]]`):
            For each problem, the answers that were read from its completions.
        is_correct (`Sequence[Sequence[bool]]`):
            Whether each answer is correct.

    Example:

    >>> problem_metrics([["7", "7", "8"]], [[False, False, True]])[0]["maj@3"]
    0.0
    """
    metrics = []
    for votes, marks in zip(answer_classes(answers, is_correct), is_correct, strict=True):
        num_samples = len(marks)
        values = {f"avg@{num_samples}": avg_at_k(marks)}
        for k in sorted({num_samples, *(2**power for power in range(1, num_samples.bit_length()))}):
            if k <= num_samples:
                values[f"maj@{k}"] = maj_at_k(votes, CORRECT, k)
                values[f"pass@{k}"] = pass_at_k(num_samples, sum(marks), k)
        metrics.append(values)
    return metrics
