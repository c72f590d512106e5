"""The flags of the runtime's verbs chat, info, verify, bench and devices."""

from __future__ import annotations

from pathlib import Path

from runtime_py.command import flags
from runtime_py.command.parser import Parser


def chat_parser(prog: str) -> Parser:
    """The flags of ``chat``."""
    made = Parser(prog, "Ask a package about pictures: one --prompt, or a conversation from a terminal or pipe.")
    flags.package(made, what=flags.FOLDER_OR_NAME)
    made.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; may be repeated")
    made.add_argument("--upright", action="store_true", help="turn photographs as EXIF says; the published code does not")
    made.add_argument("--prompt", metavar="TEXT", help="one question; without it, turns are read (/help lists commands)")
    answer = made.add_argument_group("the answer")
    answer.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens of an answer at most")
    answer.add_argument("--temperature", type=float, metavar="T", help="0 for the likeliest token each time")
    answer.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest; 0 for all")
    answer.add_argument("--top-p", type=float, metavar="P", help="choose among the likeliest that reach P together")
    answer.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1 discourages repeated tokens")
    flags.seed(answer, "equal seeds give equal answers", default=None)
    answer.add_argument(
        "--prompt-lookup",
        type=flags.whole_number(0),
        nargs="?",
        const=7,
        default=0,
        metavar="N",
        help="guess up to N tokens (alone: 7) from what prompt and answer said before, and check them in one call;"
        " temperature 0 alone",
    )
    flags.running(made)
    made.add_argument("--selftest", action="store_true", help="first check the package's own sample answer")
    flags.json_result(made, "one JSON object a turn on stdout")
    flags.talk(made)
    return made


def info_parser(prog: str) -> Parser:
    """The flags of ``info``."""
    made = Parser(prog, "What a package holds, from its manifest alone.")
    flags.package(made, what=flags.FOLDER_OR_NAME)
    flags.json_result(made)
    flags.talk(made)
    return made


def verify_parser(prog: str) -> Parser:
    """The flags of ``verify``."""
    made = Parser(prog, "Compare every file with the manifest, then run the package's self-test.")
    flags.package(made, what=flags.FOLDER_OR_NAME)
    made.add_argument("--files-only", action="store_true", help="compare files, do not run anything")
    flags.running(made)
    flags.json_result(made)
    flags.talk(made)
    return made


def bench_parser(prog: str) -> Parser:
    """The flags of ``bench``."""
    made = Parser(prog, "Tokens per second, first-token time, load time and memory of a package, or a server under load.")
    what = made.add_mutually_exclusive_group(required=True)
    flags.package(what, required=False, what=flags.FOLDER_OR_NAME)
    what.add_argument("--serve", metavar="URL", help="a running server, such as http://127.0.0.1:8000")
    made.add_argument("--runs", type=int, default=5, metavar="N", help="interleaved runs; medians are shown; default 5")
    made.add_argument(
        "--prompt-tokens", type=int, default=128, metavar="N", help="prompt of the prefill figure; default 128"
    )
    made.add_argument("--new-tokens", type=int, default=32, metavar="N", help="tokens of the decode figure; default 32")
    made.add_argument("--image", metavar="FILE", help="picture of the first-token figure; a drawn one without it")
    peers = made.add_argument_group("beside other runtimes")
    peers.add_argument(
        "--peers",
        metavar="LIST",
        help="measure these too, in turns: llama.cpp, llama.cpp-flash, onnxruntime-genai, openvino-genai, pytorch; all for"
        " every one, none for the package alone",
    )
    peers.add_argument("--peer-python", metavar="FILE", help="the interpreter that has them; this one without it")
    peers.add_argument("--lengths", default="64,1024", metavar="LIST", help="positions before decoding; default 64,1024")
    peers.add_argument("--chunk", type=flags.whole_number(1), default=0, metavar="N", help="tokens of a prompt in one call")
    peers.add_argument("--plot", type=flags.file_to_write, metavar="FILE", help="write bars as SVG here")
    peers.add_argument("--history", type=flags.file_to_write, metavar="FILE", help="add the figures here, a line of JSON")
    peers.add_argument("--label", default="", metavar="TEXT", help="what --history calls them, such as a commit")
    peers.add_argument("--against", type=Path, metavar="FILE", help="figures of --json, of the same machine: say the ratios")
    server = made.add_argument_group("--serve")
    server.add_argument("--concurrency", default="1,4,8", metavar="LIST", help="requests in flight; default 1,4,8")
    server.add_argument("--requests", type=int, default=32, metavar="N", help="requests of each; default 32")
    server.add_argument("--api-key-file", type=Path, metavar="FILE", help="its first line is sent as the key")
    flags.running(made)
    flags.json_result(made)
    flags.talk(made)
    return made


def devices_parser(prog: str) -> Parser:
    """The flags of ``devices``."""
    made = Parser(prog, "What this machine can run packages with: backends, and ONNX Runtime's providers.")
    flags.json_result(made)
    flags.talk(made)
    return made
