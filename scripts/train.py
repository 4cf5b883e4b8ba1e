"""Train a GPT-2-style model from a recipe.

    accelerate launch scripts/train.py recipes/standard.yaml
    accelerate launch scripts/train.py recipes/standard.yaml --max_iters=1000 --no_compile
    python scripts/train.py out/standard --resume

The recipe comes first (a YAML file, or a run folder, whose own recipe is then read); --key=value overrides it.

    --resume          go on from the newest valid checkpoint, or begin where there is none yet
    --overwrite       replace the run that out_dir holds
    --print_config    print the resolved recipe and stop
"""

import sys

from hfgpt import config as configs
from hfgpt.base import loading, shell, threads


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__ + configs.help_text())
        return 0
    recipe, flags, overrides = configs.split_command(sys.argv[1:], {"--resume", "--overwrite", "--print_config"})
    config = configs.load(recipe, overrides)
    if "--print_config" in flags:
        print(configs.to_yaml(config))
        return 0
    threads.configure(config.cpu_threads)  # before torch is loaded
    with loading.uncollected():
        from hfgpt.base.errors import RunError
        from hfgpt.train.loop import train

    try:
        return train(config, resume="--resume" in flags, overwrite="--overwrite" in flags)
    except RunError as error:
        print(f"The run failed at {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    shell.run(main)
