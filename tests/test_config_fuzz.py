"""Random configurations: each works, or is refused by name."""

import dataclasses
import math
import re
import traceback
from unittest import mock

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trl import GRPOConfig

from trl_dapo import DAPOConfig
from trl_dapo.config.departures import describe_run
from trl_dapo.rewards import SoftOverlongPunishment
from trl_dapo.sampling.judge import GroupJudge
from trl_dapo.streaming.dynamic_sampler import make_dynamic_sampler


class AloneRank:
    rank, num_ranks = 0, 1


COUNT = st.one_of(st.integers(1, 6), st.integers(1, 6), st.integers(-2, 64))
ODD = st.sampled_from(["8", "", 0.5, math.nan, math.inf, -math.inf, True, None, [], [0.1, 0.9], {}, -1, 0, 10**4])
NUMBER = st.one_of(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(-2.0, 3.0))
FLAG = st.booleans()


def mostly(strategy):
    return st.one_of(*[strategy] * 19, ODD)


FIELDS = {
    # ours
    "epsilon_high": mostly(NUMBER),
    "dynamic_sampling": mostly(FLAG),
    "filter_reward": mostly(st.sampled_from([None, "accuracy"])),
    "filter_range": mostly(st.one_of(st.none(), st.tuples(NUMBER, NUMBER), st.lists(NUMBER, max_size=3))),
    "max_generation_rounds": mostly(COUNT),
    "max_prompts_per_round": mostly(COUNT),
    "on_exhausted": mostly(st.sampled_from(["partial", "partial", "error", "stop"])),
    "refill_confidence": mostly(st.one_of(st.none(), NUMBER)),
    "refill": mostly(st.sampled_from(["rounds", "rounds", "stream"])),
    "overlap": mostly(FLAG),
    "surplus": mostly(st.sampled_from(["requeue", "carry", "drop"])),
    "max_off_policy_steps": mostly(st.one_of(st.none(), COUNT)),
    "selective_rollout": mostly(FLAG),
    "exploration_share": mostly(NUMBER),
    "evict_above": mostly(st.one_of(st.none(), NUMBER)),
    "pass_rate_column": mostly(st.sampled_from([None, "rate"])),
    "label_column": mostly(st.sampled_from([None, "level"])),
    "loss_normalization": mostly(st.sampled_from([None, "batch", "group", "generation_batch", "token"])),
    "truncated_in_statistics": mostly(st.sampled_from([True, True, True, False])),
    "soft_punish_cache": mostly(st.one_of(st.none(), COUNT)),
    "overlong_penalty_factor": mostly(NUMBER),
    "max_non_finite_steps": mostly(st.one_of(st.none(), COUNT)),
    "reward_timeout": mostly(st.one_of(st.none(), NUMBER)),
    "env_timeout": mostly(st.one_of(st.none(), NUMBER)),
    "restart_stream": mostly(FLAG),
    "num_groups_to_log": mostly(st.one_of(st.none(), COUNT)),
    "vllm_engine_kwargs": mostly(st.sampled_from([None, None, {}, "eager"])),
    "vllm_request_seeds": mostly(st.sampled_from([None, None, True, False])),
    "vllm_adapter_sync": mostly(st.sampled_from(["merged", "merged", "adapter"])),
    "vllm_check_interval": mostly(COUNT),
    "vllm_max_logp_gap": mostly(NUMBER),
    "vllm_weight_folder": mostly(st.sampled_from([None, "weights"])),
    # TRL's that they depend on
    "use_vllm": FLAG,
    "vllm_mode": st.sampled_from(["colocate", "colocate", "server"]),
    "vllm_tensor_parallel_size": st.integers(1, 2),
    "num_generations": mostly(st.integers(2, 4)),
    "per_device_train_batch_size": mostly(st.sampled_from([4, 6, 8, 12])),
    "gradient_accumulation_steps": mostly(st.integers(1, 3)),
    "steps_per_generation": mostly(st.one_of(st.none(), st.integers(1, 4))),
    "num_iterations": mostly(st.integers(1, 3)),
    "max_completion_length": mostly(st.one_of(st.integers(8, 64), st.none())),
    "mask_truncated_completions": FLAG,
    "beta": mostly(st.sampled_from([0.0, 0.0, 0.04])),
    "epsilon": mostly(NUMBER),
    "loss_type": st.sampled_from(["dapo", "dapo", "grpo", "bnpo", "dr_grpo", "cispo"]),
    "scale_rewards": st.sampled_from(["group", "group", "none", "batch"]),
    "multi_objective_aggregation": st.sampled_from(["sum_then_normalize", "sum_then_normalize", "normalize_then_sum"]),
    "importance_sampling_level": st.sampled_from(["token", "sequence"]),
}


