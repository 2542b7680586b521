"""What speed alone needs, each behind an option: CUDA graphs, streams, the allocator, images on the device."""
