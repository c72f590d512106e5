"""Texts that two forms of one tokenizer must give equal ids: scripts, emoji, white space, code, marks, and all of it."""

from __future__ import annotations

from collections.abc import Iterable

PROBES = (
    "What colour is the ball, and where does it lie?",
    "图片里有几个红色的圆形？请用一句话回答。",
    "  two  spaces,\ttabs\n\nand lines \n end ",
    " \n \n\n\t\t  \r\n   \u00a0\u2003\u3000 x" + " " * 70 + "y" + "\n" * 40 + "\t" * 20,
    "3.14159 1,024 ２０２４年 0x7f 1000000000000 ½ ² Ⅷ",
    "naïve café — “quotes” … €5 ½ ﬁ e\u0301 \u1e9b\u0323",
    "😀 🇩🇪 👩🏼‍🚀 ❤️ 汉字😀混排 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 👨‍👩‍👧‍👦",
    "Привет мир, こんにちは, 안녕, مرحبا, हिन्दी, שלום, ไทย, Ελληνικά, ქართული, አማርኛ, தமிழ்",
    "<image></image><box>1 2 3 4</box><ref>x</ref><s></s><unk><|im_start|>user<|im_end|><|endoftext|>",
    "<用户>hello<AI>",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; } // done\r\n",
    'def f(x: int) -> str:\n\treturn f"{x!r:>{8}}"\n\n\nSELECT * FROM t WHERE a<>b;\n#include <stdio.h>\n',
    "$\\frac{a_1}{b^2}$ ~/.x && y || z",
    "don't I'LL we've O'Neill's https://example.org/a?b=c&d=%20#e user@example.org CamelCaseHTTPServer snake_case",
    "\u2581 literal \u0000 zero \u200b width \ufeff mark \u202e turned \U0001f9ff \U0010fffd \u0085 \u2028",
    "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈",
    "",
)


def probes(marks: Iterable[str]) -> list[str]:
    """`PROBES`, the marks of a tokenizer in and beside words, and one long text of everything.

    Args:
        marks: texts of its added tokens.
    """
    listed = list(marks)
    beside = [form for mark in listed for form in (mark, f"a{mark}b", f" {mark} ", f"\n{mark}\n{mark}")]
    long = "\n".join([*PROBES, *listed[:200], *reversed(PROBES)])
    return [*PROBES, *beside, long, f" {long} {long}"]
