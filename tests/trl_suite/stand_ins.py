"""
Makes stand-ins for the models, tokenizers and data sets of the Hub that TRL's tests name: small, from configuration, with random weights.

A stand-in lies in a folder that has the name of its Hub id. A process that runs where these folders lie loads them, because
the libraries take a folder that exists before they ask the Hub.
"""

import ast
import re
from pathlib import Path

import torch
import torchvision_of_any_build  # noqa: F401 - before transformers
import transformers
import trl
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


OWNER = "trl-internal-testing"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"

# Ids of Qwen's vocabulary that the tests write out, with their texts. The 256 bytes have the same ids in both vocabularies.
WORDS = {
    293: " b", 314: " {", 330: ' "', 397: ">\n", 411: "out", 450: "dec", 497: '",', 522: "</", 606: "name", 788: '":',
    894: " any", 927: "sh", 944: "'t", 1318: "text", 1414: " know", 1513: " don", 2765: " won", 4913: '{"', 5212: ' {"',
    5392: " tool", 6023: "hi", 6659: "call", 7692: "async", 9520: "step", 11248: "}}\n", 13477: "rement", 14172: "tool",
    16252: " increment", 16370: "arguments", 17453: "Done", 22785: "ly_tool", 35744: "increment", 64648: "multip",
    93054: "_multip", 95642: '"}}\n',
}  # fmt: skip
SPECIAL = {
    151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>", 151657: "<tool_call>", 151658: "</tool_call>",
    151652: "<|vision_start|>", 151653: "<|vision_end|>", 151655: "<|image_pad|>", 151656: "<|video_pad|>",
}  # fmt: skip
LOCAL_ID = {number: 256 + place for place, number in enumerate([*WORDS, *SPECIAL])}
# A list of numbers that has one above it is a list of tokens.
_LARGEST_WORD = 1000

# Chat template of TRL by architecture.
TEMPLATE_OF = {
    "Cohere2": "cohere2", "Gemma2": None, "Glm4Moe": "glm4moe", "GptOss": "gptoss", "Llama": "llama3_2", "Mistral": "qwen2_5",
    "NemotronH": "nemotron_3_nano", "Qwen2": "qwen2_5", "Qwen2VL": "qwen2_5_vl", "Qwen2_5_VL": "qwen2_5_vl", "Qwen3": "qwen3",
    "Qwen3Moe": "qwen3",
}  # fmt: skip
SMALL = {
    "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32,
}  # fmt: skip
# What a configuration has besides `SMALL`.
SETTINGS = {
    "Cohere2": {"logit_scale": 1.0},
    "Gemma2": {"head_dim": 2},
    "Glm4Moe": {"moe_intermediate_size": 32, "head_dim": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "use_qk_norm": True},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "NemotronH": {
        "hidden_size": 16, "num_hidden_layers": None, "layers_block_type": ["mamba", "attention", "moe"], "mamba_num_heads": 8,
        "mamba_head_dim": 4, "mamba_n_groups": 1, "ssm_state_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32,
    },
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 128},
}  # fmt: skip
VISION = {
    "Qwen2VL": {"hidden_size": 16, "num_heads": 4, "embed_dim": 64, "depth": 2},
    "Qwen2_5_VL": {
        "hidden_size": 16, "num_heads": 4, "depth": 2, "fullatt_block_indexes": [1], "out_hidden_size": 16, "intermediate_size": 32,
    },
}  # fmt: skip

_COLOURS = ["red", "green", "blue", "white", "black", "brown", "grey", "pink", "gold"]
PROMPTS = [f"{number} and a {colour} one" for number in ("One", "Two") for colour in _COLOURS] + ["The last one is"]
NUM_TRAIN = 17


def ids_in(source: str) -> list[str]:
    """
    Returns the names of the Hub repositories of TRL's tests in a Python source, sorted.

    >>> ids_in("load('trl-internal-testing/zen'); load('gpt2'); f('trl-internal-testing/a-B', 'see trl-internal-testing/x')")
    ['a-B', 'zen']
    """
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    found = [re.fullmatch(rf"{OWNER}/([\w.-]+)", text) for text in texts if isinstance(text, str)]
    return sorted({match[1] for match in found if match})


def with_local_tokens(source: str) -> str:
    """
    Returns a source in which lists of Qwen's tokens have the ids of the stand-ins' vocabulary, which is smaller.

    >>> with_local_tokens("rows = [[17453, 0, 151645], [198, 788]]; shape = [788, 606]")
    'rows = [[285, 0, 293], [198, 788]]; shape = [788, 606]'
    """
    places = []
    for node in ast.walk(ast.parse(source)):
        numbers = [item for item in getattr(node, "elts", []) if isinstance(item, ast.Constant)]
        values = [item.value for item in numbers]
        if all(isinstance(value, int) for value in values) and any(value > _LARGEST_WORD for value in values):
            places += [(item.lineno, item.col_offset, item.end_col_offset, item.value) for item in numbers]
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    for line, start, end, value in sorted(places, reverse=True):
        number = str(LOCAL_ID.get(value, value)).encode()
        lines[line - 1] = lines[line - 1][:start] + number + lines[line - 1][end:]
    return b"".join(lines).decode()


def make_all(names: list[str], folder: Path) -> dict[str, str]:
    """
    Makes the stand-ins for repositories of TRL's tests.

    Args:
        names (`list[str]`):
            Their names, without the owner.
        folder (`Path`):
            The stand-ins get their places below it.

    Returns:
        `dict[str, str]`: why there is none, by name. The tests that name it fail.
    """
    missing = {}
    for name in names:
        try:
            make(name, folder / OWNER / name)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}"
    return missing


