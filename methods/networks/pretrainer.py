"""One method's network: encoder, decoder and the weighted sum of its objectives' losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from methods.data.mixing import normalise, to_float
from methods.engine.optim import parameter_groups
from methods.errors import StageError
from methods.networks.decoders import select
from methods.networks.targets import Inputs, TargetNetwork
from methods.parts.decoder import Output
from methods.parts.model import Method, Objective


class Pretrainer(nn.Module):
    """What pretraining trains. Raises StageError("layout") where the method's parts do not fit."""

    def __init__(self, method: Method, frozen: Mapping[str, Any]) -> None:
        super().__init__()
        self.objectives = method.objectives
        self.encoder = method.encoder.build()
        targets = [each.target.build(method.encoder, frozen) for each in method.objectives]
        outputs = _outputs(method.objectives, targets)
        self.decoder = method.decoder.build(self.encoder, outputs)
        # Rows can be picked for a whole batch only where each image hides as many.
        self.hidden_only = method.masking.exact and getattr(self.decoder, "hidden_only", False)
        self.targets = nn.ModuleList(targets)
        for each in targets:
            each.start(self)
        self.losses = [each.loss.build() for each in method.objectives]

    def forward(self, micro: Mapping[str, Any]) -> dict[str, Tensor]:
        """Scalar losses; "loss" is their weighted sum, the others are there where it has terms.

        micro: image (B, 3, H, W) normalised, mask (B, N) bool, True = hidden, and targets, for each
        objective the rows that it reads.
        """
        predictions = self.predict(micro)
        terms = [
            loss(predictions[objective.prediction], target)
            for objective, loss, target in zip(
                self.objectives, self.losses, micro["targets"], strict=True
            )
        ]
        weighted = [each.weight * term for each, term in zip(self.objectives, terms, strict=True)]
        total = sum(weighted[1:], start=weighted[0])
        if len(terms) == 1:
            return {"loss": total}
        named = zip(_names(self.objectives), terms, strict=True)
        return {"loss": total, **{f"loss_{name}": term.detach() for name, term in named}}

    def predict(self, micro: Mapping[str, Any]) -> dict[str, Tensor]:
        """The decoder's predictions by name; see `methods.parts.decoder.Decoder.build`."""
        encoded = self.encoder(
            micro["image"], micro["mask"], self.decoder.early_layer, self.hidden_only
        )
        predictions: dict[str, Tensor] = self.decoder(encoded)
        return predictions


def _outputs(objectives: tuple[Objective, ...], targets: list[TargetNetwork]) -> dict[str, Output]:
    """What the objectives ask of each prediction; those that share one must ask the same."""
    outputs: dict[str, Output] = {}
    for number, (objective, target) in enumerate(zip(objectives, targets, strict=True)):
        output = Output(target.width, objective.where, target.parts)
        if outputs.setdefault(objective.prediction, output) != output:
            raise StageError(
                "layout",
                f"objectives.{number}: reads the prediction {objective.prediction!r} as {output}, "
                f"another objective as {outputs[objective.prediction]}",
            )
    return outputs


def _names(objectives: tuple[Objective, ...]) -> list[str]:
    """Each objective's prediction; numbered where several read the same."""
    names = [each.prediction for each in objectives]
    return [f"{n}_{i}" if names.count(n) > 1 else n for i, n in enumerate(names)]


class MaskedModelling:
    """The Trainable of pretraining: frozen networks, masks and targets, then the Pretrainer."""

    def __init__(self, method: Method, frozen: Mapping[str, nn.Module]) -> None:
        self.method, self.frozen = method, frozen
        self.attention: Tensor | None = None  # that the last mask was drawn by
        self.pretrainer = Pretrainer(method, frozen)
        self.module: nn.Module = self.pretrainer
        self.targets = cast(list[TargetNetwork], list(self.pretrainer.targets))

    def groups(self) -> list[dict[str, Any]]:
        """Parameters by weight decay, as `optimisation.undecayed` says."""
        return parameter_groups(self.module, self.method.optimisation, "encoder.model.")

    def prepare(self, step: int, micros: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Normalised images, masks and the targets' rows for this rank's micro-batches.

        Frozen networks come before the mask, which may need their attention, and the targets after
        it, since some follow the student. Raises StageError("layout") where the method needs the
        whole batch and this rank's share comes in several micro-batches.
        """
        if self.method.whole_batch and len(micros) > 1:
            raise StageError(
                "layout",
                f"method {self.method.name} compares the images of a batch with each other, so a "
                "device must take its share at once: use more devices or a smaller batch",
            )
        inputs = [self._inputs(micro) for micro in micros]
        single = [self._targets(each) for each in inputs]
        joint = [
            target.joint(list(parts))
            for target, parts in zip(self.targets, zip(*single, strict=True), strict=True)
        ]
        return [self._micro(*each) for each in zip(inputs, zip(*joint, strict=True), strict=True)]

    def after_step(self, step: int) -> dict[str, float]:
        """Let targets follow the student."""
        for target in self.targets:
            target.after_step(self.pretrainer)
        return {}

    def _inputs(self, micro: dict[str, Any]) -> Inputs:
        image = to_float(micro["image"])
        plain = to_float(micro["second"]) if "second" in micro else image
        statistics = self.method.augmentation.statistics
        shared = micro.get("seen", {})
        return Inputs(
            normalise(image, statistics), plain, micro, self.frozen, statistics, seen=shared
        )

    def _targets(self, inputs: Inputs) -> list[Tensor]:
        inputs.mask = self._mask(inputs)
        targets = [target.one(inputs, self.pretrainer) for target in self.targets]
        if "seen" not in inputs.batch:  # nobody else reads them
            inputs.seen.clear()  # several micro-batches of a teacher's tokens take gigabytes
        return targets

    def _mask(self, inputs: Inputs) -> Tensor:
        masking, attention = self.method.masking, None
        for role in masking.needs:
            attention = inputs.teacher(role, masking.statistics).attention
        self.attention = attention
        return masking.mask(inputs.batch["draw"], attention)

    def _micro(self, inputs: Inputs, targets: tuple[Tensor, ...]) -> dict[str, Any]:
        mask = inputs.mask
        assert mask is not None
        rows = zip(targets, self.method.objectives, strict=True)
        micro = {
            "image": inputs.image,
            "mask": mask,
            "targets": [select(target, mask, objective.where) for target, objective in rows],
        }
        if not self.method.masking.exact:
            # The loss is a mean over hidden patches, whose number differs between micro-batches.
            micro["weight"] = mask.sum()
        return micro
