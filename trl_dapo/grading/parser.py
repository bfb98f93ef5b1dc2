r"""A recursive descent over the tokens of an answer: lists, relations, sets and expressions.

Depth is bounded, so that no text depends on the caller's stack. What is not understood raises [`UnreadableError`]: nothing is
dropped.
"""

from fractions import Fraction

from .nodes import (
    Apply,
    Bracket,
    Given,
    Listing,
    Matrix,
    Name,
    Node,
    Number,
    Phrase,
    Quantity,
    Relation,
    SetBuilder,
    Words,
    walk,
)
from .tokens import Token, UnreadableError
from .units import LETTERS, Unit, multiple_of, read_unit
from .vocabulary import ARTICLES, FUNCTIONS, LEADERS, REMARKS


# Brackets, fractions, functions, exponents and signs inside one another.
MAX_DEPTH = 40
# Exponents of ten in `1e30`.
MAX_EXPONENT = 400
# Digits of a number, which would else take long.
MAX_DIGITS = 1_000
# Parts of a quantity like `2 h 30 min 15 s`, after the first.
MAX_COMPOUNDS = 3
# Words of a unit.
MAX_UNIT_PARTS = 16

CURRENCIES = {"$": "dollar", "\u20ac": "euro", "\u00a3": "GBP", "\u00a5": "yuan", "\u20b9": "rupee"}
_RELATIONS = frozenset(
    {"=", "<", ">", ":", "\\le", "\\ge", "\\ne", "\\approx", "\\equiv", "\\in", "\\notin", "\\to", "\\cong", "\\sim"}
    | {"\\propto", "\\parallel", "\\perp", "\\subset", "\\subseteq", "\\iff", "\\mapsto"}
)
_SET_OPERATORS = {"\\cup": "cup", "\\cap": "cap", "\\setminus": "setminus"}
_SEPARATING_WORDS = {
    "and": "and", "or": "or", "et": "and", "und": "and", "oder": "or", "ou": "or", "y": "and", "和": "and", "或": "or",
    "与": "and",
}  # fmt: skip
# Commands that make one name of the letters behind them.
_MARKS = frozenset(
    {"\\overline", "\\vec", "\\hat", "\\bar", "\\tilde", "\\dot", "\\overrightarrow", "\\widehat", "\\angle"}
    | {"\\triangle", "\\square", "\\odot", "\\mathring", "\\measuredangle"}
)
_SYMBOLS = frozenset({"\\pi", "\\infty", "\\ldots", "\\Box", "\\heartsuit", "\\partial", "\\top", "\\bot"})
# Commands that begin no factor.
_NO_FACTORS = frozenset(
    {"\\rfloor", "\\rceil", "\\rangle", "\\end", "\\pmod", "\\bmod", "\\permille", "\\choose", "\\over"}
)
# Names that are functions wherever a bracket follows.
_CALLED = frozenset({"f", "g", "h", "F", "G", "H", "\\phi", "\\psi"})
_CLOSERS = {"(": (")", "]"), "[": ("]", ")", "["), "]": ("[", "]"), "{": ("}",), "\\{": ("\\}",)}
# What is no part of an expression.
_Whole = Words | Relation | Listing


