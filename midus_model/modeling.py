"""`MidusForCausalLM`: a Llama, Qwen3 or Mistral model with memory blocks among its layers."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from midus_model.card import write_card
from midus_model.config import MidusConfig, layer_map_of
from midus_model.intake import adapter_parts
from midus_model.memory import HeadwiseMemory
from midus_model.memory_blocks import MEMORY_BLOCKS


@lru_cache
def backbone_class(base_model_type: str) -> type[PreTrainedModel]:
    """The family's decoder stack, e.g. `LlamaModel`."""
    return MODEL_MAPPING[CONFIG_MAPPING[base_model_type]]


class MidusForCausalLM(PreTrainedModel, GenerationMixin):
    """Causal language model with head-wise memory blocks; a bank of zeros makes it equal its base.

    The decoder stack is the family's own, so attention, rotary embeddings, masks and caches are
    Hugging Face's; only the blocks that `config.layer_map` calls "memory" are ours.
    """

    config: MidusConfig
    config_class = MidusConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = [
        f"{family}{block}"
        for family in ("Llama", "Qwen3", "Mistral")
        for block in ("DecoderLayer", "MemoryBlock")
    ]

    def __init__(self, config: MidusConfig):
        super().__init__(config)
        self.model = backbone_class(config.base_model_type)(config)
        new_block = MEMORY_BLOCKS[config.base_model_type]
        for index, entry in enumerate(layer_map_of(config)):
            if entry["kind"] == "memory":
                self.model.layers[index] = new_block(config, index)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, HeadwiseMemory):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As `PreTrainedModel.save_pretrained`, with a model card where none of others lies."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process and not adapter_parts(self):
            write_card(self, save_directory)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Arguments and result as in `LlamaForCausalLM.forward`; logits [B, T, vocabulary]."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


AutoModelForCausalLM.register(MidusConfig, MidusForCausalLM)
