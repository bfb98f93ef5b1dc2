"""Completions that hang, crash or fool graders. None of them is a correct answer to `GOLD`."""

GOLD = r"\sqrt{2}"


def boxed(answer: str) -> str:
    return rf"Clearly \boxed{{{answer}}}."


def matrix(rows: int, columns: int) -> str:
    row = "&".join("1" * columns)
    return r"\begin{pmatrix}" + r"\\".join([row] * rows) + r"\end{pmatrix}"


def nested(opening: str, inside: str, closing: str, depth: int) -> str:
    return opening * depth + inside + closing * depth


HOSTILE = {
    "power tower": boxed("9^{9^{9^{9^{9}}}}"),
    "power tower of a variable": boxed("x^{x^{x^{x^{x^{x}}}}}"),
    "negative power tower": boxed("2^{-9^{9^{9}}}"),
    "quotient of huge powers": boxed(r"\frac{3^{3000000}}{7^{1700000}}"),
    "difference of huge powers": boxed("7^{999999}-7^{999998}"),
    "huge modulus": boxed(r"3^{10^{10}} \mod 7^{10^{6}}"),
    "factorial": boxed("1000000!"),
    "factorial of a factorial": boxed("((20!)!)!"),
    "factorial by the hundred": boxed("5" + "!" * 300),
    "binomial": boxed(r"\binom{10000000}{5000000}"),
    "sum of binomials": boxed(r"\sum_{k=0}^{100000}\binom{100000}{k}"),
    "sum without closed form": boxed(r"\sum_{n=1}^{\infty}\frac{\sin(n^n)}{n!+\cos n}"),
    "long sum": boxed(r"\sum_{n=1}^{1000000000}\frac{1}{n^{n}}"),
    "long product": boxed(r"\prod_{n=1}^{100000000}(1+\frac{1}{n^2+n!})"),
    "integral without closed form": boxed(r"\int_0^1 e^{e^{x^{x}}}\sin(x^{x})\,dx"),
    "many integrals": boxed(r"\int_0^1\int_0^1\int_0^1\int_0^1 e^{xyzw}\sin(xy^z)\,dx\,dy\,dz\,dw"),
    "limit": boxed(r"\lim_{x\to\infty}\frac{x^{x^{x}}\sin(e^{x})}{\Gamma(x^x)}"),
    "equation without solution formula": boxed(r"x^{7}+x^{x}+\sin(e^{x})=\ln(x+\cos x)"),
    "inequality without solution formula": boxed(r"x^{5}-x+\sin(x^{3})<e^{\cos x}"),
    "fractions in fractions": boxed(nested(r"\frac{1}{1+", "1", "}", 5_000)),
    "short fractions in fractions": boxed(nested(r"\frac{1}{1+", "1", "}", 75)),
    "roots in roots": boxed(nested(r"\sqrt{2+", "2", "}", 3_000)),
    "short roots in roots": boxed(nested(r"\sqrt{2+", "2", "}", 100)),
    "denesting": boxed(r"\sqrt{2+\sqrt{3+\sqrt{5+\sqrt{7+\sqrt{11+\sqrt{13+\sqrt{17}}}}}}}"),
    "parentheses": boxed(nested("(", "1", ")", 480)),
    "absolute values": boxed(nested("|", "x-1", "|", 200)),
    "sines of sines": boxed(nested(r"\sin(", "x", ")", 150)),
    "logarithms of logarithms": boxed(nested(r"\log(", "10", ")", 150)),
    "opening braces": "{" * 200_000,
    "closing braces": "}" * 200_000,
    "opening braces in a box": boxed("{" * 200_000),
    "boxes in boxes": r"\boxed{" * 50_000 + "1" + "}" * 50_000,
    "unfinished boxes": r"\boxed{" * 100_000,
    "a hundred thousand boxes": r"\boxed{1}, " * 100_000,
    "backslashes": "\\" * 300_000,
    "dollars": "$" * 300_000,
    "great matrix": boxed(matrix(40, 40)),
    "matrix within the length limit": boxed(matrix(14, 14)),
    "power of a matrix": boxed(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{1000000}"),
    "inverse of a matrix": boxed(r"\begin{pmatrix}a&b&c&d\\e&f&g&h\\j&k&l&m\\n&o&p&q\end{pmatrix}^{-1}"),
    "expanding a power": boxed("(a+b+c+d+f+g+h)^{60}-(a+b+c+d+f+g-h)^{60}"),
    "power of a sum": boxed("(x+1)^{100000}-x^{100000}"),
    "partial fractions": boxed(r"\frac{1}{(x^{50}-1)(x^{49}+x+1)(x^{47}-x-3)}+\frac{\sqrt{x+\sqrt{x^3+1}}}{x^{31}+2}"),
    "trigonometry": boxed("+".join(rf"\sin^{{{n}}}({n}x)\cos({n}y)" for n in range(2, 35))),
    "null bytes": boxed("\x00" * 50 + "1\x00+\x002"),
    "null bytes around": "\x00" * 1_000 + r"\boxed{1}" + "\x00" * 1_000,
    "lone surrogates": boxed("\ud800 + \udfff x"),
    "lone surrogates around": "\udcff" * 1_000 + boxed("1") + "\ud800",
    "control characters": boxed("".join(map(chr, range(1, 32)))),
    "direction marks": boxed("\u202e12\u202c\u200b\u2066"),
    "a megabyte of words": "so we see that " * 70_000,
    "a megabyte in a box": boxed("1+" * 500_000 + "1"),
    "a megabyte of digits": boxed("7" * 1_000_000),
    "five thousand digits": boxed("7" * 5_000),
    "digits within the length limit": boxed("7" * 990),
    "a megabyte of answer lines": "Answer: x\n" * 100_000,
    "a megabyte of spaces": "the answer is" + " " * 1_000_000 + "5",
    "backtracking: spaces": "answer" + " \t" * 100_000 + "#",
    "backtracking: thousands": boxed("1" + ",000" * 249 + ","),
    "backtracking: units": boxed("5 " + "per of the " * 90),
    "backtracking: words": "Answer: " + "a-" * 495,
    "backtracking: text commands": boxed(r"\text{" * 160),
    "backtracking: fractions": boxed(r"\frac1" * 160),
    "backtracking: percent": boxed("5" + r"\%" * 400),
    "backtracking: inline formulas": "answer is $" + "a" * 50_000,
    "memory: giant power": boxed("10^{10^{9}}"),
    "memory: shifted product": boxed("2^{2^{33}} \\cdot 3^{2^{33}}"),
    "memory: set of many": boxed(r"\{" + ",".join(f"{n}!!" for n in range(90, 250)) + r"\}"),
    "memory: power of a polynomial": boxed("((x+y+z+1)^{40})^{40}=1"),
    "memory: big decimal exponent": boxed("1.5^{1.5^{1.5^{99}}}"),
    "not a number": boxed(r"\frac{0}{0}"),
    "division by zero": boxed(r"\frac{1}{0}"),
    "infinity minus infinity": boxed(r"\infty-\infty"),
    "python": boxed("__import__('os').system('true')"),
    "python in text": boxed(r"\text{__import__('time').sleep(99)}"),
    "format string": boxed("%s%s%n{0.__class__}"),
    "unknown commands": boxed(r"\write18{true}\input{/dev/zero}\def\x{\x\x}\x"),
    "the gold in the reasoning": r"We see $\sqrt{2}$ and \boxed{\sqrt{2}}, yet it is \boxed{\sqrt{3}}",
    "the gold and more": boxed(r"\sqrt{2}, \sqrt{3}, 1.41421356"),
    "almost the gold": boxed(r"\frac{14142135623730950488016887242096980785696718753769}{10^{49}}"),
}
