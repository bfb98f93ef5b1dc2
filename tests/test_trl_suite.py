"""The suite that runs TRL's own tests with `DAPOTrainer`: its list, its stand-ins and what stands in GRPOTrainer's place."""

import importlib
import json
import subprocess
import sys

import pytest
import yaml
from checkout import ROOT
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from trl_dapo import DAPOConfig, DAPOTrainer


sys.path.insert(0, str(ROOT / "tests" / "trl_suite"))
import in_place_of_grpo
import stand_ins
import suite


EXPECTED = ROOT / "tests" / "trl_suite" / "expected.yaml"
PASSED = {"outcome": "passed", "message": ""}

# A checkout that has what the suite reads of TRL's: a test file with relative imports, Hub ids and lists of tokens.
MADE_UP = """
import pytest
from trl import GRPOConfig, GRPOTrainer
from .testing_utils import require_joblib

class TestMadeUp:
    @pytest.mark.parametrize("name", ["trl-internal-testing/tiny-UnknownForCausalLM"])
    def test_of_another_model(self, name):
        raise OSError(name)

    def test_alike(self):
        assert "Trainer" in GRPOTrainer.__name__ and [[17453, 0, 151645]] == [[285, 0, 293]]

    def test_sampling(self, tmp_path):
        args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
        assert not getattr(args, "dynamic_sampling", False), "samples dynamically"

    def test_ours(self):
        if GRPOTrainer.__name__ == "DAPOTrainer":
            pytest.fail("refused")

    @require_joblib
    def test_of_a_package(self):
        pass
"""


def made_up_checkout(folder):
    tests = folder / "tests"
    tests.mkdir(parents=True)
    (tests / "__init__.py").touch()
    (tests / "test_grpo_trainer.py").write_text(MADE_UP)
    (tests / "test_dpo_trainer.py").write_text("raise AssertionError('not of GRPOTrainer')")
    (tests / "testing_utils.py").write_text(
        "import pytest\nfrom trl.import_utils import is_some_gone_package_available\n"
        "require_joblib = pytest.mark.skipif(not is_some_gone_package_available(), reason='needs it')\n"
    )
    return folder


@pytest.mark.slow
def test_suite_counts_what_grpo_passes_and_fails_for_what_is_not_listed(tmp_path):
    checkout = made_up_checkout(tmp_path / "trl")
    listed = [
        {"test": "TestMadeUp::test_ours", "modes": ["sampling_off", "defaults"], "message": "refused", "reason": "so"},
        {"test": "TestMadeUp::test_alike", "modes": ["defaults"], "message": "never", "reason": "so"},
    ]
    expected = tmp_path / "expected.yaml"
    expected.write_text(yaml.safe_dump({"counted_at_least": 3, "refusals": listed}))
    command = [
        sys.executable,
        str(ROOT / "tests/trl_suite/suite.py"),
        str(checkout),
        "--output",
        str(tmp_path / "out"),
    ]
    finished = subprocess.run([*command, "--expected", str(expected)], capture_output=True, text=True, check=False)
    assert finished.returncode == 1, finished.stderr
    assert "GRPOTrainer passes 3 of 5 tests. Not counted: 1 failed, 1 skipped." in finished.stdout
    assert "no stand-in for tiny-UnknownForCausalLM" in finished.stdout
    rows = {
        line.split()[0]: [int(n) for n in line.split()[1:]]
        for line in finished.stdout.splitlines()
        if line[:3] in ("sam", "def") and ":" not in line
    }
    assert rows == {"sampling_off": [3, 2, 1, 0, 0], "defaults": [3, 1, 1, 1, 1]}
    assert "BROKEN with defaults: TestMadeUp::test_sampling\n  AssertionError: samples dynamically" in finished.stdout
    assert "LISTED in expected.yaml, but passes with defaults: TestMadeUp::test_alike" in finished.stdout
    assert json.loads((tmp_path / "out" / "grpo.json").read_text())["TestMadeUp::test_ours"]["outcome"] == "passed"


def test_stored_list_is_readable_and_every_entry_has_its_reason():
    at_least, refusals = suite.read_expected(EXPECTED.read_text())
    assert at_least >= 100
    for refusal in refusals:
        assert len(refusal.reason.split()) > 8, refusal.test
        assert refusal.message
    assert not any(refusal.test[0] == "_" for refusal in refusals)


