"""What the notes of a short run say: its processes, its weights, its speed, and the same step after a restart."""

from collections.abc import Mapping, Sequence
from typing import Any

from trl_dapo.command_line.option_check import is_set

from .arithmetic import BatchPlan, gb, run_hours
from .lines import Line, Verdict, batch_lines, fault
from .trial import Notes, restart_difference


# Longer than this is "slow", in hours.
_LONG = 14 * 24
# Optimizer steps on a batch with which a run that is one batch late was ahead of one with half of its steps, and with which it was
# no longer: `benchmarks/overlap_accuracy.py`.
_PAYS, _TOO_OLD = 4, 16
# Errors that only say that another process failed.
_FOLLOWING = ("RankFailedError", "DistBackendError", "DistNetworkError")


def run_lines(
    notes: Sequence[Notes],
    code: int | None,
    values: Mapping[str, Any],
    num_steps: int,
    minutes: float,
    progress: str = "",
) -> list[Line]:
    """
    Returns the lines of a short run.

    Args:
        notes (`Sequence[Notes]`):
            Of the processes of this machine.
        code (`int`, *optional*):
            Status with which it ended; `None`: it was ended because the time was over.
        values (`Mapping[str, Any]`):
            The options of the run.
        num_steps (`int`):
            Optimizer steps that it was to take.
        minutes (`float`):
            The time that it had.
        progress (`str`, *optional*):
            What it said last of its sampling.
    """
    if not notes:
        late = "the short run did not begin in time; give --max_minutes a larger number"
        return [fault("loading", "", "", code) if code is not None else Line("loading", Verdict.SLOW, late)]
    first, world = notes[0], notes[0].world
    lines = []
    if all(each.loaded is not None for each in notes):
        seconds = max(each.loaded or 0 for each in notes)
        text = f"model and {first.num_rows:,} prompts in {seconds:.0f} s"
        lines.append(Line("loading", Verdict.OK, text))
    if first.remark:
        lines.append(Line("prompts", Verdict.SLOW, first.remark))
    lines += batch_lines(first.logs)
    if is_set(values["use_vllm"]) and first.logs:
        lines.append(_sync_line(first.logs, values))
    has_moved = first.checksums.get("begin") != first.checksums.get("end")
    if not has_moved and any(entry.get("learning_rate") and entry.get("grad_norm") for entry in first.logs):
        lost = "If they are in bfloat16, small steps are lost by rounding: set --dtype float32 (docs/recipes.md)"
        lines.append(Line("weights", Verdict.BROKEN, f"no weight has changed. {lost}."))
    if world > 1:
        done = sum(len(each.seconds) >= 1 for each in notes)
        here = "" if len(notes) == world else f"; the other {world - len(notes)} are on other machines, not seen here"
        text = f"{done} of {len(notes)} sampled and took optimizer steps{here}"
        lines.append(Line("processes", Verdict.OK if done == len(notes) else Verdict.BROKEN, text))
    if first.peak_bytes:
        lines.append(
            Line(
                "peak memory", Verdict.OK, f"{gb(max(each.peak_bytes for each in notes)).strip()} a process, measured"
            )
        )
    failed = sorted((each for each in notes if each.error), key=lambda each: each.error["kind"] in _FOLLOWING)
    if failed:
        rank = f"process {failed[0].rank}, {failed[0].stage}" if world > 1 else failed[0].stage
        lines.append(fault(rank, failed[0].error["kind"], failed[0].error["message"], code))
    elif code is None:
        lines.append(
            Line(
                "short run",
                Verdict.SLOW,
                f"ended after {minutes:g} minutes at: {progress or first.stage} ({num_steps} steps were to be taken). Give --max_minutes more, or lower "
                "max_completion_length or num_generations for a check; the run itself will be as slow.",
            )
        )
    elif code:
        stuck = next((each for each in notes if each.stage != "done"), first)
        lines.append(fault(stuck.stage, "", "", code))
    return lines


