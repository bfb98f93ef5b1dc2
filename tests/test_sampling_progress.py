"""A sign of life while a batch is sampled: how many groups of how many are found, from how many prompts."""

import io

import pytest
from simulated_run import Scenario, simulate
from test_trainer import all_wrong, make_trainer, rare_reward
from tqdm import tqdm

from trl_dapo import RefillExhaustedError
from trl_dapo.refill.progress import BatchSoFar, SamplingProgress
from trl_dapo.report import callbacks
from trl_dapo.report.callbacks import ProgressBar, ProgressLines, progress_of_run


@pytest.fixture
def every_round(monkeypatch):
    """Rounds of the tiny model take a few milliseconds."""
    monkeypatch.setattr(callbacks, "_SECONDS_BETWEEN_ROUNDS", 0.0)


def mixed_groups(matrix):
    groups = [matrix[start : start + 4] for start in range(0, len(matrix), 4)]
    return sum(0 < sum(row[0] for row in group) < 4 for group in groups)


def test_log_has_a_line_a_round_with_what_was_found(tmp_path, capsys, every_round):
    trainer = make_trainer(tmp_path, rare_reward, max_steps=3, max_generation_rounds=20)
    trainer.train()
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("sampling for")]
    expected = []
    for number, (rounds, _, _) in enumerate(trainer.batches):
        found, prompts = 0, 0
        for round_number, (rows, matrix, _) in enumerate(rounds):
            found, prompts = min(2, found + mixed_groups(matrix)), prompts + len(rows) // 4
            expected.append(
                [f"sampling for step {number + 1}", f"round {round_number + 1}", f"{found} of 2 groups found",
                 f"{prompts} prompts sampled"]
            )  # fmt: skip
    assert len(expected) > 3
    assert [line[:-1] for line in lines] == expected
    assert all(line[-1].endswith(" s") for line in lines)


def test_rounds_that_follow_each_other_faster_than_a_second_share_a_line():
    times, lines = iter([0.0, 0.4, 1.1, 1.2, 2.3]), []
    progress = ProgressLines(lines.append, clock=lambda: next(times))
    progress.begin(1, 16)
    for number in range(1, 6):
        progress.update(BatchSoFar(number, 16, 8 * number, 0.5 * number, round_number=number))
    assert [line.split(" | ")[1] for line in lines] == ["round 1", "round 3", "round 5"]


def test_without_rounds_a_log_has_a_line_every_ten_seconds():
    times, lines = iter([0.0, 3.0, 9.9, 10.0, 19.0, 21.0]), []
    progress = ProgressLines(lines.append, clock=lambda: next(times))
    progress.begin(4, 16)
    for number in range(6):
        progress.update(BatchSoFar(number, 16, 20, float(number)))
    assert lines == [
        f"sampling for step 4 | {number} of 16 groups found | 20 prompts sampled | {number}.0 s"
        for number in (0, 3, 5)
    ]


def test_terminal_has_a_bar_from_the_beginning_to_the_end_of_a_batch(tmp_path):
    shown, screen = [], io.StringIO()

    class Bar(tqdm):
        def __init__(self, **kwargs):
            super().__init__(file=screen, **kwargs)
            shown.append((self.total, []))

        def set_postfix(self, **values):
            shown[-1][1].append((self.n, values))
            super().set_postfix(**values)

    trainer = make_trainer(tmp_path, rare_reward, max_steps=2, max_generation_rounds=20)
    trainer.dynamic_sampler.progress = trainer.dynamic_sampler.refill.progress = ProgressBar(Bar)
    trainer.train()
    assert [total for total, _ in shown] == [2, 2]
    for (_, values), (rounds, _, _) in zip(shown, trainer.batches, strict=True):
        prompts = [len(rows) // 4 for rows, _, _ in rounds]
        assert values[-1] == (2, {"prompts": sum(prompts), "rounds": len(prompts)})
        assert len(values) == len(prompts)
    assert "sampling for step 2:   0%" in screen.getvalue()


def test_bar_is_removed_where_sampling_fails(tmp_path):
    closed = []

    class Bar(tqdm):
        def __init__(self, **kwargs):
            super().__init__(file=io.StringIO(), **kwargs)

        def close(self):
            closed.append(self.n)
            super().close()

    trainer = make_trainer(tmp_path, all_wrong, on_exhausted="error", max_generation_rounds=2)
    trainer.dynamic_sampler.progress = trainer.dynamic_sampler.refill.progress = ProgressBar(Bar)
    with pytest.raises(RefillExhaustedError):
        trainer.train()
    assert closed[0] == 0


def test_first_rank_alone_shows_it_and_a_bar_needs_a_terminal(monkeypatch):
    assert type(progress_of_run(False, disable_tqdm=False)) is SamplingProgress
    assert type(progress_of_run(True, disable_tqdm=False)) is ProgressLines
    monkeypatch.setattr("sys.stderr", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    assert type(progress_of_run(True, disable_tqdm=False)) is ProgressBar
    assert type(progress_of_run(True, disable_tqdm=True)) is ProgressLines


def test_refill_without_rounds_tells_what_it_has_found(monkeypatch):
    told = []
    monkeypatch.setattr(SamplingProgress, "update", lambda self, so_far: told[-1].append(so_far))
    monkeypatch.setattr(SamplingProgress, "begin", lambda self, step, num_wanted: told.append([]))
    options = {"refill": "stream", "use_vllm": True, "vllm_mode": "colocate", "max_generation_rounds": 60}
    scenario = Scenario(1, 2, 4, 30, 3, outcomes=("mixed", "all right", "all wrong"), options=options)
    batches = simulate(scenario)
    for (record,), so_far in zip(batches, told, strict=True):
        assert so_far[-1].num_found == len(record.batch.ledger.accepted) == 4
        assert so_far[-1].num_prompts >= len(record.batch.ledger.sampled)
        assert [value.num_found for value in so_far] == sorted(value.num_found for value in so_far)
        assert all(value.round_number is None for value in so_far)


def test_wait_of_the_first_step_is_announced_with_its_size(tmp_path, capsys):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    num_rows = len(trainer.batches[0][0][0][0])
    assert (
        f"Before the first step: {num_rows // 4} prompts x 4 = {num_rows} completions of at most {num_rows * 8} tokens "
        "are sampled and scored" in capsys.readouterr().out
    )
