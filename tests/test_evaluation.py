"""Evaluation counts what was sampled, and a killed run ends as one that was never killed."""

import json
import os
import statistics
import time
from pathlib import Path

import pytest
from datasets import Dataset
from forked import start

from trl_dapo.evaluation.answer_classes import CORRECT, answer_classes
from trl_dapo.evaluation.completion_log import CompletionLog
from trl_dapo.evaluation.evaluator import _digest, evaluate
from trl_dapo.evaluation.k_metrics import estimate


PROBLEMS = Dataset.from_list(
    [
        {"prompt": "one", "solution": "1"},
        {"prompt": "a half", "solution": r"\frac{1}{2}"},
        {"prompt": "one", "solution": "1"},
        {"prompt": "no gold", "solution": ""},
    ]
)
# By problem and sample: what is said, and in how many tokens. The limit is 5 tokens, 0 ends a completion.
SAID = {
    "one": [("Answer: 1", [7, 0]), ("Answer: 2", [7, 7, 0]), ("Answer: 2.0", [7, 0]), ("I do not know.", [7] * 5)],
    "a half": [("Answer: 0.5", [7, 0]), ("Answer: 3", [7, 0]), ("", [0]), (r"\boxed{\frac{2}{4}}", [7, 7, 7, 7, 0])],
    "no gold": [("Answer: 1", [7, 0])] * 4,
}


class Parrot:
    """A sampler that says what it is told, and may be killed after so many completions."""

    end_token_ids = [0]
    context_length = None

    def __init__(self, dies_after=None):
        self.dies_after = dies_after
        self.keys = []
        self.num_decoded = 0

    def identity(self):
        return {"engine": "parrot"}

    def encode(self, prompts):
        self.prompts = prompts
        return [[list(SAID).index(prompt)] for prompt in prompts]

    def sample(self, prompt_ids, keys, settings):
        if self.dies_after is not None and len(self.keys) + len(keys) > self.dies_after:
            raise KeyboardInterrupt
        self.keys += keys
        return [
            SAID[list(SAID)[ids[0]]][int(key.rpartition("/")[2])][1] for ids, key in zip(prompt_ids, keys, strict=True)
        ]

    def decode(self, completion_ids):
        # Completions come in the order of the keys, so the next text is that of the next key.
        digest, _, sample = self.keys[self.num_decoded].split("/")
        self.num_decoded += 1
        return SAID[self.prompt_of[digest]][int(sample)][0]


@pytest.fixture
def parrot():
    Parrot.prompt_of = {_digest(prompt): prompt for prompt in SAID}
    return Parrot


def run(sampler, folder, **options):
    return evaluate(sampler, PROBLEMS, **({"k": 4, "output_dir": folder, "max_completion_length": 5} | options))


def test_figures_are_those_counted_by_hand(parrot, tmp_path):
    result = run(parrot(), tmp_path)
    assert result["avg@4"] == statistics.mean([1 / 4, 2 / 4, 1 / 4])
    assert result["pass@4"] == 1
    assert result["pass@2"] == pytest.approx(statistics.mean([1 / 2, 5 / 6, 1 / 2]))
    # 2 and 2.0 outvote 1; for the half, 1/2 has two votes against one for 3 and one of nobody.
    assert result["maj@4"] == pytest.approx(1 / 3)
    # Pairs with the 1: 1 and 2 twice (a tie), 1 and silence. Pairs of the half: all but (3, silence) hold it, two tie.
    assert result["maj@2"] == pytest.approx(statistics.mean([(0.5 * 2 + 1) / 6, (1 + 1 + 1 + 2 * 0.5) / 6, 2 / 6]))
    assert result["frac_truncated"] == (1 / 4 + 1 / 4) / 4
    assert result["frac_no_answer"] == pytest.approx(1 / 4)
    assert result["frac_gave_up"] == 0
    assert result["mean_length"] == (2 * (2 + 3 + 2 + 5) + (2 + 2 + 1 + 5) + 8) / 16
    assert (result.num_problems, result.num_unreadable_golds) == (4, 1)
    assert result.metrics["avg@4"] == estimate([0.25, 0.5, 0.25])


