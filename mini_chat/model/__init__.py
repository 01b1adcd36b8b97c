"""The model: Qwen3's arithmetic under our own roof. Imports nothing else of ours."""

from mini_chat.model.configuration_slm import SLMConfig
from mini_chat.model.model_slm import SLMForCausalLM, SLMModel

__all__ = ["SLMConfig", "SLMForCausalLM", "SLMModel"]