PROBLEMS = Dataset.from_dict({"prompt": ["?"] * 50, "rate": [0.5] * 50, "level": ["easy", "hard"] * 25})


def dry_run(args):
    """The arithmetic that a run would do with it before the first token."""
    assert args.num_groups_per_batch >= 1
    assert args.num_updates_per_batch >= 1
    if args.soft_punish_cache:
        punishment = SoftOverlongPunishment(
            args.max_completion_length, args.soft_punish_cache, args.overlong_penalty_factor
        )
        # Eq. 13, at its corners and between them, as far as such completions can be made here.
        free = args.max_completion_length - args.soft_punish_cache
        corners = {
            0,
            1,
            free - 1,
            free,
            free + 1,
            (free + args.max_completion_length) // 2,
            args.max_completion_length,
        }
        lengths = sorted(length for length in corners if 0 <= length <= 100)
        penalties = punishment(completion_ids=[[3] * length for length in lengths])
        for length, penalty in zip(lengths, penalties, strict=True):
            expected = -args.overlong_penalty_factor * max(0, length - free) / args.soft_punish_cache
            assert penalty == pytest.approx(expected)
    plan = None
    if args.dynamic_sampling:
        judge = GroupJudge([0], args.filter_bounds)
        planner = make_dynamic_sampler(args, AloneRank(), PROBLEMS, mock.Mock(), judge, 2, mock.Mock()).refill.planner
        plan = planner.plan(args.num_groups_per_batch, args.max_generation_rounds)
        assert 1 <= plan.num_prompts <= max(args.max_prompts_per_round, 1)
        assert 0 <= plan.fill_probability <= 1
        in_flight = planner.groups_in_flight(args.num_groups_per_batch)
        assert in_flight.num_prompts >= 1
    assert describe_run(args, 10, 50, plan, ["accuracy"])


def check(folder, overrides, outcomes):
    try:
        args = DAPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", **overrides)
    except ValueError as error:
        outcomes["refused"] += 1
        names = {field.name for field in dataclasses.fields(DAPOConfig)}
        mentioned = set(re.findall(r"[a-z_]+", str(error))) & names
        *_, last = traceback.walk_tb(error.__traceback__)
        is_ours = last[0].f_globals["__name__"].startswith("trl_dapo")
        # TRL may name what it computed from the field.
        if not mentioned & (set(overrides) if is_ours else names):
            pytest.fail(f"{error} names no field of {overrides}")
        return
    outcomes["works"] += 1
    dry_run(args)


def run(folder, num_examples, **options):
    outcomes = {"refused": 0, "works": 0}

    # A few fields each, so that about as many configurations work as are refused.
    @settings(max_examples=num_examples, deadline=None, suppress_health_check=list(HealthCheck), **options)
    @given(
        st.lists(st.sampled_from(sorted(FIELDS)), max_size=5, unique=True).flatmap(
            lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in names})
        )
    )
    def fuzz(overrides):
        check(folder, overrides, outcomes)

    fuzz()
    return outcomes


def test_random_configurations_work_or_are_refused_by_name(tmp_path):
    outcomes = run(tmp_path, 250, derandomize=True)
    assert min(outcomes.values()) > 40


@pytest.mark.slow
def test_2000_random_configurations_work_or_are_refused_by_name(tmp_path):
    outcomes = run(tmp_path, 2000)
    print(outcomes)
    assert min(outcomes.values()) > 400


def test_every_field_is_tried():
    own = {field.name for field in dataclasses.fields(DAPOConfig)} - {
        field.name for field in dataclasses.fields(GRPOConfig)
    }
    assert own <= set(FIELDS)
