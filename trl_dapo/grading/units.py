r"""Units: which words are units, what they have in common, and by what factor they differ."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from .vocabulary import NO_UNITS, UNIT_FILLERS


@dataclass(frozen=True, slots=True)
class Unit:
    """
    A product of powers of units.

    Args:
        factor (`Fraction`):
            Size in base units: 1/100 for `cm`.
        powers (`frozenset[tuple[str, int]]`):
            Base units with their powers, none of which is 0: `{("m", 2)}` for `cm^2`.
        labels (`frozenset[str]`):
            Words that are no unit of measurement, in the singular: `{"apple"}`.
    """

    factor: Fraction
    powers: frozenset[tuple[str, int]]
    labels: frozenset[str]

    def is_comparable(self, other: "Unit") -> bool:
        """
        Whether quantities with these units can be equal.

        Of the same kind must be what is measured, and of the labels of one side the other must have all or none:
        `5 red apples` may equal `5 apples`, but not `5 oranges`. A unit that is nothing but neutral words compares with
        everything.

        Example:

        >>> apples, cm = read_unit(["apples"]), read_unit(["cm"])
        >>> apples.is_comparable(cm), cm.is_comparable(read_unit(["feet"]))
        (False, True)
        """
        if self.is_neutral or other.is_neutral:
            return True
        if bool(self.powers) != bool(other.powers) and not (self.labels & other.labels):
            return False
        has_same_powers = self.powers == other.powers or not (self.powers and other.powers)
        return has_same_powers and (self.labels <= other.labels or self.labels >= other.labels)

    @property
    def is_neutral(self) -> bool:
        """Whether it says nothing, like `units`."""
        return not self.powers and not self.labels


def _table() -> dict[str, tuple[Fraction, dict[str, int]]]:
    """Names of units, with the size in base units and the powers of these."""
    table: dict[str, tuple[Fraction, dict[str, int]]] = {}

    def add(names: str, factor: str | int, **powers: int) -> None:
        for name in names.split():
            table[name] = (Fraction(factor), powers)

    length = {"m": "m meter metre 米", "dm": "dm decimeter decimetre 分米", "cm": "cm centimeter centimetre 厘米"}
    length |= {"mm": "mm millimeter millimetre 毫米", "km": "km kilometer kilometre 千米 公里"}
    for name, factor in (("m", "1"), ("dm", "0.1"), ("cm", "0.01"), ("mm", "0.001"), ("km", "1000")):
        add(length[name], factor, m=1)
        for power, prefixes in ((2, ("平方",)), (3, ("立方",))):
            for prefix in prefixes:
                for chinese in (word for word in length[name].split() if not word.isascii()):
                    table[prefix + chinese] = (Fraction(factor) ** power, {"m": power})
    add("µm micrometer micron", "0.000001", m=1)
    add("nm nanometer", "0.000000001", m=1)
    add("in inch inche", "0.0254", m=1)
    add("ft foot feet", "0.3048", m=1)
    add("yd yard", "0.9144", m=1)
    add("mi mile", "1609.344", m=1)
    add("hectare ha", 10_000, m=2)
    add("acre", "4046.8564224", m=2)
    add("l L liter litre 升", "0.001", m=3)
    add("ml mL cc milliliter millilitre 毫升", "0.000001", m=3)
    add("gal gallon", "0.003785411784", m=3)
    add("qt quart", "0.000946352946", m=3)
    add("pt pint", "0.000473176473", m=3)
    add("kg kilogram 千克 公斤", 1, kg=1)
    add("g gm gram 克", "0.001", kg=1)
    add("mg milligram 毫克", "0.000001", kg=1)
    add("tonne 吨", 1000, kg=1)
    # A pound may be money too, which nobody converts.
    add("lb lbs pound £ GBP", "0.45359237", kg=1)
    add("oz ounce", "0.028349523125", kg=1)
    add("s sec second 秒", 1, s=1)
    add("ms millisecond", "0.001", s=1)
    add("min minute 分钟", 60, s=1)
    add("h hr hour 小时 时", 3600, s=1)
    add("day 天", 86_400, s=1)
    add("week wk 周", 604_800, s=1)
    add("month 月", 1, month=1)
    add("yr year 年", 12, month=1)
    add("mph", "0.44704", m=1, s=-1)
    add("kph kmh kmph", Fraction(5, 18).__str__(), m=1, s=-1)
    add("fps", "0.3048", m=1, s=-1)
    add("$ dollar usd USD buck", 1, dollar=1)
    add("¢ cent", "0.01", dollar=1)
    add("€ euro EUR", 1, euro=1)
    add("元 yuan rmb RMB CNY", 1, yuan=1)
    add("yen 円 JPY", 1, yen=1)
    add("₹ Rs rupee INR", 1, rupee=1)
    add("N newton", 1, N=1)
    add("J joule", 1, J=1)
    add("kJ kilojoule", 1000, J=1)
    add("W watt", 1, W=1)
    add("kW kilowatt", 1000, W=1)
    add("kWh", 1000, W=1, s=1)
    add("V volt", 1, V=1)
    add("A ampere amp", 1, A=1)
    add("Pa pascal", 1, Pa=1)
    add("kPa", 1000, Pa=1)
    add("Hz hertz", 1, Hz=1)
    add("mol mole", 1, mol=1)
    add("K kelvin", 1, K=1)
    add("celsius", 1, celsius=1)
    add("fahrenheit", 1, fahrenheit=1)
    return table


UNITS = _table()
# One letter is a unit only where it is set upright, behind a number.
LETTERS = frozenset(name for name in UNITS if len(name) == 1 and name.isascii() and name.isalpha())
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWERS_AFTER = {"squared": 2, "cubed": 3}
_MULTIPLES = {
    "dozen": 12, "score": 20, "hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9,
    "trillion": 10**12, "万": 10**4, "亿": 10**8, "百万": 10**6,
}  # fmt: skip
_IRREGULAR = {"feet": "foot", "men": "man", "women": "woman", "children": "child", "people": "person", "mice": "mouse"}
_WORD = re.compile("[^\\W\\d_]{2,}|[\u3040-\u9fff\uac00-\ud7af]")


def multiple_of(word: str) -> int | None:
    """
    Return the number that a word multiplies the number before it with; `None` for other words.

    Example:

    >>> multiple_of("million"), multiple_of("apples")
    (1000000, None)
    """
    return _MULTIPLES.get(singular(word.casefold()))


def singular(word: str) -> str:
    """
    Return an English noun in the singular, as far as endings tell.

    Example:

    >>> [singular(word) for word in ("apples", "boxes", "cherries", "glass", "children")]
    ['apple', 'box', 'cherry', 'glass', 'child']
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("xes", "ches", "shes", "sses")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def is_unit_word(word: str) -> bool:
    """
    Whether a word can stand in a unit: a unit, a count noun, or a word between them.

    Example:

    >>> is_unit_word("cm"), is_unit_word("apples"), is_unit_word("otherwise")
    (True, True, False)
    """
    return word in UNITS or (word.casefold() not in NO_UNITS and bool(_WORD.fullmatch(word)))


