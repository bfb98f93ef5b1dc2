"""Pushes the folder of a finished run to the Hub, after checks."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, RepoFile, get_token

from trl_dapo.atomic_write import atomic_write
from trl_dapo.data.source import is_hub_id
from trl_dapo.errors import HubPushError
from trl_dapo.evaluation.completion_sampler import load_sampler

from .card import CARD_FILE, CURVES_FILE, draw_curves, is_unedited, render_card, write_card
from .card_results import Evaluation, result_file
from .facts import FACTS_FILE, RunFacts
from .hub_errors import explained, no_token


# Files that are pushed. The optimizer, sampled completions and training_args.bin (a pickle with paths of the machine) are not.
_FILES = re.compile(
    r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|(config|generation_config|adapter_config|processor_config|preprocessor_config|video_preprocessor_config)\.json"
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|(tokenizer|spiece|sentencepiece)\.model"
    r"|merges\.txt|vocab\.txt|chat_template\.(jinja|json)|LICENSE(\.txt|\.md)?|results\.json"
    f"|{re.escape(CARD_FILE)}|{re.escape(CURVES_FILE)}|{re.escape(FACTS_FILE)}"
)
_WEIGHTS = re.compile(r"(model|adapter_model)(-\d{5}-of-(?P<count>\d{5}))?\.safetensors")
EVALUATIONS_FOLDER = "evaluations"


@dataclass(frozen=True, slots=True)
class PushOptions:
    """
    Options of a push.

    Args:
        private (`bool`, *optional*):
            Whether a new repository is private. `None`: the default of the account.
        revision (`str`, *optional*):
            Branch, created if it does not exist. `None`: `main`.
        results (`Sequence[str]`, *optional*):
            Folders of `trl-dapo eval` whose results go into the card.
        license (`str`, *optional*):
            Licence in the Hub's words (`apache-2.0`). `None`: the one that the run recorded, if any.
        commit_message (`str`, *optional*, defaults to `"Upload model"`):
            Message of the commit.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether the model may replace another one of the same name.
        token (`str`, *optional*):
            Token of the Hub. `None`: that of HF_TOKEN or `hf auth login`.
    """

    private: bool | None = None
    revision: str | None = None
    results: Sequence[str] = field(default_factory=tuple)
    license: str | None = None
    commit_message: str = "Upload model"
    overwrite: bool = False
    token: str | None = None


def push_run(
    folder: str | Path,
    repo_id: str | None = None,
    options: PushOptions | None = None,
    command: str | None = None,
    report: Callable[[str], None] = print,
) -> CommitInfo:
    """
    Pushes weights, tokenizer, card, curves and results of a run.

    Args:
        folder (`str` or `Path`):
            `output_dir` of the run.
        repo_id (`str`, *optional*):
            `name` or `namespace/name`. `None`: the name of the folder.
        options (`PushOptions`, *optional*):
            Options of the push.
        command (`str`, *optional*):
            The command that tries again, for error messages.
        report (`Callable[[str], None]`, *optional*):
            Gets a line for each thing that happens.

    Returns:
        `CommitInfo`: The commit, or the last one if nothing changed.

    Raises:
        `FileNotFoundError`: the folder has no complete model, or a folder of results does not exist.
        `ValueError`: the name is not a valid repository name, the results are of other weights or cannot go into the card.
        `HubPushError`: the Hub refused, or the repository holds another model.
        `HubUnreachableError`: the Hub does not answer.
    """
    folder, options = Path(folder), options or PushOptions()
    files = files_to_push(folder)
    repo_id = repo_id or folder.resolve().name
    if not is_hub_id(repo_id):
        raise ValueError(
            f"hub_model_id is {repo_id!r}, but must be `name` or `namespace/name` of letters, digits, '-', '_' and '.', at "
            "most 96 characters."
        )
    given = {str(path): Evaluation.read(path) for path in options.results}
    kept = {str(folder / name): Evaluation.read(folder / name) for name in _kept_results(folder)}
    _check_weights(folder, given | kept)
    if options.token is None and get_token() is None:
        raise no_token()
    api = HfApi(token=options.token)
    with explained(repo_id, folder, command):
        account = api.whoami()
        if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise HubPushError(
                f"The token of {account['name']} may only read. Create one with write access at "
                "https://huggingface.co/settings/tokens."
            )
        repo_id = repo_id if "/" in repo_id else f"{account['name']}/{repo_id}"
        api.create_repo(repo_id, private=options.private, exist_ok=True)
        if options.revision:
            api.create_branch(repo_id, branch=options.revision, exist_ok=True)
        if not options.overwrite:
            _refuse_other_model(api, repo_id, options.revision, folder, files)
        _keep_results(folder, options.results)
        results = _kept_results(folder)
        _write_card(folder, repo_id, options.license, [Evaluation.read(folder / name) for name in results], report)
        files = [*files_to_push(folder), *results]
        left_out = sorted({path.name for path in folder.iterdir()} - {file.split("/")[0] for file in files})
        report(f"Pushing {', '.join(files)}" + (f"\nLeft out: {', '.join(left_out)}" if left_out else ""))
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=files,
            commit_message=options.commit_message,
            revision=options.revision,
        )
    report(f"{repo_id} is at {commit.commit_url}")
    return commit


def files_to_push(folder: Path) -> list[str]:
    """
    Returns the names of those files in a folder that are pushed.

    Raises:
        `FileNotFoundError`: the folder does not exist, has no model, or a part of the weights is missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Give the output_dir of a run.")
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and _FILES.fullmatch(path.name))
    weights = [found for name in names if (found := _WEIGHTS.fullmatch(name))]
    kind = "adapter_config.json" if any(found[1] == "adapter_model" for found in weights) else "config.json"
    if not weights or kind not in names:
        hint = "".join(
            f" It has checkpoints. To push the last one, give {path}." for path in _checkpoints(folder)[-1:]
        )
        raise FileNotFoundError(
            f"{folder} holds no model: looked for config.json with model.safetensors, or adapter_config.json with "
            f"adapter_model.safetensors. Save the model first (trainer.save_model()).{hint}"
        )
    for found in weights:
        parts = [name for name in names if found["count"] and name.endswith(f"-of-{found['count']}.safetensors")]
        if found["count"] and len(parts) != int(found["count"]):
            raise FileNotFoundError(f"{folder} holds {len(parts)} of {int(found['count'])} parts of the weights.")
    return names


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(re.sub(r"\D", "", path.name) or 0))


