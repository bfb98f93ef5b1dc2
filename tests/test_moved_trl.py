"""
TRL as it may be next week: the tests of the seams run against a copy of the installed release in which something has moved.

What is harmless for the package breaks none of them; what is harmful fails, and each failure names its seam.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trl
from checkout import ROOT


pytestmark = pytest.mark.slow

# Says which TRL it has imported.
RUN = "import sys, trl, pytest; print(trl.__file__); sys.exit(pytest.main(sys.argv[1:]))"


def replace_once(source, old, new):
    """Replaces a text that must be there; else the test cannot say anything of this release."""
    if old not in source:
        pytest.skip(f"TRL {trl.__version__} does not have the text to edit: {old[:60]!r}")
    return source.replace(old, new)


def rename_local(source):
    """A local of the rewards has another name, wherever it stands."""
    replace_once(source, "rewards_per_func", "")
    return re.sub(r"\brewards_per_func\b", "rewards_by_function", source)


def add_argument(source):
    """Two methods take one more argument, with a default: one that is overridden, one that is called."""
    source = replace_once(
        source, "num_generations, has_tool_images=False):", "num_generations, has_tool_images=False, priority=None):"
    )
    return replace_once(
        source,
        "def _tokenize_prompts(self, prompts: list):",
        "def _tokenize_prompts(self, prompts: list, padding=False):",
    )


def reorder_blocks(source):
    """Logged metrics are flushed before logged columns, not after."""
    starts = [
        "        # Flush user-logged extra columns",
        "        # Flush user-logged metrics",
        "        if images is not None and self.log_multimodal",
    ]
    for start in starts:
        replace_once(source, start, "")
    columns, metrics, rest = (source.index(start) for start in starts)
    return source[:columns] + source[metrics:rest] + source[columns:metrics] + source[rest:]


def return_one_more(source):
    """`_generate` returns a ninth value."""
    names = "prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images, tool_images"
    source = replace_once(source, f"return {names}", f"return {names}, {{}}")
    return replace_once(
        source,
        "            tool_images,\n        ) = self._generate(",
        "            tool_images,\n            _stats,\n        ) = self._generate(",
    )


def extract_method(source):
    """The rewards are gathered by a method of its own, which does not see what we put in the place of `gather`."""
    source = replace_once(
        source,
        "rewards_per_func = gather(rewards_per_func)",
        "rewards_per_func = self._gather_rewards(rewards_per_func)",
    )
    method = "    def _gather_rewards(self, rewards):\n        return gather(rewards)\n\n"
    return replace_once(source, "    def _tokenize_prompts(", f"{method}    def _tokenize_prompts(")


def rename_method(source):
    """A private method that is overridden has another name."""
    replace_once(source, "_calculate_rewards", "")
    return re.sub(r"\b_calculate_rewards\b", "_compute_rewards", source)


def add_argument_that_is_lost(source):
    """A method whose override has no place for it takes one more argument."""
    old = "def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):"
    return replace_once(source, old, old.replace("):", ", step=None):"))


def run_against(folder, edit):
    """Returns exit status and output of the tests of the seams, run with an edited copy of TRL."""
    package = Path(trl.__file__).parent
    # With the compiled files, which stay valid for what is not edited.
    shutil.copytree(package, folder / "trl")
    trainer = folder / "trl" / "trainer" / "grpo_trainer.py"
    source = trainer.read_text(encoding="utf-8")
    edited = edit(source)
    assert edited != source
    trainer.write_text(edited, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-c", RUN, "-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}"]
    done = subprocess.run(
        [*command, "tests/test_trl_seams.py"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert str(folder / "trl") in done.stdout, done.stdout + done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize("edit", [rename_local, add_argument, reorder_blocks])
def test_harmless_edit_of_trl_breaks_nothing(edit, tmp_path):
    status, output = run_against(tmp_path, edit)
    assert status == 0, output[-3000:]


@pytest.mark.parametrize(
    ("edit", "seam", "expected", "came"),
    [
        (return_one_more, "_generate", "the 8 values of `Generated`", "9 values"),
        (extract_method, "TrainerSeams.compute_rewards", "`gather` is called once, at the end", "of all ranks"),
        (rename_method, "_calculate_rewards", "a method of GRPOTrainer", "no method `_calculate_rewards`"),
        (
            add_argument_that_is_lost,
            "_calculate_rewards",
            "no parameter that our override would lose",
            "takes `step=None`",
        ),
    ],
)
def test_harmful_edit_of_trl_fails_with_the_name_of_the_seam(edit, seam, expected, came, tmp_path):
    status, output = run_against(tmp_path, edit)
    assert status == 1, output[-3000:]
    told = re.findall(r"^\S+ .* has moved the seam `(\S+)` .*\n  expected: (.*)\n  came: (.*)", output, re.MULTILINE)
    assert any(name == seam and expected in what and came in found for name, what, found in told), output[-3000:]
    # Whatever else fails names its seam too.
    assert len(re.findall(r"^(?:FAILED|ERROR) ", output, re.MULTILINE)) == len(told), output[-3000:]
