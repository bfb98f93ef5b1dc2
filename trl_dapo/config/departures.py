"""What a run is going to do, in one screen, and where it is not what the paper calls DAPO."""

from collections.abc import Sequence

from trl_dapo.sampling.refill_planner import RoundPlan

from .dapo_config import DAPOConfig
from .loss_types import CLIPPED_LOSSES


def describe_run(
    args: DAPOConfig,
    num_steps: int,
    num_rows: int | None,
    first_round: RoundPlan | None,
    reward_names: Sequence[str],
    filter_names: Sequence[str] = (),
) -> str:
    """
    Describes a run before it begins.

    Args:
        args (`DAPOConfig`):
            The configuration.
        num_steps (`int`):
            Optimizer steps of the run.
        num_rows (`int` or `None`):
            Rows of the training dataset. `None`: a stream.
        first_round (`RoundPlan` or `None`):
            The first round of generation. `None`: without dynamic sampling.
        reward_names (`Sequence[str]`):
            The reward functions.
        filter_names (`Sequence[str]`, *optional*):
            Those of them that judge groups. Empty: the first one.

    Returns:
        `str`: a few lines, the last ones a warning each.
    """
    shape = args.shape
    prompts, updates, completions = shape.num_groups, shape.num_updates, shape.num_completions
    limit = args.generation_end.max_completion_length
    tokens = "without a length limit" if limit is None else f"at most {completions * limit:,} tokens"
    data = "a stream of prompts" if num_rows is None else f"{num_rows:,} prompts"
    lines = [
        f"DAPO: {num_steps:,} optimizer steps on {data}, reward {' + '.join(reward_names)}.",
        f"  Rollout step: {prompts} prompts x {shape.num_generations} completions = {completions:,} to train on, {tokens}; "
        f"{updates} optimizer step{'s' if updates > 1 else ''} on each, of {_per_update(completions, args)} completions.",
    ]
    if first_round is not None:
        judges = _judges(filter_names or reward_names[:1])
        lines.append(f"  Dynamic sampling by {judges}: {_refill(first_round, args)}; surplus: {args.surplus}.")
        if args.overlap:
            lines.append(f"  {_overlap(args)}")
        lines.append(f"  Before the first step: {_first_wait(first_round, args)}.")
    lines += [f"  {name}: {value}" for name, value in _parts(args).items()]
    return "\n".join([*lines, *(f"  ! {departure}" for departure in departures(args))])


def _overlap(args: DAPOConfig) -> str:
    """Returns when a batch is sampled, how old it is, and what the loss makes of it."""
    steps = args.num_steps_ahead
    loss = "its ratio is against the policy that sampled it"
    if args.vllm_importance_sampling_correction:
        cap = args.vllm_importance_sampling_clip_max
        most = "without a limit" if cap is None else f"at most {cap:g}"
        loss = f"each token is weighted by its probability then over that when it was sampled, {most}"
    return (
        f"Overlap: each batch is sampled while the one before it trains, so it is {steps} optimizer step{'s' * (steps > 1)} old "
        f"when it begins to train; {loss}."
    )


def _first_wait(plan: RoundPlan, args: DAPOConfig) -> str:
    """Returns what is sampled before anything is trained, as far as it is planned."""
    completions = plan.num_prompts * args.shape.num_generations
    limit = args.generation_end.max_completion_length
    tokens = "" if limit is None else f" of at most {completions * limit:,} tokens"
    return (
        f"{plan.num_prompts} prompts x {args.shape.num_generations} = {completions:,} completions{tokens} are sampled and "
        "scored; meanwhile a line or a bar says how many groups are found"
    )


def _judges(names: Sequence[str]) -> str:
    """Returns the rewards that judge groups, in the order in which they are asked."""
    first, *others = names
    return first + "".join(f", else {name}" for name in others)


