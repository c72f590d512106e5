"""The process that tries one schema: reads it from stdin, says that it begins, and that it has ended, within bounds.

A program of its own, started by path: what it imports counts in every request whose schema is new.
"""

import signal
import sys
from pathlib import Path

PROCESSOR_SECONDS = 1.0
"""Of the processor; schemas that people write take a hundredth of it."""

FURTHER_BYTES = 128 << 20
"""Of address space, beyond what the libraries take; schemas that people write take less than a tenth of it."""

BEGUN, ENDED = "begun", "ended"

STATM = Path("/proc/self/statm")


def bound() -> None:
    """End this process at its bounds, as far as the system has them."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
    if STATM.exists():  # Linux
        import resource

        now = int(STATM.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + FURTHER_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Bytes:
    """The smallest tokenizer: a token for each byte, and one that ends."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([each]) for each in range(256)), b"")

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


def main() -> None:
    import llguidance

    words = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))
    schema = sys.stdin.read()
    sys.stdout.write(f"{BEGUN}\n")
    sys.stdout.flush()
    bound()
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        llguidance.LLMatcher(words, grammar)
    except ValueError:  # no schema that it knows: whoever asked finds the same, at once
        pass
    sys.stdout.write(f"{ENDED}\n")


if __name__ == "__main__":
    main()
