"""Selective rollout in the trainer: what is passed over, what is said of it, and bad input."""

import math

import pytest
from test_trainer import RecordingTrainer, make_trainer, rare_reward
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig


def hard_rows(completion_ids, row, **kwargs):
    """Odd rows may be right, even ones never are."""
    return [r if number % 2 else 0.0 for number, r in zip(row, first_token_reward(completion_ids), strict=True)]


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def rows_of(trainer, first_batch=0):
    """The rows that were sampled, a group at a time."""
    return [row for rounds, _, _ in trainer.batches[first_batch:] for sampled, _, _ in rounds for row in sampled[::4]]


def trainer_on(tmp_path, dataset, **options):
    return RecordingTrainer(
        model=tiny_model(),
        reward_funcs=hard_rows,
        args=DAPOConfig(**training_arguments(tmp_path, selective_rollout=True, **options)),
        train_dataset=dataset,
        processing_class=tiny_tokenizer(),
    )


def test_run_skips_prompts_whose_groups_were_uninformative(tmp_path):
    trainer = make_trainer(tmp_path, hard_rows, num_rows=16, max_steps=20, selective_rollout=True)
    trainer.train()
    assert sum(logged(trainer, "dapo/skipped_prompts")) > 10
    rows = rows_of(trainer, first_batch=5)
    # Even rows never teach; without skipping they would be half of the sampled ones.
    assert sum(row % 2 == 0 for row in rows) < 0.4 * len(rows)


def test_every_draw_of_the_stream_is_sampled_or_counted_as_skipped(tmp_path):
    trainer = make_trainer(tmp_path, rare_reward, num_rows=10, max_steps=8, selective_rollout=True, surplus="carry")
    trainer.train()
    num_sampled = sum(logged(trainer, "dapo/prompts_drawn"))
    assert num_sampled + sum(logged(trainer, "dapo/skipped_prompts")) == trainer.dynamic_sampler.source.stream.position


def test_share_of_rare_successes_is_that_of_the_trained_groups(tmp_path):
    trainer = make_trainer(tmp_path, rare_reward, max_steps=4, max_generation_rounds=50)
    trainer.train()
    expected = []
    for _, (_, rewards, _), _ in trainer.batches:
        # Of 4 completions, 1 is a rare success.
        groups = [[row[0] for row in rewards[start : start + 4]] for start in range(0, len(rewards), 4)]
        expected.append(sum(sum(group) == 1 for group in groups) / len(groups))
    assert logged(trainer, "dapo/frac_rare_success") == pytest.approx(expected)


def test_figures_of_the_predictor_are_logged_only_with_selective_rollout(tmp_path):
    trainer = make_trainer(tmp_path / "with", hard_rows, num_rows=16, max_steps=6, selective_rollout=True)
    trainer.train()
    errors = logged(trainer, "dapo/selection/calibration_error")
    assert len(errors) == 6
    assert all(0.0 <= error <= 1.0 for error in errors)
    assert 0.0 < logged(trainer, "dapo/selection/completions_of_blind")[-1] <= 1.0
    without = make_trainer(tmp_path / "without", hard_rows, num_rows=16, max_steps=2)
    without.train()
    assert not [name for entry in without.state.log_history for name in entry if "selection" in name]


def test_evicted_prompts_are_not_drawn_any_more(tmp_path):
    def solved(completion_ids, row, **kwargs):
        """Rows 0 to 3 are always right."""
        return [1.0 if n < 4 else r for n, r in zip(row, first_token_reward(completion_ids), strict=True)]

    options = {"num_rows": 16, "max_steps": 20, "selective_rollout": True, "evict_above": 1.0}
    trainer = make_trainer(tmp_path, solved, **options)
    trainer.train()
    # All have had their turn by the tenth batch, and 12 other prompts are left.
    assert 4 <= logged(trainer, "dapo/selection/evicted")[9] < 16
    assert {0, 1, 2, 3} < set(rows_of(trainer))
    assert not {0, 1, 2, 3} & set(rows_of(trainer, first_batch=10))


def test_known_pass_rates_spare_the_first_pass(tmp_path):
    def share_of_even_rows(dataset, name, **options):
        # A share of 0.05, so that few draws of prompts that are known to fail are sampled.
        trainer = trainer_on(tmp_path / name, dataset, exploration_share=0.05, **options)
        trainer.train()
        assert trainer.dynamic_sampler.source.metrics["data_passes"] <= 1
        rows = rows_of(trainer)
        return sum(row % 2 == 0 for row in rows) / len(rows)

    dataset = numbered_prompts(400).map(
        lambda row: {"rate": 0.5 if row["row"] % 2 else 0.0, "level": "odd" if row["row"] % 2 else "even"}
    )
    blind = share_of_even_rows(dataset, "blind")
    assert blind == pytest.approx(0.5, abs=0.15)
    assert share_of_even_rows(dataset, "rates", pass_rate_column="rate") < 0.5 * blind
    assert share_of_even_rows(dataset, "labels", label_column="level") < 0.75 * blind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exploration_share": 0.0}, "exploration_share is 0.0, but must be above 0 and at most 1"),
        ({"evict_above": 90.0}, "evict_above is 90.0, but must be above 0 and at most 1"),
        (
            {"evict_above": 0.9, "selective_rollout": False},
            "evict_above is 0.9, but has no effect without selective_roll",
        ),
        (
            {"label_column": "x", "selective_rollout": False},
            "label_column is 'x', but has no effect without selective_ro",
        ),
    ],
)
def test_bad_field_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        DAPOConfig(**training_arguments(tmp_path, **{"selective_rollout": True, **options}))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (
            [0.5],
            {"pass_rate_column": "difficulty"},
            "pass_rate_column is 'difficulty', but train_dataset has only the col",
        ),
        ([0.5, 80.0], {"pass_rate_column": "rate"}, "The pass rate of row 1 is 80.0, but must lie between 0 and 1"),
        (
            ["0.5"],
            {"pass_rate_column": "rate"},
            "The column 'rate' .* holds '0.5', but must hold numbers between 0 and 1",
        ),
        (range(9000), {"label_column": "rate"}, "The labels have 9000 values, but may have at most 8192"),
    ],
)
def test_bad_column_is_refused_before_the_model_is_loaded(tmp_path, values, options, message):
    values = list(values)
    dataset = numbered_prompts(max(20, len(values)))
    dataset = dataset.add_column("rate", values + values[:1] * (len(dataset) - len(values)))
    with pytest.raises(ValueError, match=message):
        RecordingTrainer(
            model="no/such-model",
            reward_funcs=hard_rows,
            args=DAPOConfig(**training_arguments(tmp_path, selective_rollout=True, **options)),
            train_dataset=dataset,
        )


def test_rows_without_a_known_rate_may_be_none(tmp_path):
    dataset = numbered_prompts(20).add_column("rate", [None, math.nan] + [0.5] * 18)
    rates = trainer_on(tmp_path, dataset, pass_rate_column="rate").dynamic_sampler.source.selection.rates
    assert rates.kinds.tolist() == [16, 16] + [8] * 18
