"""A small record of rollout groups with everything in it, made by the trainer's own writer. It needs no torch."""

import json
import random

from trl_dapo.report.shards import RolloutShards


VERDICTS = ["informative", "all_correct", "all_wrong", "uniform", "unscorable", "out_of_range", "truncated_out"]
WORDS = ["apple", "Äpfel", "sum", "SUM", "box", "\\boxed{7}", "therefore", "x<y", "&amp;", "日本", "a\u0301"]
# What a model might write to a page that does not take it for text.
HOSTILE = [
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "</pre></div><svg onload=window.hacked=1>",
    "<style>body{display:none}</style><!-- ",
    "[click](javascript:alert(1)) ![x](http://example.com/x.png) **bold** `code` $x$",
    "${window.hacked = 1} {{constructor.constructor('window.hacked=1')()}} {{#each x}}",
    "' onmouseover='window.hacked=1",
    "&lt;script&gt; &amp;#60; &#x3C;b&#x3E;",
    "\x00\x01\x1b[31m\x7f\x9f\ufeff\u202etxt.exe\u2066\r\n\ttab",
    "file:///etc/passwd ../../../etc/passwd /gradio_api/file=/etc/passwd",
    "]]>--><![CDATA[<a href=x>",
]


def made_up_group(chance, step, position, num_generations=4):
    """The rows of one group."""
    verdict = chance.choice(VERDICTS)
    informative_fate = chance.choice(["trained", "surplus", "stale"])
    fate = informative_fate if verdict == "informative" else "filtered"
    prompt = f"Question {position}: " + " ".join(chance.choices(WORDS, k=3))
    return [
        {
            "step": step,
            "sampled_step": step,
            "position": position,
            "row": position,
            "sample": sample,
            "prompt": prompt,
            "solution": chance.choice(["7", None]),
            "completion": " ".join(chance.choices(WORDS, k=chance.randrange(8))),
            "verdict": verdict,
            "fate": fate,
            "reward": chance.choice([0.0, 1.0, -0.5, float("nan")]),
            "advantage": chance.gauss(0, 1) if fate == "trained" else None,
            "length": chance.randrange(100),
            "prompt_length": 5,
            "is_truncated": chance.random() < 0.3,
            "extra": json.dumps({"answer": "7"}),
            "rewards/accuracy": chance.choice([0.0, 1.0, float("nan")]),
        }
        for sample in range(num_generations)
    ]


def hostile_group(step, position):
    """A group of hostile completions on a hostile prompt."""
    group = made_up_group(random.Random(0), step, position, len(HOSTILE))
    texts = {"prompt": HOSTILE[0] + HOSTILE[1], "solution": HOSTILE[1], "verdict": "all_wrong", "fate": "filtered"}
    return [
        row | texts | {"completion": text, "extra": json.dumps({"answer": text, text: 1})}
        for row, text in zip(group, HOSTILE, strict=True)
    ]


def write_record(folder, seed=0, num_batches=6, groups_per_batch=9):
    """Writes a record, and returns its rows, with steps as the Space counts them: from 1."""
    chance = random.Random(seed)
    shards = RolloutShards(folder, ["accuracy"])
    rows = []
    for batch in range(num_batches):
        groups = [made_up_group(chance, 4 * batch, 100 * batch + number) for number in range(groups_per_batch)]
        batch_rows = [row for group in groups for row in group]
        facts = {"step": 4 * batch, "filter_reward": "accuracy", "groups": {"trained": 3, "all_wrong": batch}}
        shards.add(batch_rows, facts)
        rows += [row | {"step": row["step"] + 1} for row in batch_rows]
    return rows
