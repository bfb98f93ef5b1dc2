"""
The labelled answers, and what others say about them.

    python tests/corpus.py   # asks them again and rewrites tests/data/disagreements.md
"""

import json
import logging
from pathlib import Path
from typing import Any


DATA = Path(__file__).resolve().parent / "data"

# What disagreeing means: another opinion than the label. math-verify cannot say that a gold is bad, TRL says None.
_EXPECTED = {"correct": (True, 1.0), "unparseable_gold": (False, None)}


def load_corpus() -> list[dict[str, Any]]:
    """Rows with `kind`, `gold`, `completion`, `grade`, and where others disagree their opinions and `why`."""
    return [json.loads(line) for line in (DATA / "equivalence.jsonl").read_text(encoding="utf-8").splitlines()]


def load_shapes() -> list[dict[str, Any]]:
    """Rows with `kind`, `gold`, `completion`, `grade`, and the opinions of others."""
    return [json.loads(line) for line in (DATA / "shapes.jsonl").read_text(encoding="utf-8").splitlines()]


def ask_others(gold: str, completion: str) -> dict[str, bool | float | None]:
    """Opinions of math-verify with its defaults, the same with the gold in a box, and TRL's `accuracy_reward`."""
    from math_verify import parse, verify
    from trl.rewards import accuracy_reward

    answer = parse(completion)
    has_box = "\\boxed" in gold and gold.count("{") == gold.count("}")
    boxed = gold if has_box else rf"\boxed{{{gold}}}"
    return {
        "math_verify": bool(verify(parse(gold), answer)),
        "math_verify_boxed": bool(verify(parse(boxed), answer)),
        "trl": accuracy_reward([[{"role": "assistant", "content": completion}]], [gold])[0],
    }


def disagreements(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask others about every row that does not say `not_asked`; return the rows on which any disagrees."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    found = []
    for row in rows:
        if "not_asked" in row:
            continue
        opinions = ask_others(row["gold"], row["completion"])
        as_bool, as_reward = _EXPECTED.get(row["grade"], (False, 0.0))
        expected = {"math_verify": as_bool, "math_verify_boxed": as_bool, "trl": as_reward}
        if opinions != expected:
            found.append({**row, **opinions})
    return found


def render(rows: list[dict[str, Any]], shapes: list[dict[str, Any]]) -> str:
    """The list of disagreements as Markdown, from what the two files say."""
    asked = [row for row in rows if "not_asked" not in row]
    listed = [row for row in asked if "why" in row]
    lines = [
        "# Where others disagree with the labels",
        "",
        "Written by `python tests/corpus.py` and held by `tests/test_corpus.py`; `equivalence.jsonl` is the corpus. A",
        "cell in bold is an opinion that differs from the label. In each row the label is right, for the reason given.",
        "math-verify 0.9 with its defaults; the same with the gold wrapped in a box, which it was made for; and",
        "`accuracy_reward` of TRL 1.16, in which None means that the gold is unreadable.",
        "",
        f"Of {len(asked)} pairs that can be asked of all (of {len(rows)}; the rest would run for minutes), right and, of",
        "the wrong ones, those that call a wrong answer correct:",
        "",
        "| | right | calls wrong correct |",
        "|---|---|---|",
    ]
    for key in ("math_verify", "math_verify_boxed", "trl"):
        differing = [row for row in listed if _differs(row, key)]
        false_positives = sum(bool(row[key]) for row in differing)
        share = 1 - len(differing) / len(asked)
        lines.append(f"| `{key}` | {len(asked) - len(differing)} ({share:.1%}) | {false_positives} |")
    lines += [
        "",
        "| gold | completion | label | math-verify | gold in a box | TRL | why |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in listed:
        cells = [_code(row["gold"]), _code(row["completion"]), row["grade"]]
        for key in ("math_verify", "math_verify_boxed", "trl"):
            cells.append(f"**{row[key]}**" if _differs(row, key) else str(row[key]))
        lines.append("| " + " | ".join([*cells, row["why"]]) + " |")
    return "\n".join([*lines, *_render_shapes(shapes)]) + "\n"


def _render_shapes(shapes: list[dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "# What models and datasets write",
        "",
        f"`shapes.jsonl` has {len(shapes)} more pairs, of the kinds that are reported in public: how answers are declared, and",
        "how they are written. By kind, the pairs that each grades as labelled, and the wrong answers that it calls correct. We",
        "wrote the pairs, so the counts describe them and not your data.",
        "",
        "| kind | pairs | math-verify, gold in a box | of these wrong, called correct | TRL | of these wrong, called correct |",
        "|---|---|---|---|---|---|",
    ]
    kinds = list(dict.fromkeys(row["kind"] for row in shapes))
    for kind in [*kinds, "all"]:
        of_kind = [row for row in shapes if kind in (row["kind"], "all")]
        cells = [kind, str(len(of_kind))]
        for key in ("math_verify_boxed", "trl"):
            differing = [row for row in of_kind if _differs(row, key)]
            cells += [str(len(of_kind) - len(differing)), str(sum(bool(row[key]) for row in differing))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _differs(row: dict[str, Any], key: str) -> bool:
    as_bool, as_reward = _EXPECTED.get(row["grade"], (False, 0.0))
    return row[key] != (as_reward if key == "trl" else as_bool)


def _code(text: str) -> str:
    return "``" + " " + text.replace("\n", " ⏎ ").replace("|", "\\|") + " ``"


if __name__ == "__main__":
    all_shapes = [row | ask_others(row["gold"], row["completion"]) for row in load_shapes()]
    (DATA / "shapes.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in all_shapes), encoding="utf-8"
    )
    (DATA / "disagreements.md").write_text(render(load_corpus(), all_shapes), encoding="utf-8")
    for row in disagreements(load_corpus()):
        if "why" not in row:
            print("not listed:", row)
