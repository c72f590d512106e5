"""config.pbtxt of a model: filled, nothing to edit; the model's name is that of its folder.

Source of the fields: triton-inference-server/common, protobuf/model_config.proto.
"""

from __future__ import annotations

from runtime_py.triton import answering, question
from runtime_py.triton.settings import default_settings
from targets.base import ModelServer

INPUTS = {
    question.TEXT: ("TYPE_STRING", 1),
    question.IMAGE: ("TYPE_STRING", -1),
    question.MESSAGES: ("TYPE_STRING", 1),
    question.SAMPLING: ("TYPE_STRING", 1),
    question.STREAM: ("TYPE_BOOL", 1),
}
OUTPUTS = {
    answering.TEXT: ("TYPE_STRING", 1),
    answering.IDS: ("TYPE_INT32", -1),
    answering.FINISHED: ("TYPE_STRING", 1),
    answering.USAGE: ("TYPE_STRING", 1),
}


PARAMETERS = "parameters"
"""How the lines begin that an operator may change."""


def config_text(server: ModelServer, planned: int = 1) -> str:
    """The whole file.

    Args:
        planned: sequences that a decoder call of the package was planned for; 1 where it was not.

    ``max_batch_size`` is 0 and the model decoupled: requests go to the engine one by one, which batches them token by token.
    """
    blocks = [
        'backend: "python"',
        "max_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        _list("input", [_tensor(name, *row, optional=True) for name, row in INPUTS.items()]),
        _list("output", [_tensor(name, *row) for name, row in OUTPUTS.items()]),
        f"instance_group [ {{ count: 1 kind: {server.instances} }} ]",
        *(
            f'{PARAMETERS} {{ key: "{name}" value: {{ string_value: "{text}" }} }}'
            for name, text in default_settings(planned).texts().items()
        ),
    ]
    return "\n".join(blocks) + "\n"


def _tensor(name: str, kind: str, size: int, optional: bool = False) -> str:
    return f'{{ name: "{name}" data_type: {kind} dims: [ {size} ]{" optional: true" if optional else ""} }}'


def _list(name: str, rows: list[str]) -> str:
    return f"{name} [\n  " + ",\n  ".join(rows) + "\n]"