def _sync_line(logs: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> Line:
    names = ("dapo/vllm/logp_gap", "dapo/vllm/server_logp_gap")
    gaps = [entry[name] for entry in logs for name in names if name in entry]
    used = [f"vllm_mode={values['vllm_mode']}", f"refill={values['refill']}"]
    used += [f"vllm_enable_sleep_mode={values['vllm_enable_sleep_mode']}"] * is_set(values["vllm_enable_sleep_mode"])
    used += [f"vllm_engine_kwargs={values['vllm_engine_kwargs']}"] * bool(values["vllm_engine_kwargs"])
    if not gaps:
        return Line(
            "weight sync",
            Verdict.SLOW,
            f"not compared: these sampling options, or vllm_check_interval, leave nothing to compare ({', '.join(used)})",
        )
    text = f"vLLM's log-probabilities are {max(gaps):.4f} nats a token from the trainer's in {len(gaps)} comparisons, "
    return Line(
        "weight sync", Verdict.OK, text + f"vllm_max_logp_gap is {values['vllm_max_logp_gap']} ({', '.join(used)})"
    )


def speed_lines(notes: Notes, batch: BatchPlan, trial: BatchPlan, values: Mapping[str, Any]) -> list[Line]:
    """
    Returns tokens a second, seconds a step, and the hours of the recipe.

    Args:
        notes (`Notes`):
            Of a process that took a step at least.
        batch (`BatchPlan`), trial (`BatchPlan`):
            Batches of the recipe and of the short run.
        values (`Mapping[str, Any]`):
            The options of the run.
    """
    logs, seconds = notes.logs[: len(notes.seconds)], notes.seconds
    sampled = [number for number, entry in enumerate(logs) if "dapo/seconds_sampling" in entry]
    if not sampled:
        return []
    last = sampled[-1]  # the first one has what is compiled and cached once
    sampling = float(logs[last]["dapo/seconds_sampling"])
    # With `overlap` the trainer waits for a part of it only.
    waited = [float(entry.get("dapo/overlap/wait_seconds", entry.get("dapo/seconds_sampling", 0))) for entry in logs]
    spent = [took - wait for took, wait in zip(seconds, waited, strict=False)]
    training = sum(spent[1:]) / len(spent[1:]) if len(spent) > 1 else spent[0]
    trained = float(logs[last].get("dapo/tokens/trained", 0))
    num_sampled = trained / max(float(logs[last].get("dapo/rollout_efficiency", 1)), 1e-9)
    updates = trial.num_updates
    text = f"{num_sampled / max(sampling, 1e-9):,.0f} tokens sampled a second, {trained / max(training * updates, 1e-9):,.0f} trained; "
    text += f"{sampling:.2f} s to sample a batch of {trial.num_completions} completions, {training:.2f} s for an optimizer step of "
    text += f"{trial.num_completions // updates}"
    lines = [Line("speed", Verdict.OK, text)]
    num_steps = float(values["max_steps"] or -1)
    counted = f"max_steps {num_steps:,.0f}"
    if num_steps <= 0:
        epochs, groups = float(values["num_train_epochs"] or 3), batch.num_completions / batch.num_generations
        num_steps = epochs * notes.num_rows / groups * batch.num_updates
        counted = f"{epochs:g} epochs of {notes.num_rows:,} prompts, {num_steps:,.0f} optimizer steps"
    overlap = is_set(values["overlap"])
    hours = run_hours(batch, trial, num_steps, sampling, training, overlap)
    how = f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"
    how += f": {counted}, of it {num_steps / batch.num_updates:,.0f} batches of {batch.num_completions:,} completions"
    how += f", from {len(seconds)} optimizer steps of the short run, without evaluation and checkpoints"
    if trial != batch:
        how += f". The short run had batches of {trial.num_completions}; a larger batch samples more tokens a second, so this is high"
    how += ". Completions get longer in training, and acceptance changes"
    lines.append(Line("time", Verdict.SLOW if hours > _LONG else Verdict.OK, how))
    if values["vllm_mode"] == "server" and is_set(values["use_vllm"]):
        lines.append(
            _overlap_line(overlap, run_hours(batch, trial, num_steps, sampling, training, not overlap) / hours, batch)
        )
    return lines


def _overlap_line(overlap: bool, ratio: float, batch: BatchPlan) -> Line:
    """Returns what `overlap=True` is worth: the hours with it over those without it, and the age of what trains."""
    faster, steps = ratio if overlap else 1 / ratio, batch.num_updates
    text = f"overlap={overlap}. Sampling the next batch while one trains makes the run at most {faster:.2f} times faster, and "
    text += f"each batch is {steps} optimizer steps old when it begins to train. "
    if steps < _TOO_OLD:
        return Line(
            "overlap",
            Verdict.OK,
            text + f"That costs accuracy at equal steps; in equal time it paid with up to {_PAYS} (docs/vllm.md)",
        )
    text += f"With {_TOO_OLD} it cost as much accuracy as it saved time (docs/vllm.md)"
    advice = f": lower steps_per_generation so that a batch has at most {_PAYS}, or set overlap=False"
    return Line("overlap", Verdict.SLOW if overlap else Verdict.OK, text + advice * overlap)


def restart_line(run: Sequence[Notes], restart: Sequence[Notes], values: Mapping[str, Any], has_gpu: bool) -> Line:
    """
    Returns whether the last step was the same after a restart.

    Args:
        run (`Sequence[Notes]`), restart (`Sequence[Notes]`):
            Notes of the processes.
        values (`Mapping[str, Any]`):
            The options of the run.
        has_gpu (`bool`):
            Whether it was on a GPU.
    """
    failed = next((each for each in restart if each.error), None)
    if failed is not None:
        return Line("restart", Verdict.BROKEN, f"{failed.stage}: {failed.error['kind']}: {failed.error['message']}")
    if not restart or not restart[0].logs:
        return Line("restart", Verdict.SLOW, "not checked: the restarted process did not take its step in time")
    pairs = list(zip(run, restart, strict=False))
    is_same = all(before.checksums["end"] == after.checksums["end"] for before, after in pairs)
    differing = restart_difference(run[0].logs[-1], restart[0].logs[-1])
    if is_same and not differing:
        return Line(
            "restart",
            Verdict.OK,
            "the step after a checkpoint is the same in a new process: weights and log line, to the bit",
        )
    named = ", ".join(differing[:4]) or "the weights alone"
    has_other_tokens = bool({"num_tokens", "dapo/tokens/trained", "completions/mean_length"} & set(differing))
    if is_set(values["use_vllm"]) and has_other_tokens:
        reason = (
            "not to the bit: engine. vLLM sampled other completions: its sums depend on which requests share a batch, and requests "
            "may have no seeds (vllm_request_seeds)"
        )
        return Line("restart", Verdict.OK, f"{reason} ({named})")
    if has_gpu or is_set(values["use_vllm"]):
        reason = "not to the bit: engine. The sums of vLLM or of GPU kernels differ between processes"
        return Line("restart", Verdict.OK, f"{reason} ({named})")
    return Line("restart", Verdict.BROKEN, f"the step after a checkpoint differs in {named}. Please report it.")
