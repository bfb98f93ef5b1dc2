"""What an answer is made of, once it has been read: numbers, expressions, and collections of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from .units import Unit


@dataclass(frozen=True, slots=True)
class Number:
    """
    A rational number.

    Args:
        value (`Fraction`):
            Its value.
        places (`int`, *optional*):
            Decimal places that it is written with, as it may have been rounded to them; `None` if it is no decimal.
    """

    value: Fraction
    places: int | None = None

    @property
    def is_decimal(self) -> bool:
        """Whether it is written with a decimal point."""
        return self.places is not None


@dataclass(frozen=True, slots=True)
class Name:
    r"""A variable or constant: `x`, `a_1`, `\pi`, `i`, `°`."""

    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """Words, in lower case and with one blank between them."""

    text: str


@dataclass(frozen=True, slots=True)
class Apply:
    r"""
    An operation on expressions.

    Args:
        head (`str`):
            `+`, `*`, `/`, `^`, `neg`, `pm`, `mp`, `!`, `%`, the name of a function, `call` (of a named function),
            `cup`, `cap`, `setminus`, `sum`, `prod` or `int`.
        args (`tuple`):
            What it is applied to.
    """

    head: str
    args: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Bracket:
    r"""
    Items in brackets: a tuple, interval or set.

    Args:
        opening, closing (`str`):
            `(`, `[`, `{` or `<` and the like.
        items (`tuple`):
            What stands between them.
    """

    opening: str
    closing: str
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class SetBuilder:
    r"""The set `\{variable | condition\}`."""

    variable: "Node"
    condition: "Node"


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix or vector, by rows; `kind` is that of LaTeX's environment."""

    rows: tuple[tuple["Node", ...], ...]
    kind: str = "pmatrix"


@dataclass(frozen=True, slots=True)
class Listing:
    """Items without brackets; `joiner` is `,`, `and` or `or`, whichever says most."""

    items: tuple["Node", ...]
    joiner: str = ","


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain like `0 < x = y`: sides, and the operators between them."""

    operators: tuple[str, ...]
    sides: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with a unit."""

    value: "Node"
    unit: Unit


@dataclass(frozen=True, slots=True)
class Given:
    """A value with a remark like `for all real x`; the remark is a [`Phrase`]."""

    value: "Node"
    remark: "Phrase"


@dataclass(frozen=True, slots=True)
class Choice:
    """A letter of a multiple choice, with its content."""

    letter: str
    content: "Node"


@dataclass(frozen=True, slots=True)
class Clock:
    """
    A time of day.

    Args:
        minutes (`int`):
            Minutes since midnight; since midnight or noon, if `is_half` says so.
        is_half (`bool`):
            Whether it may be in either half of the day.
    """

    minutes: int
    is_half: bool


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words with mathematics between them, in order."""

    parts: tuple["Node", ...]


Node: TypeAlias = (
    Number
    | Name
    | Words
    | Apply
    | Bracket
    | SetBuilder
    | Matrix
    | Listing
    | Relation
    | Quantity
    | Given
    | Choice
    | Clock
    | Phrase
)


def parts_of(node: Node) -> tuple[Node, ...]:
    """Return the nodes that a node consists of directly."""
    if isinstance(node, Apply):
        return node.args
    if isinstance(node, Bracket | Listing):
        return node.items
    if isinstance(node, Relation):
        return node.sides
    if isinstance(node, Matrix):
        return tuple(entry for row in node.rows for entry in row)
    if isinstance(node, SetBuilder):
        return (node.variable, node.condition)
    if isinstance(node, Quantity):
        return (node.value,)
    if isinstance(node, Given):
        return (node.value, *node.remark.parts)
    if isinstance(node, Choice):
        return (node.content,)
    if isinstance(node, Phrase):
        return node.parts
    return ()


def walk(node: Node) -> Iterator[Node]:
    """
    Yield a node and all that it consists of.

    Example:

    >>> [part.text for part in walk(Apply("+", (Name("x"), Name("y")))) if isinstance(part, Name)]
    ['x', 'y']
    """
    yield node
    for part in parts_of(node):
        yield from walk(part)


def with_parts(node: Node, parts: tuple[Node, ...]) -> Node:
    """Return a node of the same kind of other parts, as many as [`parts_of`] returned."""
    if isinstance(node, Apply):
        return Apply(node.head, parts)
    if isinstance(node, Bracket):
        return Bracket(node.opening, node.closing, parts)
    if isinstance(node, Listing):
        return Listing(parts, node.joiner)
    if isinstance(node, Relation):
        return Relation(node.operators, parts)
    if isinstance(node, Matrix):
        width = len(node.rows[0])
        return Matrix(tuple(parts[start : start + width] for start in range(0, len(parts), width)), node.kind)
    if isinstance(node, SetBuilder):
        return SetBuilder(*parts)
    if isinstance(node, Quantity):
        return Quantity(parts[0], node.unit)
    if isinstance(node, Given):
        return Given(parts[0], Phrase(parts[1:]))
    if isinstance(node, Choice):
        return Choice(node.letter, parts[0])
    if isinstance(node, Phrase):
        return Phrase(parts)
    return node


def replaced(node: Node, replacement: dict[Node, Node]) -> Node:
    """
    Replace nodes by others, everywhere in a node.

    Example:

    >>> replaced(Apply("+", (Name("x"), Name("K"))), {Name("K"): Name("C")})
    Apply(head='+', args=(Name(text='x'), Name(text='C')))
    """
    if node in replacement:
        return replacement[node]
    parts = parts_of(node)
    return with_parts(node, tuple(replaced(part, replacement) for part in parts)) if parts else node