class Parser:
    """
    One pass over tokens.

    Args:
        tokens (`list[Token]`):
            The tokens of the answer.
    """

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._place = 0
        self._depth = 0
        self._num_bars = 0  # absolute values that are open
        self._is_in_set = False  # where a bar stands before a condition
        self._is_in_integral = False

    def answer(self) -> Node:
        """
        Read all tokens.

        Raises:
            `UnreadableError`: If they are no mathematics.
        """
        node = self._listing(())
        if self._place < len(self._tokens):
            raise UnreadableError(self._tokens[self._place].text)
        return node

    def _peek(self, distance: int = 0) -> str:
        place = self._place + distance
        return self._tokens[place].text if place < len(self._tokens) else ""

    def _kind(self, distance: int = 0) -> str:
        place = self._place + distance
        return self._tokens[place].kind if place < len(self._tokens) else ""

    def _take(self, text: str = "") -> str:
        if self._place >= len(self._tokens) or (text and self._peek() != text):
            raise UnreadableError(f"{text} is missing")
        self._place += 1
        return self._tokens[self._place - 1].text

    def _skip(self, *texts: str) -> bool:
        if self._peek() in texts and self._place < len(self._tokens):
            self._place += 1
            return True
        return False

    def _deeper(self, amount: int = 1) -> None:
        self._depth += amount
        if self._depth > MAX_DEPTH:
            raise UnreadableError("too deep")

    # Lists of items.

    def _separator(self) -> str:
        text, kind = self._peek(), self._kind()
        if kind == "word":
            return {"and": "and", "or": "or", "et": "and", "und": "and", "oder": "or", "ou": "or", "y": "and",
                    "和": "and", "或": "or", "与": "and"}.get(text.casefold(), "")  # fmt: skip
        return text if kind in ("symbol", "escaped") and text in (",", ";", "\\\\", "&") else ""

    def _listing(self, closers: tuple[str, ...]) -> Node:
        groups: list[list[Node]] = [[]]
        joiners = set()
        while True:
            if self._kind() == "word" and self._peek().casefold() in LEADERS:
                self._place += 1
            groups[-1].append(self._item(is_outermost=not closers))
            separators = []
            while separator := self._separator():
                separators.append(separator)
                self._place += 1
            if not separators:
                break
            if not self._peek() or self._peek() in closers:
                # A comma at the end is nothing.
                if {"and", "or"} & set(separators):
                    raise UnreadableError(separators[-1])
                break
            joiners.update(separators)
            if ";" in separators or "\\\\" in separators:
                groups.append([])
        joiner = "or" if "or" in joiners else "and" if "and" in joiners else ","
        if len(groups) > 1 and any(len(group) > 1 for group in groups):
            items = [group[0] if len(group) == 1 else Listing(tuple(group)) for group in groups]
        else:
            items = [item for group in groups for item in group]
        if len(items) == 1:
            return items[0]
        return _with_domains(items, joiner)

    def _item(self, is_outermost: bool) -> Node:
        words = self._words()
        if words is not None:
            return words
        node = self._relation()
        while self._kind() == "word" and (multiple := multiple_of(self._peek())) is not None:
            self._place += 1
            node = _product([node, Number(Fraction(multiple))])
        unit = self._unit()
        if unit is not None:
            if unit.labels and not unit.powers and all(isinstance(part, Name | Apply) for part in walk(node)):
                raise UnreadableError("words behind letters")
            node = Quantity(node, unit)
            for _ in range(MAX_COMPOUNDS):
                if self._kind() == "number" and unit.powers:
                    node, unit = self._compound(node, unit)
        if self._peek() == "(":
            domain = self._brackets()
            if not isinstance(domain, Relation) or domain.operators != ("\\in",):
                raise UnreadableError("a bracket behind an answer")
            node = Given(node, Phrase((domain,)))
        if is_outermost and self._kind() == "word" and self._peek().casefold() in REMARKS:
            remark = phrase(self._tokens[self._place :])
            self._place = len(self._tokens)
            return Given(node, remark if isinstance(remark, Phrase) else Phrase((remark,) if remark else ()))
        return node

    def _words(self) -> Words | None:
        """Read an item that is nothing but words, up to what separates it from the next."""
        place, words = self._place, []
        while self._kind() == "word" and not self._separator():
            words.append(self._take().casefold())
        if words and (not self._peek() or self._separator() or self._peek() in (")", "]", "}", "\\}")):
            return Words(" ".join(word for word in words if word not in ARTICLES))
        self._place = place
        return None

    def _compound(self, node: Node, unit: Unit) -> tuple[Node, Unit]:
        """Read `30 \\text{ min}` of `2 \\text{ h } 30 \\text{ min}`."""
        value, second = self._relation(), self._unit()
        if not isinstance(node, Quantity) or second is None or second.powers != unit.powers:
            raise UnreadableError("two quantities without a sign between them")
        base = Unit(Fraction(1), unit.powers, unit.labels | second.labels)
        scaled = [
            _product([part, Number(scale)]) for part, scale in ((node.value, unit.factor), (value, second.factor))
        ]
        return Quantity(Apply("+", tuple(scaled)), base), base

    def _unit(self) -> Unit | None:
        parts: list[str] = []
        while self._place < len(self._tokens):
            token = self._tokens[self._place]
            following = self._tokens[self._place + 1] if self._place + 1 < len(self._tokens) else None
            is_named = following is not None and (following.kind == "word" or following.text in LETTERS)
            if token.kind == "word":
                if self._separator() or token.text.casefold() in REMARKS:
                    break
                parts.append(token.text)
            elif (
                token.kind == "letter" and token.text in LETTERS and (token.is_upright or (parts and parts[-1] == "/"))
            ):
                parts.append(token.text)
            elif token.text in CURRENCIES and token.kind == "symbol" and not parts:
                parts.append(CURRENCIES[token.text])
            elif token.text == "/" and parts and is_named:
                parts.append("/")
            elif (token.text in ("*", "-", ".") and parts and is_named) or (token.text == "." and parts):
                pass
            elif token.text == "{" and parts and parts[-1] not in ("/", "^") and self._peek(2) == "}" and is_named:
                self._place += 1
                continue
            elif token.text == "^" and parts:
                self._place += 1
                parts += ["^", self._unit_power()]
                continue
            else:
                break
            self._place += 1
        if not parts:
            return None
        unit = read_unit(parts)
        if unit is None or len(parts) > MAX_UNIT_PARTS:
            raise UnreadableError(" ".join(parts))
        return unit

    def _unit_power(self) -> str:
        is_braced = self._skip("{")
        sign = "-" if self._skip("-") else ""
        power = sign + self._take()
        if is_braced:
            self._take("}")
        return power

    # Relations and sets.

    def _relation(self) -> Node:
        while self._peek() in ("=", "\\approx", ":") and self._place == 0:
            self._place += 1
        sides, operators = [self._side()], []
        while (operator := self._relation_operator()) is not None:
            operators.append(operator)
            sides.append(self._side())
        if not operators:
            return sides[0]
        return Relation(tuple(operators), tuple(sides))

    def _relation_operator(self) -> str | None:
        text = self._peek()
        if text == "|" or (text == ":" and self._peek(1) != "=") or text not in _RELATIONS:
            if not (self._kind() == "word" and text == "in" and self._peek(1) in ("(", "[", "\\{", "\\mathbb")):
                return None
            text = "\\in"
        self._place += 1
        if text == ":" and self._skip("="):
            return "="
        if text == "=" and self._skip("="):
            return "="
        return text

    def _side(self) -> Node:
        """Read one side of a relation, which may be a ratio."""
        parts = [self._set()]
        while not self._is_in_set and self._peek() == ":" and self._peek(1) != "=":
            self._take(":")
            parts.append(self._set())
        return parts[0] if len(parts) == 1 else Apply("ratio", tuple(parts))

    def _set(self) -> Node:
        """Read an expression, a set, or words before an equals sign."""
        named = self._named_quantity()
        if named is not None:
            return named
        node = self._sum()
        while self._peek() in _SET_OPERATORS:
            operator = _SET_OPERATORS[self._take()]
            other = self._sum()
            args = node.args if isinstance(node, Apply) and node.head == operator != "setminus" else (node,)
            node = Apply(operator, (*args, other))
        if self._skip("\\pmod"):
            node = Apply("pmod", (node, self._braced() if self._peek() == "{" else self._primary()))
        return node

    def _named_quantity(self) -> Name | None:
        """Read words before an equals sign, like `Area =` or `Var(X) =`."""
        place, parts = self._place, list[str]()
        while self._kind() == "word" and not self._separator():
            parts.append(self._take())
        while (parts and self._peek() in ("(", ")")) or (parts and self._kind() == "letter" and "(" in parts):
            parts.append(self._take())
        if parts and self._peek() in ("=", "\\approx"):
            return Name(" ".join(parts).casefold())
        self._place = place
        return None

    # Expressions.

    def _sum(self) -> Node:
        terms = [self._term()]
        while self._peek() in ("+", "-", "\\pm", "\\mp") and self._kind() != "":
            if self._peek() in ("+", "-") and self._peek(1) in ("", ")", "]", ",", "\\}"):
                break
            sign = self._take()
            term = self._term()
            terms.append(term if sign == "+" else Apply({"-": "neg", "\\pm": "pm", "\\mp": "mp"}[sign], (term,)))
        if len(terms) == 1:
            return terms[0]
        if any(isinstance(term, _Whole) for term in terms):
            raise UnreadableError("words in a sum")
        return Apply("+", tuple(terms))

    def _term(self) -> Node:
        depth, sign = self._depth, ""
        while self._peek() in ("+", "-", "\\pm", "\\mp"):
            text = self._take()
            sign = {"+": sign, "-": "" if sign == "neg" else "neg", "\\pm": "pm", "\\mp": "mp"}[text]
        currency = CURRENCIES.get(self._peek()) if self._kind() == "symbol" else None
        if currency:
            self._place += 1
            sign = "neg" if self._skip("-") else sign
        factors = [self._mixed_number() or self._factor()]
        while True:
            text = self._peek()
            if text == "*":
                self._place += 1
                factors.append(self._signed_factor())
            elif text == "/" and self._kind(1) != "word":
                self._place += 1
                self._deeper()
                factors = [Apply("/", (_product(factors), self._signed_factor()))]
            elif text == "\\bmod":
                self._place += 1
                self._deeper()
                factors = [Apply("mod", (_product(factors), self._signed_factor()))]
            elif text == "%":
                self._place += 1
                self._deeper()
                factors = [Apply("%", (_product(factors),))]
            elif text == "\\permille":
                self._place += 1
                self._deeper()
                factors = [Apply("/", (_product(factors), Number(Fraction(1000))))]
            elif self._begins_factor():
                if self._kind() == "number" and isinstance(factors[-1], Number):
                    raise UnreadableError("two numbers without a sign between them")
                place = self._place
                factor = self._factor()
                if isinstance(factor, _Whole):
                    self._place = place  # `(k \in \mathbb{Z})` and `(in total)`
                    break
                factors.append(factor)
            else:
                break
        self._depth = depth
        node = _product(factors)
        if sign:
            node = Apply(sign, (node,))
        if currency:
            multiple = multiple_of(self._peek()) if self._kind() == "word" else None
            if multiple is not None:
                self._place += 1
                node = _product([node, Number(Fraction(multiple))])
            node = Quantity(node, _unit_named(currency))
        return node

    def _signed_factor(self) -> Node:
        is_negative = False
        while self._peek() in ("+", "-"):
            is_negative ^= self._take() == "-"
        node = self._factor()
        return Apply("neg", (node,)) if is_negative else node

    def _begins_factor(self, distance: int = 0) -> bool:
        if self._place + distance >= len(self._tokens):
            return False
        token = self._tokens[self._place + distance]
        if token.kind == "number" or token.kind == "function":
            return True
        if token.kind == "letter":
            if token.is_upright and token.text in LETTERS and self._peek(distance + 1) not in ("(", "_"):
                return False  # a unit
            return not (self._is_in_integral and token.text == "d")
        if token.kind == "command":
            return token.text not in _RELATIONS and token.text not in (
                "\\to", "\\rfloor", "\\rceil", "\\rangle", "\\end", "\\pmod", "\\bmod", "\\permille", "\\choose", "\\over",
            )  # fmt: skip
        if token.text == "|":
            return not self._num_bars and not self._is_in_set
        return token.text in ("(", "{") or (token.text == "°" and False)

    def _mixed_number(self) -> Node | None:
        r"""Read `3\frac{1}{2}` or `3 1/2` as a sum."""
        if self._kind() != "number" or not self._peek().isdigit():
            return None
        place = self._place
        whole = self._number()
        parts: list[Node] = []
        if self._skip("\\frac"):
            parts = [self._fraction_part(), self._fraction_part()]
        elif self._kind() == "number" and self._peek(1) == "/" and self._kind(2) == "number":
            parts = [self._number()]
            self._take("/")
            parts.append(self._number())
        numbers = [part for part in (whole, *parts) if isinstance(part, Number) and part.value.denominator == 1]
        if len(numbers) == 3 and 0 < numbers[1].value < numbers[2].value and self._peek() != "^":
            return Number(numbers[0].value + numbers[1].value / numbers[2].value)
        self._place = place
        return None

    def _factor(self) -> Node:
        depth = self._depth
        node = self._primary()
        while True:
            text = self._peek()
            if text == "^":
                self._place += 1
                node = self._power(node)
            elif text == "!":
                self._place += 1
                self._deeper()
                node = Apply("!!", (node,)) if self._skip("!") else Apply("!", (node,))
            elif text == "°":
                self._place += 1
                if (self._peek() in ("C", "F") and self._kind() == "letter") or self._peek().casefold() in (
                    "celsius", "fahrenheit",
                ):  # fmt: skip
                    name = "celsius" if self._take()[0] in "Cc" else "fahrenheit"
                    node = Quantity(node, _unit_named(name))
                else:
                    node = self._minutes_of_arc(_product([node, Name("°")]))
            else:
                break
        self._depth = depth
        return node

    def _minutes_of_arc(self, degrees: Node) -> Node:
        if self._kind() == "number" and self._peek(1) == "'":
            minutes = Apply("/", (self._primary(), Number(Fraction(60))))
            self._take("'")
            return Apply("+", (degrees, _product([minutes, Name("°")])))
        return degrees

    def _power(self, base: Node) -> Node:
        self._deeper()
        if self._peek() in ("*", "+", "-", "'") and (self._kind(1) not in ("number", "letter") or self._peek() == "*"):
            mark = self._take()
            if not isinstance(base, Name):
                raise UnreadableError("a power without exponent")
            return Name(f"{base.text}^{mark}")
        if self._peek() == "{":
            if self._peek(1) in ("*", "+", "-", "'") and self._peek(2) == "}" and isinstance(base, Name):
                mark = self._peek(1)
                self._place += 3
                return Name(f"{base.text}^{mark}")
            exponent = self._braced()
        else:
            exponent = self._signed_power()
        return Apply("^", (base, exponent))

    def _signed_power(self) -> Node:
        is_negative = False
        while self._peek() in ("+", "-"):
            is_negative ^= self._take() == "-"
        node = self._primary()
        if self._peek() == "^":
            self._place += 1
            node = self._power(node)
        return Apply("neg", (node,)) if is_negative else node

    def _braced(self) -> Node:
        """Read a group of TeX, or a single token in its place."""
        if self._peek() != "{":
            return self._primary()
        self._deeper()
        self._place += 1
        bars, self._num_bars = self._num_bars, 0
        node = self._listing(("}",))
        self._take("}")
        self._num_bars = bars
        self._depth -= 1
        return node

    def _primary(self) -> Node:
        if self._place >= len(self._tokens):
            raise UnreadableError("nothing there")
        token = self._tokens[self._place]
        if token.kind == "number":
            return self._number()
        if token.kind == "letter":
            return self._name()
        if token.kind == "function":
            return self._function()
        if token.kind == "command":
            return self._command()
        if token.kind == "symbol" and token.text in ("(", "[", "]", "{"):
            return self._brackets()
        if token.text == "\\{":
            return self._brackets()
        if token.text == "|":
            self._deeper()
            self._place += 1
            self._num_bars += 1
            node = self._sum()
            self._take("|")
            self._num_bars -= 1
            self._depth -= 1
            return Apply("abs", (node,))
        raise UnreadableError(token.text)

    def _number(self) -> Node:
        text = self._take()
        mantissa, _, exponent = text.lower().partition("e")
        if len(mantissa) > MAX_DIGITS:
            raise UnreadableError("too many digits")
        if exponent and abs(int(exponent[:6])) > MAX_EXPONENT:
            raise UnreadableError(text)
        value = Fraction(text)
        repeated = self._repeated_digits(mantissa)
        if repeated:
            places = len(mantissa.partition(".")[2])
            return Number(value + Fraction(int(repeated), 10**places * (10 ** len(repeated) - 1)))
        if "." not in mantissa and "-" not in exponent:
            return Number(value)
        return Number(value, places=max(0, len(mantissa.partition(".")[2]) - int(exponent or 0)))

    def _repeated_digits(self, number: str) -> str:
        r"""Read the digits that repeat in `0.1\overline{6}`, `0.\dot{3}`, `0.(3)` and `0.333...`; mostly none."""
        place = self._place
        if "." not in number and not (self._peek() == "." and self._peek(1) in ("\\overline", "\\dot", "(")):
            return ""
        self._skip(".") if "." not in number else None
        digits = ""
        if self._skip("\\overline"):
            digits = self._digits()
        elif self._peek() == "\\dot":
            self._place += 1
            digits = self._digits()
            if self._kind() == "number" and self._peek(1) == "\\dot":
                digits += self._take()
            if self._skip("\\dot"):
                digits += self._digits()
        elif self._peek() == "(" and "." not in number and self._kind(1) == "number" and self._peek(2) == ")":
            digits = self._peek(1)
            self._place += 3
        elif self._peek() == "\\ldots" and "." in number and len(set(number[-3:])) == 1 and len(number) > 4:
            self._place += 1
            digits = number[-1]
        if not digits.isdigit() or len(digits) > 30:
            self._place = place
            return ""
        return digits

    def _digits(self) -> str:
        is_braced = self._skip("{")
        digits = self._take()
        if is_braced:
            self._take("}")
        return digits

    def _name(self) -> Node:
        text = self._take()
        text += self._subscript()
        while self._skip("'"):
            text += "'"
        if self._peek() == "(" and not self._tokens[self._place].is_spaced and self._is_call(text):
            argument = self._brackets()
            return Apply("call", (Name(text), *(argument.items if isinstance(argument, Bracket) else (argument,))))
        return Name(text)

    def _is_call(self, name: str) -> bool:
        if name.rstrip("'").partition("_")[0] in _CALLED or name.endswith("'"):
            return True
        # `P(x)` and `y(t)`, but not `x(y + 1)`.
        argument = self._peek(1)
        return self._kind(1) == "letter" and self._peek(2) == ")" and argument in "xtn" and argument != name

    def _subscript(self) -> str:
        if self._peek() != "_":
            return ""
        self._place += 1
        if self._peek() != "{":
            return "_" + self._take()
        parts: list[str] = []
        depth = 0
        while True:
            part = self._take()
            depth += (part == "{") - (part == "}")
            if depth == 0:
                return "_" + "".join(part for part in parts if part not in ("{", "}"))
            parts.append(part)

    def _function(self) -> Node:
        self._deeper()
        name = self._take()
        base: Node | None = None
        exponent: Node | None = None
        for _ in range(2):
            if self._skip("_"):
                base = self._base_of_logarithm()
            elif self._skip("^"):
                exponent = self._braced() if self._peek() == "{" else self._signed_power()
        if self._peek() == "[" and name == "sqrt":
            self._place += 1
            base = self._listing(("]",))
            self._take("]")
        args = self._arguments(name)
        self._depth -= 1
        if exponent == Apply("neg", (Number(Fraction(1)),)) and f"arc{name}" in FUNCTIONS:
            name, exponent = f"arc{name}", None
        node = Apply(name, args if base is None else (*args, base))
        return node if exponent is None else Apply("^", (node, exponent))

    def _base_of_logarithm(self) -> Node:
        # `\log_28` is the logarithm of 8 to the base 2, and `\log_10 8` that to the base 10.
        text = self._peek()
        is_split = self._kind() == "number" and text.isdigit() and len(text) > 1 and not self._begins_factor(1)
        if is_split:
            self._split_number()
        return self._braced()

    def _split_number(self) -> None:
        """Make two tokens of a number: its first digit and the rest."""
        text = self._peek()
        parts = [Token("number", text[0]), Token("number", text[1:])]
        self._tokens = [*self._tokens[: self._place], *parts, *self._tokens[self._place + 1 :]]

    def _arguments(self, name: str) -> tuple[Node, ...]:
        if self._peek() == "{" or (
            self._peek() == "(" or (name in ("max", "min", "gcd", "lcm") and self._peek() == "\\{")
        ):
            node = self._braced() if self._peek() == "{" else self._brackets()
            if isinstance(node, Bracket | Listing):
                return node.items
            return (node,)
        sign = ""
        while self._peek() in ("+", "-"):
            sign = "neg" if (self._take() == "-") != (sign == "neg") else ""
        factors = [self._factor()]
        if name != "sqrt":
            while self._begins_factor() and self._kind() != "function" and self._peek() not in ("(", "|"):
                factors.append(self._factor())
        node = _product(factors)
        return (Apply("neg", (node,)) if sign else node,)

    def _fraction_part(self) -> Node:
        # `\frac12` is one half.
        if self._kind() == "number" and len(self._peek()) > 1 and self._peek().isdigit():
            self._split_number()
        return self._braced()

    def _command(self) -> Node:
        self._deeper()
        try:
            return self._known_command(self._take())
        finally:
            self._depth -= 1

    def _known_command(self, command: str) -> Node:
        if command == "\\frac":
            numerator = self._fraction_part()
            return Apply("/", (numerator, self._fraction_part()))
        if command == "\\binom":
            top = self._fraction_part()
            return Apply("binom", (top, self._fraction_part()))
        if command in ("\\sum", "\\prod"):
            return self._series(command[1:])
        if command == "\\lim":
            self._take("_")
            approach = self._braced()
            if not (isinstance(approach, Relation) and approach.operators == ("\\to",)):
                raise UnreadableError(command)
            return Apply("lim", (self._term(), *approach.sides))
        if command == "\\int":
            return self._integral()
        if command in ("\\lfloor", "\\lceil"):
            node = self._sum()
            self._take(command.replace("\\l", "\\r"))
            return Apply("floor" if command == "\\lfloor" else "ceil", (node,))
        if command == "\\langle":
            items = self._listing(("\\rangle",))
            self._take("\\rangle")
            return Bracket("(", ")", items.items if isinstance(items, Listing) else (items,))
        if command == "\\begin":
            return self._environment()
        if command == "\\emptyset":
            return Bracket("{", "}", ())
        if command == "\\mathbb":
            self._take("{") if self._peek() == "{" else None
            name = self._take()
            self._skip("}")
            return Name(f"\\mathbb{{{name}}}" + self._subscript())
        if command in ("\\pi", "\\infty", "\\ldots", "\\Box", "\\heartsuit", "\\partial", "\\top", "\\bot"):
            return Name(command + (self._subscript() if command != "\\infty" else ""))
        if command in _MARKS:
            place = self._place
            self._braced() if self._peek() == "{" else self._letters()
            return Name(command + "".join(token.text for token in self._tokens[place : self._place]).strip("{}"))
        raise UnreadableError(command)

    def _letters(self) -> None:
        if self._kind() != "letter":
            raise UnreadableError("no letters")
        while self._kind() == "letter":
            self._take()
            self._subscript()

    def _series(self, head: str) -> Node:
        self._take("_")
        start = self._limit()
        self._take("^")
        end = self._limit()
        if not (isinstance(start, Relation) and start.operators == ("=",) and isinstance(start.sides[0], Name)):
            raise UnreadableError(f"\\{head} over a set")
        return Apply(head, (self._term(), *start.sides, end))

    def _limit(self) -> Node:
        """Read a limit of a sum or an integral."""
        if self._peek() == "{":
            return self._braced()
        is_negative = self._skip("-")
        node = self._primary()
        return Apply("neg", (node,)) if is_negative else node

    def _integral(self) -> Node:
        self._take("_")
        start = self._limit()
        self._take("^")
        end = self._limit()
        was_in_integral, self._is_in_integral = self._is_in_integral, True
        body = self._sum()
        self._is_in_integral = was_in_integral
        self._take("d")
        return Apply("int", (body, self._name(), start, end))

    def _environment(self) -> Node:
        kind = self._group_text()
        if kind.rstrip("*") in ("array", "tabular") and self._peek() == "{":
            self._group_text()
        rows: list[list[Node]] = [[]]
        while self._peek() != "\\end":
            if self._skip("\\\\"):
                rows.append([])
                continue
            while self._skip("&"):
                pass
            if self._peek() in ("\\\\", "\\end"):
                continue
            rows[-1].append(self._item(is_outermost=False))
            while self._skip(",", ";", "."):
                pass
        self._take("\\end")
        if self._group_text() != kind:
            raise UnreadableError("an open environment")
        rows = [row for row in rows if row]
        if not rows:
            raise UnreadableError("an empty environment")
        if kind.rstrip("*") in ("cases", "aligned", "align", "gathered", "split", "array") and all(
            len(row) == 1 for row in rows
        ):
            items = tuple(row[0] for row in rows)
            return items[0] if len(items) == 1 else Listing(items, "and")
        if len({len(row) for row in rows}) != 1 or kind == "cases":
            raise UnreadableError("rows of different lengths")
        return Matrix(tuple(map(tuple, rows)), kind if kind == "vmatrix" else "pmatrix")

    def _group_text(self) -> str:
        self._take("{")
        parts = []
        while self._peek() != "}":
            parts.append(self._take())
        self._take("}")
        return "".join(parts)

    def _brackets(self) -> Node:
        opening = self._take()
        self._deeper()
        closers = {"(": (")", "]"), "[": ("]", ")", "["), "]": ("[", "]"), "{": ("}",), "\\{": ("\\}",)}[opening]
        bars, self._num_bars = self._num_bars, 0
        was_in_set, self._is_in_set = self._is_in_set, opening == "\\{"
        if self._peek() in closers and opening == "\\{":
            self._place += 1
            node: Node = Bracket("{", "}", ())
        else:
            inside = self._listing(closers)
            condition = None
            if opening == "\\{" and (self._skip("|") or self._skip(":")):
                self._is_in_set = False
                condition = self._listing(closers)
            closing = self._take()
            if closing not in closers:
                raise UnreadableError("an open bracket")
            node = _bracket(opening, closing, inside, condition)
        self._num_bars, self._is_in_set = bars, was_in_set
        self._depth -= 1
        return node


