r"""
Where the answer stands in a text: the *last answer that the text declares*, wherever and however it declares it.

A number that merely occurs in the reasoning is never an answer. By position the last declaration counts, not by its kind,
and one of which nothing can be read ("the answer is consistent with that") is none. A long completion is cut to the part
where its answer can be, so that it costs hardly more than a short one.
"""

import json
import re

from .boxes import Declared, boxed_answers, has_box, usable
from .declarations import MAX_WORDS_OF_LINE, last_declared
from .delimiters import strip_delimiters
from .nodes import Words
from .reading import is_mathematical, read
from .sentences import closing_value, is_answer
from .vocabulary import PLACEHOLDERS


# A text without any declaration is its own answer only if it is at most this many characters long.
MAX_BARE_CHARACTERS = 200
# How far from the end of a completion, in characters, a declaration in words counts. Boxes count anywhere.
MAX_TAIL_CHARACTERS = 2_000

_THINKING = r"(?:think|thinking|thought|thoughts|reasoning|scratchpad|reflection)"
_END_OF_THINKING = re.compile(
    rf"</{_THINKING}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>final(?:<\|message\|>)?|assistantfinal"
)
_START_OF_THINKING = re.compile(rf"<{_THINKING}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>analysis")
_END_OF_TURN = re.compile(r"<\|(?:im_end|im_start|endoftext|end_of_text|eot_id|end|user)\|>|</s>|<end_of_turn>")
_TAG = re.compile(r"</?[a-z]|<\|")
_RETRACTION = re.compile(
    r"\b(?:wait|mistake|wrong|incorrect|error|actually|correction|recheck|oops|sorry|hmm)\b|\bno,", re.IGNORECASE
)
_WORD_COMMAND = re.compile(r"\\(?:text\w*|mathrm|mbox)\s*\{([^{}]*)\}")


def declared_answer(completion: str) -> Declared | None:
    r"""
    Find the last answer that a completion declares.

    Declarations are `\boxed{...}` (or `\fbox{...}`, or `\boxed 5`), `<answer>...</answer>`, `Answer: ...` and headings like
    `**Final Answer**`, `#### n` as in GSM8K, `A: ...` on the last line, `{"answer": ...}`, and "the answer is ..." in
    English, Chinese, French, German, Spanish and a few other languages. Without any, the last sentence counts if it states
    one value ("so the ordered pair is $(7,6)$"), and a completion that is nothing but an expression is its own answer.
    Thinking is not answering: only what follows the last `</think>` is searched. Boxes count anywhere in it, what is in
    words in its last 2,000 characters.

    Args:
        completion (`str`):
            The text of the completion.

    Returns:
        `Declared | None`: The answer, or `None` if the completion declares none.

    Example:

    >>> declared_answer(r"\boxed{5}. I made a mistake. Answer: 6").text
    '6'
    >>> declared_answer(r"So $n=\boxed{2}$ or $n=\boxed{3}$.").text
    '2 or 3'
    >>> declared_answer("It could be 7, or 8.")
    """
    text = _without_thinking(completion)
    if text is None:
        return None
    declared = _declared(text)
    if declared is not None:
        return declared
    value = closing_value(text[-MAX_TAIL_CHARACTERS:])
    return _bare(text) if value is None else Declared(value, len(text))


def final_answer(completion: str) -> str | None:
    r"""
    Return the text of the last answer that a completion declares, see [`declared_answer`].

    Example:

    >>> final_answer(r"First \boxed{5}. No: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    declared = declared_answer(completion)
    return None if declared is None else declared.text


def gold_answer(gold: str) -> str | None:
    r"""
    Find the answer in a gold solution: what a whole solution declares, or else the whole text.

    Args:
        gold (`str`):
            A plain number, a LaTeX expression, a text, or a whole solution, which is read by the same rule as a completion.
            Several boxes of one sentence are a list.

    Returns:
        `str | None`:
            The answer without math delimiters and trailing punctuation, or `None` if the text holds none: it is empty, a
            placeholder like `nan` or `proof`, or it opens a box that it does not close.

    Example:

    >>> gold_answer("16 - 3 - 4 = <<16-3-4=9>>9 eggs, 9 * 2 = $18.\n#### 18")
    '18'
    """
    text = _without_thinking(gold)
    if text is None:
        return None
    declared = _declared(text)
    if declared is None and has_box(text):
        return None
    if declared is None and not _is_whole_answer(text):
        value = closing_value(text[-MAX_TAIL_CHARACTERS:])
        declared = None if value is None else Declared(value, len(text))
    answer = usable(_items_of_json(text) if declared is None else declared.joined or declared.text)
    if answer is None:
        return None
    words = match[1] if (match := _WORD_COMMAND.fullmatch(answer)) else answer
    return None if strip_delimiters(words).casefold() in PLACEHOLDERS else answer


def _without_thinking(text: str) -> str | None:
    """Return what follows the thinking, up to the end of the turn; `None` if the thinking has no end."""
    if ("<" in text and _TAG.search(text)) or "think\u25b7" in text or "THINK]" in text or "assistantfinal" in text:
        ends = list(_END_OF_THINKING.finditer(text))
        text = text[ends[-1].end() :] if ends else text
        if _START_OF_THINKING.search(text):
            return None
        if (end := _END_OF_TURN.search(text)) and text[: end.start()].strip():
            text = text[: end.start()]
    return text


def _declared(text: str) -> Declared | None:
    box = next(boxed_answers(text), None) if "\\" in text else None
    start = max(0, len(text) - MAX_TAIL_CHARACTERS, box.end if box else 0)
    if box is not None and len(text) - box.end < 3:
        return box
    declared = last_declared(text[start:], box)
    if declared is None:
        return None
    end = box.end if box is not None and declared is box else start + declared.end
    # What follows may take it back and state another value.
    if _RETRACTION.search(text, end) and (value := closing_value(text[end:])) is not None:
        return Declared(value, len(text))
    return declared


def _bare(text: str) -> Declared | None:
    """Return a completion that is nothing but an expression, or one word."""
    bare = text.strip()
    if not bare or len(bare) > MAX_BARE_CHARACTERS or "\n" in bare:
        return None
    answer = usable(bare)
    return Declared(answer, len(text)) if answer is not None and is_answer(answer, 1) else None


def _is_whole_answer(gold: str) -> bool:
    """Whether a gold without declaration is an answer as it stands: mathematics, or few words."""
    bare = gold.strip()
    if len(bare.split()) <= MAX_WORDS_OF_LINE:
        return True
    node = read(bare)
    return isinstance(node, Words) or is_mathematical(node)


def _items_of_json(text: str) -> str:
    """Return the items of a list in JSON like `["6"]`, in which some datasets hold their golds."""
    bare = text.strip()
    if bare.startswith(('["', "['")) and bare.endswith(('"]', "']")) and "[" not in bare[1:]:
        try:
            return ", ".join(map(str, json.loads(bare if bare[1] == '"' else bare.replace("'", '"'))))
        except ValueError:
            pass
    return text
