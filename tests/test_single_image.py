"""Convolutions of a single volume: the same values and gradients as torch's own, by another way."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from monai_scaleequiv.layers import SingleImageConvolutions, _single_image

OPTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 0, "stride": (1, 2, 3)},
    {"kernel_size": (2, 3, 1), "padding": (1, 0, 2), "bias": False},
    {"kernel_size": 3, "padding": 2, "dilation": (3, 2, 1)},
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": (5, 5, 3), "padding": (2, 4, 1), "padding_mode": "replicate"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(9, 8, 7), (6, 5, 9), (8, 5, 5)])
def test_halves_are_the_whole(options, size):
    conv = torch.nn.Conv3d(3, 4, **options)
    x = torch.randn(1, 3, *size, requires_grad=True)
    expected = conv(x)
    with SingleImageConvolutions():
        y = conv(x)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(y)
    inputs = (x, *conv.parameters())
    found = torch.autograd.grad((y * weights).sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), inputs), atol=1e-4, rtol=1e-4)


def test_only_what_torch_would_unroll_is_taken_apart():
    conv = torch.nn.Conv3d(4, 4, 3, padding=1)
    x = torch.randn(1, 4, 6, 6, 6)
    cases = [
        (conv, x, True),
        (torch.nn.Conv3d(4, 4, 3, padding="same"), x, False),
        (conv, x.expand(2, -1, -1, -1, -1), False),
        (conv, torch.randn(1, 4, 80, 80, 2), False),
        (torch.nn.Conv3d(4, 4, 5, padding=2), x, False),
        (torch.nn.Conv3d(4, 4, 1), x, False),
        (torch.nn.Conv3d(4, 4, 3, padding=1, groups=4), x, False),
        (torch.nn.Conv3d(4, 4, 3, padding=1).double(), x.double(), False),
        (conv, x[0], False),
        (torch.nn.Conv3d(4, 4, 3), x[:, :, :3], False),  # a single slice comes out
        (torch.nn.Conv2d(6, 4, 3), x[0], False),
    ]
    for layer, value, is_halved in cases:
        with mock.patch.object(_single_image.F, "pad", wraps=F.pad) as pad, SingleImageConvolutions():
            y = layer(value)
        assert (pad.call_count == 1) is is_halved, (layer, value.shape)
        torch.testing.assert_close(y, layer(value), atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu"), SingleImageConvolutions():
        assert conv(x).dtype == torch.bfloat16


def test_metatensors_keep_their_geometry():
    conv = torch.nn.Conv3d(2, 2, 3, padding=1)
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    x = MetaTensor(torch.rand(1, 2, 6, 6, 6), affine=affine)
    batch = MetaTensor(x.as_tensor(), affine=affine[None])
    batch.is_batch = True
    for value in (x, batch):
        with SingleImageConvolutions():
            y = conv(value)
        expected = conv(value)
        torch.testing.assert_close(y.affine, expected.affine)
        torch.testing.assert_close(y.as_tensor(), expected.as_tensor(), atol=1e-5, rtol=1e-5)
