"""The engine `vllm-omni`: the real engine, in a process of its own."""
