r"""The answer in a sentence: what stands behind "the answer is", and the one value that a sentence states."""

import re
from itertools import pairwise

from .boxes import BLANK, usable
from .nodes import Listing, Words
from .reading import MAX_CHARACTERS, is_mathematical, read
from .vocabulary import COMMENTS


# Farewells behind the last sentence that are skipped.
MAX_FAREWELLS = 4
COPULA = r"(?:is|are|was|equals|equal|would\s{1,4}be|must\s{1,4}be|should\s{1,4}be|will\s{1,4}be|becomes)"

# Runs of blanks make patterns slow, and say nothing.
_BLANKS = re.compile(r"[ \t\u00a0]{2,}")
_SENTENCE_END = re.compile("[.!?](?=\\s|$|\\*|\"|')|[\u3002\uff01\uff1f]")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Za-z]|ft|in|sq|yd|lb|lbs|oz|cm|km|mi|hr|min|sec|no|vs|approx|ca|resp|[ap]\.m)$"
)
_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.,/^])-?\\?\$?\d[\d,]*(?:\.\d+)?(?:\s?/\s?\d+)?%?(?![\w/^])")
_PLAIN_WORD = re.compile(r"(?<![\\\w])[^\W\d_]{2,}")
_SIGNS = re.compile(r"[{}^_=+*<>~]|\\(?!\$)")
# Where a clause goes on with what is no part of the answer.
_CUT = re.compile(
    r",?\s+(?:because|since|as|which|where|so|but|not|non|nicht|pas|rather\s+than|instead|i\s+hope|hence|after|with|by|from"
    "|for|that|there|in\\s+total|weil|car|parce|porque|denn|we|this|it|[-\u2013\u2014]+)\\b.*|\\s+[-\u2013\u2014(\\[].*"
    r"|[,;:]\s(?!\s*(?:and\s+|or\s+)?[$\d\\(-]).*",
    re.IGNORECASE | re.DOTALL,
)
_HEDGE = re.compile(
    r"\b(?:or|either|maybe|perhaps|possibly|probably|alternatively|otherwise|if|unless|oder|ou)\b|\?|或",
    re.IGNORECASE,
)
_DIGIT = re.compile("[0-9]")
_DENIAL = re.compile(
    r"\b(?:not|cannot|can't|isn't|aren't|doesn't|never|no|suppose|assume|guess|wait|whether)\b", re.IGNORECASE
)
_DOUBT = re.compile(
    r"\b(?:not|cannot|can't|isn't|aren't|doesn't|never|no|suppose|assume|would|could|might|guess|wait|hmm|let|check|try|think|whether)\b",
    re.IGNORECASE,
)
_LEADING = re.compile(
    r"^(?:(?:therefore|thus|hence|simply|just|exactly|then|indeed|clearly|now|also|again|still|equal\s+to|given\s+by"
    r"|the\s+(?:number|value|integer|fraction|expression|option|choice|letter)|option|choice|either|equals?|is|that|:|(?:la|el|le|die|l'|a)\s*(?:opci[óo]n|option|r[ée]ponse|antwort|letra))[\s,:]+){1,4}",
    re.IGNORECASE,
)
# The end of a sentence in Japanese and Korean.
_TRAILING = re.compile("\\s*(?:です|입니다|이다|である)?[\u3002\uff0e.!]*\\s*$")
_PROSE = re.compile(r"(?:so|thus|hence|therefore|then|about|around|maybe|perhaps|is|step)\b", re.IGNORECASE)
_CONCLUSION = re.compile(
    r"\b(?:therefore|thus|hence|so|consequently|finally|in\s+conclusion|we\s+conclude|we\s+(?:get|have|find|obtain))\b",
    re.IGNORECASE,
)
# From here on a sentence says what follows, even where the period before it is missing.
_THEREFORE = re.compile(r"(?:Therefore|Thus|Hence|Consequently|So),?\s")
# What models say when they are done.
_FAREWELL = re.compile(
    r"(?:I hope|Hope|Hopefully|Let me know|Please|Feel free|If you have|If you need|Thank|Is there anything|Good luck|Done)\b",
    re.IGNORECASE,
)
_SOLVED = re.compile(
    r"\s*\b(?:is|are)\s+(?:the|our|a)?\s*(?:\w+\s+){0,3}?(?:answers?|solutions?|values?|results?|set|range|interval)\b",
    re.IGNORECASE,
)
_COPULA_BEFORE = re.compile(
    rf"(?:\b{COPULA}|=|:|\bthat|\bget|\bobtain|\bhave|\bexactly|\bonly)\s*\**\s*$", re.IGNORECASE
)
_NUMBER_AFTER = re.compile(rf"(?:\b{COPULA}|\bby|=)\s*\\?\$?$", re.IGNORECASE)


