r"""The conversation template of MiniCPM-V for the phone's engine.

The published prompt is ``<用户><image>`` rows ``</image>`` newline question ``<AI>`` with BOS in front. The
engine puts image rows between text parts without any marker, so the app sends ``<image>``, the picture, and
``</image>\\nquestion`` as three parts.
Source of the prompt: modeling_minicpmv.py of the 1.0 hub files; of the template's meaning: mlc-ai/mlc-llm,
cpp/json_ffi/conv_template.cc.
"""

from __future__ import annotations

from typing import Any

from export.specs import ModelSpec


def conversation(spec: ModelSpec) -> dict[str, Any]:
    """The template object of mlc-chat-config.json."""
    return {
        "name": "minicpm_v",
        "system_template": "{system_message}",
        "system_message": "",
        "system_prefix_token_ids": [spec.runtime["tokens"]["bos"]],
        "add_role_after_system_message": True,
        "roles": {"user": "<用户>", "assistant": "<AI>", "tool": "<用户>"},
        "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}", "tool": "{tool_message}"},
        "messages": [],
        "seps": [""],
        "role_content_sep": "",
        "role_empty_sep": "",
        "stop_str": ["</s>"],
        "stop_token_ids": list(spec.generation["stop_ids"]),
        "strip_reasoning_in_history": False,
        "function_string": "",
        "use_function_calling": False,
    }
