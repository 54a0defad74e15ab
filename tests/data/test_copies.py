"""How batches reach a GPU: pinned as they are, copied without anybody waiting, pictures as uint8."""

from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.overrides import TorchFunctionMode
from torch.utils.data._utils.pin_memory import pin_memory
from witness import KEY
from zoo import NAMES, make, write_all

from siglightning.batch import InputSpec
from siglightning.models.tokenizers import Tokenizer

SIZE = 32


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo")
    write_all(root)
    return root


@pytest.fixture
def data(root, request):
    data = make(root, request.param)
    data.input_spec = InputSpec(SIZE, Tokenizer("clip", 12), lambda: KEY)
    data.setup("fit")
    return data


class Seen(TorchFunctionMode):
    """Which tensors were pinned, which were moved and how; pinning itself needs a GPU."""

    def __init__(self):
        super().__init__()
        self.pinned, self.moved = [], []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.pin_memory:
            self.pinned.append(args[0])
            return args[0].clone()
        if function is torch.Tensor.to:
            self.moved.append((kwargs or {}).get("non_blocking"))
        return function(*args, **(kwargs or {}))


def tensors(batch):
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("data", NAMES, indirect=True)
def test_every_tensor_of_a_batch_is_pinned_and_copied_without_waiting(data):
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cuda")), global_rank=0, world_size=1
    )
    assert data.evaluation_dataloader(data.val_set).pin_memory
    data.trainer.strategy.root_device = torch.device("cpu")
    loaders = [data.evaluation_dataloader(data.val_set)]
    assert not loaders[0].pin_memory
    data.trainer = None
    for batch in (next(iter(data.train_dataloader())), next(iter(loaders[0]))):
        with Seen() as seen:
            pinned = pin_memory(batch, "cuda")
        assert type(pinned) is dict
        assert pinned.keys() == batch.keys()
        assert {id(value) for value in seen.pinned} == {id(value) for value in tensors(batch).values()}
        assert [pinned[name] for name in batch if name not in tensors(batch)] == [
            batch[name] for name in batch if name not in tensors(batch)
        ], "lists of ids and counts stay as they are"
        with Seen() as seen:
            moved = move_data_to_device(pinned, torch.device("meta"))
        assert seen.moved == [True] * len(tensors(batch))
        assert {value.device.type for value in tensors(moved).values()} == {"meta"}
        assert "image" not in batch or batch["image"].dtype == torch.uint8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("data", NAMES, indirect=True)
def test_on_a_gpu_no_copy_waits(data):
    batch = pin_memory(next(iter(data.train_dataloader())), "cuda")
    assert all(value.is_pinned() for value in tensors(batch).values())
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = data.on_after_batch_transfer(move_data_to_device(batch, torch.device("cuda")), 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert "image" not in moved or moved["image"].dtype == torch.uint8
