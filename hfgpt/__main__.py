"""``python -m hfgpt``, and ``accelerate launch -m hfgpt train …``: the installed command."""

from hfgpt.commands import hfgpt

if __name__ == "__main__":
    hfgpt()
