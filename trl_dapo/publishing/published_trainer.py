"""Writes the model card of a run, and pushes model and card to the Hub with error messages that say how to go on."""

import dataclasses
import functools
import logging
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from huggingface_hub import ModelCard, try_to_load_from_cache
from transformers import is_wandb_available
from transformers.trainer_pt_utils import get_model_param_count
from transformers.trainer_utils import SaveStrategy
from trl import GRPOTrainer
from trl.trainer.utils import get_comet_experiment_url, get_config_model_id, get_trackio_space_url

from trl_dapo.config.dapo_config import DAPOConfig
from trl_dapo.config.departures import departures, describe_method
from trl_dapo.data.held_out import HeldOut, num_shared_prompts
from trl_dapo.data.source import DataSource, is_hub_id
from trl_dapo.errors import TrainingStoppedError
from trl_dapo.trl_seams import AddedReward

from .card import CARD_FILE, CURVES_FILE, DAPO_CITATION, DAPO_TITLE, draw_curves, render_card, write_card
from .facts import RunFacts, changed_settings, finite_history, hardware_of, installed_versions, published_recipe
from .hub_errors import explained


logger = logging.getLogger(__name__)


class PublishedTrainer(GRPOTrainer):
    """
    A [`~trl.GRPOTrainer`] that writes a full model card at every save.

    `README.md` and `run_facts.json` lie in `output_dir` and are pushed with the weights. `curves.png` joins them when
    training ends and whenever `create_model_card` or `push_to_hub` is called. A save does not draw it: that would take
    longer than the rest of the save.
    """

    _tag_names = ["trl", "dapo"]
    _name = "DAPO"
    _paper = {"title": DAPO_TITLE, "id": "2503.14476", "citation": DAPO_CITATION}

    args: DAPOConfig
    # Names of the reward functions that judge groups.
    filter_names: list[str]
    # Its names and weights are those of all columns of the rewards.
    punishment: AddedReward
    # Given by the user. They also apply to the cards of later saves.
    card_data_source: DataSource | None = None
    card_eval_source: DataSource | None = None
    card_held_out: HeldOut | None = None
    card_license: str | None = None
    # Options of `trl-dapo train`, if that command runs.
    card_options: dict[str, Any] | None = None
    # Why a guard stopped the training before its last step.
    stop_reason: str | None = None
    _is_saving_checkpoint = False
    _shared_prompts: tuple[tuple[int, int], dict[str, int]] | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """
        Trains, as in `GRPOTrainer`. At the end, a run that saves checkpoints draws its curves and writes its card.

        Raises:
            `TrainingStoppedError`: a guard stopped the run. A checkpoint is saved, and the card says it.
        """
        self.stop_reason = None
        output = super().train(*args, **kwargs)
        if self.args.save_strategy != SaveStrategy.NO or self.stop_reason is not None:
            try:
                self.create_model_card()
            except Exception:
                logger.warning("Training is complete, but its model card could not be written.", exc_info=True)
        if self.stop_reason is not None:
            state = self.state
            raise TrainingStoppedError(state.global_step, state.max_steps, self.stop_reason, str(self.args.output_dir))
        return output

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._is_saving_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_saving_checkpoint = False

    def create_model_card(  # type: ignore[override]  # TRL's signature, and a licence
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        license: str | None = None,
    ) -> None:
        """
        Writes the model card, the facts of the run and, unless a checkpoint is being saved, the curves into `output_dir`.

        Args:
            model_name (`str`, *optional*):
                Name of the model. `None`: the name of the repository or of the folder.
            dataset_name (`str`, *optional*):
                Hub id or path of the training data. `None`: the one given before, or the one that the dataset recorded.
            tags (`str` or `list[str]`, *optional*):
                Additional tags.
            license (`str`, *optional*):
                Hub identifier of the licence (`apache-2.0`). `None`: the one given before, or the licence in the base model's
                card if it is in a local folder or in the cache.
        """
        if not self.is_world_process_zero():
            return
        if dataset_name is not None:
            self.card_data_source = DataSource.named(dataset_name)
        self.card_license = license or self.card_license
        if self.is_in_train and not self._may_change_pushed_files():
            # `Trainer` does not push this save either.
            return
        folder = Path(self.args.output_dir)  # type: ignore[arg-type]  # TRL's default is resolved by now
        try:
            folder.mkdir(parents=True, exist_ok=True)
            facts = self._facts_of_run(model_name, {tags} if isinstance(tags, str) else set(tags or []))
            facts.write(folder)
            has_curves = not self._is_saving_checkpoint and draw_curves(facts, folder)
            write_card(render_card(facts, self.hub_model_id, has_curves=has_curves), folder)
            if not has_curves:
                # It may show an earlier step, or another run.
                (folder / CURVES_FILE).unlink(missing_ok=True)
        except Exception:
            if not self.is_in_train:
                raise
            # A missing card must not stop the training.
            logger.warning("The model card could not be written; training goes on.", exc_info=True)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """
        Pushes weights, tokenizer, card and curves to `hub_model_id`. Arguments as in `GRPOTrainer`, and `license`.

        Raises:
            `HubPushError`, `HubUnreachableError`: the Hub refused or did not answer. The model is in `output_dir`, and the
                message has the command that pushes it from there.
        """
        folder = Path(self.args.output_dir)  # type: ignore[arg-type]
        with explained(self.hub_model_id or self.args.hub_model_id, folder):
            return super().push_to_hub(*args, **kwargs)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """
        Creates the repository, as in `GRPOTrainer`: with `push_to_hub=True` before training starts.

        Raises:
            `HubPushError`, `HubUnreachableError`: as in [`~PublishedTrainer.push_to_hub`].
        """
        with explained(self.args.hub_model_id or Path(self.args.output_dir).resolve().name):  # type: ignore[arg-type]
            super().init_hf_repo(*args, **kwargs)

    def _may_change_pushed_files(self) -> bool:
        """
        Returns whether no upload of `output_dir` is in progress: files must not change during an upload.

        With `hub_always_push` it waits for an upload in progress.
        """
        if self.args.hub_always_push:
            self._finish_current_push()
        push = getattr(self, "push_in_progress", None)
        return push is None or push.is_done()

    def _push_whole_checkpoint(self, folder: str) -> list[Future[Any]]:
        """As `ResumableTrainer`, beside which this class stands, and tells what becomes of the uploads."""
        # `Trainer` copies the weights of this checkpoint into `output_dir`, which may still be uploading.
        if self.is_world_process_zero():
            self._may_change_pushed_files()
        jobs: list[Future[Any]] = super()._push_whole_checkpoint(folder)  # type: ignore[misc]
        for job in jobs:
            job.add_done_callback(self._warn_if_push_failed)
        return jobs

    def _warn_if_push_failed(self, job: Future[Any]) -> None:
        """Logs the error of a push in the background, which `Trainer` never reads."""
        error = None if job.cancelled() else job.exception()
        if error is None:
            return
        try:
            with explained(self.hub_model_id):
                raise error
        except Exception as failure:
            logger.warning(
                "A checkpoint could not be pushed to %s. Training goes on, and pushes the next one. %s",
                self.hub_model_id,
                failure,
            )

    def shared_prompts(self) -> dict[str, int]:
        """Returns how many prompts of each evaluation dataset are in the training data too; the name of a single one is ''."""
        held_out: Any = self.eval_dataset
        sets = held_out if isinstance(held_out, dict) else {"": held_out}
        known = (id(self.train_dataset), id(held_out))
        if self._shared_prompts is None or self._shared_prompts[0] != known:
            shared = {name: num_shared_prompts(self.train_dataset, rows) for name, rows in sets.items()}
            self._shared_prompts = known, {name: count for name, count in shared.items() if count}
        return self._shared_prompts[1]

    def _facts_of_run(self, model_name: str | None, tags: set[str]) -> RunFacts:
        args, model = self.args, self.accelerator.unwrap_model(self.model)
        base = get_config_model_id(model.config) or None
        base_is_on_hub = base is not None and not Path(base).exists() and is_hub_id(base)
        data: Any = self.train_dataset
        held_out: Any = self.eval_dataset
        sets = held_out if isinstance(held_out, dict) else {"": held_out}
        row: dict[str, Any] = next(iter(data), {}) if isinstance(data, Dataset) else {}
        num_rows = len(data) if isinstance(data, Dataset) else None
        num_steps = max(self.state.max_steps, self.state.global_step)
        trackers = {"Trackio": get_trackio_space_url(), "Comet": get_comet_experiment_url(), "W&B": _wandb_url()}
        named = ("temperature", "top_p", "max_completion_length", "seed")
        sampling: dict[str, Any] = {name: getattr(args, name) for name in named}
        sampling["max_completion_length"] = args.generation_end.max_completion_length
        # With this option, the trainer loads the best weights at the end of training.
        best_step = self.state.best_global_step if args.load_best_model_at_end and not self.is_in_train else None
        return RunFacts(
            model_name=model_name or (self.hub_model_id or Path(args.output_dir).resolve().name).split("/")[-1],  # type: ignore[arg-type]
            base_model=base if base_is_on_hub else base and Path(base).resolve().name,
            base_model_is_on_hub=base_is_on_hub,
            license=self.card_license or (base and _license_of(base)),
            adapter=_adapter_of(model, args.disable_dropout) if is_peft_model(model) else None,
            num_parameters=get_model_param_count(model),
            num_trained_parameters=get_model_param_count(model, trainable_only=True),
            train_data=self.card_data_source or DataSource.of_dataset(data),
            num_train_rows=num_rows,
            eval_data=self.card_eval_source or DataSource.of_dataset(held_out),
            num_eval_rows={name: len(rows) for name, rows in sets.items() if isinstance(rows, Dataset)},
            held_out=None if self.card_held_out is None else dataclasses.asdict(self.card_held_out),
            num_shared_prompts=self.shared_prompts(),
            is_conversational=isinstance(row.get("prompt"), list),
            rewards=dict(zip(self.punishment.names, self.punishment.weights.tolist(), strict=True)),
            method=describe_method(args, num_steps, num_rows, self.punishment.names, self.filter_names),
            departures=departures(args),
            settings=changed_settings(args),
            recipe=None if self.card_options is None else published_recipe(self.card_options),
            sampling=sampling,
            hardware=hardware_of(args),
            versions=installed_versions(),
            step=best_step or self.state.global_step,
            num_steps=num_steps,
            stop_reason=self.stop_reason,
            log_history=finite_history(self.state.log_history),
            tags=sorted(tags | {"generated_from_trainer", *self._tag_names, *_tags_of_place(trackers["Trackio"])}),
            trackers={name: url for name, url in trackers.items() if url},
        )


