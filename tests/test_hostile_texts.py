"""What a model, a dataset or a reward function writes is stored and shown as text: it opens, names and controls nothing."""

import json
import os
import re
import unicodedata

import pandas as pd
import pytest
from datasets import Dataset
from tiny import SPECIAL_TOKENS, tiny_model, tiny_tokenizer, training_arguments
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.report.terminal_text import printable, printable_parts


# One word each: the tokens of a model that says nothing else.
HOSTILE = [
    "../../../../tmp/x", "/etc/passwd", "..\\..\\x", "C:\\x|y", "file:///etc/passwd", "\x1b[2J\x1b]0;owned\x07",
    "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\", "\x9b31m", "a\x00b", "\x08\x08\x08\x7f", "\u202etxt.exe",
    "<script>alert(1)</script>", "<img/src=x/onerror=alert(1)>", "[x](javascript:alert(1))", "{{7*7}}", "%s%n{0.__class__}",
    "=cmd|'/c_calc'!A0",
]  # fmt: skip
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def hostile_tokenizer():
    words = {word: number for number, word in enumerate([*SPECIAL_TOKENS, *HOSTILE])}
    assert len(words) == len(tiny_tokenizer())
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


def reward(completion_ids, log_extra, solution, **kwargs):
    log_extra(HOSTILE[5], [HOSTILE[row % len(HOSTILE)] for row in range(len(completion_ids))])
    log_extra("../../x", ["\ud800\x1b[31m" + "x" * 10_000] * len(completion_ids))
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A run on hostile data by a model that says hostile things, in a folder of a folder; and what it printed."""
    top = tmp_path_factory.mktemp("hostile")
    rows = [{"prompt": f"{word} {other}", "solution": word} for word in HOSTILE for other in HOSTILE[:4]]
    options = {"save_strategy": "steps", "save_steps": 2, "log_completions": True, "max_generation_rounds": 3}
    with pytest.MonkeyPatch.context() as patch, (top / "printed.txt").open("w+", errors="surrogateescape") as printed:
        patch.setenv("COLUMNS", "300")
        patch.setattr("sys.stdout", printed)
        trainer = DAPOTrainer(
            model=tiny_model(),
            reward_funcs=reward,
            args=DAPOConfig(**training_arguments(top / "runs" / "one", **options)),
            train_dataset=Dataset.from_list(rows),
            processing_class=hostile_tokenizer(),
        )
        trainer.train()
        trainer.save_model()
        trainer.create_model_card()
        printed.seek(0)
        return top, trainer, printed.read()


def test_no_path_is_made_of_what_was_said(hostile_run):
    top, _, _ = hostile_run
    own = r"printed\.txt|runs(/one)?"
    model = r"(model\.safetensors|(config|generation_config|tokenizer|tokenizer_config)\.json|training_args\.bin)"
    checkpoint = rf"({model}|optimizer\.pt|scheduler\.pt|rng_state\.pth|trainer_state\.json|dapo_manifest\.json"
    checkpoint += r"|dapo_state(/rank0\.(json|safetensors))?)"
    run = rf"(README\.md|run_facts\.json|curves\.png|log_history\.jsonl|{model}"
    run += rf"|rollouts(/groups-000-\d{{6}}\.parquet)?|checkpoint-\d(/{checkpoint})?|completions(/completions_\d{{5}}\.parquet)?)"
    names = [str(path.relative_to(top)) for path in top.rglob("*")]
    assert [name for name in names if not re.fullmatch(rf"{own}|runs/one/{run}", name)] == []
    assert sum("rollouts/groups" in name for name in names) == 4


def test_record_has_it_to_the_letter(hostile_run):
    top, trainer, _ = hostile_run
    record = pd.read_parquet(top / "runs" / "one" / "rollouts")
    rows = trainer.train_dataset
    for line in record.itertuples():
        assert line.prompt == rows[line.row]["prompt"]
        assert line.solution == rows[line.row]["solution"]
        words = line.completion.split(" ")
        assert len(words) <= line.length  # special tokens are left out
        assert set(words) <= set(HOSTILE) | {""}
    assert set(HOSTILE) <= {word for text in record["completion"] for word in text.split(" ")}
    for text in record["extra"]:
        extra = json.loads(text)
        assert extra.keys() == {HOSTILE[5], "../../x"}
        assert extra[HOSTILE[5]] in HOSTILE
        assert extra["../../x"] == "?\x1b[31m" + "x" * 10_000


def test_terminal_shows_it_and_does_not_obey_it(hostile_run):
    _, _, printed = hostile_run
    assert "Advantage" in printed  # TRL's table
    assert "groups sampled" in printed  # ours
    assert CONTROL.findall(printed) == []
    for shown in ("␛[2J", "../../../../tmp/x", "a␀b", "<script>alert(1)</script>", "{{7*7}}"):
        assert shown in printed, shown


def test_card_and_curves_have_nothing_of_it(hostile_run):
    top, _, _ = hostile_run
    for name in ("README.md", "run_facts.json", "log_history.jsonl"):
        text = (top / "runs" / "one" / name).read_text()
        assert [word for word in HOSTILE if word in text] == []
        assert CONTROL.findall(text) == []


def test_printable_keeps_all_but_control_characters():
    for code in range(0x3000):
        char = chr(code)
        is_control = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        if char in "\n\t" or (not is_control and unicodedata.category(char) != "Zs"):
            assert printable(char) == char
        shown = printable(char)
        assert len(shown) == 1
        assert not CONTROL.search(shown)
    assert printable("\ud800\U000e0001") == "��"


def test_parts_of_any_shape_are_made_printable():
    message = {"role": "assistant", "content": [{"type": "text", "text": "\x1b["}], "n": (1, None, 2.5, b"\x1b")}
    plain = {"role": "assistant", "content": [{"type": "text", "text": "␛["}], "n": [1, None, 2.5, "b'\\x1b'"]}
    assert printable_parts([message]) == [plain]
    assert printable_parts({"\x07": os}) == {"␇": str(os)}
