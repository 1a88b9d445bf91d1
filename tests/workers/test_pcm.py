"""Channels that become one: their mean, and one of them where they are each other's opposites."""

from __future__ import annotations

import numpy as np
import pytest

from workers.pcm import Floats, Mixer, resampled

RATE_HZ = 16_000
#: Samples of a piece, and how many make a recording.
PIECE, PIECES = 8_000, 12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_channel_is_taken_as_it_is(dtype: type) -> None:
    values = np.random.default_rng(0).normal(0, 1, (500, 1)).astype(dtype)
    values[7] = np.nan

    found = Mixer().mean(values)

    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.nan_to_num(values[:, 0], nan=0.0).astype(np.float32))


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sample_as_large_as_only_damage_makes_it_becomes_silence(channels: int) -> None:
    """Sums of such ones are no numbers after the resampler, and voice activity hears nothing more from there on."""
    values = np.random.default_rng(0).normal(0, 0.1, (48_000, channels)).astype(np.float32)
    expected = Mixer().mean(values)
    values[1000:1200] = 3e38 * np.sign(values[1000:1200])
    found = np.concatenate(list(resampled(iter([(48_000, Mixer().mean(values)), (48_000, Mixer().mean(values[:0]))]))))
    assert np.isfinite(found).all()
    clean = np.concatenate(list(resampled(iter([(48_000, expected)]))))
    np.testing.assert_allclose(found[1000:], clean[1000:], atol=1e-3)


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_that_cancel_each_other_are_heard(channels: int) -> None:
    """A crossed wire: the mean of such a recording is silence."""
    voice = np.random.default_rng(0).normal(0, 0.1, 8000)
    values = np.zeros((8000, channels))
    values[:, 0], values[:, 1] = 0.999 * voice, -voice
    np.testing.assert_array_equal(Mixer().mean(values), -voice.astype(np.float32))


@pytest.mark.parametrize("channels", [2, 8, 16])
def test_a_voice_in_one_channel_is_heard_in_the_mean(channels: int) -> None:
    values = np.zeros((8000, channels))
    values[:, -1] = np.random.default_rng(0).normal(0, 0.1, 8000)
    np.testing.assert_allclose(Mixer().mean(values), values[:, -1] / channels, atol=1e-6)


def voice(seed: int = 0) -> Floats:
    """Some seconds that swell and fade as speech does, float32[n]."""
    time = np.arange(PIECE * PIECES) / RATE_HZ
    noise = np.random.default_rng(seed).normal(0, 0.1, time.size)
    return (noise * (1.1 + np.sin(2 * np.pi * 3 * time))).astype(np.float32)


def noise(power_of: Floats, decibels: float, seed: int) -> Floats:
    """Noise that is so much above something's power."""
    size = np.sqrt(np.mean(power_of**2)) * 10 ** (decibels / 20)
    return np.random.default_rng(seed).normal(0, size, power_of.size).astype(np.float32)


def mixed(*channels: Floats) -> Floats:
    """A recording of these channels as it is heard, piece by piece."""
    mixer = Mixer()
    return np.concatenate([mixer.mean(piece) for piece in np.split(np.stack(channels, axis=1), PIECES)])


def share(found: Floats, of: Floats) -> float:
    """How much of the sound is ``of``: 1 for all, 0 for nothing."""
    return float(abs(np.corrcoef(found, of)[0, 1]))


def test_opposite_channels_with_a_constant_part_are_heard() -> None:
    """Cheap sound cards add one; it is in the mean."""
    speech = voice()
    np.testing.assert_array_equal(mixed(speech + 0.01, 0.01 - speech), speech + 0.01)


def test_opposite_channels_with_hum_in_both_are_heard() -> None:
    speech = voice()
    time = np.arange(speech.size) / RATE_HZ
    hum = (np.sqrt(2 * np.mean(speech**2)) * 0.1 * np.sin(2 * np.pi * 50 * time)).astype(np.float32)
    assert share(mixed(speech + hum, hum - speech), speech) > 0.99


@pytest.mark.parametrize("decibels", [-40, -20, -12])
def test_opposite_channels_with_noise_of_their_own_are_heard(decibels: float) -> None:
    speech = voice()
    found = mixed(speech + noise(speech, decibels, 1), noise(speech, decibels, 2) - speech)
    assert share(found, speech) > 0.96


@pytest.mark.parametrize(("channels", "decibels"), [(3, 7), (3, 10), (6, 7)])
def test_a_voice_beside_a_pair_of_opposites_is_heard(channels: int, decibels: float) -> None:
    """As in a film's sound: speech in the middle, and an effect around it that cancels itself."""
    speech = voice()
    around = noise(speech, decibels, 3)
    rest = [np.zeros_like(speech)] * (channels - 3)
    found = mixed(speech, around, -around, *rest)
    np.testing.assert_allclose(found, speech / channels, atol=1e-5)


def test_of_opposite_channels_one_is_heard_throughout() -> None:
    """The louder one changes from piece to piece, by little; each change would be a click."""
    speech = voice()
    gains = np.repeat(np.resize([1.05, 0.95], PIECES), PIECE)
    left = (speech * gains).astype(np.float32)
    np.testing.assert_array_equal(mixed(left, -speech), left)


def test_of_opposite_channels_one_that_is_clearly_louder_is_heard() -> None:
    """As in a recording of six channels, where another pair is wired wrongly from some time on."""
    speech = voice()
    first, second = np.split(speech, 2)
    nothing = np.zeros_like(first)
    front, back = np.concatenate((first, nothing)), np.concatenate((nothing, second))
    np.testing.assert_array_equal(mixed(front, -front, back, -back), front + back)


def test_a_channel_that_is_gone_is_not_heard_on() -> None:
    speech, mixer = voice()[:PIECE], Mixer()
    of_three = np.stack((0.5 * speech, 0.5 * speech, -speech), axis=1)
    np.testing.assert_array_equal(mixer.mean(of_three), -speech)
    np.testing.assert_array_equal(mixer.mean(np.stack((speech, -speech), axis=1)), speech)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        *((1.0, 0.0), (1.0, 1.0), (0.3, 1.0), (1.0, -0.4)),  # one side, the middle, aside, a microphone turned round
    ],
)
@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_all_other_channels_are_their_mean(left: float, right: float, constant: float) -> None:
    """To the last bit: two voices, wherever each is heard, with noise and with a constant part."""
    one, other = voice(), voice(1)
    channels = [left * one + right * other + constant, right * one + left * other + noise(one, -30, 3)]
    values = np.stack(channels, axis=1).astype(np.float32)
    expected = np.concatenate([piece.mean(axis=1, dtype=np.float32) for piece in np.split(values, PIECES)])
    np.testing.assert_array_equal(mixed(*values.T), expected)


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_noise_of_its_own_in_each_channel_and_silence_are_their_mean(channels: int) -> None:
    for size in (0.0, 1e-5, 0.1):
        values = np.random.default_rng(0).normal(0, 1, (PIECE, channels)).astype(np.float32) * np.float32(size)
        np.testing.assert_array_equal(Mixer().mean(values), values.mean(axis=1, dtype=np.float32))
