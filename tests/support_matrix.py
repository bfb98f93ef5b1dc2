"""
Makes the table of docs/support.md, what can be combined with dynamic sampling, from the tests.

A marker of a test says what it shows: `@pytest.mark.supports("fsdp2")` that a feature works, `@pytest.mark.refuses("tools")`
that it is refused with a message when the configuration or the trainer is made. The markers are read from the source, so that
tests that need another environment count too. `python tests/support_matrix.py --write` writes the table into the page.
"""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path


TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "support.md"
BEGIN = "<!-- Made by tests/support_matrix.py from the markers of the tests: run it with --write. -->"
END = "<!-- End of the table. -->"


@dataclass(frozen=True)
class Feature:
    """
    A row of the table.

    Attributes:
        label: name of the feature, in Markdown.
        remark: what follows "yes", "refused" or "implemented, not run".
        without: whether it works without dynamic sampling.
        is_run: whether there must be a test.
    """

    label: str
    remark: str = ""
    without: str = "as TRL"
    is_run: bool = True


FEATURES = {
    "ddp": Feature("DDP", "two processes train the same batches as one"),
    "fsdp2": Feature(
        "FSDP2", "the same steps as DDP, with sampling, carrying, evaluation and resume; full and sharded checkpoints; on CPUs"
    ),
    "deepspeed": Feature(
        "DeepSpeed ZeRO-2, ZeRO-3", "the same steps as DDP, on CPUs; a batch without informative groups still moves the weights by momentum"
    ),
    "accumulation": Feature("Gradient accumulation, any micro-batch"),
    "checkpointing": Feature("Gradient checkpointing"),
    "iterations": Feature("`num_iterations` > 1"),
    "lora": Feature("LoRA (PEFT)", "one process, DDP, FSDP2, vLLM"),
    "dataset": Feature("`Dataset`"),
    "iterable": Feature("`IterableDataset`"),
    "iterable_history": Feature('`IterableDataset` with `selective_rollout`', "outcomes are remembered by row", "no effect"),
    "eval_sets": Feature("Several evaluation sets"),
    "rewards": Feature("Several rewards, weights, async, `None`"),
    "reward_model": Feature("Reward models"),
    "reward_model_sharded": Feature('Reward models that are split over the ranks (ZeRO-3, FSDP), with `refill="stream"`',
        "each rank grades its groups when they are finished; rounds score on all ranks at once", "no effect"),
    "losses": Feature("TRL's other `loss_type`s", "each with its own denominator"),
    "by_group": Feature('`loss_normalization="group"`', "all completions of a group are in one optimizer step", "the same"),
    "by_group_kl": Feature('`loss_normalization="group"` with `beta`', "a KL term has no advantage that could be weighted", "refused"),
    "scale_batch": Feature('`scale_rewards="batch"`', "the std of the batch that trains"),
    "normalize_then_sum": Feature('`multi_objective_aggregation="normalize_then_sum"`', "over the batch that trains"),
    "ragged_steps": Feature("`steps_per_generation` not a multiple of `gradient_accumulation_steps`", "an optimizer step would train two batches"),
    "continuous_batching": Feature("Continuous batching of transformers", "one process"),
    "vllm": Feature("vLLM, colocated", "on a CPU, one process and two", "yes"),
    "vllm_sleep": Feature("vLLM, sleep mode", "it needs CUDA; only the calls are tested", is_run=False),
    "vllm_server": Feature("vLLM servers, one or several", "weights through a folder; on a CPU, one process and two", "yes"),
    "vllm_server_nccl": Feature("vLLM server, weights over NCCL", "as TRL does it; it needs CUDA", is_run=False),
    "vllm_tensor_parallel": Feature("vLLM, tensor parallel", is_run=False),
    "stream": Feature('`refill="stream"`', "vLLM colocated, or servers; on a CPU, one process and two", "no effect"),
    "stream_elsewhere": Feature('`refill="stream"` with colocated tensor parallel', "it needs an engine in each process", "no effect"),
    "overlap": Feature("`overlap=True`", "vLLM servers; on a CPU, one process and two", "refused"),
    "overlap_elsewhere": Feature('`overlap=True` without servers and `refill="stream"`', "something else than the trainer has to sample", "refused"),
    "tools": Feature("`tools`", "one process and two, all shapes, resumed"),
    "environments": Feature("`environment_factory`", "one process and two, resumed"),
    "rollout_func": Feature("`rollout_func`", "one process"),
    "turns_together": Feature("Tools where processes can only generate together (FSDP, ZeRO-3, a shared engine)",
        "processes that are done take part in the turns of the others; FSDP2 on CPUs, and an engine that stands in for a shared one", "yes"),
    "turns_stream": Feature('Tools, environments, rollout functions with `refill="stream"`',
        "calls of tools beside the sampling, and environments that outlive a batch, are missing", "no effect"),
    "unseeded": Feature("Environments without a dataset whose `reset` takes no `seed`", "the filter would judge luck: a group must be of one "
        "task"),
    "turns_images": Feature("Images with tools, environments or rollout functions", "a completion is kept as its tokens"),
    "images": Feature("Images (vision-language models)", "columns `image`, `images`, or in the turns; one process"),
    "images_elsewhere": Feature('Images with `surplus="carry"`, `refill="stream"`, or `loss_normalization="group"` and several '
        "steps a batch", "these score or send tokens only", "`loss_normalization` refused too"),
    "images_vllm": Feature("Images with vLLM", is_run=False),
}  # fmt: skip


def marked_tests() -> dict[str, dict[str, list[str]]]:
    """Returns for each marker, by feature, the tests that have it: `tests/test_x.py::test_y`."""
    found: dict[str, dict[str, list[str]]] = {"supports": {}, "refuses": {}}
    for path in sorted(TESTS.rglob("test_*.py")):
        for function in ast.parse(path.read_text()).body:
            if not isinstance(function, ast.FunctionDef):
                continue
            name = f"{path.relative_to(TESTS.parent).as_posix()}::{function.name}"
            # Also the marks of single parameters.
            for call in (node for decorator in function.decorator_list for node in ast.walk(decorator)):
                if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                    continue
                for argument in call.args if call.func.attr in found else ():
                    tests = found[call.func.attr].setdefault(ast.literal_eval(argument), [])
                    tests += [] if name in tests else [name]
    return found


def table() -> str:
    """Returns the table in Markdown."""
    found = marked_tests()
    lines = ["| | dynamic sampling | shown by | without it |", "|---|---|---|---|"]
    for key, feature in FEATURES.items():
        tests = found["supports"].get(key, []) + found["refuses"].get(key, [])
        state = "yes" if key in found["supports"] else "refused" if tests else "implemented, not run"
        files = list(dict.fromkeys(test.split("::")[0] for test in tests))
        links = ", ".join(f"[{Path(file).stem.removeprefix('test_')}](../{file})" for file in files)
        remark = f": {feature.remark}" if feature.remark else ""
        lines.append(f"| {feature.label} | {state}{remark} | {links} | {feature.without} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """Returns the text of the page with the table between its two comments."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(with_table(PAGE.read_text()))
    else:
        print(table())
