"""The configuration of a run, with the parameter names of nanoGPT and the textbook chapter.

In:  a recipe (YAML), and overrides from the command line.
Out: one validated, immutable :class:`Config`, or a ConfigError that lists every fault at once.

Precedence: defaults < recipe < command line. Nothing in a recipe is executed. This package does not import torch or
transformers, so ``--help`` and errors appear at once.
"""

from hfgpt.config.fields import CALLED, EMBEDDED_DATASET, GROUPS, INSTEAD, RENAMED, Config, with_role
from hfgpt.config.reading import PARAMETERS, build, load, merge, parse_overrides, remarks
from hfgpt.config.recipe_files import find_recipe, read_recipe, run_folder, shipped_recipes
from hfgpt.config.reference import (
    DERIVED,
    allowed,
    default_of,
    derivable,
    group_of,
    help_text,
    to_yaml,
    unit_of,
    yaml_scalar,
)
from hfgpt.config.rules import choose_tokenizer, default_warmup, resolve