def phrase(tokens: list[Token]) -> Node | None:
    """
    Read tokens as words with mathematics between them.

    Args:
        tokens (`list[Token]`):
            The tokens.

    Returns:
        `Node | None`: A [`Phrase`], [`Words`] if there is nothing else, `None` if there are neither.
    """
    parts: list[Node] = []
    run: list[Token] = []
    for token in [*tokens, None]:
        if token is not None and run and (token.kind == "word") == (run[-1].kind == "word"):
            run.append(token)
            continue
        if run:
            parts += _phrase_parts(run)
        run = [] if token is None else [token]
    parts = [part for part in parts if part != Words("")]
    if len(parts) == 1 and isinstance(parts[0], Words):
        return parts[0]
    return Phrase(tuple(parts)) if parts else None


def _phrase_parts(run: list[Token]) -> list[Node]:
    if run[0].kind == "word":
        words = [token.text.casefold() for token in run]
        return [Words(" ".join(word for word in words if word not in ARTICLES))]
    parts: list[Node] = []
    start = 0
    for place in range(len(run) + 1):
        is_hyphen = place < len(run) and run[place].text == "-" and len(run) == 1
        if place == len(run) or is_hyphen or run[place].text in (",", ".", ";", ":", "'", '"', "?"):
            if start < place:
                try:
                    parts.append(Parser(run[start:place]).answer())
                except UnreadableError:
                    parts += [Words(token.text) for token in run[start:place]]
            start = place + 1
    return parts


