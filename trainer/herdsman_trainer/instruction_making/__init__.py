"""Instruction records: asked for, converted, cleaned, and put together. Nothing here needs PyTorch."""