def _refill(plan: RoundPlan, args: DAPOConfig) -> str:
    odds = (
        f"{plan.num_prompts} prompts, which fill the batch with probability {plan.fill_probability:.2f} if "
        f"{plan.acceptance_rate:.0%} of groups are informative"
    )
    if args.refill == "stream":
        return f"group by group, first {odds}, at most {args.shape.max_prompts:,} prompts a batch"
    rounds = min(2.0 - plan.fill_probability, args.max_generation_rounds)
    return (
        f"the first round samples {odds}, so about {rounds:.1f} rounds a batch, at most {args.max_generation_rounds}"
    )


def describe_method(
    args: DAPOConfig,
    num_steps: int,
    num_rows: int | None,
    reward_names: Sequence[str],
    filter_names: Sequence[str] = (),
) -> list[str]:
    """
    Describes what a run does, a line each, without what changes in its course.

    Args:
        args, num_steps, num_rows, reward_names, filter_names:
            As in [`describe_run`].
    """
    lines = describe_run(args, num_steps, num_rows, None, reward_names).splitlines()
    method = [line.strip() for line in lines if not line.startswith("  !")]
    if args.dynamic_sampling:
        most = (
            f"group by group, at most {args.shape.max_prompts:,} prompts a batch"
            if args.refill == "stream"
            else f"at most {args.max_generation_rounds} rounds a batch"
        )
        judges = _judges(filter_names or reward_names[:1])
        method.insert(2, f"Dynamic sampling by {judges}: {most}; surplus: {args.surplus}.")
        if args.overlap:
            method.insert(3, _overlap(args))
    return method


def departures(args: DAPOConfig) -> list[str]:
    """
    Returns where a configuration is not what the paper calls DAPO, and what would make it so.

    Args:
        args (`DAPOConfig`):
            The configuration.
    """
    is_late = args.overlap and not args.vllm_importance_sampling_correction
    found = {
        "One optimizer step per rollout step: the ratio is 1 in it, so no clipping can bind. The paper takes 16: raise "
        "steps_per_generation.": args.num_updates_per_batch == 1 and args.surplus != "carry" and not is_late,
        f"overlap is True, and a batch is {args.num_steps_ahead} optimizer steps old when it begins to train: that costs accuracy at "
        "equal steps, the more the older it is (docs/vllm.md). Lower steps_per_generation, or set overlap=False.": (
            args.overlap and args.num_steps_ahead > 1
        ),
        "No Clip-Higher: epsilon_high is not above epsilon. The paper has 0.28 and 0.2.": args.epsilon_high is None
        or args.epsilon_high <= args.epsilon,
        f"epsilon_high is {args.epsilon_high}: a ratio up to {1 + (args.epsilon_high or 0):g} is not clipped, so hardly any is. "
        "The paper has 0.28.": args.loss_type in CLIPPED_LOSSES
        and args.epsilon_high is not None
        and args.epsilon_high > 1.0,
        f"epsilon is {args.epsilon}: no ratio is ever below 1 - epsilon, so none is clipped from below. The paper has "
        "0.2.": args.loss_type in CLIPPED_LOSSES and args.epsilon >= 1.0,
        f"soft_punish_cache is {args.soft_punish_cache}, all of the longest completion: every completion is punished for its "
        f"length. The paper has 20 %, which is {args.default_punish_cache}.": bool(args.soft_punish_cache)
        and args.soft_punish_cache == args.generation_end.max_completion_length,
        "No dynamic sampling: groups that teach nothing train too. Set dynamic_sampling=True.": not args.dynamic_sampling,
        f"loss_type is {args.loss_type!r}: not the token-level loss. Set loss_type='dapo'.": args.loss_type != "dapo",
        f"epsilon_high is {args.epsilon_high}, which with loss_type='cispo' bounds the ratio itself: every token is clipped, "
        "and its gradient scaled by it. Set epsilon_high=5.0.": args.loss_type == "cispo"
        and (args.epsilon if args.epsilon_high is None else args.epsilon_high) < 1.0,
        "loss_normalization is 'generation_batch': optimizer steps with fewer tokens weigh less than they should. "
        f"{_own_denominator(args)}": args.loss_normalization == "generation_batch",
        f"beta is {args.beta}: a KL term, which DAPO has not. Set beta=0.0.": args.beta != 0.0,
        f"scale_rewards is {args.scale_rewards!r}: advantages are not divided by the std of the group. Set "
        "scale_rewards='group'.": args.scale_rewards not in ("group", True),
        "multi_objective_aggregation is 'normalize_then_sum': each reward is normalized in its group, and their sum over the "
        "generation batch. Set multi_objective_aggregation='sum_then_normalize'.": args.multi_objective_aggregation
        == "normalize_then_sum",
        "Neither the soft overlong punishment nor overlong filtering: truncated completions count as wrong and train. Set "
        "soft_punish_cache or mask_truncated_completions.": not args.soft_punish_cache
        and not args.mask_truncated_completions,
        f"temperature is {args.temperature}: the policy that samples is not the one that trains. The paper has 1.0.": (
            args.temperature != 1.0
        ),
        f"{' and '.join(_narrowing(args))}: completions are sampled from some of the tokens, or with other odds, and the loss "
        "takes their probability among all. Sample from all tokens.": bool(_narrowing(args)),
        f"neftune_noise_alpha is {args.neftune_noise_alpha}: noise in the embeddings, other noise in each pass. The policy "
        "that samples is not the one that trains, and the ratio is not 1 where the weights are the same. Leave it None.": bool(
            args.neftune_noise_alpha
        ),
        f"delta is {args.delta}: it cuts the ratio below 1 + epsilon_high, so that Clip-Higher cannot bind. Set it above, or "
        "leave it None.": _is_below_clip(args),
        "vllm_importance_sampling_mode is 'sequence_mask': completions whose engine and trainer disagree by more than the "
        "cap lose their gradient, long ones first. 'token_truncate' cuts single tokens.": args.use_vllm
        and args.vllm_importance_sampling_correction
        and args.vllm_importance_sampling_mode == "sequence_mask",
    }
    return [message for message, holds in found.items() if holds]


