"""Safety alignment of multimodal LLMs by the DREAM method, on Ray. Start at pipeline/driver.py, which composes the loop."""

__version__ = "0.1.0"
