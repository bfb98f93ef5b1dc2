import pytest
from test_trainer import make_trainer, rare_reward
from tiny import first_token_reward

from trl_dapo.sampling.prompt_history import PromptHistory


def test_skip_probability_grows_with_the_streak_and_never_reaches_one():
    history = PromptHistory(num_rows=1, explore=0.5, min_explore=0.05)
    probabilities = []
    for _ in range(300):
        history.observe(0, is_informative=False)
        probabilities.append(history.skip_probability(0))
    assert probabilities[:4] == [0.5, 0.75, 0.875, 0.9375]
    assert set(probabilities[4:]) == {0.95}


def test_informative_group_ends_the_streak():
    history = PromptHistory(num_rows=2)
    history.observe(1, is_informative=False)
    history.observe(1, is_informative=True)
    assert history.skip_probability(1) == 0.0
    assert not history.skips(position=5, index=1)


def test_decisions_have_the_stated_frequency_and_depend_on_the_position_alone():
    history = PromptHistory(num_rows=1, seed=3)
    for _ in range(2):
        history.observe(0, is_informative=False)
    decisions = [history.skips(position, 0) for position in range(10_000)]
    assert sum(decisions) == pytest.approx(7_500, abs=200)  # standard deviation 43
    assert decisions == [history.skips(position, 0) for position in range(10_000)]


def test_history_takes_one_byte_a_prompt_and_is_saved_compressed():
    history = PromptHistory(num_rows=100_000)
    history.observe(7, is_informative=False)
    state = history.state_dict()
    assert len(state["streaks"]) < 1_000
    resumed = PromptHistory(num_rows=100_000)
    resumed.load_state_dict(state)
    assert [resumed.skip_probability(index) for index in (6, 7)] == [0.0, 0.5]


def test_history_of_another_dataset_is_refused():
    with pytest.raises(ValueError, match="of 3 rows, but the dataset has 4"):
        PromptHistory(num_rows=4).load_state_dict(PromptHistory(num_rows=3).state_dict())


def test_run_skips_prompts_whose_groups_were_uninformative(tmp_path):
    def hard_rows(completion_ids, row, **kwargs):
        return [r if number % 2 else 0.0 for number, r in zip(row, first_token_reward(completion_ids), strict=True)]

    trainer = make_trainer(tmp_path, hard_rows, num_rows=16, max_steps=20, selective_rollout=True)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "dapo/skipped_prompts" in entry]
    assert sum(entry["dapo/skipped_prompts"] for entry in logs) > 10
    rows = [row for rounds, _, _ in trainer.batches[5:] for sampled, _, _ in rounds for row in sampled[::4]]
    # Even rows never teach; without skipping they would be half of the sampled ones.
    assert sum(row % 2 == 0 for row in rows) < 0.4 * len(rows)


def test_every_draw_of_the_stream_is_sampled_or_counted_as_skipped(tmp_path):
    trainer = make_trainer(tmp_path, rare_reward, num_rows=10, max_steps=8, selective_rollout=True, surplus="carry")
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "dapo/skipped_prompts" in entry]
    num_sampled = sum(entry["dapo/prompts_drawn"] for entry in logs)
    assert (
        num_sampled + sum(entry["dapo/skipped_prompts"] for entry in logs)
        == trainer.dynamic_sampler.source.stream.position
    )
