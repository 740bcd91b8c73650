"""The operations as C kernels for the CPU, compiled on first use."""
