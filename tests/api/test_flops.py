"""The operations of a training, and the peaks of GPUs by the names that nodes and PyTorch give them."""

import pytest

from herdsman.api.flops import peak_flops, training_flops

CASES = [
    ("7B, 49,953 pieces, r=8, blocks of 512", 6.476e9, 0.205e9 + 20.0e6, 512, 4096, 32, 27.65e9),
    ("the same, r=64", 6.476e9, 0.205e9 + 159.9e6, 512, 4096, 32, 28.5e9),
    ("the same, r=8, blocks of 1024", 6.476e9, 0.205e9 + 20.0e6, 1024, 4096, 32, 28.1e9),
    ("8B, r=8, blocks of 512", 6.979e9, 0.525e9 + 21.0e6, 512, 4096, 32, 31.6e9),
    ("8B, r=64, blocks of 1024", 6.979e9, 0.525e9 + 167.8e6, 1024, 4096, 32, 32.9e9),
]


@pytest.mark.parametrize(("frozen", "trained", "length", "width", "layers", "expected"), [case[1:] for case in CASES])
def test_the_operations_of_a_token_are_those_reckoned_by_hand(frozen, trained, length, width, layers, expected):
    found = training_flops(frozen=frozen, trained=trained, length=length, width=width, layers=layers)
    assert found == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize(
    ("product", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA-H100-80GB-HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA-L40", 181e12),
        ("NVIDIA A10", 125e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("", None),
    ],
)
def test_a_gpus_peak_is_known_by_its_name(product, peak):
    assert peak_flops(product) == peak
