"""Write docs/parameters.md from the fields of hfgpt/config/fields.py, where each is declared with its meaning.

python scripts/parameter_reference.py [FILE]
"""

import sys
from pathlib import Path

from hfgpt import config
from hfgpt.base import shell

HEAD = """\
# Parameters

What a recipe may say, and the command line as `--name=value` (`--flag`, `--no_flag` for true and false). The names are
nanoGPT's and the chapter's. Defaults < recipe < command line. Made by `python scripts/parameter_reference.py` from
`hfgpt/config/fields.py`.
"""
OTHER_NAMES = """\
## Other names

nanoGPT's `decay_lr` (false: `lr_schedule: constant`), `wandb_log` (true: `report_to: wandb`) and `wandb_project`
(`project`) are understood. These are answered with what to use instead:

| name | instead |
|---|---|
"""


def reference() -> str:
    """The page: a table a group, a row a field."""
    parts = [HEAD]
    for group, title in config.GROUPS.items():
        keys = [key for key in config.Config.model_fields if config.group_of(key) == group]
        rows = [
            f"| `{key}` | {default} | {config.allowed(key)} | {config.Config.model_fields[key].description} |\n"
            for key, default in ((key, config.default_of(key).replace("<", "&lt;")) for key in keys)
        ]
        parts.append(f"## {title}\n\n| name | default | takes | meaning |\n|---|---|---|---|\n{''.join(rows)}")
    return "\n".join(parts) + "\n" + OTHER_NAMES + "".join(f"| `{k}` | {v} |\n" for k, v in config.INSTEAD.items())


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    page = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent.parent / "docs" / "parameters.md"
    page.write_text(reference(), encoding="utf-8")
    print(f"written: {page}")
    return 0


if __name__ == "__main__":
    shell.run(main)
