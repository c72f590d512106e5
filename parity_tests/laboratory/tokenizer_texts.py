"""Does a package's tokenizer give the published ids, whoever reads it?

    python -m parity_tests.laboratory.tokenizer_texts --count 10000

For every family: the published tokenizer (sentencepiece or tokenizers on the checkpoint's own files, added tokens taken
out as transformers takes them out) against the package's files as our runtime, the tokenizers library and transformers
(AutoTokenizer, PreTrainedTokenizerFast) read them. The texts are drawn: words of many scripts, emoji, white space, code,
numbers, marks whole and broken, any characters at all. One line a family; the exit code is 5 when an id differs.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from export.package.carried_settings import carried
from export.package.tokenizer_files import write_tokenizer
from export.package.tokenizer_probes import PROBES
from runtime_py import tokenizer
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

Encode = Callable[[str], list[int]]

DEMOS = Path(__file__).parents[2] / "export" / "demo" / "checkpoints"

LLAMA3, LLAMA3_MARKS = "minicpm-llama3-v", ("<unk>", "<image>", "</image>", "<slice>", "</slice>", "<|eot_id|>")
FAMILIES = ("awaker2.5-vl", "cogvlm2", LLAMA3, "minicpm-v", "omnilmm-12b", "wemm", "xverse-v")
"""Qwen2-VL's tokenizer is Awaker2.5-VL's."""

NO_CONFIG = {"awaker2.5-vl"}
"""The demo's vision MLP is 2.5 times as wide as its blocks, which transformers 5 refuses in a Qwen2-VL config."""

SCRIPTS = (
    (0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
    (0xE00, 0xE7F), (0x1100, 0x11FF), (0x2000, 0x206F), (0x2190, 0x22FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF), (0x1F300, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x2A6DF),
)  # fmt: skip
SPACES = (
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    " \n ",
    "\u00a0",
    "\u3000",
    "\u2003",
    "\u200b",
    "\u2028",
    "   \t  ",
    " " * 40,
)
CODE = (
    "{",
    "}",
    "();",
    "==",
    "->",
    "a[i]",
    "0x1F",
    "3.14",
    "1,000",
    "//",
    "/*",
    "$x^2$",
    "<b>",
    "&amp;",
    "\\n",
    "f'{x}'",
    "#",
)


def texts(random_: random.Random, count: int, marks: Sequence[str]) -> list[str]:
    """Drawn texts of up to some hundred characters, and one in fifty of some thousands."""
    parts: list[Callable[[], str]] = [
        lambda: _word(random_),
        lambda: _word(random_),
        lambda: random_.choice(SPACES),
        lambda: random_.choice(CODE),
        lambda: random_.choice(marks),
        lambda: _broken(random_.choice(marks), random_),
        lambda: _piece(random_.choice(PROBES), random_),
        lambda: chr(random_.choice([*range(1, 0xD800, 37), *range(0xE000, 0x110000, 4099)])),
        lambda: random_.choice(("a", "哈", "=", "😀", "\n", "ab")) * random_.randint(2, 60),
    ]
    return ["".join(random_.choice(parts)() for _ in range(_length(random_))) for _ in range(count)]


def _length(random_: random.Random) -> int:
    return random_.randint(200, 500) if random_.random() < 0.02 else random_.randint(0, 25)


def _word(random_: random.Random) -> str:
    first, last = random_.choice(SCRIPTS)
    return "".join(chr(random_.randint(first, last)) for _ in range(random_.randint(1, 8)))


def _broken(mark: str, random_: random.Random) -> str:
    at = random_.randint(0, len(mark))
    return random_.choice((mark[:at], mark[at:], mark[:at] + " " + mark[at:], mark[:at] + mark))


def _piece(text: str, random_: random.Random) -> str:
    start = random_.randint(0, len(text))
    return text[start : start + random_.randint(0, 40)]


def published_folder(family: str, scratch: Path) -> Path:
    """A folder with a family's published form of tokenizer, in small."""
    if family != LLAMA3:
        return DEMOS / family
    import tokenizers

    folder = scratch / "llama3"
    folder.mkdir(exist_ok=True)
    made = tokenizers.Tokenizer.from_file(str(DEMOS / "cogvlm2" / "tokenizer.json"))
    made.add_special_tokens(list(LLAMA3_MARKS))
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|eot_id|>", "unk_token": "<unk>"}))
    return folder


def package_folder(family: str, place: Path, scratch: Path) -> Path:
    """What a package holds of a checkpoint for those who open its tokenizer."""
    package = scratch / "package"
    package.mkdir()
    write_tokenizer(place, package)
    config = place / "config.json"
    if config.is_file() and family not in NO_CONFIG:
        (package / "config.json").write_bytes(carried(config.read_bytes(), config))
    return package


def published(place: Path) -> Encode:
    """The published tokenizer by the libraries alone."""
    if (place / "tokenizer.json").is_file():
        import tokenizers

        library = tokenizers.Tokenizer.from_file(str(place / "tokenizer.json"))
        library.no_truncation()
        library.no_padding()
        return lambda text: library.encode(text, add_special_tokens=False).ids
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(place / "tokenizer.model"))
    control = {model.id_to_piece(i): i for i in range(model.get_piece_size()) if model.is_control(i) or model.is_unknown(i)}
    rows = json.loads((place / "tokenizer_config.json").read_text()).get("added_tokens_decoder", {})
    whole = control | {row["content"]: int(index) for index, row in rows.items()}
    cut = re.compile("(" + "|".join(map(re.escape, sorted(whole, key=len, reverse=True))) + ")")

    def encode(text: str) -> list[int]:
        parts = [part for part in cut.split(text) if part]
        return [index for part in parts for index in ([whole[part]] if part in whole else model.encode(part))]

    return encode


