"""Masks: how many patches, which ones, and that their values refuse what makes no sense."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from methods.parts.masking import Blockwise, Cells, Masking, Random, SemanticAware

GRID = (14, 14)


def draws(masking: Masking, count: int, grid: tuple[int, int] = GRID) -> torch.Tensor:
    generator = np.random.default_rng(0)
    return torch.from_numpy(np.stack([masking.draw(generator, grid) for _ in range(count)]))


@pytest.mark.parametrize(
    "masking, grid, hidden",
    [
        (Random(0.75), GRID, 147),
        (Random(0.65), GRID, 128),
        (Random(0.75), (6, 6), 27),
        (SemanticAware(0.75), GRID, 147),
        (Cells(0.6, 2), GRID, 120),
        (Cells(0.6, 2), (6, 6), 24),
        (Blockwise(75), GRID, 75),
        (Blockwise(78), GRID, 78),
        (Blockwise(98), GRID, 98),
        (Blockwise(75), (6, 6), 14),
        (Blockwise(78), (4, 4), 6),
    ],
)
def test_every_mask_hides_the_count(masking: Masking, grid: tuple[int, int], hidden: int) -> None:
    patches = grid[0] * grid[1]
    attention = torch.rand(50, patches) + 0.01
    mask = masking.mask(draws(masking, 50, grid), attention)
    assert masking.count(patches) == hidden
    assert mask.dtype == torch.bool and mask.shape == (50, patches)
    assert (mask.sum(1) == hidden).all()


def test_random_masks_are_uniform() -> None:
    mask = Random(0.75).mask(draws(Random(0.75), 4000))
    assert (mask.float().mean(0) - 0.75).abs().max() < 0.04


def test_blockwise_rates_of_beit_v2() -> None:
    """Measured on the official generator: centre .717, edges .137, corners .044."""
    rate = draws(Blockwise(75), 6000).float().mean(0).reshape(14, 14)
    centre = rate[6:8, 6:8].mean()
    edges = torch.cat([rate[0, 1:-1], rate[-1, 1:-1], rate[1:-1, 0], rate[1:-1, -1]]).mean()
    corners = rate[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert centre == pytest.approx(0.717, abs=0.02)
    assert edges == pytest.approx(0.137, abs=0.03)
    assert corners == pytest.approx(0.044, abs=0.02)


def test_blockwise_of_beit_v1_is_an_upper_bound() -> None:
    """Measured on the official generator: mean 74.5, P(75) = .67."""
    masking = Blockwise(75, exact=False)
    counts = draws(masking, 3000).sum(1).double()
    assert not masking.exact and counts.max() == 75
    assert counts.mean() == pytest.approx(74.5, abs=0.2)
    assert (counts == 75).double().mean() == pytest.approx(0.67, abs=0.04)


def test_cells_are_whole() -> None:
    mask = draws(Cells(0.6, 2), 20).reshape(20, 7, 2, 7, 2)
    per_cell = mask.permute(0, 1, 3, 2, 4).flatten(3).sum(-1)
    assert set(per_cell.unique().tolist()) == {0, 4}


def test_semantic_aware_follows_sequential_sampling() -> None:
    """The visible patches are a multinomial draw without replacement (MILAN)."""
    masking = SemanticAware(ratio=0.5)
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    noise = draws(masking, 40000, (2, 2))
    visible = ~masking.mask(noise, weights.expand(40000, 4))
    for pair in ((0, 1), (0, 3), (2, 3)):
        expected = sum(
            float(weights[a] * weights[b] / (1 - weights[a])) for a, b in permutations(pair)
        )
        found = visible[:, list(pair)].all(1).float().mean()
        assert float(found) == pytest.approx(expected, abs=0.012)


def test_semantic_aware_needs_attention_and_survives_zeros() -> None:
    masking = SemanticAware()
    with pytest.raises(ValueError, match="attention"):
        masking.mask(draws(masking, 2))
    mask = masking.mask(draws(masking, 2), torch.zeros(2, 196, dtype=torch.float16))
    assert (mask.sum(1) == 147).all()


def test_a_draw_depends_on_its_generator_alone() -> None:
    for masking in (Random(), SemanticAware(), Cells(), Blockwise()):
        first, second = (masking.draw(np.random.default_rng(7), GRID) for _ in range(2))
        assert np.array_equal(first, second)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: Random(0.0), "ratio"),
        (lambda: SemanticAware(1.0), "ratio"),
        (lambda: Cells(0.5, 0), "cell"),
        (lambda: Blockwise(196), "hidden"),
        (lambda: Blockwise(75, minimum=76), "minimum"),
        (lambda: Cells(0.5, 4).draw(np.random.default_rng(0), GRID), "cell"),
    ],
)
def test_wrong_values_are_named(make: object, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()  # type: ignore[operator]
