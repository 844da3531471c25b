"""VQ-KD: sizes, losses, codebook and k-means against plain references, and the official layout."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_teachers import vqkd_task
from torch import Tensor

from methods.engine.work import Layout, Work
from methods.errors import StageError
from methods.teachers import (
    ReleasedVqkd,
    Tokenizer,
    VqkdTraining,
    load_teacher,
    load_tokenizer,
)
from methods.teachers.vqkd_network import Codebook, VqkdNetwork, network_of, task_layer
from methods.teachers.vqkd_training import (
    VqkdTrainable,
    check_usage,
    cosine_kmeans,
    perplexity,
    reconstruction_loss,
)
from methods.values import from_plain, to_plain


def units(seed: int, *shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture()
def network() -> VqkdNetwork:
    torch.manual_seed(0)
    return VqkdNetwork(**vqkd_task().network(12))


def test_paper_sizes() -> None:
    with torch.device("meta"):
        network = VqkdNetwork(**VqkdTraining().network(512))

    def count(module: Any) -> int:
        return sum(item.numel() for item in module.parameters() if item.requires_grad)

    assert count(network) == 108_829_216
    assert count(network.encoder) == 85_789_440
    assert count(network.decoder) == 21_440_256
    assert count(network.encode_task_layer) == 615_200
    assert count(network.decode_task_layer) == 984_320
    assert network.quantize.embedding.weight.shape == (8192, 32)


def test_paper_schedule() -> None:
    optimisation = VqkdTraining().optimisation
    assert optimisation.peak == pytest.approx(2e-4)
    assert (optimisation.betas, optimisation.weight_decay) == ((0.9, 0.99), 1e-4)


def test_initialisation() -> None:
    torch.manual_seed(0)
    network = VqkdNetwork(48, 8, 128, 4, 4, 3, 16, 8, 32)
    for part in (network.encoder, network.decoder):
        for position, block in enumerate(part.blocks):
            scale = 0.02 / math.sqrt(2 * (position + 1))
            assert float(block.attn.proj.weight.detach().std()) == pytest.approx(scale, rel=0.05)
            assert float(block.mlp.fc2.weight.detach().std()) == pytest.approx(scale, rel=0.05)
            assert float(block.mlp.fc1.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
            assert not block.attn.q_bias.any() and block.gamma_1 is None
    layer = task_layer(256, 32)
    assert float(layer[0].weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not layer[2].bias.any()


def test_no_weight_decay_for_tokens_and_positions(teacher_folder: Path) -> None:
    trainable = VqkdTrainable(vqkd_task(), load_teacher(teacher_folder), 24)
    decayed = {
        id(item)
        for group in trainable.groups()
        for item in group["params"]
        if group["weight_decay"] > 0
    }
    for name, item in trainable.module.named_parameters():
        spared = item.ndim <= 1 or name.endswith(("cls_token", "pos_embed", ".bias"))
        assert (id(item) in decayed) != spared, name
    assert "network.quantize.embedding.weight" not in dict(trainable.module.named_parameters())


def test_nearest_code_by_distance_is_largest_product() -> None:
    book, tokens = Codebook(16, 4).eval(), units(1, 3, 5, 4)
    distances = ((tokens[:, :, None] - book.embedding.weight) ** 2).sum(-1)
    assert torch.equal(book.assign(tokens), distances.argmin(-1))


def test_straight_through_and_commitment() -> None:
    book = Codebook(16, 4)
    tokens = units(1, 2, 5, 4).requires_grad_()
    quantised, codes, commitment = book(tokens)
    chosen = book.embedding.weight[codes]
    torch.testing.assert_close(quantised, chosen)
    weights = torch.randn_like(quantised)
    through = torch.autograd.grad((quantised * weights).sum(), tokens, retain_graph=True)[0]
    torch.testing.assert_close(through, weights)
    pull = torch.autograd.grad(commitment, tokens)[0]
    torch.testing.assert_close(pull, 2 * (tokens - chosen).detach() / tokens.numel())
    cosine = (tokens * chosen).sum(-1)
    expected = ((2 - 2 * cosine) / 4).mean()
    torch.testing.assert_close(commitment, expected)


def test_moving_average_against_one_hot() -> None:
    book = Codebook(16, 4).train()
    before = book.embedding.weight.double().numpy()
    batches = [units(seed, 2, 5, 4) for seed in (1, 2)]
    for tokens in batches:
        book(tokens)
    book.update(book.sums.clone(), book.counts.clone(), 0.9)
    flat = torch.cat([tokens.flatten(0, 1) for tokens in batches]).double().numpy()
    one_hot = np.eye(16)[(flat @ before.T).argmax(1)]
    counts = one_hot.sum(0)
    means = one_hot.T @ flat / np.maximum(counts, 1)[:, None]
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    means[counts == 0] = before[counts == 0]
    after = 0.9 * before + 0.1 * means
    after /= np.linalg.norm(after, axis=1, keepdims=True)
    np.testing.assert_allclose(book.embedding.weight.numpy(), after, atol=1e-6)
    np.testing.assert_allclose(book.cluster_size.numpy(), 0.1 * counts, rtol=1e-6)
    assert 0 < (counts == 0).sum() < 16
    assert not book.sums.any() and not book.counts.any()


def test_evaluation_leaves_the_codes_alone() -> None:
    book = Codebook(16, 4).eval()
    book(units(1, 2, 5, 4))
    assert not book.counts.any() and not book.sums.any()


def test_reconstruction_against_numpy() -> None:
    predicted, target = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    a, b = predicted.double().numpy(), target.double().numpy()
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    found = float(reconstruction_loss(predicted, target))
    assert found == pytest.approx(1 - cosine.mean(), rel=1e-5)


def test_kmeans_finds_separated_clusters() -> None:
    axes = torch.eye(4)
    noise = 0.05 * torch.randn(4, 50, 4, generator=torch.Generator().manual_seed(0))
    tokens = F.normalize(axes[:, None] + noise, dim=-1).flatten(0, 1)
    best = max(
        float((tokens @ cosine_kmeans(tokens, 4, 10, seed).T).amax(1).mean()) for seed in range(8)
    )
    assert best > 0.98


def test_kmeans_improves_repeats_and_keeps_unit_rows() -> None:
    tokens = units(5, 300, 6)

    def nearness(iterations: int) -> float:
        return float((tokens @ cosine_kmeans(tokens, 12, iterations, 0).T).amax(1).mean())

    rising = [nearness(iterations) for iterations in range(6)]
    assert all(b >= a - 1e-6 for a, b in zip(rising, rising[1:], strict=False))
    centres = cosine_kmeans(tokens, 12, 10, 0)
    torch.testing.assert_close(centres.norm(dim=-1), torch.ones(12))
    assert torch.equal(centres, cosine_kmeans(tokens, 12, 10, 0))
    assert not torch.equal(centres, cosine_kmeans(tokens, 12, 10, 1))


def test_kmeans_with_few_tokens_keeps_empty_centres() -> None:
    tokens = units(5, 3, 6)
    centres = cosine_kmeans(tokens, 8, 10, 0)
    torch.testing.assert_close(centres.norm(dim=-1), torch.ones(8))
    assert torch.allclose((centres @ tokens.T).amax(1), torch.ones(8), atol=1e-5)


def test_perplexity() -> None:
    assert perplexity(torch.tensor([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3, rel=1e-5)
    assert perplexity(torch.zeros(4)) == pytest.approx(1)


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, 48, 48), dtype=torch.uint8, generator=generator)


def test_the_batch_may_be_cut_in_any_way(teacher_folder: Path) -> None:
    """k-means start, losses, gradients and the moved codes of one or three micro-batches."""
    results = []
    for cuts in ([6], [2, 2, 2]):
        torch.manual_seed(0)
        trainable = VqkdTrainable(vqkd_task(), load_teacher(teacher_folder), 24)
        trainable.module.train()
        micros = trainable.prepare(0, [{"image": part} for part in images(6).split(cuts)])
        start = trainable.network.quantize.embedding.weight.clone()
        loss = sum(trainable.module(micro)["loss"] for micro in micros) / len(cuts)
        assert isinstance(loss, Tensor)
        gradient = torch.autograd.grad(loss, trainable.network.encoder.pos_embed)[0]
        extra = trainable.after_step(0)
        after = trainable.network.quantize.embedding.weight.clone()
        results.append((start, loss.detach(), gradient, after, torch.tensor(list(extra.values()))))
    for one, many in zip(*results, strict=True):
        torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-6)


def test_every_parameter_gets_a_gradient(teacher_folder: Path) -> None:
    trainable = VqkdTrainable(vqkd_task(), load_teacher(teacher_folder), 24)
    (micro,) = trainable.prepare(0, [{"image": images(4)}])
    trainable.module(micro)["loss"].backward()
    silent = [n for n, p in trainable.module.named_parameters() if p.grad is None]
    assert silent == []


def test_usage_begins_anew_with_each_epoch(teacher_folder: Path) -> None:
    trainable = VqkdTrainable(vqkd_task(), load_teacher(teacher_folder), 24)
    book = trainable.network.quantize
    used = []
    for step in range(4):  # three updates an epoch; each uses one code of its own
        book.counts[step] = 5
        book.sums[step] = book.embedding.weight[step]
        used.append(round(trainable.after_step(step)["usage"] * 16))
    assert used == [1, 2, 3, 1]


def test_training_leaves_a_tokenizer(scenes: Path, teacher_folder: Path, tmp_path: Path) -> None:
    work = Work(folder=tmp_path, data=scenes, needs={"clip": teacher_folder})
    metrics = vqkd_task().run(work)
    assert set(metrics) == {"usage", "perplexity", "reconstruction"}
    assert 0 < metrics["usage"] <= 1 and 1 <= metrics["perplexity"] <= 16
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {name: last[name] for name in metrics} == metrics
    assert (tmp_path / "pictures/1-codebook.png").stat().st_size < 5000 and not work.alarms
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.size, tokenizer.grid, tokenizer.image) == (16, (3, 3), 48)
    pictures = torch.rand(5, 3, 48, 48)
    codes = tokenizer.codes(pictures)
    assert codes.shape == (5, 9) and codes.dtype == torch.int64
    assert int(codes.min()) >= 0 and int(codes.max()) < 16
    before = tokenizer.network.quantize.embedding.weight.clone()
    tokenizer.train()
    assert torch.equal(codes, tokenizer.codes(pictures))
    assert torch.equal(before, tokenizer.network.quantize.embedding.weight)
    with pytest.raises(StageError, match="48 px"):
        tokenizer.codes(torch.rand(1, 3, 32, 32))


def test_micro_batches_change_nothing(scenes: Path, teacher_folder: Path, tmp_path: Path) -> None:
    found = []
    for device_batch in (None, 4):
        folder = tmp_path / str(device_batch)
        folder.mkdir()
        layout = Layout(device_batch=device_batch)
        vqkd_task().run(Work(folder, {"clip": teacher_folder}, scenes, layout))
        found.append(load_tokenizer(folder).network.quantize.embedding.weight)
    assert float((found[0] * found[1]).sum(-1).min()) > 0.99  # a near-tie may fall either way


def test_a_collapsed_codebook_is_refused(
    scenes: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    work = Work(folder=tmp_path, data=scenes, needs={"clip": teacher_folder})
    with pytest.raises(StageError, match="collapsed") as refused:
        vqkd_task(codes=512, minimum_usage=1.0).run(work)  # 180 tokens cannot use 512 codes
    assert refused.value.reason == "codebook" and not (tmp_path / "tokenizer.json").exists()
    check_usage(0.5, 16, 0.5)


def test_another_grid_is_refused(scenes: Path, teacher_folder: Path, tmp_path: Path) -> None:
    work = Work(folder=tmp_path, data=scenes, needs={"clip": teacher_folder})
    with pytest.raises(StageError, match="grid"):
        vqkd_task(patch=8).run(work)


def official(network: VqkdNetwork) -> dict[str, Tensor]:
    """What the authors' training checkpoint holds: more than the network has."""
    codes, dimension = network.quantize.embedding.weight.shape
    return network.state_dict() | {
        "quantize.embedding.cluster_size": torch.zeros(codes),
        "quantize.embedding.embed_avg": torch.zeros(codes, dimension),
        "quantize.embedding.initted": torch.ones(1),
        "scaling_layer.shift": torch.zeros(1, 3, 1, 1),
        "scaling_layer.scale": torch.ones(1, 3, 1, 1),
        "teacher_model.proj": torch.zeros(2, 2),
    }


