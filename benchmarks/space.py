"""
CPU seconds of the Space on a made-up record: how long it takes to open, to filter, to search and to show a group.

    python benchmarks/space.py                          # 100,000 completions in 98 files
    python benchmarks/space.py --output_dir DIR         # keeps the record, to be opened with hub/space/app.py

It needs pyarrow and numpy, and no Gradio: what Gradio adds is the way to the browser and back.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "hub" / "space")]

from group_view import group_html, list_html  # noqa: E402
from provenance import provenance  # noqa: E402
from query import Query  # noqa: E402
from rollout_index import RolloutIndex  # noqa: E402
from run_files import shard_paths  # noqa: E402

from trl_dapo.report.shards import RolloutShards  # noqa: E402


NUM_GENERATIONS = 16
GROUPS_PER_BATCH = 64
WORDS = [
    "so",
    "the",
    "sum",
    "of",
    "both",
    "sides",
    "is",
    "therefore",
    "equal",
    "to",
    "we",
    "get",
    "x",
    "=",
    "y",
    "+",
    "2",
    "then",
    "let",
    "us",
    "check",
    "again",
    "the",
    "answer",
]


def make_record(folder: str, num_completions: int, num_words: int) -> int:
    """Writes a record of made-up groups through the trainer's own writer; returns its bytes on disk."""
    chance = random.Random(0)
    shards = RolloutShards(folder, ["accuracy_reward", "soft_overlong_punishment"])
    num_groups = num_completions // NUM_GENERATIONS
    for batch in range(-(-num_groups // GROUPS_PER_BATCH)):
        rows: list[dict[str, Any]] = []
        for number in range(batch * GROUPS_PER_BATCH, min(num_groups, (batch + 1) * GROUPS_PER_BATCH)):
            share = chance.choice([0.0, 0.2, 0.5, 0.8, 1.0])
            correct = [float(chance.random() < share) for _ in range(NUM_GENERATIONS)]
            mean = sum(correct) / NUM_GENERATIONS
            verdict = "all_correct" if mean == 1 else "all_wrong" if mean == 0 else "informative"
            is_trained = verdict == "informative" and chance.random() < 0.8
            fate = "trained" if is_trained else "surplus" if verdict == "informative" else "filtered"
            prompt = f"Problem {number}: " + " ".join(chance.choices(WORDS, k=80))
            for sample, reward in enumerate(correct):
                text = " ".join(chance.choices(WORDS, k=num_words)) + f" \\boxed{{{chance.randrange(10**6)}}}"
                rows.append(
                    {
                        "step": batch * 16,
                        "sampled_step": batch * 16,
                        "position": number,
                        "row": number,
                        "sample": sample,
                        "prompt": prompt,
                        "solution": str(number),
                        "completion": text,
                        "verdict": verdict,
                        "fate": fate,
                        "reward": reward,
                        "advantage": reward - mean if is_trained else None,
                        "length": len(text) // 4,
                        "prompt_length": 100,
                        "is_truncated": chance.random() < 0.1,
                        "extra": json.dumps({"answer": str(number), "verdict": "correct" if reward else "wrong"}),
                        "rewards/accuracy_reward": reward,
                        "rewards/soft_overlong_punishment": 0.0,
                    }
                )
        shards.add(rows, {"step": batch * 16, "filter_reward": "accuracy_reward", "groups": {"trained": 50}})
    return sum(path.stat().st_size for path in shard_paths(Path(folder)))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Returns what `work` returns, and its CPU seconds, of all threads: on a busy machine the wall clock says little."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def main() -> None:
    """Makes the record and prints the CPU seconds of each thing that a person does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_completions", type=int, default=100_000)
    parser.add_argument("--num_words", type=int, default=300, help="words of a completion, 4 characters each")
    parser.add_argument("--output_dir", default=None)
    parser.add_argument("--json", "--output", type=Path, default=None, help="where to write the figures")
    parser.add_argument("--short", action="store_true", help="the same: all of it takes half a minute")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output_dir or temporary
        num_bytes, seconds_writing = timed(lambda: make_record(folder, options.num_completions, options.num_words))
        index, seconds_opening = timed(lambda: RolloutIndex(shard_paths(Path(folder))))
        figures: dict[str, float] = {
            "completions": index.num_completions,
            "groups": len(index),
            "files": len(index.paths),
            "megabytes_on_disk": num_bytes / 1e6,
            "seconds_making_and_writing": seconds_writing,
            "seconds_to_open": seconds_opening,
        }
        queries = {
            "all": Query(),
            "verdict_and_fate": Query(verdicts=frozenset({"informative"}), fates=frozenset({"surplus"})),
            "reward_and_length": Query(reward="advantage", lowest=0.6, shortest=200, is_truncated=True),
            "rare_text": Query(text="\\boxed{1234"),
            "rare_text_again": Query(text="\\boxed{1234", order="newest first"),
            "common_text": Query(text="CHECK AGAIN"),
        }
        for name, query in queries.items():
            (numbers, _), seconds = timed(lambda query=query: index.find(query))
            figures[f"groups_{name}"] = len(numbers)
            figures[f"seconds_{name}"] = seconds
        numbers, _ = index.find(Query(order="longest first"))

        def page() -> str:
            return list_html(index.groups(numbers[:20], has_completions=False), index.filter_reward, None)

        def group() -> str:
            return group_html(index.groups(numbers[:1])[0], index.reward_names, [True] * NUM_GENERATIONS)

        figures["seconds_page_from_many_files"] = timed(page)[1]
        figures["seconds_group"] = timed(group)[1]
        figures["megabytes_of_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    for name, value in figures.items():
        print(f"{name:36} {value:,.3f}" if isinstance(value, float) else f"{name:36} {value:,}")
    if options.json is not None:
        record = provenance(("pyarrow", "numpy")) | {"figures": figures}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
