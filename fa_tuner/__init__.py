"""fa-tune: finds which steps and layers must stay native under FP8 attention in vLLM-Omni."""
