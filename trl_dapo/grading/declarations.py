r"""Declarations in words: `Answer: 5`, `#### 5`, `<answer>5</answer>`, "the answer is 5", in several languages."""

import json
import re

from .boxes import BLANK, Declared, boxed_answers, has_box, usable
from .reading import MAX_CHARACTERS, is_mathematical, read
from .sentences import COPULA, answer_of_clause, first_sentence, is_answer, stated_value


# The last declarations that are looked at.
MAX_DECLARATIONS = 24
# Words that an answer in words has at most, behind "the answer is" and on a line or in a tag of its own.
MAX_WORDS_OF_PHRASE, MAX_WORDS_OF_LINE = 3, 8

# All repetitions are bounded, so that no text makes these patterns take long.
_COLON = "[:\uff1a]"
_NOUN = r"(?:answers?|ans|solutions?|results?)"
_OTHER_NOUN = (
    r"(?:r[ée]ponse|solution|r[ée]sultat|antwort|l[öo]sung|ergebnis|respuesta|soluci[óo]n|resultado|risposta|soluzione"
    r"|resposta|antwoord|odpowied[źz]|cevap|đáp\s{1,2}án|ответ|svar|vastaus)"
)
_OTHER_COPULA = (
    "(?:est|sont|vaut|ist|sind|lautet|lauten|es|son|è|é|são|sono|is|to|là|som|är|er|on|равен|равно|-|\u2013|\u2014)"
)
_EASTERN_NOUN = "(?:答案|答え?|正解|정답|답)"
_FEW_WORDS = r"(?:\s{{1,4}}(?!(?:{0})\b)[^\s.!?:\n]{{1,24}}){{0,{1}}}?"
_TAG = r"</?(?:final[_ ]?)?(?:answer|response)>|\[/?ANSWER\]"
_DECLARATION = re.compile(
    r"(?P<tag><(?:final[_ ]?)?(?:answer|response)>|\[ANSWER\])"
    r"|(?P<gsm8k>^[ \t]{0,8}####[ \t]{0,8})"
    r'|(?P<json>"(?:final[_ ]?)?(?:answer|result)"\s{0,8}:\s{0,8})'
    rf"|(?P<line>(?:(?<![A-Za-z]){_NOUN}|(?<!\w){_OTHER_NOUN}|{_EASTERN_NOUN})(?:\s{{0,4}}\([^()\n]{{0,30}}\))?[\s*_]{{0,8}}"
    rf"(?:{_COLON}|=|(?=[$]|\\[(\[]))[\s*_]{{0,16}}(?:(?:is|are)\s{{1,4}})?)"
    r"|(?P<heading>^[ \t]{0,8}(?:#{1,6}[ \t]{0,4}|\*\*[ \t]{0,4})?(?:the\s)?(?:final\s|my\s)?(?:answer|result|solution)"
    r"[ \t*_.]{0,8}\n[\s*]{0,16})"
    rf"|(?P<short>^[ \t]{{0,8}}(?:\*\*)?A(?:\*\*)?{_COLON}(?:\*\*)?[ \t]{{0,8}})"
    r"|(?P<choice>(?:\b(?:option|choice|answer)\s{1,4})?\*{0,2}(?<![\w(])\(?(?-i:[A-J])\)?\*{0,2}\s{1,4}is\s{1,4}(?:the\s{1,4})?"
    r"(?:correct|right)(?:\s{1,4}(?:answer|option|choice))?)"
    rf"|(?P<phrase>\b(?:{_NOUN}|option|choice)\b{_FEW_WORDS.format('is|are|equals', 9)}\s{{1,4}}{COPULA}\b[\s:*]{{0,16}})"
    rf"|(?P<foreign>\b{_OTHER_NOUN}\b{_FEW_WORDS.format('est|ist|es|lautet', 6)}\s{{1,4}}{_OTHER_COPULA}(?=\s)[\s:*]{{0,16}})"
    r"|(?P<eastern>(?:答案|结果|結果)(?:应该|應該|就|應|应)?(?:是|为|為|等于|等於)\s{0,8}"
    rf"|故?(?:选择|选|選)\s{{0,4}}{_COLON}?\s{{0,4}}(?=[A-Z])|答えは\s{{0,4}}、?\s{{0,4}}|(?:정답|답)(?:은|는)\s{{0,4}})",
    re.IGNORECASE | re.MULTILINE,
)
_LETTER = re.compile(r"(?-i:[A-J])(?=\)?\*{0,2}\s)")
_ANY_TAG = re.compile(_TAG, re.IGNORECASE)
_HYPOTHESIS = re.compile(
    r"\b(?:if|suppose|assume|assuming|whether|unless|check|verify|confirm)\b[^.!?\n]{0,60}$", re.IGNORECASE
)
_HEADING = re.compile(r"(?:step|case|part)\b", re.IGNORECASE)
_JSON_VALUE = re.compile(r'"((?:[^"\\]|\\.){0,1000})"|([-+0-9.eE]{1,40})|(\[[^\[\]]{0,400}\])')


