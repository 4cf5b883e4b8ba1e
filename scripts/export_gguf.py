"""Write a run's model and tokenizer as one GGUF file, for llama.cpp and programs built on it."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("export_gguf")
