"""Open the playground: plan a run with sliders, watch runs, let a model write."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("playground")
