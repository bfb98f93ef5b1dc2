"""math-verify's LaTeX parser, faster: parse in ANTLR's quick mode first, and in its full mode where that fails.

Nearly all the time of a grading goes into predicting grammar rules with full context (LL), which is never cached. ANTLR
guarantees that its weaker mode (SLL), which is cached, builds the same tree or reports a syntax error, see
https://www.antlr.org/api/Java/org/antlr/v4/runtime/atn/PredictionMode.html.
"""

from typing import Any

from antlr4 import PredictionMode
from antlr4.atn.ParserATNSimulator import ParserATNSimulator
from antlr4.dfa.DFA import DFA
from antlr4.PredictionContext import PredictionContextCache
from latex2sympy2_extended import latex2sympy2
from latex2sympy2_extended.antlr_parser import PSParser


# The quick mode keeps tables of its own: its entries would mislead the full mode.
_tables = [DFA(state, number) for number, state in enumerate(PSParser.atn.decisionToState)]
_contexts = PredictionContextCache()


class TwoStageParser(PSParser):
    """The grammar's parser with two attempts at a text."""

    _interp: Any

    def math(self) -> Any:
        """
        Parse a formula.

        Returns:
            `PSParser.MathContext`: The tree.

        Raises:
            `Exception`: If the text is not in the grammar, as the error listener has it.
        """
        full = self._interp
        self._interp = ParserATNSimulator(self, self.atn, _tables, _contexts)
        self._interp.predictionMode = PredictionMode.SLL
        try:
            return super().math()
        except Exception:
            self._interp = full
            self.reset()
            return super().math()


def install() -> None:
    """Have latex2sympy use it, in this process."""
    latex2sympy2.PSParser = TwoStageParser