def _check_weights(folder: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Refuses results of other weights: the card would report what was not measured on these weights."""
    found: dict[str, str] = {}
    for name, evaluation in evaluations.items():
        # The digest is computed from the weights in the precision of the evaluation.
        dtype, evaluated = str(evaluation.settings["dtype"]).removeprefix("torch."), evaluation.settings["weights"]
        if dtype not in found:
            found[dtype] = load_sampler(str(folder), dtype=dtype).identity()["weights"]
        if found[dtype] != evaluated:
            raise ValueError(
                f"The results in {name} are of other weights: their digest is {evaluated}, that of {folder} is "
                f"{found[dtype]}. Evaluate the model that you push (trl-dapo eval --model_name_or_path {folder} ...), or "
                "leave them out."
            )


def _refuse_other_model(api: HfApi, repo_id: str, revision: str | None, folder: Path, files: Sequence[str]) -> None:
    """Refuses to overwrite another model. An unfinished push of the same model may continue."""
    tree = api.list_repo_tree(repo_id, revision=revision)
    remote = {entry.path: entry for entry in tree if isinstance(entry, RepoFile) and _WEIGHTS.fullmatch(entry.path)}
    others = [path for path, entry in remote.items() if path not in files or not _is_same(folder / path, entry)]
    if others:
        raise HubPushError(
            f"The name {repo_id} is taken: it holds another model ({', '.join(sorted(others))} differ). Choose another name "
            "with --hub_model_id, another branch with --hub_revision, or pass --overwrite true to replace it with this model."
        )


def _is_same(path: Path, entry: RepoFile) -> bool:
    if path.stat().st_size != entry.size:
        return False
    with path.open("rb") as file:
        if entry.lfs is not None:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.lfs.sha256
        content = file.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == entry.blob_id


def _write_card(
    folder: Path, repo_id: str, license: str | None, evaluations: Sequence[Evaluation], report: Callable[[str], None]
) -> None:
    """Writes the card again, with the repository and the evaluations. A card that was edited stays as it is."""
    has_facts, has_card = (folder / FACTS_FILE).is_file(), (folder / CARD_FILE).is_file()
    if has_facts and (not has_card or is_unedited(folder)):
        facts = RunFacts.read(folder)
        if facts.stop_reason is not None:
            report(f"This run was stopped at step {facts.step} of {facts.num_steps}; its card says why.")
        # A run that was killed has no picture yet.
        has_curves = (folder / CURVES_FILE).is_file() or draw_curves(facts, folder)
        write_card(render_card(facts, repo_id, evaluations, has_curves, license), folder)
        return
    what = f"{CARD_FILE} stays as it is" if has_card else "There is no model card"
    why = "it was edited" if has_facts else f"the folder has no {FACTS_FILE} to write one from"
    if evaluations or license:
        raise ValueError(
            f"{what}: {why}. So neither results nor a licence can be added. Write them into the card yourself and push "
            f"without --results and --license, or move {CARD_FILE} away, so that a new one is written."
        )
    report(f"{what}: {why}.")


def _keep_results(folder: Path, results: Sequence[str]) -> None:
    """Copies evaluations into the folder, beside those of earlier pushes."""
    for path in results:
        evaluation = Evaluation.read(path)
        data = re.sub(r"[^A-Za-z0-9.]+", "-", evaluation.source.name or "problems").strip("-")
        settings = evaluation.settings
        copy = folder / EVALUATIONS_FOLDER / f"{data}-{settings['problems']}-k{settings['k']}.json"
        copy.parent.mkdir(exist_ok=True)
        atomic_write(copy, result_file(path).read_bytes())


def _kept_results(folder: Path) -> list[str]:
    return sorted(f"{EVALUATIONS_FOLDER}/{path.name}" for path in (folder / EVALUATIONS_FOLDER).glob("*.json"))
