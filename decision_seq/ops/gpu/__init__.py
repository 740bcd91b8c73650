"""The operations as GPU kernels: mamba-ssm's, and our own in Triton."""
