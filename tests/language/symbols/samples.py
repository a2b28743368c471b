"""Text of many scripts."""

# ruff: noqa: RUF001 - letters that look alike are the point

from hypothesis import strategies as st

SAMPLE = (
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind. "
    "Съешь же ещё этих мягких французских булок. Καλημέρα κόσμε! 日本語の文章です。"
    "مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก 안녕하세요 שלום עולם\r\n\tTwo  lines.\n"
)
FRAGMENTS = (
    *SAMPLE.split(" "),
    *(
        " ",
        "  ",
        "\t",
        "\r\n",
        "\n",
        "\r",
        "\x00",
        "\ufeff",
        "\u2028",
        "\u3000",
        "\u200d",
        "\u0600",
    ),
    *(
        "👩🏽\u200d🚀",
        "🏳️\u200d🌈",
        "🇩🇪🇫🇷",
        "1️⃣",
        "e\u0301",
        "\u0301",
        "a\u0323\u0307\u0301",
        "각",
        "क्षि",
    ),
    *(
        "\u202e",
        "don’t",
        "3.14",
        "1,000",
        "x_y",
        "İstanbul",
        "ﬁ",
        "\U0010ffff",
        "𝔘𝔫𝔦",
        "...",
        "—",
        "<|end|>",
    ),
)


def texts(size=40):
    """Text of every script, whole words and stray characters mixed, without lone surrogates."""
    anything = st.characters(exclude_categories=["Cs"])
    return st.lists(st.sampled_from(FRAGMENTS) | anything, max_size=size).map("".join)