@pytest.mark.parametrize(
    ("outcome", "message", "kind"),
    [
        ("passed", "", "outlived"),
        ("failed", "ValueError: no `seed`", "refused"),
        ("failed", "KeyError: 'batch'", "broken"),
        ("skipped", "needs a GPU", "broken"),
    ],
)
def test_listed_test_has_to_fail_with_its_message(outcome, message, kind):
    refusals = [suite.Refusal("T::test_x[a/b]", ["defaults"], "no `seed`", "a reason")]
    found = {"T::test_x[a/b]": {"outcome": outcome, "message": message}}
    verdict = suite.compare(["T::test_x[a/b]"], found, refusals, "defaults")
    assert "T::test_x[a/b]" in getattr(verdict, kind)
    assert verdict.is_good == (kind == "refused")


def test_entry_is_of_its_mode_and_an_outcome_that_is_missing_is_a_failure():
    refusals = [suite.Refusal("T::test_x", ["defaults"], "refused", "a reason")]
    found = {"T::test_x": {"outcome": "failed", "message": "refused"}}
    assert suite.compare(["T::test_x"], found, refusals, "sampling_off").broken == {"T::test_x": "refused"}
    assert suite.compare(["T::test_x"], found, refusals, "defaults").is_good
    assert suite.compare(["T::test_y"], found, refusals, "defaults").broken == {"T::test_y": "it did not end"}


def test_entry_for_a_cause_covers_so_many_tests_and_no_more():
    refusals = [suite.Refusal("T::*", ["defaults"], "ended early", "a reason", may_pass=True, at_most=2)]
    found = {f"T::test_{n}": {"outcome": "failed", "message": "it ended early"} for n in range(3)} | {
        "T::test_3": PASSED
    }
    verdict = suite.compare(list(found), found, refusals, "defaults")
    assert (len(verdict.refused), list(verdict.broken), verdict.passed) == (2, ["T::test_2"], ["T::test_3"])
    assert not verdict.outlived


def test_entry_that_says_nothing_definite_is_refused():
    with pytest.raises(ValueError, match="must be of sampling_off, defaults"):
        suite.Refusal("T::test_x", ["off"], "m", "r")
    with pytest.raises(ValueError, match="any number of tests"):
        suite.Refusal("T::*", ["defaults"], "m", "r")


def test_each_mode_has_its_trainer_and_the_defaults_of_its_arguments(tmp_path):
    assert in_place_of_grpo.trainer_and_config("grpo") == (GRPOTrainer, GRPOConfig)
    assert in_place_of_grpo.trainer_and_config("defaults") == (DAPOTrainer, DAPOConfig)
    trainer, config = in_place_of_grpo.trainer_and_config("sampling_off")
    args = config(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert trainer is DAPOTrainer
    assert args.dynamic_sampling is False
    # Where a pickled checkpoint looks for it.
    assert getattr(importlib.import_module(config.__module__), config.__qualname__) is config


def test_stand_ins_load_by_their_hub_ids_where_they_lie(tmp_path, monkeypatch):
    names = ["tiny-Qwen2ForCausalLM-2.5", "tiny-Qwen2ForSequenceClassification-2.5", "zen", "tiny-UnknownForCausalLM"]
    assert list(stand_ins.make_all(names, tmp_path)) == ["tiny-UnknownForCausalLM"]
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained("trl-internal-testing/tiny-Qwen2ForCausalLM-2.5")
    model = AutoModelForCausalLM.from_pretrained("trl-internal-testing/tiny-Qwen2ForCausalLM-2.5")
    judge = AutoModelForSequenceClassification.from_pretrained(f"trl-internal-testing/{names[1]}")
    assert model.config.vocab_size == len(tokenizer) == 256 + len(stand_ins.WORDS) + len(stand_ins.SPECIAL)
    assert judge.config.num_labels == 1
    rows = load_dataset("trl-internal-testing/zen", "standard_prompt_only", split="train")
    assert (rows.column_names, len(rows), len(set(rows["prompt"]))) == (["prompt"], 17, 17)
    # Qwen's ids of a call of a tool, as tests of TRL write them.
    call = [
        151657,
        198,
        4913,
        606,
        788,
        330,
        35744,
        497,
        330,
        16370,
        788,
        5212,
        9520,
        788,
        220,
        16,
        11248,
        151658,
        151645,
    ]
    local = [stand_ins.LOCAL_ID.get(token, token) for token in call]
    said = '<tool_call>\n{"name": "increment", "arguments": {"step": 1}}\n</tool_call>'
    assert tokenizer.decode(local, skip_special_tokens=True) == said
    assert tokenizer.decode(tokenizer(said)["input_ids"]) == said


def test_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="give a checkout of TRL"):
        suite.prepare(tmp_path, tmp_path)
