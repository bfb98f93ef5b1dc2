"""What each metric of a run means: ours, those of TRL, and those of transformers. docs/metrics.md is made from it."""

import re
from typing import NamedTuple


class Metric(NamedTuple):
    """
    A metric.

    Attributes:
        meaning (`str`):
            What it says, in Markdown.
        when (`str`):
            When it is logged. "": by every run with dynamic sampling.
    """

    meaning: str
    when: str = ""


_ANY = "always"  # without dynamic sampling too
_CARRY = '`surplus="carry"`'
_SELECTION = "`selective_rollout`"
_STREAM = '`refill="stream"`'
_OVERLAP = "`overlap=True`"
_VLLM = "vLLM"
_COLOCATED = "colocated vLLM"
_GRADING = "`accuracy_reward`"
_STEPS = "several optimizer steps on a generation batch, or carried groups"
_CLIPPED = "where such tokens were clipped"
_TOOLS = "tools"
_TURNS = "tools, environments, rollout functions"
_ENVIRONMENTS = "several environments"

# By section. `<name>`, `<k>` and `<metric>` stand for a reward function, a number and another metric.
METRICS: dict[str, dict[str, Metric]] = {
    "Sampling": {
        "dapo/sampled_accuracy": Metric("accuracy over all sampled completions: the learning curve", _ANY),
        "dapo/trained_accuracy": Metric("accuracy of the trained batch, which the filter pulls towards one half"),
        "dapo/acceptance_rate": Metric("share of the sampled groups that are informative", _ANY),
        "dapo/acceptance_estimate": Metric("the planner's estimate of it for the next round"),
        "dapo/frac_all_correct": Metric("share of the groups in which every completion is correct", _ANY),
        "dapo/frac_all_wrong": Metric("share of the groups in which none is", _ANY),
        "dapo/frac_unscorable": Metric("share of the groups without a reward", _ANY),
        "dapo/frac_rare_success": Metric(
            "share of the trained groups in which few completions are correct: an eighth of the group, at least 1. They teach "
            "what the policy hardly knows, and a selection that is too greedy loses them"
        ),
        "dapo/rounds": Metric('rounds of the batch; 1 with `refill="stream"`'),
        "dapo/prompts_drawn": Metric("groups sampled for the batch"),
        "dapo/data_passes": Metric("passes over the data so far"),
        "dapo/rollout_efficiency": Metric("trained tokens over generated tokens"),
        "dapo/seconds_sampling": Metric("seconds in which the batch was sampled"),
        "dapo/exhausted": Metric("1 if all rounds were used and the batch is not full", '`on_exhausted="partial"`'),
        "dapo/carried": Metric("groups carried from earlier batches", _CARRY),
        "dapo/stale": Metric("those of them that were too old to train", _CARRY),
        "dapo/moved_bytes": Metric(
            "rollouts that moved to another rank when the batch was assembled", "several processes"
        ),
        "dapo/turns/mean": Metric("turns of a completion in which the model wrote a token", _TURNS),
        "dapo/frac_env_failed": Metric(
            "share of completions that a tool or an environment left without a reward ([agents](agents.md))", _TURNS
        ),
        "dapo/frac_env_failed/raised": Metric("the part of it where it raised", _TURNS),
        "dapo/frac_env_failed/timed_out": Metric("the part of it where it took too long", _TURNS),
        "dapo/frac_env_failed/not_reset": Metric("the part of it where an environment could not begin", _TURNS),
        "dapo/environments/<name>/acceptance_rate": Metric("the same of each of several environments", _ENVIRONMENTS),
        "dapo/environments/<name>/sampled_accuracy": Metric("the same of each of several environments", _ENVIRONMENTS),
        "dapo/environments/<name>/mean_length": Metric("mean tokens of its completions", _ENVIRONMENTS),
        "dapo/environments/<name>/turns/mean": Metric("turns of its completions", _ENVIRONMENTS),
        "dapo/environments/<name>/frac_env_failed": Metric("share of its completions without a reward", _ENVIRONMENTS),
        "dapo/stream/groups_suspended": Metric("groups that continue in the next batch", f"{_STREAM}, {_CARRY}"),
        "dapo/stream/grading_hidden": Metric("share of the grading time in which the engine was decoding", _STREAM),
        "dapo/overlap/hidden": Metric(
            "share of the sampling time of the batch in which the trainer had something else to do", _OVERLAP
        ),
        "dapo/overlap/wait_seconds": Metric(
            "seconds that the trainer spent on weights for, or waiting for, the batch", _OVERLAP
        ),
        "dapo/overlap/idle_seconds": Metric("seconds that the batch was ready before the trainer needed it", _OVERLAP),
        "dapo/overlap/staleness_mean": Metric(
            "age of a trained token in optimizer steps when its batch begins to train, mean", _OVERLAP
        ),
        "dapo/overlap/staleness_max": Metric("the highest such age", _OVERLAP),
        "dapo/overlap/frac_truncated": Metric(
            "share of the tokens whose importance weight is above the highest one", _OVERLAP
        ),
        "dapo/vllm/logp_gap": Metric(
            "mean distance of vLLM's log-probabilities from the trained model's, in nats a token; rounding causes 0.01 to 0.05 "
            "in bfloat16",
            f"{_COLOCATED}, every `vllm_check_interval` syncs",
        ),
        "dapo/vllm/logp_gap_max": Metric("the largest of these distances", f"{_COLOCATED}, as `dapo/vllm/logp_gap`"),
        "dapo/vllm/preemptions": Metric(
            "requests whose part of the KV cache was given to others since the batch before, and that are computed again; often "
            "above 0: lower `max_num_seqs`, or raise `vllm_gpu_memory_utilization`",
            _COLOCATED,
        ),
        "dapo/vllm/kv_cache_use_max": Metric(
            "largest share of the KV cache in use since the batch before, of the fullest engine", _COLOCATED
        ),
        "dapo/vllm/tokens_per_pass": Metric(
            "tokens that a sequence gets of a forward pass: 1 and the draft tokens that were accepted, also those behind the end of "
            "the completion, which it does not keep",
            f"{_COLOCATED} with `speculative_config`",
        ),
        "dapo/vllm/frac_drafts_accepted": Metric(
            "share of the draft tokens that were accepted", f"{_COLOCATED} with `speculative_config`"
        ),
        "dapo/vllm/server_logp_gap": Metric(
            "distance of the log-probabilities of texts that each vLLM server is asked about right after a weight sync; the "
            "largest of the servers",
            "vLLM server",
        ),
    },
    "Cost by what became of a group": {
        "dapo/tokens/trained": Metric("generated tokens of the groups that train"),
        "dapo/tokens/surplus": Metric("of informative groups beyond the batch"),
        "dapo/tokens/all_correct": Metric("of groups in which every completion is correct"),
        "dapo/tokens/all_wrong": Metric("of groups in which none is"),
        "dapo/tokens/uniform": Metric("of groups whose rewards are all alike, but neither 0 nor 1"),
        "dapo/tokens/unscorable": Metric("of groups without a reward"),
        "dapo/tokens/out_of_range": Metric("of groups outside `filter_range`", "`filter_range`"),
        "dapo/tokens/truncated_out": Metric(
            "of groups whose completions that are not truncated are all alike", "`mask_truncated_completions`"
        ),
        "dapo/tokens/aborted": Metric("of groups that were given up before they were done", _STREAM),
        "dapo/seconds/<fate>": Metric(
            "seconds of sampling, split in the same way; those of a round are split in proportion to the tokens of its groups. "
            "Their sum is `dapo/seconds_sampling`"
        ),
    },
    "Selective rollout": {
        "dapo/skipped_prompts": Metric("prompts that were passed over", _SELECTION),
        "dapo/selection/calibration_error": Metric(
            "mean distance between the predicted probability that a group is informative and the share that was; above 0.1 "
            "after the first pass, predictions are poor. `reliability.png` shows it by predicted probability",
            _SELECTION,
        ),
        "dapo/selection/completions_of_blind": Metric(
            "completions per trained group over what sampling without selection would have had; estimated from the sampled "
            "groups, each weighted by 1 over its probability to be sampled",
            _SELECTION,
        ),
        "dapo/selection/rare_of_blind": Metric("the same for the share of rare successes", _SELECTION),
        "dapo/selection/frac_solved": Metric(
            "share of the prompts seen so far whose pass rate is put above 0.9", _SELECTION
        ),
        "dapo/selection/frac_unsolved": Metric("share of those whose pass rate is put below 0.1", _SELECTION),
        "dapo/selection/evicted": Metric("prompts that were taken out", "`evict_above`"),
    },
    "Training": {
        "dapo/entropy": Metric(
            "entropy in nats a token, over all trained tokens; a collapse is visible here first", _ANY
        ),
        "dapo/entropy/positive": Metric("the same over tokens with an advantage above 0", _ANY),
        "dapo/entropy/negative": Metric("the same over tokens with an advantage below 0", _ANY),
        "dapo/clip_high/token_prob_mean": Metric(
            "probability, under the policy that sampled, of tokens that were clipped from above. The paper finds it below 0.2, "
            "which is its reason for Clip-Higher",
            _CLIPPED,
        ),
        "dapo/clip_high/token_prob_max": Metric("the largest of these probabilities", _CLIPPED),
        "dapo/clip_low/token_prob_mean": Metric("the same mean for tokens that were clipped from below", _CLIPPED),
        "dapo/clip_high/frac_of_positive": Metric(
            "share of the tokens with A > 0 that were clipped from above", _STEPS
        ),
        "dapo/clip_low/frac_of_negative": Metric(
            "share of the tokens with A < 0 that were clipped from below", _STEPS
        ),
        "dapo/ratio/mean": Metric(
            "probability under the trained policy over probability under the policy that sampled", _ANY
        ),
        "dapo/ratio/min": Metric("the smallest ratio", _ANY),
        "dapo/ratio/max": Metric("the largest ratio", _ANY),
        "dapo/advantage/min": Metric("the smallest advantage", _ANY),
        "dapo/advantage/max": Metric("the largest advantage", _ANY),
        "dapo/length/correct": Metric("mean length in tokens of correct completions", _ANY),
        "dapo/length/wrong": Metric("mean length in tokens of wrong completions", _ANY),
        "dapo/length/frac_long_given_negative": Metric(
            "P(longer than L_max - L_cache, given an advantage below 0), over trained completions", "a length limit"
        ),
        "dapo/overlong/frac": Metric(
            "share of completions longer than L_max - L_cache", "`soft_punish_cache` above 0"
        ),
        "dapo/overlong/penalty_mean": Metric(
            "their mean penalty, over all completions", "`soft_punish_cache` above 0"
        ),
        "dapo/frac_non_finite_steps": Metric(
            "share of the optimizer steps whose gradients were NaN or infinite, and that were skipped",
            "when there was one",
        ),
    },
    "Grading": {
        "grading/frac_gave_up": Metric("share of completions that were not graded within their budget", _GRADING),
        "grading/frac_no_answer": Metric("share of completions without a final answer", _GRADING),
        "grading/frac_bad_gold": Metric("share of completions whose gold cannot be read", _GRADING),
        "grading/seconds": Metric("seconds of grading in a call", _GRADING),
        "grading/workers_restarted": Metric("worker processes that died or were ended, and began anew", _GRADING),
    },
    "Evaluation": {
        "eval_avg@<k>": Metric(
            "accuracy over k completions of each held-out problem, k = `num_generations_eval`", "evaluation"
        ),
        "eval_maj@<k>": Metric("share of problems whose most frequent answer is correct", f"evaluation, {_GRADING}"),
        "eval_pass@<k>": Metric("share of problems with a correct completion", "evaluation"),
        "eval_<metric>": Metric(
            "a metric of this page, over the held-out completions. Several datasets: `eval_<dataset>_<metric>`",
            "evaluation",
        ),
    },
    "TRL: completions and rewards": {
        "num_tokens": Metric("tokens of prompts and completions of everything that was sampled so far", _ANY),
        "step_time": Metric("seconds of an optimizer step, in which all rounds of its generation batch count", _ANY),
        "completions/mean_length": Metric("mean length in tokens", _ANY),
        "completions/min_length": Metric("the shortest", _ANY),
        "completions/max_length": Metric("the longest", _ANY),
        "completions/clipped_ratio": Metric("share that is truncated", _ANY),
        "completions/mean_terminated_length": Metric("mean length of those that ended by themselves", _ANY),
        "completions/min_terminated_length": Metric("the shortest of those", _ANY),
        "completions/max_terminated_length": Metric("the longest of those", _ANY),
        "rewards/<name>/mean": Metric("mean of a reward function, over the trained batch", _ANY),
        "rewards/<name>/std": Metric("its standard deviation", _ANY),
        "reward": Metric("mean of the weighted sum of rewards, over the trained batch, with the penalty", _ANY),
        "reward_std": Metric("its standard deviation", _ANY),
        "frac_reward_zero_std": Metric(
            "share of the trained groups whose rewards are all alike: 0, unless another reward cancels the filter reward or "
            "the batch is not full",
            _ANY,
        ),
        "tools/call_frequency": Metric("calls of tools per completion", _TOOLS),
        "tools/failure_frequency": Metric("share of these calls that failed", _TOOLS),
    },
    "TRL: loss": {
        "entropy": Metric("entropy in nats a token, as a mean of micro-batches", _ANY),
        "clip_ratio/low_mean": Metric("share of the tokens clipped from below, as a mean of micro-batches", _STEPS),
        "clip_ratio/low_min": Metric("the smallest such share of a process", _STEPS),
        "clip_ratio/high_mean": Metric("share of the tokens clipped from above, as a mean of micro-batches", _STEPS),
        "clip_ratio/high_max": Metric("the largest such share of a process", _STEPS),
        "clip_ratio/region_mean": Metric("share of the tokens clipped from either side", _STEPS),
        "cispo_clip_ratio": Metric("share of the tokens whose weight is capped", '`loss_type="cispo"`'),
        "vespo/phi_seq_mean": Metric("mean weight of a sequence", '`loss_type="vespo"`'),
        "kl": Metric("KL divergence from the reference model, in nats a token", "`beta` above 0"),
        "policy_loss": Metric("the loss without the entropy term", "`entropy_coef` above 0, or adaptive entropy"),
        "entropy_coef": Metric("weight of the entropy term", "`entropy_coef` above 0, or adaptive entropy"),
        "aux_loss": Metric("load-balancing loss of a mixture of experts", "`router_aux_loss_coef`"),
        "sampling/sampling_logp_difference/mean": Metric(
            "mean distance between vLLM's log-probabilities and the trainer's", _VLLM
        ),
        "sampling/sampling_logp_difference/max": Metric("the largest of these distances", _VLLM),
        "sampling/importance_sampling_ratio/min": Metric("the smallest importance ratio for it", _VLLM),
        "sampling/importance_sampling_ratio/mean": Metric("its mean", _VLLM),
        "sampling/importance_sampling_ratio/max": Metric("the largest", _VLLM),
    },
    "transformers": {
        "loss": Metric("the loss that was minimized: noise around 0 here, no learning curve", _ANY),
        "grad_norm": Metric("norm of the gradient before clipping", _ANY),
        "learning_rate": Metric("learning rate of the step", _ANY),
        "epoch": Metric("passes as transformers counts them, as if no group were rejected", _ANY),
        "step": Metric("optimizer steps so far", _ANY),
        "num_input_tokens_seen": Metric("as `num_tokens`", "`include_num_input_tokens_seen`"),
        "train_runtime": Metric("seconds of the training", "its end"),
        "train_samples_per_second": Metric("rows of the dataloader a second", "its end"),
        "train_steps_per_second": Metric("optimizer steps a second", "its end"),
        "train_tokens_per_second": Metric("tokens a second", "its end, `include_num_input_tokens_seen`"),
        "train_loss": Metric("mean loss", "its end"),
        "total_flos": Metric("floating-point operations, as transformers estimates them", "its end"),
        "eval_loss": Metric("loss over the held-out problems", "evaluation"),
        "eval_model_preparation_time": Metric("seconds to prepare the model, once", "evaluation before any training"),
        "eval_runtime": Metric("seconds of an evaluation", "evaluation"),
        "eval_samples_per_second": Metric("completions a second", "evaluation"),
        "eval_steps_per_second": Metric("batches a second", "evaluation"),
    },
}

_PLACES = {"<name>": r"[^/]+", "<fate>": r"\w+", "<k>": r"\d+", "<metric>": ".+"}


def _pattern(name: str) -> str:
    pattern = re.escape(name)
    for place, words in _PLACES.items():
        pattern = pattern.replace(re.escape(place), words)
    return pattern


_KNOWN = re.compile(
    "|".join(_pattern(name) for group in METRICS.values() for name in group if name != "eval_<metric>")
)


def is_explained(name: str) -> bool:
    """
    Returns whether a metric is in the reference, by the name under which a run logs it.

    Args:
        name (`str`):
            Its name.

    >>> is_explained("rewards/my_reward/mean"), is_explained("eval_hard_avg@8"), is_explained("dapo/luck")
    (True, True, False)
    """
    if _KNOWN.fullmatch(name):
        return True
    # `eval_<dataset>_<metric>`: a dataset may have any name.
    parts = name.removeprefix("eval_").split("_")
    candidates = ["_".join(parts[start:]) for start in range(len(parts))] if name.startswith("eval_") else []
    return any(_KNOWN.fullmatch(part) or _KNOWN.fullmatch(f"eval_{part}") for part in candidates)
