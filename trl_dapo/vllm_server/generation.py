"""TRL's vLLM backend with the servers in place of its client: every rank asks for its own completions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from transformers import ProcessorMixin
from trl.generation.vllm_client import VLLMClient

from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.config.server_address import is_local, server_addresses, server_token
from trl_dapo.data.context_length import context_length
from trl_dapo.ranks.collectives import Ranks
from trl_dapo.sampling.prompt_stream import SequenceKey
from trl_dapo.trl_seams import engine_built_by
from trl_dapo.vllm_engine.generation import DAPOVLLMGeneration
from trl_dapo.vllm_engine.sampled_logps import unknown_as_none
from trl_dapo.vllm_engine.sequence_engine import Decoded

from .server_requests import ServerRequests, run_to_end
from .servers import Servers
from .weight_folder import WeightFolder, Weights


class ServerGeneration(DAPOVLLMGeneration):
    """
    A [`~trl.generation.vllm_generation.VLLMGeneration`] whose completions come from vLLM servers.

    TRL collects the prompts of all ranks on the first one, which asks one server. Here each rank asks for its own, so that no
    rank holds more than its share, and the weights may go through a folder instead of NCCL.

    Attributes:
        servers (`Servers`):
            The servers, as this rank sees them.
        requests (`ServerRequests`):
            They, as an engine that takes sequences one by one.
        after_sync (`Callable[[], None]`, *optional*):
            Called on all ranks when all servers have new weights.
    """

    servers: Servers
    requests: ServerRequests

    def _init_vllm(self) -> None:
        args = self.dapo_args
        self.after_sync: Callable[[], None] | None = None
        # Of a completion whose next turn is sampled: its tokens in the turns before.
        self._tokens_before: dict[SequenceKey, int] = {}
        self.ranks = Ranks(self.accelerator)
        addresses = server_addresses(self.server_base_url, self.server_host, self.server_port)
        self.servers = Servers(addresses, self.server_timeout, server_token())
        self.requests = ServerRequests(
            self.servers, self._content, lambda: None, self.ranks.num_ranks, self.max_model_length
        )
        self.ranks.together(self._find_servers)
        self.slow_seeds = any(facts.slow_seeds for facts in self.servers.facts.values())
        self.uses_nccl = self._decide_for_nccl(args)
        self.vllm_client: Any = None
        self.ranks.together(self._open_way_of_weights)

    def _find_servers(self) -> None:
        self.servers.find(say=print if self.ranks.rank == 0 else lambda line: None)
        for server, facts in self.servers.facts.items():
            if facts.logprobs_mode != "processed_logprobs":
                raise ValueError(
                    f"The vLLM server at {server.address} was started with --logprobs-mode {facts.logprobs_mode}, but the "
                    "log-probabilities have to be those of the distribution that is sampled from: start it with "
                    "--logprobs-mode processed_logprobs (`trl-dapo serve` does)."
                )
            if self.dapo_args.vllm_request_seeds is not False and not facts.seeds_hold:
                raise ValueError(
                    f"The vLLM server at {server.address} computes on a CPU and splits long prompts, which breaks the seeds of "
                    "requests. Start it with --no-enable-chunked-prefill (`trl-dapo serve` does), or set "
                    "vllm_request_seeds=False."
                )
            expected = self.max_model_length or context_length(self.model.config)
            if expected is not None and facts.context_length < expected:
                raise ValueError(
                    f"The vLLM server at {server.address} has a context of {facts.context_length} tokens, but the trainer expects "
                    f"{expected}, and would take completions that it cuts off for complete ones. Set "
                    f"vllm_max_model_length={facts.context_length}, or start the server with --max-model-len {expected}."
                )

    def _decide_for_nccl(self, args: DAPOConfig) -> bool:
        """Whether the weights go over NCCL, as in TRL."""
        is_sharded = self._dist.is_fsdp or self._dist.is_zero3
        is_able = self.accelerator.device.type == "cuda" and all(one.takes_nccl for one in self.servers.facts.values())
        return is_able and not is_sharded and len(self.servers.all) == 1 and args.vllm_weight_folder is None

    def _open_way_of_weights(self) -> None:
        if not self.uses_nccl and self.dapo_args.vllm_weight_folder is None:
            far = [server.address for server in self.servers.all if not is_local(server.host)]
            if far:
                raise ValueError(
                    f"vllm_weight_folder is None, but the vLLM server at {far[0]} may be on another machine, which does not see "
                    "the shared memory of this one. Set vllm_weight_folder to a folder on a disk that all machines share, or, on "
                    "this machine, write 127.0.0.1."
                )
        if self.ranks.rank:
            return
        if self.uses_nccl:
            client = VLLMClient(
                base_url=self.servers.all[0].address,
                group_port=self.group_port,
                connection_timeout=self.server_timeout,
            )
            client.session.headers.update(self.servers.all[0].headers)
            client.init_communicator(device=self.accelerator.device)
            self.vllm_client = client
        else:
            self.vllm_client = _FolderClient(self.servers, WeightFolder(self.dapo_args.vllm_weight_folder))

    def describe(self) -> str:
        """Returns a line that says who samples, and how the weights get there."""
        slots = ", ".join(
            f"{server.address} ({facts.num_slots} at once)" for server, facts in self.servers.facts.items()
        )
        way = "over NCCL" if self.uses_nccl else f"through {self.dapo_args.vllm_weight_folder or 'shared memory'}"
        return f"  Sampling: vLLM at {slots}; weights {way}"

    # Weights

    def sync_weights(self) -> None:
        """
        Brings the weights under training to all servers, merged with their adapter. A collective.

        Raises:
            `VLLMServerError`, `OSError`: on the first rank, when no server has them.
            `RankFailedError`: on the others.
        """
        if not self.uses_nccl:
            # TRL describes them to a server beforehand, which a folder does not need.
            self._weight_metadata: Any = []
        self.ranks.together(super().sync_weights)
        if self.uses_nccl and self.ranks.rank == 0:
            weights = Weights(f"nccl-{id(self):x}", f"nccl-{id(self):x}/{self.num_syncs}", None)
            self.servers.note_loaded(weights)
        known = [self.servers.weights, [server.is_lost for server in self.servers.all]]
        weights, is_lost = self.ranks.from_first(lambda: known)
        self.servers.weights = weights
        for server, lost in zip(self.servers.all, is_lost, strict=True):
            server.is_lost = lost
        if self.after_sync is not None:
            self.after_sync()

    # Completions

    def generate(
        self, prompts: list[list[int]], images: list[Any] | None, num_generations: int, profiler: Any = None
    ) -> tuple[Any, ...]:
        """As TRL's: this rank asks for its own completions, with a seed for each that was named. A collective."""
        if isinstance(self.processing_class, ProcessorMixin):
            # As TRL does: the first rank asks the first server for the completions of all.
            self._keys = []
            return super().generate(prompts, images, num_generations, profiler)
        keys, self._keys = self._keys, []
        self._tokens_before = dict(zip(keys, self._lengths, strict=True)) if keys else {}
        # Rows that were not named have names below the stream, where no completion of it is.
        unnamed = range(len(keys), len(prompts))
        keys += [SequenceKey(-1 - row // num_generations, row % num_generations) for row in unnamed]
        found: dict[SequenceKey, Decoded] = {}

        def sample() -> None:
            with profiler or nullcontext():
                found.update(run_to_end(self.requests, zip(keys, prompts, strict=True)))

        self.ranks.together(sample)
        decoded = [found.pop(key) for key in keys]
        if self._arrays is not None:
            self._arrays.update((id(one.token_ids), one.logps) for one in decoded)
            return prompts, [one.token_ids for one in decoded], [()] * len(decoded), None
        completion_ids = [one.token_ids.tolist() for one in decoded]
        return (
            prompts,
            completion_ids,
            [[[logp] for logp in unknown_as_none(one.logps)] for one in decoded],
            [[[token] for token in ids] for ids in completion_ids],
        )

    def _content(self, key: SequenceKey, num_tokens: int) -> dict[str, Any]:
        """Returns the sampling options of a completion, from its token number `num_tokens` on."""
        content: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p or 0.0,
            "repetition_penalty": self.repetition_penalty,
            "max_tokens": self.max_completion_length,
            **self.generation_kwargs,
        }
        if self.structured_outputs_regex is not None:
            content["structured_outputs"] = {"regex": self.structured_outputs_regex}
        content["max_tokens"] -= num_tokens
        num_before = self._tokens_before.get(key, 0) + num_tokens
        seed = self.request_seed(key, num_before) if key.position >= 0 else None
        return content if seed is None else content | {"seed": seed}

    def prompt_logps(self, server_number: int, token_ids: Sequence[int]) -> list[float | None]:
        """
        Returns the log-probability that a server gives to each token of a text after those before it; `None` for the first.

        Args:
            server_number (`int`):
                Which server.
            token_ids (`Sequence[int]`):
                The text.

        Raises:
            `NoAnswerError`, `VLLMServerError`: it does not say.
        """
        server = self.servers.all[server_number]
        request = {
            "model": self.servers.facts[server].model,
            "prompt": list(token_ids),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": 0,
        }
        answer = server.ask("POST", "/v1/completions", request, check=self.servers.verify)
        try:
            by_token = answer["choices"][0]["prompt_logprobs"]
            logps = [
                None if found is None else float(found[str(token)]["logprob"])
                for token, found in zip(token_ids, by_token, strict=True)
            ]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise server.fail(
                f"answered the question for log-probabilities of a text with what cannot be read ({type(error).__name__}: {error})."
            ) from error
        return logps

    @property
    def _seeds_requests(self) -> bool:
        is_wanted = self.dapo_args.vllm_request_seeds
        return not self.slow_seeds if is_wanted is None else is_wanted


class _FolderClient:
    """What TRL calls on the first rank in place of its client, where the weights go through a folder."""

    def __init__(self, servers: Servers, folder: WeightFolder):
        self.servers = servers
        self.folder = folder
        self._client: Any = None

    def __getattr__(self, name: str) -> Any:
        # What a rollout function may ask of TRL's client, and images.
        if name.startswith("__"):
            raise AttributeError(name)
        if self._client is None:
            server = self.servers.all[0]
            self._client = VLLMClient(base_url=server.address, connection_timeout=server.timeout)
            self._client.session.headers.update(server.headers)
        return getattr(self._client, name)

    def get_server_info(self) -> dict[str, Any]:
        """Returns what TRL looks at."""
        facts = self.servers.facts[self.servers.all[0]]
        return {"model_config": {"logprobs_mode": facts.logprobs_mode}}

    def update_named_params(self, metadata: Any, named_params: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Writes the weights, and has all servers load them."""
        self.servers.load(self.folder.write(named_params))
        self.folder.remove_older()

    def reset_prefix_cache(self) -> None:
        """The servers did it, before they loaded the weights."""


def engine_of(args: DAPOConfig) -> AbstractContextManager[None]:
    """While TRL's trainer is built inside it, its vLLM backend is ours: an engine of its own, or servers."""
    kind = ServerGeneration if args.vllm_mode == "server" else DAPOVLLMGeneration
    return engine_built_by(partial(kind, dapo_args=args))
