"""The page: plan, train, watch and sample in a browser."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads this once, on import
