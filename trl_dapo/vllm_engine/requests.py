"""vLLM as an engine that takes sequences one by one."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.trl_seams import decoded_so_far, hold_in_arrays

from .generation import DAPOVLLMGeneration
from .sampled_logps import ask_for_little, sampled_logps
from .sequence_engine import Decoded


class VLLMRequests:
    """
    A colocated vLLM engine that decodes sequences one by one; a [`SequenceEngine`].

    Args:
        generation (`DAPOVLLMGeneration`):
            Owns the engine.
        load_weights (`Callable[[], None]`):
            Brings the weights to it, if the policy has changed since they came.
    """

    def __init__(self, generation: DAPOVLLMGeneration, load_weights: Callable[[], None]):
        self.generation = generation
        self.load_weights = load_weights
        self._ids: dict[SequenceKey, str] = {}
        self._params: Any = None

    @property
    def num_slots(self) -> int:
        """Sequences that the engine decodes at once."""
        assert self.generation.load is not None
        return self.generation.load.num_slots

    @property
    def num_unfinished(self) -> int:
        """Sequences submitted and neither finished nor withdrawn."""
        return len(self._ids)

    def begin(self) -> None:
        """Wakes the engine and brings the weights as they are. A collective."""
        self.load_weights()
        self._params = self.generation.request_params()
        ask_for_little(self._params)

    def submit(self, key: SequenceKey, prompt_ids: list[int], prefix: list[int]) -> None:
        """Puts a sequence at the end of the line."""
        params = self._params.clone()
        params.max_tokens = self._params.max_tokens - len(prefix)
        params.seed = self.generation.request_seed(key, len(prefix))
        prompt = {"prompt_token_ids": [*prompt_ids, *prefix]}
        adapter = self.generation.adapter
        lora_request = None if adapter is None else adapter.request
        self._ids[key] = self._engine.add_request(
            f"{key.position}/{key.sample}", prompt, params, lora_request=lora_request
        )
        hold_in_arrays(self._engine, self._ids[key])

    def step(self) -> Mapping[SequenceKey, Decoded]:
        """Decodes a token of each running sequence, and returns the sequences that finished."""
        finished = {}
        assert self.generation.load is not None
        for output in self._engine.step():
            if output.finished:
                key = SequenceKey(*map(int, output.request_id.split("/")))
                (completion,) = output.outputs
                self.generation.load.observe_finished(len(output.prompt_token_ids) + len(completion.token_ids))
                finished[key] = _decoded(completion.token_ids, completion.logprobs)
                del self._ids[key]
        return finished

    def withdraw(self, keys: Collection[SequenceKey]) -> Mapping[SequenceKey, Decoded]:
        """Stops those of the sequences that it has, and returns what was decoded of each."""
        known = [key for key in keys if key in self._ids]
        withdrawn = {key: _decoded(*decoded_so_far(self._engine, self._ids[key])) for key in known}
        self._engine.abort_request([self._ids.pop(key) for key in known], internal=True)
        return withdrawn

    @property
    def _engine(self) -> Any:
        return self.generation.llm.llm_engine


def _decoded(token_ids: Any, logprobs: Any) -> Decoded:
    return Decoded.of(token_ids, sampled_logps(token_ids, logprobs))
