"""Train GPT-2-style language models on the Hugging Face stack, by the parameter names of nanoGPT."""

__version__ = "0.1.0"
