"""From the tokens of a completion to what reward functions see."""

from typing import Any

from trl.chat_template_utils import parse_response

from trl_dapo.sampling.judge import Tokens
from trl_dapo.trl_seams import as_list


def decode_completion(
    tokenizer: Any, prompt_ids: Tokens, completion_ids: Tokens, is_conversational: bool, has_turns: bool = False
) -> str | list[dict[str, Any]]:
    """
    Returns a completion as TRL's trainer makes it: a text, or a conversation of one turn.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Its `response_template` or `response_schema`, if it has one, says how to take a turn apart (thinking, say).
        prompt_ids (`Tokens`):
            The prompt.
        completion_ids (`Tokens`):
            The completion.
        is_conversational (`bool`):
            Whether the prompt is a conversation.
        has_turns (`bool`, *optional*, defaults to `False`):
            Whether tools or an environment took part. Their turns cannot be told from the tokens, so that they become one.
    """
    if not is_conversational:
        text: str = tokenizer.decode(completion_ids, skip_special_tokens=True)
        return text
    has_parser = any(getattr(tokenizer, name, None) is not None for name in ("response_template", "response_schema"))
    if has_parser and not has_turns:
        return [parse_response(tokenizer, as_list(completion_ids), prefix=as_list(prompt_ids))]
    return [{"role": "assistant", "content": tokenizer.decode(completion_ids, skip_special_tokens=True)}]
