"""A byte-level tokenizer with a chat template, and tiny random Qwen text encoders of the real classes."""

from __future__ import annotations

from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} "
    "{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def tokenizer() -> Any:
    """Return a tokenizer whose tokens are the 256 bytes and three special ones."""
    names = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    found = Qwen2Tokenizer(
        vocab={name: i for i, name in enumerate(names)}, merges=[], pad_token="<|endoftext|>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    found.chat_template = _TEMPLATE
    return found


def qwen3(layers: int, width: int) -> Qwen3ForCausalLM:
    """Return a Qwen3 of `layers` layers."""
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=259, hidden_size=width, intermediate_size=8, num_hidden_layers=layers, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8,
    ))  # fmt: skip
