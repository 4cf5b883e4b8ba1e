"""The pages of the course, which explains the textbook chapter section by section and with the chapter's numbers.

In:  sections of the chapter, as help texts and findings name them.
Out: the pages that treat them, in the current language.
"""

import re

from hfgpt.base.language import current, listed

PAGES = ("1-data", "2-model", "3-optimizer", "4-schedule", "5-calculations", "6-tuning", "7-recipes", "8-experiments")


def folder() -> str:
    """Return the folder of the pages."""
    return f"docs/{current()}/course/"


def pages(sections: str) -> str:
    """Return the pages for sections such as "6.4, strategy 5; 3.1"."""
    parts = dict.fromkeys(int(part) for part in re.findall(r"\b([1-8])\.\d", sections))
    return listed(f"{folder()}{PAGES[part - 1]}.md" for part in parts)