def make(name: str, folder: Path) -> None:
    """Makes one stand-in."""
    if name in DATA_SETS:
        DATA_SETS[name](folder)
        return
    named = re.fullmatch(
        r"tiny-(\w+?)(ForCausalLM|ForSequenceClassification|ForConditionalGeneration)(?:-[\w.-]+)?", name
    )
    if named is None:
        raise ValueError(f"{name} names no architecture")
    family, kind = named.groups()
    if family not in TEMPLATE_OF:
        raise ValueError(f"{family} has no entry in {Path(__file__).name}")
    tokenizer = make_tokenizer(TEMPLATE_OF[family], begins=family == "Llama")
    architecture = getattr(transformers, family + kind)
    if family in VISION:
        config = architecture.config_class(
            text_config=_text_config(tokenizer, family) | {"hidden_size": 16, "rope_parameters": _ROPE},
            vision_config=VISION[family],
            **{f"{part}_token_id": tokenizer.convert_tokens_to_ids(token) for part, token in _VISION_TOKENS.items()},
        )
        saved = _processor(getattr(transformers, f"{family}Processor"), tokenizer)
    else:
        scores = {"num_labels": 1, "hidden_size": 16} if kind == "ForSequenceClassification" else {}
        config = architecture.config_class(**_text_config(tokenizer, family) | scores)
        saved = tokenizer
    model = random_model(architecture, config)
    if model.can_generate():
        model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
        )
    model.save_pretrained(folder)
    saved.save_pretrained(folder)


_ROPE = {"rope_type": "default", "mrope_section": [1, 1], "rope_theta": 1e6}
_VISION_TOKENS = {
    "image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>",
}  # fmt: skip


def _text_config(tokenizer, family):
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings = SMALL | SETTINGS.get(family, {}) | {"vocab_size": len(tokenizer)} | tokens
    # An architecture that is given by its layers has no number of them.
    return {name: value for name, value in settings.items() if value is not None or name in tokens}


def random_model(architecture, config) -> torch.nn.Module:
    """Returns a model in bfloat16, as TRL's are, whose next token depends on the ones before: plain initial weights say little."""
    torch.manual_seed(0)
    model = architecture(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name.lower() and parameter.dim() > 1:
            torch.nn.init.normal_(parameter.data, 0, 0.5 if "score" in name else 0.2)
    return model.to(torch.bfloat16)


def make_tokenizer(template: str | None, begins: bool = False) -> PreTrainedTokenizerFast:
    """Returns a tokenizer that writes a byte a token, and reads the words of `WORDS` too."""
    alphabet = _characters_of_bytes()
    vocabulary = {character: number for number, character in enumerate(alphabet.values())}
    for number, word in WORDS.items():
        vocabulary["".join(alphabet[byte] for byte in word.encode())] = LOCAL_ID[number]
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for text in [*SPECIAL.values(), *(["<|begin_of_text|>"] if begins else [])]:
        # Calls of tools are read from decoded texts without special tokens.
        is_special = "tool_call" not in text
        tokenizer.add_tokens([AddedToken(text, special=is_special, normalized=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=131072,
        **({"bos_token": "<|begin_of_text|>"} if begins else {}),
    )
    fast.chat_template = (TEMPLATES / f"{template}.jinja").read_text() if template else None
    return fast


def _characters_of_bytes() -> dict[int, str]:
    """Returns the printable character that stands for each byte in byte-level vocabularies, in the order of their ids."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


def _processor(architecture, tokenizer):
    parts = {
        "image_processor": Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 4),
        "tokenizer": tokenizer,
        "chat_template": tokenizer.chat_template,
    }
    # Needs torchvision.
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    return architecture(**parts, video_processor=Qwen2VLVideoProcessor())


def _prompts_only(folder):
    as_text = Dataset.from_dict({"prompt": PROMPTS})
    as_turns = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in PROMPTS]})
    _save(folder, {"standard_prompt_only": as_text, "conversational_prompt_only": as_turns})


def _with_an_image(folder):
    turns = Features({"prompt": [{"role": Value("string"), "content": Value("string")}], "image": Image()})
    rows = {"prompt": [[{"role": "user", "content": text}] for text in PROMPTS], "image": _squares()}
    _save(folder, {"conversational_prompt_only": Dataset.from_dict(rows, features=turns)})


def _with_images(folder):
    part = {"type": Value("string"), "text": Value("string")}
    turns = Features({"prompt": [{"role": Value("string"), "content": [part]}], "images": List(Image())})
    images = [[square] * (1 + number % 2) for number, square in enumerate(_squares())]
    prompts = [
        [{"role": "user", "content": [{"type": "image", "text": None}] * len(seen) + [{"type": "text", "text": text}]}]
        for text, seen in zip(PROMPTS, images, strict=True)
    ]
    _save(
        folder,
        {"conversational_prompt_only": Dataset.from_dict({"prompt": prompts, "images": images}, features=turns)},
    )


def _squares():
    return [PILImage.new("RGB", (56, 56), (13 * number, 200 - 9 * number, 40)) for number in range(len(PROMPTS))]


def _save(folder, configurations):
    """Writes data sets as a repository of the Hub with several configurations has them."""
    lines = ["---", "configs:"]
    for name, rows in configurations.items():
        (folder / name).mkdir(parents=True)
        rows.select(range(NUM_TRAIN)).to_parquet(folder / name / "train.parquet")
        rows.select(range(NUM_TRAIN, len(rows))).to_parquet(folder / name / "test.parquet")
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [
            line
            for split in ("train", "test")
            for line in (f"  - split: {split}", f"    path: {name}/{split}.parquet")
        ]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


DATA_SETS = {"zen": _prompts_only, "zen-image": _with_an_image, "zen-multi-image": _with_images}
