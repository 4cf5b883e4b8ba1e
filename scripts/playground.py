"""Open a page to play with: plan a run with sliders, watch runs, let a model write.

    python scripts/playground.py                                  then open http://127.0.0.1:7860
    python scripts/playground.py out --recipe recipes/learning.yaml
    python scripts/playground.py --lang zh --port 8000

Plan    parameters, memory, time and what fits follow each slider; a value that breaks a rule is marked, with the fix
Runs    the loss curves of the runs in the folder, live and side by side, with what the diagnosis says
Sample  any of these models continues your text, as it is written

The page listens on this machine alone, answers no other web page, and fetches nothing from
outside. It needs: pip install -e ".[playground]"
"""

import argparse

from hfgpt.base import shell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="OUT", nargs="?", default="out", help="folder that holds the runs (out)")
    parser.add_argument("--recipe", metavar="FILE", help="recipe to start from (recipes/standard.yaml)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (7860)")
    parser.add_argument("--lang", choices=("en", "zh"), default="en", help="language of the page (en)")
    parser.add_argument("--allow", metavar="NAME", nargs="+", default=[], help="other host names it may be called by")
    args = parser.parse_args()
    from hfgpt.playground.server import serve

    serve(args.folder, args.recipe, args.host, args.port, args.lang, args.allow)


if __name__ == "__main__":
    shell.run(main)
