"""Push a run to the Hugging Face Hub."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("push")
