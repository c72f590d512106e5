"""Ask every model of this Triton repository its own sample, over HTTP and gRPC, whole and streamed.

    python3 smoke_client.py [HOST [HTTP_PORT [GRPC_PORT]]]

Needs nothing but Python for HTTP; gRPC needs tritonclient[grpc], and is left out without
it. Exit code 0 when every answer is the one recorded at export, where one is.
"""

import base64
import http.client
import json
import queue
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NEW_TOKENS = 16


class Failure(Exception):
    """Something is not as it should be."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


class Sample:
    """What a model is asked, and how its answer must begin."""

    def __init__(self, package: Path) -> None:
        value = json.loads((package / "selftest" / "sample.json").read_text(encoding="utf-8"))
        self.picture = (package / "selftest" / value["image"]).read_bytes()
        self.text = value["prompt"]
        expected = value.get("expected_ids", [])
        self.expected = expected[: value.get("agree", len(expected))]
        wanted = {"max_tokens": max(len(self.expected), NEW_TOKENS), "temperature": 0, "top_k": 0, "repetition_penalty": 1.0}
        self.sampling = json.dumps({**wanted, "ignore_eos": True})

    def check(self, way: str, ids: list, text: str) -> None:
        if ids[: len(self.expected)] != self.expected:
            raise Failure(f"{way} answers {ids}, not {self.expected}")
        compared = "" if self.expected else " (nothing recorded to compare with)"
        say(f"  {way}: {len(ids)} tokens, {text!r}{compared}")


def over_http(host: str, port: int, model: str, sample: Sample) -> None:
    body = {"text_input": sample.text, "image": [base64.b64encode(sample.picture).decode()]}
    body["sampling_parameters"] = sample.sampling
    whole = post(host, port, f"/v2/models/{model}/generate", body)
    if len(whole) != 1:
        raise Failure(f"generate gave {len(whole)} responses")
    sample.check("HTTP, whole", listed(whole[0]["token_ids"]), whole[0]["text_output"])
    pieces = post(host, port, f"/v2/models/{model}/generate_stream", {**body, "stream": True})
    ids = [token for piece in pieces for token in listed(piece.get("token_ids", []))]
    text = "".join(piece["text_output"] for piece in pieces)
    if text != whole[0]["text_output"]:
        raise Failure(f"the stream says {text!r}, the whole answer {whole[0]['text_output']!r}")
    sample.check("HTTP, streamed", ids, text)


def listed(value: object) -> list:
    """The numbers of an output; Triton writes a single one without a list."""
    return value if isinstance(value, list) else [value]


def post(host: str, port: int, path: str, body: dict) -> list:
    connection = http.client.HTTPConnection(host, port, timeout=600)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    if answer.status != 200:
        raise Failure(f"{path} answers {answer.status}: {content}")
    if path.endswith("_stream"):
        return [json.loads(line[6:]) for line in content.splitlines() if line.startswith("data: ")]
    return [json.loads(content)]


def over_grpc(host: str, port: int, model: str, sample: Sample) -> None:
    import numpy as np
    from tritonclient import grpc

    values = {
        "text_input": [sample.text.encode()],
        "image": [sample.picture],
        "sampling_parameters": [sample.sampling.encode()],
    }
    inputs = []
    for name, content in values.items():
        tensor = grpc.InferInput(name, [len(content)], "BYTES")
        tensor.set_data_from_numpy(np.array(content, dtype=np.object_))
        inputs.append(tensor)
    stream = grpc.InferInput("stream", [1], "BOOL")
    stream.set_data_from_numpy(np.array([True]))
    responses: queue.Queue = queue.Queue()
    client = grpc.InferenceServerClient(f"{host}:{port}")
    client.start_stream(callback=lambda result, error: responses.put((result, error)))
    client.async_stream_infer(model, [*inputs, stream], enable_empty_final_response=True)
    ids: list = []
    text = b""
    while True:
        result, error = responses.get(timeout=600)
        if error is not None:
            raise Failure(f"gRPC answers {error}")
        tokens, piece = result.as_numpy("token_ids"), result.as_numpy("text_output")
        ids += [] if tokens is None else tokens.tolist()
        text += b"" if piece is None else piece[0]
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    client.stop_stream()
    sample.check("gRPC, streamed", ids, text.decode())


def main() -> int:
    defaults = ("localhost", "8000", "8001")
    given = (*sys.argv[1:], *defaults[len(sys.argv) - 1 :])
    if len(given) != len(defaults) or given[0].startswith("-") or not (given[1] + given[2]).isdigit():
        say(__doc__)
        return 2
    host, http_port, grpc_port = given[0], int(given[1]), int(given[2])
    packages = sorted(HERE.glob("*/1/package"))
    if not packages:
        say(f"no model: {HERE} has no MODEL/1/package")
        return 1
    failed, left_out = 0, ""
    for package in packages:
        model = package.parents[1].name
        say(model)
        for name, way, port in (("HTTP", over_http, http_port), ("gRPC", over_grpc, grpc_port)):
            try:
                way(host, port, model, Sample(package))
            except ImportError as error:  # nothing but gRPC needs what may be missing
                left_out = f"; {name} was not run ({error}): pip install 'tritonclient[grpc]'"
            except Exception as error:  # of one way to one model: the others are tried
                say(f"  {name} FAILED: {error if isinstance(error, Failure) else f'{type(error).__name__}: {error}'}")
                failed += 1
    say(("all right" if not failed else f"{failed} failed") + left_out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
