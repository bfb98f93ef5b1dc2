"""The private parts of TRL and transformers that the trainer builds on. When one moves, this fails first and says so."""

import inspect

import pytest
from transformers import Trainer
from trl import GRPOTrainer
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration


SIGNATURES = {
    "_generate": ["self", "prompts"],
    "_generate_single_turn": [
        "self",
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "model", "inputs"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_overridden_method_has_the_signature_we_override(name):
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == SIGNATURES[name]


@pytest.mark.parametrize(
    "fragment",
    [
        # What the replay hands back must be what TRL unpacks.
        "prompt_ids_list,\n            completion_ids_list,\n            tool_mask_list,\n            completions,\n"
        "            sampling_per_token_logps_list,\n            extra_fields,\n            images,\n"
        "            tool_images,\n        ) = self._generate(prompts)",
        "rewards_per_func = self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
        '"num_items_in_batch": num_items_in_batch',
        "self._pending_extra_logs.get(column, [None] * len(prompts))",
        # The record of rollout groups reads the advantages of all ranks here.
        'self._logs["advantages"].extend(all_process_advantages.tolist())',
    ],
)
def test_scoring_calls_the_seams_that_the_replay_fills(fragment):
    assert fragment in inspect.getsource(GRPOTrainer._generate_and_score_completions)


def test_generation_returns_eight_values():
    source = inspect.getsource(GRPOTrainer._generate)
    returned = "return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images, tool_images"
    assert returned in source


@pytest.mark.parametrize(
    "attribute",
    ["reward_funcs", "reward_func_names", "reward_processing_classes", "reward_weights", "eos_token_ids"],
)
def test_trainer_keeps_its_rewards_where_we_extend_them(attribute):
    assert f"self.{attribute} = " in inspect.getsource(GRPOTrainer.__init__)


def test_optimizer_step_is_announced_before_it_is_taken():
    source = inspect.getsource(Trainer)
    assert source.index("on_pre_optimizer_step") < source.index("self.optimizer.step()")


# The vLLM backend. Those of vLLM itself are in tests/with_vllm/test_vllm_seams.py.


def test_trainer_builds_its_vllm_backend_by_the_name_that_we_replace():
    assert "self.vllm_generation = VLLMGeneration(\n" in inspect.getsource(GRPOTrainer.__init__)
    assert "self.llm = LLM(\n" in inspect.getsource(VLLMGeneration._init_vllm)
    assert "max_num_batched_tokens=4096," in inspect.getsource(VLLMGeneration._init_vllm)


def test_trainer_syncs_weights_once_per_optimizer_step():
    assert "if self.state.global_step != self._last_loaded_step:\n" in inspect.getsource(
        GRPOTrainer._generate_single_turn
    )


def test_weight_sync_loads_what_the_overridden_iterator_yields():
    source = inspect.getsource(VLLMGeneration.sync_weights)
    assert "for name, param in self._iter_named_params():\n                self.llm." in source
    # The iterator is run to its end before the caches of the old weights are dropped.
    assert source.index("self._iter_named_params()") < source.index("self.llm.reset_prefix_cache()")
    assert list(inspect.signature(VLLMGeneration._iter_named_params).parameters) == ["self"]


def test_generation_asks_the_flags_that_keep_the_engine_awake():
    source = inspect.getsource(VLLMGeneration.generate)
    assert "self.enable_sleep_mode and self._llm_weights_sleeping" in source
    assert source.count("if self.enable_sleep_mode:") == 2
    assert "self.llm.sleep(level=2)\n                self._llm_weights_sleeping = True" in source


def test_backend_without_vllm_has_no_engine_class_to_replace():
    assert hasattr(vllm_generation, "VLLMGeneration")
    assert hasattr(vllm_generation, "LLM") == vllm_generation.is_vllm_available()
