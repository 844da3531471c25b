"""Segmentation: mmsegmentation's parts under our loop, and its Runner for comparison."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_evaluations import BEIT, MASKS, VIT, segmentation

from evals.encoders import build_frozen, source
from evals.segmentation import Segmentation
from evals.segmentation_data import TrainingSample, ValidationSample, open_pictures
from evals.segmentation_mmseg import IoUMetric
from evals.segmentation_model import build_segmentor
from evals.segmentation_training import Segmenting, SegmentorLoss, check_layout, evaluate
from methods.data.stream import Samples, Stream
from methods.engine.loop import fit
from methods.engine.work import Layout, Work
from methods.errors import StageError

Make = Callable[..., Work]


def built(task: Segmentation, work: Work) -> Any:
    return build_segmentor(task, source(work, task.encoder, task.seed, task.statistics))


def copied(data: Path, root: Path) -> Path:
    """A root of its own with copies of the masks' folder, to be damaged."""
    import shutil

    shutil.copytree(MASKS.root(data), MASKS.root(root))
    return MASKS.root(root)


def test_samples_depend_on_seed_epoch_and_index_only(data: Path) -> None:
    task = segmentation()
    pictures = open_pictures(task, data, "train")
    samples = Samples(pictures, TrainingSample(pictures, 48), seed=3)
    random.seed(1), np.random.seed(1)
    first = samples[(2, 5)]
    before = random.getstate(), np.random.get_state()[1].tolist()
    samples[(0, 7)]
    again = samples[(2, 5)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert all(torch.equal(first[name], again[name]) for name in ("image", "label", "size"))
    assert not torch.equal(first["image"], samples[(3, 5)]["image"])


def test_zero_is_ignored_and_padding_too(data: Path, tmp_path: Path) -> None:
    task = segmentation(ratio=(0.5, 0.5), flip=0.0, distortion=False)
    root = copied(data, tmp_path)
    path = sorted((root / "annotations/training").iterdir())[0]
    mask = np.full((48, 48), 4, np.uint8)
    mask[:, :24] = 0
    Image.fromarray(mask).save(path)
    pictures = open_pictures(task, tmp_path, "train")
    sample = Samples(pictures, TrainingSample(pictures, 48), seed=0)[(0, 0)]
    assert sample["size"].tolist() == [24, 24]
    label = sample["label"][0]
    assert label[:24, :12].unique().tolist() == [255]
    assert label[:24, 12:24].unique().tolist() == [3]
    assert label[24:].unique().tolist() == label[:, 24:].unique().tolist() == [255]
    assert sample["image"][:, 24:].abs().sum() == 0


@pytest.mark.parametrize("split", ["train", "validation"])
def test_broken_data_are_refused_by_name(data: Path, tmp_path: Path, split: Any) -> None:
    task = segmentation()
    root = copied(data, tmp_path)
    folder = {"train": "training", "validation": "validation"}[split]
    masks = sorted((root / "annotations" / folder).iterdir())
    Image.fromarray(np.ones((40, 48), np.uint8)).save(masks[0])
    Image.fromarray(np.full((48, 48), 12, np.uint8)).save(masks[1])
    (root / "images" / folder / f"{masks[2].stem}.jpg").write_bytes(b"no picture")
    masks[3].write_bytes(b"no mask")
    pictures = open_pictures(task, tmp_path, split)
    transform = TrainingSample(pictures, 48) if split == "train" else ValidationSample(pictures)
    samples = Samples(pictures, transform, seed=0)
    for index, message in enumerate(("a mask of", "label 12 of 11", masks[2].stem, masks[3].stem)):
        with pytest.raises(StageError, match=message) as caught:
            samples[(0, index)]
        assert caught.value.reason == "data" and masks[index].stem in str(caught.value)


def test_missing_pictures_and_folders_are_refused(data: Path, tmp_path: Path) -> None:
    root = copied(data, tmp_path)
    next((root / "images/training").iterdir()).unlink()
    with pytest.raises(StageError, match="39 of 40 images"):
        open_pictures(segmentation(), tmp_path, "train")
    with pytest.raises(StageError, match="no such folder"):
        open_pictures(segmentation(), tmp_path / "nowhere", "train")


@pytest.mark.parametrize("encoder", [VIT, BEIT], ids=["ViT", "Beit"])
def test_the_backbone_is_the_pretrained_encoder(
    encoder: Any, work: Make, exported: Callable[..., Path]
) -> None:
    work_ = work(needs={"encoder": exported(encoder)})
    task = segmentation(encoder)
    segmentor = built(task, work_).eval()
    images = torch.randn(2, 3, 48, 48)
    maps = segmentor.backbone(images)
    frozen = build_frozen(source(work_, encoder, 0, "imagenet"), torch.device("cpu"))
    expected = frozen.forward_intermediates(images, norm=False, intermediates_only=True)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [tuple(each.shape[2:]) for each in segmentor.neck(maps)] == [
        (12, 12), (6, 6), (3, 3), (1, 1)
    ]  # fmt: skip


def test_rates_decay_in_the_backbone_and_every_parameter_gets_a_gradient(work: Make) -> None:
    task = segmentation(BEIT, blocks=(0, 1, 2, 3))
    module = SegmentorLoss(built(task, work()))
    groups = Segmenting(module, task).groups()
    found = {id(item): group for group in groups for item in group["params"]}
    encoder = module.segmentor.backbone.encoder
    scales = [found[id(block.attn.proj.weight)]["lr_scale"] for block in encoder.blocks]
    assert scales == pytest.approx([0.65**4, 0.65**3, 0.65**2, 0.65])
    assert found[id(encoder.patch_embed.proj.weight)]["lr_scale"] == pytest.approx(0.65**5)
    assert found[id(module.segmentor.decode_head.conv_seg.weight)]["lr_scale"] == 1.0
    assert found[id(module.segmentor.decode_head.bottleneck.bn.weight)]["weight_decay"] == 0.0
    micro = {
        "inputs": torch.randn(4, 3, 48, 48),
        "labels": torch.randint(0, 11, (4, 1, 48, 48)).to(torch.uint8),
    }
    module(micro)["loss"].backward()
    assert [name for name, item in module.named_parameters() if item.grad is None] == []


def test_blocks_after_the_last_map_are_cut(work: Make) -> None:
    segmentor = built(segmentation(blocks=(0, 1, 2, 3)), work())
    assert len(segmentor.backbone.encoder.blocks) == 4
    deep = replace(VIT, depth=6)
    segmentor = built(segmentation(deep, blocks=(0, 1, 2, 3)), work())
    assert len(segmentor.backbone.encoder.blocks) == 4
    with pytest.raises(StageError, match="only 4 blocks"):
        built(segmentation(blocks=(0, 1, 2, 4)), work())


def test_small_pictures_are_padded_for_the_encoder(work: Make) -> None:
    backbone = built(segmentation(), work()).backbone.eval()
    image = torch.randn(1, 3, 30, 48)
    maps = backbone(image)
    assert [tuple(each.shape[2:]) for each in maps] == [(2, 3)] * 4
    whole = torch.zeros(1, 3, 48, 48)
    whole[:, :, :30] = image
    torch.testing.assert_close(maps[3], backbone(whole)[3][:, :, :2])


class _Recorded(torch.utils.data.Dataset[Any]):
    """The packed samples that our stream shows in its first updates, for mmengine's loader."""

    def __init__(self, samples: list[Any]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Any:
        return self._samples[index]


def _packed_in_order(task: Segmentation, pictures: Any, updates: int) -> list[Any]:
    """What mmsegmentation's pipeline gives for the images that our stream takes, in its order."""
    from methods.data.augment import global_rng
    from methods.data.stream import positions

    packed = []
    count = updates * task.optimisation.batch
    for epoch, index in positions(0, count, len(pictures), task.seed):
        with global_rng(np.random.default_rng([task.seed, epoch, index])):
            packed.append(pictures.dataset.pipeline(pictures[index]))
    return packed


def test_a_few_updates_equal_those_of_mmengines_runner(
    work: Make, data: Path, tmp_path: Path
) -> None:
    from mmengine.runner import Runner

    # Dropout draws from our seeds per update, which the Runner does not know. With a large eps
    # Adam does not blow up the rounding noise of biases before a norm, whose gradient is zero.
    task = segmentation(dropout=0.0, drop_path=0.0)
    optimisation = replace(task.optimisation, eps=1e-4)
    task = replace(task, optimisation=optimisation)
    pictures = open_pictures(task, data, "train")

    ours, work_ = built(task, work()), work()
    trainable = Segmenting(SegmentorLoss(ours), task)
    transform = TrainingSample(pictures, task.crop)

    def stream(start: int) -> Stream:
        return Stream(pictures, transform, optimisation.batch, task.seed, Layout(), start, unit=1)

    fit(trainable, optimisation, stream, work_, len(pictures), task.seed)

    theirs = built(task, work())
    groups = [
        {
            "params": group["params"],
            "weight_decay": group["weight_decay"],
            "lr": optimisation.peak * group["lr_scale"],
        }
        for group in Segmenting(SegmentorLoss(theirs), task).groups()
    ]
    loader = torch.utils.data.DataLoader(
        _Recorded(_packed_in_order(task, pictures, 4)),
        batch_size=optimisation.batch,
        collate_fn=_pseudo_collate(),
    )
    runner = Runner(
        theirs,
        work_dir=str(tmp_path / "runner"),
        train_dataloader=loader,
        train_cfg={"by_epoch": False, "max_iters": 4, "val_interval": 100},
        optim_wrapper={
            "type": "OptimWrapper",
            "optimizer": torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-4),
        },
        param_scheduler=[
            {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 2},
            {
                "type": "PolyLR",
                "power": 1.0,
                "eta_min": 0.0,
                "by_epoch": False,
                "begin": 2,
                "end": 4,
            },
        ],
        default_hooks={"checkpoint": None, "logger": None, "timer": None},
        log_level="ERROR",
        default_scope="mmseg",
    )
    runner.train()

    losses, _ = runner.message_hub.get_scalar("train/loss").data
    assert _losses(work_) == pytest.approx(losses.tolist(), rel=1e-5)
    untouched = built(task, work()).state_dict()
    moved = 0.0
    for name, item in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], item, rtol=1e-4, atol=1e-5, msg=name)
        moved = max(moved, float((item.float() - untouched[name].float()).abs().max()))
    assert moved > 1e-4


