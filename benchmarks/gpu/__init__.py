"""Everything that only a GPU can tell, in one command: `python -m benchmarks.gpu`; docs/gpu.md says what it prints."""