def _narrowing(args: DAPOConfig) -> list[str]:
    """Returns the settings that change the odds of sampling and that the loss does not know."""
    plain = {"top_p": (1.0, None), "top_k": (0, -1, None), "min_p": (0.0, None), "repetition_penalty": (1.0, None)}
    return [f"{name} is {getattr(args, name)}" for name, values in plain.items() if getattr(args, name) not in values]


def _is_below_clip(args: DAPOConfig) -> bool:
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    return args.delta is not None and args.delta < 1 + high


def _own_denominator(args: DAPOConfig) -> str:
    """Returns what makes the loss divide by the tokens of the optimizer step."""
    if args.shape.num_slices % args.gradient_accumulation_steps:
        return "Make steps_per_generation a multiple of gradient_accumulation_steps, and leave it None."
    return "Leave it None."


def _per_update(completions: int, args: DAPOConfig) -> str:
    per_step = completions * args.gradient_accumulation_steps / args.shape.num_slices
    return f"{min(per_step, completions):,.0f}"


def _parts(args: DAPOConfig) -> dict[str, str]:
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    if args.soft_punish_cache:
        overlong = f"punished from {args.free_length} tokens on, to -{args.overlong_penalty_factor:g} at the limit"
    else:
        overlong = "not punished"
    if args.mask_truncated_completions:
        inside = "in" if args.truncated_in_statistics else "out of"
        overlong += f"; truncated ones carry no loss and are {inside} the statistics of their group"
    return {
        "Clipping": f"ratio in [{1 - args.epsilon:g}, {1 + high:g}]",
        "Loss": f"{args.loss_type}, divided by {args.loss_normalization or 'what this loss type divides by'}",
        "Overlong completions": overlong,
    }