def _tags_of_place(trackio_url: str | None) -> set[str]:
    """Returns the tags that TRL sets for models from Hub Jobs and from runs tracked by Trackio."""
    tags = {"hf_jobs"} if "JOB_ID" in os.environ else set()
    return tags | ({f"trackio:{trackio_url}"} if trackio_url else set())


def _adapter_of(model: Any, has_no_dropout: bool) -> dict[str, Any]:
    config = model.peft_config[model.active_adapter]
    names = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
    found = {label: getattr(config, name) for name, label in names.items() if hasattr(config, name)}
    if has_no_dropout:
        found.pop("dropout", None)  # the adapter's own value was not used
    targets = getattr(config, "target_modules", None)
    modules = targets if isinstance(targets, str) else ", ".join(sorted(targets or []))
    return {"type": str(getattr(config.peft_type, "value", config.peft_type))} | found | {"on": modules}


@functools.cache
def _license_of(base: str) -> str | None:
    """Returns the licence in the card of a local or cached model. It does not ask the Hub."""
    card: Any = Path(base) / CARD_FILE
    if not card.is_file():
        card = try_to_load_from_cache(base, CARD_FILE) if is_hub_id(base) else None
    if not isinstance(card, str | Path):
        return None
    try:
        named = ModelCard.load(card, ignore_metadata_errors=True).data.license
    except Exception:  # the card of another model can hold any YAML
        return None
    return named if isinstance(named, str) else None


def _wandb_url() -> str | None:
    if not is_wandb_available():
        return None
    import wandb

    return None if wandb.run is None else wandb.run.url
