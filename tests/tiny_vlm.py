"""A vision-language model that exists nowhere but here: a Llava of random weights, and squares of one colour to look at."""

import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from tiny import SPECIAL_TOKENS, WORDS
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


IMAGE_TOKEN = "<image>"
# Eight pixels a side, patches of four: 2 x 2 tokens an image.
SIDE, PATCH = 8, 4
TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}"
    "{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)


def tiny_processor() -> LlavaProcessor:
    """Returns a processor whose tokenizer splits at spaces and knows the place of an image."""
    words = [*SPECIAL_TOKENS, *WORDS, IMAGE_TOKEN]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Split(Regex(" "), "removed")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left",
        additional_special_tokens=[IMAGE_TOKEN],
    )  # fmt: skip
    size = {"height": SIDE, "width": SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size),
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def tiny_vlm() -> LlavaForConditionalGeneration:
    """Returns a Llava in float32 whose answer depends on what it sees."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **size, num_hidden_layers=1, image_size=SIDE, patch_size=PATCH, projection_dim=16, initializer_range=0.5
        ),
        text_config=LlamaConfig(
            **size, num_hidden_layers=2, vocab_size=21, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, initializer_range=0.2,
        ),
        image_token_id=20,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def coloured_squares(num_rows: int) -> Dataset:
    """Returns a dataset of questions about squares, no two of one colour; row `i` carries its own number as `row`."""
    rows = {
        "prompt": [[{"role": "user", "content": f"w{row % 17}"}] for row in range(num_rows)],
        "image": [
            PILImage.new("RGB", (SIDE, SIDE), (16 * row % 256, 255 - 11 * row % 256, 40)) for row in range(num_rows)
        ],
        "row": list(range(num_rows)),
    }
    features = Features(
        {"prompt": [{"role": Value("string"), "content": Value("string")}], "image": Image(), "row": Value("int64")}
    )
    return Dataset.from_dict(rows, features=features)
