"""The rule reward of DAPO: is the final answer of the completion equivalent to the gold one?"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from trl_dapo.grading.equivalence import Grade, GradedAnswer, grade
from trl_dapo.grading.pool import shared_pool


logger = logging.getLogger(__name__)

# Distinct bad golds that are warned about; a dataset with more is bad as a whole, and its log should stay readable.
MAX_GOLD_WARNINGS = 20
_warned_golds: set[str] = set()
# Kinds of parts of a message that the model says to the user, unlike `reasoning` and `tool_use`.
_TEXT_PARTS = frozenset({"text", "output_text"})


def accuracy_reward(
    completions: Sequence[Any],
    solution: Sequence[Any],
    log_extra: Callable[[str, list[Any]], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    r"""
    Reward function that is 1 if the final answer of a completion is equivalent to the gold one.

    It works in any TRL trainer that takes reward functions. See [`is_equivalent`] for what counts as the answer.

    Args:
        completions (`list`):
            Conversational completions, of which the last assistant message counts, or plain texts; see
            [`completion_text`] for the other shapes that are graded.
        solution (`list[str]`):
            The gold solution of each completion: a number, a LaTeX expression, a text, or a whole solution that declares
            its answer as a completion does.
        log_extra (`callable`, *optional*):
            The trainer's logger of extra columns: `solution`, `answer` (what was extracted) and `grade`.
        log_metric (`callable`, *optional*):
            The trainer's logger of scalars: `grading/frac_gave_up`, `grading/frac_no_answer` and
            `grading/frac_bad_gold`, each in [0, 1]; `grading/seconds`, the wall time of the call; and
            `grading/workers_restarted`, how many workers it cost to reach limits, or were lost otherwise meanwhile.
        **kwargs:
            The trainer's other columns, not used.

    Returns:
        `list[float | None]`:
            1.0 for a correct answer; 0.0 for a wrong one, none at all, or one that grading gave up on; `None` for a
            gold that cannot be read, which says nothing about the completion.

    Raises:
        `TypeError`: If a completion or a gold has a shape that cannot be graded; the message names the row.

    Example:

    >>> accuracy_reward([r"Thus \boxed{\frac{1}{2}}.", "Answer: 3"], solution=["0.5", "4"])
    [1.0, 0.0]
    """
    graded = _grade(completions, solution, log_extra, log_metric)
    return [_reward(result.grade, correct=1.0, wrong=0.0) for result in graded]


class AccuracyReward:
    r"""
    [`accuracy_reward`] with values of one's own. DAPO (Eq. 7) and verl give 1 and -1; the advantages are the same.

    A class and not a closure, so that the reward can be pickled.

    Args:
        correct (`float`, *optional*, defaults to `1.0`):
            Reward of a correct answer.
        wrong (`float`, *optional*, defaults to `-1.0`):
            Reward of a wrong one, none at all, or one that grading gave up on; less than `correct`.
        name (`str`, *optional*, defaults to `"accuracy_reward"`):
            What the trainer's metrics call it.

    Raises:
        `ValueError`: If `wrong` is not less than `correct`.

    Example:

    >>> AccuracyReward(wrong=-1.0)([r"Thus \boxed{\frac{1}{2}}.", "Answer: 3"], solution=["0.5", "4"])
    [1.0, -1.0]
    """

    def __init__(self, correct: float = 1.0, wrong: float = -1.0, name: str = "accuracy_reward") -> None:
        if not wrong < correct:
            raise ValueError(
                f"`wrong` is {wrong}, but must be less than `correct` ({correct}). DAPO has -1.0 and 1.0."
            )
        self.correct = correct
        self.wrong = wrong
        self.__name__ = name

    def __repr__(self) -> str:
        return f"AccuracyReward(correct={self.correct}, wrong={self.wrong}, name={self.__name__!r})"

    def __call__(
        self,
        completions: Sequence[Any],
        solution: Sequence[Any],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """
        Grade completions; the arguments are those of [`accuracy_reward`].

        Returns:
            `list[float | None]`: `correct` or `wrong` per completion; `None` for a gold that cannot be read.
        """
        graded = _grade(completions, solution, log_extra, log_metric)
        return [_reward(result.grade, self.correct, self.wrong) for result in graded]


signed_accuracy_reward = AccuracyReward(correct=1.0, wrong=-1.0, name="signed_accuracy_reward")


def _grade(
    completions: Sequence[Any],
    solution: Sequence[Any],
    log_extra: Callable[[str, list[Any]], None] | None,
    log_metric: Callable[[str, float], None] | None,
) -> list[GradedAnswer]:
    golds = gold_texts(solution)
    pool = shared_pool()
    start, num_restarts = time.perf_counter(), pool.num_restarts
    graded = grade(golds, completion_texts(completions), pool)
    seconds = time.perf_counter() - start
    for gold, result in zip(golds, graded, strict=True):
        if result.grade is Grade.UNPARSEABLE_GOLD:
            _warn_about(gold)
    if log_extra is not None:
        log_extra("solution", list(solution))
        log_extra("answer", [result.extracted for result in graded])
        log_extra("grade", [result.grade.value for result in graded])
    if log_metric is not None and graded:
        log_metric("grading/frac_gave_up", _frac(graded, Grade.GAVE_UP))
        log_metric("grading/frac_no_answer", _frac(graded, Grade.NO_ANSWER))
        log_metric("grading/frac_bad_gold", _frac(graded, Grade.UNPARSEABLE_GOLD))
        log_metric("grading/seconds", seconds)
        log_metric("grading/workers_restarted", float(pool.num_restarts - num_restarts))
    return graded


def completion_text(completion: object) -> str:
    """
    Return the text of a completion.

    Args:
        completion (`str`, `dict`, `list` or `None`):
            A plain text, a message, or a list of messages or of texts. The content of a message is a text or a list of
            parts like `{"type": "text", "text": ...}`.

    Returns:
        `str`:
            The text of the last assistant message (a message without a role counts as one), or the texts of a list joined;
            the empty string if there is none: a completion without text is the model's fault and simply has no answer.
            Reasoning in a field or part of its own, tool calls and what tools returned are no part of it.

    Raises:
        `TypeError`: If the completion is anything else.

    Example:

    >>> completion_text([{"role": "assistant", "content": [{"type": "text", "text": "Answer: 4"}]}])
    'Answer: 4'
    >>> completion_text({"role": "assistant", "reasoning_content": "5?", "content": "Answer: 4"})
    'Answer: 4'
    """
    if isinstance(completion, str):
        return completion
    if completion is None:
        return ""
    if isinstance(completion, dict):
        return _message_text(completion)
    if isinstance(completion, list | tuple):
        messages = [item for item in completion if isinstance(item, dict) and ("role" in item or "content" in item)]
        if not messages:
            return _joined_parts(completion)
        answers = [message for message in messages if message.get("role", "assistant") == "assistant"]
        return _message_text(answers[-1]) if answers else ""
    raise TypeError(f"a completion is of type {type(completion).__name__}")


def _message_text(message: dict[str, Any]) -> str:
    content = message["content"] if "content" in message else message.get("text")
    if isinstance(content, list | tuple):
        return _joined_parts(content)
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError(f"the content of a message is of type {type(content).__name__}")


def _joined_parts(parts: Sequence[object]) -> str:
    texts = []
    for part in parts:
        text = part
        if isinstance(part, dict):
            text = part.get("text") if part.get("type", "text") in _TEXT_PARTS else None
        if isinstance(text, str):
            texts.append(text)
        elif text is not None:
            raise TypeError(f"a part of a completion is of type {type(text).__name__}")
    return "".join(texts)


def completion_texts(completions: Sequence[object]) -> list[str]:
    """
    Return the texts of completions, see [`completion_text`].

    Raises:
        `TypeError`: If a completion is no text; the message names its row.
    """
    texts = []
    for row, completion in enumerate(completions):
        try:
            texts.append(completion_text(completion))
        except TypeError as error:
            raise TypeError(
                f"`completions[{row}]` cannot be graded: {error}. It must be a text, a message (a dict with `content`), a "
                "list of messages or of texts, or None."
            ) from None
    return texts


def gold_texts(solution: Sequence[object]) -> list[str]:
    """
    Return gold solutions as texts: numbers as they are written, lists as their elements, the empty text for `None`.

    Raises:
        `TypeError`: If a gold is anything else; the message names its row.

    Example:

    >>> gold_texts([18, None, ["2", "3"]])
    ['18', '', '2, 3']
    """
    texts = []
    for row, gold in enumerate(solution):
        # Datasets hold integers too, and lists of the elements of an answer; `None` is a missing gold.
        elements = list(gold) if isinstance(gold, list | tuple) else [gold]
        if not all(element is None or isinstance(element, str | int | float) for element in elements):
            raise TypeError(
                f"`solution[{row}]` is of type {type(gold).__name__}, but must be a text, a number, a list of these, or None."
            )
        texts.append(", ".join(str(element) for element in elements if element is not None))
    return texts


def _reward(grade: Grade, correct: float, wrong: float) -> float | None:
    if grade is Grade.UNPARSEABLE_GOLD:
        return None
    return correct if grade is Grade.CORRECT else wrong


def _frac(graded: Sequence[GradedAnswer], grade: Grade) -> float:
    return sum(result.grade is grade for result in graded) / len(graded)


def _warn_about(gold: str) -> None:
    if gold in _warned_golds or len(_warned_golds) >= MAX_GOLD_WARNINGS:
        return
    _warned_golds.add(gold)
    shown = gold if len(gold) <= 200 else gold[:200] + "..."
    logger.warning(
        "The gold solution %r cannot be read as an answer; its completions get no reward (None). Fix or drop the row: "
        "the `solution` column should hold a number, a LaTeX expression, a short text, or a solution that ends in "
        "`\\boxed{...}`, `#### n` or `Answer: ...`.",
        shown,
    )
    if len(_warned_golds) == MAX_GOLD_WARNINGS:
        logger.warning("That was the %d-th unreadable gold solution; further ones are not shown.", MAX_GOLD_WARNINGS)
