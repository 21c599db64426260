"""Stage 5: is every stage the same function as the one before, and what did merging cost?

Parity compares eager patched PyTorch -> ONNX as traced -> rewritten ONNX -> engine, each against the one before.
Quality compares the patched with the unpatched model: a separate question with separate numbers.
"""
