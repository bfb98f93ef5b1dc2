"""The private parts of vLLM that the weight sync builds on."""

import dataclasses
import importlib
import inspect

import pytest
import torch
from packaging.version import Version

from trl_dapo import DAPOConfig
from trl_dapo.config.vllm_options import _FIELD_OF_OPTION, known_engine_options
from trl_dapo.trl_seams import correct_drafts, loops_over_seeds


vllm = pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm


# vLLM has two model runners, and chooses by the model, the platform and VLLM_USE_V2_MODEL_RUNNER.
@pytest.mark.parametrize("module", ["vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner"])
def test_both_model_runners_have_the_names_that_the_weight_sync_uses(module):
    if "gpu.model_runner" in module and Version(vllm.__version__) < Version("0.31"):
        pytest.skip("the second runner is young in this release, and none of ours is run with it")
    runner = importlib.import_module(module).GPUModelRunner
    assert list(inspect.signature(runner.get_model).parameters) == ["self"]
    assert callable(runner.reload_weights)
    assert "self.model_config = " in inspect.getsource(runner.__init__)


def test_only_the_first_model_runner_loops_over_seeds_and_only_a_gpu_waits_for_it(monkeypatch):
    from vllm import platforms
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as Second
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as First

    runners = [runner.__new__(runner) for runner in (First, Second, CPUModelRunner)]
    assert [loops_over_seeds(runner) for runner in runners] == [False] * 3
    monkeypatch.setattr(platforms.current_platform.__class__, "is_cpu", lambda self: False)
    assert [loops_over_seeds(runner) for runner in runners] == [True, False, True]
    assert "for i, generator in generators.items():" in inspect.getsource(topk_topp_sampler.random_sample)


def test_model_runner_reloads_from_an_iterator_in_checkpoint_format():
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    parameters = inspect.signature(GPUModelRunner.reload_weights).parameters
    assert {"weights_iterator", "is_checkpoint_format"} <= set(parameters)


@pytest.mark.parametrize("module", ["vllm.v1.worker.gpu_worker.Worker", "vllm.v1.worker.cpu_worker.CPUWorker"])
def test_worker_reloads_under_its_configuration(module):
    name, _, worker = module.rpartition(".")
    source = inspect.getsource(getattr(importlib.import_module(name), worker).reload_weights)
    assert "with set_current_vllm_config(self.vllm_config):" in source


def test_layers_remember_what_they_were_built_with():
    from vllm.model_executor.model_loader.reload import layerwise, types

    assert "restore_metadata" in {field.name for field in dataclasses.fields(types.LayerReloadingInfo)}
    assert list(inspect.signature(layerwise.get_layerwise_info).parameters) == ["layer"]


def test_options_with_a_field_of_their_own_are_engine_options():
    assert set(_FIELD_OF_OPTION) <= known_engine_options()
    fields = {field.name for field in dataclasses.fields(DAPOConfig)}
    assert {name for name in _FIELD_OF_OPTION.values() if name} <= fields


def test_config_refuses_an_option_that_vllm_does_not_know(tmp_path):
    with pytest.raises(ValueError, match=r"sets 'enforce_eagre' to True.* Did you mean 'enforce_eager'"):
        DAPOConfig(
            str(tmp_path), use_cpu=True, bf16=False, use_vllm=True, vllm_mode="colocate",
            vllm_engine_kwargs={"enforce_eagre": True},
        )  # fmt: skip


def test_requests_are_named_by_what_the_engine_returns_and_can_be_stopped_by_it():
    from vllm.v1.engine.llm_engine import LLMEngine

    assert "internal" in inspect.signature(LLMEngine.abort_request).parameters
    assert inspect.signature(LLMEngine.add_request).return_annotation in (str, "str")


def test_tokens_of_a_running_request_can_be_read():
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState

    assert "self.request_states" in inspect.getsource(OutputProcessor.__init__)
    source = inspect.getsource(RequestState._new_completion_output)
    assert "token_ids = self.detokenizer.output_token_ids" in source
    assert "logprobs = self.logprobs_processor.logprobs" in source


def test_rejection_sampler_asks_one_function_for_the_options_of_each_draft(monkeypatch):
    from vllm.v1.sample import rejection_sampler

    source = inspect.getsource(rejection_sampler.apply_sampling_constraints)
    assert source.count("= expand_batch_to_tokens(") == 3
    # On a GPU the kernel writes to the output that it is given.
    assert "tl.store(output_ptr + start_idx + offset, src_val" in inspect.getsource(rejection_sampler)
    from_batch = torch.tensor([0.7, 0.0, 1.5]), torch.tensor([2, 2, 5], dtype=torch.int32), 5
    cases = [(from_batch, {}), (from_batch, {"replace_from": 0, "replace_to": 1})]
    cases.append(((torch.tensor([5, 0, 7], dtype=torch.int32), torch.tensor([1, 3, 4]), 4), {"replace_to": 9}))
    expected = [[0.7, 0.7, 1.5, 1.5, 1.5], [0.7, 0.7, 1.5, 1.5, 1.5], [5, 9, 9, 7]]
    wrong = torch.zeros
    monkeypatch.setattr(
        rejection_sampler, "expand_batch_to_tokens", lambda x, cu_num_tokens, num_tokens: wrong(num_tokens)
    )
    # Where the function is right, it stays.
    assert correct_drafts()
    assert not correct_drafts()
    for (arguments, options), values in zip(cases, expected, strict=True):
        spread = rejection_sampler.expand_batch_to_tokens(*arguments, **options)
        torch.testing.assert_close(spread, torch.tensor(values, dtype=arguments[0].dtype), rtol=0, atol=0)


def test_kernel_of_drafts_on_a_cpu_still_drops_what_it_writes():
    """Fails when vLLM has mended it: then `correct_drafts` may go, and the entry in docs/upstream.md."""
    from vllm.platforms import current_platform
    from vllm.utils import cpu_triton_utils

    current_platform.import_kernels()
    for dtype in (torch.float32, torch.int32):
        output, values = torch.zeros(3, dtype=dtype), torch.tensor([3, 2], dtype=dtype)
        cpu_triton_utils._expand_kernel_impl(output, values, torch.tensor([1, 3]), 0, 1)
        assert output.tolist() == [0, 0, 0]
    output = torch.zeros(3, dtype=torch.int64)
    cpu_triton_utils._expand_kernel_impl(output, torch.tensor([3, 2]), torch.tensor([1, 3]), 0, 1)
    assert output.tolist() == [3, 2, 2]


def test_scheduler_tells_what_became_of_the_drafts_of_each_request():
    from vllm.v1.core.sched.scheduler import Scheduler

    parameters = list(inspect.signature(Scheduler.make_spec_decoding_stats).parameters)
    assert parameters[1:4] == ["spec_decoding_stats", "num_draft_tokens", "num_accepted_tokens"]
    source = inspect.getsource(Scheduler.update_from_output)
    assert "spec_decoding_stats = self.make_spec_decoding_stats(" in source
    assert "num_draft_tokens=num_draft_tokens," in source
    assert "num_accepted_tokens=num_accepted," in source