def test_files_hold_what_the_result_says(parrot, tmp_path):
    result = run(parrot(), tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["figures"]["avg@4"]["value"] == result["avg@4"]
    assert written["settings"]["top_p"] == 0.7
    completions = Dataset.from_parquet(str(tmp_path / "completions.parquet"))
    assert completions["completion"] == [said for row in PROBLEMS for said, _ in SAID[row["prompt"]]]
    problems = Dataset.from_parquet(str(tmp_path / "problems.parquet"))
    assert problems["num_correct"] == [1, 2, 1, 0]
    assert problems["prompt"] == PROBLEMS["prompt"]
    table = result.table()
    assert "avg@4" in table
    assert "1 problems have a gold answer that cannot be read" in table


@pytest.mark.parametrize("torn", [b"", b'{"problem": 2, "sam'])
def test_killed_run_samples_only_what_is_missing_and_ends_alike(parrot, tmp_path, torn):
    run(parrot(), tmp_path / "whole", batch_size=16)
    with pytest.raises(KeyboardInterrupt):
        run(parrot(dies_after=9), tmp_path / "killed", batch_size=3)
    with (tmp_path / "killed" / "completions.jsonl").open("ab") as file:
        file.write(torn)
    second = parrot()
    result = run(second, tmp_path / "killed", batch_size=5)
    assert result.num_sampled == len(second.keys) == 16 - 9
    for name in ("results.json", "settings.json"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    whole, killed = ((tmp_path / name / "completions.jsonl").read_text().splitlines() for name in ("whole", "killed"))
    assert whole == killed
    third = parrot()
    run(third, tmp_path / "killed")
    assert third.keys == []


def test_every_completion_has_random_numbers_of_its_own(parrot, tmp_path):
    sampler = parrot()
    run(sampler, tmp_path)
    assert len(set(sampler.keys)) == 16  # also of the problem that is there twice
    alone = parrot()
    evaluate(alone, PROBLEMS.select([1]), k=4, output_dir=tmp_path / "alone", max_completion_length=5)
    assert alone.keys == sampler.keys[4:8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 3}, r"k is 3 \(in the folder: 4\)"),
        ({"seed": 1}, r"seed is 1 \(in the folder: 0\)"),
        ({"temperature": 0.5}, r"temperature is 0.5 \(in the folder: 1.0\)"),
        ({"top_p": 1.0}, r"top_p is 1.0 \(in the folder: 0.7\)"),
        ({"max_completion_length": 6}, r"max_completion_length is 6 \(in the folder: 5\)"),
    ],
)
def test_folder_with_other_settings_is_refused(parrot, tmp_path, options, message):
    run(parrot(), tmp_path)
    with pytest.raises(ValueError, match=message):
        run(parrot(), tmp_path, **options)


def test_folder_with_other_problems_is_refused(parrot, tmp_path):
    run(parrot(), tmp_path)
    with pytest.raises(ValueError, match=r"num_problems is 2 \(in the folder: 4\); problems is"):
        evaluate(parrot(), PROBLEMS.select([0, 1]), k=4, output_dir=tmp_path, max_completion_length=5)


def test_log_refuses_a_second_writer_and_lines_that_are_no_completions(tmp_path):
    with CompletionLog(tmp_path, {"k": 1}) as log:
        log.add([{"problem": 0, "sample": 0, "grade": "correct"}])
        with pytest.raises(BlockingIOError, match="Another process is evaluating into"):
            CompletionLog(tmp_path, {"k": 1})
    with (tmp_path / "completions.jsonl").open("a") as file:
        file.write("[1]\n")
    with pytest.raises(ValueError, match=r"Line 2 of .* must be a completion"):
        CompletionLog(tmp_path, {"k": 1})
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match="the settings of its completions are unknown"):
        CompletionLog(tmp_path, {"k": 1})


class Hanging(Parrot):
    """Hangs in the third batch of four, when two are graded: then the workers of the grader are there too."""

    def sample(self, prompt_ids, keys, settings):
        if len(self.keys) >= 8:
            Path("hanging").touch()
            time.sleep(600)
        return super().sample(prompt_ids, keys, settings)


def hang_in(folder):
    os.chdir(folder)
    Parrot.prompt_of = {_digest(prompt): prompt for prompt in SAID}
    run(Hanging(), "shared", batch_size=4)


def test_second_process_is_refused_until_the_first_one_is_killed(parrot, tmp_path):
    first = start(hang_in, str(tmp_path))
    try:
        while not (tmp_path / "hanging").exists():
            assert first.is_alive()
            time.sleep(0.01)
        second = parrot()
        with pytest.raises(BlockingIOError, match="Another process is evaluating into"):
            run(second, tmp_path / "shared")
        assert second.keys == []
    finally:
        first.kill()
        first.join()
    result = run(parrot(), tmp_path / "shared")
    assert result.num_sampled == 8
    run(parrot(), tmp_path / "alone")
    for name in ("results.json", "completions.jsonl"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_log_that_could_not_be_opened_or_is_closed_can_be_opened_again(tmp_path):
    with CompletionLog(tmp_path, {"k": 1}):
        pass
    with pytest.raises(ValueError, match="other settings"):
        CompletionLog(tmp_path, {"k": 2})
    with CompletionLog(tmp_path, {"k": 1}) as log:
        assert log.records == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0, but must be at least 1"),
        ({"temperature": -1.0}, "temperature is -1.0, but must be at least 0"),
        ({"top_p": 0.0}, "top_p is 0.0, but must be above 0"),
        ({"max_completion_length": 0}, "max_completion_length is 0, but must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0, but must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(parrot, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(parrot(), tmp_path, **options)


def test_problems_that_cannot_be_asked_are_refused(parrot, tmp_path):
    rows = Dataset.from_list([{"prompt": "", "solution": "1"}])
    with pytest.raises(ValueError, match=r"1 unusable rows.*\n.*empty prompt\n    row 0"):
        evaluate(parrot(), rows, output_dir=tmp_path)


def test_classes_of_answers_are_what_the_grader_calls_the_same():
    answers = [["x+1", "1 + x", "2/4", "50\\%", "x+1", "correct", None, "x+2", "9"]]
    is_correct = [[False] * 8 + [True]]
    (classes,) = answer_classes(answers, is_correct)
    assert classes[0] == classes[1] == classes[4]
    assert classes[2] == classes[3]
    assert len({classes[0], classes[2], classes[5], classes[7], CORRECT}) == 5
    assert classes[6] is None
    assert classes[8] == CORRECT


def test_same_answers_of_different_problems_have_nothing_to_do_with_each_other():
    classes = answer_classes([["1+x", "x+1"], ["x+1", "7"]], [[False, False], [False, False]])
    assert classes[0][0] == classes[0][1]
    assert classes[1][0] != classes[1][1]
