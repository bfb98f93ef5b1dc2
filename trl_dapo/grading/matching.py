r"""Whether two answers are the same, by what they are made of.

Lists, tuples, sets, equations, units, choices and words are compared here. Whether two expressions are equal is asked of a
[`Judge`]: of exact arithmetic first, which is at once done and may not know, and of computer algebra in a worker process.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Protocol

from .canonical import INEQUALITIES, canonical, is_variable
from .nodes import (
    Apply,
    Bracket,
    Choice,
    Clock,
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
    replaced,
    walk,
)
from .vocabulary import HARMLESS_WORDS


DEGREE = Name("°")
_MAX_ITEMS = 40
_TEMPERATURES = frozenset({"celsius", "fahrenheit"})
_FLIPPED = {">": "<", "\\ge": "\\le"}
_UNIT_VECTORS = frozenset(mark + letter for mark in ("", "\\hat", "\\vec") for letter in "ijk")
# Names of constants of integration; one of two different ones must be among the first.
_USUAL_CONSTANTS = ("C", "c")
_CONSTANTS = (*_USUAL_CONSTANTS, "K", "k", "C_1", "const", "constant")


class Judge(Protocol):
    """Who decides about expressions."""

    def equal(self, gold: Node, answer: Node) -> bool:
        """Whether two expressions have the same value, for all values of their variables."""

    def close(self, exact: Node, approximation: Node) -> bool:
        """Whether a decimal is a number, rounded or cut."""

    def proportional(self, gold: Node, answer: Node, only_positive: bool) -> bool:
        """Whether one expression is the other times a constant that is not zero, and positive if it must be."""

    def same_set(self, gold: Node, answer: Node, variable: str | None) -> bool:
        """Whether two sets of real numbers, or inequalities in one variable, are the same set."""


def same(gold: Node, answer: Node, judge: Judge) -> bool:
    r"""
    Whether two answers are the same.

    Args:
        gold (`Node`):
            The gold answer.
        answer (`Node`):
            The other.
        judge (`Judge`):
            Who decides about expressions; what it raises is passed on.

    Returns:
        `bool`: Whether they are the same.
    """
    return _Comparison(judge).same(canonical(gold), canonical(answer))


def _is_target(node: Node) -> bool:
    """Whether a side of an equation names what the other is the value of."""
    return is_variable(node) or (isinstance(node, Apply) and node.head == "call")


class _Comparison:
    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def same(self, gold: Node, answer: Node) -> bool:
        for kind, compare in self._kinds():
            if isinstance(gold, kind) or isinstance(answer, kind):
                return compare(gold, answer)
        return self._same_expressions(gold, answer)

    def _kinds(self) -> Sequence[tuple[type, Callable[[Node, Node], bool]]]:
        return (
            (Given, self._same_given),
            (Choice, self._same_choices),
            (Phrase, self._same_phrases),
            (Listing, self._same_listings),
            (Relation, self._same_relations),
            (Clock, self._same_clocks),
            (Quantity, self._same_quantities),
            (SetBuilder, self._same_builders),
            (Matrix, self._same_matrices),
            (Bracket, self._same_brackets),
            (Words, lambda gold, answer: gold == answer),
        )

    # Remarks, choices, words.

    def _same_given(self, gold: Node, answer: Node) -> bool:
        if isinstance(gold, Given) and isinstance(answer, Given):
            golds, answers = _parameters(gold.remark), _parameters(answer.remark)
            if len(golds) == len(answers) == 1 and golds != answers:
                renaming: dict[Node, Node] = {answers[0]: golds[0]}
                if golds[0] not in set(walk(answer)):
                    answer = Given(replaced(answer.value, renaming), replaced(answer.remark, renaming))  # type: ignore[arg-type]
            is_same = self.same(gold.value, answer.value)
            if not is_same or (_is_harmless(gold.remark) and _is_harmless(answer.remark)):
                return is_same
            return self.same(gold.remark, answer.remark)
        remark = gold.remark if isinstance(gold, Given) else answer.remark if isinstance(answer, Given) else Phrase(())
        values = [side.value if isinstance(side, Given) else side for side in (gold, answer)]
        return _is_harmless(remark) and self.same(*values)

    def _same_choices(self, gold: Node, answer: Node) -> bool:
        if isinstance(gold, Choice) and isinstance(answer, Choice):
            return gold.letter == answer.letter and self._same_contents(gold.content, answer.content)
        letter, content, other = (
            (gold.letter, gold.content, answer) if isinstance(gold, Choice) else (answer.letter, answer.content, gold)  # type: ignore[union-attr]
        )
        if isinstance(other, Name) and len(other.text) == 1 and other.text.isupper():
            return other.text == letter
        return self.same(content, other) if isinstance(gold, Choice) else self.same(other, content)

    def _same_contents(self, gold: Node, answer: Node) -> bool:
        # The letters agree. Wordings may differ, but mathematics must agree too.
        if any(isinstance(side, Words | Phrase) for side in (gold, answer)):
            numbers = [[part for part in walk(side) if isinstance(part, Number)] for side in (gold, answer)]
            return numbers[0] == numbers[1] or not numbers[0] or not numbers[1]
        return self.same(gold, answer)

    def _same_clocks(self, gold: Node, answer: Node) -> bool:
        for clock, other in ((gold, answer), (answer, gold)):
            if isinstance(clock, Clock) and isinstance(other, Apply) and other.head == "ratio":
                # `7:32` may be meant as a ratio.
                terms = (Number(Fraction(clock.minutes // 60)), Number(Fraction(clock.minutes % 60)))
                return clock.is_half and clock.minutes % 60 > 9 and other.args == terms
        if not (isinstance(gold, Clock) and isinstance(answer, Clock)):
            return False
        if gold.is_half == answer.is_half:
            return gold.minutes == answer.minutes
        return (gold.minutes - answer.minutes) % 720 == 0

    def _same_phrases(self, gold: Node, answer: Node) -> bool:
        if not (isinstance(gold, Phrase) and isinstance(answer, Phrase)):
            return False
        return len(gold.parts) == len(answer.parts) and all(map(self.same, gold.parts, answer.parts))

    # Lists.

    def _same_listings(self, gold: Node, answer: Node) -> bool:
        if any(isinstance(side, Listing) and len(side.items) > _MAX_ITEMS for side in (gold, answer)):
            return gold == answer
        for first, second in ((gold, answer), (answer, gold)):
            if (letters := _letters(first)) is not None and isinstance(first, Listing):
                others = _letters(second)
                if others is not None:
                    return sorted(letters) == sorted(others) and (
                        isinstance(second, Listing) or others == sorted(others)
                    )
        variables = [_solved_variables(side) for side in (gold, answer)]
        if all(variables) and set(variables[0]) == set(variables[1]) and len(variables[0]) > 1:
            return self._same_assignments(gold, answer)
        for side, names, is_gold in ((gold, variables[0], True), (answer, variables[1], False)):
            other = answer if is_gold else gold
            if names and len(set(names)) == len(names) > 1 and not isinstance(other, Relation):
                return self._same_as_values(side, other, is_gold)  # type: ignore[arg-type]
        if _is_union(gold, answer) or _is_union(answer, gold):
            variable = self._common_variable(gold, answer)
            if variable is not None:
                return self.judge.same_set(gold, answer, variable)
        if all(variables) and set(variables[0]) != set(variables[1]):
            return False
        if isinstance(answer, Listing) and answer.joiner == "or" and not isinstance(gold, Listing | Bracket):
            # `1/2 or 0.5` says one thing twice.
            return all(self.same(gold, item) for item in answer.items)
        golds, answers = (_solutions(side) for side in (gold, answer))
        if golds is None or answers is None or len(golds) != len(answers):
            return False
        return self._same_unordered(golds, answers)

    def _same_unordered(self, golds: Sequence[Node], answers: Sequence[Node]) -> bool:
        rest = list(answers)
        for gold in golds:
            place = next((place for place, answer in enumerate(rest) if self.same(gold, answer)), None)
            if place is None:
                return False
            del rest[place]
        return not rest

    def _same_assignments(self, gold: Node, answer: Node) -> bool:
        assert isinstance(gold, Listing)
        assert isinstance(answer, Listing)
        return len(gold.items) == len(answer.items) and self._same_unordered(gold.items, answer.items)

    def _same_as_values(self, assignments: Listing, other: Node, is_gold: bool) -> bool:
        """Compare `x = 1, y = 2` with `(1, 2)`: the values in the order of the names."""
        ordered = sorted(assignments.items, key=lambda item: item.sides[0].text)  # type: ignore[union-attr]
        values = [_value_of(item) for item in ordered]
        if isinstance(other, Matrix):
            other = _vector(other) or other
        is_vector = isinstance(other, Bracket) and other.opening in "(<" and other.closing in ")>"
        if not is_vector and not (
            isinstance(other, Listing) and not any(isinstance(i, Relation) for i in other.items)
        ):
            return False
        others = other.items  # type: ignore[union-attr]
        if len(others) != len(values):
            return False
        if isinstance(other, Listing):
            # Without brackets the values may stand in the order of the equations.
            given = [_value_of(item) for item in assignments.items]
            pairs = [(value, item) if is_gold else (item, value) for value, item in zip(given, others, strict=True)]
            if all(self.same(*pair) for pair in pairs):
                return True
        return all(
            self.same(*((value, item) if is_gold else (item, value)))
            for value, item in zip(values, others, strict=True)
        )

    def _common_variable(self, gold: Node, answer: Node) -> str | None:
        names = {part.text for side in (gold, answer) for part in walk(side) if is_variable(part)}  # type: ignore[union-attr]
        return names.pop() if len(names) == 1 else "" if not names else None

    # Equations and inequalities.

    def _same_relations(self, gold: Node, answer: Node) -> bool:
        if gold == answer:
            return True
        # A rounded value beside the exact one of a gold is not for grading to judge.
        settled_gold, settled_answer = self._settled(gold, is_gold=True), self._settled(answer, is_gold=False)
        if settled_gold is None or settled_answer is None:
            return False
        gold, answer = settled_gold, settled_answer
        if isinstance(gold, Relation) and isinstance(answer, Relation):
            return self._same_two_relations(gold, answer)
        if not isinstance(gold, Relation) and not isinstance(answer, Relation):
            return self.same(gold, answer)
        relation, other, is_gold = (gold, answer, True) if isinstance(gold, Relation) else (answer, gold, False)
        assert isinstance(relation, Relation)
        if _is_equation(relation):
            value = self._value(relation, other)
            if value is None:
                return False
            return self.same(value, other) if is_gold else self.same(other, value)
        if all(operator in INEQUALITIES for operator in relation.operators) and _is_set(other):
            variable = self._common_variable(gold, answer)
            return variable is not None and self.judge.same_set(gold, answer, variable)
        return False

    def _settled(self, node: Node, is_gold: bool) -> Node | None:
        r"""
        Take `\approx 0.577` off an exact value that it rounds, and the value from an equation of numbers.

        An equation of numbers that is false, and a wrong approximation, are worth nothing: `None`.
        """
        if not isinstance(node, Relation) or not _is_equation(node):
            return node
        exact = [node.sides[0]]
        for operator, side in zip(node.operators, node.sides[1:], strict=True):
            if operator != "\\approx" or not _is_constant(exact[-1]):
                exact.append(side)
            elif not is_gold and not self.judge.close(exact[-1], side):
                return None
        if len(exact) == 1:
            return exact[0]
        if all(map(_is_constant, exact)):
            if not all(self.same(exact[-1], side) for side in exact[:-1]):
                return None
            return exact[-1]
        return Relation(("=",) * (len(exact) - 1), tuple(exact))

    def _value(self, relation: Relation, other: Node) -> Node | None:
        """What an equation says that something is: of `x = 5` the 5, and of `m + n = 10` the 10."""
        sides = relation.sides
        if _is_target(sides[0]) or (_is_asked_for(sides[0]) and _is_constant(sides[-1])):
            value = sides[-1]
        elif _is_target(sides[-1]) and len(sides) == 2:
            value = sides[0]
        elif isinstance(sides[0], Bracket) and isinstance(sides[-1], Bracket) and len(sides) == 2:
            value = sides[-1]
        else:
            return None
        if any(not self.same(value, side) for side in sides[1:-1]):
            return None
        return None if sides[0] in set(walk(value)) and sides[0] != value and _is_target(sides[0]) else value

    def _same_two_relations(self, gold: Relation, answer: Relation) -> bool:
        if _is_equation(gold) and _is_equation(answer):
            return self._same_equations(gold, answer)
        if all(o in INEQUALITIES for relation in (gold, answer) for o in relation.operators):
            variable = self._common_variable(gold, answer)
            if variable:
                return self.judge.same_set(gold, answer, variable)
            return self._same_inequalities(_ascending(gold), _ascending(answer))
        return gold.operators == answer.operators and all(map(self.same, gold.sides, answer.sides))

    def _same_equations(self, gold: Relation, answer: Relation) -> bool:
        if len(gold.sides) != len(answer.sides):
            # `x = 2 + 3 = 5` and `x = 5`.
            if gold.sides[0] == answer.sides[0] and _is_target(gold.sides[0]):
                values = [self._value(side, Words("")) for side in (gold, answer)]
                return values[0] is not None and values[1] is not None and self.same(values[0], values[1])
            return False
        if len(gold.sides) > 2:
            return all(map(self.same, gold.sides, answer.sides))
        pairs = [(relation.sides[0], relation.sides[1]) for relation in (gold, answer)]
        for place in (0, 1):
            if not _is_target(pairs[place][0]) and _is_target(pairs[place][1]):
                pairs[place] = (pairs[place][1], pairs[place][0])
        (gold_left, gold_right), (answer_left, answer_right) = pairs
        if gold_left == answer_left:
            return self.same(gold_right, answer_right)
        if any(isinstance(side, Bracket | Words | Quantity | Matrix | Listing) for pair in pairs for side in pair):
            return self.same(gold_left, answer_left) and self.same(gold_right, answer_right)
        if _is_target(gold_left) and _is_target(answer_left):
            functions = [side for side in (gold_left, answer_left) if isinstance(side, Apply)]
            if len(functions) == 1 and Name("y") in (gold_left, answer_left):
                return self.same(gold_right, answer_right)
            if len(functions) or (_is_constant(gold_right) and _is_constant(answer_right)):
                return False
        differences = [Apply("+", (left, Apply("neg", (right,)))) for left, right in pairs]
        return self.judge.proportional(differences[0], differences[1], only_positive=False)

    def _same_inequalities(self, gold: Relation, answer: Relation) -> bool:
        if gold.operators != answer.operators:
            return False
        if all(map(lambda left, right: left == right, gold.sides, answer.sides)):
            return True
        if len(gold.sides) > 2:
            return all(map(self.same, gold.sides, answer.sides))
        differences = [Apply("+", (side.sides[1], Apply("neg", (side.sides[0],)))) for side in (gold, answer)]
        return self.judge.proportional(differences[0], differences[1], only_positive=gold.operators != ("\\ne",))

    # Units.

    def _same_quantities(self, gold: Node, answer: Node) -> bool:
        if isinstance(gold, Quantity) and isinstance(answer, Quantity):
            if not gold.unit.is_comparable(answer.unit):
                return False
            if gold.unit.factor == answer.unit.factor or not (gold.unit.powers and answer.unit.powers):
                return self.same(gold.value, answer.value)
            scale = gold.unit.factor / answer.unit.factor
            return self.same(Apply("*", (gold.value, Number(scale))), answer.value)
        values = [side.value if isinstance(side, Quantity) else side for side in (gold, answer)]
        if any(isinstance(value, Words | Bracket) for value in values):
            return False
        powers = {name for side in (gold, answer) if isinstance(side, Quantity) for name, _ in side.unit.powers}
        if powers & _TEMPERATURES:
            values = [replaced(value, {DEGREE: Number(Fraction(1))}) for value in values]
        elif any(DEGREE in set(walk(value)) for value in values):
            return False  # a unit of another kind
        return self.same(*values)

    # Sets, tuples, intervals, matrices.

    def _same_builders(self, gold: Node, answer: Node) -> bool:
        if isinstance(gold, SetBuilder) and isinstance(answer, SetBuilder):
            # The name of a bound variable says nothing.
            golds, answers = _parameters(gold.condition), _parameters(answer.condition)
            if len(golds) == len(answers) == 1 and golds[0] not in set(walk(answer)):
                renaming = {answers[0]: golds[0]}
                answer = SetBuilder(replaced(answer.variable, renaming), replaced(answer.condition, renaming))
            return self.same(gold.variable, answer.variable) and self.same(gold.condition, answer.condition)
        return False

    def _same_matrices(self, gold: Node, answer: Node) -> bool:
        if isinstance(gold, Matrix) and isinstance(answer, Matrix):
            shapes = [(len(side.rows), len(side.rows[0])) for side in (gold, answer)]
            rows = zip(gold.rows, answer.rows, strict=False)
            return (
                shapes[0] == shapes[1]
                and gold.kind == answer.kind
                and all(self.same(left, right) for row, other in rows for left, right in zip(row, other, strict=True))
            )
        vectors = [_as_vector(side) for side in (gold, answer)]
        if isinstance(vectors[0], Bracket) and isinstance(vectors[1], Bracket):
            return self._same_brackets(vectors[0], vectors[1])
        if any(isinstance(side, Matrix) and side.kind == "vmatrix" for side in (gold, answer)):
            return self._same_expressions(gold, answer)
        return False

    def _same_brackets(self, gold: Node, answer: Node) -> bool:
        if isinstance(gold, Bracket) and isinstance(answer, Bracket):
            if gold.opening == answer.opening == "{":
                return self._same_sets(gold, answer)
            kinds = [
                "(" * (side.opening != "{") if len(side.items) != 2 else side.opening + side.closing
                for side in (gold, answer)
            ]
            if kinds[0] != kinds[1] or len(gold.items) != len(answer.items):
                return False
            return all(map(self.same, gold.items, answer.items))
        bracket, other = (gold, answer) if isinstance(gold, Bracket) else (answer, gold)
        if (vector := _unit_vectors(other)) is not None:
            return self._same_brackets(*((gold, vector) if bracket is gold else (vector, answer)))
        if _is_set(other):
            return self.judge.same_set(gold, answer, "")
        assert isinstance(bracket, Bracket)
        if bracket.opening == "{" and len(bracket.items) == 1 and not isinstance(other, Words):
            return self.same(*((bracket.items[0], other) if bracket is gold else (other, bracket.items[0])))
        return False

    def _same_sets(self, gold: Bracket, answer: Bracket) -> bool:
        golds, answers = gold.items, answer.items
        if max(len(golds), len(answers)) > _MAX_ITEMS:
            return gold == answer
        return all(any(self.same(item, other) for other in answers) for item in golds) and all(
            any(self.same(other, item) for other in golds) for item in answers
        )

    # Expressions.

    def _same_expressions(self, gold: Node, answer: Node) -> bool:
        if _is_set(gold) or _is_set(answer):
            return gold == answer or (_is_set(gold) and _is_set(answer) and self.judge.same_set(gold, answer, ""))
        letters = [_letters(side) for side in (gold, answer)]
        if letters[0] is not None and letters[1] is not None:
            return letters[0] == letters[1]
        heads = [side.head if isinstance(side, Apply) else "" for side in (gold, answer)]
        if "base" in heads:
            return _same_based(gold, answer)
        if "ratio" in heads:
            return self._same_ratios(gold, answer)
        if "pmod" in heads:
            return heads[0] == heads[1] and all(map(self.same, gold.args, answer.args))  # type: ignore[union-attr]
        if "%" in heads:
            return self._same_percentages(gold, answer)
        gold, answer = _with_one_constant(gold, answer)
        has_degrees = [DEGREE in set(walk(side)) for side in (gold, answer)]
        if has_degrees[0] != has_degrees[1]:
            # One side leaves the sign out, or is in radians.
            bare = [replaced(side, {DEGREE: Number(Fraction(1))}) for side in (gold, answer)]
            if self.judge.equal(bare[0], bare[1]):
                return True
        return self.judge.equal(gold, answer)

    def _same_percentages(self, gold: Node, answer: Node) -> bool:
        heads = [side.head if isinstance(side, Apply) else "" for side in (gold, answer)]
        bare = [side.args[0] if head == "%" else side for side, head in zip((gold, answer), heads, strict=True)]  # type: ignore[union-attr]
        if heads[0] == heads[1]:
            return self.same(bare[0], bare[1])
        # `50%` is one half, and many golds leave the sign out.
        return self.same(bare[0], bare[1]) or self.judge.equal(gold, answer)

    def _same_ratios(self, gold: Node, answer: Node) -> bool:
        sides = [side.args if isinstance(side, Apply) and side.head == "ratio" else None for side in (gold, answer)]
        if sides[0] is None or sides[1] is None:
            ratio, other = (sides[0], answer) if sides[0] is not None else (sides[1], gold)
            is_fraction = isinstance(other, Number) and not other.is_decimal and other.value.denominator > 1
            is_fraction |= isinstance(other, Apply) and other.head == "/"
            assert ratio is not None
            return is_fraction and len(ratio) == 2 and self.judge.equal(Apply("/", ratio), other)
        if len(sides[0]) != len(sides[1]):
            return False
        return all(
            self.judge.equal(Apply("*", (sides[0][0], right)), Apply("*", (left, sides[1][0])))
            for left, right in zip(sides[0][1:], sides[1][1:], strict=True)
        )


def _same_based(gold: Node, answer: Node) -> bool:
    """Compare `1011_2` with `1011_{2}` and `1011`."""
    sides = []
    for side in (gold, answer):
        if isinstance(side, Apply) and side.head == "base" and isinstance(side.args[0], Words):
            assert isinstance(side.args[1], Number)
            sides.append((side.args[0].text, int(side.args[1].value)))
        elif isinstance(side, Number) and side.value.denominator == 1:
            sides.append((str(side.value), 0))
        else:
            return False
    (left, left_base), (right, right_base) = sides
    if left_base and right_base:
        return int(left, left_base) == int(right, right_base)
    return left.lstrip("0") == right.lstrip("0")


def _letters(node: Node) -> list[str] | None:
    """Return the letters of `ABD`, or of `A, B and D`; `None` for anything else."""
    if isinstance(node, Apply) and node.head == "*":
        items: tuple[Node, ...] = node.args
    elif isinstance(node, Listing):
        items = node.items
    else:
        return None
    letters = [item.text for item in items if isinstance(item, Name) and len(item.text) == 1 and item.text.isupper()]
    return letters if len(letters) == len(items) > 1 else None


def _solved_variables(node: Node) -> list[Node]:
    """Return what the equations of a list are solved for, in order; none if it is no list of such equations."""
    if not isinstance(node, Listing):
        return []
    variables: list[Node] = [
        item.sides[0]
        for item in node.items
        if isinstance(item, Relation)
        and _is_equation(item)
        and isinstance(item.sides[0], Name)
        and _is_target(item.sides[0])
    ]
    return variables if len(variables) == len(node.items) else []


def _value_of(node: Node) -> Node:
    return node.sides[-1] if isinstance(node, Relation) else node


def _solutions(node: Node) -> Sequence[Node] | None:
    """Return the items of a list or set, without `x =` where all are values of one variable."""
    if isinstance(node, Bracket):
        return node.items if node.opening == "{" else None
    if not isinstance(node, Listing):
        return None
    variables = _solved_variables(node)
    if variables and len(set(variables)) == 1:
        return [_value_of(item) for item in node.items]
    return node.items


def _is_union(listing: Node, other: Node) -> bool:
    """Whether a list is a set of real numbers like another answer: inequalities, or intervals joined by "or"."""
    if not isinstance(listing, Listing):
        return False
    if all(map(_is_set, listing.items)):
        # Without the union `(1, 2) or (2, 1)` are points.
        return listing.joiner == "or" and isinstance(other, Apply) and other.head == "cup"
    are_relations = all(isinstance(item, Relation) for item in listing.items)
    return (
        are_relations
        and any(map(_is_inequality, listing.items))
        and (_is_set(other) or _is_inequality(other) or isinstance(other, Listing))
    )


def _is_inequality(node: Node) -> bool:
    return isinstance(node, Relation) and all(operator in INEQUALITIES for operator in node.operators)


def _is_set(node: Node) -> bool:
    r"""Whether it is a set of real numbers by its form: a union, an interval with an infinite end, `\mathbb{R}`."""
    if isinstance(node, Apply):
        return node.head in ("cup", "cap", "setminus")
    if isinstance(node, Bracket):
        return len(node.items) == 2 and node.opening in ("(", "[")
    return isinstance(node, Name) and node.text.startswith("\\mathbb")


def _is_equation(relation: Relation) -> bool:
    return all(operator in ("=", "\\approx") for operator in relation.operators)


def _is_constant(node: Node) -> bool:
    return not any(
        is_variable(part) or isinstance(part, Words | Phrase) or (isinstance(part, Apply) and part.head == "call")
        for part in walk(node)
    )


def _is_asked_for(node: Node) -> bool:
    """Whether it is like `m + n`, `AB` or `\\sin A`: what a question asks the value of, and no equation to be solved."""
    if not isinstance(node, Apply):
        return False
    if _letters(node) is not None:
        return True
    if node.head in ("+", "*", "/", "ratio"):
        are_names = all(_is_target(arg) or _letters(arg) is not None for arg in node.args)
        return are_names and len(set(node.args)) == len(node.args)
    if len(node.args) != 1:
        return False
    name = node.args[0]
    is_angle = isinstance(name, Name) and (name.text.startswith("\\") or name.text.isupper())
    return (node.head == "abs" and (is_variable(name) or _is_asked_for(name))) or (
        is_angle and node.head in ("sin", "cos", "tan", "cot")
    )


def _ascending(relation: Relation) -> Relation:
    if all(operator in _FLIPPED for operator in relation.operators):
        return Relation(tuple(_FLIPPED[o] for o in reversed(relation.operators)), relation.sides[::-1])
    return relation


def _vector(matrix: Matrix) -> Bracket | None:
    if 1 not in (len(matrix.rows), len(matrix.rows[0])) or matrix.kind != "pmatrix":
        return None
    return Bracket("(", ")", tuple(entry for row in matrix.rows for entry in row))


def _as_vector(node: Node) -> Node:
    if isinstance(node, Matrix):
        return _vector(node) or node
    if isinstance(node, Bracket) and node.opening in ("(", "["):
        return Bracket("(", ")", node.items)
    return _unit_vectors(node) or node


def _unit_vectors(node: Node) -> Bracket | None:
    r"""Read `2\mathbf{i} - \mathbf{j}` as `(2, -1)`; `None` for what is no sum of multiples of unit vectors."""
    terms = node.args if isinstance(node, Apply) and node.head == "+" else (node,)
    found: dict[int, Node] = {}
    for term in terms:
        is_negative = isinstance(term, Apply) and term.head == "neg"
        bare = term.args[0] if isinstance(term, Apply) and is_negative else term
        factors = bare.args if isinstance(bare, Apply) and bare.head == "*" else (bare,)
        places = [
            "ijk".index(name.text[-1]) for name in factors if isinstance(name, Name) and name.text in _UNIT_VECTORS
        ]
        if len(places) != 1 or places[0] in found:
            return None
        rest = tuple(name for name in factors if not (isinstance(name, Name) and name.text in _UNIT_VECTORS))
        value: Node = Apply("*", rest) if len(rest) > 1 else rest[0] if rest else Number(Fraction(1))
        found[places[0]] = Apply("neg", (value,)) if is_negative else value
    if not found.keys() & {1, 2}:
        return None  # `3 + 4i` and `4i` are complex numbers
    return Bracket("(", ")", tuple(found.get(place, Number(Fraction(0))) for place in range(3 if 2 in found else 2)))


def _parameters(remark: Node) -> list[Node]:
    found: set[Node] = {part for part in walk(remark) if is_variable(part)}
    return sorted(found, key=str)


def _is_harmless(remark: Phrase) -> bool:
    """Whether a remark says of variables only in which of the usual sets they are."""
    for part in remark.parts:
        if isinstance(part, Words) and set(part.text.split()) <= HARMLESS_WORDS:
            continue
        if isinstance(part, Name):
            continue
        if isinstance(part, Relation) and part.operators == ("\\in",) and isinstance(part.sides[1], Name):
            continue
        if isinstance(part, Listing) and all(_is_harmless(Phrase((item,))) for item in part.items):
            continue
        return False
    return True


def _with_one_constant(gold: Node, answer: Node) -> tuple[Node, Node]:
    """Give the constants of integration of `x^2 + C` and `x^2 + K` one name."""
    constants = [_added_constant(side) for side in (gold, answer)]
    if constants[0] is None or constants[1] is None or constants[0] == constants[1]:
        return gold, answer
    if not {constants[0], constants[1]} & {Name(text) for text in _USUAL_CONSTANTS}:
        return gold, answer
    if constants[0] in set(walk(answer)) or constants[1] in set(walk(gold)):
        return gold, answer
    return gold, replaced(answer, {constants[1]: constants[0]})


def _added_constant(node: Node) -> Node | None:
    if not isinstance(node, Apply) or node.head != "+" or not any(is_variable(part) for part in walk(node)):
        return None
    found = [arg for arg in node.args if isinstance(arg, Name) and arg.text in _CONSTANTS]
    if len(found) != 1 or sum(part == found[0] for part in walk(node)) != 1:
        return None
    others = {part for part in walk(node) if is_variable(part)} - {found[0]}
    return found[0] if others else None
