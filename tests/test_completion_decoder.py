"""What reward functions see, decoded apart from TRL's `_generate` and by it."""

import pytest
from tiny import first_token_reward, numbered_prompts, tiny_model, tiny_tokenizer, training_arguments

from trl_dapo import DAPOConfig, DAPOTrainer
from trl_dapo.refill.completion_decoder import decode_completion


CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


@pytest.mark.parametrize("is_conversational", [False, True])
def test_completions_are_those_that_trl_makes(tmp_path, is_conversational):
    dataset = numbered_prompts(20)
    tokenizer = tiny_tokenizer()
    if is_conversational:
        tokenizer.chat_template = CHAT
        dataset = dataset.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    trainer = DAPOTrainer(
        model=tiny_model(),
        reward_funcs=first_token_reward,
        args=DAPOConfig(**training_arguments(tmp_path)),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    prompts = dataset["prompt"][:8]
    prompt_ids, completion_ids, _, completions, *_ = trainer._generate(list(prompts))
    assert len(completions) == 8
    for row, completion in enumerate(completions):
        mine = decode_completion(trainer._tokenizer, prompt_ids[row], completion_ids[row], is_conversational)
        assert mine == completion


def test_turn_is_taken_apart_as_the_tokenizer_says():
    class Parsing:
        response_template = "some"
        eos_token = "<eos>"

        def parse_response(self, ids, **kwargs):
            assert ids == [3, 2]
            return {"role": "assistant", "content": "four<eos>", "thinking": "two and two"}

    assert decode_completion(Parsing(), [5], [3, 2], True) == [
        {"role": "assistant", "content": "four", "thinking": "two and two"}
    ]
