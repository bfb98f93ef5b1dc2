"""`trl-dapo check`: what a recipe will do on this machine, in minutes, before it is trained."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trl import ModelConfig

from trl_dapo.atomic_write import atomic_write
from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.publishing.facts import published_recipe

from .launcher import TRIAL_MARK, LaunchArguments, is_sharded, is_to_be_launched, num_processes
from .option_check import check_values, is_set, read_values
from .option_parser import parse_options
from .option_sources import read_options
from .preflight.arithmetic import (
    BatchPlan,
    MemoryPlan,
    gb,
    host_bytes,
    memory_plan,
    proposals,
    short_run_seconds,
)
from .preflight.lines import Line, Verdict, exit_status, find_secrets, public_text, table
from .preflight.machine import Machine, measure_model, versions_line
from .preflight.outcome import restart_line, run_lines, speed_lines
from .preflight.trial import Notes, Trial, run_trial
from .training_run import TrainingScriptArguments, build_trainer


# Python, torch and TRL in a process.
_PROCESS_BYTES = 1e9
# Bytes a second that a checkpoint is assumed to be written with.
_DISK_SPEED = 5e8
# What the short run has in place of the user's own: nothing leaves the temporary folder.
_FORCED = {
    "report_to": "none",
    "push_to_hub": "false",
    "eval_strategy": "no",
    "eval_on_start": "false",
    "load_best_model_at_end": "false",
    "log_completions": "false",
    "num_groups_to_log": "0",
    "compare_grpo": "false",
    "logging_strategy": "steps",
    "logging_steps": "1",
    "save_only_model": "false",
    "restart_stream": "false",
    "disable_tqdm": "true",
    "on_exhausted": "partial",
    "vllm_check_interval": "1",
}
# Rounds for a batch of the recipe, and for a smaller one that is to save time.
_MOST_ROUNDS, _FEWEST_ROUNDS = 4, 2


@dataclass
class CheckArguments:
    """Options of `trl-dapo check` beside those of `trl-dapo train`."""

    max_minutes: float = field(default=5.0, metadata={"help": "Minutes after which the short run is ended."})
    steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps of the short run, 2 or more. Unset: those of one generation batch, and one more."
        },
    )


TYPES = (TrainingScriptArguments, DAPOConfig, ModelConfig, LaunchArguments, CheckArguments)


def run(arguments: Sequence[str]) -> None:
    """
    Prints a table of what was found, and a text for an issue. Ends with status 1 if the recipe will not train as it is.

    Args:
        arguments (`Sequence[str]`):
            The options of `trl-dapo train`, and those of [`CheckArguments`].
    """
    trial = Trial.of_environment()
    if trial is not None:
        _train_shortly(arguments, trial)
        return
    is_first = os.environ.get("RANK", "0") == "0"
    folder = _folder()
    try:
        lines = _Check(arguments, folder, is_first).lines()
    finally:
        if is_first:
            shutil.rmtree(folder, ignore_errors=True)
    if is_first:  # another process that ended with an error would end this one
        print(f"\n{_report(lines, arguments, folder)}", flush=True)
        sys.exit(exit_status(lines))


def _train_shortly(arguments: Sequence[str], trial: Trial) -> None:
    """A process of the short run."""

    def build() -> Any:
        script_args, args, model_args, *_ = parse_options("check", TYPES, [*arguments, *trial.options])
        args.resume_from_checkpoint = None
        return build_trainer(script_args, args, model_args, keeps_tiny_model=True)[0]

    run_trial(trial, build)


def _folder() -> Path:
    """Returns a new temporary folder, the same for the processes that a launcher started on this machine."""
    if "RANK" not in os.environ:
        return Path(tempfile.mkdtemp(prefix="trl-dapo-check-"))
    name = f"trl-dapo-check-{os.getuid()}-{os.getppid()}-{os.environ.get('MASTER_PORT', '')}"
    folder = Path(tempfile.gettempdir(), name)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise FileExistsError(f"{folder} belongs to another user. Set TMPDIR to a folder of yours.")
    return folder


def _report(lines: Sequence[Line], arguments: Sequence[str], folder: Path) -> str:
    """Returns the options and the table, without secrets and paths: what to paste into an issue."""
    values = {name: value for name, value in read_values("check", arguments).items() if value is not None}
    secrets, folders = find_secrets(os.environ, values), (folder, Path.cwd())
    options = " ".join(f"{name}={value}" for name, value in published_recipe(values).items())
    columns = min(max(shutil.get_terminal_size((120, 24)).columns, 80), 120)
    # Before the lines are broken: a part of a secret would not be found.
    recipe = textwrap.wrap(public_text(f"trl-dapo check: {options}", secrets, folders=folders), columns - 2)
    shown = [replace(line, text=public_text(line.text, secrets, folders=folders)) for line in lines]
    return "\n  ".join(recipe) + f"\n\n{table(shown, columns)}"


class _Check:
    """
    One check: the lines that need nothing loaded, then the short run and its restart.

    Args:
        arguments (`Sequence[str]`):
            The options.
        folder (`Path`):
            A temporary folder.
        says (`bool`):
            Whether to print what is being done.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, says: bool):
        self.arguments = list(arguments)
        self.folder = folder
        self.says = says
        self.start = time.monotonic()
        given = read_values("check", arguments)
        self.values: dict[str, Any] = {name: option.default for name, option in read_options("check").items()} | given
        self.given = given
        self.plan: MemoryPlan | None = None
        self.max_minutes = float(self.values["max_minutes"])
        if self.max_minutes <= 0:
            raise ValueError(f"--max_minutes is {self.max_minutes:g}, but must be above 0. Use 5.")

    @property
    def seconds_left(self) -> float:
        """Until the time is over."""
        return self.start + 60 * self.max_minutes - time.monotonic()

    def lines(self) -> list[Line]:
        """Returns the lines of the table."""
        lines = [versions_line()]
        try:
            check_values("train", self.given, self.arguments)
            is_to_be_launched(self.given)
            self.world = num_processes(self.given)
        except (ValueError, FileNotFoundError) as error:
            lines.append(Line("options", Verdict.BROKEN, str(error)))
            self.world = 1
        machines = int(self.values["num_machines"] or 1)
        self.local_world = int(os.environ.get("LOCAL_WORLD_SIZE", max(1, self.world // machines)))
        self.machine = Machine.here(is_set(self.values["use_cpu"]))
        lines.append(self.machine.line(self.world, self.local_world, is_set(self.values["use_cpu"])))
        if self.values["bf16"] is None:
            self.values["bf16"] = bool(self.machine.gpus)  # as TRL does
        batch = BatchPlan.of(self.values, self.world)
        try:
            lines += self._memory(batch)
        except Exception as error:  # of the Hub's client, of a model's own code
            text = f"not computed: the model's configuration cannot be read. {' '.join(str(error).split())[:300]}"
            lines.append(Line("memory", Verdict.SLOW, text))
        if not exit_status(lines):
            lines += self._short_run(batch)
        return lines

    def _memory(self, batch: BatchPlan) -> list[Line]:
        model = measure_model(self.values)
        machine, values = self.machine, self.values
        shards = self.world if is_sharded(values) else 1
        device_bytes = machine.device_bytes if machine.gpus else 0
        cache = {"cpu_cache_gib": os.environ.get("VLLM_CPU_KVCACHE_SPACE")}
        plan = memory_plan(values | cache, batch, model.size, model.num_trained, shards, device_bytes)
        self.plan = plan
        rounds = host_bytes(batch, self.local_world) if is_set(values["use_vllm"]) else 0.0
        source = f" ({model.source})" if model.source else ""
        if machine.gpus:
            memory = self._compared("GPU memory", plan.peak_bytes, machine.device_bytes, plan, source)
            fits = not machine.host_bytes or rounds < machine.host_bytes
            text = f"{gb(rounds).strip()} for a round at full length, of {gb(machine.host_bytes).strip()}"
            text += "" if fits else ". Lower generation_batch_size or max_prompts_per_round"
            return [memory, Line("host memory", Verdict.OK if fits else Verdict.WILL_NOT_FIT, text)]
        if not machine.host_bytes:
            return [self._compared("memory", plan.peak_bytes, float("inf"), plan, source)]
        total = self.local_world * (plan.peak_bytes + _PROCESS_BYTES) + rounds
        text = f"{source}\n  {self.local_world} x ({gb(plan.peak_bytes).strip()} + {gb(_PROCESS_BYTES).strip()} of Python and libraries)"
        text += f" + {gb(rounds).strip()} for a round at full length" if rounds else ""
        return [self._compared("memory", total, machine.host_bytes, plan, text)]

    def _compared(self, point: str, taken: float, available: float, plan: MemoryPlan, remark: str) -> Line:
        fits = taken <= available
        of = "" if available == float("inf") else f" of {gb(available).strip()}"
        text = f"{gb(taken).strip()}{of} by arithmetic{remark}\n" + "\n".join(f"  {line}" for line in plan.lines())
        if not fits:
            room = available if self.machine.gpus else available / self.local_world - _PROCESS_BYTES
            text += "\nWhat fits: " + "; or ".join(proposals(plan, room, bool(self.machine.gpus)))
        elif taken > 0.9 * available:
            text += "\nLittle room is left: CUDA's own memory, fragmentation and gathered layers are not counted."
        return Line(point, Verdict.OK if fits else Verdict.WILL_NOT_FIT, text)

    def _short_run(self, batch: BatchPlan) -> list[Line]:
        cores = None if self.machine.gpus else self.machine.cores
        guess = 0.0 if self.plan is None else short_run_seconds(self.plan.size.num_parameters, batch, cores)
        # A batch, the next one, and that one again after the restart.
        trial_batch = batch if 3 * guess <= 30 * self.max_minutes else batch.smallest()
        num_steps = int(self.values["steps"] or trial_batch.num_updates + 1)
        if num_steps < 2:
            raise ValueError(f"--steps is {num_steps}, but must be 2 or more: it is saved before the last one.")
        reason = self._no_restart()
        if self.says:
            print(
                f"Short run: {num_steps} optimizer steps, batches of {trial_batch.num_completions} completions (recipe: "
                f"{batch.num_completions}), ended after {self.max_minutes:g} minutes ...",
                flush=True,
            )
        options = self._options(trial_batch, batch, num_steps, is_saved=reason is None)
        code = self._start(Trial(str(self.folder), "run", num_steps, options))
        notes = Notes.read(self.folder, "run")
        progress = _last_line(self.folder / "run-0.log") if code is None else ""
        lines = run_lines(notes, code, self.values, num_steps, self.max_minutes, progress)
        if code == 0 and notes:
            lines.append(self._restart(notes, num_steps, options, reason))
        if notes and notes[0].seconds and not exit_status(lines):
            lines += speed_lines(notes[0], batch, trial_batch, self.values)
        return lines

    def _no_restart(self) -> str | None:
        """Returns why a restart cannot be checked; `None`: it can."""
        if self.world != self.local_world:
            return "several machines have no temporary folder in common"
        if self.plan is None:
            return None
        plan, room = self.plan, shutil.disk_usage(self.folder).free
        size = plan.weight_bytes * plan.size.num_parameters + plan.moment_bytes * plan.num_trained
        if size > 0.8 * room:
            return f"a checkpoint of {gb(size).strip()} does not fit into the temporary folder; set TMPDIR to another"
        if size / _DISK_SPEED > 15 * self.max_minutes:
            return f"a checkpoint of {gb(size).strip()} takes too long to write; give --max_minutes more"
        return None

    def _options(self, trial: BatchPlan, batch: BatchPlan, num_steps: int, is_saved: bool) -> list[str]:
        options = _FORCED | {"output_dir": str(self.folder / "out"), "max_steps": str(num_steps)}
        options |= {"save_strategy": "steps" if is_saved else "no", "save_steps": str(num_steps - 1)}
        rounds = _MOST_ROUNDS if trial == batch else _FEWEST_ROUNDS
        options["max_generation_rounds"] = str(min(rounds, int(self.values["max_generation_rounds"])))
        if trial != batch:
            by_rows = bool(self.values["generation_batch_size"])
            size = "generation_batch_size" if by_rows else "steps_per_generation"
            options[size] = str(trial.num_completions if by_rows else trial.slices)
            options |= {"gradient_accumulation_steps": str(trial.accumulation), "num_iterations": "1"}
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _start(self, trial: Trial) -> int | None:
        """Runs the processes of a trial. Returns their status; `None`: they were ended because the time is over."""
        environment = dict(os.environ) | {TRIAL_MARK: json.dumps(asdict(trial))}
        if trial.phase == "restart" and "RANK" in environment:
            # The launcher's store has the keys of the first run: these processes get one of their own.
            environment |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": self._agreed_port()}
        log = self.folder / f"{trial.phase}-{os.environ.get('RANK', '0')}.log"
        command = [sys.executable, "-m", "trl_dapo", "check", *self.arguments]
        with log.open("w") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            code: int | None = None
            try:
                code = process.wait(timeout=max(1.0, self.seconds_left))
            except subprocess.TimeoutExpired:
                pass
            finally:
                if process.poll() is None:
                    _end_group(process)
        if code and self.says:
            print("\n".join(log.read_text(errors="replace").splitlines()[-40:]), file=sys.stderr)
        return code

    def _agreed_port(self) -> str:
        """Returns a free port, the same for all processes that a launcher started on this machine."""
        file = self.folder / "port"
        if self.says:
            with socket.socket() as free:
                free.bind(("", 0))
                atomic_write(file, str(free.getsockname()[1]))
        while not file.exists() and self.seconds_left > 0:
            time.sleep(0.1)
        return file.read_text() if file.exists() else "0"

    def _restart(self, notes: Sequence[Notes], num_steps: int, options: list[str], reason: str | None) -> Line:
        if reason is None and self.seconds_left < 1.5 * ((notes[0].loaded or 0) + notes[0].seconds[-1]):
            reason = "no time is left; give --max_minutes more"
        if reason is not None:
            return Line("restart", Verdict.SLOW, f"not checked: {reason}")
        code = self._start(Trial(str(self.folder), "restart", num_steps, options))
        restart = Notes.read(self.folder, "restart")
        if code and not any(each.error for each in restart):
            return Line("restart", Verdict.BROKEN, f"the restarted process ended with status {code}")
        return restart_line(notes, restart, self.values, bool(self.machine.gpus))


def _last_line(log: Path) -> str:
    """Returns how far the sampling was: the last line that tells of it."""
    if not log.exists():
        return ""
    told = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("sampling for")]
    return told[-1] if told else ""


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and those that it started."""
    import signal

    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=5)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return