def is_answer(text: str, max_words: int) -> bool:
    """
    Whether a text can be read as an answer: as mathematics, or as a few words that are no comment.

    Args:
        text (`str`):
            The text.
        max_words (`int`):
            Words that an answer in words may have.

    Returns:
        `bool`: Whether it can. A text that is too long to be read is an answer, which grading gives up on.

    Example:

    >>> is_answer("5 apples", 0), is_answer("Monday", 3), is_answer("consistent with 5", 3), is_answer("correct", 3)
    (True, True, False, False)
    """
    if len(text) > MAX_CHARACTERS:
        return True
    node = read(text)
    if is_mathematical(node):
        return not _PROSE.match(text)
    items = node.items if isinstance(node, Listing) else (node,)
    words = [word for item in items if isinstance(item, Words) for word in item.text.split()]
    return all(isinstance(item, Words) for item in items) and 0 < len(words) <= max_words and not COMMENTS & set(words)


def answer_of_clause(text: str, max_words: int) -> str | None:
    r"""
    Find the answer at the beginning of a text, as it stands behind "the answer is".

    Args:
        text (`str`):
            The text.
        max_words (`int`):
            Words that an answer in words may have.

    Returns:
        `str | None`: The answer; `None` if none can be read, or if the clause is a question or goes on with "or".

    Example:

    >>> answer_of_clause("therefore $42$, which is even. I hope it helps.", 3), answer_of_clause("5, or maybe 6", 3)
    ('42', None)
    """
    text = _BLANKS.sub(" ", text)
    sentence = first_sentence(text)
    if sentence.rstrip("*_ ").endswith("?") or text[len(sentence) : len(sentence) + 1] == "?":
        return None
    sentence = _TRAILING.sub("", sentence)
    candidate = usable(sentence)
    for _ in range(2):
        if candidate is None or is_answer(candidate, max_words):
            return candidate
        sentence, candidate = candidate, usable(_LEADING.sub("", candidate, count=1))
    # The whole clause is no answer: leave out what comes behind one.
    for match in _CUT.finditer(sentence):
        if match.start() and not _is_inside_formula(sentence, match.start()):
            head = usable(_LEADING.sub("", sentence[: match.start()], count=1))
            if head is not None and not _HEDGE.search(_outside_formulas(match[0])) and is_answer(head, max_words):
                return head
            break
    formula = _FORMULA.match(sentence)
    words = _outside_formulas(sentence)
    return usable(formula[0]) if formula and not _HEDGE.search(words) and not _NUMBER.search(words) else None


def stated_value(sentence: str) -> str | None:
    r"""
    Return the one value that a sentence states, in a formula or as a number.

    Example:

    >>> stated_value("Natalia sold 72 clips altogether."), stated_value("the pair is $(7,6)$"), stated_value("from 5 to 6")
    ('72', '(7,6)', None)
    """
    sentence = _BLANKS.sub(" ", sentence).strip().rstrip(".").strip("*")
    words = _outside_formulas(sentence)
    if _DENIAL.search(words) or _HEDGE.search(words):
        return None
    formulas = list(_FORMULA.finditer(sentence))
    numbers = list(_NUMBER.finditer(words))
    is_sentence = len(_PLAIN_WORD.findall(words)) > 1
    if (
        len(numbers) == 1
        and is_sentence
        and not _SIGNS.search(words)
        and not any(_DIGIT.search(f[0]) for f in formulas)
    ):
        # Formulas without digits name what the number is the value of.
        return _mathematical(numbers[0][0])
    if not formulas:
        return None
    behind = sentence[formulas[-1].end() :].strip(BLANK)
    if len(formulas) == 1 and not (behind and numbers):
        return _mathematical(formulas[0][0])
    if (joined := _joined(sentence, formulas)) is not None:
        return joined
    is_last = not behind and _COPULA_BEFORE.search(sentence[: formulas[-1].start()])
    return _mathematical(formulas[-1][0]) if is_last else None


