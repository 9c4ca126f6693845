"""Forward and backward pass of a Llama with LoRA, written out: packed sequences, fused kernels, no frozen gradients.

The mathematics is that of transformers' Llama with peft's LoRA (Hu et al. 2021); what differs is how it is computed.
Sequences are packed without padding and never see each other. Frozen matrices get no gradient. LoRA's elementwise work
happens inside kernels that pass over the data anyway. `plain_ops` is the CPU's way and the reference of the tests,
`triton_ops` the GPU's.
"""