def is_measure(word: str) -> bool:
    """
    Whether a word is a unit of measurement.

    Example:

    >>> is_measure("miles"), is_measure("apples")
    (True, False)
    """
    return _known(word) is not None


def read_unit(parts: Iterable[str]) -> Unit | None:
    """
    Read a unit.

    Args:
        parts (`Iterable[str]`):
            Words, `"/"` or `"per"`, and `"^"` followed by a whole number, in the order of the text.

    Returns:
        `Unit | None`: The unit; `None` if a word in it cannot stand in a unit.

    Example:

    >>> read_unit(["km", "/", "h"]).factor, read_unit(["km", "otherwise"])
    (Fraction(5, 18), None)
    """
    factor, powers, labels = Fraction(1), dict[str, int](), set[str]()
    sign, prefix = 1, 1
    last: tuple[Fraction, dict[str, int]] | None = None
    rest = list(parts)
    while rest:
        part = rest.pop(0)
        word = part.casefold()
        if part == "^":
            power = int(rest.pop(0)) if rest and rest[0].lstrip("-").isdigit() and len(rest[0]) < 3 else 1
            word = "squared" if power == 2 else "cubed" if power == 3 else word
            if last is None or not -9 <= power <= 9:
                return None
            factor, powers = _times(factor, powers, last, (power - 1) * sign)
        elif part in ("/", "per"):
            sign = -1
        elif word in _POWERS:
            prefix = _POWERS[word]
        elif word in _POWERS_AFTER:
            if last is None:
                return None
            factor, powers = _times(factor, powers, last, (_POWERS_AFTER[word] - 1) * sign)
        elif singular(word) in UNIT_FILLERS and not (word == "in" and (not rest or rest[0] in ("^", "/", "per"))):
            continue
        elif (known := _known(part)) is not None:
            factor, powers = _times(factor, powers, known, prefix * sign)
            last, prefix = known, 1
        elif is_unit_word(part):
            labels.add(singular(word))
        else:
            return None
    return Unit(factor, frozenset((name, power) for name, power in powers.items() if power), frozenset(labels))


def _known(word: str) -> tuple[Fraction, dict[str, int]] | None:
    for name in (word, word.casefold(), singular(word.casefold())):
        if name in UNITS and (len(name) > 1 or name == word):
            return UNITS[name]
    return None


def _times(
    factor: Fraction, powers: dict[str, int], unit: tuple[Fraction, dict[str, int]], exponent: int
) -> tuple[Fraction, dict[str, int]]:
    powers = dict(powers)
    for name, power in unit[1].items():
        powers[name] = powers.get(name, 0) + power * exponent
    return factor * unit[0] ** exponent, powers
