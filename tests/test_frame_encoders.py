"""Encoders of frames: the published network, standardised and shifted pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from decision_seq.config import build
from decision_seq.data.transforms import ObservationNorm
from decision_seq.errors import UserError
from decision_seq.model.encoders import FrameEncoder, ImageEncoderConfig, NatureConfig
from decision_seq.model.encoders.base import random_shift


def test_nature_is_the_published_network() -> None:
    encoder = NatureConfig().build((4, 84, 84))
    assert encoder.features == 3136
    x = torch.rand(2, 4, 84, 84)
    reference = torch.nn.Sequential(
        torch.nn.Conv2d(4, 32, 8, 4),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 64, 4, 2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(64, 64, 3, 1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
    )
    reference.load_state_dict(
        dict(zip(reference.state_dict(), encoder.state_dict().values(), strict=True))
    )
    torch.testing.assert_close(encoder(x), reference(x))
    with pytest.raises(UserError, match=r"frames are 35 x 84; .* at least 36 x 36"):
        NatureConfig().build((4, 35, 84))


@pytest.mark.parametrize("kind", sorted(ImageEncoderConfig.registry))
def test_every_encoder_standardises_stacks_and_keeps_their_order(kind: str) -> None:
    config = build(ImageEncoderConfig, {"kind": kind}, "test")  # type: ignore[type-abstract]
    torch.manual_seed(0)
    encoder = FrameEncoder(config, (4, 84, 84)).eval()
    encoder.mean.copy_(torch.randint(0, 256, (84, 84)))
    encoder.std.fill_(20)
    stacks = torch.randint(0, 256, (2, 3, 4, 84, 84), dtype=torch.uint8)
    features = encoder(stacks)
    assert features.shape == (2, 3, encoder.features)
    alone = encoder.net((stacks[1, 2][None] - encoder.mean) / 20)[0]
    torch.testing.assert_close(features[1, 2], alone, rtol=1e-4, atol=1e-5)


def test_frames_are_standardised_by_their_data() -> None:
    frames = np.full((5000, 6, 8), 90, np.uint8)
    frames[np.arange(5000), np.arange(5000) % 6, 3] = 210  # what moves
    norm = ObservationNorm.of_frames(frames)
    assert norm.mean[0, 0] == 90 and np.ptp(norm.mean[:, 3] - 110) <= 8
    expected = (frames - norm.mean).astype(np.float64)
    np.testing.assert_allclose(norm.std, expected.std(), rtol=0.05)
    still = ObservationNorm.of_frames(np.full((10, 6, 8), 90, np.uint8))
    assert still.std == 1  # not 0, by which nothing can be divided


def test_what_is_shifted_is_standardised() -> None:
    torch.manual_seed(0)
    encoder = FrameEncoder(NatureConfig(random_shift=4), (4, 84, 84))
    encoder.mean.copy_(torch.randint(0, 256, (84, 84)))
    stacks = encoder.mean.to(torch.uint8).expand(2, 3, 4, 84, 84)
    still = encoder.net(torch.zeros(1, 4, 84, 84))[0]
    torch.testing.assert_close(encoder(stacks), still.expand(2, 3, -1))


def test_random_shift_moves_a_window_as_a_whole() -> None:
    frames = torch.randint(0, 256, (8, 3, 4, 10, 12)).float()
    torch.manual_seed(3)
    moved = random_shift(frames, 2)
    torch.manual_seed(3)
    dy, dx = torch.randint(-2, 3, (2, 8, 1))[..., 0].tolist()
    padded = np.pad(frames.flatten(1, 2), [(0, 0)] * 2 + [(2, 2)] * 2, mode="edge")
    for b in range(8):
        y, x = 2 + dy[b], 2 + dx[b]
        expected = padded[b, :, y : y + 10, x : x + 12].reshape(3, 4, 10, 12)
        assert torch.equal(moved[b], torch.from_numpy(expected))
    assert len({*zip(dy, dx, strict=True)}) > 1  # windows differ


def test_random_shift_keeps_autocast_precision() -> None:
    frames = torch.rand(2, 3, 4, 10, 12).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert random_shift(frames, 2).dtype == torch.bfloat16  # its padding would be float32
