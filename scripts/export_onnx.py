"""Write a run's model as one ONNX file, and compare its logits under onnxruntime with Transformers'."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("export_onnx")