def _pseudo_collate() -> Any:
    from mmengine.dataset import pseudo_collate

    return pseudo_collate


def test_the_score_is_that_of_ioumetric(work: Make, data: Path) -> None:
    task = segmentation()
    segmentor = built(task, work())
    pictures = open_pictures(task, data, "validation")
    found = evaluate(segmentor, pictures, Layout())
    metric = IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": MASKS.classes}
    for index in range(len(pictures)):
        packed = pictures.dataset.pipeline(pictures[index])
        batch = {"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}
        metric.process({}, [each.to_dict() for each in segmentor.test_step(batch)])
    expected = metric.compute_metrics(metric.results)
    assert found.keys() == {"mIoU", "aAcc", "mAcc"}
    # mmsegmentation rounds to two digits.
    assert found == pytest.approx({name: float(expected[name]) for name in found}, abs=0.006)
    assert evaluate(segmentor, pictures, Layout(device_batch=1)) == pytest.approx(found)


def test_sliding_over_a_larger_picture(work: Make, data: Path) -> None:
    task = segmentation(inference="slide", crop=32, stride=21, encoder=replace(VIT, image=32))
    segmentor = built(task, work())
    found = evaluate(segmentor, open_pictures(task, data, "validation"), Layout())
    assert all(0 <= value <= 100 for value in found.values())


def test_a_stage_is_quiet_and_resumes_bit_for_bit(
    work: Make, exported: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    needs = {"encoder": exported(BEIT)}
    task = segmentation(BEIT)
    whole = task.run(work("whole", needs=needs))
    asked = iter([None, "preempted"])
    with pytest.raises(StageError, match="preempted"):
        task.run(work("stopped", needs=needs, stop=lambda: next(asked)))
    assert task.run(work("stopped", needs=needs)) == whole
    assert _losses(work("stopped")) == _losses(work("whole"))
    output = capfd.readouterr()
    assert output.out == output.err == ""
    drawn = {path.stem: path for path in (work("whole").folder / "pictures").iterdir()}
    assert sorted(drawn) == ["1-images", "2-truth", "3-predicted", "4-wrong"]
    with Image.open(drawn["2-truth"]) as image:
        assert "background" in image.info["Description"]
        assert image.size == (4 * 96 + 3 * 4, 96)


def test_loader_processes_change_nothing(work: Make) -> None:
    task = segmentation()
    alone = task.run(work("alone"))
    assert task.run(work("helped", layout=Layout(loader_workers=1))) == alone
    assert _losses(work("helped")) == _losses(work("alone"))


def _losses(work: Work) -> list[float]:
    return [json.loads(line)["loss"] for line in work.metrics.read_text().splitlines()]


def test_a_layout_that_would_change_the_batch_statistics_is_refused() -> None:
    check_layout(8, Layout(device_batch=8))
    check_layout(8, Layout(world=4, device_batch=2))
    with pytest.raises(StageError, match="take more devices") as caught:
        check_layout(8, Layout(device_batch=4))
    assert caught.value.reason == "layout"