def readers(package: Path) -> dict[str, Encode]:
    """Everybody who opens a package's tokenizer, by name."""
    import tokenizers
    import transformers

    plain = tokenizers.Tokenizer.from_file(str(package / "tokenizer.json"))
    auto = transformers.AutoTokenizer.from_pretrained(package, trust_remote_code=False)
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(package)
    return {
        "runtime_py": tokenizer.load(package).encode,
        "tokenizers": lambda text: plain.encode(text, add_special_tokens=False).ids,
        "AutoTokenizer": lambda text: list(auto(text, add_special_tokens=False).input_ids),
        "PreTrainedTokenizerFast": lambda text: list(fast(text, add_special_tokens=False).input_ids),
    }


def marks_of(package: Path) -> list[str]:
    """Texts of a package's added tokens."""
    return [row["content"] for row in json.loads((package / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]]


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Draw texts, and compare the ids that a package's tokenizer gives with the published ones.")
    made.add_argument("--count", type=int, default=10_000, metavar="N", help="texts a family; default 10000")
    made.add_argument("--family", choices=FAMILIES, action="append", help="one or more; all when left out")
    flags.seed(made, "equal seeds draw equal texts")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    unequal, seed = 0, flags.seed_number(options.seed)
    for family in options.family or FAMILIES:
        with tempfile.TemporaryDirectory() as home:
            place = published_folder(family, Path(home))
            package = package_folder(family, place, Path(home))
            asked = texts(random.Random(seed), options.count, marks_of(package))
            expected = list(map(published(place), asked))
            differ = {
                name: sum(encode(text) != ids for text, ids in zip(asked, expected, strict=True))
                for name, encode in readers(package).items()
            }
        unequal += sum(differ.values())
        counted = ", ".join(f"{name} {count}" for name, count in differ.items())
        console.out(f"{family}: {len(asked)} texts, {sum(map(len, expected))} ids; unequal texts: {counted}")
    return int(ExitCode.PARITY_FAILED if unequal else ExitCode.OK)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.tokenizer_texts", arguments)


if __name__ == "__main__":
    sys.exit(main())
