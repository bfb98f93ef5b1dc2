r"""One form for answers that say the same in several ways: `\pm` as a list, `x \in S` as the set, and the like."""

from fractions import Fraction
from itertools import pairwise

from .nodes import (
    Apply,
    Bracket,
    Given,
    Listing,
    Name,
    Node,
    Number,
    Quantity,
    Relation,
    SetBuilder,
    parts_of,
    replaced,
    walk,
)
from .units import Unit


INEQUALITIES = ("<", ">", "\\le", "\\ge", "\\ne")
_EQUALS = ("=", "\\approx", "\\equiv")
_REALS = Name("\\mathbb{R}")
_NO_VARIABLES = frozenset({"\\pi", "e", "i", "\\infty", "°", "\\ldots"})


def canonical(node: Node) -> Node:
    r"""
    Return an answer in its one form.

    Args:
        node (`Node`):
            An answer as it was read.

    Returns:
        `Node`:
            With both values of `\pm` as a list, what `x` is in for `x \in S` and `\{x \mid ...\}`, equations of single
            variables for equations of tuples, one quantity for `2 hours and 30 minutes`, and `x = 2, x = 3` for `x = 2, 3`.

    Example:

    >>> canonical(Relation(("\\in",), (Name("x"), Name("S"))))
    Name(text='S')
    """
    if isinstance(node, Relation):
        return _canonical_relation(node)
    if isinstance(node, SetBuilder):
        return _canonical_builder(node)
    if isinstance(node, Quantity):
        return _canonical_quantity(node)
    if isinstance(node, Given):
        return Given(canonical(node.value), node.remark)
    if isinstance(node, Listing | Bracket):
        return _canonical_items(node)
    return _both_signs(node) if has_two_signs(node) else node


def is_listing(node: Node) -> bool:
    r"""
    Whether an answer consists of several: `2, 3`, `\{2, 3\}` or `x = \pm 2`.

    Example:

    >>> is_listing(Listing((Name("a"), Name("b")))), is_listing(Name("a"))
    (True, False)
    """
    node = canonical(node)
    return isinstance(node, Listing) or (isinstance(node, Bracket) and node.opening == "{" and len(node.items) > 1)


def is_variable(node: Node) -> bool:
    """
    Whether it is a name that stands for no certain number or set.

    Example:

    >>> is_variable(Name("x_1")), is_variable(Name("e"))
    (True, False)
    """
    return isinstance(node, Name) and node.text not in _NO_VARIABLES and "\\mathbb" not in node.text


def has_two_signs(node: Node) -> bool:
    r"""Whether there is a `\pm` in it."""
    return any(isinstance(part, Apply) and part.head in ("pm", "mp") for part in walk(node))


def _both_signs(node: Node) -> Listing:
    return Listing(tuple(canonical(_signed(node, sign)) for sign in (1, -1)), "or")


def _signed(node: Node, sign: int) -> Node:
    while True:
        choices: dict[Node, Node] = {
            part: part.args[0] if (part.head == "pm") == (sign == 1) else Apply("neg", part.args)
            for part in walk(node)
            if isinstance(part, Apply) and part.head in ("pm", "mp")
        }
        if not choices:
            return node
        node = replaced(node, choices)


def _canonical_relation(node: Relation) -> Node:
    if node.operators == ("\\in",) and is_variable(node.sides[0]):
        return canonical(node.sides[1])
    values = _tuple_of(node)
    if values is not None:
        names = parts_of(node.sides[0])
        return Listing(tuple(Relation(("=",), pair) for pair in zip(names, values.items, strict=True)))
    if has_two_signs(node):
        return _both_signs(node)
    if all(operator in INEQUALITIES for operator in node.operators):
        # `0 < f(x) < 1` says of the value what `0 < y < 1` says of `y`.
        calls = {side for side in node.sides if isinstance(side, Apply) and side.head == "call"}
        if len(calls) == 1:
            return Relation(node.operators, tuple(Name("value") if side in calls else side for side in node.sides))
    return node


def _tuple_of(node: Node) -> Bracket | None:
    """Return the `(5, 8)` of `(x, y) = (5, 8)`."""
    if not isinstance(node, Relation) or node.operators != ("=",):
        return None
    names, values = node.sides
    if not isinstance(names, Bracket) or not isinstance(values, Bracket) or len(names.items) != len(values.items):
        return None
    return values if all(map(is_variable, names.items)) else None


def _canonical_builder(node: SetBuilder) -> Node:
    variable = node.variable
    if isinstance(variable, Relation) and variable.operators == ("\\in",) and variable.sides[1] == _REALS:
        variable = variable.sides[0]
    condition = canonical(node.condition)
    if isinstance(variable, Name) and variable in set(walk(node.condition)):
        is_open = isinstance(condition, Listing) and condition.joiner == ","
        return Listing(parts_of(condition), "and") if is_open else condition
    return SetBuilder(variable, node.condition)


def _canonical_quantity(node: Quantity) -> Node:
    value = canonical(node.value)
    if isinstance(value, Listing):
        return Listing(tuple(Quantity(item, node.unit) for item in value.items), value.joiner)
    if isinstance(value, Relation) and value.operators[-1] in _EQUALS:
        return Relation(value.operators, (*value.sides[:-1], Quantity(value.sides[-1], node.unit)))
    return Quantity(value, node.unit)


def _canonical_items(node: Listing | Bracket) -> Node:
    is_open = isinstance(node, Listing) or node.opening == "{"
    items: list[Node] = []
    for item in node.items:
        plain = _tuple_of(item) or canonical(item)
        # `x = \\pm 2` is two items; `p = 5, q = 2` between semicolons is one.
        is_several = is_open and isinstance(plain, Listing) and not isinstance(item, Listing)
        items += parts_of(plain) if is_several else (plain,)
    if isinstance(node, Bracket):
        return Bracket(node.opening, node.closing, tuple(items))
    quantities = [item for item in items if isinstance(item, Quantity)]
    if node.joiner == "and" and len(quantities) == len(items) > 1 and _is_compound(quantities):
        terms = [Apply("*", (item.value, Number(item.unit.factor))) for item in quantities]
        unit = quantities[0].unit
        return Quantity(Apply("+", tuple(terms)), Unit(Fraction(1), unit.powers, unit.labels))
    first = items[0]
    is_solved = isinstance(first, Relation) and first.operators == ("=",) and is_variable(first.sides[0])
    if is_solved and not any(isinstance(item, Relation) for item in items[1:]):
        # `x = 2, 3` says twice what x is.
        target = parts_of(first)[0]
        items = [first, *(Relation(("=",), (target, item)) for item in items[1:])]
    return Listing(tuple(items), node.joiner) if len(items) != 1 else items[0]


def _is_compound(quantities: list[Quantity]) -> bool:
    """Whether quantities are parts of one, like `2 hours and 30 minutes`."""
    units = [quantity.unit for quantity in quantities]
    is_of_one_kind = bool(units[0].powers) and len({(unit.powers, unit.labels) for unit in units}) == 1
    return is_of_one_kind and all(left.factor > right.factor for left, right in pairwise(units))
