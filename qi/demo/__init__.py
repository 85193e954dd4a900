"""What `qi demo` ships: a small real data set and a model trained on it (see README.md in this folder)."""

from qi.demo.assets import DemoData, demo_model_path, load_demo_data

__all__ = ["DemoData", "demo_model_path", "load_demo_data"]
