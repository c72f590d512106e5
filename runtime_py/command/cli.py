"""The runtime's verbs: chat, info, verify, bench. Answers go to stdout, talk and errors to stderr.

Nothing heavy is imported before the arguments are understood.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime_py.backends.registry import runtime_backends
from runtime_py.errors import EdgeproofError, ExitCode


def parser() -> argparse.ArgumentParser:
    """All verbs and flags."""
    main_parser = argparse.ArgumentParser(prog="python -m runtime_py", description="Run packages that export wrote.")
    main_parser.add_argument("-v", "--verbose", action="store_true", help="more talk on stderr")
    main_parser.add_argument("-q", "--quiet", action="store_true", help="errors only")
    verbs = main_parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    chat = verbs.add_parser("chat", help="ask about a picture; without --prompt a conversation from stdin")
    _package_flags(chat)
    _running_flags(chat)
    chat.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; may be repeated")
    chat.add_argument("--prompt", help="one question; without it, turns are read from stdin (/help lists commands)")
    chat.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens of an answer at most")
    chat.add_argument("--temperature", type=float, metavar="T", help="0 for the likeliest token each time")
    chat.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest; 0 for all")
    chat.add_argument("--top-p", type=float, metavar="P", help="choose among the likeliest that reach P together")
    chat.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1 discourages repeated tokens")
    chat.add_argument("--seed", type=int, metavar="S", help="equal seeds give equal answers")
    chat.add_argument("--selftest", action="store_true", help="first check the package's own sample answer")
    info = verbs.add_parser("info", help="what a package holds")
    _package_flags(info)
    verify = verbs.add_parser("verify", help="compare every file with the manifest, then run the package's self-test")
    _package_flags(verify)
    _running_flags(verify)
    verify.add_argument("--files-only", action="store_true", help="compare files, do not run anything")
    bench = verbs.add_parser("bench", help="tokens per second, first-token time, load time, memory")
    _package_flags(bench)
    _running_flags(bench)
    bench.add_argument("--runs", type=int, default=5, metavar="N", help="interleaved runs; medians are shown (5)")
    bench.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="prompt of the prefill figure (128)")
    bench.add_argument("--new-tokens", type=int, default=32, metavar="N", help="tokens of the decode figure (32)")
    bench.add_argument("--image", metavar="FILE", help="picture of the first-token figure; a drawn one without it")
    return main_parser


def _package_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--package", "-p", required=True, type=Path, metavar="DIR", help="folder that export wrote")
    verb.add_argument("--json", action="store_true", help="print one JSON object (chat: one a turn)")


def _running_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--backend", choices=tuple(runtime_backends()), help="instead of the package's own choice")
    verb.add_argument("--threads", type=int, default=0, metavar="N", help="computing threads; 0 leaves it to the backend")
    verb.add_argument("--provider", action="append", metavar="NAME", help="ONNX Runtime provider, best first; repeatable")
    verb.add_argument(
        "--verify", choices=("full", "size", "off"), default="full", help="check files before loading (full: SHA-256)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the process's exit code."""
    options = parser().parse_args(arguments)
    level = logging.DEBUG if options.verbose else logging.ERROR if options.quiet else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(message)s", stream=sys.stderr)
    verbs: dict[str, Callable[[argparse.Namespace], int]] = {
        "chat": _chat,
        "info": _info,
        "verify": _verify,
        "bench": _bench,
    }
    try:
        return verbs[options.verb](options)
    except EdgeproofError as error:
        sys.stderr.write(f"error: {error}\n")
        return int(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)


def _show(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _emit(value: object) -> None:
    _show(json.dumps(value, ensure_ascii=False))


def _chat(options: argparse.Namespace) -> int:
    from runtime_py.command.chat import converse
    from runtime_py.generation.generate import Overrides
    from runtime_py.model import load

    overrides = Overrides(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    )
    with load(
        options.package, options.backend, options.verify, options.threads, options.provider, options.selftest
    ) as model:
        return converse(model, options.image, options.prompt, overrides, options.json, sys.stdin, sys.stdout)


def _info(options: argparse.Namespace) -> int:
    from runtime_py.command.info import describe, lines
    from runtime_py.package import read

    facts = describe(read(options.package))
    if options.json:
        _emit(facts)
    else:
        _show("\n".join(lines(facts)))
    return ExitCode.OK


def _verify(options: argparse.Namespace) -> int:
    from runtime_py.package import read, verify

    package = read(options.package)
    verify(package, options.verify)
    result: dict[str, object] = {"files": len(package.files), "bytes": package.size, "selftest": "not run"}
    if not options.files_only:
        from runtime_py.model import load
        from runtime_py.selftest import require

        with load(options.package, options.backend, "off", options.threads, options.provider) as model:
            outcome = require(model)
        if outcome is None:
            result["selftest"] = "the package carries no sample"
        else:
            said = "equal to the reference" if outcome.passed else "ran; no reference answer in the package"
            result |= {"selftest": said, "tokens": list(outcome.ids), "equal": outcome.equal, "text": outcome.text}
    if options.json:
        _emit(result)
    else:
        _show(f"{result['files']} files, {result['bytes']:,} bytes: as in the manifest")
        _show(f"self-test: {result['selftest']}" + (f": {result['text']!r}" if "text" in result else ""))
    return ExitCode.OK


def _bench(options: argparse.Namespace) -> int:
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
        )
    )
    if options.json:
        _emit(figures)
    else:
        _show("\n".join(lines(figures)))
    return ExitCode.OK
