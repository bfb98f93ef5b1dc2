"""
Golds with structure, the same golds with one number changed, and in another writing.

    python tests/perturbations.py   # grades them all and prints what is accepted, and what refused, against the rule
"""

import random
import re
from collections.abc import Callable, Iterator

from trl_dapo.grading.equivalence import Grade, grade


_NUMBER = re.compile(r"[0-9]+")


def golds(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield kinds and golds without end: what public sets of problems have as answers, with other numbers."""

    def number(low: int = 2, high: int = 60) -> int:
        return rng.randint(low, high)

    def sign() -> str:
        return rng.choice(["", "-"])

    def variable() -> str:
        return rng.choice("xyntk")

    def unit() -> str:
        return rng.choice(
            ["cm", "m", "km", "inches", "feet", "hours", "minutes", "dollars", "apples", "students", "degrees", "cm}^{2",
             "m}^{3", "square units", "miles per hour", "kg", "units", "ways", "years old"]
        )  # fmt: skip

    while True:
        a, b, c, d = (number() for _ in range(4))
        small = rng.choice([2, 3, 5, 6, 7, 10, 11])
        x, y = rng.sample("xyzabmn", 2)
        yield "fraction", rf"{sign()}\frac{{{a}}}{{{b}}}"
        yield "fraction", f"{sign()}{a}/{b}"
        yield "mixed number", rf"{a}\frac{{{min(b, c)}}}{{{max(b, c) + 1}}}"
        yield "decimal", f"{sign()}{a}.{rng.choice(['5', '25', '75', '125', '07', '3'])}"
        yield "thousands", f"{a},{number(100, 999)}"
        yield "thousands", rf"{a}{{,}}{number(100, 999)}{{,}}{number(100, 999)}"
        yield "radical", rf"{a}\sqrt{{{small}}}"
        yield "radical", rf"\frac{{{a}\sqrt{{{small}}}}}{{{b}}}"
        yield "radical", rf"\frac{{{sign()}{a} + \sqrt{{{b}}}}}{{{c}}}"
        yield "radical", rf"\sqrt[{rng.choice([3, 4, 5])}]{{{a}}}"
        yield "radical", rf"{a} \pm {b}\sqrt{{{small}}}"
        yield "constant", rf"\frac{{{a}\pi}}{{{b}}}"
        yield "constant", rf"{a}\pi + {b}"
        yield "constant", rf"e^{{{a}}} - {b}"
        yield "logarithm", rf"{a}\ln {b}"
        yield "logarithm", rf"\log_{{{small}}} {a}"
        yield "trigonometry", rf"\arctan \frac{{{a}}}{{{b}}}"
        yield "trigonometry", rf"\sin {number(1, 89)}^\circ"
        yield "power", rf"{small}^{{{a}}}"
        yield "power", rf"{a} \cdot {small}^{{{b}}} - {c}"
        yield "power", rf"{a}.{number(1, 9)} \times 10^{{{sign()}{number(2, 30)}}}"
        yield "power", f"{a}e{number(2, 20)}"
        yield "factorial", rf"{number(5, 30)}! + {a}"
        yield "factorial", rf"\frac{{1}}{{{number(20, 2000)}!}}"
        yield "binomial", rf"\binom{{{number(30, 60)}}}{{{number(2, 14)}}}"
        yield "complex", f"{a} {rng.choice('+-')} {b}i"
        yield "polynomial", f"{a}{x}^2 + {b}{x} - {c}"
        yield "polynomial", f"({x}+{a})({x}-{b})^{{{number(2, 5)}}}"
        yield "rational function", rf"\frac{{{a}{x}+{b}}}{{{x}^2+{c}}}"
        yield "exponential", rf"{small}^{{{variable()}+{a}}}"
        yield "sequence", rf"\frac{{n(n+{a})}}{{{b}}}"
        yield "sequence", rf"{small}^{{n}} - {a}n"
        yield "indices", rf"{x}_{{{number(1, 9)}}} + {a}{y}_{{{number(1, 9)}}}"
        yield "constant of integration", rf"{a}x^{{{number(2, 9)}}} + {b}x + C"
        yield "tuple", f"({sign()}{a}, {b})"
        yield "tuple", rf"\left({a}, \frac{{{b}}}{{{c}}}, {sign()}{d}\right)"
        yield "tuples", f"({a},{b}), ({c},{d})"
        yield "vector", rf"\begin{{pmatrix}} {a} \\ {sign()}{b} \\ {c} \end{{pmatrix}}"
        yield "matrix", rf"\begin{{pmatrix}} {a} & {b} \\ {c} & {sign()}{d} \end{{pmatrix}}"
        yield "interval", f"[{-a}, {b})"
        yield "interval", rf"\left(-\infty, {a}\right]"
        yield "interval", rf"(-\infty, {-a}) \cup ({b}, \infty)"
        yield "interval", rf"[{-a}, {b}] \cup \{{{b + c}\}}"
        yield "inequality", f"{x} > {a}"
        yield "inequality", rf"{-a} \le {x} < {b}"
        yield "inequality", rf"{x} < {-a} \text{{ or }} {x} > {b}"
        yield "inequality", rf"{x} \neq {a}"
        yield "inequality", rf"{a}{x} + {b}{y} \le {c}"
        yield "set", rf"\{{{a}, {a + b}, {a + b + c}\}}"
        yield "set", rf"\{{{x} \mid {-a} < {x} \le {b}\}}"
        yield "list", f"{a}, {a + b}"
        yield "list", rf"{a} \text{{ and }} {a + b}"
        yield "list", f"{-a};{b}"
        yield "equation", f"{x} = {a}"
        yield "equation", f"y = {a}x + {b}"
        yield "equation", f"{a}x + {b}y = {c}"
        yield "equation", rf"\frac{{x^2}}{{{a}}} + \frac{{y^2}}{{{b}}} = 1"
        yield "equation", f"(x-{a})^2 + (y+{b})^2 = {c}"
        yield "equation", f"f(x) = {a}x^2 - {b}"
        yield "equation", f"f({a}) = {b}"
        yield "equation", rf"\log_{{{small}}} {small**3} = 3"
        yield "equation", f"{2 * 3 * small * a} = 2 \\cdot 3 \\cdot {small} \\cdot {a}"
        yield "assignments", f"{x} = {a}, {y} = {b}"
        yield "assignments", rf"{x} = {a} \text{{ and }} {y} = {b}"
        yield "assignments", rf"{x} = \pm {a}"
        yield "congruence", rf"{x} \equiv {a} \pmod{{{a + b}}}"
        yield "units", rf"{a} \text{{ {unit()}}}"
        yield "units", rf"{a}.{number(1, 9)}\text{{ {unit()}}}"
        yield "units", rf"\frac{{{a}}}{{{b}}} \text{{ {unit()}}}"
        yield "units", rf"{a} \text{{ hours }} {number(2, 58)} \text{{ minutes}}"
        yield "units", rf"{a} \mathrm{{~cm}}, {b} \mathrm{{~cm}}"
        yield "units", rf"{a} \text{{ boys and }} {b} \text{{ girls}}"
        yield "currency", rf"\${a}.{number(10, 99)}"
        yield "percent", rf"{a}\%"
        yield "percent", rf"{a}\frac{{1}}{{3}}\%"
        yield "percent", rf"{a}\% \text{{ increase}}"
        yield "degrees", rf"{a}^\circ"
        yield "degrees", rf"{a}^\circ, {a + b}^\circ"
        yield "time", f"{number(1, 12)}:{number(10, 58)}"
        yield "time", rf"{number(1, 11)}:{number(10, 58)} \text{{ p.m.}}"
        yield "ratio", f"{small}:{a * small + 1}:{b}"
        yield "choice", rf"\textbf{{(A)}}\ {a}"
        yield "choice", rf"\text{{(C)}} \frac{{{a}}}{{{b}}}"
        yield "base", f"{number(10, 77)}_{{{rng.choice([9, 11, 12])}}}"
        yield "text", rf"\text{{Row }} {a}"
        yield "text", rf"\text{{March }} {number(2, 29)}, {number(1900, 2020)}"
        yield "text", rf"n \text{{ is divisible by }} {a}"
        yield "text", rf"{a}^n \text{{ if }} n \text{{ is even}}, {b} \text{{ otherwise}}"
        yield "approximation", rf"{a}\sqrt{{{small}}} \approx {a * small**0.5:.2f}"
        yield "parameter", rf"\frac{{\pi}}{{{a}}} + {b}k\pi, k \in \mathbb{{Z}}"
        yield "remark", rf"{a}x^{{{number(2, 7)}}} \text{{ for }} x > {b}"
        yield "sum", rf"\sum_{{k=1}}^{{{number(4, 30)}}} k^{{{number(2, 4)}}}"
        yield "ordinal", rf"{a}^{{\text{{th}}}}"
        yield "absolute value", rf"|{x} - {a}| + {b}"
        yield "floor", rf"\lfloor {a}{x} \rfloor"


def changed(gold: str, rng: random.Random) -> str:
    """Return a gold with one of its numbers, chosen at random, one larger."""
    match = rng.choice(list(_NUMBER.finditer(gold)))
    width = len(match[0]) if match[0].startswith("0") else 0
    return gold[: match.start()] + f"{int(match[0]) + 1:0{width}d}" + gold[match.end() :]


REWRITES: dict[str, Callable[[str], str]] = {
    "dfrac": lambda gold: gold.replace("\\frac", "\\dfrac"),
    "tfrac": lambda gold: gold.replace("\\frac", "\\tfrac"),
    "left and right": lambda gold: re.sub(r"(?<![\\a-zA-Z])\(([^()]*)\)", r"\\left(\1\\right)", gold),
    "no blanks": lambda gold: re.sub(r"(?<![a-zA-Z}\\]) (?![a-zA-Z])", "", gold),
    "thin blanks": lambda gold: re.sub(r"([+=,]) ", r"\1\\, ", gold),
    "dollars": lambda gold: gold if "\\$" in gold else f"${gold}$",
    "parentheses of TeX": lambda gold: f"\\({gold}\\)",
    "period": lambda gold: gold + ".",
    "display style": lambda gold: "\\displaystyle " + gold,
    "braces": lambda gold: "{" + gold + "}",
    "le": lambda gold: re.sub(r"\\le(?![a-z])", r"\\leq", gold),
    "ne": lambda gold: gold.replace("\\neq", "\\ne"),
    "times": lambda gold: gold.replace("\\cdot", "\\times"),
    "mathrm": lambda gold: gold.replace("\\text{", "\\mathrm{"),
    "textrm": lambda gold: gold.replace("\\text{", "\\textrm{"),
    "minus": lambda gold: re.sub(r"(?<![a-zA-Z])-", "\u2212", gold),
    "circ": lambda gold: gold.replace("^\\circ", "^{\\circ}"),
    "thousands": lambda gold: (
        re.sub(r"(?<=[0-9])(?:,|\{,\})(?=[0-9]{3})", "", gold) if re.fullmatch(r"[0-9{},]+", gold) else gold
    ),
    "x =": lambda gold: f"x = {gold}" if re.fullmatch(r"-?(?:[0-9]+|\\frac\{[0-9]+\}\{[0-9]+\})", gold) else gold,
    "set in another order": lambda gold: re.sub(
        r"^(\\\{)([0-9]+), ([0-9]+), ([0-9]+)(\\\})$", r"\1\4, \2, \3\5", gold
    ),
    "bold": lambda gold: f"\\mathbf{{{gold}}}" if re.fullmatch(r"[0-9./\-]+", gold) else gold,
}


def sample(number: int, seed: int) -> list[tuple[str, str]]:
    """Return so many distinct golds with at least one number, and their kinds."""
    rng = random.Random(seed)
    found: dict[str, str] = {}
    for kind, gold in golds(rng):
        found.setdefault(gold, kind)
        if len(found) == number:
            return [(kind, gold) for gold, kind in found.items()]
    raise AssertionError("unreachable")


def accepted_changes(number: int, seed: int) -> list[tuple[str, str, str]]:
    """Grade golds with one number changed; return the kind, gold and answer of those that are called correct."""
    rng = random.Random(seed + 1)
    pairs = [(kind, gold, changed(gold, rng)) for kind, gold in sample(number, seed)]
    graded = grade([gold for _, gold, _ in pairs], [f"\\boxed{{{answer}}}" for _, _, answer in pairs])
    return [pair for pair, result in zip(pairs, graded, strict=True) if result.grade is Grade.CORRECT]


def refused_rewrites(number: int, seed: int) -> tuple[list[tuple[str, str, str]], int]:
    """Grade golds in other writings; return the kind of writing, gold and answer of those refused, and how many there were."""
    pairs = [
        (name, gold, rewrite(gold))
        for _, gold in sample(number, seed)
        for name, rewrite in [("itself", str), *REWRITES.items()]
        if name == "itself" or rewrite(gold) != gold
    ]
    graded = grade([gold for _, gold, _ in pairs], [f"\\boxed{{{answer}}}" for _, _, answer in pairs])
    refused = [pair for pair, result in zip(pairs, graded, strict=True) if result.grade is not Grade.CORRECT]
    return refused, len(pairs)


if __name__ == "__main__":
    num_golds = 4_000
    accepted = accepted_changes(num_golds, seed=0)
    print(f"one number changed: {len(accepted)} of {num_golds} accepted ({len(accepted) / num_golds:.2%})")
    for row in accepted:
        print("  ", *row, sep=" | ")
    refused, num_rewrites = refused_rewrites(num_golds // 4, seed=1)
    print(f"rewritten: {len(refused)} of {num_rewrites} refused ({len(refused) / num_rewrites:.2%})")
    for row in refused[:60]:
        print("  ", *row, sep=" | ")
