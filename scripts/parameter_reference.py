"""Write docs/en/parameters.md and docs/zh/parameters.md from the fields of hfgpt/config/fields.py.

python scripts/parameter_reference.py [FOLDER]    the folder that holds en/ and zh/; by default docs/
"""

import re
from pathlib import Path

from hfgpt import config
from hfgpt.base import course, shell
from hfgpt.base.command import Reader
from hfgpt.base.language import LANGUAGES, _, using
from hfgpt.base.terminal import say


def reference() -> str:
    """Return the page in the current language: a table for each group, a row for each field."""
    parts = [
        "# " + _("Reference of the parameters"),
        _(
            "These are the keys of a recipe; on the command line each is `--name=value`, and a key that is true or "
            "false is also `--flag` and `--no_flag`. The names are nanoGPT's and the chapter's. The command line "
            "overrides the recipe, and the recipe overrides the defaults. `python scripts/parameter_reference.py` "
            "writes this page from `hfgpt/config/fields.py`."
        ),
    ]
    head = _("| name | default | takes | meaning |") + "\n|---|---|---|---|\n"
    for group, title in config.GROUPS.items():
        keys = [key for key in config.Config.model_fields if config.group_of(key) == group]
        parts += [f"## {linked(_(title))}", head + "".join(map(row, keys))]
    parts += [
        "## " + _("Other names"),
        _(
            "nanoGPT's `decay_lr` (false: `lr_schedule: constant`), `wandb_log` (true: `report_to: wandb`) and "
            "`wandb_project` (`project`) are understood. Any other name below is refused with a message that says "
            "what to use instead:"
        ),
        _("| name | use instead |")
        + "\n|---|---|\n"
        + "".join(f"| `{name}` | {_(instead)} |\n" for name, instead in config.INSTEAD.items()),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def linked(title: str) -> str:
    """Link the chapter's parts and sections in a heading to the pages of the course."""
    return re.sub(r"\b([1-8])(\.\d)?\b", lambda part: f"[{part[0]}](course/{course.PAGES[int(part[1]) - 1]}.md)", title)


def row(key: str) -> str:
    """Return a field's row of the table."""
    default = config.default_of(key).replace("<", "&lt;")
    description = _(str(config.Config.model_fields[key].description))
    return f"| `{key}` | {default} | {config.allowed(key)} | {description} |\n"


def main(words: list[str]) -> None:
    reader = Reader(
        "parameter_reference", _("Write docs/en/parameters.md and docs/zh/parameters.md."), [("", _("both"))]
    )
    reader.argument("folder", _("FOLDER"), _("the folder that holds en/ and zh/; by default docs/"), required=False)
    folder = Path(reader.read(words).folder or Path(__file__).parent.parent / "docs")
    for language in LANGUAGES:
        with using(language):
            page = folder / language / "parameters.md"
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(reference(), encoding="utf-8")
        say(page)


if __name__ == "__main__":
    shell.run(main)
