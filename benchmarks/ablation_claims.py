"""What the paper says of each part, and what `ablation.json` says of that."""

from ablation_tables import (
    LADDER,
    RARE,
    Comparison,
    Interval,
    budget_gain,
    growth,
    largest_drop,
    left_out,
    mean_of_log,
    table,
)  # fmt: skip


def claims(data: Comparison) -> str:
    """Returns the table of claims, each with its effect, paired over seeds, and a verdict that the interval decides."""
    rows: list[list[str]] = []

    def add(claim: str, figure: str, effect: Interval, claimed: int = 1, scale: float = 100, digits: int = 1) -> None:
        rows.append([claim, figure, effect.text(scale, digits, signed=True), effect.verdict(claimed)])

    def both(claim: str, part: str, figure, unit: str, claimed: int = 1, scale: float = 100, digits: int = 1) -> None:
        rung = LADDER.index("DAPO" if part == "dynamic sampling" else f"+ {part}")
        on_the_ladder = data.difference(LADDER[rung], LADDER[rung - 1], figure)
        add(claim, f"{unit}, on the ladder", on_the_ladder, claimed, scale, digits)
        if part != "dynamic sampling":
            of_the_whole = data.difference("DAPO", left_out(part), figure)
            add("", f"{unit}, in the whole", of_the_whole, claimed, scale, digits)

    both("Overlong filtering raises accuracy", "overlong filtering", "accuracy", "avg@4, points")
    both("... and makes training steadier", "overlong filtering", largest_drop, "largest fall of avg@4, points", -1)
    both("Clip-Higher raises accuracy", "clip-higher", "accuracy", "avg@4, points")
    both("... and keeps entropy up", "clip-higher", "entropy", "entropy, nats", 1, 1, 3)
    if all(RARE.format(width) in data.results for width in ("0.2", "0.28", "0.4")):
        for width in ("0.28", "0.4"):
            pair = RARE.format(width), RARE.format("0.2")
            where = f"{width} over 0.2, rare answers alone"
            add("", f"entropy, nats, {where}", data.difference(*pair, "entropy"), 1, 1, 3)
            add("", f"avg@4, points, {where}", data.difference(*pair, "accuracy"))
    probability = data.mean("+ overlong filtering", mean_of_log("clipped_probability"))
    below = Interval(probability.mean - 0.2, probability.half)
    add("Tokens that a clip of 0.2 holds back have a probability below 0.2", "mean less 0.2", below, -1, 1, 2)
    both("Soft overlong punishment raises accuracy", "soft overlong punishment", "accuracy", "avg@4, points")
    both("... and fewer completions are cut off", "soft overlong punishment", "truncated", "cut off, points", -1)
    both("Token-level loss raises accuracy a little", "token-level loss", "accuracy", "avg@4, points")
    both("... and keeps wrong answers shorter", "token-level loss", "length_wrong", "tokens", -1, 1)
    both("Dynamic sampling raises accuracy at equal steps", "dynamic sampling", "accuracy", "avg@4, points")
    add("... and at equal generated tokens", "avg@4 over TRL's, points", budget_gain(data, "tokens"))
    solved = data.mean("+ token-level loss", growth("all_correct"))
    add("Without it more and more groups are all right", "last less first quarter, points of groups", solved)
    whole = data.difference("DAPO", "naive GRPO", "accuracy")
    add("All parts together raise accuracy (paper: +20 points)", "avg@4, points", whole)
    return table(["claim", "measured by", "effect", "verdict"], rows)