def last_declared(text: str, box: Declared | None) -> Declared | None:
    r"""
    Find the last declaration in words, which is behind all boxes.

    Args:
        text (`str`):
            What follows the last box.
        box (`Declared`, *optional*):
            The answer in the last box, which stays if no later declaration can be read.

    Returns:
        `Declared | None`:
            The answer, with `end` counted in `text`; `box` itself if it stays. "The answer is prime" is a remark on an
            answer in numbers that was given before, and does not replace it.

    Example:

    >>> last_declared("Answer: 5\nWait. The answer is 6. This answer is even.", None)
    Declared(text='6', end=30, joined=None)
    """
    limit = len(text)
    remark: Declared | None = None
    for match in reversed(list(_DECLARATION.finditer(text))[-MAX_DECLARATIONS:]):
        answer = _answer_at(text, match, limit)
        if answer is not None:
            declared = Declared(answer, match.end())
            if is_mathematical(read(answer)) or len(answer) > MAX_CHARACTERS:
                return declared
            if match.lastgroup not in ("phrase", "foreign"):
                return remark or declared
            remark = remark or declared
        limit = match.start()
    if remark is not None and (box is None or not is_mathematical(read(box.text))):
        return remark
    return box


def _answer_at(text: str, match: re.Match[str], limit: int) -> str | None:
    """Read the answer behind a declaration; it ends where the next declaration begins."""
    start, kind = match.end(), match.lastgroup
    if kind == "choice":
        letter = _LETTER.search(match[0])
        return None if letter is None else letter[0]
    if kind == "tag":
        closing = _ANY_TAG.search(text, start)
        return _answer_of_region(text[start : closing.start() if closing else len(text)], is_last=True)
    if kind == "json":
        return _answer_of_json(text[start : start + MAX_CHARACTERS])
    if kind in ("phrase", "foreign") and _HYPOTHESIS.search(text[max(0, match.start() - 80) : match.start()]):
        return None
    region = _region(text[start:limit])
    is_last = not text[start + len(region) : limit].strip()
    if kind == "gsm8k":
        answer = usable(region)
        if answer is None or is_last:
            return answer
        # Words are a heading of Markdown (`#### Step 2`), unless the text ends with them.
        return answer if is_mathematical(read(answer)) and not _HEADING.match(answer) else None
    if kind == "short":
        # `A: 73` answers the question before it, and only the last one counts.
        return _answer_of_region(region, is_last=False) if "\n" not in text[start:].strip() else None
    if kind in ("line", "heading"):
        return _answer_of_region(region, is_last)
    return answer_of_clause(region, MAX_WORDS_OF_PHRASE)


def _region(text: str) -> str:
    """Return the rest of the line, or the display formula that begins there."""
    closing = {"\\[": "\\]", "$$": "$$"}.get(text[:2])
    end = text.find(closing, 2) + 2 if closing else text.find("\n")
    return text[: end if end >= 2 or (not closing and end >= 0) else len(text)]


def _answer_of_region(region: str, is_last: bool) -> str | None:
    """Find the answer in a line or tag that is set apart for it, in which a sentence may stand."""
    if not region.strip(BLANK) or has_box(region):
        return None
    answer = usable(region)
    if answer is not None and is_answer(answer, 0):
        return answer
    max_words = MAX_WORDS_OF_LINE if is_last else MAX_WORDS_OF_PHRASE
    found = answer_of_clause(region, max_words) or stated_value(first_sentence(region))
    return found or (answer if answer is not None and is_last and is_answer(answer, MAX_WORDS_OF_LINE) else None)


def _answer_of_json(text: str) -> str | None:
    match = _JSON_VALUE.match(text)
    if match is None:
        return None
    if match[1] is None:
        return usable((match[2] or match[3]).strip("[]").replace('"', ""))
    try:
        value = str(json.loads(match[0], strict=False))
    except ValueError:
        value = match[1]
    box = next(boxed_answers(value), None)
    return usable(value) if box is None else box.text
