"""What is said of a run before it begins."""

import pytest
from test_config import make_config
from test_trainer import make_trainer

from trl_dapo.config.departures import departures, describe_run
from trl_dapo.sampling.refill_planner import RefillPlanner, prob_at_least


def paper_config(tmp_path, **overrides):
    return make_config(tmp_path, steps_per_generation=16, per_device_train_batch_size=8, **overrides)


def test_paper_configuration_departs_nowhere(tmp_path):
    assert departures(paper_config(tmp_path)) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"steps_per_generation": 1}, "no clipping can bind"),
        ({"epsilon_high": None}, "No Clip-Higher"),
        ({"epsilon_high": 0.2}, "No Clip-Higher"),
        ({"dynamic_sampling": False}, "No dynamic sampling"),
        ({"loss_type": "grpo"}, "loss_type is 'grpo'"),
        ({"loss_normalization": "generation_batch"}, "weigh less than they should"),
        ({"beta": 0.04}, "beta is 0.04"),
        ({"scale_rewards": "none"}, "scale_rewards is 'none'"),
        ({"epsilon_high": 28}, "epsilon_high is 28: a ratio up to 29 is not clipped"),
        ({"soft_punish_cache": 8}, "soft_punish_cache is 8, all of the longest completion"),
        ({"soft_punish_cache": 0}, "Neither the soft overlong punishment nor overlong filtering"),
        ({"temperature": 0.7}, "temperature is 0.7"),
        (
            {"top_p": 0.95, "top_k": 50},
            "top_p is 0.95 and top_k is 50: completions are sampled from some of the tokens",
        ),
        ({"min_p": 0.05}, "min_p is 0.05: completions"),
        ({"repetition_penalty": 1.1}, "repetition_penalty is 1.1: completions"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha is 5.0: noise in the embeddings"),
        ({"delta": 1.2}, "delta is 1.2: it cuts the ratio below 1 + epsilon_high"),
        ({"use_vllm": True}, "'sequence_mask'"),
    ],
)
def test_departure_is_named_with_what_to_change(tmp_path, overrides, message):
    found = departures(make_config(tmp_path, **{"steps_per_generation": 16} | overrides))
    assert len(found) == 1
    assert message in found[0]


def test_sampling_from_all_tokens_is_no_departure(tmp_path):
    plain = {
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "delta": 4.0,
        "neftune_noise_alpha": None,
    }
    assert departures(paper_config(tmp_path, **plain)) == []


def test_bound_that_would_clip_every_token_is_named(tmp_path):
    # CISPO weighs a token by min(ratio, epsilon_high), and the ratio is 1 at first.
    found = departures(make_config(tmp_path, steps_per_generation=16, loss_type="cispo"))
    assert any("epsilon_high is 0.28, which with loss_type='cispo' bounds the ratio itself" in line for line in found)
    wide = departures(make_config(tmp_path, steps_per_generation=16, loss_type="cispo", epsilon_high=5.0))
    assert len(wide) == len(found) - 1


def test_lower_bound_that_no_ratio_reaches_is_named(tmp_path):
    (found,) = departures(
        make_config(tmp_path, steps_per_generation=16, epsilon=20, loss_type="dapo", epsilon_high=None)
    )[1:]
    assert "epsilon is 20: no ratio is ever below 1 - epsilon" in found
    # The advice is followed, and nothing more is said.
    assert departures(make_config(tmp_path, steps_per_generation=16, epsilon=0.2, epsilon_high=0.28)) == []


def test_carried_groups_make_the_ratio_move_even_with_one_step(tmp_path):
    assert departures(make_config(tmp_path, surplus="carry")) == []


def test_description_says_the_arithmetic_of_a_rollout_step(tmp_path):
    args = paper_config(tmp_path, gradient_accumulation_steps=4, num_generations=4, max_completion_length=100)
    plan = RefillPlanner(num_groups=32, confidence=0.9, max_prompts=128).plan(32)
    text = describe_run(args, num_steps=60, num_rows=4000, first_round=plan, reward_names=["accuracy_reward"])
    # 8 rows x 16 steps = 128 completions, 4 optimizer steps of 4 x 8 = 32.
    assert "60 optimizer steps on 4,000 prompts" in text
    assert "32 prompts x 4 completions = 128 to train on, at most 12,800 tokens" in text
    assert "4 optimizer steps on each, of 32 completions" in text
    assert f"the first round samples {plan.num_prompts} prompts" in text
    # A second round is needed where the first does not fill the batch, and hardly ever a third.
    assert f"about {2 - prob_at_least(32, plan.num_prompts, plan.acceptance_rate):.1f} rounds a batch" in text
    assert "ratio in [0.8, 1.28]" in text
    assert "punished from 80 tokens on" in text
    assert "!" not in text


def test_run_announces_itself_once(tmp_path, capsys):
    make_trainer(tmp_path, max_steps=2).train()
    printed = capsys.readouterr().out
    assert printed.count("DAPO: 2 optimizer steps on 50 prompts") == 1
    assert "! One optimizer step per rollout step" in printed
