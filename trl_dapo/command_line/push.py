"""`trl-dapo push`: pushes the folder of a run to the Hub."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from trl_dapo.errors import HubPushError
from trl_dapo.publishing.push import PushOptions, push_run

from .option_parser import parse_options


@dataclass
class PushArguments:
    """Options of `trl-dapo push`. The token is that of HF_TOKEN or `hf auth login`, never an option."""

    output_dir: str = field(metadata={"help": "Folder of the run, with the model in it."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "name or namespace/name on the Hub. Unset: the name of the folder."}
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "Whether a new repository is private. Unset: the default of your account."}
    )
    hub_revision: str | None = field(default=None, metadata={"help": "Branch, created if it does not exist."})
    results: list[str] = field(
        default_factory=list, metadata={"help": "Folders of `trl-dapo eval` whose results go into the card."}
    )
    license: str | None = field(default=None, metadata={"help": "Licence in the Hub's words, such as apache-2.0."})
    commit_message: str = field(default="Upload model", metadata={"help": "Message of the commit."})
    overwrite: bool = field(default=False, metadata={"help": "Replace another model in this repository."})


def run(arguments: Sequence[str]) -> None:
    """
    Pushes the model of a run with its card, curves and results.

    Args:
        arguments (`Sequence[str]`):
            The options, such as `["--output_dir", "DIR", ...]`.
    """
    (args,) = parse_options("push", (PushArguments,), arguments)
    options = PushOptions(
        private=args.hub_private_repo,
        revision=args.hub_revision,
        results=args.results,
        license=args.license,
        commit_message=args.commit_message,
        overwrite=args.overwrite,
    )
    command = shlex.join(["trl-dapo", "push", *arguments])
    try:
        push_run(args.output_dir, args.hub_model_id, options, command)
    except KeyboardInterrupt:
        raise HubPushError(f"Interrupted. The model is safe in {args.output_dir}. To continue:\n  {command}") from None
