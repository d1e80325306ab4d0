"""The NPU attention operator's arithmetic in plain torch: rotation, block quantization, fp8, mxfp8 and mxfp4."""
