"""A model understood: its operations with their weights, and how ONNX nodes become them."""
