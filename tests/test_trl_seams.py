"""The private parts of TRL and transformers that the trainer builds on. When one moves, this fails first and says so."""

import inspect
import re

import pytest
from transformers import GenerationMixin, Trainer
from trl import GRPOTrainer
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from trl_dapo import DAPOTrainer
from trl_dapo.trl_seams import OVERRIDDEN, OVERRIDDEN_IN_VLLM_GENERATION, rebound, replaced
from trl_dapo.vllm_engine.generation import DAPOVLLMGeneration
from trl_dapo.vllm_server.generation import ServerGeneration


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
    "_tool_call_loop": [
        "self",
        "prompts",
        "prompt_ids",
        "completion_ids",
        "completions",
        "logprobs",
        "images",
        "multimodal_fields",
    ],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "log": ["self", "logs", "start_time"],
    "_compute_loss": ["self", "model", "inputs"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_load_rng_state": ["self", "checkpoint"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_issue_warnings_after_load": ["self", "load_result"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "_get_train_sampler": ["self", "dataset"],
    "get_train_dataloader": ["self"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "create_model_card": ["self", "model_name", "dataset_name", "tags"],
    "init_hf_repo": ["self", "token", "private"],
    "push_to_hub": ["self", "commit_message", "blocking", "token", "revision", "private", "kwargs"],
}


def overridden(ours, theirs):
    """Names of methods that classes of this package define, and a class of TRL does too."""
    own = [cls for cls in ours.__mro__ if cls.__module__.startswith("trl_dapo")]
    names = {name for cls in own for name, value in vars(cls).items() if inspect.isfunction(value)}
    return {name for name in names if hasattr(theirs, name)} - {"__init__"}


def test_every_overridden_method_is_listed_with_its_reason():
    assert overridden(DAPOTrainer, GRPOTrainer) == set(OVERRIDDEN)
    ours = overridden(DAPOVLLMGeneration, VLLMGeneration) | overridden(ServerGeneration, VLLMGeneration)
    assert ours == set(OVERRIDDEN_IN_VLLM_GENERATION)


def test_rebound_function_sees_other_names_and_its_module_does_not():
    calculate = rebound(GRPOTrainer._calculate_rewards, gather=None)
    assert calculate.__globals__["gather"] is None
    assert calculate.__globals__["profiling_context"] is grpo_trainer.profiling_context
    assert grpo_trainer.gather is not None
    # The name that `super()` needs in it.
    assert calculate.__closure__ == inspect.unwrap(GRPOTrainer._calculate_rewards).__closure__


def test_replaced_name_is_back_afterwards_even_after_an_error():
    before = grpo_trainer.gather
    with replaced(grpo_trainer, "gather", None):
        assert grpo_trainer.gather is None
    with pytest.raises(ZeroDivisionError), replaced(grpo_trainer, "gather", None):
        divmod(1, 0)
    assert grpo_trainer.gather is before


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


def test_card_is_written_before_each_checkpoint_and_each_push():
    saving, pushing = inspect.getsource(GRPOTrainer._save_checkpoint), inspect.getsource(Trainer.push_to_hub)
    assert saving.index("self.create_model_card(model_name=model_name)") < saving.index("super()._save_checkpoint")
    assert pushing.index("self.save_model(") < pushing.index("self.create_model_card(model_name=model_name, **kwargs)")
    assert pushing.index("self.create_model_card(") < pushing.index("upload_folder(")


def test_pushes_in_training_are_where_we_look_for_them():
    assert "self.push_in_progress = PushInProgress(push_jobs)" in inspect.getsource(Trainer._push_from_checkpoint)
    assert "not self.push_in_progress.is_done()" in inspect.getsource(Trainer._finish_current_push)


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


# Groups that are sampled and graded by one rank alone


def test_rewards_cross_ranks_by_a_name_that_can_be_replaced():
    assert callable(grpo_trainer.gather)
    source = inspect.getsource(GRPOTrainer._calculate_rewards)
    assert source.count("gather(rewards_per_func)") == 1
    assert "self.accelerator" not in source.replace("self.accelerator.device", "")


def test_each_reward_function_is_called_inside_what_bounds_it():
    assert callable(grpo_trainer.profiling_context)
    source = inspect.getsource(GRPOTrainer._calculate_rewards)
    assert source.count("with profiling_context(self, reward_func_name):") == 2
    assert source.count("with profiling_context(self, func_name):") == 1
    calls = [source.index(call) for call in ("= reward_func(**", "= reward_func(\n", "await func(")]
    opened = [match.start() for match in re.finditer("with profiling_context", source)]
    assert sorted(calls + opened) == [place for pair in zip(opened, calls, strict=True) for place in pair]


def test_prompts_are_tokenized_apart_from_generation():
    assert list(inspect.signature(GRPOTrainer._tokenize_prompts).parameters) == ["self", "prompts"]
    assert "return prompt_ids, images, multimodal_fields" in inspect.getsource(GRPOTrainer._tokenize_prompts)


def test_weights_are_pushed_where_the_step_has_changed():
    source = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert "if self.state.global_step != self._last_loaded_step:" in source
    assert "self._last_loaded_step = self.state.global_step" in source


def test_images_are_put_into_prompts_and_taken_out_as_we_do_it():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert 'images = [example.get("images") for example in inputs]' in source
    assert "prepare_multimodal_messages(prompt, images=image_list)" in source
    # What the replay hands back comes first; the column stands in for it.
    assert "if images is None:\n            images = dataset_images" in source
    assert 'prompt_images.append(part["image"])' in inspect.getsource(GRPOTrainer._tokenize_prompts)
    assert "self._is_vlm = True" in inspect.getsource(GRPOTrainer.__init__)


def test_ranks_that_share_a_model_decode_equally_far():
    # FSDP2 gathers each layer in each forward pass: a rank that stopped on its own would leave the others waiting.
    source = inspect.getsource(GenerationMixin._extract_generation_mode_kwargs)
    assert "is_deepspeed_zero3_enabled() or is_fsdp_managed_module(self)) and world_size > 1" in source


# Checkpoints


def test_random_numbers_are_restored_after_the_loop_has_reset_its_counters():
    loop, epoch = (inspect.getsource(getattr(Trainer, name)) for name in ("_inner_training_loop", "_run_epoch"))
    for reset in ("self._prepare_for_training(", "self._tr_loss = torch.tensor(", "self._evaluate("):
        assert loop.index(reset) < loop.index("self._run_epoch(")
    assert epoch.count("self._load_rng_state(resume_from_checkpoint)") == 2
    assert epoch.index("self.get_batch_samples(") < epoch.index("            if rng_to_sync:")


def test_checkpoint_is_pushed_and_older_ones_deleted_when_the_state_of_the_trainer_is_written():
    source = inspect.getsource(Trainer._save_checkpoint)
    parts = ["self.save_model(", "self._save_rng_state(", "self.state.save_to_json(", "_push_from_checkpoint("]
    places = [source.index(part) for part in [*parts, "rotate_checkpoints("]]
    assert places == sorted(places)
    assert "save_total_limit=self.args.save_total_limit" in source


def test_trainer_keeps_the_batch_that_it_trains_where_it_is_saved():
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "if self._step % generate_every == 0 or self._buffered_inputs is None:" in source
    assert "inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]" in source


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


def test_server_mode_calls_what_stands_in_for_the_client():
    source = inspect.getsource(VLLMGeneration.sync_weights)
    assert "if self._weight_metadata is None:" in source
    assert "self.vllm_client.update_named_params(self._weight_metadata, self._iter_named_params())" in source
    assert source.count("self.vllm_client.") == 2
    assert "self.vllm_client.reset_prefix_cache()" in source
    source = inspect.getsource(GRPOTrainer.__init__)
    assert 'self.vllm_generation.vllm_client.get_server_info()["model_config"]["logprobs_mode"]' in source
    assert list(inspect.signature(VLLMGeneration.generate).parameters)[1:4] == ["prompts", "images", "num_generations"]
    assert inspect.signature(VLLMClient).parameters.keys() >= {"base_url", "group_port", "connection_timeout"}


def test_backend_without_vllm_has_no_engine_class_to_replace():
    assert hasattr(vllm_generation, "VLLMGeneration")
    assert hasattr(vllm_generation, "LLM") == vllm_generation.is_vllm_available()


def test_generated_tokens_reach_the_caller_as_the_lists_that_were_sampled():
    # The class of the list tells an empty completion from one padding token.
    source = inspect.getsource(GRPOTrainer._generate)
    assert "completion_ids, logprobs = self._generate_single_turn(" in source
    assert "completion_ids = " not in source


@pytest.mark.parametrize(
    "fragment",
    [
        # What is done before the first generation, where we stop it, and what it leaves for each row.
        "for i, (prompt, environment, x) in enumerate(zip(prompts, self.environments, inputs, strict=True)):",
        "observation = environment.reset(**reset_kwargs)",
        "self._sync_tool_dicts.append(sync_tool_dict)",
        "self._async_tool_dicts.append(async_tool_dict)",
        "self._batch_environments = [",
        "pool = self._environment_pool[name]",
        # Fields of a rollout function.
        "inp[key] = values[i]",
    ],
)
def test_environments_are_prepared_as_we_let_them(fragment):
    assert fragment in inspect.getsource(GRPOTrainer._generate_and_score_completions)


@pytest.mark.parametrize(
    "fragment",
    [
        # The number of a row stays with its tokens.
        "prompt_ids[idx_with_tool] + completion_ids[idx_with_tool] + suffix_ids",
        "post_tool_ids, post_tool_logprobs = self._generate_single_turn(\n                prompt_completion_tool_ids,",
        # A tool that raises is answered.
        "except Exception as e:",
        "return tool_mask, completions, completion_ids, logprobs, tool_call_count, tool_failure_count, tool_images",
    ],
)
def test_loop_of_tool_calls_is_the_one_that_we_run(fragment):
    assert fragment in inspect.getsource(GRPOTrainer._tool_call_loop)


def test_rewards_of_environments_are_closures_that_we_recognize():
    source = inspect.getsource(GRPOTrainer.__init__)
    assert "def get_reward(environments, _env_type=env_type, **kwargs):" in source
    assert "return [e.get_reward() if type(e) is _env_type else None for e in environments]" in source
