"""One stream of gRPC to a model of a Triton repository: questions with pictures out, tokens in. Needs tritonclient[grpc]."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime_py.errors import MachineError
from runtime_py.triton.answering import FINISHED, IDS, TEXT, USAGE
from runtime_py.triton.question import IMAGE, SAMPLING, STREAM
from runtime_py.triton.question import TEXT as QUESTION

SECONDS = 120.0


@dataclass(frozen=True)
class Piece:
    """One response: what it added, and, of the last one, how the answer ended."""

    request: str
    text: str
    ids: tuple[int, ...]
    finish: str | None
    usage: Mapping[str, Any] | None


class GrpcStream:
    """One bidirectional stream; one thread uses it.

    Args:
        url: ``host:port`` of gRPC.
    """

    def __init__(self, url: str, model: str) -> None:
        from tritonclient import grpc

        self._grpc, self._model, self._url = grpc, model, url
        self._responses: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._client = grpc.InferenceServerClient(url)
        responses = self._responses  # not self: the stream must not keep its owner alive
        self._client.start_stream(callback=lambda result, error: responses.put((result, error)))

    def ask(
        self, number: str, text: str, pictures: Sequence[bytes], sampling: Mapping[str, Any], stream: bool = True
    ) -> Iterator[Piece]:
        """Send a question and give its responses as they come.

        Raises:
            MachineError: the server refuses it, is gone, or says nothing for two minutes.
        """
        values: dict[str, list[bytes]] = {QUESTION: [text.encode()], SAMPLING: [json.dumps(sampling).encode()]}
        if pictures:
            values[IMAGE] = list(pictures)
        inputs = [self._tensor(name, np.array(row, dtype=np.object_), "BYTES") for name, row in values.items()]
        inputs.append(self._tensor(STREAM, np.array([stream]), "BOOL"))
        try:
            self._client.async_stream_infer(self._model, inputs, request_id=number, enable_empty_final_response=True)
        except Exception as error:
            raise self._broken(error) from error
        while True:
            try:
                result, refused = self._responses.get(timeout=SECONDS)
            except queue.Empty as empty:
                raise self._broken(TimeoutError(f"no response for {SECONDS:.0f} s")) from empty
            if refused is not None:
                raise self._broken(refused)
            response = result.get_response()
            if response.outputs:
                yield _piece(result, response.id)
            if response.parameters["triton_final_response"].bool_param:
                return

    def close(self, cancel: bool = False) -> None:
        """End the stream; ``cancel`` lets go of what is at work."""
        with suppress(Exception):  # of a server that is gone
            self._client.stop_stream(cancel_requests=cancel)
        with suppress(Exception):
            self._client.close()

    def _tensor(self, name: str, values: np.ndarray, kind: str) -> Any:
        tensor = self._grpc.InferInput(name, list(values.shape), kind)
        tensor.set_data_from_numpy(values)
        return tensor

    def _broken(self, error: object) -> MachineError:
        return MachineError(f"{self._url}: {error}", "an answer", "ask again once the server is ready")


def _piece(result: Any, request: str) -> Piece:
    text, ids, finish, usage = (result.as_numpy(name) for name in (TEXT, IDS, FINISHED, USAGE))
    return Piece(
        request,
        "" if text is None else text[0].decode(),
        () if ids is None else tuple(int(token) for token in ids),
        None if finish is None else finish[0].decode(),
        None if usage is None else json.loads(usage[0]),
    )
