"""What devices can do at the most, by their vendors' data sheets."""

import re

import torch

# Dense matrix products in bf16 or fp16 with sums in fp32, in TFLOP/s; the first pattern that is found counts. NVIDIA's
# data sheets print most of them with 2:4 sparsity, twice as much: A100 (312, without), H100 (SXM 1,979, PCIe 1,513,
# NVL 1,671), H200 (SXM 1,979, NVL 1,671), GH200 (1,979), L40S (733, of 362 dense), L4 (242), DGX B200 (8 GPUs: 36,000).
_HALF = (
    (r"\bMIG\b|-\d+(-\d+)?[ABCQ]$", None),  # a part of a device, cut by itself or as a virtual one
    (r"\bA100\b", 312.0),
    (r"\bH100 PCIe\b", 756.5),
    (r"\bH[12]00 NVL\b", 835.5),
    (r"\b(H100|H200|GH200)\b", 989.5),
    (r"\bB200\b", 2250.0),
    (r"\bL40S\b", 362.0),
    (r"\bL4\b", 121.0),
)
_HALF_PRECISIONS = ("bf16", "16")


def peak_tflops(device_name: str, precision: str) -> float | None:
    """Most TFLOP/s of one device in dense matrix products; ``None`` where it is not known.

    Args:
        device_name: as ``torch.cuda.get_device_name`` tells it.
        precision: of the Trainer, such as ``bf16-mixed``. Only half precision is known: whether products in fp32 run as
            TF32 depends on more than the precision.
    """
    if not precision.startswith(_HALF_PRECISIONS):
        return None
    return next((peak for pattern, peak in _HALF if re.search(pattern, device_name)), None)


def peak_of(device: torch.device, precision: str) -> float | None:
    """The same of a device that is there."""
    return peak_tflops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
