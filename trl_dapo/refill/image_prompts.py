"""Images in prompts: put in as TRL does it before it samples, and taken out where a batch is made of what was sampled."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from trl.data_utils import is_conversational, prepare_multimodal_messages

from trl_dapo.config.dapo_config import DAPOConfig


IMAGE_COLUMNS = frozenset({"images", "image"})


def with_images(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """
    Returns the prompts of dataset rows, with the images of the columns `image` or `images` in their first user turns.

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            Dataset rows.

    Raises:
        `ValueError`: there are images, and a prompt that is no conversation to put them into.
    """
    prompts = [row["prompt"] for row in rows]
    if "images" in rows[0]:
        images = [row.get("images") for row in rows]
    elif "image" in rows[0]:
        images = [None if row.get("image") is None else [row["image"]] for row in rows]
    else:
        return prompts
    # Transformers wants at least one image in a batch that has any.
    if all(not row for row in images):
        return prompts
    if not is_conversational(dict(rows[0])):
        raise ValueError(
            f"prompt is {prompts[0]!r} in a row with images, but must be a conversation, into whose first user turn they are "
            'put: [{"role": "user", "content": "..."}].'
        )
    return [prepare_multimodal_messages(prompt, images=row) for prompt, row in zip(prompts, images, strict=True)]


def prepared_prompts(rows: Sequence[Mapping[str, Any]], check_images: Callable[[], None]) -> list[Any]:
    """
    Returns the prompts of dataset rows as TRL would sample them.

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            Dataset rows.
        check_images (`Callable[[], None]`):
            Called when there are images: that is not known before, where the dataset is a stream.
    """
    prompts = with_images(rows)
    if images_of(prompts) is not None:
        check_images()
    return prompts


def images_of(prompts: Sequence[Any]) -> list[list[Any] | None] | None:
    """
    Returns the images of each prompt; `None`: there are none at all.

    >>> images_of([[{"role": "user", "content": [{"type": "image", "image": "a"}, {"type": "text", "text": "?"}]}]])
    [['a']]
    >>> images_of(["a text", [{"role": "user", "content": "a turn"}]]) is None
    True
    """
    images = [
        [
            part["image"]
            for turn in (prompt if isinstance(prompt, list) else [])
            if isinstance(turn.get("content"), list)
            for part in turn["content"]
            if part.get("type") == "image" and "image" in part
        ]
        for prompt in prompts
    ]
    return [row or None for row in images] if any(images) else None


def check_no_images(prompts: Sequence[Any]) -> None:
    """
    Checks prompts to which tools, an environment or a rollout function add turns.

    Args:
        prompts (`Sequence`):
            The prompts as they are sampled from.

    Raises:
        `ValueError`: one has an image.
    """
    if images_of(prompts) is not None:
        raise ValueError(
            "A prompt has an image, but with tools, environments and rollout functions dynamic sampling keeps tokens alone. "
            "Leave the images out, or set dynamic_sampling=False."
        )


def check_image_dataset(dataset: Dataset | IterableDataset | None, args: DAPOConfig, has_turns: bool = False) -> None:
    """
    Checks a configuration, if the training dataset has images.

    Args:
        dataset (`Dataset` or `IterableDataset`, *optional*):
            The training dataset.
        args (`DAPOConfig`):
            The configuration.
        has_turns (`bool`, *optional*, defaults to `False`):
            Whether tools, an environment or a rollout function add turns to the prompts.

    Raises:
        `ValueError`: see [`check_image_options`] and [`check_no_images`].
    """
    columns = getattr(dataset, "column_names", None) or []
    has_images = not IMAGE_COLUMNS.isdisjoint(columns)
    if isinstance(dataset, Dataset) and len(dataset) and "prompt" in columns:
        has_images |= images_of([dataset[0]["prompt"]]) is not None
    if has_images and has_turns and args.dynamic_sampling:
        raise ValueError(
            "train_dataset has images, but with tools, environments and rollout functions dynamic sampling keeps tokens alone. "
            "Leave the images out, or set dynamic_sampling=False."
        )
    if has_images:
        check_image_options(args)


def check_image_options(args: DAPOConfig) -> None:
    """
    Checks that a configuration does nothing for which prompts would be needed without their images.

    Args:
        args (`DAPOConfig`):
            The configuration.

    Raises:
        `ValueError`: naming the field, and what to set.
    """
    if args.dynamic_sampling and args.surplus == "carry":
        raise ValueError(
            'surplus is "carry", but the prompts have images: what is carried is scored from its tokens alone. Set '
            'surplus="requeue".'
        )
    if args.dynamic_sampling and args.refill == "stream":
        raise ValueError(
            'refill is "stream", but the prompts have images: its requests are tokens alone. Set refill="rounds".'
        )
    if args.loss_normalization == "group" and args.num_updates_per_batch > args.num_iterations:
        raise ValueError(
            'loss_normalization is "group" with several optimizer steps on a generation batch, but the prompts have images, '
            'whose pixels are not kept by row. Set loss_normalization="batch", or take one optimizer step on each.'
        )