def test_official_checkpoint_has_222_tensors() -> None:
    with torch.device("meta"):
        state = official(VqkdNetwork(**VqkdTraining().network(512)))
    assert len([name for name in state if not name.startswith("teacher")]) == 222
    assert network_of(state) == VqkdTraining().network(512)


@pytest.mark.parametrize("outer", ["model", "state_dict"])
def test_official_layout_round_trip(network: VqkdNetwork, tmp_path: Path, outer: str) -> None:
    (tmp_path / "vqkd").mkdir()
    torch.save({outer: official(network)}, tmp_path / "vqkd" / "released.pth")
    task = ReleasedVqkd(weights="vqkd/released.pth", heads=2)
    assert task.run(Work(folder=tmp_path, data=tmp_path)) == {}
    tokenizer = load_tokenizer(tmp_path)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tokenizer.network.state_dict()[name], tensor), name
    pictures = torch.rand(3, 3, 48, 48)
    assert torch.equal(tokenizer.codes(pictures), network.eval().codes(pictures))


def test_foreign_checkpoints_are_refused(network: VqkdNetwork, tmp_path: Path) -> None:
    state = official(network)
    wrong = {
        "long": {**state, "quantize.embedding.weight": 2 * state["quantize.embedding.weight"]},
        "lacking": {n: t for n, t in state.items() if not n.startswith("decode_task_layer")},
        "extra": {**state, "encoder.rel_pos_bias": torch.zeros(3)},
    }
    for name, tensors in wrong.items():
        torch.save({"model": tensors}, tmp_path / f"{name}.pth")
        with pytest.raises(StageError, match=name) as refused:
            ReleasedVqkd(weights=f"{name}.pth", heads=2).run(Work(folder=tmp_path, data=tmp_path))
        assert refused.value.reason == "weights"
    with pytest.raises(StageError, match="is missing: fetch the VQ-KD tokenizer"):
        ReleasedVqkd().run(Work(folder=tmp_path, data=tmp_path))


def test_values_travel_and_are_checked() -> None:
    task = vqkd_task()
    assert from_plain(Tokenizer, to_plain(task), "tokenizers.vqkd") == task  # type: ignore[type-abstract]
    for changed in ({"patch": 7}, {"heads": 3}, {"codes": 0}, {"decay": 1.0}, {"commitment": -1}):
        with pytest.raises(ValueError):
            dataclasses.replace(task, **changed)
