"""Train GPT-2-style language models on the Hugging Face stack with nanoGPT's parameter names."""

__version__ = "0.1.0"
