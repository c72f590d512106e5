"""The runtime's verbs: chat, info, verify, bench, devices, serve. Answers go to stdout, talk and errors to stderr.

Nothing heavy is imported before the arguments are understood.
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, Verb, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, MachineError, UsageError

if TYPE_CHECKING:
    from runtime_py.model import Model
    from runtime_py.package import Depth, Package

PROG = "python -m runtime_py"


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Run one verb; returns the process's exit code."""
    return execute(COMMAND, prog, arguments)


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
    peers.add_argument("--plot", type=Path, metavar="FILE", help="write bars as SVG here")
    peers.add_argument("--history", type=Path, metavar="FILE", help="add the figures here, a line of JSON")
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


def _load(options: argparse.Namespace, verify: Depth, selftest: bool = False, upright: bool = False) -> Model:
    from runtime_py.model import load

    chosen = (options.backend, verify, options.threads, options.provider)
    return load(options.package, *chosen, selftest, options.trust, upright)


def _chat(options: argparse.Namespace) -> int:
    from runtime_py.command.chat import converse
    from runtime_py.generation.generate import Overrides

    overrides = Overrides(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        seed=None if options.seed is None else flags.seed_number(options.seed),
        prompt_lookup=options.prompt_lookup,
    )
    with _load(options, options.verify, options.selftest, options.upright) as model:
        _remember(options, model.package)
        return converse(
            model, options.image, options.prompt, overrides, options.json, sys.stdin or io.StringIO(), sys.stdout
        )


def _info(options: argparse.Namespace) -> int:
    from runtime_py.command.info import describe, lines
    from runtime_py.hub.download import manifest_folder
    from runtime_py.package import read

    facts = describe(read(manifest_folder(options.package)))
    if options.json:
        console.out_json(facts)
    else:
        console.out("\n".join(lines(facts)))
    return ExitCode.OK


def _verify(options: argparse.Namespace) -> int:
    from runtime_py.hub.download import package_folder
    from runtime_py.package import read, trust, verify

    options.package = package_folder(options.package)
    package = read(options.package)
    if isinstance(options.trust, str):
        trust.check(package, options.trust)
    verify(package, options.verify)
    result: dict[str, object] = {"files": len(package.files), "bytes": package.size, "selftest": "not run"}
    result |= {"manifest": trust.ALGORITHM + package.fingerprint, "code": trust.code_files(package.manifest)}
    code = trust.runs_code(package, options.backend)
    if code and not options.trust and trust.standing(package) is not trust.Standing.TRUSTED:
        result["selftest"] = f"not run: the package brings code and is {trust.standing(package)}; --trust runs it"
    elif not options.files_only:
        result |= _selftest(options)
    _remember(options, package)
    if options.json:
        console.out_json(result)
    else:
        console.out(f"{result['files']} files, {result['bytes']:,} bytes: as in the manifest ({result['manifest']})")
        for path in trust.code_files(package.manifest):
            console.out(f"code: {path}")
        console.out(f"self-test: {result['selftest']}" + (f": {result['text']!r}" if "text" in result else ""))
    return ExitCode.OK


def _selftest(options: argparse.Namespace) -> dict[str, object]:
    from runtime_py.package.selftest import require

    with _load(options, "off") as model:
        outcome = require(model)
    if outcome is None:
        return {"selftest": "the package carries no sample"}
    said = "equal to the reference" if outcome.passed else "ran; no reference answer in the package"
    return {"selftest": said, "tokens": list(outcome.ids), "equal": outcome.equal, "text": outcome.text}


def _remember(options: argparse.Namespace, package: Package) -> None:
    """Enter a package that the user trusts in the trust file, once its files were compared."""
    from runtime_py.package import trust

    if not options.trust or options.verify != "full":
        return
    try:
        path = trust.remember(package)
    except OSError as error:
        raise MachineError(
            f"{trust.trust_file()} cannot be written: {error.strerror or error}",
            "a file that remembers trusted packages",
            f"set {trust.VARIABLE} to a path that can be written",
        ) from error
    console.say(f"trusted from now on: {trust.ALGORITHM}{package.fingerprint} ({path})")


def _bench(options: argparse.Namespace) -> int:
    if options.serve is not None:
        return _bench_server(options)
    if options.peers is not None:
        from runtime_py.command.bench_peers import run

        return run(options)
    from runtime_py.command.bench import Request, lines, measure

    figures = measure(
        Request(
            folder=options.package,
            backend=options.backend,
            threads=options.threads,
            providers=tuple(options.provider or ()),
            verify=options.verify,
            runs=options.runs,
            prompt_tokens=options.prompt_tokens,
            new_tokens=options.new_tokens,
            image=options.image,
            trust=options.trust,
        )
    )
    if options.json:
        console.out_json(figures)
    else:
        console.out("\n".join(lines(figures)))
    return ExitCode.OK


def _bench_server(options: argparse.Namespace) -> int:
    from runtime_py.command.bench_server import Load, lines, measure

    try:
        concurrency = tuple(int(count) for count in options.concurrency.split(","))
    except ValueError as error:
        raise UsageError(f"--concurrency {options.concurrency}", "numbers such as 1,4,8", "correct the list") from error
    keys = flags.keys(options.api_key_file)
    figures = measure(Load(options.serve, keys[0] if keys else None, concurrency, options.requests, options.new_tokens))
    if options.json:
        console.out_json(figures)
    else:
        console.out("\n".join(lines(figures)))
    return ExitCode.OK


def _devices(options: argparse.Namespace) -> int:
    from runtime_py.command.devices import as_json, lines, runners

    listed = runners()
    if options.json:
        console.out_json(as_json(listed))
    else:
        console.out("\n".join(lines(listed)))
    return ExitCode.OK


CHAT = Command(chat_parser, _chat, level=logging.WARNING)
INFO = Command(info_parser, _info, level=logging.WARNING)
VERIFY = Command(verify_parser, _verify, level=logging.WARNING)
BENCH = Command(bench_parser, _bench, level=logging.WARNING)

DEVICES = Command(devices_parser, _devices, level=logging.ERROR)


def _serve() -> Command:
    from runtime_py.command.serve import COMMAND as serve

    return serve


VERBS = (
    Verb("chat", "ask a package about a picture", lambda: CHAT),
    Verb("info", "say what a package holds", lambda: INFO),
    Verb("verify", "compare a package's files with its manifest and run its self-test", lambda: VERIFY),
    Verb("bench", "measure tokens per second, first-token time and memory of a package", lambda: BENCH),
    Verb("devices", "say what this machine can run packages with", lambda: DEVICES),
    Verb("serve", "answer OpenAI's chat interface over HTTP, many requests at a time", _serve),
)

COMMAND = Command(summary="Run packages that export wrote.", verbs=VERBS)
