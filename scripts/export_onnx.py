"""Write a run's model as one ONNX file, and compare onnxruntime's logits with Transformers'."""

from hfgpt.commands import run

if __name__ == "__main__":
    run("export_onnx")
