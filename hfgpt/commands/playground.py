"""Open the playground page: plan a run with sliders, train it, watch runs, sample from a model."""

import re

from hfgpt.base import language
from hfgpt.base.command import Reader, whole
from hfgpt.base.errors import InputError
from hfgpt.base.language import _
from hfgpt.playground.guard import is_address


def main(words: list[str]) -> None:
    """Serve the page until Ctrl-C."""
    parser = Reader(
        "playground",
        _("Open a page to play with: plan a run with sliders, train it, watch runs, sample from a model."),
        [
            ("", _("then open http://127.0.0.1:7860")),
            ("out --recipe recipes/learning.yaml", _("start from this recipe")),
            ("--lang zh --port 8000", _("in Chinese, on another port")),
        ],
        _(
            "Plan: parameters, memory, time and what fits follow each slider; a value that breaks a rule is marked, "
            "with the fix. Train: a run is started, followed, paused and resumed. Runs: the loss curves of the runs in "
            "the folder, live and side by side, with each run's diagnosis and samples. Text: any of these "
            "models continues your text, or shows how well it predicts it.\n\n"
            "The page listens on this machine alone, answers no other web page, and fetches nothing from outside. It "
            "needs: "
            'pip install -e ".[playground]"'
        ),
    )
    parser.argument("folder", _("RUNS"), _("folder that holds the runs (out)"), required=False)
    parser.option("recipe", _("FILE"), _("recipe to start from (one that suits this machine)"))
    parser.option("host", _("ADDRESS"), _("address to listen on (127.0.0.1: this machine alone)"), default="127.0.0.1")
    parser.option("port", "N", _("port to listen on (7860)"), whole, 7860)
    parser.option(
        "allow", _("NAMES"), _("other host names at which it may be reached, separated by commas"), _names, []
    )
    arguments = parser.read(words)
    try:
        from hfgpt.playground.page import serve
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "fastapi", "uvicorn"):
            raise
        raise InputError("playground: needs Gradio → {command}", command='pip install "hfgpt[playground]"') from None

    place = (arguments.host, arguments.port)
    serve(
        arguments.folder or "out",
        arguments.recipe,
        *place,
        language.current(),
        arguments.allow,
        ["-m", "hfgpt", "train"],
    )


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not all(re.fullmatch(r"[\w.-]+", name) or is_address(name.strip("[]")) for name in names):
        raise ValueError(_("must be host names without http:// and port, such as lab.example"))
    return names
