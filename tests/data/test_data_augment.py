"""The augmentations against torchvision's and timm's, and what each draw may depend on."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from methods.data.augment import (
    _KERNELS,
    PHOTOGRAPH,
    ToSample,
    _rand_augment,
    crop_box,
    draw_erasing,
    global_rng,
    jittered,
    resized,
)
from methods.data.mixing import (
    Mix,
    draw_mix,
    erase,
    mix_images,
    normalise,
    partners,
    soft_targets,
    to_float,
)
from methods.parts.augment import (
    Augmentation,
    EvaluationTransform,
    FineTuneAugmentation,
    LinearAugmentation,
    SecondView,
)

torch.set_num_threads(1)


def picture(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, so that interpolation matters."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels = (pixels + generator.integers(-20, 21, pixels.shape)).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("size", [(80, 60), (60, 80), (301, 199), (54, 54), (20, 33)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_is_torchvisions_pixel_by_pixel(
    size: tuple[int, int], interpolation: Any
) -> None:
    image = picture(*size)
    theirs = transforms.Compose(
        [
            transforms.Resize(54, InterpolationMode(interpolation)),
            transforms.CenterCrop(48),
            transforms.PILToTensor(),
        ]
    )
    ours = EvaluationTransform(48, interpolation=interpolation).build()
    assert torch.equal(ours(image, rng())["image"], theirs(image))


def test_evaluation_at_224_resizes_to_256() -> None:
    assert EvaluationTransform().shorter_side == 256
    assert EvaluationTransform(48, resize=48).shorter_side == 48


def test_crops_are_distributed_as_torchvisions() -> None:
    """Quantiles of area, aspect and position over 4000 boxes, for a picture that is not square."""
    torch.manual_seed(0)
    blank = Image.new("RGB", (100, 70))
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    theirs = [
        transforms.RandomResizedCrop.get_params(blank, list(scale), list(ratio))
        for _ in range(4000)
    ]
    generator = rng()
    ours = [crop_box(100, 70, scale, ratio, generator) for _ in range(4000)]
    left = np.asarray([(x, y, right - x, bottom - y) for x, y, right, bottom in ours])
    right = np.asarray([(j, i, w, h) for i, j, h, w in theirs])
    assert (left[:, :2] >= 0).all() and (left[:, 0] + left[:, 2] <= 100).all()
    for column, scale_of in zip(range(4), (100, 70, 100, 70), strict=True):
        for q in (0.1, 0.3, 0.5, 0.7, 0.9):
            gap = np.quantile(left[:, column], q) - np.quantile(right[:, column], q)
            assert abs(gap) <= 0.05 * scale_of


def test_a_box_that_never_fits_falls_back_to_the_centre() -> None:
    assert crop_box(300, 30, (1.0, 1.0), (3 / 4, 4 / 3), rng()) == (130, 0, 170, 30)
    assert crop_box(30, 300, (1.0, 1.0), (3 / 4, 4 / 3), rng()) == (0, 130, 30, 170)


def test_a_crop_is_torchvisions_resized_crop() -> None:
    image, value = picture(), LinearAugmentation(size=48, flip=0)
    box = crop_box(*image.size, value.scale, value.ratio, rng(5))
    left, top, right, bottom = box
    theirs = transforms.functional.resized_crop(
        image, top, left, bottom - top, right - left, [48, 48], InterpolationMode.BICUBIC
    )
    ours = value.build()(image, rng(5))["image"]
    assert torch.equal(ours, transforms.functional.pil_to_tensor(theirs))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize(("size", "share"), [((500, 375), 0.01), ((PHOTOGRAPH, 300), 0.25)])
def test_a_photograph_is_resized_as_by_pillow_but_for_rounding(
    size: tuple[int, int], share: float, interpolation: str
) -> None:
    image = Image.fromarray(skimage.data.astronaut()).resize(size)
    for side in (224, 112):
        ours = np.asarray(resized(image, side, interpolation)).astype(int)
        kind = Image.Resampling[interpolation.upper()]
        gap = np.abs(ours - np.asarray(image.resize((side, side), kind)))
        assert (gap > 0).mean() < share and (gap > 1).mean() < share / 40
        assert (gap > 0).any() == (interpolation in _KERNELS)


def test_a_small_picture_is_resized_by_pillow_to_the_last_bit() -> None:
    image = picture(PHOTOGRAPH - 1, 300)
    pillow = image.resize((64, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(resized(image, 64, "bicubic")), np.asarray(pillow))


def test_both_views_show_the_same_crop() -> None:
    """The small view is the large one shrunk, mirrored together, for every draw."""
    value = Augmentation(size=48, jitter=(0.4, 0.4, 0.4), second=SecondView(24, "lanczos"))
    views = value.build()
    for seed in range(20):
        both = views(picture(200, 150), rng(seed))
        assert both["image"].shape == (3, 48, 48) and both["second"].shape == (3, 24, 24)
        small = torch.nn.functional.avg_pool2d(both["image"].float(), 2)
        gap = (small - both["second"].float()).abs().mean()
        mirrored = (small.flip(-1) - both["second"].float()).abs().mean()
        assert gap < 5 and gap < mirrored


def test_a_second_view_like_the_first_is_left_out() -> None:
    views = Augmentation(size=48, second=SecondView(48, "bicubic")).build()
    assert set(views(picture(), rng())) == {"image"}


def test_flip_happens_as_often_as_asked() -> None:
    image = picture(48, 48)
    views = {
        flip: Augmentation(size=48, scale=(1, 1), ratio=(1, 1), flip=flip).build()
        for flip in (0.0, 0.5, 1.0)
    }
    plain = transforms.functional.pil_to_tensor(image)
    assert torch.equal(views[0.0](image, rng())["image"], plain)
    assert torch.equal(views[1.0](image, rng())["image"], plain.flip(-1))
    same = sum(torch.equal(views[0.5](image, rng(s))["image"], plain) for s in range(400))
    assert 150 < same < 250


def test_jitter_stays_within_its_strength_and_is_off_at_zero() -> None:
    image = picture()
    assert jittered(image, (0.0, 0.0, 0.0), rng()).tobytes() == image.tobytes()
    means = [np.asarray(jittered(image, (0.4, 0, 0), rng(s))).mean() for s in range(200)]
    relative = np.asarray(means) / np.asarray(image).mean()
    assert 0.58 < relative.min() < 0.65 and 1.2 < relative.max() < 1.42


@pytest.mark.parametrize(
    "value",
    [
        Augmentation(size=48, jitter=(0.4, 0.4, 0.4), second=SecondView(24)),
        FineTuneAugmentation(size=48),
        LinearAugmentation(size=48),
        EvaluationTransform(48),
    ],
)
def test_a_draw_decides_everything_and_touches_no_global_generator(value: Any) -> None:
    views = value.build()
    first = views(picture(), rng(3))
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    second = views(picture(), rng(3))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert first["image"].dtype == torch.uint8 and first["image"].is_contiguous()


def test_global_generators_are_restored_after_an_error() -> None:
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    with pytest.raises(RuntimeError), global_rng(rng()):
        random.random()
        np.random.rand()
        raise RuntimeError
    assert (random.random(), np.random.rand()) == expected


def test_rand_augment_is_timms() -> None:
    from timm.data.auto_augment import rand_augment_transform

    settings = {
        "translate_const": 21,
        "img_mean": (124, 116, 104),
        "interpolation": Image.Resampling.BICUBIC,
    }
    theirs = rand_augment_transform("rand-m6-mstd0.5-inc1", settings)
    ours = _rand_augment("rand-m6-mstd0.5-inc1", 48, "bicubic", "imagenet")
    for seed in range(40):
        with global_rng(rng(seed)):
            expected = theirs(picture(48, 48))
        with global_rng(rng(seed)):
            assert ours(picture(48, 48)).tobytes() == expected.tobytes()


def test_full_magnitude_does_not_fail() -> None:
    """timm posterises to 0 bits there, which Pillow 12 and later refuse."""
    views = FineTuneAugmentation(size=48, rand_augment="rand-m10-n4-p1-inc1").build()
    for seed in range(60):
        views(picture(48, 48), rng(seed))


def test_erasing_boxes_lie_inside_and_come_as_often_as_asked() -> None:
    draws = torch.stack([draw_erasing(0.25, 48, rng(seed)) for seed in range(2000)])
    erased = draws[draws[:, 2] > 0]
    assert 0.2 < len(erased) / 2000 < 0.3
    top, left, height, width, seeds = erased.unbind(1)
    assert (top >= 0).all() and (top + height <= 48).all() and (left + width <= 48).all()
    share = (height * width) / 48**2
    assert share.min() > 0.01 and share.max() < 0.36 and 0.12 < share.mean() < 0.22
    assert len(seeds.unique()) == len(seeds)


def test_erasing_fills_the_box_with_noise_of_the_sample() -> None:
    images = torch.full((3, 3, 32, 32), 7.0)
    boxes = torch.tensor([[2, 3, 20, 24, 11], [0, 0, 0, 0, 0], [2, 3, 20, 24, 12]])
    out = erase(images, boxes)
    assert torch.equal(images, torch.full_like(images, 7.0)) and torch.equal(out[1], images[1])
    inside = out[0, :, 2:22, 3:27]
    assert abs(inside.mean()) < 0.1 and 0.9 < inside.std() < 1.1
    assert (out[0] == 7).sum() == 3 * (32 * 32 - 20 * 24)
    assert not torch.equal(out[0], out[2])
    assert torch.equal(erase(images[:1], boxes[:1])[0], out[0])


def test_partners_are_neighbours() -> None:
    assert partners(5, torch.device("cpu")).tolist() == [1, 0, 3, 2, 4]


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_mixing_does_not_depend_on_micro_batches(cut: int) -> None:
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 5
    for step in range(6):
        mix = draw_mix(FineTuneAugmentation(size=16), seed=1, step=step, height=16, width=16)
        assert mix == draw_mix(FineTuneAugmentation(size=16), 1, step, 16, 16)
        pieces = [mix_images(part, mix) for part in images.chunk(cut)]
        assert torch.equal(torch.cat(pieces), mix_images(images, mix))
        targets = [soft_targets(part, mix, 5, 0.1) for part in labels.chunk(cut)]
        assert torch.equal(torch.cat(targets), soft_targets(labels, mix, 5, 0.1))


def test_mixed_targets_are_timms() -> None:
    """timm pairs first with last; for two images that is the same pair."""
    from timm.data.mixup import mixup_target

    labels = torch.tensor([1, 4])
    ours = soft_targets(labels, Mix(0.7), 6, 0.1)
    theirs = mixup_target(labels, 6, lam=0.7, smoothing=0.1)
    assert torch.allclose(ours, theirs) and torch.allclose(ours.sum(1), torch.ones(2))


def _draws(value: FineTuneAugmentation, count: int = 1500) -> list[Mix]:
    return [draw_mix(value, 0, step, 48, 48) for step in range(count)]


def test_mix_follows_its_probabilities() -> None:
    both = _draws(FineTuneAugmentation(size=48))
    assert 0.44 < np.mean([mix.box is not None for mix in both]) < 0.56
    assert all(mix.box is None for mix in _draws(FineTuneAugmentation(cutmix=0), 200))
    assert all(mix.box is not None for mix in _draws(FineTuneAugmentation(mixup=0), 200))
    assert set(_draws(FineTuneAugmentation(mixup=0, cutmix=0), 50)) == {Mix(1.0)}
    rare = _draws(FineTuneAugmentation(mix_probability=0.25))
    assert 0.2 < np.mean([mix != Mix(1.0) for mix in rare]) < 0.3
    # Beta(0.8, 0.8) has mean 1/2 and variance 1/(4 * 2.6).
    kept = [mix.kept for mix in _draws(FineTuneAugmentation(cutmix=0))]
    assert np.mean(kept) == pytest.approx(0.5, abs=0.03)
    assert np.var(kept) == pytest.approx(1 / 10.4, abs=0.01)


def test_cutmix_keeps_the_share_that_it_says() -> None:
    images = torch.stack([torch.zeros(3, 48, 48), torch.ones(3, 48, 48)])
    for mix in _draws(FineTuneAugmentation(mixup=0), 40):
        mixed = mix_images(images, mix)
        assert mixed[0].mean().item() == pytest.approx(1 - mix.kept, abs=1e-5)
        assert mixed[1].mean().item() == pytest.approx(mix.kept, abs=1e-5)


def test_normalisation_is_torchvisions() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = transforms.Normalize(mean, std)(images / 255)
    assert torch.allclose(normalise(to_float(images), "imagenet"), theirs)


def test_samples_carry_label_and_draw() -> None:
    class Uniform:
        def draw(self, generator: np.random.Generator, grid: tuple[int, int]) -> np.ndarray:
            return generator.random(grid[0] * grid[1], dtype=np.float32)

    views = LinearAugmentation(size=48).build()
    sample = ToSample(views, Uniform(), (6, 6))((picture(), 4), rng())
    assert sample["label"] == 4 and sample["draw"].shape == (36,)
    with pytest.raises(ValueError, match="grid"):
        ToSample(views, Uniform())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Augmentation(scale=(0.0, 1.0)),
        lambda: Augmentation(scale=(0.9, 0.2)),
        lambda: Augmentation(size=0),
        lambda: Augmentation(jitter=(-1.0, 0.0, 0.0)),
        lambda: FineTuneAugmentation(erasing=2.0),
        lambda: FineTuneAugmentation(rand_augment="augmix-m3"),
        lambda: FineTuneAugmentation(mixup=-1.0),
        lambda: EvaluationTransform(224, resize=200),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError):
        make()