def _bracket(opening: str, closing: str, inside: Node, condition: Node | None) -> Node:
    if condition is not None:
        return SetBuilder(inside, condition)
    items = inside.items if isinstance(inside, Listing) else (inside,)
    if opening == "\\{":
        return Bracket("{", "}", items)
    if opening == "{":
        return inside if len(items) == 1 else Bracket("{", "}", items)
    if len(items) != 2 and opening + closing not in ("()", "[]", "]["):
        raise UnreadableError("brackets that do not fit")
    if len(items) == 1:
        return inside
    # `]a, b[` is French for an open interval.
    return Bracket("(" if opening == "]" else opening, ")" if closing == "[" else closing, items)


def _product(factors: list[Node]) -> Node:
    flat: list[Node] = []
    for factor in factors:
        flat += factor.args if isinstance(factor, Apply) and factor.head == "*" else (factor,)
    return flat[0] if len(flat) == 1 else Apply("*", tuple(flat))


def _unit_named(name: str) -> Unit:
    unit = read_unit([name])
    assert unit is not None
    return unit


def _with_domains(items: list[Node], joiner: str) -> Node:
    r"""Make `k \in \mathbb{Z}` at the end of a list a remark on the rest."""
    last = items[-1]
    is_domain = (
        isinstance(last, Relation)
        and last.operators == ("\\in",)
        and isinstance(last.sides[0], Name | Listing)
        and isinstance(last.sides[1], Name)
        and last.sides[1].text.startswith("\\mathbb")
    )
    if not is_domain:
        return Listing(tuple(items), joiner)
    rest = items[0] if len(items) == 2 else Listing(tuple(items[:-1]), joiner)
    return Given(rest, Phrase((last,)))
