r"""The conversation template of MiniCPM-Llama3-V 2.5 for the phone's engine: Llama-3's headers and end-of-turn token.

The engine puts image rows between text parts without any marker, so the app sends ``<image>``, the picture, and
``</image>\\nquestion`` as three parts.
Sources: chat_template in tokenizer_config.json of openbmb/MiniCPM-Llama3-V-2_5, kept in theonlyengine/VQA_Model; meaning of
the fields: mlc-ai/mlc-llm, cpp/json_ffi/conv_template.cc.
"""

from __future__ import annotations

from typing import Any

from export.specs import ModelSpec


def conversation(spec: ModelSpec) -> dict[str, Any]:
    """The template object of mlc-chat-config.json."""
    return {
        "name": "minicpm_llama3_v",
        "system_template": "{system_message}",
        "system_message": "",
        "system_prefix_token_ids": [spec.runtime["tokens"]["bos"]],
        "add_role_after_system_message": True,
        "roles": {
            "user": "<|start_header_id|>user",
            "assistant": "<|start_header_id|>assistant",
            "tool": "<|start_header_id|>user",
        },
        "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}", "tool": "{tool_message}"},
        "messages": [],
        "seps": ["<|eot_id|>"],
        "role_content_sep": "<|end_header_id|>\n\n",
        "role_empty_sep": "<|end_header_id|>\n\n",
        "stop_str": [],
        "stop_token_ids": list(spec.generation["stop_ids"]),
        "strip_reasoning_in_history": False,
        "function_string": "",
        "use_function_calling": False,
    }
