"""Models by dotted name for YAML, and Hugging Face folders read into torchtune and written back."""

from tt_reasoning.models.builders import build_from_hf, lora_from_hf, lora_smollm2_135m, smollm2_135m
from tt_reasoning.models.tokenizer import ChatTokenizer, chat_tokenizer

__all__ = [
    "ChatTokenizer",
    "build_from_hf",
    "chat_tokenizer",
    "lora_from_hf",
    "lora_smollm2_135m",
    "smollm2_135m",
]
