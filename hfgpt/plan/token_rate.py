"""The characters of a token, estimated from the script of a text and the size of the vocabulary.

In:  the share of Chinese, Japanese and Korean characters in a text, and the entries of a byte-level BPE vocabulary.
Out: characters per token.

A character of these scripts is three bytes, and few of them make a word, so that a text has two to four times the
tokens of an English one. The rates were fitted on tokenizers of 512 to 16,384 entries, each trained on the text itself:
within 12% for two novels, two books on programming and C code, of which 0 to 96% was Chinese; within 25% for Perl code.
A text that is short for its vocabulary has fewer tokens, since the vocabulary holds much of it.
"""

import math

FIRST_WIDE = "\u2e80"  # the Chinese, Japanese and Korean characters, and their punctuation, begin here
GPT2_ENTRIES, ADDED = 50257, 100  # the latter: fewer entries than this may have been added to it

# Characters per token of a vocabulary of 512 entries, and more per doubling, up to the largest that was measured.
WIDE, WIDE_DOUBLED = 0.70, 0.18
PLAIN, PLAIN_DOUBLED = 2.1, 0.40
SMALLEST, LARGEST = 512, 16384

# GPT-2's own tokenizer, trained on English web pages, measured on two novels and a book: 0.45 to 0.47, 3.5 to 3.7.
GPT2_WIDE, GPT2_PLAIN = 0.46, 3.6


def share_wide(text: str) -> float:
    """Return the share of Chinese, Japanese and Korean characters, counted in about LOOKED_AT characters."""
    looked_at = text[:: max(1, len(text) // LOOKED_AT)]
    return sum(character >= FIRST_WIDE for character in looked_at) / max(1, len(looked_at))


LOOKED_AT = 100_000


def characters_per_token(wide: float, entries: int) -> float:
    """Return the characters of a token, on average.

    Args:
        wide: the share of Chinese, Japanese and Korean characters in the text.
        entries: of the vocabulary; it is GPT-2's if it is as large, and trained on this text otherwise.
    """
    if GPT2_ENTRIES <= entries < GPT2_ENTRIES + ADDED:
        return 1 / (wide / GPT2_WIDE + (1 - wide) / GPT2_PLAIN)
    # Both scripts compete for the entries, by their bytes.
    bytes_wide = 3 * wide / (1 + 2 * wide)
    each_wide = max(1 / 3, WIDE + WIDE_DOUBLED * _doublings(entries, bytes_wide))
    each_plain = max(1.0, PLAIN + PLAIN_DOUBLED * _doublings(entries, 1 - bytes_wide))
    return 1 / (wide / each_wide + (1 - wide) / each_plain)


def _doublings(entries: int, share: float) -> float:
    return math.log2(max(1.0, min(entries, LARGEST) * share) / SMALLEST)
