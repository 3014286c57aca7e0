"""One model, several runtimes: what a FiFa-MLLM engine is, how it is exported, checked and run. NumPy in, NumPy out."""
