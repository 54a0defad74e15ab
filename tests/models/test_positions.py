"""Tables of positions are resized as pictures are, whatever library calls them what."""

import numpy as np
import pytest
import torch
from PIL import Image

from siglightning.models import TowerConfig, build_image_tower
from siglightning.models.positions import PatchGrid, is_position_table, old_side, resize_positions


def by_pillow(grid, side):
    """Each dimension ``[old, old]`` resized as a picture of floating-point numbers, on its own."""
    resized = [
        Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC) for plane in np.moveaxis(grid, 2, 0)
    ]
    return np.stack([np.asarray(plane) for plane in resized], axis=2)


@pytest.mark.parametrize("side", [3, 4, 6, 7])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_the_table_is_what_pillow_makes_of_it(side, prefix):
    """Pillow's bicubic filter is antialiased, and of the same cubic; both compute in fp32."""
    torch.manual_seed(0)
    table = torch.randn(prefix + 16, 5)
    resized = resize_positions(table, 4, side)
    assert torch.equal(resized[:prefix], table[:prefix])
    expected = by_pillow(table[prefix:].view(4, 4, 5).numpy(), side)
    np.testing.assert_allclose(resized[prefix:].view(side, side, 5).numpy(), expected, atol=2e-6)
    torch.testing.assert_close(resize_positions(table[None], 4, side)[0], resized, rtol=0, atol=0)


def test_a_table_of_the_same_size_stays_to_the_bit():
    table = torch.randn(17, 5)
    assert torch.equal(resize_positions(table, 4, 4), table)


def test_every_library_s_table_is_found_and_fits(vit_of_two_sizes):
    small, large = vit_of_two_sizes
    grid = PatchGrid.of(large)
    assert (grid.patch, grid.side) == (8, 6)
    assert large.get_parameter(grid.weight).shape[-1] == 8
    have, want = small.state_dict(), large.state_dict()
    (table,) = (key for key in want if want[key].shape != have[key].shape)
    assert is_position_table(table)
    assert old_side(have[table], want[table], grid.side) == 4
    assert resize_positions(have[table], 4, 6).shape == want[table].shape
    assert [key for key in want if is_position_table(key)] == [table]


def test_tables_of_no_square_grid_are_left_alone():
    assert old_side(torch.zeros(17, 4), torch.zeros(37, 4), 6) == 4
    assert old_side(torch.zeros(18, 4), torch.zeros(37, 4), 6) is None  # 17 patches are no square
    assert old_side(torch.zeros(17, 4), torch.zeros(37, 5), 6) is None
    assert old_side(torch.zeros(2, 17, 4), torch.zeros(2, 37, 4), 6) is None
    assert old_side(torch.zeros(1, 17, 4), torch.zeros(37, 4), 6) is None
    assert old_side(torch.zeros(1, 4), torch.zeros(37, 4), 6) is None  # nothing but the class token


def test_a_convolutional_tower_has_no_grid():
    assert PatchGrid.of(build_image_tower(TowerConfig("timm:resnet18"))) is None
