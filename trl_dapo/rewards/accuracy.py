"""The rule reward of DAPO: is the final answer of the completion equivalent to the gold one?"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from .equivalence import Grading, Verdict, is_equivalent


logger = logging.getLogger(__name__)

# Distinct bad golds that are warned about; a dataset with more is bad as a whole, and its log should stay readable.
MAX_GOLD_WARNINGS = 20
_warned_golds: set[str] = set()


def accuracy_reward(
    completions: Sequence[str | list[dict[str, Any]]],
    solution: Sequence[str],
    log_extra: Callable[[str, list[Any]], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    r"""
    Reward function that is 1 if the final answer of a completion is equivalent to the gold one.

    It works in any TRL trainer that takes reward functions. See [`is_equivalent`] for what counts as the answer.

    Args:
        completions (`list[list[dict]]` or `list[str]`):
            Conversational completions, of which the last assistant message counts, or plain texts.
        solution (`list[str]`):
            The gold solution of each completion: a number, a LaTeX expression, a text, or a solution that ends in
            `\boxed{...}` or `#### n`.
        log_extra (`callable`, *optional*):
            The trainer's logger of extra columns: `solution`, `answer` (what was extracted) and `verdict`.
        log_metric (`callable`, *optional*):
            The trainer's logger of scalars: `grading/frac_gave_up`, `grading/frac_no_answer` and
            `grading/frac_bad_gold`, each in [0, 1].
        **kwargs:
            The trainer's other columns, not used.

    Returns:
        `list[float | None]`:
            1.0 for a correct answer; 0.0 for a wrong one, none at all, or one that grading gave up on; `None` for a
            gold that cannot be read, which says nothing about the completion.

    Example:

    >>> accuracy_reward([r"Thus \boxed{\frac{1}{2}}.", "Answer: 3"], solution=["0.5", "4"])
    [1.0, 0.0]
    """
    gradings = [
        is_equivalent(_gold_text(gold), completion_text(completion))
        for completion, gold in zip(completions, solution, strict=True)
    ]
    for gold, grading in zip(solution, gradings, strict=True):
        if grading.verdict is Verdict.UNPARSEABLE_GOLD:
            _warn_about(_gold_text(gold))
    if log_extra is not None:
        log_extra("solution", list(solution))
        log_extra("answer", [grading.extracted for grading in gradings])
        log_extra("verdict", [grading.verdict.value for grading in gradings])
    if log_metric is not None and gradings:
        log_metric("grading/frac_gave_up", _frac(gradings, Verdict.GAVE_UP))
        log_metric("grading/frac_no_answer", _frac(gradings, Verdict.NO_ANSWER))
        log_metric("grading/frac_bad_gold", _frac(gradings, Verdict.UNPARSEABLE_GOLD))
    return [_reward(grading.verdict) for grading in gradings]


def completion_text(completion: str | list[dict[str, Any]]) -> str:
    """
    Return the text of a completion.

    Args:
        completion (`str` or `list[dict]`):
            A plain text, or messages whose content is a text or a list of parts like `{"type": "text", "text": ...}`.

    Returns:
        `str`:
            The text of the last assistant message (a message without a role counts as one), the empty string if there
            is none: a malformed completion is the model's fault and simply has no answer.

    Example:

    >>> completion_text([{"role": "assistant", "content": [{"type": "text", "text": "Answer: 4"}]}])
    'Answer: 4'
    """
    if isinstance(completion, str):
        return completion
    for message in reversed(completion):
        if message.get("role", "assistant") == "assistant":
            content = message.get("content")
            if isinstance(content, list):
                parts = (part.get("text") for part in content if isinstance(part, dict))
                return "".join(text for text in parts if isinstance(text, str))
            return content if isinstance(content, str) else ""
    return ""


def _gold_text(gold: object) -> str:
    # Datasets often hold integer golds; `None` is a missing one.
    return "" if gold is None else str(gold)


def _reward(verdict: Verdict) -> float | None:
    if verdict is Verdict.UNPARSEABLE_GOLD:
        return None
    return 1.0 if verdict is Verdict.CORRECT else 0.0


def _frac(gradings: Sequence[Grading], verdict: Verdict) -> float:
    return sum(grading.verdict is verdict for grading in gradings) / len(gradings)


def _warn_about(gold: str) -> None:
    if gold in _warned_golds or len(_warned_golds) >= MAX_GOLD_WARNINGS:
        return
    _warned_golds.add(gold)
    shown = gold if len(gold) <= 200 else gold[:200] + "..."
    logger.warning(
        "The gold solution %r cannot be read as an answer; its completions get no reward (None). Fix or drop the row: "
        "the `solution` column should hold a number, a LaTeX expression, a short text, or a solution that ends in "
        "`\\boxed{...}` or `#### n`.",
        shown,
    )
    if len(_warned_golds) == MAX_GOLD_WARNINGS:
        logger.warning("That was the %d-th unreadable gold solution; further ones are not shown.", MAX_GOLD_WARNINGS)
