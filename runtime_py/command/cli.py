"""The runtime's verbs: chat, info, verify, bench, devices, serve. Answers go to stdout, talk and errors to stderr.

Nothing heavy is imported before the arguments are understood.
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, Verb, execute
from runtime_py.command.verb_parsers import bench_parser, chat_parser, devices_parser, info_parser, verify_parser
from runtime_py.errors import ExitCode, MachineError, UsageError

if TYPE_CHECKING:
    from runtime_py.model import Model
    from runtime_py.package import Depth, Package

PROG = "python -m runtime_py"


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Run one verb; returns the process's exit code."""
    return execute(COMMAND, prog, arguments)


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