def closing_value(text: str) -> str | None:
    r"""
    Return the value that the last sentence of a text states, if it concludes something and doubts nothing.

    Args:
        text (`str`):
            The text.

    Returns:
        `str | None`:
            The value: what "is" or "=" introduces at the end of the sentence, what a sentence with "therefore" and one
            formula says, or what "is the solution" follows; `None` for any other sentence.

    Example:

    >>> closing_value("We need $x-5 \\geq 0$. Therefore $x \\geq 5$ is the solution.")
    'x \\geq 5'
    >>> closing_value("I think that $x = 5$.")
    """
    sentence = _last_sentence(_BLANKS.sub(" ", text).rstrip())
    words = _outside_formulas(sentence)
    if not sentence or _DOUBT.search(words) or _HEDGE.search(words):
        return None
    formulas = list(_FORMULA.finditer(sentence))
    if not formulas:
        numbers = list(_NUMBER.finditer(sentence))
        if not numbers or not _CONCLUSION.match(sentence.strip("* ")):
            return None
        last = numbers[-1]
        is_result = sentence.count("=") == 1 and not sentence[last.end() :].strip(BLANK)
        is_stated = (len(numbers) == 1 or is_result) and _NUMBER_AFTER.search(sentence[: last.start()])
        return _mathematical(last[0]) if is_stated else None
    last = formulas[-1]
    behind, before = sentence[last.end() :].strip(BLANK), sentence[: last.start()]
    if _COPULA_BEFORE.search(sentence[: formulas[0].start()]) and (joined := _joined(sentence, formulas)) is not None:
        return joined
    is_only = len(formulas) == 1
    if not behind and (_COPULA_BEFORE.search(before) or (is_only and _CONCLUSION.search(before))):
        return _mathematical(last[0])
    if is_only and _SOLVED.match(sentence[last.end() :]):
        return _mathematical(last[0])
    if is_only and _COPULA_BEFORE.search(before) and "," not in behind:
        # A unit may follow.
        return _mathematical(f"{last[0]} {behind}")
    return None


def first_sentence(text: str) -> str:
    """
    Return a text up to the end of its first sentence, which is no period in a formula or behind an abbreviation.

    Example:

    >>> first_sentence("3.14 approx. 5 ft. 2 in. I hope so. Bye.")
    '3.14 approx. 5 ft. 2 in. I hope so'
    """
    for match in _SENTENCE_END.finditer(text):
        before = text[: match.start()]
        if _is_inside_formula(text, match.start()):
            continue
        if match[0] == "." and _ABBREVIATION.search(before) and text[match.end() :].strip():
            continue
        return before
    return text


def _last_sentence(text: str) -> str:
    """Return the last sentence that is about the problem, from its "therefore" on."""
    for _ in range(MAX_FAREWELLS):
        sentence, start = _sentence_at_end(text)
        if not _FAREWELL.match(sentence):
            break
        text = text[:start].rstrip()
    conclusions = [match.start() for match in _THEREFORE.finditer(sentence)]
    return sentence[conclusions[-1] :] if conclusions else sentence


def _sentence_at_end(text: str) -> tuple[str, int]:
    if text.endswith(("\\]", "$$")):
        # A display formula belongs to the sentence before it.
        start = text.rfind("\\[" if text.endswith("\\]") else "$$", 0, len(text) - 2)
        head = text[: max(start, 0)].rstrip().rstrip(".:")
        if not head.endswith(("\\]", "$$")):
            before, head_start = _sentence_at_end(head)
            return f"{before} {text[max(start, 0) :]}", head_start
        return text[start:], start
    text = re.sub("[.!\u3002\\s*]+$", "", text)
    start = text.rfind("\n") + 1
    for match in _SENTENCE_END.finditer(text):
        if not _is_inside_formula(text, match.start()):
            start = max(start, match.end())
    return text[start:].strip(), start


def _joined(sentence: str, formulas: list[re.Match[str]]) -> str | None:
    """Return formulas at the end of a sentence that nothing but commas and "and" joins, as one list."""
    between = [sentence[left.end() : right.start()] for left, right in pairwise(formulas)]
    is_list = all(text.strip(" ,").casefold() in ("and", "") for text in between)
    if not is_list or sentence[formulas[-1].end() :].strip(BLANK):
        return None
    return _mathematical(sentence[formulas[0].start() : formulas[-1].end()])


def _mathematical(text: str) -> str | None:
    answer = usable(text)
    return answer if answer is not None and is_mathematical(read(answer)) else None


def _is_inside_formula(text: str, place: int) -> bool:
    before = text[:place]
    is_in_dollars = (before.count("$") - before.count("\\$")) % 2 == 1 and "$" in text[place:]
    return is_in_dollars or before.count("\\(") > before.count("\\)") or before.count("{") > before.count("}")


def _outside_formulas(text: str) -> str:
    return _FORMULA.sub(" ", text)
