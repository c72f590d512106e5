"""Hostile requests that only Triton can be sent: tensors that are none, and calls of gRPC."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from parity_tests.laboratory.hostile_requests.attempt import CLOSED, HANGS, Attempt
from parity_tests.laboratory.hostile_requests.wires import Wire
from runtime_py.triton.question import IMAGE, INPUTS, MESSAGES, SAMPLING, STREAM, TEXT

SERVICE = "/inference.GRPCInferenceService/"
FATAL = "JSON too deep for Triton"
ANSWERED, REFUSED = "answered", "refused"
"""Of a stream's responses: none is an error, or one is."""

HUGE = (-1, 0, 1, 2**31, 2**62, 10**12)


@dataclass(frozen=True)
class Call:
    """One call of gRPC.

    Attributes:
        method: of Triton's service.
        body: the bytes of its message.
        right: `ANSWERED`, `REFUSED`, and names of status codes.
    """

    kind: str
    method: str
    body: bytes
    right: frozenset[str]

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """What is told of it where it was not right."""
        return (f"{self.method} ".encode() + self.body,)


def call_outcome(call: Call, address: tuple[str, int], seconds: float) -> str:
    """`ANSWERED`, `REFUSED`, the name of the status code, or `HANGS`."""
    import grpc
    from tritonclient.grpc import service_pb2

    with grpc.insecure_channel("{}:{}".format(*address)) as channel:
        parse = service_pb2.ModelStreamInferResponse.FromString
        ask = channel.stream_stream(f"{SERVICE}{call.method}", request_serializer=bytes, response_deserializer=parse)
        try:
            errors = [response.error_message for response in ask(iter([call.body]), timeout=seconds)]
        except grpc.RpcError as error:
            code = error.code().name  # type: ignore[attr-defined]
            return HANGS if code == "DEADLINE_EXCEEDED" else code
    return REFUSED if any(errors) else ANSWERED


class TritonKinds:
    """What can be made for a model of this name."""

    def __init__(self, name: str, draw: random.Random, wire: Wire) -> None:
        self.name, self.draw, self.wire = name, draw, wire

    @property
    def kinds(self) -> Mapping[str, Callable[[], Attempt | Call]]:
        return {
            "tensors that are none": self.tensors,
            "other interfaces": self.other,
            "calls of gRPC": self.call,
            FATAL: self.too_deep,
        }

    def _value(self) -> Any:
        values: tuple[Any, ...] = (None, True, -1, 1e300, 10**30, "", "a" * 5000, "\u0000", [], {}, [[[]]], ["a"] * 3000)
        return self.draw.choice((*values, [None, 1, "a"], {"a": [1]}, ["\ud800"], "[]", "{}", '[{"role": "user"}]'))

    def tensors(self) -> Attempt:
        """The fields of a question with any values."""
        names = (*INPUTS, "id", "parameters", "text_output", "unknown", "")
        asked = {self.draw.choice(names): self._value() for _ in range(self.draw.randint(1, 4))}
        if self.draw.random() < 0.5:
            asked[TEXT] = "Hello"
        right = frozenset({"200", "400"})
        body = json.dumps(asked).encode()
        return Attempt("tensors that are none", [self.wire.post(body, streamed=self.draw.random() < 0.5)], right)

    def too_deep(self) -> Attempt:
        """What ends Triton 2.51 itself (`wires.DEEPEST`)."""
        return Attempt(FATAL, [self.wire.post(b"[" * 200_000)])

    def other(self) -> Attempt:
        """Triton's tensor interface over HTTP, whose sizes and shapes are not those of its data."""
        tensor = {
            "name": self.draw.choice((*INPUTS, "unknown")),
            "datatype": self.draw.choice(("BYTES", "BOOL", "FP32", "X")),
        }
        shape = [self.draw.choice(HUGE) for _ in range(self.draw.choice((0, 1, 1, 2, 100)))]
        binary = {"parameters": {"binary_data_size": self.draw.choice(HUGE)}}
        data = {"data": self.draw.choice((["a"], [], [1], "a", [[["a"]]], [None]))}
        body = json.dumps({"inputs": [{**tensor, "shape": shape, **self.draw.choice((binary, data))}]}).encode()
        length = self.draw.choice((len(body), 0, 3, -1, 10**12))
        head = f"Inference-Header-Content-Length: {length}\r\n" if self.draw.random() < 0.5 else ""
        lines = f"POST /v2/models/{self.name}/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}"
        content = body + self.draw.randbytes(self.draw.choice((0, 4, 300)))
        sent = f"{lines}Content-Length: {len(content)}\r\n\r\n".encode() + content
        return Attempt("other interfaces", [sent], frozenset({"400", "501", CLOSED}))

    def call(self) -> Call:
        """A message that is none, or tensors whose shapes, types and contents are at odds."""
        from tritonclient.grpc import service_pb2

        kind, codes = "calls of gRPC", frozenset({ANSWERED, REFUSED, "INVALID_ARGUMENT"})
        if self.draw.random() < 0.2:
            garbage = self.draw.randbytes(self.draw.randint(1, 3000))
            return Call(kind, "ModelStreamInfer", garbage, codes | {"INTERNAL", "UNKNOWN", "UNIMPLEMENTED"})
        asked = service_pb2.ModelInferRequest(model_name=self.draw.choice((self.name,) * 6 + ("", "unknown", "../a")))
        asked.model_version, asked.id = (
            self.draw.choice(("", "", "", "1", "99", "-1", "x" * 3000)),
            "a" * self.draw.choice((0, 9)),
        )
        for name in self.draw.choices((TEXT, TEXT, IMAGE, MESSAGES, SAMPLING, STREAM, "unknown"), k=self.draw.randint(0, 4)):
            tensor = asked.inputs.add(
                name=name, datatype=self.draw.choice(("BYTES", "BYTES", "BYTES", "BOOL", "INT64", "X"))
            )
            tensor.shape.extend(self.draw.choice(HUGE) for _ in range(self.draw.choice((0, 1, 1, 1, 3))))
            asked.raw_input_contents.append(self.content())
        if self.draw.random() < 0.2:
            asked.outputs.add(name=self.draw.choice(("text_output", "unknown", "")))
        return Call(kind, "ModelStreamInfer", asked.SerializeToString(), codes | {"NOT_FOUND", "UNAVAILABLE"})

    def content(self) -> bytes:
        """Strings as Triton has them, each behind its length, or what looks like them."""
        text = self.draw.choice(
            (b"Hello", b"", b"{", b"[]", b"\xff\xfe", b"\0" * 100, self.draw.randbytes(200), b"[" * 100_000)
        )
        length = self.draw.choice((len(text),) * 4 + (0, 1, 2**31, 2**32 - 1))
        return length.to_bytes(4, "little") + text + self.draw.choice((b"", b"", b"", b"\1", b"\xff" * 4))
